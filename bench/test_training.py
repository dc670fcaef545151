"""pytest-benchmark over trainings and trainers: `pytest bench -k "training and sac-pendulum"`.

As many steps of each, in this process, building it included and compiling not. `python -m bench training` has the
rounds, the steps per CPU-second of a training that goes on, and CleanRL's scripts.
"""

from typing import Any

import pytest

from bench.training import MODULES
from bench.training_cases import BY_NAME, CASES, Case
from bench.training_limits import limits
from bench.training_pace import EnoughError
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


def steps(case: Case, smallest: bool) -> int:
    """A few rollouts, or a few hundred updates."""
    if case.setting is not None:
        return case.setting.num_envs * case.setting.num_steps * (1 if smallest else 4)
    return case.warm_steps + (10 if smallest else 2000 if case.algorithm == "a2c" else 300)


def test_training(case: str, name: str, benchmark: Any, request: pytest.FixtureRequest) -> None:
    if name in MODULES:
        pytest.importorskip(MODULES[name])
    chosen = BY_NAME[case]
    wanted = steps(chosen, request.config.getoption("--smallest"))

    def pace(step: int) -> None:
        if step >= wanted:
            raise EnoughError

    def train() -> None:
        with pytest.raises(EnoughError):
            (trainers(chosen, None) | limits(chosen))[name](chosen, 1, pace)

    benchmark.group = f"training {chosen.title}, {wanted:,} steps"
    benchmark.pedantic(train, rounds=3, warmup_rounds=1)
