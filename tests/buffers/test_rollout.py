import numpy as np
import pytest
import torch
from naive import gae as naive_gae

from fastac.buffers import RolloutBuffer

T, N, D = 16, 3, 2


def filled(seed=0, masked=False, action_shape=(), action_dtype=np.int64):
    """A buffer of random rows, the critic's values of everything, and the observations truncated rows led to."""
    rng = np.random.default_rng(seed)
    buffer = RolloutBuffer(T, N, (D,), action_shape, action_dtype=action_dtype)
    final = {}
    for t in range(T):
        terminated, truncated = rng.random((2, N)) < 0.3
        mask = rng.random(N) < 0.7 if masked else np.ones(N, bool)
        ended = np.flatnonzero((terminated | truncated) & mask)
        finals = rng.normal(size=(len(ended), D))
        for n, observation in zip(ended, finals, strict=True):
            final[t, n] = observation.astype(np.float32)
        buffer.add(
            rng.normal(size=(N, D)),
            rng.integers(0, 5, (N, *action_shape)),
            rng.normal(size=N),
            terminated,
            truncated,
            mask,
            finals,
        )
    return buffer, rng.normal(size=(N, D)).astype(np.float32), final


def value(observations):
    """A critic that anybody can compute."""
    return observations @ np.float32([1.0, -2.0])


@pytest.mark.parametrize("masked", [False, True])
def test_advantages_are_those_of_the_transitions_own_next_observations(masked):
    """Rows R1, R3, R8 and R15: V(final observation) at a truncation, else the next row's; no fillers."""
    buffer, last, final = filled(masked=masked)
    assert (buffer.terminated & buffer.truncated & buffer.mask).any()
    observations = buffer.observations_to_value(last)
    values = torch.from_numpy(value(observations.numpy()))
    buffer.compute_advantages(torch.zeros(T * N), values, gamma=0.9, gae_lambda=0.8)

    next_observations = np.concatenate([buffer.observations[1:], last[None]])
    for (t, n), observation in final.items():
        if buffer.truncated[t, n]:
            next_observations[t, n] = observation
    rows = buffer.rewards, value(buffer.observations), value(next_observations)
    flags = buffer.terminated, buffer.truncated, buffer.mask
    for n in range(N):
        advantages, returns = naive_gae(*(field[:, n] for field in (*rows, *flags)), gamma=0.9, gae_lambda=0.8)
        np.testing.assert_allclose(buffer.advantages[:, n].numpy(), advantages, atol=1e-5)
        np.testing.assert_allclose(buffer.returns[:, n].numpy(), returns, atol=1e-5)
    assert len(observations) == T * N + N + sum(
        bool(buffer.truncated[row] and not buffer.terminated[row]) for row in final
    )


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("num_minibatches", [1, 4, 7])
def test_minibatches_hold_every_valid_row_once_in_nearly_equal_sizes(masked, num_minibatches):
    buffer, last, _ = filled(masked=masked)
    count = len(buffer.observations_to_value(last))
    rows = torch.arange(T * N, dtype=torch.float32)
    buffer.compute_advantages(rows, torch.zeros(count), gamma=0.9, gae_lambda=0.8)
    generator = torch.Generator().manual_seed(0)
    epochs = []
    for _ in range(2):
        batches = list(buffer.minibatches(num_minibatches, generator))
        sizes = [len(batch.log_probs) for batch in batches]
        assert len(sizes) == num_minibatches
        assert max(sizes) - min(sizes) <= 1
        seen = torch.cat([batch.log_probs for batch in batches]).long()
        assert torch.equal(seen.sort().values, torch.from_numpy(np.flatnonzero(buffer.mask)))
        for field, flat in (("observations", buffer.observations.reshape(-1, D)), ("actions", buffer.actions.ravel())):
            together = torch.cat([getattr(batch, field) for batch in batches])
            assert np.array_equal(together.numpy(), flat[seen])
        for field in ("values", "advantages", "returns"):
            together = torch.cat([getattr(batch, field) for batch in batches])
            assert torch.equal(together, getattr(buffer, field).reshape(-1)[seen])
        epochs.append(seen)
    assert not torch.equal(*epochs)


def test_fewer_valid_rows_than_minibatches():
    buffer = RolloutBuffer(2, 2, (1,))
    for mask in ([True, False], [False, True]):
        buffer.add(np.zeros((2, 1)), [0, 0], [1.0, 1.0], [False] * 2, [False] * 2, mask)
    count = len(buffer.observations_to_value(np.zeros((2, 1))))
    buffer.compute_advantages(torch.zeros(4), torch.zeros(count), gamma=0.9, gae_lambda=0.9)
    assert [len(batch.returns) for batch in buffer.minibatches(3, torch.Generator())] == [1, 1]


def test_a_reset_buffer_forgets_the_final_observations():
    buffer, last, _ = filled()
    buffer.reset()
    for _ in range(T):
        buffer.add(np.zeros((N, D)), np.zeros(N), np.zeros(N), np.zeros(N, bool), np.zeros(N, bool))
    assert len(buffer.observations_to_value(last)) == T * N + N


def test_tensors_of_a_rollout_do_not_change_with_the_next_one():
    buffer, last, _ = filled()
    observations = buffer.observations_to_value(last)
    actions = buffer.flat()[1]
    kept = observations.clone(), actions.clone()
    buffer.reset()
    buffer.add(np.full((N, D), 7.0), np.full(N, 7), np.zeros(N), np.zeros(N, bool), np.zeros(N, bool))
    assert torch.equal(observations, kept[0])
    assert torch.equal(actions, kept[1])


def test_wrong_use_is_named():
    with pytest.raises(ValueError, match="num_steps, num_envs: got 0, 3"):
        RolloutBuffer(0, 3, (1,))
    buffer = RolloutBuffer(1, 2, (1,))
    with pytest.raises(ValueError, match="holds 0 of 1 steps"):
        buffer.observations_to_value(np.zeros((2, 1)))
    row = np.zeros((2, 1)), [0, 0], [0.0, 0.0], [False, False]
    with pytest.raises(ValueError, match="final_observations: got none, expected 1"):
        buffer.add(*row, [True, False])
    with pytest.raises(ValueError, match="final_observations: got 2 rows, expected 1"):
        buffer.add(*row, [True, False], final_observations=np.zeros((2, 1)))
    buffer.add(*row, [False, False])
    with pytest.raises(ValueError, match="the buffer is full"):
        buffer.add(*row, [False, False])
    with pytest.raises(ValueError, match="call observations_to_value first"):
        buffer.compute_advantages(torch.zeros(2), torch.zeros(4), gamma=0.9, gae_lambda=0.9)
