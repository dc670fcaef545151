"""Generalized advantage estimation for CUDA (Schulman et al. 2016, equations 11, 12 and 16); see `fastac_kernels.gae`.

The state that a row hands to the one before it is its advantage, A[t] = delta[t] + gamma * lambda * A[t+1]. Where next
values are short, and nothing is truncated, it is all that the row before needs, gamma * V[t] + gamma * lambda * A[t].
"""

from functools import lru_cache
from typing import Any

from numba import cuda

from fastac_kernels.cuda.scan import REMEMBERED, Plan, Recurrence, planned, run
from fastac_kernels.operands import SECOND


def recurrence(real: Any, full: bool) -> Recurrence:
    """Scalars: gamma, gamma * lambda."""
    zero = real(0)

    @cuda.jit(device=True)  # type: ignore[untyped-decorator]
    def start(last_value: Any, s: Any) -> Any:
        return s[0] * last_value

    @cuda.jit(device=True)  # type: ignore[untyped-decorator]
    def row(log_ratio: Any, reward: Any, value: Any, next_value: Any, terminated: Any, truncated: Any, s: Any) -> Any:
        gamma, decay = s[0], s[1]
        delta = reward - value
        if full:
            if not terminated:
                delta += gamma * next_value
            return delta, decay, delta, terminated or truncated
        return gamma * value + decay * delta, decay, zero, terminated

    @cuda.jit(device=True)  # type: ignore[untyped-decorator]
    def outputs(
        log_ratio: Any, reward: Any, value: Any, next_value: Any, terminated: Any, truncated: Any, s: Any,
        x: Any, later_value: Any, behind: Any,
    ) -> Any:  # fmt: skip
        gamma, decay = s[0], s[1]
        advantage = reward - value
        if full:
            if not terminated:
                advantage += gamma * next_value
                if behind and not truncated:
                    advantage += decay * x
            return advantage, advantage, advantage + value
        if not terminated:
            advantage += x
        return gamma * value + decay * advantage, advantage, advantage + value

    return Recurrence(start, row, outputs)


@lru_cache(maxsize=REMEMBERED)
def plan(
    real: Any, present: int, total: int, sequences: int, lanes: int, gamma: float, gae_lambda: float
) -> Plan:  # fmt: skip
    """How a call is launched; see `fastac_kernels.cuda.scan.Plan`."""
    scalars = (gamma, gamma * gae_lambda)
    return planned("gae", recurrence, real, present | SECOND, total, sequences, lanes, scalars)


def gae_at(
    rewards: int, values: int, next_values: int, last_values: int, terminated: int, truncated: int, mask: int,
    cu_seqlens: int, advantages: int, returns: int, total: int, sequences: int, lanes: int,
    gamma: float, gae_lambda: float, like: Any, carries: int, stream: int, device: int,
) -> None:  # fmt: skip
    """GAE over contiguous memory on the device; arguments as in `fastac_kernels.gae.gae_at`, then the launch's."""
    run(
        plan, 0, rewards, values, next_values, last_values, terminated, truncated, mask, cu_seqlens,
        advantages, returns, total, sequences, lanes, (gamma, gae_lambda), like, carries, stream, device,
    )  # fmt: skip
