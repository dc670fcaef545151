"""Replay buffers for `replay_buffer_class=`, around fastac's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common import buffers as sb3
from stable_baselines3.common.preprocessing import get_action_dim, get_obs_shape
from stable_baselines3.common.type_aliases import DictReplayBufferSamples, ReplayBufferSamples
from stable_baselines3.her import her_replay_buffer

from fastac import buffers
from fastac.buffers import Transitions, stored
from fastac.compat.sb3.arrays import StoredArray
from fastac.conventions import dones_from_ends, ends_from_dones

__all__ = ["DictReplayBuffer", "HerReplayBuffer", "NStepReplayBuffer", "ReplayBuffer"]


class ReplayBuffer(sb3.ReplayBuffer):
    """Stable-Baselines3's replay buffer, with `fastac.buffers.ReplayBuffer` for its memory and draws.

        model = SAC("MlpPolicy", env, replay_buffer_class=fastac.compat.sb3.ReplayBuffer)

    What differs from Stable-Baselines3's own, beside speed:

    - Every observation is stored once, and the observations that truncated transitions led to are kept: half the
      memory without `optimize_memory_usage`, which changes nothing here but what `learn` does when it is called again.
    - Draws come from a generator of the buffer's own. Its seed is `seed`, or drawn from numpy's global generator, which
      Stable-Baselines3 has seeded by then: the same `seed=` of a model gives the same run.
    - With `n_steps` above 1 targets are n-step, for Dict observations, too. Windows end at an episode's end, at the
      newest transition, and wherever an observation is not the one that the last transition led to.
    - `observations`, `next_observations`, `actions`, `rewards`, `dones` and `timeouts` are read as copies. Observations
      cannot be assigned, the others can; positions can be written only where a transition was added.

    Args:
        buffer_size: Transitions to keep, of all environments together.
        observation_space: Of one environment; a Dict space for dicts.
        action_space: Of one environment.
        device: Where batches go.
        n_envs: N, how many environments each `add` is a step of.
        optimize_memory_usage: As Stable-Baselines3's models pass it on.
        handle_timeout_termination: Let time limits bootstrap: `infos` say which `done` is one.
        n_steps: The most steps of a target; above 1 batches have `discounts`, gamma^m for m steps.
        gamma: Discount per step, where n_steps is above 1: the model's.
        seed: Of the draws.

    Attributes:
        inner: The `fastac.buffers.ReplayBuffer`; `inner.save(path)` streams what a pickle holds twice.

    Raises:
        ValueError: An argument is out of range.

    Example:
        >>> space = spaces.Box(-1.0, 1.0, (3,))
        >>> buffer = ReplayBuffer(100, space, spaces.Discrete(2), device="cpu", seed=0)
        >>> for t in range(3):
        ...     buffer.add(np.full((1, 3), t), np.full((1, 3), t + 1), np.array([1]), np.ones(1), np.zeros(1), [{}])
        >>> batch = buffer.sample(4)
        >>> batch.observations.shape, batch.rewards.shape, batch.actions.dtype
        (torch.Size([4, 3]), torch.Size([4, 1]), torch.int64)
        >>> buffer.pos, buffer.full, buffer.next_observations[:3, 0, 0]
        (3, False, array([1., 2., 3.], dtype=float32))
    """

    _kind: ClassVar[type[buffers.ReplayBuffer]] = buffers.ReplayBuffer
    _always_discounts: ClassVar[bool] = False
    _more_options: Mapping[str, Any] = {}

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        device: torch.device | str = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
        handle_timeout_termination: bool = True,
        *,
        n_steps: int = 1,
        gamma: float = 0.99,
        seed: int | None = None,
    ) -> None:
        self._build(buffer_size, observation_space, action_space, n_envs, n_step=n_steps, gamma=gamma, seed=seed)
        super(sb3.ReplayBuffer, self).__init__(buffer_size, observation_space, action_space, device, n_envs=n_envs)
        self.buffer_size = self.inner.capacity // n_envs
        self.optimize_memory_usage = optimize_memory_usage
        self.handle_timeout_termination = handle_timeout_termination
        self.n_steps, self.gamma = n_steps, gamma
        self._never = np.zeros(n_envs, np.bool_)
        self._discrete = isinstance(action_space, spaces.Discrete)

    def _build(
        self, buffer_size: int, observation_space: Any, action_space: Any, n_envs: int, *, seed: int | None,
        **options: Any,
    ) -> None:  # fmt: skip
        """Makes the buffer inside."""
        if seed is None:
            seed = int(np.random.randint(2**63 - 1, dtype=np.int64))  # noqa: NPY002 what set_random_seed seeds
        # `get_samples` is asked for positions, and for no environments.
        self._environments = np.random.default_rng(seed)
        observations: Any = get_obs_shape(observation_space)
        if isinstance(observations, dict):
            observations = {key: np.zeros(n, observation_space[key].dtype) for key, n in observations.items()}
        else:
            observations = np.zeros(observations, observation_space.dtype)
        actions = np.zeros(get_action_dim(action_space), self._maybe_cast_dtype(action_space.dtype))
        self._options = {"num_envs": n_envs, "seed": seed, **options, **self._more_options}
        self._example = {"observations": observations, "actions": actions}
        self._capacity = max(buffer_size // n_envs, 1) * n_envs
        self.inner = self._kind.from_example(self._capacity, self._example, **self._options)

    def reset(self) -> None:
        """Forgets all transitions; draws go on where they were."""
        state = self.inner.state_dict()
        self.inner = self._kind.from_example(self._capacity, self._example, **self._options)
        self.inner.load_state_dict(state)

    @property
    def pos(self) -> int:
        """Where the next step goes. It follows from what was added: it can be set to what it is, or by `reset`."""
        return self.inner.added // self.n_envs % self.buffer_size if self.inner.added else 0

    @pos.setter
    def pos(self, pos: int) -> None:
        if pos != self.pos:
            raise ValueError(f"pos: got {pos}, it is {self.pos}: add or extend moves it, reset() sets it to 0")

    @property
    def full(self) -> bool:
        """Whether every position holds a transition. Setting it adds transitions of zeros until it is so."""
        return self.inner.added >= self.inner.capacity

    @full.setter
    def full(self, full: bool) -> None:
        if self.full and not full:
            raise ValueError("full: got False, but the buffer is full; reset() empties it")
        if not full or self.full:
            return
        nothing = np.zeros((self.n_envs,), np.bool_)
        observations, actions = (_repeated(self._example[name], self.n_envs) for name in ("observations", "actions"))
        while not self.full:
            self.inner.add(observations, actions, nothing.astype(np.float32), observations, nothing, nothing)

    def add(self, obs: Any, next_obs: Any, action: Any, reward: Any, done: Any, infos: list[dict[str, Any]]) -> None:
        """Adds one step of every environment.

        Args:
            obs: `(N, *observation)`, or a dict of such.
            next_obs: Those that the transitions led to, before any reset.
            action: `(N, *action)`.
            reward: `(N,)`.
            done: `(N,)`: the transition ended the episode.
            infos: N dicts, whose `TimeLimit.truncated` says that a time limit did.
        """
        rows = self.n_envs
        terminated, truncated = done, self._never
        if self.handle_timeout_termination:
            timeout = len(infos) != rows
            for info in infos:
                if info.get("TimeLimit.truncated"):
                    timeout = True
                    break
            if timeout:
                timeouts = [bool(info.get("TimeLimit.truncated", False)) for info in infos]
                terminated, truncated = ends_from_dones(_rows(done, _DONE, rows), _rows(timeouts, _DONE, rows))
        if self._discrete and type(action) is np.ndarray:
            action = action.reshape(rows, 1)
        if self.inner._add_plain(obs, action, reward, next_obs, terminated, truncated):
            return
        example = self._example
        self.inner.add(
            _rows(obs, example["observations"], rows), _rows(action, example["actions"], rows),
            _rows(reward, _REWARD, rows), _rows(next_obs, example["observations"], rows),
            _rows(terminated, _DONE, rows), truncated,
        )  # fmt: skip

    def sample(self, batch_size: int, env: Any = None) -> Any:
        """Draws a batch uniformly among all stored transitions.

        Args:
            batch_size: B.
            env: A `VecNormalize`, by whose present statistics observations and rewards are normalised.

        Returns:
            `ReplayBufferSamples`, or `DictReplayBufferSamples`.

        Raises:
            ValueError: There is nothing to draw.
        """
        return self._samples(self.inner.sample(int(batch_size)), env)

    def _get_samples(self, batch_inds: NDArray[np.int64], env: Any = None) -> Any:
        """The transitions at these positions, each of an environment drawn at random."""
        positions = np.asarray(batch_inds, np.int64)
        newest = self.inner.added // self.n_envs - 1
        steps = newest - (newest - positions) % self.buffer_size
        environments = self._environments.integers(0, self.n_envs, len(positions))
        return self._samples(self.inner.gather(steps * self.n_envs + environments), env)

    def _samples(self, batch: Transitions, env: Any) -> Any:
        observations, following, rewards = batch.observations, batch.next_observations, batch.rewards[:, None]
        if env is not None:
            observations, following = self._normalize_obs(observations, env), self._normalize_obs(following, env)
            rewards = self._normalized_rewards(batch, env)
        kind = DictReplayBufferSamples if isinstance(observations, dict) else ReplayBufferSamples
        with_discounts = self._always_discounts or self.n_steps > 1
        return kind(
            self._moved(observations),
            self._moved(batch.actions),
            self._moved(following),
            self._moved(batch.terminated[:, None].astype(np.float32)),
            self._moved(rewards),
            self._moved(batch.discounts[:, None]) if with_discounts else None,
        )

    def _normalized_rewards(self, batch: Transitions, env: Any) -> NDArray[np.float32]:
        """`VecNormalize` clips rewards, so each is normalised before a target's are added up."""
        if self.n_steps == 1:
            single: NDArray[np.float32] = self._normalize_reward(batch.rewards[:, None], env)
            return single
        rewards, inside = stored.reward_windows(self.inner, batch.indices)
        terms = np.where(inside, self._normalize_reward(rewards, env), 0.0) * self.gamma ** np.arange(self.n_steps)
        total: NDArray[np.float32] = terms.sum(1, keepdims=True).astype(np.float32)
        return total

    def _moved(self, value: Any) -> Any:
        """New memory as a tensor on the device, dicts part by part."""
        if isinstance(value, dict):
            return {key: self._moved(part) for key, part in value.items()}
        tensor = torch.from_numpy(value)
        return tensor if self.device.type == "cpu" else tensor.to(self.device)

    def _observation_arrays(self, name: str) -> Any:
        example = self._example["observations"]

        def array(part: NDArray[Any], key: str | None = None) -> StoredArray:
            def read(indices: NDArray[np.int64]) -> NDArray[Any]:
                found = getattr(stored.rows(self.inner, indices), name)
                values: NDArray[Any] = found if key is None else found[key]
                return values

            return StoredArray(self.inner, part.shape, part.dtype, read)

        return {key: array(part, key) for key, part in example.items()} if isinstance(example, dict) else array(example)

    def _flag_array(self, timeouts: bool) -> StoredArray:
        def read(indices: NDArray[np.int64]) -> NDArray[Any]:
            found: NDArray[Any] = dones_from_ends(*stored.ends(self.inner, indices))[int(timeouts)]
            return found

        def write(indices: NDArray[np.int64], values: NDArray[Any]) -> None:
            flags = list(dones_from_ends(*stored.ends(self.inner, indices)))
            flags[int(timeouts)] = values != 0
            stored.set_ends(self.inner, indices, *ends_from_dones(*flags))

        return StoredArray(self.inner, (), np.float32, read, write)

    @property
    def observations(self) -> Any:
        """`(buffer_size, N, *observation)`, or a dict of such: those that actions were chosen in."""
        return self._observation_arrays("observations")

    @property
    def next_observations(self) -> Any:
        """Those that the transitions led to, before any reset."""
        return self._observation_arrays("next_observations")

    @property
    def actions(self) -> Any:
        """`(buffer_size, N, action_dim)`."""
        example = self._example["actions"]
        return StoredArray(
            self.inner, example.shape, example.dtype,
            lambda indices: stored.rows(self.inner, indices).actions,
            lambda indices, values: stored.set_actions(self.inner, indices, values),
        )  # fmt: skip

    @actions.setter
    def actions(self, actions: Any) -> None:
        self.actions[...] = actions

    @property
    def rewards(self) -> Any:
        """`(buffer_size, N)`, of single steps."""
        return StoredArray(
            self.inner, (), np.float32,
            lambda indices: stored.rewards(self.inner, indices),
            lambda indices, values: stored.set_rewards(self.inner, indices, values),
        )  # fmt: skip

    @rewards.setter
    def rewards(self, rewards: Any) -> None:
        self.rewards[...] = rewards

    @property
    def dones(self) -> Any:
        """`(buffer_size, N)`: 1 where the transition ended an episode."""
        return self._flag_array(timeouts=False)

    @dones.setter
    def dones(self, dones: Any) -> None:
        self.dones[...] = dones

    @property
    def timeouts(self) -> Any:
        """`(buffer_size, N)`: 1 where a time limit ended it."""
        return self._flag_array(timeouts=True)

    @timeouts.setter
    def timeouts(self, timeouts: Any) -> None:
        self.timeouts[...] = timeouts


_DONE, _REWARD = np.zeros((), np.bool_), np.zeros((), np.float32)


def _rows(value: Any, example: Any, rows: int) -> Any:
    """`value` as one row of the example's kind for each environment, as assignment to a numpy array would take it."""
    if isinstance(example, dict):
        return {key: _rows(value[key], part, rows) for key, part in example.items()}
    array, shape = value, (rows, *example.shape)
    if type(array) is not np.ndarray or array.dtype is not example.dtype:
        array = np.asarray(array).astype(example.dtype)
    if array.shape != shape:
        array = array.reshape(shape) if array.size == rows * example.size else np.broadcast_to(array, shape)
    return array if array.flags.c_contiguous else np.ascontiguousarray(array)


def _repeated(example: Any, rows: int) -> Any:
    if isinstance(example, dict):
        return {key: _repeated(part, rows) for key, part in example.items()}
    return np.zeros((rows, *example.shape), example.dtype)


class DictReplayBuffer(ReplayBuffer, sb3.DictReplayBuffer):
    """`ReplayBuffer` for Dict observations, where Stable-Baselines3 asks for a class of its own."""

    def __init__(self, buffer_size: int, observation_space: Any, *args: Any, **kwargs: Any) -> None:
        assert isinstance(observation_space, spaces.Dict), "DictReplayBuffer must be used with Dict obs space only"
        super().__init__(buffer_size, observation_space, *args, **kwargs)


class NStepReplayBuffer(ReplayBuffer, sb3.NStepReplayBuffer):
    """`ReplayBuffer` with n-step targets, where Stable-Baselines3 asks for a class of its own."""

    _always_discounts = True

    def __init__(self, *args: Any, n_steps: int = 3, gamma: float = 0.99, **kwargs: Any) -> None:
        super().__init__(*args, n_steps=n_steps, gamma=gamma, **kwargs)


class HerReplayBuffer(her_replay_buffer.HerReplayBuffer, DictReplayBuffer):
    """Stable-Baselines3's hindsight experience replay over our memory: its goals and draws, observations kept once."""
