"""The interface of vector environments: what a step says, how they start, how they are saved."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal, NamedTuple

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.spaces import Box, Discrete
from numpy.typing import ArrayLike, NDArray

from fastac.env_state import EnvError
from fastac.images import SMALLEST_IMAGE, image_of

__all__ = ["Envs", "Step", "checked_spaces", "make_env"]


class Step(NamedTuple):
    """What one step of N environments gave. All arrays are the caller's to keep.

    Attributes:
        observations: (N, *obs), to act on next: in same-step autoreset those after the reset.
        rewards: (N,), as the environment paid them.
        terminated: (N,) bool, the transition ended the episode: no future.
        truncated: (N,) bool, a time limit cut it: the future is V of its final observation.
        mask: (N,) bool, False where the row is the filler after a reset (next-step autoreset only).
        final_observations: (K, *obs), before any reset, one row for each episode that ended in this step, in the order
            of `np.flatnonzero((terminated | truncated) & mask)`.
        episode_returns: (K,) float64, the undiscounted sums of those episodes' rewards.
        episode_lengths: (K,) int64, their numbers of transitions.
    """

    observations: NDArray[Any]
    rewards: NDArray[Any]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    mask: NDArray[np.bool_]
    final_observations: NDArray[Any]
    episode_returns: NDArray[np.float64]
    episode_lengths: NDArray[np.int64]


def make_env(env_id: str, **env_kwargs: Any) -> gymnasium.Env[Any, Any]:
    """`gymnasium.make`, with spaces checked and every failure an `EnvError` of one line.

    Args:
        env_id: a registered id; "module:Id" imports the module first.
        **env_kwargs: passed on.

    Returns:
        The environment, still to be reset.

    Raises:
        EnvError: as `make_envs` does.

    Example:
        >>> make_env("CartPol-v1")
        Traceback (most recent call last):
        fastac.env_state.EnvError: env_id 'CartPol-v1': Environment `CartPol` doesn't exist. Did you mean: `CartPole`?
    """
    env: gymnasium.Env[Any, Any] = attempt(env_id, lambda: gymnasium.make(env_id, **env_kwargs))
    try:
        checked_spaces(env_id, env)
    except EnvError:
        env.close()
        raise
    return env


def attempt(env_id: str, make: Callable[[], Any]) -> Any:
    """Call `make`; whatever it raises becomes an `EnvError` that names the environment."""
    try:
        return make()
    except Exception as error:  # constructors of other people's environments raise whatever they like
        reason = " ".join(str(error).split()) or type(error).__name__
        raise EnvError(f"env_id {env_id!r}: {reason}") from error


def checked_spaces(env_id: str, env: Any) -> tuple[Box, Box | Discrete[Any]]:
    """The observation and action space of one copy; `EnvError` where the algorithms have no use for them."""
    observations = getattr(env, "single_observation_space", None) or env.observation_space
    actions = getattr(env, "single_action_space", None) or env.action_space
    image = image_of(observations)
    if image is None and (
        not isinstance(observations, Box) or len(observations.shape) != 1 or not observations.shape[0]
    ):
        raise EnvError(
            f"env_id {env_id!r}: its observations are {observations}, expected a Box of one dimension, not empty, "
            "(gymnasium.wrappers.FlattenObservation makes one of most spaces) or an image of uint8"
        )
    if image is not None and min(image.height, image.width) < SMALLEST_IMAGE:
        raise EnvError(
            f"env_id {env_id!r}: its images are {image.height} x {image.width}, expected at least {SMALLEST_IMAGE} x "
            f"{SMALLEST_IMAGE} (gymnasium.wrappers.ResizeObservation makes them larger)"
        )
    if isinstance(actions, Box) and len(actions.shape) == 1 and actions.dtype.kind == "f":
        return observations, actions
    if isinstance(actions, Discrete):
        return observations, actions
    raise EnvError(f"env_id {env_id!r}: its actions are {actions}, expected Discrete or a flat Box of floats")


class Envs(ABC):
    """N copies of an environment. Made by `make_envs`.

    Attributes:
        env_id: the registered id.
        num_envs: N.
        single_observation_space: one copy's flat Box, or image.
        single_action_space: one copy's Discrete or flat Box.
        autoreset_mode: "same_step" or "next_step".
    """

    _spec: EnvSpec | None = None

    def __init__(
        self,
        env_id: str,
        num_envs: int,
        seed: int,
        observation_space: Box,
        action_space: Box | Discrete[Any],
        autoreset_mode: Literal["same_step", "next_step"],
        restores_by: Literal["replay", "attributes", "nothing"],
        remake: Callable[[], Envs],
    ) -> None:
        self.env_id = env_id
        self.num_envs = num_envs
        self.single_observation_space = observation_space
        self.single_action_space = action_space
        self.autoreset_mode: Literal["same_step", "next_step"] = autoreset_mode
        self._restores_by = restores_by
        self._remake = remake
        self._seeds = [int(word) for word in np.random.SeedSequence(seed).generate_state(num_envs)]
        self._was_reset = False
        self._observations_shape = (num_envs, *observation_space.shape)
        self._observation_dtype = observation_space.dtype
        self._actions_shape = (num_envs, *(action_space.shape or ()))
        self._action_dtype = np.dtype(action_space.dtype)
        self._returns = np.zeros(num_envs)
        self._observations: NDArray[Any] = np.zeros(self._observations_shape, self._observation_dtype)
        self._all_valid = np.ones(num_envs, np.bool_)
        self._no_observations: NDArray[Any] = self._observations[:0].copy()
        self._no_returns = np.empty(0)
        self._no_lengths = np.empty(0, np.int64)

    @abstractmethod
    def step(self, actions: ArrayLike) -> Step:
        """Act once in every copy.

        Args:
            actions: (N, *action), as the environment takes them: clipped already, where that is wanted.

        Raises:
            ValueError: a wrong shape. TypeError: a dtype that does not go into the action space's.
        """

    def step_async(self, actions: ArrayLike) -> None:
        """Begin a step and return while others take it: processes ("async") or threads ("envpool").

        `step_wait` ends it, and is the next thing to call. The two together are `step`.

        Args:
            actions: as for `step`.

        Raises:
            EnvError: these environments are stepped by the process that asks for it. ValueError, TypeError: as `step`.
        """
        raise EnvError(f"env_id {self.env_id!r}: its steps are taken in this process, none can be begun and left alone")

    def step_wait(self) -> Step:
        """Wait for the step that `step_async` began, and return what it gave."""
        raise EnvError(f"env_id {self.env_id!r}: step_wait without step_async")

    @abstractmethod
    def close(self) -> None:
        """Free the environments; may be called twice."""

    @abstractmethod
    def _reset(self, seeds: list[int] | None) -> NDArray[Any]: ...

    @abstractmethod
    def _state(self) -> dict[str, Any]: ...

    @abstractmethod
    def _restore(self, state: Mapping[str, Any]) -> NDArray[Any]: ...

    def reset(self) -> NDArray[Any]:
        """Start new episodes everywhere: seeded the first time, continuing the generators after that.

        Returns:
            The observations, (N, *obs).
        """
        observations = self._reset(None if self._was_reset else self._seeds)
        if observations.shape != self._observations.shape:
            got, expected = observations.shape, self._observations.shape
            raise EnvError(
                f"env_id {self.env_id!r}: its observations have shape {got}, expected {expected} by its space"
            )
        self._observations[:] = observations
        self._returns[:] = 0.0
        self._was_reset = True
        return self._observations.copy()

    @cached_property
    def why_not_restorable(self) -> str | None:
        """None where `load_state_dict` continues bit for bit; else the reason, for the user to read.

        Found out by trying, once: a spare copy is stepped, saved, restored and stepped on.
        """
        return _why_not_restorable(self._remake)

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on from here, as numbers, strings, arrays and containers of them.

        Raises:
            EnvError: the environments have not been reset, or `why_not_restorable` is not None.
        """
        if not self._was_reset:
            raise EnvError("state_dict: the environments have not been reset yet")
        if self.why_not_restorable is not None:
            raise EnvError(f"state_dict: {self.why_not_restorable}")
        return self._full_state()

    def load_state_dict(self, state: Mapping[str, Any]) -> NDArray[Any]:
        """Go on from where `state_dict` was called.

        Returns:
            The current observations, (N, *obs).

        Raises:
            EnvError: the state is another environment's, or replaying it did not lead to the observations saved in it.
        """
        ours = {"env_id": self.env_id, "num_envs": self.num_envs, "restores_by": self._restores_by}
        for name, expected in ours.items():
            if state.get(name) != expected:
                raise EnvError(f"state: {name} is {state.get(name)!r}, expected {expected!r}")
        saved = np.asarray(state["observations"])
        observations = self._restore(state)
        self._was_reset = True
        self._returns[:] = state["returns"]
        if observations.tobytes() != saved.tobytes():
            raise EnvError(
                f"{self.env_id} did not come back to where it was saved: its resets or steps depend on more than its "
                "generator and the actions, or its version has changed"
            )
        self._observations[:] = observations
        return observations

    def _full_state(self) -> dict[str, Any]:
        return self._state() | {
            "env_id": self.env_id,
            "num_envs": self.num_envs,
            "restores_by": self._restores_by,
            "observations": self._observations.copy(),
            "returns": self._returns.copy(),
        }

    def _step(
        self,
        rewards: NDArray[Any],
        terminated: NDArray[np.bool_],
        truncated: NDArray[np.bool_],
        mask: NDArray[np.bool_],
        ended: Sequence[int],
        finals: Sequence[NDArray[Any]],
        lengths: Sequence[int],
    ) -> Step:
        """What `step` returns; `ended` are the environments whose episode ended, the other two are in their order."""
        observations = self._observations.copy()
        if not ended:
            nothing = self._no_observations, self._no_returns, self._no_lengths
            return Step(observations, rewards, terminated, truncated, mask, *nothing)
        returns = self._returns[ended]
        self._returns[ended] = 0.0
        return Step(
            observations,
            rewards,
            terminated,
            truncated,
            mask,
            np.array(finals, self._observation_dtype),
            returns,
            np.array(lengths, np.int64),
        )

    def _checked(self, actions: ArrayLike) -> NDArray[Any]:
        array = np.asarray(actions)
        if array.shape != self._actions_shape:
            raise ValueError(f"actions: got shape {array.shape}, expected {self._actions_shape}")
        if array.dtype != self._action_dtype:
            if not np.can_cast(array.dtype, self._action_dtype, "same_kind"):
                raise TypeError(f"actions: got {array.dtype}, expected {self._action_dtype}")
            array = array.astype(self._action_dtype)
        return array


def _why_not_restorable(make: Callable[[], Envs]) -> str | None:
    saved, other = make(), make()
    try:
        if saved._spec is not None and saved._spec.nondeterministic:
            return f"{saved.env_id} is registered as nondeterministic"
        space = saved.single_action_space
        space.seed(0)

        def run(envs: Envs, batches: list[NDArray[Any]]) -> list[bytes]:
            steps = [envs.step(actions) for actions in batches]
            return [np.ascontiguousarray(part).tobytes() for step in steps for part in step]

        batches = [np.array([space.sample() for _ in range(saved.num_envs)]) for _ in range(8)]
        # A reset that continues the generator is what matters, and more of them than a replay has.
        for _ in range(3):
            saved.reset()
            run(saved, batches)
        other.load_state_dict(saved._full_state())
        if run(saved, batches) != run(other, batches):
            return f"{saved.env_id} went on differently after it had been restored"
    except Exception as error:  # whatever it is, it would happen on the way back too
        return f"{saved.env_id} cannot be restored: {error}"
    finally:
        saved.close()
        other.close()
    return None
