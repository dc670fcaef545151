"""Rollouts of a fixed policy: whole episodes, and any number of continuations from a state that it visited.

A Gymnasium environment has no way to be put into a state. A state is reached again by resetting with the same seed and
replaying the actions (`fastac.env_state`). From there on the continuations have to differ: each draws its own actions,
and each gets a generator of its own, since a replayed one would throw the same dice in all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from fastac.acting import ArrayActor
from fastac.env_state import EnvError, Replayable
from fastac.episodes import Trajectory
from fastac.policy import Policy

__all__ = ["Act", "Start", "play", "sampler"]

Act = Callable[[NDArray[Any]], NDArray[Any]]
"""Draws actions (B, *action), as the environment takes them, for observations (B, *obs)."""


class Start(NamedTuple):
    """Where an episode begins.

    Attributes:
        seed: Of the environment's reset.
        actions: (t, *action), replayed after it; None for none.
        then_seed: Of the generator that the environment goes on with after the replay; None keeps its own.
        expected: The observation that the replay has to end on; None for any.
    """

    seed: int
    actions: NDArray[Any] | None = None
    then_seed: int | None = None
    expected: NDArray[Any] | None = None


def sampler(policy: Policy | None, action_space: Any, seed: int) -> Act:
    """Returns what draws a policy's actions from a generator of its own; no policy: uniformly from the space.

    Example:
        >>> from gymnasium.spaces import Discrete
        >>> sampler(None, Discrete(2), seed=0)(np.zeros((3, 4))).shape
        (3,)
    """
    if policy is None:
        action_space.seed(seed)
        return lambda observations: np.array([action_space.sample() for _ in observations])
    acting = ArrayActor(policy.actor)
    generator = torch.Generator().manual_seed(seed)

    def act(observations: NDArray[Any]) -> NDArray[Any]:
        noise = acting.noise((len(observations),), generator)
        return policy.environment_actions(acting.sample(policy.observe(observations), noise))

    return act


def play(envs: Sequence[Replayable], starts: Iterable[Start], act: Act, *, max_steps: int) -> list[Trajectory]:
    """Plays an episode from each start to its end, several at a time, or cuts it after `max_steps`.

    Args:
        envs: As many as are to run at a time.
        starts: Where the episodes begin.
        act: Called with a batch of observations.
        max_steps: Transitions after which an episode is cut, those replayed not counted.

    Returns:
        The episodes in the order of their starts, each from where its replay ended.

    Raises:
        EnvError: a replay did not lead where it should.

    Example:
        >>> from fastac.env_base import make_env
        >>> envs = [Replayable(make_env("CartPole-v1"))]
        >>> (episode,) = play(envs, [Start(0)], lambda observations: np.zeros(len(observations), int), max_steps=100)
        >>> again = Start(0, episode.actions[:3], then_seed=1, expected=episode.observations[3])
        >>> (rest,) = play(envs, [again], lambda observations: np.zeros(len(observations), int), max_steps=100)
        >>> len(episode.rewards), len(rest.rewards), np.array_equal(rest.observations, episode.observations[3:])
        (11, 8, True)
    """
    waiting = enumerate(starts)
    found: dict[int, Trajectory] = {}
    running = [run for env in envs if (run := _next(env, waiting)) is not None]
    while running:
        actions = act(np.stack([run.observations[-1] for run in running]))
        still_running = []
        for run, action in zip(running, actions, strict=True):
            observation, reward, terminated, truncated, _ = run.env.step(action)
            run.observations.append(np.array(observation))
            run.actions.append(action)
            run.rewards.append(float(reward))
            if terminated or truncated or len(run.rewards) == max_steps:
                found[run.number] = Trajectory(
                    np.stack(run.observations), np.stack(run.actions), np.array(run.rewards), bool(terminated)
                )
                following = _next(run.env, waiting)
                if following is None:
                    continue
                run = following
            still_running.append(run)
        running = still_running
    return [found[number] for number in sorted(found)]


class _Running(NamedTuple):
    env: Replayable
    number: int
    observations: list[NDArray[Any]]
    actions: list[NDArray[Any]]
    rewards: list[float]


def _next(env: Replayable, waiting: Iterator[tuple[int, Start]]) -> _Running | None:
    for number, start in waiting:
        env.to_replay = (start.seed, None, np.empty(0) if start.actions is None else start.actions)
        observation = env.replay()
        if start.expected is not None and observation.tobytes() != start.expected.tobytes():
            name = "the environment" if env.spec is None else env.spec.id
            raise EnvError(f"{name} did not come back to a state it was in: it depends on more than seed and actions")
        if start.then_seed is not None:
            env.unwrapped.np_random = np.random.default_rng(start.then_seed)
        return _Running(env, number, [observation], [], [])
    return None
