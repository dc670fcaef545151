"""The limit: an estimator reads its inputs and writes its outputs once, so streaming the same bytes takes no longer.

GAE in float32, short next values: rewards, values and one flag are read, advantages and returns written, 17 bytes an
element. Full: next values and a second flag besides, 22 bytes. Discounted returns: 9 and 14 bytes.

Two ways of moving them, and the faster is the limit: `stream` takes one array after another in simple loops, and
`stream_together` adds what is read only into the first output, so that several arrays are in flight. LLVM vectorises
each; tiles of 4 to 64 KiB were no faster. Flags are read as 64-bit words, whose exclusive-or is returned so that the
reading cannot be left out. `memcpy` of the float arrays stands beside it in the results.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

Floats = NDArray[np.float32]


@njit(nogil=True)
def copy(source, target):  # type: ignore[no-untyped-def]
    for i in range(source.size):
        target[i] = source[i]


@njit(nogil=True)
def exclusive_or(arrays):  # type: ignore[no-untyped-def]
    word = np.uint64(0)
    for k in range(len(arrays)):
        words = arrays[k]
        for i in range(words.size):
            word ^= words[i]
    return word


@njit(nogil=True)
def stream(sources, targets, read_only):  # type: ignore[no-untyped-def]
    """Copy each source to its target, and read the words of the arrays that have no target."""
    for k in range(len(sources)):
        copy(sources[k], targets[k])
    return exclusive_or(read_only)


@njit(nogil=True)
def stream_together(sources, targets, extras, read_only):  # type: ignore[no-untyped-def]
    """The same, the first source together with the one to three float arrays that have no target."""
    source, target, first, last = sources[0], targets[0], extras[0], extras[-1]
    if len(extras) == 1:
        for i in range(source.size):
            target[i] = source[i] + first[i]
    elif len(extras) == 2:
        for i in range(source.size):
            target[i] = source[i] + first[i] + last[i]
    else:
        second = extras[1]
        for i in range(source.size):
            target[i] = source[i] + first[i] + second[i] + last[i]
    for k in range(1, len(sources)):
        copy(sources[k], targets[k])
    return exclusive_or(read_only)


def limit(
    sources: Sequence[Floats], targets: Sequence[Floats], extras: Sequence[Floats], flags: Sequence[NDArray[Any]]
) -> Callable[[], object]:
    """The faster call that moves these bytes.

    Args:
        sources: Arrays that are read.
        targets: As many arrays of the same size, which are written.
        extras: At most three arrays of that size, which are read and have no output of their own.
        flags: Arrays that are only read, too, sizes in bytes divisible by 8.
    """
    flat_sources, flat_targets, flat_extras = (
        tuple(array.reshape(-1) for array in arrays) for arrays in (sources, targets, extras)
    )
    flag_words = tuple(array.reshape(-1).view(np.uint64) for array in flags)
    words = (*(array.view(np.uint64) for array in flat_extras), *flag_words)

    def apart() -> object:
        return stream(flat_sources, flat_targets, words)

    if not flat_extras:
        return apart

    def together() -> object:
        return stream_together(flat_sources, flat_targets, flat_extras, flag_words)

    return min((apart, together), key=best_seconds)


def best_seconds(call: Callable[[], object]) -> float:
    """Shortest of some dozens of calls, after a first that compiles."""
    call()
    times = []
    for _ in range(40):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return min(times)


def memcpy(sources: Sequence[Floats], targets: Sequence[Floats]) -> Callable[[], object]:
    """The C library's copy of the same float arrays, through NumPy, what is read only left out."""

    def call() -> None:
        for source, target in zip(sources, targets, strict=True):
            np.copyto(target, source)

    return call
