"""Replay buffers by the device their rows are on; "cpu:0" stands for a device: its rows are tensors."""

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from fresh import run_python

from fastac.buffers import (
    DevicePrioritizedReplayBuffer,
    DeviceReplayBuffer,
    PrioritizedReplayBuffer,
    ReplayBuffer,
    replay_buffer,
)

EXAMPLE = {"observations": np.zeros(3, np.float32), "actions": np.int64(0)}
SPACES = (gymnasium.spaces.Box(-1.0, 1.0, (3,)), gymnasium.spaces.Discrete(2))
KINDS = {
    ("cpu", False): ReplayBuffer, ("cpu", True): PrioritizedReplayBuffer,
    ("cpu:0", False): DeviceReplayBuffer, ("cpu:0", True): DevicePrioritizedReplayBuffer,
}  # fmt: skip


@pytest.mark.parametrize("transition", [EXAMPLE, SPACES], ids=["example", "spaces"])
@pytest.mark.parametrize(("device", "prioritized"), KINDS)
def test_one_loop_serves_all(device: str, prioritized: bool, transition: Any) -> None:
    """The same calls, and what comes of them are tensors with the same targets."""
    buffer: Any = replay_buffer(
        100, transition, device=device, prioritized=prioritized, num_envs=2, n_step=2, gamma=0.5, seed=3
    )
    assert type(buffer) is KINDS[device, prioritized]
    assert (buffer.capacity, buffer.num_envs, buffer.n_step, buffer.gamma) == (100, 2, 2, 0.5)
    for t in range(20):
        x = np.full((2, 3), t, np.float32)
        buffer.add(x, [0, 1], [1.0, 2.0], x + 1, [t % 5 == 4, False], [False, False])
    batch = buffer.sample(16, device=torch.device("cpu"))
    assert {x.device for x in batch[:3]} == {torch.device("cpu")}
    known = buffer.gather(batch.indices, device="cpu")
    for name in ("observations", "rewards", "next_observations", "discounts", "terminated"):
        assert torch.equal(getattr(batch, name), getattr(known, name)), name
    assert set(batch.discounts.tolist()) <= {0.5, 0.25}
    if prioritized:
        buffer.update_priorities(batch.indices, torch.rand(16) + 0.1)
        assert batch.weights.max() == 1.0


def test_options_of_the_host_alone() -> None:
    with pytest.raises(ValueError, match=r"storage: got one together with device='cpu:0', expected device='cpu'"):
        replay_buffer(10, EXAMPLE, device="cpu:0", storage="folder")
    with pytest.raises(ValueError, match=r"frame_stack: .*device='cuda'"):
        replay_buffer(10, EXAMPLE, device="cuda", frame_stack=4)
    assert isinstance(replay_buffer(10, EXAMPLE, device="cpu:0", storage=None), DeviceReplayBuffer)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_no_such_device() -> None:
    with pytest.raises(ValueError, match=r"device: got 'cuda'.*no CUDA device"):
        replay_buffer(10, EXAMPLE, device="cuda")


def test_host_memory_needs_no_torch() -> None:
    run_python(
        "import sys, numpy as np\n"
        "from fastac.buffers import replay_buffer\n"
        "example = {'observations': np.zeros(3, np.float32), 'actions': np.int64(0)}\n"
        "assert len(replay_buffer(10, example)) == 0\n"
        "assert 'torch' not in sys.modules\n"
    )
