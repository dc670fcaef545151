"""The big steps of soft actor-critic in one compiled call each: targets, the critics' loss, the actor's loss.

With modules apart torch and Python spend nearly as much time between the matrix products as in them: code that runs
once in a millisecond finds the caches full of weights. The losses compute their gradients on the way; `backward()`
hands them out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastac import mlp
from fastac.fused import _room
from fastac.mlp import MLP, Plan
from fastac.networks import LOG_STD_MAX, LOG_STD_MIN, TanhGaussianActor
from fastac.q_functions import QFunctions
from fastac.q_losses import QValues, policy_loss, q_loss, q_targets
from fastac_kernels.fused_q import policy_gradients_at, q_gradients_at, soft_targets_at

Networks = NDArray[np.int64]


def soft_q_targets(
    actor: TanhGaussianActor,
    q: QFunctions,
    next_observations: Tensor,
    noise: Tensor,
    rewards: Tensor,
    discounts: Tensor,
    terminated: Tensor,
    alpha: Tensor,
) -> Tensor:
    """Returns r + gamma (min_k Q_k(s', a') - alpha log pi(a' | s')), a' ~ pi(. | s'), r where terminated; no gradient.

    That is `q_targets` of `q(s', a')` and `actor(s').sample_and_log_prob(noise)` (Haarnoja et al. 2018b, equations 3
    and 5). One compiled call where actor and critics are `MLP`s that their kernels run and the tensors are contiguous
    float32 on the CPU; the modules one by one elsewhere. Both agree to float32 rounding. So it is for all three here.

    Args:
        actor: pi.
        q: The target networks.
        next_observations: s', `(B, *obs)`.
        noise: `(B, A)`, standard normal.
        rewards: This and all others are as for `q_targets`.
        discounts: See there.
        terminated: See there.
        alpha: See there.

    Example:
        >>> from fastac.networks import mlp
        >>> actor, q = TanhGaussianActor(mlp([3, 8, 2])), QFunctions([mlp([4, 8, 1]), mlp([4, 8, 1])])
        >>> s, z, one, ended = torch.zeros(2, 3), torch.zeros(2, 1), torch.ones(2), torch.tensor([True, False])
        >>> soft_q_targets(actor, q, s, z, one, 0.9 * one, ended, torch.tensor(0.1))[0]
        tensor(1.)
    """
    columns = (rewards, discounts)
    found = _networks(actor, q, next_observations, noise, columns, alpha)
    if found is None or terminated.dtype is not torch.bool or not terminated.is_contiguous() or not terminated.is_cpu:
        with torch.no_grad():
            actions, log_probs = actor(next_observations).sample_and_log_prob(noise)
            next_q_values = q(next_observations, actions)
            return q_targets(rewards, discounts, terminated, next_q_values, alpha=alpha, log_probs=log_probs)
    (rows, inputs), count, targets = next_observations.shape, noise.shape[1], torch.empty_like(rewards)
    soft_targets_at(
        found.blas,
        found.actor,
        found.critics,
        next_observations.data_ptr(),
        noise.data_ptr(),
        rows,
        inputs,
        count,
        LOG_STD_MIN,
        LOG_STD_MAX,
        rewards.data_ptr(),
        discounts.data_ptr(),
        terminated.data_ptr(),
        alpha.data_ptr(),
        targets.data_ptr(),
        _room.of(4 * rows * (inputs + 4 * count + 1 + len(found.critics) + found.hidden)),
    )
    return targets


def fused_q_loss(
    q: QFunctions,
    observations: Tensor,
    actions: Tensor,
    targets: Tensor,
    weights: Tensor | None = None,
    *,
    coef: float = 0.5,
) -> tuple[Tensor, QValues]:
    """Returns `q_loss` of `q(observations, actions)`, and these values, K of `(B,)`, without a gradient.

    Gradients are those at the time of the call.

    Args:
        q: The critics.
        observations: s, `(B, *obs)`; no gradient.
        actions: a, `(B, A)`; no gradient.
        targets: `(B,)`; no gradient.
        weights: As for `q_loss`.
        coef: As for `q_loss`.

    Example:
        >>> from fastac.networks import mlp
        >>> loss, (values,) = fused_q_loss(QFunctions([mlp([3, 8, 1])]), torch.zeros(2, 2), torch.zeros(2, 1),
        ...                                torch.ones(2))
        >>> loss.item(), values.shape
        (0.5, torch.Size([2]))
    """
    columns = (targets,) if weights is None else (targets, weights)
    found = _networks(None, q, observations, actions, columns, None) if torch.is_grad_enabled() else None

    def in_torch() -> tuple[Tensor, QValues]:
        q_values = q(observations, actions)
        return q_loss(q_values, targets, weights, coef=coef), tuple(values.detach() for values in q_values)

    if found is None:
        return in_torch()
    networks, (rows, inputs), count = found, observations.shape, actions.shape[1]
    total = len(networks.critics)

    def compute(gradients: list[Tensor]) -> tuple[Tensor, Tensor]:
        loss, values = torch.empty(()), torch.empty(total, rows)
        room = inputs + count + 1 + networks.hidden + 2 * networks.widest
        q_gradients_at(
            networks.blas,
            networks.critics,
            _addresses(gradients),
            observations.data_ptr(),
            actions.data_ptr(),
            rows,
            inputs,
            count,
            targets.data_ptr(),
            0 if weights is None else weights.data_ptr(),
            float(coef),
            values.data_ptr(),
            loss.data_ptr(),
            networks.hidden,
            _room.of(4 * rows * room),
        )
        return loss, values

    parameters = [p for plan in networks.of_critics for p in plan.parameters]
    loss, values = _apply_node(compute, lambda: in_torch()[0], *parameters)
    return loss, values.unbind()


def fused_policy_loss(
    actor: TanhGaussianActor, q: QFunctions, observations: Tensor, noise: Tensor, alpha: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns `policy_loss`, mean[alpha log pi(a | s) - min_k Q_k(s, a)], and mean[-log pi(a | s)], without a gradient.

    a is `actor(observations).sample_and_log_prob(noise)`'s; the gradient passes through the critics to it, and reaches
    the actor's parameters alone.

    Args:
        actor: pi.
        q: The critics.
        observations: s, `(B, *obs)`; no gradient.
        noise: `(B, A)`, standard normal.
        alpha: The temperature, a scalar; no gradient.

    Example:
        >>> from fastac.networks import mlp
        >>> actor, q = TanhGaussianActor(mlp([3, 8, 2])), QFunctions([mlp([4, 8, 1])])
        >>> loss, entropy = fused_policy_loss(actor, q, torch.zeros(2, 3), torch.zeros(2, 1), torch.tensor(0.1))
        >>> round(entropy.item(), 4), loss.requires_grad, entropy.requires_grad
        (0.9189, True, False)
    """
    found = _networks(actor, q, observations, noise, (), alpha) if torch.is_grad_enabled() else None

    def in_torch() -> tuple[Tensor, Tensor]:
        actions, log_probs = actor(observations).sample_and_log_prob(noise)
        wanted = [p for p in q.parameters() if p.requires_grad]
        for p in wanted:
            p.requires_grad_(False)
        loss = policy_loss(alpha, log_probs, q(observations, actions))
        for p in wanted:
            p.requires_grad_(True)
        return loss, -log_probs.detach().mean()

    if found is None:
        return in_torch()
    networks, (rows, inputs), count = found, observations.shape, noise.shape[1]
    total, of_actor = len(networks.critics), networks.of_actor
    assert of_actor is not None
    actor_hidden = of_actor.widths[2]

    def compute(gradients: list[Tensor]) -> tuple[Tensor, Tensor]:
        loss, entropy = torch.empty(()), torch.empty(())
        room = 2 * inputs + 8 * count + 2 + 2 * total + actor_hidden + total * networks.hidden + 2 * networks.widest
        policy_gradients_at(
            networks.blas,
            networks.actor,
            networks.critics,
            _addresses(gradients),
            observations.data_ptr(),
            noise.data_ptr(),
            rows,
            inputs,
            count,
            LOG_STD_MIN,
            LOG_STD_MAX,
            alpha.data_ptr(),
            loss.data_ptr(),
            entropy.data_ptr(),
            actor_hidden,
            networks.hidden,
            _room.of(4 * rows * room),
        )
        return loss, entropy

    loss, entropy = _apply_node(compute, lambda: in_torch()[0], *of_actor.parameters)
    return loss, entropy


class _Networks(NamedTuple):
    """What the kernels need to know of an actor and critics."""

    of_actor: Plan | None
    of_critics: list[Plan]
    blas: int
    actor: Networks
    critics: Networks
    hidden: int  # the most units in the hidden layers of one network
    widest: int


def _networks(
    actor: TanhGaussianActor | None,
    q: QFunctions,
    x: Tensor,
    actions: Tensor,
    columns: tuple[Tensor, ...],
    alpha: Tensor | None,
) -> _Networks | None:
    """What the kernels need to know; None where they cannot run these networks on these tensors."""
    if torch.compiler.is_compiling() or not mlp.takes(x) or type(q) is not QFunctions or q.convolutions is not None:
        return None
    if x.requires_grad or not x.is_contiguous() or not _fits(actions, (len(x), actions.shape[-1])):
        return None
    if not all(_fits(column, (len(x),)) for column in columns):
        return None
    if alpha is not None and not (_fits(alpha, alpha.shape) and alpha.numel() == 1):
        return None
    networks: list[Any] = list(q.networks._modules.values())
    owners: list[Any] = [q, q.networks, *networks]
    inputs, count, outputs = x.shape[1], actions.shape[1], 1
    shapes = [(inputs + count, outputs)] * len(networks)
    if actor is not None:
        if type(actor) is not TanhGaussianActor:
            return None
        networks = [actor.network, *networks]
        owners += [actor, actor.network]
        shapes = [(inputs, 2 * count), *shapes]
    plans: list[Plan] = []
    for network, shape in zip(networks, shapes, strict=True):
        plan = network.plan() if type(network) is MLP else None
        if plan is None or plan.widths[:2] != shape:
            return None
        plans.append(plan)
        owners += plan.modules
    if mlp._is_heard(tuple(owners)):
        return None
    table: Networks = np.array([(*plan.where[1:], plan.activation) for plan in plans], np.int64)
    first = len(plans) - len(q.networks)
    return _Networks(
        plans[0] if first else None,
        plans[first:],
        plans[0].where[0],
        table[:first],
        table[first:],
        max(plan.widths[2] for plan in plans),
        max(plan.widths[3] for plan in plans),
    )


def _fits(x: Tensor, shape: tuple[int, ...]) -> bool:
    return (
        type(x) is Tensor
        and x.dtype is torch.float32
        and x.is_cpu
        and x.shape == shape
        and x.is_contiguous()
        and not x.requires_grad
        and not x.is_neg()
    )


def _addresses(tensors: list[Tensor]) -> NDArray[np.int64]:
    return np.array([x.data_ptr() for x in tensors], np.int64)


class _Node(torch.autograd.Function):
    """The node in torch's graph: its inputs are all parameters, and their gradients wait for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, compute: Callable[..., tuple[Tensor, Tensor]], in_torch: Callable[[], Tensor], *parameters: Tensor
    ) -> tuple[Tensor, Tensor]:
        gradients = [torch.empty_like(p) for p in parameters]
        loss, other = compute(gradients)
        ctx.compute, ctx.in_torch, ctx.parameters, ctx.gradients = compute, in_torch, parameters, gradients
        ctx.versions = [p._version for p in parameters]
        ctx.mark_non_differentiable(other)
        return loss, other

    @staticmethod
    def backward(ctx: Any, *output_gradients: Tensor) -> tuple[Tensor | None, ...]:
        scale, parameters, wanted = output_gradients[0], ctx.parameters, ctx.needs_input_grad[2:]
        again = torch.is_grad_enabled()
        gradients, ctx.gradients = (ctx.gradients, ctx.gradients) if again else (ctx.gradients, None)
        if (again or gradients is None) and [p._version for p in parameters] != ctx.versions:
            raise RuntimeError("a parameter was changed in place since the loss was computed")
        if again:
            with torch.enable_grad():
                chosen = [p for p, wants in zip(parameters, wanted, strict=True) if wants]
                found = iter(torch.autograd.grad(ctx.in_torch(), chosen, scale, create_graph=True))
            return (None, None, *[next(found) if wants else None for wants in wanted])
        if gradients is None:
            # A second backward pass: the first one's gradients have been given away, and may be added to.
            gradients = [torch.empty_like(p) for p in parameters]
            ctx.compute(gradients)
        if float(scale) != 1.0:
            gradients = [gradient * scale for gradient in gradients]
        return (None, None, *[g if wants else None for g, wants in zip(gradients, wanted, strict=True)])


# `Function.apply` without its look for transforms, which `mlp.takes` has had already.
_apply_node: Any = super(torch.autograd.Function, _Node).apply
