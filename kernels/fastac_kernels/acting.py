"""Acting: a network's outputs for a few rows, and draws from them. Entered with arrays, as environments give them.

    categorical: a = argmax_j (l_j + g_j), g standard Gumbel        Gaussian: a = mu + exp(s) z, z standard normal

Noise comes from outside: a kernel has no state.

    log pi(a) = l_a - log sum_j exp l_j                             log pi(a) = -sum_j (z_j^2 / 2 + s_j + log(2 pi) / 2)
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastac_kernels._jit import kernel
from fastac_kernels.heads import LOG_SQRT_2PI
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


@kernel
def act_categorical(
    blas: int, parameters: int, sizes: int, layers: int, activation: int, x: Floats, noise: Floats,
    hidden: Floats, logits: Floats, actions: NDArray[Any],
) -> None:  # fmt: skip
    """`forward` and `draw_categorical` in one call."""
    forward(blas, parameters, sizes, layers, activation, x, hidden, logits)
    draw_categorical(logits, noise, actions)


@kernel
def act_gaussian(
    blas: int, parameters: int, sizes: int, layers: int, activation: int, x: Floats, noise: Floats,
    hidden: Floats, actions: Floats, log_stds: Floats,
) -> None:  # fmt: skip
    """`forward` and `draw_gaussian` in one call."""
    forward(blas, parameters, sizes, layers, activation, x, hidden, actions)
    draw_gaussian(actions, log_stds, noise)


@kernel
def evaluate_categorical(
    blas: int, parameters: int, sizes: int, layers: int, activation: int, x: Floats, noise: Floats,
    hidden: Floats, logits: Floats, actions: NDArray[Any],
    critic: int, critic_sizes: int, critic_layers: int, critic_activation: int, log_probs: Floats, values: Floats,
) -> None:  # fmt: skip
    """`act_categorical`, and log pi(a) and V `(rows,)` of the critic's network."""
    act_categorical(blas, parameters, sizes, layers, activation, x, noise, hidden, logits, actions)
    rows, count = logits.shape
    for i in range(rows):
        highest = logits[i, 0]
        for j in range(1, count):
            highest = logits[i, j] if logits[i, j] > highest else highest
        total = 0.0
        for j in range(count):
            total += math.exp(np.float64(logits[i, j] - highest))
        log_probs[i] = logits[i, actions[i]] - highest - np.float32(math.log(total))
    at, room, into = address_of(x), address_of(hidden), address_of(values)
    forward_at(blas, critic, critic_sizes, critic_layers, at, rows, room, into, critic_activation)


@kernel
def evaluate_gaussian(
    blas: int, parameters: int, sizes: int, layers: int, activation: int, x: Floats, noise: Floats,
    hidden: Floats, actions: Floats, log_stds: Floats,
    critic: int, critic_sizes: int, critic_layers: int, critic_activation: int, log_probs: Floats, values: Floats,
) -> None:  # fmt: skip
    """`act_gaussian`, and log pi(a) and V `(rows,)` of the critic's network."""
    act_gaussian(blas, parameters, sizes, layers, activation, x, noise, hidden, actions, log_stds)
    rows, count = actions.shape
    for i in range(rows):
        total = count * LOG_SQRT_2PI
        for j in range(count):
            z = np.float64(noise[i, j])
            total += 0.5 * z * z + np.float64(log_stds[j])
        log_probs[i] = -total
    at, room, into = address_of(x), address_of(hidden), address_of(values)
    forward_at(blas, critic, critic_sizes, critic_layers, at, rows, room, into, critic_activation)
