"""Off-policy experience that lives on the learner's device: the rows, the draws and the targets, without a round trip.

Plain torch operations, so that it runs wherever torch does, and on CUDA one kernel that gathers. Nothing is read back
from the device while adding and sampling, and what is drawn depends on tensors alone: a CUDA graph can be captured
around `sample`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

from fastac._arrays import positive_integer, unit_interval
from fastac.buffers import fields
from fastac.buffers.device_gather import Ring, gather
from fastac.buffers.packing import Packing
from fastac.buffers.replay import Transitions
from fastac.buffers.saving import ArchiveError, read_archive, write_archive
from fastac.buffers.transfer import checked_device, sent

__all__ = ["DeviceReplayBuffer"]


class DeviceReplayBuffer:
    """`ReplayBuffer` with its rows on the device: same targets, same indices, same fillers, breaks and ends.

        rewards + discounts * (1 - terminated) * V(next_observations),   rewards = sum_{k<m} gamma^k r_{t+k},
        discounts = gamma^m,   m = min(n_step, rows to the episode's end, the newest row or a break, inclusive)

    (Sutton 1988, *Learning to predict by the methods of temporal differences*.) What differs from `ReplayBuffer`:

    * Arguments may be tensors on the device, arrays or both. Arrays cross in one copy, from pinned memory.
    * A row holds its next observation: twice the memory for observations. There are no frame stacks.
    * Draws come from a `torch.Generator` of the buffer's own on the device: the same calls give the same bytes on the
      same kind of device, not on another one.
    * A batch's tensors are views of one block of packed rows, not contiguous each by itself.
    * `len`, `breaks` and `gather` read from the device and wait for it; `add` and `sample` do not.
    * Work is queued on the stream that is current: use one for all calls, or order them by events.
    * On CUDA one kernel of ours gathers rows and targets (torch operations where it cannot run): sample once before a
      graph is captured, since the first call compiles it.

    Images of a million steps are better left to host memory (`ReplayBuffer` stores a frame once; `Staging` brings its
    batches).

    Args:
        capacity: Transitions to keep, rounded down to a multiple of `num_envs`.
        observation_space: As in `ReplayBuffer`.
        action_space: As in `ReplayBuffer`.
        num_envs: N; None: unrelated transitions, any number in each `add`.
        n_step: The most rows of a target.
        gamma: Discount per row.
        extra_fields: `{name: (shape, dtype)}`, further fields of a transition.
        seed: Of the generator.
        device: Where the rows are.

    Raises:
        ValueError: An argument is out of range, or there is no such device.
        TypeError: An argument has the wrong type.

    Example:
        >>> example = {"observations": np.zeros(2, np.float32), "actions": np.int64(0)}
        >>> buffer = DeviceReplayBuffer.from_example(1000, example, n_step=2, gamma=0.5, device="cpu")
        >>> for t in range(3):
        ...     buffer.add(torch.full((1, 2), t), [0], [1.0], torch.full((1, 2), t + 1), [t == 2], [False])
        >>> batch = buffer.gather([0, 1, 2])
        >>> batch.rewards.tolist(), batch.discounts.tolist(), batch.next_observations[:, 0].tolist()
        ([1.5, 1.5, 1.0], [0.25, 0.25, 0.5], [2.0, 3.0, 3.0])
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
        extra_fields: Mapping[str, tuple[tuple[int, ...], DTypeLike]] | None = None,
        seed: int = 0,
        device: torch.device | str = "cuda",
    ):
        observations = fields.observations_of_space(observation_space)
        actions = fields.field_of_space("actions", action_space)
        extra = fields.extra_fields(extra_fields)
        self._build(Packing(observations, actions, extra), capacity, num_envs, n_step, gamma, seed, device)

    @classmethod
    def from_example(cls, capacity: int, example: Mapping[str, Any], **options: Any) -> Self:
        """A buffer for transitions like the example.

        Args:
            capacity: As in the constructor.
            example: As in `ReplayBuffer.from_example`.
            options: As in the constructor, except the spaces and `extra_fields`.

        Returns:
            An empty buffer.
        """
        buffer = cls.__new__(cls)
        defaults: dict[str, Any] = {"num_envs": 1, "n_step": 1, "gamma": 0.99, "seed": 0, "device": "cuda"}
        if unknown := set(options) - set(defaults):
            raise TypeError(f"from_example: got unexpected options {sorted(unknown)}")
        buffer._build(Packing.of_example(example), capacity, **(defaults | options))
        return buffer

    def _build(
        self, packing: Packing, capacity: int, num_envs: int | None, n_step: int, gamma: float, seed: int,
        device: torch.device | str,
    ) -> None:  # fmt: skip
        envs = 1 if num_envs is None else positive_integer("num_envs", num_envs)
        rows = positive_integer("capacity", capacity) // envs * envs
        if rows == 0:
            raise ValueError(f"capacity: got {capacity}, expected at least num_envs = {envs}")
        if num_envs is None and positive_integer("n_step", n_step) > 1:
            raise ValueError("num_envs: got None, which n_step above 1 does not go with: rows are unrelated")
        if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < 2**63:
            raise ValueError(f"seed: got {seed!r}, expected an integer in [0, 2^63)")
        self.device = checked_device(device)
        self.capacity, self.num_envs = rows, num_envs
        self.n_step, self.gamma = positive_integer("n_step", n_step), unit_interval("gamma", gamma)
        self.added = 0
        """Transitions ever added; the next one's index."""
        self._packing, self._lock = packing, threading.RLock()
        self._generator = torch.Generator(self.device).manual_seed(int(seed))
        self._create()

    def _create(self) -> None:
        """Makes the tensors of an empty ring."""
        whole: dict[str, Any] = {"dtype": torch.int64, "device": self.device}
        self._rows = torch.zeros((self.capacity, self._packing.row), dtype=torch.uint8, device=self.device)
        self._columns = self._packing.views(self._rows)
        # Serial numbers of the rows that are no fillers, oldest first, in a ring from `head` to `tail`; one place more,
        # for what is to be written nowhere.
        self._drawable = torch.zeros(self.capacity + 1, **whole)
        # The count of rows once more, for the device, then head, tail and breaks.
        self._counters = torch.zeros(4, **whole)
        self._on_device, self._head, self._tail, self._breaks = self._counters
        powers = self.gamma ** torch.arange(self.n_step + 1, dtype=torch.float64, device=self.device)
        self._ring = Ring(self._rows, self._packing, self._on_device, powers, self.num_envs or 1, self.n_step)
        self._serials = torch.arange(self.num_envs or 1, **whole)
        self._upload = self._packing.uploader(self.num_envs, self.device)
        self._seen_drawable = False
        self._may_read = self.device.type == "cpu"  # nothing to wait for

    def __len__(self) -> int:
        """Transitions that can be sampled; waits for the device."""
        return int(self._tail - self._head)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.added} added, capacity={self.capacity}, device={str(self.device)!r})"

    @property
    def breaks(self) -> int:
        """How often an observation was not the one the last transition had led to, without an end; waits."""
        return int(self._breaks)

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

        Args:
            observations: `(N, *observation)`, those the actions were chosen in; a dict where the space is one.
            actions: `(N, *action)`.
            rewards: `(N,)`, kept as float32.
            next_observations: `(N, *observation)`, those the transitions led to, before any reset.
            terminated: `(N,)`: the transition ended the episode.
            truncated: `(N,)`: a time limit cut it.
            mask: `(N,)`: False where the row is a filler: never drawn. None: all are transitions.
            extra: The extra fields, `(N, ...)` each.

        Raises:
            ValueError: A shape is wrong, or an extra field is missing or unknown.
            TypeError: A dtype cannot hold the values.
        """
        items = self._packing.items(
            observations, actions, rewards, next_observations, terminated, truncated, mask, extra
        )
        with self._lock:
            rows = self._upload(items)
            count, at = len(rows), 0
            while at < count:
                place = self.added % self.capacity
                part = min(count - at, self.capacity - place)
                self._write(rows[at : at + part], slice(place, place + part))
                at += part
            self._upload.done()

    def _write(self, rows: Tensor, place: slice) -> None:
        """Writes packed rows to neighbouring places."""
        packing, columns, envs = self._packing, self._columns, self.num_envs
        new = packing.views(rows)
        count = len(rows)
        if self.added >= self.capacity:
            self._head += columns["valid"][place].sum()
        if envs is not None and self.added:
            before = slice((self.added - envs) % self.capacity, (self.added - envs) % self.capacity + envs)
            same = (self._rows[before, packing.following] == rows[:, packing.observed]).all(1)
            cut = columns["cut"][before]
            self._breaks += (columns["valid"][before] & ~cut & ~same).sum()
            cut |= ~(same & new["valid"])
        self._rows[place] = rows
        serials = self._serials if count == len(self._serials) else torch.arange(count, device=self.device)
        places = (self._tail + new["valid"].cumsum(0) - 1).remainder(self.capacity)
        places = torch.where(new["valid"], places, self.capacity)
        self._drawable.scatter_(0, places, serials + self._on_device)
        self._tail += new["valid"].sum()
        self._on_device += count
        self.added += count
        self._wrote(place, new["valid"])

    def _wrote(self, place: slice, valid: Tensor) -> None:
        """For subclasses: rows were written there."""

    def sample(
        self,
        batch_size: int,
        *,
        replace: bool = True,
        device: torch.device | str | None = None,
        out: Transitions | None = None,
    ) -> Transitions:
        """Draws a batch uniformly among all stored transitions, queued on the current stream.

        Args:
            batch_size: B.
            replace: Whether a transition may be drawn more than once. False: all different, in random order; takes time
                in proportion to the capacity, and waits for the device.
            device: Where the batch is wanted; None: where the rows are.
            out: A batch to copy into, such as an earlier result, which is returned.

        Returns:
            The batch, tensors on the device.

        Raises:
            ValueError: There is nothing to draw (without replacement: less than B). On CUDA this is looked at until
                there is something for the first time.
            TypeError: `batch_size` is no integer.
        """
        batch_size = positive_integer("batch_size", batch_size)
        with self._lock:
            self._check_filled(1 if replace else batch_size, always=not replace)
            count = self._tail - self._head
            if replace:
                uniform = torch.rand(batch_size, dtype=torch.float64, device=self.device, generator=self._generator)
                number = torch.minimum((uniform * count).to(torch.int64), count - 1)
            else:
                keys = torch.rand(self.capacity, dtype=torch.float64, device=self.device, generator=self._generator)
                keys = torch.where(torch.arange(self.capacity, device=self.device) < count, keys, 2.0)
                number = keys.topk(batch_size, largest=False).indices
            serials = self._drawable[(self._head + number).remainder(self.capacity)]
            return self._handed(self._gathered(serials), device, out)

    def gather(
        self, indices: Any, *, device: torch.device | str | None = None, out: Transitions | None = None
    ) -> Transitions:
        """Returns the transitions with these indices, as `sample` would; waits for the device.

        Args:
            indices: `(B,)` integers, as in `Transitions.indices`.
            device: As in `sample`.
            out: As in `sample`.

        Raises:
            IndexError: A transition is not stored: overwritten, or never added.
            ValueError: `indices` has another shape.
            TypeError: `indices` are no integers.
        """
        wanted = integers(indices)
        with self._lock:
            oldest = max(self.added - self.capacity, 0)
            wrong = wanted[(wanted < oldest) | (wanted >= self.added)]
            if len(wrong):
                said = "overwritten" if 0 <= wrong[0] < oldest else "never added"
                raise IndexError(f"indices: got {wrong[0]}, which was {said}; stored are {oldest} to {self.added - 1}")
            serials = sent(torch.from_numpy(wanted), self.device)
            return self._handed(self._gathered(serials), device, out)

    def _gathered(self, serials: Tensor) -> Transitions:
        packing, gathered = self._packing, gather(self._ring, serials)
        found, after = packing.views(gathered.rows), packing.views(gathered.last_rows)
        return Transitions(
            packing.observations_of(found, "observations"),
            found["actions"],
            gathered.rewards,
            packing.observations_of(after, "next_observations"),
            after["terminated"],
            after["truncated"],
            gathered.discounts,
            serials,
            None,
            {name: found[name] for name in packing.extra},
        )

    def _handed(self, batch: Transitions, device: torch.device | str | None, out: Transitions | None) -> Transitions:
        """The batch, copied to `out` or brought to another device where that is wanted."""
        if out is not None:
            copy_batch(out, batch)
            return out
        target = self.device if device is None else checked_device(device)
        return batch if target == self.device else moved(batch, target)

    def _check_filled(self, count: int, *, always: bool) -> None:
        if self._seen_drawable and not always and not self._may_read:
            return
        held = len(self) if self.added else 0
        if held < count:
            raise ValueError(f"batch_size: got {count}, but the buffer holds {held} transitions to draw")
        self._seen_drawable = True

    def state_dict(self) -> dict[str, Any]:
        """The generator's state."""
        return {"generator": self._generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Sets the generator to what `state_dict` returned."""
        with self._lock:
            self._generator.set_state(state["generator"])

    def _saved_metadata(self) -> dict[str, Any]:
        return {
            "kind": type(self).__name__, "layout": self._packing.state(), "capacity": self.capacity,
            "num_envs": self.num_envs, "n_step": self.n_step, "gamma": self.gamma, "added": self.added,
            "device": str(self.device),
        }  # fmt: skip

    def _saved_tensors(self) -> dict[str, Tensor]:
        return {
            "rows": self._rows[: min(self.added, self.capacity)], "drawable": self._drawable[:-1],
            "counters": self._counters, "generator": self._generator.get_state(),
        }  # fmt: skip

    def _restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Takes in what was saved."""
        for name, tensor in self._saved_tensors().items():
            if name != "generator":
                tensor.copy_(torch.from_numpy(arrays[name]))
        self._generator.set_state(torch.from_numpy(np.array(arrays["generator"])))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes everything to one file, bit for bit; an older file stays until the new one is whole.

        Args:
            path: The file; its folder must exist.

        Raises:
            ArchiveError: The file cannot be written.
        """
        with self._lock:
            arrays = {name: x.cpu().numpy() for name, x in self._saved_tensors().items()}
            write_archive(path, arrays, self._saved_metadata())

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: torch.device | str | None = None) -> Self:
        """A buffer that goes on as the one that was saved would have.

        Args:
            path: What `save` has written.
            device: Where to; None: where it was. The generator's state needs the same kind of device.

        Raises:
            ArchiveError: The file is missing, damaged, cut short, of a newer version or of another kind.
            ValueError: There is no such device.
        """
        metadata, arrays = read_archive(path)
        if metadata.get("kind") != cls.__name__:
            raise ArchiveError(f"{path} holds a {metadata.get('kind')}, not a {cls.__name__}: open it as what it is")
        return cls._rebuilt(metadata, arrays, device)

    @classmethod
    def _rebuilt(
        cls, metadata: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], device: torch.device | str | None = None
    ) -> Self:
        buffer = cls.__new__(cls)
        names = ("capacity", "num_envs", "n_step", "gamma")
        options = {name: metadata[name] for name in names}
        place = metadata["device"] if device is None else device
        buffer._build(Packing.from_state(metadata["layout"]), **options, seed=0, device=place)
        buffer.added = metadata["added"]
        buffer._restore(arrays)
        return buffer

    def __reduce__(self) -> tuple[Any, ...]:
        """For pickle and deepcopy, and for checkpoints."""
        with self._lock:
            arrays = {name: x.cpu().numpy().copy() for name, x in self._saved_tensors().items()}
            return rebuilt, (type(self), self._saved_metadata(), arrays)


def rebuilt(
    kind: type[DeviceReplayBuffer], metadata: dict[str, Any], arrays: dict[str, NDArray[Any]]
) -> DeviceReplayBuffer:
    """The inverse of `DeviceReplayBuffer.__reduce__`."""
    return kind._rebuilt(metadata, arrays)


def integers(indices: Any) -> NDArray[np.int64]:
    """`indices` as `(B,)` int64 on the host."""
    found = fields.array_of("indices", indices)
    if found.ndim != 1:
        raise ValueError(f"indices: got shape {found.shape}, expected (B,)")
    if found.dtype.kind not in "iu" and found.size:
        raise TypeError(f"indices: got dtype {found.dtype}, expected integers")
    return np.array(found, np.int64)


def copy_batch(out: Any, batch: Any, path: str = "out") -> None:
    """Copies tensors of one structure, which has been looked at, into those of another."""
    if isinstance(batch, Tensor):
        if not isinstance(out, Tensor) or out.shape != batch.shape or out.dtype != batch.dtype:
            raise ValueError(f"{path}: got {_described(out)}, expected {_described(batch)}")
        out.copy_(batch)
    elif isinstance(batch, dict):
        for name, part in batch.items():
            copy_batch(out[name], part, f"{path}[{name!r}]")
    elif isinstance(batch, tuple):
        for number, part in enumerate(batch):
            copy_batch(out[number], part, f"{path}.{Transitions._fields[number]}")


def moved(batch: Transitions, device: torch.device) -> Transitions:
    """The same on another device."""

    def of(x: Any) -> Any:
        return {key: of(part) for key, part in x.items()} if isinstance(x, dict) else x if x is None else x.to(device)

    return Transitions(*map(of, batch))


def _described(x: Any) -> str:
    return f"{tuple(x.shape)} {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
