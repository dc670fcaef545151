"""Plain estimators with one switch each: `defect` plants a mistake of public libraries, "" none."""

from typing import Any

import numpy as np


def next_rows(t: int, valid: Any) -> int | None:
    """The next row in time, or None at the window's end."""
    return next((s for s in range(t + 1, len(valid)) if valid[s]), None)


def prepare(defect: str, rewards: Any, values: Any, next_values: Any, terminated: Any, truncated: Any, mask: Any):  # type: ignore[no-untyped-def]
    """Columns as float64 and flags, with the defects that sit in what a function reads."""
    length, count = values.shape
    zeros = np.zeros((length, count), bool)
    terminated = terminated.astype(bool)
    truncated = zeros if truncated is None else truncated.astype(bool)
    valid = ~zeros if mask is None or defect == "R15" else mask.astype(bool)
    if defect in ("R16 early", "R16 late"):
        roll = -1 if defect == "R16 early" else 1
        terminated, truncated = (np.roll(x, roll, 0) for x in (terminated, truncated))
    if defect == "flattened":
        terminated = terminated.copy()
        terminated[:, 1:] |= terminated[:, :-1]
    full = next_values.shape == values.shape
    nexts = np.zeros((length, count))
    for e in range(count):
        for t in range(length):
            after = next_rows(t, valid[:, e])
            row = t + 1 if defect == "R9" and t + 1 < length else after
            if full:
                nexts[t, e] = next_values[t, e]
            else:
                nexts[t, e] = next_values[e] if row is None else values[row, e]
    return rewards.astype(np.float64), values.astype(np.float64), nexts, terminated, truncated, valid


def bootstraps(defect: str, values: Any, nexts: Any, terminated: Any, truncated: Any) -> Any:
    """V(s_{t+1}) where there is a future, else 0."""
    future = np.where(terminated, 0.0, nexts)
    if defect == "R1":
        future = np.where(terminated | truncated, 0.0, nexts)
    if defect == "no termination":
        future = nexts
    if defect == "R3":
        future = np.where(truncated & ~terminated, values, future)
    if defect == "R4":
        future = np.where(terminated & ~truncated, 0.0, nexts)
    if defect == "R8":
        shifted = np.vstack([values[1:], nexts[-1:]])
        future = np.where(truncated & ~terminated, shifted, future)
    if defect == "NaN":
        future = nexts * ~terminated
    return future


def layouts(function):  # type: ignore[no-untyped-def]
    """Give a function of `(T, N)` arrays the other two layouts, and the mistakes that can be made with them."""

    def called(*arrays, batch_first=False, cu_seqlens=None, defect="", **options):  # type: ignore[no-untyped-def]
        to, back = (lambda x: x), (lambda x: x)
        if batch_first and defect != "batch first":
            to = back = lambda x: x.T
        if batch_first and defect == "batch first":
            to = lambda x: x if x.ndim == 2 else np.resize(x, arrays[0].shape[1])  # noqa: E731
        if cu_seqlens is not None:
            total, count = len(arrays[0]), 1 if defect == "packed" else len(cu_seqlens) - 1
            to = lambda x: x.reshape(count, -1).T if len(x) == total else x[-count:]  # noqa: E731
            back = lambda x: x.T.reshape(-1)  # noqa: E731
        result = function(*(None if x is None else to(x) for x in arrays), defect=defect, **options)
        return tuple(map(back, result)) if isinstance(result, tuple) else back(result)

    called.__qualname__ = function.__qualname__
    return called


@layouts
def gae(rewards, values, next_values, terminated, truncated=None, mask=None, *, gamma, gae_lambda, defect):  # type: ignore[no-untyped-def]
    dtype = values.dtype if defect != "dtype" else np.float64
    if defect == "writes":
        rewards += gamma
    r, v, w, terminated, truncated, valid = prepare(defect, rewards, values, next_values, terminated, truncated, mask)
    future = bootstraps(defect, v, w, terminated, truncated)
    length, count = v.shape
    advantages = np.zeros((length, count))
    for e in range(count):
        carry = future[-1, e] if defect == "R7" else 0.0
        for t in reversed(range(length)):
            if not valid[t, e]:
                if defect == "R10 decays":
                    carry *= gamma * gae_lambda
                if defect == "R10 reward":
                    carry += np.nan_to_num(r[t, e])
                continue
            cut = terminated[t, e] or truncated[t, e]
            if defect == "R2 time limit":
                cut = terminated[t, e]
            if defect == "R2 termination":
                cut = truncated[t, e]
            if defect == "first row" and t == 0:
                cut = False
            reward = r[t, e]
            if defect == "R6" and gae_lambda == 0 and (cut or t == length - 1):
                reward = 0.0
            delta = reward + gamma * future[t, e] - v[t, e]
            keep = gamma * gae_lambda * (not cut)
            carry = delta + (keep * carry if defect == "NaN" or not cut else 0.0)
            advantages[t, e] = carry
    returns = np.where(valid, advantages + v, 0.0)
    if defect == "R14":
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    return advantages.astype(dtype), returns.astype(dtype)


@layouts
def n_step_returns(rewards, values, next_values, terminated, truncated=None, mask=None, *, n, gamma, defect):  # type: ignore[no-untyped-def]
    r, v, w, terminated, truncated, valid = prepare(defect, rewards, values, next_values, terminated, truncated, mask)
    future = bootstraps(defect, v, w, terminated, truncated)
    out = np.zeros(v.shape)
    for e in range(v.shape[1]):
        rows = [int(t) for t in np.flatnonzero(valid[:, e])]
        for i, t in enumerate(rows):
            total, steps = 0.0, 0
            for s in rows[i : i + n]:
                total += gamma**steps * r[s, e]
                steps, last = steps + 1, s
                if (terminated[s, e] or truncated[s, e]) and defect != "B3":
                    break
            total += gamma ** (n if defect == "B4" else steps) * future[last, e]
            out[t, e] = total
    return out.astype(values.dtype)


@layouts
def vtrace(log_ratios, rewards, values, next_values, terminated, truncated=None, mask=None, *, gamma, trace_lambda,
           rho_clip, c_clip, pg_rho_clip, defect):  # type: ignore[no-untyped-def]  # fmt: skip
    r, v, w, terminated, truncated, valid = prepare(defect, rewards, values, next_values, terminated, truncated, mask)
    future = bootstraps(defect, v, w, terminated, truncated)
    ratios = np.exp(log_ratios.astype(np.float64))
    rho, c, pg = (np.minimum(limit, ratios) for limit in (rho_clip, c_clip, pg_rho_clip))
    if defect == "no rho_clip":
        rho = ratios
    if defect == "c_clip":
        c = rho
    if defect == "pg_rho_clip":
        pg = rho
    if defect == "on-policy":
        rho, c, pg = np.ones_like(rho), np.ones_like(c), np.ones_like(pg)
    targets, advantages = np.zeros(v.shape), np.zeros(v.shape)
    for e in range(v.shape[1]):
        carry, target, after = 0.0, 0.0, False
        for t in (int(s) for s in np.flatnonzero(valid[:, e])[::-1]):
            cut = terminated[t, e] or truncated[t, e] or not after
            delta = rho[t, e] * (r[t, e] + gamma * future[t, e] - v[t, e])
            q = future[t, e] if cut else trace_lambda * target + (1 - trace_lambda) * w[t, e]
            if defect == "R5" and after and not terminated[t, e]:
                q = target
            if defect == "value instead of target":
                q = future[t, e]
            carry = delta + (0.0 if cut else gamma * trace_lambda * c[t, e] * carry)
            advantages[t, e] = pg[t, e] * (r[t, e] + gamma * q - v[t, e])
            targets[t, e] = target = v[t, e] + carry
            after = True
    return targets.astype(values.dtype), advantages.astype(values.dtype)


@layouts
def retrace(log_ratios, rewards, values, next_values, terminated, truncated=None, mask=None, *, gamma, trace_lambda,
            defect):  # type: ignore[no-untyped-def]  # fmt: skip
    r, q, w, terminated, truncated, valid = prepare(defect, rewards, values, next_values, terminated, truncated, mask)
    future = bootstraps(defect, q, w, terminated, truncated)
    ratios = np.exp(log_ratios.astype(np.float64))
    traces = trace_lambda * (ratios if defect == "no clip" else np.minimum(1.0, ratios))
    if defect == "on-policy":
        traces = np.full_like(ratios, trace_lambda)
    if defect == "no lambda":
        traces = np.minimum(1.0, ratios)
    targets = np.zeros(q.shape)
    for e in range(q.shape[1]):
        after = None
        for t in (int(s) for s in np.flatnonzero(valid[:, e])[::-1]):
            target = r[t, e] + gamma * future[t, e]
            cut = (terminated[t, e] and defect != "R2 termination") or (truncated[t, e] and defect != "R2 time limit")
            if after is not None and not cut:
                trace = traces[t if defect == "own ratio" else after, e]
                taken = w[t, e] if defect == "expectation" else q[after, e]
                target += gamma * trace * (targets[after, e] - taken)
            targets[t, e] = target
            after = t
    return targets.astype(values.dtype)
