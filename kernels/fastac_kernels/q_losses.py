"""What Q-functions follow, how far they are from it, and what an actor has of them: each in one pass over a batch.

    targets:  y = r + gamma (min_k Q'_k(s', a') - alpha log pi(a' | s')),   y = r where terminated
    critics:  L = c sum_k mean[w (Q_k - y)^2],   dL/dQ_k = 2 c w (Q_k - y) / B
    actor:    L = mean[alpha log pi(a | s) - min_k Q_k(s, a)],   dL/dlog pi = alpha / B,   dL/dQ_k = -1/B for the least

(Haarnoja et al. 2018b, equations 5 to 7 of arXiv:1812.05905; Fujimoto et al. 2018, equation 10.) A minimum is NaN where
one of its elements is. Equal ones share the gradient.
"""

from typing import Any

import numpy as np

from fastac_kernels._jit import inline, kernel
from fastac_kernels.memory import array_at, rows_at

FLOAT, FLAG = np.float32(0), np.uint8(0)


@inline
def _minimum(at: Any, count: int, rows: int, i: int) -> Any:
    least = array_at(at[0], rows, FLOAT)[i]
    for k in range(1, count):
        value = array_at(at[k], rows, FLOAT)[i]
        least = value if value < least or value != value else least
    return least


@kernel
def q_targets_at(
    rewards: int, discounts: int, terminated: int, q_values: int, count: int, alpha: int, log_probs: int, rows: int,
    targets: int,
) -> None:  # fmt: skip
    """Writes the targets of `rows` transitions.

    Args:
        rewards: Address of float32 `(rows,)`, and so are all but these:
        discounts: gamma, or gamma^n after n rewards.
        terminated: Address of bytes; where one is not 0 nothing of the future is used.
        q_values: Address of `count` int64: the addresses of Q'_k(s', a').
        count: K.
        alpha: Address of one float32, or 0 for no entropy.
        log_probs: log pi(a' | s'); 0 without alpha.
        rows: B.
        targets: Address for y.
    """
    reward, discount = array_at(rewards, rows, FLOAT), array_at(discounts, rows, FLOAT)
    ended, at = array_at(terminated, rows, FLAG), array_at(q_values, count, 0)
    log_prob = array_at(log_probs if alpha != 0 else rewards, rows, FLOAT)
    temperature = array_at(alpha, 1, FLOAT)[0] if alpha != 0 else FLOAT
    target = array_at(targets, rows, FLOAT)
    for i in range(rows):
        value = _minimum(at, count, rows, i)
        value = value - temperature * log_prob[i] if alpha != 0 else value
        target[i] = reward[i] if ended[i] != FLAG else reward[i] + discount[i] * value


@kernel
def q_loss_at(q_values: int, count: int, targets: int, weights: int, rows: int, coef: float, gradients: int) -> Any:
    """Returns the critics' loss, and writes its gradients.

    Args:
        q_values: Address of `count` int64: the addresses of float32 Q_k, `(rows,)`.
        count: K.
        targets: Address of y, `(rows,)`.
        weights: Address of w, `(rows,)`, or 0 for 1.
        rows: B.
        coef: c.
        gradients: Address for the gradients, `(count, rows)`.
    """
    at, into, target = (
        array_at(q_values, count, 0),
        rows_at(gradients, count, rows, FLOAT),
        array_at(targets, rows, FLOAT),
    )
    weight = array_at(weights if weights != 0 else targets, rows, FLOAT)
    factor, one = np.float32(2.0 * coef / rows), np.float32(1)
    total = 0.0
    for k in range(count):
        value = array_at(at[k], rows, FLOAT)
        for i in range(rows):
            error = value[i] - target[i]
            weighted = (weight[i] if weights != 0 else one) * error
            into[k, i] = factor * weighted
            total += np.float64(weighted) * np.float64(error)
    return coef * total / rows


@kernel
def policy_loss_at(alpha: int, log_probs: int, q_values: int, count: int, rows: int, gradients: int) -> Any:
    """Returns the actor's loss, and writes its gradients.

    Args:
        alpha: Address of one float32.
        log_probs: Address of float32 log pi(a | s), `(rows,)`.
        q_values: Address of `count` int64: the addresses of Q_k(s, a), `(rows,)`.
        count: K.
        rows: B.
        gradients: Address for the gradients of log pi and of all Q_k, `(1 + count, rows)`.
    """
    temperature, log_prob = array_at(alpha, 1, FLOAT)[0], array_at(log_probs, rows, FLOAT)
    at, into = array_at(q_values, count, 0), rows_at(gradients, 1 + count, rows, FLOAT)
    share = np.float32(-1.0 / rows)
    total = 0.0
    for i in range(rows):
        least = _minimum(at, count, rows, i)
        total += np.float64(temperature) * np.float64(log_prob[i]) - np.float64(least)
        into[0, i] = -share * temperature
        equal = 0
        for k in range(count):
            equal += 1 if array_at(at[k], rows, FLOAT)[i] == least else 0
        for k in range(count):
            is_least = array_at(at[k], rows, FLOAT)[i] == least
            gradient = share / np.float32(equal) if is_least else FLOAT
            into[1 + k, i] = gradient if least == least else least
    return total / rows
