"""Benchmarks compare like with like: right numbers are required of everyone, and the limit moves the bytes it says."""

from typing import Any

import naive
import numpy as np
import pytest

from bench import contenders, estimators, limits
from bench.cases import ESTIMATORS, FORMS, GAMMA, LAMBDA, N_STEPS, expected, make_case

OPTIONS: dict[str, dict[str, Any]] = {
    "gae": {"gae_lambda": LAMBDA},
    "discounted_returns": {},
    "n_step_returns": {"n": N_STEPS[-1]},
    "lambda_returns": {"td_lambda": LAMBDA},
    "vtrace": {},
    "retrace": {"trace_lambda": LAMBDA},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_expected_numbers_are_the_plain_references(estimator: str, form: Any) -> None:
    case = make_case(estimator, form, (40, 3))
    for i in range(case.N):
        column = {name: getattr(case, name)[:, i] for name in ("rewards", "next_values", "terminated", "truncated")}
        if estimator != "discounted_returns":
            column["q_values" if estimator == "retrace" else "values"] = case.values[:, i]
        if case.reads_ratios:
            column["log_ratios"] = case.log_ratios[:, i]
        result = getattr(naive, estimator)(**column, gamma=GAMMA, **OPTIONS[estimator])
        for ours, plain in zip(expected(case), result if case.outputs == 2 else (result,), strict=True):
            np.testing.assert_allclose(ours[:, i], plain, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_cases_end_episodes_in_both_ways(estimator: str) -> None:
    case = make_case(estimator, "full", (128, 8))
    assert case.terminated.any()
    assert case.truncated.any()
    assert not make_case(estimator, "short", (128, 8)).truncated.any()
    assert not make_case(estimator, "full", (128, 8), ends=False).ended.any()


def test_whoever_computes_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(case: Any) -> contenders.Contender:
        right = expected(case)[0]
        right[3, 5] += 1e-2
        return contenders.Contender(lambda: right, contenders.one)

    monkeypatch.setitem(contenders.FACTORIES, "wrong", (None, wrong))
    with pytest.raises(ArithmeticError, match="wrong differs from float64"):
        contenders.build("wrong", make_case("gae", "short", (128, 8)))


def test_nan_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = contenders.Contender(lambda: np.full((128, 8), np.nan), contenders.one)
    monkeypatch.setitem(contenders.FACTORIES, "nan", (None, lambda case: nothing))
    with pytest.raises(ArithmeticError):
        contenders.build("nan", make_case("gae", "short", (128, 8)))


def test_a_missing_peer_is_part_of_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contenders, "FACTORIES", {"absent": ("no_such_library", contenders.limit)})
    assert contenders.missing() == {"absent": "ModuleNotFoundError: No module named 'no_such_library'"}


def test_a_failing_peer_is_reported_and_stops_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(case: Any) -> contenders.Contender:
        raise RuntimeError("does not load")

    own = {name: contenders.FACTORIES[name] for name in ("fastac", "limit")}
    monkeypatch.setattr(contenders, "FACTORIES", {**own, "broken": (None, broken), "none": (None, contenders.limit)})
    result = estimators.measure("gae", "short", (128, 8), {"none": "missing"}, 0.01)
    assert result["failed"] == {"broken": "RuntimeError: does not load"}
    assert set(result["contenders"]) == {"fastac", "limit"}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_limit_moves_the_estimators_bytes(estimator: str, form: Any) -> None:
    case = make_case(estimator, form, (128, 8))
    sources, targets, extras, flags = contenders.moved(case)
    arrays = [*sources, *targets, *extras, *flags]
    assert sum(array.nbytes for array in arrays) == case.bytes_per_element * case.T * case.N
    words = [array.reshape(-1).view(np.uint64) for array in (*extras, *flags)]
    flat = [[array.reshape(-1) for array in group] for group in (sources, targets, extras)]
    word = limits.stream(tuple(flat[0]), tuple(flat[1]), tuple(words))
    assert word == np.bitwise_xor.reduce(np.concatenate(words))
    for source, target in zip(sources, targets, strict=True):
        np.testing.assert_array_equal(source, target)
    if extras:
        word = limits.stream_together(*map(tuple, flat), tuple(words[len(extras) :]))
        assert word == np.bitwise_xor.reduce(np.concatenate(words[len(extras) :]))
        np.testing.assert_allclose(targets[0], sum(extras, sources[0]), rtol=1e-6, atol=1e-6)


def test_bytes_of_gae() -> None:
    assert make_case("gae", "short", (8, 8)).bytes_per_element == 17
    assert make_case("gae", "full", (8, 8)).bytes_per_element == 22
    assert make_case("vtrace", "short", (8, 8)).bytes_per_element == 21
    assert make_case("retrace", "short", (8, 8)).bytes_per_element == 21
    assert make_case("lambda_returns", "short", (8, 8)).bytes_per_element == 13
    assert make_case("lambda_returns", "full", (8, 8)).bytes_per_element == 14
