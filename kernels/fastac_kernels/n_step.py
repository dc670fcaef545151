"""n-step returns (Sutton and Barto 2018, equation 7.1), cut at the end of the episode and of the window.

    G[t] = sum over k < m of gamma^k r[t+k], plus gamma^m V(s[t+m]) unless row t+m-1 is terminated,
    m = min(n, rows to the episode's or window's last row, inclusive)

computed as n returns of growing length: G1[t] = r[t] + gamma V(s[t+1]), and Gk[t] = r[t] + gamma G(k-1)[t+1] inside an
episode. No power of gamma is formed and nothing is subtracted, so no accuracy is lost.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastac_kernels._jit import kernel
from fastac_kernels.memory import address_of, array_at, rows_at
from fastac_kernels.recurrence import COLUMNS, TILE, apart, bounds, step, truncated_step

Array = NDArray[Any]

# Below this many lanes whole tiles are swept n times; from it on, n carries of one row each stay in cache.
FEW = 32


@kernel
def _rows(
    rewards: int, next_values: int, last_values: int, terminated: int, truncated: int, rows: int, lanes: int,
    n: int, gamma: Any, out: int, like: Any,
) -> None:  # fmt: skip
    """Many lanes: row after row, a tile of columns at a time, keeping the 1- to (n-1)-step returns of the row behind.

    `next_values` lacks the last row, after which `last_values` stands; `truncated` is 0 where nothing is.
    """
    byte = np.uint8(0)
    itemsize = array_at(rewards, rows * lanes, like).itemsize
    kept = np.empty(max(n - 1, 1) * min(lanes, COLUMNS), array_at(rewards, rows * lanes, like).dtype)
    for column in range(0, lanes, COLUMNS):
        width = min(COLUMNS, lanes - column)
        carry = address_of(kept)
        following = array_at(last_values + column * itemsize, width, like)
        for k in range(n - 1):
            start = array_at(carry + k * width * itemsize, width, like)
            for i in range(width):
                start[i] = following[i]
        for t in range(rows - 1, -1, -1):
            element = t * lanes + column
            at = element * itemsize
            r, e = array_at(rewards + at, width, like), array_at(terminated + element, width, byte)
            after = array_at(last_values + column * itemsize if t == rows - 1 else next_values + at, width, like)
            # From the longest to the shortest, each from the next shorter one of the row behind.
            for k in range(n - 1, -1, -1):
                o = array_at(out + at if k == n - 1 else carry + k * width * itemsize, width, like)
                if k == 0:
                    step(r, e, after, gamma, o)
                    continue
                shorter = array_at(carry + (k - 1) * width * itemsize, width, like)
                if truncated == 0:
                    step(r, e, shorter, gamma, o)
                else:
                    truncated_step(r, e, array_at(truncated + element, width, byte), after, shorter, gamma, o)


@kernel
def _masked_rows(
    rewards: Array, values: Array, next_values: Array, last_values: Array, terminated: Array, truncated: Array,
    mask: Array, full: bool, n_steps: int, gamma: Any, out: Array,
) -> None:  # fmt: skip
    """Rows with holes; `carry[k]` holds the (k+1)-step return of the next valid row."""
    zero = rewards.dtype.type(0)
    rows, lanes = rewards.shape
    carry = np.empty((n_steps, lanes), rewards.dtype)
    is_last = np.ones(lanes, np.uint8)
    bootstrap = np.empty(lanes, rewards.dtype)
    ends = np.empty(lanes, np.uint8)
    after = last_values.copy()
    for k in range(n_steps):
        for n in range(lanes):
            carry[k, n] = last_values[n]
    for t in range(rows - 1, -1, -1):
        r, v, o, is_terminated, is_truncated = rewards[t], values[t], out[t], terminated[t], truncated[t]
        valid = mask[t]
        if full:
            given = next_values[t]
            for n in range(lanes):
                after[n] = given[n]
        for n in range(lanes):
            bootstrap[n] = zero if is_terminated[n] else gamma * after[n]
            ends[n] = is_terminated[n] | is_truncated[n] | is_last[n]
        for k in range(n_steps - 1, 0, -1):
            longer, shorter = carry[k], carry[k - 1]
            for n in range(lanes):
                result = r[n] + (bootstrap[n] if ends[n] else gamma * shorter[n])
                longer[n] = result if valid[n] else longer[n]
        first, longest = carry[0], carry[n_steps - 1]
        for n in range(lanes):
            first[n] = r[n] + bootstrap[n] if valid[n] else first[n]
        for n in range(lanes):
            o[n] = longest[n] if valid[n] else zero
            is_last[n] = 0 if valid[n] else is_last[n]
            after[n] = v[n] if valid[n] else after[n]


@kernel
def _sweep(rewards: Array, bootstrap: Array, ends: Array, next_shorter: Array, gamma: Any, longer: Array) -> None:
    for i in range(longer.size):
        longer[i] = rewards[i] + (bootstrap[i] if ends[i] else gamma * next_shorter[i])


@kernel
def _few_lanes(
    rewards: Array, next_values: Array, last_values: Array, terminated: Array, truncated: Array,
    n_steps: int, gamma: Any, out: Array,
) -> None:  # fmt: skip
    """Flat arrays, a tile and the n - 1 rows behind it at a time. `next_values` lacks the last row."""
    zero = rewards.dtype.type(0)
    lanes, total = last_values.size, rewards.size
    behind = (n_steps - 1) * lanes
    size = min(max(TILE, 4 * behind), total)
    floats = np.empty((3, size + behind), rewards.dtype)
    ends = np.empty(size + behind, np.uint8)
    for start in range(0, total, size):
        stop = min(start + size, total)
        length = min(stop + behind, total) - start
        inner = min(length, total - lanes - start)
        bootstrap, shorter, longer = floats[0], floats[1], floats[2]
        r, e, c = rewards[start : start + length], terminated[start : start + length], truncated[start : start + length]
        after = next_values[start : start + inner]
        for i in range(inner):
            bootstrap[i] = zero if e[i] else gamma * after[i]
        for i in range(inner, length):
            bootstrap[i] = zero if e[i] else gamma * last_values[i - inner]
        for i in range(length):
            ends[i] = (e[i] != 0) | (c[i] != 0)
            shorter[i] = r[i] + bootstrap[i]
        whole = start + length == total
        for _ in range(n_steps - 1):
            reach = length - lanes
            _sweep(r[:reach], bootstrap[:reach], ends[:reach], shorter[lanes:length], gamma, longer[:reach])
            if whole:  # the window's last row looks one step ahead whatever n is
                for i in range(reach, length):
                    longer[i] = shorter[i]
            else:
                length = reach
            shorter, longer = longer, shorter
        o = out[start:stop]
        for i in range(stop - start):
            o[i] = shorter[i]


@kernel
def n_step_returns_at(
    rewards: int, values: int, next_values: int, last_values: int, terminated: int, truncated: int, mask: int,
    cu_seqlens: int, out: int, total: int, sequences: int, lanes: int, n: int, gamma: float, like: Any,
) -> bool:  # fmt: skip
    """n-step returns over contiguous memory; arguments and result are those of `fastac_kernels.gae.gae_at`."""
    itemsize = array_at(rewards, total, like).itemsize
    for floats_in in (rewards, values, next_values):
        if not apart(out, total * itemsize, floats_in, total * itemsize):
            return False
    for flags_in in (terminated, truncated, mask):
        if not apart(out, total * itemsize, flags_in, total):
            return False
    if not apart(out, total * itemsize, last_values, sequences * lanes * itemsize):
        return False

    byte = np.uint8(0)
    full = next_values != 0
    gamma_ = array_at(rewards, total, like).dtype.type(gamma)
    either = truncated if truncated != 0 else terminated
    for s in range(sequences):
        start, size = bounds(cu_seqlens, total, sequences, s)
        if size == 0:
            continue
        rows, at, last = size // lanes, start * itemsize, (start + size - lanes) * itemsize
        n_steps = min(n, rows)
        after = next_values + at if full else values + at + lanes * itemsize
        final = next_values + last if full else last_values + s * lanes * itemsize
        if mask == 0 and lanes >= FEW:
            _rows(
                rewards + at, after, final, terminated + start, truncated + start if truncated != 0 else 0,
                rows, lanes, n_steps, gamma_, out + at, like,
            )  # fmt: skip
        elif mask == 0:
            _few_lanes(
                array_at(rewards + at, size, like), array_at(after, size, like), array_at(final, lanes, like),
                array_at(terminated + start, size, byte), array_at(either + start, size, byte),
                n_steps, gamma_, array_at(out + at, size, like),
            )  # fmt: skip
        else:
            _masked_rows(
                rows_at(rewards + at, rows, lanes, like),
                rows_at(values + at if values != 0 else rewards + at, rows, lanes, like),
                rows_at(after, rows, lanes, like), array_at(final, lanes, like),
                rows_at(terminated + start, rows, lanes, byte), rows_at(either + start, rows, lanes, byte),
                rows_at(mask + start, rows, lanes, byte), full, n_steps, gamma_, rows_at(out + at, rows, lanes, like),
            )  # fmt: skip
    return True
