"""n-step returns for CUDA (Sutton and Barto 2018, equation 7.1); see `fastac_kernels.n_step`.

Every thread adds up its own row's return, forwards: rows that neighbours read, too, and the cache keeps. Where no
sequence is longer than n, nothing needs such a sum: it is a discounted return, and a scan.
"""

from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any

import numpy as np
from numba import cuda, types

from fastac_kernels.cuda import launch, returns
from fastac_kernels.cuda.launch import FLOATS, Kernel, pointer
from fastac_kernels.cuda.scan import REMEMBERED, Plan, run, shape_of
from fastac_kernels.operands import FULL, MASK, PACKED, TERMINATED, TRUNCATED

BLOCKS = 65535  # in the second dimension of a grid, at most


@cache
def n_step_kernel(real: Any, full: bool) -> Kernel:
    """The kernel of one float type and form of next values."""
    zero = real(0)

    @cuda.jit(device=True)  # type: ignore[untyped-decorator]
    def later(u: Any, length: Any, begin: Any, lanes: Any, present: Any, mask: Any) -> Any:
        """The next row in time, or `length`."""
        u += 1
        while u < length and present & MASK != 0 and mask[begin + u * lanes] == 0:
            u += 1
        return u

    def kernel(
        rewards: Any, values: Any, next_values: Any, last_values: Any, terminated: Any, truncated: Any, mask: Any,
        cu_seqlens: Any, out: Any, rows: Any, sequences: Any, lanes: Any, n: Any, present: Any, gamma: Any,
    ) -> None:  # fmt: skip
        count = sequences * lanes
        if lanes > 1:
            lane, at, width, depth = cuda.threadIdx.x, cuda.threadIdx.y, cuda.blockDim.x, cuda.blockDim.y
        else:
            lane, at, width, depth = cuda.threadIdx.y, cuda.threadIdx.x, cuda.blockDim.y, cuda.blockDim.x
        sequence = cuda.blockIdx.x * width + lane
        length, begin = 0, 0
        if sequence < count:
            if present & PACKED != 0:
                begin = cu_seqlens[sequence]
                length = cu_seqlens[sequence + 1] - begin
            else:
                length = rows
                begin = sequence if lanes > 1 else sequence * rows
                if sequences > 1 and lanes > 1:
                    begin = (sequence // lanes) * rows * lanes + sequence % lanes
        for t in range(cuda.blockIdx.y * depth + at, length, cuda.gridDim.y * depth):
            i = begin + t * lanes
            if present & MASK != 0 and mask[i] == 0:
                out[i] = zero
                continue
            result, discount, u, steps = rewards[i], gamma, t, 1
            ended, cut = False, False
            while True:
                here = begin + u * lanes
                ended = present & TERMINATED != 0 and terminated[here] != 0
                cut = ended or (present & TRUNCATED != 0 and truncated[here] != 0)
                if cut or steps >= n:
                    break
                following = later(u, length, begin, lanes, present, mask)
                if following >= length:
                    break
                u = following
                steps += 1
                result += discount * rewards[begin + u * lanes]
                discount *= gamma
            if not ended:
                if full:
                    result += discount * next_values[begin + u * lanes]
                else:
                    following = later(u, length, begin, lanes, present, mask)
                    if following < length:
                        result += discount * values[begin + following * lanes]
                    else:
                        result += discount * last_values[sequence]
            out[i] = result

    element = FLOATS[np.dtype(real)]
    floats, flags = pointer(element), pointer(types.uint8)
    kinds = (*(floats,) * 4, *(flags,) * 3, pointer(types.int64), floats, *(types.int64,) * 5, element)
    return Kernel(f"n_step_returns {'full' if full else 'short'} {element}", kernel, kinds)


@lru_cache(maxsize=REMEMBERED)
def plan(real: Any, present: int, total: int, sequences: int, lanes: int, n: int, gamma: float) -> Plan:
    """How a call is launched; see `fastac_kernels.cuda.scan.Plan`."""
    if n >= (total if present & PACKED else total // (sequences * lanes)):
        return returns.plan(real, present, total, sequences, lanes, gamma, 1.0, True)
    width, depth, tiles, _ = shape_of(total, sequences, lanes)
    rows = -(-total // (sequences * lanes))
    block, grid = (width, depth) if lanes > 1 else (depth, width), (tiles, min(-(-rows // depth), BLOCKS))
    kernel, numbers = n_step_kernel(real, present & FULL != 0), (rows, sequences, lanes, n, present, gamma)

    def launch_it(addresses: Sequence[int], stream: int, device: int) -> None:
        # Without log ratios, a second output and carries.
        launch.driver(kernel, grid, block, stream, device, (*addresses[1:10], *numbers))

    return Plan(0, launch_it)


def n_step_returns_at(
    rewards: int, values: int, next_values: int, last_values: int, terminated: int, truncated: int, mask: int,
    cu_seqlens: int, out: int, total: int, sequences: int, lanes: int, n: int, gamma: float, like: Any,
    carries: int, stream: int, device: int,
) -> None:  # fmt: skip
    """n-step returns over contiguous memory on the device; arguments as in `fastac_kernels.gae.gae_at`, then those."""
    run(
        plan, 0, rewards, values, next_values, last_values, terminated, truncated, mask, cu_seqlens, out, 0, total,
        sequences, lanes, (n, gamma), like, carries, stream, device,
    )  # fmt: skip
