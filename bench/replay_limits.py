"""Limits of replay: the same bytes from random rows of the same memory, and the same bytes streamed.

A sampled transition is 166 bytes here: two observations of 17 floats, 6 actions, a reward, two flags. Rows of 128 bytes
hold them with each next observation stored once, in the following row; `gather` copies 168 bytes from a random row on.
"""

import itertools
from collections.abc import Callable

import numpy as np
from numba import njit

from bench.replay_cases import FRAME_SHAPE, STACK, WINDOW, WINDOWS, Setting
from fastac_kernels.pointers import prefetch

ROW = 128
TRANSITION = 168
TINY_ROW = 32
AHEAD = 16  # rows, of those that a few cache lines hold; longer ones the hardware fetches
FETCHED = 64
DRAWN = 1 << 18  # rows in turn, so that none is still in a cache when it comes again


@njit(nogil=True)
def gather(memory, starts, words, target):  # type: ignore[no-untyped-def]
    """`words` 64-bit words from each start on, one after another into `target`."""
    address = memory.ctypes.data
    at = 0
    for i in range(starts.size):
        start = starts[i]
        if words <= FETCHED:
            ahead = address + 8 * starts[min(i + AHEAD, starts.size - 1)]
            for line in range(0, 8 * words + 64, 64):
                prefetch(ahead + line)
        for k in range(words):
            target[at + k] = memory[start + k]
        at += words


def limits(setting: Setting, operation: str, own: np.ndarray | None = None) -> dict[str, Callable[[], object]]:
    """Calls that move the bytes of one operation's result, or of what it adds.

    Args:
        setting: Of which buffer.
        operation: Which of its operations.
        own: Memory to gather rows from; by default new memory of the buffer's size.
    """
    count = setting.operations[operation]
    generator = np.random.default_rng(2)
    if operation.startswith("update"):
        return {}
    if operation.startswith("add"):
        source = np.ones(count * ROW // 8, np.uint64)
        target = np.zeros((max(1, setting.capacity // count), source.size), np.uint64)
        places = itertools.cycle(target)
        return {"limit_streamed": lambda: np.copyto(next(places), source)}
    if setting.kind == "frames":
        words, row, rows, batch = (
            STACK * FRAME_SHAPE[0] * FRAME_SHAPE[1] // 8,
            FRAME_SHAPE[0] * FRAME_SHAPE[1],
            setting.capacity,
            2 * count,
        )
    elif operation == "windows":
        row = TINY_ROW if setting.kind == "tiny" else ROW
        # Each environment's rows are as far from each other as there are environments.
        words, rows, batch = row // 8, setting.capacity, count
    else:
        words, row, rows, batch = TRANSITION // 8, ROW, setting.capacity, count
    target = np.zeros(batch * words, np.uint64)
    memory = np.ones(max(rows * row // 8 + words, target.size), np.uint64) if own is None else own
    draws = []
    for _ in range(DRAWN // count):
        if operation == "windows":
            first = generator.integers(0, rows - WINDOW * setting.num_envs, WINDOWS)
            chosen = (first[:, None] + np.arange(WINDOW) * setting.num_envs).ravel()
        elif setting.kind == "frames":
            chosen = np.repeat(generator.integers(0, rows - STACK - 1, count), 2)
            chosen[1::2] += 1
        else:
            chosen = generator.integers(0, rows, batch)
        draws.append(chosen * (row // 8))
    starts = itertools.cycle(draws)
    stretches = itertools.cycle(range(0, memory.size - target.size + 1, target.size))

    def random_rows() -> None:
        gather(memory, next(starts), words, target)

    def stretch() -> None:
        first = next(stretches)
        np.copyto(target, memory[first : first + target.size])

    return {"limit_gathered": random_rows, "limit_streamed": stretch}
