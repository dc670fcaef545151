"""Stored transitions as the arrays that Stable-Baselines3's buffers have, `(buffer_size, n_envs, ...)`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastac.buffers import ReplayBuffer

__all__ = ["StoredArray"]


@functools.lru_cache(maxsize=8)
def _cells(steps: int, envs: int) -> NDArray[np.int64]:
    """The numbers of all cells of a ring: numpy's own indexing of them says which cells a key means."""
    cells = np.arange(steps * envs).reshape(steps, envs)
    cells.flags.writeable = False
    return cells


class StoredArray(np.lib.mixins.NDArrayOperatorsMixin):
    """One field of all transitions, indexed by position in Stable-Baselines3's ring and by environment.

    Reading gives a copy. Cells that hold no transition yet are 0. What the field allows is written through to the
    buffer: rewards, actions and flags; observations are shared by neighbouring transitions and cannot be assigned.

    Args:
        inner: The buffer.
        shape: Of one transition's part.
        dtype: Of the array.
        read: Gives `(B, *shape)` for indices of stored transitions.
        write: Takes such indices and values; None: read-only.

    Attributes:
        shape: Of the whole array.
        dtype: Its dtype.
    """

    def __init__(
        self,
        inner: ReplayBuffer,
        shape: tuple[int, ...],
        dtype: Any,
        read: Callable[[NDArray[np.int64]], NDArray[Any]],
        write: Callable[[NDArray[np.int64], NDArray[Any]], None] | None = None,
    ) -> None:
        self._inner, self._read, self._write = inner, read, write
        self._envs = inner.num_envs or 1
        self._steps = inner.capacity // self._envs
        self._part = shape
        self.shape = (self._steps, self._envs, *shape)
        self.dtype = np.dtype(dtype)
        self.ndim = len(self.shape)

    def __len__(self) -> int:
        return self._steps

    def __repr__(self) -> str:
        return f"StoredArray(shape={self.shape}, dtype={self.dtype})"

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("a stored array cannot be had without a copy")
        whole: NDArray[Any] = self[...]
        return whole if dtype is None else whole.astype(dtype, copy=False)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self[...], name)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        if any(x is self for x in options.get("out", ())):  # rewards *= 2
            options.pop("out")
            self[...] = self.__array_ufunc__(ufunc, method, *inputs, **options)
            return self
        arrays = [x[...] if isinstance(x, StoredArray) else x for x in inputs]
        return getattr(ufunc, method)(*arrays, **options)

    def __getitem__(self, key: Any) -> Any:
        parts = self._parts(key)
        if parts is None:
            return self[...][key]
        cells, rest = parts
        found = self._gather(cells)
        return found[(slice(None),) * cells.ndim + rest] if cells.ndim or self._part else found[()]

    def __setitem__(self, key: Any, value: Any) -> None:
        if self._write is None:
            raise TypeError(
                "observations cannot be assigned: neighbouring transitions share them; use add or extend instead"
            )
        parts = self._parts(key)
        if parts is None:
            raise IndexError(f"cannot assign with {key!r}: expected positions, environments, then slices")
        cells, rest = parts
        if (self._indices(cells) < 0).any():
            raise IndexError("cannot assign where no transition was added yet; use add or extend instead")
        new = self._gather(cells)
        new[(slice(None),) * cells.ndim + rest] = value
        self._write(self._indices(cells).reshape(-1), new.reshape(-1, *self._part))

    def _parts(self, key: Any) -> tuple[NDArray[np.int64], tuple[Any, ...]] | None:
        """The cells that a key means and what it says of the dimensions after them; None: too much for that."""
        key = key if isinstance(key, tuple) else (key,)
        if any(part is None for part in key):
            return None
        for i, part in enumerate(key):
            if part is Ellipsis:
                key = (*key[:i], *[slice(None)] * (self.ndim - len(key) + 1), *key[i + 1 :])
                break
        masks_cells = np.ndim(key[0]) == 2 and np.asarray(key[0]).dtype == np.bool_
        used = 1 if masks_cells else 2
        if any(not isinstance(part, slice) for part in key[used:]):
            return None
        return np.asarray(_cells(self._steps, self._envs)[key[:used]]), key[used:]

    def _indices(self, cells: NDArray[np.int64]) -> NDArray[np.int64]:
        """The serial numbers of the transitions in these cells, below 0 where there is none."""
        newest = self._inner.added // self._envs - 1
        position, env = np.divmod(cells, self._envs)
        indices: NDArray[np.int64] = (newest - (newest - position) % self._steps) * self._envs + env
        return np.where(indices < 0, -1, indices)

    def _gather(self, cells: NDArray[np.int64]) -> NDArray[Any]:
        indices = self._indices(cells).reshape(-1)
        held = indices >= 0
        if held.all():
            values = self._read(indices).astype(self.dtype, copy=False)
        else:
            values = np.zeros((len(indices), *self._part), self.dtype)
            values[held] = self._read(indices[held])
        return values.reshape((*cells.shape, *self._part))
