"""What the replay benchmark does: settings, operations, the transitions in the buffers, and who is right about them.

Observations carry their own number, so that every sampled batch tells whether it is right: which action and reward
belong to an observation, which observation followed it (the episode's final one at an end, not the next episode's
first), and, for n steps, what they paid.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

OBSERVATION, ACTION = 17, 6
CAPACITY = 1_000_000
FRAMES = 20_000  # capacity for images: 141 MB where each frame is stored once
FRAME_SHAPE = (84, 84)
STACK = 4
EPISODE = 1000
N_STEP, GAMMA = 3, 0.99
ALPHA, BETA = 0.6, 0.4
WINDOWS, WINDOW = 32, 64
TINY_ROWS = (10_000, 1_000_000, 100_000_000)
TABLE_ROWS = 64_000  # rows that are different; the buffer is filled by going round


@dataclass(frozen=True)
class Setting:
    """One buffer: what kind, of how many environments, how large, and what is timed on it, with transitions a call."""

    kind: str  # plain, n_step, prioritized, frames, sequences, tiny (sequences of rows of a few bytes)
    num_envs: int
    capacity: int
    operations: Mapping[str, int]

    @property
    def title(self) -> str:
        return f"{self.kind}, {self.num_envs} environment{'s' * (self.num_envs > 1)}, {self.capacity:,} rows"


SAMPLES = {"sample 256": 256, "sample 4096": 4096}
UPDATES = {"update 256": 256, "update 4096": 4096}
SETTINGS = (
    Setting("plain", 1, CAPACITY, {"add 1": 1, **SAMPLES}),
    Setting("plain", 8, CAPACITY, {"add 8": 8, "sample 256": 256}),
    Setting("plain", 64, CAPACITY, {"add 64": 64}),
    Setting("plain", 1024, CAPACITY, {"add 1024": 1024}),
    Setting("n_step", 1, CAPACITY, SAMPLES),
    Setting("prioritized", 1, CAPACITY, {"add 1": 1, **SAMPLES, **UPDATES}),
    Setting("prioritized", 64, CAPACITY, {"add 64": 64}),
    Setting("frames", 1, FRAMES, {"sample 256": 256}),
    Setting("sequences", 1, CAPACITY, {"windows": WINDOWS * WINDOW}),
    *(Setting("tiny", 100, rows, {"windows": WINDOWS * WINDOW}) for rows in TINY_ROWS),
)
SMALLEST = (
    Setting("plain", 1, 2000, {"add 1": 1, "sample 256": 256}),
    Setting("plain", 8, 8000, {"add 8": 8, "sample 256": 256}),
    Setting("n_step", 1, 2000, {"sample 256": 256}),
    Setting("prioritized", 1, 2000, {"add 1": 1, "sample 256": 256, "update 256": 256}),
    Setting("frames", 1, 2000, {"sample 256": 256}),
    Setting("sequences", 1, 2000, {"windows": WINDOWS * WINDOW}),
    Setting("tiny", 10, 20_000, {"windows": WINDOWS * WINDOW}),
)


@dataclass(frozen=True)
class Steps:
    """Steps of all environments, `(K, N, ...)`, to be added in a circle: step K - 1 ends an episode, 0 begins one."""

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    next_observations: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        return tuple(vars(self).values())

    def rows(self, count: int) -> "Steps":
        """The first `count` steps of going round, environments one after another within a step: `(count * N, ...)`."""
        circle = np.arange(count) % len(self.rewards)
        return Steps(*(array[circle].reshape(count * array.shape[1], *array.shape[2:]) for array in self.arrays))


@functools.cache
def make_steps(num_envs: int) -> Steps:
    """Episodes of `EPISODE` steps, ended by a time limit and by themselves in turn.

    Column 0 of an observation is its number, column 1 the environment's, column 2 tells an episode's first.
    """
    generator = np.random.default_rng(0)
    steps = 2 * EPISODE * max(1, TABLE_ROWS // (2 * EPISODE * num_envs))
    shape = (steps, num_envs)
    numbers = np.arange(steps)[:, None]
    observations = generator.standard_normal((*shape, OBSERVATION), np.float32)
    observations[..., 0] = numbers
    observations[..., 1] = np.arange(num_envs)
    observations[..., 2] = numbers % EPISODE == 0
    next_observations = np.roll(observations, -1, axis=0)
    next_observations[..., 0] = numbers + 1
    next_observations[..., 2] = 0
    actions = generator.standard_normal((*shape, ACTION), np.float32)
    actions[..., 0] = numbers
    ends = np.broadcast_to(numbers % EPISODE == EPISODE - 1, shape)
    odd = numbers // EPISODE % 2 == 1
    rewards = rewards_of(np.broadcast_to(numbers, shape))
    arrays = (observations, actions, rewards, next_observations, ends & odd, ends & ~odd)
    return Steps(*map(np.ascontiguousarray, arrays))


def rewards_of(numbers: np.ndarray) -> np.ndarray:
    return (numbers % 7 + 0.5).astype(np.float32)


def check(setting: Setting, read: Mapping[str, Any], *, ends: bool = True) -> None:
    """Hold a sampled batch against what was added.

    Args:
        setting: Of which buffer.
        read: `observations`, `actions`, `rewards`, `next_observations`, `terminated`, `(B, ...)`; for windows
            `observations`, `actions`, `rewards`, `(32, 64, ...)`; for frames the two observations.
        ends: Whether next observations and flags are held to be right in an episode's last n rows, too.

    Raises:
        ArithmeticError: It is another batch.
    """
    found = {name: np.asarray(value) for name, value in read.items()}
    if setting.kind == "frames":
        check_frames(found, ends=ends)
        return
    if setting.kind == "tiny":
        require("windows", np.diff(found["observations"][..., 0].astype(np.int64), axis=1) % 256, 1)
        return
    numbers = np.rint(found["observations"][..., 0]).astype(np.int64)
    n = N_STEP if setting.kind == "n_step" else 1
    length = np.minimum(n, EPISODE - numbers % EPISODE)
    paid = sum(GAMMA**k * rewards_of(numbers + k) * (k < length) for k in range(n))
    require("actions", found["actions"][..., 0], numbers)
    require("rewards", found["rewards"].reshape(numbers.shape), paid)
    if setting.kind == "sequences":
        require("windows", np.diff(numbers, axis=1), 1)
        return
    held = numbers == numbers if ends else numbers % EPISODE < EPISODE - n
    require("which observation followed", found["next_observations"][held, 0], (numbers + length)[held])
    require("observations across an episode's end", found["next_observations"][held, 2], 0)
    last = numbers + length - 1
    ended = (last % EPISODE == EPISODE - 1) & (last // EPISODE % 2 == 1)
    require("terminated", found["terminated"].reshape(numbers.shape)[held], ended[held])


def check_frames(read: Mapping[str, Any], *, ends: bool = True) -> None:
    """Each stack's frames, and the next's, are consecutive and of one episode: frame t holds t % 251 everywhere.

    Args:
        read: `observations`, `next_observations`, `(B, 4, 84, 84)`.
        ends: Whether next observations and flags are held to be right in an episode's last n rows, too.
    """
    now, following = (
        np.asarray(read[name])[..., 40, 40].astype(np.int64) for name in ("observations", "next_observations")
    )
    right = (following[:, :-1] == now[:, 1:]).all(axis=1)
    require("next stacks", right if ends else right.mean() > 0.95, True)
    step = np.diff(now, axis=1) % 251
    require("frames", (step == 1) | (step == 0), True)


def require(what: str, found: Any, expected: Any) -> None:
    if not np.size(found):
        return
    wrong = float(np.mean(np.abs(np.asarray(found, np.float64) - expected) > 1e-4))
    if wrong:
        raise ArithmeticError(f"{what}: {wrong:.2%} of a batch are wrong")
