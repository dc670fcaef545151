"""What every on-policy algorithm does before it learns: run the policy in N environments for T steps.

The collector owns what lies between an actor and its experience: environments, normalisers, the rollout buffer, and the
generator that actions are drawn with. Estimating and learning stay in the algorithm's file.

No step is taken while the actor learns, as `fastac.experience` offers it: a rollout has to come from the policy that
learns from it, and the first step of one would come from the policy before.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray

from fastac.acting import ArrayActor
from fastac.buffers import RolloutBuffer
from fastac.envs import make_envs
from fastac.images import image_of
from fastac.networks import make_actor, make_critic
from fastac.normalize import ObservationNormalizer, RewardNormalizer
from fastac.policy import Policy
from fastac.run import RunError, torch_device

__all__ = ["Collector", "Episodes"]

STEPS_OF_NOISE = 128  # drawn at once where a rollout's length is not known beforehand


class Episodes(NamedTuple):
    """The episodes that ended in a rollout."""

    returns: list[float]  # undiscounted, as the environment paid
    lengths: list[int]  # in steps


class Collector:
    """An actor in its environments.

    Args:
        config: An algorithm's options, of which these are read: `env_id`, `num_envs`, `num_steps`, `vectorization`,
            `seed`, `gamma`, `normalize_observations`, `normalize_rewards`, `hidden_sizes`, `activation`, `device`.
        num_episodes: Every rollout begins with new episodes in all environments and holds this many whole ones of each,
            however long they are: `num_steps` is not read, and what an environment does while it waits for the others
            is masked. The number is fixed, so that no length is favoured: with "until enough steps are taken" it would
            depend on the episodes' lengths, and their mean would be biased. None: `num_steps` steps of each.

    Attributes:
        envs: The environments.
        actor: pi, on the device.
        policy: The actor with all that lies between it and an environment.
        buffer: The rollout's rows. Observations are stored as the policy saw them, raw actions as it drew them, rewards
            scaled if `normalize_rewards`.
        raw_observations: `(N, *obs)`, to act on next, as the environments gave them.
        observations: `(T * N + N + K, *obs)` on the device, set by `collect`: all whose value an estimator may need,
            the rows, the last ones, and those that truncated transitions led to. A critic's values of them are what
            `buffer.transitions` and `buffer.compute_advantages` take.
        generator: CPU generator; draws the actions, and whatever else the algorithm draws.
        global_step: Environment steps so far.

    Raises:
        fastac.envs.EnvError: the environment cannot be made, or its spaces are unsupported.
        fastac.run.RunError: the device is not there, or images were to be normalised.

    Example:
        >>> from fastac.algorithms import ppo
        >>> collector = Collector(ppo.Config(env_id="CartPole-v1", num_envs=2, num_steps=50))
        >>> critic = collector.make_critic()
        >>> episodes = collector.collect()
        >>> with torch.no_grad():
        ...     values = critic(collector.observations).squeeze(-1)
        >>> transitions = collector.buffer.transitions(values)
        >>> transitions.rewards.shape, collector.global_step
        (torch.Size([50, 2]), 100)
        >>> collector.close()
    """

    def __init__(self, config: Any, *, num_episodes: int | None = None):
        self.config = config
        self.num_episodes = num_episodes
        self.device = torch_device(config.device)
        self.envs = make_envs(config.env_id, config.num_envs, seed=config.seed, vectorization=config.vectorization)
        observation_space = self.envs.single_observation_space
        action_space = self.envs.single_action_space
        discrete = isinstance(action_space, gymnasium.spaces.Discrete)

        weights_seed, self_seed = np.random.SeedSequence(config.seed).generate_state(2, np.uint64).tolist()
        self._weights = torch.Generator().manual_seed(weights_seed)
        self.generator = torch.Generator().manual_seed(self_seed)
        network: dict[str, Any] = {"hidden_sizes": config.hidden_sizes, "activation": config.activation}
        self.actor = make_actor(observation_space, action_space, **network, generator=self._weights).to(self.device)

        shape = observation_space.shape
        image = image_of(observation_space) is not None
        if image and config.normalize_observations:
            self.envs.close()
            raise RunError("normalize_observations: got True for images, which the network divides by 255 already")
        self.observation_normalizer = ObservationNormalizer(shape) if config.normalize_observations else None
        self.reward_normalizer = RewardNormalizer(config.num_envs, config.gamma) if config.normalize_rewards else None
        self.policy = Policy(
            self.actor,
            observation_space,
            action_space,
            **network,
            observation_normalizer=self.observation_normalizer,
            seed=config.seed,
        )
        self._num_steps: int = config.num_steps if num_episodes is None else STEPS_OF_NOISE
        self.buffer = RolloutBuffer(
            self._num_steps,
            config.num_envs,
            shape,
            () if discrete else (math.prod(action_space.shape or ()),),
            action_dtype=np.int64 if discrete else np.float32,
            observation_dtype=np.uint8 if image else np.float32,
            growing=num_episodes is not None,
            device=self.device,
        )
        self.acting = ArrayActor(self.actor)
        self.global_step = 0
        self.raw_observations: NDArray[Any] = self._reset()

    def make_critic(self) -> torch.nn.Module:
        """Builds a critic `(B, *obs) -> (B, 1)` as large as the actor, on the device, from the run's own weights."""
        config, space = self.config, self.envs.single_observation_space
        network: dict[str, Any] = {"hidden_sizes": config.hidden_sizes, "activation": config.activation}
        return make_critic(space, **network, generator=self._weights).to(self.device)

    def collect(self) -> Episodes:
        """Runs the policy for T steps in N environments (or for whole episodes) into the buffer.

        Returns:
            Returns and lengths of the episodes that ended in the rollout.
        """
        buffer, envs, policy, num_steps = self.buffer, self.envs, self.policy, self._num_steps
        whole_episodes = self.num_episodes is not None
        episodes = Episodes([], [])
        if whole_episodes and self.global_step:
            self.raw_observations = self._reset()
        # Where each environment's share of the rollout ends; whole episodes: not known yet.
        ends, played = np.full(envs.num_envs, 0 if whole_episodes else num_steps), np.zeros(envs.num_envs, np.int64)
        observations = policy.observe(self.raw_observations)
        sample = self.acting.sampler()  # nobody moves the actor's parameters before the rollout's end
        buffer.reset()
        t = 0
        while not ends.all() if whole_episodes else t < num_steps:
            if t % num_steps == 0:
                noise = self.acting.noise((num_steps, envs.num_envs), self.generator)
            actions = sample(observations, noise[t % num_steps])
            # The raw action is stored: the clipped one that the environment gets has another density.
            step = envs.step(policy.environment_actions(actions))
            final_observations = step.final_observations
            if self.observation_normalizer is not None:
                # Before a filler stands the episode's last observation, which is never acted on: it is not counted.
                ended = (step.terminated | step.truncated) & step.mask
                counted = ~ended if envs.autoreset_mode == "next_step" else slice(None)
                self.observation_normalizer.update(step.observations[counted])
                final_observations = policy.observe(final_observations)
            buffer.add(
                observations, actions, step.rewards, step.terminated, step.truncated, step.mask, final_observations
            )
            # What the policy saw is what is trained on: normalised once, with the statistics of its time.
            observations = policy.observe(step.observations)
            self.raw_observations = step.observations
            t += 1
            if len(step.episode_returns):
                ended = (step.terminated | step.truncated) & step.mask
                taken = ends[ended] == 0 if whole_episodes else slice(None)
                episodes.returns.extend(step.episode_returns[taken].tolist())
                episodes.lengths.extend(step.episode_lengths[taken].tolist())
                played[ended] += 1
                ends[(played == self.num_episodes) & (ends == 0)] = t
        rows = slice(t)  # a growing buffer has room for more
        self.global_step += int(np.count_nonzero(buffer.mask[rows]))
        if whole_episodes:
            buffer.mask[rows] &= np.arange(t)[:, None] < ends
        if self.reward_normalizer is not None:
            over = buffer.terminated[rows] | buffer.truncated[rows]
            buffer.rewards[rows] = self.reward_normalizer(buffer.rewards[rows], over, buffer.mask[rows])
        self.observations = buffer.observations_to_value(observations)
        return episodes

    def state_dict(self) -> dict[str, Any]:
        """Returns everything needed to go on bit for bit; `envs` is None where their state cannot be restored."""
        rewards = self.reward_normalizer
        return {
            "global_step": self.global_step,
            "policy": self.policy.state_dict(),
            "reward_normalizer": None if rewards is None else rewards.state_dict(),
            "generator": self.generator.get_state(),
            "envs": None if self.envs.why_not_restorable else self.envs.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores `state_dict`'s result. Environments whose state it does not hold go on with new episodes."""
        self.global_step = state["global_step"]
        self.actor.load_state_dict(state["policy"]["actor"])
        self.generator.set_state(state["generator"])
        if self.observation_normalizer is not None:
            self.observation_normalizer.load_state_dict(state["policy"]["observation_normalizer"])
        if self.reward_normalizer is not None:
            self.reward_normalizer.load_state_dict(state["reward_normalizer"])
        if state["envs"] is not None:
            self.raw_observations = self.envs.load_state_dict(state["envs"])
            return
        # New episodes, not those the run began with.
        config = self.config
        self.envs.close()
        seed = config.seed + self.global_step
        self.envs = make_envs(config.env_id, config.num_envs, seed=seed, vectorization=config.vectorization)
        self.raw_observations = self.envs.reset()
        if self.reward_normalizer is not None:
            self.reward_normalizer.returns[:] = 0.0

    def close(self) -> None:
        """Closes the environments; may be called twice."""
        self.envs.close()

    def _reset(self) -> NDArray[Any]:
        observations = self.envs.reset()
        if self.observation_normalizer is not None:
            self.observation_normalizer.update(observations)
        return observations
