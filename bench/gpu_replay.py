"""Replay on a GPU: drawing and priorities, beside `index_select` of every field and a sum tree of torch operations."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.gpu_timing import failure, measure
from fastac.buffers import DevicePrioritizedReplayBuffer, DeviceReplayBuffer


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


def filled(kind: Any, capacity: int, observation: int, action: int, device: torch.device) -> Any:
    example = {"observations": np.zeros(observation, np.float32), "actions": np.zeros(action, np.float32)}
    buffer = kind.from_example(capacity, example, num_envs=None, device=device)
    step = min(capacity, 65_536)
    for _ in range(0, capacity, step):
        x, a, n = torch.randn(step, observation, device=device), torch.randn(step, action, device=device), step
        flags = torch.zeros(n, dtype=torch.bool, device=device)
        buffer.add(x, a, torch.zeros(n, device=device), x, flags, flags)
    return buffer


def gathered_by_our_kernel(rows: Tensor, size: int) -> Any:
    """The same gather of packed rows as `index_select`, by fastac's kernel; None where it cannot run."""
    from fastac import _torch_cuda

    cuda = _torch_cuda.kernels() if rows.is_cuda else None
    if cuda is None:
        return None
    index = torch.randint(len(rows), (size,), device=rows.device)
    out = torch.empty((size, rows.shape[1]), dtype=torch.uint8, device=rows.device)
    where = rows.device.index or 0

    def call() -> None:
        stream = _torch_cuda.stream_of(where)
        cuda.gather_rows_at(
            rows.data_ptr(), index.data_ptr(), out.data_ptr(), size, rows.shape[1], rows.shape[1], stream, where
        )

    call()
    if not torch.equal(out, rows.index_select(0, index)):
        raise AssertionError("the kernel gathers other rows")
    return call, lambda: rows.index_select(0, index)


def run(device: torch.device, capacity: int, sizes: tuple[int, ...], seconds: float) -> list[dict[str, Any]]:
    """Uniform and prioritized, for every batch size; observations of 17 numbers, actions of 6."""
    observation, action = 17, 6
    uniform = filled(DeviceReplayBuffer, capacity, observation, action, device)
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
            kernel = gathered_by_our_kernel(uniform._rows, size)
            if kernel is not None:
                calls["fastac's gather alone"], calls["index_select of rows alone"] = kernel
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
