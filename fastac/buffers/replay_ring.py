"""A ring of transitions in memory or in mapped files, and what its kernels know of it."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from fastac._arrays import positive_integer, unit_interval
from fastac.buffers.fields import Field, Layout
from fastac.buffers.storage import Storage
from fastac_kernels import objects, ring
from fastac_kernels._jit import opened
from fastac_kernels.objects import READABLE
from fastac_kernels.ring import insert, insert_filled
from fastac_kernels.sampling import TILE, sample

_FLOAT32, _INT64, _BOOL = np.dtype(np.float32), np.dtype(np.int64), np.dtype(np.bool_)
_SIDE_ENTRIES = 64
# So many independent rows can be written before a row would be overwritten that the last commit counts. Larger batches
# are committed in parts.
SPARE_ROWS = 256
RESULT_FIELDS = (
    Field("rewards", (), _FLOAT32), Field("terminated", (), _BOOL), Field("truncated", (), _BOOL),
    Field("discounts", (), _FLOAT32), Field("indices", (), _INT64),
)  # fmt: skip


class Ring:
    """The rows of a replay buffer and their state, which compiled code is entered with.

    Attributes:
        capacity: Transitions that are kept.
        num_envs: How many environments each row of the ring is a step of; None: rows are unrelated.
        n_step: The most rows of a target.
        gamma: Discount per row.
    """

    capacity: int
    num_envs: int | None
    n_step: int
    gamma: float

    def _build(
        self, layout: Layout, capacity: int, num_envs: int | None, n_step: int, gamma: float, seed: int,
        storage: str | os.PathLike[str] | None,
    ) -> None:  # fmt: skip
        envs = 1 if num_envs is None else positive_integer("num_envs", num_envs)
        rows = positive_integer("capacity", capacity) // envs * envs
        if rows == 0:
            raise ValueError(f"capacity: got {capacity}, expected at least num_envs = {envs}")
        if num_envs is None and (positive_integer("n_step", n_step) > 1 or layout.frame_stack > 1):
            raise ValueError(
                "num_envs: got None, which n_step and frame_stack above 1 do not go with: rows are unrelated"
            )
        if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < 2**63:
            raise ValueError(f"seed: got {seed!r}, expected an integer in [0, 2^63)")
        self.capacity = rows
        self.num_envs = num_envs
        self.n_step = positive_integer("n_step", n_step)
        self.gamma = unit_interval("gamma", gamma)
        self._layout = layout
        counters = dict.fromkeys(ring.COUNTERS, 0) | {"seed": int(seed)}
        if layout.chained:
            counters["side_size"] = max(_SIDE_ENTRIES, 1 << (4 * envs * layout.frame_stack).bit_length())
        self._create(counters, storage)

    def _create(self, counters: dict[str, int], folder: str | os.PathLike[str] | None) -> None:
        """Makes the arrays of an empty ring."""
        layout, envs = self._layout, self.num_envs or 1
        spare = envs * (layout.frame_stack + 1) if layout.chained else SPARE_ROWS
        slots = self.capacity + spare
        arrays: dict[str, tuple[tuple[int, ...], DTypeLike]] = {
            "state": ((64,), np.int64),
            "rows": ((slots, layout.row), np.uint8),
        }
        if layout.chained:
            arrays["side"] = ((counters["side_size"], layout.observation_bytes), np.uint8)
            arrays["marks"] = ((slots // envs,), np.int64)
        arrays |= self._more_arrays()
        self._storage = Storage.create(folder, arrays, counters=counters, metadata=self._saved_metadata())
        self._connect()

    def _more_arrays(self) -> dict[str, tuple[tuple[int, ...], DTypeLike]]:
        """For subclasses: further arrays of the storage."""
        return {}

    def _saved_metadata(self) -> dict[str, Any]:
        """What a file says about the buffer, for JSON."""
        return {
            "kind": type(self).__name__, "layout": self._layout.state(), "capacity": self.capacity,
            "num_envs": self.num_envs, "n_step": self.n_step, "gamma": self.gamma,
        }  # fmt: skip

    def _counters(self) -> dict[str, int]:
        return dict(zip(ring.COUNTERS, self._state[: len(ring.COUNTERS)].tolist(), strict=True))

    def _connect(self) -> None:
        """Tells the kernels where everything is."""
        layout, arrays, envs = self._layout, self._storage.arrays, self.num_envs or 1
        self._lock = threading.Lock()
        self._mapped = self._storage.folder is not None
        # The state lies in the storage, so that mapped files know how much was drawn since the last add.
        self._state = state = arrays["state"]
        state[: len(ring.COUNTERS)] = [self._storage.counters[name] for name in ring.COUNTERS]
        self._input_fields = [*layout.observation_fields, *layout.row_fields, *layout.observation_fields]
        described = [objects.describe(objects.FIELD, f.dtype, f.shape) for f in self._input_fields]
        described.append(objects.describe(objects.REWARD, _FLOAT32, ()))
        described += [objects.describe(objects.FLAG, _BOOL, ())] * 2
        described.append(objects.describe(objects.OPTIONAL_FLAG, _BOOL, ()))
        self._output_fields = [*self._input_fields, *RESULT_FIELDS]
        outputs = [objects.describe(objects.OUTPUT, f.dtype, f.shape) for f in self._output_fields]
        self._tables: dict[int, NDArray[Any]] = {
            ring.DESCRIPTIONS: np.array(described, np.int64),
            ring.OUTPUTS: np.array(outputs, np.int64),
            ring.TABLE: np.zeros(len(described) + 2, np.int64),
            ring.OUTPUT_TABLE: np.zeros(len(outputs) + 2 + 2 * TILE, np.int64),
            ring.LEAVES: np.array(layout.leaves, np.int64),
            ring.POWERS: self.gamma ** np.arange(self.n_step + 1, dtype=np.float64),
            ring.TRUTHS: objects.KNOWN,
            ring.ROWS: arrays["rows"],
        }
        if layout.chained:
            self._tables |= {ring.SIDE: arrays["side"], ring.MARKS: arrays["marks"]}
        for word, array in self._tables.items():
            state[word] = array.ctypes.data
        for word, value in {
            ring.CAPACITY: self.capacity, ring.SLOTS: len(arrays["rows"]), ring.ENVS: envs, ring.ROW: layout.row,
            ring.OBSERVATION: layout.observation_bytes, ring.REWARD_AT: layout.reward, ring.SIDE_AT: layout.following,
            ring.CHAINED: layout.chained, ring.STACK: layout.frame_stack, ring.N_STEP: self.n_step,
            ring.OBSERVATION_LEAVES: len(layout.observation_fields), ring.ROW_LEAVES: len(layout.row_fields),
            ring.ITEM_COUNT: len(described), ring.OUTPUT_COUNT: len(outputs),
        }.items():  # fmt: skip
            state[word] = value
        self._at = state.ctypes.data
        # Independent rows into memory-mapped files are committed in parts.
        self._insert_filled = partial(opened(insert), (state,)) if READABLE else partial(insert_filled, self._at)
        self._insert = opened(insert) if READABLE and not (self._mapped and self.num_envs is None) else _not_plain
        self._sample = opened(sample) if READABLE else _not_plain
        self._shapes: tuple[int, list[Any]] = (-1, [])
        self._out: tuple[Any, tuple[Any, ...]] = (None, ())
        self._simple = not isinstance(layout.observations, dict) and not layout.extra

    def _fill_table(self, word: int, arrays: list[Any], rows: int) -> None:
        """What `objects.read` does, asking numpy; the caller keeps the arrays."""
        table = self._tables[word]
        table[: len(arrays)] = [0 if x is None else x.ctypes.data for x in arrays]
        table[len(arrays) : len(arrays) + 2] = rows, 1

    def _observation_items(self, name: str, observations: Any) -> tuple[Any, ...]:
        known = self._layout.observations
        if not isinstance(known, dict):
            return (observations,)
        if not isinstance(observations, Mapping):
            raise TypeError(f"{name}: got {type(observations).__name__}, expected a dict with {list(known)}")
        if observations.keys() != known.keys():
            raise ValueError(f"{name}: got {list(observations)}, expected {list(known)}")
        return tuple([observations[key] for key in known])

    def _extra_items(self, extra: Mapping[str, Any]) -> tuple[Any, ...]:
        known = self._layout.extra
        if extra.keys() != known.keys():
            raise ValueError(f"extra: got the fields {sorted(extra)}, expected {sorted(known)}")
        return tuple([extra[name] for name in known])

    def state_dict(self) -> dict[str, int]:
        """The generator's state: its seed and how many words were drawn."""
        return {"seed": int(self._state[ring.SEED]), "counter": int(self._state[ring.COUNTER])}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Sets the generator to what `state_dict` returned."""
        with self._lock:
            self._state[ring.SEED], self._state[ring.COUNTER] = int(state["seed"]), int(state["counter"])

    @property
    def added(self) -> int:
        """Transitions ever added; the next one's index."""
        return int(self._state[ring.ADDED])

    @property
    def breaks(self) -> int:
        """How often an observation was not the one that the last transition had led to, without an episode's end."""
        return int(self._state[ring.BREAKS])

    def __len__(self) -> int:
        """Transitions that can be sampled."""
        return min(self.added, self.capacity) - int(self._state[ring.FILLERS])

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} of {self.capacity} transitions, num_envs={self.num_envs})"


def _not_plain(*arguments: Any) -> int:
    """Where objects cannot be read: the first one is not plain memory, says the kernel in its stead."""
    return 0
