"""V-trace targets and advantages (Espeholt et al. 2018, arXiv:1802.01561, equations 1 and 4, and remarks 1 and 2).

    rho[t]     = exp(log_ratio[t])
    D[t]       = min(rho_clip, rho[t]) * (r[t] + gamma * V(s[t+1]) - V(s[t]))
                 + gamma * lambda * min(c_clip, rho[t]) * D[t+1]
    targets[t] = V(s[t]) + D[t]
    A[t]       = min(pg_rho_clip, rho[t]) * (r[t] + gamma * q[t] - V(s[t])),
    q[t]       = lambda * targets[t+1] + (1 - lambda) * V(s[t+1])

without the futures where t is terminated; without D[t+1], and with q[t] = V(s[t+1]), where t is truncated or the last
row. In the short form V(s[t+1]) is the value of the row behind, so that q[t] = V(s[t+1]) + lambda * D[t+1].
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
def _short_row(
    log_ratios: Array, rewards: Array, values: Array, next_values: Array, terminated: Array,
    gamma: Any, decay: Any, rho_clip: Any, c_clip: Any, pg_rho_clip: Any,
    carry: Array, targets: Array, advantages: Array,
) -> None:  # fmt: skip
    zero = carry.dtype.type(0)
    for n in range(carry.size):
        rho = exp(log_ratios[n])
        delta = rewards[n] - values[n] + (zero if terminated[n] else gamma * next_values[n])
        future = zero if terminated[n] else decay * carry[n]
        difference = (rho_clip if rho > rho_clip else rho) * delta + (c_clip if rho > c_clip else rho) * future
        carry[n] = difference
        targets[n] = values[n] + difference
        advantages[n] = (pg_rho_clip if rho > pg_rho_clip else rho) * (delta + future)


@inline
def _plain_row(
    log_ratios: Array, rewards: Array, values: Array, next_values: Array, terminated: Array, next_advantages: Array,
    gamma: Any, decay: Any, clip: Any, targets: Array, advantages: Array,
) -> None:  # fmt: skip
    """The same with one clip for all: D is the advantage, and the row behind in the output the carry."""
    widest_vectors()
    zero = advantages.dtype.type(0)
    for n in range(advantages.size):
        rho = exp(log_ratios[n])
        future = gamma * next_values[n] + decay * next_advantages[n]
        error = rewards[n] - values[n] + (zero if terminated[n] else future)
        advantages[n] = (clip if rho > clip else rho) * error
        targets[n] = values[n] + advantages[n]


@inline
def _step(
    rho: Any, reward: Any, value: Any, next_value: Any, terminated: Any, cut: Any, next_difference: Any,
    next_target: Any, gamma: Any, bootstrap: Any, decay: Any, rho_clip: Any, c_clip: Any, pg_rho_clip: Any,
) -> tuple[Any, Any]:  # fmt: skip
    """D and A of one element; `cut`: what lies behind it is another episode, or nothing."""
    zero = type(value)(0)
    error = reward - value
    alone = gamma * next_value
    q = alone if cut else bootstrap * next_value + decay * next_target
    future = zero if cut else decay * next_difference
    delta = error + (zero if terminated else alone)
    difference = (rho_clip if rho > rho_clip else rho) * delta + (c_clip if rho > c_clip else rho) * (
        zero if terminated else future
    )
    return difference, (pg_rho_clip if rho > pg_rho_clip else rho) * (error + (zero if terminated else q))


@inline
def _full_row(
    log_ratios: Array, rewards: Array, values: Array, next_values: Array, terminated: Array, truncated: Array,
    next_targets: Array, gamma: Any, bootstrap: Any, decay: Any, rho_clip: Any, c_clip: Any, pg_rho_clip: Any,
    carry: Array, targets: Array, advantages: Array,
) -> None:  # fmt: skip
    for n in range(carry.size):
        difference, advantages[n] = _step(
            exp(log_ratios[n]), rewards[n], values[n], next_values[n], terminated[n], truncated[n], carry[n],
            next_targets[n], gamma, bootstrap, decay, rho_clip, c_clip, pg_rho_clip,
        )  # fmt: skip
        carry[n] = difference
        targets[n] = values[n] + difference


@kernel
def _rows(
    log_ratios: int, rewards: int, values: int, next_values: int, last_values: int, terminated: int, truncated: int,
    full: bool, rows: int, lanes: int, gamma: Any, bootstrap: Any, decay: Any, rho_clip: Any, c_clip: Any,
    pg_rho_clip: Any, targets: int, advantages: int, like: Any,
) -> None:  # fmt: skip
    """Many lanes: row after row, a tile of columns at a time.

    `next_values` lacks the last row, after which `last_values` stands.
    """
    byte = np.uint8(0)
    itemsize = array_at(rewards, rows * lanes, like).itemsize
    differences = np.empty(min(lanes, COLUMNS), array_at(rewards, rows * lanes, like).dtype)
    last = np.ones(min(lanes, COLUMNS), np.uint8)
    plain = not full and rho_clip == c_clip == pg_rho_clip
    for column in range(0, lanes, COLUMNS):
        width = min(COLUMNS, lanes - column)
        carry = array_at(address_of(differences), width, like)
        for n in range(width):
            carry[n] = 0
        behind = address_of(differences)
        following, cut, improved = last_values + column * itemsize, address_of(last), last_values + column * itemsize
        for t in range(rows - 1, -1, -1):
            element = t * lanes + column
            at = element * itemsize
            x = array_at(log_ratios + at, width, like)
            r, v = array_at(rewards + at, width, like), array_at(values + at, width, like)
            n_, e = array_at(following, width, like), array_at(terminated + element, width, byte)
            o, a = array_at(targets + at, width, like), array_at(advantages + at, width, like)
            if plain:
                p = array_at(behind, width, like)
                _plain_row(x, r, v, n_, e, p, gamma, decay, rho_clip, o, a)
                behind = advantages + at
            elif full:
                p, c = array_at(improved, width, like), array_at(cut, width, byte)
                _full_row(x, r, v, n_, e, c, p, gamma, bootstrap, decay, rho_clip, c_clip, pg_rho_clip, carry, o, a)
            else:
                _short_row(x, r, v, n_, e, gamma, decay, rho_clip, c_clip, pg_rho_clip, carry, o, a)
            following, cut, improved = next_values + at - lanes * itemsize, truncated + element - lanes, targets + at


@inline
def _masked_row(
    log_ratios: Array, rewards: Array, values: Array, next_values: Array, terminated: Array, truncated: Array,
    mask: Array, gamma: Any, bootstrap: Any, decay: Any, rho_clip: Any, c_clip: Any, pg_rho_clip: Any,
    carry: Array, improved: Array, is_last: Array, targets: Array, advantages: Array,
) -> None:  # fmt: skip
    """`carry` (D) and `improved` (the target) are those of the next valid row."""
    widest_vectors()
    zero = carry.dtype.type(0)
    for n in range(carry.size):
        difference, advantage = _step(
            exp(log_ratios[n]), rewards[n], values[n], next_values[n], terminated[n], truncated[n] | is_last[n],
            carry[n], improved[n], gamma, bootstrap, decay, rho_clip, c_clip, pg_rho_clip,
        )  # fmt: skip
        target = values[n] + difference
        carry[n] = difference if mask[n] else carry[n]
        improved[n] = target if mask[n] else improved[n]
        targets[n] = target if mask[n] else zero
        advantages[n] = advantage if mask[n] else zero
    for n in range(carry.size):
        is_last[n] = 0 if mask[n] else is_last[n]


@inline
def _select(values: Array, mask: Array, out: Array) -> None:
    for n in range(out.size):
        out[n] = values[n] if mask[n] else out[n]


@kernel
def _masked_rows(
    log_ratios: int, rewards: int, values: int, next_values: int, last_values: int, terminated: int, truncated: int,
    mask: int, rows: int, lanes: int, gamma: Any, bootstrap: Any, decay: Any, rho_clip: Any, c_clip: Any,
    pg_rho_clip: Any, targets: int, advantages: int, like: Any,
) -> None:  # fmt: skip
    """Rows with holes, which the carry and, in the short form (`next_values` 0), the next value pass unchanged."""
    byte = np.uint8(0)
    full = next_values != 0
    real = array_at(rewards, rows * lanes, like).dtype.type
    itemsize = array_at(rewards, rows * lanes, like).itemsize
    kept, flags = np.zeros(3 * lanes, real), np.ones(lanes, np.uint8)
    state = address_of(kept)
    carry, improved = array_at(state, lanes, like), array_at(state + lanes * itemsize, lanes, like)
    after, is_last = array_at(state + 2 * lanes * itemsize, lanes, like), array_at(address_of(flags), lanes, byte)
    final = array_at(last_values, lanes, like)
    for n in range(lanes):
        after[n] = final[n]
    for t in range(rows - 1, -1, -1):
        element = t * lanes
        at = element * itemsize
        v, m = array_at(values + at, lanes, like), array_at(mask + element, lanes, byte)
        _masked_row(
            array_at(log_ratios + at, lanes, like), array_at(rewards + at, lanes, like), v,
            array_at(next_values + at, lanes, like) if full else after,
            array_at(terminated + element, lanes, byte), array_at(truncated + element, lanes, byte), m,
            gamma, bootstrap, decay, rho_clip, c_clip, pg_rho_clip, carry, improved, is_last,
            array_at(targets + at, lanes, like), array_at(advantages + at, lanes, like),
        )  # fmt: skip
        if not full:
            _select(v, m, after)


@kernel
def _few_lanes(
    log_ratios: Array, rewards: Array, values: Array, next_values: Array, last_values: Array, terminated: Array,
    truncated: Array, mask: Array, lanes: int, gamma: Any, bootstrap: Any, decay: Any, rho_clip: Any, c_clip: Any,
    pg_rho_clip: Any, kept: Array, targets: Array, advantages: Array,
) -> None:  # fmt: skip
    """Flat arrays of few lanes, with holes or without: ratios a tile at a time, then lane after lane.

    `next_values` and `mask` are empty where absent; `kept` has room for a tile of ratios and the state of the lanes.
    """
    zero = rewards.dtype.type(0)
    full, masked = next_values.size > 0, mask.size > 0
    size = TILE // lanes * lanes
    for n in range(lanes):
        kept[size + n], kept[size + lanes + n], kept[size + 2 * lanes + n] = zero, last_values[n], last_values[n]
        kept[size + 3 * lanes + n] = 1
    for stop in range(rewards.size, 0, -size):
        start = max(stop - size, 0)
        for i in range(stop - start):
            kept[i] = exp(log_ratios[start + i])
        for n in range(lanes):
            carry, improved, after = kept[size + n], kept[size + lanes + n], kept[size + 2 * lanes + n]
            is_last = kept[size + 3 * lanes + n] != 0
            for i in range(stop - lanes + n, start - 1, -lanes):
                if masked and mask[i] == 0:
                    targets[i] = zero
                    advantages[i] = zero
                    continue
                carry, advantages[i] = _step(
                    kept[i - start], rewards[i], values[i], next_values[i] if full else after,
                    terminated[i] != 0, (truncated[i] != 0) | is_last,
                    carry, improved, gamma, bootstrap, decay, rho_clip, c_clip, pg_rho_clip,
                )  # fmt: skip
                after, is_last = values[i], False
                improved = after + carry
                targets[i] = improved
            kept[size + n], kept[size + lanes + n], kept[size + 2 * lanes + n] = carry, improved, after
            kept[size + 3 * lanes + n] = is_last


@inline
def _corrections(
    log_ratios: Array, rewards: Array, values: Array, next_values: Array, terminated: Array,
    gamma: Any, decay: Any, rho_clip: Any, c_clip: Any, ratios: Array, factors: Array, out: Array,
) -> None:  # fmt: skip
    """What D is made of without the rows behind, and what the row behind is multiplied by."""
    widest_vectors()
    zero = out.dtype.type(0)
    for i in range(out.size):
        rho = exp(log_ratios[i])
        ratios[i] = rho
        factors[i] = decay * (c_clip if rho > c_clip else rho)
        delta = rewards[i] - values[i] + (zero if terminated[i] else gamma * next_values[i])
        out[i] = (rho_clip if rho > rho_clip else rho) * delta


@inline
def _from_targets(
    ratios: Array, rewards: Array, values: Array, next_values: Array, next_targets: Array, terminated: Array,
    cut: Array, gamma: Any, bootstrap: Any, decay: Any, pg_rho_clip: Any, advantages: Array,
) -> None:  # fmt: skip
    zero = advantages.dtype.type(0)
    for i in range(advantages.size):
        q = gamma * next_values[i] if cut[i] else bootstrap * next_values[i] + decay * next_targets[i]
        rho = pg_rho_clip if ratios[i] > pg_rho_clip else ratios[i]
        advantages[i] = rho * (rewards[i] - values[i] + (zero if terminated[i] else q))


@inline
def _add(a: Array, out: Array) -> None:
    for i in range(out.size):
        out[i] += a[i]


@kernel
def _one_lane(
    log_ratios: int, rewards: int, values: int, next_values: int, last_values: int, terminated: int, truncated: int,
    size: int, gamma: Any, bootstrap: Any, decay: Any, rho_clip: Any, c_clip: Any, pg_rho_clip: Any,
    kept: int, targets: int, advantages: int, like: Any,
) -> None:  # fmt: skip
    """One sequence without holes, a tile at a time; `decay * c_clip` is at most 1, as `varying_chain` asks.

    `next_values` lacks the last row, after which `last_values` stands; `kept` has room for two tiles.
    """
    byte = np.uint8(0)
    flag = np.ones(1, np.uint8)
    itemsize = array_at(rewards, size, like).itemsize
    ratios, factors = kept, kept + TILE * itemsize
    carry = array_at(rewards, size, like).dtype.type(0)
    for stop in range(size, 0, -TILE):
        start = max(stop - TILE, 0)
        n = stop - start
        at = start * itemsize
        m = n - 1 if stop == size else n
        # The last row has a next value of its own.
        for first, count, following in ((0, m, next_values + at), (m, n - m, last_values)):
            o, k = at + first * itemsize, first * itemsize
            _corrections(
                array_at(log_ratios + o, count, like), array_at(rewards + o, count, like),
                array_at(values + o, count, like), array_at(following, count, like),
                array_at(terminated + start + first, count, byte), gamma, decay, rho_clip, c_clip,
                array_at(ratios + k, count, like), array_at(factors + k, count, like),
                array_at(targets + o, count, like),
            )  # fmt: skip
        carry = varying_chain(targets + at, factors, terminated + start, truncated + start, n, carry)
        _add(array_at(values + at, n, like), array_at(targets + at, n, like))
        for first, count, following, behind, cut in (
            (0, m, next_values + at, targets + at + itemsize, truncated + start),
            (m, n - m, last_values, last_values, address_of(flag)),
        ):
            o = at + first * itemsize
            _from_targets(
                array_at(ratios + first * itemsize, count, like), array_at(rewards + o, count, like),
                array_at(values + o, count, like), array_at(following, count, like), array_at(behind, count, like),
                array_at(terminated + start + first, count, byte), array_at(cut, count, byte),
                gamma, bootstrap, decay, pg_rho_clip, array_at(advantages + o, count, like),
            )  # fmt: skip


@kernel
def vtrace_at(
    log_ratios: int, rewards: int, values: int, next_values: int, last_values: int, terminated: int, truncated: int,
    mask: int, cu_seqlens: int, targets: int, advantages: int, total: int, sequences: int, lanes: int,
    gamma: float, trace_lambda: float, rho_clip: float, c_clip: float, pg_rho_clip: float, like: Any,
) -> bool:  # fmt: skip
    """V-trace over contiguous memory at the given addresses.

    Arguments and result are those of `fastac_kernels.gae.gae_at`, `log_ratios` (log pi - log mu of the actions taken)
    coming first.
    """
    itemsize = array_at(rewards, total, like).itemsize
    size_of_all, size_of_last = total * itemsize, sequences * lanes * itemsize
    for out in (targets, advantages):
        for floats_in in (log_ratios, rewards, values, next_values):
            if not apart(out, size_of_all, floats_in, size_of_all):
                return False
        for flags_in in (terminated, truncated, mask):
            if not apart(out, size_of_all, flags_in, total):
                return False
        if not apart(out, size_of_all, last_values, size_of_last):
            return False
    if not apart(targets, size_of_all, advantages, size_of_all):
        return False

    real = array_at(rewards, total, like).dtype.type
    g, bootstrap, decay = real(gamma), real(gamma * (1.0 - trace_lambda)), real(gamma * trace_lambda)
    rho, c, pg = real(rho_clip), real(c_clip), real(pg_rho_clip)
    cut = truncated if truncated != 0 else terminated
    full = next_values != 0
    kept = np.empty(2 * TILE + 4 * NARROW if lanes < NARROW else 0, real)
    scratch, byte = array_at(address_of(kept), kept.size, like), np.uint8(0)
    for s in range(sequences):
        start, size = bounds(cu_seqlens, total, sequences, s)
        if size == 0:
            continue
        rows, at, last = size // lanes, start * itemsize, (start + size - lanes) * itemsize
        final = next_values + last if full else last_values + s * lanes * itemsize
        x, r, v, e = log_ratios + at, rewards + at, values + at, terminated + start
        after, m = next_values + at if full else 0, mask + start if mask != 0 else 0
        o, a = targets + at, advantages + at
        if lanes == 1 and mask == 0 and decay * c <= real(1) and decay >= real(0):
            _one_lane(
                x, r, v, after if full else v + itemsize, final, e, cut + start, size, g, bootstrap, decay, rho, c, pg,
                address_of(kept), o, a, like,
            )  # fmt: skip
        elif lanes < NARROW:
            _few_lanes(
                array_at(x, size, like), array_at(r, size, like), array_at(v, size, like), array_at(after, size, like),
                array_at(final, lanes, like), array_at(e, size, byte), array_at(cut + start, size, byte),
                array_at(m, size, byte), lanes, g, bootstrap, decay, rho, c, pg, scratch,
                array_at(o, size, like), array_at(a, size, like),
            )  # fmt: skip
        elif mask == 0:
            _rows(
                x, r, v, after if full else v + lanes * itemsize, final, e, cut + start, full, rows, lanes,
                g, bootstrap, decay, rho, c, pg, o, a, like,
            )  # fmt: skip
        else:
            _masked_rows(
                x, r, v, after, final, e, cut + start, m, rows, lanes, g, bootstrap, decay, rho, c, pg, o, a, like
            )
    return True
