"""pytest-benchmark over settings and operations: `pytest bench -k "prioritized and update"`."""

from typing import Any

import pytest

from bench import replay
from bench.replay_calls import NotOfferedError
from bench.replay_cases import SETTINGS, SMALLEST, Setting
from bench.replay_limits import limits
from bench.replay_peers import PEERS


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    smallest = metafunc.config.getoption("--smallest", default=False)
    settings = SMALLEST if smallest else SETTINGS
    metafunc.parametrize("setting", settings, ids=lambda s: s.title.replace(", ", "-").replace(" ", "_"))
    metafunc.parametrize("name", ["fastac", "limit", *([] if smallest else PEERS)])


def test_replay(setting: Setting, name: str, benchmark: Any) -> None:
    """Each operation once, of which pytest-benchmark times the last."""
    if name == "limit":
        calls = {operation: limits(setting, operation) for operation in setting.operations}
    else:
        if name in PEERS:
            pytest.importorskip(PEERS[name][0])
        try:
            made = PEERS[name][1](setting) if name in PEERS else replay.fastac(setting)
        except NotOfferedError as reason:
            pytest.skip(f"{name}: {reason}")
        calls = replay.checked(setting, made).calls
    every = [call for callers in calls.values() for call in callers.values()]
    for call in every:
        call()
    if every:
        benchmark.group = setting.title
        benchmark(every[-1])
