"""Discounted and lambda returns for CUDA (Sutton and Barto 2018, 3.8 and 12.2); see `fastac_kernels.returns`.

The state that a row hands to the one before it is its return G[t] where next values are given for every row; else all
that the row before needs: gamma * ((1 - lambda) * V[t] + lambda * G[t]).
"""

from functools import lru_cache
from typing import Any

from numba import cuda

from fastac_kernels.cuda.scan import REMEMBERED, Plan, Recurrence, planned, run
from fastac_kernels.operands import VALUES


def lambda_recurrence(real: Any, full: bool) -> Recurrence:
    """Scalars: gamma, gamma * (1 - lambda), gamma * lambda."""
    zero = real(0)

    @cuda.jit(device=True)  # type: ignore[untyped-decorator]
    def start(last_value: Any, s: Any) -> Any:
        return s[0] * last_value

    @cuda.jit(device=True)  # type: ignore[untyped-decorator]
    def row(log_ratio: Any, reward: Any, value: Any, next_value: Any, terminated: Any, truncated: Any, s: Any) -> Any:
        gamma, bootstrap, decay = s[0], s[1], s[2]
        if full:
            alone = reward
            if not terminated:
                alone += gamma * next_value
            if terminated or truncated:
                return alone, decay, alone, True
            return reward + bootstrap * next_value, decay, alone, False
        return bootstrap * value + decay * reward, decay, zero, terminated

    @cuda.jit(device=True)  # type: ignore[untyped-decorator]
    def outputs(
        log_ratio: Any, reward: Any, value: Any, next_value: Any, terminated: Any, truncated: Any, s: Any,
        x: Any, later_value: Any, behind: Any,
    ) -> Any:  # fmt: skip
        gamma, bootstrap, decay = s[0], s[1], s[2]
        result = reward
        if full:
            if not terminated:
                if behind and not truncated:
                    result += bootstrap * next_value + decay * x
                else:
                    result += gamma * next_value
            return result, result, zero
        if not terminated:
            result += x
        return bootstrap * value + decay * result, result, zero

    return Recurrence(start, row, outputs)


def discounted_recurrence(real: Any, full: bool) -> Recurrence:
    """Scalars: gamma. Next values inside an episode are not used, values never."""
    zero = real(0)

    @cuda.jit(device=True)  # type: ignore[untyped-decorator]
    def start(last_value: Any, s: Any) -> Any:
        return s[0] * last_value

    @cuda.jit(device=True)  # type: ignore[untyped-decorator]
    def row(log_ratio: Any, reward: Any, value: Any, next_value: Any, terminated: Any, truncated: Any, s: Any) -> Any:
        gamma = s[0]
        if full:
            alone = reward
            if not terminated:
                alone += gamma * next_value
            if terminated or truncated:
                return alone, gamma, alone, True
            return reward, gamma, alone, False
        return gamma * reward, gamma, zero, terminated

    @cuda.jit(device=True)  # type: ignore[untyped-decorator]
    def outputs(
        log_ratio: Any, reward: Any, value: Any, next_value: Any, terminated: Any, truncated: Any, s: Any,
        x: Any, later_value: Any, behind: Any,
    ) -> Any:  # fmt: skip
        gamma = s[0]
        result = reward
        if full:
            if not terminated:
                result += gamma * (x if behind and not truncated else next_value)
            return result, result, zero
        if not terminated:
            result += x
        return gamma * result, result, zero

    return Recurrence(start, row, outputs)


@lru_cache(maxsize=REMEMBERED)
def plan(
    real: Any, present: int, total: int, sequences: int, lanes: int, gamma: float, td_lambda: float, monte_carlo: bool
) -> Plan:
    """How a call is launched; see `fastac_kernels.cuda.scan.Plan`."""
    sizes = (total, sequences, lanes)
    if monte_carlo:
        return planned("discounted_returns", discounted_recurrence, real, present & ~VALUES, *sizes, (gamma,))
    scalars = (gamma, gamma * (1.0 - td_lambda), gamma * td_lambda)
    return planned("lambda_returns", lambda_recurrence, real, present, *sizes, scalars)


def lambda_returns_at(
    rewards: int, values: int, next_values: int, last_values: int, terminated: int, truncated: int, mask: int,
    cu_seqlens: int, out: int, total: int, sequences: int, lanes: int, gamma: float, td_lambda: float,
    monte_carlo: bool, like: Any, carries: int, stream: int, device: int,
) -> None:  # fmt: skip
    """Lambda returns over contiguous memory on the device; `monte_carlo`: discounted returns, `td_lambda` is 1."""
    run(
        plan, 0, rewards, values, next_values, last_values, terminated, truncated, mask, cu_seqlens, out, 0, total,
        sequences, lanes, (gamma, td_lambda, monte_carlo), like, carries, stream, device,
    )  # fmt: skip
