"""Gathering transitions in Numba's simulator, from device buffers on the CPU's memory; run by `test_simulated.py`."""

import ctypes
from typing import Any

import numpy as np
import pytest
import torch
from simulator import Memory, Simulator, rest_while_waiting

from fastac import _torch_cuda
from fastac.buffers import device_gather
from fastac.buffers.device import DeviceReplayBuffer
from fastac_kernels import cuda as kernels
from fastac_kernels.cuda import launch, ring

rest_while_waiting()


class OnTensors(Simulator):
    """Runs the kernel where tensors lie; watches what it does there."""

    def __call__(
        self, kernel: Any, grid: Any, block: Any, stream: int, device: int, arguments: tuple[Any, ...]
    ) -> None:
        count, capacity, _, n, words, _ = arguments[10:]
        sizes = [words * capacity, 2 * words * (capacity - 1) + 1, 8 * words * (capacity - 1) + 1, count, 1, n + 1]
        sizes += [words * count, words * count, count, count]
        self.outputs: list[Memory] = []
        for i, (size, address) in enumerate(zip(sizes, arguments, strict=False)):
            if address == 0:
                continue
            dtype = np.dtype(str(kernel.argument_types[i].dtype))
            raw = (ctypes.c_uint8 * (size * dtype.itemsize)).from_address(address)
            self.memory[address] = Memory(np.frombuffer(raw, dtype), i >= 6)
            if i >= 6:
                self.outputs.append(self.memory[address])
        super().__call__(kernel, grid, block, stream, device, arguments)


def filled(n_step: int, num_envs: int | None, width: int, steps: int) -> DeviceReplayBuffer:
    """A ring that has gone round, with ends, breaks and fillers; observations of so many bytes."""
    example = {"observations": np.zeros(width, np.uint8), "actions": np.zeros(2, np.float32)}
    buffer = DeviceReplayBuffer.from_example(
        12, example, num_envs=num_envs, n_step=n_step, gamma=0.9, device=torch.device("cpu")
    )
    generator, n = np.random.default_rng(width), num_envs or 2
    seen = generator.integers(0, 256, (n, width), np.uint8)
    for _ in range(steps):
        following = generator.integers(0, 256, (n, width), np.uint8)
        flags = [generator.random(n) < 0.2 for _ in range(2)]
        buffer.add(seen, generator.normal(size=(n, 2)).astype(np.float32), generator.normal(size=n), following, *flags,
                   mask=generator.random(n) < 0.8)  # fmt: skip
        seen = following.copy()
        seen[generator.random(n) < 0.1] += 1  # a break
    return buffer


@pytest.mark.parametrize(
    ("n_step", "num_envs", "width", "steps"),
    [(1, 3, 5, 9), (1, None, 40, 3), (2, 1, 1, 30), (3, 3, 5, 3), (3, 3, 40, 11), (5, 2, 300, 20), (20, 1, 8, 40)],
)
def test_gather_transitions(
    n_step: int, num_envs: int | None, width: int, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What torch operations gather, which are tested against the references: every stored transition, twice and turned.

    Draws do not fill the last block; rows are shorter and longer than a row of threads; every output is written once.
    """
    monkeypatch.setattr(ring, "THREADS", 8)
    monkeypatch.setattr(ring, "WARP", 4)
    ring.grid_of.cache_clear()
    monkeypatch.setattr(_torch_cuda, "_kernels", kernels)
    monkeypatch.setattr(_torch_cuda, "stream_of", lambda device: 0)
    buffer = filled(n_step, num_envs, width, steps)
    stored = torch.arange(max(buffer.added - buffer.capacity, 0), buffer.added)
    serials = torch.cat([stored, stored.flip(0), stored[:1]])
    wanted, driver = device_gather.by_torch(buffer._ring, serials), OnTensors()
    with launch.recorded(driver):
        found = device_gather.by_kernel(buffer._ring, serials)
    assert found is not None
    assert driver.launched == ["gather_transitions float64"]
    tail = buffer._packing.following.start
    assert torch.equal(found.rows, wanted.rows)
    assert torch.equal(found.last_rows[:, tail:], wanted.last_rows[:, tail:])
    assert torch.equal(found.rewards, wanted.rewards)
    assert torch.equal(found.discounts, wanted.discounts)
    for memory, begin in zip(driver.outputs, (0, tail // 8, 0, 0), strict=False):
        per_row = memory.writes.reshape(len(serials), -1)
        assert np.all(per_row[:, begin:] == 1)
        assert np.all(per_row[:, :begin] == 0)
    if n_step > 1 and steps > 9:
        assert len(set(found.discounts.tolist())) > 1  # targets of several lengths
