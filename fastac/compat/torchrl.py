"""TorchRL's value estimators and its prioritized sampler, on our kernels.

`torchrl.objectives.value.advantages` (`GAE`, `TD1Estimator`, `TDLambdaEstimator`, `VTrace`, and the losses made with
them) takes its functions by name; while a block runs, these are ours:

    +from fastac.compat.torchrl import returns
    -    advantage_module(tensordict)
    +    with returns():
    +        advantage_module(tensordict)

Each has the name, arguments and results of TorchRL's, so that it can be called by itself, too. What ours do not
compute - gradients (`differentiable=True`), a gamma or lambda for each row, what `torch.compile` traces, arguments that
TorchRL refuses - is handed to TorchRL's own. Where an episode ends, what must not be read is left out, never multiplied
by 0.
"""
# What TorchRL gives and takes is untyped here.
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torchrl.objectives.value import advantages, functional

import fastac
from fastac.compat._torchrl_sampler import PrioritizedSampler
from fastac.compat._versions import check_version

__all__ = [
    "PrioritizedSampler",
    "generalized_advantage_estimate",
    "returns",
    "td1_return_estimate",
    "td_lambda_return_estimate",
    "vtrace_advantage_estimate",
]

check_version("torchrl", tested=("0.14", "0.14"))
THEIRS: dict[str, Callable[..., Any]] = {
    name: getattr(functional, name)
    for name in (
        "vec_generalized_advantage_estimate",
        "vec_td1_return_estimate",
        "vec_td_lambda_return_estimate",
        "vtrace_advantage_estimate",
    )
}


@contextmanager
def returns() -> Iterator[None]:
    """Puts our functions into `torchrl.objectives.value.advantages`, and takes them out again.

    What is replaced are a module's globals: all threads of the process see it. Blocks may be nested.
    """
    ours = {
        "generalized_advantage_estimate": generalized_advantage_estimate,
        "vec_generalized_advantage_estimate": generalized_advantage_estimate,
        "vec_td1_return_estimate": td1_return_estimate,
        "td_lambda_return_estimate": td_lambda_return_estimate,
        "vec_td_lambda_return_estimate": td_lambda_return_estimate,
        "vtrace_advantage_estimate": vtrace_advantage_estimate,
    }
    theirs = {name: getattr(advantages, name) for name in ours}
    try:
        for name, function in ours.items():
            setattr(advantages, name, function)
        yield
    finally:
        for name, function in theirs.items():
            setattr(advantages, name, function)


def generalized_advantage_estimate(
    gamma: Any,
    lmbda: Any,
    state_value: Tensor,
    next_state_value: Tensor,
    reward: Tensor,
    done: Tensor,
    terminated: Tensor | None = None,
    *,
    time_dim: int = -2,
) -> tuple[Tensor, Tensor]:
    """`fastac.gae` with TorchRL's arguments; `vec_generalized_advantage_estimate` is the same function.

    Args:
        gamma: Discount per time step: a number, or a tensor with one element (on CUDA: read back from the device).
        lmbda: Lambda, likewise.
        state_value: `(*batch, T, F)`, V(s_t).
        next_state_value: Same shape, V(s_{t+1}) of the observation that transition t led to, before any reset.
        reward: Same shape.
        done: Same shape, bool: transition t ended the episode, or a time limit cut it.
        terminated: Same shape, bool: it ended. None: as `done`.
        time_dim: Which dimension is time.

    Returns:
        Advantages and value targets, of the shape and dtype of `state_value`.

    Source:
        Schulman et al. 2016 (arXiv:1506.02438), equations 11, 12 and 16.

    Example:
        >>> done = torch.tensor([[[False], [True], [False]]])
        >>> ones, next_values = torch.ones(1, 3, 1), torch.tensor([[[1.0], [5.0], [1.0]]])
        >>> result = generalized_advantage_estimate(0.5, 1.0, ones, next_values, ones, done, done & False)
        >>> result[0].flatten()  # row 1 was cut by a time limit: its future is 5
        tensor([1.7500, 2.5000, 0.5000])
    """
    rows = _rows(time_dim, (gamma, lmbda), state_value, next_state_value, reward, done, terminated)
    if rows is None:
        return THEIRS["vec_generalized_advantage_estimate"](
            gamma, lmbda, state_value, next_state_value, reward, done, terminated, time_dim=time_dim
        )
    (g, m), (values, next_values, rewards, ended, over), batch_first, back = rows
    result = fastac.gae(rewards, values, next_values, over, ended, gamma=g, gae_lambda=m, batch_first=batch_first)
    return back(result.advantages), back(result.returns)


def td1_return_estimate(
    gamma: Any,
    next_state_value: Tensor,
    reward: Tensor,
    done: Tensor,
    terminated: Tensor | None = None,
    rolling_gamma: bool | None = None,
    time_dim: int = -2,
) -> Tensor:
    """`fastac.discounted_returns` with TorchRL's arguments: those of `generalized_advantage_estimate`.

    Args:
        gamma: Discount per time step.
        next_state_value: `(*batch, T, F)`, V(s_{t+1}), read where an episode is cut and after the last row.
        reward: Same shape.
        done: Same shape, bool.
        terminated: Same shape, bool. None: as `done`.
        rolling_gamma: For a gamma for each row, with which the call is TorchRL's.
        time_dim: Which dimension is time.

    Returns:
        The returns, of the shape and dtype of `next_state_value`.
    """
    rows = _rows(time_dim, (gamma,), next_state_value, reward, done, terminated) if rolling_gamma is not False else None
    if rows is None:
        return THEIRS["vec_td1_return_estimate"](
            gamma, next_state_value, reward, done, terminated, rolling_gamma, time_dim=time_dim
        )
    (g,), (next_values, rewards, ended, over), batch_first, back = rows
    return back(fastac.discounted_returns(rewards, next_values, over, ended, gamma=g, batch_first=batch_first))


def td_lambda_return_estimate(
    gamma: Any,
    lmbda: Any,
    next_state_value: Tensor,
    reward: Tensor,
    done: Tensor,
    terminated: Tensor | None = None,
    rolling_gamma: bool | None = None,
    *,
    time_dim: int = -2,
) -> Tensor:
    """`fastac.lambda_returns` with TorchRL's arguments: those of `generalized_advantage_estimate`.

    Args:
        gamma: Discount per time step.
        lmbda: Lambda.
        next_state_value: `(*batch, T, F)`, V(s_{t+1}).
        reward: Same shape.
        done: Same shape, bool.
        terminated: Same shape, bool. None: as `done`.
        rolling_gamma: For a gamma for each row, with which the call is TorchRL's.
        time_dim: Which dimension is time.

    Returns:
        The returns, of the shape and dtype of `next_state_value`.
    """
    rows = None
    if rolling_gamma is not False:
        rows = _rows(time_dim, (gamma, lmbda), next_state_value, reward, done, terminated)
    if rows is None:
        return THEIRS["vec_td_lambda_return_estimate"](
            gamma, lmbda, next_state_value, reward, done, terminated, rolling_gamma, time_dim=time_dim
        )
    (g, m), (next_values, rewards, ended, over), batch_first, back = rows
    return back(
        fastac.lambda_returns(rewards, None, next_values, over, ended, gamma=g, td_lambda=m, batch_first=batch_first)
    )


def vtrace_advantage_estimate(
    gamma: Any,
    log_pi: Tensor,
    log_mu: Tensor,
    state_value: Tensor,
    next_state_value: Tensor,
    reward: Tensor,
    done: Tensor,
    terminated: Tensor | None = None,
    rho_thresh: Any = 1.0,
    c_thresh: Any = 1.0,
    time_dim: int = -2,
) -> tuple[Tensor, Tensor]:
    """`fastac.vtrace` with TorchRL's arguments: lambda is 1, and one threshold clips both uses of rho.

    Args:
        gamma: Discount per time step.
        log_pi: `(*batch, T, F)`, log-probabilities under the policy that is evaluated.
        log_mu: Same shape, under the policy that acted.
        state_value: Same shape, V(s_t).
        next_state_value: Same shape, V(s_{t+1}).
        reward: Same shape.
        done: Same shape, bool.
        terminated: Same shape, bool. None: as `done`.
        rho_thresh: Largest ratio in the errors and advantages.
        c_thresh: Largest ratio in the trace.
        time_dim: Which dimension is time.

    Returns:
        Advantages and targets, of the shape and dtype of `state_value`.

    Source:
        Espeholt et al. 2018 (arXiv:1802.01561), equation 1.
    """
    scalars = (gamma, rho_thresh, c_thresh)
    rows = _rows(time_dim, scalars, state_value, next_state_value, reward, log_pi, log_mu, done, terminated)
    if rows is None:
        return THEIRS["vtrace_advantage_estimate"](
            gamma, log_pi, log_mu, state_value, next_state_value, reward, done, terminated, rho_thresh, c_thresh,
            time_dim=time_dim,
        )  # fmt: skip
    (g, rho, c), (values, next_values, rewards, new, old, ended, over), batch_first, back = rows
    result = fastac.vtrace(
        new - old, rewards, values, next_values, over, ended, gamma=g, rho_clip=rho, c_clip=c, pg_rho_clip=rho,
        batch_first=batch_first,
    )  # fmt: skip
    return back(result.advantages), back(result.targets)


def _rows(time_dim: int, scalars: tuple[Any, ...], *tensors: Any) -> Any:
    """Numbers, tensors with time first or last in two dimensions, which of the two, and the way back; None: not ours.

    The last two tensors are `done` and `terminated`.
    """
    if tensors[-1] is None:
        tensors = (*tensors[:-1], tensors[-2])
    first = tensors[0]
    count = first.ndim
    if torch.compiler.is_compiling() or count < 2 or not -count <= time_dim < count or not first.numel():
        return None
    if any(x.shape != first.shape for x in tensors) or tensors[1].dtype != first.dtype:
        return None
    if torch.is_grad_enabled() and any(x.requires_grad for x in (*tensors, *scalars) if isinstance(x, Tensor)):
        return None
    if any(isinstance(x, Tensor) and x.numel() != 1 for x in scalars):
        return None
    numbers = tuple(float(x) for x in scalars)
    time = time_dim % count
    if time == 0:
        return numbers, [x.reshape(len(x), -1) for x in tensors], False, lambda x: x.reshape(first.shape)
    moved = first.movedim(time, -1).shape

    def back(x: Tensor) -> Tensor:
        return x.reshape(moved).movedim(-1, time)

    return numbers, [x.movedim(time, -1).reshape(-1, moved[-1]) for x in tensors], True, back
