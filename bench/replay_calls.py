"""What is timed of a replay buffer, and the transitions that every library is given in turn."""

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bench.replay_cases import EPISODE, FRAME_SHAPE, STACK, Setting, Steps, make_steps

STEPS = 250  # different ones that are added in turn; the last ends its episode

Read = Callable[[Any], Mapping[str, Any]]


class NotOfferedError(Exception):
    """The library has no such buffer or operation."""


@dataclass
class Calls:
    """What is timed, by operation and then by the caller's name; `read` turns a sampled batch into named arrays."""

    calls: dict[str, dict[str, Callable[[], Any]]] = field(default_factory=dict)
    reads: dict[str, Read] = field(default_factory=dict)
    rows: np.ndarray | None = None  # the buffer's own memory, where a second one like it would be too large
    wrong_ends: dict[str, str] = field(default_factory=dict)  # who is wrong at an episode's end, and how

    def put(self, operation: str, name: str, call: Callable[[], Any], read: Read | None = None) -> None:
        self.calls.setdefault(operation, {})[name] = call
        if read is not None:
            self.reads[name] = read


def going_on(setting: Setting, steps: Steps, prepare: Callable[..., Any]) -> Iterator[Any]:
    """Prepared steps for ever, from where the filled buffer stands: so few that they stay in a cache."""
    count = len(steps.rewards)
    start = setting.capacity // setting.num_envs % count
    prepared = []
    for t in range(start, start + STEPS):
        *arrays, truncated = (array[t % count] for array in steps.arrays)
        prepared.append(prepare(*arrays, truncated | (t == start + STEPS - 1)))
    return itertools.cycle(prepared)


def batch_sizes(setting: Setting, kind: str) -> list[tuple[str, int]]:
    return [(name, size) for name, size in setting.operations.items() if name.startswith(kind)]


def filling(setting: Setting) -> Steps:
    return make_steps(setting.num_envs).rows(setting.capacity // setting.num_envs)


def frames(setting: Setting) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """One episode after another: its stacks `(EPISODE + 1, STACK, 84, 84)` and frame numbers; frame t is t % 251."""
    for start in range(0, setting.capacity, EPISODE):
        numbers = np.arange(start, start + EPISODE + 1)
        stacked = np.maximum(numbers[:, None] + np.arange(1 - STACK, 1), start)
        values = (stacked % 251).astype(np.uint8)
        yield np.broadcast_to(values[..., None, None], (*values.shape, *FRAME_SHAPE)), numbers


def frame_ends() -> np.ndarray:
    ends = np.zeros(EPISODE, np.bool_)
    ends[-1] = True
    return ends


def drawn_pairs(indices: list[Any], dtype: Any = np.float64) -> list[tuple[Any, np.ndarray]]:
    """Sampled indices and new priorities for them."""
    generator = np.random.default_rng(1)
    return [(i, (generator.random(len(i)) + 0.1).astype(dtype)) for i in indices]


def drawn(indices: list[Any], dtype: Any = np.float64) -> Iterator[tuple[Any, np.ndarray]]:
    """The same, in turn for ever."""
    return itertools.cycle(drawn_pairs(indices, dtype))
