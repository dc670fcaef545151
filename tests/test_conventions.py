"""The adapters: small functions written in each library's convention, by its documentation, come out right."""

from typing import Any

import numpy as np
import pytest

import fastac
from fastac import conformance
from fastac.conventions import (
    CONVENTIONS,
    CannotSayError,
    by_environment,
    ends_from_starts,
    fold_truncations,
    from_environments,
    starts_from_ends,
)


def test_shifted_flags_and_back() -> None:
    """Row R16: CleanRL's and SB3's flags say that a row starts an episode."""
    ended = np.random.default_rng(0).random((7, 3)) < 0.4
    starts, last = starts_from_ends(ended)
    np.testing.assert_array_equal(starts[1:], ended[:-1])
    assert not starts[0].any()
    np.testing.assert_array_equal(ends_from_starts(starts, last), ended)


def test_flat_and_back() -> None:
    x = np.arange(12).reshape(4, 3)
    flat = by_environment(x)
    np.testing.assert_array_equal(flat[:4], x[:, 0])
    np.testing.assert_array_equal(from_environments(flat, x), x)


def test_folded_truncations_make_one_flag_enough() -> None:
    """Row R1: gamma V(final) in the reward and a flag for either end equal the true advantages."""
    generator = np.random.default_rng(1)
    shape = (20, 4)
    rewards, values, last = generator.normal(size=shape), generator.normal(size=shape), generator.normal(size=4)
    terminated, truncated = generator.random((2, *shape)) < 0.15
    cut = truncated & ~terminated
    nexts = np.where(cut, generator.normal(size=shape), np.vstack([values[1:], last[None]]))
    folded = fold_truncations(rewards, nexts, cut, 0.9)
    expected = fastac.gae(rewards, values, nexts, terminated, truncated, gamma=0.9, gae_lambda=0.8).advantages
    got = fastac.gae(folded, values, last, terminated | cut, gamma=0.9, gae_lambda=0.8).advantages
    np.testing.assert_allclose(got, expected, atol=1e-12)


def rlox_style(rewards: Any, values: Any, dones: Any, last_values: Any, n_steps: int, gamma: float, lam: float) -> Any:
    def rows(x: Any) -> Any:
        return x.reshape(-1, n_steps).T

    result = fastac.gae(rows(rewards), rows(values), last_values, rows(dones), gamma=gamma, gae_lambda=lam)
    return tuple(by_environment(x) for x in result)


class Buffer:
    """A rollout buffer with SB3's protocol and our arithmetic."""

    def __init__(self, buffer_size: int, observation_space: Any, action_space: Any, device: str, gamma: float,
                 gae_lambda: float, n_envs: int) -> None:  # fmt: skip
        self.options = {"gamma": gamma, "gae_lambda": gae_lambda}

    def reset(self) -> None:
        self.rows: list[Any] = []

    def add(self, obs: Any, action: Any, reward: Any, episode_start: Any, value: Any, log_prob: Any) -> None:
        self.rows.append((reward, value.numpy(), episode_start))

    def compute_returns_and_advantage(self, last_values: Any, dones: Any) -> None:
        rewards, values, starts = (np.stack(x) for x in zip(*self.rows, strict=True))
        ended = ends_from_starts(starts, dones)
        self.advantages, self.returns = fastac.gae(rewards, values, last_values.numpy(), ended, **self.options)


def torchrl_style(gamma: float, lmbda: float, value: Any, next_value: Any, reward: Any, done: Any, terminated: Any
                  ) -> Any:  # fmt: skip
    arrays = [x[..., 0] for x in (reward, value, next_value, terminated, done)]
    return tuple(x[..., None] for x in fastac.gae(*arrays, gamma=gamma, gae_lambda=lmbda, batch_first=True))


def tianshou_style(batch: Any, buffer: Any, indices: Any, v_s_: Any, v_s: Any, gamma: float, gae_lambda: float) -> Any:
    truncated = batch.truncated.copy()
    truncated[buffer.unfinished_index()] = True
    result = fastac.gae(
        batch.rew[indices], v_s, v_s_, buffer.terminated[indices], truncated, gamma=gamma, gae_lambda=gae_lambda
    )
    return result.returns, result.advantages


def rlax_style(r_t: Any, discount_t: Any, lambda_: float, values: Any) -> Any:
    out, carry = np.zeros_like(r_t), 0.0
    for t in reversed(range(len(r_t))):
        future = discount_t[t] * (values[t + 1] + lambda_ * carry) if discount_t[t] else 0.0
        out[t] = r_t[t] + future - values[t]
        carry = out[t]
    return out


STYLES = {
    "sb3": Buffer,
    "tianshou": tianshou_style,
    "torchrl": torchrl_style,
    "rlax": rlax_style,
    "rlox-folded": rlox_style,
}


@pytest.mark.parametrize("name", STYLES)
def test_a_right_function_in_each_convention_is_found_right(name: str) -> None:
    """The translation itself adds no mistake: nothing wrong, time limits included where they can be said."""
    report = conformance.check(STYLES[name], name)
    assert report.ok, str(report)
    said = {result.scenario.name for result in report.right}
    assert ("a time limit is no termination" in said) == (name != "rlax")
    assert {"terminated in the last row", "environments that end at different rows"} <= said


def test_rlox_as_its_collector_calls_it_is_wrong_at_time_limits() -> None:
    """Rows R1 and R2: truncations folded into rewards, but the flags say that nothing ended."""
    report = conformance.check(rlox_style, "rlox")
    wrong = {result.scenario.name for result in report.wrong}
    assert {"a time limit is no termination", "a time limit cuts the sum"} <= wrong
    assert not any("terminat" in name and "time limit" not in name and "both" not in name for name in wrong)


def test_every_row_of_the_table_is_documented() -> None:
    for name, row in CONVENTIONS.items():
        for field in ("time", "flags", "next_values", "outputs", "caller"):
            assert getattr(row, field), (name, field)
        assert set(row.function) == set(row.adapters), name


def test_what_cannot_be_said() -> None:
    scenarios = {scenario.name: scenario for scenario in conformance.SCENARIOS}
    for name, lack in (("a hole inside an episode", "no mask"), ("next values of their own", "no next values")):
        with pytest.raises(CannotSayError, match=lack):
            CONVENTIONS["rlox"].adapters["gae"](rlox_style, scenarios[name].call("gae"))
