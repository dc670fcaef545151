"""V-trace and Retrace: brute force over sums and trajectories, small numbers by hand, and what is theirs alone.

What they share with the other estimators is in test_returns_properties.py, test_arrays.py and test_torch_ops.py.
"""

import itertools
from typing import Any

import naive
import numpy as np
import pytest
import torch
from cases import OPTIONS, Case, assert_within, example

import fastac

GAMMA = 0.9
UNCLIPPED = {"rho_clip": np.inf, "c_clip": np.inf, "pg_rho_clip": np.inf}


def f64(*numbers: float) -> np.ndarray:
    return np.array(numbers, dtype=np.float64)


def stretches(ended: np.ndarray) -> list[range]:
    """Rows between which information passes: up to and including an episode's or the window's last."""
    edges = sorted({0, len(ended), *(np.flatnonzero(ended) + 1)})
    return [range(a, b) for a, b in itertools.pairwise(edges)]


def sequence(seed: int, length: int = 12) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    drawn = {k: generator.normal(size=length) for k in ("log_ratios", "rewards", "values", "next_values")}
    drawn["terminated"] = generator.random(length) < 0.15
    drawn["truncated"] = generator.random(length) < 0.15
    return drawn


@pytest.mark.parametrize("function", [fastac.vtrace, naive.vtrace])
@pytest.mark.parametrize("seed", range(10))
def test_vtrace_is_the_sum_over_products_of_traces(function: Any, seed: int) -> None:
    """Equation 1 of the paper, term by term, in every episode; the advantage from the next target."""
    x = sequence(seed)
    options = {"trace_lambda": 0.8, "rho_clip": 1.3, "c_clip": 0.9, "pg_rho_clip": 1.7}
    targets, advantages = function(**x, gamma=GAMMA, **options)
    ratio, alive = np.exp(x["log_ratios"]), ~x["terminated"]
    future = np.where(alive, x["next_values"], 0)
    deltas = np.minimum(1.3, ratio) * (x["rewards"] + GAMMA * future - x["values"])
    traces = 0.8 * np.minimum(0.9, ratio)
    wanted = x["values"].copy()
    for stretch in stretches(x["terminated"] | x["truncated"]):
        for s in stretch:
            for t in range(s, stretch.stop):
                wanted[s] += GAMMA ** (t - s) * np.prod(traces[s:t]) * deltas[t]
    np.testing.assert_allclose(targets, wanted, atol=1e-12)
    for stretch in stretches(x["terminated"] | x["truncated"]):
        for t in stretch[:-1]:
            future[t] = 0.8 * wanted[t + 1] + 0.2 * future[t]
    improved = x["rewards"] + GAMMA * future - x["values"]
    np.testing.assert_allclose(advantages, np.minimum(1.7, ratio) * improved, atol=1e-12)


@pytest.mark.parametrize("function", [fastac.retrace, naive.retrace])
@pytest.mark.parametrize("seed", range(10))
def test_retrace_is_the_sum_over_products_of_traces(function: Any, seed: int) -> None:
    """Equation 3 of the paper: Q and the discounted, traced temporal differences of each episode."""
    x = sequence(seed)
    x["q_values"] = x.pop("values")
    targets = function(**x, gamma=GAMMA, trace_lambda=0.8)
    future = np.where(x["terminated"], 0, x["next_values"])
    deltas = x["rewards"] + GAMMA * future - x["q_values"]
    traces = 0.8 * np.minimum(1, np.exp(x["log_ratios"]))
    wanted = x["q_values"].copy()
    for stretch in stretches(x["terminated"] | x["truncated"]):
        for s in stretch:
            for t in range(s, stretch.stop):
                wanted[s] += GAMMA ** (t - s) * np.prod(traces[s + 1 : t + 1]) * deltas[t]
    np.testing.assert_allclose(targets, wanted, atol=1e-12)


class TestTrajectories:
    """All trajectories of a small decision process, weighted by the acting policy: expectations without sampling."""

    states, actions, length = 3, 2, 4

    def process(self, seed: int) -> dict[str, np.ndarray]:
        generator = np.random.default_rng(seed)
        shape = (self.states, self.actions)
        return {
            "step": generator.dirichlet(np.ones(self.states), shape),
            "rewards": generator.normal(size=shape),
            "pi": generator.dirichlet(np.ones(self.actions), self.states),
            "mu": generator.dirichlet(2 * np.ones(self.actions), self.states),
        }

    def q_of(self, process: dict[str, np.ndarray], policy: np.ndarray) -> np.ndarray:
        """Q of a policy that goes on for ever: (I - gamma P) Q = r."""
        size = self.states * self.actions
        kernel = (process["step"][:, :, :, None] * policy[None, None]).reshape(size, size)
        return np.linalg.solve(np.eye(size) - GAMMA * kernel, process["rewards"].ravel()).reshape(process["mu"].shape)

    def expectation(self, process: dict[str, np.ndarray], estimate: Any) -> np.ndarray:
        """The mean, over all trajectories from state 0 and every first action, of the first target."""
        total = np.zeros(self.actions)
        choices = [range(self.actions)] + [range(self.states), range(self.actions)] * (self.length - 1)
        for path in itertools.product(*choices, range(self.states)):
            states, taken = np.array([0, *path[1::2]]), np.array(path[0::2][: self.length])
            chance = np.prod(process["mu"][states[1:-1], taken[1:]])
            chance *= np.prod(process["step"][states[:-1], taken, states[1:]])
            total[taken[0]] += chance * estimate(states, taken)
        return total

    def ratios(self, process: dict[str, np.ndarray], states: np.ndarray, taken: np.ndarray) -> np.ndarray:
        return np.log(process["pi"][states[:-1], taken] / process["mu"][states[:-1], taken])

    @pytest.mark.parametrize("seed", range(3))
    @pytest.mark.parametrize("trace_lambda", [0.0, 0.7, 1.0])
    def test_unclipped_vtrace_has_the_policys_value_as_its_mean(self, seed: int, trace_lambda: float) -> None:
        """At V of the evaluated policy every correction has mean zero."""
        process = self.process(seed)
        values = (process["pi"] * self.q_of(process, process["pi"])).sum(axis=1)

        def first_target(states: np.ndarray, taken: np.ndarray) -> float:
            log_ratios = self.ratios(process, states, taken)
            rewards, v = process["rewards"][states[:-1], taken], values[states]
            clips = {**UNCLIPPED, "trace_lambda": trace_lambda}
            return float(fastac.vtrace(log_ratios, rewards, v[:-1], v[1:], gamma=GAMMA, **clips).targets[0])

        mean = (process["mu"][0] * self.expectation(process, first_target)).sum()
        assert mean == pytest.approx(values[0], abs=1e-12)

    @pytest.mark.parametrize("seed", range(3))
    def test_clipped_vtrace_has_the_clipped_policys_value(self, seed: int) -> None:
        """The paper's equation 3: the fixed point belongs to the policy proportional to min(rho_clip mu, pi)."""
        process = self.process(seed)
        bounded = np.minimum(1.1 * process["mu"], process["pi"])
        bounded /= bounded.sum(axis=1, keepdims=True)
        values = (bounded * self.q_of(process, bounded)).sum(axis=1)

        def first_target(states: np.ndarray, taken: np.ndarray) -> float:
            log_ratios = self.ratios(process, states, taken)
            rewards, v = process["rewards"][states[:-1], taken], values[states]
            return float(fastac.vtrace(log_ratios, rewards, v[:-1], v[1:], gamma=GAMMA, rho_clip=1.1).targets[0])

        mean = (process["mu"][0] * self.expectation(process, first_target)).sum()
        assert mean == pytest.approx(values[0], abs=1e-12)

    @pytest.mark.parametrize("seed", range(3))
    @pytest.mark.parametrize("trace_lambda", [0.0, 0.7, 1.0])
    def test_retrace_has_the_policys_action_values_as_its_mean(self, seed: int, trace_lambda: float) -> None:
        process = self.process(seed)
        q = self.q_of(process, process["pi"])
        values = (process["pi"] * q).sum(axis=1)

        def first_target(states: np.ndarray, taken: np.ndarray) -> float:
            log_ratios = self.ratios(process, states, taken)
            rewards, chosen = process["rewards"][states[:-1], taken], q[states[:-1], taken]
            options = {"gamma": GAMMA, "trace_lambda": trace_lambda}
            return float(fastac.retrace(log_ratios, rewards, chosen, values[states[1:]], **options)[0])

        np.testing.assert_allclose(self.expectation(process, first_target), q[0], atol=1e-12)


@pytest.mark.parametrize("trace_lambda", [0.0, 0.6, 1.0])
def test_on_policy_vtrace_is_the_lambda_return(trace_lambda: float) -> None:
    """With pi = mu, targets are lambda returns, and advantages those of GAE (row R7: lambda = 1 is Monte Carlo)."""
    generator = np.random.default_rng(0)
    rewards, values = generator.normal(size=(2, 30, 4))
    last, terminated = generator.normal(size=4), generator.random((30, 4)) < 0.1
    targets, advantages = fastac.vtrace(
        np.zeros((30, 4)), rewards, values, last, terminated, gamma=GAMMA, trace_lambda=trace_lambda
    )
    returns = fastac.lambda_returns(rewards, values, last, terminated, gamma=GAMMA, td_lambda=trace_lambda)
    np.testing.assert_allclose(targets, returns, atol=1e-12)
    np.testing.assert_allclose(advantages, returns - values, atol=1e-12)
    if trace_lambda == 1:
        total = last
        for t in reversed(range(30)):
            total = rewards[t] + GAMMA * np.where(terminated[t], 0, total)
            np.testing.assert_allclose(targets[t], total, atol=1e-12)


@pytest.mark.parametrize("lanes", [1, 3, 9, 40])
def test_r5_the_advantage_at_a_truncation_takes_its_own_next_value(lanes: int) -> None:
    """Row R5: not the target of the next episode's first row; nor does the trace run into it."""
    ones = np.ones(lanes, np.float32)
    rewards, values = np.outer([1, 2, 3], ones).astype(np.float32), np.outer([10, 20, 5], ones).astype(np.float32)
    next_values = np.outer([20, 100, 7], ones).astype(np.float32)
    truncated = np.zeros(rewards.shape, bool)
    truncated[1] = True
    targets, advantages = fastac.vtrace(
        np.zeros_like(rewards), rewards, values, next_values, None, truncated, gamma=0.5, trace_lambda=1.0
    )
    np.testing.assert_array_equal(targets[:, 0], [1 + 0.5 * 52, 2 + 0.5 * 100, 3 + 0.5 * 7])
    np.testing.assert_array_equal(advantages[:, 0], targets[:, 0] - values[:, 0])
    poisoned = rewards.copy()
    poisoned[2] = np.nan
    again = fastac.vtrace(np.zeros_like(rewards), poisoned, values, next_values, None, truncated, gamma=0.5)
    np.testing.assert_array_equal(again.advantages[:2], advantages[:2])


@pytest.mark.parametrize("name", ["vtrace", "retrace"])
@pytest.mark.parametrize("shape", [(1500,), (1027, 1), (523, 2), (150, 7), (40, 33), (5, 1100)], ids=str)
def test_holes_in_large_windows(name: str, shape: tuple[int, ...]) -> None:
    """Rows R9 and R10: the trace and the next value pass a masked row unchanged, from one tile to the next, too."""
    generator = np.random.default_rng(0)
    for full in (True, False) if name == "vtrace" else (True,):
        arguments: dict[str, Any] = example(name, shape)
        arguments["terminated"] = generator.random(shape) < 0.02
        if full:
            arguments["truncated"] = generator.random(shape) < 0.02
        else:
            arguments["next_values"] = np.float32(0.3) if len(shape) == 1 else np.ones(shape[1], np.float32)
        for kept in (0.8, 0.02):
            arguments["mask"] = generator.random(shape) < kept
            case = Case(name, arguments, OPTIONS[name])
            spoiled = {k: np.where(places, np.nan, case.arguments[k]) for k, places in case.unread().items()}
            spoiled = {k: a.astype(np.float32) for k, a in spoiled.items() if case.arguments[k].dtype == np.float32}
            results = case.with_arguments(**spoiled).call()
            assert_within(results, case)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("lanes", [1, 3, 20])
class TestRatios:
    def test_clips_may_be_infinite(self, lanes: int, dtype: Any) -> None:
        arguments = {k: a.astype(dtype) for k, a in example("vtrace", (20, lanes)).items()}
        case = Case("vtrace", arguments, {"gamma": 0.9, **UNCLIPPED})
        assert_within(case.call(), case)

    def test_clips_of_one_size_and_of_three(self, lanes: int, dtype: Any) -> None:
        """The common case has machine code of its own."""
        arguments = {k: a.astype(dtype) for k, a in example("vtrace", (20, lanes)).items()}
        arguments["next_values"] = arguments["next_values"][0]
        arguments["terminated"] = np.random.default_rng(0).random((20, lanes)) < 0.1
        for clips in itertools.product([1.0, 1.5], repeat=3):
            options = dict(zip(("rho_clip", "c_clip", "pg_rho_clip"), clips, strict=True))
            case = Case("vtrace", arguments, {"gamma": 0.9, "trace_lambda": 0.9, **options})
            assert_within(case.call(), case)

    def test_extreme_ratios(self, lanes: int, dtype: Any) -> None:
        """Row R13: an overflowing ratio is clipped, a vanishing one is 0."""
        rewards = np.ones((2, lanes), dtype)
        for extreme in (1e4, np.inf, -1e4, -np.inf):
            log_ratios = np.full((2, lanes), extreme, dtype)
            weight = float(extreme > 0)
            targets, advantages = fastac.vtrace(log_ratios, rewards, 3 * rewards, 0.0, gamma=0.5)
            np.testing.assert_array_equal(targets[1], 3 - 2 * weight)
            np.testing.assert_array_equal(advantages[1], -2 * weight)
            arguments = (log_ratios, rewards, 3 * rewards, rewards)
            result = fastac.retrace(*arguments, gamma=0.5, trace_lambda=1.0)
            np.testing.assert_array_equal(result[1], 1.5)
            np.testing.assert_array_equal(result[0], 1.5 + 0.5 * weight * (1.5 - 3))

    def test_the_first_ratio_of_a_retrace_window_is_not_read(self, lanes: int, dtype: Any) -> None:
        arguments = {k: a.astype(dtype) for k, a in example("retrace", (5, lanes)).items()}
        before = fastac.retrace(**arguments, gamma=0.9, trace_lambda=0.9)
        arguments["log_ratios"][0], arguments["q_values"][0] = np.nan, np.nan
        np.testing.assert_array_equal(fastac.retrace(**arguments, gamma=0.9, trace_lambda=0.9), before)


class TestArguments:
    def call(self, name: str, **changes: Any) -> Any:
        return getattr(fastac, name)(**{**example(name, (4, 3)), **OPTIONS[name], **changes})

    @pytest.mark.parametrize("clip", ["rho_clip", "c_clip", "pg_rho_clip"])
    def test_clips_are_numbers_of_at_least_0(self, clip: str) -> None:
        for wrong in (-0.1, -np.inf, np.nan):
            with pytest.raises(ValueError, match=f"{clip}: expected a number of at least 0"):
                self.call("vtrace", **{clip: wrong})
        for odd in (None, "1", True, 1j, np.ones(2)):
            with pytest.raises(TypeError, match=clip):
                self.call("vtrace", **{clip: odd})
        self.call("vtrace", **{clip: 0})
        self.call("vtrace", **{clip: np.float32(2)})

    @pytest.mark.parametrize("name", ["vtrace", "retrace"])
    def test_ratios_are_required_and_of_the_values_kind(self, name: str) -> None:
        for wrong in (None, torch.zeros(4, 3), 0.0, [[0.0] * 3] * 4):
            with pytest.raises(TypeError, match="log_ratios"):
                self.call(name, log_ratios=wrong)
        with pytest.raises(ValueError, match=r"log_ratios: expected shape \(4, 3\)"):
            self.call(name, log_ratios=np.zeros(3, np.float32))
        with pytest.raises(TypeError, match=r"log_ratios.*complex"):
            self.call(name, log_ratios=np.zeros((4, 3), np.complex64))

    def test_ratios_of_another_float_are_converted(self) -> None:
        exact = self.call("vtrace")
        log_ratios = example("vtrace", (4, 3))["log_ratios"].astype(np.float64)
        np.testing.assert_array_equal(self.call("vtrace", log_ratios=log_ratios), exact)

    def test_retrace_names_its_action_values_and_wants_full_next_values(self) -> None:
        for wrong in (np.zeros(3, np.float32), 0.0, np.float32(1)):
            with pytest.raises(ValueError, match=r"next_values: expected shape \(4, 3\) \(full\), got"):
                self.call("retrace", next_values=wrong)
        with pytest.raises(TypeError, match=r"rewards.*like q_values"):
            self.call("retrace", rewards=None)
        with pytest.raises(ValueError, match="q_values: expected an array, got None"):
            self.call("retrace", q_values=None)
        with pytest.raises(ValueError, match=r"like q_values"):
            self.call("retrace", rewards=np.zeros((3, 3), np.float32))

    @pytest.mark.parametrize("kind", ["array", "tensor"])
    def test_out_may_not_be_the_ratios(self, kind: str) -> None:
        given = example("retrace", (4, 3))
        numbers: dict[str, Any] = {k: torch.from_numpy(a) for k, a in given.items()} if kind == "tensor" else given
        with pytest.raises(ValueError, match=r"out.*overlap"):
            fastac.retrace(**numbers, **OPTIONS["retrace"], out=numbers["log_ratios"])

    def test_results_have_names(self) -> None:
        result = self.call("vtrace")
        assert isinstance(result, fastac.VTrace)
        assert result._fields == ("targets", "advantages")
