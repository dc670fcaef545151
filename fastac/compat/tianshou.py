"""tianshou's returns, computed by ours while a block runs.

    +from fastac.compat.tianshou import returns
    -    result = algorithm.run_training(params)
    +    with returns():
    +        result = algorithm.run_training(params)

Every algorithm of tianshou gets its advantages from `Algorithm.compute_episodic_return` and its n-step targets from
`Algorithm.compute_nstep_return`. Ours give the same numbers from the same arguments, with two differences: what a
terminated row must not read is not read, where tianshou's multiplies it by 0 (so that a NaN there spreads); and n-step
targets take no copy of all the buffer's flags.

`PrioritizedReplayBuffer` and `PrioritizedVectorReplayBuffer` are tianshou's with seeded draws from our sum tree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

import fastac
from fastac.compat._tianshou_buffers import PrioritizedReplayBuffer, PrioritizedVectorReplayBuffer
from fastac.compat._versions import check_version

__all__ = [
    "PrioritizedReplayBuffer",
    "PrioritizedVectorReplayBuffer",
    "compute_episodic_return",
    "compute_nstep_return",
    "returns",
]

check_version("tianshou", tested=("2.0", "2.0"))
Floats = NDArray[np.float64]


@contextmanager
def returns() -> Iterator[None]:
    """Puts `compute_episodic_return` and `compute_nstep_return` into tianshou's `Algorithm`, and takes them out again.

    Subclasses that define these methods themselves keep their own. Blocks may be nested; the outermost puts tianshou's
    own back. What is replaced is an attribute of the class: all threads of the process see it.

    Raises:
        AttributeError: tianshou has no such methods (before version 2).
    """
    from tianshou.algorithm import Algorithm

    ours = {function.__name__: staticmethod(function) for function in (compute_episodic_return, compute_nstep_return)}
    missing = [name for name in ours if name not in vars(Algorithm)]
    if missing:
        raise AttributeError(f"tianshou.algorithm.Algorithm has no {', '.join(missing)}: expected tianshou 2.0")
    theirs = {name: vars(Algorithm)[name] for name in ours}
    try:
        for name, function in ours.items():
            setattr(Algorithm, name, function)
        yield
    finally:
        for name, function in theirs.items():
            setattr(Algorithm, name, function)


def compute_episodic_return(
    batch: Any,
    buffer: Any,
    indices: NDArray[np.int64],
    v_s_: Any = None,
    v_s: Any = None,
    gamma: float = 0.99,
    gae_lambda: float = 0.95,
) -> tuple[Floats, Floats]:
    """Generalized advantages (`fastac.gae`) of tianshou's rows, one environment's after the other's.

    Args:
        batch: `rew`, `terminated` and `truncated` of the rows.
        buffer: `terminated`, and `unfinished_index()`, after which nothing is stored: each is a window's end.
        indices: `(B,)`, the rows' places in the buffer.
        v_s_: `(B,)` array or tensor, V(s_{t+1}). None: 0, with lambda 1 alone.
        v_s: `(B,)`, V(s_t). None: `v_s_` of the row before, as tianshou has it.
        gamma: Discount per time step, in [0, 1].
        gae_lambda: Lambda, in [0, 1].

    Returns:
        Returns and advantages, `(B,)` float64 each.

    Raises:
        ValueError: `v_s_` is None and lambda is not 1, or a shape or a range is wrong.

    Source:
        Schulman et al. 2016 (arXiv:1506.02438), equations 11, 12 and 16.
    """
    rewards = np.ascontiguousarray(batch.rew, np.float64)
    terminated = np.ascontiguousarray(buffer.terminated[indices], np.bool_)
    unfinished = np.zeros(len(buffer.terminated), np.bool_)
    unfinished[buffer.unfinished_index()] = True
    ended = np.logical_or(batch.terminated, batch.truncated) | unfinished[indices]
    if v_s_ is None:
        if not np.isclose(gae_lambda, 1.0):
            raise ValueError(f"v_s_: got None with gae_lambda = {gae_lambda}, expected values, or gae_lambda = 1")
        next_values = np.zeros_like(rewards)
    else:
        next_values = _flat(v_s_)
    values = np.roll(np.where(terminated, 0.0, next_values), 1) if v_s is None else _flat(v_s)
    result = fastac.gae(
        rewards, values, next_values, terminated, ended, gamma=float(gamma), gae_lambda=float(gae_lambda)
    )
    return result.returns, result.advantages


def compute_nstep_return(
    batch: Any,
    buffer: Any,
    indices: NDArray[np.int64],
    target_q_fn: Callable[[Any, NDArray[np.int64]], Any],
    gamma: float = 0.99,
    n_step: int = 1,
) -> Any:
    """N-step targets: `n_step` rewards, fewer where the episode or what is stored ends, then the target's value.

        G_t = sum_{k < m} gamma^k r_{t+k} + gamma^m Q_{t+m-1}    without Q where row t + m - 1 is terminated

    Args:
        batch: The rows; gets `returns`, and its `weight`, if any, becomes a tensor.
        buffer: `rew`, `terminated`, and `next(indices)`, which is the row itself where its episode, or what is stored,
            ends.
        indices: `(B,)`, the rows' places in the buffer.
        target_q_fn: Gives `(B, ...)` values of the observations that the rows at the given places led to.
        gamma: Discount per time step, in [0, 1].
        n_step: n, at least 1.

    Returns:
        `batch`; `batch.returns` is `(B, A)`, like the target's values: A is their number for each row.

    Raises:
        ValueError: `batch` and `indices` differ in length, or a range is wrong.

    Source:
        Sutton and Barto 2018, equation 7.1.
    """
    import torch

    if len(indices) != len(batch):
        raise ValueError(f"indices: got {len(indices)} for a batch of {len(batch)}, expected as many")
    rows = np.empty((n_step, len(indices)), np.int64)
    rows[:1] = indices
    for k in range(1, n_step):
        rows[k] = buffer.next(rows[k - 1])
    with torch.no_grad():
        target = target_q_fn(buffer, rows[-1])
    values = target.reshape(len(indices), -1).cpu().numpy()
    rewards = np.asarray(buffer.rew[rows], np.float64)
    terminated = np.asarray(buffer.terminated[rows], np.bool_)
    ended = np.zeros(rows.shape, np.bool_)
    np.equal(rows[1:], rows[:-1], out=ended[:-1])
    if (count := values.shape[1]) != 1:
        rewards, terminated, ended = rewards.repeat(count, 1), terminated.repeat(count, 1), ended.repeat(count, 1)
    next_values = np.empty(rewards.shape)
    next_values[:] = values.reshape(-1)
    # In a window of n rows the discounted return of the first row is the n-step return.
    found = fastac.discounted_returns(rewards, next_values, terminated, ended, gamma=float(gamma))[0]
    batch.returns = torch.as_tensor(found.reshape(values.shape), dtype=target.dtype, device=target.device)
    if hasattr(batch, "weight"):
        batch.weight = torch.as_tensor(batch.weight, dtype=target.dtype, device=target.device)
    return batch


def _flat(x: Any) -> Floats:
    return np.ascontiguousarray(x.detach().cpu().numpy() if hasattr(x, "detach") else x, np.float64).reshape(-1)
