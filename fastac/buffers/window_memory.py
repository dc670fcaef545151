"""Batches of windows, and their memory as the kernels take it."""

from __future__ import annotations

import operator
from collections.abc import Callable
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastac._arrays import is_tensor
from fastac.buffers.replay import ReplayBuffer, Transitions

_BOOL, _INT64, _FLOAT32 = np.dtype(np.bool_), np.dtype(np.int64), np.dtype(np.float32)
_ROW_FIELDS = ("observations", "actions", "rewards", "next_observations", "terminated", "truncated")


class Sequences(NamedTuple):
    """B windows of L rows, time first; row k of a window is one transition, as in `Transitions`."""

    observations: Any  # (L, B, *observation), or a dict of such: those the actions were chosen in
    actions: Any  # (L, B, *action)
    rewards: Any  # (L, B) float32
    next_observations: Any  # (L, B, *observation): those the transitions led to, before any reset; not of fillers
    terminated: Any  # (L, B) bool
    truncated: Any  # (L, B) bool: a time limit cut the episode here, or the stream breaks off
    is_first: Any  # (L, B) bool: with this row an episode begins (or the stream, after a break or a filler)
    mask: Any  # (L, B) bool: False where the row is padding or a filler
    loss_mask: Any  # (L, B) bool: mask without the burn-in
    indices: Any  # (B,) int64: the windows' first rows
    weights: Any  # (B,) float32, importance weights; None where all windows are drawn alike
    extra: dict[str, Any]  # (L, B, ...) each


class Arrays(NamedTuple):
    """Memory for a batch of windows."""

    rows: tuple[Any, ...]  # (L * B, ...) each, in the order of `gather_windows`
    starts: NDArray[np.int64]  # (B,)
    masks: tuple[NDArray[np.bool_], ...]  # (L, B) each: is_first, mask, loss_mask
    weights: NDArray[np.float32] | None  # (B,)


class WindowMemory:
    """Makes batches of windows, and finds the memory of those that a caller wants filled.

    Args:
        replay: The rows' buffer, which knows the fields.
        length: L.
        weighted: Whether batches have weights.
        lock: Held where the kernels' tables are written.
    """

    def __init__(self, replay: ReplayBuffer, length: int, weighted: bool, lock: Lock):
        self._replay, self._length, self._weighted, self._lock = replay, length, weighted, lock
        self._outs: list[tuple[list[Any], Arrays]] = []

    def allocate(self, size: int, device: Any) -> tuple[Sequences, Arrays]:
        """Returns a fresh batch of `size` windows, of tensors on the CPU unless `device` is None, and its memory."""
        length = self._length
        rows = [np.empty((length * size, *field.shape), field.dtype) for field in self._replay._output_fields[:-2]]
        windows = [x.reshape(length, size, *x.shape[1:]) for x in rows]
        transitions = self._replay._batch([*windows, None, None])
        fields = [getattr(transitions, name) for name in _ROW_FIELDS]
        masks = tuple([np.empty((length, size), np.bool_) for _ in range(3)])
        weights = np.empty(size, np.float32) if self._weighted else None
        arrays = Arrays(tuple(rows), np.empty(size, np.int64), masks, weights)
        batch = Sequences._make([*fields, *masks, arrays.starts, weights, transitions.extra])
        if device is None:
            return batch, arrays
        import torch

        return Sequences._make([mapped(torch.from_numpy, x) for x in batch]), arrays

    def find(self, out: Sequences, size: int) -> Arrays:
        """Returns the memory of a batch to fill, after a look at all of it; that of the last two is known.

        Raises:
            ValueError: A shape is wrong, memory is not contiguous or writable, or two fields share it.
            TypeError: A dtype is wrong, or a field is no array and no tensor on the CPU.
        """
        parts = [part for x in out for part in ([*x, *x.values()] if isinstance(x, dict) else [x])]
        for known, arrays in self._outs:
            if len(arrays.starts) == size and len(known) == len(parts) and all(map(operator.is_, known, parts)):
                return arrays
        if not isinstance(out, Sequences):
            raise TypeError(f"out: got {type(out).__name__}, expected Sequences")
        count, shape, replay = self._length * size, (self._length, size), self._replay

        def flat(x: Any) -> Any:
            x = _array(x)
            if x.shape[:2] != shape or not x.flags.carray:
                raise ValueError(f"out: got shape {x.shape}, expected {(*shape, '...')}, C-contiguous and writable")
            return x.reshape(count, *x.shape[2:])

        rows = [mapped(flat, getattr(out, name)) for name in _ROW_FIELDS]
        scratch = np.empty(count, np.float32), np.empty(count, np.int64)
        items = replay._items_of(Transitions._make([*rows, *scratch, None, mapped(flat, out.extra)]), count)
        with self._lock:  # it writes the table that a kernel may be reading
            replay._check_out(items, count)
        masks = tuple([_checked(name, getattr(out, name), shape, _BOOL) for name in ("is_first", "mask", "loss_mask")])
        starts = _checked("indices", out.indices, (size,), _INT64)
        weights = _checked("weights", out.weights, (size,), _FLOAT32) if self._weighted else None
        arrays = Arrays(items[:-2], starts, masks, weights)
        others = [*masks, starts, *([] if weights is None else [weights])]
        for i, x in enumerate(others):
            if any(np.may_share_memory(x, other) for other in (*items, *others[:i])):
                raise ValueError("out: is_first, mask, loss_mask, indices or weights share memory, with another field")
        self._outs = [*self._outs[-1:], (parts, arrays)]
        return arrays


def mapped(function: Callable[[Any], Any], x: Any) -> Any:
    """`function` of an array, or of each one of a dict; None stays None."""
    if isinstance(x, dict):
        return {name: function(part) for name, part in x.items()}
    return None if x is None else function(x)


def _array(x: Any) -> Any:
    """A tensor's memory as an array."""
    array = x.numpy() if is_tensor(x) and x.device.type == "cpu" else x
    if not isinstance(array, np.ndarray):
        raise TypeError(f"out: got {type(x).__name__}, expected arrays or tensors on the CPU")
    return array


def _checked(name: str, x: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """An array of `out` that the kernel takes as it is."""
    array: NDArray[Any] = _array(x)
    if array.dtype != dtype:
        raise TypeError(f"out: {name}: got dtype {array.dtype}, expected {dtype}")
    if array.shape != shape:
        raise ValueError(f"out: {name}: got shape {array.shape}, expected {shape}")
    if not array.flags.carray:
        raise ValueError(f"out: {name}: expected C-contiguous, writable memory")
    return array


def moved(batch: Sequences, device: Any) -> Sequences:
    """Tensors, moved where they are not on that device already."""
    return batch if str(device) == "cpu" else Sequences._make([mapped(lambda x: x.to(device), x) for x in batch])
