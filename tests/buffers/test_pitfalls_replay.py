"""Defects of other libraries' replay buffers, one test a row of the project's list of pitfalls."""

import time
from typing import Any

import numpy as np
import pytest

from fastac.buffers import ReplayBuffer, SequenceReplayBuffer

GAMMA = 0.5


def made(capacity: int = 100, **options: Any) -> ReplayBuffer:
    example = {"observations": np.zeros(1, np.float32), "actions": np.int64(0)}
    return ReplayBuffer.from_example(capacity, example, gamma=GAMMA, **options)


def play(buffer: Any, steps: int, *, terminated: tuple[int, ...] = (), truncated: tuple[int, ...] = ()) -> None:
    """Observations count 0, 1, 2, ...; an end leads to -t, t being the row, and the next episode goes on counting."""
    first = buffer.added
    for t in range(first, first + steps):
        ends = t in terminated, t in truncated
        following = -t if any(ends) else t + 1
        buffer.add(np.float32([t]), t, float(t + 1), np.float32([following]), *ends)


def test_b1_the_final_observation_survives_a_truncation() -> None:
    """Row B1: sharing next_obs with obs[i+1] loses the final observation at a truncation; it is in a side table."""
    buffer = made()
    play(buffer, 10, terminated=(3,), truncated=(6,))
    batch = buffer.gather(range(10))
    assert batch.next_observations[:, 0].tolist() == [1, 2, 3, -3, 5, 6, -6, 8, 9, 10]
    assert np.flatnonzero(batch.truncated).tolist() == [6]
    assert np.flatnonzero(batch.terminated).tolist() == [3]


@pytest.mark.parametrize("added", [1, 7, 8, 9, 30])
def test_b2_the_newest_row_has_its_own_successor(added: int) -> None:
    """Row B2: index i+1 read beyond the write cursor; the newest row's successor is stored with it."""
    buffer = made(8)
    play(buffer, added)
    newest = buffer.gather([added - 1])
    assert newest.next_observations[0, 0] == added
    oldest = max(added - 8, 0)
    batch = buffer.gather(range(oldest, added))
    assert batch.next_observations[:, 0].tolist() == list(range(oldest + 1, added + 1))
    drawn = buffer.sample(500)
    np.testing.assert_array_equal(drawn.next_observations[:, 0], drawn.indices + 1)
    assert set(drawn.indices.tolist()) == set(range(oldest, added))


@pytest.mark.parametrize("capacity", [6, 100])
def test_b3_n_step_windows_stop_at_ends_and_at_the_cursor(capacity: int) -> None:
    """Row B3: n-step window crosses the cursor or an episode's end; the window stops there."""
    buffer = made(capacity, n_step=3)
    play(buffer, 20, terminated=(15,), truncated=(17,))
    batch = buffer.gather(range(14, 20))
    lasts = [15, 15, 17, 17, 19, 19]
    rewards = [
        sum(GAMMA**k * (t + k + 1) for k in range(last - t + 1)) for t, last in zip(range(14, 20), lasts, strict=True)
    ]
    np.testing.assert_allclose(batch.rewards, rewards, rtol=1e-6)
    assert batch.next_observations[:, 0].tolist() == [-15, -15, -17, -17, 20, 20]
    assert batch.terminated.tolist() == [True, True, False, False, False, False]
    assert batch.truncated.tolist() == [False, False, True, True, False, False]


def test_b4_the_discount_is_that_of_the_window() -> None:
    """Row B4: gamma instead of gamma^k for a window cut at k < n; gamma^k comes with each sample."""
    buffer = made(n_step=4)
    play(buffer, 8, truncated=(4,))
    np.testing.assert_array_equal(
        buffer.gather(range(8)).discounts, GAMMA ** np.array([4, 4, 3, 2, 1, 3, 2, 1], np.float32)
    )


def test_b5_the_tail_of_an_episode_is_there() -> None:
    """Row B5: the last n-1 transitions of an episode are never stored; each is drawn, with a shorter window."""
    buffer = made(n_step=5)
    play(buffer, 12, terminated=(5, 11))
    drawn = buffer.sample(2000)
    assert set(drawn.indices.tolist()) == set(range(12))
    assert len(buffer) == 12


@pytest.mark.parametrize("windows", ["whole", "padded", "across"])
@pytest.mark.parametrize("added", [11, 16, 45])
def test_b6_windows_cross_neither_the_cursor_nor_unannounced_an_end(windows: str, added: int) -> None:
    """Row B6: sequences cross the cursor or an episode's end; never, or an explicit mask says so."""
    example = {"observations": np.zeros(1, np.float32), "actions": np.int64(0)}
    buffer = SequenceReplayBuffer.from_example(16, example, length=4, windows=windows)
    ends = tuple(range(6, 60, 7))
    play(buffer, added, truncated=ends)
    batch = buffer.sample(300)
    rows = batch.observations[..., 0]
    oldest = max(added - 16, 0)
    assert rows.min() >= oldest
    assert rows.max() < added
    assert batch.mask[0].all()
    steps, real = np.diff(rows, axis=0), batch.mask[1:]
    np.testing.assert_array_equal(steps[real], 1)
    np.testing.assert_array_equal(steps[~real], 0)
    crossed = np.isin(rows[:-1], ends) & real
    if windows == "across":
        assert crossed.any()
        np.testing.assert_array_equal(batch.is_first[1:], crossed)
    else:
        assert not crossed.any()
    assert windows == "padded" or real.all()


@pytest.mark.parametrize("kind", [ReplayBuffer, SequenceReplayBuffer])
def test_b11_sampling_does_not_slow_down_with_the_number_of_rows(kind: Any) -> None:
    """Row B11: sampling slows with the number of rows; an index kept at insertion makes the cost independent of size.

    A hundred times the rows fit no cache any more, and take less than five times the time.
    """
    envs, times = 1000, []
    for rows in (10_000, 1_000_000):
        example = {"observations": np.zeros(1, np.float32), "actions": np.int8(0)}
        options = {"length": 10} if kind is SequenceReplayBuffer else {"n_step": 3}
        buffer = kind.from_example(rows, example, num_envs=envs, **options)
        observations, actions, rewards = np.zeros((envs, 1), np.float32), np.zeros(envs, np.int8), np.zeros(envs)
        ends = np.random.default_rng(0).random((20, envs)) < 0.02
        for t in range(rows // envs + 5):
            buffer.add(observations, actions, rewards, observations, ends[t % 20], ends[(t + 7) % 20])
        batch = buffer.sample(32)
        took = []
        for _ in range(15):
            start = time.thread_time()
            for _ in range(20):
                buffer.sample(32, out=batch)
            took.append(time.thread_time() - start)
        times.append(min(took))
    assert times[1] < 5 * times[0]


@pytest.mark.parametrize("size", [3, 64, 100, 7056])
def test_n5_rows_of_bytes_are_copied_in_words(size: int) -> None:
    """Row N5: row-slice assignment in a gather runs at a third of an element loop's speed; rows are copied as words.

    Against NumPy's own gather of the same bytes, which copies rows by memcpy: at most three times its time, where a
    loop over bytes or slices would take more. Every length of row comes out bit for bit.
    """
    example = {"observations": np.zeros(size, np.uint8), "actions": np.int64(0)}
    buffer = ReplayBuffer.from_example(2000, example, num_envs=100)
    stored = np.random.default_rng(0).integers(0, 256, (21, 100, size), np.uint8)
    no, zeros = np.zeros(100, bool), np.zeros(100, np.int64)
    for t in range(20):
        buffer.add(stored[t], zeros, zeros.astype(np.float32), stored[t + 1], no, no)
    batch = buffer.sample(256)
    flat = stored.reshape(-1, size)
    np.testing.assert_array_equal(batch.observations, flat[batch.indices])
    np.testing.assert_array_equal(batch.next_observations, flat[batch.indices + 100])
    if size < 1000:
        return
    ours, numpys = [], []
    for _ in range(15):
        start = time.thread_time()
        buffer.sample(256, out=batch)
        middle = time.thread_time()
        np.take(flat, batch.indices, axis=0, out=batch.observations)
        np.take(flat, batch.indices + 100, axis=0, out=batch.next_observations)
        ours.append(middle - start)
        numpys.append(time.thread_time() - middle)
    assert min(ours) < 3 * min(numpys)
