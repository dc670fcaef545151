"""Rollouts that live on the learner's device, for environments that step there."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastac.buffers.rollout import RolloutBuffer, Transitions
from fastac.buffers.transfer import checked_device, sent

__all__ = ["DeviceRolloutBuffer"]


class DeviceRolloutBuffer(RolloutBuffer):
    """`RolloutBuffer` with its rows on the device: what an environment there gives is never brought to the host.

    Two things differ. `add` takes the final observations of *all* environments, `(N, *observation)`, of which those
    are read whose episode was truncated: which they are is not known on the host. And one number a rollout, how many
    they are, is read from the device, in `observations_to_value`; a second, how many rows are no fillers, when
    minibatches are asked for and there was a mask.

    Environments on the CPU do better with `RolloutBuffer(device="cuda")`: a whole rollout crosses at once.

    Args:
        num_steps: T.
        num_envs: N.
        observation_shape: Of one observation.
        action_shape: Of one action; `()` for discrete ones.
        action_dtype: Of actions.
        observation_dtype: Of observations.
        device: Where the rows are.

    Raises:
        ValueError: no steps or environments, or no such device.

    Example:
        >>> buffer = DeviceRolloutBuffer(num_steps=2, num_envs=1, observation_shape=(1,), device="cpu")
        >>> for reward in (1.0, 2.0):
        ...     buffer.add(torch.tensor([[0.5]]), torch.tensor([0]), torch.tensor([reward]), [0], [0],
        ...                final_observations=None)
        >>> len(buffer.observations_to_value(torch.tensor([[0.5]])))
        3
        >>> buffer.compute_advantages(torch.zeros(2), torch.tensor([0.0, 0.0, 4.0]), gamma=0.5, gae_lambda=1.0)
        >>> buffer.returns.flatten().tolist()
        [3.0, 4.0]
    """

    def __init__(
        self,
        num_steps: int,
        num_envs: int,
        observation_shape: tuple[int, ...],
        action_shape: tuple[int, ...] = (),
        *,
        action_dtype: torch.dtype = torch.int64,
        observation_dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cuda",
    ):
        if num_steps < 1 or num_envs < 1:
            raise ValueError(f"num_steps, num_envs: got {num_steps}, {num_envs}, expected at least 1 each")
        self.num_steps, self.num_envs, self.growing = num_steps, num_envs, False
        self.device = checked_device(device)
        shape = (num_steps, num_envs)

        def room(more: tuple[int, ...], dtype: torch.dtype) -> Any:
            return torch.zeros((*shape, *more), dtype=dtype, device=self.device)

        # What the other buffer has as arrays.
        self.observations, self.actions = room(observation_shape, observation_dtype), room(action_shape, action_dtype)
        self.rewards = room((), torch.float32)
        self.terminated, self.truncated, self.mask = (room((), torch.bool) for _ in range(3))
        self._final: Tensor | None = None
        self.reset()

    def reset(self) -> None:
        """Empties the buffer: the next `add` is row 0."""
        self.position = 0
        self._masked = False
        self._cut_rows = []
        self._cut: Tensor | None = None
        self._valid: Tensor | None = None
        self._observations = None
        self._fields = []

    def add(  # type: ignore[override]
        self,
        observations: Any,
        actions: Any,
        rewards: Any,
        terminated: Any,
        truncated: Any,
        mask: Any = True,
        *,
        final_observations: Any,
    ) -> None:
        """Stores one step of every environment, without waiting for the device.

        Args:
            observations: `(N, *observation)`, those the actions were chosen in, as the policy saw them.
            actions: `(N, *action)`, raw.
            rewards: `(N,)`.
            terminated: `(N,)`: this transition ended the episode.
            truncated: `(N,)`: a time limit cut it.
            mask: `(N,)`: False where the row is a filler.
            final_observations: `(N, *observation)`, what each transition led to before any reset; read where
                `truncated` says so and `terminated` does not. No default, since nothing could notice on the device
                that they are missing. None: no row is truncated, or the next row's observation is the one (a filler's,
                under next-step autoreset).

        Raises:
            ValueError: the buffer is full, or a shape is wrong.
        """
        t = self.position
        if t == self.num_steps:
            raise ValueError(f"add: the buffer is full ({self.num_steps} steps); call reset() first")
        self._put("observations", observations)
        self._put("actions", actions)
        self._put("rewards", rewards)
        self._put("terminated", terminated)
        self._put("truncated", truncated)
        if mask is True:
            self.mask[t] = True
        else:
            self._masked = True
            self._put("mask", mask)
        if final_observations is not None:
            if self._final is None:
                rows: Any = self.observations
                self._final = torch.zeros_like(rows)
            self._put("_final", final_observations, "final_observations")
        self.position = t + 1

    def _put(self, name: str, given: Any, said: str | None = None) -> None:
        row: Tensor = getattr(self, name)[self.position]
        found = torch.as_tensor(given)
        if found.shape != row.shape:
            raise ValueError(f"{said or name}: got shape {tuple(found.shape)}, expected {tuple(row.shape)}")
        row.copy_(sent(found.detach(), self.device))

    def observations_to_value(self, last_observations: Any) -> Tensor:
        """As in `RolloutBuffer`; waits for the device where final observations were given.

        Args:
            last_observations: `(N, *observation)`: those after the last step.
        """
        if self.position != self.num_steps:
            raise ValueError(f"observations_to_value: the buffer holds {self.position} of {self.num_steps} steps")
        rows: Any = self.observations.reshape(-1, *self.observations.shape[2:])
        last = sent(torch.as_tensor(last_observations), self.device).to(rows.dtype)
        together = [rows, last]
        self._cut = None
        if self._final is not None:
            cut: Any = self.truncated & ~self.terminated & self.mask
            self._cut = cut.flatten().nonzero().squeeze(1)
            together.append(self._final.reshape(rows.shape)[self._cut])
        observations = torch.cat(together)
        self._observations = observations[: len(rows)]
        fields: Any = (self.actions, self.rewards, self.terminated, self.truncated, self.mask)
        self._fields = [field.reshape(-1, *field.shape[2:]) for field in fields]
        return observations

    def transitions(self, values: Tensor) -> Transitions:
        """As in `RolloutBuffer`.

        Args:
            values: `(T * N + N + K,)`, V of the observations that `observations_to_value` returned.
        """
        found = super().transitions(values)
        if self._cut is not None:
            found.next_values.view(-1)[self._cut] = values[self.num_steps * self.num_envs + self.num_envs :]
        return found

    def valid_rows(self) -> Tensor:
        """Returns the indices of unmasked rows among all `T * N`; waits for the device once a rollout if any is."""
        if self._valid is None:
            mask: Any = self.mask.flatten()
            self._valid = (
                mask.nonzero().squeeze(1) if self._masked else torch.arange(mask.numel(), device=self.device)
            )  # fmt: skip
        return self._valid
