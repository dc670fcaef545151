"""The contract for time, rule by rule, in numbers small enough to check by hand (rules 1-5, 9, 12 and 13)."""

from typing import Any

import naive
import numpy as np
import pytest
from cases import Case, assert_same_bytes, assert_within

import fastac

NAN = float("nan")
ALL_OPTIONS: dict[str, dict[str, Any]] = {
    "gae": {"gamma": 0.5, "gae_lambda": 0.5},
    "discounted_returns": {"gamma": 0.5},
    "n_step_returns": {"n": 2, "gamma": 0.5},
    "lambda_returns": {"gamma": 0.5, "td_lambda": 0.5},
}


def f32(*numbers: float) -> np.ndarray:
    return np.array(numbers, dtype=np.float32)


def call(name: str, rewards: Any, values: Any, next_values: Any, *flags: Any, **keywords: Any) -> Any:
    """One call with the options above; the first output."""
    keywords = {**ALL_OPTIONS[name], **keywords}
    leading = (rewards, next_values) if name == "discounted_returns" else (rewards, values, next_values)
    result = getattr(fastac, name)(*leading, *flags, **keywords)
    return result.advantages if name == "gae" else result


class TestByHand:
    """gamma = lambda = n / 4 = 1/2: every result is an exact binary fraction."""

    rewards = f32(1, 2, 4)
    values = f32(8, 16, 32)

    def test_gae_one_episode(self) -> None:
        advantages, returns = fastac.gae(self.rewards, self.values, 64.0, gamma=0.5, gae_lambda=0.5)
        # deltas: 1 + 8 - 8, 2 + 16 - 16, 4 + 32 - 32
        np.testing.assert_array_equal(advantages, [1 + 2 / 4 + 4 / 16, 2 + 4 / 4, 4])
        np.testing.assert_array_equal(returns, advantages + self.values)

    def test_gae_result_has_names(self) -> None:
        result = fastac.gae(self.rewards, self.values, 64.0, gamma=0.5, gae_lambda=0.5)
        assert isinstance(result, fastac.GAE)
        assert result._fields == ("advantages", "returns")

    def test_gae_terminated_in_the_middle(self) -> None:
        terminated = np.array([False, True, False])
        advantages, _ = fastac.gae(self.rewards, self.values, 64.0, terminated, gamma=0.5, gae_lambda=0.5)
        np.testing.assert_array_equal(advantages, [1 + (2 - 16) / 4, 2 - 16, 4])

    def test_gae_truncated_in_the_middle(self) -> None:
        truncated = np.array([False, True, False])
        full = f32(16, 128, 64)
        advantages, _ = fastac.gae(self.rewards, self.values, full, None, truncated, gamma=0.5, gae_lambda=0.5)
        np.testing.assert_array_equal(advantages, [1 + (2 + 64 - 16) / 4, 2 + 64 - 16, 4])

    def test_discounted_returns(self) -> None:
        np.testing.assert_array_equal(fastac.discounted_returns(self.rewards, 64.0, gamma=0.5), [1 + 1 + 1 + 8, 20, 36])
        terminated = np.array([False, False, True])
        np.testing.assert_array_equal(fastac.discounted_returns(self.rewards, NAN, terminated, gamma=0.5), [3, 4, 4])

    def test_n_step_returns(self) -> None:
        """Rule 5: m = min(n, rows left), gamma^m on the last one's next value."""
        result = fastac.n_step_returns(self.rewards, self.values, 64.0, n=2, gamma=0.5)
        np.testing.assert_array_equal(result, [1 + 1 + 32 / 4, 2 + 2 + 64 / 4, 4 + 64 / 2])

    def test_lambda_returns(self) -> None:
        result = fastac.lambda_returns(self.rewards, self.values, 64.0, gamma=0.5, td_lambda=0.5)
        last = 4 + 64 / 2
        middle = 2 + (16 + last / 2) / 2
        np.testing.assert_array_equal(result, [1 + (8 + middle / 2) / 2, middle, last])


@pytest.mark.parametrize("name", ALL_OPTIONS)
class TestRule1:
    def test_next_value_of_a_terminated_row_is_not_read(self, name: str) -> None:
        rewards, values, terminated = f32(1, 2, 4), f32(8, 16, 32), np.array([False, True, True])
        for poison in (NAN, np.inf):
            result = call(name, rewards, values, f32(16, poison, poison), terminated)
            assert_same_bytes((result,), (call(name, rewards, values, f32(16, 1, 1), terminated),))
            assert np.isfinite(call(name, rewards, values, poison, terminated)).all()

    def test_nothing_crosses_an_episodes_end(self, name: str) -> None:
        rewards, values = f32(1, 2, NAN, NAN), f32(8, 16, 32, 64)
        end = np.array([False, True, False, False])
        for flags in [(end, None), (None, end), (end, end)]:
            result = call(name, rewards, values, f32(16, 3, 64, 5), *flags)
            assert np.isfinite(result[:2]).all()
            assert np.isnan(result[2:]).all()

    def test_terminated_wins_over_truncated(self, name: str) -> None:
        """Row R4."""
        rewards, values, end = f32(1, 2, 4), f32(8, 16, 32), np.array([False, True, True])
        both = call(name, rewards, values, f32(16, NAN, NAN), end, end)
        assert_same_bytes((both,), (call(name, rewards, values, f32(16, 7, 7), end, np.zeros(3, bool)),))

    def test_a_flag_that_is_never_set_is_as_if_not_passed(self, name: str) -> None:
        rewards, values, unset = f32(1, 2, 4), f32(8, 16, 32), np.zeros(3, bool)
        result = call(name, rewards, values, f32(16, 32, 64), unset, unset, ~unset)
        assert_same_bytes((result,), (call(name, rewards, values, f32(16, 32, 64)),))


@pytest.mark.parametrize("name", ALL_OPTIONS)
class TestRule2:
    @pytest.mark.parametrize("flag", [False, True])
    @pytest.mark.parametrize("next_values", [0.0, "vector"])
    def test_truncated_needs_full_next_values(self, name: str, flag: bool, next_values: Any) -> None:
        """Also when no flag is set: the check may not depend on data. Row R3: never silently approximated."""
        array = np.ones((3, 2), np.float32)
        short = np.zeros(2, np.float32) if next_values == "vector" else next_values
        with pytest.raises(ValueError, match=r"next_values.*\(3, 2\)"):
            call(name, array, array, short, None, np.full((3, 2), flag))

    def test_monte_carlo_passes_the_union_as_terminated(self, name: str) -> None:
        terminated, truncated = np.array([False, False, True]), np.array([True, False, False])
        result = call(name, f32(1, 2, 4), f32(0, 0, 0), 0.0, terminated | truncated)
        assert result[0] == 1

    def test_values_none_with_full_next_values(self, name: str) -> None:
        if name not in ("n_step_returns", "lambda_returns"):
            return
        full = f32(16, 32, 64)
        result = call(name, f32(1, 2, 4), None, full)
        assert_same_bytes((result,), (call(name, f32(1, 2, 4), f32(NAN, NAN, NAN), full),))
        with pytest.raises((TypeError, ValueError), match="values"):
            call(name, f32(1, 2, 4), None, 64.0)

    def test_values_none_is_refused_where_values_are_read(self, name: str) -> None:
        if name == "gae":
            with pytest.raises((TypeError, ValueError), match="values"):
                call(name, f32(1, 2, 4), None, f32(1, 2, 4))


@pytest.mark.parametrize("name", ALL_OPTIONS)
class TestRule3:
    def test_short_form_takes_the_next_valid_row(self, name: str) -> None:
        """Row R9: a masked row's value never bootstraps a valid one."""
        rewards, values, mask = f32(1, NAN, 2, NAN), f32(8, NAN, 16, NAN), np.array([1, 0, 1, 0])
        result = call(name, rewards, values, 64.0, None, None, mask)
        expected = call(name, f32(1, 2), f32(8, 16), 64.0)
        np.testing.assert_array_equal(result, [expected[0], 0, expected[1], 0])

    def test_full_form_uses_the_rows_own(self, name: str) -> None:
        rewards, values, mask = f32(1, NAN, 2, NAN), f32(8, NAN, 16, NAN), np.array([1, 0, 1, 0])
        result = call(name, rewards, values, f32(5, NAN, 7, NAN), None, None, mask)
        expected = call(name, f32(1, 2), f32(8, 16), f32(5, 7))
        np.testing.assert_array_equal(result, [expected[0], 0, expected[1], 0])

    def test_flags_of_a_masked_row_are_not_used(self, name: str) -> None:
        rewards, values, mask = f32(1, NAN, 2), f32(8, NAN, 16), np.array([True, False, True])
        clean = call(name, rewards, values, f32(5, NAN, 7), np.zeros(3), np.zeros(3), mask)
        for flag in (1.0, NAN):
            dirty = call(name, rewards, values, f32(5, NAN, 7), f32(0, flag, 0), f32(0, flag, 0), mask)
            assert_same_bytes((clean,), (dirty,))

    def test_everything_masked(self, name: str) -> None:
        nothing = np.zeros(3, bool)
        np.testing.assert_array_equal(call(name, f32(NAN, 1, 2), f32(1, NAN, 2), NAN, None, None, nothing), [0, 0, 0])

    def test_each_column_has_its_own_holes(self, name: str) -> None:
        generator = np.random.default_rng(7)
        rewards, values = generator.normal(size=(2, 6, 20)).astype(np.float32)
        last, mask = generator.normal(size=20).astype(np.float32), generator.random((6, 20)) < 0.5
        result = call(name, rewards, values, last, None, None, mask)
        for i in range(20):
            alone = call(name, rewards[:, i], values[:, i], float(last[i]), None, None, mask[:, i])
            np.testing.assert_allclose(result[:, i], alone, rtol=1e-6, atol=1e-6)


class TestRule4:
    """Both autoreset modes of Gymnasium give the same numbers for the same experience."""

    def test_next_step_filler_equals_same_step_final_value(self) -> None:
        """Row R15, on arrays: mask the filler row, or read the final observation."""
        rewards, values, final_value, after = f32(1, 2, 4, 8), f32(8, 16, 32, 64), 5.0, 9.0
        truncated = np.array([False, True, False, False])
        # same-step: values shifted by a row, V(final_obs) where truncated
        same_step = np.append(values[1:], f32(after))
        same_step[1] = final_value
        # next-step: row 2 is the filler; its observation is the final one
        insert = {"rewards": 0.0, "values": final_value}
        filled = {
            k: np.insert(a, 2, insert[k]).astype(np.float32) for k, a in [("rewards", rewards), ("values", values)]
        }
        next_step = np.append(filled["values"][1:], f32(after))
        ended = np.insert(truncated, 2, False)
        mask = np.append([True], ~ended[:-1])
        for name in ALL_OPTIONS:
            one = call(name, rewards, values, same_step, None, truncated)
            two = call(name, filled["rewards"], filled["values"], next_step, None, ended, mask)
            np.testing.assert_array_equal(two[[0, 1, 3, 4]], one)
            assert two[2] == 0


class TestRule5:
    def test_n_counts_valid_rows(self) -> None:
        mask = np.array([1, 0, 0, 1, 1], bool)
        result = fastac.n_step_returns(
            f32(1, NAN, NAN, 2, 4), f32(8, NAN, NAN, 16, 32), 64.0, mask=mask, n=2, gamma=0.5
        )
        np.testing.assert_array_equal(result, [1 + 1 + 8, 0, 0, 2 + 2 + 16, 4 + 32])

    def test_the_window_stops_at_an_episodes_end_with_gamma_to_the_m(self) -> None:
        truncated = np.array([False, True, False])
        result = fastac.n_step_returns(f32(1, 2, 4), None, f32(9, 64, 9), None, truncated, n=3, gamma=0.5)
        np.testing.assert_array_equal(result, [1 + 1 + 64 / 4, 2 + 64 / 2, 4 + 9 / 2])

    def test_n_1_is_the_one_step_target(self) -> None:
        generator = np.random.default_rng(0)
        rewards, full = generator.normal(size=(2, 9, 20)).astype(np.float32)
        result = fastac.n_step_returns(rewards, None, full, n=1, gamma=0.5)
        np.testing.assert_allclose(result, rewards + np.float32(0.5) * full, rtol=1e-6, atol=1e-6)

    @pytest.mark.parametrize("n", [10**9, 10**30])
    def test_n_beyond_the_window_is_the_discounted_return(self, n: int) -> None:
        generator = np.random.default_rng(1)
        rewards, values = generator.normal(size=(2, 9, 20)).astype(np.float32)
        terminated = generator.random((9, 20)) < 0.2
        result = fastac.n_step_returns(rewards, values, 3.0, terminated, n=n, gamma=0.9)
        expected = fastac.discounted_returns(rewards, 3.0, terminated, gamma=0.9)
        np.testing.assert_allclose(result, expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", ALL_OPTIONS)
class TestRule9:
    @pytest.mark.parametrize("rewards_dtype", ["float64", "float16", "int64", "int32", "int8", "uint8", "bool"])
    def test_rewards_are_converted_to_the_dtype_of_values(self, name: str, rewards_dtype: str) -> None:
        rewards = np.array([1, 0, 1], rewards_dtype)
        if name == "discounted_returns":
            return
        values, last = f32(8, 16, 32), 64.0
        result = call(name, rewards, values, last)
        assert result.dtype == np.float32
        assert_same_bytes((result,), (call(name, rewards.astype(np.float32), values, last),))

    def test_values_in_float64_compute_in_float64(self, name: str) -> None:
        third = np.full(3, 1 / 3)
        result = call(name, third if name == "discounted_returns" else f32(1, 1, 1), third, np.full(3, 1 / 7))
        assert result.dtype == np.float64
        assert not np.array_equal(result.astype(np.float32).astype(np.float64), result)

    @pytest.mark.parametrize("dtype", ["bool", "uint8", "int8", "int32", "int64", "float32", "float64"])
    def test_a_flag_is_set_when_it_is_not_0(self, name: str, dtype: str) -> None:
        rewards, values, full = f32(1, 2, 4, 8), f32(8, 16, 32, 64), f32(16, 3, 64, 5)
        flags = np.array([0, 1, 0, 0]).astype(dtype)
        expected = call(name, rewards, values, full, flags != 0, flags != 0, flags == 0)
        odd = {"int8": -1, "int32": 256, "int64": 2**32, "float32": 0.25, "float64": 1e-300}.get(dtype, 1)
        spelled = (flags * np.array(odd)).astype(dtype)
        result = call(name, rewards, values, full, spelled, spelled, np.where(flags == 0, odd, 0).astype(dtype))
        assert_same_bytes((result,), (expected,))


class TestRule12:
    def test_estimators_never_normalise(self) -> None:
        """Row R14: adding a constant and scaling pass straight through."""
        generator = np.random.default_rng(2)
        rewards = generator.normal(size=(50, 20)) + 5
        zero = np.zeros_like(rewards)
        for name in ALL_OPTIONS:
            one, ten = call(name, rewards, zero, 0.0), call(name, 10 * rewards, zero, 0.0)
            np.testing.assert_allclose(ten, 10 * one)
            assert abs(one.mean()) > 1


class TestRule13:
    @pytest.mark.parametrize("discount", [0.0, 0.9, 0.99, 1.0])
    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_float_error_on_a_common_rollout(self, dtype: str, discount: float) -> None:
        generator = np.random.default_rng(4)
        shape = (128, 20)
        arguments = {
            "rewards": generator.normal(size=shape).astype(dtype),
            "values": 10 * generator.normal(size=shape).astype(dtype),
            "next_values": 10 * generator.normal(size=shape).astype(dtype),
            "terminated": generator.random(shape) < 0.02,
            "truncated": generator.random(shape) < 0.02,
        }
        for name in ALL_OPTIONS:
            options = {k: discount if isinstance(v, float) else 16 for k, v in ALL_OPTIONS[name].items()}
            given = {k: a for k, a in arguments.items() if k != "values" or name != "discounted_returns"}
            case = Case(name, given, options)
            assert_within(case.call(), case)

    def test_one_minus_lambda_is_not_rounded_away(self) -> None:
        """1 - lambda loses half its digits when lambda is rounded to float32 first."""
        case = Case(
            "lambda_returns",
            {"rewards": f32(0, 0, 0), "values": None, "next_values": f32(1000, 0, 0)},
            {"gamma": 1.0, "td_lambda": 0.9999},
        )
        assert_within(case.call(), case)


class TestLimits:
    """lambda and gamma at 0 and 1 (rows R6 and R7), against sums written here."""

    generator = np.random.default_rng(5)
    shape = (40, 20)
    rewards, values = generator.normal(size=(2, *shape))
    last = generator.normal(size=20)
    terminated = generator.random(shape) < 0.1

    def shifted(self) -> np.ndarray:
        return np.where(self.terminated, 0, np.append(self.values[1:], self.last[None], axis=0))

    def test_lambda_0_is_the_td_error(self) -> None:
        advantages, _ = fastac.gae(self.rewards, self.values, self.last, self.terminated, gamma=0.9, gae_lambda=0.0)
        np.testing.assert_allclose(advantages, self.rewards + 0.9 * self.shifted() - self.values, atol=1e-13)

    def test_gamma_0_is_the_reward(self) -> None:
        advantages, returns = fastac.gae(
            self.rewards, self.values, self.last, self.terminated, gamma=0.0, gae_lambda=0.95
        )
        np.testing.assert_allclose(advantages, self.rewards - self.values, atol=1e-13)
        np.testing.assert_allclose(returns, self.rewards, atol=1e-13)

    @pytest.mark.parametrize("gamma", [0.9, 1.0])
    def test_lambda_1_is_monte_carlo(self, gamma: float) -> None:
        monte_carlo = np.zeros(self.shape)
        for i in range(self.shape[1]):
            ends = [*np.flatnonzero(self.terminated[:, i]), self.shape[0]]
            for t in range(self.shape[0]):
                end = min(e for e in ends if e >= t)
                rows = slice(t, min(end + 1, self.shape[0]))
                part = self.rewards[rows, i]
                monte_carlo[t, i] = part @ gamma ** np.arange(len(part))
                if end == self.shape[0]:
                    monte_carlo[t, i] += gamma ** len(part) * self.last[i]
        arguments = (self.rewards, self.values, self.last, self.terminated)
        advantages, returns = fastac.gae(*arguments, gamma=gamma, gae_lambda=1.0)
        np.testing.assert_allclose(advantages, monte_carlo - self.values, atol=1e-11)
        np.testing.assert_allclose(returns, monte_carlo, atol=1e-11)
        np.testing.assert_allclose(
            fastac.lambda_returns(*arguments, gamma=gamma, td_lambda=1.0), monte_carlo, atol=1e-11
        )
        result = fastac.discounted_returns(self.rewards, self.last, self.terminated, gamma=gamma)
        np.testing.assert_allclose(result, monte_carlo, atol=1e-11)

    def test_the_reference_agrees(self) -> None:
        advantages, _ = naive.gae(
            self.rewards[:, 0], self.values[:, 0], self.last[0], self.terminated[:, 0], gamma=0.9, gae_lambda=0.0
        )
        np.testing.assert_allclose(advantages, (self.rewards + 0.9 * self.shifted() - self.values)[:, 0], atol=1e-13)
