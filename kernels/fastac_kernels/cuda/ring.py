"""Transitions gathered from a ring on the device, with the n-step targets that `fastac_kernels.ring` makes on the CPU.

    rewards = sum_{k<m} gamma^k r_{t+k},   discounts = gamma^m,   m = min(n, rows to a cut or the newest row, inclusive)

(Sutton 1988.) One launch, where torch operations take some sixteen for every step: the threads of a draw all follow its
rows - neighbours read the same words, once - then copy the first row and the last one's end, neighbouring words each.
"""

from functools import cache, lru_cache
from typing import Any

import numpy as np
from numba import cuda, types

from fastac_kernels.cuda import launch
from fastac_kernels.cuda.launch import Kernel, pointer, power_of_two

THREADS = 256  # of a block
WARP = 32
WORD = 8  # bytes that are moved together


@cache
def gather_kernel() -> Kernel:
    """The only kernel: rows of 64-bit words, rewards summed in float64 as on the CPU."""
    narrow, wide = np.float32, np.float64

    def kernel(
        storage: Any, rewards: Any, cut: Any, serials: Any, added: Any, powers: Any, rows: Any, last_rows: Any,
        sums: Any, discounts: Any, count: Any, capacity: Any, step: Any, n: Any, words: Any, tail: Any,
    ) -> None:  # fmt: skip
        draw = cuda.blockIdx.x * cuda.blockDim.y + cuda.threadIdx.y
        if draw < count:
            serial = serials[draw]
            first = serial % capacity
            target = draw * words
            for word in range(cuda.threadIdx.x, words, cuda.blockDim.x):
                rows[target + word] = storage[first * words + word]
            if n > 1:
                newest, last, taken = added[0], first, 1
                total = wide(rewards[2 * words * first])
                while taken < n and cut[8 * words * last] == 0 and serial + step < newest:
                    serial += step
                    last += step
                    if last >= capacity:
                        last -= capacity
                    total += powers[taken] * wide(rewards[2 * words * last])
                    taken += 1
                for word in range(tail + cuda.threadIdx.x, words, cuda.blockDim.x):
                    last_rows[target + word] = storage[last * words + word]
                if cuda.threadIdx.x == 0:
                    sums[draw] = narrow(total)
                    discounts[draw] = narrow(powers[taken])

    words, reals = pointer(types.uint64), pointer(types.float32)
    kinds = (
        words, reals, pointer(types.uint8), *(pointer(types.int64),) * 2, pointer(types.float64), words, words, reals,
        reals, *(types.int64,) * 6,
    )  # fmt: skip
    return Kernel("gather_transitions float64", kernel, kinds)


@lru_cache(maxsize=1024)
def grid_of(count: int, words: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Blocks, and threads of each: those along a row, and rows."""
    across = min(power_of_two(words), WARP)
    along = THREADS // across
    return (-(-count // along), 1), (across, along)


def gather_transitions_at(
    storage: int, rewards: int, cut: int, serials: int, added: int, powers: int, rows: int, last_rows: int, sums: int,
    discounts: int, count: int, capacity: int, step: int, n: int, row_bytes: int, tail_bytes: int, stream: int,
    device: int,
) -> None:  # fmt: skip
    """Gather transitions by their serial numbers: the one with number i lies in row i modulo the capacity.

    Args:
        storage: Address of `capacity` rows.
        rewards: Address of the first row's reward, a float32 in it.
        cut: Address of the first row's byte that is not 0 where no target goes on to the next row.
        serials: Address of `count` int64, all stored.
        added: Address of one int64: rows ever added.
        powers: Address of `n + 1` float64: gamma^k.
        rows: Output: address of `count` rows, those of the draws.
        last_rows: Output: address of `count` rows, those where targets end, from byte `tail_bytes` on.
        sums: Output: address of `count` float32: the rewards' discounted sums.
        discounts: Output: address of `count` float32: gamma^m.
        count: Draws.
        capacity: Rows of storage.
        step: From a row to the next of the same environment.
        n: The most rows of a target. With 1 the other outputs are not written, and 0 stands for what they need.
        row_bytes: Bytes of a row, a multiple of 8, as all addresses of rows are.
        tail_bytes: Where the part of the last rows begins; a multiple of 8.
        stream: CUDA stream, as an integer.
        device: Its device's index.
    """
    if count == 0:
        return
    words, tail = row_bytes // WORD, tail_bytes // WORD
    grid, block = grid_of(count, words)
    arguments = (
        storage, rewards, cut, serials, added, powers, rows, last_rows, sums, discounts, count, capacity, step, n,
        words, tail,
    )  # fmt: skip
    launch.driver(gather_kernel(), grid, block, stream, device, arguments)
