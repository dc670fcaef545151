"""Adam with its gradient's norm bounded, in one pass over parameters, gradients and moments (Kingma and Ba 2015).

    g = g min(1, c / (|g| + 1e-6)),   |g| over all parameters together
    m = m + (1 - beta1) (g - m),   v = beta2 v + (1 - beta2) g^2
    theta = theta - lr / (1 - beta1^t) m / (sqrt(v) / sqrt(1 - beta2^t) + eps)        (their algorithm 1)

in the order of operations of `torch.optim.Adam` and `torch.nn.utils.clip_grad_norm_`.
"""

import math
from typing import Any

import numpy as np

from fastac_kernels._jit import kernel
from fastac_kernels.memory import array_at

FLOAT = np.float32(0)
SMALLEST = np.float32(1.1754944e-38)  # normal


@kernel
def norm_at(gradients: int, sizes: int, count: int) -> Any:
    """The Euclidean norm of `count` float32 gradients together: their addresses and sizes are int64 at two addresses.

    Summed in float64, which float32 squares do not overflow.
    """
    at, lengths = array_at(gradients, count, 0), array_at(sizes, count, 0)
    total = 0.0
    for k in range(count):
        gradient = array_at(at[k], lengths[k], FLOAT)
        for i in range(lengths[k]):
            total += np.float64(gradient[i]) * np.float64(gradient[i])
    return math.sqrt(total)


@kernel
def adam_at(
    parameters: int, gradients: int, means: int, squares: int, steps: int, sizes: int, count: int, scale: float,
    lr: float, beta1: float, beta2: float, eps: float,
) -> None:  # fmt: skip
    """One step of `count` float32 parameters, the gradient times `scale`, which is written back.

    The first six arguments are addresses of `count` int64: addresses of memory (of one float32 each for the number of
    steps taken before, which is counted on), and the sizes.
    """
    theta_at, gradient_at = array_at(parameters, count, 0), array_at(gradients, count, 0)
    mean_at, square_at = array_at(means, count, 0), array_at(squares, count, 0)
    step_at, lengths = array_at(steps, count, 0), array_at(sizes, count, 0)
    small, factor = np.float32(eps), np.float32(scale)
    new1, keep2, new2 = np.float32(1.0 - beta1), np.float32(beta2), np.float32(1.0 - beta2)
    for k in range(count):
        n = lengths[k]
        taken = array_at(step_at[k], 1, FLOAT)
        taken[0] += np.float32(1.0)
        step = np.float64(taken[0])
        rate = np.float32(lr / (1.0 - beta1**step))
        correction = np.float32(1.0 / math.sqrt(1.0 - beta2**step))
        theta, g = array_at(theta_at[k], n, FLOAT), array_at(gradient_at[k], n, FLOAT)
        m, v = array_at(mean_at[k], n, FLOAT), array_at(square_at[k], n, FLOAT)
        for i in range(n):
            gi = g[i] * factor
            mi = m[i] + new1 * (gi - m[i])
            vi = keep2 * v[i] + new2 * gi * gi
            # Units that stay off leave moments which halve for ever, and numbers below the normal ones are slow.
            mi = FLOAT if abs(mi) < SMALLEST else mi
            vi = FLOAT if abs(vi) < SMALLEST else vi
            g[i] = gi
            m[i] = mi
            v[i] = vi
            theta[i] -= rate * mi / (np.sqrt(vi) * correction + small)
