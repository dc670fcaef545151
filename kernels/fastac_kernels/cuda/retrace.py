"""Retrace(lambda) targets for CUDA (Munos et al. 2016, equation 3); see `fastac_kernels.retrace`.

The state that a row hands to the one before it is E[t] = min(1, rho[t]) * (G[t] - Q[t]).
"""

import math
from functools import lru_cache
from typing import Any

from numba import cuda

from fastac_kernels.cuda.scan import REMEMBERED, Plan, Recurrence, planned, run
from fastac_kernels.operands import RATIOS


def recurrence(real: Any, full: bool) -> Recurrence:
    """Scalars: gamma, gamma * lambda. Next values are always full."""
    zero, one = real(0), real(1)

    @cuda.jit(device=True)  # type: ignore[untyped-decorator]
    def start(last_value: Any, s: Any) -> Any:
        return zero

    @cuda.jit(device=True)  # type: ignore[untyped-decorator]
    def row(log_ratio: Any, reward: Any, q_value: Any, next_value: Any, terminated: Any, truncated: Any, s: Any) -> Any:
        gamma, decay = s[0], s[1]
        rho = real(math.exp(log_ratio))
        weight = one if rho > one else rho
        target = reward
        if not terminated:
            target += gamma * next_value
        alone = weight * (target - q_value)
        return alone, weight * decay, alone, terminated or truncated

    @cuda.jit(device=True)  # type: ignore[untyped-decorator]
    def outputs(
        log_ratio: Any, reward: Any, q_value: Any, next_value: Any, terminated: Any, truncated: Any, s: Any,
        x: Any, later_value: Any, behind: Any,
    ) -> Any:  # fmt: skip
        gamma, decay = s[0], s[1]
        rho = real(math.exp(log_ratio))
        target = reward
        if not terminated:
            target += gamma * next_value
            if behind and not truncated:
                target += decay * x
        return (one if rho > one else rho) * (target - q_value), target, zero

    return Recurrence(start, row, outputs)


@lru_cache(maxsize=REMEMBERED)
def plan(
    real: Any, present: int, total: int, sequences: int, lanes: int, gamma: float, trace_lambda: float
) -> Plan:  # fmt: skip
    """How a call is launched; see `fastac_kernels.cuda.scan.Plan`."""
    scalars = (gamma, gamma * trace_lambda)
    return planned("retrace", recurrence, real, present | RATIOS, total, sequences, lanes, scalars)


def retrace_at(
    log_ratios: int, rewards: int, q_values: int, next_values: int, last_values: int, terminated: int, truncated: int,
    mask: int, cu_seqlens: int, out: int, total: int, sequences: int, lanes: int, gamma: float, trace_lambda: float,
    like: Any, carries: int, stream: int, device: int,
) -> None:  # fmt: skip
    """Retrace over contiguous memory on the device; arguments as in `fastac_kernels.retrace.retrace_at`, then those."""
    run(
        plan, log_ratios, rewards, q_values, next_values, last_values, terminated, truncated, mask,
        cu_seqlens, out, 0, total, sequences, lanes, (gamma, trace_lambda), like, carries, stream, device,
    )  # fmt: skip
