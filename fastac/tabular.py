"""Finite environments under a fixed policy: exact values, and episodes at the speed of array operations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Discrete
from numpy.typing import ArrayLike, NDArray

from fastac.episodes import Trajectory

__all__ = ["MarkovRewardProcess", "RandomWalk", "from_transition_table"]


@dataclass(frozen=True)
class MarkovRewardProcess:
    """A finite MDP with the policy put in: each of S states has K outcomes (those that it has not, probability 0).

    Attributes:
        start_probs: (S,), of the first state.
        probs: (S, K), of the outcomes.
        next_states: (S, K) int64.
        rewards: (S, K) float64.
        terminated: (S, K) bool, the outcome ends the episode; its next state is then never visited.
    """

    start_probs: NDArray[np.float64]
    probs: NDArray[np.float64]
    next_states: NDArray[np.int64]
    rewards: NDArray[np.float64]
    terminated: NDArray[np.bool_]

    def values(self, gamma: float) -> NDArray[np.float64]:
        """Returns V, (S,): the solution of (I - gamma P) V = r (Sutton and Barto 2018, equation 4.4 as a system).

        States that no episode visits have NaN.

        Raises:
            ValueError: gamma is 1 and from some visited state on the episode need not end.

        Example:
            >>> from_transition_table(RandomWalk(5).P, RandomWalk(5).initial_state_distrib).values(1.0).round(4)
            array([0.1667, 0.3333, 0.5   , 0.6667, 0.8333])
        """
        visited = self.visited()
        states, size = np.flatnonzero(visited), len(visited)
        goes_on = np.where(self.terminated, 0.0, self.probs)
        P = np.zeros((size, size))
        np.add.at(P, (np.arange(size)[:, None], self.next_states), goes_on)
        if gamma == 1.0 and not self._always_ends(P, states):
            raise ValueError("gamma: got 1.0, expected below 1 where an episode need not end")
        system = np.eye(len(states)) - gamma * P[np.ix_(states, states)]
        values = np.full(size, np.nan)
        values[states] = np.linalg.solve(system, (self.probs * self.rewards).sum(1)[states])
        return values

    def visited(self) -> NDArray[np.bool_]:
        """Returns which states an episode can be in before it ends, (S,)."""
        visited = self.start_probs > 0.0
        possible = (self.probs > 0.0) & ~self.terminated
        while True:
            reached = visited.copy()
            reached[self.next_states[possible & visited[:, None]]] = True
            if np.array_equal(reached, visited):
                return visited
            visited = reached

    def sample(
        self, states: NDArray[np.int64], generator: np.random.Generator, *, max_episode_steps: int
    ) -> list[Trajectory]:
        """Plays one episode from each of `states`; what has not ended after `max_episode_steps` is cut.

        Example:
            >>> walk = from_transition_table(RandomWalk(5).P, RandomWalk(5).initial_state_distrib)
            >>> episodes = walk.sample(np.array([2, 2]), np.random.default_rng(0), max_episode_steps=1000)
            >>> [len(episode.rewards) for episode in episodes], [episode.rewards.sum() for episode in episodes]
            ([5, 13], [np.float64(1.0), np.float64(1.0)])
        """
        count = len(states)
        cumulative = self.probs.cumsum(1)
        cumulative[:, -1] = np.inf  # where rounding leaves the sum below 1
        path = [np.array(states, np.int64)]
        rewards: list[NDArray[np.float64]] = []
        ended, lengths = np.zeros(count, np.bool_), np.zeros(count, np.int64)
        going = np.arange(count)
        while len(going) and len(rewards) < max_episode_steps:
            now = path[-1][going]
            # The first outcome whose cumulative probability exceeds a uniform number; never one of probability 0.
            drawn = (generator.random((len(going), 1)) >= cumulative[now]).sum(1)
            drawn = np.minimum(drawn, self._last_outcomes[now])
            states_after, paid = path[-1].copy(), np.zeros(count)
            states_after[going] = self.next_states[now, drawn]
            paid[going] = self.rewards[now, drawn]
            path.append(states_after)
            rewards.append(paid)
            lengths[going] += 1
            ended[going] = self.terminated[now, drawn]
            going = going[~ended[going]]
        all_states, all_rewards = np.stack(path, 1), np.stack(rewards, 1)
        nothing = np.empty((all_rewards.shape[1], 0))
        return [
            Trajectory(all_states[i, : length + 1], nothing[:length], all_rewards[i, :length], bool(ended[i]))
            for i, length in enumerate(lengths)
        ]

    @property
    def _last_outcomes(self) -> NDArray[np.intp]:
        possible = self.probs > 0.0
        return np.asarray(possible.shape[1] - 1 - possible[:, ::-1].argmax(1))

    def _always_ends(self, P: NDArray[np.float64], states: NDArray[np.intp]) -> bool:
        """Whether from every one of `states` an outcome that ends the episode can be reached."""
        ends: NDArray[np.bool_] = np.any((self.probs > 0.0) & self.terminated, axis=1)
        for _ in states:
            ends = ends | (P[:, ends] > 0.0).any(1)
        return bool(ends[states].all())


def from_transition_table(
    table: Mapping[int, Mapping[int, Sequence[tuple[float, int, float, bool]]]],
    start_probs: ArrayLike,
    policy: ArrayLike | None = None,
) -> MarkovRewardProcess:
    """Puts a policy into the transition table of one of Gymnasium's toy-text environments.

    Args:
        table: `table[state][action]` is a list of (probability, next state, reward, terminated).
        start_probs: (S,), of the first state.
        policy: (S, A), pi(a | s); None: every action is as likely.

    Returns:
        The Markov reward process that is left.

    Raises:
        ValueError: probabilities that do not add up to 1.

    Example:
        >>> coin = {0: {0: [(0.5, 0, 1.0, False), (0.5, 0, 0.0, True)]}}
        >>> from_transition_table(coin, [1.0]).values(1.0)
        array([1.])
    """
    start = np.asarray(start_probs, np.float64)
    size = len(table)
    outcomes: list[list[tuple[float, int, float, bool]]] = []
    for state in range(size):
        actions = table[state]
        chances = [1.0 / len(actions)] * len(actions) if policy is None else np.asarray(policy, np.float64)[state]
        rows = zip(chances, (actions[action] for action in range(len(actions))), strict=True)
        outcomes.append([(pi * p, after, reward, end) for pi, row in rows for p, after, reward, end in row])
    width = max(map(len, outcomes))
    padded = [row + [(0.0, 0, 0.0, True)] * (width - len(row)) for row in outcomes]
    probs, next_states, rewards, terminated = (np.array([[o[i] for o in row] for row in padded]) for i in range(4))
    for name, array in (("start_probs", start[None]), ("table and policy", probs)):
        if (array < 0.0).any() or not np.allclose(array.sum(1), 1.0, rtol=0.0, atol=1e-6):
            raise ValueError(f"{name}: got probabilities that add up to {array.sum(1)}, expected 1")
    return MarkovRewardProcess(
        start, probs, next_states.astype(np.int64), rewards.astype(np.float64), terminated.astype(np.bool_)
    )


class RandomWalk(gymnasium.Env[Any, Any]):
    """S states in a row, a step to the left or to the right, an end at both sides (Sutton and Barto 2018, example 6.2).

    Under the policy that takes either with probability 1/2, and with a reward of 1 at the right end alone, V of state i
    (from 1) is i / (S + 1).

    Args:
        num_states: S, odd: episodes start in the middle.
        left_reward: What falling off the left end pays; example 7.1 has 19 states and -1.

    Example:
        >>> walk = RandomWalk(5)
        >>> walk.reset(seed=0)[0], walk.step(1)[:3]
        (2, (3, 0.0, False))
    """

    def __init__(self, num_states: int = 5, left_reward: float = 0.0):
        if num_states < 1 or num_states % 2 == 0:
            raise ValueError(f"num_states: got {num_states}, expected an odd number of at least 1")
        self.observation_space, self.action_space = Discrete(num_states), Discrete(2)
        self.initial_state_distrib = np.eye(num_states)[num_states // 2]
        last = num_states - 1
        self.P = {
            state: {
                0: [(1.0, max(state - 1, 0), left_reward if state == 0 else 0.0, state == 0)],
                1: [(1.0, min(state + 1, last), float(state == last), state == last)],
            }
            for state in range(num_states)
        }
        self._state = num_states // 2

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        """Starts in the middle."""
        super().reset(seed=seed)
        self._state = len(self.P) // 2
        return self._state, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        """0 goes left, 1 right."""
        ((_, self._state, reward, terminated),) = self.P[self._state][int(action)]
        return self._state, reward, terminated, False, {}


gymnasium.register("fastac/RandomWalk5-v0", "fastac.tabular:RandomWalk", kwargs={"num_states": 5})
gymnasium.register(
    "fastac/RandomWalk19-v0", "fastac.tabular:RandomWalk", kwargs={"num_states": 19, "left_reward": -1.0}
)
