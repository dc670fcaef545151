"""PPO's clipped loss for CUDA, with its gradient and diagnostics (Schulman et al. 2017, equation 7; Ye et al. 2020).

As `fastac_kernels.ratio` has it: x = log pi_new - log pi_old, bounded at +-20; ratio = exp(x);

    loss = -mean min(ratio * A, clip(ratio, 1 - eps, 1 + eps) * A), at least c * A where A < 0

Memory is read once, by blocks that each leave their own sums; one more block adds those up. With a mask, a launch
before these counts what counts, since the gradient is divided by it. Where one block is enough it does all of that, in
one launch. How many blocks there are depends on the number of elements alone.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np
from numba import cuda, types

from fastac_kernels.cuda import launch, reduction
from fastac_kernels.cuda.launch import FLOATS, Kernel, pointer
from fastac_kernels.cuda.reduction import SUMS

MAX_LOG_RATIO = 20.0
EACH = 4  # elements of a thread before there are more blocks
BLOCKS = 512  # at most
REMEMBERED = 1024  # plans
TERMS = 17  # of exp's series, enough for float64 where |x| < 1/2


def blocks_of(total: int) -> int:
    """Blocks that read `total` elements."""
    return min(-(-total // (EACH * reduction.THREADS)), BLOCKS)


def partials_size(total: int) -> int:
    """Elements of memory for the blocks' sums: `SUMS` for each, and its count; none for a block alone."""
    blocks = blocks_of(total)
    return (SUMS + 1) * blocks if blocks > 1 else 0


@cache
def count_kernel(real: Any, threads: int) -> Kernel:
    """How many elements count, block by block: behind the sums in `partials`."""
    add, size = reduction.block_sums(threads), SUMS * threads

    def kernel(mask: Any, partials: Any, total: Any) -> None:
        shared = cuda.shared.array(size, types.int64)
        thread = cuda.threadIdx.x
        count = 0
        for i in range(cuda.blockIdx.x * threads + thread, total, cuda.gridDim.x * threads):
            if mask[i] != 0:
                count += 1
        for row in range(SUMS):
            shared[row * threads + thread] = count if row == 0 else 0
        add(shared, thread)
        if thread == 0:
            partials[SUMS * cuda.gridDim.x + cuda.blockIdx.x] = real(shared[0])

    element = FLOATS[np.dtype(real)]
    return Kernel(f"ppo_clip_loss count {element}", kernel, (pointer(types.uint8), pointer(element), types.int64))


@cache
def summing(threads: int) -> Any:
    """For the device: the threads' counts added up, for all threads of a block."""
    add = reduction.block_sums(threads)

    @cuda.jit(device=True)  # type: ignore[untyped-decorator]
    def summed(count: Any, whole: Any, thread: Any) -> Any:
        for row in range(SUMS):
            whole[row * threads + thread] = count if row == 0 else 0
        add(whole, thread)
        return whole[0]

    return summed


@cache
def finishing(real: Any) -> Any:
    """For the device: what is made of all sums, and of how many elements count."""
    zero, half = real(0), real(0.5)

    @cuda.jit(device=True)  # type: ignore[untyped-decorator]
    def finish(
        loss: Any, statistics: Any, losses: Any, xs: Any, squares: Any, excesses: Any, outside: Any, count: Any
    ) -> None:
        n = real(max(count, 1))
        loss[0] = losses / n
        statistics[0] = zero - xs / n
        statistics[1] = half * squares / n
        statistics[2] = excesses / n
        statistics[3] = outside / n
        statistics[4] = (real(count) / n + xs / n) + excesses / n

    return finish


@cache
def loss_kernel(real: Any, threads: int) -> Kernel:
    """The gradient, and every block's sums: of losses, x, x^2, exp(x) - 1 - x, and ratios outside the clip's range.

    A block alone counts what counts itself, and finishes.
    """
    add, summed, finish = reduction.block_sums(threads), summing(threads), finishing(real)
    size, terms = SUMS * threads, TERMS
    zero, one, half, limit = real(0), real(1), real(0.5), real(MAX_LOG_RATIO)

    @cuda.jit(device=True)  # type: ignore[untyped-decorator]
    def excess(x: Any) -> Any:
        """exp(x) - 1 - x: its series close to 0, where subtracting would leave nothing but rounding."""
        if x > half or x < -half or x != x:
            return real(math.expm1(x)) - x
        tail = one
        for k in range(terms, 2, -1):
            tail = one + x * tail * (one / real(k))
        return half * x * x * tail

    def kernel(
        log_probs: Any, old_log_probs: Any, advantages: Any, mask: Any, loss: Any, gradient: Any, statistics: Any,
        partials: Any, total: Any, masked: Any, low: Any, high: Any, dual: Any,
    ) -> None:  # fmt: skip
        shared = cuda.shared.array(size, real)
        whole = cuda.shared.array(size, types.int64)
        thread, blocks = cuda.threadIdx.x, cuda.gridDim.x
        count = total
        if masked != 0:
            count = 0
            if blocks == 1:
                for i in range(thread, total, threads):
                    if mask[i] != 0:
                        count += 1
            else:
                for block in range(thread, blocks, threads):
                    count += int(partials[SUMS * blocks + block])
            count = summed(count, whole, thread)
        scale = -one / real(max(count, 1))
        losses, xs, squares, excesses, outside = zero, zero, zero, zero, zero
        for i in range(cuda.blockIdx.x * threads + thread, total, blocks * threads):
            if masked != 0 and mask[i] == 0:
                gradient[i] = zero
                continue
            a = advantages[i]
            given = log_probs[i] - old_log_probs[i]
            x = limit if given > limit else given
            x = -limit if x < -limit else x  # NaN stays
            ratio = real(math.exp(x))
            clipped = high if ratio > high else ratio
            clipped = low if clipped < low else clipped
            plain, other = ratio * a, clipped * a
            is_outside = clipped < ratio or clipped > ratio
            # At equal objectives, too: rounding may hide that the ratio is outside.
            held = (is_outside and other <= plain) or given > limit or given < -limit
            objective = other if other < plain else plain
            floor = dual * a
            if a < zero and objective < floor:
                objective = floor
                held = True
            gradient[i] = zero if held else plain * scale
            losses -= objective
            xs += x
            squares += x * x
            excesses += excess(x)
            outside += one if is_outside else zero
        shared[thread] = losses
        shared[threads + thread] = xs
        shared[2 * threads + thread] = squares
        shared[3 * threads + thread] = excesses
        shared[4 * threads + thread] = outside
        add(shared, thread)
        if thread == 0 and blocks == 1:
            finish(
                loss, statistics, shared[0], shared[threads], shared[2 * threads], shared[3 * threads],
                shared[4 * threads], count,
            )  # fmt: skip
        elif thread == 0:
            for row in range(SUMS):
                partials[row * blocks + cuda.blockIdx.x] = shared[row * threads]

    element = FLOATS[np.dtype(real)]
    floats = pointer(element)
    kinds = (
        *(floats,) * 3, pointer(types.uint8), *(floats,) * 4, types.int64, types.int64, element, element, element
    )  # fmt: skip
    return Kernel(f"ppo_clip_loss {element}", kernel, kinds)


@cache
def finish_kernel(real: Any, threads: int) -> Kernel:
    """One block: the blocks' sums added up, and divided by how many elements count."""
    add, summed, finish, size = reduction.block_sums(threads), summing(threads), finishing(real), SUMS * threads
    zero = real(0)

    def kernel(loss: Any, statistics: Any, partials: Any, total: Any, blocks: Any, masked: Any) -> None:
        shared = cuda.shared.array(size, real)
        whole = cuda.shared.array(size, types.int64)
        thread = cuda.threadIdx.x
        count = total
        if masked != 0:
            count = 0
            for block in range(thread, blocks, threads):
                count += int(partials[SUMS * blocks + block])
            count = summed(count, whole, thread)
        for row in range(SUMS):
            value = zero
            for block in range(thread, blocks, threads):
                value += partials[row * blocks + block]
            shared[row * threads + thread] = value
        add(shared, thread)
        if thread == 0:
            finish(
                loss, statistics, shared[0], shared[threads], shared[2 * threads], shared[3 * threads],
                shared[4 * threads], count,
            )  # fmt: skip

    element = FLOATS[np.dtype(real)]
    floats = pointer(element)
    return Kernel(f"ppo_clip_loss finish {element}", kernel, (*(floats,) * 3, *(types.int64,) * 3))


class Plan(NamedTuple):
    """How a call is launched: everything about it but addresses.

    Attributes:
        partials: Elements of memory to work in.
        launch: Takes the addresses - those of `ppo_clip_loss_at`, then partials - a stream and a device.
    """

    partials: int
    launch: Callable[[Sequence[int], int, int], None]


@lru_cache(maxsize=REMEMBERED)
def plan(real: Any, total: int, masked: bool, clip_coef: float, dual_clip: float) -> Plan:
    """How the loss of so many elements is launched."""
    threads, blocks, low, high = reduction.THREADS, blocks_of(total), 1.0 - clip_coef, 1.0 + clip_coef
    count, main, finish = count_kernel(real, threads), loss_kernel(real, threads), finish_kernel(real, threads)
    grid, block = (blocks, 1), (threads, 1)

    numbers, ends = (total, int(masked), low, high, dual_clip), (total, blocks, int(masked))
    counts = masked and blocks > 1

    def launch_all(addresses: Sequence[int], stream: int, device: int) -> None:
        mask, loss, statistics, partials = addresses[3], addresses[4], addresses[6], addresses[7]
        if counts:
            launch.driver(count, grid, block, stream, device, (mask, partials, total))
        if blocks > 0:
            launch.driver(main, grid, block, stream, device, (*addresses, *numbers))
        if blocks != 1:
            launch.driver(finish, (1, 1), block, stream, device, (loss, statistics, partials, *ends))

    return Plan(partials_size(total), launch_all)


def ppo_clip_loss_at(
    log_probs: int, old_log_probs: int, advantages: int, mask: int, loss: int, gradient: int, statistics: int,
    total: int, clip_coef: float, dual_clip: float, like: Any, partials: int, stream: int, device: int,
) -> None:  # fmt: skip
    """PPO's clipped loss over contiguous memory on the device: `fastac_kernels.ratio.ppo_clip_loss_at`, launched.

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
        partials: Address of `partials_size(total)` elements to work in, 0 where that is 0.
        stream: CUDA stream, as an integer.
        device: Its device's index.
    """
    addresses = (log_probs, old_log_probs, advantages, mask, loss, gradient, statistics, partials)
    real: Any = type(like)
    plan(real, total, mask != 0, clip_coef, dual_clip).launch(addresses, stream, device)
