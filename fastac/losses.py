"""PPO's and A2C's losses: policy, value and entropy together, with all gradients in one compiled pass if possible."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastac import mlp
from fastac.distributions import Categorical, Gaussian
from fastac.normalize import normalize_advantages
from fastac_kernels.heads import categorical_at, gaussian_at

MAX_LOG_RATIO = 20.0
METRICS = (
    "losses/policy_loss",
    "losses/value_loss",
    "losses/entropy",
    "losses/old_approx_kl",  # k1 = -log rho, and
    "losses/approx_kl",  # k3 = rho - 1 - log rho: both estimate KL(old || new) (Schulman 2020)
    "losses/clipfrac",
)
"""What `ppo_loss` returns besides the loss, in this order."""


def policy_loss(
    log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, *, clip_coef: float, dual_clip: float | None = None
) -> tuple[Tensor, Tensor]:
    """Returns -mean min(rho A, clip(rho, 1 - eps, 1 + eps) A), and log rho (Schulman et al. 2017, eq. 7).

    The gradient is that of the policy gradient at the old parameters, and exactly zero where A > 0 and rho > 1 + eps,
    or A < 0 and rho < 1 - eps. The exponent is bounded at +-20, beyond which the gradient is zero, too.

    Args:
        log_probs: `(B,)`, log pi_theta(a | s).
        old_log_probs: `(B,)`, log pi_old(a | s); no gradient.
        advantages: `(B,)`, A; no gradient.
        clip_coef: eps.
        dual_clip: c of max(min(...), c A) where A < 0 (Ye et al. 2020, eq. 5).

    Example:
        >>> new, old = torch.tensor([0.5, 0.0]).log(), torch.tensor([0.25, 1.0]).log()
        >>> policy_loss(new[:1], old[:1], torch.tensor([1.0]), clip_coef=0.2)[0]  # the ratio is 2
        tensor(-1.2000)
    """
    log_ratio = (log_probs - old_log_probs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    ratio = log_ratio.exp()
    objective = torch.minimum(ratio * advantages, ratio.clamp(1.0 - clip_coef, 1.0 + clip_coef) * advantages)
    if dual_clip is not None:
        objective = torch.where(advantages < 0, torch.maximum(objective, dual_clip * advantages), objective)
    return -objective.mean(), log_ratio


def score_loss(log_probs: Tensor, advantages: Tensor) -> Tensor:
    """Returns -mean log pi(a | s) A: its gradient is the policy gradient's negative (Williams 1992).

    Args:
        log_probs: `(B,)`, log pi_theta(a | s).
        advantages: `(B,)`, A; no gradient.

    Example:
        >>> score_loss(torch.tensor([-1.0, -2.0]), torch.tensor([2.0, 0.0]))
        tensor(1.)
    """
    return -(log_probs * advantages).mean()


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, *, clip_coef: float | None) -> Tensor:
    """Returns 1/2 mean (V - R)^2 (eq. 9's L_VF, halved), or with `clip_coef` its pessimistic form.

    That is 1/2 mean max((V - R)^2, (V_old + clip(V - V_old, -eps, eps) - R)^2).

    Args:
        values: `(B,)`, V_theta(s).
        old_values: `(B,)`, V of the rollout; no gradient.
        returns: `(B,)`, R; no gradient.
        clip_coef: eps, in units of the return; None for none.

    Example:
        >>> value_loss(torch.tensor([1.0]), torch.tensor([0.0]), torch.tensor([3.0]), clip_coef=None)
        tensor(2.)
    """
    error = values - returns
    squared_error = error * error
    if clip_coef is not None:
        clipped_error = values.clamp(old_values - clip_coef, old_values + clip_coef) - returns
        squared_error = torch.maximum(squared_error, clipped_error * clipped_error)
    return 0.5 * squared_error.mean()


def ppo_loss(
    distribution: Categorical | Gaussian,
    actions: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    values: Tensor,
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
    """Returns PPO's loss of a minibatch (Schulman et al. 2017, eq. 9, as a loss) and `METRICS`.

        L = policy_loss + vf_coef value_loss - ent_coef mean H[pi(. | s)]

    Contiguous float32 tensors on the CPU take one kernel for the value and all gradients; others, transforms and
    derivatives of derivatives take the operations of `policy_loss` and `value_loss`. Both agree to float32 rounding.

    Args:
        distribution: pi_theta(. | s) of B states: the gradient goes to what it was made from.
        actions: `(B,)` int64, or raw `(B, A)`.
        old_log_probs: `(B,)`, log pi_old(a | s).
        advantages: `(B,)`, A.
        values: `(B,)` or `(B, 1)`, V_theta(s).
        old_values: `(B,)`, V of the rollout; read with `clip_vloss` only.
        returns: `(B,)`, R.
        clip_coef: eps.
        vf_coef: Weight of the value loss.
        ent_coef: Weight of the entropy, per nat.
        norm_adv: Standardise the advantages first (`normalize_advantages`).
        clip_vloss: Clip the change of the value by eps, too.
        dual_clip: c > 1 of `policy_loss`; None for none.

    Returns:
        The loss, a scalar, and the metrics `(6,)` without a gradient, all on the device.

    Raises:
        ValueError: an action that the distribution does not have.

    Example:
        >>> logits, values = torch.zeros(2, 3, requires_grad=True), torch.zeros(2, requires_grad=True)
        >>> actions, advantages = torch.tensor([0, 2]), torch.tensor([1.0, -1.0])
        >>> old = torch.full((2,), 1 / 3).log()
        >>> loss, _ = ppo_loss(Categorical(logits), actions, old, advantages, values, values.detach(), torch.ones(2),
        ...                    clip_coef=0.2, vf_coef=0.5, ent_coef=0.01, norm_adv=False)
        >>> loss.backward()
        >>> values.grad
        tensor([-0.2500, -0.2500])
    """
    data = (actions, old_log_probs, advantages, old_values, returns)
    return of_heads(distribution, values, data, Options(clip_coef, vf_coef, ent_coef, norm_adv, clip_vloss, dual_clip))


def a2c_loss(
    distribution: Categorical | Gaussian,
    actions: Tensor,
    advantages: Tensor,
    values: Tensor,
    returns: Tensor,
    *,
    vf_coef: float,
    ent_coef: float,
    norm_adv: bool = False,
) -> tuple[Tensor, Tensor]:
    """Returns A2C's loss of a rollout (Mnih et al. 2016, algorithm S3), and the first three of `METRICS`.

        L = -mean log pi(a | s) A + vf_coef 1/2 mean (V - R)^2 - ent_coef mean H[pi(. | s)]

    Kernels and torch as for `ppo_loss`.

    Args:
        distribution: pi_theta(. | s) of B states: the gradient goes to what it was made from.
        actions: `(B,)` int64, or raw `(B, A)`.
        advantages: `(B,)`, A.
        values: `(B,)` or `(B, 1)`, V_theta(s).
        returns: `(B,)`, R.
        vf_coef: Weight of the value loss.
        ent_coef: Weight of the entropy, per nat.
        norm_adv: Standardise the advantages first (`normalize_advantages`).

    Returns:
        The loss, a scalar, and the metrics `(3,)` without a gradient, all on the device.

    Raises:
        ValueError: an action that the distribution does not have.

    Example:
        >>> logits = torch.zeros(2, 2, requires_grad=True)
        >>> loss, _ = a2c_loss(Categorical(logits), torch.tensor([0, 1]), torch.tensor([1.0, 0.0]), torch.zeros(2),
        ...                    torch.zeros(2), vf_coef=0.5, ent_coef=0.0)
        >>> loss.backward()
        >>> logits.grad
        tensor([[-0.2500,  0.2500],
                [ 0.0000,  0.0000]])
    """
    data = (actions, advantages, advantages, returns, returns)
    total, metrics = of_heads(distribution, values, data, Options(None, vf_coef, ent_coef, norm_adv))
    return total, metrics[:3]


class Options(NamedTuple):
    """The numbers of a loss; no `clip_coef` stands for A2C's."""

    clip_coef: float | None
    vf_coef: float
    ent_coef: float
    norm_adv: bool
    clip_vloss: bool = False
    dual_clip: float | None = None

    def for_kernels(self) -> tuple[bool, float, float, float, float, float]:
        """In their order, and -1 for none."""
        clip_coef = -1.0 if self.clip_coef is None else float(self.clip_coef)
        dual_clip = -1.0 if self.dual_clip is None else float(self.dual_clip)
        value_clip = clip_coef if self.clip_vloss else -1.0
        return self.norm_adv, clip_coef, dual_clip, value_clip, float(self.vf_coef), float(self.ent_coef)


Data = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""Actions, old log-probabilities, advantages, old values and returns."""


def of_heads(
    distribution: Categorical | Gaussian, values: Tensor, data: Data, options: Options
) -> tuple[Tensor, Tensor]:
    """Either loss, by a kernel where one takes the tensors."""
    heads = distribution.parameters
    if _kernels_take(distribution, heads, values, data):
        total, metrics = _apply_node(data, options, values, *heads)
        return total, metrics
    return in_torch(distribution, values, data, options)


def in_torch(
    distribution: Categorical | Gaussian, values: Tensor, data: Data, options: Options
) -> tuple[Tensor, Tensor]:
    """Either loss by torch's operations."""
    actions, old_log_probs, advantages, old_values, returns = data
    clip_coef, vf_coef, ent_coef, norm_adv, clip_vloss, dual_clip = options
    if norm_adv:
        advantages = normalize_advantages(advantages)
    log_probs = distribution.log_prob(actions)
    values = values.squeeze(-1) if values.ndim == 2 else values
    v_loss = value_loss(values, old_values, returns, clip_coef=clip_coef if clip_vloss else None)
    entropy = distribution.entropy().mean()
    if clip_coef is None:
        pg_loss = score_loss(log_probs, advantages)
        zero = torch.zeros_like(pg_loss)
        changes = [zero, zero, zero]
    else:
        pg_loss, log_ratio = policy_loss(log_probs, old_log_probs, advantages, clip_coef=clip_coef, dual_clip=dual_clip)
        with torch.no_grad():
            ratio_minus_one = log_ratio.expm1()
            k1 = -log_ratio.mean()
            k3 = ratio_minus_one.mean() + k1
            changes = [k1, k3, (ratio_minus_one.abs() > clip_coef).to(k1.dtype).mean()]
    total = pg_loss + vf_coef * v_loss - ent_coef * entropy
    return total, torch.stack([pg_loss, v_loss, entropy, *changes]).detach()


def _kernels_take(distribution: Categorical | Gaussian, heads: tuple[Tensor, ...], values: Tensor, data: Data) -> bool:
    """Whether everything is contiguous float32 on the CPU, of shapes that fit, and nothing listens."""
    output = heads[0]
    if torch.compiler.is_compiling() or not mlp.takes(output):
        return False
    discrete = type(distribution) is Categorical
    rows, count = output.shape
    if values.shape not in ((rows,), (rows, 1)) or (not discrete and heads[1].shape != (count,)):
        return False
    for x in (*heads, values):
        if type(x) not in (Tensor, torch.nn.Parameter) or not x.is_cpu or not x.is_contiguous() or x.is_neg():
            return False
    return values.dtype is heads[-1].dtype is torch.float32 and data_fits(data, discrete, rows, count)


def data_fits(data: Data, discrete: bool, rows: int, count: int) -> bool:
    """Whether kernels can read them: plain contiguous tensors on the CPU of the types and shapes that they expect."""
    actions = data[0]
    if actions.dtype is not (torch.int64 if discrete else torch.float32):
        return False
    if actions.shape != ((rows,) if discrete else (rows, count)):
        return False
    shape, float32 = (rows,), torch.float32
    for x in data[1:]:
        if x.shape != shape or x.dtype is not float32:
            return False
    for x in data:  # noqa: SIM110 (a generator takes as long as the checks)
        if type(x) is not Tensor or not x.is_cpu or not x.is_contiguous() or x.is_neg():
            return False
    return True


def no_such_action(actions: Tensor, count: int) -> ValueError:
    """What to raise."""
    return ValueError(f"actions: got {int(actions.min())} to {int(actions.max())}, expected 0 to {count - 1}")


class _Node(torch.autograd.Function):
    """The loss and its gradients, computed together; the gradients wait for the backward pass."""

    @staticmethod
    def forward(ctx: Any, data: Data, options: Options, values: Tensor, *heads: Tensor) -> tuple[Tensor, Tensor]:
        actions, old_log_probs, advantages, old_values, returns = data
        gradients = [torch.empty_like(x) for x in (*heads, values)]
        results = np.empty(7)
        scored: Any = categorical_at if len(heads) == 1 else gaussian_at
        fine = scored(
            *[x.data_ptr() for x in heads],
            actions.data_ptr(),
            old_log_probs.data_ptr(),
            advantages.data_ptr(),
            values.data_ptr(),
            old_values.data_ptr(),
            returns.data_ptr(),
            *heads[0].shape,
            *options.for_kernels(),
            *[x.data_ptr() for x in gradients],
            results.ctypes.data,
        )
        if not fine:
            raise no_such_action(actions, heads[0].shape[1])
        ctx.data, ctx.options, ctx.gradients = data, options, gradients
        ctx.save_for_backward(values, *heads)
        metrics = torch.from_numpy(results[:6].astype(np.float32))
        ctx.mark_non_differentiable(metrics)
        return torch.tensor(results[6], dtype=torch.float32), metrics

    @staticmethod
    def backward(ctx: Any, *output_gradients: Tensor) -> tuple[Tensor | None, ...]:
        values, *heads = ctx.saved_tensors  # raises where one was changed in place
        output_gradient = output_gradients[0]
        if torch.is_grad_enabled():
            with torch.enable_grad():
                distribution = Categorical(heads[0]) if len(heads) == 1 else Gaussian(heads[0], heads[1])
                total, _ = in_torch(distribution, values, ctx.data, ctx.options)
                inputs = [x for x in (values, *heads) if x.requires_grad]
                found = iter(torch.autograd.grad(total, inputs, output_gradient, create_graph=True))
            return (None, None, *[next(found) if x.requires_grad else None for x in (values, *heads)])
        # Products, not the tensors themselves: a second backward pass wants them unchanged.
        *of_heads, of_values = [gradient * output_gradient for gradient in ctx.gradients]
        return (None, None, of_values, *of_heads)


# `Function.apply` without its look for transforms, which `_kernels_take` has had already.
_apply_node: Any = super(torch.autograd.Function, _Node).apply
