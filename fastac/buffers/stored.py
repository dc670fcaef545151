"""Stored transitions one by one: read as they were added, corrected in place, and window by window.

For whoever has to show a replay buffer's memory as arrays of their own. Indices are those of `Transitions.indices`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastac.buffers.replay import ReplayBuffer, Transitions
from fastac_kernels import ring

__all__ = ["ends", "reward_windows", "rewards", "rows", "set_actions", "set_ends", "set_rewards"]


def rows(buffer: ReplayBuffer, indices: NDArray[np.int64]) -> Transitions:
    """The transitions as they were added, whatever the buffer's `n_step`.

    Args:
        buffer: Where they are stored.
        indices: `(B,)`.

    Returns:
        The batch, as `ReplayBuffer.gather` gives it where n_step is 1.

    Raises:
        IndexError: A transition is not stored.

    Example:
        >>> example = {"observations": np.zeros(1, np.float32), "actions": np.int64(0)}
        >>> buffer = ReplayBuffer.from_example(8, example, n_step=3)
        >>> for t in range(3):
        ...     buffer.add(np.float32([t]), 0, 1.0, np.float32([t + 1]), terminated=False, truncated=False)
        >>> rows(buffer, np.array([0])).next_observations
        array([[1.]], dtype=float32)
    """
    batch, items = buffer._allocate(len(indices), None)
    serials = np.ascontiguousarray(indices, np.int64)
    with buffer._lock:
        n_step = int(buffer._state[ring.N_STEP])
        buffer._state[ring.N_STEP] = 1
        try:
            buffer._gather(items, serials)
        finally:
            buffer._state[ring.N_STEP] = n_step
    return batch


def rewards(buffer: ReplayBuffer, indices: NDArray[np.int64]) -> NDArray[np.float32]:
    """What each transition paid.

    Args:
        buffer: Where they are stored.
        indices: `(B,)`.

    Returns:
        `(B,)`.

    Raises:
        IndexError: A transition is not stored.
    """
    with buffer._lock:
        found: NDArray[np.float32] = _view(buffer, buffer._layout.reward, np.dtype(np.float32))[_slots(buffer, indices)]
    return found


def ends(buffer: ReplayBuffer, indices: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which transitions ended an episode, and how.

    Args:
        buffer: Where they are stored.
        indices: `(B,)`.

    Returns:
        `(terminated, truncated)`, `(B,)` each.

    Raises:
        IndexError: A transition is not stored.
    """
    with buffer._lock:
        at = buffer._layout.reward + ring.FLAGS_AFTER
        flags = buffer._storage.arrays["rows"][_slots(buffer, indices), at]
    return (flags & ring.TERMINATED) != 0, (flags & ring.TRUNCATED) != 0


def reward_windows(buffer: ReplayBuffer, indices: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """The rewards that n-step targets are sums of, undiscounted.

    Args:
        buffer: Where they are stored.
        indices: `(B,)`, of stored transitions.

    Returns:
        `(rewards, inside)`, `(B, n_step)` each: whether row t + k belongs to the window that starts at row t.
    """
    memory, at = buffer._storage.arrays["rows"], buffer._layout.reward
    serials = indices[:, None] + np.arange(buffer.n_step) * (buffer.num_envs or 1)
    slots = serials % len(memory)
    inside = serials < buffer.added
    goes_on = (memory[slots[:, :-1], at + ring.FLAGS_AFTER] & ring.CUT) == 0
    inside[:, 1:] &= np.logical_and.accumulate(goes_on, axis=1)
    return _view(buffer, at, np.dtype(np.float32))[slots], inside


def set_rewards(buffer: ReplayBuffer, indices: NDArray[np.int64], values: ArrayLike) -> None:
    """Gives stored transitions other rewards.

    Args:
        buffer: Where they are stored.
        indices: `(B,)`.
        values: `(B,)`, or what broadcasts to it.

    Raises:
        IndexError: A transition is not stored.
    """
    with buffer._lock:
        slots = _slots(buffer, indices)
        _view(buffer, buffer._layout.reward, np.dtype(np.float32))[slots] = values


def set_actions(buffer: ReplayBuffer, indices: NDArray[np.int64], actions: ArrayLike) -> None:
    """Gives stored transitions other actions.

    Args:
        buffer: Where they are stored.
        indices: `(B,)`.
        actions: `(B, *action)`, or what broadcasts to it.

    Raises:
        IndexError: A transition is not stored.
    """
    layout = buffer._layout
    offset, size = layout.leaves[len(layout.observation_fields)]
    values = np.empty((len(indices), *layout.actions.shape), layout.actions.dtype)
    values[...] = actions
    with buffer._lock:
        slots = _slots(buffer, indices)
        buffer._storage.arrays["rows"][slots, offset : offset + size] = values.reshape(len(indices), -1).view(np.uint8)


def set_ends(buffer: ReplayBuffer, indices: NDArray[np.int64], terminated: ArrayLike, truncated: ArrayLike) -> None:
    """Says anew which stored transitions ended an episode, and how.

    No window of several rows goes on behind an end. Behind a row that has ceased to be one, none does either: whether
    the next row belongs to the same episode is not known any more.

    Args:
        buffer: Where they are stored.
        indices: `(B,)`.
        terminated: `(B,)` bools, or what broadcasts to it.
        truncated: The same.

    Raises:
        IndexError: A transition is not stored.
    """
    new = np.where(terminated, ring.TERMINATED, 0) | np.where(truncated, ring.TRUNCATED, 0)
    new = np.where(new, new | ring.CUT, 0).astype(np.uint8)
    with buffer._lock:
        memory, at = buffer._storage.arrays["rows"], buffer._layout.reward + ring.FLAGS_AFTER
        slots = _slots(buffer, indices)
        memory[slots, at] = memory[slots, at] & np.uint8(255 ^ ring.TERMINATED ^ ring.TRUNCATED) | new


def _slots(buffer: ReplayBuffer, indices: NDArray[np.int64]) -> NDArray[np.int64]:
    added = buffer.added
    if len(indices) and not (indices.min() >= max(added - buffer.capacity, 0) and indices.max() < added):
        raise IndexError(f"indices: expected {max(added - buffer.capacity, 0)} to {added - 1}, which are stored")
    slots: NDArray[np.int64] = indices % len(buffer._storage.arrays["rows"])
    return slots


def _view(buffer: ReplayBuffer, offset: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """A number of every row, in its place."""
    memory = buffer._storage.arrays["rows"]
    return memory[:, offset : offset + dtype.itemsize].view(dtype)[:, 0]
