"""Whole episodes of a fixed policy, several batches of them side by side, as the estimators take them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastac.env_state import EnvError

__all__ = ["Episodes", "Trajectory", "pack"]


class Trajectory(NamedTuple):
    """One episode, or what is left of one from some state on.

    Attributes:
        observations: (L + 1, *obs), the last one final: before any reset.
        actions: (L, *action), as the environment took them; (L, 0) where nobody needs them.
        rewards: (L,) float64.
        terminated: It ended by itself; False: it was cut.
    """

    observations: NDArray[Any]
    actions: NDArray[Any]
    rewards: NDArray[np.float64]
    terminated: bool


class Episodes(NamedTuple):
    """R batches of E episodes, one batch a row, its episodes one behind the other: batch-first `(R, T)` tensors.

    Attributes:
        observations: (R, T, *obs), s_t.
        next_observations: (R, T, *obs), s_{t+1}, before any reset.
        rewards: (R, T) float64.
        terminated: (R, T) bool, the transition ended the episode.
        truncated: (R, T) bool, the episode was cut after it.
        mask: (R, T) bool, False behind a batch's last transition.
        first_rows: (R, E) int64, where each episode begins.
    """

    observations: Tensor
    next_observations: Tensor
    rewards: Tensor
    terminated: Tensor
    truncated: Tensor
    mask: Tensor
    first_rows: Tensor


def pack(batches: Sequence[Sequence[Trajectory]]) -> Episodes:
    """Lays out batches of equally many episodes.

    Args:
        batches: R lists of E episodes, none of them empty.

    Returns:
        Observations in the dtype they have; T is the longest batch's number of transitions.

    Raises:
        EnvError: an observation or a reward is not finite.

    Example:
        >>> one = Trajectory(np.array([0, 1]), np.empty((1, 0)), np.array([5.0]), True)
        >>> two = Trajectory(np.array([2, 3, 4]), np.empty((2, 0)), np.array([6.0, 7.0]), False)
        >>> episodes = pack([[one, two], [one, one]])
        >>> episodes.rewards.tolist(), episodes.first_rows.tolist()
        ([[5.0, 6.0, 7.0], [5.0, 5.0, 0.0]], [[0, 1], [0, 1]])
        >>> episodes.next_observations.tolist(), episodes.truncated[0].tolist()
        ([[1, 3, 4], [1, 1, 0]], [False, False, True])
    """
    lengths = [[len(episode.rewards) for episode in batch] for batch in batches]
    shape = (len(batches), max(map(sum, lengths)))
    first = batches[0][0].observations
    observations, next_observations = np.zeros((2, *shape, *first.shape[1:]), first.dtype)
    rewards = np.zeros(shape)
    terminated, truncated, mask = np.zeros((3, *shape), np.bool_)
    first_rows = np.zeros((len(batches), len(batches[0])), np.int64)
    for r, batch in enumerate(batches):
        start = 0
        for e, episode in enumerate(batch):
            end = start + len(episode.rewards)
            observations[r, start:end] = episode.observations[:-1]
            next_observations[r, start:end] = episode.observations[1:]
            rewards[r, start:end] = episode.rewards
            terminated[r, end - 1] = episode.terminated
            truncated[r, end - 1] = not episode.terminated
            first_rows[r, e] = start
            start = end
        mask[r, :start] = True
    for name, array in (("observation", next_observations), ("reward", rewards)):
        if not np.isfinite(array).all():
            raise EnvError(f"the environment gave a {name} that is not finite")
    arrays = (observations, next_observations, rewards, terminated, truncated, mask, first_rows)
    return Episodes(*map(torch.from_numpy, arrays))
