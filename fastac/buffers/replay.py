"""Off-policy experience: a ring of transitions, uniform samples, n-step targets, final observations always right."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from fastac._arrays import is_tensor, positive_integer, unit_interval
from fastac.buffers import fields
from fastac.buffers.fields import Field, Layout
from fastac.buffers.saving import ArchiveError, read_archive, write_archive
from fastac.buffers.storage import Storage
from fastac_kernels import objects, ring
from fastac_kernels.objects import READABLE
from fastac_kernels.ring import INSERTED, grow_side, insert, recover
from fastac_kernels.sampling import EMPTY, FINE, TILE, draw_distinct, gather, sample

_ndarray, _empty, _new = np.ndarray, np.empty, tuple.__new__
_FLOAT32, _INT64, _BOOL = np.dtype(np.float32), np.dtype(np.int64), np.dtype(np.bool_)
_SIDE_ENTRIES = 64
# So many independent rows can be written before a row would be overwritten that the last commit counts. Larger batches
# are committed in parts.
_SPARE_ROWS = 256


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


class ReplayBuffer:
    """The last `capacity` transitions of `num_envs` environments, of which batches are drawn uniformly.

    A batch's target is

        rewards + discounts * (1 - terminated) * V(next_observations),

    rewards = sum_{k<m} gamma^k r_{t+k} and discounts = gamma^m (Sutton 1988, *Learning to predict by the methods of
    temporal differences*), where m = min(n_step, rows to the episode's end, the newest row or a break, inclusive).
    `next_observations`, `terminated` and `truncated` belong to row t + m - 1; its transition led to these observations
    before any reset, at truncations, too.

    Every observation is stored once: that of row t + 1 serves as the next observation of row t. Where it differs in any
    byte - the episode ended, or the caller changed the observation (a **break**) - the next observation is filed apart.
    The newest row can be sampled like any other.

    Rows are counted over the buffer's whole life: row t of environment e has the index t * num_envs + e. An index is
    stale, its row overwritten, when it is less than `added - capacity`.

    Draws come from a generator of the buffer's own (splitmix64). They depend on the seed, on how many draws there were
    and on which rows are stored: the same calls in the same order give the same bytes, whatever else runs. Any
    number of threads may add and sample; each call is one step for the others.

    Args:
        capacity: Transitions to keep, rounded down to a multiple of `num_envs`.
        observation_space: A Gymnasium space: Box, Discrete, MultiDiscrete, MultiBinary, or a Dict of them. A float64
            Box is stored as float32.
        action_space: A Gymnasium space, not a Dict.
        num_envs: N, how many environments each `add` is a step of. None: `add` takes any number of transitions that
            have nothing to do with each other; their next observations are stored with them.
        n_step: The most rows of a target.
        gamma: Discount per row.
        frame_stack: Observations stack so many frames in their first dimension; each is stored once.
        extra_fields: `{name: (shape, dtype)}`, further fields of a transition.
        seed: Of the generator.
        storage: A folder for memory-mapped files; None: memory.

    Raises:
        ValueError: An argument is out of range, or does not go with `num_envs=None`.
        TypeError: An argument has the wrong type.

    Example:
        >>> import numpy as np
        >>> example = {"observations": np.zeros(2, np.float32), "actions": np.int64(0)}
        >>> buffer = ReplayBuffer.from_example(1000, example, num_envs=1, n_step=2, gamma=0.5)
        >>> for t in range(3):
        ...     buffer.add(np.float32([t, t]), 0, 1.0, np.float32([t + 1, t + 1]), terminated=t == 2, truncated=False)
        >>> batch = buffer.gather([0, 1, 2])
        >>> batch.rewards, batch.discounts, batch.next_observations[:, 0], batch.terminated
        (array([1.5, 1.5, 1. ], dtype=float32), array([0.25, 0.25, 0.5 ], dtype=float32), \
array([2., 3., 3.], dtype=float32), array([False,  True,  True]))
    """

    def __init__(
        self,
        capacity: int,
        observation_space: Any,
        action_space: Any,
        *,
        num_envs: int | None = 1,
        n_step: int = 1,
        gamma: float = 0.99,
        frame_stack: int | None = None,
        extra_fields: Mapping[str, tuple[tuple[int, ...], DTypeLike]] | None = None,
        seed: int = 0,
        storage: str | os.PathLike[str] | None = None,
    ):
        layout = Layout(
            fields.observations_of_space(observation_space),
            fields.field_of_space("actions", action_space),
            fields.extra_fields(extra_fields),
            chained=num_envs is not None,
            frame_stack=1 if frame_stack is None else positive_integer("frame_stack", frame_stack),
        )
        self._build(layout, capacity, num_envs, n_step, gamma, seed, storage)

    @classmethod
    def from_example(cls, capacity: int, example: Mapping[str, Any], **options: Any) -> Self:
        """A buffer for transitions like the example.

        Args:
            capacity: As in the constructor.
            example: One transition without a batch dimension: "observations" (an array or a dict of arrays) and
                "actions"; every name that is not an argument of `add` is an extra field. Dtypes are kept.
            options: As in the constructor, except the spaces and `extra_fields`.

        Returns:
            An empty buffer.
        """
        for name in ("observations", "actions"):
            if name not in example:
                raise ValueError(f"example: got {sorted(example)}, expected it to hold {name!r}")
        observations = example["observations"]
        known: Field | dict[str, Field] = (
            {name: fields.field_of_example(f"observations[{name!r}]", x) for name, x in observations.items()}
            if isinstance(observations, Mapping)
            else fields.field_of_example("observations", observations)
        )
        others = {
            name: (field.shape, field.dtype)
            for name, field in (
                (name, fields.field_of_example(name, x))
                for name, x in example.items()
                if name not in fields.STANDARD and name != "mask"
            )
        }
        frame_stack = options.pop("frame_stack", None)
        layout = Layout(
            known,
            fields.field_of_example("actions", example["actions"]),
            fields.extra_fields(others),
            chained=options.get("num_envs", 1) is not None,
            frame_stack=1 if frame_stack is None else positive_integer("frame_stack", frame_stack),
        )
        buffer = cls.__new__(cls)
        defaults = {"num_envs": 1, "n_step": 1, "gamma": 0.99, "seed": 0, "storage": None}
        if unknown := set(options) - set(defaults):
            raise TypeError(f"from_example: got unexpected options {sorted(unknown)}")
        buffer._build(layout, capacity, **(defaults | options))
        return buffer

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
        spare = envs * (layout.frame_stack + 1) if layout.chained else _SPARE_ROWS
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

    def _saved_arrays(self) -> dict[str, NDArray[Any]]:
        """The filled part of every array."""
        arrays, envs = self._storage.arrays, self.num_envs or 1
        counters = self._counters()
        slots = len(arrays["rows"])
        found = {"rows": arrays["rows"][: min(counters["added"] + (envs if self._layout.chained else 0), slots)]}
        if self._layout.chained:
            found["side"] = arrays["side"][: min(counters["side_head"], counters["side_size"])]
            found["marks"] = arrays["marks"][: counters["added"] // envs]
        return found

    def _restore(self, metadata: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> None:
        """For subclasses: takes in what they have saved; no arrays where storage was opened."""

    def _counters(self) -> dict[str, int]:
        return dict(zip(ring.COUNTERS, self._state[: len(ring.COUNTERS)].tolist(), strict=True))

    @classmethod
    def _empty_like(
        cls, metadata: Mapping[str, Any], counters: dict[str, int] | None, folder: str | os.PathLike[str] | None
    ) -> Self:
        """An empty buffer like a saved one; without arrays where `counters` are None."""
        if metadata["kind"] != cls.__name__:
            raise ArchiveError(f"this is a {metadata['kind']}, not a {cls.__name__}: open it as what it is")
        buffer = cls.__new__(cls)
        buffer._layout = Layout.from_state(metadata["layout"])
        buffer.capacity, buffer.num_envs = metadata["capacity"], metadata["num_envs"]
        buffer.n_step, buffer.gamma = metadata["n_step"], metadata["gamma"]
        if counters is not None:
            buffer._create(counters, folder)
        return buffer

    def _take(self, counters: Mapping[str, int]) -> None:
        """Counts the rows that are in the arrays now."""
        self._state[: len(ring.COUNTERS)] = [counters[name] for name in ring.COUNTERS]
        if self._mapped:
            self._storage.commit(self._counters())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes everything to one file, bit for bit, streamed; an older file stays until the new one is whole.

        Args:
            path: The file; its folder must exist.

        Raises:
            ArchiveError: The file cannot be written.
        """
        with self._lock:
            metadata = self._saved_metadata() | {"counters": self._counters()}
            write_archive(path, self._saved_arrays(), metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str], storage: str | os.PathLike[str] | None = None) -> Self:
        """A buffer that goes on as the one that was saved would have.

        Args:
            path: What `save` has written.
            storage: As in the constructor.

        Returns:
            The buffer.

        Raises:
            ArchiveError: The file is missing, damaged, cut short, of a newer version or of another kind.
        """
        made: list[Self] = []

        def allocate(metadata: dict[str, Any], fields: Any) -> dict[str, NDArray[Any]]:
            if "counters" not in metadata:
                raise ArchiveError(f"{path} holds no replay buffer")
            buffer = cls._empty_like(metadata, metadata["counters"], storage)
            made.append(buffer)
            return buffer._room_for(fields)

        metadata, arrays = read_archive(path, allocate)
        made[0]._finish(metadata, arrays)
        return made[0]

    def _room_for(self, fields: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]) -> dict[str, NDArray[Any]]:
        """Where saved arrays go: into the storage, or, those of a subclass, into new memory."""
        known = self._storage.arrays
        return {
            name: known[name][: shape[0]] if name in known else np.empty(shape, dtype)
            for name, (shape, dtype) in fields.items()
        }

    def _finish(self, metadata: dict[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
        self._take(metadata["counters"])
        self._restore(metadata, {name: x for name, x in arrays.items() if name not in self._storage.arrays})

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Self:
        """Opens memory-mapped storage again, as of the last completed `add`, however the process ended that made it.

        Against a power cut, `flush` helps, or a copy by `save`.

        Args:
            folder: What the constructor was given as `storage`.

        Returns:
            The buffer.

        Raises:
            StorageError: There is none, it is damaged, open elsewhere, or a newer version made it.
        """
        storage = Storage.open(folder)
        try:
            buffer = cls._empty_like(storage.metadata, None, None)
        except BaseException:
            storage.close()
            raise
        buffer._storage = storage
        drawn = int(storage.arrays["state"][ring.COUNTER])
        buffer._connect()
        buffer._state[ring.COUNTER] = max(drawn, storage.counters["counter"])
        recover(buffer._at)
        buffer._restore(storage.metadata, {})
        return buffer

    @property
    def storage_folder(self) -> Path | None:
        """Where the memory-mapped files are; None in memory."""
        return self._storage.folder

    def flush(self) -> None:
        """Has memory-mapped files on the disk when it returns: they would then survive a power cut."""
        with self._lock:
            self._storage.flush()

    def close(self) -> None:
        """Lets others open memory-mapped files; the buffer is not to be used any more."""
        with self._lock:
            self._storage.close()

    def state_dict(self) -> dict[str, int]:
        """The generator's state: its seed and how many words were drawn."""
        return {"seed": int(self._state[ring.SEED]), "counter": int(self._state[ring.COUNTER])}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Sets the generator to what `state_dict` returned."""
        with self._lock:
            self._state[ring.SEED], self._state[ring.COUNTER] = int(state["seed"]), int(state["counter"])

    def __reduce__(self) -> tuple[Any, ...]:
        """For pickle and deepcopy; `save` needs no second copy in memory."""
        if self._mapped:
            raise TypeError(
                f"{type(self).__name__}: memory-mapped storage cannot be pickled or copied; use save and load"
            )
        with self._lock:
            metadata = self._saved_metadata() | {"counters": self._counters()}
            return _rebuilt, (type(self), metadata, {name: x.copy() for name, x in self._saved_arrays().items()})

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
        self._output_fields = [*self._input_fields, *_RESULT_FIELDS]
        outputs = [objects.describe(objects.OUTPUT, f.dtype, f.shape) for f in self._output_fields]
        self._tables: dict[int, NDArray[Any]] = {
            ring.ITEMS: np.array(described, np.int64),
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
        self._plain = READABLE and not (self._mapped and self.num_envs is None)
        self._shapes: tuple[int, list[Any]] = (-1, [])
        self._out: tuple[Any, tuple[Any, ...]] = (None, ())
        self._simple = not isinstance(layout.observations, dict) and not layout.extra

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
            items = (observations, actions, next_observations, rewards, terminated, truncated, mask)
        else:
            items = (
                *self._observation_items("observations", observations), actions, *self._extra_items(extra),
                *self._observation_items("next_observations", next_observations), rewards, terminated, truncated, mask,
            )  # fmt: skip
        with self._lock:
            if not self._plain or insert(self._at, id(items)) != INSERTED:
                self._insert_converted(items)
            elif self._mapped:
                self._storage.commit(self._counters())

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
        step = _SPARE_ROWS if self._mapped and self.num_envs is None else max(rows or 0, 1)
        for start in range(0, rows or 0, step):
            part = [None if x is None else x[start : start + step] for x in clean]
            self._fill_table(ring.TABLE, part, min(step, rows or 0, (rows or 0) - start))
            while (code := insert(self._at, 0)) == ring.FULL_SIDE:
                self._grow_side()
            assert code == INSERTED
            if self._mapped:
                self._storage.commit(self._counters())

    def _fill_table(self, word: int, arrays: list[Any], rows: int) -> None:
        """What `objects.read` does, asking numpy; the caller keeps the arrays."""
        table = self._tables[word]
        table[: len(arrays)] = [0 if x is None else x.ctypes.data for x in arrays]
        table[len(arrays) : len(arrays) + 2] = rows, 1

    def _grow_side(self) -> None:
        size = 2 * int(self._state[ring.SIDE_SIZE])
        self._tables[ring.SIDE] = side = self._storage.grow("side", size)
        self._state[ring.SIDE] = side.ctypes.data
        grow_side(self._at, size)
        if self._mapped:
            self._storage.commit(self._counters())

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
            code = sample(self._at, id(items), batch_size) if READABLE else 0
            if code != FINE:
                if code != EMPTY:
                    self._check_out(items, batch_size)
                    code = sample(self._at, 0, batch_size)
                if code == EMPTY:
                    self._check_filled(1)
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
        if not READABLE or gather(self._at, id(items), len(serials), at) != FINE:
            self._check_out(items, len(serials))
            gather(self._at, 0, len(serials), at)

    def _sample_distinct(self, batch_size: int, device: Any, out: Transitions | None) -> Transitions:
        batch, items = self._allocate(batch_size, device) if out is None else (out, self._items_of(out, batch_size))
        serials = np.empty(batch_size, np.int64)
        seen = np.empty(1 << (2 * batch_size - 1).bit_length(), np.int64)
        with self._lock:
            self._check_filled(batch_size)
            draw_distinct(self._at, batch_size, serials.ctypes.data, seen.ctypes.data, len(seen))
            self._gather(items, serials)
        return batch if device is None or out is not None else self._on_device(batch, device)

    def _check_filled(self, count: int) -> None:
        if len(self) < count:
            raise ValueError(f"batch_size: got {count}, but the buffer holds {len(self)} transitions to draw")

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


_RESULT_FIELDS = (
    Field("rewards", (), _FLOAT32), Field("terminated", (), _BOOL), Field("truncated", (), _BOOL),
    Field("discounts", (), _FLOAT32), Field("indices", (), _INT64),
)  # fmt: skip


def _rebuilt(kind: type[ReplayBuffer], metadata: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> ReplayBuffer:
    """The inverse of `ReplayBuffer.__reduce__`."""
    buffer = kind._empty_like(metadata, metadata["counters"], None)
    for name, room in buffer._room_for({name: (x.shape, x.dtype) for name, x in arrays.items()}).items():
        if name in buffer._storage.arrays:
            room[...] = arrays[name]
    buffer._finish(metadata, arrays)
    return buffer
