"""Warming up leaves nothing to compile: every kernel that replay enters has run."""

import pytest
from fresh import run_python

# `insert_filled` stands in where an interpreter's objects cannot be read, and is compiled there alone.
CHECK = """
import importlib, pkgutil
import fastac.buffers
from fastac import _warmup
from fastac_kernels import _jit

_warmup._replay()
cold = set()
for found in pkgutil.iter_modules(fastac.buffers.__path__, "fastac.buffers."):
    if "device" in found.name:
        continue
    for x in vars(importlib.import_module(found.name)).values():
        if x in _jit._DISPATCHERS and not x.signatures and x.__name__ != "insert_filled":
            cold.add(f"{found.name}: {x.__name__}")
assert not cold, cold
count = _jit.loaded_specialisations()
_warmup._replay()
assert _jit.loaded_specialisations() == count
"""


@pytest.mark.slow
def test_warmup_compiles_every_kernel_that_replay_enters() -> None:
    run_python(CHECK, timeout=900)
