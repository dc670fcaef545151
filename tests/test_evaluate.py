"""Evaluation: fixed starts, no bias toward short episodes, and statistics checked against other implementations."""

from typing import Any

import gymnasium
import numpy as np
import pytest
from numpy.typing import NDArray

from fastac.env_state import EnvError
from fastac.evaluate import Evaluation, bootstrap_interval, evaluate, interquartile_mean


class Balance:
    """CartPole, balanced well enough for long and short episodes both."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def act(self, observations: NDArray[Any], deterministic: bool = True) -> NDArray[Any]:
        self.batches.append(len(observations))
        return (observations[:, 2] + 0.3 * observations[:, 3] + 0.02 * observations[:, 0] > 0.0).astype(np.int64)


class Lean:
    """CartPole, with episodes of 20 to 100 steps."""

    def act(self, observations: NDArray[Any], deterministic: bool = True) -> NDArray[Any]:
        return (observations[:, 2] > 0.0).astype(np.int64)


def one_by_one(policy: Any, env_id: str, episodes: int, seed: int) -> tuple[list[float], list[int]]:
    returns, lengths = [], []
    for k in range(episodes):
        env = gymnasium.make(env_id)  # a new environment for each episode
        observation, _ = env.reset(seed=seed + k)
        total, length, done = 0.0, 0, False
        while not done:
            observation, reward, terminated, truncated, _ = env.step(policy.act(observation[None])[0])
            total, length, done = total + float(reward), length + 1, terminated or truncated
        returns.append(total)
        lengths.append(length)
    return returns, lengths


@pytest.mark.parametrize("num_envs", [1, 3, 16, 50])
def test_every_start_is_played_once_whatever_the_number_of_environments(num_envs: int) -> None:
    expected_returns, expected_lengths = one_by_one(Lean(), "CartPole-v1", 20, seed=77)
    evaluation = evaluate(Lean(), "CartPole-v1", episodes=20, seed=77, num_envs=num_envs)
    assert evaluation.returns.tolist() == expected_returns
    assert evaluation.lengths.tolist() == expected_lengths
    assert len(set(expected_lengths)) > 5


def test_box_actions_and_environments_with_hidden_parts() -> None:
    class Swing:
        def act(self, observations: NDArray[Any], deterministic: bool = True) -> NDArray[Any]:
            return np.clip(observations[:, 2:3], -2.0, 2.0).astype(np.float32)

    class Hover:
        def act(self, observations: NDArray[Any], deterministic: bool = True) -> NDArray[Any]:
            return np.where(observations[:, 3] < -0.3, 2, np.where(observations[:, 4] > 0.0, 3, 1)).astype(np.int64)

    for policy, env_id in ((Swing(), "Pendulum-v1"), (Hover(), "LunarLander-v3")):
        expected_returns, expected_lengths = one_by_one(policy, env_id, 5, seed=10_000)
        evaluation = evaluate(policy, env_id, episodes=5, num_envs=2)
        assert evaluation.returns.tolist() == expected_returns
        assert evaluation.lengths.tolist() == expected_lengths


def test_the_policy_is_asked_in_batches_and_long_episodes_count() -> None:
    policy = Balance()
    evaluation = evaluate(policy, "CartPole-v1", episodes=8, num_envs=4, env_kwargs={"max_episode_steps": 300})
    assert policy.batches[0] == 4
    assert evaluation.lengths.tolist() == [300] * 8
    assert len(policy.batches) == 600


def test_progress_is_reported_after_each_episode() -> None:
    calls: list[tuple[int, int]] = []
    evaluate(Lean(), "CartPole-v1", episodes=5, num_envs=2, progress=lambda done, all_: calls.append((done, all_)))
    assert calls == [(k, 5) for k in range(1, 6)]


def test_the_summary_is_of_all_episodes() -> None:
    evaluation = Evaluation("CartPole-v1", 0, np.array([1.0, 2.0, 3.0, 10.0]), np.ones(4, np.int64))
    assert evaluation.mean == 4.0
    assert evaluation.std == pytest.approx(np.std([1, 2, 3, 10], ddof=1))
    assert evaluation.interquartile_mean == 2.5
    low, high = evaluation.interval
    assert 1.0 < low < 4.0 < high < 10.0
    assert Evaluation("CartPole-v1", 0, np.array([5.0]), np.ones(1, np.int64)).std == 0.0


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(EnvError, match="Did you mean: `CartPole`"):
        evaluate(Lean(), "CartPol-v1")
    with pytest.raises(ValueError, match="episodes: got 0"):
        evaluate(Lean(), "CartPole-v1", episodes=0)
    with pytest.raises(ValueError, match="num_envs: got 0"):
        evaluate(Lean(), "CartPole-v1", num_envs=0)


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 7, 8, 11, 100])
def test_the_interquartile_mean_is_scipys_trimmed_mean(length: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(length).standard_normal((3, length))
    np.testing.assert_allclose(interquartile_mean(values), stats.trim_mean(values, 0.25, axis=1), rtol=1e-14)
    np.testing.assert_allclose(interquartile_mean(values.T, axis=0), interquartile_mean(values), rtol=1e-14)


def test_the_interquartile_mean_hides_no_nan() -> None:
    values = np.arange(12.0)
    values[3] = np.nan
    assert np.isnan(interquartile_mean(values))
    with pytest.raises(ValueError, match="values"):
        interquartile_mean([])


@pytest.mark.parametrize("statistic", [np.mean, np.median, interquartile_mean])
def test_the_bootstrap_agrees_with_scipys(statistic: Any) -> None:
    stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(1).exponential(size=60)
    low, high = bootstrap_interval(values, statistic)
    other = stats.bootstrap((values,), statistic, method="percentile", rng=np.random.default_rng(2)).confidence_interval
    assert (low, high) == pytest.approx((other.low, other.high), abs=0.03)
    assert (low, high) == bootstrap_interval(values, statistic)
    if statistic is np.mean:  # quantiles of medians are too coarse
        assert (low, high) != bootstrap_interval(values, statistic, seed=1)


def test_the_interval_covers_the_mean_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    intervals = [bootstrap_interval(generator.normal(3.0, 1.0, 50), level=0.9, resamples=500) for _ in range(400)]
    covered = np.mean([low <= 3.0 <= high for low, high in intervals])
    # 0.9 less the percentile method's known shortfall at n = 50, four standard errors of 0.015 around.
    assert 0.82 < covered < 0.95


def test_one_value_and_wrong_values() -> None:
    assert bootstrap_interval([2.0]) == (2.0, 2.0)
    with pytest.raises(ValueError, match="values: got shape"):
        bootstrap_interval([])
    with pytest.raises(ValueError, match="level"):
        bootstrap_interval([1.0], level=95)
    with pytest.raises(ValueError, match="resamples"):
        bootstrap_interval([1.0], resamples=0)
