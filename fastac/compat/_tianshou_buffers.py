"""tianshou's prioritized buffers, drawing from our sum tree."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from tianshou import data

from fastac.buffers.sum_tree import SumTree


class _Tree:
    """What tianshou's buffers ask of their `SegmentTree`, of a `SumTree`."""

    def __init__(self, size: int):
        self.tree = SumTree(size)

    def __len__(self) -> int:
        return self.tree.capacity

    def __getitem__(self, index: Any) -> NDArray[np.float64]:
        found: NDArray[np.float64] = self.tree.leaves[index]
        return found

    def __setitem__(self, index: Any, value: Any) -> None:
        places = np.atleast_1d(index)
        self.tree.set(places, np.broadcast_to(np.asarray(value, np.float64), places.shape))


class _Draws:
    """Draws by a generator of the buffer's own: tianshou takes NumPy's global one here."""

    def __init__(self, *arguments: Any, seed: int = 0, **options: Any):
        super().__init__(*arguments, **options)
        self.weight = _Tree(self.maxsize)  # type: ignore[attr-defined]
        self._seed, self._drawn = seed, 0

    def sample_indices(self, batch_size: int | None) -> Any:
        """Places in proportion to their weight, stratified, in their order; whatever tianshou gives for 0 and None."""
        if batch_size is None or batch_size <= 0 or len(self) == 0:  # type: ignore[arg-type]
            return super().sample_indices(batch_size)  # type: ignore[misc]
        self._drawn += batch_size
        return self.weight.tree.draw(batch_size, seed=self._seed, counter=self._drawn - batch_size)[0]

    def set_beta(self, beta: float) -> None:
        """Sets the exponent of the importance weights; tianshou's vector buffer sets that of its parts alone."""
        self._beta = beta


class PrioritizedReplayBuffer(_Draws, data.PrioritizedReplayBuffer):
    """`tianshou.data.PrioritizedReplayBuffer` with seeded, stratified draws from a float64 tree that never drifts.

    Args:
        arguments: As there: size, alpha, beta and so on.
        seed: Of the buffer's own generator.
        options: As there.
    """


class PrioritizedVectorReplayBuffer(_Draws, data.PrioritizedVectorReplayBuffer):
    """`tianshou.data.PrioritizedVectorReplayBuffer`, likewise.

    Args:
        arguments: As there: total_size and buffer_num.
        seed: Of the buffer's own generator.
        options: As there: alpha, beta and so on.
    """
