"""CartPole from the start of the process to solved: train by the command line, then 100 episodes from fixed starts.

Wall-clock time of the whole process, imports and evaluation included; kernels come from the cache. Every seed counts,
solved or not.
"""

import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import Any

from bench import record

OPTIONS = "ppo --env-id CartPole-v1 --preset sb3-zoo --update-epochs 10 --total-timesteps 80000"
WANTED = 475.0


def once(options: str, seed: int) -> tuple[float, float]:
    """Seconds, and the mean return of 100 episodes."""
    paths = os.pathsep.join([str(record.ROOT), str(record.ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "fastac", "train", *options.split(), "--seed", str(seed), "--run-dir", "run"],
            env={**os.environ, "PYTHONPATH": paths},
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
        )
        seconds = time.perf_counter() - start
    found = re.search(r"mean return ([\d.]+)", done.stdout)
    assert found is not None, done.stdout
    return seconds, float(found.group(1))


def measure(rounds: int) -> dict[str, Any]:
    once(f"{OPTIONS} --total-timesteps 512 --eval-episodes 1", 0)  # compiles, where nobody has
    runs = [once(OPTIONS, seed) for seed in range(max(rounds, 5))]
    return {
        "title": "CartPole from the start of the process to its evaluation",
        "command": f"fastac train {OPTIONS} --seed N",
        "seconds": round(statistics.median(seconds for seconds, _ in runs), 2),
        "rounds": [round(seconds, 2) for seconds, _ in runs],
        "mean_returns": [value for _, value in runs],
        "solved": sum(value >= WANTED for _, value in runs),
    }


def shown(result: Mapping[str, Any]) -> str:
    return (
        f"solved, seconds: {result['seconds']} (runs {result['rounds']}); "
        f"{result['solved']} of {len(result['mean_returns'])} at {WANTED:g} or more: {result['mean_returns']}"
    )
