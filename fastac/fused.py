"""Actor, critic and loss as one autograd node, whose forward pass computes all gradients on the way.

With modules apart torch spends more time between them than the kernels spend in them. Here the networks run forward,
the loss is evaluated, and they run backward, in one compiled call; `backward()` hands the gradients out.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastac import mlp
from fastac.distributions import Categorical, Gaussian
from fastac.losses import Data, Options, data_fits, in_torch, no_such_action, of_heads
from fastac.mlp import MLP, Plan
from fastac.networks import Actor, CategoricalActor, GaussianActor
from fastac_kernels.fused import RESULTS, gradients_at

Plans = tuple[Plan, Plan]
compute_at: Any = gradients_at


def fused_ppo_loss(
    actor: Actor,
    critic: nn.Module,
    observations: Tensor,
    actions: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    old_values: Tensor,
    returns: Tensor,
    *,
    clip_coef: float,
    vf_coef: float,
    ent_coef: float,
    norm_adv: bool = True,
    clip_vloss: bool = False,
    dual_clip: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns `ppo_loss(actor(observations), ..., critic(observations), ...)` and `METRICS`, as one operation.

    Taken where actor and critic are `MLP`s that their kernels run, a gradient is wanted, and the tensors are contiguous
    float32 on the CPU; everything else takes the modules and `ppo_loss` one by one. Both agree to float32 rounding.
    Gradients are those at the time of the call: to change a parameter before `backward()` does them no harm.

    Args:
        actor: pi_theta, a `CategoricalActor` or a `GaussianActor`.
        critic: V_theta, `(B, *obs)` to `(B, 1)`.
        observations: `(B, *obs)`, as the policy saw them; no gradient.
        actions: This and all others are as for `ppo_loss`.
        old_log_probs: See there.
        advantages: See there.
        old_values: See there.
        returns: See there.
        clip_coef: See there.
        vf_coef: See there.
        ent_coef: See there.
        norm_adv: See there.
        clip_vloss: See there.
        dual_clip: See there.

    Raises:
        ValueError: an action that the actor does not have.

    Example:
        >>> from fastac.networks import mlp
        >>> actor, critic, zeros = CategoricalActor(mlp([4, 8, 2])), mlp([4, 8, 1]), torch.zeros(3)
        >>> x, actions = torch.zeros(3, 4), torch.tensor([0, 1, 0])
        >>> loss, _ = fused_ppo_loss(actor, critic, x, actions, zeros, zeros, zeros, zeros, clip_coef=0.2, vf_coef=0.5,
        ...                          ent_coef=0.01)
        >>> loss.grad_fn.name()
        'FusedNodeBackward'
    """
    data = (actions, old_log_probs, advantages, old_values, returns)
    options = Options(clip_coef, vf_coef, ent_coef, norm_adv, clip_vloss, dual_clip)
    return of_networks(actor, critic, observations, data, options)


def fused_a2c_loss(
    actor: Actor,
    critic: nn.Module,
    observations: Tensor,
    actions: Tensor,
    advantages: Tensor,
    returns: Tensor,
    *,
    vf_coef: float,
    ent_coef: float,
    norm_adv: bool = False,
) -> tuple[Tensor, Tensor]:
    """Returns `a2c_loss(actor(observations), ..., critic(observations), ...)` and its metrics, as one operation.

    What is said of `fused_ppo_loss` holds here, too.

    Args:
        actor: pi_theta.
        critic: V_theta, `(B, *obs)` to `(B, 1)`.
        observations: `(B, *obs)`, as the policy saw them; no gradient.
        actions: This and all others are as for `a2c_loss`.
        advantages: See there.
        returns: See there.
        vf_coef: See there.
        ent_coef: See there.
        norm_adv: See there.

    Example:
        >>> from fastac.networks import mlp
        >>> actor, critic, zeros = CategoricalActor(mlp([4, 8, 2])), mlp([4, 8, 1]), torch.zeros(3)
        >>> x, actions = torch.zeros(3, 4), torch.tensor([0, 1, 0])
        >>> loss, _ = fused_a2c_loss(actor, critic, x, actions, zeros, zeros, vf_coef=0.5, ent_coef=0.0)
        >>> loss.backward()
    """
    data = (actions, advantages, advantages, returns, returns)
    total, metrics = of_networks(actor, critic, observations, data, Options(None, vf_coef, ent_coef, norm_adv))
    return total, metrics[:3]


def of_networks(
    actor: Actor, critic: nn.Module, observations: Tensor, data: Data, options: Options
) -> tuple[Tensor, Tensor]:
    """Either loss, in one node where that is possible."""
    plans = _plans(actor, critic, observations, data)
    if plans is None:
        return of_heads(actor(observations), critic(observations), data, options)
    log_stds = () if type(actor) is CategoricalActor else (actor.log_std,)
    total, metrics = _apply_node(
        (actor, critic, plans, observations, data, options), *plans[0].parameters, *plans[1].parameters, *log_stds
    )
    return total, metrics


def _plans(actor: Actor, critic: nn.Module, x: Tensor, data: Data) -> Plans | None:
    """What the kernel needs to know of both networks; None where it cannot run them."""
    discrete = type(actor) is CategoricalActor
    if (not discrete and type(actor) is not GaussianActor) or torch.compiler.is_compiling() or not mlp.takes(x):
        return None
    network = actor.network
    if type(network) is not MLP or type(critic) is not MLP or not torch.is_grad_enabled() or x.requires_grad:
        return None
    of_actor, of_critic = network.plan(), critic.plan()
    if of_actor is None or of_critic is None or of_critic.widths[1] != 1 or not x.is_contiguous():
        return None
    rows, inputs = x.shape
    count = of_actor.widths[1]
    if of_actor.widths[0] != inputs or of_critic.widths[0] != inputs or not data_fits(data, discrete, rows, count):
        return None
    if isinstance(actor, GaussianActor):
        s = actor.log_std
        if s.shape != (count,) or s.dtype is not torch.float32 or not s.is_cpu or not s.is_contiguous() or s.is_neg():
            return None
    if mlp._is_heard((actor, network, critic, *of_actor.modules, *of_critic.modules)):
        return None
    return of_actor, of_critic


class FusedNode(torch.autograd.Function):
    """The node in torch's graph: its inputs are all parameters."""

    @staticmethod
    def forward(ctx: Any, call: tuple[Any, ...], *parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Computes the loss, and the gradients, which wait for the backward pass."""
        ctx.call, ctx.parameters = call, parameters
        ctx.versions = [p._version for p in parameters]
        total, metrics, ctx.gradients = _run(call, parameters)
        ctx.mark_non_differentiable(metrics)
        return total, metrics

    @staticmethod
    def backward(ctx: Any, *output_gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Hands the gradients out."""
        scale = output_gradients[0]
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None or torch.is_grad_enabled():
            if [p._version for p in ctx.parameters] != ctx.versions:
                raise RuntimeError("a parameter was changed in place since the loss was computed")
            if torch.is_grad_enabled():
                return (None, *_differentiable(ctx.call, ctx.parameters, scale))
            # A second backward pass: the first one's gradients have been given away, and may be added to.
            gradients = _run(ctx.call, ctx.parameters)[2]
        if float(scale) == 1.0:
            return (None, *gradients)
        return (None, *[None if g is None else g * scale for g in gradients])


# `Function.apply` without its look for transforms, which `mlp.takes` has had already.
_apply_node: Any = super(torch.autograd.Function, FusedNode).apply


class _Room(threading.local):
    """Memory for activations, reused: fresh memory would have to be mapped, and cold."""

    def __init__(self) -> None:
        self.memory = torch.empty(0, dtype=torch.uint8)

    def of(self, size: int) -> int:
        """The address of that many bytes."""
        if self.memory.numel() < size:
            self.memory = torch.empty(size, dtype=torch.uint8)
        return self.memory.data_ptr()


_room = _Room()


def _run(call: tuple[Any, ...], parameters: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, list[Tensor | None]]:
    """The loss, its metrics and its gradients, None for those not wanted."""
    actor, _, (of_actor, of_critic), x, data, options = call
    rows, count = len(x), of_actor.widths[1]
    discrete = type(actor) is CategoricalActor
    gradients = [torch.empty_like(p) for p in parameters]
    addresses = np.array([g.data_ptr() for g in gradients], np.int64)
    hidden = of_actor.widths[2] + of_critic.widths[2]
    floats = hidden + 2 * count + 2 + 2 * max(of_actor.widths[3], of_critic.widths[3])
    loss, metrics = torch.empty(()), torch.empty(6)
    fine = compute_at(
        *of_actor.where,
        of_actor.activation,
        *of_critic.where[1:],
        of_critic.activation,
        0 if discrete else parameters[-1].data_ptr(),
        addresses,
        x.data_ptr(),
        rows,
        *[field.data_ptr() for field in data],
        *options.for_kernels(),
        _room.of(RESULTS + 4 * rows * floats),
        hidden,
        loss.data_ptr(),
        metrics.data_ptr(),
    )
    if not fine:
        raise no_such_action(data[0], count)
    return loss, metrics, [g if p.requires_grad else None for g, p in zip(gradients, parameters, strict=True)]


def _differentiable(call: tuple[Any, ...], parameters: tuple[Tensor, ...], scale: Tensor) -> tuple[Tensor | None, ...]:
    """The same gradients by torch's operations, which can be differentiated again."""
    actor, critic, _, x, data, options = call
    with torch.enable_grad():
        # Past `MLP.forward`, whose node would be in the way.
        layer_by_layer: Any = nn.Sequential.forward
        outputs, values = layer_by_layer(actor.network, x), layer_by_layer(critic, x)
        made = Categorical(outputs) if isinstance(actor, CategoricalActor) else Gaussian(outputs, actor.log_std)
        total, _ = in_torch(made, values, data, options)
        wanted = [p for p in parameters if p.requires_grad]
        found = iter(torch.autograd.grad(total, wanted, scale, create_graph=True))
    return tuple(next(found) if p.requires_grad else None for p in parameters)
