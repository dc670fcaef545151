"""Our own estimators pass every boundary, and reports say what happened."""

import functools
from typing import Any

import numpy as np
import plain
import pytest

import fastac
from fastac import conformance
from fastac.conformance import ESTIMATORS, SCENARIOS, CallError

OURS = [name for name in ESTIMATORS if hasattr(fastac, name)]


@pytest.mark.parametrize("tensors", [False, True], ids=["numpy", "tensors"])
@pytest.mark.parametrize("estimator", OURS)
def test_fastac_is_right_at_every_boundary(estimator: str, tensors: bool) -> None:
    report = conformance.check(getattr(fastac, estimator), estimator=estimator, tensors=tensors)
    assert report.ok, str(report)
    assert not report.cannot_say
    assert len(report.right) == sum(estimator in scenario.expected for scenario in SCENARIOS) >= 37


def test_a_report_names_boundary_sentence_and_numbers() -> None:
    report = conformance.check(functools.partial(plain.gae, defect="R1"))
    text = str(report)
    assert not report.ok
    assert len(report.right) + len(report.wrong) == len(report.results)
    assert text.splitlines()[0].startswith("gae of ")
    assert "\nwrong:\n" in text
    assert "  a time limit is no termination (R1, R8)\n" in text
    assert "loses the bootstrap from the final" in text
    assert "advantages in row 1: -3, expected -1" in text
    assert max(map(len, text.splitlines())) <= 110


def test_what_a_convention_cannot_say_is_apart_from_wrong() -> None:
    """CleanRL's flags are one: a time limit there is neither right nor wrong."""
    report = conformance.check(cleanrl_loop, "cleanrl")
    assert report.ok, str(report) if report.wrong else ""
    lacks = {result.scenario.name: result.detail for result in report.cannot_say}
    assert "one flag for an episode's end" in lacks["a time limit is no termination"]
    assert "no mask" in lacks["a hole inside an episode"]
    assert "cannot say" in str(report)
    assert {"both flags: terminated wins", "flags belong to their own row"} <= {r.scenario.name for r in report.right}


def cleanrl_loop(rewards: Any, values: Any, dones: Any, next_value: Any, next_done: Any, gamma: float,
                 gae_lambda: float, shift: bool = True) -> tuple[Any, Any]:  # fmt: skip
    """A loop over flags that say that a row starts an episode; selecting, so that NaN passes by."""
    advantages, carry = np.zeros_like(values), np.zeros_like(next_value)
    for t in reversed(range(len(rewards))):
        last = t == len(rewards) - 1
        starts = (next_done if last else dones[t + 1]) if shift else dones[t]
        following = next_value if last else values[t + 1]
        delta = rewards[t] + np.where(starts, 0, gamma * following) - values[t]
        advantages[t] = carry = delta + np.where(starts, 0, gamma * gae_lambda * carry)
    return advantages, advantages + values


def test_flags_of_the_wrong_row_are_found_in_cleanrls_convention() -> None:
    """Row R16: the loop that takes `dones[t]` for the flag of transition t."""
    report = conformance.check(functools.partial(cleanrl_loop, shift=False), "cleanrl")
    assert "flags belong to their own row" in {result.scenario.name for result in report.wrong}


def test_cleanrls_loop_on_tensors_multiplies() -> None:
    """Its published loop multiplies by 1 - done: right everywhere but where NaN stands behind a termination."""
    import torch

    def loop(rewards: Any, values: Any, dones: Any, next_value: Any, next_done: Any, gamma: float,
             gae_lambda: float) -> tuple[Any, Any]:  # fmt: skip
        advantages, carry = torch.zeros_like(values), 0
        for t in reversed(range(len(rewards))):
            going = 1.0 - (next_done if t == len(rewards) - 1 else dones[t + 1])
            following = next_value if t == len(rewards) - 1 else values[t + 1]
            delta = rewards[t] + gamma * following * going - values[t]
            advantages[t] = carry = delta + gamma * gae_lambda * going * carry
        return advantages, advantages + values

    report = conformance.check(loop, "cleanrl", tensors=True)
    wrong = {result.scenario.name for result in report.wrong}
    assert wrong == {"NaN behind a termination", "NaN behind the window", "NaN in the next episode"}


def test_a_function_that_raises_once_is_wrong_there() -> None:
    def no_mask(*arrays: Any, **options: Any) -> Any:
        if len(arrays) > 5:
            raise NotImplementedError("no mask")
        return plain.gae(*arrays, **options)

    report = conformance.check(no_mask)
    details = {result.detail for result in report.wrong}
    assert details == {"it raised NotImplementedError: no mask"}
    assert report.right


def test_arguments_that_a_function_does_not_have_cannot_be_said() -> None:
    def plainest(
        rewards: Any, values: Any, next_values: Any, terminated: Any, *, gamma: float, gae_lambda: float
    ) -> Any:
        return plain.gae(rewards, values, next_values, terminated, gamma=gamma, gae_lambda=gae_lambda)

    report = conformance.check(plainest)
    assert report.ok, str(report)
    lacks = {result.detail for result in report.cannot_say}
    assert lacks == {"no argument truncated", "no argument mask", "no argument batch_first", "no argument cu_seqlens"}


def test_a_function_that_always_raises_cannot_be_called() -> None:
    with pytest.raises(CallError, match=r"it raised TypeError.*the fastac convention calls f\(rewards"):
        conformance.check(lambda rewards: rewards)


def test_shapes_and_numbers_of_results() -> None:
    transposed = conformance.check(lambda *a, **k: tuple(x.T for x in plain.gae(*a, **k)))
    assert any("advantages have shape (1, 4), expected (4, 1)" in r.detail for r in transposed.wrong)
    with pytest.raises(CallError, match="ValueError"):
        conformance.check(lambda *a, **k: plain.gae(*a, **k)[0][None])


@pytest.mark.parametrize(
    ("convention", "estimator", "message"),
    [
        ("brax", "gae", "convention: expected one of fastac, cleanrl, .*, got 'brax'"),
        ("fastac", "td", "estimator: expected one of gae, .*, got 'td'"),
        ("sb3", "vtrace", "estimator: the sb3 convention has gae, got 'vtrace'"),
    ],
)
def test_unknown_names(convention: str, estimator: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        conformance.check(fastac.gae, convention, estimator)
