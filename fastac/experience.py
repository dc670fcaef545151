"""What every off-policy algorithm does besides learning: act in N environments, keep the transitions, draw batches.

The counterpart of `fastac.collector`. What acts when, and how often is learnt, stays in the algorithm's file.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Generic, TypeVar

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from numpy.typing import NDArray

from fastac.acting import ArrayActor
from fastac.buffers import (
    DevicePrioritizedReplayBuffer,
    DeviceReplayBuffer,
    PrioritizedReplayBuffer,
    ReplayBuffer,
    Transitions,
)
from fastac.buffers.transfer import sent
from fastac.collector import Episodes
from fastac.envs import BESIDE_THE_CALLER, EnvError, Step, make_envs
from fastac.images import image_of
from fastac.networks import AnyActor
from fastac.normalize import ObservationNormalizer
from fastac.policy import Policy
from fastac.run import RunError, torch_device

__all__ = ["Episodes", "Experience"]

A = TypeVar("A", bound=AnyActor)


class Experience(Generic[A]):
    """An actor in its environments, and everything that they went through.

    Actions are those of the actor: in [-1, 1]^A where it ends in a tanh, whatever the environment's bounds; these
    are stored, and the environment gets them scaled. Observations are stored as the environments gave them and
    normalised when they are sampled, with the statistics of that moment: a row from long ago is seen as the actor
    would see it now. (What a rollout's ratios need, statistics of the time of acting, nothing here does.)

    Args:
        config: An algorithm's options, of which these are read: `env_id`, `num_envs`, `vectorization`, `seed`, `gamma`,
            `buffer_size`, `normalize_observations`, `hidden_sizes`, `activation`, `device`, `overlap`.
        make_actor: Builds the actor from the two spaces, `hidden_sizes`, `activation` and `generator`:
            `fastac.networks.make_tanh_gaussian_actor`, for example.
        n_step: The most rewards in a target.
        replay: `ReplayBuffer` or `PrioritizedReplayBuffer`, perhaps a `functools.partial` with its own options.

    Attributes:
        envs: The environments.
        actor: pi, on the device.
        policy: The actor with all that lies between it and an environment.
        replay: The buffer, on CUDA if the networks are and observations are no images. Its rows' targets and discounts
            are those of `n_step` and `config.gamma`.
        observations: `(N, *obs)`, to act on next, as the environments gave them.
        action_shape: `(N, A)`, or `(N,)` of discrete actions.
        generator: CPU generator of the actions, and of whatever else the algorithm draws.
        weights: CPU generator of initial weights, for the critics.
        global_step: Environment steps so far.
        num_steps: Calls of `step` so far.

    Raises:
        fastac.envs.EnvError: the environment cannot be made, its spaces are unsupported, or its bounds are infinite
            where an actor's are not.
        fastac.run.RunError: the device is not there, images were to be normalised, the buffer is too small, or nothing
            can `overlap` because this process steps the environments.

    Example:
        >>> from types import SimpleNamespace
        >>> from fastac.networks import make_tanh_gaussian_actor
        >>> config = SimpleNamespace(
        ...     env_id="Pendulum-v1", num_envs=2, vectorization="sync", seed=0, gamma=0.99, buffer_size=1000,
        ...     normalize_observations=True, hidden_sizes=(16,), activation="relu", device="cpu", overlap=False)
        >>> experience = Experience(config, make_tanh_gaussian_actor)
        >>> for _ in range(100):
        ...     episodes = experience.step(experience.random_actions())
        >>> for _ in range(100):
        ...     episodes = experience.step(experience.sampled_actions())
        >>> batch = experience.sample(32)
        >>> batch.observations.shape, batch.actions.abs().max() <= 1, experience.global_step, len(episodes.returns)
        (torch.Size([32, 3]), tensor(True), 400, 2)
        >>> experience.close()
    """

    def __init__(
        self,
        config: Any,
        make_actor: Callable[..., A],
        *,
        n_step: int = 1,
        replay: Callable[..., ReplayBuffer] = ReplayBuffer,
    ):
        self.config = config
        self.device = torch_device(config.device)
        if config.buffer_size < config.num_envs:
            raise RunError(f"buffer_size: got {config.buffer_size}, expected at least num_envs, {config.num_envs}")
        if config.overlap and config.vectorization not in BESIDE_THE_CALLER:
            raise RunError(
                f"overlap: got True with vectorization {config.vectorization!r}, whose steps the learner takes itself, "
                f"expected one of {', '.join(BESIDE_THE_CALLER)}"
            )
        self.envs = make_envs(config.env_id, config.num_envs, seed=config.seed, vectorization=config.vectorization)
        try:
            self._build(config, make_actor, n_step, replay)
        except BaseException:
            self.envs.close()
            raise

    def _build(
        self, config: Any, make_actor: Callable[..., A], n_step: int, replay: Callable[..., ReplayBuffer]
    ) -> None:
        observation_space, action_space = self.envs.single_observation_space, self.envs.single_action_space
        seeds = np.random.SeedSequence(config.seed).generate_state(3, np.uint64)
        self.weights = torch.Generator().manual_seed(int(seeds[0]))
        self.generator = torch.Generator().manual_seed(int(seeds[1]))
        network: dict[str, Any] = {"hidden_sizes": config.hidden_sizes, "activation": config.activation}
        try:
            actor: A = make_actor(observation_space, action_space, **network, generator=self.weights)
        except TypeError as error:
            raise EnvError(f"env_id {config.env_id!r}: {error}") from error
        actor.to(self.device)
        self.actor = actor
        if self.actor.kind in ("tanh", "tanh_gaussian") and isinstance(action_space, Box):
            bounds = np.stack([action_space.low, action_space.high])
            if not np.isfinite(bounds).all():
                raise EnvError(f"env_id {config.env_id!r}: its actions are {action_space}, expected finite bounds")
        image = image_of(observation_space) is not None
        if image and config.normalize_observations:
            raise RunError("normalize_observations: got True for images, which the network divides by 255 already")
        shape = observation_space.shape
        self.observation_normalizer = ObservationNormalizer(shape) if config.normalize_observations else None
        self.policy = Policy(
            self.actor,
            observation_space,
            action_space,
            **network,
            observation_normalizer=self.observation_normalizer,
            seed=config.seed,
        )
        self.acting = ArrayActor(self.actor)
        stored_actions: gymnasium.Space[Any]
        self.action_shape: tuple[int, ...]
        if isinstance(action_space, Discrete):
            stored_actions, self.action_shape = Discrete(int(action_space.n)), (config.num_envs,)
        else:
            size = math.prod(action_space.shape)
            stored_actions, self.action_shape = Box(-np.inf, np.inf, (size,)), (config.num_envs, size)
        self.replay = replay_on(self.device, replay, image=image)(
            config.buffer_size,
            observation_space if image else Box(-np.inf, np.inf, shape),
            stored_actions,
            num_envs=config.num_envs,
            n_step=n_step,
            gamma=config.gamma,
            seed=int(seeds[2] >> np.uint64(1)),
        )
        self._dtype = np.dtype(np.uint8 if image else np.float32)
        self._batch: Transitions | None = None
        self._begun: tuple[NDArray[Any], Step | None] | None = None
        self.global_step = self.num_steps = 0
        self.observations = self._reset()

    def random_actions(self) -> NDArray[Any]:
        """Returns actions drawn uniformly: from [-1, 1]^A, or from the n discrete ones, counted from 0."""
        space = self.envs.single_action_space
        if isinstance(space, Discrete):
            return torch.randint(int(space.n), self.action_shape, generator=self.generator).numpy()
        uniform = 2.0 * torch.rand(self.action_shape, generator=self.generator) - 1.0
        if self.actor.kind == "gaussian" and np.isfinite([space.low, space.high]).all():
            # A Gaussian's actions are in the environment's own units.
            return (space.low + (uniform.numpy() + 1.0) * 0.5 * (space.high - space.low)).astype(np.float32)
        return uniform.numpy()

    def sampled_actions(self) -> NDArray[Any]:
        """Returns actions drawn from the actor; a deterministic one's own."""
        noise = self.acting.noise((len(self.observations),), self.generator)
        return self.acting.sample(self.policy.observe(self.observations), noise)

    def most_probable_actions(self) -> NDArray[Any]:
        """Returns the actor's actions without noise."""
        return self.acting.mode(self.policy.observe(self.observations))

    def step(self, actions: NDArray[Any]) -> Episodes:
        """Takes one step of every environment and stores it: `step_async`, then `step_wait`."""
        self.step_async(actions)
        return self.step_wait()

    def step_async(self, actions: NDArray[Any]) -> None:
        """Begins a step of every environment; with `config.overlap` it goes on while the caller does something else.

        Without, it is taken and stored at once, and what the caller does before `step_wait` comes after it. So a loop
        that acts, begins a step, learns and waits is the plain one without `overlap`; with it, the same updates are
        made of the same transitions, and actions come from the actor as it was one round of updates before.

        Args:
            actions: `(N, A)` float32 or `(N,)` int64, as the actor gives them; stored as they are.
        """
        taken = self.policy.environment_actions(actions)
        if self.config.overlap:
            self.envs.step_async(taken)
            self._begun = actions, None
        else:
            self._begun = actions, self._stored(actions, self.envs.step(taken))

    def step_wait(self) -> Episodes:
        """Ends the step that `step_async` began: it is stored now, at the latest.

        Returns:
            Returns and lengths of the episodes that ended.
        """
        assert self._begun is not None, "step_wait without step_async"
        (actions, step), self._begun = self._begun, None
        if step is None:
            step = self._stored(actions, self.envs.step_wait())
        return Episodes(step.episode_returns.tolist(), step.episode_lengths.tolist())

    def _stored(self, actions: NDArray[Any], step: Step) -> Step:
        following = step.observations
        if len(step.final_observations):
            ended = (step.terminated | step.truncated) & step.mask
            # Where a filler follows, the observation is the final one already, and is never acted on.
            counted = following[~ended] if self.envs.autoreset_mode == "next_step" else following
            following = following.copy()
            following[ended] = step.final_observations
        else:
            counted = following
        self.replay.add(
            self.observations.astype(self._dtype, copy=False),
            actions,
            step.rewards,
            following.astype(self._dtype, copy=False),
            step.terminated,
            step.truncated,
            step.mask,
        )
        if self.observation_normalizer is not None:
            self.observation_normalizer.update(counted)
        self.observations = step.observations
        self.global_step += int(np.count_nonzero(step.mask))
        self.num_steps += 1
        return step

    def sample(self, batch_size: int, **options: Any) -> Transitions:
        """Draws a batch of stored transitions, as tensors on the device; observations as the actor sees them now.

        On the CPU the next call writes into the same memory: a batch is for one update.

        Args:
            batch_size: B.
            options: Further ones of the buffer's `sample`.

        Returns:
            The batch. Its target is `rewards + discounts * V(next_observations)`, the second term absent where
            `terminated`: a time limit is no end.
        """
        if isinstance(self.replay, DeviceReplayBuffer):
            batch = self.replay.sample(batch_size, **options)
        elif self._batch is None or len(self._batch.rewards) != batch_size:
            batch = self._batch = self.replay.sample(batch_size, device="cpu", **options)
        else:
            batch = self.replay.sample(batch_size, out=self._batch, **options)
        if self.device.type != "cpu":
            moved: list[Any] = [sent(x, self.device) if isinstance(x, torch.Tensor) else x for x in batch]
            batch = Transitions(*moved)
        if self.observation_normalizer is not None:
            normalize = self.observation_normalizer.of_tensor
            batch = batch._replace(
                observations=normalize(batch.observations), next_observations=normalize(batch.next_observations)
            )
        return batch

    def update_priorities(self, indices: torch.Tensor, priorities: torch.Tensor) -> None:
        """Gives drawn transitions new priorities; a buffer on the host waits for the device.

        Args:
            indices: `(B,)`, of a batch of `sample`.
            priorities: `(B,)`, above 0.
        """
        replay: Any = self.replay
        if not isinstance(replay, DeviceReplayBuffer):
            indices, priorities = indices.cpu(), priorities.cpu()
        replay.update_priorities(indices, priorities)

    def check_priorities(self) -> None:
        """Raises for priorities that a buffer on CUDA refused without saying so at once; waits for the device.

        Raises:
            ValueError: Some were not finite: values diverge.
        """
        if isinstance(self.replay, DevicePrioritizedReplayBuffer):
            self.replay.check()

    def state_dict(self) -> dict[str, Any]:
        """Returns everything needed to go on bit for bit; `envs` is None where their state cannot be restored."""
        kind, metadata, arrays = self.replay.__reduce__()[1]
        return {
            "global_step": self.global_step,
            "num_steps": self.num_steps,
            "policy": self.policy.state_dict(),
            "generator": self.generator.get_state(),
            "replay": {"kind": kind.__name__, "metadata": metadata, "arrays": arrays},
            "envs": None if self.envs.why_not_restorable else self.envs.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores `state_dict`'s result. Environments whose state it does not hold go on with new episodes."""
        self.global_step, self.num_steps = state["global_step"], state["num_steps"]
        self.actor.load_state_dict(state["policy"]["actor"])
        self.policy._generator.set_state(state["policy"]["generator"])
        self.generator.set_state(state["generator"])
        if self.observation_normalizer is not None:
            self.observation_normalizer.load_state_dict(state["policy"]["observation_normalizer"])
        rebuild, (kind, *_) = self.replay.__reduce__()
        self.replay = rebuild(kind, state["replay"]["metadata"], state["replay"]["arrays"])
        self._batch = None
        if state["envs"] is not None:
            self.observations = self.envs.load_state_dict(state["envs"])
            return
        # New episodes, not those the run began with.
        config = self.config
        self.envs.close()
        seed = config.seed + self.global_step
        self.envs = make_envs(config.env_id, config.num_envs, seed=seed, vectorization=config.vectorization)
        self.observations = self._reset()

    def close(self) -> None:
        """Closes the environments; may be called twice."""
        self.envs.close()

    def _reset(self) -> NDArray[Any]:
        observations = self.envs.reset()
        if self.observation_normalizer is not None and not self.global_step:
            self.observation_normalizer.update(observations)
        return observations


def replay_on(device: torch.device, replay: Callable[..., Any], *, image: bool) -> Callable[..., Any]:
    """Returns what makes the replay buffer for networks on a device: on CUDA, the buffer that lives there.

    Images stay on the host, which stores each frame once.

    Args:
        device: Where the networks are.
        replay: `ReplayBuffer`, `PrioritizedReplayBuffer`, or a `functools.partial` of one.
        image: Whether observations are images.
    """
    kind, options = (replay.func, replay.keywords) if isinstance(replay, partial) else (replay, {})
    there: dict[Any, Any] = {
        ReplayBuffer: DeviceReplayBuffer,
        PrioritizedReplayBuffer: DevicePrioritizedReplayBuffer,
    }
    if device.type != "cuda" or image or kind not in there:
        return replay
    return partial(there[kind], **options, device=device)
