"""Python in a process of its own: for what depends on the environment at import, or may kill its process."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])

# Root may write anywhere; without capabilities it keeps to the permission bits like everybody else.
DROP_CAPABILITIES = """
import ctypes, os, sys
if sys.platform == "linux" and os.geteuid() == 0:
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    if ctypes.CDLL(None, use_errno=True).capset(header, (ctypes.c_uint32 * 6)()):
        raise OSError(ctypes.get_errno(), "capset")
"""


def run_python(
    code: str,
    *arguments: str,
    path: str = SOURCES,
    cwd: Path | None = None,
    env: Mapping[str, str | None] | None = None,
    returncode: int = 0,
    timeout: float = 240,
) -> str:
    """Run `code` and return what it printed; None in `env` removes a variable."""
    environment = dict(os.environ) | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    for name, value in (env or {}).items():
        environment.pop(name, None)
        if value is not None:
            environment[name] = value
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == returncode, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout + (done.stderr if returncode else "")
