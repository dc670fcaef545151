"""Sequences in files: saved and loaded bit for bit, opened again where they are mapped, pickled."""

from __future__ import annotations

import copy
import os
import threading
from collections.abc import Mapping
from typing import Any, Literal, Self, TypeVar

from numpy.typing import NDArray

from fastac.buffers.prioritized import PrioritizedReplayBuffer
from fastac.buffers.replay import ReplayBuffer
from fastac.buffers.saving import ArchiveError, read_archive, write_archive
from fastac_kernels.windows import index_rows

Windows = Literal["whole", "padded", "across"]
Kind = TypeVar("Kind", bound="SequenceSaving")


class SequenceSaving:
    """The part of a sequence buffer that outlives the process. Rows are saved, their index is made anew."""

    length: int
    windows: Windows
    burn_in: int
    _replay: ReplayBuffer
    _lock: threading.Lock
    _at: int
    _priorities: int

    def _configure(self, capacity: int, length: int, windows: Windows, burn_in: int, num_envs: int) -> None:
        raise NotImplementedError

    def _connect(self, replay: ReplayBuffer) -> None:
        raise NotImplementedError

    def _begin(self) -> None:
        raise NotImplementedError

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes everything to one file, bit for bit, streamed: as `ReplayBuffer.save`."""
        with self._lock:
            replay = self._replay
            rows = replay._saved_metadata() | {"counters": replay._counters()}
            own = {"kind": type(self).__name__, "rows": rows["kind"], "options": self._options()}
            write_archive(path, replay._saved_arrays(), rows | own)

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
        made: list[ReplayBuffer] = []

        def allocate(metadata: dict[str, Any], fields: Any) -> dict[str, NDArray[Any]]:
            if metadata.get("kind") != cls.__name__:
                raise ArchiveError(
                    f"{path} holds a {metadata.get('kind')}, not a {cls.__name__}: load it as what it is"
                )
            rows = metadata | {"kind": metadata["rows"]}
            kind = buffer_class(None if rows["kind"] == ReplayBuffer.__name__ else 0.0)
            made.append(kind._empty_like(rows, rows["counters"], storage))
            return made[0]._room_for(fields)

        metadata, arrays = read_archive(path, allocate)
        made[0]._finish(metadata, arrays)
        return _joined(cls, made[0], metadata["options"])

    @classmethod
    def open(
        cls, folder: str | os.PathLike[str], *,
        length: int, windows: Windows = "whole", burn_in: int = 0, prioritized: bool = False,
    ) -> Self:  # fmt: skip
        """Opens memory-mapped storage again: as `ReplayBuffer.open`.

        Args:
            folder: What the constructor was given as `storage`.
            length: As in the constructor; it may be another one than before.
            windows: As in the constructor; it may be others than before.
            burn_in: As in the constructor; it may be another one than before.
            prioritized: Whether the constructor was given an `alpha`. Windows that begin where one began before keep
                their priority, others get the largest.

        Returns:
            The buffer.

        Raises:
            StorageError: There is none, it is damaged, open elsewhere, or a newer version made it.
            ValueError: An argument is out of range.
        """
        replay = buffer_class(0.0 if prioritized else None).open(folder)
        try:
            buffer = _joined(cls, replay, {"length": length, "windows": windows, "burn_in": burn_in})
        except BaseException:
            replay.close()
            raise
        if isinstance(replay, PrioritizedReplayBuffer):
            leaves = replay._tree.leaves
            before, leaves[:] = leaves.copy(), 0.0
            buffer._begin()
            index_rows(replay._at, buffer._at, buffer._priorities)
            known = (leaves > 0.0) & (before > 0.0)
            leaves[known] = before[known]
            replay._tree.recompute()
        return buffer

    def flush(self) -> None:
        """As `ReplayBuffer.flush`."""
        with self._lock:
            self._replay.flush()

    def close(self) -> None:
        """As `ReplayBuffer.close`."""
        with self._lock:
            self._replay.close()

    def state_dict(self) -> dict[str, int]:
        """The generator's state, as `ReplayBuffer.state_dict`."""
        return self._replay.state_dict()

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Sets the generator to what `state_dict` returned."""
        with self._lock:
            self._replay.load_state_dict(state)

    def __reduce__(self) -> tuple[Any, ...]:
        """For pickle and deepcopy: the index is made anew from the rows."""
        with self._lock:
            return _joined, (type(self), copy.deepcopy(self._replay), self._options())

    def _options(self) -> dict[str, Any]:
        return {"length": self.length, "windows": self.windows, "burn_in": self.burn_in}


def buffer_class(alpha: float | None) -> type[ReplayBuffer]:
    """What keeps the rows of windows: with an exponent of their priorities, or None."""
    return ReplayBuffer if alpha is None else PrioritizedReplayBuffer


def _joined(kind: type[Kind], replay: ReplayBuffer, options: dict[str, Any]) -> Kind:
    """Windows over rows that are there."""
    buffer = kind.__new__(kind)
    buffer._configure(replay.capacity, num_envs=replay.num_envs or 1, **options)
    buffer._connect(replay)
    return buffer
