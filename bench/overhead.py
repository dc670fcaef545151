"""What a small call, the import and the first call cost, in CPU time; the last two in processes of their own."""

import os
import statistics
import subprocess
import sys
import tempfile
from typing import Any

import numpy as np

from bench import contenders, record, timing
from bench.cases import GAMMA, LAMBDA, SMALLEST, make_case

REPEATS = 7

TIMED = "import time; start = time.process_time()\n{body}\nprint(time.process_time() - start)"
SETUP = (
    "import numpy as np, time\n"
    "r = np.ones((128, 8), np.float32); v = np.ones((128, 8), np.float32); d = np.zeros((128, 8), bool)\n"
)
FIRST_CALLS = {
    "fastac": (
        "import fastac",
        "fastac.gae(r, v, v[-1], d, gamma=0.99, gae_lambda=0.95)",
    ),
    "tianshou": (
        "from tianshou.algorithm.algorithm_base import _gae\nr = r.ravel().astype(float); v = v.ravel(); d = d.ravel()",
        "_gae(v, v, r, d, 0.99, 0.95)",
    ),
    "rlax": (
        "import jax, rlax\nv = np.ones((129, 8), np.float32)",
        "jax.jit(jax.vmap(lambda r, d, v: rlax.truncated_generalized_advantage_estimation(r, d, 0.95, v), in_axes=1,"
        " out_axes=1))(r, r, v).block_until_ready()",
    ),
}


def child_seconds(code: str, **environment: str) -> float:
    """Run code in a fresh interpreter and read the seconds that it prints."""
    path = os.pathsep.join([str(record.ROOT), str(record.ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        check=True,
        cwd=tempfile.gettempdir(),
    )
    return float(done.stdout.split()[-1])


def import_seconds() -> dict[str, float]:
    """Median seconds of an import in a fresh interpreter, the files already read once."""
    result = {}
    for module in ("fastac", "numba", "torch"):
        child_seconds(TIMED.format(body=f"import {module}"))
        times = [child_seconds(TIMED.format(body=f"import {module}")) for _ in range(REPEATS)]
        result[module] = round(statistics.median(times), 3)
    return result


def first_call_seconds(absent: dict[str, str]) -> dict[str, dict[str, float]]:
    """First GAE call of a process, without and with a cache of machine code from an earlier process."""
    result = {}
    for name, (imports, call) in FIRST_CALLS.items():
        if name in absent:
            continue
        code = f"{SETUP}{imports}\n{TIMED.format(body=call)}"
        with tempfile.TemporaryDirectory() as cache:
            folder = {"FASTAC_CACHE_DIR": cache}
            first = child_seconds(code, **folder)
            later = statistics.median(child_seconds(code, **folder) for _ in range(REPEATS))
        result[name] = {"first": round(first, 4), "again": round(later, 4)}
    return result


def calls() -> dict[str, Any]:
    """The public call on each kind of array, with and without `out=`."""
    import torch

    import fastac

    case = make_case("gae", "short", SMALLEST)
    arrays = (case.rewards, case.values, case.last_values.copy(), case.terminated)
    tensors = tuple(map(torch.from_numpy, arrays))
    out = fastac.GAE(*(np.empty_like(case.rewards) for _ in range(2)))
    tensor_out = fastac.GAE(*(torch.empty_like(tensors[0]) for _ in range(2)))
    options: dict[str, Any] = {"gamma": GAMMA, "gae_lambda": LAMBDA}
    return {
        "numpy_out": lambda: fastac.gae(*arrays, **options, out=out),
        "numpy": lambda: fastac.gae(*arrays, **options),
        "tensor_out": lambda: fastac.gae(*tensors, **options, out=tensor_out),
        "tensor": lambda: fastac.gae(*tensors, **options),
    }


def main() -> None:
    absent = contenders.missing()
    result = {
        "command": "python -m bench overhead",
        "machine": record.machine(),
        "shape": list(SMALLEST),
        "missing": absent,
        "calls": timing.summarise(timing.interleave(calls(), seconds=3.0), "numpy_out"),
        "import_seconds": import_seconds(),
        "first_call_seconds": first_call_seconds(absent),
    }
    record.write(record.RESULTS / "overhead.json", result)
    print(record.render(result))
