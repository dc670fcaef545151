"""pytest-benchmark on the smallest call, for each kind of array."""

from typing import Any

import pytest

from bench import overhead


@pytest.mark.parametrize("kind", ["numpy_out", "numpy", "tensor_out", "tensor"])
def test_call(benchmark: Any, kind: str) -> None:
    benchmark.group = "gae short 128x8, one call"
    benchmark(overhead.calls()[kind])
