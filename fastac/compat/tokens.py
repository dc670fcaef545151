"""Advantages over tokens, for trainers of language models: verl, TRL, OpenRLHF, and whoever holds `(B, T)` and a mask.

verl calls its function by name, with `gae`'s arguments:

    +from fastac.compat import tokens
    +from verl.trainer.ppo import core_algos
    +core_algos.compute_gae_advantage_return = tokens.gae     # where the trainer runs, before `fit`

TRL's `PPOTrainer` has its loop inline; in a copy of it, part 6 becomes

    advantages, returns = tokens.gae(
        rewards, values, ~padding_mask_p1, args.gamma, args.lam, whiten=~padding_mask
    )

OpenRLHF's `get_advantages_and_returns(values, rewards, action_mask, gamma, lambd)` is

    tokens.gae(rewards, values, action_mask, gamma, lambd, whiten=False)

A masked token (padding, a prompt, what a tool wrote) is not in time: no discount passes over it, and its value is not
read. A reward that lies on one was earned by the token before it that the policy wrote; it is moved there. verl drops
it, which is the one difference in numbers besides whitening's last digits.
"""

from __future__ import annotations

from typing import Any

import numpy as np

import fastac

__all__ = ["gae", "move_rewards"]


def gae(
    token_level_rewards: Any,
    values: Any,
    response_mask: Any,
    gamma: Any,
    lam: Any,
    *,
    whiten: Any = True,
) -> fastac.GAE[Any]:
    """`fastac.gae` over masked sequences; the sequence's last valid token ends its episode.

    Args:
        token_level_rewards: `(B, T)` array or tensor.
        values: `(B, T)`, V of the state in which the token was chosen. Its dtype is the result's; half precisions are
            computed in float32 and rounded once.
        response_mask: `(B, T)`, not 0 where the policy wrote the token; holes may be anywhere.
        gamma: Discount per valid token, in [0, 1].
        lam: Lambda, in [0, 1].
        whiten: Whether advantages of valid tokens are centred and scaled over the batch; a `(B, T)` mask: over those
            tokens instead, all others becoming 0.

    Returns:
        `GAE(advantages, returns)`, `(B, T)`, 0 at masked tokens. Returns are advantages, not whitened, plus values.

    Raises:
        ValueError: A shape or a range is wrong.
        TypeError: Arrays and tensors, or two devices, are mixed.

    Source:
        Schulman et al. 2016 (arXiv:1506.02438), equations 11, 12 and 16; verl's `compute_gae_advantage_return`.

    Example:
        >>> rewards, values = np.array([[0.0, 0.0, 1.0, 0.0]]), np.array([[0.5, 0.5, 9.0, 0.5]])
        >>> mask = np.array([[1, 1, 0, 1]])  # the third token is a tool's: its reward was earned by the second
        >>> gae(rewards, values, mask, 1.0, 1.0, whiten=False).returns
        array([[1., 1., 0., 0.]])
    """
    valid = response_mask != 0
    rewards = move_rewards(token_level_rewards, valid)
    last = rewards.new_zeros(len(rewards)) if hasattr(rewards, "new_zeros") else np.zeros(len(rewards), rewards.dtype)
    advantages, returns = fastac.gae(
        rewards, values, last, mask=valid, gamma=float(gamma), gae_lambda=float(lam), batch_first=True
    )
    if whiten is not False and whiten is not None:
        advantages = fastac.normalize_advantages(advantages, valid if whiten is True else whiten)
    return fastac.GAE(advantages, returns)


def move_rewards(rewards: Any, mask: Any) -> Any:
    """Rewards of masked tokens, added to that of the nearest valid token before them.

    What lies before the first valid token of a sequence was earned by nobody and is left out, as is NaN.

    Args:
        rewards: `(B, T)` array or tensor.
        mask: `(B, T)`, not 0 where the token is valid.

    Returns:
        `rewards` itself where masked tokens have none; else, and always on a GPU, which is not asked, a new array, 0 at
        masked tokens.

    Raises:
        ValueError: The shapes differ.

    Example:
        >>> move_rewards(np.array([[5.0, 1.0, 2.0, 4.0, 0.5]]), np.array([[0, 1, 0, 0, 1]]))
        array([[0. , 7. , 0. , 0. , 0.5]])
    """
    if rewards.ndim != 2 or rewards.shape != mask.shape:
        raise ValueError(f"mask: got shape {tuple(mask.shape)} for rewards {tuple(rewards.shape)}, expected (B, T)")
    if not hasattr(rewards, "new_zeros"):
        return _move_array(np.asarray(rewards), np.asarray(mask) != 0)
    import torch

    valid = mask if mask.dtype == torch.bool else mask != 0
    if rewards.device.type == "cpu" and not (rewards != 0).logical_and_(~valid).any():
        return rewards
    stray = rewards.detach().masked_fill(valid | rewards.isnan(), 0)
    places = torch.arange(rewards.shape[1], device=rewards.device).expand_as(rewards)
    # Column 0 of the sums is for what nobody earned.
    before = torch.where(valid, places + 1, 0).cummax(1).values
    sums = rewards.new_zeros(len(rewards), rewards.shape[1] + 1).scatter_add_(1, before, stray)
    return torch.where(valid, rewards.detach() + sums[:, 1:], 0)


def _move_array(rewards: Any, valid: Any) -> Any:
    if not ((rewards != 0) & ~valid).any():
        return rewards
    stray = np.where(valid | np.isnan(rewards), 0, rewards)
    length = rewards.shape[1]
    before = np.maximum.accumulate(np.where(valid, np.arange(1, length + 1), 0), axis=1)
    sums = np.zeros((len(rewards), length + 1), rewards.dtype)
    np.add.at(sums, (np.arange(len(rewards))[:, None], before), stray)
    return np.where(valid, rewards + sums[:, 1:], 0)
