"""RMSprop in one pass over parameters, gradients and squares (Tieleman and Hinton 2012, lecture 6.5).

    v = alpha v + (1 - alpha) g^2,   theta = theta - lr g / (sqrt(v) + eps)

in the order of operations of `torch.optim.RMSprop`. The bound on the gradient's norm is `adam.norm_at`'s.
"""

import numpy as np

from fastac_kernels._jit import kernel
from fastac_kernels.memory import array_at

FLOAT = np.float32(0)


@kernel
def rmsprop_at(
    parameters: int, gradients: int, squares: int, steps: int, sizes: int, count: int, scale: float,
    lr: float, alpha: float, eps: float,
) -> None:  # fmt: skip
    """One step of `count` float32 parameters, the gradient times `scale`, which is written back.

    The first five arguments are as for `adam_at`.
    """
    theta_at, gradient_at = array_at(parameters, count, 0), array_at(gradients, count, 0)
    square_at, step_at, lengths = array_at(squares, count, 0), array_at(steps, count, 0), array_at(sizes, count, 0)
    small, factor, rate = np.float32(eps), np.float32(scale), np.float32(lr)
    keep, new = np.float32(alpha), np.float32(1.0 - alpha)
    for k in range(count):
        n = lengths[k]
        array_at(step_at[k], 1, FLOAT)[0] += np.float32(1.0)
        theta, g = array_at(theta_at[k], n, FLOAT), array_at(gradient_at[k], n, FLOAT)
        v = array_at(square_at[k], n, FLOAT)
        for i in range(n):
            gi = g[i] * factor
            vi = keep * v[i] + new * gi * gi
            g[i] = gi
            v[i] = vi
            theta[i] -= rate * gi / (np.sqrt(vi) + small)
