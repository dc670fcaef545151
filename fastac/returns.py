"""Returns and advantages: exact at every episode boundary, numpy in and numpy out, tensors in and tensors out.

One convention for all (arrays are `(T, N)`: time, then environments; or `(T,)`):

* `rewards[t]` is what transition t paid, `values[t]` is V(s_t) of the observation in which its action was chosen.
* `next_values[t]` is V(s_{t+1}) of the observation that transition t led to, before any reset (*full* form). The
  *short* form, `(N,)` or a scalar, is the value after the last row; a row before it takes the next row's `values`.
* `terminated[t]`: transition t ended the episode, there is no future. `truncated[t]`: a time limit cut it, the future
  is `next_values[t]`; needs the full form. Terminated wins over truncated.
* `mask[t]` False: the row is not in time at all (padding, the filler row after a reset). Its outputs are 0.

What an ended episode must not read is selected away, never multiplied by zero, so NaN there does no harm. Results never
require a gradient.
"""

from __future__ import annotations

import sys
from typing import Any, Generic, NamedTuple, TypeVar, cast

import numpy as np

from fastac import _arrays, _plain
from fastac._arrays import Arguments
from fastac._estimators import ESTIMATORS

Array = TypeVar("Array")
LARGEST_N = 2**62  # what kernels can count to; no window is as long
_new: Any = tuple.__new__  # a quarter of the time that a named tuple's own constructor takes


class GAE(NamedTuple, Generic[Array]):
    """Result of `gae`: `advantages` and `returns` = advantages + values, both of the shape and dtype of `values`."""

    advantages: Array
    returns: Array


def gae(
    rewards: Any,
    values: Array,
    next_values: Any,
    terminated: Any = None,
    truncated: Any = None,
    mask: Any = None,
    *,
    gamma: float,
    gae_lambda: float,
    batch_first: bool = False,
    cu_seqlens: Any = None,
    out: Any = None,
) -> GAE[Array]:
    """Generalized advantage estimation.

        delta_t = r_t + gamma V(s_{t+1}) - V(s_t)      without the future where t is terminated
        A_t     = delta_t + gamma lambda A_{t+1}       without A_{t+1} where t is terminated, truncated or the last row
        returns = A + V

    Args:
        rewards: `(T, N)` or `(T,)`; what transition t paid.
        values: Same shape; V(s_t). Its dtype is the result's: float32 and float64 are computed as such, half precisions
            in float32 and rounded once, other numbers in float64 (tensors: torch's default dtype).
        next_values: V(s_{t+1}): full (same shape) or short (`(N,)` or a scalar, the value after the last row).
        terminated: Same shape, not 0 meaning True: transition t ended the episode. None: none did.
        truncated: Same shape: a time limit cut the episode after transition t. Needs full `next_values`.
        mask: Same shape: False where the row is not in time.
        gamma: Discount per time step, in [0, 1].
        gae_lambda: Lambda, in [0, 1]: 0 gives the one-step TD error, 1 the discounted return minus V.
        batch_first: Arrays are `(N, T)`.
        cu_seqlens: `(num_sequences + 1,)` int32 or int64 boundaries of packed `(total,)` arrays. Each sequence's last
            row is a window's end; short `next_values` are `(num_sequences,)`, read as full where that equals `total`.
        out: `(advantages, returns)` to write into: C-contiguous, of the result's shape and dtype, overlapping nothing.

    Returns:
        `GAE(advantages, returns)`.

    Raises:
        ValueError: A shape, a range or `out` is wrong; the message names the argument.
        TypeError: Arrays and tensors, or two devices, are mixed, or a dtype is wrong.

    Source:
        Schulman et al. 2016, *High-Dimensional Continuous Control Using Generalized Advantage Estimation*
        (arXiv:1506.02438), equations 11, 12 and 16.

    Example:
        >>> import numpy as np
        >>> from fastac import gae
        >>> rewards, values = np.array([1.0, 1.0, 1.0]), np.array([0.5, 0.5, 0.5])
        >>> terminated = np.array([False, True, False])
        >>> advantages, returns = gae(rewards, values, 2.0, terminated, gamma=0.9, gae_lambda=1.0)
        >>> returns
        array([1.9, 1. , 2.8])
    """
    if mask is None and cu_seqlens is None and not batch_first:
        result = _plain.gae(rewards, values, next_values, terminated, truncated, gamma, gae_lambda, out)
        if result is not None:
            return cast("GAE[Array]", _new(GAE, result))
    scalars = (_arrays.unit_interval("gamma", gamma), _arrays.unit_interval("gae_lambda", gae_lambda))
    arguments = _new(
        Arguments, (rewards, values, next_values, terminated, truncated, mask, cu_seqlens, batch_first, None)
    )
    return cast("GAE[Array]", _new(GAE, estimate("gae", arguments, scalars, out)))


def discounted_returns(
    rewards: Array,
    next_values: Any,
    terminated: Any = None,
    truncated: Any = None,
    mask: Any = None,
    *,
    gamma: float,
    batch_first: bool = False,
    cu_seqlens: Any = None,
    out: Any = None,
) -> Array:
    """Discounted sum of the rewards to come, with the future's value where an episode is cut.

        G_t = r_t + gamma G_{t+1}

    without the future where t is terminated; the future is `next_values` where t is truncated or the last row. Inside
    an episode `next_values` is not read.

    Args:
        rewards: `(T, N)` or `(T,)`; what transition t paid. Its dtype is the result's, as `values`' is in `gae`.
        next_values: V(s_{t+1}), full or short. A Monte Carlo return without a critic has nothing to bootstrap from:
            pass 0.0 and `terminated=terminated | truncated`.
        terminated: Same shape as `rewards`: transition t ended the episode.
        truncated: Same shape: a time limit cut the episode after transition t. Needs full `next_values`.
        mask: Same shape: False where the row is not in time.
        gamma: Discount per time step, in [0, 1].
        batch_first: Arrays are `(N, T)`.
        cu_seqlens: Boundaries of packed `(total,)` arrays, as in `gae`.
        out: Array to write into, as in `gae`.

    Returns:
        The returns, of the shape and dtype of `rewards`.

    Raises:
        ValueError: A shape, a range or `out` is wrong; the message names the argument.
        TypeError: Arrays and tensors, or two devices, are mixed, or a dtype is wrong.

    Source:
        Sutton and Barto 2018, *Reinforcement Learning: An Introduction*, equation 3.8.

    Example:
        >>> import numpy as np
        >>> from fastac import discounted_returns
        >>> discounted_returns(np.array([1.0, 1.0, 1.0]), 0.0, gamma=0.5)
        array([1.75, 1.5 , 1.  ])
    """
    if mask is None and truncated is None and cu_seqlens is None and not batch_first:
        result = _plain.discounted_returns(rewards, next_values, terminated, gamma, out)
        if result is not None:
            return cast("Array", result)
    scalars = (_arrays.unit_interval("gamma", gamma),)
    arguments = _new(
        Arguments, (rewards, None, next_values, terminated, truncated, mask, cu_seqlens, batch_first, None)
    )
    return cast("Array", estimate("discounted_returns", arguments, scalars, out)[0])


def lambda_returns(
    rewards: Array,
    values: Any,
    next_values: Any,
    terminated: Any = None,
    truncated: Any = None,
    mask: Any = None,
    *,
    gamma: float,
    td_lambda: float,
    batch_first: bool = False,
    cu_seqlens: Any = None,
    out: Any = None,
) -> Array:
    """The lambda return: an exponentially weighted average of all n-step returns.

        G_t = r_t + gamma ((1 - lambda) V(s_{t+1}) + lambda G_{t+1})

    without the future where t is terminated; the future is V(s_{t+1}) alone where t is truncated or the last row. In
    the short form equal to `gae(...).returns` with `gae_lambda = td_lambda`.

    Args:
        rewards: `(T, N)` or `(T,)`; what transition t paid.
        values: Same shape; V(s_t), which the short form of `next_values` reads. May be None with the full form, where
            it decides the dtype only; then `rewards` does.
        next_values: V(s_{t+1}), full or short.
        terminated: Same shape: transition t ended the episode.
        truncated: Same shape: a time limit cut the episode after transition t. Needs full `next_values`.
        mask: Same shape: False where the row is not in time.
        gamma: Discount per time step, in [0, 1].
        td_lambda: Lambda, in [0, 1]: 0 gives the one-step target, 1 the discounted return.
        batch_first: Arrays are `(N, T)`.
        cu_seqlens: Boundaries of packed `(total,)` arrays, as in `gae`.
        out: Array to write into, as in `gae`.

    Returns:
        The returns, of the shape and dtype of `values` (`rewards` where that is None).

    Raises:
        ValueError: A shape, a range or `out` is wrong; the message names the argument.
        TypeError: Arrays and tensors, or two devices, are mixed, or a dtype is wrong.

    Source:
        Sutton and Barto 2018, equations 12.2 and 12.18, in recursive form.

    Example:
        >>> import numpy as np
        >>> from fastac import lambda_returns
        >>> rewards, next_values = np.array([1.0, 1.0]), np.array([4.0, 8.0])
        >>> lambda_returns(rewards, None, next_values, gamma=0.5, td_lambda=0.5)
        array([3.25, 5.  ])
    """
    scalars = (_arrays.unit_interval("gamma", gamma), _arrays.unit_interval("td_lambda", td_lambda))
    arguments = _new(
        Arguments, (rewards, values, next_values, terminated, truncated, mask, cu_seqlens, batch_first, None)
    )
    return cast("Array", estimate("lambda_returns", arguments, scalars, out)[0])


def n_step_returns(
    rewards: Array,
    values: Any,
    next_values: Any,
    terminated: Any = None,
    truncated: Any = None,
    mask: Any = None,
    *,
    n: int,
    gamma: float,
    batch_first: bool = False,
    cu_seqlens: Any = None,
    out: Any = None,
) -> Array:
    """N rewards, then the value; fewer where the episode or the window ends earlier.

        G_t = sum_{k < m} gamma^k r_{t+k} + gamma^m V(s_{t+m}),   m = min(n, rows to the episode's or window's last row)

    without the value where row t+m-1 is terminated; V(s_{t+m}) is that row's next value.

    Args:
        rewards: `(T, N)` or `(T,)`; what transition t paid.
        values: Same shape; V(s_t), which the short form of `next_values` reads. May be None with the full form, where
            it decides the dtype only; then `rewards` does.
        next_values: V(s_{t+1}), full or short.
        terminated: Same shape: transition t ended the episode.
        truncated: Same shape: a time limit cut the episode after transition t. Needs full `next_values`.
        mask: Same shape: False where the row is not in time; n and gamma count the other rows.
        n: Number of rewards, at least 1.
        gamma: Discount per time step, in [0, 1].
        batch_first: Arrays are `(N, T)`.
        cu_seqlens: Boundaries of packed `(total,)` arrays, as in `gae`.
        out: Array to write into, as in `gae`.

    Returns:
        The returns, of the shape and dtype of `values` (`rewards` where that is None).

    Raises:
        ValueError: A shape, a range or `out` is wrong; the message names the argument.
        TypeError: Arrays and tensors, or two devices, are mixed, or a dtype is wrong.

    Source:
        Sutton and Barto 2018, equation 7.1.

    Example:
        >>> import numpy as np
        >>> from fastac import n_step_returns
        >>> rewards, values = np.array([1.0, 2.0, 4.0]), np.array([0.0, 10.0, 20.0])
        >>> n_step_returns(rewards, values, 30.0, n=2, gamma=0.5)
        array([ 7. , 11.5, 19. ])
    """
    scalars = (min(_arrays.positive_integer("n", n), LARGEST_N), _arrays.unit_interval("gamma", gamma))
    arguments = _new(
        Arguments, (rewards, values, next_values, terminated, truncated, mask, cu_seqlens, batch_first, None)
    )
    return cast("Array", estimate("n_step_returns", arguments, scalars, out)[0])


def estimate(name: str, arguments: Arguments, scalars: tuple[Any, ...], out: Any) -> tuple[Any, ...]:
    """Numpy arrays to the kernel, tensors to the op, by the shortest way that is right for them."""
    kind, torch = type(arguments[0]), sys.modules.get("torch")
    if kind is np.ndarray:
        arrays = _plain.estimate(ESTIMATORS[name], arguments, scalars, out)
        if arrays is not None:
            return arrays
    elif torch is not None and kind is torch.Tensor:
        from fastac import _torch_ops

        outputs = _torch_ops.plain(name, arguments, scalars, out)
        if outputs is not None:
            return outputs
    if _arrays.on_tensors(ESTIMATORS[name], arguments, out):
        from fastac import _torch_ops

        return _torch_ops.call(name, arguments, scalars, out)
    return _arrays.call_numpy(ESTIMATORS[name], arguments, scalars, out)
