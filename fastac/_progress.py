"""What a command says while it is busy: how far it is, and that kernels are compiled."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Any, TextIO

from numba.core import event

from fastac_kernels import _jit

SECONDS_BETWEEN_REFRESHES = 0.25
SECONDS_BETWEEN_LINES = 10.0


class Counter:
    """How many of how many are done: live on a terminal, a line every ten seconds elsewhere.

    Args:
        file: Where to; standard error by default.

    Example:
        >>> with Counter() as counter:
        ...     counter(1, 100, "episodes")  # quick work says nothing
    """

    def __init__(self, file: TextIO | None = None):
        self._file = sys.stderr if file is None else file
        self._live = self._file.isatty()
        self._next = time.monotonic() + (0.0 if self._live else SECONDS_BETWEEN_LINES)

    def __enter__(self) -> Counter:
        return self

    def __call__(self, done: int, total: int, what: str) -> None:
        """Shows a new state; most calls do nothing."""
        now = time.monotonic()
        if now < self._next:
            return
        text = f"{done:,} of {total:,}  {what}"
        self._file.write(f"\r\x1b[K{text}" if self._live else f"{text}\n")
        self._file.flush()
        self._next = now + (SECONDS_BETWEEN_REFRESHES if self._live else SECONDS_BETWEEN_LINES)

    def __exit__(self, *error: object) -> None:
        if self._live:
            self._file.write("\r\x1b[K")
            self._file.flush()


class _Listener(event.Listener):  # type: ignore[misc]
    def __init__(self) -> None:
        self.silent = False

    def on_start(self, event: Any) -> None:
        if self.silent or not event.data["dispatcher"].py_func.__module__.startswith("fastac_kernels"):
            return
        self.silent = True
        if _jit.CACHE_FOLDER is None:
            kept = "no folder can be written to keep them, FASTAC_CACHE_DIR names another"
        else:
            kept = f"they are kept in {_jit.CACHE_FOLDER}"
        # Looked up now: a progress bar may have put its own in place of stderr.
        sys.stderr.write(f"Compiling kernels, a quarter of a minute or so: {kept}.\n")
        sys.stderr.flush()

    def on_end(self, event: Any) -> None:
        pass


@contextlib.contextmanager
def compiling_is_said() -> Iterator[None]:
    """Says on stderr that kernels are compiled, once, if that happens in the block: they are not in the cache yet.

    Example:
        >>> with compiling_is_said():
        ...     pass
    """
    with event.install_listener("numba:compile", _Listener()):
        yield
