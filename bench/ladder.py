"""What each rung of the ladder learns: `fastac compare` row by row, seeds fixed beforehand.

Final weights, mode action, 100 episodes whose k-th start is `reset(seed=10_000 + k)`. Finished runs are kept in the
working folder and skipped, so an interrupted measurement goes on where it stopped; what is recorded holds every seed's
returns, options and seconds.

    python -m bench ladder
"""

import json
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

from bench import one_core, record

RESULT = record.RESULTS / "ladder.json"


class Row(NamedTuple):
    """One row: what is run, where, and what published results ask of it."""

    name: str
    algorithm: str  # as `fastac compare --algorithms` takes it
    env_id: str
    total_timesteps: int
    statistic: str  # "median", "mean" or "interquartile mean"
    wanted: float | None
    seeds: tuple[int, ...] | None = None  # None: those of the command line


MIDDLE = "interquartile mean"
ROWS = (
    Row("REINFORCE", "reinforce", "CartPole-v1", 100_000, MIDDLE, 195.0),
    Row("20 steps a batch, no bound", "importance_weighted:unconstrained", "CartPole-v1", 100_000, MIDDLE, None),
    Row("20 steps a batch, KL penalty", "importance_weighted:penalty", "CartPole-v1", 100_000, MIDDLE, 195.0),
    Row("20 steps a batch, KL bound", "importance_weighted:stop", "CartPole-v1", 100_000, MIDDLE, 195.0),
    Row("A2C", "actor_critic:sb3-zoo", "CartPole-v1", 500_000, "median", 500.0),
    Row("TRPO", "trpo:sb3-zoo", "CartPole-v1", 100_000, MIDDLE, 475.0),
    Row("PPO", "ppo:sb3-zoo", "Acrobot-v1", 500_000, MIDDLE, -90.0),
    Row("PPO", "ppo:sb3-zoo", "Pendulum-v1", 100_000, MIDDLE, -250.0),
    Row("PPO", "ppo:sb3-zoo", "LunarLander-v3", 1_000_000, MIDDLE, 200.0),
    Row("Off-policy, score function", "off_policy:score-function", "CartPole-v1", 50_000, MIDDLE, 475.0),
    Row("Off-policy, expectation", "off_policy:expectation", "CartPole-v1", 50_000, MIDDLE, 475.0),
    Row("Off-policy, through Q", "off_policy:reparameterized", "Pendulum-v1", 30_000, MIDDLE, -200.0),
    Row("Off-policy, score function", "off_policy:score-function", "Pendulum-v1", 50_000, MIDDLE, -250.0),
    Row("SAC", "sac:sb3-zoo", "Pendulum-v1", 20_000, MIDDLE, -160.0),
    Row("TD3", "td3:sb3-zoo", "Pendulum-v1", 20_000, MIDDLE, -160.0),
    Row("DDPG", "ddpg:sb3-zoo", "Pendulum-v1", 20_000, MIDDLE, -160.0),
    # Ten seeds of the SimbaV2 repository's SAC have 6156 +- 700: three of ours may be 1.3 deviations below.
    Row("SAC", "sac", "HalfCheetah-v4", 100_000, "mean", 5246.0, seeds=(0, 1, 2)),
)


def statistic(name: str, means: list[float]) -> float:
    import numpy as np

    from fastac.evaluate import interquartile_mean

    functions = {"median": np.median, "mean": np.mean, "interquartile mean": interquartile_mean}
    return float(functions[name](means))


def measure(row: Row, folder: Path, seeds: tuple[int, ...], jobs: int | None) -> dict[str, Any] | None:
    """The record of `fastac compare` for a row; None where it was interrupted or a run failed."""
    from fastac.compare import Compare, compare

    slug = "".join(c if c.isalnum() else "-" for c in f"{row.algorithm} {row.env_id} {row.total_timesteps}")
    out = folder / slug
    options = Compare(
        algorithms=(row.algorithm,),
        env_id=(row.env_id,),
        seeds=row.seeds or seeds,
        total_timesteps=row.total_timesteps,
        out=out,
        jobs=jobs,
    )
    if compare(options) != 0:
        return None
    content = json.loads((out / "results.json").read_text(encoding="utf-8"))
    (found,) = content["results"]
    found.pop("curve", None)
    means = [run["mean_return"] for run in found["runs"]]
    return {
        **row._asdict(),
        "value": statistic(row.statistic, means),
        "fastac_commit": record.commit(),
        "evaluation": content["evaluation"],
        "versions": content["versions"],
        **found,
    }


def main(folder: Path, seeds: tuple[int, ...], jobs: int | None, only: str | None) -> int:
    if one_core.CORES:
        os.sched_setaffinity(0, one_core.CORES)  # one run a core
    recorded: list[dict[str, Any]] = record.read(RESULT)["results"] if RESULT.exists() else []
    kept = {(entry["label"], entry["env_id"]): entry for entry in recorded}
    order = {(row.algorithm, row.env_id): k for k, row in enumerate(ROWS)}
    for row in ROWS:
        if only is not None and only not in f"{row.algorithm} {row.env_id}":
            continue
        found = measure(row, folder, seeds, jobs)
        if found is None:
            sys.stderr.write("The same command again goes on.\n")
            return 1
        kept[row.algorithm, row.env_id] = found
        found_keys = sorted((key for key in kept if key in order), key=order.__getitem__)
        record.write(
            RESULT,
            {
                "command": "python -m bench ladder",
                "machine": record.machine(),
                "results": [kept[key] for key in found_keys],
            },
        )
        print(f"{row.name} {row.env_id}: {row.statistic} {found['value']:.1f}, wanted {row.wanted}", flush=True)
    return 0
