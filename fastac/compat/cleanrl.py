"""CleanRL's scripts: their advantage loop as one call, and their replay rows.

`ppo.py` and its siblings, whose ten-line loop over `reversed(range(args.num_steps))` goes:

    +from fastac.compat import cleanrl
    -            advantages = torch.zeros_like(rewards).to(device)
    -            ...
    -            returns = advantages + values
    +            advantages, returns = cleanrl.gae(
    +                rewards, values, dones, next_value, next_done, args.gamma, args.gae_lambda
    +            )

`dqn.py`, `sac_continuous_action.py`, `td3_continuous_action.py` and `ddpg_continuous_action.py`:

    -from cleanrl_utils.buffers import ReplayBuffer
    +from fastac.compat.cleanrl import ReplayBuffer

The scripts are written for gymnasium 0.29. From gymnasium 1.0 on, vector environments reset in the *next* step by
default: the row that starts an episode is then a filler, from which the scripts learn for nothing. Make the
environments with `autoreset_mode=gym.vector.AutoresetMode.SAME_STEP`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

import fastac
from fastac import buffers
from fastac.conventions import ends_from_starts

__all__ = ["ReplayBuffer", "ReplayBufferSamples", "gae"]


def gae(
    rewards: Any, values: Any, dones: Any, next_value: Any, next_done: Any, gamma: float, gae_lambda: float
) -> fastac.GAE[Any]:
    """`fastac.gae` for CleanRL's variables, whose flags say that a row *starts* an episode.

        delta_t = r_t + gamma (1 - d_{t+1}) V(s_{t+1}) - V(s_t),   A_t = delta_t + gamma lambda (1 - d_{t+1}) A_{t+1}

    d = `dones`, and d_T = `next_done`. The scripts make one flag of a termination and a time limit, so that a time
    limit counts as a termination; where `gamma V(final observation)` is added to a truncated row's reward, it does not.

    Args:
        rewards: `(T, N)` array or tensor.
        values: `(T, N)`, V(s_t). Its dtype is the result's.
        dones: `(T, N)`: row t starts an episode. Row 0's is not used: it says nothing about this window.
        next_value: `(N,)` or `(1, N)`, V of the observation after the last row.
        next_done: `(N,)`: that observation starts an episode.
        gamma: Discount per time step, in [0, 1].
        gae_lambda: Lambda, in [0, 1].

    Returns:
        `GAE(advantages, returns)`, as from `fastac.gae`.

    Raises:
        ValueError: A shape or a range is wrong; the message names `fastac.gae`'s argument.
        TypeError: Arrays and tensors are mixed.

    Source:
        Schulman et al. 2016 (arXiv:1506.02438), equations 11, 12 and 16; CleanRL's `ppo.py`.

    Example:
        >>> rewards, values = np.array([[1.0], [1.0], [1.0]]), np.array([[0.5], [0.5], [0.5]])
        >>> dones = np.array([[0.0], [0.0], [1.0]])  # row 2 starts an episode: transition 1 ended one
        >>> gae(rewards, values, dones, np.array([[2.0]]), np.array([0.0]), 0.9, 1.0).returns[:, 0]
        array([1.9, 1. , 2.8])
    """
    terminated = ends_from_starts(dones, next_done)
    return fastac.gae(
        rewards, values, next_value.reshape(-1), terminated, gamma=float(gamma), gae_lambda=float(gae_lambda)
    )


class ReplayBufferSamples(NamedTuple):
    """A batch of tensors; those without a shape of their own are `(B, 1)`, as the scripts have them."""

    observations: Any  # (B, *observation)
    actions: Any  # (B, *action); (B, 1) int64 where they are discrete
    next_observations: Any  # (B, *observation)
    dones: Any  # (B, 1) float32: 1 where the last row of the target terminated
    rewards: Any  # (B, 1) float32
    discounts: Any  # (B, 1) float32, gamma^m: what V(next_observations) is multiplied by


class ReplayBuffer:
    """`cleanrl_utils.buffers.ReplayBuffer`'s interface on `fastac.buffers.ReplayBuffer`.

    Each observation is stored once, so `optimize_memory_usage` changes nothing: final observations are right at time
    limits all the same. Draws come from a generator of the buffer's own and not from NumPy's global one.

    Args:
        buffer_size: Transitions to keep, of all environments together.
        observation_space: A Gymnasium space.
        action_space: A Gymnasium space.
        device: Where batches go; "auto": "cuda" where there is one.
        n_envs: Environments in each `add`.
        optimize_memory_usage: Taken for the interface's sake.
        handle_timeout_termination: `infos` are dicts, one an environment, whose `TimeLimit.truncated` says that a time
            limit was what ended the episode.
        n_step: The most rows of a target; above 1 the script has to multiply by `data.discounts` instead of
            `args.gamma`.
        gamma: Discount per row, of n-step targets.
        seed: Of the generator.

    Attributes:
        buffer: The `fastac.buffers.ReplayBuffer`.

    Example:
        >>> from gymnasium import spaces
        >>> rb = ReplayBuffer(100, spaces.Box(-1, 1, (2,)), spaces.Discrete(2), "cpu", handle_timeout_termination=False)
        >>> obs, next_obs = np.zeros((1, 2), np.float32), np.ones((1, 2), np.float32)
        >>> rb.add(obs, next_obs, np.array([1]), np.array([0.5]), np.array([True]), {})
        >>> data = rb.sample(4)
        >>> data.actions.shape, data.dones.flatten(), data.next_observations[0]
        (torch.Size([4, 1]), tensor([1., 1., 1., 1.]), tensor([1., 1.]))
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: Any,
        action_space: Any,
        device: Any = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
        handle_timeout_termination: bool = True,
        *,
        n_step: int = 1,
        gamma: float = 0.99,
        seed: int = 0,
    ):
        import torch

        self.device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
        self.n_envs = n_envs
        self.handle_timeout_termination = handle_timeout_termination
        self.buffer = buffers.ReplayBuffer(
            buffer_size, observation_space, action_space, num_envs=n_envs, n_step=n_step, gamma=gamma, seed=seed
        )

    def add(self, obs: Any, next_obs: Any, action: Any, reward: Any, done: Any, infos: Any) -> None:
        """Adds one step of every environment.

        Args:
            obs: `(N, *observation)`.
            next_obs: `(N, *observation)`; a final observation where an episode was cut.
            action: `(N, *action)`.
            reward: `(N,)`.
            done: `(N,)`: terminated (with `handle_timeout_termination`: or cut by a time limit).
            infos: Read with `handle_timeout_termination` only.
        """
        done = np.asarray(done, bool)
        truncated = np.zeros_like(done)
        if self.handle_timeout_termination:
            truncated = done & np.array([bool(info.get("TimeLimit.truncated", False)) for info in infos])
        self.buffer.add(obs, action, np.asarray(reward), next_obs, done & ~truncated, truncated)

    def sample(self, batch_size: int) -> ReplayBufferSamples:
        """Draws a batch uniformly.

        Args:
            batch_size: B.

        Returns:
            Tensors on the buffer's device.
        """
        batch = self.buffer.sample(batch_size, device=self.device)
        actions = batch.actions if batch.actions.ndim > 1 else batch.actions[:, None]
        columns = (x.reshape(-1, 1) for x in (batch.terminated.float(), batch.rewards, batch.discounts))
        return ReplayBufferSamples(batch.observations, actions, batch.next_observations, *columns)

    def size(self) -> int:
        """Transitions that can be drawn."""
        return len(self.buffer)
