"""On-policy experience: T steps of N environments, their advantages in one call, shuffled minibatches of valid rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, DTypeLike, NDArray
from torch import Tensor

from fastac.returns import gae


class Batch(NamedTuple):
    """Transitions to learn from; every field has the batch in its first dimension."""

    observations: Tensor  # (B, *observation), float32 (images uint8), as the policy saw them
    actions: Tensor  # (B, *action), raw: as the policy drew them
    log_probs: Tensor  # (B,), log pi_old(a | s)
    values: Tensor  # (B,), V_old(s)
    advantages: Tensor  # (B,)
    returns: Tensor  # (B,), advantages + values


class Transitions(NamedTuple):
    """A rollout's rows in the order that estimators take them: `gae(*transitions, gamma=..., gae_lambda=...)`."""

    rewards: Tensor  # (T, N), as are all
    values: Tensor  # V(s_t)
    next_values: Tensor  # V of the observation that transition t led to, before any reset
    terminated: Tensor
    truncated: Tensor
    mask: Tensor


class RolloutBuffer:
    """`num_steps` steps of `num_envs` environments.

    Row t of environment n is one transition: the observation, the raw action, what it paid and whether it ended the
    episode. Rows with `mask` False (fillers after a reset) take their place but are neither valued nor trained on.
    Truncated transitions keep the observation they led to, so that the future is bootstrapped from it.

    A rollout: `add` num_steps times; `observations_to_value` and a forward of the critic; `compute_advantages` (or
    `transitions` and any other estimator); then `minibatches` as many times as there are epochs; `reset`.

    Args:
        num_steps: T.
        num_envs: N.
        observation_shape: Of one observation.
        action_shape: Of one action; `()` for discrete ones.
        action_dtype: int64 for discrete actions, float32 else.
        observation_dtype: uint8 for images (four times smaller, on the device too), float32 else.
        growing: Take as many steps as are added instead of refusing more than `num_steps`, from which it grows.
        device: Where the tensors go. They are copied there once a rollout.

    Example:
        >>> buffer = RolloutBuffer(num_steps=2, num_envs=1, observation_shape=(1,))
        >>> for reward in (1.0, 2.0):
        ...     buffer.add([[0.5]], [0], [reward], terminated=[False], truncated=[False])
        >>> len(buffer.observations_to_value([[0.5]]))  # two rows and the last observation
        3
        >>> buffer.compute_advantages(torch.zeros(2), torch.tensor([0.0, 0.0, 4.0]), gamma=0.5, gae_lambda=1.0)
        >>> buffer.returns.flatten().tolist()  # 1 + 0.5 * (2 + 0.5 * 4), 2 + 0.5 * 4
        [3.0, 4.0]
    """

    def __init__(
        self,
        num_steps: int,
        num_envs: int,
        observation_shape: tuple[int, ...],
        action_shape: tuple[int, ...] = (),
        *,
        action_dtype: DTypeLike = np.int64,
        observation_dtype: DTypeLike = np.float32,
        growing: bool = False,
        device: torch.device | str = "cpu",
    ):
        if num_steps < 1 or num_envs < 1:
            raise ValueError(f"num_steps, num_envs: got {num_steps}, {num_envs}, expected at least 1 each")
        shape = (num_steps, num_envs)
        self.num_steps = num_steps
        self.num_envs = num_envs
        self.growing = growing
        self.device = torch.device(device)
        self.observations = np.zeros((*shape, *observation_shape), observation_dtype)
        self.actions = np.zeros((*shape, *action_shape), action_dtype)
        self.rewards = np.zeros(shape, np.float32)
        self.terminated = np.zeros(shape, np.bool_)
        self.truncated = np.zeros(shape, np.bool_)
        self.mask = np.zeros(shape, np.bool_)
        self.reset()

    def reset(self) -> None:
        """Empties the buffer: the next `add` is row 0."""
        self.position = 0
        self._cut_rows: list[NDArray[np.intp]] = []
        self._cut_observations: list[NDArray[Any]] = []
        self._observations: Tensor | None = None
        self._fields: list[Tensor] = []

    def add(
        self,
        observations: ArrayLike,
        actions: ArrayLike,
        rewards: ArrayLike,
        terminated: ArrayLike,
        truncated: ArrayLike,
        mask: ArrayLike = True,
        final_observations: ArrayLike | None = None,
    ) -> None:
        """Stores one step of every environment.

        Args:
            observations: `(N, *observation)`, those the actions were chosen in, as the policy saw them.
            actions: `(N, *action)`, raw.
            rewards: `(N,)`.
            terminated: `(N,)`: this transition ended the episode.
            truncated: `(N,)`: a time limit cut it.
            mask: `(N,)`: False where the row is a filler.
            final_observations: `(K, *observation)`: one row for each environment whose episode ended (terminated or
                truncated, and not masked), in order. Needed where an episode was truncated.

        Raises:
            ValueError: the buffer is full, or final observations do not fit the flags.
        """
        t = self.position
        if t == self.num_steps:
            if not self.growing:
                raise ValueError(f"add: the buffer is full ({self.num_steps} steps); call reset() first")
            self._resize(2 * self.num_steps)
        self.observations[t] = observations
        self.actions[t] = actions
        self.rewards[t] = rewards
        self.terminated[t] = terminated
        self.truncated[t] = truncated
        self.mask[t] = mask
        if np.count_nonzero(self.truncated[t]):
            self._keep_final_observations(t, final_observations)
        self.position = t + 1

    def _resize(self, num_steps: int) -> None:
        for name in ("observations", "actions", "rewards", "terminated", "truncated", "mask"):
            old = getattr(self, name)
            new = np.zeros((num_steps, *old.shape[1:]), old.dtype)
            new[: self.position] = old[: self.position]
            setattr(self, name, new)
        self.num_steps = num_steps

    def _keep_final_observations(self, t: int, final_observations: ArrayLike | None) -> None:
        ended = np.flatnonzero((self.terminated[t] | self.truncated[t]) & self.mask[t])
        cut = self.truncated[t, ended] & ~self.terminated[t, ended]
        if not cut.any():
            return
        final = np.asarray(final_observations)
        if final_observations is None or len(final) != len(ended):
            got = "none" if final_observations is None else f"{len(final)} rows"
            raise ValueError(f"final_observations: got {got}, expected {len(ended)}, one for each episode that ended")
        self._cut_rows.append(t * self.num_envs + ended[cut])
        self._cut_observations.append(final[cut].astype(self.observations.dtype))

    def observations_to_value(self, last_observations: ArrayLike) -> Tensor:
        """Returns all observations whose value the advantages need, for one forward of the critic.

        Args:
            last_observations: `(N, *observation)`: those after the last step.

        Returns:
            `(T * N + N + K, *observation)` on the device: the rows, the last observations, then the K observations
            that truncated transitions led to.
        """
        if self.growing and 0 < self.position < self.num_steps:
            self._resize(self.position)
        if self.position != self.num_steps:
            raise ValueError(f"observations_to_value: the buffer holds {self.position} of {self.num_steps} steps")
        shape = self.observations.shape[2:]
        rows = self.observations.reshape(-1, *shape)
        last = np.asarray(last_observations, self.observations.dtype)
        together = np.concatenate([rows, last, *self._cut_observations])
        observations = torch.from_numpy(together).to(self.device)
        self._observations = observations[: len(rows)]
        self._fields = [
            torch.from_numpy(field.reshape(-1, *field.shape[2:]).copy()).to(self.device)
            for field in (self.actions, self.rewards, self.terminated, self.truncated, self.mask)
        ]
        return observations

    def flat(self) -> tuple[Tensor, Tensor]:
        """Returns observations and actions, `(T * N, ...)` on the device, fillers included."""
        if self._observations is None:
            raise ValueError("flat: call observations_to_value first")
        return self._observations, self._fields[0]

    def transitions(self, values: Tensor) -> Transitions:
        """Returns the rows as estimators take them, all `(T, N)` on the device.

        Args:
            values: `(T * N + N + K,)`, V of the observations that `observations_to_value` returned.
        """
        if self._observations is None:
            raise ValueError("transitions: call observations_to_value first")
        shape = (self.num_steps, self.num_envs)
        rows = self.num_steps * self.num_envs
        _, rewards, terminated, truncated, mask = self._fields
        # V(s_{t+1}) is the next row's value, and where a time limit cut the episode that of its final observation.
        next_values = values[self.num_envs : self.num_envs + rows].clone()
        if self._cut_rows:
            cut = torch.from_numpy(np.concatenate(self._cut_rows)).to(self.device)
            next_values[cut] = values[rows + self.num_envs :]
        fields = (rewards, values[:rows], next_values, terminated, truncated, mask)
        return Transitions(*(field.reshape(shape) for field in fields))

    def compute_advantages(self, log_probs: Tensor, values: Tensor, *, gamma: float, gae_lambda: float) -> None:
        """Computes generalised advantages (Schulman et al. 2016, eq. 16) and returns for every row.

        Sets `log_probs`, `values`, `next_values`, `advantages` and `returns`, all `(T, N)` on the device.

        Args:
            log_probs: `(T * N,)`, log pi(a | s) of the rows.
            values: `(T * N + N + K,)`, V of the observations that `observations_to_value` returned.
            gamma: Discount per step.
            gae_lambda: Decay of the trace per step.
        """
        transitions = self.transitions(values)
        self.log_probs = log_probs.reshape(self.num_steps, self.num_envs)
        self.values, self.next_values = transitions.values, transitions.next_values
        self.advantages, self.returns = gae(*transitions, gamma=gamma, gae_lambda=gae_lambda)

    def valid_rows(self) -> Tensor:
        """Returns the indices of unmasked rows among all `T * N`, on the device."""
        return torch.from_numpy(np.flatnonzero(self.mask)).to(self.device)

    def minibatches(self, num_minibatches: int, generator: torch.Generator) -> Iterator[Batch]:
        """Yields every valid row exactly once, shuffled, in minibatches whose sizes differ by at most 1.

        The permutation is drawn on the CPU, so that a seed means the same on every device. One gather per field and
        epoch; the minibatches are its contiguous slices.

        Args:
            num_minibatches: How many; fewer where there are fewer valid rows.
            generator: A CPU generator.
        """
        estimates = (self.log_probs, self.values, self.advantages, self.returns)
        fields = (*self.flat(), *(field.flatten() for field in estimates))
        for parts in self.shuffled(fields, num_minibatches, generator):
            yield Batch(*parts)

    def shuffled(
        self, fields: Sequence[Tensor], num_minibatches: int, generator: torch.Generator
    ) -> Iterator[tuple[Tensor, ...]]:
        """Yields minibatches, as `minibatches` does, of any fields with a row for each of the T * N transitions.

        Args:
            fields: Tensors on the device, `(T * N, ...)`.
            num_minibatches: How many; fewer where there are fewer valid rows.
            generator: A CPU generator.
        """
        order = torch.randperm(int(np.count_nonzero(self.mask)), generator=generator).to(self.device)
        order = order if self._all_valid() else self.valid_rows()[order]
        parts = [field.index_select(0, order).tensor_split(num_minibatches) for field in fields]
        for minibatch in zip(*parts, strict=True):
            if len(minibatch[0]):
                yield minibatch

    def valid(self, *fields: Tensor) -> tuple[Tensor, ...]:
        """Returns the valid rows of fields `(T * N, ...)` in the order of time; the fields where all are valid."""
        if self._all_valid():
            return fields
        rows = self.valid_rows()
        return tuple(field.index_select(0, rows) for field in fields)

    def _all_valid(self) -> bool:
        return int(np.count_nonzero(self.mask)) == self.mask.size
