"""Prioritized replay: transitions drawn in proportion to a power of their priority, with importance weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from fastac._arrays import is_tensor, positive_integer
from fastac.buffers import fields
from fastac.buffers.replay import ReplayBuffer, Transitions
from fastac.buffers.sum_tree import SumTree
from fastac_kernels import priorities as kernels
from fastac_kernels._jit import opened
from fastac_kernels.objects import READABLE
from fastac_kernels.priorities import sample_prioritized, set_exponents, set_new, update
from fastac_kernels.sampling import EMPTY

_ndarray, _empty, _new = np.ndarray, np.empty, tuple.__new__
_INT64, _FLOAT32, _FLOAT64 = np.dtype(np.int64), np.dtype(np.float32), np.dtype(np.float64)

_FLOATS = frozenset([_FLOAT32, _FLOAT64])
_ADDRESSES = [kernels.TREE, kernels.SERIALS, kernels.LEAVES]
_SCRATCH = 256


class PrioritizedReplayBuffer(ReplayBuffer):
    """A `ReplayBuffer` that draws in proportion to a power of each transition's priority p_i > 0.

        P(i) = p_i^alpha / sum_k p_k^alpha,   w_i = (N P(i))^-beta / max_j (N P(j))^-beta

    (Schaul et al. 2016, *Prioritized Experience Replay*, equation 1 and section 3.4). The importance weights w correct
    the bias; the maximum is that of the batch, so that its largest weight is 1. New transitions get the largest
    priority that was ever given, at first 1; fillers are never drawn. Whoever uses |TD error| adds a small constant.

    Draws are stratified (appendix B.2.1 of the paper): of a batch of B, each takes one of B equal parts of the total
    priority. Transition i's expected number of draws is B P(i), as of independent draws, with less variance. Rows come
    in the order of their places in the buffer, so a batch that is to be split is to be shuffled.

    Sums are kept in float64 in a tree whose nodes are recomputed from their children, never changed by differences:
    nothing drifts. p^alpha is kept between 2^-960 and 2^960. Everything else is as in `ReplayBuffer`.

    Args:
        capacity: As in `ReplayBuffer`, like all others but these:
        observation_space: As in `ReplayBuffer`.
        action_space: As in `ReplayBuffer`.
        alpha: How much priorities count, at least 0; with 0 all transitions are alike.
        beta: How much of the bias the weights correct where `sample` is not told, at least 0; 1 is all of it.
        options: As in `ReplayBuffer`.

    Raises:
        ValueError: As in `ReplayBuffer`, and where alpha or beta is negative or not finite.

    Example:
        >>> import numpy as np
        >>> example = {"observations": np.zeros(2, np.float32), "actions": np.int64(0)}
        >>> buffer = PrioritizedReplayBuffer.from_example(1000, example, alpha=1.0)
        >>> for t in range(4):
        ...     buffer.add(np.float32([t, t]), 0, 1.0, np.float32([t + 1, t + 1]), terminated=False, truncated=False)
        >>> buffer.update_priorities([0, 1, 2, 3], [1.0, 1.0, 2.0, 4.0])
        >>> batch = buffer.sample(8, beta=0.5)
        >>> batch.indices.tolist()
        [0, 1, 2, 2, 3, 3, 3, 3]
        >>> [round(weight, 4) for weight in batch.weights.tolist()]
        [1.0, 1.0, 0.7071, 0.7071, 0.5, 0.5, 0.5, 0.5]
        >>> buffer.max_priority
        4.0
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
        not_negative("alpha", alpha), not_negative("beta", beta)
        super().__init__(capacity, observation_space, action_space, **options)
        set_exponents(self._priorities, float(alpha), float(beta))

    @classmethod
    def from_example(
        cls, capacity: int, example: Mapping[str, Any], *, alpha: float = 0.6, beta: float = 0.4, **options: Any
    ) -> Self:
        """A buffer for transitions like the example.

        Args:
            capacity: As in `ReplayBuffer`.
            example: As in `ReplayBuffer.from_example`.
            alpha: As in the constructor.
            beta: As in the constructor.
            options: As in `ReplayBuffer.from_example`.

        Returns:
            An empty buffer.
        """
        not_negative("alpha", alpha), not_negative("beta", beta)
        buffer = super().from_example(capacity, example, **options)
        set_exponents(buffer._priorities, float(alpha), float(beta))
        return buffer

    def _more_arrays(self) -> dict[str, tuple[tuple[int, ...], DTypeLike]]:
        return {
            "leaves": ((SumTree.leaf_memory(self.capacity),), np.float64),
            "priorities": ((kernels.STATE_SIZE,), np.int64),
        }

    def _connect(self) -> None:
        super()._connect()
        arrays = self._storage.arrays
        self._words, self._reals = arrays["priorities"], arrays["priorities"].view(np.float64)
        self._priorities = self._words.ctypes.data
        self._sample_prioritized = opened(sample_prioritized)
        self._tree = SumTree(self.capacity, arrays["leaves"])
        self._weights: tuple[Any, NDArray[np.float32]] = None, _empty(0, _FLOAT32)
        self._grow_scratch(_SCRATCH)

    def _grow_scratch(self, size: int) -> None:
        """Room for what kernels keep of a batch."""
        self._scratch_size = size
        self._scratch = np.empty(size, np.int64), np.empty(size, np.float64)
        self._words[_ADDRESSES] = [self._tree.address, *(x.ctypes.data for x in self._scratch)]

    def _saved_arrays(self) -> dict[str, NDArray[Any]]:
        set_new(self._priorities, self._at)
        words = self._words.copy()
        words[_ADDRESSES] = 0
        leaves = self._tree.leaves[: min(self.added, self.capacity)]
        return super()._saved_arrays() | {"leaves": leaves, "priorities": words}

    def _restore(self, metadata: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> None:
        self._grow_scratch(_SCRATCH)
        self._tree.recompute()

    @property
    def alpha(self) -> float:
        """How much priorities count."""
        return float(self._reals[kernels.ALPHA])

    @property
    def beta(self) -> float:
        """How much of the bias the weights correct where `sample` is not told; it may be set."""
        return float(self._reals[kernels.BETA])

    @beta.setter
    def beta(self, beta: float) -> None:
        self._reals[kernels.BETA] = not_negative("beta", beta)

    @property
    def max_priority(self) -> float:
        """The largest priority that was ever given, which new transitions get; 1 before there was one above."""
        return float(self._reals[kernels.LARGEST])

    @property
    def stale_updates(self) -> int:
        """How many priorities were dropped since their transition had been overwritten."""
        return int(self._words[kernels.STALE])

    @property
    def total_priority(self) -> float:
        """sum_k p_k^alpha over all stored transitions."""
        with self._lock:
            set_new(self._priorities, self._at)
            return self._tree.total

    def sample(
        self,
        batch_size: int,
        *,
        beta: float | None = None,
        replace: bool = True,
        device: Any = None,
        out: Transitions | None = None,
    ) -> Transitions:
        """Draws a batch in proportion to p^alpha, stratified, with replacement.

        Args:
            batch_size: B.
            beta: Exponent of the importance weights, at least 0, usually raised to 1 in the course of training:
                `beta=min(1.0, 0.4 + 0.6 * step / total_steps)`. None: the buffer's.
            replace: True; there are no draws without replacement.
            device: As in `ReplayBuffer.sample`.
            out: As in `ReplayBuffer.sample`; its weights are float32.

        Returns:
            The batch; `weights` are the importance weights, `(B,)` float32, the largest of which is 1. Hand `indices`
            and new priorities to `update_priorities`.

        Raises:
            ValueError: The buffer holds nothing to draw, `beta` is negative or not finite, `replace` is False, or `out`
                does not fit.
            TypeError: `batch_size` is no integer, or `out` has other dtypes.
        """
        if type(batch_size) is not int or batch_size < 1:
            batch_size = positive_integer("batch_size", batch_size)
        beta = self.beta if beta is None else beta
        if not (type(beta) is float and 0.0 <= beta < math.inf):
            beta = not_negative("beta", beta)
        if not replace:
            raise ValueError("replace: got False, expected True: prioritized draws are with replacement")
        if out is None:
            batch, items = self._allocate(batch_size, device)
            weights = _empty(batch_size, _FLOAT32)
            returned = weights if device is None else _tensor(weights)
            batch = _new(Transitions, (*batch[:8], returned, batch[9]))
        else:
            batch, items = out, self._items_of(out, batch_size)
            weights = self._weights_of(out, items, batch_size)
        with self._lock:
            if batch_size > self._scratch_size:
                self._grow_scratch(batch_size)
            code = self._sample_prioritized(self._priorities, self._at, items, weights, beta) if READABLE else 0
            if code >= 0:
                self._check_out(items, batch_size)
                code = self._sample_prioritized(self._priorities, self._at, None, weights, beta)
            if code == EMPTY:
                raise ValueError("sample: the buffer holds no transition to draw")
        return batch if device is None or out is not None else self._on_device(batch, device)

    def _weights_of(self, out: Transitions, items: tuple[Any, ...], size: int) -> NDArray[np.float32]:
        """The memory of a batch's weights, checked where the batch is not the one that was filled last."""
        if out is self._weights[0] and len(self._weights[1]) == size:
            return self._weights[1]
        weights: Any = out.weights
        if is_tensor(weights) and weights.device.type == "cpu":
            weights = weights.numpy()
        if not isinstance(weights, _ndarray) or weights.dtype != _FLOAT32 or weights.shape != (size,):
            raise ValueError(f"out: weights: got {weights!r}, expected ({size},) float32")
        if not weights.flags.carray:
            raise ValueError("out: weights: expected C-contiguous, writable memory")
        for field, x in zip(self._output_fields, items, strict=True):
            if isinstance(x, _ndarray) and np.may_share_memory(x, weights):
                raise ValueError(f"out: weights: shares memory with {field.name}")
        self._weights = out, weights
        return weights

    def update_priorities(self, indices: Any, priorities: Any) -> None:
        """Gives transitions new priorities. Either all are written or, after an error, none.

        Those whose transition was overwritten meanwhile are dropped and counted in `stale_updates`. Where an index
        comes more than once its last priority stays.

        Args:
            indices: `(B,)` integers: the `indices` of a batch.
            priorities: `(B,)`, raw: without the exponent alpha. Above 0 and finite.

        Raises:
            ValueError: A priority is 0, negative, NaN or infinite, the shapes differ, or an index belongs to a filler.
            IndexError: An index belongs to no transition that was ever added.
            TypeError: `indices` are no integers, or `priorities` no numbers.

        Example:
            >>> import numpy as np
            >>> example = {"observations": np.zeros(1, np.float32), "actions": np.int64(0)}
            >>> buffer = PrioritizedReplayBuffer.from_example(2, example)
            >>> for t in range(3):
            ...     buffer.add(np.float32([t]), 0, 1.0, np.float32([t + 1]), terminated=False, truncated=False)
            >>> buffer.update_priorities([0, 1], [0.5, 0.25])  # transition 0 has been overwritten by number 2
            >>> buffer.stale_updates
            1
        """
        which, values = indices, priorities
        if type(which) is not _ndarray or which.dtype is not _INT64 or not which.flags.carray:
            which = _integers(which)
        if type(values) is not _ndarray or values.dtype not in _FLOATS or not values.flags.carray:
            values = np.require(fields.array_of("priorities", values), _FLOAT64, ("C", "W"))
        if which.ndim != 1 or which.shape != values.shape:
            raise ValueError(
                f"priorities: got shape {values.shape} for indices of shape {which.shape}, expected (B,) for both"
            )
        with self._lock:
            if len(which) > self._scratch_size:
                self._grow_scratch(len(which))
            code, i = update(self._priorities, self._at, which, values)
            added = self.added
        if code == kernels.BAD_INDEX:
            raise IndexError(f"indices: got {which[i]}, which was never added; so far there are 0 to {added - 1}")
        if code == kernels.BAD_PRIORITY:
            raise ValueError(f"priorities: got {values[i]} for index {which[i]}, expected finite numbers above 0")
        if code == kernels.FILLER:
            raise ValueError(f"indices: got {which[i]}, which is a filler (mask False): it has no priority")


def not_negative(name: str, value: Any) -> float:
    """`value` as a float, if it is a finite number of at least 0."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not 0 <= value < math.inf:
        raise ValueError(f"{name}: got {value!r}, expected a finite number of at least 0")
    return float(value)


def _integers(indices: Any) -> NDArray[np.int64]:
    found = fields.array_of("indices", indices)
    if found.dtype.kind not in "iu" and found.size:
        raise TypeError(f"indices: got dtype {found.dtype}, expected integers")
    return np.require(found, _INT64, ("C", "W"))


def _tensor(array: NDArray[Any]) -> Any:
    import torch

    return torch.from_numpy(array)
