"""V-trace for CUDA (Espeholt et al. 2018, equations 1 and 4, remarks 1 and 2); see `fastac_kernels.vtrace`.

The state that a row hands to the one before it is D[t] = targets[t] - V[t].
"""

import math
from functools import lru_cache
from typing import Any

from numba import cuda

from fastac_kernels.cuda.scan import REMEMBERED, Plan, Recurrence, planned, run
from fastac_kernels.operands import RATIOS, SECOND


def recurrence(real: Any, full: bool) -> Recurrence:
    """Scalars: gamma, gamma * (1 - lambda), gamma * lambda, and the clips of rho, c and the policy gradient's rho."""
    zero = real(0)

    @cuda.jit(device=True)  # type: ignore[untyped-decorator]
    def start(last_value: Any, s: Any) -> Any:
        return zero

    @cuda.jit(device=True)  # type: ignore[untyped-decorator]
    def row(log_ratio: Any, reward: Any, value: Any, next_value: Any, terminated: Any, truncated: Any, s: Any) -> Any:
        gamma, decay, rho_clip, c_clip = s[0], s[2], s[3], s[4]
        rho = real(math.exp(log_ratio))
        weight = rho_clip if rho > rho_clip else rho
        trace = decay * (c_clip if rho > c_clip else rho)
        delta = reward - value
        if full:
            if not terminated:
                delta += gamma * next_value
            alone = weight * delta
            return alone, trace, alone, terminated or truncated
        return weight * delta, trace, weight * gamma, terminated

    @cuda.jit(device=True)  # type: ignore[untyped-decorator]
    def outputs(
        log_ratio: Any, reward: Any, value: Any, next_value: Any, terminated: Any, truncated: Any, s: Any,
        x: Any, later_value: Any, behind: Any,
    ) -> Any:  # fmt: skip
        gamma, bootstrap, decay, rho_clip, c_clip, pg_rho_clip = s
        rho = real(math.exp(log_ratio))
        error = reward - value
        delta, improved, correction = error, error, zero
        if not terminated:
            following = next_value if full else later_value
            delta = error + gamma * following
            improved = delta
            if behind and not truncated:
                correction = (c_clip if rho > c_clip else rho) * (decay * x)
                improved = delta + decay * x
                if full:
                    improved = error + (bootstrap * following + decay * (later_value + x))
        difference = (rho_clip if rho > rho_clip else rho) * delta + correction
        return difference, value + difference, (pg_rho_clip if rho > pg_rho_clip else rho) * improved

    return Recurrence(start, row, outputs)


@lru_cache(maxsize=REMEMBERED)
def plan(
    real: Any, present: int, total: int, sequences: int, lanes: int, gamma: float, trace_lambda: float,
    rho_clip: float, c_clip: float, pg_rho_clip: float,
) -> Plan:  # fmt: skip
    """How a call is launched; see `fastac_kernels.cuda.scan.Plan`."""
    scalars = (gamma, gamma * (1.0 - trace_lambda), gamma * trace_lambda, rho_clip, c_clip, pg_rho_clip)
    return planned("vtrace", recurrence, real, present | RATIOS | SECOND, total, sequences, lanes, scalars)


def vtrace_at(
    log_ratios: int, rewards: int, values: int, next_values: int, last_values: int, terminated: int, truncated: int,
    mask: int, cu_seqlens: int, targets: int, advantages: int, total: int, sequences: int, lanes: int,
    gamma: float, trace_lambda: float, rho_clip: float, c_clip: float, pg_rho_clip: float, like: Any,
    carries: int, stream: int, device: int,
) -> None:  # fmt: skip
    """V-trace over contiguous memory on the device; arguments as in `fastac_kernels.vtrace.vtrace_at`, then those."""
    run(
        plan, log_ratios, rewards, values, next_values, last_values, terminated, truncated, mask,
        cu_seqlens, targets, advantages, total, sequences, lanes,
        (gamma, trace_lambda, rho_clip, c_clip, pg_rho_clip), like, carries, stream, device,
    )  # fmt: skip
