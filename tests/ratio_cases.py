"""What the tests of ratios and of PPO's loss share: samples, both kinds of arrays, eager torch, operators."""

import math
from typing import Any

import numpy as np
import torch

from fastac.ratio import PPOClipLoss

KINDS = [lambda x: x, torch.from_numpy]
NAMES = ("k1", "k2", "k3", "clip_fraction", "mean_ratio")
EPS = {np.float32: 1.2e-7, np.float64: 2.3e-16}


def as_array(x: Any) -> np.ndarray:
    return x.detach().double().numpy() if isinstance(x, torch.Tensor) else np.asarray(x, np.float64)


def sample(size: int, seed: int = 0, dtype: Any = np.float32, spread: float = 0.3) -> list[np.ndarray]:
    """New and old log probabilities, advantages."""
    rng = np.random.default_rng(seed)
    new = rng.normal(size=size) - 1.5
    return [x.astype(dtype) for x in (new, new + spread * rng.normal(size=size), rng.normal(size=size))]


def eager(new: Any, old: Any, a: Any, mask: Any = None, *, clip_coef: float, dual_clip: float | None = None) -> Any:
    """PPO's loss as anybody writes it in torch."""
    x = new - old
    if mask is not None:
        x, a = torch.where(mask, x, 0.0), torch.where(mask, a, 0.0)
    ratio = x.clamp(-20, 20).exp()
    s = torch.minimum(ratio * a, ratio.clamp(1 - clip_coef, 1 + clip_coef) * a)
    if dual_clip is not None:
        s = torch.where(a < 0, torch.maximum(s, dual_clip * a), s)
    return -s.mean() if mask is None else -s.sum() / mask.sum().clamp(min=1)


def gradient_of(function: Any, new: torch.Tensor, *others: Any, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    leaf = new.clone().requires_grad_()
    result = function(leaf, *others, **options)
    loss = result.loss if isinstance(result, PPOClipLoss) else result
    loss.backward()
    return loss.detach(), leaf.grad


def op_cases() -> dict[str, tuple[str, tuple[Any, ...]]]:
    new, old, a = (torch.from_numpy(x).reshape(12, 5) for x in sample(60))
    generator = torch.Generator().manual_seed(0)
    ended, mask = (torch.rand(12, 5, generator=generator) < p for p in (0.2, 0.8))
    flat = [x.reshape(-1) for x in (new, old, ended, mask)]
    cu_seqlens = torch.tensor([0, 11, 11, 13, 40, 60], dtype=torch.int32)
    return {
        "loss": ("ppo_clip_loss", (new, old, a, None, 0.2, math.inf)),
        "masked loss": ("ppo_clip_loss", (new, old, a, mask, 0.2, 3.0)),
        "half loss": ("ppo_clip_loss", (new.half(), old, a, mask, 0.2, 3.0)),
        "ratio": ("importance_ratio", (new, old, None, None, mask, None, False, False)),
        "product": ("importance_ratio", (new, old, ended, None, mask, None, True, False)),
        "batch first": ("importance_ratio", (new, old, ended, ended, None, None, True, True)),
        "packed": ("importance_ratio", (flat[0], flat[1], flat[2], None, flat[3], cu_seqlens, True, False)),
        "backward": ("importance_ratio_backward", (a, new, None, None, None, None, False, False)),
        "product backward": ("importance_ratio_backward", (a, new, ended, None, mask, None, True, False)),
        "batch first backward": ("importance_ratio_backward", (a, new, ended, ended, None, None, True, True)),
        "packed backward": (
            "importance_ratio_backward",
            (a.reshape(-1), flat[0], flat[2], None, flat[3], cu_seqlens, True, False),
        ),
    }
