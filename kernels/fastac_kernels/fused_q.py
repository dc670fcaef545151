"""The three big steps of off-policy actor-critic, each from a batch to its result in one call.

    targets: a' ~ pi(. | s'), then y = r + discount (1 - terminated) (min_k Q'_k(s', a') - alpha log pi(a' | s'))
    critics: Q_k(s, a) forward, the loss against y, and backward to the parameters, one network after the other
    actor:   a ~ pi(. | s), Q_k(s, a) forward, the loss, back through the critics to a, and on to the actor's parameters

The equations are those of `mlp`, `tanh_gaussian` and `q_losses`. Between matrix products the processor's caches hold
nothing of Python's or torch's, which costs several times as much there as it does alone.
"""

import numpy as np
from numpy.typing import NDArray

from fastac_kernels._jit import inline, kernel
from fastac_kernels.memory import address_of, array_at, rows_at
from fastac_kernels.mlp import ITEM, backward_at, forward_at, input_gradient_at
from fastac_kernels.q_losses import policy_loss_at, q_loss_at, q_targets_at
from fastac_kernels.tanh_gaussian import draw_at, draw_gradient_at

FLOAT = np.float32(0)
Networks = NDArray[np.int64]


@inline
def _join(x: int, inputs: int, actions: int, count: int, rows: int, out: int) -> None:
    """Rows of observations and of actions side by side."""
    s, a = rows_at(x, rows, inputs, FLOAT), rows_at(actions, rows, count, FLOAT)
    both = rows_at(out, rows, inputs + count, FLOAT)
    for r in range(rows):
        for c in range(inputs):
            both[r, c] = s[r, c]
        for c in range(count):
            both[r, inputs + c] = a[r, c]


@kernel
def soft_targets_at(
    blas: int, actor: Networks, critics: Networks, x: int, noise: int, rows: int, inputs: int, count: int,
    low: float, high: float, rewards: int, discounts: int, terminated: int, alpha: int, targets: int, work: int,
) -> None:  # fmt: skip
    """Writes y for `rows` transitions.

    `actor` is one row, `critics` are K rows of int64: parameters, sizes, layers and activation, as `forward_at` takes
    them. `x` is the address of the next observations `(rows, inputs)`, `noise` that of `(rows, count)`; `low` and
    `high` are `draw_at`'s, and from `rewards` on arguments are `q_targets_at`'s. `work` is that of room for
    `rows (inputs + 4 count + 1 + K + hidden)` float32, `hidden` the most that a network has.
    """
    total, unit = len(critics), ITEM * rows
    outputs = work
    actions = outputs + unit * 2 * count
    log_probs = actions + unit * count
    joined = log_probs + unit
    values = joined + unit * (inputs + count)
    hidden = values + unit * total
    forward_at(blas, actor[0, 0], actor[0, 1], actor[0, 2], x, rows, hidden, outputs, actor[0, 3])
    draw_at(outputs, noise, rows, count, low, high, actions, log_probs)
    _join(x, inputs, actions, count, rows, joined)
    at = np.empty(total, np.int64)
    for k in range(total):
        at[k] = values + unit * k
        forward_at(blas, critics[k, 0], critics[k, 1], critics[k, 2], joined, rows, hidden, at[k], critics[k, 3])
    q_targets_at(rewards, discounts, terminated, address_of(at), total, alpha, log_probs, rows, targets)


@kernel
def q_gradients_at(
    blas: int, critics: Networks, gradients: NDArray[np.int64], x: int, actions: int, rows: int, inputs: int,
    count: int, targets: int, weights: int, coef: float, values: int, loss: int, hidden: int, work: int,
) -> None:  # fmt: skip
    """Computes the critics' loss and its gradients in all parameters.

    `gradients` holds addresses of room for them, network after network. `x` and `actions` are addresses of `(rows,
    inputs)` and `(rows, count)`; `targets`, `weights` and `coef` are `q_loss_at`'s. `values`, `(K, rows)`, and `loss`,
    one float32, are written. `work` is that of room for `rows (inputs + count + 1 + hidden + 2 widest)` float32,
    `hidden` the most that a network has, `widest` the widest layer.
    """
    unit, into = ITEM * rows, address_of(gradients)
    joined = work
    d_values = joined + unit * (inputs + count)
    room = d_values + unit
    spare = room + unit * hidden
    _join(x, inputs, actions, count, rows, joined)
    at, total = np.empty(1, np.int64), 0.0
    for k in range(len(critics)):
        parameters, sizes, layers, activation = critics[k, 0], critics[k, 1], critics[k, 2], critics[k, 3]
        at[0] = values + unit * k
        forward_at(blas, parameters, sizes, layers, joined, rows, room, at[0], activation)
        total += q_loss_at(address_of(at), 1, targets, weights, rows, coef, d_values)
        backward_at(blas, parameters, into, sizes, layers, joined, rows, room, d_values, 0, spare, activation)
        into += 16 * layers
    array_at(loss, 1, FLOAT)[0] = np.float32(total)


@kernel
def policy_gradients_at(
    blas: int, actor: Networks, critics: Networks, gradients: NDArray[np.int64], x: int, noise: int, rows: int,
    inputs: int, count: int, low: float, high: float, alpha: int, loss: int, entropy: int,
    actor_hidden: int, hidden: int, work: int,
) -> None:  # fmt: skip
    """Computes the actor's loss and its gradients in the actor's parameters; the critics' own are not computed.

    Arguments are those of the functions above. `loss` and `entropy`, mean -log pi(a | s), take one float32 each. `work`
    is that of room for `rows (2 inputs + 8 count + 2 + 2 K + actor_hidden + K hidden + 2 widest)` float32.
    """
    total, unit = len(critics), ITEM * rows
    outputs = work
    d_outputs = outputs + unit * 2 * count
    actions = d_outputs + unit * 2 * count
    d_actions = actions + unit * count
    joined = d_actions + unit * count
    d_joined = joined + unit * (inputs + count)
    values = d_joined + unit * (inputs + count)
    d_log_probs = values + unit * total
    log_probs = d_log_probs + unit * (1 + total)
    of_actor = log_probs + unit
    of_critics = of_actor + unit * actor_hidden
    spare = of_critics + unit * hidden * total
    parameters, sizes, layers, activation = actor[0, 0], actor[0, 1], actor[0, 2], actor[0, 3]
    forward_at(blas, parameters, sizes, layers, x, rows, of_actor, outputs, activation)
    draw_at(outputs, noise, rows, count, low, high, actions, log_probs)
    _join(x, inputs, actions, count, rows, joined)
    at = np.empty(total, np.int64)
    for k in range(total):
        at[k] = values + unit * k
        room = of_critics + unit * hidden * k
        forward_at(blas, critics[k, 0], critics[k, 1], critics[k, 2], joined, rows, room, at[k], critics[k, 3])
    found = policy_loss_at(alpha, log_probs, address_of(at), total, rows, d_log_probs)
    array_at(loss, 1, FLOAT)[0] = np.float32(found)
    log_prob, sum_ = array_at(log_probs, rows, FLOAT), 0.0
    for r in range(rows):
        sum_ -= np.float64(log_prob[r])
    array_at(entropy, 1, FLOAT)[0] = np.float32(sum_ / rows)
    into, handed = rows_at(d_actions, rows, count, FLOAT), rows_at(d_joined, rows, inputs + count, FLOAT)
    for r in range(rows):
        for c in range(count):
            into[r, c] = FLOAT
    for k in range(total):
        room, d_value = of_critics + unit * hidden * k, d_log_probs + unit * (1 + k)
        input_gradient_at(
            blas, critics[k, 0], critics[k, 1], critics[k, 2], rows, room, d_value, d_joined, spare, critics[k, 3]
        )  # fmt: skip
        for r in range(rows):
            for c in range(count):
                into[r, c] += handed[r, inputs + c]
    draw_gradient_at(outputs, noise, actions, rows, count, low, high, d_actions, d_log_probs, d_outputs)
    backward_at(
        blas, parameters, address_of(gradients), sizes, layers, x, rows, of_actor, d_outputs, 0, spare, activation
    )  # fmt: skip
