"""log2 and exp2 of float64 without branches, so that loops over powers x^a = 2^(a log2 x) vectorise.

    log2(x) = e + 2 / ln 2 (s + s^3 / 3 + s^5 / 5 + ...),   x = 2^e m,   1/2 <= m^2 < 2,   s = (m - 1) / (m + 1)
    exp2(x) = 2^n (1 + t + t^2 / 2! + t^3 / 3! + ...),      n = round(x),  t = (x - n) ln 2

Both are the plain series, cut where the next term is below the last bit: |s| < 0.172, |t| < 0.347.
"""

from typing import Any

import numpy as np

from fastac_kernels._jit import inline
from fastac_kernels.strict import strict_add

LIMIT = 960.0  # powers of two that exp2 is clipped to: sums of 2^60 of them are finite, the smallest is a normal number
SQRT_HALF_BITS = np.int64(0x3FE6A09E667F3BCD)
MANTISSA = np.int64(52)
SMALLEST_NORMAL, TWO_54 = 2.0**-1022, 2.0**54
MAGIC = 1.5 * 2.0**52  # added to a small number leaves the nearest integer in the low bits
MAGIC_BITS = np.int64(0x4338000000000000)
LN_2, TWO_LOG2_E = 0.6931471805599453, 2.8853900817779268


@inline
def log2(x: Any) -> Any:
    """The binary logarithm of a positive finite float64, subnormal ones included."""
    subnormal = x < SMALLEST_NORMAL
    x = x * TWO_54 if subnormal else x
    bits = np.float64(x).view(np.int64)
    exponent = (bits - SQRT_HALF_BITS) >> MANTISSA
    m = np.int64(bits - (exponent << MANTISSA)).view(np.float64)
    s = (m - 1.0) / (m + 1.0)
    z = s * s
    tail = 1.0 / 15 + z * (1.0 / 17 + z * (1.0 / 19 + z * (1.0 / 21)))
    series = 1.0 / 7 + z * (1.0 / 9 + z * (1.0 / 11 + z * (1.0 / 13 + z * tail)))
    series = z * (1.0 / 3 + z * (1.0 / 5 + z * series))
    return np.float64(exponent - (np.int64(54) if subnormal else np.int64(0))) + TWO_LOG2_E * (s + s * series)


@inline
def exp2(x: Any) -> Any:
    """Two to the power of a float64, clipped to 2^-960 and 2^960; exactly 1 at 0."""
    x = LIMIT if x > LIMIT else x
    x = -LIMIT if x < -LIMIT else x
    shifted = strict_add(x, MAGIC)
    t = (x - strict_add(shifted, -MAGIC)) * LN_2
    tail = 1.0 / 3628800 + t * (1.0 / 39916800 + t * (1.0 / 479001600 + t * (1.0 / 6227020800)))
    series = 1.0 / 5040 + t * (1.0 / 40320 + t * (1.0 / 362880 + t * tail))
    series = 1.0 / 6 + t * (1.0 / 24 + t * (1.0 / 120 + t * (1.0 / 720 + t * series)))
    result = 1.0 + (t + t * t * (0.5 + t * series))
    n = np.float64(shifted).view(np.int64) - MAGIC_BITS
    return np.int64(np.float64(result).view(np.int64) + (n << MANTISSA)).view(np.float64)
