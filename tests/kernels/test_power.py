"""log2 and exp2 of float64 without branches: their errors, and the values that have to be exact."""

from typing import Any

import numpy as np

from fastac_kernels._jit import kernel
from fastac_kernels.power import exp2, log2


@kernel
def over(x: Any, logarithm: Any, power: Any) -> None:
    for i in range(x.size):
        logarithm[i] = log2(x[i])
        power[i] = exp2(x[i])


def both(x: Any) -> tuple[np.ndarray, np.ndarray]:
    x = np.asarray(x, np.float64)
    logarithm, power = np.empty_like(x), np.empty_like(x)
    over(x, logarithm, power)
    return logarithm, power


def test_logarithm_over_the_whole_range() -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(1, np.float64(np.inf).view(np.int64), 300_000).view(np.float64)  # subnormal to largest
    np.testing.assert_allclose(both(x)[0], np.log2(x), rtol=4e-16)


def test_logarithm_around_one_and_around_the_edges_of_the_reduction() -> None:
    steps = np.arange(-2000, 2000)
    for centre in (1.0, np.sqrt(0.5), np.sqrt(2.0), 2.0**-1022):
        x = (np.float64(centre).view(np.int64) + steps).view(np.float64)
        np.testing.assert_allclose(both(x)[0], np.log2(x), rtol=6e-16, atol=0)


def test_exponential_over_its_range() -> None:
    x = np.random.default_rng(1).uniform(-960, 960, 300_000)
    np.testing.assert_allclose(both(x)[1], np.exp2(x), rtol=6e-16)
    edges = np.arange(-959, 960) + 0.5
    x = np.concatenate([edges, np.nextafter(edges, 2000), np.nextafter(edges, -2000)])
    np.testing.assert_allclose(both(x)[1], np.exp2(x), rtol=6e-16)


def test_exact_values_and_the_clip() -> None:
    exponents = np.arange(-960.0, 961.0)
    np.testing.assert_array_equal(both(exponents)[1], np.exp2(exponents))
    np.testing.assert_array_equal(both(np.exp2(exponents))[0], exponents)
    np.testing.assert_array_equal(both([-961.0, -1e300, 961.0, 1e300])[1], [2.0**-960, 2.0**-960, 2.0**960, 2.0**960])
