"""All of a policy gradient step but the optimiser's: actor and critic forward, the loss, and both backward.

    outputs = actor(x), values = critic(x); loss and its gradient in both; dW = dz^T x, db = sum dz, dx = dz W

Nothing leaves the cache in between, and nothing but the gradients is kept. Each equation stands in `mlp` or `heads`.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastac_kernels._jit import kernel
from fastac_kernels.heads import TOTAL, categorical_at, gaussian_at
from fastac_kernels.memory import address_of, array_at
from fastac_kernels.mlp import ITEM, backward_at, forward_at

FLOAT = np.float32(0)
RESULTS = 64  # bytes, at the beginning of the room to work in


@kernel
def gradients_at(
    blas: int, actor: int, actor_sizes: int, actor_layers: int, actor_activation: int,
    critic: int, critic_sizes: int, critic_layers: int, critic_activation: int,
    log_stds: int, gradients: NDArray[np.int64], x: int, rows: int,
    actions: int, old_log_probs: int, advantages: int, old_values: int, returns: int,
    normalize: bool, clip_coef: float, dual_clip: float, value_clip: float, vf_coef: float, ent_coef: float,
    work: int, hidden: int, loss: int, metrics: int,
) -> bool:  # fmt: skip
    """Computes the loss of a minibatch and its gradients in all parameters.

    The first five arguments are `forward_at`'s for the actor's network; the next four the critic's. `log_stds` is the
    address of a Gaussian's log deviations, 0 for a categorical distribution. `gradients` holds addresses of room for
    the gradients of the actor's parameters, the critic's and the log deviations', 0 for those not wanted but never the
    last. `x` is the address of `(rows, inputs)` float32; from `actions` to `ent_coef` arguments are `categorical_at`'s,
    or `gaussian_at`'s. `work` is that of `RESULTS` bytes and `rows (hidden + 2 outputs + 2 + 2 widest)` float32,
    `hidden` the sum of both networks' hidden widths, `widest` the widest layer of both. L goes to `loss`, float32, and
    6 float32 to `metrics`: policy loss, value loss, entropy, k1, k3, clip fraction.

    Returns:
        False where an action is out of range; the outputs are then not to be used.
    """
    count = array_at(actor_sizes, actor_layers + 1, 0)[actor_layers]
    actor_hidden = 0
    for layer in range(1, actor_layers):
        actor_hidden += array_at(actor_sizes, actor_layers, 0)[layer]
    into, unit = address_of(gradients), ITEM * rows
    of_actor = work + RESULTS
    of_critic = of_actor + unit * actor_hidden
    outputs = of_actor + unit * hidden
    d_outputs = outputs + unit * count
    values = d_outputs + unit * count
    d_values = values + unit
    spare = d_values + unit
    forward_at(blas, actor, actor_sizes, actor_layers, x, rows, of_actor, outputs, actor_activation)
    forward_at(blas, critic, critic_sizes, critic_layers, x, rows, of_critic, values, critic_activation)
    if log_stds == 0:
        fine = categorical_at(
            outputs, actions, old_log_probs, advantages, values, old_values, returns, rows, count, normalize,
            clip_coef, dual_clip, value_clip, vf_coef, ent_coef, d_outputs, d_values, work,
        )  # fmt: skip
    else:
        fine = gaussian_at(
            outputs, log_stds, actions, old_log_probs, advantages, values, old_values, returns, rows, count, normalize,
            clip_coef, dual_clip, value_clip, vf_coef, ent_coef, d_outputs, gradients[-1], d_values, work,
        )  # fmt: skip
    if not fine:
        return False
    results: Any = array_at(work, TOTAL + 1, 0.0)
    array_at(loss, 1, FLOAT)[0] = results[TOTAL]
    floats = array_at(metrics, TOTAL, FLOAT)
    for k in range(TOTAL):
        floats[k] = results[k]
    backward_at(blas, actor, into, actor_sizes, actor_layers, x, rows, of_actor, d_outputs, 0, spare, actor_activation)
    into += 16 * actor_layers
    backward_at(
        blas, critic, into, critic_sizes, critic_layers, x, rows, of_critic, d_values, 0, spare, critic_activation
    )  # fmt: skip
    return True
