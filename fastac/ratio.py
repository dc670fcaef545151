"""Importance ratios, PPO's clipped loss with its gradient, and what it says about the distance of two policies.

Samples come from the *old* policy, under which they have `old_log_probs`; `log_probs` are the same samples' under the
new one. Gradients reach `log_probs` alone. With x = log_probs - old_log_probs and rho = exp(x), the estimators

    k1 = -x      k2 = x^2 / 2      k3 = rho - 1 - x

have on such samples the direction KL(old || new) = E_old[log old - log new]: k1 and k3 without bias, k2 to second
order. (The divergence that trust-region theory bounds is, in some texts, the other one, KL(new || old).)

The exponent is bounded at +-20 before `exp`, so that nothing overflows; beyond it the gradient is 0. NaN goes through.
Elements that a mask drops are selected away, never multiplied by zero.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable
from numbers import Real
from typing import Any, Generic, NamedTuple, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from fastac import _arrays
from fastac._arrays import FLOAT32, FLOAT64, LIKE, fail, is_tensor
from fastac_kernels import ratio as kernels
from fastac_kernels._jit import ready

Array = TypeVar("Array")
_importance_ratio_at: Callable[..., None] = kernels.importance_ratio_at
_ppo_clip_loss_at: Callable[..., None] = kernels.ppo_clip_loss_at
_ndarray, _empty = np.ndarray, np.empty
_new: Any = tuple.__new__  # a quarter of the time that a named tuple's own constructor takes


class PPOClipLoss(NamedTuple, Generic[Array]):
    """Result of `ppo_clip_loss`. Only `loss` may require a gradient.

    Attributes:
        loss: Negative mean of the clipped surrogate; no dimension.
        gradient: Of the loss with respect to `log_probs`, in their shape.
        statistics: `(5,)`: `k1`, `k2`, `k3`, `clip_fraction` and `mean_ratio`, to be logged in one transfer.
    """

    loss: Array
    gradient: Array
    statistics: Array

    @property
    def k1(self) -> Array:
        """Mean of -x: an estimate of KL(old || new) in nats."""
        return self._statistic(0)

    @property
    def k2(self) -> Array:
        """Mean of x^2 / 2: an estimate of KL(old || new) in nats."""
        return self._statistic(1)

    @property
    def k3(self) -> Array:
        """Mean of rho - 1 - x: an estimate of KL(old || new) in nats, never below 0."""
        return self._statistic(2)

    @property
    def clip_fraction(self) -> Array:
        """Share of the elements whose ratio is outside [1 - eps, 1 + eps]."""
        return self._statistic(3)

    @property
    def mean_ratio(self) -> Array:
        """Mean of rho; 1 in expectation."""
        return self._statistic(4)

    def _statistic(self, index: int) -> Array:
        return cast("Array", cast("Any", self.statistics)[index])


class ApproxKL(NamedTuple, Generic[Array]):
    """Result of `approx_kl`: the means `k1`, `k2` and `k3`, each an estimate of KL(old || new) in nats."""

    k1: Array
    k2: Array
    k3: Array


def importance_ratio(
    log_probs: Array,
    old_log_probs: Any,
    terminated: Any = None,
    truncated: Any = None,
    mask: Any = None,
    *,
    cumulative: bool = False,
    batch_first: bool = False,
    cu_seqlens: Any = None,
) -> Array:
    """Probability of what was done under the new policy over that under the old one, per step or cumulative.

        rho_t = exp(x_t),   x_t = log pi_new(a_t | s_t) - log pi_old(a_t | s_t)          per step
        rho_t = exp(x_b + ... + x_t),   b the first row of t's episode or of the window  cumulative

    The exponent is bounded at +-20; beyond, the gradient is 0.

    Args:
        log_probs: `(T, N)` or `(T,)` (per step: any shape); log pi_new(a_t | s_t). Its dtype is the result's: float32
            and float64 are computed as such, half precisions in float32 and rounded once. The gradient goes here alone.
        old_log_probs: Same shape; log pi_old(a_t | s_t), of the policy that acted.
        terminated: Same shape, not 0 meaning True: transition t ended the episode, row t+1 begins another one.
        truncated: Same shape: a time limit cut the episode after transition t, likewise.
        mask: Same shape: False where the row is not in time; its ratio is 0, and the product passes it.
        cumulative: Products from the episode's first row in the window on.
        batch_first: Arrays are `(N, T)`.
        cu_seqlens: `(num_sequences + 1,)` int32 or int64 boundaries of packed `(total,)` arrays; every sequence's first
            row begins an episode.

    Returns:
        The ratios, of the shape and dtype of `log_probs`. On CUDA torch operations compute them, without waiting: a
        few per step, and cumulative a few in each of log2(T) passes.

    Raises:
        ValueError: A shape is wrong; the message names the argument.
        TypeError: Arrays and tensors, or two devices, are mixed, or a dtype is wrong.

    Source:
        Precup, Sutton and Singh 2000, *Eligibility Traces for Off-Policy Policy Evaluation*, section 2; Sutton and
        Barto 2018, *Reinforcement Learning: An Introduction*, equation 5.3.

    Example:
        >>> import numpy as np
        >>> from fastac import importance_ratio
        >>> new, old = np.log([0.5, 0.5, 0.5]), np.log([0.25, 0.5, 0.25])
        >>> importance_ratio(new, old).round(6)
        array([2., 1., 2.])
        >>> importance_ratio(new, old, cumulative=True).round(6)
        array([2., 2., 4.])
    """
    named = (("old_log_probs", old_log_probs), ("terminated", terminated), ("truncated", truncated), ("mask", mask))
    on_tensors = _check(log_probs, named)
    sequences, lanes = _layout(log_probs, cumulative, batch_first, cu_seqlens)
    if on_tensors:
        from fastac import _torch_ratio

        return cast("Array", _torch_ratio.importance_ratio(
            log_probs, old_log_probs, terminated, truncated, mask, cu_seqlens, cumulative, batch_first
        ))  # fmt: skip
    new: Any = log_probs
    result, work = _dtypes(new)
    memory: list[Any] = [np.ascontiguousarray(x, work) for x in (new, old_log_probs)]
    memory += [_arrays._flags(x, False) for x in (terminated, truncated, mask)]
    memory.append(None if cu_seqlens is None else _arrays.check_boundaries(cu_seqlens, new.size))
    ratios, slopes = np.empty(new.shape, work), np.empty(new.shape, work)
    addresses = [0 if x is None else _arrays._address(x) for x in (*memory, ratios, slopes)]
    _importance_ratio_at(*addresses, new.size, sequences, lanes, bool(cumulative), LIKE[work])
    return cast("Array", ratios.astype(result, copy=False))


def clip_ratio(ratios: Array, *, clip_coef: float) -> Array:
    """Ratios held inside PPO's range.

        clip(rho, 1 - eps, 1 + eps)

    Args:
        ratios: Any shape, of a floating dtype, each of whatever time step; the gradient is 0 where a ratio is outside.
        clip_coef: eps, above 0.

    Returns:
        The same shape and dtype; NaN stays.

    Raises:
        ValueError: `clip_coef` is not above 0.
        TypeError: `ratios` is neither an array nor a tensor, or not floating.

    Source:
        Schulman et al. 2017, *Proximal Policy Optimization Algorithms* (arXiv:1707.06347), equation 7.

    Example:
        >>> import numpy as np
        >>> from fastac import clip_ratio
        >>> clip_ratio(np.array([0.5, 1.1, 2.0]), clip_coef=0.2)
        array([0.8, 1.1, 1.2])
    """
    eps = _above("clip_coef", clip_coef, 0.0)
    x: Any = ratios
    if _check(x, (), "ratios"):
        return cast("Array", x.clamp(1.0 - eps, 1.0 + eps))
    return cast("Array", np.clip(x, x.dtype.type(1.0 - eps), x.dtype.type(1.0 + eps)))


def approx_kl(log_probs: Array, old_log_probs: Any, mask: Any = None) -> ApproxKL[Array]:
    """Estimates of KL(old || new) from samples of the old policy: means over the elements that the mask leaves.

        k1 = mean(-x)   k2 = mean(x^2 / 2)   k3 = mean(rho - 1 - x)   x = log_probs - old_log_probs,  rho = exp(x)

    k1 has no bias and may be negative, k2 is biased and varies less, k3 has no bias and is never negative. To estimate
    KL(new || old) exchange roles: draw from the new policy and pass its log probabilities as `old_log_probs`.

    Args:
        log_probs: Any shape; log pi_new(a_t | s_t), floating. Gradients go here alone (k1's is not KL's gradient).
        old_log_probs: Same shape; log pi_old(a_t | s_t), of the policy that acted.
        mask: Same shape: False where an element does not count. Nothing left gives 0.

    Returns:
        `ApproxKL(k1, k2, k3)`, without dimensions, in nats; float32 for half precisions.

    Raises:
        ValueError: A shape is wrong; the message names the argument.
        TypeError: Arrays and tensors, or two devices, are mixed, or a dtype is wrong.

    Source:
        Schulman 2020, *Approximating KL Divergence*, http://joschu.net/blog/kl-approx.html

    Example:
        >>> import numpy as np
        >>> from fastac import approx_kl
        >>> print(approx_kl(np.log([0.5, 0.25]), np.log([0.25, 0.5])).k3)
        0.25
    """
    new: Any = log_probs
    if _check(new, (("old_log_probs", old_log_probs), ("mask", mask))):
        from fastac import _torch_ratio

        return cast("ApproxKL[Array]", ApproxKL(*_torch_ratio.approx_kl(new, old_log_probs, mask)))
    _, work = _dtypes(new)
    kept = ... if mask is None else mask != 0
    given = (new[kept].astype(work, copy=False) - old_log_probs[kept].astype(work, copy=False)).astype(np.float64)
    x = np.clip(given, -kernels.MAX_LOG_RATIO, kernels.MAX_LOG_RATIO)
    n = max(x.size, 1)
    estimates = (0.0 - x.sum(), 0.5 * (x * x).sum(), (np.expm1(x) - x).sum())
    return cast("ApproxKL[Array]", ApproxKL(*(work.type(k / n) for k in estimates)))


def ppo_clip_loss(
    log_probs: Array,
    old_log_probs: Any,
    advantages: Any,
    mask: Any = None,
    *,
    clip_coef: float,
    dual_clip: float | None = None,
) -> PPOClipLoss[Array]:
    """PPO's clipped surrogate as a loss, with its gradient and its diagnostics, in one pass over memory.

        L = -mean s,   s = min(rho A, clip(rho, 1 - eps, 1 + eps) A),   and s = max(s, c A) where A < 0 (dual clip)

    rho = exp(x) with x = log_probs - old_log_probs bounded at +-20. The mean is over the elements that the mask leaves;
    where none is left the loss is 0 and so is the gradient. The gradient -rho A / n is exactly 0 where A > 0 and
    rho > 1 + eps, where A < 0 and rho < 1 - eps or rho > c, and beyond the bound.

    Tensors: `loss` is differentiable in `log_probs`, once (any number of times inside torch.func's transforms). The
    direct form leaves autograd's own node out:

        result = ppo_clip_loss(log_probs.detach(), old_log_probs, advantages, clip_coef=0.2)
        log_probs.backward(result.gradient)

    or, beside other losses, `torch.autograd.backward([log_probs, value_loss], [result.gradient, None])`. Nothing is
    copied from a device: read the diagnostics when they are logged.

    Args:
        log_probs: Any shape; log pi_new(a_t | s_t), floating. Half precisions are computed in float32.
        old_log_probs: Same shape; log pi_old(a_t | s_t), of the policy that acted; no gradient.
        advantages: Same shape; A_t, used as they are; no gradient.
        mask: Same shape: False where an element does not count; NaN there does no harm.
        clip_coef: eps, above 0.
        dual_clip: c, above 1. None: no dual clip.

    Returns:
        `PPOClipLoss(loss, gradient, statistics)`, and of the statistics `k1`, `k2` and `k3`, which estimate
        KL(old || new) in nats, `clip_fraction` and `mean_ratio`. Of the dtype of `log_probs`; of float32 where that is
        a half precision, the gradient too (1/n would underflow).

    Raises:
        ValueError: A shape or a range is wrong; the message names the argument.
        TypeError: Arrays and tensors, or two devices, are mixed, or a dtype is wrong.

    Source:
        Schulman et al. 2017, *Proximal Policy Optimization Algorithms* (arXiv:1707.06347), equation 7; dual clip: Ye et
        al. 2020, *Mastering Complex Control in MOBA Games with Deep Reinforcement Learning* (arXiv:1912.09729),
        equation 5; k1 to k3: Schulman 2020, http://joschu.net/blog/kl-approx.html

    Example:
        >>> import numpy as np
        >>> from fastac import ppo_clip_loss
        >>> new, old, advantages = np.log([0.5, 0.5]), np.log([0.25, 0.5]), np.array([1.0, -1.0])
        >>> result = ppo_clip_loss(new, old, advantages, clip_coef=0.2)
        >>> print(result.loss.round(6), result.gradient, result.clip_fraction)
        -0.1 [0.  0.5] 0.5
    """
    new: Any = log_probs
    torch = sys.modules.get("torch")
    if torch is not None and type(new) is torch.Tensor:
        from fastac import _torch_ratio

        found = _torch_ratio.plain_ppo_clip_loss(new, old_log_probs, advantages, mask, clip_coef, dual_clip)
        if found is not None:
            return cast("PPOClipLoss[Array]", _new(PPOClipLoss, found))
    elif mask is None and dual_clip is None:
        found = _plain(new, old_log_probs, advantages, clip_coef)
        if found is not None:
            return cast("PPOClipLoss[Array]", found)
    eps = _above("clip_coef", clip_coef, 0.0)
    dual = math.inf if dual_clip is None else _above("dual_clip", dual_clip, 1.0)
    named = (("old_log_probs", old_log_probs), ("advantages", advantages), ("mask", mask))
    if _check(new, named):
        from fastac import _torch_ratio

        found = _torch_ratio.ppo_clip_loss(new, old_log_probs, advantages, mask, eps, dual)
        return cast("PPOClipLoss[Array]", PPOClipLoss(*found))
    _, work = _dtypes(new)
    memory: list[Any] = [np.ascontiguousarray(x, work) for x in (new, old_log_probs, advantages)]
    loss, gradient, statistics = np.empty((), work), np.empty(new.shape, work), np.empty(5, work)
    arrays = (*memory, _arrays._flags(mask, False), loss, gradient, statistics)
    addresses = [0 if x is None else _arrays._address(x) for x in arrays]
    _ppo_clip_loss_at(*addresses, new.size, eps, dual, LIKE[work])
    return cast("PPOClipLoss[Array]", PPOClipLoss(loss[()], gradient, statistics))


def _plain(log_probs: Any, old_log_probs: Any, advantages: Any, clip_coef: Any) -> PPOClipLoss[Any] | None:
    """The common case, checked in a microsecond: flat contiguous arrays of one float dtype.

    None where it is another case, or where something is wrong that `ppo_clip_loss` will name.
    """
    if not (
        type(log_probs) is type(old_log_probs) is type(advantages) is _ndarray
        and type(clip_coef) is float and 0.0 < clip_coef < math.inf
    ):  # fmt: skip
        return None
    dtype = log_probs.dtype
    if not (
        dtype is old_log_probs.dtype is advantages.dtype and dtype in LIKE and log_probs.ndim == 1
        and log_probs.flags.carray and old_log_probs.flags.carray and advantages.flags.carray
        and ready(kernels.ppo_clip_loss, dtype)
    ):  # fmt: skip
        return None
    gradient, numbers = _empty(log_probs.shape, dtype), _empty(6, dtype)
    try:
        done = kernels.ppo_clip_loss(log_probs, old_log_probs, advantages, clip_coef, math.inf, gradient, numbers)
    except TypeError:
        return None
    return _new(PPOClipLoss, (numbers[0], gradient, numbers[1:])) if done else None


def _above(name: str, value: Any, bound: float) -> float:
    """`value` as a finite float above `bound`."""
    if isinstance(value, bool) or not isinstance(value, Real):
        fail(name, f"a number above {bound:g}", type(value).__name__, TypeError)
    number = float(value)
    if not bound < number < math.inf:
        fail(name, f"a number above {bound:g}", repr(value))
    return number


def _check(first: Any, others: Iterable[tuple[str, Any]], first_name: str = "log_probs") -> bool:
    """Whether a call is about tensors, by metadata alone, after all are found to be of one kind, device and shape.

    Flags and masks may be None.
    """
    tensors = is_tensor(first)
    if not tensors and not isinstance(first, np.ndarray):
        fail(first_name, "a numpy array or a torch tensor", type(first).__name__, TypeError)
    if not (first.is_floating_point() if tensors else first.dtype.kind == "f"):
        fail(first_name, "a floating dtype", f"dtype {first.dtype}", TypeError)
    for name, x in others:
        if x is None and name not in ("old_log_probs", "advantages"):
            continue
        if not (is_tensor(x) and x.device == first.device if tensors else isinstance(x, np.ndarray)):
            fail(name, f"{_arrays._describe(first)} like {first_name}", _arrays._describe(x), TypeError)
        if tuple(x.shape) != tuple(first.shape):
            fail(name, f"shape {tuple(first.shape)} like {first_name}", f"shape {tuple(x.shape)}")
        if x.is_complex() if tensors else x.dtype.kind not in "fiub":
            fail(name, "a boolean or real number dtype", f"dtype {x.dtype}", TypeError)
    return tensors


def _layout(log_probs: Any, cumulative: bool, batch_first: bool, cu_seqlens: Any) -> tuple[int, int]:
    """Sequences in memory, and the lanes of each: see `fastac_kernels.ratio.importance_ratio_at`."""
    shape = tuple(log_probs.shape)
    if cu_seqlens is not None:
        if batch_first:
            fail("batch_first", "False together with cu_seqlens", "True")
        if len(shape) != 1:
            fail("log_probs", "shape (total,) together with cu_seqlens", f"shape {shape}")
        same = is_tensor(cu_seqlens) and cu_seqlens.device == log_probs.device if is_tensor(log_probs) else False
        if not same and (is_tensor(log_probs) or not isinstance(cu_seqlens, np.ndarray)):
            fail(
                "cu_seqlens", f"{_arrays._describe(log_probs)} like log_probs", _arrays._describe(cu_seqlens), TypeError
            )
        if str(cu_seqlens.dtype).removeprefix("torch.") not in ("int32", "int64"):
            fail("cu_seqlens", "dtype int32 or int64", f"dtype {cu_seqlens.dtype}", TypeError)
        if cu_seqlens.ndim != 1 or cu_seqlens.shape[0] < 1:
            fail("cu_seqlens", "shape (num_sequences + 1,)", f"shape {tuple(cu_seqlens.shape)}")
        return cu_seqlens.shape[0] - 1, 1
    if cumulative and len(shape) not in (1, 2):
        fail("log_probs", "shape (T, N) or (T,)", f"shape {shape}")
    if len(shape) != 2:
        return 1, 1
    return (shape[0], 1) if batch_first else (1, shape[1])


def _dtypes(x: NDArray[Any]) -> tuple[np.dtype[Any], np.dtype[Any]]:
    """Dtype of the result and of the computation."""
    result = x.dtype.newbyteorder("=")
    work = FLOAT32 if result in (np.float16, FLOAT32) else FLOAT64
    return (result if work == FLOAT32 else FLOAT64), work
