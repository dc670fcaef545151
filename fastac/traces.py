"""Off-policy targets with truncated importance weights: V-trace and Retrace, by the convention of `fastac.returns`.

`log_ratios[t]` is log pi(a_t | s_t) - log mu(a_t | s_t): of the policy that is evaluated over the one that acted.
"""

from __future__ import annotations

from numbers import Real
from typing import Any, Generic, NamedTuple, TypeVar, cast

from fastac import _arrays
from fastac._arrays import Arguments
from fastac.returns import _new, estimate

Array = TypeVar("Array")


class VTrace(NamedTuple, Generic[Array]):
    """Result of `vtrace`: `targets` of V and the policy gradient's `advantages`, of the shape and dtype of `values`."""

    targets: Array
    advantages: Array


def _clip(name: str, value: Any) -> float:
    """`value` as a float of at least 0, infinity allowed: it clips nothing."""
    if type(value) is float and value >= 0.0:
        return value
    if isinstance(value, bool) or not isinstance(value, Real):
        _arrays.fail(name, "a number of at least 0", type(value).__name__, TypeError)
    number = float(value)
    if not number >= 0.0:
        _arrays.fail(name, "a number of at least 0", repr(value))
    return number


def vtrace(
    log_ratios: Any,
    rewards: Any,
    values: Array,
    next_values: Any,
    terminated: Any = None,
    truncated: Any = None,
    mask: Any = None,
    *,
    gamma: float,
    trace_lambda: float = 1.0,
    rho_clip: float = 1.0,
    c_clip: float = 1.0,
    pg_rho_clip: float = 1.0,
    batch_first: bool = False,
    cu_seqlens: Any = None,
    out: Any = None,
) -> VTrace[Array]:
    """V-trace targets of the value function, and the advantages of the policy gradient.

        rho_t        = exp(log_ratio_t)
        D_t          = min(rho_clip, rho_t) (r_t + gamma V(s_{t+1}) - V(s_t)) + gamma lambda min(c_clip, rho_t) D_{t+1}
        targets_t    = V(s_t) + D_t
        advantages_t = min(pg_rho_clip, rho_t) (r_t + gamma q_t - V(s_t))
        q_t          = lambda targets_{t+1} + (1 - lambda) V(s_{t+1})

    without both futures where t is terminated; without D_{t+1}, and with q_t = V(s_{t+1}), where t is truncated or the
    last row. With pi = mu and lambda = 1, targets are the discounted returns with the future's value.

    Args:
        log_ratios: `(T, N)` or `(T,)`; log pi(a_t | s_t) - log mu(a_t | s_t), mu being the policy that acted.
        rewards: Same shape; what transition t paid.
        values: Same shape; V(s_t). Its dtype is the result's, as in `gae`.
        next_values: V(s_{t+1}): full (same shape) or short (`(N,)` or a scalar, the value after the last row).
        terminated: Same shape, not 0 meaning True: transition t ended the episode. None: none did.
        truncated: Same shape: a time limit cut the episode after transition t. Needs full `next_values`.
        mask: Same shape: False where the row is not in time.
        gamma: Discount per time step, in [0, 1].
        trace_lambda: Lambda, in [0, 1]: what each trace coefficient is multiplied by; 0 gives one-step targets.
        rho_clip: Upper bound of the weight of each temporal difference; it decides whose value is learned. The theory
            asks for `rho_clip >= c_clip`.
        c_clip: Upper bound of the trace coefficients; it decides how fast.
        pg_rho_clip: Upper bound of the weight of the advantage. Infinity clips nothing.
        batch_first: Arrays are `(N, T)`.
        cu_seqlens: Boundaries of packed `(total,)` arrays, as in `gae`.
        out: `(targets, advantages)` to write into, as in `gae`.

    Returns:
        `VTrace(targets, advantages)`.

    Raises:
        ValueError: A shape, a range or `out` is wrong; the message names the argument.
        TypeError: Arrays and tensors, or two devices, are mixed, or a dtype is wrong.

    Source:
        Espeholt et al. 2018, *IMPALA: Scalable Distributed Deep-RL with Importance Weighted Actor-Learner
        Architectures* (arXiv:1802.01561), equation 1 in the recursive form of remark 1, lambda by remark 2, and the
        policy gradient of section 4.2.

    Example:
        >>> import numpy as np
        >>> from fastac import vtrace
        >>> log_ratios = np.log(np.array([2.0, 0.5]))
        >>> targets, advantages = vtrace(log_ratios, np.array([1.0, 1.0]), np.array([0.0, 4.0]), 8.0, gamma=0.5)
        >>> targets
        array([3.25, 4.5 ])
        >>> advantages
        array([3.25, 0.5 ])
    """
    scalars = (
        _arrays.unit_interval("gamma", gamma), _arrays.unit_interval("trace_lambda", trace_lambda),
        _clip("rho_clip", rho_clip), _clip("c_clip", c_clip), _clip("pg_rho_clip", pg_rho_clip),
    )  # fmt: skip
    arguments = _new(
        Arguments,
        (rewards, values, next_values, terminated, truncated, mask, cu_seqlens, batch_first, log_ratios),
    )
    return cast("VTrace[Array]", _new(VTrace, estimate("vtrace", arguments, scalars, out)))


def retrace(
    log_ratios: Any,
    rewards: Any,
    q_values: Array,
    next_values: Any,
    terminated: Any = None,
    truncated: Any = None,
    mask: Any = None,
    *,
    gamma: float,
    trace_lambda: float,
    batch_first: bool = False,
    cu_seqlens: Any = None,
    out: Any = None,
) -> Array:
    """Retrace(lambda) targets of the action-value function.

        G_t = r_t + gamma (V(s_{t+1}) + lambda min(1, rho_{t+1}) (G_{t+1} - Q(s_{t+1}, a_{t+1})))
        rho_t = exp(log_ratio_t),   V(s) = sum over a of pi(a | s) Q(s, a)

    without the future where t is terminated; the future is V(s_{t+1}) alone where t is truncated or the last row.

    Args:
        log_ratios: `(T, N)` or `(T,)`; log pi(a_t | s_t) - log mu(a_t | s_t), mu being the policy that acted.
        rewards: Same shape; what transition t paid.
        q_values: Same shape; Q(s_t, a_t). Its dtype is the result's, as that of `values` in `gae`.
        next_values: Same shape; V(s_{t+1}), the expectation of Q(s_{t+1}, a) over a ~ pi.
        terminated: Same shape, not 0 meaning True: transition t ended the episode. None: none did.
        truncated: Same shape: a time limit cut the episode after transition t.
        mask: Same shape: False where the row is not in time; t + 1 is then the next row that is.
        gamma: Discount per time step, in [0, 1].
        trace_lambda: Lambda, in [0, 1]: 0 gives the one-step target.
        batch_first: Arrays are `(N, T)`.
        cu_seqlens: Boundaries of packed `(total,)` arrays, as in `gae`.
        out: Array to write into, as in `gae`.

    Returns:
        The targets, of the shape and dtype of `q_values`.

    Raises:
        ValueError: A shape, a range or `out` is wrong; the message names the argument.
        TypeError: Arrays and tensors, or two devices, are mixed, or a dtype is wrong.

    Source:
        Munos et al. 2016, *Safe and Efficient Off-Policy Reinforcement Learning* (arXiv:1606.02647), equation 3 with
        c_s = lambda min(1, rho_s), in recursive form.

    Example:
        >>> import numpy as np
        >>> from fastac import retrace
        >>> log_ratios, rewards = np.log(np.array([1.0, 0.5])), np.array([1.0, 1.0])
        >>> q_values, next_values = np.array([2.0, 3.0]), np.array([4.0, 8.0])
        >>> retrace(log_ratios, rewards, q_values, next_values, gamma=0.5, trace_lambda=1.0)
        array([3.5, 5. ])
    """
    scalars = (_arrays.unit_interval("gamma", gamma), _arrays.unit_interval("trace_lambda", trace_lambda))
    arguments = _new(
        Arguments,
        (rewards, q_values, next_values, terminated, truncated, mask, cu_seqlens, batch_first, log_ratios),
    )
    return cast("Array", estimate("retrace", arguments, scalars, out)[0])
