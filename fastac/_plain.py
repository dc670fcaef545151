"""The common case of numpy calls, checked in a microsecond: contiguous writable arrays, one float dtype, boolean flags.

Each function returns None where it is another case, or where something is wrong: `_arrays.call_numpy` then converts, or
says what is wrong. The entries compare shapes and addresses themselves, and refuse types they were not compiled for;
what is common is told apart here all the same, since a refusal takes a hundred microseconds.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastac._arrays import BOOL, LIKE, Arguments, _address
from fastac._estimators import Estimator
from fastac_kernels._jit import ready
from fastac_kernels.gae import gae_full, gae_short
from fastac_kernels.memory import addresses
from fastac_kernels.returns import discounted_returns_short

_ndarray, _empty, _LIKE = np.ndarray, np.empty, LIKE


def estimate(
    estimator: Estimator, arguments: Arguments, scalars: tuple[Any, ...], out: Any
) -> tuple[NDArray[Any], ...] | None:
    """Any estimator, time-major, with or without truncation and mask."""
    rewards, values, next_values, terminated, truncated, mask, cu_seqlens, batch_first, log_ratios = arguments
    dtype, shape = rewards.dtype, rewards.shape
    if dtype not in _LIKE or not 0 < len(shape) < 3 or cu_seqlens is not None or batch_first:
        return None
    if estimator.reads_ratios:
        x = log_ratios
        if not (type(x) is _ndarray and x.dtype is dtype and x.shape == shape and x.flags.carray):
            return None
    if type(next_values) is not _ndarray or type(terminated) is not _ndarray:
        return None
    full = next_values.shape == shape
    if not full and (estimator.full_only or len(shape) == 1 or truncated is not None or next_values.shape != shape[1:]):
        return None
    if values is None:
        if estimator.reads_values == "always" or (estimator.reads_values == "short" and not full):
            return None
    elif not (type(values) is _ndarray and values.dtype is dtype and values.shape == shape and values.flags.carray):
        return None
    for flags in (terminated, truncated, mask):
        if flags is not None and not (
            type(flags) is _ndarray and flags.dtype is BOOL and flags.shape == shape and flags.flags.carray
        ):
            return None
    if not (next_values.dtype is dtype and next_values.flags.carray and rewards.flags.carray):
        return None
    count = estimator.outputs
    if out is None:
        outputs: tuple[NDArray[Any], ...] = tuple([_empty(shape, dtype) for _ in range(count)])
    else:
        outputs = tuple(out) if isinstance(out, tuple) else (out,)
        if len(outputs) != count:
            return None
        for x in outputs:
            if not (type(x) is _ndarray and x.dtype is dtype and x.shape == shape and x.flags.carray):
                return None
    # One compiled call for all addresses: numpy takes a microsecond for each.
    r, v, following, e, c, m, first, last = addresses(
        rewards, rewards if values is None else values, next_values, terminated,
        terminated if truncated is None else truncated, terminated if mask is None else mask, outputs[0], outputs[-1],
    )  # fmt: skip
    done = estimator.kernel(
        *([_address(log_ratios)] if estimator.reads_ratios else []),
        r, 0 if values is None else v, following if full else 0, 0 if full else following, e,
        0 if truncated is None else c, 0 if mask is None else m, 0, *((first, last)[:count]),
        rewards.size, 1, shape[1] if len(shape) == 2 else 1, *scalars, *estimator.more, _LIKE[dtype],
    )  # fmt: skip
    return outputs if done else None


def gae(
    rewards: Any, values: Any, next_values: Any, terminated: Any, truncated: Any,
    gamma: Any, gae_lambda: Any, out: Any,
) -> tuple[Any, Any] | None:  # fmt: skip
    """`fastac.gae` of arrays `(T, N)` without a mask."""
    if not (
        type(values) is type(rewards) is type(next_values) is type(terminated) is _ndarray
        and type(gamma) is type(gae_lambda) is float
    ):
        return None
    dtype = values.dtype
    if not (
        dtype is rewards.dtype is next_values.dtype and dtype in _LIKE and terminated.dtype is BOOL and values.ndim == 2
        and rewards.flags.carray and values.flags.carray and next_values.flags.carray and terminated.flags.carray
        and 0.0 <= gamma <= 1.0 and 0.0 <= gae_lambda <= 1.0
    ):  # fmt: skip
        return None
    if out is None:
        advantages, returns = _empty(values.shape, dtype), _empty(values.shape, dtype)
    elif isinstance(out, tuple) and len(out) == 2 and type(out[0]) is type(out[1]) is _ndarray:
        advantages, returns = out
        if not (advantages.flags.carray and returns.flags.carray):
            return None
    else:
        return None
    if next_values.ndim == 1:
        if truncated is not None or not ready(gae_short, dtype):
            return None
        try:
            done = gae_short(rewards, values, next_values, terminated, gamma, gae_lambda, advantages, returns)
        except TypeError:
            return None
    else:
        if truncated is None:
            truncated = terminated  # an episode's end cuts the trace either way
        elif type(truncated) is not _ndarray or truncated.dtype is not BOOL or not truncated.flags.carray:
            return None
        if not ready(gae_full, dtype):
            return None
        try:
            done = gae_full(rewards, values, next_values, terminated, truncated, gamma, gae_lambda, advantages, returns)
        except TypeError:
            return None
    return (advantages, returns) if done else None


def discounted_returns(rewards: Any, next_values: Any, terminated: Any, gamma: Any, out: Any) -> Any:
    """`fastac.discounted_returns` of arrays `(T, N)` in the short form, without a mask."""
    if not (type(rewards) is type(next_values) is type(terminated) is _ndarray and type(gamma) is float):
        return None
    dtype = rewards.dtype
    if not (
        dtype is next_values.dtype and dtype in _LIKE and 0.0 <= gamma <= 1.0
        and terminated.dtype is BOOL and rewards.ndim == 2
        and rewards.flags.carray and next_values.flags.carray and terminated.flags.carray
    ):  # fmt: skip
        return None
    if out is None:
        out = _empty(rewards.shape, dtype)
    elif type(out) is not _ndarray or not out.flags.carray:
        return None
    if next_values.ndim != 1 or not ready(discounted_returns_short, dtype):
        return None
    try:
        return out if discounted_returns_short(rewards, next_values, terminated, gamma, out) else None
    except TypeError:
        return None
