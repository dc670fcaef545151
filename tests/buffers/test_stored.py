"""Stored transitions one by one."""

import numpy as np
import pytest

from fastac.buffers import ReplayBuffer, stored

N = 2


def filled(steps: int, ends: tuple[int, ...] = (), **options) -> ReplayBuffer:
    """Row t of environment e observes 10 t + e; after an end the next observation is 10 t + e + 5."""
    example = {"observations": np.zeros(1, np.float32), "actions": np.zeros(2, np.float32)}
    buffer = ReplayBuffer.from_example(16, example, num_envs=N, gamma=0.5, **options)
    no = np.zeros(N, np.bool_)
    for t in range(steps):
        observations = np.float32([[10 * t], [10 * t + 1]])
        following = observations + (5 if t in ends else 10)
        buffer.add(
            observations, np.full((N, 2), t, np.float32), np.full(N, t, np.float32), following, no | (t in ends), no
        )
    return buffer


def test_rows_are_of_one_step_whatever_n_is() -> None:
    buffer = filled(11, ends=(6,), n_step=3)
    indices = np.arange(buffer.added - buffer.capacity, buffer.added)
    batch, expected = stored.rows(buffer, indices), filled(11, ends=(6,), n_step=1).gather(indices)
    for name in ("observations", "actions", "rewards", "next_observations", "terminated", "discounts", "indices"):
        np.testing.assert_array_equal(getattr(batch, name), getattr(expected, name), err_msg=name)
    assert buffer.gather(indices).discounts[0] == 0.125  # and n is what it was


def test_rewards_and_ends_are_read_and_written() -> None:
    buffer = filled(11, ends=(6,))
    indices = np.array([12, 13, 20])
    assert stored.rewards(buffer, indices).tolist() == [6, 6, 10]
    assert [x.tolist() for x in stored.ends(buffer, indices)] == [[True, True, False], [False] * 3]
    stored.set_rewards(buffer, indices, [-1, -2, -3])
    stored.set_actions(buffer, indices, [[1, 2], [3, 4], [5, 6]])
    stored.set_ends(buffer, indices, [False, True, False], [True, False, True])
    batch = buffer.gather(indices)
    assert batch.rewards.tolist() == [-1, -2, -3]
    assert batch.actions.tolist() == [[1, 2], [3, 4], [5, 6]]
    assert batch.terminated.tolist() == [False, True, False]
    assert batch.truncated.tolist() == [True, False, True]
    others = np.setdiff1d(np.arange(6, 22), indices)
    np.testing.assert_array_equal(buffer.gather(others).rewards, others // N)


def test_no_window_goes_on_behind_an_end_that_was_set() -> None:
    buffer = filled(6, n_step=3)
    stored.set_ends(buffer, np.array([4]), True, False)  # row 2 of environment 0
    batch = buffer.gather(np.array([2, 3]))  # row 1 of both
    assert batch.discounts.tolist() == [0.25, 0.125]
    assert batch.rewards.tolist() == [1 + 0.5 * 2, 1 + 0.5 * 2 + 0.25 * 3]
    assert batch.terminated.tolist() == [True, False]
    stored.set_ends(buffer, np.array([4]), False, False)
    batch = buffer.gather(np.array([2]))
    assert batch.discounts.tolist() == [0.25]  # nobody knows whether the next row is of the same episode
    assert batch.terminated.tolist() == [False]


def test_an_end_set_on_the_newest_row_stays() -> None:
    buffer = filled(3, n_step=3)
    stored.set_ends(buffer, np.array([4, 5]), False, True)
    no = np.zeros(N, np.bool_)
    buffer.add(np.float32([[30], [31]]), np.zeros((N, 2), np.float32), np.zeros(N), np.float32([[40], [41]]), no, no)
    batch = buffer.gather(np.array([4, 5]))
    assert batch.truncated.all()
    assert batch.discounts.tolist() == [0.5, 0.5]
    assert batch.next_observations[:, 0].tolist() == [30, 31]


@pytest.mark.parametrize("n_step", [1, 2, 4])
def test_reward_windows_add_up_to_the_targets(n_step: int) -> None:
    buffer = filled(13, ends=(6, 9), n_step=n_step)
    indices = np.arange(buffer.added - buffer.capacity, buffer.added)
    rewards, inside = stored.reward_windows(buffer, indices)
    batch = buffer.gather(indices)
    np.testing.assert_array_equal(np.where(inside, rewards, 0) @ 0.5 ** np.arange(n_step), batch.rewards)
    np.testing.assert_array_equal(0.5 ** inside.sum(1), batch.discounts)


@pytest.mark.parametrize("index", [-1, 5, 22])
def test_what_is_not_stored_is_refused(index: int) -> None:
    buffer = filled(11)
    for call in (stored.rows, stored.rewards, stored.ends):
        with pytest.raises(IndexError, match="indices"):
            call(buffer, np.array([index]))
    with pytest.raises(IndexError, match="indices"):
        stored.set_rewards(buffer, np.array([index]), 0.0)
