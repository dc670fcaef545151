"""Rows gathered from storage on the device: what sampling a replay ring comes down to.

    out[i] = storage[index[i]]

Rows are moved in the widest words that divide them; neighbouring threads move neighbouring words.
"""

from functools import cache
from typing import Any

from numba import cuda, types

from fastac_kernels.cuda import launch
from fastac_kernels.cuda.launch import Kernel, pointer, power_of_two

THREADS = 256  # of a block
WARP = 32
WORDS = {8: types.uint64, 4: types.uint32, 2: types.uint16, 1: types.uint8}


@cache
def gather_kernel(width: int) -> Kernel:
    """The kernel for words of so many bytes."""

    def kernel(storage: Any, index: Any, out: Any, count: Any, words: Any, stride: Any) -> None:
        row = cuda.blockIdx.x * cuda.blockDim.y + cuda.threadIdx.y
        if row < count:
            source, target = index[row] * stride, row * words
            for word in range(cuda.threadIdx.x, words, cuda.blockDim.x):
                out[target + word] = storage[source + word]

    word = WORDS[width]
    kinds = (pointer(word), pointer(types.int64), pointer(word), types.int64, types.int64, types.int64)
    return Kernel(f"gather_rows {word}", kernel, kinds)


def gather_rows_at(
    storage: int, index: int, out: int, count: int, row_bytes: int, stride_bytes: int, stream: int, device: int
) -> None:
    """Gather rows of bytes.

    Args:
        storage: Address of the first row, or of a field within it.
        index: Address of `count` int64 row numbers, which are trusted.
        out: Output: address of `count * row_bytes` bytes.
        count: Rows to gather.
        row_bytes: Bytes of each.
        stride_bytes: From a row of storage to the next.
        stream: CUDA stream, as an integer.
        device: Its device's index.
    """
    if count == 0 or row_bytes == 0:
        return
    width = next(width for width in WORDS if not (storage | out | row_bytes | stride_bytes) % width)
    words = row_bytes // width
    across = min(power_of_two(words), WARP)
    block = (across, THREADS // across)
    arguments = (storage, index, out, count, words, stride_bytes // width)
    launch.driver(gather_kernel(width), (-(-count // block[1]), 1), block, stream, device, arguments)
