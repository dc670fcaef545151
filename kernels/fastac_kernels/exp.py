"""exp without branches, so that loops over it vectorise: a call of libm's costs five times as much.

    exp(x) = 2^n exp(r),   n = round(x / ln 2),   r = x - n ln 2,   |r| <= ln(2) / 2

The polynomial for exp(r) is the minimax one of degree 6: relative error under 1e-8, with rounding under 2e-7. n ln 2
is subtracted in two parts (Cody and Waite), and 2^n is multiplied in two parts, so that results below the smallest
normal number are rounded once and those above the largest are infinite.
"""

from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic, overload

from fastac_kernels._jit import inline

LOG2_E = np.float32(1.44269504)
LN_2_HIGH = np.float32(-0.693359375)  # nine bits: n times it is exact
LN_2_LOW = np.float32(2.12194440e-4)
# 1.5 * 2^23 added to a small number leaves the nearest integer in the low bits; with 127 besides, the exponent of that
# power of two; with 254, what two such exponents add up to.
HALF_MAGIC = np.float32(12582912.0 + 127)
MAGIC = np.float32(12582912.0 + 254)
# Beyond these the result is infinite, or rounds to 0, in any case.
HIGHEST, LOWEST = np.float32(89.0), np.float32(-105.0)
ONE, HALF = np.float32(1.0), np.float32(0.5)
C2, C3, C4 = np.float32(0.5), np.float32(0.16666666), np.float32(0.041672837)
C5, C6 = np.float32(0.0083573414), np.float32(0.0013407884)


def _strict(operation: str) -> Any:
    """An operation that the compiler may contract and not re-associate: its rounding is what is wanted."""

    @intrinsic  # type: ignore[untyped-decorator]
    def strict(typingctx: Any, a: Any, b: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return getattr(builder, operation)(*args, flags=("contract",))

        return a(a, a), codegen

    return strict


_add, _multiply = _strict("fadd"), _strict("fmul")


@inline
def _exp32(x: Any) -> Any:
    x = HIGHEST if x > HIGHEST else x
    x = LOWEST if x < LOWEST else x
    shifted = _add(_multiply(x, LOG2_E), MAGIC)
    n = _add(shifted, -MAGIC)
    r = _add(_add(x, _multiply(n, LN_2_HIGH)), _multiply(n, LN_2_LOW))
    tail = C2 + r * (C3 + r * (C4 + r * (C5 + r * C6)))
    result = ONE + (r + r * r * tail)
    power = np.float32(shifted).view(np.int32)
    half = np.float32(_add(_multiply(n, HALF), HALF_MAGIC)).view(np.int32)
    first = np.int32(half << 23).view(np.float32)
    second = np.int32((power - half) << 23).view(np.float32)
    return _multiply(_multiply(result, first), second)


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
