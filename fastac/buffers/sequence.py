"""Windows of consecutive transitions, for recurrent policies, world models and off-policy traces."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from typing import Any, get_args

import numpy as np
from numpy.typing import DTypeLike

from fastac._arrays import positive_integer
from fastac.buffers import fields
from fastac.buffers.prioritized import PrioritizedReplayBuffer, not_negative
from fastac.buffers.replay import ReplayBuffer
from fastac.buffers.sequence_saving import SequenceSaving, Windows, buffer_class
from fastac.buffers.window_memory import Arrays, Sequences, WindowMemory, moved
from fastac_kernels import ring
from fastac_kernels import windows as kernels
from fastac_kernels._jit import opened
from fastac_kernels.objects import READABLE
from fastac_kernels.priorities import KNOWN
from fastac_kernels.windows import draw_prioritized, draw_starts, gather_windows, index_rows, not_a_start

_MODES = {"whole": kernels.WHOLE, "padded": kernels.PADDED, "across": kernels.ACROSS}


class SequenceReplayBuffer(SequenceSaving):
    """The last `capacity` transitions of `num_envs` environments, of which windows of `length` rows are drawn.

    A window is a stretch of consecutive rows of one environment. It never crosses the newest row, and rows that do not
    belong together never pass for a stretch: rows of two episodes, rows before and after a break (see `ReplayBuffer`),
    fillers. What happens there is chosen once:

    - `windows="whole"`: all rows follow one another, `mask` is True everywhere, and episodes shorter than `length` are
      never seen.
    - `windows="padded"`: a window stops where its episode does (or at the newest row). What is missing has `mask` False
      and repeats the last row, so that `next_observations[-1]` is what the window's last row led to in any case.
    - `windows="across"`: a window goes on into the next episode. `is_first` says where to reset a recurrent state, and
      `mask` is False at fillers.

    Every window that can be is drawn with the same probability, with replacement. (So the first rows of an episode,
    which are in fewer windows, are seen less often.) Flags are those that `fastac.gae`, `vtrace` and the others take,
    time first: `truncated` is also True at a row after which the stream breaks off, where no trace may go on.

    Of each window the first `burn_in` rows are there to warm up a recurrent state: time passes, `mask` is True, but
    `loss_mask` is False (Kapturowski et al. 2019, *Recurrent experience replay in distributed reinforcement learning*).
    Padded windows have at least `burn_in + 1` rows. A stored recurrent state is an extra field: `extra["state"][0]`.

    An index of the windows' first rows is kept up to date as rows come and go, at a cost that does not depend on the
    number of rows, and 8 bytes for each; neither does the cost of a draw.

    Args:
        capacity: Transitions to keep, rounded down to a multiple of `num_envs`.
        observation_space: As in `ReplayBuffer`.
        action_space: As in `ReplayBuffer`.
        length: L, rows of a window, burn-in included.
        windows: See above.
        burn_in: Rows at a window's beginning that are not trained on.
        num_envs: N, how many environments each `add` is a step of.
        alpha: With a number, windows have priorities, see `PrioritizedReplayBuffer`: they are drawn in proportion to
            priority^alpha, stratified. None: all alike.
        beta: Exponent of the importance weights where `sample` is not told.
        extra_fields: `{name: (shape, dtype)}`, further fields of a transition.
        seed: Of the generator.
        storage: A folder for memory-mapped files; None: memory.

    Raises:
        ValueError: An argument is out of range.
        TypeError: An argument has the wrong type.

    Example:
        >>> example = {"observations": np.zeros(1, np.float32), "actions": np.int64(0)}
        >>> buffer = SequenceReplayBuffer.from_example(1000, example, length=3, windows="padded")
        >>> for t in range(4):
        ...     buffer.add(np.float32([t]), 0, 1.0, np.float32([t + 1]), terminated=t == 3, truncated=False)
        >>> batch = buffer.gather([0, 2])
        >>> batch.observations[..., 0]
        array([[0., 2.],
               [1., 3.],
               [2., 3.]], dtype=float32)
        >>> batch.mask[:, 1], batch.terminated[:, 1]
        (array([ True,  True, False]), array([False,  True,  True]))
        >>> buffer.sample(32).rewards.shape
        (3, 32)
    """

    def __init__(
        self,
        capacity: int,
        observation_space: Any,
        action_space: Any,
        *,
        length: int,
        windows: Windows = "whole",
        burn_in: int = 0,
        num_envs: int = 1,
        alpha: float | None = None,
        beta: float = 0.4,
        extra_fields: Mapping[str, tuple[tuple[int, ...], DTypeLike]] | None = None,
        seed: int = 0,
        storage: str | os.PathLike[str] | None = None,
    ):
        self._configure(capacity, length, windows, burn_in, num_envs)
        self._connect(
            buffer_class(alpha)(
                capacity,
                observation_space,
                action_space,
                num_envs=num_envs,
                extra_fields=extra_fields,
                seed=seed,
                storage=storage,
                **_prioritized(alpha, beta),
            )
        )

    @classmethod
    def from_example(
        cls,
        capacity: int,
        example: Mapping[str, Any],
        *,
        length: int,
        windows: Windows = "whole",
        burn_in: int = 0,
        num_envs: int = 1,
        alpha: float | None = None,
        beta: float = 0.4,
        seed: int = 0,
        storage: str | os.PathLike[str] | None = None,
    ) -> SequenceReplayBuffer:
        """A buffer for transitions like the example.

        Args:
            capacity: As in the constructor.
            example: One transition without a batch dimension, as in `ReplayBuffer.from_example`.
            length: As in the constructor.
            windows: As in the constructor.
            burn_in: As in the constructor.
            num_envs: As in the constructor.
            alpha: As in the constructor.
            beta: As in the constructor.
            seed: As in the constructor.
            storage: As in the constructor.

        Returns:
            An empty buffer.
        """
        buffer = cls.__new__(cls)
        buffer._configure(capacity, length, windows, burn_in, num_envs)
        buffer._connect(
            buffer_class(alpha).from_example(
                capacity, example, num_envs=num_envs, seed=seed, storage=storage, **_prioritized(alpha, beta)
            )
        )
        return buffer

    def _configure(self, capacity: int, length: int, windows: Windows, burn_in: int, num_envs: int) -> None:
        self.num_envs = positive_integer("num_envs", num_envs)
        self.length = positive_integer("length", length)
        if windows not in _MODES:
            raise ValueError(f"windows: got {windows!r}, expected one of {', '.join(map(repr, get_args(Windows)))}")
        if isinstance(burn_in, bool) or not isinstance(burn_in, int | np.integer):
            raise TypeError(f"burn_in: got {type(burn_in).__name__}, expected an integer")
        if not 0 <= burn_in < length:
            raise ValueError(f"burn_in: got {burn_in}, expected 0 to length - 1 = {length - 1}")
        if positive_integer("capacity", capacity) // num_envs < length:
            rows = f"{capacity // num_envs} rows for each of {num_envs} environments"
            raise ValueError(f"capacity: got {capacity}, {rows}, expected at least length = {length}")
        self.windows: Windows = windows
        self.burn_in = int(burn_in)

    def _connect(self, replay: ReplayBuffer) -> None:
        """Builds the index of what the ring holds."""
        self._replay = replay
        self._gather_windows = opened(gather_windows)
        self._priorities = replay._priorities if isinstance(replay, PrioritizedReplayBuffer) else 0
        self.capacity = replay.capacity
        self._lock = threading.Lock()
        self._memory = WindowMemory(replay, self.length, self._priorities != 0, self._lock)
        self._queue = np.empty(self.capacity, np.int64)
        self._runs = np.zeros(self.num_envs, np.int64)
        self._index = index = np.zeros(kernels.INDEX_SIZE, np.int64)
        index[kernels.LENGTH] = self.length
        index[kernels.LEAST] = self.burn_in + 1 if self.windows == "padded" else self.length
        index[kernels.MODE] = _MODES[self.windows]
        index[kernels.BURN_IN] = self.burn_in
        index[kernels.QUEUE], index[kernels.QUEUE_SIZE] = self._queue.ctypes.data, self.capacity
        index[kernels.RUNS] = self._runs.ctypes.data
        self._at = index.ctypes.data
        self._begin()
        index_rows(replay._at, self._at, 0)  # what is there has its priorities
        if isinstance(replay, PrioritizedReplayBuffer):
            replay._words[KNOWN] = replay.added

    def _begin(self) -> None:
        """An empty index, which is to begin with the oldest row."""
        replay = self._replay
        self._index[[kernels.HEAD, kernels.TAIL]] = 0
        self._index[kernels.SEEN] = max(replay.added - replay.capacity, 0) // self.num_envs
        self._runs[:] = 0

    @property
    def added(self) -> int:
        """Transitions ever added."""
        return self._replay.added

    @property
    def breaks(self) -> int:
        """As in `ReplayBuffer`."""
        return self._replay.breaks

    @property
    def num_windows(self) -> int:
        """Windows that can be drawn."""
        return int(self._index[kernels.TAIL] - self._index[kernels.HEAD])

    def __len__(self) -> int:
        """Transitions that are stored, without fillers."""
        return len(self._replay)

    def __repr__(self) -> str:
        rows = f"{len(self)} of {self.capacity} transitions, num_envs={self.num_envs}"
        return f"{type(self).__name__}({rows}, {self.num_windows} {self.windows} windows of {self.length})"

    def add(
        self,
        observations: Any,
        actions: Any,
        rewards: Any,
        next_observations: Any,
        terminated: Any,
        truncated: Any,
        mask: Any = None,
        **extra: Any,
    ) -> None:
        """Adds one step of every environment, overwriting the oldest when the buffer is full: as `ReplayBuffer.add`."""
        with self._lock:
            self._replay.add(observations, actions, rewards, next_observations, terminated, truncated, mask, **extra)
            index_rows(self._replay._at, self._at, self._priorities)

    def sample(
        self, batch_size: int, *, beta: float | None = None, device: Any = None, out: Sequences | None = None
    ) -> Sequences:
        """Draws windows, with replacement: uniformly, or in proportion to priority^alpha.

        Args:
            batch_size: B.
            beta: Exponent of the importance weights, at least 0; None: the buffer's. Only with priorities.
            device: None: numpy arrays. Else tensors on that device.
            out: A batch to fill, such as an earlier result (arrays, or tensors on the CPU), which is returned.

        Returns:
            The windows.

        Raises:
            ValueError: No window is possible yet, `out` does not fit, or `beta` does not.
            TypeError: `batch_size` is no integer, or `out` has other dtypes.
        """
        batch_size, replay = positive_integer("batch_size", batch_size), self._replay
        beta = self._checked_beta(beta)
        batch, arrays = (
            self._memory.allocate(batch_size, device) if out is None else (out, self._memory.find(out, batch_size))
        )
        with self._lock:
            if not self.num_windows:
                raise ValueError(f"sample: the buffer holds no {self.windows} window of {self.length} rows yet")
            counter = replay._state[ring.COUNTER]
            if arrays.weights is None:
                draw_starts(replay._at, self._at, batch_size, arrays.starts.ctypes.data)
            else:
                self._make_room(batch_size)
                draw_prioritized(replay._at, self._priorities, arrays.starts, arrays.weights, beta)
            try:
                self._gather(arrays)
            except (TypeError, ValueError):
                replay._state[ring.COUNTER] = counter  # nothing was drawn
                raise
        return batch if device is None or out is not None else moved(batch, device)

    def _checked_beta(self, beta: float | None) -> float:
        if not isinstance(self._replay, PrioritizedReplayBuffer):
            if beta is not None:
                raise ValueError(f"beta: got {beta}, but the buffer has no priorities (alpha=None)")
            return 0.0
        return self._replay.beta if beta is None else not_negative("beta", beta)

    def _make_room(self, size: int) -> None:
        """Memory for what kernels keep of a prioritized batch."""
        if isinstance(self._replay, PrioritizedReplayBuffer) and size > self._replay._scratch_size:
            self._replay._grow_scratch(size)

    def _prioritized(self) -> PrioritizedReplayBuffer:
        if not isinstance(self._replay, PrioritizedReplayBuffer):
            raise ValueError("alpha: got None, so windows have no priorities; expected a number")
        return self._replay

    @property
    def max_priority(self) -> float:
        """As in `PrioritizedReplayBuffer`."""
        return self._prioritized().max_priority

    @property
    def stale_updates(self) -> int:
        """As in `PrioritizedReplayBuffer`."""
        return self._prioritized().stale_updates

    @property
    def total_priority(self) -> float:
        """sum_k p_k^alpha over all windows that can be drawn."""
        with self._lock:
            return self._prioritized().total_priority

    def update_priorities(self, indices: Any, priorities: Any) -> None:
        """Gives windows new priorities: as `PrioritizedReplayBuffer.update_priorities`.

        Args:
            indices: `(B,)` integers: the `indices` of a batch.
            priorities: `(B,)`, above 0 and finite, without the exponent. Kapturowski et al. 2019, section 2.3, take
                0.9 max_k |delta_k| + 0.1 mean_k |delta_k| over the rows that are trained on.

        Raises:
            ValueError: A priority is 0, negative, NaN or infinite, the shapes differ, or no window begins with one of
                the rows.
            IndexError: A row was never added.
            TypeError: `indices` are no integers, or `priorities` no numbers.
        """
        buffer = self._prioritized()
        with self._lock:
            try:
                buffer.update_priorities(indices, priorities)
            except ValueError:
                starts = np.ascontiguousarray(indices, np.int64).ravel()
                starts = starts[starts >= self.added - self.capacity]
                wrong = not_a_start(self._at, len(starts), starts.ctypes.data)
                if wrong < 0:
                    raise
                message = f"indices: got {starts[wrong]}, where no {self.windows} window of {self.length} rows begins"
                raise ValueError(message) from None

    def gather(self, indices: Any, *, device: Any = None, out: Sequences | None = None) -> Sequences:
        """Returns the windows that begin with these rows, as `sample` would.

        Args:
            indices: `(B,)` integers, as in `Sequences.indices`.
            device: As in `sample`.
            out: As in `sample`.

        Returns:
            The windows.

        Raises:
            IndexError: No window begins there: the row was overwritten, or too few rows follow.
            ValueError: `indices` has another shape, or `out` does not fit.
            TypeError: `indices` are no integers, or `out` has other dtypes.
        """
        starts = fields.array_of("indices", indices)
        if starts.ndim != 1 or not len(starts):
            raise ValueError(f"indices: got shape {starts.shape}, expected (B,)")
        if starts.dtype.kind not in "iu":
            raise TypeError(f"indices: got dtype {starts.dtype}, expected integers")
        starts = np.ascontiguousarray(starts, np.int64)
        size = len(starts)
        batch, arrays = self._memory.allocate(size, device) if out is None else (out, self._memory.find(out, size))
        with self._lock:
            wrong = not_a_start(self._at, size, starts.ctypes.data)
            if wrong >= 0:
                raise IndexError(
                    f"indices: got {starts[wrong]}, where no {self.windows} window of {self.length} rows begins"
                )
            arrays.starts[:] = starts
            if arrays.weights is not None:
                arrays.weights[:] = 1.0
            self._gather(arrays)
        return batch if device is None or out is not None else moved(batch, device)

    def _gather(self, arrays: Arrays) -> None:
        replay, rows, starts, masks = self._replay, arrays.rows, arrays.starts, arrays.masks
        if (self._gather_windows(replay._at, self._at, rows, starts, *masks) if READABLE else 0) >= 0:
            size = self.length * len(starts)
            replay._check_out((*rows, np.empty(size, np.float32), np.empty(size, np.int64)), size)
            self._gather_windows(replay._at, self._at, None, starts, *masks)


def _prioritized(alpha: float | None, beta: float) -> dict[str, Any]:
    return {} if alpha is None else {"alpha": alpha, "beta": beta}
