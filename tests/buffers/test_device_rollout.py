"""Rollouts on the device, here on CPU tensors, give what rollouts on the host give."""

from typing import Any

import numpy as np
import pytest
import torch
from nothing_read import NothingRead

from fastac.buffers import DeviceRolloutBuffer, RolloutBuffer

T, N, D = 16, 3, 2


def both(seed: int, masked: bool, kind: Any, device: str = "cpu") -> tuple[RolloutBuffer, DeviceRolloutBuffer, Any]:
    """The same steps in both buffers; the other gets final observations of all environments, NaN where unread."""
    rng = np.random.default_rng(seed)
    host, there = RolloutBuffer(T, N, (D,)), DeviceRolloutBuffer(T, N, (D,), device=device)
    for _ in range(2):  # a second rollout leaves nothing of the first
        host.reset(), there.reset()
        for _ in range(T):
            terminated, truncated = rng.random((2, N)) < 0.3
            mask = rng.random(N) < 0.7 if masked else True
            final = rng.normal(size=(N, D)).astype(np.float32)
            ended = (terminated | truncated) & np.broadcast_to(mask, N)
            final[~(ended & truncated & ~terminated)] = np.nan
            step = [rng.normal(size=(N, D)).astype(np.float32), rng.integers(0, 5, N), rng.normal(size=N)]
            host.add(*step, terminated, truncated, mask, final[ended])
            given = [kind(x) for x in (*step, terminated, truncated)]
            there.add(*given, *([kind(mask)] if masked else []), final_observations=kind(final))
    return host, there, rng.normal(size=(N, D)).astype(np.float32)


def estimated(buffer: RolloutBuffer, last: Any) -> Any:
    observations = buffer.observations_to_value(last)
    values = observations @ torch.tensor([1.0, -2.0], device=observations.device)
    buffer.compute_advantages(torch.arange(T * N, device=values.device) * 1.0, values, gamma=0.9, gae_lambda=0.8)
    return list(buffer.minibatches(4, torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", [torch.as_tensor, np.asarray], ids=["tensors", "arrays"])
def test_as_on_the_host(masked: bool, kind: Any) -> None:
    """Rows R1, R3, R8 and R15, and every field of every minibatch."""
    host, there, last = both(0, masked, kind)
    for one, two in zip(estimated(host, last), estimated(there, kind(last)), strict=True):
        for field, other in zip(one, two, strict=True):
            torch.testing.assert_close(field, other, rtol=0, atol=0)
    torch.testing.assert_close(host.valid_rows(), there.valid_rows())


def test_a11_a_step_waits_for_nothing() -> None:
    """Row A11."""
    with NothingRead():
        both(0, True, torch.as_tensor)


def test_wrong_calls_are_named() -> None:
    buffer = DeviceRolloutBuffer(1, 2, (3,), device="cpu")
    row = [torch.zeros(2, 3), torch.zeros(2), torch.zeros(2), torch.zeros(2), torch.zeros(2)]
    with pytest.raises(ValueError, match=r"actions: got shape \(3,\), expected \(2,\)"):
        buffer.add(row[0], torch.zeros(3), *row[2:], final_observations=None)
    with pytest.raises(ValueError, match="holds 0 of 1 steps"):
        buffer.observations_to_value(row[0])
    buffer.add(*row, final_observations=None)
    with pytest.raises(ValueError, match="the buffer is full"):
        buffer.add(*row, final_observations=None)
    with pytest.raises(ValueError, match="num_steps, num_envs"):
        DeviceRolloutBuffer(0, 1, (1,), device="cpu")


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_cuda() -> None:
    host, there, last = both(0, True, lambda x: torch.as_tensor(x).cuda(), "cuda")
    for one, two in zip(estimated(host, last), estimated(there, torch.from_numpy(last).cuda()), strict=True):
        for field, other in zip(one, two, strict=True):
            torch.testing.assert_close(field, other.cpu(), rtol=1e-5, atol=1e-5)
