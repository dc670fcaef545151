"""Which of the trace kernels' ways a call takes depends on its shape and options: each is met here."""

from typing import Any

import naive
import numpy as np
import pytest

import fastac


def data(length: int, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    given = {name: rng.standard_normal(length) for name in ("log_ratios", "rewards", "values", "next_values")}
    given["log_ratios"] *= 0.5
    return given | {name: rng.random(length) < 0.05 for name in ("terminated", "truncated")}


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 1023, 1024, 1025, 1040, 2100])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("clips", [(1.0, 1.0, 1.0), (1.3, 0.8, 2.0), (3.0, 2.0, 1.0)])
def test_one_lane_of_vtrace(length: int, full: bool, clips: tuple[float, float, float]) -> None:
    """Blocks of sixteen, tiles of 1024, and the loop that clips above 1 / (gamma lambda) take."""
    given = data(length, length)
    if not full:
        given["next_values"], given["truncated"] = 0.3, None
    options = dict(zip(("rho_clip", "c_clip", "pg_rho_clip"), clips, strict=True))
    options |= {"gamma": 0.97, "trace_lambda": 0.9}
    expected = naive.vtrace(**given, **options)
    if full:  # behind the end of an episode nothing is read
        given["next_values"][given["terminated"]] = np.nan
    result = fastac.vtrace(**given, **options)
    for got, wanted in zip(result, expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-11)


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 1023, 1024, 1025, 1040, 2100])
def test_one_lane_of_retrace(length: int) -> None:
    given = data(length, length)
    given["q_values"] = given.pop("values")
    expected = naive.retrace(**given, gamma=0.97, trace_lambda=0.9)
    given["next_values"][given["terminated"]] = np.nan
    np.testing.assert_allclose(fastac.retrace(**given, gamma=0.97, trace_lambda=0.9), expected, rtol=0, atol=1e-11)


def test_nan_behind_an_end_stays_there() -> None:
    given = data(100, 0)
    for end in range(99):
        case = {name: np.array(x, np.float32) if x.dtype != bool else np.zeros(100, bool) for name, x in given.items()}
        for name in ("rewards", "values", "next_values", "log_ratios"):
            case[name][end + 1 :] = np.nan
        case["terminated"][end] = True
        for result in fastac.vtrace(**case, gamma=0.97):
            assert np.isfinite(result[: end + 1]).all()
        case["q_values"] = case.pop("values")
        assert np.isfinite(fastac.retrace(**case, gamma=0.97, trace_lambda=0.9)[: end + 1]).all()
