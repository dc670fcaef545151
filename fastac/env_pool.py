"""EnvPool's environments (Weng et al. 2022, arXiv:2206.10558): all copies stepped by threads, outside Python.

What EnvPool calls CartPole-v1 is its own, in C++, of the same equations as Gymnasium's; its generators are others.

Where an episode ended, the next step's action is ignored and its observation is the reset's: that row is a filler. At a
time limit EnvPool says truncated also where the episode terminated in that very step, which would give a fallen pole a
future. So EnvPool is told a limit one step beyond the wanted one, and the wanted one is applied here: termination is
then told from truncation in the last step too, and a truncated episode has two fillers behind it.
"""

from __future__ import annotations

import difflib
import os
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastac.env_base import Envs, Step, attempt, checked_spaces
from fastac.env_state import EnvError

__all__ = ["EnvPoolEnvs"]

NO_LIMIT = 2**31 - 1  # what EnvPool says of an environment without one


class EnvPoolEnvs(Envs):
    """Copies stepped by EnvPool, with next-step autoreset.

    Its state cannot be read: checkpoints go without it, and a resumed run starts new episodes. Steps are the same
    however many threads take them.

    Args:
        env_id: one of `envpool.list_all_envs()`.
        num_envs: number of copies.
        seed: copy k is seeded with the kth word of `np.random.SeedSequence(seed)`, less its last bit.
        env_kwargs: passed to `envpool.make`. `num_threads` is by default the number of cores less one, which is left to
            the process that learns, and at most `num_envs`; `max_episode_steps` is EnvPool's own for the environment.

    Raises:
        EnvError: EnvPool is not installed, has no such environment, or its spaces are unsupported.
    """

    def __init__(self, env_id: str, num_envs: int, seed: int, env_kwargs: Mapping[str, Any]) -> None:
        envpool = _imported()
        if env_id not in envpool.list_all_envs():
            similar = difflib.get_close_matches(env_id, envpool.list_all_envs(), n=1)
            hint = f" Did you mean: `{similar[0]}`?" if similar else ""
            raise EnvError(f"env_id {env_id!r}: EnvPool has no such environment.{hint}")
        words = np.random.SeedSequence(seed).generate_state(num_envs)
        kwargs = {"num_threads": min(num_envs, max(1, _cores() - 1)), **env_kwargs}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Gymnasium's, about the bounds that EnvPool states
            limit = attempt(env_id, lambda: envpool.make_spec(env_id, **env_kwargs).config.max_episode_steps)
            if not 1 <= limit <= NO_LIMIT:
                raise EnvError(f"env_id {env_id!r}: max_episode_steps is {limit}, expected at least 1")
            kwargs |= {"num_envs": num_envs, "seed": (words >> 1).tolist()}
            kwargs["max_episode_steps"] = min(limit, NO_LIMIT - 1) + 1
            self._pool = attempt(env_id, lambda: envpool.make_gymnasium(env_id, **kwargs))
            spaces = checked_spaces(env_id, self._pool)
        super().__init__(env_id, num_envs, seed, *spaces, "next_step", "nothing", self._no_copy)
        self._limit = limit
        self._lengths = np.zeros(num_envs, np.int64)
        self._over = np.zeros(num_envs, np.bool_)  # our episode has ended, the next has not begun
        self._done = np.zeros(num_envs, np.bool_)  # EnvPool's has: its next step is a reset
        self._stepping = False

    def step(self, actions: ArrayLike) -> Step:
        """See `Envs.step`."""
        self.step_async(actions)
        return self.step_wait()

    def step_async(self, actions: ArrayLike) -> None:
        """See `Envs.step_async`."""
        actions = self._checked(actions)
        if self._stepping:
            raise RuntimeError("step_async: the step before has not been waited for")
        self._pool.send(actions)
        self._stepping = True

    def step_wait(self) -> Step:
        """See `Envs.step_wait`."""
        if not self._stepping:
            raise RuntimeError("step_wait: no step was begun")
        observations, rewards, terminated, truncated, _ = self._pool.recv()
        self._stepping = False
        self._observations[:] = observations
        rewards, done, mask = np.array(rewards), terminated | truncated, ~self._over
        if not mask.all() and (self._over & ~self._done & ~done).any():
            raise EnvError(f"env_id {self.env_id!r}: EnvPool goes on after max_episode_steps, {self._limit}")
        self._lengths += mask
        np.add(self._returns, rewards, out=self._returns, where=mask)
        terminated = terminated & mask
        truncated = (truncated | (self._lengths == self._limit)) & mask
        ended_now = terminated | truncated
        self._over = ended_now | (~mask & done)
        self._done = done
        if not np.count_nonzero(ended_now):
            return self._step(rewards, terminated, truncated, mask, (), (), ())
        ended: list[int] = np.flatnonzero(ended_now).tolist()
        lengths: list[int] = self._lengths[ended].tolist()
        self._lengths[ended] = 0
        return self._step(rewards, terminated, truncated, mask, ended, [self._observations[i] for i in ended], lengths)

    def close(self) -> None:
        """See `Envs.close`; the threads end with the pool."""
        self._pool = None

    @property
    def why_not_restorable(self) -> str | None:
        """The reason: EnvPool keeps its state to itself."""
        return f"EnvPool does not say what state {self.env_id} is in"

    def _reset(self, seeds: list[int] | None) -> NDArray[Any]:
        # Seeded when it was made; later resets go on with its generators.
        self._lengths[:] = 0
        self._over[:] = self._done[:] = False
        return np.array(self._pool.reset()[0])

    def _state(self) -> dict[str, Any]:
        raise EnvError(f"state_dict: {self.why_not_restorable}")

    def _restore(self, state: Mapping[str, Any]) -> NDArray[Any]:
        raise EnvError(f"load_state_dict: {self.why_not_restorable}")

    def _no_copy(self) -> Envs:
        raise EnvError(f"{self.why_not_restorable}")


def _imported() -> Any:
    try:
        import envpool
    except ImportError as error:
        raise EnvError(f'vectorization "envpool": `pip install envpool` first ({error})') from error
    return envpool


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
