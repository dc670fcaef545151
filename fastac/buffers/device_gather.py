"""Batches out of a ring on the device: one CUDA kernel where it can run, torch operations anywhere."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastac import _torch_cuda
from fastac.buffers.packing import Packing

__all__ = ["Gathered", "Ring", "gather"]


class Ring(NamedTuple):
    """Packed rows on the device, written one after the other, and what targets need.

    Attributes:
        rows: `(capacity, packing.row)` bytes; the transition with serial number i lies in row i modulo the capacity.
        packing: Where fields lie in a row.
        added: `()` int64, rows ever added.
        powers: `(n_step + 1,)` float64, gamma^k.
        step: From a row to the next of the same environment.
        n_step: The most rows of a target.
    """

    rows: Tensor
    packing: Packing
    added: Tensor
    powers: Tensor
    step: int
    n_step: int


class Gathered(NamedTuple):
    """Of B draws: their rows, the rows their targets end in, discounted sums of rewards, and gamma^m.

    Of `last_rows`, `(B, packing.row)`, what lies before `packing.following` may be anything.
    """

    rows: Tensor
    last_rows: Tensor
    rewards: Tensor
    discounts: Tensor


def gather(ring: Ring, serials: Tensor) -> Gathered:
    """The transitions with those serial numbers, all of them stored; nothing waits for the device.

    Args:
        ring: Where they are.
        serials: `(B,)` int64.
    """
    found = by_kernel(ring, serials) if ring.rows.is_cuda else None
    return by_torch(ring, serials) if found is None else found


def by_torch(ring: Ring, serials: Tensor) -> Gathered:
    """By some sixteen operations for every step of a target."""
    capacity, views = len(ring.rows), ring.packing.views
    rows = ring.rows.index_select(0, serials.remainder(capacity))
    rewards = views(rows)["rewards"]
    if ring.n_step == 1:
        return Gathered(rows, rows, rewards, _one_step(ring, len(serials)))
    columns = views(ring.rows)
    last, going = serials, torch.ones_like(serials, dtype=torch.bool)
    total, taken = rewards.to(torch.float64), torch.ones_like(serials)
    for k in range(1, ring.n_step):
        following = last + ring.step
        cut = columns["cut"][last.remainder(capacity)]
        going = going & ~cut & (following < ring.added)
        last = torch.where(going, following, last)
        reward = columns["rewards"][last.remainder(capacity)].to(torch.float64)  # a power alone would be made float32
        total = total + torch.where(going, ring.powers[k] * reward, 0.0)
        taken = taken + going
    last_rows = ring.rows.index_select(0, last.remainder(capacity))
    return Gathered(rows, last_rows, total.to(torch.float32), ring.powers[taken].to(torch.float32))


def by_kernel(ring: Ring, serials: Tensor) -> Gathered | None:
    """By one launch on the current stream; None where kernels cannot run."""
    cuda = _torch_cuda.kernels()
    if cuda is None:
        return None
    serials = serials.contiguous()
    (count,), (capacity, row_bytes), device = serials.shape, ring.rows.shape, ring.rows.get_device()
    rows = ring.rows.new_empty((count, row_bytes))
    storage, offsets, more = ring.rows.data_ptr(), ring.packing.offsets, ring.n_step > 1
    if more:
        last_rows, targets = torch.empty_like(rows), ring.powers.new_empty((2, count), dtype=torch.float32)
    try:
        cuda.gather_transitions_at(
            storage, storage + offsets["rewards"], storage + offsets["cut"], serials.data_ptr(), ring.added.data_ptr(),
            ring.powers.data_ptr(), rows.data_ptr(), last_rows.data_ptr() if more else 0,
            targets[0].data_ptr() if more else 0, targets[1].data_ptr() if more else 0, count, capacity, ring.step,
            ring.n_step, row_bytes, ring.packing.following.start, _torch_cuda.stream_of(device), device,
        )  # fmt: skip
    except Exception as error:
        _torch_cuda.refused(error)
        return None
    if not more:
        return Gathered(rows, rows, ring.packing.views(rows)["rewards"], _one_step(ring, count))
    return Gathered(rows, last_rows, targets[0], targets[1])


def _one_step(ring: Ring, count: int) -> Tensor:
    return ring.powers[1].to(torch.float32).expand(count)
