"""Checkpoints: one file that is either whole or refused, written atomically, read without executing code.

The file is what `torch.save` writes (and `torch.load` reads it) with a trailer of 36 bytes: format version, length and
CRC-32 of what precedes, a magic string. torch itself does not notice damage.
"""

from __future__ import annotations

import os
import pickle
import struct
import sys
import threading
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import numpy as np
import torch

__all__ = ["FORMAT_VERSION", "CheckpointError", "load", "save"]

FORMAT_VERSION = 1
_MAGIC = b"\nfastac-checkpoint\r\n"
_TRAILER = struct.Struct(f"<IQI{len(_MAGIC)}s")  # version, length, CRC-32 of content, version and length
_NUMPY = "__numpy__"


class CheckpointError(ValueError):
    """A checkpoint that cannot be written or read; the message is one line for the user."""


def save(path: str | os.PathLike[str], state: Mapping[str, object]) -> None:
    """Write `state` to `path`, replacing what is there only once all of it is on the disk.

    Args:
        path: the file; its folder must exist.
        state: dicts (keys: strings or integers), lists, tuples, None, bool, int of any size, float, str, NumPy
            arrays and scalars, tensors (saved from the CPU, without their graph). Other mappings become dicts, named
            tuples tuples.

    Raises:
        TypeError: something else is in `state`; the message says where.
        CheckpointError: the file cannot be written. What was at `path` before is still there.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "checkpoint.pt"
        >>> save(path, {"steps": 2**100, "mean": np.zeros(2, np.float32)})
        >>> load(path)
        {'steps': 1267650600228229401496703205376, 'mean': array([0., 0.], dtype=float32)}
    """
    content = _encoded("state", state)
    path = Path(path)
    # In the same folder, since a file can be renamed over another within a file system only.
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}")
    try:
        try:
            with open(temporary, "wb") as file:
                writer = _Writer(file)
                torch.save(content, cast(IO[bytes], writer))  # it calls write and flush alone
                writer.finish()
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch's writer, in C++, turns some of the former into the latter
        raise CheckpointError(f"cannot write checkpoint {path}: {_first_line(error)}") from error


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what `save` wrote. No code in the file is executed.

    Returns:
        The state; tensors are on the CPU, NumPy arrays have their dtypes and shapes.

    Raises:
        CheckpointError: the file is missing, damaged, cut short, written by a newer version, or no checkpoint of ours.
    """
    try:
        with open(path, "rb") as file:
            _check(path, file)
            file.seek(0)
            state = _decoded(torch.load(file, map_location="cpu", weights_only=True))
    except OSError as error:
        raise CheckpointError(f"cannot read checkpoint {path}: {_first_line(error)}") from error
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"checkpoint {path} is refused: it holds more than plain data and tensors") from error
    except Exception as error:  # an unpickler may raise anything; a file made to harm ends here
        raise CheckpointError(f"checkpoint {path} is refused: {_first_line(error)}") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"checkpoint {path} holds a {type(state).__name__}, expected a dict")
    return state


class _Writer:
    """A file that counts and sums what is written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._length = 0
        self._crc = 0

    def write(self, data: bytes) -> int:
        self._crc = zlib.crc32(data, self._crc)
        self._length += len(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    def finish(self) -> None:
        crc = zlib.crc32(struct.pack("<IQ", FORMAT_VERSION, self._length), self._crc)
        self._file.write(_TRAILER.pack(FORMAT_VERSION, self._length, crc, _MAGIC))


def _check(path: str | os.PathLike[str], file: IO[bytes]) -> None:
    length = file.seek(0, os.SEEK_END) - _TRAILER.size
    file.seek(max(length, 0))
    trailer = file.read()
    if length < 0 or not trailer.endswith(_MAGIC):
        raise CheckpointError(f"{path} is no checkpoint of fastac, or it was cut short")
    version, stated_length, stated_crc, _ = _TRAILER.unpack(trailer)
    file.seek(0)
    crc, left = 0, length
    while left and (chunk := file.read(min(left, 1 << 20))):
        crc = zlib.crc32(chunk, crc)
        left -= len(chunk)
    crc = zlib.crc32(struct.pack("<IQ", version, length), crc)
    if stated_length != length or stated_crc != crc:
        raise CheckpointError(f"checkpoint {path} is damaged")
    if version > FORMAT_VERSION:
        raise CheckpointError(f"checkpoint {path} has format {version}, this fastac reads up to {FORMAT_VERSION}")


def _encoded(where: str, value: object) -> Any:
    if type(value) is str:
        # Pickle refers back to objects by identity: equal states give equal bytes only where equal strings are one.
        return sys.intern(value)
    if value is None or type(value) in (bool, int, float):
        return value
    if isinstance(value, torch.Tensor):
        tensor = value.detach().cpu()
        # torch.save writes the whole storage that a view looks into.
        return tensor.clone() if tensor.untyped_storage().nbytes() > tensor.nbytes else tensor
    if isinstance(value, np.ndarray | np.generic):
        array = np.asarray(value)
        if array.dtype.hasobject or array.dtype.names:
            raise TypeError(f"{where}: an array of dtype {array.dtype} cannot be saved")
        # torch has not all of NumPy's dtypes, so it gets the bytes; it also wants them writable.
        data = np.require(array, requirements=["C", "W"]).reshape(-1).view(np.uint8)
        shape = None if isinstance(value, np.generic) else array.shape
        return {_NUMPY: (array.dtype.str, shape, torch.from_numpy(data))}
    if isinstance(value, Mapping):
        for key in value:
            if type(key) not in (str, int) or key == _NUMPY:
                raise TypeError(f"{where}: got the key {key!r}, expected a string or an integer")
        return {_encoded(where, key): _encoded(f"{where}[{key!r}]", item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [_encoded(f"{where}[{index}]", item) for index, item in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    raise TypeError(f"{where}: got a {type(value).__name__}, expected plain data, an array or a tensor")


def _decoded(value: Any) -> Any:
    if isinstance(value, dict):
        if _NUMPY in value:
            dtype, shape, data = value[_NUMPY]
            array = data.numpy().view(dtype)
            return array[0] if shape is None else array.reshape(shape)
        return {key: _decoded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_decoded(item) for item in value]
    if isinstance(value, tuple):
        return tuple(_decoded(item) for item in value)
    return value


def _first_line(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    lines = text.strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _sync_folder(folder: Path) -> None:
    """Make the renaming last: it is the folder that changed. Windows cannot and need not."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
