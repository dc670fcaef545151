"""Matrix products by either BLAS: the same to rounding at every shape, the same bits wherever the matrices lie."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from fastac import _blas
from fastac_kernels._jit import kernel
from fastac_kernels.products import times, times_transposed, transposed_times

BLAS = (0, _blas.sgemm())


@kernel
def all_products(blas: int, x: Any, w: Any, dz: Any, y: Any, dw: Any, dx: Any) -> None:
    times_transposed(blas, x, w, y)
    transposed_times(blas, dz, x, dw)
    times(blas, dz, w, dx)


def matrix(rows: int, columns: int, seed: int) -> Any:
    return np.random.default_rng(seed).standard_normal((rows, columns), np.float32)


def products(blas: int, x: Any, w: Any, dz: Any) -> list[Any]:
    out = [np.empty((len(x), len(w)), np.float32), np.empty_like(w), np.empty_like(x)]
    all_products(blas, x, w, dz, *out)
    return out


@pytest.mark.parametrize("blas", BLAS)
@pytest.mark.parametrize(
    "shape", [*itertools.product((1, 3, 32, 65), (1, 7, 16, 40), (1, 2, 8, 33)), (256, 23, 256), (100, 256, 256)]
)
def test_equals_float64(blas: int, shape: tuple[int, int, int]) -> None:
    rows, inner, columns = shape
    x, w, dz = matrix(rows, inner, 0), matrix(columns, inner, 1), matrix(rows, columns, 2)
    exact = (x @ w.T.astype(np.float64), dz.T @ x.astype(np.float64), dz @ w.astype(np.float64))
    for got, wanted in zip(products(blas, x, w, dz), exact, strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-6 * max(shape))


def moved(x: Any, offset: int) -> Any:
    """A copy that lies `offset` floats beyond a multiple of 64 bytes."""
    memory = np.empty(x.size + 32, np.float32)
    start = offset + (-memory.ctypes.data % 64) // 4
    copy = memory[start : start + x.size].reshape(x.shape)
    copy[...] = x
    return copy


@pytest.mark.parametrize("blas", BLAS)
@pytest.mark.parametrize("shape", [(64, 4, 64), (64, 17, 64), (256, 23, 256), (256, 256, 256), (256, 256, 12)])
def test_the_bits_do_not_depend_on_where_the_matrices_lie(blas: int, shape: tuple[int, int, int]) -> None:
    """A run repeated with its seed ends in the same bits, whatever else the process allocated."""
    rows, inner, columns = shape
    data = matrix(rows, inner, 0), matrix(columns, inner, 1), matrix(rows, columns, 2)
    first = products(blas, *(moved(x, 0) for x in data))
    for offset in range(1, 16):
        for got, wanted in zip(products(blas, *(moved(x, offset) for x in data)), first, strict=True):
            assert got.tobytes() == wanted.tobytes(), offset
