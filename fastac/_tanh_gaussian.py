"""The autograd node of a tanh-Gaussian's draws: from a network's outputs to actions and log pi in one call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastac import mlp
from fastac_kernels.tanh_gaussian import draw_at, draw_gradient_at

Bounds = tuple[float, float]


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
    from fastac.distributions import TanhGaussian

    with torch.enable_grad():
        mean, log_std = outputs.chunk(2, dim=-1)
        drawn = TanhGaussian(mean, log_std.clamp(*bounds)).sample_and_log_prob(noise)
        (gradient,) = torch.autograd.grad(drawn, outputs, gradients, create_graph=True)
    return gradient
