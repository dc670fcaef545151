"""pytest-benchmark over sizes and contenders: `pytest bench -k "ppo_clip_loss and 2048"`."""

from typing import Any

import pytest

from bench import ratio


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    smallest = metafunc.config.getoption("--smallest", default=False)
    metafunc.parametrize("size", ratio.SIZES[:1] if smallest else ratio.SIZES)
    metafunc.parametrize("name", [name for name in ratio.CONTENDERS if not (smallest and name in ratio.PEERS)])


def test_ppo_clip_loss(benchmark: Any, size: int, name: str) -> None:
    if name in ratio.PEERS:
        pytest.importorskip(ratio.PEERS[name])
    call = ratio.build(name, ratio.make_case(size))
    benchmark.group = f"ppo_clip_loss {size}"
    benchmark(call)
