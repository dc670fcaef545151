"""DQN, SAC and TD3 of Stable-Baselines3 on prioritized replay: weighted losses, and priorities from TD errors.

Stable-Baselines3's `train` has neither a weight in its loss nor a hook behind it, so that each has one of its own here.
All else - exploration, networks, schedules, targets, logs, saving - is inherited.

    loss = mean_i w_i l(Q(s_i, a_i) - y_i),   p_i = |Q(s_i, a_i) - y_i| + epsilon

with l and y as in the algorithm (DQN: Huber; SAC and TD3: the square, p_i of the critics' mean |TD error|). Weights
go into the critics' losses; actors and temperatures take the states as they are drawn. (Schaul et al. 2016,
*Prioritized Experience Replay*, algorithm 1.)
"""

from __future__ import annotations

import functools
from typing import Any, TypeVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from gymnasium import spaces
from stable_baselines3 import DQN, SAC, TD3
from stable_baselines3.common.utils import polyak_update

from fastac.compat.sb3.prioritized import PrioritizedDictReplayBuffer, PrioritizedReplayBuffer, PrioritizedSamples

__all__ = ["PrioritizedDQN", "PrioritizedSAC", "PrioritizedTD3", "prioritized"]

Model = TypeVar("Model")


class _Prioritized:
    """What the three have in common: the buffer, its draws, and its annealing."""

    def _setup_model(self: Any) -> None:
        if self.replay_buffer_class is None:
            is_dict = isinstance(self.observation_space, spaces.Dict)
            self.replay_buffer_class = PrioritizedDictReplayBuffer if is_dict else PrioritizedReplayBuffer
        if not issubclass(self.replay_buffer_class, PrioritizedReplayBuffer):
            raise TypeError(
                f"replay_buffer_class: got {self.replay_buffer_class.__name__}, expected a subclass of "
                "fastac.compat.sb3.PrioritizedReplayBuffer, or None"
            )
        n_steps = getattr(self, "n_steps", 1)
        if n_steps > 1:
            self.replay_buffer_kwargs = {"n_steps": n_steps, "gamma": self.gamma} | self.replay_buffer_kwargs
            self.n_steps = 1  # with a buffer class, Stable-Baselines3 warns that it leaves n_steps alone
        super()._setup_model()  # type: ignore[misc]
        if n_steps > 1:
            self.n_steps = n_steps

    def _draw(self: Any, batch_size: int) -> tuple[PrioritizedSamples, Any]:
        """A batch, and the discount of its targets."""
        batch = self.replay_buffer.sample(batch_size, env=self._vec_normalize_env)
        return batch, self.gamma if batch.discounts is None else batch.discounts

    def _anneal(self: Any) -> None:
        self.replay_buffer.annealed = 1.0 - self._current_progress_remaining
        self.logger.record("train/beta", self.replay_buffer.beta)

    def _weighted_square(self: Any, batch: PrioritizedSamples, q_values: Any, targets: torch.Tensor) -> torch.Tensor:
        """The critics' weighted squared errors, summed over critics; their TD errors become priorities."""
        errors = torch.stack([q_value - targets for q_value in q_values])
        self.replay_buffer.update_priorities(batch.indices, errors.detach().abs().mean(0))
        return (batch.weights * errors.square()).mean((1, 2)).sum()


class PrioritizedDQN(_Prioritized, DQN):
    """DQN on prioritized replay; see `prioritized`."""

    def train(self, gradient_steps: int, batch_size: int = 100) -> None:
        """Makes gradient steps, each on a batch of its own."""
        self.policy.set_training_mode(True)
        optimizer = self.policy.optimizer
        self._update_learning_rate(optimizer)
        self._anneal()
        losses = []
        for _ in range(gradient_steps):
            batch, discounts = self._draw(batch_size)
            with torch.no_grad():
                following = self.q_net_target(batch.next_observations).amax(dim=1, keepdim=True)
                targets = batch.rewards + discounts * (1.0 - batch.dones) * following
            q_values = self.q_net(batch.observations).gather(1, batch.actions.long())
            self.replay_buffer.update_priorities(batch.indices, q_values.detach() - targets)
            loss = (batch.weights * F.smooth_l1_loss(q_values, targets, reduction="none")).mean()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
            optimizer.step()
            losses.append(loss.item())
        self._n_updates += gradient_steps
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/loss", np.mean(losses))


class PrioritizedSAC(_Prioritized, SAC):
    """SAC on prioritized replay; see `prioritized`."""

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        """Makes gradient steps, each on a batch of its own."""
        self.policy.set_training_mode(True)
        temperature = self.ent_coef_optimizer
        self._update_learning_rate(
            [self.actor.optimizer, self.critic.optimizer, *([] if temperature is None else [temperature])]
        )
        self._anneal()
        logs: dict[str, list[float]] = {"ent_coef": [], "actor_loss": [], "critic_loss": [], "ent_coef_loss": []}
        for step in range(gradient_steps):
            batch, discounts = self._draw(batch_size)
            if self.use_sde:
                self.actor.reset_noise()
            actions, log_probs = self.actor.action_log_prob(batch.observations)
            log_probs = log_probs.reshape(-1, 1)
            if temperature is None:
                ent_coef = self.ent_coef_tensor
            else:
                ent_coef = self.log_ent_coef.detach().exp()
                ent_coef_loss = -(self.log_ent_coef * (log_probs + self.target_entropy).detach()).mean()
                temperature.zero_grad()
                ent_coef_loss.backward()
                temperature.step()
                logs["ent_coef_loss"].append(ent_coef_loss.item())
            logs["ent_coef"].append(ent_coef.item())

            with torch.no_grad():
                next_actions, next_log_probs = self.actor.action_log_prob(batch.next_observations)
                following = torch.cat(self.critic_target(batch.next_observations, next_actions), dim=1)
                following = following.amin(dim=1, keepdim=True) - ent_coef * next_log_probs.reshape(-1, 1)
                targets = batch.rewards + discounts * (1.0 - batch.dones) * following
            q_values = self.critic(batch.observations, batch.actions)
            critic_loss = 0.5 * self._weighted_square(batch, q_values, targets)
            self.critic.optimizer.zero_grad()
            critic_loss.backward()  # type: ignore[no-untyped-call]
            self.critic.optimizer.step()
            logs["critic_loss"].append(critic_loss.item())

            smallest = torch.cat(self.critic(batch.observations, actions), dim=1).amin(dim=1, keepdim=True)
            actor_loss = (ent_coef * log_probs - smallest).mean()
            self.actor.optimizer.zero_grad()
            actor_loss.backward()
            self.actor.optimizer.step()
            logs["actor_loss"].append(actor_loss.item())
            if step % self.target_update_interval == 0:
                polyak_update(self.critic.parameters(), self.critic_target.parameters(), self.tau)
                polyak_update(self.batch_norm_stats, self.batch_norm_stats_target, 1.0)
        self._n_updates += gradient_steps
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        for name, values in logs.items():
            if values:
                self.logger.record(f"train/{name}", np.mean(values))


class PrioritizedTD3(_Prioritized, TD3):
    """TD3 on prioritized replay; see `prioritized`."""

    def train(self, gradient_steps: int, batch_size: int = 100) -> None:
        """Makes gradient steps, each on a batch of its own."""
        self.policy.set_training_mode(True)
        self._update_learning_rate([self.actor.optimizer, self.critic.optimizer])
        self._anneal()
        logs: dict[str, list[float]] = {"actor_loss": [], "critic_loss": []}
        for _ in range(gradient_steps):
            self._n_updates += 1
            batch, discounts = self._draw(batch_size)
            with torch.no_grad():
                noise = torch.empty_like(batch.actions).normal_(0.0, self.target_policy_noise)
                noise = noise.clamp(-self.target_noise_clip, self.target_noise_clip)
                next_actions = (self.actor_target(batch.next_observations) + noise).clamp(-1.0, 1.0)
                following = torch.cat(self.critic_target(batch.next_observations, next_actions), dim=1)
                targets = batch.rewards + discounts * (1.0 - batch.dones) * following.amin(dim=1, keepdim=True)
            critic_loss = self._weighted_square(batch, self.critic(batch.observations, batch.actions), targets)
            self.critic.optimizer.zero_grad()
            critic_loss.backward()  # type: ignore[no-untyped-call]
            self.critic.optimizer.step()
            logs["critic_loss"].append(critic_loss.item())
            if self._n_updates % self.policy_delay:
                continue
            actor_loss = -self.critic.q1_forward(batch.observations, self.actor(batch.observations)).mean()
            self.actor.optimizer.zero_grad()
            actor_loss.backward()
            self.actor.optimizer.step()
            logs["actor_loss"].append(actor_loss.item())
            polyak_update(self.critic.parameters(), self.critic_target.parameters(), self.tau)
            polyak_update(self.actor.parameters(), self.actor_target.parameters(), self.tau)
            polyak_update(self.critic_batch_norm_stats, self.critic_batch_norm_stats_target, 1.0)
            polyak_update(self.actor_batch_norm_stats, self.actor_batch_norm_stats_target, 1.0)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        for name, values in logs.items():
            if values:
                self.logger.record(f"train/{name}", np.mean(values))


_KINDS: dict[Any, Any] = {DQN: PrioritizedDQN, SAC: PrioritizedSAC, TD3: PrioritizedTD3}


@functools.cache
def prioritized(model_class: type[Model]) -> type[Model]:
    """The class of Stable-Baselines3's models that trains on prioritized replay.

    It is made, saved, loaded and used like the original. `replay_buffer_kwargs` takes the arguments of
    `PrioritizedReplayBuffer`: alpha, beta, final_beta and epsilon; they are saved with the model. Priorities are saved
    with the replay buffer. Beta goes from `beta` to `final_beta` over the steps that `learn` is given.

    Args:
        model_class: DQN, SAC, TD3, or a subclass (DDPG is one of TD3) with no `train` of its own.

    Returns:
        A subclass of it, the same for the same class.

    Raises:
        TypeError: It is another class, or has a `train` of its own, whose loss would have no weights.

    Example:
        >>> prioritized(SAC).__name__
        'PrioritizedSAC'
        >>> model = prioritized(DQN)("MlpPolicy", "CartPole-v1", replay_buffer_kwargs={"alpha": 0.5}, device="cpu")
        >>> model.replay_buffer.alpha, model.replay_buffer.beta
        (0.5, 0.4)
    """
    found: Any = model_class
    for base, kind in _KINDS.items():
        if issubclass(found, kind):
            return model_class
        if issubclass(found, base):
            if found.train is not base.train:
                raise TypeError(f"model_class: {found.__name__} has a train of its own, whose loss has no weights")
            made = (
                kind
                if found is base
                else type(f"Prioritized{found.__name__}", (kind, found), {"__doc__": kind.__doc__})
            )
            return cast(type[Model], made)
    raise TypeError(f"model_class: got {found.__name__}, expected DQN, SAC, TD3 or a subclass")
