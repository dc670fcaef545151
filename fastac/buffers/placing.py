"""One argument for where a replay buffer's rows are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, overload

from fastac.buffers.prioritized import PrioritizedReplayBuffer
from fastac.buffers.replay import ReplayBuffer

if TYPE_CHECKING:
    import torch

    from fastac.buffers.device import DeviceReplayBuffer
    from fastac.buffers.device_priorities import DevicePrioritizedReplayBuffer

__all__ = ["replay_buffer"]


@overload
def replay_buffer(
    capacity: int, transition: Mapping[str, Any] | tuple[Any, Any], *, device: torch.device | str = "cpu",
    prioritized: Literal[False] = False, **options: Any,
) -> ReplayBuffer | DeviceReplayBuffer: ...  # fmt: skip
@overload
def replay_buffer(
    capacity: int, transition: Mapping[str, Any] | tuple[Any, Any], *, device: torch.device | str = "cpu",
    prioritized: Literal[True], **options: Any,
) -> PrioritizedReplayBuffer | DevicePrioritizedReplayBuffer: ...  # fmt: skip
def replay_buffer(
    capacity: int,
    transition: Mapping[str, Any] | tuple[Any, Any],
    *,
    device: torch.device | str = "cpu",
    prioritized: bool = False,
    **options: Any,
) -> ReplayBuffer | DeviceReplayBuffer:
    """A replay buffer with its rows in host memory, or on the device.

    One loop serves both: `add`, `sample(batch_size, device=device)`, `update_priorities(batch.indices, ...)` and `save`
    take and give the same, whatever else differs is told by `DeviceReplayBuffer`. For rollouts it is
    `RolloutBuffer(device="cuda")`, which collects on the host, and `DeviceRolloutBuffer` where environments step on the
    device.

    Args:
        capacity: Transitions to keep.
        transition: One transition without a batch dimension, as `ReplayBuffer.from_example` takes it; or a pair of
            Gymnasium spaces, of observations and of actions.
        device: Where rows are: "cpu" for a `ReplayBuffer` of NumPy arrays, else for a `DeviceReplayBuffer` there.
        prioritized: Draw in proportion to priorities: `PrioritizedReplayBuffer`, or `DevicePrioritizedReplayBuffer`.
        options: Those of the class; `frame_stack` and `storage` are the host's alone.

    Returns:
        An empty buffer.

    Raises:
        ValueError: An argument is out of range, does not go with the device, or there is no such device.
        TypeError: An argument has the wrong type.

    Example:
        >>> import numpy as np
        >>> example = {"observations": np.zeros(17, np.float32), "actions": np.zeros(6, np.float32)}
        >>> buffer = replay_buffer(100_000, example, device="cpu", num_envs=8, n_step=3)
        >>> buffer
        ReplayBuffer(0 of 100000 transitions, num_envs=8)
    """
    kind: Any = PrioritizedReplayBuffer if prioritized else ReplayBuffer
    if str(device) != "cpu":
        for name in ("frame_stack", "storage"):
            if options.pop(name, None) is not None:
                raise ValueError(f"{name}: got one together with device={str(device)!r}, expected device='cpu'")
        from fastac.buffers.device import DeviceReplayBuffer
        from fastac.buffers.device_priorities import DevicePrioritizedReplayBuffer

        kind = DevicePrioritizedReplayBuffer if prioritized else DeviceReplayBuffer
        options["device"] = device
    buffer: ReplayBuffer | DeviceReplayBuffer = (
        kind.from_example(capacity, transition, **options)
        if isinstance(transition, Mapping)
        else kind(capacity, *transition, **options)
    )
    return buffer
