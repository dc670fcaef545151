"""Vector environments whose steps say everything the estimators need: true final observations, and which rows count.

Two things make returns wrong in silence. At a time limit the future is V of the observation *before* the reset, which
autoresetting hides; here it is always at hand, in `Step.final_observations`. And where the reset takes a step of its
own (next-step autoreset), that step is a filler: its action was ignored and its reward means nothing; here its `mask`
is False. The conventions are those of `fastac.gae`.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import gymnasium
import numpy as np
import threadpoolctl
from gymnasium.vector import AutoresetMode, VectorWrapper
from numpy.typing import ArrayLike, NDArray

from fastac.env_base import Envs, Step, attempt, checked_spaces, make_env
from fastac.env_pool import EnvPoolEnvs
from fastac.env_state import ActionHistory, EnvError, Replayable, plain_attributes, set_plain_attributes

__all__ = ["BESIDE_THE_CALLER", "EnvError", "Envs", "Step", "Vectorization", "make_env", "make_envs"]

Vectorization = Literal["sync", "async", "vector_entry_point", "envpool"]
BESIDE_THE_CALLER: tuple[Vectorization, ...] = ("async", "envpool")  # those with `Envs.step_async`


def make_envs(
    env_id: str, num_envs: int, *, seed: int, vectorization: Vectorization = "sync", **env_kwargs: Any
) -> Envs:
    """Make `num_envs` copies of a Gymnasium environment, stepped together.

    Args:
        env_id: a registered id; "module:Id" imports the module first.
        num_envs: number of copies.
        seed: each copy's first reset is seeded with a number of its own, drawn from `np.random.SeedSequence(seed)`,
            so that runs with neighbouring seeds share no environment; later resets continue its generator.
        vectorization: "sync" steps the copies one by one in this process; "async" gives each its process
            (`gymnasium.vector.AsyncVectorEnv`); "vector_entry_point" takes the environment's own vector form;
            "envpool" takes EnvPool's environment of that name (`fastac.env_pool`).
        **env_kwargs: passed to the environment, as by `gymnasium.make`; to `envpool.make`, which has its own.

    Returns:
        The environments, still to be reset.

    Raises:
        EnvError: no such environment, it cannot be made, or its spaces are unsupported: observations must be a flat
            Box or an image (`fastac.images.image_of`), actions a Discrete or a flat Box of floats.

    Example:
        >>> envs = make_envs("CartPole-v1", 2, seed=0)
        >>> envs.reset().shape
        (2, 4)
        >>> step = envs.step(np.array([0, 1]))
        >>> step.rewards, step.mask
        (array([1., 1.]), array([ True,  True]))
        >>> envs.close()
    """
    if not isinstance(num_envs, int | np.integer) or num_envs < 1:
        raise EnvError(f"num_envs: got {num_envs!r}, expected an integer of at least 1")
    if not isinstance(seed, int | np.integer) or seed < 0:
        raise EnvError(f"seed: got {seed!r}, expected an integer of at least 0")
    kinds: dict[str, Callable[[str, int, int, Mapping[str, Any]], Envs]] = {
        "sync": SyncEnvs,
        "async": AsyncEnvs,
        "vector_entry_point": EntryPointEnvs,
        "envpool": EnvPoolEnvs,
    }
    if vectorization not in kinds:
        raise EnvError(f"vectorization: got {vectorization!r}, expected one of {', '.join(kinds)}")
    return kinds[vectorization](env_id, int(num_envs), int(seed), env_kwargs)


class SyncEnvs(Envs):
    """Copies stepped one by one in this process, with same-step autoreset.

    What `gymnasium.vector.SyncVectorEnv` does, without collecting `infos`, which nobody here reads.
    """

    def __init__(self, env_id: str, num_envs: int, seed: int, env_kwargs: Mapping[str, Any]) -> None:
        self._envs: list[Replayable] = []
        try:
            for _ in range(num_envs):
                self._envs.append(Replayable(make_env(env_id, **env_kwargs)))
        except EnvError:
            self.close()
            raise
        spaces = checked_spaces(env_id, self._envs[0])
        remake = partial(SyncEnvs, env_id, 1, seed, env_kwargs)
        super().__init__(env_id, num_envs, seed, *spaces, "same_step", "replay", remake)
        self._history = ActionHistory(num_envs, self._actions_shape[1:], self._action_dtype)
        self._spec = self._envs[0].spec
        # Past Replayable.step, whose copy of final observations is made below.
        self._env_steps = [env.env.step for env in self._envs]

    def step(self, actions: ArrayLike) -> Step:
        """See `Envs.step`."""
        actions = self._checked(actions)
        history, observations = self._history, self._observations
        history.append(actions)
        rewards = np.empty(self.num_envs)
        flags = np.zeros((2, self.num_envs), np.bool_)
        ended: list[int] = []
        finals: list[NDArray[Any]] = []
        lengths: list[int] = []
        for index, (step, action) in enumerate(zip(self._env_steps, actions, strict=True)):
            observation, reward, terminated, truncated, _ = step(action)
            try:
                rewards[index], observations[index] = reward, observation
            except (TypeError, ValueError) as error:
                raise EnvError(self._misfit(reward, observation)) from error
            if terminated or truncated:
                flags[:, index] = terminated, truncated
                ended.append(index)
                lengths.append(history.length(index))
                # Copied before the reset, which may write into the same array.
                finals.append(np.array(observation))
                observations[index], _ = self._envs[index].reset()
                history.restart(index)
        self._returns += rewards
        return self._step(rewards, flags[0], flags[1], self._all_valid.copy(), ended, finals, lengths)

    def close(self) -> None:
        """See `Envs.close`."""
        for env in self._envs:
            env.close()

    def _misfit(self, reward: Any, observation: Any) -> str:
        """What to say of a step that gave something else than a number and an observation of its space."""
        shape, expected = np.shape(observation), self.single_observation_space.shape
        what = (
            f"an observation of shape {shape}, expected {expected} by its space"
            if shape != expected
            else f"the reward {reward!r}, expected a number"
        )
        return f"env_id {self.env_id!r}: its step returned {what}"

    def _reset(self, seeds: list[int] | None) -> NDArray[Any]:
        self._history.clear()
        observations = [env.reset(seed=seeds[i] if seeds else None)[0] for i, env in enumerate(self._envs)]
        return np.array(observations, self._observation_dtype)

    def _state(self) -> dict[str, Any]:
        return {
            "seeds": [env.seed for env in self._envs],
            "generators": [env.generator_state for env in self._envs],
            "actions": self._history.episodes(),
        }

    def _restore(self, state: Mapping[str, Any]) -> NDArray[Any]:
        observations = []
        for env, *to_replay in zip(self._envs, state["seeds"], state["generators"], state["actions"], strict=True):
            env.to_replay = tuple(to_replay)
            observations.append(env.replay())
        self._history.load(state["actions"])
        return np.array(observations, self._observation_dtype)


THREAD_LIMITS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

_AUTORESET_MODES: dict[object, Literal["same_step", "next_step"]] = {
    AutoresetMode.SAME_STEP: "same_step",
    AutoresetMode.NEXT_STEP: "next_step",
}


class VectorEnvs(Envs):
    """Copies stepped by one of Gymnasium's vector environments, in the autoreset mode that it has.

    Subclasses say how it is made, seeded and restored.
    """

    def __init__(
        self,
        env_id: str,
        num_envs: int,
        seed: int,
        restores_by: Literal["replay", "attributes"],
        vector: Any,
        remake: Callable[[], Envs],
    ) -> None:
        self._vector = vector
        self._spec = vector.spec
        try:
            spaces = checked_spaces(env_id, vector)
            mode = vector.metadata.get("autoreset_mode")
            if mode not in _AUTORESET_MODES:
                raise EnvError(f"env_id {env_id!r}: its autoreset mode is {mode}, expected same-step or next-step")
        except EnvError:
            self.close()
            raise
        super().__init__(env_id, num_envs, seed, *spaces, _AUTORESET_MODES[mode], restores_by, remake)
        self._lengths = np.zeros(num_envs, np.int64)
        self._ended = np.zeros(num_envs, np.bool_)

    def step(self, actions: ArrayLike) -> Step:
        """See `Envs.step`."""
        return self._stepped(*self._vector.step(self._checked(actions)))

    def _stepped(self, observations: Any, rewards: Any, terminated: Any, truncated: Any, infos: Any) -> Step:
        self._observations[:] = observations
        rewards, terminated, truncated = np.array(rewards), np.array(terminated), np.array(truncated)
        next_step = self.autoreset_mode == "next_step"
        mask = ~self._ended if next_step else self._all_valid.copy()
        self._ended = terminated | truncated
        if next_step:
            self._ended &= mask
            np.add(self._returns, rewards, out=self._returns, where=mask)
        else:
            self._returns += rewards
        self._lengths += mask
        if not np.count_nonzero(self._ended):
            return self._step(rewards, terminated, truncated, mask, (), (), ())
        ended: list[int] = np.flatnonzero(self._ended).tolist()
        finals = [self._observations[i] if next_step else infos["final_obs"][i] for i in ended]
        lengths: list[int] = self._lengths[ended].tolist()
        self._lengths[ended] = 0
        return self._step(rewards, terminated, truncated, mask, ended, finals, lengths)

    def close(self) -> None:
        """See `Envs.close`."""
        if not self._vector.closed:
            self._vector.close()

    def _reset(self, seeds: list[int] | None) -> NDArray[Any]:
        self._lengths[:] = 0
        self._ended[:] = False
        return np.array(self._vector.reset(seed=seeds)[0])


def _replayable_in_worker(main_process: int, env: gymnasium.Env[Any, Any]) -> Replayable:
    if os.getpid() != main_process:
        # Ctrl-C reaches every process at once. The main one has a checkpoint to write and needs the workers' states.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        one_thread()
    return Replayable(env)


def one_thread() -> None:
    """Keep the numerical libraries of this process to one thread each, those loaded already and those still to come.

    For a process that has its own core's worth of work; and in a forked one, where OpenMP would wait for ever for the
    threads that it had before the fork.
    """
    threadpoolctl.threadpool_limits(1)
    if "torch" in sys.modules:  # the MKL inside it is seen by nobody else
        sys.modules["torch"].set_num_threads(1)
    os.environ.update(dict.fromkeys(THREAD_LIMITS, "1"))


class AsyncEnvs(VectorEnvs):
    """Copies in one process of one thread each (`gymnasium.vector.AsyncVectorEnv`), with same-step autoreset."""

    def __init__(self, env_id: str, num_envs: int, seed: int, env_kwargs: Mapping[str, Any]) -> None:
        # copy=False: the workers' shared memory is copied here, once.
        vector_kwargs = {"autoreset_mode": AutoresetMode.SAME_STEP, "copy": False}
        wrappers = [partial(_replayable_in_worker, os.getpid())]
        kwargs = {"vectorization_mode": "async", "vector_kwargs": vector_kwargs, "wrappers": wrappers, **env_kwargs}
        vector = attempt(env_id, lambda: gymnasium.make_vec(env_id, num_envs, **kwargs))
        # A copy in a worker behaves as one in this process does, which is cheaper to make.
        remake = partial(SyncEnvs, env_id, 1, seed, env_kwargs)
        super().__init__(env_id, num_envs, seed, "replay", vector, remake)
        self._history = ActionHistory(num_envs, self._actions_shape[1:], self._action_dtype)

    def step(self, actions: ArrayLike) -> Step:
        """See `Envs.step`."""
        self.step_async(actions)
        return self.step_wait()

    def step_async(self, actions: ArrayLike) -> None:
        """See `Envs.step_async`."""
        actions = self._checked(actions)
        self._vector.step_async(actions)
        self._history.append(actions)

    def step_wait(self) -> Step:
        """See `Envs.step_wait`."""
        step = self._stepped(*self._vector.step_wait())
        for index in np.flatnonzero(self._ended):
            self._history.restart(int(index))
        return step

    def _reset(self, seeds: list[int] | None) -> NDArray[Any]:
        self._history.clear()
        return super()._reset(seeds)

    def _state(self) -> dict[str, Any]:
        return {
            "seeds": list(self._vector.get_attr("seed")),
            "generators": list(self._vector.get_attr("generator_state")),
            "actions": self._history.episodes(),
        }

    def _restore(self, state: Mapping[str, Any]) -> NDArray[Any]:
        to_replay = list(zip(state["seeds"], state["generators"], state["actions"], strict=True))
        self._vector.set_attr("to_replay", to_replay)
        observations = np.array(self._vector.call("replay"), self._observation_dtype)
        self._history.load(state["actions"])
        self._lengths[:] = [len(actions) for actions in state["actions"]]
        return observations


class EntryPointEnvs(VectorEnvs):
    """The environment's own vector form (`vector_entry_point`), all copies of which share one generator."""

    def __init__(self, env_id: str, num_envs: int, seed: int, env_kwargs: Mapping[str, Any]) -> None:
        kwargs = {"vectorization_mode": "vector_entry_point", **env_kwargs}
        vector = attempt(env_id, lambda: gymnasium.make_vec(env_id, num_envs, **kwargs))
        remake = partial(EntryPointEnvs, env_id, 2, seed, env_kwargs)
        super().__init__(env_id, num_envs, seed, "attributes", vector, remake)

    def _reset(self, seeds: list[int] | None) -> NDArray[Any]:
        self._lengths[:] = 0
        self._ended[:] = False
        return np.array(self._vector.reset(seed=seeds[0] if seeds else None)[0])

    def _state(self) -> dict[str, Any]:
        return {
            "attributes": [plain_attributes(layer) for layer in self._layers()],
            "lengths": self._lengths.copy(),
            "ended": self._ended.copy(),
        }

    def _restore(self, state: Mapping[str, Any]) -> NDArray[Any]:
        self._reset(self._seeds)
        for layer, attributes in zip(self._layers(), state["attributes"], strict=True):
            set_plain_attributes(layer, attributes)
        self._lengths[:] = state["lengths"]
        self._ended[:] = state["ended"]
        return np.array(state["observations"])

    def _layers(self) -> list[Any]:
        layers = [self._vector]
        while isinstance(layers[-1], VectorWrapper):
            layers.append(layers[-1].env)
        return layers
