"""Every CUDA kernel compiled to PTX, which needs no device: that it has types, and which instructions it is made of."""

import re
import types as python_types
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason="numba-cuda is not installed")
compiler = pytest.importorskip("numba.cuda.compiler", reason="numba-cuda is not installed")
from numba import cuda, types  # noqa: E402

from fastac_kernels.cuda import gae, n_step, ratio, reduction, retrace, returns, ring, scan, vtrace  # noqa: E402
from fastac_kernels.cuda.launch import Kernel  # noqa: E402

REALS = (np.float32, np.float64)
TARGETS = ((8, 0), (9, 0))
RECURRENCES = {
    "gae": gae.recurrence,
    "discounted_returns": returns.discounted_recurrence,
    "lambda_returns": returns.lambda_recurrence,
    "vtrace": vtrace.recurrence,
    "retrace": retrace.recurrence,
}


def every_kernel() -> list[Kernel]:
    """All that can be launched."""
    found = [ring.gather_kernel()]
    for real in REALS:
        found += [n_step.n_step_kernel(real, full) for full in (False, True)]
        for kernel in (ratio.count_kernel, ratio.loss_kernel, ratio.finish_kernel):
            found.append(kernel(real, reduction.THREADS))
        for name, recurrence in RECURRENCES.items():
            for full in (True,) if name == "retrace" else (False, True):
                found += [scan.scan_kernel(name, recurrence, real, full, reduce) for reduce in (False, True)]
    return found


def compile_for_targets(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """PTX for every target, of one pass through Numba: that is what takes the time."""
    device = python_types.SimpleNamespace(compute_capability=TARGETS[0])
    # Functions for the device ask which one there is.
    monkeypatch.setattr("numba.cuda.dispatcher.get_current_device", lambda: device)
    signature = types.void(*kernel.argument_types)
    library, _ = compiler._compile_pyfunc_with_fixup(
        kernel.function, signature, debug=False, lineinfo=False, device=False, fastmath=False, cc=TARGETS[0], opt=None,
        abi="numba", abi_info=None, forceinline=False, launch_bounds=None, lto=False,
    )  # fmt: skip
    return ["\n".join(library.get_asm_strs(cc=target)) for target in TARGETS]


@pytest.mark.skipif(not hasattr(compiler, "_compile_pyfunc_with_fixup"), reason="another numba-cuda")
@pytest.mark.parametrize("kernel", every_kernel(), ids=lambda kernel: kernel.name.replace(" ", "-"))
def test_ptx(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """No float64 instruction in float32 kernels; rows stay in registers; nothing is called; nothing is atomic."""
    for target, ptx in zip(TARGETS, compile_for_targets(kernel, monkeypatch), strict=True):
        assert f".target sm_{target[0]}{target[1]}" in ptx
        assert ".visible .entry" in ptx
        assert (".f64" in ptx) == (np.dtype(np.float64).name in kernel.name)
        assert ".local" not in ptx
        assert not re.search(r"^\s*(call|atom|red)\b", ptx, re.MULTILINE)


def test_public_compiler_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    """The short way above gives what Numba's public function gives."""
    kernel = ring.gather_kernel()
    ptx, _ = cuda.compile_ptx(kernel.function, types.void(*kernel.argument_types), cc=TARGETS[1])

    def text(source: str) -> Any:
        return re.sub(r"_ZN\w+|//.*", "", source)

    assert text(ptx) == text(compile_for_targets(kernel, monkeypatch)[1])
