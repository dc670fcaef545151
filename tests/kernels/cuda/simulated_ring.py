"""Gathering rows in Numba's simulator; run by `test_simulated.py`, in a process of its own."""

import numpy as np
import pytest
from simulator import Memory, Simulator, rest_while_waiting

import fastac_kernels.cuda as kernels
from fastac_kernels.cuda import launch, ring

rest_while_waiting()


@pytest.mark.parametrize(
    ("row_bytes", "stride", "offset"), [(8, 16, 8), (12, 20, 4), (6, 10, 2), (5, 7, 1), (40, 40, 0)]
)
def test_gather_rows(row_bytes: int, stride: int, offset: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fields of packed rows, in the widest words that divide them."""
    monkeypatch.setattr(ring, "THREADS", 8)
    generator = np.random.default_rng(row_bytes)
    slots, count = 5, 7
    storage = generator.integers(0, 256, size=slots * stride + offset, dtype=np.uint8)
    index = generator.integers(0, slots, size=count)
    width = next(w for w in (8, 4, 2, 1) if row_bytes % w == stride % w == offset % w == 0)
    words = f"uint{8 * width}"
    simulator = Simulator()
    base = 1 << 16
    span = (slots * stride) // width * width  # a row may end before its stride does
    simulator.memory[base + offset] = Memory(storage[offset:][:span].view(words), False)
    target = np.zeros(count * row_bytes // width, words)
    with launch.recorded(simulator):
        at = simulator.place(target, True)
        kernels.gather_rows_at(base + offset, simulator.place(index, False), at, count, row_bytes, stride, 0, 0)
    out = target.view(np.uint8).reshape(count, row_bytes)
    rows = [storage[offset + i * stride : offset + i * stride + row_bytes] for i in index]
    np.testing.assert_array_equal(out, np.stack(rows))
    assert np.all(simulator.memory[at].writes == 1)
    assert simulator.launched == [f"gather_rows {words}"]
