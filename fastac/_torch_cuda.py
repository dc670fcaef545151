"""CUDA tensors to our CUDA kernels: on torch's current stream of their device, without waiting, capturable in a graph.

Where these cannot run - no numba-cuda, no libNVVM, a driver that does not take what they compile - the functions here
return None, and torch operations do the same work; that is said once.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from fastac import _arrays
from fastac._arrays import Arguments
from fastac._estimators import ESTIMATORS
from fastac._torch_memory import LIKE, WORK, flags, floats, is_transposed, operands, result_dtype
from fastac_kernels.operands import FULL, MASK, TERMINATED, TRUNCATED, VALUES

_empty, _empty_like = torch.empty, torch.empty_like
_bool = torch.bool
# The kernels; False: not looked for yet; None: they cannot run.
_kernels: ModuleType | bool | None = False
# Of the calls so far, how each kind is launched.
_plans: dict[tuple[Any, ...], tuple[Callable[..., None], int, bool, bool]] = {}
_loss_plans: dict[tuple[Any, ...], tuple[Callable[..., None], Tensor, Tensor, Tensor | None]] = {}
MOST_PLANS = 1024


def stream_of(device: int) -> int:
    """Torch's current stream of a device, as an integer."""
    stream: int = torch._C._cuda_getCurrentRawStream(device)
    return stream


def kernels() -> Any:
    """`fastac_kernels.cuda` where its kernels can run, else None; the first time that is None it is said why."""
    global _kernels
    if _kernels is False:
        try:
            from fastac_kernels import cuda

            missing = cuda.unavailable()
            _kernels = cuda
        except Exception as error:
            missing = f"{type(error).__name__}: {error}"
        if missing is not None:
            _do_without(missing)
    return _kernels


def _do_without(why: str) -> None:
    """From now on torch's operations take what the kernels would have."""
    global _kernels
    _kernels = None
    reason = why.splitlines()[0] if why else "no reason given"
    warnings.warn(
        "CUDA tensors are computed by torch operations, correct but slower: fastac's CUDA kernels cannot run here "
        f'({reason}). They need numba-cuda and its compiler: pip install "fastac-rl[cuda]"',
        RuntimeWarning,
        stacklevel=2,
    )


def estimate(
    name: str, arguments: Arguments, scalars: tuple[Any, ...], out: tuple[Tensor, ...] | None = None
) -> tuple[Tensor, ...] | None:
    """An estimator on checked CUDA tensors of any layout and dtype.

    Args:
        name: Of the estimator.
        arguments: Checked, all on one device.
        scalars: The estimator's scalars, checked.
        out: Of the result's dtype and contiguous, apart from everything else.

    Returns:
        The outputs; None where kernels cannot run.
    """
    cuda = kernels()
    if cuda is None:
        return None
    estimator, transposed = ESTIMATORS[name], is_transposed(arguments)
    plan = _arrays.layout(arguments, estimator, transposed=transposed)
    result = result_dtype(arguments)
    work = WORK.get(result, result)
    memory = operands(arguments, plan, work, reads_ratios=estimator.reads_ratios, transposed=transposed)
    cu_seqlens = arguments.cu_seqlens
    memory.append(None if cu_seqlens is None else cu_seqlens.detach().to(torch.int64).contiguous())
    device = arguments.rewards.device
    direct = out is not None and result is work and not transposed
    if direct and out is not None:
        outputs = out
    else:
        shape = plan.shape[::-1] if transposed else plan.shape
        outputs = tuple(_empty(shape, dtype=work, device=device) for _ in range(estimator.outputs))
    sizes = plan.total, plan.sequences, plan.lanes
    addresses = [0 if x is None else x.data_ptr() for x in (*memory, *outputs)]
    if plan.total and not _launch(cuda, name, addresses, sizes, (*scalars, *estimator.more), work, device):
        return None
    if direct:
        torch.autograd.graph.increment_version(outputs)
        return outputs
    return tuple((x.t() if transposed else x).to(result) for x in outputs)


def _launch(
    cuda: Any, name: str, addresses: list[int], sizes: tuple[int, int, int], scalars: tuple[Any, ...],
    work: torch.dtype, device: torch.device,
) -> bool:  # fmt: skip
    """Whether the kernel was launched; where it cannot be compiled or loaded, nothing was."""
    index = device.index or 0
    carries = cuda.carries_size(*sizes)
    # From torch's allocator, which keeps to the order of the stream.
    scratch = _empty(carries, dtype=work, device=device) if carries else None
    try:
        cuda.ESTIMATORS[name](
            *addresses, *sizes, *scalars, LIKE[work], 0 if scratch is None else scratch.data_ptr(), stream_of(index),
            index,
        )  # fmt: skip
    except Exception as error:
        refused(error)
        return False
    return True


def refused(error: Exception) -> None:
    """What a launch raised: kernels that cannot be had are done without; a capture or a broken context is not."""
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "a CUDA kernel cannot be compiled while a stream is captured: call the function once before"
        ) from error
    _do_without(f"{type(error).__name__}: {error}")


def plain(name: str, arguments: Arguments, scalars: tuple[Any, ...]) -> tuple[Tensor, ...] | None:
    """The common case, checked in two microseconds: contiguous tensors on one device, one float dtype, boolean flags.

    None where it is another case, or where something is wrong that `_torch_ops.call` will name.
    """
    rewards, values, next_values, terminated, truncated, mask, cu_seqlens, batch_first, log_ratios = arguments
    if cu_seqlens is not None or batch_first or type(next_values) is not Tensor or not _kernels:
        return None
    # A property of a tensor takes 40 ns and its shape 90: each is asked for once.
    dtype, shape, device = rewards.dtype, rewards.shape, rewards.get_device()
    if (
        next_values.dtype is not dtype or next_values.get_device() != device or not next_values.is_contiguous()
        or next_values.is_neg() or not rewards.is_contiguous() or rewards.is_neg()
    ):  # fmt: skip
        return None
    for x in (log_ratios, values):
        if x is not None and not (
            type(x) is Tensor and x.dtype is dtype and x.shape == shape and x.get_device() == device
            and x.is_contiguous() and not x.is_neg()
        ):  # fmt: skip
            return None
    for x in (terminated, truncated, mask):
        if x is not None and not (
            type(x) is Tensor and x.dtype is _bool and x.shape == shape and x.get_device() == device
            and x.is_contiguous()
        ):  # fmt: skip
            return None
    key = (
        name, dtype, shape, next_values.shape, log_ratios is None, values is None, terminated is None,
        truncated is None, mask is None, scalars,
    )  # fmt: skip
    plan = _plans.get(key) or _plan(*key)
    if plan is None:
        return None
    launch, carries, full, two = plan
    following, first = next_values.data_ptr(), _empty_like(rewards)
    second = _empty_like(rewards) if two else None
    scratch = _empty(carries, dtype=dtype, device=rewards.device) if carries else None
    addresses = (
        0 if log_ratios is None else log_ratios.data_ptr(), rewards.data_ptr(),
        0 if values is None else values.data_ptr(), following if full else 0, 0 if full else following,
        0 if terminated is None else terminated.data_ptr(), 0 if truncated is None else truncated.data_ptr(),
        0 if mask is None else mask.data_ptr(), 0, first.data_ptr(), 0 if second is None else second.data_ptr(),
        0 if scratch is None else scratch.data_ptr(),
    )  # fmt: skip
    try:
        launch(addresses, stream_of(device), device)
    except Exception as error:
        refused(error)
        return None
    return (first,) if second is None else (first, second)


def _plan(
    name: str, dtype: torch.dtype, shape: torch.Size, last: torch.Size, no_ratios: bool, no_values: bool,
    no_terminated: bool, no_truncated: bool, no_mask: bool, scalars: tuple[Any, ...],
) -> tuple[Callable[..., None], int, bool, bool] | None:  # fmt: skip
    """What launches `plain`'s call, elements to work in, whether next values are full, whether there are two outputs.

    All that depends on shapes, dtype, scalars and on which operands there are is looked at here, once; None where that
    is no such call.
    """
    like, dimensions = LIKE.get(dtype), len(shape)
    if like is None or not 0 < dimensions < 3 or math.prod(shape) == 0:
        return None
    _, more, count, reads_values, reads_ratios, full_only, _ = ESTIMATORS[name]
    full = last == shape
    if not full and (full_only or not no_truncated or dimensions == 1 or last != shape[1:]):
        return None
    if no_ratios == reads_ratios or (
        no_values and (reads_values == "always" or (reads_values == "short" and not full))
    ):
        return None
    present = (
        (0 if no_values else VALUES) | (FULL if full else 0) | (0 if no_terminated else TERMINATED)
        | (0 if no_truncated else TRUNCATED) | (0 if no_mask else MASK)
    )  # fmt: skip
    cuda: Any = _kernels
    lanes = shape[1] if dimensions == 2 else 1
    try:
        carries, launch = cuda.PLANS[name](type(like), present, math.prod(shape), 1, lanes, *scalars, *more)
    except Exception as error:
        refused(error)
        return None
    if len(_plans) >= MOST_PLANS:  # shapes come and go
        _plans.clear()
    key = (name, dtype, shape, last, no_ratios, no_values, no_terminated, no_truncated, no_mask, scalars)
    plan = _plans[key] = launch, carries, full, count == 2
    return plan


def ppo_clip_loss(
    log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, mask: Tensor | None, clip_coef: float,
    dual_clip: float,
) -> tuple[Tensor, Tensor, Tensor] | None:  # fmt: skip
    """`fastac.ppo_clip_loss` on checked CUDA tensors; loss, gradient and statistics, or None as in `estimate`."""
    if kernels() is None:
        return None
    work = WORK.get(log_probs.dtype, log_probs.dtype)
    memory = floats(log_probs, work), floats(old_log_probs, work), floats(advantages, work)
    key = (work, log_probs.shape, log_probs.get_device(), mask is None, clip_coef, dual_clip)
    return _loss(*memory, flags(mask), key)


def _loss(
    log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, mask: Tensor | None, key: tuple[Any, ...]
) -> tuple[Tensor, Tensor, Tensor] | None:
    """The loss of contiguous tensors of one dtype; `key` is what `_loss_plan` takes."""
    plan = _loss_plans.get(key) or _loss_plan(*key)
    if plan is None:
        return None
    launch, like_loss, like_statistics, like_partials = plan
    loss, gradient = _empty_like(like_loss), _empty_like(log_probs)
    statistics = _empty_like(like_statistics)
    partials = None if like_partials is None else _empty_like(like_partials)
    addresses = (
        log_probs.data_ptr(), old_log_probs.data_ptr(), advantages.data_ptr(), 0 if mask is None else mask.data_ptr(),
        loss.data_ptr(), gradient.data_ptr(), statistics.data_ptr(), 0 if partials is None else partials.data_ptr(),
    )  # fmt: skip
    try:
        launch(addresses, stream_of(key[2]), key[2])
    except Exception as error:
        refused(error)
        return None
    return loss, gradient, statistics


def _loss_plan(
    dtype: torch.dtype, shape: torch.Size, device: int, no_mask: bool, clip_coef: float, dual_clip: float
) -> tuple[Callable[..., None], Tensor, Tensor, Tensor | None] | None:
    """What launches it; and what `empty_like` is given, in half the time of `empty`, for all but the gradient."""
    cuda: Any = _kernels
    real, total = type(LIKE[dtype]), math.prod(shape)
    try:
        partials, launch = cuda.ppo_clip_loss_plan(real, total, not no_mask, clip_coef, dual_clip)
    except Exception as error:
        refused(error)
        return None
    like: dict[str, Any] = {"dtype": dtype, "device": device if device >= 0 else "cpu"}
    if len(_loss_plans) >= MOST_PLANS:
        _loss_plans.clear()
    plan = launch, _empty((), **like), _empty(5, **like), _empty(partials, **like) if partials else None
    _loss_plans[dtype, shape, device, no_mask, clip_coef, dual_clip] = plan
    return plan


def plain_ppo_clip_loss(
    log_probs: Tensor, old_log_probs: Any, advantages: Any, mask: Any, clip_coef: float, dual_clip: float
) -> tuple[Tensor, Tensor, Tensor] | None:
    """The common case, as `plain`; `log_probs` is a tensor on CUDA, and the numbers have been checked."""
    if not _kernels:
        return None
    dtype, shape, device = log_probs.dtype, log_probs.shape, log_probs.get_device()
    if dtype not in LIKE or 0 in shape or not log_probs.is_contiguous() or log_probs.is_neg():
        return None
    for x in (old_log_probs, advantages):
        if not (
            type(x) is Tensor and x.dtype is dtype and x.shape == shape and x.get_device() == device
            and x.is_contiguous() and not x.is_neg()
        ):  # fmt: skip
            return None
    if mask is not None and not (
        type(mask) is Tensor and mask.dtype is _bool and mask.shape == shape and mask.get_device() == device
        and mask.is_contiguous()
    ):  # fmt: skip
        return None
    return _loss(log_probs, old_log_probs, advantages, mask, (dtype, shape, device, mask is None, clip_coef, dual_clip))
