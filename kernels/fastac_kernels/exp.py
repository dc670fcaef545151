"""exp without branches, so that loops over it vectorise: a call of libm's costs five times as much.

    exp(x) = 2^n exp(r),   n = round(x / ln 2),   r = x - n ln 2,   |r| <= ln(2) / 2

The polynomial for exp(r) is the minimax one of degree 6: relative error under 1e-8, with rounding under 2e-7. n ln 2
is subtracted in two parts (Cody and Waite), and 2^n is multiplied in two parts, so that results below the smallest
normal number are rounded once and those above the largest are infinite.
"""

from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from fastac_kernels._jit import inline
from fastac_kernels.strict import strict_add, strict_multiply

LOG2_E = np.float32(1.44269504)
LN_2_HIGH = np.float32(-0.693359375)  # nine bits: n times it is exact
LN_2_LOW = np.float32(2.12194440e-4)
# 1.5 * 2^23 added to a small number leaves the nearest integer in the low bits; with 127 besides, the exponent of that
# power of two; with 254, what two such exponents add up to.
NO_BIAS = np.float32(12582912.0)
HALF_MAGIC = np.float32(12582912.0 + 127)
MAGIC = np.float32(12582912.0 + 254)
# Beyond these the result is infinite, or rounds to 0, in any case.
HIGHEST, LOWEST = np.float32(89.0), np.float32(-105.0)
ZERO, ONE, HALF = np.float32(0.0), np.float32(1.0), np.float32(0.5)
C2, C3, C4 = np.float32(0.5), np.float32(0.16666666), np.float32(0.041672837)
C5, C6 = np.float32(0.0083573414), np.float32(0.0013407884)


@inline
def _reduced(x: Any, magic: Any) -> tuple[Any, Any, Any, Any]:
    """A float with n in its low bits, n, exp(r) and exp(r) - 1 - r, which keeps its digits near 0."""
    shifted = strict_add(strict_multiply(x, LOG2_E), magic)
    n = strict_add(shifted, -magic)
    r = strict_add(strict_add(x, strict_multiply(n, LN_2_HIGH)), strict_multiply(n, LN_2_LOW))
    curve = r * r * (C2 + r * (C3 + r * (C4 + r * (C5 + r * C6))))
    return shifted, n, ONE + (r + curve), curve


@inline
def _exp32(x: Any) -> Any:
    x = HIGHEST if x > HIGHEST else x
    x = LOWEST if x < LOWEST else x
    shifted, n, result, _ = _reduced(x, MAGIC)
    power = np.float32(shifted).view(np.int32)
    half = np.float32(strict_add(strict_multiply(n, HALF), HALF_MAGIC)).view(np.int32)
    first = np.int32(half << 23).view(np.float32)
    second = np.int32((power - half) << 23).view(np.float32)
    return strict_multiply(strict_multiply(result, first), second)


@inline
def _bounded_exp32(x: Any) -> tuple[Any, Any]:
    shifted, n, near, curve = _reduced(x, NO_BIAS)
    power = np.float32(shifted).view(np.int32)
    result = np.int32(np.float32(near).view(np.int32) + (power << 23)).view(np.float32)
    return result, curve if n == ZERO else result - ONE - x


def exp(x: Any) -> Any:
    """The exponential of a scalar; for compiled code. float32 by the polynomial above, other types by libm.

    Within 2e-7 of the exact value relatively, or half the smallest number there is; NaN gives NaN.
    """
    return np.exp(x)


@overload(exp, jit_options={"forceinline": True})  # type: ignore[untyped-decorator]
def _exp(x: Any) -> Any:
    def polynomial(x: Any) -> Any:
        return _exp32(x)

    def libm(x: Any) -> Any:
        return np.exp(x)

    return polynomial if x == types.float32 else libm


def bounded_exp(x: Any) -> tuple[Any, Any]:
    """exp(x) and exp(x) - 1 - x of a scalar between -80 and 80, or NaN, for a few operations less; for compiled code.

    The second is within 2e-6 relatively: close to 0 it is the polynomial's tail, which nothing is subtracted from.
    """
    return np.exp(x), np.expm1(x) - x


@overload(bounded_exp, jit_options={"forceinline": True})  # type: ignore[untyped-decorator]
def _bounded_exp(x: Any) -> Any:
    def polynomial(x: Any) -> Any:
        return _bounded_exp32(x)

    def libm(x: Any) -> Any:
        return np.exp(x), np.expm1(x) - x

    return polynomial if x == types.float32 else libm
