"""Plain references of ratios and PPO's loss: float64 loops over one sequence, written from the contract."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from naive import is_set, is_valid

BOUND = 20.0
Row = Any


def bounded(x: float) -> float:
    """X in [-20, 20]; NaN stays."""
    return x if math.isnan(x) else min(max(x, -BOUND), BOUND)


def importance_ratio(
    log_probs: Row,
    old_log_probs: Row,
    terminated: Row | None = None,
    truncated: Row | None = None,
    mask: Row | None = None,
    *,
    cumulative: bool = False,
) -> np.ndarray:
    """Exp of log pi_new - log pi_old, summed from the episode's first row on where cumulative."""
    ratios, running = np.zeros(len(log_probs)), 0.0
    for t in range(len(log_probs)):
        if not is_valid(mask, t):
            continue
        x = float(log_probs[t]) - float(old_log_probs[t])
        running = running + x if cumulative else x
        ratios[t] = math.exp(bounded(running))
        if is_set(terminated, t) or is_set(truncated, t):
            running = 0.0
    return ratios


def ratio_gradient(
    outer: Sequence[float],
    log_probs: Row,
    old_log_probs: Row,
    terminated: Row | None = None,
    truncated: Row | None = None,
    mask: Row | None = None,
    *,
    cumulative: bool = False,
) -> np.ndarray:
    """Gradient of sum_t outer_t rho_t with respect to log_probs: for each row k, the later t whose products hold it."""
    length = len(log_probs)
    gradient = np.zeros(length)
    for k in range(length):
        if not is_valid(mask, k):
            continue
        begin = 0  # of k's episode
        for u in range(k):
            if is_valid(mask, u) and (is_set(terminated, u) or is_set(truncated, u)):
                begin = u + 1
        for t in range(k, length if cumulative else k + 1):
            if not is_valid(mask, t):
                continue
            rows = [u for u in range(begin if cumulative else t, t + 1) if is_valid(mask, u)]
            x = sum(float(log_probs[u]) - float(old_log_probs[u]) for u in rows)
            if not abs(x) > BOUND:
                gradient[k] += outer[t] * math.exp(x)
            if is_set(terminated, t) or is_set(truncated, t):
                break
    return gradient


def ppo_clip_loss(
    log_probs: Row,
    old_log_probs: Row,
    advantages: Row,
    mask: Row | None = None,
    *,
    clip_coef: float,
    dual_clip: float | None = None,
) -> tuple[float, np.ndarray, dict[str, float]]:
    """Schulman et al. 2017, equation 7, dual clip by Ye et al. 2020, equation 5; its gradient, and the diagnostics."""
    rows = [i for i in range(len(log_probs)) if is_valid(mask, i)]
    n = max(len(rows), 1)
    gradient = np.zeros(len(log_probs))
    losses, sums = [], dict.fromkeys(("k1", "k2", "k3", "clip_fraction", "mean_ratio"), 0.0)
    for i in rows:
        given, a = float(log_probs[i]) - float(old_log_probs[i]), float(advantages[i])
        x = bounded(given)
        ratio = math.exp(x)
        plain, clipped = ratio * a, min(max(ratio, 1 - clip_coef), 1 + clip_coef) * a
        s, slope = (plain, plain) if plain <= clipped else (clipped, 0.0)
        if dual_clip is not None and a < 0 and s < dual_clip * a:
            s, slope = dual_clip * a, 0.0
        losses.append(-s)
        gradient[i] = -slope / n if abs(given) <= BOUND else 0.0
        sums["k1"] += -x
        sums["k2"] += x * x / 2
        sums["k3"] += math.expm1(x) - x
        sums["clip_fraction"] += abs(ratio - 1) > clip_coef
        sums["mean_ratio"] += ratio
    return math.fsum(losses) / n, gradient, {name: value / n for name, value in sums.items()}
