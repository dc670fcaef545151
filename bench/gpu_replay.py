"""Replay on a GPU: drawing and priorities, beside `index_select` of every field and a sum tree of torch operations."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.gpu_timing import failure, measure
from fastac.buffers import DevicePrioritizedReplayBuffer, DeviceReplayBuffer, device_gather


class Fields:
    """A tensor for each field, as most libraries keep them: `randint`, then `index_select` of each."""

    def __init__(self, capacity: int, observation: int, action: int, device: torch.device):
        self.capacity, self.device = capacity, device
        shapes = ((observation,), (action,), (), (observation,), ())
        self.fields = [torch.zeros((capacity, *shape), device=device) for shape in shapes]

    def sample(self, size: int) -> list[Tensor]:
        index = torch.randint(self.capacity, (size,), device=self.device)
        return [field.index_select(0, index) for field in self.fields]


class SumTree:
    """A binary sum tree, level by level in torch; the leaves' level last."""

    def __init__(self, capacity: int, device: torch.device):
        self.depth = (capacity - 1).bit_length()
        self.levels = [torch.zeros(1 << k, dtype=torch.float64, device=device) for k in range(self.depth + 1)]
        self.device = device

    def update(self, index: Tensor, priorities: Tensor) -> None:
        self.levels[-1][index] = priorities
        for level in range(self.depth - 1, -1, -1):
            index = index >> 1
            below = self.levels[level + 1]
            self.levels[level][index] = below[2 * index] + below[2 * index + 1]

    def sample(self, size: int) -> tuple[Tensor, Tensor]:
        rest = torch.rand(size, dtype=torch.float64, device=self.device) * self.levels[0]
        index = torch.zeros(size, dtype=torch.int64, device=self.device)
        for level in range(1, self.depth + 1):
            left = self.levels[level][2 * index]
            right = rest >= left
            rest = torch.where(right, rest - left, rest)
            index = 2 * index + right
        return index, self.levels[-1][index]


def filled(kind: Any, capacity: int, observation: int, action: int, device: torch.device, n_step: int = 1) -> Any:
    example = {"observations": np.zeros(observation, np.float32), "actions": np.zeros(action, np.float32)}
    step = min(capacity, 65_536)
    envs = None if n_step == 1 else max(step // 8, 1)
    buffer = kind.from_example(capacity, example, num_envs=envs, n_step=n_step, device=device)
    step = envs or step
    for _ in range(0, capacity, step):
        x, a, n = torch.randn(step, observation, device=device), torch.randn(step, action, device=device), step
        flags = torch.zeros(n, dtype=torch.bool, device=device)
        buffer.add(x, a, torch.zeros(n, device=device), x, flags, flags)
    return buffer


def gathers(buffer: Any, size: int) -> dict[str, Any]:
    """A batch gathered by fastac's kernel, and by torch operations; nothing where the kernel cannot run."""
    ring = buffer._ring
    serials = torch.randint(max(buffer.added - len(ring.rows), 0), buffer.added, (size,), device=ring.rows.device)
    found = device_gather.by_kernel(ring, serials) if ring.rows.is_cuda else None
    if found is None:
        return {}
    wanted, tail = device_gather.by_torch(ring, serials), ring.packing.following.start
    same = torch.equal(found.last_rows[:, tail:], wanted.last_rows[:, tail:])
    if not (same and torch.equal(found.rows, wanted.rows) and torch.equal(found.discounts, wanted.discounts)):
        raise AssertionError("the kernel gathers other rows")
    return {
        f"gather, n = {ring.n_step}, one kernel": lambda: device_gather.by_kernel(ring, serials),
        f"gather, n = {ring.n_step}, torch": lambda: device_gather.by_torch(ring, serials),
    }


def run(device: torch.device, capacity: int, sizes: tuple[int, ...], seconds: float) -> list[dict[str, Any]]:
    """Uniform and prioritized, for every batch size; observations of 17 numbers, actions of 6."""
    observation, action = 17, 6
    uniform = filled(DeviceReplayBuffer, capacity, observation, action, device)
    three = filled(DeviceReplayBuffer, capacity, observation, action, device, n_step=3)
    weighted = filled(DevicePrioritizedReplayBuffer, capacity, observation, action, device)
    fields, tree = Fields(capacity, observation, action, device), SumTree(capacity, device)
    tree.update(torch.arange(capacity, device=device), torch.ones(capacity, dtype=torch.float64, device=device))
    rows = []
    for size in sizes:
        priorities = torch.rand(size, device=device) + 0.01
        calls: dict[str, Any] = {
            "fastac uniform": lambda n=size: uniform.sample(n),
            "index_select of each field": lambda n=size: fields.sample(n),
        }
        try:
            calls |= gathers(uniform, size) | gathers(three, size)
        except Exception as problem:
            rows.append({"gather": failure(problem)})

        def ours(n: int = size, p: Tensor = priorities) -> None:
            weighted.update_priorities(weighted.sample(n).indices, p)

        def theirs(n: int = size, p: Tensor = priorities) -> None:
            index, _ = tree.sample(n)
            tree.update(index, p.double())
            for field in fields.fields:
                field.index_select(0, index)

        calls |= {"fastac prioritized, with an update": ours, "torch sum tree, with an update and fields": theirs}
        # What the host draws from generators, and counts, stays outside of graphs.
        rows.append(
            {"batch": size, "capacity": capacity, "results": measure(calls, device, seconds=seconds, graphs=False)}
        )
    weighted.check()
    return rows
