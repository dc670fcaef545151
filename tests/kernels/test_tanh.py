"""tanh without branches: its error over the whole range of float32, and its special values."""

from typing import Any

import numpy as np

from fastac_kernels._jit import kernel
from fastac_kernels.tanh import tanh


@kernel
def over(x: Any, out: Any) -> None:
    for i in range(x.size):
        out[i] = tanh(x[i])


def compiled(x: np.ndarray) -> np.ndarray:
    out = np.empty_like(x)
    over(x, out)
    return out


def test_relative_error_over_the_whole_range() -> None:
    """Every 61st float32 between the smallest normal number and where tanh is 1, of both signs."""
    first, last = np.array([1.2e-38, 20.0], np.float32).view(np.uint32).astype(np.int64)
    x = np.arange(first, last, 61).astype(np.uint32).view(np.float32)
    for sign in (1, -1):
        wanted = np.tanh(sign * x.astype(np.float64))
        got = compiled(np.float32(sign) * x)
        assert np.abs(got / wanted - 1).max() < 4e-7
        assert np.abs(got).max() == 1.0


def test_special_values() -> None:
    x = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e30, -1e30, 1e-42], np.float32)
    got = compiled(x)
    np.testing.assert_array_equal(got[:4], [0.0, 0.0, 1.0, -1.0])
    assert np.isnan(got[4])
    np.testing.assert_array_equal(got[5:7], [1.0, -1.0])
    np.testing.assert_allclose(got[7], x[7], atol=2e-45)


def test_float64_is_libms() -> None:
    x = np.linspace(-5, 5, 101)
    np.testing.assert_allclose(compiled(x), np.tanh(x), rtol=4e-16)
