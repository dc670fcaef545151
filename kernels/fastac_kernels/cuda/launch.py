"""Where every CUDA kernel is launched: on a stream and a device that the caller names, without waiting for either.

A kernel takes addresses and numbers. It is compiled at its first launch, for the one signature that it has. Everything
goes through `driver`, a module global: `recorded` puts one there that launches nothing and remembers what it was asked.
"""

import contextlib
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numba import cuda, types

Size = tuple[int, int]
FLOATS = {np.dtype(np.float32): types.float32, np.dtype(np.float64): types.float64}


@dataclass(frozen=True, eq=False)
class Kernel:
    """A function for the device, and the only signature it is compiled for.

    Attributes:
        name: Of the kernel, for people.
        function: What Numba compiles.
        argument_types: Numba's types of its arguments; addresses are `CPointer`.
    """

    name: str
    function: Callable[..., None]
    argument_types: tuple[Any, ...]


class Launch(NamedTuple):
    """What the driver is asked: one kernel, once."""

    kernel: Kernel
    grid: Size
    block: Size
    stream: int
    device: int
    arguments: tuple[Any, ...]


def pointer(element: Any) -> Any:
    """Numba's type of an address of such elements."""
    return types.CPointer(element)


class Driver:
    """Compiles and launches with numba-cuda.

    Numba keeps a context of its own for each thread, so the device is entered for every launch, whatever torch's is.
    """

    def __init__(self) -> None:
        self._configured: dict[tuple[Any, ...], Callable[..., None]] = {}
        self._compiled: dict[tuple[Kernel, int], Any] = {}
        self._lock = threading.Lock()

    def __call__(
        self, kernel: Kernel, grid: Size, block: Size, stream: int, device: int, arguments: tuple[Any, ...]
    ) -> None:
        """Launch a kernel; the first launch compiles it, which no stream may be capturing meanwhile."""
        key = (kernel, grid, block, stream, device)
        with cuda.gpus[device]:
            configured = self._configured.get(key)
            if configured is None:
                configured = self._configure(*key)
            configured(*arguments)

    def _configure(self, kernel: Kernel, grid: Size, block: Size, stream: int, device: int) -> Callable[..., None]:
        with self._lock:
            compiled = self._compiled.get((kernel, device))
            if compiled is None:
                compiled = cuda.jit(types.void(*kernel.argument_types))(kernel.function)
                self._compiled[kernel, device] = compiled
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a small grid is no mistake here
                # Stream objects hash by identity: one for each pointer. Pointer 0 is the default stream.
                configured = compiled.configure(grid, block, cuda.external_stream(stream) if stream else 0)
            if len(self._configured) >= 1024:  # streams and shapes come and go
                self._configured.clear()
            self._configured[kernel, grid, block, stream, device] = configured
            return configured  # type: ignore[no-any-return]


class Recorder:
    """A driver that launches nothing: `launches` lists what it was asked."""

    def __init__(self) -> None:
        self.launches: list[Launch] = []

    def __call__(self, *asked: Any) -> None:
        """Remember one launch."""
        self.launches.append(Launch(*asked))


driver: Callable[..., None] = Driver()


@contextlib.contextmanager
def recorded(instead: Callable[..., None] | None = None) -> Iterator[Any]:
    """Let `instead`, or a `Recorder`, stand in for the driver of this process.

    Yields:
        The stand-in; a `Recorder`'s list of launches.
    """
    global driver
    saved, recorder = driver, Recorder()
    driver = instead or recorder
    try:
        yield instead or recorder.launches
    finally:
        driver = saved


@cache
def unavailable() -> str | None:
    """What is missing for compiling and launching kernels in this process, in one line; None where nothing is."""
    if not cuda.is_available():
        return "there is no CUDA driver with a device"
    try:
        from numba.cuda.cudadrv import nvrtc, nvvm

        nvvm.NVVM()
        nvrtc.get_supported_ccs()
    except Exception as error:
        return f"libNVVM or NVRTC cannot be loaded ({type(error).__name__})"
    return None


def power_of_two(size: int) -> int:
    """The least power of two that is not below `size`."""
    return 1 << max(size - 1, 0).bit_length()
