"""Replay buffers in files: saved and loaded bit for bit, opened again where they are mapped, pickled."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from fastac.buffers.fields import Layout
from fastac.buffers.replay_ring import Ring
from fastac.buffers.saving import ArchiveError, read_archive, write_archive
from fastac.buffers.storage import Storage
from fastac_kernels import ring
from fastac_kernels.ring import recover


class Saving(Ring):
    """The part of a replay buffer that outlives the process."""

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

    def __reduce__(self) -> tuple[Any, ...]:
        """For pickle and deepcopy; `save` needs no second copy in memory."""
        if self._mapped:
            raise TypeError(
                f"{type(self).__name__}: memory-mapped storage cannot be pickled or copied; use save and load"
            )
        with self._lock:
            metadata = self._saved_metadata() | {"counters": self._counters()}
            return _rebuilt, (type(self), metadata, {name: x.copy() for name, x in self._saved_arrays().items()})


def _rebuilt(kind: type[Saving], metadata: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> Saving:
    """The inverse of `Saving.__reduce__`."""
    buffer = kind._empty_like(metadata, metadata["counters"], None)
    for name, room in buffer._room_for({name: (x.shape, x.dtype) for name, x in arrays.items()}).items():
        if name in buffer._storage.arrays:
            room[...] = arrays[name]
    buffer._finish(metadata, arrays)
    return buffer
