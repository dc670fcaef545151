"""The expected numbers, derived a second time: sums over each row's own trajectory, in fractions, without recursion."""

from collections.abc import Callable
from fractions import Fraction as F
from math import prod

import numpy as np
import pytest

from fastac.conformance import ESTIMATORS, SCENARIOS, Scenario
from fastac.conformance.scenario import RATIOS

Number = F | None  # None is NaN: adding it fails, which is how a sum that reads it becomes unknown


def column(text: str, environment: int) -> list[Number]:
    return [None if word == "nan" else F(word) for word in text.split("|")[environment].split()]


def marks(text: str, environment: int, length: int, default: bool) -> list[bool]:
    return [letter == "x" for letter in text.split("|")[environment].strip()] if text else [default] * length


class Trajectory:
    """From one row to its episode's end or the window's: rewards, values, next values, ratios; did it terminate."""

    def __init__(self, scenario: Scenario, environment: int, row: int) -> None:
        rewards = column(scenario.rewards, environment)
        length = len(rewards)
        values, given = column(scenario.values, environment), column(scenario.next_values, environment)
        terminated = marks(scenario.terminated, environment, length, False)
        truncated = marks(scenario.truncated, environment, length, False)
        valid = [t for t in range(length) if marks(scenario.mask, environment, length, True)[t]]
        full = bool(scenario.truncated) or (len(given) == length and length > 1)
        rows = [t for t in valid if t >= row]
        ends = [t for t in rows if terminated[t] or truncated[t]]
        rows = [t for t in rows if not ends or t <= ends[0]]
        follower = dict(zip(valid, [values[t] for t in valid[1:]] + [given[0]], strict=True))
        self.r, self.v = [rewards[t] for t in rows], [values[t] for t in rows]
        self.w = [given[t] if full else follower[t] for t in rows]
        self.terminated = bool(ends) and terminated[ends[0]]
        if self.terminated:
            self.w[-1] = F(0)
        ratios = column(scenario.ratios, environment) if scenario.ratios else []
        self.ratios = [ratios[t] if ratios else F(RATIOS[(t + environment) % 3]) for t in rows]
        self.rows, self.gamma, self.lam = rows, F(scenario.gamma), F(scenario.lambda_)

    def n_step(self, n: int) -> F:
        """The first n rewards, then the value."""
        n = min(n, len(self.r))
        return sum((self.gamma**k * self.r[k] for k in range(n)), F(0)) + self.gamma**n * self.w[n - 1]

    def delta(self, k: int) -> F:
        return self.r[k] + self.gamma * self.w[k] - self.v[k]


def gae(x: Trajectory, scenario: Scenario) -> F:
    """Schulman et al. 2016, equation 16: the sum over TD errors."""
    return sum(((x.gamma * x.lam) ** k * x.delta(k) for k in range(len(x.r))), F(0))


def discounted_returns(x: Trajectory, scenario: Scenario) -> F:
    return x.n_step(len(x.r))


def n_step_returns(x: Trajectory, scenario: Scenario) -> F:
    return x.n_step(scenario.n)


def lambda_returns(x: Trajectory, scenario: Scenario) -> F:
    """Sutton and Barto 2018, equation 12.3: the mixture of all n-step returns."""
    longest = len(x.r)
    mixed = sum(((1 - x.lam) * x.lam ** (n - 1) * x.n_step(n) for n in range(1, longest)), F(0))
    return mixed + x.lam ** (longest - 1) * x.n_step(longest)


def vtrace_target(x: Trajectory, scenario: Scenario) -> F:
    """Espeholt et al. 2018, equation 1, with lambda in the trace."""
    rho = [min(F(scenario.rho_clip), ratio) for ratio in x.ratios]
    c = [F(scenario.trace_lambda) * min(F(scenario.c_clip), ratio) for ratio in x.ratios]
    return x.v[0] + sum((x.gamma**k * prod(c[:k], start=F(1)) * rho[k] * x.delta(k) for k in range(len(x.r))), F(0))


def vtrace_advantage(x: Trajectory, scenario: Scenario, after: Trajectory | None) -> F:
    """Espeholt et al. 2018, section 4.2, with the bootstrap weighed by lambda."""
    lam = F(scenario.trace_lambda)
    q = x.w[0] if after is None else lam * vtrace_target(after, scenario) + (1 - lam) * x.w[0]
    return min(F(scenario.pg_rho_clip), x.ratios[0]) * (x.r[0] + x.gamma * q - x.v[0])


def retrace_target(x: Trajectory, scenario: Scenario) -> F:
    """Munos et al. 2016, equation 3: the sum over TD errors, each weighed by the ratios after the first action."""
    c = [F(scenario.trace_lambda) * min(F(1), ratio) for ratio in x.ratios]
    return x.v[0] + sum((x.gamma**k * prod(c[1 : k + 1], start=F(1)) * x.delta(k) for k in range(len(x.r))), F(0))


FORMULAS = {
    "gae": gae,
    "discounted_returns": discounted_returns,
    "n_step_returns": n_step_returns,
    "lambda_returns": lambda_returns,
    "retrace": retrace_target,
}


def known(formula: Callable[..., F], *arguments: object) -> Number:
    try:
        return formula(*arguments)
    except TypeError:  # it read a NaN
        return None


def at(scenario: Scenario, estimator: str, environment: int, t: int) -> tuple[Number, ...]:
    """The outputs of one row."""
    length = len(scenario.rewards.split("|")[environment].split())
    if not marks(scenario.mask, environment, length, True)[t]:
        return (F(0), F(0))
    x = Trajectory(scenario, environment, t)
    if estimator == "vtrace":
        after = Trajectory(scenario, environment, x.rows[1]) if len(x.rows) > 1 else None
        return known(vtrace_target, x, scenario), known(vtrace_advantage, x, scenario, after)
    number = known(FORMULAS[estimator], x, scenario)
    return (number, None if number is None else number + x.v[0])


def derive(scenario: Scenario, estimator: str) -> dict[str, list[list[Number]]]:
    """Outputs by name: environments of rows."""
    pairs = {"gae": ("advantages", "returns"), "vtrace": ("targets", "advantages"), "retrace": ("targets",)}
    names = pairs.get(estimator, ("returns",))
    texts = scenario.rewards.split("|")
    rows = [[at(scenario, estimator, e, t) for t in range(len(text.split()))] for e, text in enumerate(texts)]
    return {name: [[row[i] for row in environment] for environment in rows] for i, name in enumerate(names)}


ALL = [(scenario, estimator) for scenario in SCENARIOS for estimator in scenario.expected]


@pytest.mark.parametrize(("scenario", "estimator"), ALL, ids=lambda x: x.name if isinstance(x, Scenario) else x)
def test_expected_numbers_are_what_the_definitions_give(scenario: Scenario, estimator: str) -> None:
    shipped = scenario.outputs(estimator)
    derived = derive(scenario, estimator)
    assert shipped.keys() == derived.keys()
    for name, numbers in derived.items():
        got = [[None if np.isnan(x) else F(float(x)) for x in environment] for environment in shipped[name].T]
        assert got == numbers, name


@pytest.mark.parametrize(("scenario", "estimator"), ALL, ids=lambda x: x.name if isinstance(x, Scenario) else x)
def test_float32_holds_inputs_and_results_exactly(scenario: Scenario, estimator: str) -> None:
    call = scenario.call(estimator)
    for text, array in ((scenario.rewards, call.rewards), (scenario.values, call.values)):
        for e in range(array.shape[1]):
            exact = [F(x) for x in column(text, e) if x is not None]
            assert [F(float(x)) for x in array[:, e] if not np.isnan(x)] == exact
    for array in scenario.outputs(estimator).values():
        np.testing.assert_array_equal(array.astype(np.float32).astype(np.float64), array)


def test_names_are_unique_and_sentences_are_sentences() -> None:
    names = [scenario.name for scenario in SCENARIOS]
    assert len(set(names)) == len(names) >= 50
    for scenario in SCENARIOS:
        assert scenario.sentence.endswith(".")
        assert len(scenario.sentence) > 40
        assert set(scenario.expected) <= set(ESTIMATORS)


def test_what_the_boundaries_hold() -> None:
    """Every kind of boundary is among them."""
    assert any(scenario.truncated and scenario.terminated for scenario in SCENARIOS)
    assert any("|" in scenario.rewards for scenario in SCENARIOS)
    assert any("nan" in scenario.next_values for scenario in SCENARIOS)
    assert any(scenario.mask and scenario.truncated for scenario in SCENARIOS)
    assert {scenario.gamma for scenario in SCENARIOS} == {"0", "1/2", "1"}
    assert {scenario.lambda_ for scenario in SCENARIOS} == {"0", "1/2", "1"}
