"""Learning results: fastac and SB3 at equal hyperparameters, seeds fixed beforehand.

Final weights, mode action, 100 episodes whose k-th start is `reset(seed=10_000 + k)`. One record a seed; a seed that is
recorded already is skipped, so an interrupted run goes on where it stopped; `--again` runs it anew.

    python -m bench learning --library sb3 --setting cleanrl --seeds 0-9
    python -m bench learning --library fastac --setting all --again
"""

import math
import time
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np

from bench import record
from bench.learning_tasks import TASKS, Task

EPISODES = 100
FIRST_START = 10_000
CURVE_POINTS = 50


def evaluate(act: Callable[[np.ndarray], np.ndarray], env_id: str = "CartPole-v1") -> list[float]:
    """Undiscounted returns of the fixed starts, all environments stepped together."""
    envs = [gymnasium.make(env_id) for _ in range(EPISODES)]
    observations = np.stack([env.reset(seed=FIRST_START + k)[0] for k, env in enumerate(envs)])
    returns = np.zeros(EPISODES)
    running = np.arange(EPISODES)
    while len(running):
        actions = act(observations[running])
        going = []
        for k, action in zip(running, actions, strict=True):
            observations[k], reward, terminated, truncated, _ = envs[k].step(action)
            returns[k] += float(reward)
            if not (terminated or truncated):
                going.append(k)
        running = np.array(going, dtype=int)
    return returns.tolist()


def run_sb3(task: Task, seed: int) -> dict[str, Any]:
    from stable_baselines3.common.callbacks import BaseCallback

    class Curve(BaseCallback):
        """Mean return of the last 100 training episodes, at a few dozen points."""

        def _on_training_start(self) -> None:
            self.points: list[list[float]] = []

        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            if due(self.num_timesteps, self.points, task):
                recent = [info["r"] for info in self.model.ep_info_buffer]
                if recent:
                    self.points.append([self.num_timesteps, round(float(np.mean(recent)), 1)])

    model, curve = task.sb3(seed), Curve()
    cpu, wall = time.process_time(), time.perf_counter()
    model.learn(task.steps, callback=curve)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    returns = evaluate(lambda observations: model.predict(observations, deterministic=True)[0], task.env_id)
    return summary(seed, int(model.num_timesteps), cpu, wall, returns, curve.points)


def run_fastac(task: Task, seed: int) -> dict[str, Any]:
    points: list[list[float]] = []

    def curve(progress: Any) -> None:
        if not math.isnan(progress.episode_return) and due(progress.global_step, points, task):
            points.append([progress.global_step, round(progress.episode_return, 1)])

    cpu, wall = time.process_time(), time.perf_counter()
    result = task.fastac(seed, curve)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return summary(seed, result.global_step, cpu, wall, evaluate(result.policy.act, task.env_id), points)


def due(step: int, points: list[list[float]], task: Task) -> bool:
    return step >= (len(points) + 1) * task.steps / CURVE_POINTS


def summary(
    seed: int, steps: int, cpu: float, wall: float, returns: list[float], curve: list[list[float]]
) -> dict[str, Any]:
    return {
        "seed": seed,
        "steps": steps,
        "cpu_seconds": round(cpu, 3),
        "wall_seconds": round(wall, 3),
        "steps_per_cpu_second": round(steps / cpu, 1),
        "mean_return": float(np.mean(returns)),
        "std_return": float(np.std(returns)),
        "returns": returns,
        "training_curve": curve,
        "versions": {name: record.version(name) for name in ("torch", "gymnasium", "stable-baselines3", "numba")},
        "fastac_commit": record.commit(),
    }


RUNNERS: dict[str, Callable[[Task, int], dict[str, Any]]] = {"fastac": run_fastac, "sb3": run_sb3}


def main(library: str, name: str, seeds: list[int], *, again: bool = False) -> None:
    task = TASKS[name]
    path = record.RESULTS / "learning" / f"{library}-{name}.json"
    runs: list[dict[str, Any]] = record.read(path)["runs"] if path.exists() else []
    for seed in seeds:
        if not again and any(run["seed"] == seed for run in runs):
            print(f"{library} {name} seed {seed}: recorded already", flush=True)
            continue
        run = RUNNERS[library](task, seed)
        runs = sorted([*(other for other in runs if other["seed"] != seed), run], key=lambda item: item["seed"])
        result = {
            "library": library,
            "env_id": task.env_id,
            "setting": name,
            "hyperparameters": task.hyperparameters,
            "mapping": task.mapping,
            "evaluation": f"final weights, mode action, {EPISODES} episodes, start k by reset(seed={FIRST_START} + k)",
            "machine": record.machine(),
            "runs": runs,
        }
        record.write(path, result)
        print(
            f"{library} {name} seed {seed}: return {run['mean_return']:.1f} +- {run['std_return']:.1f}, "
            f"{run['steps_per_cpu_second']:.0f} steps per CPU-second",
            flush=True,
        )
