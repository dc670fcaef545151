"""Running mean and variance of every dimension, what they make of an observation, and running discounted returns.

    n = n_a + n_b,   delta = mean_b - mean_a,   mean = mean_a + delta n_b / n
    var = (var_a n_a + M2_b + delta^2 n_a n_b / n) / n              (Chan, Golub and LeVeque 1979)

All in float64, each operation rounded as it is written: what a policy saw can be computed again by NumPy, bit for bit.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastac_kernels._jit import kernel
from fastac_kernels.strict import rounded_add, rounded_divide, rounded_multiply

Doubles = NDArray[np.float64]


@kernel
def update(mean: Doubles, var: Doubles, count: int, rows: NDArray[Any]) -> None:
    """Adds `rows` `(B, size)`, B > 0, to the moments `(size,)` of `count` rows, in place."""
    batch, size = rows.shape
    n, before = np.float64(batch), np.float64(count)
    total = before + n
    share, product = rounded_divide(n, total), rounded_divide(rounded_multiply(before, n), total)
    for j in range(size):
        sum_ = np.float64(rows[0, j])
        for i in range(1, batch):
            sum_ = rounded_add(sum_, np.float64(rows[i, j]))
        center = rounded_divide(sum_, n)
        squares = 0.0
        for i in range(batch):
            centred = rounded_add(np.float64(rows[i, j]), -center)
            squares = rounded_add(squares, rounded_multiply(centred, centred))
        if count == 0:
            mean[j], var[j] = center, rounded_divide(squares, n)
        else:
            delta = rounded_add(center, -mean[j])
            both = rounded_add(rounded_multiply(var[j], before), squares)
            both = rounded_add(both, rounded_multiply(rounded_multiply(delta, delta), product))
            mean[j] = rounded_add(mean[j], rounded_multiply(delta, share))
            var[j] = rounded_divide(both, total)


@kernel
def standardize(rows: NDArray[Any], mean: Doubles, var: Doubles, eps: float, clip: float, out: NDArray[Any]) -> None:
    """Writes clip((x - mean) / sqrt(var + eps), -clip, clip) of `rows` `(B, size)`, rounded to the type of `out`."""
    batch, size = rows.shape
    for i in range(batch):
        for j in range(size):
            x = rounded_divide(rounded_add(np.float64(rows[i, j]), -mean[j]), math.sqrt(rounded_add(var[j], eps)))
            x = clip if x > clip else x
            out[i, j] = -clip if x < -clip else x


@kernel
def accumulate(
    rewards: NDArray[Any],
    ended: NDArray[np.bool_],
    mask: NDArray[np.bool_],
    gamma: float,
    running: Doubles,
    out: Doubles,
) -> None:
    """Writes G_t = gamma G_{t-1} + r_t, `(T, N)`, and leaves in `running` `(N,)` what the next rollout goes on from.

    A masked row repeats the G before it; after a row that ended an episode G is 0.
    """
    steps, lanes = rewards.shape
    for t in range(steps):
        for i in range(lanes):
            x = rounded_add(rounded_multiply(gamma, running[i]), np.float64(rewards[t, i]))
            x = x if mask[t, i] else running[i]
            out[t, i] = x
            running[i] = 0.0 if ended[t, i] and mask[t, i] else x
