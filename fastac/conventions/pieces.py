"""Pieces of conventions, each with its way back: shifted flags, flat layouts, truncations folded into rewards."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def starts_from_ends(ended: Any) -> tuple[Any, Any]:
    """NDArray[np.bool_] of transitions as flags of the rows that start an episode, and the flag after the last row.

    Args:
        ended: `(T, N)` or `(T,)` array: transition t ended the episode.

    Returns:
        `(starts, next_start)`: `starts[t]` is `ended[t - 1]`, False in row 0; `next_start` is `ended[-1]`.

    Example:
        >>> starts_from_ends(np.array([True, False, True]))
        (array([False,  True, False]), np.True_)
    """
    starts = np.zeros_like(ended)
    starts[1:] = ended[:-1]
    return starts, ended[-1]


def ends_from_starts(starts: Any, next_start: Any) -> Any:
    """The way back: flags of the rows that start an episode as flags of the transitions that ended one.

    Args:
        starts: `(T, N)` or `(T,)` array or tensor: row t starts an episode. Row 0 says nothing about this window.
        next_start: `(N,)` or a scalar: the observation after the last row starts one.

    Returns:
        `ended`, of the shape of `starts`.

    Example:
        >>> ends_from_starts(np.array([False, True, False]), True)
        array([ True, False,  True])
    """
    ended = starts.new_empty(starts.shape) if hasattr(starts, "new_empty") else np.empty_like(starts)
    ended[:-1] = starts[1:]
    ended[-1:] = next_start
    return ended


def ends_from_dones(dones: Any, timeouts: Any) -> tuple[Any, Any]:
    """One flag for an episode's end and one for time limits, as how each transition ended: Stable-Baselines3's replay.

    Args:
        dones: Array of any shape: transition t ended the episode.
        timeouts: Of the same shape: a time limit did.

    Returns:
        `(terminated, truncated)`, bool.

    Example:
        >>> ends_from_dones(np.array([0.0, 1.0, 1.0]), np.array([0.0, 0.0, 1.0]))
        (array([False,  True, False]), array([False, False,  True]))
    """
    truncated = np.asarray(timeouts) != 0
    return (np.asarray(dones) != 0) & ~truncated, truncated


def dones_from_ends(terminated: Any, truncated: Any) -> tuple[Any, Any]:
    """The way back: one flag for an episode's end and one for time limits. Terminated wins where both are set.

    Args:
        terminated: Array of any shape: transition t ended the episode.
        truncated: Of the same shape: a time limit did.

    Returns:
        `(dones, timeouts)`, bool.

    Example:
        >>> dones_from_ends(np.array([False, True, False]), np.array([False, False, True]))
        (array([False,  True,  True]), array([False, False,  True]))
    """
    ended, cut = np.asarray(terminated) != 0, np.asarray(truncated) != 0
    return ended | cut, cut & ~ended


def by_environment(x: NDArray[Any]) -> NDArray[Any]:
    """`(T, N)` as one flat array, one environment's rows after the other's.

    Args:
        x: The array.

    Returns:
        `(N T,)`, contiguous.
    """
    return np.ascontiguousarray(x.T).reshape(-1)


def from_environments(x: Any, like: NDArray[Any]) -> NDArray[Any]:
    """The way back from `by_environment`.

    Args:
        x: `(N T,)`.
        like: A `(T, N)` array that says the shape.

    Returns:
        `(T, N)`.
    """
    length, count = like.shape
    return np.asarray(x).reshape(count, length).T


def fold_truncations(
    rewards: NDArray[Any], next_values: NDArray[Any], cut: NDArray[np.bool_], gamma: float
) -> NDArray[Any]:
    """Rewards to which the future behind a time limit is added, so that one flag is enough.

    Args:
        rewards: `(T, N)`.
        next_values: `(T, N)`, V(s_{t+1}).
        cut: Where a time limit, and not a termination, ended the episode.
        gamma: Discount per time step.

    Returns:
        `rewards + gamma next_values` where `cut`, else `rewards`.
    """
    return np.where(cut, rewards + gamma * next_values, rewards)
