"""Which of the kernel's ways a call takes depends on its shape: each is met here at sizes that reach it."""

from typing import Any

import naive
import numpy as np
import pytest

import fastac

GAMMA, LAMBDA = 0.97, 0.9


def reference(rewards: Any, values: Any, next_values: Any, *flags: Any) -> tuple[np.ndarray, np.ndarray]:
    """`naive.gae` for each environment of `(N, T)` arrays."""
    rows = [
        naive.gae(
            rewards[i], values[i], next_values[i], *(None if f is None else f[i] for f in flags),
            gamma=GAMMA, gae_lambda=LAMBDA,
        )
        for i in range(len(rewards))
    ]  # fmt: skip
    return np.array([row[0] for row in rows]), np.array([row[1] for row in rows])


def runs(rng: np.random.Generator, num: int, length: int) -> np.ndarray:
    """Masks as token trainers have them: long valid runs, a few holes, padding in front and behind."""
    mask = np.zeros((num, length), np.bool_)
    for row in mask:
        start, stop = sorted(rng.integers(0, length + 1, 2))
        row[start:stop] = True
        for hole in rng.integers(0, length, 3):
            row[hole : hole + rng.integers(1, 4)] = False
    return mask


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("length", [5, 47, 48, 49, 300, 2500])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_masked_sequences_of_long_and_short_runs(dtype: Any, length: int, full: bool) -> None:
    rng = np.random.default_rng(length)
    shape = (6, length)
    rewards, values = rng.standard_normal(shape).astype(dtype), rng.standard_normal(shape).astype(dtype)
    next_values = rng.standard_normal(shape if full else 6).astype(dtype)
    terminated = rng.random(shape) < 0.01
    truncated = rng.random(shape) < 0.01 if full else None
    mask = runs(rng, *shape)
    expected = reference(rewards, values, next_values, terminated, truncated, mask)
    # What is masked is not used, whatever it is.
    rewards[~mask] = values[~mask] = np.nan
    if full:
        next_values[~mask] = np.nan
    result = fastac.gae(
        rewards, values, next_values, terminated, truncated, mask, gamma=GAMMA, gae_lambda=LAMBDA, batch_first=True
    )
    tolerance = 1e-4 if dtype == np.float32 else 1e-11
    for got, wanted in zip(result, expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=tolerance)
        assert not got[~mask].any()


@pytest.mark.parametrize("length", [1, 15, 47, 48, 49, 1023, 1024, 1025, 4097])
@pytest.mark.parametrize("lanes", [1, 2, 3, 7, 8, 31, 32])
def test_lanes_and_tiles(length: int, lanes: int) -> None:
    """Rows short of, at and beyond the sizes at which the kernel changes its way."""
    rng = np.random.default_rng(length * 100 + lanes)
    shape = (length, lanes)
    rewards, values, next_values = (rng.standard_normal(shape) for _ in range(3))
    terminated, truncated = (rng.random(shape) < 0.02 for _ in range(2))
    expected = reference(rewards.T, values.T, next_values.T, terminated.T, truncated.T)
    result = fastac.gae(rewards, values, next_values, terminated, truncated, gamma=GAMMA, gae_lambda=LAMBDA)
    for got, wanted in zip(result, expected, strict=True):
        np.testing.assert_allclose(got, wanted.T, rtol=0, atol=1e-11)


def test_an_end_lets_no_nan_through_at_any_distance() -> None:
    """Looking 16 steps ahead must not carry NaN from behind an episode's end to the rows before it."""
    length = 400
    for end in range(0, length - 1, 13):
        rewards, values = np.ones(length, np.float32), np.ones(length, np.float32)
        rewards[end + 1 :] = np.nan
        terminated = np.zeros(length, np.bool_)
        terminated[end] = True
        advantages, _ = fastac.gae(rewards, values, np.float32(0), terminated, gamma=GAMMA, gae_lambda=LAMBDA)
        assert np.isfinite(advantages[: end + 1]).all()
        assert np.isnan(advantages[end + 1 :]).all()
