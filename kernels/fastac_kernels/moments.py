"""Standardising by the mean and deviation of the elements that a mask leaves, in two passes over memory.

    out = (x - mean) / (sqrt(M2 / (n - 1)) + eps),   M2 = sum (x - mean)^2

A block of 2048 elements is read twice while it is in the first-level cache: for its mean, then for the squares about
it, each summed in the elements' own type, in vector registers. Blocks a and b are merged in float64 (Chan, Golub and
LeVeque 1983, *Algorithms for Computing the Sample Variance*, equation 2.1):

    M2 = M2_a + M2_b + (mean_b - mean_a)^2 n_a n_b / (n_a + n_b)
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastac_kernels._jit import inline, kernel
from fastac_kernels.memory import array_at, widest_vectors

Array = NDArray[Any]

BLOCK = 2048


@inline
def _count(mask: Array) -> int:
    widest_vectors()
    valid = 0
    for i in range(mask.size):
        valid += mask[i] != 0
    return valid


# In a loop of its own: counting beside it would leave the sum a chain of additions.
@inline
def _sum(x: Array, mask: Array | None) -> Any:
    widest_vectors()
    zero = x.dtype.type(0)
    total = zero
    for i in range(x.size):
        value = x[i]
        if mask is not None:
            value = value if mask[i] != 0 else zero
        total += value
    return total


@inline
def _squares(x: Array, mask: Array | None, center: Any) -> tuple[Any, Any]:
    """Sums of y = x - center, and of y^2."""
    widest_vectors()
    zero = x.dtype.type(0)
    rest, squares = zero, zero
    for i in range(x.size):
        y = x[i] - center
        if mask is not None:
            y = y if mask[i] != 0 else zero
        rest += y
        squares += y * y
    return rest, squares


@inline
def _scale(x: Array, mask: Array | None, center: Any, scale: Any, shift: Any, out: Array) -> None:
    """The shift is subtracted last: re-associated with the mean it would be rounded away."""
    widest_vectors()
    zero = x.dtype.type(0)
    for i in range(x.size):
        y = (x[i] - center) * scale - shift
        if mask is not None:
            y = y if mask[i] != 0 else zero
        out[i] = y


@inline
def _is_constant(x: Array, mask: Array, masked: bool) -> bool:
    """Whether no two elements that count differ; most arrays say so at once. NaN differs from itself."""
    first = 0
    while masked and first < x.size and mask[first] == 0:
        first += 1
    i = first
    while i < x.size and ((masked and mask[i] == 0) or x[i] == x[first]):
        i += 1
    return i >= x.size


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
    byte = np.uint8(0)
    flat, scaled = array_at(x, total, like), array_at(out, total, like)
    itemsize, real = flat.itemsize, flat.dtype.type
    count, mean, m2 = 0, 0.0, 0.0
    for start in range(0, total, BLOCK):
        size = min(BLOCK, total - start)
        part = array_at(x + start * itemsize, size, like)
        if mask == 0:
            more = size
            center = real(_sum(part, None) / more)
            rest, squares = _squares(part, None, center)
        else:
            valid = array_at(mask + start, size, byte)
            more = _count(valid)
            center = real(_sum(part, valid) / max(more, 1))
            rest, squares = _squares(part, valid, center)
        if more > 0:
            delta = center + np.float64(rest) / more - mean
            m2 += squares - np.float64(rest) * rest / more + delta * delta * (count * (more / (count + more)))
            count += more
            mean += delta * (more / count)
    # One element or a constant gives zeros, not a blown-up remainder of rounding.
    if count < 2 or _is_constant(flat, array_at(mask, total, byte), mask != 0):
        for i in range(total):
            scaled[i] = real(0)
        return
    deviation = np.sqrt(max(m2, 0.0) / (count - 1)) + epsilon
    center = real(mean)
    scale, shift = real(1.0 / deviation), real((mean - center) / deviation)
    for start in range(0, total, BLOCK):
        size, at = min(BLOCK, total - start), start * itemsize
        part, piece = array_at(x + at, size, like), array_at(out + at, size, like)
        if mask == 0:
            _scale(part, None, center, scale, shift, piece)
        else:
            _scale(part, array_at(mask + start, size, byte), center, scale, shift, piece)
