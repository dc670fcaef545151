"""The one decorator every CPU kernel is compiled with, and where its machine code is cached.

Kernels are `nogil` and serial, follow numpy's division rules, and may re-associate and contract floating-point
operations but still honour NaN and infinity. Their array arguments carry LLVM's `noalias`: the API guarantees that an
output overlaps nothing, and without that promise LLVM does not vectorise most of these loops.

Environment variables, read at import: `FASTAC_NOALIAS=0` leaves `noalias` out, `FASTAC_CACHE_DIR` names another folder
for machine code (`NUMBA_CACHE_DIR` is honoured too), `FASTAC_CACHE=0` keeps none.
"""

import hashlib
import os
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numba
from numba.core import config

Function = TypeVar("Function", bound=Callable[..., Any])

FASTMATH = frozenset({"contract", "nsz", "arcp", "reassoc"})


def _noalias_flag_exists() -> bool:
    """Whether this Numba still has the internal flag that puts `noalias` on array arguments."""
    try:
        from numba.core.compiler import Flags
        from numba.core.dispatcher import _FunctionCompiler  # type: ignore[attr-defined]

        return hasattr(Flags(), "noalias") and hasattr(_FunctionCompiler, "_customize_flags")
    except ImportError:
        return False


NOALIAS = os.environ.get("FASTAC_NOALIAS", "1") != "0" and _noalias_flag_exists()


def options_key() -> str:
    """Hash of everything that changes machine code but not Numba's own cache key: options and all kernel sources."""
    digest = hashlib.sha256(f"{sorted(FASTMATH)} noalias={NOALIAS} numba={numba.__version__}".encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.name.encode())
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def _user_cache_folder() -> Path:
    """The folder that this platform reserves for caches of one user."""
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def _find_cache_folder() -> Path | None:
    """The cache folder of this build of the kernels, created; None where nothing can be written."""
    if os.environ.get("FASTAC_CACHE", "1") == "0":
        return None
    try:
        parent = os.environ.get("FASTAC_CACHE_DIR") or config.CACHE_DIR
        folder = (Path(parent) if parent else _user_cache_folder()) / f"fastac-{options_key()}"
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except (OSError, RuntimeError):  # RuntimeError: no home folder
        return None


CACHE_FOLDER = _find_cache_folder()
_DISPATCHERS: list[Any] = []
_LOCK = threading.Lock()


def kernel(function: Function) -> Function:
    """Compile `function` at its first call, with the options above, caching machine code where a folder can be written.

    Args:
        function: A function of numpy arrays and scalars. Outputs are arguments and overlap no other argument.

    Returns:
        The Numba dispatcher, or `function` itself under `NUMBA_DISABLE_JIT=1`.
    """
    return _compiled(function, forceinline=False, cache=True)


def inline(function: Function) -> Function:
    """Like `kernel`, for the short loops that kernels call once a row: always inlined, since a call costs 50 ns.

    Python cannot enter it, nor a kernel whose name begins with an underscore: the wrappers that this would need were a
    fifth of what kernels took to compile.
    """
    return _compiled(function, forceinline=True, cache=False)


def entry(signature: Callable[[Any], tuple[Any, ...]]) -> Callable[[Function], Function]:
    """A kernel that takes arrays for one list of types for each float type, and refuses all others with `TypeError`.

    Args:
        signature: Gives the Numba types of the arguments for a Numba float type.
    """

    def decorate(function: Function) -> Function:
        dispatcher: Any = kernel(function)
        dispatcher.signature, dispatcher.compiled_for = signature, set()
        return dispatcher  # type: ignore[no-any-return]

    return decorate


def ready(dispatcher: Any, dtype: Any) -> bool:
    """Whether an `entry` may be called for this numpy dtype; the first time it is compiled or loaded from the cache."""
    return dtype in dispatcher.compiled_for or _compile_for(dispatcher, dtype)


def door(*signature: Any) -> Callable[[Function], Function]:
    """A kernel of one list of types, which Python enters by what `opened` returns.

    Args:
        signature: The Numba types of the arguments.
    """

    def decorate(function: Function) -> Function:
        dispatcher: Any = kernel(function)
        dispatcher.signature = signature
        return dispatcher  # type: ignore[no-any-return]

    return decorate


def opened(dispatcher: Any) -> Callable[..., Any]:
    """The compiled function behind a `door`, compiled now or loaded from the cache.

    It converts its arguments to the signature's types and runs. Numba's dispatch, which first finds out what types they
    have, takes another 80 ns, and does not know what `objects.OBJECT` stands for.
    """
    if config.DISABLE_JIT:
        return dispatcher  # type: ignore[no-any-return]
    with _LOCK:
        return dispatcher.compile(dispatcher.signature)  # type: ignore[no-any-return]


def _compile_for(dispatcher: Any, dtype: Any) -> bool:
    """Compile an entry for a dtype, or load it from the cache, and let it compile nothing else."""
    if config.DISABLE_JIT:
        return False  # plain Python would refuse no type
    with _LOCK:
        if dispatcher.compiled_for:
            dispatcher.disable_compile(False)
        dispatcher.compile(dispatcher.signature(numba.from_dtype(dtype)))
        dispatcher.disable_compile()
        dispatcher.compiled_for.add(dtype)
    return True


def _compiled(function: Function, *, forceinline: bool, cache: bool) -> Function:
    options = {"nogil": True, "error_model": "numpy", "fastmath": set(FASTMATH), "forceinline": forceinline}
    dispatcher: Any = numba.njit(**options)(function)
    if dispatcher is function:
        return function
    if NOALIAS:
        # Numba has the flags but no public options for them; set here, they leave other kernels of the process alone.
        def customize(flags: Any) -> Any:
            flags.noalias = True
            flags.no_cfunc_wrapper = True
            flags.no_cpython_wrapper = forceinline or function.__name__.startswith("_")
            return flags

        dispatcher._compiler._customize_flags = customize
    if cache and CACHE_FOLDER is not None:
        saved = config.CACHE_DIR
        config.CACHE_DIR = str(CACHE_FOLDER)
        try:
            dispatcher.enable_caching()
        except (OSError, RuntimeError):
            pass  # compiled anew in each process instead
        finally:
            config.CACHE_DIR = saved
    _DISPATCHERS.append(dispatcher)
    return dispatcher  # type: ignore[no-any-return]


def loaded_specialisations() -> int:
    """How many specialisations of kernels are compiled or loaded in this process.

    One for each list of argument types of a kernel that Python enters: those have public names. What only kernels call
    (`@inline`, or a name with an underscore) is part of their machine code. A process that compiles by itself counts a
    few more than one that loads from the cache: kernels with public names that other kernels call.
    """
    return sum(
        len(dispatcher.signatures)
        for dispatcher in _DISPATCHERS
        if not dispatcher.targetoptions["forceinline"] and not dispatcher.__name__.startswith("_")
    )
