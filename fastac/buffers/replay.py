"""Off-policy experience: a ring of transitions, uniform samples, n-step targets, final observations always right."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Self

from numpy.typing import DTypeLike

from fastac._arrays import positive_integer
from fastac.buffers import fields
from fastac.buffers.fields import Field, Layout
from fastac.buffers.replay_adding import Adding
from fastac.buffers.replay_sampling import Sampling, Transitions
from fastac.buffers.replay_saving import Saving

__all__ = ["ReplayBuffer", "Transitions"]


class ReplayBuffer(Adding, Sampling, Saving):
    """The last `capacity` transitions of `num_envs` environments, of which batches are drawn uniformly.

    A batch's target is

        rewards + discounts * (1 - terminated) * V(next_observations),

    rewards = sum_{k<m} gamma^k r_{t+k} and discounts = gamma^m (Sutton 1988, *Learning to predict by the methods of
    temporal differences*), where m = min(n_step, rows to the episode's end, the newest row or a break, inclusive).
    `next_observations`, `terminated` and `truncated` belong to row t + m - 1; its transition led to these observations
    before any reset, at truncations, too.

    Every observation is stored once: that of row t + 1 serves as the next observation of row t. Where it differs in any
    byte - the episode ended, or the caller changed the observation (a **break**) - the next observation is filed apart.
    The newest row can be sampled like any other.

    Rows are counted over the buffer's whole life: row t of environment e has the index t * num_envs + e. An index is
    stale, its row overwritten, when it is less than `added - capacity`.

    Draws come from a generator of the buffer's own (splitmix64). They depend on the seed, on how many draws there were
    and on which rows are stored: the same calls in the same order give the same bytes, whatever else runs. Any
    number of threads may add and sample; each call is one step for the others.

    Args:
        capacity: Transitions to keep, rounded down to a multiple of `num_envs`.
        observation_space: A Gymnasium space: Box, Discrete, MultiDiscrete, MultiBinary, or a Dict of them. A float64
            Box is stored as float32.
        action_space: A Gymnasium space, not a Dict.
        num_envs: N, how many environments each `add` is a step of. None: `add` takes any number of transitions that
            have nothing to do with each other; their next observations are stored with them.
        n_step: The most rows of a target.
        gamma: Discount per row.
        frame_stack: Observations stack so many frames in their first dimension; each is stored once.
        extra_fields: `{name: (shape, dtype)}`, further fields of a transition.
        seed: Of the generator.
        storage: A folder for memory-mapped files; None: memory.

    Raises:
        ValueError: An argument is out of range, or does not go with `num_envs=None`.
        TypeError: An argument has the wrong type.

    Example:
        >>> import numpy as np
        >>> example = {"observations": np.zeros(2, np.float32), "actions": np.int64(0)}
        >>> buffer = ReplayBuffer.from_example(1000, example, num_envs=1, n_step=2, gamma=0.5)
        >>> for t in range(3):
        ...     buffer.add(np.float32([t, t]), 0, 1.0, np.float32([t + 1, t + 1]), terminated=t == 2, truncated=False)
        >>> batch = buffer.gather([0, 1, 2])
        >>> batch.rewards, batch.discounts, batch.next_observations[:, 0], batch.terminated
        (array([1.5, 1.5, 1. ], dtype=float32), array([0.25, 0.25, 0.5 ], dtype=float32), \
array([2., 3., 3.], dtype=float32), array([False,  True,  True]))
    """

    def __init__(
        self,
        capacity: int,
        observation_space: Any,
        action_space: Any,
        *,
        num_envs: int | None = 1,
        n_step: int = 1,
        gamma: float = 0.99,
        frame_stack: int | None = None,
        extra_fields: Mapping[str, tuple[tuple[int, ...], DTypeLike]] | None = None,
        seed: int = 0,
        storage: str | os.PathLike[str] | None = None,
    ):
        layout = Layout(
            fields.observations_of_space(observation_space),
            fields.field_of_space("actions", action_space),
            fields.extra_fields(extra_fields),
            chained=num_envs is not None,
            frame_stack=1 if frame_stack is None else positive_integer("frame_stack", frame_stack),
        )
        self._build(layout, capacity, num_envs, n_step, gamma, seed, storage)

    @classmethod
    def from_example(cls, capacity: int, example: Mapping[str, Any], **options: Any) -> Self:
        """A buffer for transitions like the example.

        Args:
            capacity: As in the constructor.
            example: One transition without a batch dimension: "observations" (an array or a dict of arrays) and
                "actions"; every name that is not an argument of `add` is an extra field. Dtypes are kept.
            options: As in the constructor, except the spaces and `extra_fields`.

        Returns:
            An empty buffer.
        """
        for name in ("observations", "actions"):
            if name not in example:
                raise ValueError(f"example: got {sorted(example)}, expected it to hold {name!r}")
        observations = example["observations"]
        known: Field | dict[str, Field] = (
            {name: fields.field_of_example(f"observations[{name!r}]", x) for name, x in observations.items()}
            if isinstance(observations, Mapping)
            else fields.field_of_example("observations", observations)
        )
        others = {
            name: (field.shape, field.dtype)
            for name, field in (
                (name, fields.field_of_example(name, x))
                for name, x in example.items()
                if name not in fields.STANDARD and name != "mask"
            )
        }
        frame_stack = options.pop("frame_stack", None)
        layout = Layout(
            known,
            fields.field_of_example("actions", example["actions"]),
            fields.extra_fields(others),
            chained=options.get("num_envs", 1) is not None,
            frame_stack=1 if frame_stack is None else positive_integer("frame_stack", frame_stack),
        )
        buffer = cls.__new__(cls)
        defaults = {"num_envs": 1, "n_step": 1, "gamma": 0.99, "seed": 0, "storage": None}
        if unknown := set(options) - set(defaults):
            raise TypeError(f"from_example: got unexpected options {sorted(unknown)}")
        buffer._build(layout, capacity, **(defaults | options))
        return buffer
