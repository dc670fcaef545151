"""Prioritized replay on the learner's device: priorities, draws and importance weights without a round trip."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastac._arrays import positive_integer
from fastac.buffers import fields
from fastac.buffers.device import DeviceReplayBuffer, integers
from fastac.buffers.prioritized import not_negative
from fastac.buffers.replay import Transitions
from fastac.buffers.transfer import sent
from fastac_kernels.priorities import LARGEST_LEAF, SMALLEST_LEAF

__all__ = ["DevicePrioritizedReplayBuffer"]


class DevicePrioritizedReplayBuffer(DeviceReplayBuffer):
    """`PrioritizedReplayBuffer` with everything on the device.

        P(i) = p_i^alpha / sum_k p_k^alpha,   w_i = (N P(i))^-beta / max_j (N P(j))^-beta

    (Schaul et al. 2016, *Prioritized Experience Replay*, equation 1 and section 3.4; the maximum is that of the batch.)
    New transitions get the largest priority so far, at first 1. Draws are stratified (appendix B.2.1).

    p^alpha lie in rows of about sqrt(capacity), whose sums are kept, in float64: an update sums the rows that it
    touched anew, a draw finds its row by prefix sums and a search, then its place in the row. Never by differences, and
    never a transition of priority 0. Sums along rows are the same in every run, which a prefix sum over the whole, in
    one piece, is not on CUDA.

    **What is wrong with an update is found without waiting for the device.** Arrays and CPU tensors are looked at where
    they are: a priority that is 0, negative, NaN or infinite is a `ValueError` at once. With tensors on CUDA such an
    update writes nothing, all or none, and is counted on the device; `check` reads the count, and so do `save`,
    `refused_updates` and pickling's callers: a learner that calls `check` once in a while misses nothing.

    Args:
        capacity: As in `DeviceReplayBuffer`, like all others but these:
        observation_space: As in `DeviceReplayBuffer`.
        action_space: As in `DeviceReplayBuffer`.
        alpha: How much priorities count, at least 0; with 0 all transitions are alike.
        beta: How much of the bias the weights correct where `sample` is not told, at least 0.
        options: As in `DeviceReplayBuffer`.

    Raises:
        ValueError: As in `DeviceReplayBuffer`, and where alpha or beta is negative or not finite.

    Example:
        >>> example = {"observations": np.zeros(2, np.float32), "actions": np.int64(0)}
        >>> buffer = DevicePrioritizedReplayBuffer.from_example(1000, example, alpha=1.0, device="cpu")
        >>> for t in range(4):
        ...     buffer.add(torch.full((1, 2), t), [0], [1.0], torch.full((1, 2), t + 1), [False], [False])
        >>> buffer.update_priorities(torch.arange(4), torch.tensor([1.0, 1.0, 2.0, 4.0]))
        >>> batch = buffer.sample(8, beta=0.5)
        >>> batch.indices.tolist()
        [0, 1, 2, 2, 3, 3, 3, 3]
        >>> [round(weight, 4) for weight in batch.weights.tolist()]
        [1.0, 1.0, 0.7071, 0.7071, 0.5, 0.5, 0.5, 0.5]
    """

    def __init__(
        self,
        capacity: int,
        observation_space: Any,
        action_space: Any,
        *,
        alpha: float = 0.6,
        beta: float = 0.4,
        **options: Any,
    ):
        self.alpha, self.beta = not_negative("alpha", alpha), not_negative("beta", beta)
        super().__init__(capacity, observation_space, action_space, **options)

    @classmethod
    def from_example(
        cls, capacity: int, example: Mapping[str, Any], *, alpha: float = 0.6, beta: float = 0.4, **options: Any
    ) -> Self:
        """A buffer for transitions like the example.

        Args:
            capacity: As in `DeviceReplayBuffer`.
            example: As in `ReplayBuffer.from_example`.
            alpha: As in the constructor.
            beta: As in the constructor.
            options: As in `DeviceReplayBuffer.from_example`.
        """
        buffer = super().from_example(capacity, example, **options)
        buffer.alpha, buffer.beta = not_negative("alpha", alpha), not_negative("beta", beta)
        return buffer

    def _create(self) -> None:
        super()._create()
        real: dict[str, Any] = {"dtype": torch.float64, "device": self.device}
        width = 1 << max(3, (self.capacity.bit_length() + 1) // 2)
        height = -(-self.capacity // width)
        # One place more than there are, for what is to be written nowhere.
        self._leaves = torch.zeros(height * width + 1, **real)
        self._table = self._leaves[:-1].view(height, width)
        self._sums = torch.zeros(height, **real)
        self._largest = torch.ones((), **real)
        self._counts = torch.zeros(2, dtype=torch.int64, device=self.device)
        self._stale, self._refused = self._counts

    @property
    def max_priority(self) -> float:
        """The largest priority that was ever given, which new transitions get; waits for the device."""
        return float(self._largest)

    @property
    def stale_updates(self) -> int:
        """How many priorities were dropped since their transition had been overwritten; waits for the device."""
        return int(self._stale)

    @property
    def refused_updates(self) -> int:
        """How many calls of `update_priorities` wrote nothing since one of theirs was wrong; waits for the device."""
        return int(self._refused)

    @property
    def total_priority(self) -> float:
        """sum_k p_k^alpha over all stored transitions; waits for the device."""
        return float(self._sums.sum())

    def check(self) -> None:
        """Raises for updates that were refused on the device; waits for it.

        Raises:
            ValueError: Some were, since the buffer was made.
        """
        if count := self.refused_updates:
            raise ValueError(
                f"priorities: {count} updates had one that is not finite and above 0, or an index of no transition, "
                "and were left out"
            )

    def _leaf(self, priorities: Tensor) -> Tensor:
        return priorities.pow(self.alpha).clamp(SMALLEST_LEAF, LARGEST_LEAF)

    def _wrote(self, place: slice, valid: Tensor) -> None:
        self._leaves[place] = torch.where(valid, self._leaf(self._largest), 0.0)
        width = self._table.shape[1]
        rows = slice(place.start // width, (place.stop - 1) // width + 1)
        self._sums[rows] = self._table[rows].sum(1)

    def sample(
        self,
        batch_size: int,
        *,
        beta: float | None = None,
        replace: bool = True,
        device: torch.device | str | None = None,
        out: Transitions | None = None,
    ) -> Transitions:
        """Draws a batch in proportion to p^alpha, stratified, with replacement, queued on the current stream.

        Args:
            batch_size: B.
            beta: Exponent of the importance weights; None: the buffer's.
            replace: True; there are no draws without replacement.
            device: As in `DeviceReplayBuffer.sample`.
            out: As in `DeviceReplayBuffer.sample`; its weights are float32.

        Returns:
            The batch; `weights` `(B,)` float32, the largest of which is 1. Rows come in the order of their places in
            the buffer.

        Raises:
            ValueError: There is nothing to draw (looked at as in `DeviceReplayBuffer.sample`), `beta` is negative or
                not finite, or `replace` is False.
            TypeError: `batch_size` is no integer.
        """
        batch_size = positive_integer("batch_size", batch_size)
        beta = self.beta if beta is None else not_negative("beta", beta)
        if not replace:
            raise ValueError("replace: got False, expected True: prioritized draws are with replacement")
        with self._lock:
            self._check_filled(1, always=False)
            uniform = torch.rand(batch_size, dtype=torch.float64, device=self.device, generator=self._generator)
            strata = (torch.arange(batch_size, device=self.device) + uniform) / batch_size
            # A matrix of one row twice: of a vector, CUDA's prefix sum differs from run to run in its last bits.
            upto = self._sums.expand(2, -1).cumsum(1)[0]
            row, rest = _find(upto, self._sums, strata * upto[-1])
            weights = self._table[row]
            column, _ = _find(weights.cumsum(1), weights, rest)
            slot = row * self._table.shape[1] + column
            leaves = self._leaves[slot]
            turn = self._on_device - self._on_device.remainder(self.capacity)
            serials = slot + turn
            serials = torch.where(serials < self._on_device, serials, serials - self.capacity)
            batch = self._gathered(serials)
            corrections = (leaves / leaves.amin()).pow(-beta).to(torch.float32)
            return self._handed(batch._replace(weights=corrections), device, out)

    def update_priorities(self, indices: Any, priorities: Any) -> None:
        """Gives transitions new priorities. Either all are written or, where one is wrong, none.

        Those whose transition was overwritten meanwhile are dropped and counted in `stale_updates`. Where an index
        comes more than once its last priority stays.

        Args:
            indices: `(B,)` integers: the `indices` of a batch.
            priorities: `(B,)`, raw: without the exponent alpha. Above 0 and finite.

        Raises:
            ValueError: The shapes differ. Not on CUDA tensors, see the class: a priority is 0, negative, NaN or
                infinite, or an index belongs to a filler.
            IndexError: Likewise: an index belongs to no transition that was ever added.
            TypeError: `indices` are no integers.
        """
        which, values = self._given(indices, priorities)
        if len(which) == 0:
            return
        with self._lock:
            oldest = max(self.added - self.capacity, 0)
            slots = which.remainder(self.capacity)
            stale = which < oldest
            known = (which >= 0) & (which < self.added)
            filler = ~stale & (self._leaves[slots] == 0.0)
            good = (values > 0.0) & (values < math.inf)
            fine = (known & good & ~filler).all()
            if self._may_read and not bool(fine):
                self._raise(which, values, known, good)
            trash = len(self._leaves) - 1
            written = fine & ~stale
            slots = _last_of_each(torch.where(written, slots, trash), trash)
            self._leaves.scatter_(0, slots, self._leaf(values))
            rows = slots.div(self._table.shape[1], rounding_mode="floor").clamp(max=len(self._sums) - 1)
            self._sums.scatter_(0, rows, self._table[rows].sum(1))
            self._counts += torch.stack([(stale & fine).sum(), (~fine).to(torch.int64)])
            self._largest.copy_(torch.maximum(self._largest, torch.where(written, values, 0.0).amax()))

    def _given(self, indices: Any, priorities: Any) -> tuple[Tensor, Tensor]:
        """Both on the device; what comes from the host is looked at there."""
        if isinstance(indices, Tensor) and indices.device == self.device:
            if indices.is_floating_point() or indices.dtype is torch.bool:
                raise TypeError(f"indices: got dtype {indices.dtype}, expected integers")
            which = indices.detach().to(torch.int64)
        else:
            host = integers(indices)
            if len(host) and not (host.min() >= 0 and host.max() < self.added):
                wrong = host[(host < 0) | (host >= self.added)][0]
                raise IndexError(f"indices: got {wrong}, which was never added; so far there are 0 to {self.added - 1}")
            which = sent(torch.from_numpy(host), self.device)
        if isinstance(priorities, Tensor) and priorities.device == self.device:
            values = priorities.detach().to(torch.float64)
        else:
            given = np.array(fields.array_of("priorities", priorities), np.float64)
            bad = given[~((given > 0) & (given < np.inf))]
            if len(bad):
                raise ValueError(f"priorities: got {bad[0]}, expected finite numbers above 0")
            values = sent(torch.from_numpy(given), self.device)
        if which.ndim != 1 or which.shape != values.shape:
            raise ValueError(
                f"priorities: got shape {tuple(values.shape)} for indices of shape {tuple(which.shape)}, expected (B,) "
                "for both"
            )
        return which, values

    def _raise(self, which: Tensor, values: Tensor, known: Tensor, good: Tensor) -> None:
        if not bool(known.all()):
            wrong = int(which[~known][0])
            raise IndexError(f"indices: got {wrong}, which was never added; so far there are 0 to {self.added - 1}")
        if not bool(good.all()):
            raise ValueError(f"priorities: got {float(values[~good][0])}, expected finite numbers above 0")
        raise ValueError("indices: one belongs to a filler (mask False): it has no priority")

    def _saved_metadata(self) -> dict[str, Any]:
        return super()._saved_metadata() | {"alpha": self.alpha, "beta": self.beta}

    def _saved_tensors(self) -> dict[str, Tensor]:
        leaves = self._leaves[: self.capacity]
        return super()._saved_tensors() | {"leaves": leaves, "largest": self._largest, "counts": self._counts}

    def _restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        super()._restore(arrays)
        self._sums.copy_(self._table.sum(1))

    @classmethod
    def _rebuilt(
        cls, metadata: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], device: torch.device | str | None = None
    ) -> Self:
        buffer = super()._rebuilt(metadata, arrays, device)
        buffer.alpha, buffer.beta = metadata["alpha"], metadata["beta"]
        return buffer


def _find(upto: Tensor, weights: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Where in prefix sums each target falls, and how far into that place.

    Rounding may put a target at a place of weight 0, or behind the last one: the first place above 0 whose sum exceeds
    the target is taken, else the last place above 0.

    Args:
        upto: `(K,)` or `(B, K)`, sums up to and with each place.
        weights: Likewise.
        targets: `(B,)`.
    """
    places = torch.arange(upto.shape[-1], device=upto.device)
    inside = weights > 0.0
    first = torch.where(inside & (upto > targets.unsqueeze(1)), places, upto.shape[-1]).amin(1)
    last = torch.where(inside, places, 0).amax(-1)
    found = torch.minimum(first, last)
    if upto.ndim == 1:
        before = upto[found] - weights[found]
    else:
        before = (upto - weights).gather(1, found.unsqueeze(1)).squeeze(1)
    return found, (targets - before).clamp(min=0.0)


def _last_of_each(slots: Tensor, trash: int) -> Tensor:
    """`slots`, but for the last occurrence of each replaced by `trash`: writes then do not depend on their order."""
    ordered, order = slots.sort(stable=True)
    last = torch.cat([ordered[1:] != ordered[:-1], torch.ones_like(ordered[:1], dtype=torch.bool)])
    return torch.empty_like(slots).scatter_(0, order, torch.where(last, ordered, trash))
