"""The estimators as a loop of torch operations: correct on every device, for where no kernel of ours can run."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastac._arrays import Arguments, Layout
from fastac._estimators import ESTIMATORS


def run(
    name: str, arguments: Arguments, scalars: tuple[Any, ...], plan: Layout, work: torch.dtype
) -> tuple[Tensor, ...]:
    """Evaluate an estimator row by row, backwards, over all sequences at once.

    Args:
        name: Of the estimator.
        arguments: Checked; `next_values` is a tensor.
        scalars: Its scalars.
        plan: How memory is cut into sequences.
        work: float32 or float64.

    Returns:
        The outputs in dtype `work` and the caller's shape.
    """
    if arguments.cu_seqlens is not None:
        return _packed(name, arguments, scalars, plan, work)
    rewards, values, next_values, terminated, truncated, mask, _, batch_first, log_ratios = arguments

    def rows(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        if x is None:
            return None
        x = x.detach()
        x = x.to(dtype) if dtype.is_floating_point else x != 0
        x = x.t() if batch_first else x
        return x if x.ndim == 2 else x.unsqueeze(1)

    r = rows(rewards, work)
    assert r is not None
    shape, lanes = rewards.shape, r.shape[1]
    nothing = torch.zeros(r.shape, dtype=torch.bool, device=r.device)
    v = rows(values, work)
    e = rows(terminated, torch.bool)
    c = rows(truncated, torch.bool)
    m = rows(mask, torch.bool)
    e = nothing if e is None else e
    c = nothing if c is None else c
    full = rows(next_values, work) if plan.full else None
    last = next_values.detach().to(work).expand(lanes) if full is None else None
    x = rows(log_ratios, work)
    outputs = _backwards(name, scalars, r, v, full, last, e, c, m, None if x is None else x.exp())
    if not outputs:
        outputs = (torch.empty_like(r),) * ESTIMATORS[name].outputs
    return tuple((x.t() if batch_first else x).reshape(shape) for x in outputs)


def _packed(
    name: str, arguments: Arguments, scalars: tuple[Any, ...], plan: Layout, work: torch.dtype
) -> tuple[Tensor, ...]:
    """Packed sequences, laid out as columns of the longest, masked behind their ends; one length is read back."""
    boundaries = arguments.cu_seqlens.to(torch.int64)
    starts, lengths = boundaries[:-1], boundaries.diff()
    longest = int(lengths.max()) if plan.sequences > 0 else 0
    steps = torch.arange(longest, device=boundaries.device).unsqueeze(1)
    inside = steps < lengths
    index = (starts + steps).clamp(max=max(plan.total - 1, 0))

    def spread(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.detach()[index]

    mask = inside if arguments.mask is None else inside & (arguments.mask != 0)[index]
    next_values = spread(arguments.next_values) if plan.full else arguments.next_values
    padded = Arguments(
        spread(arguments.rewards), spread(arguments.values), next_values, spread(arguments.terminated),
        spread(arguments.truncated), mask, None, False, spread(arguments.log_ratios),
    )  # fmt: skip
    if plan.total == 0:
        empty = torch.empty(0, dtype=work, device=boundaries.device)
        return (empty,) * ESTIMATORS[name].outputs
    grid = Layout((longest, plan.sequences), 1, plan.sequences, plan.full, False)
    outputs = run(name, padded, scalars, grid, work)
    return tuple(
        torch.empty(plan.total, dtype=work, device=x.device).index_put_((index[inside],), x[inside]) for x in outputs
    )


def _backwards(
    name: str, scalars: tuple[Any, ...], r: Tensor, v: Tensor | None, full: Tensor | None, last: Tensor | None,
    e: Tensor, c: Tensor, m: Tensor | None, rho: Tensor | None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Rows `(T, N)` from the last to the first; NaN is selected away, never multiplied."""
    length, lanes = r.shape
    zero = torch.zeros((), dtype=r.dtype, device=r.device)
    n_steps = min(scalars[0], max(length, 1)) if name == "n_step_returns" else 1
    gamma = scalars[1] if name == "n_step_returns" else scalars[0]
    # What is kept of the row behind: n-step returns of every length, V-trace's difference and target, or one number.
    carry = [zero.expand(lanes)] * (2 if name == "vtrace" else n_steps)
    is_last = torch.ones(lanes, dtype=torch.bool, device=r.device)
    after = last
    rows: list[tuple[Tensor, ...]] = []
    for t in range(length - 1, -1, -1):
        following = full[t] if full is not None else after
        assert following is not None
        cut = e[t] | c[t] | is_last
        bootstrap = torch.where(e[t], zero, gamma * following)
        if name == "gae":
            assert v is not None
            result = r[t] - v[t] + bootstrap + torch.where(cut, zero, gamma * scalars[1] * carry[0])
            new = [result]
            row: tuple[Tensor, ...] = (result, result + v[t])
        elif name == "vtrace":
            assert v is not None
            assert rho is not None
            decay, (rho_clip, c_clip, pg_rho_clip) = gamma * scalars[1], scalars[2:]
            error = r[t] - v[t]
            difference = rho[t].clamp(max=rho_clip) * (error + bootstrap)
            difference = difference + rho[t].clamp(max=c_clip) * torch.where(cut, zero, decay * carry[0])
            q = torch.where(cut, bootstrap, gamma * (1.0 - scalars[1]) * following + decay * carry[1])
            new = [difference, v[t] + difference]
            row = (new[1], rho[t].clamp(max=pg_rho_clip) * (error + q))
        elif name == "retrace":
            assert v is not None
            assert rho is not None
            target = r[t] + bootstrap + torch.where(cut, zero, gamma * scalars[1] * carry[0])
            new = [rho[t].clamp(max=1.0) * (target - v[t])]
            row = (target,)
        elif name == "n_step_returns":
            new = [r[t] + bootstrap]
            new += [r[t] + torch.where(cut, bootstrap, gamma * carry[k - 1]) for k in range(1, n_steps)]
            row = (new[-1],)
        else:
            inside = gamma * carry[0]
            if name == "lambda_returns":
                inside = gamma * (1.0 - scalars[1]) * following + gamma * scalars[1] * carry[0]
            new = [r[t] + torch.where(cut, bootstrap, inside)]
            row = (new[0],)
        if m is not None:
            new = [torch.where(m[t], x, y) for x, y in zip(new, carry, strict=True)]
            row = tuple(torch.where(m[t], x, zero) for x in row)
        carry = new
        valid = m[t] if m is not None else torch.ones_like(is_last)
        is_last = is_last & ~valid
        if full is None and v is not None:
            after = torch.where(valid, v[t], following)
        rows.append(row)
    return tuple(torch.stack(column[::-1]) for column in zip(*rows, strict=True))
