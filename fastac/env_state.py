"""What an environment's state is made of: its generator before the last reset, and the actions since.

A Gymnasium environment does not say what its state is. What it promises is that a reset draws from `np_random` alone
and that a step depends on nothing but the state and the action. So the state can be had again without looking inside:
put the generator back as it was before the last reset, reset, and replay the actions.
"""

from __future__ import annotations

import enum
import types
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec
from numpy.typing import DTypeLike, NDArray

__all__ = ["ActionHistory", "EnvError", "Replayable", "plain_attributes", "set_plain_attributes"]


class EnvError(ValueError):
    """An environment that cannot be made, used or restored; the message is one line for the user."""


class Replayable(gymnasium.Wrapper[Any, Any, Any, Any]):
    """A sub-environment that remembers its generator as it was before the last reset.

    It lives where the environment lives, in a worker process too, and is reached there by `call` and `set_attr`.

    Attributes:
        seed: what the first reset was seeded with; None before it.
        generator_state: `np_random.bit_generator.state` before the last reset; None where that reset was seeded
            (`seed` says all there is to say) or where the environment has no NumPy generator.
        to_replay: what `replay` reads: (seed, generator_state or None, actions of shape (length, *action)).
    """

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        self.seed: int | None = None
        self.generator_state: dict[str, Any] | None = None
        self.to_replay: tuple[int, dict[str, Any] | None, NDArray[Any]] | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset as the environment does, after noting what the reset will draw from."""
        if seed is None:
            generator = self.env.np_random
            known = isinstance(generator, np.random.Generator)
            self.generator_state = dict(generator.bit_generator.state) if known else None
        else:
            self.seed = seed
            self.generator_state = None
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step; a final observation is copied, since an environment may write its next one over it."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        if terminated or truncated:
            observation = np.array(observation)
        return observation, reward, terminated, truncated, info

    def replay(self) -> Any:
        """Reset and step as `to_replay` says; returns the observation that this ends on."""
        assert self.to_replay is not None
        seed, generator_state, actions = self.to_replay
        self.to_replay = None
        # The seeded reset comes first even where a later one follows, since an environment may build on it for good.
        observation, _ = self.reset(seed=seed)
        if generator_state is not None:
            self.env.np_random.bit_generator.state = generator_state
            observation, _ = self.reset()
        for action in actions:
            observation = self.env.step(action)[0]
        return np.array(observation)


class ActionHistory:
    """The actions of each environment's running episode, kept as rows of one array.

    A row is one step of all environments. Rows that lie before every running episode are dropped when the array is
    full, so that its size follows the longest running episode and not the run.

    Example:
        >>> history = ActionHistory(num_envs=2, shape=(), dtype=np.int64)
        >>> history.append(np.array([1, 0]))
        >>> history.restart(0)  # environment 0 was reset after that action
        >>> history.append(np.array([1, 1]))
        >>> history.episode(0).tolist(), history.episode(1).tolist()
        ([1], [0, 1])
    """

    def __init__(self, num_envs: int, shape: tuple[int, ...], dtype: DTypeLike) -> None:
        self._rows: NDArray[Any] = np.empty((64, num_envs, *shape), dtype)
        self._end = 0
        self._starts = [0] * num_envs

    def append(self, actions: NDArray[Any]) -> None:
        """Add one row, (num_envs, *action)."""
        if self._end == len(self._rows):
            self._make_room()
        self._rows[self._end] = actions
        self._end += 1

    def restart(self, index: int) -> None:
        """Environment `index` was reset: its episode begins with the next row."""
        self._starts[index] = self._end

    def length(self, index: int) -> int:
        """Number of actions since environment `index` was reset."""
        return self._end - self._starts[index]

    def episode(self, index: int) -> NDArray[Any]:
        """A copy of the actions since environment `index` was reset, (length, *action)."""
        return self._rows[self._starts[index] : self._end, index].copy()

    def episodes(self) -> list[NDArray[Any]]:
        """`episode` of every environment."""
        return [self.episode(index) for index in range(len(self._starts))]

    def clear(self) -> None:
        """All environments were reset."""
        self._end = 0
        self._starts = [0] * len(self._starts)

    def load(self, episodes: Sequence[NDArray[Any]]) -> None:
        """Start from these running episodes, one (length, *action) array per environment."""
        longest = max(map(len, episodes))
        self._rows = np.zeros((max(64, 2 * longest), *self._rows.shape[1:]), self._rows.dtype)
        self._end = longest
        for index, actions in enumerate(episodes):
            self._starts[index] = longest - len(actions)
            self._rows[self._starts[index] : longest, index] = actions

    def _make_room(self) -> None:
        first = min(self._starts)
        kept = self._rows[first : self._end]
        # Doubling while more than half is in use keeps the cost per row constant.
        rows = (
            np.empty((2 * len(self._rows), *self._rows.shape[1:]), self._rows.dtype)
            if 2 * len(kept) > self._end
            else self._rows
        )
        rows[: len(kept)] = kept.copy()
        self._rows, self._end = rows, len(kept)
        self._starts = [start - first for start in self._starts]


_CONSTANTS = (
    gymnasium.Space,
    EnvSpec,
    enum.Enum,
    type,
    types.ModuleType,
    types.FunctionType,
    types.BuiltinFunctionType,
)


def plain_attributes(env: Any) -> dict[str, Any]:
    """The attributes of a vector environment as plain data: all of its state, if every one of them is plain.

    Args:
        env: the object whose `vars` are read.

    Returns:
        Attribute name -> number, string, None, array, or containers of these; a generator becomes its state.
        Spaces, specs, functions and the like are left out, since they do not change.

    Raises:
        EnvError: an attribute is of another type, so state may hide in it.
    """
    found = {}
    for name, value in vars(env).items():
        if isinstance(value, _CONSTANTS) or name == "metadata":
            continue
        found[name] = _plain(name, value)
    return found


def _plain(name: str, value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str | np.generic):
        return value
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        return value.copy()
    if isinstance(value, np.random.Generator):
        return {"bit_generator": dict(value.bit_generator.state)}
    if type(value) in (list, tuple):
        return type(value)(_plain(name, item) for item in value)
    if type(value) is dict and all(isinstance(key, str | int) for key in value):
        return {key: _plain(name, item) for key, item in value.items()}
    raise EnvError(f"its attribute {name!r} is of type {type(value).__name__}, which cannot be saved")


def set_plain_attributes(env: Any, attributes: Mapping[str, Any]) -> None:
    """Put back what `plain_attributes` returned; `env` must have been reset, so that its generators exist."""
    for name, value in attributes.items():
        present = getattr(env, name)
        if isinstance(present, np.random.Generator):
            present.bit_generator.state = value["bit_generator"]
        else:
            setattr(env, name, _plain(name, value))
