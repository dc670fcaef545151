"""Prioritized replay buffers of Stable-Baselines3's kind, which has none: batches with weights and indices."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from fastac import buffers
from fastac.buffers import Transitions
from fastac.compat.sb3.replay import DictReplayBuffer, ReplayBuffer

__all__ = ["PrioritizedDictReplayBuffer", "PrioritizedReplayBuffer", "PrioritizedSamples"]


class PrioritizedSamples(NamedTuple):
    """`ReplayBufferSamples` with what a prioritized batch has besides."""

    observations: Any  # (B, *observation), or a dict of such
    actions: torch.Tensor  # (B, action_dim)
    next_observations: Any
    dones: torch.Tensor  # (B, 1) float32, terminated
    rewards: torch.Tensor  # (B, 1), sums of gamma^k r where targets are n-step
    discounts: torch.Tensor | None  # (B, 1), gamma^m; None where targets are of one step
    weights: torch.Tensor  # (B, 1) float32, the largest 1
    indices: NDArray[np.int64]  # (B,), for update_priorities


class PrioritizedReplayBuffer(ReplayBuffer):
    """`ReplayBuffer` that draws in proportion to a power of each transition's priority.

        P(i) = p_i^alpha / sum_k p_k^alpha,   w_i = (N P(i))^-beta / max_j (N P(j))^-beta

    (Schaul et al. 2016, *Prioritized Experience Replay*, equation 1 and section 3.4; see
    `fastac.buffers.PrioritizedReplayBuffer`.) `prioritized` gives the model classes that train with it.

    Args:
        args: As of `ReplayBuffer`.
        alpha: How much priorities count, at least 0; with 0 all transitions are alike.
        beta: How much of the bias the weights correct at the beginning, at least 0.
        final_beta: And at the end of learning, at least 0; linear in between.
        epsilon: Added to |TD error|, above 0.
        kwargs: As of `ReplayBuffer`.

    Attributes:
        annealed: How much of learning is over, from 0 to 1; the model's `train` sets it.

    Raises:
        ValueError: An argument is out of range.

    Example:
        >>> from gymnasium import spaces
        >>> space = spaces.Box(-1.0, 1.0, (1,))
        >>> buffer = PrioritizedReplayBuffer(8, space, spaces.Discrete(2), "cpu", alpha=1.0, epsilon=1.0, seed=0)
        >>> for t in range(2):
        ...     buffer.add(np.full((1, 1), t), np.full((1, 1), t + 1), np.array([1]), np.ones(1), np.zeros(1), [{}])
        >>> buffer.update_priorities(np.array([0, 1]), torch.tensor([0.0, -2.0]))  # |TD error| + epsilon: 1 and 3
        >>> batch = buffer.sample(4)
        >>> batch.indices.tolist(), [round(w, 4) for w in batch.weights[:, 0].tolist()]  # (1 / 3)^0.4
        ([0, 1, 1, 1], [1.0, 0.6444, 0.6444, 0.6444])
    """

    inner: buffers.PrioritizedReplayBuffer
    _kind: ClassVar[type[buffers.ReplayBuffer]] = buffers.PrioritizedReplayBuffer

    def __init__(
        self,
        *args: Any,
        alpha: float = 0.6,
        beta: float = 0.4,
        final_beta: float = 1.0,
        epsilon: float = 1e-6,
        **kwargs: Any,
    ) -> None:
        for name, value in {"beta": beta, "final_beta": final_beta}.items():
            if not (np.isfinite(value) and value >= 0):
                raise ValueError(f"{name}: got {value}, expected a finite number of at least 0")
        if not (np.isfinite(epsilon) and epsilon > 0):
            raise ValueError(f"epsilon: got {epsilon}, expected a finite number above 0")
        self._more_options = {"alpha": float(alpha), "beta": float(beta)}
        super().__init__(*args, **kwargs)
        self.alpha, self.first_beta, self.final_beta, self.epsilon = alpha, beta, final_beta, epsilon
        self.annealed = 0.0

    @property
    def beta(self) -> float:
        """How much of the bias the weights correct now."""
        return self.first_beta + (self.final_beta - self.first_beta) * min(max(self.annealed, 0.0), 1.0)

    def sample(self, batch_size: int, env: Any = None) -> PrioritizedSamples:
        """Draws a batch in proportion to p^alpha, stratified, with replacement.

        Args:
            batch_size: B.
            env: As of `ReplayBuffer.sample`.

        Returns:
            The batch, its weights of the present `beta`.

        Raises:
            ValueError: There is nothing to draw.
        """
        return self._weighted(self.inner.sample(int(batch_size), beta=self.beta), env)

    def _weighted(self, batch: Transitions, env: Any) -> PrioritizedSamples:
        found = self._samples(batch, env)
        return PrioritizedSamples(
            found.observations, found.actions, found.next_observations, found.dones, found.rewards, found.discounts,
            self._moved(batch.weights[:, None]), batch.indices,
        )  # fmt: skip

    def update_priorities(self, indices: NDArray[np.int64], td_errors: torch.Tensor | NDArray[Any]) -> None:
        """Gives the transitions of a batch the priority |TD error| + epsilon.

        Args:
            indices: `(B,)`: of the batch. Transitions that were overwritten meanwhile are left out.
            td_errors: `(B,)` or `(B, 1)`, of either sign.

        Raises:
            ValueError: A TD error is not finite: nothing is written.
        """
        if isinstance(td_errors, torch.Tensor):
            td_errors = td_errors.detach().cpu().numpy()
        self.inner.update_priorities(indices, np.abs(np.asarray(td_errors).reshape(-1)) + self.epsilon)


class PrioritizedDictReplayBuffer(PrioritizedReplayBuffer, DictReplayBuffer):
    """`PrioritizedReplayBuffer` for Dict observations, where Stable-Baselines3 asks for a class of its own."""
