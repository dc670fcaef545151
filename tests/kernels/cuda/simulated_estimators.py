"""Every estimator in Numba's simulator against the references; run by `test_simulated.py`, in a process of its own."""

import numpy as np
import pytest
from cuda_cases import LAYOUTS, NAMES, Case, make
from simulator import Simulator, rest_while_waiting

import fastac_kernels.cuda as kernels
from fastac_kernels.cuda import launch, n_step, scan
from fastac_kernels.cuda.scan import Shape

rest_while_waiting()
# Sequences of a block, threads along each, chunks: a thread alone, neighbours, doubling, two launches.
SHAPES = [(1, 1, 1), (2, 1, 1), (1, 2, 1), (2, 2, 1), (1, 4, 1), (1, 1, 4), (2, 2, 2), (1, 2, 8)]
# Lengths and numbers of sequences. Every shape meets long ones: chunks and rounds are then more than two.
LONG = ((17, 33), (1, 2, 3))
OTHERS = [((1, 2, 3, 5), (1, 2, 3, 5)), ((1, 2, 3), (17, 33)), ((2, 3, 5), (2, 3, 5))]
FORMS = [(name, full) for name in NAMES for full in (True, False) if full or name != "retrace"]


def simulate(case: Case, monkeypatch: pytest.MonkeyPatch, width: int, depth: int, chunks: int) -> list[np.ndarray]:
    """Run a call with so many threads, sequences and chunks; every output is written, and once."""
    _, sequences, lanes = case.sizes
    shape = Shape(width, depth, -(-sequences * lanes // width), chunks)
    monkeypatch.setattr(scan, "shape_of", lambda *sizes: shape)
    monkeypatch.setattr(n_step, "shape_of", lambda *sizes: shape)
    for plan in set(kernels.PLANS.values()):
        plan.cache_clear()
    simulator = Simulator()
    with launch.recorded(simulator):
        outputs = case.call(simulator.place)
    for memory in simulator.memory.values():
        if memory.is_output and memory.array.size == case.sizes[0] and any(memory.array is x for x in outputs):
            assert np.all(memory.writes == 1), str(case)
    return outputs


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("name", "full"), FORMS)
def test_estimators(name: str, full: bool, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows R1 to R10, at every boundary of threads, rounds and chunks; nothing that must not be read is."""
    generator = np.random.default_rng([NAMES.index(name), full, LAYOUTS.index(layout)])
    for i, shape in enumerate(SHAPES):
        if name == "n_step_returns" and shape[2] > 1:
            continue
        pair = (LONG, OTHERS[i % 3]) if i % 2 else (OTHERS[i % 3], LONG)
        for dtype, (lengths, counts) in zip((np.float32, np.float64), pair, strict=True):
            case = make(name, layout, full, dtype, generator, lengths, counts)
            case.check(simulate(case, monkeypatch, *shape))
