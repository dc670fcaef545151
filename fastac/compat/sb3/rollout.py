"""Rollout buffers for `rollout_buffer_class=`: advantages by `fastac.gae`, minibatches without a copy of each field."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common import buffers as sb3
from stable_baselines3.common.type_aliases import DictRolloutBufferSamples, RolloutBufferSamples

from fastac import gae
from fastac.conventions import ends_from_starts

__all__ = ["DictRolloutBuffer", "RolloutBuffer"]


class RolloutBuffer(sb3.RolloutBuffer):
    """Stable-Baselines3's rollout buffer with `fastac.gae` and minibatches that are slices of one gather an epoch.

        model = PPO("MlpPolicy", env, rollout_buffer_class=fastac.compat.sb3.RolloutBuffer)

    Advantages and returns are Stable-Baselines3's to rounding: `episode_starts` are shifted by a row into the flags of
    transitions, and truncations are in the rewards by then, as `collect_rollouts` puts them there.

    What differs beside speed: permutations come from a generator of the buffer's own, and `get` leaves the arrays
    `(buffer_size, N, ...)` as they are.

    Args:
        buffer_size: T, steps of each environment.
        observation_space: Of one environment; a Dict space for dicts.
        action_space: Of one environment.
        device: Where minibatches go.
        gae_lambda: Decay of the trace per step.
        gamma: Discount per step.
        n_envs: N, environments.
        seed: Of the permutations. None: drawn from numpy's global generator, which Stable-Baselines3 has seeded by
            then: the same `seed=` of a model gives the same run.

    Example:
        >>> buffer = RolloutBuffer(2, spaces.Box(-1, 1, (1,)), spaces.Discrete(2), "cpu", gae_lambda=1.0, gamma=0.5)
        >>> zeros = np.zeros((1, 1), np.float32)
        >>> for reward in (1.0, 2.0):
        ...     buffer.add(zeros, zeros, np.array([reward]), np.zeros(1), torch.zeros(1), torch.zeros(1))
        >>> buffer.compute_returns_and_advantage(torch.tensor([4.0]), np.array([False]))
        >>> buffer.returns[:, 0].tolist()  # 1 + 0.5 * (2 + 0.5 * 4), 2 + 0.5 * 4
        [3.0, 4.0]
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        device: torch.device | str = "auto",
        gae_lambda: float = 1,
        gamma: float = 0.99,
        n_envs: int = 1,
        *,
        seed: int | None = None,
    ) -> None:
        if seed is None:
            seed = int(np.random.randint(2**63 - 1, dtype=np.int64))  # noqa: NPY002 what set_random_seed seeds
        self._generator = np.random.default_rng(seed)
        super().__init__(
            buffer_size, observation_space, action_space,
            device=device, gae_lambda=gae_lambda, gamma=gamma, n_envs=n_envs,
        )  # fmt: skip

    def compute_returns_and_advantage(self, last_values: torch.Tensor, dones: NDArray[Any]) -> None:
        """Computes generalised advantages and returns of all steps.

        Args:
            last_values: `(N,)` or `(N, 1)`, V of the observations after the last step.
            dones: `(N,)`: the last step ended the episode.
        """
        last = np.ascontiguousarray(last_values.detach().cpu().numpy().reshape(-1), np.float32)
        ended = ends_from_starts(self.episode_starts != 0, np.asarray(dones) != 0)
        self.advantages, self.returns = gae(
            self.rewards, self.values, last, ended, gamma=self.gamma, gae_lambda=self.gae_lambda
        )

    def get(self, batch_size: int | None = None) -> Iterator[Any]:
        """Yields every transition once, in random order.

        Args:
            batch_size: Of each minibatch but the last; None: one with all.

        Returns:
            An iterator over `RolloutBufferSamples`, or `DictRolloutBufferSamples`.
        """
        assert self.full, "the rollout is not full"
        rows = self.buffer_size * self.n_envs
        order = torch.from_numpy(self._generator.permutation(rows))
        actions = self.actions.astype(np.float32, copy=False)
        names = ("values", "log_probs", "advantages", "returns")
        fields = [_gathered(x, order) for x in (self.observations, actions, *[getattr(self, name) for name in names])]
        size = rows if batch_size is None else batch_size
        kind = DictRolloutBufferSamples if isinstance(self.observations, dict) else RolloutBufferSamples
        for start in range(0, rows, size):
            yield kind(*[self._part(field, start, start + size) for field in fields])

    def _part(self, field: Any, start: int, end: int) -> Any:
        if isinstance(field, dict):
            return {key: self._part(part, start, end) for key, part in field.items()}
        part = field[start:end]
        return part if self.device.type == "cpu" else part.to(self.device)


def _gathered(field: Any, order: torch.Tensor) -> Any:
    """Rows of `(T, N, ...)` in this order, `(T * N, ...)`."""
    if isinstance(field, dict):
        return {key: _gathered(part, order) for key, part in field.items()}
    flat = np.ascontiguousarray(field).reshape(len(order), *field.shape[2:])
    return torch.from_numpy(flat).index_select(0, order)


class DictRolloutBuffer(RolloutBuffer, sb3.DictRolloutBuffer):
    """`RolloutBuffer` for Dict observations, where Stable-Baselines3 asks for a class of its own."""
