"""Generalized advantage estimation (Schulman et al. 2016, arXiv:1506.02438, equations 11, 12 and 16).

    delta[t] = r[t] + gamma * V(s[t+1]) - V(s[t])          without the future where t is terminated
    A[t]     = delta[t] + gamma * lambda * A[t+1]          without A[t+1] where t is terminated or truncated
    returns  = A + V

`gae_at` is the kernel; `gae_short` and `gae_full` enter it with numpy arrays of the two most common forms.
"""

from typing import Any

import numpy as np
from numba import boolean, float64
from numpy.typing import NDArray

from fastac_kernels._jit import entry, inline, kernel
from fastac_kernels.blocks import chain, powers
from fastac_kernels.memory import NONE, ONE, address_of, array_at, rows_at
from fastac_kernels.recurrence import (
    COLUMNS,
    NARROW,
    SHORT,
    TILE,
    any_set,
    apart,
    bounds,
    run_start,
    scan,
    scan_scratch,
)

Array = NDArray[Any]


@inline
def _advantages(
    rewards: Array, values: Array, next_values: Array, terminated: Array, next_advantages: Array,
    gamma: Any, decay: Any, out: Array,
) -> None:  # fmt: skip
    zero = out.dtype.type(0)
    for n in range(out.size):
        future = gamma * next_values[n] + decay * next_advantages[n]
        out[n] = rewards[n] - values[n] + (zero if terminated[n] else future)


@inline
def _truncated_advantages(
    rewards: Array, values: Array, next_values: Array, terminated: Array, truncated: Array, next_advantages: Array,
    gamma: Any, decay: Any, out: Array,
) -> None:  # fmt: skip
    zero = out.dtype.type(0)
    for n in range(out.size):
        future = gamma * next_values[n] + (zero if truncated[n] else decay * next_advantages[n])
        out[n] = rewards[n] - values[n] + (zero if terminated[n] else future)


@inline
def _short_row(
    rewards: Array, values: Array, next_values: Array, terminated: Array, truncated: Array, next_advantages: Array,
    gamma: Any, decay: Any, advantages: Array, returns: Array,
) -> None:  # fmt: skip
    zero = advantages.dtype.type(0)
    for n in range(advantages.size):
        future = gamma * next_values[n] + (zero if truncated[n] else decay * next_advantages[n])
        advantages[n] = rewards[n] - values[n] + (zero if terminated[n] else future)
        returns[n] = advantages[n] + values[n]


@inline
def _add(a: Array, b: Array, out: Array) -> None:
    for n in range(out.size):
        out[n] = a[n] + b[n]


@kernel
def _rows(
    rewards: int, values: int, next_values: int, last_values: int, terminated: int, truncated: int,
    rows: int, lanes: int, gamma: Any, decay: Any, advantages: int, returns: int, like: Any,
) -> None:  # fmt: skip
    """Many lanes: row after row, a tile of columns at a time. The carry is the row of advantages written before.

    `next_values` lacks the last row, after which `last_values` stands; `truncated` is 0 where nothing is.
    """
    byte = np.uint8(0)
    itemsize = array_at(rewards, rows * lanes, like).itemsize
    nothing = np.zeros(min(lanes, COLUMNS), array_at(rewards, rows * lanes, like).dtype)
    for column in range(0, lanes, COLUMNS):
        width = min(COLUMNS, lanes - column)
        following, carry = last_values + column * itemsize, address_of(nothing)
        for t in range(rows - 1, -1, -1):
            element = t * lanes + column
            at = element * itemsize
            r, v = array_at(rewards + at, width, like), array_at(values + at, width, like)
            n, p = array_at(following, width, like), array_at(carry, width, like)
            a, q = array_at(advantages + at, width, like), array_at(returns + at, width, like)
            e = array_at(terminated + element, width, byte)
            c = array_at((truncated if truncated != 0 else terminated) + element, width, byte)
            if lanes < SHORT:
                _short_row(r, v, n, e, c, p, gamma, decay, a, q)
            else:
                if truncated == 0:
                    _advantages(r, v, n, e, p, gamma, decay, a)
                else:
                    _truncated_advantages(r, v, n, e, c, p, gamma, decay, a)
                _add(a, v, q)
            following, carry = next_values + at - lanes * itemsize, advantages + at


@kernel
def _masked_rows(
    rewards: Array, values: Array, next_values: Array, last_values: Array, terminated: Array, truncated: Array,
    mask: Array, full: bool, gamma: Any, decay: Any, advantages: Array, returns: Array,
) -> None:  # fmt: skip
    """Rows with holes: the carry and, in the short form, the next value pass them unchanged."""
    zero = rewards.dtype.type(0)
    rows, lanes = rewards.shape
    carry = np.zeros(lanes, rewards.dtype)
    after = last_values.copy()
    for t in range(rows - 1, -1, -1):
        r, v, q, a = rewards[t], values[t], returns[t], advantages[t]
        is_terminated, is_truncated, valid = terminated[t], truncated[t], mask[t]
        if full:
            given = next_values[t]
            for n in range(lanes):
                after[n] = given[n]
        for n in range(lanes):
            delta = r[n] - v[n] + (zero if is_terminated[n] else gamma * after[n])
            advantage = delta + (zero if is_terminated[n] | is_truncated[n] else decay * carry[n])
            carry[n] = advantage if valid[n] else carry[n]
            a[n] = advantage if valid[n] else zero
            q[n] = advantage + v[n] if valid[n] else zero
            after[n] = v[n] if valid[n] else after[n]


@inline
def _deltas(rewards: Array, values: Array, next_values: Array, terminated: Array, gamma: Any, out: Array) -> None:
    zero = out.dtype.type(0)
    for i in range(out.size):
        out[i] = rewards[i] - values[i] + (zero if terminated[i] else gamma * next_values[i])


@inline
def _few_lanes(
    rewards: Array, values: Array, next_values: Array, last_values: Array, terminated: Array, truncated: Array,
    gamma: Any, decay: float, carry: Array, scratch: Array, advantages: Array, returns: Array,
) -> None:  # fmt: skip
    """Flat rows of few lanes: a chain of multiply-adds, shortened by looking ahead. `carry` is A after the last row."""
    last = rewards.size - last_values.size
    _deltas(rewards[:last], values[:last], next_values[:last], terminated[:last], gamma, advantages[:last])
    _deltas(rewards[last:], values[last:], last_values, terminated[last:], gamma, advantages[last:])
    scan(advantages, terminated, truncated, decay, carry, scratch)
    _add(advantages, values, returns)


@kernel
def _one_lane(
    rewards: int, values: int, next_values: int, last_value: Any, terminated: int, truncated: int, size: int,
    gamma: Any, decays: int, carry: Any, advantages: int, returns: int,
) -> Any:  # fmt: skip
    """One sequence, or a run of its rows, a tile at a time; returns the first advantage.

    `next_values` lacks the last row, after which `last_value` stands; `carry` is the advantage after it.
    """
    zero, byte = type(last_value)(0), np.uint8(0)
    itemsize = array_at(rewards, size, zero).itemsize
    for stop in range(size, 0, -TILE):
        start = max(stop - TILE, 0)
        n, at = stop - start, start * itemsize
        m = n - 1 if stop == size else n
        r, v = array_at(rewards + at, n, zero), array_at(values + at, n, zero)
        e, c = array_at(terminated + start, n, byte), array_at(truncated + start, n, byte)
        a, q = array_at(advantages + at, n, zero), array_at(returns + at, n, zero)
        if m < n:
            a[m] = r[m] - v[m] + (zero if e[m] else gamma * last_value)
        _deltas(r, v, array_at(next_values + at, m, zero), e, gamma, array_at(advantages + at, m, zero))
        carry = chain(advantages + at, terminated + start, truncated + start, n, any_set(e, c), decays, carry)
        _add(a, v, q)
    return carry


@inline
def _clear(a: Array, b: Array) -> None:
    for i in range(a.size):
        a[i] = 0
    for i in range(b.size):
        b[i] = 0


@kernel
def _masked_sequence(
    rewards: int, values: int, next_values: int, last_value: Any, terminated: int, truncated: int, mask: int,
    full: bool, size: int, gamma: Any, decays: int, advantages: int, returns: int,
) -> None:  # fmt: skip
    """One sequence with holes: run after run of valid rows, zeros between them."""
    zero = type(last_value)(0)
    v, n = array_at(values, size, zero), array_at(next_values, size, zero)
    itemsize = v.itemsize
    advantage, after = zero, last_value
    stop = size
    while stop > 0:
        start = run_start(mask, stop, False)
        at, hole = start * itemsize, stop - start
        _clear(array_at(advantages + at, hole, zero), array_at(returns + at, hole, zero))
        stop = start
        if stop == 0:
            break
        start = run_start(mask, stop, True)
        at = start * itemsize
        advantage = _one_lane(
            rewards + at, values + at, next_values + at, n[stop - 1] if full else after, terminated + start,
            truncated + start, stop - start, gamma, decays, advantage, advantages + at, returns + at,
        )  # fmt: skip
        after, stop = v[start], start


@kernel
def gae_at(
    rewards: int, values: int, next_values: int, last_values: int, terminated: int, truncated: int, mask: int,
    cu_seqlens: int, advantages: int, returns: int, total: int, sequences: int, lanes: int,
    gamma: float, gae_lambda: float, like: Any,
) -> bool:  # fmt: skip
    """GAE over contiguous memory at the given addresses.

    Args:
        rewards: Address of `total` elements of the type of `like`, as are `values`, `advantages` and `returns`.
        values: V(s[t]).
        next_values: V(s[t+1]) of each element, or 0: the next row's value, and `last_values` after the last row.
        last_values: Address of `sequences * lanes` elements; not read where `next_values` is given.
        terminated: Address of `total` bytes.
        truncated: Address of `total` bytes, or 0: none is.
        mask: Address of `total` bytes, or 0: all rows are in time.
        cu_seqlens: Address of `sequences + 1` int64 boundaries, or 0: all sequences are equally long.
        advantages: Output.
        returns: Output.
        total: Elements in all.
        sequences: Blocks of memory that are independent in time.
        lanes: Environments interleaved in each row of a block.
        gamma: Discount per time step.
        gae_lambda: Lambda.
        like: A scalar of the arrays' dtype.

    Returns:
        False, and nothing written, where an output overlaps an input or the other output.
    """
    itemsize = array_at(rewards, total, like).itemsize
    size_of_all, size_of_last = total * itemsize, sequences * lanes * itemsize
    for out in (advantages, returns):
        for floats_in in (rewards, values, next_values):
            if not apart(out, size_of_all, floats_in, size_of_all):
                return False
        for flags_in in (terminated, truncated, mask):
            if not apart(out, size_of_all, flags_in, total):
                return False
        if not apart(out, size_of_all, last_values, size_of_last):
            return False
    if not apart(advantages, size_of_all, returns, size_of_all):
        return False

    byte = np.uint8(0)
    real = array_at(rewards, total, like).dtype.type
    g, decay = real(gamma), gamma * gae_lambda
    either = truncated if truncated != 0 else terminated
    decays = powers(real(decay))
    few = mask == 0 and 1 < lanes < NARROW
    carry = np.zeros(lanes if few else 0, real)
    scratch = np.empty(scan_scratch(lanes) if few else 0, real)
    for s in range(sequences):
        start, size = bounds(cu_seqlens, total, sequences, s)
        if size == 0:
            continue
        rows, at, last = size // lanes, start * itemsize, (start + size - lanes) * itemsize
        after = next_values + at if next_values != 0 else values + at + lanes * itemsize
        final = next_values + last if next_values != 0 else last_values + s * lanes * itemsize
        if lanes == 1 and mask == 0:
            _one_lane(
                rewards + at, values + at, after, array_at(final, 1, like)[0], terminated + start, either + start, size,
                g, address_of(decays), real(0), advantages + at, returns + at,
            )  # fmt: skip
        elif lanes == 1:
            _masked_sequence(
                rewards + at, values + at, after, array_at(final, 1, like)[0], terminated + start, either + start,
                mask + start, next_values != 0, size, g, address_of(decays), advantages + at, returns + at,
            )  # fmt: skip
        elif mask == 0 and lanes >= NARROW:
            _rows(
                rewards + at, values + at, after, final, terminated + start, truncated + start if truncated != 0 else 0,
                rows, lanes, g, real(decay), advantages + at, returns + at, like,
            )  # fmt: skip
        elif mask == 0:
            for n in range(lanes):
                carry[n] = 0
            _few_lanes(
                array_at(rewards + at, size, like), array_at(values + at, size, like), array_at(after, size, like),
                array_at(final, lanes, like), array_at(terminated + start, size, byte),
                array_at(either + start, size, byte), g, decay, carry, scratch, array_at(advantages + at, size, like),
                array_at(returns + at, size, like),
            )  # fmt: skip
        else:
            _masked_rows(
                rows_at(rewards + at, rows, lanes, like), rows_at(values + at, rows, lanes, like),
                rows_at(after, rows, lanes, like), array_at(final, lanes, like),
                rows_at(terminated + start, rows, lanes, byte), rows_at(either + start, rows, lanes, byte),
                rows_at(mask + start, rows, lanes, byte), next_values != 0, g, real(decay),
                rows_at(advantages + at, rows, lanes, like), rows_at(returns + at, rows, lanes, like),
            )  # fmt: skip
    return True


@entry(lambda real: (*[real[:, ::1]] * 2, real[::1], boolean[:, ::1], float64, float64, *[real[:, ::1]] * 2))
def gae_short(
    rewards: Array, values: Array, last_values: Array, terminated: Array, gamma: float, gae_lambda: float,
    advantages: Array, returns: Array,
) -> bool:  # fmt: skip
    """Contiguous `(T, N)` arrays of one float type, boolean flags. False: shapes differ, or overlap."""
    shape = rewards.shape
    if (
        values.shape != shape or terminated.shape != shape or last_values.size != shape[1]
        or advantages.shape != shape or returns.shape != shape
    ):  # fmt: skip
        return False
    return gae_at(
        address_of(rewards), address_of(values), NONE, address_of(last_values), address_of(terminated), NONE, NONE,
        NONE, address_of(advantages), address_of(returns), rewards.size, ONE, last_values.size, gamma, gae_lambda,
        rewards.dtype.type(0),
    )  # fmt: skip


@entry(lambda real: (*[real[:, ::1]] * 3, *[boolean[:, ::1]] * 2, float64, float64, *[real[:, ::1]] * 2))
def gae_full(
    rewards: Array, values: Array, next_values: Array, terminated: Array, truncated: Array,
    gamma: float, gae_lambda: float, advantages: Array, returns: Array,
) -> bool:  # fmt: skip
    """The same with next values and truncation at every row."""
    shape = rewards.shape
    if (
        values.shape != shape or next_values.shape != shape or terminated.shape != shape or truncated.shape != shape
        or advantages.shape != shape or returns.shape != shape
    ):  # fmt: skip
        return False
    return gae_at(
        address_of(rewards), address_of(values), address_of(next_values), NONE, address_of(terminated),
        address_of(truncated), NONE, NONE, address_of(advantages), address_of(returns), rewards.size, ONE,
        shape[1], gamma, gae_lambda, rewards.dtype.type(0),
    )  # fmt: skip
