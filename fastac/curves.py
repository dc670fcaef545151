"""Learning curves of runs: read from their folders, grouped by what was trained, summarised over seeds."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastac.evaluate import interquartile_mean
from fastac.run import RunError
from fastac.specification import NOT_A_SETTING, specify

__all__ = ["Curve", "Group", "find_runs", "group", "iqm_band", "read_curve"]

GRID_POINTS = 200
WINDOW = 0.05  # of a run's steps


@dataclasses.dataclass(frozen=True)
class Curve:
    """One run's undiscounted return while it was trained, over environment steps.

    Attributes:
        algorithm: Its name.
        config: Its options, as `config.json` holds them.
        steps: (P,) float64, environment steps; a point for each row of the log in which an episode ended.
        returns: (P,) float64, the mean over the episodes that ended in the last twentieth of the run's steps.
    """

    algorithm: str
    config: dict[str, Any]
    steps: NDArray[np.float64]
    returns: NDArray[np.float64]

    @property
    def setting(self) -> dict[str, Any]:
        """The options but for the environment, the seed, and where it ran."""
        return {name: value for name, value in self.config.items() if name not in NOT_A_SETTING}


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs that differ in their seed alone.

    Attributes:
        env_id: The environment.
        label: The algorithm; where another group has the same one, with its preset and the options that it differs in.
        curves: One a seed.
    """

    env_id: str
    label: str
    curves: list[Curve]

    def band(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Returns steps, and interquartile mean, lower and upper end of its interval at each of them.

        Curves are interpolated linearly, over the steps that all of them have.
        """
        first = max(float(curve.steps[0]) for curve in self.curves)
        last = max(first, min(float(curve.steps[-1]) for curve in self.curves))
        grid = np.linspace(first, last, GRID_POINTS if last > first else 1)
        values = np.stack([np.interp(grid, curve.steps, curve.returns) for curve in self.curves])
        return (grid, *iqm_band(values))


def find_runs(paths: Iterable[str | Path]) -> list[Path]:
    """Returns the run folders among `paths` and everywhere below them, each once.

    Raises:
        RunError: there is none at or below one of them.
    """
    found: dict[Path, None] = {}
    for path in map(Path, paths):
        here = sorted(config.parent for config in path.rglob("config.json")) if path.is_dir() else []
        if not here:
            raise RunError(f"{path}: no run here, or below (a run's folder holds config.json)")
        found.update(dict.fromkeys(here))
    return list(found)


def read_curve(run: str | Path) -> Curve:
    """Reads a run's `config.json` and `progress.csv`; a last line that was cut short is left out.

    Raises:
        RunError: they are missing or damaged, or hold no return yet.
    """
    run = Path(run)
    try:
        content = json.loads((run / "config.json").read_text(encoding="utf-8"))
        algorithm, config = content["algorithm"], dict(content["config"])
        lines = (run / "progress.csv").read_text(encoding="utf-8").splitlines(keepends=True)
        rows = list(csv.DictReader(line for line in lines if line.endswith("\n")))
        points = [(row["global_step"], row["ended_episodes"], row["ended_return"]) for row in rows]
        numbers = [(float(step), float(count), float(value)) for step, count, value in points if value]
    except OSError as error:
        raise RunError(f"{run}: not a run's folder ({error.strerror}: {error.filename})") from error
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{run}: no learning curve in it ({type(error).__name__}: {error})") from error
    if not numbers:
        raise RunError(f"{run}: no episode has ended yet")
    steps, counts, means = np.array(numbers).T
    return Curve(algorithm, config, steps, trailing_means(steps, counts, means, WINDOW * steps[-1]))


def trailing_means(
    steps: NDArray[np.float64], counts: NDArray[np.float64], means: NDArray[np.float64], window: float
) -> NDArray[np.float64]:
    """Returns at each row the mean over the episodes of the rows less than `window` steps behind it, and of itself.

    Args:
        steps: (P,), ascending.
        counts: (P,), episodes that ended in the row, at least 1.
        means: (P,), their mean.
        window: In steps.

    Example:
        >>> trailing_means(np.array([10.0, 20.0, 30.0]), np.array([1.0, 3.0, 1.0]), np.array([0.0, 4.0, 8.0]), 15.0)
        array([0., 3., 5.])
    """
    first = np.searchsorted(steps, steps - window, side="right")
    first = np.minimum(first, np.arange(len(steps)))
    total = np.concatenate([[0.0], np.cumsum(counts)])
    summed = np.concatenate([[0.0], np.cumsum(counts * means)])
    return np.asarray((summed[1:] - summed[first]) / (total[1:] - total[first]))


def group(curves: Sequence[Curve]) -> list[Group]:
    """Gathers curves that differ in their seed alone, and names the groups.

    Of two with one seed, which have the same beginning, the longer is kept. Environments stand in the order of their
    names, groups in the order of their first curve.
    """
    groups: dict[tuple[str, str, str], dict[Any, Curve]] = {}
    for curve in curves:
        key = (str(curve.config.get("env_id")), curve.algorithm, json.dumps(curve.setting, sort_keys=True))
        seeds = groups.setdefault(key, {})
        seed = curve.config.get("seed")
        if seed not in seeds or curve.steps[-1] > seeds[seed].steps[-1]:
            seeds[seed] = curve
    named = []
    for (env_id, algorithm, _), seeds in groups.items():
        members = list(seeds.values())
        rivals = [next(iter(other.values())) for key, other in groups.items() if key[:2] == (env_id, algorithm)]
        named.append(Group(env_id, _label(members[0], rivals), members))
    return sorted(named, key=lambda one: one.env_id)


def _label(curve: Curve, rivals: Sequence[Curve]) -> str:
    """The algorithm; with rivals of the same one also what it was, as `fastac compare` takes it."""
    if len(rivals) == 1:
        return curve.algorithm
    labels = [specify(rival.algorithm, rival.config) for rival in rivals]
    mine = specify(curve.algorithm, curve.config)
    return f"{mine},total_timesteps={curve.config.get('total_timesteps')}" if labels.count(mine) > 1 else mine


def iqm_band(
    values: ArrayLike, *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Interquartile mean over seeds at each point, with its percentile bootstrap interval.

    Whole rows are drawn with replacement, the same ones at every point: a seed is what was sampled, and one environment
    is one stratum (Agarwal et al. 2021, "Deep reinforcement learning at the edge of the statistical precipice",
    section 4.1; `fastac.evaluate.interquartile_mean`).

    Args:
        values: (S, P), a row for each seed.
        level: Probability that an interval is to cover.
        resamples: Number of samples of S rows.
        seed: Of the draws.

    Returns:
        Mean, lower and upper ends, (P,) each; with one seed all three are its row.

    Example:
        >>> mean, low, high = iqm_band([[0.0, 5.0], [1.0, 5.0], [2.0, 5.0], [9.0, 5.0]])
        >>> mean.tolist(), low.tolist(), high.tolist()
        ([1.5, 5.0], [0.0, 5.0], [9.0, 5.0])
    """
    rows = np.asarray(values, np.float64)
    if rows.ndim != 2 or not rows.size:
        raise ValueError(f"values: got shape {rows.shape}, expected (S, P), neither of them 0")
    generator = np.random.default_rng(seed)
    at_a_time = max(1, 2_000_000 // rows.size)
    outcomes = []
    for count in [at_a_time] * (resamples // at_a_time) + [resamples % at_a_time]:
        drawn = rows[generator.integers(0, len(rows), (count, len(rows)))]
        outcomes.append(interquartile_mean(drawn, axis=1))
    ends = [(1.0 - level) / 2.0, (1.0 + level) / 2.0]
    low, high = np.quantile(np.concatenate(outcomes), ends, axis=0)
    return interquartile_mean(rows, axis=0), low, high
