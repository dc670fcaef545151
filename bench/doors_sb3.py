"""Stable-Baselines3's doors: PPO with our rollout buffer, SAC with our replay buffer, inside real training."""

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from bench import record
from bench.doors_frame import AbsentError, Round, Row, measure

PPO = {"n_steps": 256, "batch_size": 64, "n_epochs": 10, "seed": 0, "device": "cpu"}
PPO_ENVS, SAC_STEPS, STORED, CAPACITY = 8, 300, 100_000, 1_000_000


def rows(*, smallest: bool = False) -> list[Row]:
    """Both doors, trained with Stable-Baselines3's own buffer and with ours in turn."""
    try:
        import stable_baselines3
        import torch
        from stable_baselines3.common import buffers
    except ModuleNotFoundError as error:
        raise AbsentError("stable-baselines3 is not installed: pip install stable-baselines3") from error
    from fastac.compat import sb3

    torch.set_num_threads(1)
    note = "the part by wall clock, call by call, interrupted calls counted as the median"
    versions = {name: record.version(name) for name in ("stable-baselines3", "torch")}
    rollouts = 1 if smallest else 2
    found = [
        Row(
            door="SB3 PPO",
            part="`RolloutBuffer`: `compute_returns_and_advantage`",
            step=f"a rollout of {PPO['n_steps']} x {PPO_ENVS} CartPole-v1, {PPO['n_epochs']} epochs, minibatches of 64",
            note=note,
            versions=versions,
        ),
        Row(
            door="SB3 PPO",
            part="`RolloutBuffer`: all of it (`add`, `compute_returns_and_advantage`, `get`)",
            step="the same",
            note=note,
            versions=versions,
        ),
        Row(
            door="SB3 SAC",
            part="`ReplayBuffer`: `add` and `sample`",
            step=f"one step of Pendulum-v1 and one gradient step, batch 256; {STORED:,} of {CAPACITY:,} stored",
            note=note,
            versions=versions,
        ),
    ]
    parts: list[tuple[str, ...]] = [("compute_returns_and_advantage",), ("add", "compute_returns_and_advantage", "get")]
    number = 1 if smallest else 3
    for row, names in zip(found, parts, strict=False):
        before, after = (
            ppo(stable_baselines3.PPO, kind, names, rollouts) for kind in (buffers.RolloutBuffer, sb3.RolloutBuffer)
        )
        measure(row, before, after, number)
    stored = 300 if smallest else STORED
    before, after = (
        sac(stable_baselines3.SAC, kind, 5 if smallest else SAC_STEPS, stored)
        for kind in (buffers.ReplayBuffer, sb3.ReplayBuffer)
    )
    measure(found[2], before, after, number)
    return found


class Calls:
    """Wall-clock time of single calls, by name.

    Reading the CPU's time takes longer than some of them. A call of more than 20 times the median was interrupted by
    another process, and counts as the median.
    """

    def __init__(self) -> None:
        self.times: dict[str, list[float]] = {}

    def wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        times = self.times.setdefault(name, [])

        def called(*arguments: Any, **options: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                times.append(time.perf_counter() - start)

        return called

    @property
    def seconds(self) -> float:
        total = 0.0
        for times in self.times.values():
            middle = statistics.median(times)
            total += sum(middle if x > 20 * middle else x for x in times)
        return total


def timed(kind: type, clock: Calls, names: tuple[str, ...]) -> type:
    """The class with these methods timed, `get` minibatch by minibatch."""

    def get(self: Any, batch_size: int | None = None) -> Iterator[Any]:
        minibatches = kind.get(self, batch_size)  # type: ignore[attr-defined]
        following = clock.wrap("get", lambda: next(minibatches, None))
        while (minibatch := following()) is not None:
            yield minibatch

    methods = {name: get if name == "get" else clock.wrap(name, getattr(kind, name)) for name in names}
    return type(kind.__name__, (kind,), methods)


def ppo(model: Any, kind: type, names: tuple[str, ...], rollouts: int) -> Callable[[], Round]:
    """A run of so many rollouts."""
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.logger import Logger

    def run() -> Round:
        clock = Calls()
        envs = make_vec_env("CartPole-v1", n_envs=PPO_ENVS, seed=0)
        trained = model("MlpPolicy", envs, rollout_buffer_class=timed(kind, clock, names), **PPO)
        trained.set_logger(Logger(None, []))
        start = time.process_time()
        trained.learn(rollouts * PPO["n_steps"] * PPO_ENVS)
        return Round(clock.seconds, time.process_time() - start, rollouts)

    return run


def sac(model: Any, kind: type, steps: int, stored: int) -> Callable[[], Round]:
    """A run of so many steps on a buffer that holds so many transitions from before."""
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.logger import Logger

    def run() -> Round:
        clock = Calls()
        envs = make_vec_env("Pendulum-v1", seed=0)
        trained = model(
            "MlpPolicy", envs, replay_buffer_class=timed(kind, clock, ("add", "sample")), buffer_size=CAPACITY,
            learning_starts=0, seed=0, device="cpu",
        )  # fmt: skip
        trained.set_logger(Logger(None, []))
        rng = np.random.default_rng(0)
        observations = rng.normal(size=(stored + 1, 1, 3)).astype(np.float32)
        actions, ends = rng.uniform(-1, 1, (stored, 1, 1)).astype(np.float32), np.arange(1, stored + 1) % 200 == 0
        for t in range(stored):
            trained.replay_buffer.add(
                observations[t], observations[t + 1], actions[t], np.zeros(1, np.float32), ends[t : t + 1],
                [{"TimeLimit.truncated": bool(ends[t])}],
            )  # fmt: skip
        trained.learn(5)
        for times in clock.times.values():
            times.clear()
        start = time.process_time()
        trained.learn(steps, reset_num_timesteps=False)
        return Round(clock.seconds, time.process_time() - start, steps)

    return run
