"""The limit: an estimator reads its inputs and writes its outputs once, so streaming the same bytes takes no longer.

GAE in float32, short next values: rewards, values and one flag are read, advantages and returns written, 17 bytes an
element. Full: next values and a second flag besides, 22 bytes. Discounted returns: 9 and 14 bytes.

Simple loops, one array after another, were the fastest of those tried (tiles of 4 to 64 KiB, all arrays in one loop,
flags added into the output): LLVM vectorises each. Flags and next values are read as 64-bit words, whose exclusive-or
is returned so that the reading cannot be left out. `memcpy` of the float arrays stands beside it in the results.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numba import njit
from numpy.typing import NDArray


@njit(nogil=True)
def stream(sources, targets, read_only):  # type: ignore[no-untyped-def]
    """Copy each source to its target, and read the words of the arrays that have no target."""
    for k in range(len(sources)):
        source = sources[k]
        target = targets[k]
        for i in range(source.size):
            target[i] = source[i]
    word = np.uint64(0)
    for k in range(len(read_only)):
        words = read_only[k]
        for i in range(words.size):
            word ^= words[i]
    return word


def limit(
    sources: Sequence[NDArray[np.float32]], targets: Sequence[NDArray[np.float32]], read_only: Sequence[np.ndarray]
) -> Callable[[], object]:
    """The call that moves these bytes.

    Args:
        sources: Arrays that are read.
        targets: As many arrays of the same sizes, which are written.
        read_only: Arrays that are read and have no output of their own, sizes in bytes divisible by 8.
    """
    flat_sources = tuple(array.reshape(-1) for array in sources)
    flat_targets = tuple(array.reshape(-1) for array in targets)
    words = tuple(array.reshape(-1).view(np.uint64) for array in read_only)
    return lambda: stream(flat_sources, flat_targets, words)


def memcpy(sources: Sequence[NDArray[np.float32]], targets: Sequence[NDArray[np.float32]]) -> Callable[[], object]:
    """The C library's copy of the same float arrays, through NumPy, flags left out."""

    def call() -> None:
        for source, target in zip(sources, targets, strict=True):
            np.copyto(target, source)

    return call
