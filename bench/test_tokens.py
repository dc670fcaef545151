"""pytest-benchmark over masks, whitening and contenders: `pytest bench -k "tokens and holes"`."""

from typing import Any

import pytest

from bench import tokens


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    smallest = metafunc.config.getoption("--smallest", default=False)
    metafunc.parametrize("shape", [tokens.SMALLEST if smallest else tokens.SHAPE], ids=lambda s: f"{s[0]}x{s[1]}")
    metafunc.parametrize("name", [name for name in tokens.CONTENDERS if not (smallest and name in tokens.PEERS)])


@pytest.mark.parametrize("whiten", [False, True], ids=["plain", "whitened"])
@pytest.mark.parametrize("kind", tokens.KINDS)
def test_tokens(benchmark: Any, kind: str, whiten: bool, shape: tuple[int, int], name: str) -> None:
    try:
        call = tokens.build(name, tokens.make_case(kind, whiten, shape))
    except (tokens.NotOfferedError, ImportError, LookupError, OSError) as reason:
        pytest.skip(f"{name}: {reason}")
    benchmark.group = f"tokens {kind} {'whitened' if whiten else 'plain'}"
    benchmark(call)
