"""Retrace(lambda) targets (Munos et al. 2016, arXiv:1606.02647, equation 3 with the weights of section 3).

    G[t] = r[t] + gamma * (V(s[t+1]) + lambda * E[t+1]),   E[t] = min(1, rho[t]) * (G[t] - Q(s[t], a[t])),
    rho[t] = exp(log_ratio[t]),   V(s) = expectation of Q(s, a) over a ~ pi

without the future where t is terminated; without E[t+1] where t is truncated or the last row.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastac_kernels._jit import inline, kernel
from fastac_kernels.blocks import varying_chain
from fastac_kernels.exp import exp
from fastac_kernels.memory import address_of, array_at, widest_vectors
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
    widest_vectors()
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
    widest_vectors()
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


@inline
def _corrections(
    log_ratios: Array, rewards: Array, q_values: Array, next_values: Array, terminated: Array,
    gamma: Any, decay: Any, factors: Array, errors: Array, targets: Array,
) -> None:  # fmt: skip
    """What G and E are made of without the rows behind, and what the row behind is multiplied by."""
    widest_vectors()
    zero, one = targets.dtype.type(0), targets.dtype.type(1)
    for i in range(targets.size):
        rho = exp(log_ratios[i])
        rho = one if rho > one else rho
        target = rewards[i] + (zero if terminated[i] else gamma * next_values[i])
        factors[i] = decay * rho
        errors[i] = rho * (target - q_values[i])
        targets[i] = target


@inline
def _add_behind(errors: Array, terminated: Array, truncated: Array, decay: Any, targets: Array) -> None:
    zero = targets.dtype.type(0)
    for i in range(targets.size):
        targets[i] += zero if (terminated[i] != 0) | (truncated[i] != 0) else decay * errors[i]


@kernel
def _one_lane(
    log_ratios: int, rewards: int, q_values: int, next_values: int, terminated: int, truncated: int, size: int,
    gamma: Any, decay: Any, kept: int, targets: int, like: Any,
) -> None:  # fmt: skip
    """One sequence without holes, a tile at a time; `decay` is at most 1, as `varying_chain` asks.

    `kept` has room for two tiles and an element.
    """
    byte = np.uint8(0)
    itemsize = array_at(rewards, size, like).itemsize
    carry = array_at(rewards, size, like).dtype.type(0)
    for stop in range(size, 0, -TILE):
        start = max(stop - TILE, 0)
        n, at = stop - start, start * itemsize
        errors, factors = array_at(kept, n + 1, like), kept + (TILE + 1) * itemsize
        e, c = array_at(terminated + start, n, byte), array_at(truncated + start, n, byte)
        o = array_at(targets + at, n, like)
        _corrections(
            array_at(log_ratios + at, n, like), array_at(rewards + at, n, like), array_at(q_values + at, n, like),
            array_at(next_values + at, n, like), e, gamma, decay, array_at(factors, n, like), errors, o,
        )  # fmt: skip
        errors[n] = carry
        carry = varying_chain(kept, factors, terminated + start, truncated + start, n, carry)
        _add_behind(array_at(kept + itemsize, n, like), e, c, decay, o)


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
    kept = np.empty(2 * TILE + NARROW if lanes < NARROW else 0, real)
    scratch = array_at(address_of(kept), kept.size, like)
    for s in range(sequences):
        start, size = bounds(cu_seqlens, total, sequences, s)
        if size == 0:
            continue
        at = start * itemsize
        x, r, q, v, o = log_ratios + at, rewards + at, q_values + at, next_values + at, targets + at
        e, c, m = terminated + start, cut + start, mask + start if mask != 0 else 0
        if lanes == 1 and mask == 0 and real(0) <= decay <= real(1):
            _one_lane(x, r, q, v, e, c, size, g, decay, address_of(kept), o, like)
        elif lanes < NARROW:
            _few_lanes(
                array_at(x, size, like), array_at(r, size, like), array_at(q, size, like), array_at(v, size, like),
                array_at(e, size, byte), array_at(c, size, byte), array_at(m, size, byte), lanes, g, decay, scratch,
                array_at(o, size, like),
            )  # fmt: skip
        else:
            _rows(x, r, q, v, e, c, m, size // lanes, lanes, g, decay, o, like)
    return True
