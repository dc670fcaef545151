"""Draws of a tanh-Gaussian with their log pi, by torch, or from a network's outputs in one compiled node."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

from fastac import mlp
from fastac_kernels.tanh_gaussian import draw_at, draw_gradient_at

Bounds = tuple[float, float]
LOG_2, LOG_SQRT_2PI = math.log(2.0), 0.5 * math.log(2.0 * math.pi)


def log_slope_of_tanh(u: Tensor) -> Tensor:
    """Returns log(1 - tanh(u)^2), elementwise, finite for all finite u.

    Example:
        >>> log_slope_of_tanh(torch.tensor([0.0, 20.0]))
        tensor([  0.0000, -38.6137])
    """
    return 2.0 * (LOG_2 - u - softplus(-2.0 * u))


def draw_in_torch(mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Returns a = tanh(mean + exp(log_std) noise) and log pi(a), reparameterised, as `TanhGaussian` says.

    Example:
        >>> draw_in_torch(torch.zeros(1, 1), torch.zeros(1, 1), torch.zeros(1, 1))
        (tensor([[0.]]), tensor([-0.9189]))
    """
    u = mean + torch.exp(log_std) * noise
    of_normal = -0.5 * noise.square() - log_std - LOG_SQRT_2PI
    return torch.tanh(u), (of_normal - log_slope_of_tanh(u)).sum(-1)


def takes(outputs: Tensor, noise: Tensor) -> bool:
    """Whether the kernels can draw from `outputs` `(B, 2A)` with `noise` `(B, A)`."""
    if torch.compiler.is_compiling() or not mlp.takes(outputs) or type(noise) is not Tensor:
        return False
    rows, columns = outputs.shape
    return (
        noise.shape == (rows, columns // 2)
        and noise.dtype is torch.float32
        and noise.is_cpu
        and noise.is_contiguous()
        and outputs.is_contiguous()
        and not noise.requires_grad
        and not noise.is_neg()
    )


def draw(outputs: Tensor, noise: Tensor, bounds: Bounds) -> tuple[Tensor, Tensor]:
    """Returns actions `(B, A)` and log pi of them, `(B,)`, of what `takes` accepted."""
    if torch.is_grad_enabled():
        actions, log_probs = _apply_node(outputs, noise, bounds)
        return actions, log_probs
    return _drawn(outputs, noise, bounds)


def _drawn(outputs: Tensor, noise: Tensor, bounds: Bounds) -> tuple[Tensor, Tensor]:
    rows, count = noise.shape
    actions, log_probs = torch.empty(rows, count), torch.empty(rows)
    draw_at(
        outputs.data_ptr(), noise.data_ptr(), rows, count, *bounds, actions.data_ptr(), log_probs.data_ptr()
    )  # fmt: skip
    return actions, log_probs


class _Node(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, outputs: Tensor, noise: Tensor, bounds: Bounds) -> tuple[Tensor, Tensor]:
        actions, log_probs = _drawn(outputs, noise, bounds)
        ctx.bounds = bounds
        ctx.save_for_backward(outputs, noise, actions)
        return actions, log_probs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        outputs, noise, actions = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _differentiable(outputs, noise, ctx.bounds, gradients), None, None
        of_actions, of_log_probs = (gradient.contiguous() for gradient in gradients)
        (rows, count), (low, high) = noise.shape, ctx.bounds
        into = torch.empty_like(outputs)
        draw_gradient_at(
            outputs.data_ptr(),
            noise.data_ptr(),
            actions.data_ptr(),
            rows,
            count,
            low,
            high,
            of_actions.data_ptr(),
            of_log_probs.data_ptr(),
            into.data_ptr(),
        )
        return into, None, None


# `Function.apply` without its look for transforms, which `takes` has had already.
_apply_node: Any = super(torch.autograd.Function, _Node).apply


def _differentiable(outputs: Tensor, noise: Tensor, bounds: Bounds, gradients: tuple[Tensor, ...]) -> Tensor:
    """The same gradient by torch's operations, which can be differentiated again."""
    with torch.enable_grad():
        mean, log_std = outputs.chunk(2, dim=-1)
        drawn = draw_in_torch(mean, log_std.clamp(*bounds), noise)
        (gradient,) = torch.autograd.grad(drawn, outputs, gradients, create_graph=True)
    return gradient
