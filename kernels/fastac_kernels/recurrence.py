"""The recurrence behind every return: x[i] = a[i] + (0 where i ends its episode, else decay * x[i + lanes]).

Arrays are flat. With `lanes` environments interleaved (time-major rows) the next time step of element i is i + lanes; a
single sequence has `lanes` = 1. Ends are selected, never multiplied, so that NaN beyond one does no harm.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastac_kernels._jit import inline, kernel
from fastac_kernels.memory import address_of, array_at

Array = NDArray[Any]

# Below NARROW lanes a row does not fill a vector register: look several rows ahead instead (`scan`).
NARROW = 8
# Below SHORT lanes a row is too short to pay for a second loop over it.
SHORT = 32
# Columns of a tile of wide rows: what a row reads and writes, and the row before it, stay in the first-level cache.
COLUMNS = 1024
# Below this many rows of few lanes, one after the other is quicker than looking ahead.
SEQUENTIAL = 48
# Elements per tile of `scan`: its two float and two byte buffers stay in the first-level cache.
TILE = 1024


@inline
def _look_ahead(
    x0: Array, x1: Array, x2: Array, x3: Array, end0: Array, end1: Array, end2: Array, end3: Array, decay: Any,
    x: Array, end: Array,
) -> None:  # fmt: skip
    """Sums four consecutive steps, so that an element then depends on the one four steps ahead instead of the next."""
    zero = x.dtype.type(0)
    for i in range(x.size):
        ahead = x2[i] + (zero if end2[i] else decay * x3[i])
        ahead = x1[i] + (zero if end1[i] else decay * ahead)
        x[i] = x0[i] + (zero if end0[i] else decay * ahead)
    for i in range(x.size):
        end[i] = end0[i] | end1[i] | end2[i] | end3[i]


@inline
def _chain(a: Array, end: Array, decay: Any, x: Array, carry: Array) -> None:
    """The recurrence itself with `carry.size` lanes, from the last row to the first."""
    zero = x.dtype.type(0)
    lanes = carry.size
    for start in range(x.size - lanes, -1, -lanes):
        a_row, end_row, x_row = a[start : start + lanes], end[start : start + lanes], x[start : start + lanes]
        for n in range(lanes):
            carry[n] = a_row[n] + (zero if end_row[n] else decay * carry[n])
            x_row[n] = carry[n]


@inline
def scan_scratch(lanes: int) -> int:
    """Elements of scratch memory that `scan` needs: two rows of floats, a carry, two rows of bytes."""
    stride = 4 * lanes
    return 3 * (TILE + 2 * stride) + stride


@kernel
def scan(x: Array, terminated: Array, truncated: Array, decay: float, last: Array, scratch: Array) -> None:
    """The whole recurrence in place, for two to seven lanes: `x` holds a and becomes x.

    A chain of dependent multiply-adds is bound by their latency. Looking four steps ahead makes it a quarter as long,
    at the price of a vectorised pass over a tile in cache. (One lane goes through `blocks.py`.)

    Args:
        x: Flat rows of `last.size` lanes.
        terminated: Bytes.
        truncated: Bytes.
        decay: What a step multiplies the next one by.
        last: x after the last row; the first row's x on return.
        scratch: `scan_scratch(lanes)` elements.
    """
    real = x.dtype.type
    zero = real(0)
    lanes = last.size
    if x.size < SEQUENTIAL * lanes:
        for start in range(x.size - lanes, -1, -lanes):
            for n in range(lanes):
                i = start + n
                last[n] = x[i] + (zero if terminated[i] | truncated[i] else real(decay) * last[n])
                x[i] = last[n]
        return
    stride = lanes * 4
    size = max(TILE // stride, 1) * stride
    width = size + stride
    # By address: an array over memory that is counted would be counted again at every slice.
    base, itemsize, byte = address_of(scratch), scratch.itemsize, np.uint8(0)
    a, b = array_at(base, width, zero), array_at(base + width * itemsize, width, zero)
    carry = array_at(base + 2 * width * itemsize, stride, zero)
    bytes_ = base + (2 * width + stride) * itemsize
    end, end_b = array_at(bytes_, width, byte), array_at(bytes_ + width, width, byte)
    for n in range(lanes):
        carry[n] = last[n]
    for n in range(lanes, stride):
        carry[n] = zero
    stop = x.size
    while stop > 0:
        # The tile nearest the start may be short: `_chain` needs whole strides, so it is padded in front.
        start = max(0, stop - size)
        length = stop - start
        pad = (-length) % stride
        for i in range(pad):
            a[i] = zero
            end[i] = 1
        a_tile, end_tile = a[pad : pad + length], end[pad : pad + length]
        x_tile, terminated_tile, truncated_tile = x[start:stop], terminated[start:stop], truncated[start:stop]
        for i in range(length):
            a_tile[i] = x_tile[i]
        for i in range(length):
            end_tile[i] = terminated_tile[i] | truncated_tile[i]
        full = pad + length
        # What lies beyond the tile is known already: it stands there as finished elements.
        for i in range(stride):
            a[full + i] = carry[i]
            end[full + i] = 1
        _look_ahead(
            a[:full], a[lanes : full + lanes], a[2 * lanes : full + 2 * lanes], a[3 * lanes : full + 3 * lanes],
            end[:full], end[lanes : full + lanes], end[2 * lanes : full + 2 * lanes], end[3 * lanes : full + 3 * lanes],
            real(decay), b[:full], end_b[:full],
        )  # fmt: skip
        if pad == 0:
            _chain(b[:full], end_b[:full], real(decay**4), x_tile, carry)
        else:
            _chain(b[:full], end_b[:full], real(decay**4), a[:full], carry)
            for i in range(length):
                x_tile[i] = a_tile[i]
        for n in range(lanes):
            carry[n] = x_tile[n]
        for n in range(lanes, stride):
            carry[n] = zero
        stop = start
    for n in range(lanes):
        last[n] = carry[n]


@inline
def any_set(ends: Array, more_ends: Array) -> bool:
    """Whether any byte of two equally long arrays is set."""
    found = np.uint8(0)
    for i in range(ends.size):
        found = np.uint8(found | ends[i] | more_ends[i])
    return bool(found != 0)


@inline
def run_start(mask: int, stop: int, valid: bool) -> int:
    """Where the run of bytes before `stop` begins that are all set, or all not set; 64 at a time, then eight, then one.

    `mask` is the address of an array of at least `stop` bytes.
    """
    word, byte = np.uint64(0), np.uint8(0)
    wanted = np.uint64(0x0101010101010101) if valid else word
    start = stop
    while start >= 64:
        words = array_at(mask + start - 64, 8, word)
        different = word
        for k in range(8):
            different |= words[k] ^ wanted
        if different != word:
            break
        start -= 64
    while start >= 8 and array_at(mask + start - 8, 1, word)[0] == wanted:
        start -= 8
    bytes_ = array_at(mask, stop, byte)
    while start > 0 and (bytes_[start - 1] != 0) == valid:
        start -= 1
    return start


@inline
def step(rewards: Array, terminated: Array, future: Array, gamma: Any, out: Array) -> None:
    """One row of returns from the row behind it: r + gamma * future, without it where terminated."""
    zero = out.dtype.type(0)
    for n in range(out.size):
        out[n] = rewards[n] + (zero if terminated[n] else gamma * future[n])


@inline
def truncated_step(
    rewards: Array, terminated: Array, truncated: Array, next_values: Array, future: Array, gamma: Any, out: Array
) -> None:
    """The same with `next_values` for the future where truncated."""
    zero = out.dtype.type(0)
    for n in range(out.size):
        chosen = next_values[n] if truncated[n] else future[n]
        out[n] = rewards[n] + (zero if terminated[n] else gamma * chosen)


@inline
def bounds(cu_seqlens: int, total: int, sequences: int, s: int) -> tuple[int, int]:
    """Start and size of sequence `s`: from the int64 boundaries at that address, or all equally long where it is 0."""
    if cu_seqlens != 0:
        boundaries = array_at(cu_seqlens, sequences + 1, np.int64(0))
        return boundaries[s], boundaries[s + 1] - boundaries[s]
    size = total // sequences
    return s * size, size


@inline
def apart(a: int, a_size: int, b: int, b_size: int) -> bool:
    """Whether two ranges of memory share no byte; an absent one has address 0."""
    return a == 0 or b == 0 or a + a_size <= b or b + b_size <= a
