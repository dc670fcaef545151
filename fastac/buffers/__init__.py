"""Where experience waits between the environment and the learner."""

from fastac.buffers.prioritized import PrioritizedReplayBuffer
from fastac.buffers.replay import ReplayBuffer, Transitions
from fastac.buffers.rollout import Batch, RolloutBuffer
from fastac.buffers.sequence import SequenceReplayBuffer
from fastac.buffers.staging import Sampler, Staging
from fastac.buffers.window_memory import Sequences

__all__ = [
    "Batch",
    "PrioritizedReplayBuffer",
    "ReplayBuffer",
    "RolloutBuffer",
    "Sampler",
    "SequenceReplayBuffer",
    "Sequences",
    "Staging",
    "Transitions",
]
