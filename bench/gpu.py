"""`python -m bench gpu`: everything that is to be measured on a CUDA device, in one command and under 8 minutes.

Needs numpy, numba, numba-cuda and torch alone. Where there is no device it says so and exits with 2. What fails is
recorded beside what was measured, in bench/results/gpu.json; `device_us` is a call's time on the device, from CUDA
graphs, `call_us` that of calls back to back, which is the host's where the host is slower.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench import gpu_estimators, gpu_learners, gpu_replay, record
from bench.gpu_peers import compiled_loop
from bench.gpu_timing import copy_bandwidth, failure

# Seconds after which nothing of a kind is begun any more; compiling takes most of them.
LIMIT, COMPILED_LEARNERS, PEERS = 420.0, 200.0, 380.0
GIB = 1 << 30


def main(seconds: float = 0.25, path: Path = record.RESULTS / "gpu.json") -> int:
    """Measures, and writes the results; 2 where there is no device."""
    if not torch.cuda.is_available():
        sys.stderr.write("gpu: there is no CUDA device that PyTorch can use: nothing was measured\n")
        return 2
    result = run(torch.device("cuda"), seconds=seconds)
    record.write(path, result)
    sys.stdout.write(f"{path}\n")
    failed = [name for name, part in result["parts"].items() if isinstance(part, dict) and "error" in part]
    for name in failed:
        sys.stderr.write(f"gpu: {name}: {result['parts'][name]['error']}\n")
    return 1 if failed else 0


def run(
    device: torch.device, *, seconds: float, tiny: bool = False, backend: str | None = "inductor"
) -> dict[str, Any]:
    """All parts, in the order of their worth; a part that fails, or comes after the limit, leaves its reason."""
    start = time.monotonic()

    def after(limit: float) -> Callable[[], bool]:
        return lambda: time.monotonic() - start > limit

    torch.set_float32_matmul_precision("high")
    bandwidth = copy_bandwidth(device, 1 << 16 if tiny else GIB)
    shapes: Any = ((16, 8), (40, 3)) if tiny else gpu_estimators.SHAPES
    tokens = (4, 32) if tiny else gpu_estimators.TOKENS
    elements = 512 if tiny else 4096 * 128
    replay: Any = (512, (16, 64)) if tiny else (1_000_000, (256, 4096, 65_536))
    learners: Any = gpu_learners.CASES
    if tiny:
        small = {"batch": 16, "observation": 3, "action": 2, "width": 8}
        learners = [(name, kind, small) for name, kind, _ in gpu_learners.CASES[1:4]]
    parts: dict[str, Callable[[], Any]] = {
        "estimators": lambda: gpu_estimators.ours(device, shapes, bandwidth, seconds),
        "replay": lambda: gpu_replay.run(device, *replay, seconds),
        "tokens": lambda: gpu_estimators.tokens(device, tokens, bandwidth, seconds),
        "loss": lambda: gpu_estimators.loss(device, elements, bandwidth, seconds, backend),
        "learners": lambda: gpu_learners.run(device, learners, seconds, backend, late=after(COMPILED_LEARNERS)),
        "gae against peers": lambda: gpu_estimators.against_peers(
            device, shapes, bandwidth, seconds, backend, late=after(PEERS)
        ),
        "gae against a compiled loop": lambda: gpu_estimators.against_peers(
            device, shapes[:1], bandwidth, seconds, backend, late=after(PEERS), peers=compiled_loop
        ),
    }
    found: dict[str, Any] = {}
    for name, part in parts.items():
        begun = time.monotonic()
        if after(LIMIT)():
            found[name] = {"error": f"left out: {begun - start:.0f} s had passed"}
            continue
        try:
            found[name] = part()
        except Exception as error:
            found[name] = failure(error)
        sys.stderr.write(f"gpu: {name}: {time.monotonic() - begun:.1f} s\n")
    machine = record.machine() | {"cuda": cuda_facts(device)}
    return {
        "machine": machine, "copy_bytes_per_second": round(bandwidth), "seconds": round(time.monotonic() - start, 1),
        "parts": found,
    }  # fmt: skip


def cuda_facts(device: torch.device) -> dict[str, Any]:
    """The device, its driver's and torch's CUDA, and whether our kernels ran or torch's operations."""
    if device.type != "cuda":
        return {"device": str(device)}
    from fastac import _torch_cuda

    properties = torch.cuda.get_device_properties(device)
    return {
        "device": properties.name, "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory, "capability": list(torch.cuda.get_device_capability(device)),
        "torch_cuda": torch.version.cuda, "numba_cuda": record.version("numba-cuda"),
        "triton": record.version("triton"), "kernels": _torch_cuda.kernels() is not None,
    }  # fmt: skip
