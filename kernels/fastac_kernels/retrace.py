"""Retrace(lambda) targets (Munos et al. 2016, arXiv:1606.02647, equation 3 with the weights of section 3).

    G[t] = r[t] + gamma * (V(s[t+1]) + lambda * E[t+1]),   E[t] = min(1, rho[t]) * (G[t] - Q(s[t], a[t])),
    rho[t] = exp(log_ratio[t]),   V(s) = expectation of Q(s, a) over a ~ pi

without the future where t is terminated; without E[t+1] where t is truncated or the last row.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastac_kernels._jit import inline, kernel
from fastac_kernels.exp import exp
from fastac_kernels.memory import address_of, array_at
from fastac_kernels.recurrence import COLUMNS, NARROW, TILE, apart, bounds

Array = NDArray[Any]


@inline
def _step(
    rho: Any, reward: Any, q_value: Any, next_value: Any, terminated: Any, truncated: Any, next_error: Any,
    gamma: Any, decay: Any,
) -> tuple[Any, Any]:  # fmt: skip
    """E and G of one element."""
    zero, one = type(q_value)(0), type(q_value)(1)
    future = gamma * next_value + (zero if truncated else decay * next_error)
    target = reward + (zero if terminated else future)
    return (one if rho > one else rho) * (target - q_value), target


@inline
def _row(
    log_ratios: Array, rewards: Array, q_values: Array, next_values: Array, terminated: Array, truncated: Array,
    gamma: Any, decay: Any, carry: Array, targets: Array,
) -> None:  # fmt: skip
    for n in range(carry.size):
        carry[n], targets[n] = _step(
            exp(log_ratios[n]), rewards[n], q_values[n], next_values[n], terminated[n], truncated[n], carry[n],
            gamma, decay,
        )  # fmt: skip


@inline
def _masked_row(
    log_ratios: Array, rewards: Array, q_values: Array, next_values: Array, terminated: Array, truncated: Array,
    mask: Array, gamma: Any, decay: Any, carry: Array, targets: Array,
) -> None:  # fmt: skip
    zero = carry.dtype.type(0)
    for n in range(carry.size):
        error, target = _step(
            exp(log_ratios[n]), rewards[n], q_values[n], next_values[n], terminated[n], truncated[n], carry[n],
            gamma, decay,
        )  # fmt: skip
        carry[n] = error if mask[n] else carry[n]
        targets[n] = target if mask[n] else zero


@kernel
def _rows(
    log_ratios: int, rewards: int, q_values: int, next_values: int, terminated: int, truncated: int, mask: int,
    rows: int, lanes: int, gamma: Any, decay: Any, targets: int, like: Any,
) -> None:  # fmt: skip
    """Many lanes: row after row, a tile of columns at a time; masked rows leave the carry as it is."""
    byte = np.uint8(0)
    itemsize = array_at(rewards, rows * lanes, like).itemsize
    errors = np.empty(min(lanes, COLUMNS), array_at(rewards, rows * lanes, like).dtype)
    for column in range(0, lanes, COLUMNS):
        width = min(COLUMNS, lanes - column)
        carry = array_at(address_of(errors), width, like)
        for n in range(width):
            carry[n] = 0
        for t in range(rows - 1, -1, -1):
            element = t * lanes + column
            at = element * itemsize
            x, r = array_at(log_ratios + at, width, like), array_at(rewards + at, width, like)
            q, v = array_at(q_values + at, width, like), array_at(next_values + at, width, like)
            e, c = array_at(terminated + element, width, byte), array_at(truncated + element, width, byte)
            o = array_at(targets + at, width, like)
            if mask == 0:
                _row(x, r, q, v, e, c, gamma, decay, carry, o)
            else:
                _masked_row(x, r, q, v, e, c, array_at(mask + element, width, byte), gamma, decay, carry, o)


@kernel
def _few_lanes(
    log_ratios: Array, rewards: Array, q_values: Array, next_values: Array, terminated: Array, truncated: Array,
    mask: Array, lanes: int, gamma: Any, decay: Any, kept: Array, targets: Array,
) -> None:  # fmt: skip
    """Flat arrays of few lanes, with holes or without (`mask` empty): ratios a tile at a time, then lane after lane."""
    zero = rewards.dtype.type(0)
    masked = mask.size > 0
    size = TILE // lanes * lanes
    for n in range(lanes):
        kept[size + n] = zero
    for stop in range(rewards.size, 0, -size):
        start = max(stop - size, 0)
        for i in range(stop - start):
            kept[i] = exp(log_ratios[start + i])
        for n in range(lanes):
            carry = kept[size + n]
            for i in range(stop - lanes + n, start - 1, -lanes):
                if masked and mask[i] == 0:
                    targets[i] = zero
                    continue
                carry, targets[i] = _step(
                    kept[i - start], rewards[i], q_values[i], next_values[i], terminated[i], truncated[i], carry,
                    gamma, decay,
                )  # fmt: skip
            kept[size + n] = carry


@kernel
def retrace_at(
    log_ratios: int, rewards: int, q_values: int, next_values: int, last_values: int, terminated: int, truncated: int,
    mask: int, cu_seqlens: int, targets: int, total: int, sequences: int, lanes: int,
    gamma: float, trace_lambda: float, like: Any,
) -> bool:  # fmt: skip
    """Retrace over contiguous memory at the given addresses.

    Arguments and result are those of `fastac_kernels.vtrace.vtrace_at`, with Q(s[t], a[t]) for `values`; `next_values`
    is given and `last_values` not read.
    """
    itemsize = array_at(rewards, total, like).itemsize
    size_of_all = total * itemsize
    for floats_in in (log_ratios, rewards, q_values, next_values):
        if not apart(targets, size_of_all, floats_in, size_of_all):
            return False
    for flags_in in (terminated, truncated, mask):
        if not apart(targets, size_of_all, flags_in, total):
            return False

    byte = np.uint8(0)
    real = array_at(rewards, total, like).dtype.type
    g, decay = real(gamma), real(gamma * trace_lambda)
    cut = truncated if truncated != 0 else terminated
    kept = np.empty(TILE + NARROW if lanes < NARROW else 0, real)
    scratch = array_at(address_of(kept), kept.size, like)
    for s in range(sequences):
        start, size = bounds(cu_seqlens, total, sequences, s)
        if size == 0:
            continue
        at = start * itemsize
        x, r, q, v, o = log_ratios + at, rewards + at, q_values + at, next_values + at, targets + at
        e, c, m = terminated + start, cut + start, mask + start if mask != 0 else 0
        if lanes < NARROW:
            _few_lanes(
                array_at(x, size, like), array_at(r, size, like), array_at(q, size, like), array_at(v, size, like),
                array_at(e, size, byte), array_at(c, size, byte), array_at(m, size, byte), lanes, g, decay, scratch,
                array_at(o, size, like),
            )  # fmt: skip
        else:
            _rows(x, r, q, v, e, c, m, size // lanes, lanes, g, decay, o, like)
    return True
