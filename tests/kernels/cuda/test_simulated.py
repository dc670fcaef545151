"""The CUDA kernels' meaning, without a device: Numba's simulator, which has to be chosen before Numba is imported."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fresh import ROOT

pytest.importorskip("numba_cuda", reason="numba-cuda is not installed")
SUITES = sorted(path.name for path in Path(__file__).parent.glob("simulated_*.py"))


@pytest.mark.parametrize("suite", SUITES)
def test_simulated(suite: str) -> None:
    """One file of cases, all passing."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-W", "ignore::RuntimeWarning"]
    env = dict(os.environ) | {"NUMBA_ENABLE_CUDASIM": "1"}
    done = subprocess.run(
        [*command, str(Path(__file__).parent / suite)], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert re.search(r"[1-9]\d* passed", done.stdout), done.stdout
