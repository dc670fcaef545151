"""A sum tree over numpy memory: draws in proportion to its leaves."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastac_kernels.sum_tree import ARITY, draw_at, recompute_range_at, set_leaves_at


class SumTree:
    """Leaves >= 0 in float64, set in batches, and drawn in proportion to their value.

    Each node's total is the sum of its sixteen children from the first to the last, always recomputed: a tree depends
    on its leaves alone, bit for bit. A leaf that is 0 is never drawn. Not locked: one thread at a time.

    Args:
        capacity: Number of leaves; they begin as 0.
        leaves: Memory of at least `leaf_memory(capacity)` float64 for them, 0 beyond the last one.
            None: allocated here.

    Attributes:
        leaves: `(capacity,)`.
        address: Of the header, for kernels.

    Raises:
        ValueError: capacity is below 1, or `leaves` is not such memory.

    Example:
        >>> tree = SumTree(3)
        >>> tree.set([0, 2], [1.0, 3.0])
        >>> tree.total
        4.0
        >>> leaves, values = tree.draw(4, seed=0, counter=0)
        >>> leaves.tolist(), values.tolist()  # stratified: one draw in each quarter of the total
        ([0, 2, 2, 2], [1.0, 3.0, 3.0, 3.0])
    """

    def __init__(self, capacity: int, leaves: NDArray[np.float64] | None = None):
        if capacity < 1:
            raise ValueError(f"capacity: got {capacity}, expected at least 1")
        nodes = [-(-capacity // ARITY)]
        while nodes[-1] > 1:
            nodes.append(-(-nodes[-1] // ARITY))
        size = nodes[0] * ARITY
        if leaves is None:
            leaves = _aligned(size)
        if leaves.dtype != np.float64 or leaves.ndim != 1 or len(leaves) < size or not leaves.flags.carray:
            raise ValueError(f"leaves: got {leaves.dtype} {leaves.shape}, expected ({size},) float64, contiguous")
        self.capacity = capacity
        self.leaves = leaves[:capacity]
        inner = _aligned(2 * ARITY * sum(nodes[1:]) + 1)
        marks, touched = np.zeros(sum(nodes), np.uint8), np.empty(nodes[0] + 1, np.int64)
        header = [len(nodes), touched.ctypes.data]
        free, mark = inner.ctypes.data, marks.ctypes.data
        for level, count in enumerate(nodes):
            values = free if level else leaves.ctypes.data
            sums = values + 8 * ARITY * count if level else 0
            free = sums + 8 * ARITY * count if level else free
            header += [values, sums, mark]
            mark += count
        self._header = np.array([*header, free, 0, 0], np.int64)
        self._memory = leaves, inner, marks, touched
        self._total = inner[-1:]
        self.address: int = self._header.ctypes.data
        self.recompute()

    def __reduce__(self) -> tuple[Any, ...]:
        # The header holds addresses, which a copy must not share.
        return SumTree, (self.capacity, self._memory[0].copy())

    @staticmethod
    def leaf_memory(capacity: int) -> int:
        """Number of float64 that hold `capacity` leaves: a multiple of sixteen."""
        return -(-capacity // ARITY) * ARITY

    @property
    def total(self) -> float:
        """The sum of all leaves."""
        return float(self._total[0])

    def set(self, leaves: ArrayLike, values: ArrayLike) -> None:
        """Writes leaves; of one given twice the last value stays.

        Args:
            leaves: `(B,)`, integers from 0 to capacity - 1.
            values: `(B,)`, at least 0 and finite.

        Raises:
            ValueError: the shapes differ, or there is no such leaf, or a value is negative, NaN or infinite.
        """
        which = np.ascontiguousarray(leaves, np.int64)
        value = np.ascontiguousarray(values, np.float64)
        if which.ndim != 1 or which.shape != value.shape:
            raise ValueError(f"values: got shape {value.shape} for leaves {which.shape}, expected (B,) for both")
        if ((which < 0) | (which >= self.capacity)).any():
            raise ValueError(f"leaves: got {which.min()} to {which.max()}, expected 0 to {self.capacity - 1}")
        if not ((value >= 0) & (value < np.inf)).all():
            raise ValueError("values: expected numbers that are at least 0 and finite")
        set_leaves_at(self.address, which.ctypes.data, value.ctypes.data, len(which))

    def recompute(self, start: int = 0, stop: int | None = None) -> None:
        """Recomputes all that depends on the leaves from `start` to `stop`: call it after changing `leaves`."""
        stop = self.capacity if stop is None else stop
        if not 0 <= start <= stop <= self.capacity:
            raise ValueError(f"start, stop: got {start}, {stop}, expected 0 <= start <= stop <= {self.capacity}")
        recompute_range_at(self.address, start, stop)

    def draw(self, batch_size: int, *, seed: int, counter: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Draws leaves in proportion to their value: draw i from the i-th of `batch_size` equal parts of the total.

        Args:
            batch_size: B.
            seed: Of the generator.
            counter: Position of the generator; the next free one is `counter + batch_size`.

        Returns:
            The leaves and their values, `(B,)` each, in the order of the leaves.

        Raises:
            ValueError: the total is 0 or infinite, or batch_size is below 1.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size: got {batch_size}, expected at least 1")
        if not 0 < self.total < np.inf:
            raise ValueError(f"draw: the leaves' total is {self.total}, expected a finite one above 0")
        leaves, values = np.empty(batch_size, np.int64), np.empty(batch_size, np.float64)
        draw_at(self.address, seed, counter, leaves.ctypes.data, values.ctypes.data, batch_size)
        return leaves, values


def _aligned(size: int) -> NDArray[np.float64]:
    """Zeros whose sixteens lie in two cache lines each."""
    memory = np.zeros(size + ARITY, np.float64)
    first = -memory.ctypes.data // 8 % ARITY
    return memory[first : first + size]
