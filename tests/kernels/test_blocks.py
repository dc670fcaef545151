"""The recurrence in blocks of sixteen against a float64 loop: sizes around a block's, ends and NaN anywhere."""

from typing import Any

import numpy as np
import pytest

from fastac_kernels._jit import kernel
from fastac_kernels.blocks import chain, powers, varying_chain
from fastac_kernels.memory import address_of

EPS = {np.float32: 1e-5, np.float64: 1e-13}


@kernel
def constant(x: Any, terminated: Any, truncated: Any, any_end: bool, decay: Any, carry: Any) -> Any:
    table = powers(decay)
    return chain(
        address_of(x), address_of(terminated), address_of(truncated), x.size, any_end, address_of(table), carry
    )


@kernel
def varying(x: Any, factors: Any, terminated: Any, truncated: Any, carry: Any) -> Any:
    return varying_chain(
        address_of(x), address_of(factors), address_of(terminated), address_of(truncated), x.size, carry
    )


def reference(a: Any, factors: Any, ends: Any, carry: float) -> np.ndarray:
    x = np.zeros(len(a))
    for i in reversed(range(len(a))):
        carry = float(a[i]) + (0.0 if ends[i] else float(factors[i]) * carry)
        x[i] = carry
    return x


@pytest.mark.parametrize("share", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("size", [1, 15, 16, 17, 31, 32, 33, 200])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_against_a_loop(dtype: Any, size: int, share: float) -> None:
    rng = np.random.default_rng(size)
    a, factors = rng.standard_normal(size).astype(dtype), rng.random(size).astype(dtype)
    terminated, truncated = (np.where(rng.random(size) < share, 255, 0).astype(np.uint8) for _ in range(2))
    ends, decay = (terminated | truncated) != 0, dtype(0.97)
    x = a.copy()
    first = constant(x, terminated, truncated, ends.any(), decay, dtype(0.7))
    np.testing.assert_allclose(x, reference(a, np.full(size, decay), ends, 0.7), rtol=0, atol=EPS[dtype])
    assert first == x[0]
    x = a.copy()
    first = varying(x, factors, terminated, truncated, dtype(0.7))
    np.testing.assert_allclose(x, reference(a, factors, ends, 0.7), rtol=0, atol=EPS[dtype])
    assert first == x[0]


def test_an_end_lets_no_nan_through_wherever_it_stands_in_a_block() -> None:
    """Select, never multiply."""
    nothing = np.zeros(40, np.uint8)
    for end in range(39):
        x, ends = np.ones(40, np.float32), nothing.copy()
        x[end + 1 :], ends[end] = np.nan, 7
        for run in (
            lambda x=x, ends=ends: constant(x, nothing, ends, True, np.float32(0.9), np.float32(np.nan)),
            lambda x=x, ends=ends: varying(x, np.full(40, 0.9, np.float32), ends, nothing, np.float32(np.nan)),
        ):
            run()
            assert np.isfinite(x[: end + 1]).all()
            assert np.isnan(x[end + 1 :]).all()
            x[: end + 1] = 1
