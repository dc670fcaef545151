"""Where a buffer's arrays live: in memory, or in memory-mapped files that outlive the process.

A memory-mapped storage is a folder: `layout.json` (what there is, checksummed, written last), one file of plain bytes
for each array, and `commits.bin`. What a process has written to a mapped page stays when the process dies, however it
dies, but a crash leaves arrays in the middle of a change. Therefore a few counters say which rows are whole.
`Storage.commit` writes them as a record (sequence number, counters, CRC-32) to one of two places in turn: while one is
being written, the other is whole. `Storage.open` returns the newer whole record.

A buffer commits before it overwrites rows (they are gone), writes, and commits again (the new ones are there).

This is about processes. Against a power cut nothing helps but `Storage.flush`, or a copy by `save`: the system writes
pages to the disk in any order, so that a record may get there before the rows that it counts.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import re
import shutil
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import DTypeLike, NDArray

from fastac._files import atomic_file, sync_folder, try_lock

__all__ = ["FORMAT_VERSION", "Storage", "StorageError"]

FORMAT_VERSION = 1
_MAGIC = "fastac-storage"
_ALIGNMENT = 64  # a cache line
_PAGE = 4096  # between the two records


class StorageError(ValueError):
    """A storage that cannot be created or opened; the message is one line for the user."""


class Storage:
    """Named arrays, in memory or memory-mapped, and the counters of the last `commit`.

    Made by `create` and `open`. The arrays begin as zeros and at a cache line; pages that were never written take no
    memory, and on the disk no space where the file system has sparse files.

    Attributes:
        folder: Where the files are; None in memory.
        arrays: The arrays by name, plain ndarrays.
        counters: The last ones committed.
        metadata: What `create` was given.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp()) / "replay"
        >>> storage = Storage.create(folder, {"rewards": ((4,), np.float32)}, counters={"added": 0})
        >>> storage.arrays["rewards"][0] = 7
        >>> storage.commit({"added": 1})
        >>> storage.close()
        >>> storage = Storage.open(folder)
        >>> storage.counters, storage.arrays["rewards"]
        ({'added': 1}, array([7., 0., 0., 0.], dtype=float32))
    """

    folder: Path | None
    arrays: dict[str, NDArray[Any]]
    counters: dict[str, int]
    metadata: dict[str, Any]

    def __init__(self, folder: Path | None, metadata: Mapping[str, Any], counters: Mapping[str, int]) -> None:
        """Use `create` or `open`."""
        self.folder = folder
        self.metadata = dict(metadata)
        self.arrays = {}
        self.counters = dict(counters)
        self._files: dict[str, _MappedFile] = {}
        self._commits: _Commits | None = None
        self._lock: BinaryIO | None = None

    @classmethod
    def create(
        cls,
        folder: str | os.PathLike[str] | None,
        fields: Mapping[str, tuple[tuple[int, ...], DTypeLike]],
        *,
        counters: Mapping[str, int] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Storage:
        """Make the arrays.

        Args:
            folder: Where to put the files; made if it is not there. None: in memory.
            fields: `{name: (shape, dtype)}`.
            counters: Names and first values; `commit` takes the same names.
            metadata: What JSON can hold, for whoever opens the storage again.

        Raises:
            StorageError: The folder holds a storage already, or the disk has no room for the arrays.
        """
        specs = {name: (tuple(shape), np.dtype(dtype)) for name, (shape, dtype) in fields.items()}
        for name, (_, dtype) in specs.items():
            if dtype.kind not in "biufc":
                raise TypeError(f"fields[{name!r}]: got dtype {dtype}, expected numbers or bools")
        storage = cls(None if folder is None else Path(folder), metadata or {}, counters or {})
        try:
            if storage.folder is None:
                storage.arrays = {name: _zeros(*spec) for name, spec in specs.items()}
            else:
                storage._create_files(storage.folder, specs)
        except OSError as error:
            storage.close()
            raise StorageError(f"cannot create a storage in {folder}: {error.strerror or error}") from error
        return storage

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Storage:
        """Open what `create` made, as of the last completed `commit`.

        Raises:
            StorageError: There is no storage, another process (or object) has it open, it is damaged, or a newer
                version made it.
        """
        folder = Path(folder)
        try:
            layout = _read_layout(folder)
            storage = cls(folder, layout["metadata"], {})
            try:
                storage._open_files(folder, layout)
            except BaseException:
                storage.close()
                raise
        except OSError as error:
            raise StorageError(f"cannot open the storage {folder}: {error}") from error
        return storage

    def commit(self, counters: Mapping[str, int]) -> None:
        """Remember the counters; memory-mapped: such that a crash of the process at any moment leaves them whole.

        Args:
            counters: Every counter by name, integers from 0 to 2^64 - 1.
        """
        if self._commits is not None:
            self._commits.write(counters)
        self.counters = dict(counters)

    def grow(self, name: str, rows: int) -> NDArray[Any]:
        """Give an array more rows (first dimension), zeros. In memory it moves; memory-mapped, old views stay good.

        Args:
            name: Which array.
            rows: How many it is to have; fewer than it has are ignored.

        Returns:
            The array, `arrays[name]` from now on.
        """
        array = self.arrays[name]
        if rows > len(array):
            if self.folder is None:
                larger = _zeros((rows, *array.shape[1:]), array.dtype)
                larger[: len(array)] = array
                self.arrays[name] = larger
            else:
                self.arrays[name] = self._files[name].map((rows, *array.shape[1:]), array.dtype)
        return self.arrays[name]

    def flush(self) -> None:
        """Have everything on the disk when this returns, arrays first; then a power cut now would lose nothing."""
        for file in self._files.values():
            file.flush()
        if self._commits is not None:
            self._commits.file.flush()

    def close(self) -> None:
        """Let others open the folder. Arrays that somebody still holds stay readable; write to them no more."""
        self.arrays = {}
        self._files = {}
        self._commits = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _create_files(self, folder: Path, specs: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(folder)
        if (folder / "layout.json").exists():
            raise StorageError(f"{folder} holds a storage already: open it, or choose another folder")
        needed, free = sum(math.prod(s) * d.itemsize for s, d in specs.values()), shutil.disk_usage(folder).free
        if needed > free:
            raise StorageError(f"{folder} has {free} bytes free, the arrays take {needed}")
        entries = []
        for number, (name, (shape, dtype)) in enumerate(specs.items()):
            file_name = f"{number:02d}-{re.sub('[^A-Za-z0-9_]', '_', name)[:40]}.bin"
            (folder / file_name).unlink(missing_ok=True)  # of a creation that was not completed
            self._files[name] = _MappedFile(folder / file_name)
            self.arrays[name] = self._files[name].map(shape, dtype)
            entries.append([name, file_name, dtype.str, list(shape)])
        (folder / "commits.bin").unlink(missing_ok=True)
        self._commits = _Commits(folder / "commits.bin", list(self.counters))
        self._commits.write(self.counters)
        content = {"format": FORMAT_VERSION, "arrays": entries, "counters": list(self.counters)}
        text = json.dumps({**content, "metadata": self.metadata}, allow_nan=False)
        with atomic_file(folder / "layout.json") as file:  # last: without it, there is no storage
            file.write(f"{_MAGIC} {zlib.crc32(text.encode()):08x}\n{text}\n".encode())
        sync_folder(folder.parent)

    def _open_files(self, folder: Path, layout: dict[str, Any]) -> None:
        self._lock = _lock(folder)
        for name, file_name, dtype, shape in layout["arrays"]:
            path, row = folder / file_name, math.prod(shape[1:]) * np.dtype(dtype).itemsize
            size = path.stat().st_size
            if row and shape:
                rows, rest = divmod(size, row)
                if rows < shape[0] or rest:
                    raise StorageError(f"{path} is damaged: it has {size} bytes, expected at least {shape[0] * row}")
                shape = [rows, *shape[1:]]  # it may have grown
            elif size < row:
                raise StorageError(f"{path} is damaged: it has {size} bytes, expected {row}")
            self._files[name] = _MappedFile(path)
            self.arrays[name] = self._files[name].map(tuple(shape), np.dtype(dtype))
        self._commits = _Commits(folder / "commits.bin", layout["counters"])
        self.counters = self._commits.read()


class _MappedFile:
    """A file of plain bytes and the newest map of it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = open(path, "r+b" if path.exists() else "w+b")  # noqa: SIM115
        self._map: mmap.mmap | None = None

    def map(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        length = math.prod(shape) * dtype.itemsize
        if not length:
            return np.zeros(shape, dtype)
        if os.fstat(self._file.fileno()).st_size < length:
            self._file.truncate(length)  # an older, shorter map stays good
        self._map = mmap.mmap(self._file.fileno(), length)
        return np.ndarray(shape, dtype, buffer=self._map)

    def flush(self) -> None:
        if self._map is not None:
            self._map.flush()
            os.fsync(self._file.fileno())


class _Commits:
    """Two records, written in turn; the newer whole one counts."""

    def __init__(self, path: Path, names: list[str]) -> None:
        self.file = _MappedFile(path)
        self._names = names
        self._body = struct.Struct(f"<{1 + len(names)}Q")  # sequence number, counters
        self._stride = -(-(self._body.size + 4) // _PAGE) * _PAGE
        self._bytes = self.file.map((2 * self._stride,), np.dtype(np.uint8)).data
        self._sequence = 0

    def write(self, counters: Mapping[str, int]) -> None:
        if len(counters) != len(self._names):
            raise ValueError(f"counters: got {list(counters)}, expected {self._names}")
        try:
            body = self._body.pack(self._sequence + 1, *[counters[name] for name in self._names])
        except (KeyError, struct.error) as error:
            raise ValueError(f"counters: got {dict(counters)}, expected {self._names} from 0 to 2^64 - 1") from error
        self._sequence += 1
        start = self._sequence % 2 * self._stride
        self._bytes[start : start + len(body) + 4] = body + zlib.crc32(body).to_bytes(4, "little")

    def read(self) -> dict[str, int]:
        newest: tuple[int, ...] = ()
        for start in (0, self._stride):
            record = bytes(self._bytes[start : start + self._body.size + 4])
            body, crc = record[:-4], int.from_bytes(record[-4:], "little")
            if zlib.crc32(body) == crc and (values := self._body.unpack(body)) > newest:
                newest = values
        if not newest or not newest[0]:
            raise StorageError(f"{self.file.path} is damaged: neither of its two records is whole")
        self._sequence = newest[0]
        return dict(zip(self._names, newest[1:], strict=True))


def _zeros(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Zeros at a cache line: pages not yet written take no memory."""
    length = math.prod(shape) * dtype.itemsize
    memory = np.zeros(length + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + length].view(dtype).reshape(shape)


def _lock(folder: Path) -> BinaryIO:
    file = open(folder / "lock", "ab")  # noqa: SIM115
    if not try_lock(file):
        file.close()
        raise StorageError(f"{folder} is open already, in this process or another: close that first")
    return file


def _read_layout(folder: Path) -> dict[str, Any]:
    path = folder / "layout.json"
    if not path.is_file():
        raise StorageError(f"{folder} holds no storage of fastac")
    first, _, text = path.read_bytes().partition(b"\n")
    text = text.removesuffix(b"\n")
    if first != f"{_MAGIC} {zlib.crc32(text):08x}".encode():
        raise StorageError(f"{path} is damaged, or no layout of fastac's")
    layout: dict[str, Any] = json.loads(text)
    if layout["format"] > FORMAT_VERSION:
        raise StorageError(f"{folder} has format {layout['format']}, this fastac reads up to {FORMAT_VERSION}")
    return layout
