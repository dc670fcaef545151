"""A prioritized sampler for TorchRL's replay buffers on our sum tree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torchrl.data.replay_buffers import samplers

from fastac._arrays import positive_integer
from fastac.buffers.sum_tree import SumTree

UNSET = -1.0
SMALLEST, LARGEST = 2.0**-960, 2.0**960


class PrioritizedSampler(samplers.PrioritizedSampler):
    """`torchrl.data.PrioritizedSampler` without its C++ trees, which the 0.14 wheel does not load beside torch 2.13.

        P(i) = (p_i + eps)^alpha / sum_k (p_k + eps)^alpha,   w_i = P(i)^-beta / max_j P(j)^-beta

    (Schaul et al. 2016, *Prioritized Experience Replay*). A buffer takes it as `sampler=`. Sums are float64, recomputed
    from the leaves; draws are stratified (appendix B.2.1) and come in the order of their places. The maximum of the
    weights is that of the batch, TorchRL's that of the buffer. New rows get the largest priority so far, at first 1.

    Args:
        max_capacity: Of the storage.
        alpha: How much priorities count, at least 0.
        beta: How much of the bias the weights correct, at least 0.
        eps: Added to every priority.
        dtype: Taken for the interface's sake: sums are float64, weights float32.
        reduction: How a buffer makes one priority of a row that has several: "max", "min", "median" or "mean".
        max_priority_within_buffer: "The largest so far" is that of the rows which are stored now.
        device: Taken for the interface's sake: the tree is on the CPU.
        seed: Of the sampler's own generator, which is used unless the buffer has one (`set_rng`).

    Raises:
        ValueError: An argument is out of range.

    Example:
        >>> from torchrl.data import LazyTensorStorage, ReplayBuffer
        >>> sampler = PrioritizedSampler(10, alpha=1.0, beta=1.0)
        >>> buffer = ReplayBuffer(storage=LazyTensorStorage(10), sampler=sampler, batch_size=4)
        >>> _ = buffer.extend(torch.arange(3))
        >>> buffer.update_priority(torch.tensor([0, 1, 2]), torch.tensor([1.0, 0.0, 3.0]))
        >>> batch, info = buffer.sample(return_info=True)
        >>> batch, info["priority_weight"]
        (tensor([0, 2, 2, 2]), tensor([1.0000, 0.3333, 0.3333, 0.3333]))
    """

    def __init__(
        self,
        max_capacity: int,
        alpha: float,
        beta: float,
        eps: float = 1e-8,
        dtype: torch.dtype = torch.float,
        reduction: str = "max",
        max_priority_within_buffer: bool = False,
        device: Any = None,
        *,
        seed: int = 0,
    ):
        for name, x in (("alpha", alpha), ("beta", beta), ("eps", eps)):
            if not 0 <= x < float("inf"):
                raise ValueError(f"{name}: got {x}, expected a finite number that is at least 0")
        self._max_capacity = positive_integer("max_capacity", max_capacity)
        self._alpha, self._beta, self._eps = float(alpha), float(beta), float(eps)
        self.dtype, self.reduction = dtype, reduction
        self._max_priority_within_buffer = max_priority_within_buffer
        self._seed, self._drawn = int(seed), 0
        self._empty()

    def _empty(self) -> None:
        self._tree = SumTree(self._max_capacity)
        self._priorities = np.full(self._max_capacity, UNSET)
        self._largest: float | None = None

    @property
    def device(self) -> torch.device:
        """Where the priorities are."""
        return torch.device("cpu")

    @property
    def alpha(self) -> float:
        """How much priorities count; set anew, it holds for those that are stored, too."""
        return self._alpha

    @alpha.setter
    def alpha(self, alpha: float) -> None:
        if not 0 <= alpha < float("inf"):
            raise ValueError(f"alpha: got {alpha}, expected a finite number that is at least 0")
        self._alpha = float(alpha)
        self._fill()

    @property
    def default_priority(self) -> float:
        """What new rows get: the largest priority so far, without eps and alpha."""
        largest = float(self._priorities.max()) if self._max_priority_within_buffer else self._largest
        return 1.0 if largest is None or largest == UNSET else largest

    def _leaves(self, priorities: NDArray[np.float64]) -> NDArray[np.float64]:
        found: NDArray[np.float64] = np.clip((priorities + self._eps) ** self._alpha, SMALLEST, LARGEST)
        return np.where(priorities + self._eps > 0, found, 0.0)

    def _fill(self) -> None:
        """Computes the whole tree."""
        known = self._priorities != UNSET
        self._tree.leaves[:] = 0.0
        self._tree.leaves[known] = self._leaves(self._priorities[known])
        self._tree.recompute()

    def sample(self, storage: Any, batch_size: int) -> tuple[Any, dict[str, Any]]:
        """Draws places in the storage.

        Args:
            storage: The buffer's.
            batch_size: B.

        Returns:
            Places, `(B,)` int64 (a tuple of such for a storage of several dimensions), and
            `{"priority_weight": (B,) float32}`.

        Raises:
            RuntimeError: The storage is empty, or every priority is 0.
        """
        if len(storage) == 0:
            raise RuntimeError("Cannot sample from an empty storage.")
        if not self._tree.total > 0:
            raise RuntimeError("every priority is 0: expected one above")
        if self._rng is None:
            seed, counter = self._seed, self._drawn
            self._drawn += batch_size
        else:
            seed = int(torch.randint(2**63 - 1, (), generator=self._rng, device=self._rng.device))
            counter = 0
        places, leaves = self._tree.draw(batch_size, seed=seed, counter=counter)
        weights = torch.from_numpy((leaves / leaves.min()) ** -self._beta).float()
        index = torch.from_numpy(places)
        return (torch.unravel_index(index, storage.shape) if storage.ndim > 1 else index), {"priority_weight": weights}

    def add(self, index: Any) -> None:
        """Gives a row that has none the largest priority so far.

        Args:
            index: Its place.
        """
        self.extend(torch.as_tensor(index).reshape(-1))

    def extend(self, index: Any) -> None:
        """Gives rows that have none the largest priority so far.

        Args:
            index: `(B,)` places; those of a storage of several dimensions have come through `mark_update`.
        """
        if isinstance(index, torch.Tensor) and index.ndim < 2:
            places = index.reshape(-1).cpu().numpy()
            places = places[places >= 0]
            self._set(places[self._priorities[places] == UNSET], self.default_priority)

    def mark_update(self, index: Any, *, storage: Any = None) -> None:
        """Gives rows that were written the largest priority so far.

        Args:
            index: Their places, as in `update_priority`.
            storage: As in `update_priority`.
        """
        self.update_priority(index, self.default_priority, storage=storage)

    @torch.no_grad()
    def update_priority(self, index: Any, priority: Any, *, storage: Any = None) -> None:
        """Gives rows new priorities; of a place given twice the last stays.

        Args:
            index: `(B,)` places, or `(B, D)` of a storage of D dimensions; those below 0 are left out.
            priority: `(B,)` or a number: at least 0 and finite, without eps and alpha.
            storage: Needed for `(B, D)` places.

        Raises:
            ValueError: A priority is negative, NaN or infinite, or the shapes do not fit.
            IndexError: There is no such place.
        """
        places = torch.as_tensor(index).long().cpu().numpy()
        if places.ndim > 1:
            if storage is None:
                raise ValueError(f"index: got shape {places.shape} without a storage, expected (B,)")
            if (places >= np.array(storage.shape)).any():
                raise IndexError(f"index: got {places.max(0)} in a storage of {tuple(storage.shape)}")
            left_out = (places < 0).any(-1)
            places = np.where(left_out, -1, np.ravel_multi_index(tuple(np.maximum(places, 0).T), storage.shape))
        places = places.reshape(-1)
        priorities = torch.as_tensor(priority, dtype=torch.float64).cpu().numpy().reshape(-1)
        if priorities.size not in (1, places.size):
            raise ValueError(f"priority: got {priorities.size} for {places.size} places, expected as many, or one")
        if not ((priorities >= 0) & (priorities < np.inf)).all():
            raise ValueError("priority: expected numbers that are at least 0 and finite")
        if places.size and places.max() >= self._max_capacity:
            raise IndexError(f"index: got {places.max()}, expected less than {self._max_capacity}")
        kept = places >= 0
        if kept.any():
            self._set(places[kept], np.broadcast_to(priorities, places.shape)[kept])

    def _set(self, places: NDArray[np.int64], priorities: Any) -> None:
        if places.size:
            priorities = np.broadcast_to(np.asarray(priorities, np.float64), places.shape)
            self._priorities[places] = priorities
            self._tree.set(places, self._leaves(self._priorities[places]))
            self._largest = max(float(priorities.max()), self._largest or 0.0)

    def state_dict(self) -> dict[str, Any]:
        """Everything that later draws depend on, the buffer's own generator excepted.

        Returns:
            Numbers, and the priorities as a tensor; -1 where there is none.
        """
        return self._numbers() | {"priorities": torch.from_numpy(self._priorities.copy())}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on as the sampler that gave the state would have.

        Args:
            state_dict: What `state_dict` has returned.

        Raises:
            ValueError: It is of another capacity.
        """
        priorities = np.asarray(state_dict["priorities"], np.float64)
        if priorities.shape != (self._max_capacity,):
            raise ValueError(f"state_dict: got priorities of {priorities.shape}, expected ({self._max_capacity},)")
        self._alpha, self._beta, self._eps = (state_dict[name] for name in ("alpha", "beta", "eps"))
        self._largest, self._seed, self._drawn = (state_dict[name] for name in ("largest", "seed", "drawn"))
        self._priorities = priorities.copy()
        self._fill()

    def _numbers(self) -> dict[str, Any]:
        return {
            "alpha": self._alpha, "beta": self._beta, "eps": self._eps, "largest": self._largest, "seed": self._seed,
            "drawn": self._drawn,
        }  # fmt: skip

    def dumps(self, path: Any) -> None:
        """Writes the state into a folder.

        Args:
            path: The folder; made where there is none.
        """
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / "priorities.npy", self._priorities, allow_pickle=False)
        (folder / "sampler_metadata.json").write_text(json.dumps(self._numbers()), encoding="utf-8")

    def loads(self, path: Any) -> None:
        """Reads what `dumps` has written.

        Args:
            path: The folder.

        Raises:
            ValueError: It is of another capacity.
        """
        folder = Path(path)
        numbers = json.loads((folder / "sampler_metadata.json").read_text(encoding="utf-8"))
        priorities = np.load(folder / "priorities.npy", allow_pickle=False)
        self.load_state_dict(numbers | {"priorities": torch.from_numpy(priorities)})
