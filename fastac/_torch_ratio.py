"""Importance ratios and PPO's clipped loss on tensors: operators, autograd around them, and a short way past both.

As in `fastac._torch_ops`, an op runs a Numba kernel on the CPU, one or torch operations on CUDA, and gives shapes under
fake tensors; its autograd kernel detaches. What is differentiable is an `autograd.Function` around the op. Inside
functorch transforms everything is torch operations, which can be transformed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from fastac import _arrays, _torch_cuda
from fastac._torch_ops import _LIKE, _WORK, _unheard
from fastac._torch_scan import solve
from fastac_kernels import ratio as kernels
from fastac_kernels.ratio import MAX_LOG_RATIO

_RANGES = "Tensor? terminated, Tensor? truncated, Tensor? mask, Tensor? cu_seqlens, bool cumulative, bool batch_first"
_SCHEMAS = {
    "ppo_clip_loss": "(Tensor log_probs, Tensor old_log_probs, Tensor advantages, Tensor? mask, float clip_coef,"
    " float dual_clip) -> (Tensor, Tensor, Tensor)",
    "importance_ratio": f"(Tensor log_probs, Tensor old_log_probs, {_RANGES}) -> (Tensor, Tensor)",
    "importance_ratio_backward": f"(Tensor outer, Tensor slopes, {_RANGES}) -> Tensor",
}
_importance_ratio_at: Callable[..., None] = kernels.importance_ratio_at
_importance_ratio_backward_at: Callable[..., None] = kernels.importance_ratio_backward_at
_ppo_clip_loss_at: Callable[..., None] = kernels.ppo_clip_loss_at
_bool, _empty_like, _is_grad_enabled = torch.bool, torch.empty_like, torch.is_grad_enabled
# `empty_like` takes two thirds of the time of `empty`.
_NUMBERS = {dtype: (like, torch.empty((), dtype=dtype), torch.empty(5, dtype=dtype)) for dtype, like in _LIKE.items()}
# Loss, gradient, statistics.
Result = tuple[Tensor, Tensor, Tensor]


def _work(x: Tensor) -> torch.dtype:
    return _WORK.get(x.dtype, x.dtype)


def _floats(x: Tensor, work: torch.dtype) -> Tensor:
    return x.detach().to(work).resolve_neg().contiguous()


def _flags(x: Tensor | None) -> Tensor | None:
    if x is None:
        return None
    x = x.detach()
    return (x if x.dtype in (torch.bool, torch.uint8, torch.int8) else x != 0).contiguous()


def _addresses(*memory: Tensor | None) -> list[int]:
    return [0 if x is None else x.data_ptr() for x in memory]


def _ppo_clip_loss_cpu(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    mask: Tensor | None,
    clip_coef: float,
    dual_clip: float,
) -> tuple[Tensor, Tensor, Tensor]:
    work = _work(log_probs)
    memory = [_floats(x, work) for x in (log_probs, old_log_probs, advantages)]
    valid = _flags(mask)
    loss, gradient, statistics = _ppo_clip_loss_fake(log_probs)
    _ppo_clip_loss_at(
        *_addresses(*memory, valid, loss, gradient, statistics), log_probs.numel(), clip_coef, dual_clip, _LIKE[work]
    )
    return loss, gradient, statistics


def _ppo_clip_loss_fake(log_probs: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    like: dict[str, Any] = {"dtype": _work(log_probs), "device": log_probs.device}
    return torch.empty((), **like), torch.empty(log_probs.shape, **like), torch.empty(5, **like)


def _bounded(log_probs: Tensor, old_log_probs: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None, Any]:
    """Log ratios, 0 under the mask; which elements count, and how many (at least 1)."""
    work = _work(log_probs)
    given = log_probs.to(work) - old_log_probs.detach().to(work)
    if mask is None:
        return given, None, max(given.numel(), 1)
    valid = mask.detach() != 0
    return torch.where(valid, given, 0.0), valid, valid.sum().clamp(min=1)


def _ppo_clip_loss_torch(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    mask: Tensor | None,
    clip_coef: float,
    dual_clip: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The same by torch operations, on any device; the loss is differentiable in `log_probs`."""
    given, valid, n = _bounded(log_probs, old_log_probs, mask)
    a = advantages.detach().to(given.dtype)
    a = a if valid is None else torch.where(valid, a, 0.0)
    x = given.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    ratio = x.exp()
    low, high = 1.0 - clip_coef, 1.0 + clip_coef
    least = torch.where(a < 0, low, 0.0).to(a.dtype)
    most = torch.where(a > 0, high, torch.where(a < 0, dual_clip, math.inf)).to(a.dtype)
    seen = torch.where(ratio > most, most, torch.where(ratio < least, least, ratio))
    loss = (0.0 - (seen * a).sum()) / n
    with torch.no_grad():
        held = (ratio > most) | (ratio < least) | (given.abs() > MAX_LOG_RATIO)
        held = held if valid is None else held | ~valid
        gradient = torch.where(held, 0.0, ratio * a * -1.0 / n)
        outside = ((ratio > high) | (ratio < low)).to(a.dtype)
        k1, k2, k3 = 0.0 - x.sum(), 0.5 * (x * x).sum(), (x.expm1() - x).sum()
        # Elements that do not count add x = 0 to all of these.
        statistics = torch.stack([k1, k2, k3, outside.sum(), (n - k1) + k3 if x.numel() else k1]) / n
        if valid is not None:
            statistics[4] = torch.where(valid.any(), statistics[4], 0.0)
    return loss, gradient, statistics


def _ppo_clip_loss_cuda(log_probs: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    found = _torch_cuda.ppo_clip_loss(log_probs, *others)
    return _ppo_clip_loss_torch(log_probs, *others) if found is None else found


def _importance_ratio_cpu(
    log_probs: Tensor, old_log_probs: Tensor, terminated: Tensor | None, truncated: Tensor | None, mask: Tensor | None,
    cu_seqlens: Tensor | None, cumulative: bool, batch_first: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    work = _work(log_probs)
    memory = [_floats(log_probs, work), _floats(old_log_probs, work), *map(_flags, (terminated, truncated, mask))]
    ratios, slopes = (torch.empty(log_probs.shape, dtype=work) for _ in range(2))
    cut = _cut(log_probs, cu_seqlens, batch_first)
    _importance_ratio_at(*_addresses(*memory, cut[0], ratios, slopes), *cut[1:], cumulative, _LIKE[work])
    return ratios.to(log_probs.dtype), slopes


def _cut(x: Tensor, cu_seqlens: Tensor | None, batch_first: bool) -> tuple[Any, ...]:
    """Boundaries as the kernels want them, elements, sequences and lanes."""
    if cu_seqlens is not None:
        boundaries = torch.from_numpy(_arrays.check_boundaries(cu_seqlens.detach().numpy(), x.numel()))
        return boundaries, x.numel(), len(boundaries) - 1, 1
    if x.ndim != 2:
        return None, x.numel(), 1, 1
    return None, x.numel(), *((x.shape[0], 1) if batch_first else (1, x.shape[1]))


def _importance_ratio_fake(log_probs: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    like: dict[str, Any] = {"device": log_probs.device}
    return (
        torch.empty(log_probs.shape, dtype=log_probs.dtype, **like),
        torch.empty(log_probs.shape, dtype=_work(log_probs), **like),
    )


def _boundaries(
    x: Tensor, terminated: Tensor | None, truncated: Tensor | None, mask: Tensor | None, cu_seqlens: Tensor | None,
    batch_first: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Rows `(T, N)`: where an episode ends, where a window ends whatever the mask says, where a row is in time."""
    nothing = torch.zeros(x.shape, dtype=torch.bool, device=x.device)
    ended = nothing if terminated is None else terminated != 0
    ended = ended if truncated is None else ended | (truncated != 0)
    valid = ~nothing if mask is None else mask != 0
    window = nothing
    if cu_seqlens is not None:
        first = torch.zeros(x.numel() + 1, dtype=torch.bool, device=x.device)
        window = first.index_fill(0, cu_seqlens.long(), True)[1:]
    rows = [y.t() if batch_first else y for y in (ended, window, valid)]
    ended, window, valid = (y if y.ndim == 2 else y.unsqueeze(1) for y in rows)
    return ended, window, valid


def _importance_ratio_torch(
    log_probs: Tensor, old_log_probs: Tensor, terminated: Tensor | None, truncated: Tensor | None, mask: Tensor | None,
    cu_seqlens: Tensor | None, cumulative: bool, batch_first: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The same by torch operations, on any device; the ratios are differentiable in `log_probs`."""
    given, valid, _ = _bounded(log_probs, old_log_probs, mask)
    if cumulative and given.numel():
        ended, window, in_time = _boundaries(given, terminated, truncated, mask, cu_seqlens, batch_first)
        steps = given.t() if batch_first else given
        steps = steps if steps.ndim == 2 else steps.unsqueeze(1)
        over = window | (in_time & ended)
        first = torch.cat([torch.ones_like(over[:1]), over[:-1]])
        sums = solve(steps.flip(0), 1.0, first.flip(0)).flip(0)
        given = (sums.t() if batch_first else sums).reshape(given.shape)
    ratio = given.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    ratio = ratio if valid is None else torch.where(valid, ratio, 0.0)
    slope = torch.where(given.abs() > MAX_LOG_RATIO, 0.0, ratio).detach()
    return ratio.to(log_probs.dtype).contiguous(), slope.contiguous()


def _importance_ratio_backward_cpu(
    outer: Tensor, slopes: Tensor, terminated: Tensor | None, truncated: Tensor | None, mask: Tensor | None,
    cu_seqlens: Tensor | None, cumulative: bool, batch_first: bool,
) -> Tensor:  # fmt: skip
    work = slopes.dtype
    memory = [_floats(outer, work), _floats(slopes, work), *map(_flags, (terminated, truncated, mask))]
    gradient = torch.empty(slopes.shape, dtype=work)
    cut = _cut(slopes, cu_seqlens, batch_first)
    _importance_ratio_backward_at(*_addresses(*memory, cut[0], gradient), *cut[1:], cumulative, _LIKE[work])
    return gradient


def _importance_ratio_backward_fake(outer: Tensor, slopes: Tensor, *_: Any) -> Tensor:
    return torch.empty(slopes.shape, dtype=slopes.dtype, device=slopes.device)


def _importance_ratio_backward_torch(
    outer: Tensor, slopes: Tensor, terminated: Tensor | None, truncated: Tensor | None, mask: Tensor | None,
    cu_seqlens: Tensor | None, cumulative: bool, batch_first: bool,
) -> Tensor:  # fmt: skip
    own = torch.where(slopes == 0, 0.0, outer.detach().to(slopes.dtype) * slopes)
    if not cumulative or not own.numel():
        return own
    ended, window, in_time = _boundaries(own, terminated, truncated, mask, cu_seqlens, batch_first)
    steps = own.t() if batch_first else own
    steps = steps if steps.ndim == 2 else steps.unsqueeze(1)
    sums = solve(torch.where(in_time, steps, 0.0), 1.0, window | (in_time & ended))
    sums = torch.where(in_time, sums, 0.0)
    return (sums.t() if batch_first else sums).reshape(own.shape).contiguous()


def _register(library: Any, name: str, cpu: Any, cuda: Any, fake: Any) -> Any:
    """Define one op with its CPU, CUDA, fake and detaching autograd kernels."""

    def detaching(*args: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return getattr(torch.ops.fastac, name)(*args)

    def detached(*args: Any) -> Any:
        with torch.no_grad():
            return cuda(*args)

    library.define(name + _SCHEMAS[name])
    library.impl(name, cpu, "CPU")
    library.impl(name, detached, "CUDA")
    library.impl(name, detaching, "Autograd")
    torch.library.register_fake(f"fastac::{name}", fake, lib=library)


_LIBRARY: Any = torch.library.Library("fastac", "FRAGMENT")  # type: ignore[no-untyped-call]
_register(_LIBRARY, "ppo_clip_loss", _ppo_clip_loss_cpu, _ppo_clip_loss_cuda, _ppo_clip_loss_fake)
_register(_LIBRARY, "importance_ratio", _importance_ratio_cpu, _importance_ratio_torch, _importance_ratio_fake)
_register(
    _LIBRARY, "importance_ratio_backward", _importance_ratio_backward_cpu, _importance_ratio_backward_torch,
    _importance_ratio_backward_fake,
)  # fmt: skip


def _refuse_second_derivatives(name: str) -> None:
    """Raise inside a backward pass that is to be differentiated: there the gradient would count as a constant."""
    if not torch.compiler.is_compiling() and torch.is_grad_enabled():
        raise RuntimeError(f"{name} is differentiable once: no create_graph=True (torch.func's transforms nest)")


class _PPOClipLoss(torch.autograd.Function):
    """The loss, differentiable once; its gradient is there already."""

    @staticmethod
    def forward(ctx: Any, log_probs: Tensor, *others: Any) -> Result:
        loss, gradient, statistics = torch.ops.fastac.ppo_clip_loss(log_probs, *others)
        ctx.mark_non_differentiable(gradient, statistics)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(gradient)
        ctx.dtype = log_probs.dtype
        return loss, gradient, statistics

    @staticmethod
    def backward(ctx: Any, outer: Tensor | None, *_: Any) -> Any:
        if outer is None:
            return (None,) * 6
        _refuse_second_derivatives("ppo_clip_loss")
        (gradient,) = ctx.saved_tensors
        return (outer * gradient).to(ctx.dtype), None, None, None, None, None


class _PlainLoss(torch.autograd.Function):
    """The same around what is computed already: each tensor less that goes in or out saves a microsecond."""

    @staticmethod
    def forward(ctx: Any, log_probs: Tensor, found: Result) -> Tensor:
        ctx.save_for_backward(found[1])
        return found[0]

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> Any:
        _refuse_second_derivatives("ppo_clip_loss")
        return outer * ctx.saved_tensors[0], None


class _ImportanceRatio(torch.autograd.Function):
    """The ratios, differentiable once."""

    @staticmethod
    def forward(ctx: Any, log_probs: Tensor, old_log_probs: Tensor, *others: Any) -> Tensor:
        ratios, slopes = torch.ops.fastac.importance_ratio(log_probs, old_log_probs, *others)
        ctx.save_for_backward(slopes, *others[:4])
        ctx.options, ctx.dtype = others[4:], log_probs.dtype
        return cast("Tensor", ratios)

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> Any:
        _refuse_second_derivatives("importance_ratio")
        gradient = torch.ops.fastac.importance_ratio_backward(outer, *ctx.saved_tensors, *ctx.options)
        return (gradient.to(ctx.dtype), *(None,) * 7)


_differentiable_loss: Callable[..., Any] = _PPOClipLoss.apply
_with_gradient: Callable[..., Any] = _PlainLoss.apply
_differentiable_ratio: Callable[..., Any] = _ImportanceRatio.apply


def _in_transform() -> bool:
    return not torch.compiler.is_compiling() and torch._C._functorch.peek_interpreter_stack() is not None


def plain_ppo_clip_loss(
    log_probs: Any, old_log_probs: Any, advantages: Any, mask: Any, clip_coef: Any, dual_clip: Any
) -> Result | None:
    """The common case, checked in a few microseconds: contiguous CPU tensors of one float dtype, boolean mask.

    None where it is another case, or where something is wrong that `ppo_clip_loss` will name.
    """
    if not (_unheard() and type(clip_coef) is float and 0.0 < clip_coef < math.inf):
        return None
    if dual_clip is None:
        dual_clip = math.inf
    elif not (type(dual_clip) is float and 1.0 < dual_clip < math.inf):
        return None
    if log_probs.is_cuda:
        on_cuda = _torch_cuda.plain_ppo_clip_loss(log_probs, old_log_probs, advantages, mask, clip_coef, dual_clip)
        return None if on_cuda is None else _with_node(log_probs, on_cuda)
    dtype, shape = log_probs.dtype, log_probs.shape
    numbers = _NUMBERS.get(dtype)
    if numbers is None:
        return None
    for x in (log_probs, old_log_probs, advantages):
        if not (
            type(x) is Tensor and x.dtype is dtype and x.shape == shape and x.is_cpu and x.is_contiguous()
            and not x.is_neg()
        ):  # fmt: skip
            return None
    if mask is not None and not (
        type(mask) is Tensor and mask.dtype is _bool and mask.shape == shape and mask.is_cpu and mask.is_contiguous()
    ):
        return None
    like, loss, statistics = numbers
    found = loss, gradient, statistics = _empty_like(loss), _empty_like(log_probs), _empty_like(statistics)
    _ppo_clip_loss_at(
        log_probs.data_ptr(), old_log_probs.data_ptr(), advantages.data_ptr(), 0 if mask is None else mask.data_ptr(),
        loss.data_ptr(), gradient.data_ptr(), statistics.data_ptr(), log_probs.numel(), clip_coef, dual_clip, like,
    )  # fmt: skip
    return _with_node(log_probs, found)


def _with_node(log_probs: Tensor, found: Result) -> Result:
    """The loss with a gradient, where one is wanted."""
    if log_probs.requires_grad and _is_grad_enabled():
        return _with_gradient(log_probs, found), found[1], found[2]
    return found


def ppo_clip_loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    mask: Tensor | None,
    clip_coef: float,
    dual_clip: float,
) -> Result:
    """`fastac.ppo_clip_loss` on checked tensors of any dtype and layout."""
    others = (old_log_probs, advantages, mask, clip_coef, dual_clip)
    if _in_transform():
        return _ppo_clip_loss_torch(log_probs, *others)
    if log_probs.requires_grad and torch.is_grad_enabled():
        return cast("Result", _differentiable_loss(log_probs, *others))
    return cast("Result", torch.ops.fastac.ppo_clip_loss(log_probs, *others))


def importance_ratio(*arguments: Any) -> Tensor:
    """`fastac.importance_ratio` on checked tensors; arguments as the op has them."""
    arguments = (*arguments[:-2], bool(arguments[-2]), bool(arguments[-1]))
    if _in_transform():
        return _importance_ratio_torch(*arguments)[0]
    if arguments[0].requires_grad and torch.is_grad_enabled():
        return cast("Tensor", _differentiable_ratio(*arguments))
    return cast("Tensor", torch.ops.fastac.importance_ratio(*arguments)[0])


def approx_kl(log_probs: Tensor, old_log_probs: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """`fastac.approx_kl` on checked tensors, by torch operations: differentiable in `log_probs`."""
    given, _, n = _bounded(log_probs, old_log_probs, mask)
    x = given.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return (0.0 - x.sum()) / n, 0.5 * (x * x).sum() / n, (x.expm1() - x).sum() / n
