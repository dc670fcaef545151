"""What Q-functions follow, the critics' loss and the actor's, each with all its gradients in one compiled pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastac import mlp
from fastac_kernels.q_losses import policy_loss_at, q_loss_at, q_targets_at

QValues = tuple[Tensor, ...]


def q_targets(
    rewards: Tensor,
    discounts: Tensor,
    terminated: Tensor,
    next_q_values: QValues,
    *,
    alpha: Tensor | None = None,
    log_probs: Tensor | None = None,
) -> Tensor:
    """Returns r + gamma (min_k Q'_k(s', a') - alpha log pi(a' | s')), or r where terminated, without a gradient.

    The least of several Q is clipped double Q-learning (Fujimoto et al. 2018, equation 10); the entropy's term is
    soft actor-critic's (Haarnoja et al. 2018b, equations 3 and 5), absent without `alpha`. Where an episode terminated
    the future is selected away, so NaN there does no harm.

    Contiguous float32 tensors on the CPU take one kernel, others torch's operations, for all functions here.

    Args:
        rewards: `(B,)`, or of n steps their discounted sum.
        discounts: `(B,)`, gamma, or gamma^n.
        terminated: `(B,)` bool; a time limit is no end.
        next_q_values: K of `(B,)`, the target networks'.
        alpha: The temperature, a scalar.
        log_probs: `(B,)`, of a' ~ pi(. | s'); with `alpha`.

    Example:
        >>> no, r = torch.tensor([False, True]), torch.tensor([1.0, 1.0])
        >>> q_targets(r, torch.tensor([0.5, 0.5]), no, (torch.tensor([2.0, 9.0]), torch.tensor([4.0, 9.0])))
        tensor([2., 1.])
    """
    values = tuple(x.detach() for x in next_q_values) if torch.is_grad_enabled() else next_q_values
    others = (rewards, discounts) if alpha is None or log_probs is None else (rewards, discounts, log_probs.detach())
    if terminated.dtype is torch.bool and terminated.is_contiguous() and _takes(values, others, alpha):
        targets, at = torch.empty(len(rewards)), _addresses(values)
        q_targets_at(
            rewards.data_ptr(),
            discounts.data_ptr(),
            terminated.data_ptr(),
            at.ctypes.data,
            len(values),
            0 if alpha is None else alpha.data_ptr(),
            0 if log_probs is None else log_probs.data_ptr(),
            len(rewards),
            targets.data_ptr(),
        )
        return targets
    with torch.no_grad():
        next_values = minimum(next_q_values)
        if alpha is not None and log_probs is not None:
            next_values = next_values - alpha * log_probs
        return rewards + discounts * torch.where(terminated, 0.0, next_values)


def q_loss(q_values: QValues, targets: Tensor, weights: Tensor | None = None, *, coef: float = 0.5) -> Tensor:
    """Returns coef sum_k mean w (Q_k - target)^2 (Haarnoja et al. 2018b, equation 5).

    Args:
        q_values: K of `(B,)`.
        targets: `(B,)`; no gradient.
        weights: `(B,)`, w, the importance weights of prioritized replay; 1 without. No gradient.
        coef: A half for SAC, 1 for TD3.

    Example:
        >>> q_loss((torch.tensor([1.0, 2.0]), torch.tensor([0.0, 0.0])), torch.tensor([0.0, 0.0]))
        tensor(1.2500)
    """
    if _takes(q_values, (targets,) if weights is None else (targets, weights)):
        return _apply_q_loss(targets, weights, coef, *q_values)  # type: ignore[no-any-return]
    return _q_loss(q_values, targets, weights, coef)


def policy_loss(alpha: Tensor, log_probs: Tensor, q_values: QValues) -> Tensor:
    """Returns mean[alpha log pi(a | s) - min_k Q_k(s, a)], a drawn from pi with a gradient (equation 7).

    Args:
        alpha: The temperature, a scalar; no gradient.
        log_probs: `(B,)`.
        q_values: K of `(B,)`.

    Example:
        >>> policy_loss(torch.tensor(0.5), torch.tensor([-2.0]), (torch.tensor([3.0]), torch.tensor([5.0])))
        tensor(-4.)
    """
    if _takes(q_values, (log_probs,), alpha):
        return _apply_policy_loss(alpha, log_probs, *q_values)  # type: ignore[no-any-return]
    return _policy_loss(alpha, log_probs, q_values)


def minimum(q_values: QValues) -> Tensor:
    """Returns min_k Q_k, elementwise.

    Example:
        >>> minimum((torch.tensor([1.0, 4.0]), torch.tensor([2.0, 3.0])))
        tensor([1., 3.])
    """
    least, *others = q_values
    for other in others:
        least = torch.minimum(least, other)
    return least


def _q_loss(q_values: QValues, targets: Tensor, weights: Tensor | None, coef: float) -> Tensor:
    total = torch.zeros((), dtype=targets.dtype, device=targets.device)
    for values in q_values:
        square = (values - targets.detach()).square()
        total = total + coef * (square if weights is None else weights.detach() * square).mean()
    return total


def _policy_loss(alpha: Tensor, log_probs: Tensor, q_values: QValues) -> Tensor:
    return (alpha.detach() * log_probs - minimum(q_values)).mean()


def _takes(q_values: QValues, others: tuple[Tensor, ...], scalar: Tensor | None = None) -> bool:
    """Whether all are contiguous float32 rows on the CPU, and nothing listens to torch's own operations."""
    if torch.compiler.is_compiling() or q_values[0].ndim != 1 or not mlp.is_plain(q_values[0]):
        return False
    shape = q_values[0].shape
    for x in (*q_values, *others):
        if type(x) is not Tensor or x.dtype is not torch.float32 or not x.is_cpu or x.shape != shape or x.ndim != 1:
            return False
        if not x.is_contiguous() or x.is_neg():
            return False
    return scalar is None or (
        type(scalar) is Tensor and scalar.dtype is torch.float32 and scalar.is_cpu and scalar.numel() == 1
    )


def _addresses(tensors: QValues) -> NDArray[np.int64]:
    return np.array([x.data_ptr() for x in tensors], np.int64)


class _QLoss(torch.autograd.Function):
    """The loss and its gradients, computed together; the gradients wait for the backward pass."""

    @staticmethod
    def forward(ctx: Any, targets: Tensor, weights: Tensor | None, coef: float, *q_values: Tensor) -> Tensor:
        gradients = torch.empty(len(q_values), len(targets))
        at = _addresses(q_values)
        loss = q_loss_at(
            at.ctypes.data,
            len(q_values),
            targets.data_ptr(),
            0 if weights is None else weights.data_ptr(),
            len(targets),
            float(coef),
            gradients.data_ptr(),
        )
        ctx.options, ctx.gradients = (targets, weights, coef), gradients
        ctx.save_for_backward(*q_values)
        return torch.tensor(loss, dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, *output_gradients: Tensor) -> tuple[Tensor | None, ...]:
        q_values = ctx.saved_tensors  # raises where one was changed in place
        if torch.is_grad_enabled():
            with torch.enable_grad():
                loss = _q_loss(q_values, *ctx.options)
                return (None, None, None, *_again(loss, q_values, output_gradients[0]))
        # Products, not the gradients themselves: a second backward pass wants them unchanged.
        return (None, None, None, *(ctx.gradients * output_gradients[0]))


class _PolicyLoss(torch.autograd.Function):
    """As above."""

    @staticmethod
    def forward(ctx: Any, alpha: Tensor, log_probs: Tensor, *q_values: Tensor) -> Tensor:
        gradients = torch.empty(1 + len(q_values), len(log_probs))
        at = _addresses(q_values)
        loss = policy_loss_at(
            alpha.data_ptr(),
            log_probs.data_ptr(),
            at.ctypes.data,
            len(q_values),
            len(log_probs),
            gradients.data_ptr(),
        )
        ctx.alpha, ctx.gradients = alpha, gradients
        ctx.save_for_backward(log_probs, *q_values)
        return torch.tensor(loss, dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, *output_gradients: Tensor) -> tuple[Tensor | None, ...]:
        log_probs, *q_values = inputs = ctx.saved_tensors
        if torch.is_grad_enabled():
            with torch.enable_grad():
                loss = _policy_loss(ctx.alpha, log_probs, tuple(q_values))
                return (None, *_again(loss, inputs, output_gradients[0]))
        return (None, *(ctx.gradients * output_gradients[0]))


def _again(loss: Tensor, inputs: QValues, gradient: Tensor) -> list[Tensor | None]:
    """The gradients by torch's operations, which can be differentiated again."""
    wanted = [x for x in inputs if x.requires_grad]
    found = iter(torch.autograd.grad(loss, wanted, gradient, create_graph=True))
    return [next(found) if x.requires_grad else None for x in inputs]


# `Function.apply` without its look for transforms, which `_takes` has had already.
_apply_q_loss: Any = super(torch.autograd.Function, _QLoss).apply
_apply_policy_loss: Any = super(torch.autograd.Function, _PolicyLoss).apply
