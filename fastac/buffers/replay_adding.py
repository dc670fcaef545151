"""Adding to a ring: what is plain memory in one compiled call, everything else converted or refused."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastac.buffers import fields
from fastac.buffers.fields import Field
from fastac.buffers.replay_ring import SPARE_ROWS, Ring
from fastac_kernels import ring
from fastac_kernels.ring import INSERTED, grow_side


class Adding(Ring):
    """The part of a replay buffer that takes transitions in."""

    def add(
        self,
        observations: Any,
        actions: Any,
        rewards: Any,
        next_observations: Any,
        terminated: Any,
        truncated: Any,
        mask: Any = None,
        **extra: Any,
    ) -> None:
        """Adds one step of every environment, overwriting the oldest when the buffer is full.

        Arrays of the stored dtypes are fastest; others are converted. The leading dimension may be left out with
        one environment, and for a single independent transition.

        Args:
            observations: `(N, *observation)`, those the actions were chosen in; a dict where the space is one.
            actions: `(N, *action)`.
            rewards: `(N,)`, kept as float32.
            next_observations: `(N, *observation)`, those the transitions led to, before any reset.
            terminated: `(N,)`: the transition ended the episode.
            truncated: `(N,)`: a time limit cut it.
            mask: `(N,)`: False where the row is a filler (the row after an end, under next-step autoreset): it keeps
                its place but is never drawn. None: all are transitions.
            extra: The extra fields, `(N, ...)` each.

        Raises:
            ValueError: A shape is wrong, or an extra field is missing or unknown.
            TypeError: A dtype cannot hold the values.
        """
        if self._simple and not extra:
            items = (self._state, observations, actions, next_observations, rewards, terminated, truncated, mask)
        else:
            items = (
                self._state, *self._observation_items("observations", observations), actions, *self._extra_items(extra),
                *self._observation_items("next_observations", next_observations), rewards, terminated, truncated, mask,
            )  # fmt: skip
        lock = self._lock
        lock.acquire()  # half of what `with` costs
        try:
            if self._insert(items) != INSERTED:
                self._insert_converted(items[1:])
            elif self._mapped:
                self._storage.commit(self._counters())
        finally:
            lock.release()

    def _add_plain(
        self, observations: Any, actions: Any, rewards: Any, next_observations: Any, terminated: Any, truncated: Any
    ) -> bool:
        """`add`, for callers who convert in their own way: False, and nothing was added, where that is needed.

        Where not all are plain memory of the stored dtypes and shapes, where a side table has to grow, and where there
        are extra fields.
        """
        known = self._layout.observations
        if self._simple:
            items = (self._state, observations, actions, next_observations, rewards, terminated, truncated, None)
        elif self._layout.extra or not isinstance(known, dict):
            return False
        else:
            items = (
                self._state, *[observations[key] for key in known], actions, *[next_observations[key] for key in known],
                rewards, terminated, truncated, None,
            )  # fmt: skip
        lock = self._lock
        lock.acquire()
        try:
            if self._insert(items) != INSERTED:
                return False
            if self._mapped:
                self._storage.commit(self._counters())
        finally:
            lock.release()
        return True

    def _insert_converted(self, items: tuple[Any, ...]) -> None:
        """What is not plain memory, what is wrong, and a side table that has to grow."""
        rows = self.num_envs
        known = len(self._input_fields)
        count = len(self._layout.observation_fields)
        clean: list[Any] = []
        for i, field in enumerate(self._input_fields):
            name = field.name.replace("observations", "next_observations", 1) if i >= known - count else field.name
            clean.append(fields.converted(Field(name, field.shape, field.dtype), items[i], rows))
            rows = len(clean[0])
        clean.append(fields.converted(Field("rewards", (), np.dtype(np.float64)), items[known], rows))
        clean += [
            fields.flags(name, x, rows)
            for name, x in zip(("terminated", "truncated"), items[known + 1 :], strict=False)
        ]
        clean.append(None if items[-1] is None else fields.flags("mask", items[-1], rows))
        step = SPARE_ROWS if self._mapped and self.num_envs is None else max(rows or 0, 1)
        for start in range(0, rows or 0, step):
            part = [None if x is None else x[start : start + step] for x in clean]
            self._fill_table(ring.TABLE, part, min(step, rows or 0, (rows or 0) - start))
            while (code := self._insert_filled()) == ring.FULL_SIDE:
                self._grow_side()
            assert code == INSERTED
            if self._mapped:
                self._storage.commit(self._counters())

    def _grow_side(self) -> None:
        size = 2 * int(self._state[ring.SIDE_SIZE])
        self._tables[ring.SIDE] = side = self._storage.grow("side", size)
        self._state[ring.SIDE] = side.ctypes.data
        grow_side(self._at, size)
        if self._mapped:
            self._storage.commit(self._counters())
