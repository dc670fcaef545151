"""Where experience waits between the environment and the learner."""

from fastac.buffers.rollout import Batch, RolloutBuffer
from fastac.buffers.staging import Sampler, Staging

__all__ = ["Batch", "RolloutBuffer", "Sampler", "Staging"]
