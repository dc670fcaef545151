"""Draws of a = tanh(u), u = mu + exp(s) z, with log pi(a), from a network's outputs (mu, s); and their gradients.

    log pi(a) = sum_j [-z_j^2 / 2 - s_j - log sqrt(2 pi) - log(1 - a_j^2)]
    log(1 - tanh(u)^2) = 2 (log 2 - |u| - log(1 + exp(-2 |u|)))

(Haarnoja et al. 2018, equation 21 of arXiv:1801.01290.) z is standard normal noise from outside; s is clamped first.
One logarithm does for a row: sum_j log(1 + e_j) = log prod_j (1 + e_j). With z held fixed,

    da / du = 1 - a^2,   d log pi / du = 2 a,   du / dmu = 1,   du / ds = exp(s) z,   d log pi / ds gets -1 besides
"""

import math
from typing import Any

import numpy as np

from fastac_kernels._jit import inline, kernel
from fastac_kernels.exp import exp
from fastac_kernels.memory import array_at, rows_at
from fastac_kernels.tanh import tanh

FLOAT = np.float32(0)
LOG_2, LOG_SQRT_2PI = math.log(2.0), 0.5 * math.log(2.0 * math.pi)


@inline
def _clamped(s: Any, low: Any, high: Any) -> Any:
    """Written so that NaN stays."""
    s = low if s < low else s
    return high if s > high else s


@kernel
def draw_at(
    outputs: int, noise: int, rows: int, count: int, low: float, high: float, actions: int, log_probs: int
) -> None:
    """Draws one action for each row.

    Args:
        outputs: Address of float32 `(rows, 2 * count)`: all mu, then all s.
        noise: Address of `(rows, count)`.
        rows: B.
        count: A.
        low: Least s.
        high: Largest s.
        actions: Address for `(rows, count)`.
        log_probs: Address for `(rows,)`, or 0.
    """
    o, z = rows_at(outputs, rows, 2 * count, FLOAT), rows_at(noise, rows, count, FLOAT)
    a, found = rows_at(actions, rows, count, FLOAT), array_at(log_probs, rows, FLOAT)
    least, most, two = np.float32(low), np.float32(high), np.float32(2)
    for r in range(rows):
        for c in range(count):
            a[r, c] = o[r, c] + exp(_clamped(o[r, count + c], least, most)) * z[r, c]
        if log_probs != 0:
            total, product = -count * (LOG_SQRT_2PI + 2.0 * LOG_2), 1.0
            for c in range(count):
                size, draw = abs(a[r, c]), np.float64(z[r, c])
                s = np.float64(_clamped(o[r, count + c], least, most))
                total += 2.0 * np.float64(size) - 0.5 * draw * draw - s
                product *= 1.0 + np.float64(exp(-two * size))
                if product > 1e150:
                    total += 2.0 * math.log(product)
                    product = 1.0
            found[r] = np.float32(total + 2.0 * math.log(product))
        for c in range(count):
            a[r, c] = tanh(a[r, c])


@kernel
def draw_gradient_at(
    outputs: int, noise: int, actions: int, rows: int, count: int, low: float, high: float,
    actions_gradient: int, log_probs_gradient: int, outputs_gradient: int,
) -> None:  # fmt: skip
    """Computes the gradient of what `draw_at` was given, from those of what it found.

    Args:
        outputs: As for `draw_at`.
        noise: As for `draw_at`.
        actions: What it wrote.
        rows: B.
        count: A.
        low: As for `draw_at`.
        high: As for `draw_at`.
        actions_gradient: Address of dL/da, `(rows, count)`.
        log_probs_gradient: Address of dL/d log pi, `(rows,)`.
        outputs_gradient: Address for `(rows, 2 * count)`; that of an s beyond its bounds is 0.
    """
    o, z = rows_at(outputs, rows, 2 * count, FLOAT), rows_at(noise, rows, count, FLOAT)
    a, da = rows_at(actions, rows, count, FLOAT), rows_at(actions_gradient, rows, count, FLOAT)
    dp, into = array_at(log_probs_gradient, rows, FLOAT), rows_at(outputs_gradient, rows, 2 * count, FLOAT)
    least, most, one, two = np.float32(low), np.float32(high), np.float32(1), np.float32(2)
    for r in range(rows):
        for c in range(count):
            du = da[r, c] * (one - a[r, c] * a[r, c]) + dp[r] * two * a[r, c]
            s = o[r, count + c]
            of_s = du * exp(_clamped(s, least, most)) * z[r, c] - dp[r]
            into[r, c] = du
            into[r, count + c] = of_s if s >= least and s <= most else FLOAT
