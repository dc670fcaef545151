"""Discounted returns and lambda returns (Sutton and Barto 2018, equations 3.8 and 12.2 in recursive form).

    G[t] = r[t] + gamma * ((1 - lambda) * V(s[t+1]) + lambda * G[t+1])

without the future where t is terminated; the future is V(s[t+1]) alone where t is truncated or the last row. Discounted
returns are the case lambda = 1, in which V(s[t+1]) inside an episode is not even read.
"""

from typing import Any

import numpy as np
from numba import boolean, float64
from numpy.typing import NDArray

from fastac_kernels._jit import entry, inline, kernel
from fastac_kernels.blocks import chain, powers
from fastac_kernels.memory import NONE, ONE, YES, address_of, array_at, rows_at
from fastac_kernels.recurrence import COLUMNS, NARROW, any_set, apart, bounds, scan, scan_scratch, step, truncated_step

Array = NDArray[Any]


@inline
def _lambda_row(
    rewards: Array, next_values: Array, terminated: Array, truncated: Array, next_returns: Array,
    gamma: Any, bootstrap: Any, decay: Any, out: Array,
) -> None:  # fmt: skip
    zero = out.dtype.type(0)
    for n in range(out.size):
        inside = bootstrap * next_values[n] + decay * next_returns[n]
        future = gamma * next_values[n] if truncated[n] else inside
        out[n] = rewards[n] + (zero if terminated[n] else future)


@kernel
def _rows(
    rewards: int, next_values: int, last_values: int, terminated: int, truncated: int, rows: int, lanes: int,
    gamma: Any, bootstrap: Any, decay: Any, monte_carlo: bool, out: int, like: Any,
) -> None:  # fmt: skip
    """Many lanes: row after row, a tile of columns at a time. The carry is the row of returns written before.

    `next_values` lacks the last row, after which `last_values` stands; `truncated` is 0 where nothing is.
    """
    byte = np.uint8(0)
    itemsize = array_at(rewards, rows * lanes, like).itemsize
    for column in range(0, lanes, COLUMNS):
        width = min(COLUMNS, lanes - column)
        for t in range(rows - 1, -1, -1):
            element = t * lanes + column
            at = element * itemsize
            r, o = array_at(rewards + at, width, like), array_at(out + at, width, like)
            e = array_at(terminated + element, width, byte)
            if t == rows - 1:
                step(r, e, array_at(last_values + column * itemsize, width, like), gamma, o)
                continue
            p = array_at(out + at + lanes * itemsize, width, like)
            if monte_carlo and truncated == 0:
                step(r, e, p, gamma, o)
                continue
            n = array_at(next_values + at, width, like)
            c = array_at((truncated if truncated != 0 else terminated) + element, width, byte)
            if monte_carlo:
                truncated_step(r, e, c, n, p, gamma, o)
            else:
                _lambda_row(r, n, e, c, p, gamma, bootstrap, decay, o)


@kernel
def _masked_rows(
    rewards: Array, values: Array, next_values: Array, last_values: Array, terminated: Array, truncated: Array,
    mask: Array, full: bool, gamma: Any, bootstrap: Any, decay: Any, monte_carlo: bool, out: Array,
) -> None:  # fmt: skip
    """Rows with holes: the carry and, in the short form, the next value pass them unchanged."""
    zero = rewards.dtype.type(0)
    rows, lanes = rewards.shape
    carry = np.zeros(lanes, rewards.dtype)
    is_last = np.ones(lanes, np.uint8)
    after = last_values.copy()
    for t in range(rows - 1, -1, -1):
        r, v, o = rewards[t], values[t], out[t]
        is_terminated, is_truncated, valid = terminated[t], truncated[t], mask[t]
        if full:
            given = next_values[t]
            for n in range(lanes):
                after[n] = given[n]
        for n in range(lanes):
            inside = decay * carry[n] + (zero if monte_carlo else bootstrap * after[n])
            future = gamma * after[n] if is_truncated[n] | is_last[n] else inside
            result = r[n] + (zero if is_terminated[n] else future)
            carry[n] = result if valid[n] else carry[n]
            o[n] = result if valid[n] else zero
            is_last[n] = 0 if valid[n] else is_last[n]
            after[n] = v[n] if valid[n] else after[n]


@kernel
def _few_lanes(
    rewards: Array, next_values: Array, last_values: Array, terminated: Array, truncated: Array,
    gamma: Any, bootstrap: Any, decay: float, decays: int, monte_carlo: bool, carry: Array, scratch: Array, out: Array,
) -> None:  # fmt: skip
    """Flat arrays of few lanes: a chain of multiply-adds, shortened by looking ahead."""
    zero = rewards.dtype.type(0)
    lanes, last = last_values.size, rewards.size - last_values.size
    if monte_carlo:
        for i in range(last):
            out[i] = rewards[i] + (gamma * next_values[i] if (truncated[i] != 0) & (terminated[i] == 0) else zero)
    else:
        for i in range(last):
            future = (gamma if truncated[i] else bootstrap) * next_values[i]
            out[i] = rewards[i] + (zero if terminated[i] else future)
    r, o, e = rewards[last:], out[last:], terminated[last:]
    for n in range(lanes):
        o[n] = r[n] + (zero if e[n] else gamma * last_values[n])
    if lanes == 1:
        ends, any_end = address_of(terminated), any_set(terminated, truncated)
        chain(address_of(out), ends, address_of(truncated), out.size, any_end, decays, zero)
        return
    for n in range(lanes):
        carry[n] = zero
    scan(out, terminated, truncated, decay, carry, scratch)


@kernel
def lambda_returns_at(
    rewards: int, values: int, next_values: int, last_values: int, terminated: int, truncated: int, mask: int,
    cu_seqlens: int, out: int, total: int, sequences: int, lanes: int,
    gamma: float, td_lambda: float, monte_carlo: bool, like: Any,
) -> bool:  # fmt: skip
    """Lambda returns, or discounted returns where `monte_carlo`, over contiguous memory at the given addresses.

    Arguments and result are those of `fastac_kernels.gae.gae_at`. `values` may be 0 where `next_values` is given and
    for discounted returns, which do not read it.
    """
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
    real = array_at(rewards, total, like).dtype.type
    g, bootstrap, decay = real(gamma), real(gamma * (1.0 - td_lambda)), gamma * td_lambda
    either = truncated if truncated != 0 else terminated
    few = mask == 0 and lanes < NARROW
    decays = powers(real(decay))
    carry = np.empty(lanes if few else 0, real)
    scratch = np.empty(scan_scratch(lanes) if few else 0, real)
    for s in range(sequences):
        start, size = bounds(cu_seqlens, total, sequences, s)
        if size == 0:
            continue
        rows, at, last = size // lanes, start * itemsize, (start + size - lanes) * itemsize
        after = next_values + at if next_values != 0 else values + at + lanes * itemsize
        if next_values == 0 and monte_carlo:
            after = rewards + at  # never selected, but a vectorised loop may load it
        final = next_values + last if next_values != 0 else last_values + s * lanes * itemsize
        if mask == 0 and lanes >= NARROW:
            _rows(
                rewards + at, after, final, terminated + start, truncated + start if truncated != 0 else 0,
                rows, lanes, g, bootstrap, real(decay), monte_carlo, out + at, like,
            )  # fmt: skip
        elif mask == 0:
            _few_lanes(
                array_at(rewards + at, size, like), array_at(after, size, like), array_at(final, lanes, like),
                array_at(terminated + start, size, byte), array_at(either + start, size, byte),
                g, bootstrap, decay, address_of(decays), monte_carlo, carry, scratch, array_at(out + at, size, like),
            )  # fmt: skip
        else:
            _masked_rows(
                rows_at(rewards + at, rows, lanes, like),
                rows_at(values + at if values != 0 else rewards + at, rows, lanes, like),
                rows_at(after, rows, lanes, like), array_at(final, lanes, like),
                rows_at(terminated + start, rows, lanes, byte), rows_at(either + start, rows, lanes, byte),
                rows_at(mask + start, rows, lanes, byte), next_values != 0,
                g, bootstrap, real(decay), monte_carlo, rows_at(out + at, rows, lanes, like),
            )  # fmt: skip
    return True


@entry(lambda real: (real[:, ::1], real[::1], boolean[:, ::1], float64, real[:, ::1]))
def discounted_returns_short(rewards: Array, last_values: Array, terminated: Array, gamma: float, out: Array) -> bool:
    """Contiguous `(T, N)` arrays of one float type, boolean flags. False: shapes differ, or overlap."""
    shape = rewards.shape
    if terminated.shape != shape or last_values.size != shape[1] or out.shape != shape:
        return False
    return lambda_returns_at(
        address_of(rewards), address_of(rewards), NONE, address_of(last_values), address_of(terminated), NONE, NONE,
        NONE, address_of(out), rewards.size, ONE, last_values.size, gamma, 1.0, YES, rewards.dtype.type(0),
    )  # fmt: skip
