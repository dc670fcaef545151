"""PPO's and A2C's whole loss on a network's outputs, with all its gradients, in one pass over a minibatch.

    L = mean[-min(rho A, clip(rho, 1 - eps, 1 + eps) A)] + c_v L_V - c_e mean[H],   rho = exp(log pi(a) - log pi_old(a))
    L_V = 1/2 mean[(V - R)^2], or 1/2 mean[max((V - R)^2, (V_old + clip(V - V_old, -eps, eps) - R)^2)]

(Schulman et al. 2017, equations 7 and 9.) A2C's first term is mean[-log pi(a) A] (Mnih et al. 2016, algorithm S3). For
n logits l, p = softmax(l):

    d log pi(a) / d l_j = 1[j = a] - p_j,   dH / d l_j = -p_j (log p_j + H)

For a Gaussian with mean mu and log deviation s, z = (a - mu) / exp(s):

    d log pi / d mu_j = z_j / exp(s_j),   d log pi / d s_j = z_j^2 - 1,   dH / d s_j = 1
"""

import math
from typing import Any

import numpy as np

from fastac_kernels._jit import inline, kernel
from fastac_kernels.exp import exp
from fastac_kernels.memory import array_at, rows_at

FLOAT = np.float32(0)
LOG_SQRT_2PI = 0.5 * math.log(2.0 * math.pi)
BOUND = np.float32(20.0)
POLICY, VALUE, ENTROPY, K1, K3, CLIPPED, TOTAL = range(7)


@inline
def _scale(advantages: Any, rows: int, normalize: bool) -> Any:
    """What is subtracted from advantages, and what they are multiplied with."""
    if not normalize:
        return np.float32(0), np.float32(1)
    mean = 0.0
    for i in range(rows):
        mean += np.float64(advantages[i])
    mean /= rows
    square = 0.0
    for i in range(rows):
        difference = np.float64(advantages[i]) - mean
        square += difference * difference
    deviation = math.sqrt(square / (rows - 1)) if rows > 1 else 0.0
    return np.float32(mean), np.float32(1.0 / (deviation + 1e-8))


@inline
def _clipped(log_prob: Any, old: Any, advantage: Any, clip_coef: Any, dual_clip: Any, metrics: Any) -> Any:
    """d(-objective) / d log pi of one row; adds to the metrics. A negative `clip_coef` stands for log pi A."""
    if clip_coef < FLOAT:
        metrics[POLICY] -= np.float64(log_prob * advantage)
        return -advantage
    one = np.float32(1)
    log_ratio = log_prob - old
    bounded = BOUND if log_ratio > BOUND else log_ratio
    bounded = -BOUND if bounded < -BOUND else bounded
    ratio = exp(bounded)
    inside = one + clip_coef if ratio > one + clip_coef else ratio
    inside = one - clip_coef if inside < one - clip_coef else inside
    objective, limit = ratio * advantage, inside * advantage
    slope = objective
    if limit < objective:
        objective = limit
        slope = FLOAT
    if advantage < FLOAT and dual_clip > FLOAT and objective < dual_clip * advantage:
        objective = dual_clip * advantage
        slope = FLOAT
    if bounded != log_ratio and log_ratio == log_ratio:
        slope = FLOAT
    metrics[POLICY] -= np.float64(objective)
    metrics[K1] -= np.float64(bounded)
    metrics[K3] += math.expm1(np.float64(bounded)) - np.float64(bounded)
    # A NaN counts as clipped by neither bound, as in torch.
    metrics[CLIPPED] += 1.0 if (ratio > one + clip_coef or ratio < one - clip_coef) else 0.0
    return -slope


@inline
def _value(value: Any, old: Any, target: Any, clip: Any, metrics: Any) -> Any:
    """d(half the squared error) / dV of one row; adds to the metrics. A negative `clip` stands for none."""
    error = value - target
    square, slope = error * error, error
    if clip >= FLOAT:
        bounded = old + clip if value > old + clip else value
        bounded = old - clip if bounded < old - clip else bounded
        other = bounded - target
        if other * other > square:
            square = other * other
            slope = FLOAT if bounded != value else other
    metrics[VALUE] += 0.5 * np.float64(square)
    return slope


@inline
def _finish(metrics: Any, rows: int, vf_coef: float, ent_coef: float) -> None:
    for k in range(TOTAL):
        metrics[k] /= rows
    metrics[TOTAL] = metrics[POLICY] + vf_coef * metrics[VALUE] - ent_coef * metrics[ENTROPY]


@kernel
def categorical_at(
    logits: int, actions: int, old_log_probs: int, advantages: int, values: int, old_values: int, returns: int,
    rows: int, count: int, normalize: bool, clip_coef: float, dual_clip: float, value_clip: float, vf_coef: float,
    ent_coef: float, logits_gradient: int, values_gradient: int, results: int,
) -> bool:  # fmt: skip
    """PPO's loss for `count` discrete actions.

    Addresses of float32: `logits` `(rows, count)`; `old_log_probs`, `advantages`, `values`, `old_values`, `returns`
    `(rows,)`; `logits_gradient` and `values_gradient` for what is computed. `actions`, int64, count from 0. `normalize`
    centres and scales the advantages. `clip_coef`, `dual_clip` and `value_clip` are eps, c and the value's eps, each
    negative for none (the first: A2C's loss); `vf_coef` and `ent_coef` are c_v and c_e. `results` takes 7 float64:
    policy loss, value loss, entropy, k1, k3, clip fraction, L.

    Returns:
        False where an action is out of range; the outputs are then not to be used.
    """
    z, dz = rows_at(logits, rows, count, FLOAT), rows_at(logits_gradient, rows, count, FLOAT)
    action = array_at(actions, rows, 0)
    old, advantage = array_at(old_log_probs, rows, FLOAT), array_at(advantages, rows, FLOAT)
    value, old_value = array_at(values, rows, FLOAT), array_at(old_values, rows, FLOAT)
    target, dv = array_at(returns, rows, FLOAT), array_at(values_gradient, rows, FLOAT)
    metrics = array_at(results, 7, 0.0)
    for k in range(7):
        metrics[k] = 0.0
    mean, factor = _scale(advantage, rows, normalize)
    eps, dual, value_eps = np.float32(clip_coef), np.float32(dual_clip), np.float32(value_clip)
    share = np.float32(1.0 / rows)
    value_share, entropy_share = np.float32(vf_coef / rows), np.float32(ent_coef / rows)
    for i in range(rows):
        a = action[i]
        if a < 0 or a >= count:
            return False
        highest = z[i, 0]
        for j in range(1, count):
            highest = z[i, j] if z[i, j] > highest else highest
        total = FLOAT
        for j in range(count):
            p = exp(z[i, j] - highest)
            dz[i, j] = p
            total += p
        log_total = np.float32(math.log(np.float64(total)))
        inverse = np.float32(1) / total
        entropy = FLOAT
        for j in range(count):
            p = dz[i, j] * inverse
            dz[i, j] = p
            # 0 log 0 = 0; a logit of -inf has no probability.
            entropy -= p * (z[i, j] - highest - log_total) if p > FLOAT else FLOAT
        metrics[ENTROPY] += np.float64(entropy)
        slope = share * _clipped(
            z[i, a] - highest - log_total, old[i], (advantage[i] - mean) * factor, eps, dual, metrics
        )
        for j in range(count):
            p = dz[i, j]
            of_entropy = p * (z[i, j] - highest - log_total + entropy) if p > FLOAT else FLOAT
            of_policy = (np.float32(1) if j == a else FLOAT) - p
            dz[i, j] = slope * of_policy + entropy_share * of_entropy
        dv[i] = value_share * _value(value[i], old_value[i], target[i], value_eps, metrics)
    _finish(metrics, rows, vf_coef, ent_coef)
    return True


@kernel
def gaussian_at(
    means: int, log_stds: int, actions: int, old_log_probs: int, advantages: int, values: int, old_values: int,
    returns: int, rows: int, count: int, normalize: bool, clip_coef: float, dual_clip: float, value_clip: float,
    vf_coef: float, ent_coef: float, means_gradient: int, log_stds_gradient: int, values_gradient: int, results: int,
) -> bool:  # fmt: skip
    """PPO's loss for `count` continuous actions, of `means` `(rows, count)` and a deviation each that no state changes.

    `log_stds` and its gradient are `(count,)`, `actions` `(rows, count)`; the rest is as for `categorical_at`.

    Returns:
        True: any action will do.
    """
    mu, dmu = rows_at(means, rows, count, FLOAT), rows_at(means_gradient, rows, count, FLOAT)
    s, ds = array_at(log_stds, count, FLOAT), array_at(log_stds_gradient, count, FLOAT)
    action = rows_at(actions, rows, count, FLOAT)
    old, advantage = array_at(old_log_probs, rows, FLOAT), array_at(advantages, rows, FLOAT)
    value, old_value = array_at(values, rows, FLOAT), array_at(old_values, rows, FLOAT)
    target, dv = array_at(returns, rows, FLOAT), array_at(values_gradient, rows, FLOAT)
    metrics = array_at(results, 7, 0.0)
    for k in range(7):
        metrics[k] = 0.0
    mean, factor = _scale(advantage, rows, normalize)
    eps, dual, value_eps = np.float32(clip_coef), np.float32(dual_clip), np.float32(value_clip)
    share, value_share = np.float32(1.0 / rows), np.float32(vf_coef / rows)
    log_scale, half = 0.0, np.float32(0.5)
    for j in range(count):
        log_scale += np.float64(s[j])
        ds[j] = np.float32(-ent_coef)
    constant = np.float32(log_scale + count * LOG_SQRT_2PI)
    metrics[ENTROPY] = rows * (log_scale + count * (0.5 + LOG_SQRT_2PI))
    for i in range(rows):
        squares = FLOAT
        for j in range(count):
            score = (action[i, j] - mu[i, j]) * exp(-s[j])
            squares += score * score
        slope = share * _clipped(-half * squares - constant, old[i], (advantage[i] - mean) * factor, eps, dual, metrics)
        for j in range(count):
            inverse = exp(-s[j])
            score = (action[i, j] - mu[i, j]) * inverse
            dmu[i, j] = slope * score * inverse
            ds[j] += slope * (score * score - np.float32(1))
        dv[i] = value_share * _value(value[i], old_value[i], target[i], value_eps, metrics)
    _finish(metrics, rows, vf_coef, ent_coef)
    return True
