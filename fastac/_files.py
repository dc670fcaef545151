"""Files that are replaced whole or not at all, and locks that end with the process that holds them."""

from __future__ import annotations

import errno
import glob
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, BinaryIO


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write that becomes `path` once the block is through and all of it is on the disk.

    Until then, and for good if the block raises or the process ends, what was at `path` is still there. What a process
    that was killed left behind is removed by the next one that writes to `path`.
    """
    # In the same folder, since a file can be renamed over another within a file system only.
    prefix = f".{path.name}.saving-"
    temporary = path.with_name(f"{prefix}{os.getpid()}-{threading.get_ident()}")
    _remove_abandoned(path.parent, prefix)
    try:
        with _locked(temporary) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if sys.platform != "win32":  # there an open file cannot be renamed; here the lock lasts until it is
                os.replace(temporary, path)
        if sys.platform == "win32":
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def try_lock(file: IO[bytes]) -> bool:
    """Lock an open file until it is closed; False where somebody else holds it."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EAGAIN, errno.EDEADLK)  # else there are no locks here
    return True


def sync_folder(folder: Path) -> None:
    """Make a renaming last: it is the folder that changed. Windows cannot and need not."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _locked(temporary: Path) -> BinaryIO:
    while True:
        file = open(temporary, "wb")  # noqa: SIM115
        if sys.platform == "win32":
            return file  # being open is its lock: nobody can remove it
        import fcntl

        with suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        # Somebody may have taken it for abandoned between its creation and the lock.
        if temporary.exists() and os.path.samestat(os.fstat(file.fileno()), os.stat(temporary)):
            return file
        file.close()


def _remove_abandoned(folder: Path, prefix: str) -> None:
    for path in folder.glob(f"{glob.escape(prefix)}*"):
        with suppress(OSError):  # somebody else's, or gone already
            if sys.platform == "win32":
                path.unlink()  # refused while its writer has it open
            else:
                with open(path, "rb") as file:
                    if try_lock(file):
                        path.unlink()
