"""`fastac compare`: algorithms x environments x seeds, several at once, resumable, evaluated and drawn side by side.

Each run is a process of its own and an ordinary run folder. What is finished is skipped, what was interrupted goes on
from its checkpoint, so the same command again does what is left.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from fastac import checkpoint
from fastac.algorithms import FOR_BOX_ACTIONS, config_from_dict, resume
from fastac.curves import Group, read_curve
from fastac.env_base import make_env
from fastac.evaluate import bootstrap_interval, evaluate, interquartile_mean
from fastac.plot import Outcome, draw
from fastac.policy import CHECKPOINT, Policy
from fastac.processes import Job, run_jobs
from fastac.run import RunError, check_options, versions
from fastac.specification import configure

__all__ = ["Compare", "Task", "compare"]

EVALUATION = "evaluation.json"


@dataclasses.dataclass(frozen=True)
class Compare:
    """Train algorithms x environments x seeds, evaluate each from fixed starts, and draw them side by side.

    What is finished is skipped and what was interrupted goes on: the same command again does what is left. Ctrl-C saves
    every run.
    """

    algorithms: tuple[str, ...]
    """NAME, NAME:PRESET or NAME:PRESET,OPTION=VALUE,... as in ppo:sb3-zoo,gamma=0.9; PRESET may be left out."""
    env_id: tuple[str, ...] = ("CartPole-v1",)
    """Gymnasium's ids; `module:Id` imports the module first."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Of each algorithm in each environment."""
    total_timesteps: int | None = None
    """Environment steps of every run; None: as many as its preset says."""
    out: Path = Path("runs/compare")
    """Where the runs, results.json and comparison.png go."""
    jobs: int | None = None
    """Runs at a time; None: one a core."""
    eval_episodes: int = 100
    """Episodes that each trained policy is evaluated on; episode k begins with `env.reset(seed=eval_seed + k)`."""
    eval_seed: int = 10_000
    """Of the first start."""


@dataclasses.dataclass(frozen=True)
class Task:
    """One run of the matrix."""

    label: str
    """The algorithm as it was asked for."""
    algorithm: str
    """A module of `fastac.algorithms`."""
    config: Any
    """Its Config."""
    run_dir: Path
    """Its folder."""
    eval_episodes: int
    """How it is evaluated: so many episodes,"""
    eval_seed: int
    """from this start on."""

    def evaluation(self) -> dict[str, Any] | None:
        """Returns the finished run's evaluation; None where something is left to do.

        Raises:
            RunError: the folder holds a run with other options.
        """
        try:
            content = json.loads((self.run_dir / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        wanted = json.loads(json.dumps(dataclasses.asdict(self.config)))
        # An option that the run's version did not have yet is at its default.
        defaults = json.loads(json.dumps(dataclasses.asdict(type(self.config)())))
        found = {**defaults, **content.get("config", {})}
        if content.get("algorithm") != self.algorithm or found != wanted:
            differing = [name for name in {**wanted, **found} if wanted.get(name) != found.get(name)]
            options = ", ".join(f"{name} {found.get(name)}, now {wanted.get(name)}" for name in differing)
            raise RunError(f"{self.run_dir}: holds a run with other options ({options}); take another --out")
        try:
            evaluation: dict[str, Any] = json.loads((self.run_dir / EVALUATION).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        same = len(evaluation["returns"]) == self.eval_episodes and evaluation["seed"] == self.eval_seed
        return evaluation if same else None

    def run(self) -> int:
        """Trains or goes on, then evaluates; returns the exit code. Called in a process of its own."""
        path = self.run_dir / CHECKPOINT
        if not path.exists():
            if (self.run_dir / "config.json").exists():
                shutil.rmtree(self.run_dir)  # it ended before it was first saved
            module = importlib.import_module(f"fastac.algorithms.{self.algorithm}")
            module.train(self.config, run_dir=self.run_dir)
        elif checkpoint.load(path)["global_step"] < self.config.total_timesteps:
            resume(self.run_dir)
        state = checkpoint.load(path)
        if state["global_step"] < self.config.total_timesteps:
            return 128 + signal.SIGINT
        policy = Policy.from_state_dict(state["policy"])
        outcome = evaluate(policy, self.config.env_id, episodes=self.eval_episodes, seed=self.eval_seed)
        content = {
            "env_id": outcome.env_id,
            "global_step": state["global_step"],
            "training_seconds": state["run"]["elapsed_seconds"],
            "seed": outcome.seed,
            "mean_return": outcome.mean,
            "returns": outcome.returns.tolist(),
            "lengths": outcome.lengths.tolist(),
        }
        write_json(self.run_dir / EVALUATION, content)
        return 0


def compare(options: Compare) -> int:
    """Runs what is left of the matrix, then writes `results.json` and `comparison.png` and prints the table.

    Returns:
        0; 1 where a run failed; 130 where it was interrupted.

    Raises:
        RunError: an option that cannot be, or a folder with other runs in it.
        fastac.envs.EnvError: an environment that cannot be made.
    """
    tasks = matrix(options)
    left = [task for task in tasks if task.evaluation() is None]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{options.out}: cannot write ({error.strerror})") from error
    jobs = [job(task) for task in left]
    failed, interrupted = run_jobs(jobs, min(options.jobs or cores, len(jobs)), already=len(tasks) - len(left))
    for name, reason in failed:
        sys.stderr.write(f"{name}: {reason}\n")
    if interrupted:
        sys.stderr.write("Saved. The same command again goes on.\n")
        return 128 + signal.SIGINT
    summarize(options, tasks)
    return 1 if failed else 0


def matrix(options: Compare) -> list[Task]:
    """Returns every run: algorithms x environments x seeds.

    Raises:
        RunError, fastac.envs.EnvError: as `compare` says.
    """
    for name in ("algorithms", "env_id", "seeds"):
        given = getattr(options, name)
        if not given or len(set(given)) < len(given):
            raise RunError(f"{name}: got {' '.join(map(str, given)) or 'none'}, expected at least one, each once")
    check_options(options, at_least_one=("jobs", "eval_episodes"))
    if options.eval_seed < 0:
        raise RunError(f"eval_seed: got {options.eval_seed}, expected at least 0")
    tasks = []
    for env_id in options.env_id:
        env = make_env(env_id)
        discrete = isinstance(env.action_space, gymnasium.spaces.Discrete)
        env.close()
        for label in options.algorithms:
            algorithm, config = configure(label, env_id)
            if discrete and algorithm in FOR_BOX_ACTIONS:
                raise RunError(f"algorithms: got {label!r} for {env_id}, whose actions are discrete, expected a Box")
            if options.total_timesteps is not None:
                config = dataclasses.replace(config, total_timesteps=options.total_timesteps)
            for seed in options.seeds:
                dataclasses.replace(config, seed=seed).check()
                folder = "__".join(re.sub(r"[^\w.=-]+", "-", part) for part in (env_id, label, str(seed)))
                one = dataclasses.replace(config, seed=seed)
                run_dir = options.out / folder
                tasks.append(Task(label, algorithm, one, run_dir, options.eval_episodes, options.eval_seed))
    if len({task.run_dir for task in tasks}) < len(tasks):
        raise RunError("algorithms: two of them would share a folder")
    return tasks


def job(task: Task) -> Job:
    """Returns the process that runs a task, told by one line of JSON."""
    content = {**dataclasses.asdict(task), "run_dir": str(task.run_dir)}
    return Job(
        name=f"{task.config.env_id} {task.label} seed {task.config.seed}",
        arguments=[sys.executable, "-m", "fastac.compare", json.dumps(content)],
        run_dir=task.run_dir,
        total_timesteps=task.config.total_timesteps,
    )


def summarize(options: Compare, tasks: Sequence[Task]) -> None:
    """Writes `results.json` and `comparison.png`, and prints a table, of what is finished."""
    outcomes, groups, records = [], [], []
    for env_id in options.env_id:
        for label in options.algorithms:
            members = [task for task in tasks if task.label == label and task.config.env_id == env_id]
            found = [(task, task.evaluation()) for task in members]
            done = [(task, evaluation) for task, evaluation in found if evaluation is not None]
            if not done:
                continue
            means = [evaluation["mean_return"] for _, evaluation in done]
            middle, interval = float(interquartile_mean(means)), bootstrap_interval(means, interquartile_mean)
            outcomes.append(Outcome(env_id, label, means, middle, interval))
            curves = []
            for task, _ in done:
                with contextlib.suppress(RunError):  # no episode ended while training
                    curves.append(read_curve(task.run_dir))
            curve = None
            if curves:
                groups.append(Group(env_id, label, curves))
                names = ("global_step", "interquartile_mean", "lower", "upper")
                curve = {
                    name: np.round(values, 2).tolist() for name, values in zip(names, groups[-1].band(), strict=True)
                }
            config = {**dataclasses.asdict(done[0][0].config), "seed": None}
            runs = [
                {"seed": task.config.seed, "run": task.run_dir.name, **without_lengths(evaluation)}
                for task, evaluation in done
            ]
            records.append(
                {
                    "env_id": env_id,
                    "label": label,
                    "algorithm": done[0][0].algorithm,
                    "config": config,
                    "interquartile_mean": middle,
                    "interval": list(interval),
                    "missing_seeds": [task.config.seed for task, evaluation in found if evaluation is None],
                    "runs": runs,
                    "curve": curve,
                }
            )
    if not records:
        return
    starts = f"start k by reset(seed={options.eval_seed} + k)"
    content = {
        "evaluation": f"final weights, mode action, {options.eval_episodes} episodes, {starts}",
        "interval": "95 % percentile bootstrap over seeds of the interquartile mean of the seeds' mean returns",
        "curve": "return while training: the episodes of the last twentieth of the steps; the same mean and interval",
        "versions": versions(),
        "results": records,
    }
    write_json(options.out / "results.json", content)
    draw(options.out / "comparison.png", groups, outcomes)
    sys.stdout.write(table(outcomes, options.eval_episodes))
    sys.stdout.write(f"{options.out / 'results.json'}\n{options.out / 'comparison.png'}\n")


def without_lengths(evaluation: dict[str, Any]) -> dict[str, Any]:
    """Returns an evaluation as `results.json` holds it."""
    return {name: evaluation[name] for name in ("global_step", "training_seconds", "mean_return", "returns")}


def table(outcomes: Sequence[Outcome], episodes: int) -> str:
    """Returns the outcomes as text, a block for each environment.

    Example:
        >>> print(table([Outcome("CartPole-v1", "ppo", [490.0, 500.0], 495.0, (490.0, 500.0))], 100), end="")
        CartPole-v1: mean return of 100 fixed starts, over seeds
          algorithm  interquartile mean  95 % interval    mean  worst  seeds
          ppo                     495.0  [490.0, 500.0]  495.0  490.0      2
    """
    lines: list[str] = []
    for env_id in dict.fromkeys(outcome.env_id for outcome in outcomes):
        rows = [["algorithm", "interquartile mean", "95 % interval", "mean", "worst", "seeds"]]
        for one in (outcome for outcome in outcomes if outcome.env_id == env_id):
            low, high = one.interval
            mean = sum(one.means) / len(one.means)
            numbers = [f"{one.interquartile_mean:.1f}", f"[{low:.1f}, {high:.1f}]", f"{mean:.1f}"]
            rows.append([one.label, *numbers, f"{min(one.means):.1f}", str(len(one.means))])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines.append(f"{env_id}: mean return of {episodes} fixed starts, over seeds")
        for row in rows:
            cells = [cell.ljust(width) if i in (0, 2) else cell.rjust(width) for i, (cell, width) in
                     enumerate(zip(row, widths, strict=True))]  # fmt: skip
            lines.append(("  " + "  ".join(cells)).rstrip())
    return "\n".join(lines) + "\n"


def write_json(path: Path, content: Any) -> None:
    """Writes a file whole or not at all."""
    partial = path.with_suffix(".tmp")
    partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, path)


def main(arguments: Sequence[str]) -> int:
    """Runs the task that `job` wrote; the last line on stderr says what went wrong."""
    content = json.loads(arguments[0])
    module = importlib.import_module(f"fastac.algorithms.{content['algorithm']}")
    config = config_from_dict(module.Config, content.pop("config"))
    try:
        return Task(**{**content, "config": config, "run_dir": Path(content["run_dir"])}).run()
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
