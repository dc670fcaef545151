"""The BLAS inside torch, for kernels that run next to torch's own operations."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import torch

LIBRARIES = {"linux": "libtorch_cpu.so", "darwin": "libtorch_cpu.dylib", "win32": "torch_cpu.dll"}


def sgemm() -> int:
    """Returns the address of torch's SGEMM with 64-bit integers, or 0 where this build of torch shows none.

    Torch's builds for x86 hold Intel's MKL, whose symbols the library exports on Linux. It runs on as many threads as
    torch does. `fastac_kernels.products` says what the kernels do with it, and without it.

    Example:
        >>> sgemm() >= 0
        True
    """
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / LIBRARIES[sys.platform]))
        return ctypes.cast(library.sgemm_64_, ctypes.c_void_p).value or 0
    except (OSError, AttributeError, KeyError):
        return 0
