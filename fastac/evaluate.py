"""Evaluation from fixed starts, and the statistics that say how much it means."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import gymnasium
import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastac.env_base import make_env

__all__ = ["Actor", "Evaluation", "bootstrap_interval", "evaluate", "interquartile_mean"]


class Actor(Protocol):
    """Whatever acts: `fastac.policy.Policy`, or anything with this method."""

    def act(self, observations: NDArray[Any], deterministic: bool = True) -> NDArray[Any]:
        """Actions (B, *action), as the environment takes them, for observations (B, *obs)."""
        ...


@dataclass(frozen=True)
class Evaluation:
    """The outcome of `evaluate`; row k belongs to the start with seed `seed + k`.

    Two evaluations with equal `env_id` and `seed` can be compared row by row.

    Attributes:
        env_id: the environment.
        seed: the first start's seed.
        returns: (episodes,) float64, undiscounted.
        lengths: (episodes,) int64, in steps.
    """

    env_id: str
    seed: int
    returns: NDArray[np.float64]
    lengths: NDArray[np.int64]

    @property
    def mean(self) -> float:
        """Mean return."""
        return float(self.returns.mean())

    @property
    def std(self) -> float:
        """Sample standard deviation of the returns over episodes (ddof 1); 0 for one episode."""
        return float(self.returns.std(ddof=1)) if len(self.returns) > 1 else 0.0

    @property
    def interquartile_mean(self) -> float:
        """`interquartile_mean` of the returns."""
        return float(interquartile_mean(self.returns))

    @cached_property
    def interval(self) -> tuple[float, float]:
        """The mean's bootstrap 95 % interval over episodes. It knows nothing of other training seeds."""
        return bootstrap_interval(self.returns, np.mean)


def evaluate(
    policy: Actor,
    env_id: str,
    *,
    episodes: int = 100,
    seed: int = 10_000,
    env_kwargs: Mapping[str, Any] | None = None,
    num_envs: int = 16,
    deterministic: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Play `episodes` episodes, number k from `env.reset(seed=seed + k)` to its end.

    Every episode that is started is counted, however long it is, so that short ones are not favoured. An environment
    without a time limit needs one, or a policy that comes to an end: `env_kwargs={"max_episode_steps": 1000}`.

    Args:
        policy: its `act` is called with a batch of observations.
        env_id: as for `make_envs`.
        episodes: number of episodes, at least 1.
        seed: the first start's seed.
        env_kwargs: passed to the environment.
        num_envs: environments that run at a time. The result does not depend on it where the policy's action for an
            observation does not depend on the others in its batch: that is so but for the last bits of a matrix
            product, and not for sampled actions.
        deterministic: False samples the actions.
        progress: called as `progress(done, episodes)` after each episode.

    Returns:
        Returns and lengths of all episodes, in the order of their starts.

    Raises:
        EnvError: the environment cannot be made. ValueError: no episodes or no environments.

    Example:
        >>> class Left:
        ...     def act(self, observations, deterministic=True):
        ...         return np.zeros(len(observations), np.int64)
        >>> evaluation = evaluate(Left(), "CartPole-v1", episodes=20)
        >>> evaluation.mean, evaluation.lengths.min(), evaluation.lengths.max()
        (9.4, np.int64(8), np.int64(10))
    """
    for name, value in (("episodes", episodes), ("num_envs", num_envs)):
        if not isinstance(value, int | np.integer) or value < 1:
            raise ValueError(f"{name}: got {value!r}, expected an integer of at least 1")
    returns = np.zeros(episodes)
    lengths = np.zeros(episodes, np.int64)
    envs: list[gymnasium.Env[Any, Any]] = []
    try:
        for _ in range(min(num_envs, episodes)):
            envs.append(make_env(env_id, **(env_kwargs or {})))
        # One entry per environment at work: it, its episode's number, its observation.
        running = [(env, number, env.reset(seed=seed + number)[0]) for number, env in enumerate(envs)]
        started, done = len(running), 0
        while running:
            observations = np.stack([observation for _, _, observation in running])
            still_running = []
            for (env, number, _), action in zip(running, policy.act(observations, deterministic), strict=True):
                observation, reward, terminated, truncated, _ = env.step(action)
                returns[number] += float(reward)
                lengths[number] += 1
                if terminated or truncated:
                    done += 1
                    if progress is not None:
                        progress(done, episodes)
                    if started == episodes:
                        continue
                    number, started = started, started + 1
                    observation, _ = env.reset(seed=seed + number)
                still_running.append((env, number, observation))
            running = still_running
    finally:
        for env in envs:
            env.close()
    return Evaluation(env_id, seed, returns, lengths)


def interquartile_mean(values: ArrayLike, axis: int = -1) -> Any:
    """Mean of the middle half: floor(n / 4) values are left out at each end.

    Less moved by outliers than the mean, and less uncertain than the median (Agarwal et al. 2021, "Deep reinforcement
    learning at the edge of the statistical precipice", section 4.3).

    Args:
        values: any shape, not empty along `axis`; NaN gives NaN.
        axis: the axis that goes.

    Returns:
        float64, a scalar where `values` has one axis.

    Example:
        >>> interquartile_mean([0.0, 1.0, 2.0, 3.0, 100.0])
        np.float64(2.0)
    """
    array = np.sort(np.asarray(values, np.float64), axis=axis)  # NaN goes to the end
    length = array.shape[axis]
    if length == 0:
        raise ValueError("values: got no elements, expected at least 1")
    cut = length // 4
    last = np.take(array, -1, axis=axis)
    middle = np.take(array, np.arange(cut, length - cut), axis=axis).mean(axis=axis)
    return np.where(np.isnan(last), np.nan, middle)[()]


def bootstrap_interval(
    values: ArrayLike,
    statistic: Callable[..., Any] = np.mean,
    *,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic of independent values (Efron 1979).

    Args:
        values: (n,), not empty.
        statistic: called as `statistic(array, axis=-1)`, as `np.mean` and `interquartile_mean` are.
        level: probability that the interval is to cover.
        resamples: number of samples of n values drawn with replacement.
        seed: of the draws, so that the interval is a function of its arguments.

    Returns:
        (low, high).

    Example:
        >>> low, high = bootstrap_interval(np.arange(100.0))
        >>> round(low, 1), round(high, 1)
        (43.9, 55.2)
    """
    array = np.asarray(values, np.float64)
    if array.ndim != 1 or not len(array):
        raise ValueError(f"values: got shape {array.shape}, expected (n,) with n of at least 1")
    if not 0.0 < level < 1.0:
        raise ValueError(f"level: got {level}, expected a number between 0 and 1")
    if resamples < 1:
        raise ValueError(f"resamples: got {resamples}, expected at least 1")
    generator = np.random.default_rng(seed)
    at_a_time = max(1, 1_000_000 // len(array))
    outcomes = []
    for start in range(0, resamples, at_a_time):
        rows = min(at_a_time, resamples - start)
        outcomes.append(statistic(array[generator.integers(0, len(array), (rows, len(array)))], axis=-1))
    low, high = np.quantile(np.concatenate(outcomes), [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    return float(low), float(high)
