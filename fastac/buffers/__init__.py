"""Where experience waits between the environment and the learner.

What needs torch, rollouts and staging, is imported when it is asked for: replay buffers do without.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fastac.buffers.placing import replay_buffer
from fastac.buffers.prioritized import PrioritizedReplayBuffer
from fastac.buffers.replay import ReplayBuffer, Transitions
from fastac.buffers.sequence import SequenceReplayBuffer
from fastac.buffers.window_memory import Sequences

if TYPE_CHECKING:
    from fastac.buffers.device import DeviceReplayBuffer
    from fastac.buffers.device_priorities import DevicePrioritizedReplayBuffer
    from fastac.buffers.device_rollout import DeviceRolloutBuffer
    from fastac.buffers.rollout import Batch, RolloutBuffer
    from fastac.buffers.staging import Sampler, Staging

__all__ = [
    "Batch",
    "DevicePrioritizedReplayBuffer",
    "DeviceReplayBuffer",
    "DeviceRolloutBuffer",
    "PrioritizedReplayBuffer",
    "ReplayBuffer",
    "RolloutBuffer",
    "Sampler",
    "SequenceReplayBuffer",
    "Sequences",
    "Staging",
    "Transitions",
    "replay_buffer",
]
_LAZY = {
    "Batch": "rollout",
    "DevicePrioritizedReplayBuffer": "device_priorities",
    "DeviceReplayBuffer": "device",
    "DeviceRolloutBuffer": "device_rollout",
    "RolloutBuffer": "rollout",
    "Sampler": "staging",
    "Staging": "staging",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f"fastac.buffers.{_LAZY[name]}"), name)
    except ModuleNotFoundError as error:
        missing = f'fastac.buffers.{name} needs {error.name}: pip install "fastac-rl[torch]"'
        raise ModuleNotFoundError(missing, name=error.name) from error


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
