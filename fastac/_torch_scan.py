"""The estimators by torch operations: right on every device, for where no kernel of ours can run.

Each is a recurrence backwards in time, cut where an episode or a window ends:

    x_t = b_t + a_t x_{t+1},   and x_t = b_t where it is cut

It is solved by doubling (Hillis and Steele 1986, *Data Parallel Algorithms*): after pass k every row stands for 2^k
rows, so that T rows take log2(T) passes over memory instead of T. Nothing is read back from the device, and nothing
depends on what is in memory but the results: a CUDA graph can be captured around it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastac._arrays import Arguments, Layout
from fastac._estimators import ESTIMATORS


def solve(b: Tensor, a: Tensor | float, cut: Tensor) -> Tensor:
    """Solves the recurrence above along the first dimension; the last row's successor counts as 0.

    NaN and infinity behind a cut are not read. Elsewhere they spread as one step after the other would have it:
    products of many factors above 0 are not let down to 0.

    Args:
        b: `(T, N)`.
        a: At least 0: `(T, N)`, or one for all.
        cut: `(T, N)`, boolean.
    """
    least = torch.finfo(b.dtype).tiny
    distance = 1
    while distance < len(b):
        here = slice(None, -distance)
        factor = a[here] if isinstance(a, Tensor) else a
        ahead = torch.where(cut[here], b[here], b[here] + factor * b[distance:])
        b = torch.cat([ahead, b[-distance:]])
        if isinstance(a, Tensor):
            one, other = a[here], a[distance:]
            product = one * other
            product = torch.where(torch.minimum(one, other) > 0, product.clamp(min=least), product)
            a = torch.cat([product, a[-distance:]])
        else:
            a = max(a * a, least) if a > 0 else 0.0
        cut = torch.cat([cut[here] | cut[distance:], cut[-distance:]])
        distance *= 2
    return b


class Window(NamedTuple):
    """What every row needs to know of its surroundings."""

    mask: Tensor | None  # (T, N)
    after: Tensor | None  # (T, N), where its successor is; None: in the next row
    has_next: Tensor  # (T, N) or (T, 1): there is one in the same sequence
    short: Tensor | None  # what its sequence's short next value is, to be broadcast

    def shifted(self, x: Tensor) -> Tensor:
        """`x` of each row's successor; anything where there is none."""
        return torch.cat([x[1:], x[-1:]]) if self.after is None else x.gather(0, self.after)

    def selected(self, x: Tensor) -> Tensor:
        """`x`, and 0 where the row is not in time."""
        return x if self.mask is None else torch.where(self.mask, x, 0.0)

    def solve(self, b: Tensor, a: Tensor | float, cut: Tensor) -> Tensor:
        """Rows that are not in time pass on what they get."""
        if self.mask is None:
            return solve(b, a, cut)
        factors = a if isinstance(a, Tensor) else torch.full_like(b, a)
        return solve(self.selected(b), torch.where(self.mask, factors, 1.0), cut & self.mask)


def _window(mask: Tensor | None, like: Tensor, cu_seqlens: Tensor | None, short: Tensor | None) -> Window:
    length, lanes = like.shape
    t = torch.arange(length, device=like.device).unsqueeze(1)
    ends: Tensor | int = length
    if cu_seqlens is not None:
        boundaries = cu_seqlens.to(torch.int64)
        sequence = torch.searchsorted(boundaries, t, right=True) - 1
        ends = boundaries[sequence + 1]
        short = None if short is None else short.expand(len(boundaries) - 1)[sequence]
    elif short is not None:
        short = short.expand(lanes)
    if mask is None:
        return Window(None, None, t + 1 < ends, short)
    valid = torch.where(mask, t, length)
    later = torch.cat([valid[1:], torch.full_like(valid[:1], length)])
    after = later.flip(0).cummin(0).values.flip(0)
    return Window(mask, after.clamp(max=length - 1), after < ends, short)


def run(
    name: str, arguments: Arguments, scalars: tuple[Any, ...], plan: Layout, work: torch.dtype
) -> tuple[Tensor, ...]:
    """Evaluates an estimator over all rows and sequences at once.

    Args:
        name: Of the estimator.
        arguments: Checked; `next_values` is a tensor.
        scalars: Its scalars.
        plan: How memory is cut into sequences.
        work: float32 or float64.

    Returns:
        The outputs in dtype `work` and the caller's shape.
    """
    rewards, values, next_values, terminated, truncated, mask, cu_seqlens, batch_first, log_ratios = arguments
    if plan.total == 0:
        return tuple(torch.empty_like(rewards, dtype=work) for _ in range(ESTIMATORS[name].outputs))

    def rows(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        if x is None:
            return None
        x = x.detach()
        x = x.to(dtype) if dtype.is_floating_point else x != 0
        x = x.t() if batch_first else x
        return x if x.ndim == 2 else x.unsqueeze(1)

    r, v, rho = rows(rewards, work), rows(values, work), rows(log_ratios, work)
    assert r is not None
    full = rows(next_values, work) if plan.full else None
    short = None if plan.full else next_values.detach().to(work)
    e, c, m = (rows(x, torch.bool) for x in (terminated, truncated, mask))
    window = _window(m, r, cu_seqlens, short)
    nothing = torch.zeros(r.shape, dtype=torch.bool, device=r.device)
    ended = nothing if e is None else e
    cut = ended | ~window.has_next
    cut = cut if c is None else cut | c
    if full is None:
        assert window.short is not None
        full = window.short.expand(r.shape)
        full = full if v is None else torch.where(window.has_next, window.shifted(v), full)
    outputs = _estimate(name, scalars, r, v, full, ended, cut, None if rho is None else rho.exp(), window)
    shape = rewards.shape
    return tuple((x.t() if batch_first else x).reshape(shape) for x in map(window.selected, outputs))


def _estimate(
    name: str, scalars: tuple[Any, ...], r: Tensor, v: Tensor | None, following: Tensor, ended: Tensor, cut: Tensor,
    rho: Tensor | None, window: Window,
) -> tuple[Tensor, ...]:  # fmt: skip
    """The outputs `(T, N)`, those of rows that are not in time being anything."""
    gamma = scalars[1] if name == "n_step_returns" else scalars[0]
    bootstrap = torch.where(ended, 0.0, gamma * following)
    if name == "n_step_returns":
        return (_n_step_returns(scalars[0], gamma, r, bootstrap, cut, window),)
    if name == "discounted_returns":
        return (window.solve(r + torch.where(cut, bootstrap, 0.0), gamma, cut),)
    decay = gamma * scalars[1]
    if name == "lambda_returns":
        inside = gamma * (1.0 - scalars[1]) * following
        return (window.solve(r + torch.where(cut, bootstrap, inside), decay, cut),)
    assert v is not None
    if name == "gae":
        advantages = window.solve(r - v + bootstrap, decay, cut)
        return advantages, advantages + v
    assert rho is not None
    if name == "vtrace":
        rho_clip, c_clip, pg_rho_clip = scalars[2:]
        error = r - v
        targets = v + window.solve(rho.clamp(max=rho_clip) * (error + bootstrap), decay * rho.clamp(max=c_clip), cut)
        q = gamma * (1.0 - scalars[1]) * following + decay * window.shifted(targets)
        return targets, rho.clamp(max=pg_rho_clip) * (error + torch.where(cut, bootstrap, q))
    traces = rho.clamp(max=1.0)
    differences = window.solve(traces * (r + bootstrap - v), decay * traces, cut)
    return (r + bootstrap + torch.where(cut, 0.0, decay * window.shifted(differences)),)


def _n_step_returns(n: int, gamma: float, r: Tensor, bootstrap: Tensor, cut: Tensor, window: Window) -> Tensor:
    """Sums of n - 1 rows put together from those of 1, 2, 4, ... rows, then one row with its bootstrap.

    A sum of k rows from t on is what was summed, where the next row is, and whether the episode or the window ended.
    """
    length = len(r)
    after = window.after
    if after is None:
        t = torch.arange(length, device=r.device).unsqueeze(1)
        after = (t + 1).clamp(max=length - 1).expand(r.shape)

    def then(first: tuple[Tensor, Tensor, Tensor], discount: float, second: tuple[Tensor, ...]) -> Tensor:
        sums, at, over = first
        return torch.where(over, sums, sums + discount * second[0].gather(0, at))

    def joined(first: tuple[Tensor, Tensor, Tensor], count: int, second: tuple[Tensor, Tensor, Tensor]) -> Any:
        _, at, over = first
        return then(first, gamma**count, second), second[1].gather(0, at), over | second[2].gather(0, at)

    power = (torch.where(cut, r + bootstrap, r), after, cut)
    found, taken, size, wanted = None, 0, 1, min(n, length) - 1
    while wanted:
        if wanted & 1:
            found = power if found is None else joined(found, taken, power)
            taken += size
        wanted >>= 1
        if wanted:
            power, size = joined(power, size, power), 2 * size
    return r + bootstrap if found is None else then(found, gamma**taken, (r + bootstrap,))
