"""tianshou's prioritized buffers on our tree: what is drawn, how often, and from whose generator."""

import pickle
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tianshou", reason="tianshou is not installed: pip install tianshou")

from tianshou import data
from tianshou.data import Batch

from fastac.compat._tianshou_buffers import PrioritizedReplayBuffer, PrioritizedVectorReplayBuffer


def filled(buffer: Any, rows: int, num_envs: int = 1) -> Any:
    for t in range(rows):
        row = {"obs": np.full((num_envs, 1), t), "act": np.zeros(num_envs), "rew": np.full(num_envs, t, float),
               "terminated": np.zeros(num_envs, bool), "truncated": np.zeros(num_envs, bool),
               "obs_next": np.zeros((num_envs, 1)), "info": Batch()}  # fmt: skip
        batch = Batch(row)
        buffer.add(batch, buffer_ids=np.arange(num_envs)) if num_envs > 1 else buffer.add(batch[0])
    return buffer


def test_draws_and_weights() -> None:
    """In proportion to p^alpha, to within one of B P(i); weights by hand; an unfilled place is never drawn."""
    buffer = filled(PrioritizedReplayBuffer(8, alpha=0.5, beta=0.7), 5)
    buffer.update_weight(np.arange(5), np.array([4.0, 1.0, 9.0, 0.25, 16.0]))
    leaves = np.array([2.0, 1.0, 3.0, 0.5, 4.0])
    batch, indices = buffer.sample(1000)
    drawn = np.bincount(indices, minlength=8)
    assert np.abs(drawn[:5] - 1000 * leaves / leaves.sum()).max() < 1.001
    assert not drawn[5:].any()
    expected = leaves[indices] ** -0.7
    np.testing.assert_allclose(batch.weight, expected / expected.max(), rtol=1e-5)
    np.testing.assert_array_equal(batch.rew, indices)


def test_new_rows_get_the_largest_priority() -> None:
    buffer = filled(PrioritizedReplayBuffer(4, alpha=1.0, beta=1.0), 3)
    buffer.update_weight(np.array([0]), np.array([7.0]))
    filled(buffer, 1)
    assert buffer.weight[3] == pytest.approx(7.0)


def test_same_seed_same_draws() -> None:
    """Row B13: tianshou's own draws here are those of NumPy's global state."""
    first, second = (filled(PrioritizedVectorReplayBuffer(40, 4, alpha=0.6, beta=0.4, seed=3), 9, 4) for _ in range(2))
    np.random.seed(0)  # noqa: NPY002
    drawn = first.sample_indices(64)
    np.random.seed(1)  # noqa: NPY002
    np.testing.assert_array_equal(second.sample_indices(64), drawn)
    assert set(drawn) == set(first.sample_indices(0))
    copy = pickle.loads(pickle.dumps(first))
    np.testing.assert_array_equal(copy.sample_indices(32), first.sample_indices(32))


def test_it_is_tianshous() -> None:
    buffer = filled(PrioritizedVectorReplayBuffer(20, 2, alpha=1.0, beta=0.4), 5, 2)
    assert isinstance(buffer, data.PrioritizedVectorReplayBuffer)
    buffer.update_weight(buffer.sample_indices(0), np.arange(1.0, 11.0))
    before = buffer.sample(32)[0].weight
    buffer.set_beta(0.0)
    assert before.min() < 1.0
    np.testing.assert_array_equal(buffer.sample(32)[0].weight, 1.0)
    with pytest.raises(ValueError, match="values"):
        buffer.update_weight(np.array([0]), np.array([np.nan]))
