"""What policy evaluation needs of an environment and a fixed policy: batches of episodes, and true values.

A finite environment (one with Gymnasium's transition table `P`, as FrozenLake) has exact values. Of any other, the
values of some visited states are measured: restored, played on many times, averaged.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Discrete
from numpy.typing import NDArray
from torch import Tensor, nn

from fastac.critics import MLPCritics, TableCritics
from fastac.env_base import attempt, make_env
from fastac.env_state import EnvError, Replayable
from fastac.episodes import Episodes, Trajectory, pack
from fastac.images import image_of
from fastac.policy import Policy, load
from fastac.rollouts import Act, Start, play, sampler
from fastac.tabular import MarkovRewardProcess, from_transition_table

__all__ = ["FiniteProblem", "Problem", "SampledProblem", "make_problem"]

# Streams of random numbers, each with a seed sequence of its own.
BATCHES, STATES, TRUTH, CONTINUATIONS, WEIGHTS = range(5)
NUM_ENVS = 32
# Rollouts for the truth end where what is left counts less than this part of a value.
TAIL = 1e-3


class Problem(ABC):
    """A fixed policy in an environment, and M states whose values are known or measured.

    Attributes:
        policy: None is uniformly random.
        observations: (M, *obs), of the M states, as the critics take them.
        truth: (M,) float64, V of them; NaN where not measured yet.
        truth_se: (M,) float64, its standard error; 0 where it is exact.
    """

    policy: Policy | None = None
    observations: Tensor
    truth: NDArray[np.float64]
    truth_se: NDArray[np.float64]

    def __init__(self, seed: int):
        self.seed = seed

    def measure(self, stopped: Callable[[], bool]) -> Iterable[int]:
        """Fills in `truth`, going on behind what is there; yields the number of states done, and stops where told."""
        return ()

    @abstractmethod
    def make_critics(self, count: int) -> nn.Module:
        """Returns `count` fresh value functions, the same ones at each call."""

    @abstractmethod
    def batches(self, count: int, size: int) -> list[list[Trajectory]]:
        """Returns `count` batches of `size` episodes, the same ones at each call."""

    @abstractmethod
    def continuations(self, count: int) -> list[list[Trajectory]]:
        """Returns `count` batches of M episodes, one from each of the M states on, the same ones at each call."""

    def pack(self, batches: list[list[Trajectory]]) -> Episodes:
        """Returns the batches as the estimators and the critics take them."""
        return pack(batches)

    def seeds(self, count: int, *stream: int) -> list[int]:
        """Returns seeds of a stream of random numbers."""
        words: list[int] = np.random.SeedSequence(self.seed, spawn_key=stream).generate_state(count, np.uint32).tolist()
        return words


class FiniteProblem(Problem):
    """A Markov reward process, all of whose visited states count alike."""

    def __init__(self, process: MarkovRewardProcess, *, gamma: float, seed: int, max_episode_steps: int):
        super().__init__(seed)
        self.process, self.max_episode_steps = process, max_episode_steps
        self.states = np.flatnonzero(process.visited())
        self.observations = torch.from_numpy(self.states)
        self.truth = process.values(gamma)[self.states]
        self.truth_se = np.zeros(len(self.states))

    def make_critics(self, count: int) -> nn.Module:
        """See `Problem.make_critics`."""
        return TableCritics(count, len(self.process.start_probs))

    def batches(self, count: int, size: int) -> list[list[Trajectory]]:
        """See `Problem.batches`."""
        generator = np.random.default_rng(self.seeds(4, BATCHES))
        probs = self.process.start_probs
        starts = generator.choice(len(probs), count * size, p=probs / probs.sum())
        return self._play(starts, size, generator)

    def continuations(self, count: int) -> list[list[Trajectory]]:
        """See `Problem.continuations`."""
        generator = np.random.default_rng(self.seeds(4, CONTINUATIONS))
        return self._play(np.tile(self.states, count), len(self.states), generator)

    def _play(self, starts: NDArray[np.int64], size: int, generator: np.random.Generator) -> list[list[Trajectory]]:
        episodes = self.process.sample(starts, generator, max_episode_steps=self.max_episode_steps)
        return [episodes[i : i + size] for i in range(0, len(episodes), size)]


class SampledProblem(Problem):
    """An environment with vectors as observations; M visited states, valued by rollouts without the time limit.

    A time limit is no part of what is estimated: the estimators' future at a truncation is V of its observation. So
    the rollouts go on where the limit would have struck, until what is left is below a thousandth by discounting.

    Args:
        env_id: The environment.
        policy: Fixed; None is uniformly random.
        gamma: Discount.
        seed: Of everything random.
        max_episode_steps: Where the episodes of the batches are cut, if the environment does not cut them earlier.
        num_eval_states: M, drawn from the states that another M episodes visit.
        num_rollouts: Rollouts from each of them.
        hidden_sizes: Of the critics.
    """

    def __init__(
        self,
        env_id: str,
        policy: Policy | None,
        *,
        gamma: float,
        seed: int,
        max_episode_steps: int,
        num_eval_states: int,
        num_rollouts: int,
        hidden_sizes: tuple[int, ...],
    ):
        super().__init__(seed)
        self.env_id, self.policy, self.gamma = env_id, policy, gamma
        self.max_episode_steps, self.num_rollouts, self.hidden_sizes = max_episode_steps, num_rollouts, hidden_sizes
        self.horizon = max(1, math.ceil(math.log(TAIL) / math.log(gamma))) if 0.0 < gamma < 1.0 else max_episode_steps
        if gamma == 0.0:
            self.horizon = 1
        episodes = self._play([Start(seed) for seed in self.seeds(num_eval_states, STATES)], STATES, limited=True)
        visited = [(number, t) for number, episode in enumerate(episodes) for t in range(len(episode.rewards))]
        drawn = np.random.default_rng(self.seeds(4, STATES, 1)).choice(len(visited), num_eval_states, replace=False)
        seeds = self.seeds(num_eval_states, STATES)
        places = [visited[i] for i in np.sort(drawn)]
        states = np.stack([episodes[number].observations[t] for number, t in places])
        self.starts = [
            Start(seeds[number], episodes[number].actions[:t], None, state)
            for (number, t), state in zip(places, states, strict=True)
        ]
        seen = np.concatenate([episode.observations[:-1] for episode in episodes]).astype(np.float64)
        self._mean, self._std = seen.mean(0), seen.std(0)
        self._std[self._std == 0.0] = 1.0
        self.observations = torch.from_numpy(self._seen(states))
        self.truth, self.truth_se = np.full((2, num_eval_states), np.nan)

    def measure(self, stopped: Callable[[], bool]) -> Iterable[int]:
        """See `Problem.measure`."""
        for m in np.flatnonzero(np.isnan(self.truth)).tolist():
            if stopped():
                return
            starts = [self.starts[m]._replace(then_seed=seed) for seed in self.seeds(self.num_rollouts, TRUTH, m)]
            returns = [
                float(self.gamma ** np.arange(len(episode.rewards)) @ episode.rewards)
                for episode in self._play(starts, TRUTH, m)
            ]
            self.truth[m] = np.mean(returns)
            self.truth_se[m] = np.std(returns, ddof=1) / math.sqrt(len(returns)) if len(returns) > 1 else math.nan
            yield m + 1

    def make_critics(self, count: int) -> nn.Module:
        """See `Problem.make_critics`."""
        generator = torch.Generator().manual_seed(self.seeds(1, WEIGHTS)[0])
        return MLPCritics(count, [self.observations.shape[1], *self.hidden_sizes], generator=generator)

    def batches(self, count: int, size: int) -> list[list[Trajectory]]:
        """See `Problem.batches`."""
        starts = [Start(seed) for seed in self.seeds(count * size, BATCHES)]
        episodes = self._play(starts, BATCHES, limited=True)
        return [episodes[i : i + size] for i in range(0, len(episodes), size)]

    def continuations(self, count: int) -> list[list[Trajectory]]:
        """See `Problem.continuations`."""
        size = len(self.starts)
        seeds = self.seeds(count * size, CONTINUATIONS)
        episodes = self._play(
            [start._replace(then_seed=seed) for start, seed in zip(self.starts * count, seeds, strict=True)],
            CONTINUATIONS,
        )
        return [episodes[i : i + size] for i in range(0, len(episodes), size)]

    def pack(self, batches: list[list[Trajectory]]) -> Episodes:
        """See `Problem.pack`; the critics see standardised observations."""
        return pack([[e._replace(observations=self._seen(e.observations)) for e in batch] for batch in batches])

    def _seen(self, observations: NDArray[Any]) -> NDArray[np.float64]:
        standardised: NDArray[np.float64] = (observations.astype(np.float64) - self._mean) / self._std
        return standardised

    def _play(self, starts: list[Start], *stream: int, limited: bool = False) -> list[Trajectory]:
        """Episodes of the environment as it is registered, or without its time limit to the horizon."""
        kwargs: dict[str, Any] = {"disable_env_checker": True} | ({} if limited else {"max_episode_steps": -1})
        envs: list[Replayable] = []
        try:
            while len(envs) < min(NUM_ENVS, len(starts)):
                envs.append(Replayable(make_env(self.env_id, **kwargs)))
            act: Act = sampler(self.policy, envs[0].action_space, self.seeds(1, *stream, 2)[0])
            episodes = play(envs, starts, act, max_steps=self.max_episode_steps if limited else self.horizon)
        finally:
            for env in envs:
                env.close()
        if not limited and self.gamma == 1.0 and not all(episode.terminated for episode in episodes):
            raise EnvError(
                f"gamma: got 1.0, but a rollout of {self.env_id} did not end within max_episode_steps "
                f"({self.max_episode_steps}); expected gamma below 1 or more steps"
            )
        return episodes


def make_problem(
    env_id: str,
    policy: str,
    *,
    gamma: float,
    seed: int,
    max_episode_steps: int,
    num_eval_states: int,
    num_rollouts: int,
    hidden_sizes: tuple[int, ...],
) -> Problem:
    """Returns the finite problem of an environment with a transition table, the sampled one of any other.

    Args:
        env_id: Gymnasium's id; `module:Id` imports the module first.
        policy: "random", or the folder of a run.
        gamma: Discount.
        seed: Of everything random.
        max_episode_steps: See `SampledProblem`, as for the others; they are not used where values are exact.
        num_eval_states: M.
        num_rollouts: From each.
        hidden_sizes: Of the critics.

    Raises:
        EnvError: the environment cannot be made or evaluated, or the policy was not made for it.
        fastac.checkpoint.CheckpointError: there is no policy where `policy` says.
    """
    env: gymnasium.Env[Any, Any] = attempt(env_id, lambda: gymnasium.make(env_id))
    env.close()
    table = getattr(env.unwrapped, "P", None)
    if isinstance(env.observation_space, Discrete) and table is not None:
        if policy != "random":
            raise EnvError(f"policy: got {policy!r}, expected 'random' where observations are Discrete")
        try:
            process = from_transition_table(table, getattr(env.unwrapped, "initial_state_distrib"))  # noqa: B009
            limit = None if env.spec is None else env.spec.max_episode_steps
            steps = min(max_episode_steps, limit or max_episode_steps)
            return FiniteProblem(process, gamma=gamma, seed=seed, max_episode_steps=steps)
        except (AttributeError, ValueError) as error:
            raise EnvError(f"env_id {env_id!r}: {error}") from error
    make_env(env_id).close()  # says what is wrong with its spaces
    if image_of(env.observation_space) is not None:
        raise EnvError(f"env_id {env_id!r}: its observations are images, expected a Box of one dimension here")
    loaded = None if policy == "random" else load(Path(policy))
    if loaded is not None and (
        loaded.observation_space.shape != env.observation_space.shape or loaded.action_space != env.action_space
    ):
        raise EnvError(f"policy: that of {policy} acts on {loaded.observation_space}, not in {env_id}")
    return SampledProblem(
        env_id,
        loaded,
        gamma=gamma,
        seed=seed,
        max_episode_steps=max_episode_steps,
        num_eval_states=num_eval_states,
        num_rollouts=num_rollouts,
        hidden_sizes=hidden_sizes,
    )
