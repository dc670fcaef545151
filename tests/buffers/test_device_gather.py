"""What of a ring the CUDA kernel is given; that it gathers what torch operations do is tested in tests/kernels."""

from typing import Any

import numpy as np
import pytest
import torch

from fastac import _torch_cuda
from fastac.buffers import DevicePrioritizedReplayBuffer, DeviceReplayBuffer, ReplayBuffer, device_gather


def filled(kind: Any = DeviceReplayBuffer, **options: Any) -> Any:
    example = {"observations": np.zeros(3, np.float32), "actions": np.int64(0)}
    buffer = kind.from_example(10, example, num_envs=2, gamma=0.5, device="cpu", **options)
    for t in range(7):
        x = torch.full((2, 3), t)
        buffer.add(x, [t, t], [1.0, t], x + 1, [t == 4, False], [False, False])
    return buffer


class Kernels:
    """Stands in for `fastac_kernels.cuda`: remembers a call, or raises."""

    def __init__(self, error: Exception | None = None):
        self.calls: list[tuple[Any, ...]] = []
        self.error = error

    def gather_transitions_at(self, *given: Any) -> None:
        if self.error is not None:
            raise self.error
        self.calls.append(given)


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Kernels:
    stub = Kernels()
    monkeypatch.setattr(_torch_cuda, "_kernels", stub)
    monkeypatch.setattr(_torch_cuda, "stream_of", lambda device: 1000 + device)
    return stub


@pytest.mark.parametrize("n_step", [1, 3])
def test_one_launch(kernels: Kernels, n_step: int) -> None:
    """Addresses of the buffer's own tensors and of the outputs; nothing is copied but draws that lie apart."""
    buffer = filled(n_step=n_step)
    ring, packing = buffer._ring, buffer._packing
    serials = torch.tensor([13, 12, 6, 5])
    found = device_gather.by_kernel(ring, serials)
    assert found is not None
    storage, rewards, cut, *rest = kernels.calls.pop()
    rows = buffer._rows
    assert storage == rows.data_ptr()
    views = packing.views(rows)
    assert (rewards, cut) == (views["rewards"].data_ptr(), views["cut"].data_ptr())
    outputs = [found.rows.data_ptr(), 0, 0, 0]
    if n_step > 1:
        outputs = [x.data_ptr() for x in found]
    assert rest == [
        serials.data_ptr(), buffer._counters.data_ptr(), ring.powers.data_ptr(), *outputs, 4, 10, 2, n_step,
        packing.row, packing.following.start, 999, -1,
    ]  # fmt: skip
    assert (found.rows.shape, found.rewards.shape) == ((4, packing.row), (4,))
    assert all(x.is_contiguous() for x in found[:2])
    device_gather.by_kernel(ring, torch.stack([serials, serials], 1)[:, 0])
    assert kernels.calls.pop()[3] != serials.data_ptr()


def test_every_reading_gathers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples of both buffers, and `gather`, take what `device_gather.gather` gives."""
    seen = []

    def watched(ring: Any, serials: torch.Tensor) -> Any:
        seen.append(serials.tolist())
        return device_gather.by_torch(ring, serials)

    monkeypatch.setattr("fastac.buffers.device.gather", watched)
    for kind in (DeviceReplayBuffer, DevicePrioritizedReplayBuffer):
        buffer = filled(kind, n_step=2)
        batches = buffer.sample(5), buffer.gather([9, 4])
        assert seen == [batch.indices.tolist() for batch in batches]
        seen.clear()


def test_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch operations take over, where the kernels are missing and where they cannot be compiled."""
    buffer = filled(n_step=3)
    monkeypatch.setattr(_torch_cuda, "_kernels", None)
    assert device_gather.by_kernel(buffer._ring, torch.tensor([5])) is None
    monkeypatch.setattr(_torch_cuda, "_kernels", Kernels(OSError("no libNVVM")))
    monkeypatch.setattr(_torch_cuda, "stream_of", lambda device: 0)
    with pytest.warns(RuntimeWarning, match="no libNVVM"):
        assert device_gather.by_kernel(buffer._ring, torch.tensor([5])) is None


@pytest.mark.parametrize("n_step", [2, 5])
def test_sums_are_rounded_once(n_step: int) -> None:
    """Discounted rewards are multiplied and added in float64, as `ReplayBuffer` does: the same bits."""
    example = {"observations": np.zeros(1, np.float32), "actions": np.int64(0)}
    options: dict[str, Any] = {"num_envs": 3, "n_step": n_step, "gamma": 0.97}
    host = ReplayBuffer.from_example(60, example, **options)
    device = DeviceReplayBuffer.from_example(60, example, device="cpu", **options)
    generator = np.random.default_rng(n_step)
    x = np.zeros((3, 1), np.float32)
    for _ in range(25):
        step = (x, [0] * 3, generator.normal(size=3).astype(np.float32), x, generator.random(3) < 0.1, [False] * 3)
        host.add(*step)
        device.add(*step)
    indices = np.arange(15, 75)
    assert np.array_equal(host.gather(indices).rewards, device.gather(indices).rewards.numpy())
