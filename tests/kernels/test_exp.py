"""exp without branches (row N6 of the pitfalls): its error over the whole range of float32, and its special values."""

import math
from typing import Any

import numpy as np
import pytest

from fastac_kernels._jit import kernel
from fastac_kernels.exp import bounded_exp, exp


@kernel
def over(x: Any, out: Any) -> None:
    for i in range(x.size):
        out[i] = exp(x[i])


def compiled(x: np.ndarray) -> np.ndarray:
    out = np.empty_like(x)
    over(x, out)
    return out


def bits(start: float, stop: float, step: int) -> np.ndarray:
    """Every `step`-th float32 of one sign from `start` to `stop`, by its bits."""
    first, last = np.array([start, stop], np.float32).view(np.uint32).astype(np.int64)
    return np.arange(first, last, step).astype(np.uint32).view(np.float32)


@pytest.mark.parametrize("sign", [1, -1])
def test_relative_error_over_the_whole_range(sign: int) -> None:
    """Wherever the result is a normal number, from the smallest argument to the largest."""
    stop = 88.7228 if sign > 0 else 87.336
    x = sign * np.concatenate([bits(0.0, 1e-6, 100_003), bits(1e-6, stop, 61), bits(20.0, stop, 7)])
    wanted = np.exp(x.astype(np.float64))
    error = np.abs(compiled(x) / wanted - 1)
    assert error.max() < 2e-7


def test_around_every_boundary_of_the_reduction() -> None:
    """Where n changes r is largest, and so is the error of a polynomial that does not fit."""
    edges = ((np.arange(-125, 128) + 0.5) * np.log(2)).astype(np.float32)
    x = np.concatenate([(edges.view(np.int32) + k).view(np.float32) for k in range(-50, 51)])
    assert np.abs(compiled(x) / np.exp(x.astype(np.float64)) - 1).max() < 2e-7


def test_results_below_the_smallest_normal_number() -> None:
    """Rounded once: within half of the smallest number there is, and a little."""
    x = -np.concatenate([bits(87.3, 104.5, 3), bits(104.5, 1e6, 1001)])
    error = np.abs(compiled(x).astype(np.float64) - np.exp(x.astype(np.float64)))
    smallest = float(np.finfo(np.float32).smallest_subnormal)
    assert (error <= 0.5001 * smallest + 2e-7 * np.exp(x.astype(np.float64))).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_special_values(dtype: Any) -> None:
    largest = np.log(np.finfo(dtype).max)
    x = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, largest * 1.001, -2 * largest, 1e30, -1e30], dtype)
    np.testing.assert_array_equal(compiled(x), np.array([1, 1, np.inf, 0, np.nan, np.inf, 0, np.inf, 0], dtype))
    largest_finite = np.nextafter(np.array([np.log(np.finfo(dtype).max)], dtype), dtype(0))
    assert np.isfinite(compiled(largest_finite)).all()


def test_nan_of_any_payload_and_sign() -> None:
    x = np.array([0x7FC00000, 0xFFC00000, 0x7F800001, 0xFF812345, 0x7FFFFFFF, 0xFFFFFFFF], np.uint32).view(np.float32)
    assert np.isnan(compiled(x)).all()


def test_float64_is_libm() -> None:
    x = np.random.default_rng(0).normal(scale=20, size=1000)
    np.testing.assert_allclose(compiled(x), np.exp(x), rtol=1e-15)


def test_it_grows_and_is_deterministic_in_every_lane() -> None:
    """A vector's remainder goes another way through the machine code; the numbers are the same."""
    x = np.sort(np.random.default_rng(1).uniform(-100, 88, 1003).astype(np.float32))
    whole = compiled(x)
    assert (np.diff(whole) >= 0).all()
    np.testing.assert_array_equal(np.concatenate([compiled(x[i : i + 1]) for i in range(0, 1003, 17)]), whole[::17])


@kernel
def bounded_over(x: Any, out: Any, rest: Any) -> None:
    for i in range(x.size):
        out[i], rest[i] = bounded_exp(x[i])


def test_bounded_has_the_same_error_and_gives_what_is_left_of_the_series() -> None:
    """exp(x) - 1 - x keeps its digits close to 0, where the difference has none left."""
    half = np.concatenate([bits(1e-12, 1e-3, 100_003), bits(1e-3, 80.0, 101)])
    x = np.concatenate([half, -half, [0, np.nan]]).astype(np.float32)
    out, rest = np.empty_like(x), np.empty_like(x)
    bounded_over(x, out, rest)
    assert np.abs(out[:-1] / np.exp(x[:-1].astype(np.float64)) - 1).max() < 2e-7
    assert out[-2] == 1
    assert np.isnan(out[-1])
    assert rest[-2] == 0
    assert np.isnan(rest[-1])
    series = sum(x[:-2].astype(np.float64) ** k / math.factorial(k) for k in range(2, 30))
    wide = x[:-2].astype(np.float64)
    wanted = np.where(np.abs(wide) < 1, series, np.expm1(wide) - wide)
    assert np.abs(rest[:-2] / wanted - 1).max() < 2e-6
    assert (rest[:-2] >= 0).all()
    double = np.array([-1.0, 1.0])
    out, rest = np.empty(2), np.empty(2)
    bounded_over(double, out, rest)
    np.testing.assert_allclose(rest, np.exp(double) - 1 - double, rtol=1e-14)
