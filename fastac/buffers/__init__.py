"""Where experience waits between the environment and the learner."""

from fastac.buffers.rollout import Batch, RolloutBuffer

__all__ = ["Batch", "RolloutBuffer"]
