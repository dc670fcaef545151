"""Acting: a network's outputs for a few rows, and draws from them. Entered with arrays, as environments give them.

    categorical: a = argmax_j (l_j + g_j), g standard Gumbel        Gaussian: a = mu + exp(s) z, z standard normal

Noise comes from outside: a kernel has no state.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastac_kernels._jit import kernel
from fastac_kernels.memory import address_of
from fastac_kernels.mlp import forward_at

Floats = NDArray[np.float32]


@kernel
def forward(
    blas: int, parameters: int, sizes: int, layers: int, activation: int, x: Floats, hidden: Floats, outputs: Floats
) -> None:
    """`forward_at` of C-contiguous rows `x` and `outputs`, with room for the activations."""
    forward_at(
        blas, parameters, sizes, layers, address_of(x), x.shape[0], address_of(hidden), address_of(outputs), activation
    )


@kernel
def draw_categorical(logits: Floats, noise: Floats, actions: NDArray[Any]) -> None:
    """Draws `actions` `(rows,)` int64; the first of equals wins."""
    rows, count = logits.shape
    for i in range(rows):
        best, action = logits[i, 0] + noise[i, 0], 0
        for j in range(1, count):
            perturbed = logits[i, j] + noise[i, j]
            if perturbed > best:
                best, action = perturbed, j
        actions[i] = action


@kernel
def draw_gaussian(means: Floats, log_stds: Floats, noise: Floats) -> None:
    """Turns `means` `(rows, count)` into draws, in place."""
    rows, count = means.shape
    for i in range(rows):
        for j in range(count):
            means[i, j] += np.exp(log_stds[j]) * noise[i, j]
