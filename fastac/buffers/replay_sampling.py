"""Sampling from a ring: batches drawn uniformly, or gathered by index, into fresh or given memory."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastac._arrays import is_tensor, positive_integer
from fastac.buffers import fields
from fastac.buffers.replay_ring import Ring
from fastac_kernels import ring
from fastac_kernels._jit import opened
from fastac_kernels.sampling import EMPTY, FINE, draw_distinct, sample

_ndarray, _empty, _new = np.ndarray, np.empty, tuple.__new__


class Transitions(NamedTuple):
    """A batch of transitions; every array has the batch in its first dimension."""

    observations: Any  # (B, *observation), or a dict of such
    actions: Any  # (B, *action)
    rewards: Any  # (B,) float32, sum over k < m of gamma^k r_{t+k}
    next_observations: Any  # those that row t + m - 1 led to, before any reset
    terminated: Any  # (B,) bool, of row t + m - 1
    truncated: Any  # (B,) bool, of row t + m - 1
    discounts: Any  # (B,) float32, gamma^m
    indices: Any  # (B,) int64, the serial number of row t
    weights: Any  # (B,) float32, importance weights; None where all are drawn alike
    extra: dict[str, Any]  # (B, ...) each


class Sampling(Ring):
    """The part of a replay buffer that gives batches out."""

    def sample(
        self, batch_size: int, *, replace: bool = True, device: Any = None, out: Transitions | None = None
    ) -> Transitions:
        """Draws a batch uniformly among all stored transitions.

        Args:
            batch_size: B.
            replace: Whether a transition may be drawn more than once. False: all different, in random order.
            device: None: numpy arrays. Else tensors on that device.
            out: A batch to fill, such as an earlier result (arrays, or tensors on the CPU), which is returned.

        Returns:
            The batch.

        Raises:
            ValueError: The buffer holds nothing to draw (without replacement: fewer than B), or `out` does not fit.
            TypeError: `batch_size` is no integer, or `out` has other dtypes.
        """
        if type(batch_size) is not int or batch_size < 1:
            batch_size = positive_integer("batch_size", batch_size)
        if not replace:
            return self._sample_distinct(batch_size, device, out)
        if out is None:
            batch, items = self._allocate(batch_size, device)
        else:
            batch, items = out, self._items_of(out, batch_size)
        with self._lock:
            code = self._sample(self._at, items, batch_size, 0)
            if code != FINE:
                if code != EMPTY:
                    self._check_out(items, batch_size)
                    code = opened(sample)(self._at, None, batch_size, 0)
                if code == EMPTY:
                    self._check_filled(1, batch_size)
        return batch if device is None or out is not None else self._on_device(batch, device)

    def gather(self, indices: Any, *, device: Any = None, out: Transitions | None = None) -> Transitions:
        """Returns the transitions with these indices, as `sample` would.

        Args:
            indices: `(B,)` integers, as in `Transitions.indices`.
            device: As in `sample`.
            out: As in `sample`.

        Returns:
            The batch.

        Raises:
            IndexError: A transition is not stored: overwritten, or never added.
            ValueError: `indices` has another shape, or `out` does not fit.
            TypeError: `indices` are no integers, or `out` has other dtypes.
        """
        wanted = fields.array_of("indices", indices)
        if wanted.ndim != 1:
            raise ValueError(f"indices: got shape {wanted.shape}, expected (B,)")
        if wanted.dtype.kind not in "iu" and wanted.size:
            raise TypeError(f"indices: got dtype {wanted.dtype}, expected integers")
        serials = np.ascontiguousarray(wanted, np.int64)
        size = len(serials)
        batch, items = self._allocate(size, device) if out is None else (out, self._items_of(out, size))
        with self._lock:
            self._gather(items, serials)
        return batch if device is None or out is not None else self._on_device(batch, device)

    def _gather(self, items: tuple[Any, ...], serials: NDArray[np.int64]) -> None:
        added = self.added
        oldest = max(added - self.capacity, 0)
        if len(serials) and not (serials.min() >= oldest and serials.max() < added):
            wrong = serials[(serials < oldest) | (serials >= added)][0]
            said = "overwritten" if 0 <= wrong < oldest else "never added"
            raise IndexError(f"indices: got {wrong}, which was {said}; stored are {oldest} to {added - 1}")
        at = serials.ctypes.data
        if self._sample(self._at, items, len(serials), at) != FINE:
            self._check_out(items, len(serials))
            opened(sample)(self._at, None, len(serials), at)

    def _sample_distinct(self, batch_size: int, device: Any, out: Transitions | None) -> Transitions:
        batch, items = self._allocate(batch_size, device) if out is None else (out, self._items_of(out, batch_size))
        serials = np.empty(batch_size, np.int64)
        seen = np.empty(1 << (2 * batch_size - 1).bit_length(), np.int64)
        with self._lock:
            self._check_filled(batch_size, batch_size)
            draw_distinct(self._at, batch_size, serials.ctypes.data, seen.ctypes.data, len(seen))
            self._gather(items, serials)
        return batch if device is None or out is not None else self._on_device(batch, device)

    def _check_filled(self, needed: int, batch_size: int) -> None:
        if len(self) < needed:
            raise ValueError(f"batch_size: got {batch_size}, but the buffer holds {len(self)} transitions to draw")

    def _allocate(self, size: int, device: Any) -> tuple[Transitions, tuple[Any, ...]]:
        """A fresh batch, and its arrays in the kernels' order."""
        known = self._shapes
        if known[0] != size:
            self._shapes = known = size, [((size, *field.shape), field.dtype) for field in self._output_fields]
        items = tuple([_empty(shape, dtype) for shape, dtype in known[1]])
        if device is None:
            return self._batch(items), items
        from torch import from_numpy

        return self._batch([from_numpy(x) for x in items]), items

    def _batch(self, items: Any) -> Transitions:
        if self._simple:
            observations, actions, following, rewards, terminated, truncated, discounts, indices = items
            return _new(
                Transitions,
                (observations, actions, rewards, following, terminated, truncated, discounts, indices, None, {}),
            )
        layout = self._layout
        count = len(layout.observation_fields)
        following = count + len(layout.row_fields)
        first, second = items[:count], items[following : following + count]
        rewards, terminated, truncated, discounts, indices = items[following + count :]
        known = layout.observations
        return Transitions(
            dict(zip(known, first, strict=True)) if isinstance(known, dict) else first[0],
            items[count],
            rewards,
            dict(zip(known, second, strict=True)) if isinstance(known, dict) else second[0],
            terminated,
            truncated,
            discounts,
            indices,
            None,
            dict(zip(layout.extra, items[count + 1 : following], strict=True)),
        )

    def _items_of(self, out: Transitions, size: int) -> tuple[Any, ...]:
        """A batch's arrays in the kernels' order; tensors by their memory."""
        if self._simple and out is self._out[0] and not out.extra:  # of a named tuple, no field can be another one
            return self._out[1]
        if not isinstance(out, Transitions):
            raise TypeError(f"out: got {type(out).__name__}, expected Transitions")
        items = (
            *self._observation_items("out.observations", out.observations), out.actions, *self._extra_items(out.extra),
            *self._observation_items("out.next_observations", out.next_observations),
            out.rewards, out.terminated, out.truncated, out.discounts, out.indices,
        )  # fmt: skip
        arrays = tuple([x.numpy() if is_tensor(x) and x.device.type == "cpu" else x for x in items])
        if self._simple:
            self._out = out, arrays
        return arrays

    def _check_out(self, items: tuple[Any, ...], size: int) -> None:
        """Says what is wrong with `out`; where nothing is, its addresses are in the kernels' table afterwards."""
        for field, x in zip(self._output_fields, items, strict=True):
            shape = (size, *field.shape)
            if not isinstance(x, _ndarray):
                raise TypeError(f"out: {field.name}: got {type(x).__name__}, expected an array or a tensor on the CPU")
            if x.dtype != field.dtype:
                raise TypeError(f"out: {field.name}: got dtype {x.dtype}, expected {field.dtype}")
            if x.shape != shape:
                raise ValueError(f"out: {field.name}: got shape {x.shape}, expected {shape}")
            if not x.flags.carray:
                raise ValueError(f"out: {field.name}: expected C-contiguous, writable memory")
        for i, x in enumerate(items):
            for field, other in zip(self._output_fields, items[:i], strict=False):
                if np.may_share_memory(x, other):
                    raise ValueError(f"out: {self._output_fields[i].name}: shares memory with {field.name}")
        self._fill_table(ring.OUTPUT_TABLE, list(items), size)

    def _on_device(self, batch: Transitions, device: Any) -> Transitions:
        """Tensors, moved where they are not on that device already."""
        if str(device) == "cpu":
            return batch

        def moved(x: Any) -> Any:
            return {key: moved(part) for key, part in x.items()} if isinstance(x, dict) else x.to(device)

        moved_parts: list[Any] = [moved(x) if x is not None else None for x in batch]
        return Transitions(*moved_parts)
