"""Importance ratios, and the clipped surrogate with its gradient and diagnostics in one pass over memory.

    x[i]     = log pi_new(a[i] | s[i]) - log pi_old(a[i] | s[i]),  bounded at +-20;    rho[i] = exp(x[i])
    L        = -mean min(rho A, clip(rho, 1 - eps, 1 + eps) A)          Schulman et al. 2017, arXiv:1707.06347, eq. 7
               where A < 0, at least c A within the mean                Ye et al. 2020, arXiv:1912.09729, eq. 5
    dL/dx[i] = -rho A / n,  0 where the clip or the bound holds
    k1 = -x,  k2 = x^2 / 2,  k3 = rho - 1 - x                           Schulman 2020, "Approximating KL Divergence"

The mean is over the n elements that the mask leaves. On actions drawn from pi_old, k1 to k3 estimate KL(old || new).
The mean of rho is 1 - k1 + k3.

Blocks are summed in their own type, in vector registers, and the blocks' sums in float64.
"""

from typing import Any

import numpy as np
from numba import float64
from numpy.typing import NDArray

from fastac_kernels._jit import entry, inline, kernel
from fastac_kernels.exp import bounded_exp
from fastac_kernels.memory import NONE, address_of, array_at, widest_vectors
from fastac_kernels.recurrence import bounds

Array = NDArray[Any]

MAX_LOG_RATIO = 20.0
BLOCK = 2048


@inline
def _surrogate(
    log_probs: Array, old_log_probs: Array, advantages: Array, mask: Array | None, low: Any, high: Any, dual: Any,
    scale: Any, gradient: Array,
) -> tuple[Any, Any, Any, Any, Any]:  # fmt: skip
    """One block: its gradient, and the sums of losses, x, x^2, k3 and of ratios outside the clip's range.

    `mask` and `dual` may be None. Where the mask is not set x = 0 and A = 0, which add nothing to any sum.
    """
    widest_vectors()
    real = gradient.dtype.type
    zero, one, limit = real(0), real(1), real(MAX_LOG_RATIO)
    losses, xs, squares, k3s, outside = zero, zero, zero, zero, zero
    for i in range(gradient.size):
        a, given = advantages[i], log_probs[i] - old_log_probs[i]
        if mask is not None:
            a, given = (a, given) if mask[i] != 0 else (zero, zero)
        x = limit if given > limit else given
        x = -limit if x < -limit else x  # NaN stays
        ratio, excess = bounded_exp(x)
        clipped = high if ratio > high else ratio
        clipped = low if clipped < low else clipped
        plain, other = ratio * a, clipped * a
        is_outside = (clipped < ratio) | (clipped > ratio)
        # At equal objectives, too: rounding may hide that the ratio is outside.
        held = (is_outside & (other <= plain)) | (given > limit) | (given < -limit)
        objective = other if other < plain else plain
        if dual is not None:
            floor = dual * a
            bounded = (a < zero) & (objective < floor)
            objective = floor if bounded else objective
            held |= bounded
        gradient[i] = zero if held else plain * scale
        losses -= objective
        xs += x
        squares += x * x
        k3s += excess
        outside += one if is_outside else zero
    return losses, xs, squares, k3s, outside


@inline
def _count(mask: Array) -> int:
    widest_vectors()
    valid = 0
    for i in range(mask.size):
        valid += mask[i] != 0
    return valid


@kernel
def ppo_clip_loss_at(
    log_probs: int, old_log_probs: int, advantages: int, mask: int, loss: int, gradient: int,
    statistics: int, total: int, clip_coef: float, dual_clip: float, like: Any,
) -> None:  # fmt: skip
    """PPO's clipped loss over contiguous memory at the given addresses.

    Args:
        log_probs: Address of `total` elements of the type of `like`, as are the two after it and `gradient`.
        old_log_probs: Log probabilities under the policy that acted.
        advantages: A.
        mask: Address of `total` bytes, or 0: all count.
        loss: Output: one element.
        gradient: Output: the loss's gradient with respect to `log_probs`.
        statistics: Output: k1, k2, k3, the share of ratios outside the clip's range, the mean ratio.
        total: Elements in all.
        clip_coef: eps.
        dual_clip: c, infinite for none.
        like: A scalar of the arrays' dtype.
    """
    byte = np.uint8(0)
    out = array_at(statistics, 5, like)
    itemsize, real = out.itemsize, out.dtype.type
    count = _count(array_at(mask, total, byte)) if mask != 0 else total
    low, high, dual, scale = real(1.0 - clip_coef), real(1.0 + clip_coef), real(dual_clip), real(-1.0 / max(count, 1))
    losses, xs, squares, k3s, outside = 0.0, 0.0, 0.0, 0.0, 0.0
    for start in range(0, total, BLOCK):
        size, at = min(BLOCK, total - start), start * itemsize
        new, old = array_at(log_probs + at, size, like), array_at(old_log_probs + at, size, like)
        a, g = array_at(advantages + at, size, like), array_at(gradient + at, size, like)
        if mask == 0 and dual_clip == np.inf:
            sums = _surrogate(new, old, a, None, low, high, None, scale, g)
        elif mask == 0:
            sums = _surrogate(new, old, a, None, low, high, dual, scale, g)
        else:
            sums = _surrogate(new, old, a, array_at(mask + start, size, byte), low, high, dual, scale, g)
        losses += sums[0]
        xs += sums[1]
        squares += sums[2]
        k3s += sums[3]
        outside += sums[4]
    n = max(count, 1)
    array_at(loss, 1, like)[0] = real(losses / n)
    out[0] = real(0.0 - xs / n)
    out[1] = real(0.5 * squares / n)
    out[2] = real(k3s / n)
    out[3] = real(outside / n)
    out[4] = real(((count + xs) + k3s) / n)


@entry(lambda real: (*[real[::1]] * 3, float64, float64, *[real[::1]] * 2))
def ppo_clip_loss(
    log_probs: Array, old_log_probs: Array, advantages: Array, clip_coef: float, dual_clip: float,
    gradient: Array, numbers: Array,
) -> bool:  # fmt: skip
    """The same for flat arrays of one float type, without a mask; `numbers` are loss and statistics.

    False: sizes differ.
    """
    total = log_probs.size
    if old_log_probs.size != total or advantages.size != total or gradient.size != total or numbers.size != 6:
        return False
    out = address_of(numbers)
    ppo_clip_loss_at(
        address_of(log_probs), address_of(old_log_probs), address_of(advantages), NONE, out, address_of(gradient),
        out + numbers.itemsize, total, clip_coef, dual_clip, log_probs.dtype.type(0),
    )  # fmt: skip
    return True


@inline
def _exponentials(mask: Array, masked: bool, ratios: Array, slopes: Array) -> None:
    """Ratios of the log ratios in `slopes`; which become the ratio itself, 0 beyond the bound and under the mask."""
    real = ratios.dtype.type
    zero, limit = real(0), real(MAX_LOG_RATIO)
    for i in range(ratios.size):
        given = slopes[i]
        x = limit if given > limit else given
        ratio, _ = bounded_exp(-limit if x < -limit else x)
        dropped = masked & (mask[i] == 0)
        ratios[i] = zero if dropped else ratio
        slopes[i] = zero if dropped | (given > limit) | (given < -limit) else ratio


@inline
def _running_row(
    log_probs: Array, old_log_probs: Array, ended: Array, valid: Array, masked: bool, carry: Array, out: Array
) -> None:
    """One row of sums of log ratios from the episode's first row on; the carry goes on to the next row."""
    zero = out.dtype.type(0)
    for n in range(out.size):
        kept = masked & (valid[n] == 0)
        running = carry[n] + (log_probs[n] - old_log_probs[n])
        out[n] = zero if kept else running
        carry[n] = carry[n] if kept else (zero if ended[n] else running)


@kernel
def importance_ratio_at(
    log_probs: int, old_log_probs: int, terminated: int, truncated: int, mask: int, cu_seqlens: int,
    ratios: int, slopes: int, total: int, sequences: int, lanes: int, cumulative: bool, like: Any,
) -> None:  # fmt: skip
    """Importance ratios over contiguous memory, per step or as products from the episode's first row on.

    Args:
        log_probs: Address of `total` elements of the type of `like`, as are `old_log_probs`, `ratios` and `slopes`.
        old_log_probs: Log probabilities under the policy that acted.
        terminated: Address of `total` bytes, or 0: none is.
        truncated: Address of `total` bytes, or 0: none is.
        mask: Address of `total` bytes, or 0: all rows are in time.
        cu_seqlens: Address of `sequences + 1` int64 boundaries, or 0: all sequences are equally long.
        ratios: Output.
        slopes: Output: the ratio's derivative with respect to its log.
        total: Elements in all.
        sequences: Blocks of memory that are independent in time.
        lanes: Environments interleaved in each row of a block.
        cumulative: Products instead of single ratios.
        like: A scalar of the arrays' dtype.
    """
    if total == 0:
        return
    byte = np.uint8(0)
    out, slope = array_at(ratios, total, like), array_at(slopes, total, like)
    itemsize, real = out.itemsize, out.dtype.type
    # What is absent is never selected, but must be readable.
    valid = mask if mask != 0 else log_probs
    if cumulative:
        ends = np.zeros(lanes, np.uint8)
        carry = np.zeros(lanes, out.dtype)
        for s in range(sequences):
            start, size = bounds(cu_seqlens, total, sequences, s)
            for n in range(lanes):
                carry[n] = real(0)
            for element in range(start, start + size, lanes):
                for n in range(lanes):
                    ends[n] = 0
                for flags in (terminated, truncated):
                    if flags != 0:
                        row = array_at(flags + element, lanes, byte)
                        for n in range(lanes):
                            ends[n] |= row[n] != 0
                at = element * itemsize
                _running_row(
                    array_at(log_probs + at, lanes, like), array_at(old_log_probs + at, lanes, like), ends,
                    array_at(valid + element, lanes, byte), mask != 0, carry, array_at(slopes + at, lanes, like),
                )  # fmt: skip
    else:
        new, old = array_at(log_probs, total, like), array_at(old_log_probs, total, like)
        for i in range(total):
            slope[i] = new[i] - old[i]
    _exponentials(array_at(valid, total, byte), mask != 0, out, slope)


@kernel
def importance_ratio_backward_at(
    outer: int, slopes: int, terminated: int, truncated: int, mask: int, cu_seqlens: int,
    gradient: int, total: int, sequences: int, lanes: int, cumulative: bool, like: Any,
) -> None:  # fmt: skip
    """The gradient with respect to `log_probs`, given the one with respect to the ratios.

        g[k] = sum of outer[t] slopes[t] over the rows t >= k of the same episode (cumulative), or over t = k alone

    Arguments as in `importance_ratio_at`. `outer` is not read where the slope is 0.
    """
    byte = np.uint8(0)
    g, slope, o = array_at(gradient, total, like), array_at(slopes, total, like), array_at(outer, total, like)
    real = g.dtype.type
    zero = real(0)
    for i in range(total):
        g[i] = zero if slope[i] == zero else o[i] * slope[i]
    if not cumulative or total == 0:
        return
    # What is absent is never selected, but must be readable.
    e = array_at(terminated if terminated != 0 else outer, total, byte)
    c = array_at(truncated if truncated != 0 else outer, total, byte)
    m = array_at(mask if mask != 0 else outer, total, byte)
    carry = np.zeros(lanes, g.dtype)
    for s in range(sequences):
        start, size = bounds(cu_seqlens, total, sequences, s)
        for n in range(lanes):
            carry[n] = zero
        for row in range(start + size - lanes, start - 1, -lanes):
            for n in range(lanes):
                i = row + n
                kept = (mask != 0) & (m[i] == 0)
                ended = ((terminated != 0) & (e[i] != 0)) | ((truncated != 0) & (c[i] != 0))
                total_after = g[i] + (zero if ended else carry[n])
                carry[n] = carry[n] if kept else total_after
                g[i] = zero if kept else total_after
