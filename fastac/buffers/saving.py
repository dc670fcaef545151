r"""Archives: arrays and a few facts about them in one file that is either whole or refused.

Layout, little-endian throughout::

    magic (16 bytes) | version u32 | header's length u64 | CRC-32 of version, length and header u32
    header: JSON, {"arrays": [[name, dtype, shape], ...], "metadata": {...}}
    for each array: its bytes in C order | CRC-32 u32 of the header's CRC and these bytes

The header tells the file's length, so that a file that was cut short is refused before anything is read. CRC-32 notices
every change of up to 32 consecutive bits for certain and any other but one in 4 billion. Nothing is executed.
"""

from __future__ import annotations

import json
import math
import os
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from fastac._files import atomic_file

__all__ = ["FORMAT_VERSION", "ArchiveError", "read_archive", "write_archive"]

FORMAT_VERSION = 1
_MAGIC = b"\x89fastac-arrays\r\n"
_PREFIX = struct.Struct("<16sIQI")
_CRC = struct.Struct("<I")
_CHUNK = 1 << 20  # bytes: large against the cost of a call, small against a cache
_LONGEST_HEADER = 1 << 28
_KINDS = "biufc"  # bool, integers, floats, complex: what is bytes and nothing else

Fields = dict[str, tuple[tuple[int, ...], np.dtype[Any]]]


class ArchiveError(ValueError):
    """An archive that cannot be written or read; the message is one line for the user."""


def write_archive(
    path: str | os.PathLike[str], arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, Any]
) -> None:
    """Write arrays to one file, replacing what is there only once all of it is on the disk.

    The arrays are streamed: the memory that is needed beside them is one chunk of a megabyte, contiguous or not. They
    must not change meanwhile.

    Args:
        path: The file; its folder must exist.
        arrays: Names and arrays of numbers or bools, of any shape and strides.
        metadata: What JSON can hold; integers of any size come back exactly, floats must be finite, keys are strings.

    Raises:
        TypeError: An array of objects, strings or records, or metadata that JSON cannot hold.
        ArchiveError: The file cannot be written. What was at `path` before is still there.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "buffer.fastac"
        >>> write_archive(path, {"rewards": np.arange(3.0)}, {"added": 3})
        >>> read_archive(path)
        ({'added': 3}, {'rewards': array([0., 1., 2.])})
    """
    entries = []
    for name, array in arrays.items():
        if array.dtype.kind not in _KINDS:
            raise TypeError(f"arrays[{name!r}]: got dtype {array.dtype}, expected numbers or bools")
        entries.append([name, array.dtype.newbyteorder("<").str, list(array.shape)])
    try:
        header = json.dumps({"arrays": entries, "metadata": dict(metadata)}, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise TypeError(f"metadata: {error}, expected what JSON can hold") from None
    path = Path(path)
    try:
        with atomic_file(path) as file:
            crc = _header_crc(FORMAT_VERSION, header)
            file.write(_PREFIX.pack(_MAGIC, FORMAT_VERSION, len(header), crc))
            file.write(header)
            for array in arrays.values():
                file.write(_CRC.pack(_write_array(file, array, crc)))
    except OSError as error:
        raise ArchiveError(f"cannot write {path}: {error.strerror or error}") from error


def read_archive(
    path: str | os.PathLike[str],
    allocate: Callable[[dict[str, Any], Fields], Mapping[str, NDArray[Any]]] | None = None,
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Read what `write_archive` wrote, straight into the arrays where it is to stay.

    Args:
        path: The file.
        allocate: Called with the metadata and `{name: (shape, dtype)}`, both already checked, before any array is
            read; returns the arrays to read into, C-contiguous and of just these shapes and dtypes (the filled part
            of a larger one, for example). If reading then fails, they hold part of the file: give it new arrays. By
            default new arrays are made.

    Returns:
        The metadata, and the arrays by name.

    Raises:
        ArchiveError: The file is missing, damaged, cut short, written by a newer version or no archive of ours, or its
            arrays are not the ones that `allocate` returned.
    """
    path = Path(path)
    try:
        with open(path, "rb", buffering=0) as file:
            metadata, fields, crc = _read_header(path, file)
            if allocate is None:
                arrays: Mapping[str, NDArray[Any]] = {n: np.empty(s, d) for n, (s, d) in fields.items()}
            else:
                arrays = allocate(metadata, fields)
            _check_targets(path, fields, arrays)
            for name in fields:
                _read_array(path, file, name, arrays[name], crc)
    except OSError as error:
        raise ArchiveError(f"cannot read {path}: {error.strerror or error}") from error
    return metadata, {name: arrays[name] for name in fields}


def _header_crc(version: int, header: bytes) -> int:
    return zlib.crc32(header, zlib.crc32(struct.pack("<IQ", version, len(header))))


def _blocks(array: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """The array in C order, as contiguous little-endian pieces of about a chunk."""
    if array.flags.c_contiguous:
        flat = array.reshape(-1)
        step = max(1, _CHUNK // max(1, array.itemsize))
        for start in range(0, flat.size, step):
            block = flat[start : start + step]
            yield block.astype(block.dtype.newbyteorder("<"), copy=False)
    elif array.nbytes <= _CHUNK:
        yield from _blocks(np.ascontiguousarray(array))
    else:
        step = max(1, _CHUNK // max(1, array[:1].nbytes))
        for start in range(0, len(array), step):
            part = array[start : start + step]
            yield from _blocks(part[0] if step == 1 else np.ascontiguousarray(part))


def _write_array(file: BinaryIO, array: NDArray[Any], crc: int) -> int:
    for block in _blocks(array):
        data = block.view(np.uint8).data
        crc = zlib.crc32(data, crc)
        file.write(data)
    return crc


def _read_header(path: Path, file: Any) -> tuple[dict[str, Any], Fields, int]:
    length = file.seek(0, os.SEEK_END)
    file.seek(0)
    prefix = _read_bytes(file, _PREFIX.size)
    if len(prefix) < _PREFIX.size or not prefix.startswith(_MAGIC):
        raise ArchiveError(f"{path} is no archive of fastac, or it was cut short")
    _, version, header_length, crc = _PREFIX.unpack(prefix)
    if _PREFIX.size + header_length > length or header_length > _LONGEST_HEADER:
        raise ArchiveError(f"{path} is damaged or was cut short: its header does not fit into it")
    header = _read_bytes(file, header_length)
    if _header_crc(version, header) != crc:
        raise ArchiveError(f"{path} is damaged: the checksum of its header is wrong")
    if version > FORMAT_VERSION:
        raise ArchiveError(f"{path} has format {version}, this fastac reads up to {FORMAT_VERSION}")
    try:
        content = json.loads(header)
        metadata: dict[str, Any] = dict(content["metadata"])
        fields: Fields = {str(n): (tuple(map(int, s)), np.dtype(str(d))) for n, d, s in content["arrays"]}
        if len(fields) != len(content["arrays"]) or any(d.kind not in _KINDS for _, d in fields.values()):
            raise ValueError
        expected = _PREFIX.size + header_length
        for shape, dtype in fields.values():
            if min(shape, default=0) < 0 or len(shape) > 32 or math.prod(max(n, 1) for n in shape) >= 1 << 58:
                raise ValueError  # NumPy could not make it
            expected += math.prod(shape) * dtype.itemsize + _CRC.size
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError, SyntaxError):
        raise ArchiveError(f"{path} is refused: its header describes no arrays") from None
    if length != expected:
        said = "was cut short" if length < expected else "is damaged"
        raise ArchiveError(f"{path} {said}: it has {length} bytes, its header says {expected}")
    return metadata, fields, crc


def _check_targets(path: Path, fields: Fields, arrays: Mapping[str, NDArray[Any]]) -> None:
    if set(fields) != set(arrays):
        raise ArchiveError(f"{path} holds the arrays {sorted(fields)}, expected {sorted(arrays)}")
    for name, (shape, dtype) in fields.items():
        target = arrays[name]
        if target.shape != shape or target.dtype.newbyteorder("<") != dtype:
            raise ArchiveError(
                f"{path}: {name} has shape {shape} and dtype {dtype}, expected {target.shape} and {target.dtype}"
            )
        if not (target.flags.c_contiguous and target.flags.writeable):
            raise ValueError(f"allocate: {name} must be C-contiguous and writable")


def _read_array(path: Path, file: Any, name: str, target: NDArray[Any], crc: int) -> None:
    for block in _targets(target):
        data = block.view(np.uint8).data
        done = 0
        while done < len(data) and (count := file.readinto(data[done:])):
            done += count
        if done < len(data):
            raise ArchiveError(f"{path} was cut short in {name}")
        crc = zlib.crc32(data, crc)
        if block.dtype != block.dtype.newbyteorder("<"):  # a big-endian machine
            block.byteswap(inplace=True)
    if _read_bytes(file, _CRC.size) != _CRC.pack(crc):
        raise ArchiveError(f"{path} is damaged: the checksum of {name} is wrong")


def _targets(target: NDArray[Any]) -> Iterator[NDArray[Any]]:
    flat = target.reshape(-1)
    step = max(1, _CHUNK // max(1, target.itemsize))
    for start in range(0, flat.size, step):
        yield flat[start : start + step]


def _read_bytes(file: Any, length: int) -> bytes:
    data = b""
    while len(data) < length and (more := file.read(length - len(data))):
        data += more
    return data
