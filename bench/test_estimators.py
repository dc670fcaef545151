"""pytest-benchmark over estimators, forms, shapes and contenders: `pytest bench -k "gae and 128x128"`."""

from typing import Any

import pytest

from bench import contenders
from bench.cases import ESTIMATORS, FORMS, SHAPES, SMALLEST, make_case


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    smallest = metafunc.config.getoption("--smallest", default=False)
    metafunc.parametrize("shape", [SMALLEST] if smallest else SHAPES, ids=lambda shape: f"{shape[0]}x{shape[1]}")
    metafunc.parametrize("name", list(contenders.names(peers=not smallest)))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_estimator(benchmark: Any, estimator: str, form: Any, shape: tuple[int, int], name: str) -> None:
    absent = contenders.missing()
    if name in absent:
        pytest.skip(f"missing peer {name}: {absent[name]}")
    try:
        made = contenders.build(name, make_case(estimator, form, shape))
    except contenders.NotOfferedError as reason:
        pytest.skip(f"{name}: {reason}")
    benchmark.group = f"{estimator} {form} {shape[0]}x{shape[1]}"
    benchmark(made.call)
