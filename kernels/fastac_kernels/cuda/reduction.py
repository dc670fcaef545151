"""Sums over a block of threads, always in one order: halves are added to halves in shared memory. No atomics."""

from functools import cache
from typing import Any

from numba import cuda

THREADS = 256  # of a block, a power of two
SUMS = 5  # at once


@cache
def block_sums(threads: int) -> Any:
    """For the device: adds up `SUMS` rows of `threads` elements of shared memory; the sums are the rows' first ones."""
    rows = SUMS

    @cuda.jit(device=True)  # type: ignore[untyped-decorator]
    def add(shared: Any, thread: Any) -> None:
        cuda.syncthreads()
        half = threads // 2
        while half > 0:
            if thread < half:
                for row in range(rows):
                    shared[row * threads + thread] += shared[row * threads + thread + half]
            cuda.syncthreads()
            half //= 2

    return add
