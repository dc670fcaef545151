"""pytest-benchmark over trainings and trainers: `pytest bench -k "training and sac-pendulum"`.

One chunk of each in this process, in seconds; `python -m bench training` has the rounds, and CleanRL's scripts.
"""

from typing import Any

import pytest

from bench.training import MODULES
from bench.training_cases import BY_NAME, CASES
from bench.training_limits import limits
from bench.training_pace import Chunk, EnoughError, Pace
from bench.training_peers import trainers

SMALLEST = ("ppo-cartpole", "a2c-cartpole", "sac-pendulum")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    smallest = metafunc.config.getoption("--smallest", default=False)
    pairs = [
        (case.name, name)
        for case in CASES
        if not smallest or case.name in SMALLEST
        for name in [*trainers(case, None), *limits(case)]
        if not (smallest and name in MODULES)
    ]
    metafunc.parametrize(("case", "name"), pairs)


def test_training(case: str, name: str, benchmark: Any, request: pytest.FixtureRequest) -> None:
    if name in MODULES:
        pytest.importorskip(MODULES[name])
    chosen = BY_NAME[case]
    chunks: list[Chunk] = []
    wanted = 1 if request.config.getoption("--smallest") else 2

    def finished(chunk: Chunk) -> None:
        chunks.append(chunk)
        if len(chunks) == wanted:
            raise EnoughError

    def train() -> None:
        pace = Pace(0.0 if wanted == 1 else 1.5, chosen.warm_steps, finished)
        with pytest.raises(EnoughError):
            (trainers(chosen, None) | limits(chosen))[name](chosen, 1, pace)

    benchmark.group = f"training {chosen.title}"
    benchmark.pedantic(train, rounds=1, iterations=1)
    benchmark.extra_info["steps_per_cpu_second"] = chunks[-1].steps / chunks[-1].cpu_seconds
