"""Bytes per transition of a buffer of Atari's stacked frames, as allocated, and the least there can be.

Each buffer is made at a smaller capacity, filled, and what it allocated is divided by its capacity: everything in it
grows in proportion, so that a million transitions take a million times as much. Allocations are those that tracemalloc
sees, which NumPy tells it of; pages that are allocated and not yet touched count.
"""

import tracemalloc
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from bench.replay_array_peers import sb3_frames, tianshou_frames
from bench.replay_calls import frames
from bench.replay_cases import FRAME_SHAPE, STACK, Setting
from bench.replay_compiled_peers import cpprb_frames

SETTING = Setting("frames", 1, 4_000, {})
LEAST = FRAME_SHAPE[0] * FRAME_SHAPE[1] + 1 + 4 + 1  # a frame, one of 18 actions, a float32 reward, two flags


def make_frames(setting: Setting) -> Any:
    """Our buffer of images, full."""
    from gymnasium import spaces

    from fastac.buffers import ReplayBuffer

    buffer = ReplayBuffer(
        setting.capacity, spaces.Box(0, 255, (STACK, 84, 84), np.uint8), spaces.Discrete(6), frame_stack=STACK
    )
    for stacks, numbers in frames(setting):
        stacks = np.ascontiguousarray(stacks)
        for t, number in enumerate(numbers[:-1]):
            last = t == len(numbers) - 2
            buffer.add(stacks[t], number, 0.0, stacks[t + 1], False, last)
    return buffer


def fastac() -> Any:
    return make_frames(SETTING)


def cpprb() -> Any:
    import cpprb

    return cpprb_frames(SETTING, cpprb)


MAKERS: dict[str, Callable[[], Any]] = {
    "fastac": fastac,
    "cpprb": cpprb,
    "tianshou": lambda: tianshou_frames(SETTING),
    "sb3_optimized": lambda: sb3_frames(SETTING, optimize_memory_usage=True),
    "sb3": lambda: sb3_frames(SETTING, optimize_memory_usage=False),
}


def measure(absent: Mapping[str, str]) -> dict[str, Any]:
    """Bytes per transition of everyone who is there."""
    sizes: dict[str, float] = {}
    for name, make in MAKERS.items():
        if name.split("_")[0] in absent:
            continue
        make()  # what is imported and compiled now is not counted
        tracemalloc.start()
        buffer = make()
        sizes[name] = tracemalloc.get_traced_memory()[0] / SETTING.capacity
        tracemalloc.stop()
        del buffer
    return {"capacity": SETTING.capacity, "bytes_per_transition": sizes, "least": LEAST}
