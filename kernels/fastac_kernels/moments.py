"""Standardising by the mean and deviation of the elements that a mask leaves, in three passes over them.

    mean = sum x / n,   y = x - mean,   d = sum y / n
    var  = (sum y^2 - n d^2) / (n - 1),   out = (y - d) / (sqrt(var) + eps)

d is what rounding left of the mean (Chan, Golub and LeVeque 1983, *Algorithms for Computing the Sample Variance*, the
corrected two-pass algorithm). Blocks are summed in their own type, in vector registers, the blocks' sums in float64.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastac_kernels._jit import inline, kernel
from fastac_kernels.memory import array_at, widest_vectors

Array = NDArray[Any]

BLOCK = 2048


@inline
def _extent(x: Array, mask: Array, masked: bool, first: Any) -> tuple[Any, Any, Any]:
    """A block's sum, its number of elements, and how many of them differ from `first`."""
    widest_vectors()
    zero, one = x.dtype.type(0), x.dtype.type(1)
    total, count, different = zero, zero, zero
    for i in range(x.size):
        value = x[i]
        dropped = (mask[i] == 0) & masked
        kept = first if dropped else value
        total += zero if dropped else value
        count += zero if dropped else one
        different += one if kept != first else zero
    return total, count, different


@inline
def _centred(x: Array, mask: Array, masked: bool, mean: Any) -> tuple[Any, Any]:
    """Sums of y and y^2 over a block."""
    widest_vectors()
    real = x.dtype.type
    total, squares = real(0), real(0)
    for i in range(x.size):
        y = x[i] - mean if (mask[i] != 0) | (not masked) else real(0)
        total += y
        squares += y * y
    return total, squares


@inline
def _scaled(x: Array, mask: Array, masked: bool, mean: Any, scale: Any, shift: Any, out: Array) -> None:
    """The shift is subtracted last: re-associated with the mean it would be rounded away."""
    widest_vectors()
    zero = x.dtype.type(0)
    for i in range(x.size):
        out[i] = (x[i] - mean) * scale - shift if (mask[i] != 0) | (not masked) else zero


@kernel
def normalize_at(x: int, mask: int, out: int, total: int, epsilon: float, like: Any) -> None:
    """(x - mean) / (std + epsilon) over contiguous memory at the given addresses.

    Args:
        x: Address of `total` elements of the type of `like`, as is `out`.
        mask: Address of `total` bytes, or 0: all count. What does not count becomes 0.
        out: Output.
        total: Elements in all.
        epsilon: Added to the deviation.
        like: A scalar of the arrays' dtype.
    """
    byte, masked = np.uint8(0), mask != 0
    valid = mask if masked else x  # never selected where there is none, but readable
    flat = array_at(x, total, like)
    itemsize, real = flat.itemsize, flat.dtype.type
    at = 0
    if masked:
        flags = array_at(mask, total, byte)
        while at < total and flags[at] == 0:
            at += 1
    first = flat[at] if at < total else real(0)
    sums, count, different = 0.0, 0, 0
    for start in range(0, total, BLOCK):
        size = min(BLOCK, total - start)
        part = _extent(array_at(x + start * itemsize, size, like), array_at(valid + start, size, byte), masked, first)
        sums += part[0]
        count += int(part[1])
        different += int(part[2])
    exact = sums / max(count, 1)
    mean = real(exact)
    rests, squares = 0.0, 0.0
    for start in range(0, total, BLOCK):
        size = min(BLOCK, total - start)
        more = _centred(array_at(x + start * itemsize, size, like), array_at(valid + start, size, byte), masked, mean)
        rests += more[0]
        squares += more[1]
    rest = rests / max(count, 1)
    variance = max((squares - count * rest * rest) / max(count - 1, 1), 0.0)
    # One element or a constant gives zeros, not a blown-up remainder of rounding; NaN is no constant.
    if count < 2 or different == 0:
        o = array_at(out, total, like)
        for i in range(total):
            o[i] = real(0)
        return
    deviation = np.sqrt(variance) + epsilon
    for start in range(0, total, BLOCK):
        size, at = min(BLOCK, total - start), start * itemsize
        _scaled(
            array_at(x + at, size, like), array_at(valid + start, size, byte), masked, mean,
            real(1.0 / deviation), real(rest / deviation), array_at(out + at, size, like),
        )  # fmt: skip
