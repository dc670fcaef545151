"""Tensors as the kernels of every device want their memory: contiguous, of one float dtype, flags as bytes."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fastac._arrays import Arguments, Layout

# A kernel takes its dtype from a scalar of that dtype.
LIKE = {torch.float32: np.float32(0), torch.float64: np.float64(0)}
WORK = {torch.float16: torch.float32, torch.bfloat16: torch.float32}


def result_dtype(arguments: Arguments) -> torch.dtype:
    """That of the outputs."""
    anchor: Tensor = arguments.rewards if arguments.values is None else arguments.values
    return anchor.dtype if anchor.is_floating_point() else torch.get_default_dtype()


def is_transposed(arguments: Arguments) -> bool:
    """Whether memory holds the transpose of what the caller sees; results then lie in memory alike."""
    anchor: Tensor = arguments.rewards if arguments.values is None else arguments.values
    return anchor.ndim == 2 and not anchor.is_contiguous() and anchor.t().is_contiguous()


def floats(x: Tensor, work: torch.dtype, *, transposed: bool = False) -> Tensor:
    """Contiguous numbers of dtype `work`, without a copy where they are that already."""
    x = x.detach()
    if x.dtype is not work:
        x = x.to(work)
    if x.is_neg():
        x = x.resolve_neg()
    return (x.t() if transposed else x).contiguous()


def flags(x: Tensor | None, *, transposed: bool = False) -> Tensor | None:
    """Contiguous bytes, not 0 meaning True."""
    if x is None:
        return None
    x = x.detach()
    if x.dtype not in (torch.bool, torch.uint8, torch.int8):
        x = x != 0
    return (x.t() if transposed else x).contiguous()


def operands(
    arguments: Arguments, plan: Layout, work: torch.dtype, *, reads_ratios: bool, transposed: bool
) -> list[Tensor | None]:
    """What an estimator's kernel takes before `cu_seqlens`: ratios if it reads them, numbers, flags."""
    rewards, values, next_values, terminated, truncated, mask, _, _, log_ratios = arguments
    memory: list[Tensor | None] = [floats(log_ratios, work, transposed=transposed)] if reads_ratios else []
    memory += [None if x is None else floats(x, work, transposed=transposed) for x in (rewards, values)]
    counted = plan.sequences * plan.lanes
    if plan.full:
        memory += [floats(next_values, work, transposed=transposed), None]
    elif isinstance(next_values, Tensor):
        memory += [None, next_values.detach().to(work).expand(counted).contiguous()]
    else:
        memory += [None, torch.full((counted,), float(next_values), dtype=work, device=rewards.device)]
    return memory + [flags(x, transposed=transposed) for x in (terminated, truncated, mask)]
