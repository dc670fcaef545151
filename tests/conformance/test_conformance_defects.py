"""Each planted defect is caught by the boundary that names it."""

import functools

import plain
import pytest

from fastac import conformance
from fastac.conformance import Report

# Planted defect -> boundaries that must find it. The row is the project's list of pitfalls.
GAE_DEFECTS = {
    "R1": {"a time limit is no termination", "truncated in the last row", "a single step, truncated"},
    "R2 time limit": {"a time limit cuts the sum", "environments cut at different rows"},
    "R2 termination": {"a termination cuts the sum", "environments that end at different rows"},
    "R3": {"a time limit bootstraps from where it led", "truncated in the first row"},
    "R4": {"both flags: terminated wins", "both kinds of end in one window"},
    "R6": {"lambda 0", "lambda 0, terminated at the end"},
    "R7": {"no episode ends", "lambda 1"},
    "R8": {"a time limit does not bootstrap from the reset", "truncated in the first row"},
    "R9": {"a hole's value is nobody's", "padding at the end"},
    "R10 decays": {"a hole inside an episode"},
    "R10 reward": {"a hole inside an episode"},
    "R14": {"advantages keep their scale"},
    "R15": {"the filler row after a termination", "the filler row after a time limit"},
    "R16 early": {"flags belong to their own row"},
    "R16 late": {"flags belong to their own row"},
    "NaN": {"NaN behind a termination", "NaN behind the window", "NaN in the next episode"},
    "no termination": {"a termination has no future", "terminated in the last row"},
    "first row": {"terminated in the first row", "truncated in the first row"},
    "flattened": {"environments that end at different rows"},
    "batch first": {"batch first"},
    "packed": {"packed sequences"},
    "dtype": {"float64 rewards"},
    "writes": {"no episode ends"},
}
N_STEP_DEFECTS = {
    "B3": {"n steps do not cross an end", "a time limit cuts the sum"},
    "B4": {"an end within n steps", "n beyond the window"},
    "R1": {"a time limit is no termination"},
    "R3": {"a time limit bootstraps from where it led"},
    "R8": {"a time limit does not bootstrap from the reset"},
    "R9": {"a hole's value is nobody's"},
    "R16 late": {"flags belong to their own row"},
}
VTRACE_DEFECTS = {
    "R5": {"the advantage at a time limit"},
    "R1": {"a time limit is no termination"},
    "no rho_clip": {"ratios above the thresholds"},
    "on-policy": {"ratios below the thresholds"},
    "c_clip": {"a threshold for the trace", "a threshold for rho"},
    "pg_rho_clip": {"a threshold for the policy gradient"},
    "value instead of target": {"the advantage inside an episode"},
}
RETRACE_DEFECTS = {
    "R1": {"a time limit is no termination", "truncated in the last row"},
    "R2 time limit": {"the trace at an end", "a time limit cuts the sum"},
    "R2 termination": {"a termination cuts the sum"},
    "R3": {"a time limit bootstraps from where it led"},
    "R15": {"the filler row after a termination"},
    "R16 late": {"flags belong to their own row"},
    "own ratio": {"the ratio of the step that follows"},
    "no clip": {"ratios above the thresholds"},
    "on-policy": {"ratios below the thresholds"},
    "no lambda": {"a trace that decays", "lambda 0"},
    "expectation": {"the expectation of the next value", "next values of their own"},
    "no termination": {"a termination has no future"},
}
FUNCTIONS = {
    "gae": plain.gae,
    "n_step_returns": plain.n_step_returns,
    "vtrace": plain.vtrace,
    "retrace": plain.retrace,
}
PLANTED = [
    (estimator, defect, boundaries)
    for estimator, defects in (
        ("gae", GAE_DEFECTS),
        ("n_step_returns", N_STEP_DEFECTS),
        ("vtrace", VTRACE_DEFECTS),
        ("retrace", RETRACE_DEFECTS),
    )
    for defect, boundaries in defects.items()
]


def report(estimator: str, defect: str) -> Report:
    return conformance.check(functools.partial(FUNCTIONS[estimator], defect=defect), estimator=estimator)


@pytest.mark.parametrize("estimator", FUNCTIONS)
def test_without_a_defect_the_plain_functions_are_right(estimator: str) -> None:
    """What follows finds the defects, not the functions around them."""
    found = report(estimator, "")
    assert found.ok, str(found)
    assert not found.cannot_say


@pytest.mark.parametrize(("estimator", "defect", "boundaries"), PLANTED, ids=lambda x: x if isinstance(x, str) else "")
def test_a_planted_defect_is_caught_by_the_boundary_that_names_it(
    estimator: str, defect: str, boundaries: set[str]
) -> None:
    """Rows R1 to R10, R14 to R16, B3 and B4, and what else is easily lost."""
    found = report(estimator, defect)
    wrong = {result.scenario.name: result.scenario for result in found.wrong}
    assert boundaries <= set(wrong), str(found)
    row = defect.split()[0]
    if row[1:].isdigit():
        assert any(row in scenario.pitfalls.split() for scenario in wrong.values()), str(found)
        assert f"({row}" in str(found) or f" {row}" in str(found)
    if row not in ("R7", "R14", "B4", "writes", "on-policy", "value", "no", "own"):
        assert "no episode ends" not in wrong, "a window without an end has nothing of it"


@pytest.mark.parametrize(
    ("defect", "boundary"),
    [
        ("R1", "a time limit is no termination"),
        ("R2 time limit", "a time limit cuts the sum"),
        ("R3", "a time limit bootstraps from where it led"),
        ("R8", "a time limit does not bootstrap from the reset"),
    ],
)
def test_four_mistakes_at_a_time_limit_are_told_apart(defect: str, boundary: str) -> None:
    """Rows R1, R2, R3 and R8: the boundary that fails says which mistake it is."""
    wrong = {result.scenario.name for result in report("gae", defect).wrong}
    assert {name for name in wrong if name.startswith("a time limit")} == {boundary}


def test_every_row_of_the_estimators_pitfalls_has_a_boundary() -> None:
    """Rows R1 to R10 and R14 to R16; R11 to R13 are about ratios and statistics."""
    named = {row for scenario in conformance.SCENARIOS for row in scenario.pitfalls.split()}
    assert {f"R{i}" for i in (*range(1, 11), 14, 15, 16)} <= named
