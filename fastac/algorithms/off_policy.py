"""Off-policy actor-critic from a replay buffer, and two versions of it that are wrong.

The buffer holds transitions (s, a, r, s') of all policies so far, of which pi is only the newest. After every
environment step, on a batch of them:

1. `update_critic`: Q follows r + gamma Q'(s', a'), where **a' is drawn from pi now**, not from the buffer:

       L(phi) = 1/2 mean (Q_phi(s, a) - r - gamma Q'(s', a'))^2,   a' ~ pi(. | s')

   It is right for any a, whoever chose it: Q tells what follows when s and a are given and pi goes on. (That is
   expected Sarsa's target, Sutton and Barto 2018, equation 6.9, in one draw; with `gradient="expectation"`, the sum.)

2. `update_policy`: pi improves in the buffer's states s, by actions that **it draws itself**, not by the buffer's:

       score function     grad J = mean  grad log pi(a_k | s) (Q(s, a_k) - mean_{j != k} Q(s, a_j)),   a_k ~ pi(. | s)
       expectation        grad J = mean  grad sum_a pi(a | s) Q(s, a)                                  discrete actions
       reparameterized    grad J = mean  grad Q(s, a(s, noise))                                        continuous ones

   The first is Williams' (1992) with the baseline of Kool et al. 2019 ("Buy 4 REINFORCE samples, get a baseline for
   free!"); the third passes through a = tanh(mean(s) + std(s) noise) (Heess et al. 2015, arXiv:1510.09142, with one
   step and a critic). All three are estimates of one gradient.

3. The target network Q' follows Q.

What is still the buffer's is the distribution of the states: pi is improved where its predecessors have been (as in
Degris, White and Sutton 2012, arXiv:1205.4839).

What goes wrong if the buffer is taken for a rollout of pi, `version`:

- "values-of-the-buffer": V follows r + gamma V'(s'), and its advantages r + gamma V'(s') - V(s) weigh the buffer's
  actions, the only ones that it can judge. V becomes the value of the **mixture** mu(a | s) of all policies in the
  buffer, and pi improves on that.
- "actions-of-the-buffer": Q is right, the actions that are made more probable are the buffer's. With Q > 0 and no
  baseline, pi becomes proportional to mu(a | s) Q(s, a): a constant added to Q changes that, and the best
  action never wins.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any, Literal, NamedTuple

import gymnasium
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor, nn

from fastac import graphs
from fastac.buffers import Transitions
from fastac.buffers.transfer import sent
from fastac.capturable import make_adam
from fastac.distributions import Categorical, TanhGaussian, gumbel
from fastac.envs import EnvError, Vectorization
from fastac.experience import Episodes, Experience
from fastac.networks import (
    Activation,
    CategoricalActor,
    TanhGaussianActor,
    make_actor,
    make_network,
    make_tanh_gaussian_actor,
)
from fastac.q_functions import Target, make_q_functions
from fastac.run import Callback, Result, Run, RunError, check_options, torch_threads

Version = Literal["correct", "actions-of-the-buffer", "values-of-the-buffer"]
Gradient = Literal["score-function", "expectation", "reparameterized"]


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of off-policy actor-critic. The defaults are ours, for CartPole."""

    env_id: str = "CartPole-v1"
    """Gymnasium's id; `module:Id` imports the module first. Its actions: discrete, or a Box with finite bounds."""
    seed: int = 1
    """Of everything random: environments, weights, actions, batches."""
    total_timesteps: int = 50_000
    """Environment steps, over all environments together."""
    version: Version = "correct"
    """Correct, or one of two that take the buffer for a rollout of the policy, to see what becomes of it."""
    gradient: Gradient = "score-function"
    """How the policy's gradient is found: score function; the sum over all actions (discrete); through Q (Box)."""
    num_action_samples: int = 8
    """K, actions that the policy draws in each state of a batch. With the score function 1 leaves Q as it is, more
    subtract from each action's Q the mean of the others'."""
    policy_lr: float = 1e-3
    """Adam's step size for the actor (Kingma and Ba 2015)."""
    q_lr: float = 1e-3
    """Adam's step size for the critic."""
    num_envs: int = 4
    """N, environments side by side."""
    buffer_size: int = 1_000_000
    """Transitions that the replay buffer keeps."""
    learning_starts: int = 1_000
    """Environment steps of uniformly random actions before anything is learnt."""
    updates_per_step: float = 0.5
    """Updates for each environment step after those; with N environments N times as many for a step of all."""
    train_frequency: int = 1
    """Steps of all environments between updates, which are then made up for."""
    batch_size: int = 128
    """Transitions an update."""
    gamma: float = 0.99
    """Discount per step."""
    tau: float = 0.01
    """Share of Q in an update of Q'."""
    ent_coef: float = 0.5
    """Weight of the entropy bonus in the policy's objective, per nat; it is not in Q."""
    anneal_lr: bool = False
    """Lower the learning rates linearly to 0 over total_timesteps."""
    normalize_observations: bool = True
    """Standardise every dimension by its running mean and deviation, clipped to +-10."""
    hidden_sizes: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers, of the actor and of the critic."""
    activation: Activation = "relu"
    """Between the layers."""
    vectorization: Vectorization = "sync"
    """One process; one process each; the environment's own vector form, where it has one; or EnvPool's threads."""
    overlap: bool = False
    """Learn while async or envpool takes the next step, with actions of the actor before the last updates. On two cores
    it pays where that step takes 1 ms or more (1.1 times; 1.3 times at 5 ms), and costs up to a tenth below."""
    log_interval: int = 1_000
    """Environment steps between rows of the log."""
    device: str = "cpu"
    """Where the networks and the replay buffer live: cpu, cuda, cuda:1, ..."""
    cudagraphs: bool = True
    """On CUDA: capture the update in a CUDA graph."""
    compile: bool = False
    """Put the update through torch.compile."""
    torch_threads: int = 1
    """Threads of torch on the CPU while training; networks this small are fastest on one."""

    def check(self) -> None:
        """Raises `RunError` naming the option that cannot be."""
        check_options(
            self,
            at_least_one=(
                "total_timesteps", "num_action_samples", "num_envs", "buffer_size", "train_frequency", "batch_size",
                "log_interval", "torch_threads",
            ),
            fractions=("gamma", "tau"),
            positive=("policy_lr", "q_lr", "updates_per_step", "tau"),
        )  # fmt: skip
        for name in ("learning_starts", "ent_coef"):
            if getattr(self, name) < 0:
                raise RunError(f"{name}: got {getattr(self, name)}, expected at least 0")
        if self.version != "correct" and self.gradient != "score-function":
            raise RunError(f"gradient: got {self.gradient}, expected score-function: {self.version} has no other")


PENDULUM: dict[str, Any] = {
    "env_id": "Pendulum-v1", "num_envs": 1, "updates_per_step": 1.0, "gamma": 0.98, "ent_coef": 0.2,
    "normalize_observations": False,
}  # fmt: skip

ELSEWHERE: dict[str, Any] = {"ent_coef": 0.01, "normalize_observations": False}
THROUGH_Q: dict[str, Any] = {**PENDULUM, "gradient": "reparameterized", "num_action_samples": 1}

PRESETS: dict[str, dict[str, Config]] = {
    "score-function": {
        "CartPole-v1": Config(),
        "Pendulum-v1": Config(**PENDULUM),
        "default": Config(**ELSEWHERE),
    },
    "expectation": {
        "CartPole-v1": Config(gradient="expectation"),
        "default": Config(gradient="expectation", **ELSEWHERE),
    },
    "reparameterized": {
        "Pendulum-v1": Config(**THROUGH_Q, total_timesteps=30_000),
        "default": Config(**THROUGH_Q | ELSEWHERE),
    },
}

METRICS = ("losses/q_loss", "losses/q_values", "losses/policy_loss", "losses/entropy")


def q_loss(values: Tensor, targets: Tensor) -> Tensor:
    """Returns 1/2 mean (Q - target)^2.

    Example:
        >>> q_loss(torch.tensor([1.0]), torch.tensor([3.0]))
        tensor(2.)
    """
    return 0.5 * (values - targets).square().mean()


def score_function_loss(log_probs: Tensor, weights: Tensor) -> Tensor:
    """Returns -mean log pi(a | s) w: its gradient is that of -E[w], where pi drew the actions.

    Args:
        log_probs: Of any shape.
        weights: The same shape; no gradient passes.

    Example:
        >>> score_function_loss(torch.tensor([-1.0, -2.0]), torch.tensor([2.0, 0.0]))
        tensor(1.)
    """
    return -(log_probs * weights.detach()).mean()


def minus_the_others(q_values: Tensor) -> Tensor:
    """Returns Q_k - mean_{j != k} Q_j of K actions in each state; Q itself where K is 1.

    The others are independent of action k, so the expected gradient stays what it was.

    Args:
        q_values: `(K, B)`.

    Example:
        >>> minus_the_others(torch.tensor([[1.0], [2.0], [6.0]])).flatten()
        tensor([-3.0000, -1.5000,  4.5000])
    """
    count = len(q_values)
    if count == 1:
        return q_values
    return (q_values - q_values.mean(0)) * (count / (count - 1))


def sample_with_log_prob(distribution: Categorical | TanhGaussian, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Returns K actions for each of B states, and log pi of them, `(K, B)`, whose gradient is the score function.

    No gradient passes through the actions.

    Args:
        distribution: Of B states.
        noise: `(K, B, n)` Gumbel, or `(K, B, A)` normal.

    Example:
        >>> distribution = TanhGaussian(torch.zeros(2, 1), torch.zeros(2, 1))
        >>> actions, log_probs = sample_with_log_prob(distribution, torch.zeros(3, 2, 1))
        >>> actions.shape, log_probs.shape
        (torch.Size([3, 2, 1]), torch.Size([3, 2]))
    """
    if isinstance(distribution, Categorical):
        actions = distribution.sample(noise)
        return actions, distribution.log_probs.gather(1, actions.T).T
    # Before tanh, since many u round to one action near the bounds.
    u = (distribution.mean + distribution.log_std.exp() * noise).detach()
    return torch.tanh(u), distribution.log_prob_before_tanh(u)


def make_stochastic_actor(
    observation_space: Box, action_space: gymnasium.Space[Any], **options: Any
) -> CategoricalActor | TanhGaussianActor:
    """Builds the actor: categorical for discrete actions, a Gaussian through tanh for a Box."""
    if isinstance(action_space, Discrete):
        actor = make_actor(observation_space, action_space, **options)
        assert isinstance(actor, CategoricalActor)
        return actor
    return make_tanh_gaussian_actor(observation_space, action_space, **options)


class Noise(NamedTuple):
    """What an update draws its actions with, Gumbel or normal; None where it draws none."""

    next_actions: Tensor | None  # (1, B, n) or (1, B, A): of the targets' a'
    entropy: Tensor | None  # (1, B, A): a Gaussian's through tanh has no closed form
    actions: Tensor | None  # (K, B, n) or (K, B, A): of the policy's own


class OffPolicy:
    """Everything that changes while training, and what an update does."""

    def __init__(self, config: Config):
        config.check()
        self.config = config
        self.experience = Experience(config, make_stochastic_actor)
        self.device, self.actor = self.experience.device, self.experience.actor
        self.discrete = self.actor.kind == "categorical"
        space = self.experience.envs.single_action_space
        self.num_outputs = int(space.n) if isinstance(space, Discrete) else math.prod(space.shape)
        try:
            self._check_gradient()
            self.critic = self._make_critic().to(self.device)
        except BaseException:
            self.experience.close()
            raise
        self.critic_parameters = list(self.critic.parameters())
        self.target = Target(self.critic, config.tau)
        self.policy_optimizer = make_adam(self.actor.parameters(), lr=config.policy_lr)
        self.q_optimizer = make_adam(self.critic_parameters, lr=config.q_lr)
        self.learn = graphs.on_device(
            self.gradient_step,
            self.device,
            cudagraphs=config.cudagraphs,
            compile=config.compile,
            optimizers=(self.policy_optimizer, self.q_optimizer),
        )
        self.num_updates = 0

    def _check_gradient(self) -> None:
        config, space = self.config, self.experience.envs.single_action_space
        wants = {"expectation": Discrete, "reparameterized": Box}
        if not isinstance(space, wants.get(config.gradient, gymnasium.Space)):
            kind = wants[config.gradient].__name__
            raise EnvError(f"env_id {config.env_id!r}: its actions are {space}, expected {kind} with {config.gradient}")

    def _make_critic(self) -> nn.Module:
        """Q(s, .) for all discrete actions, `(B, n)`; Q(s, a) for a Box, `(B,)`; V(s), `(B, 1)`, if that is wanted."""
        config, experience = self.config, self.experience
        observation_space = experience.envs.single_observation_space
        options: dict[str, Any] = {"hidden_sizes": config.hidden_sizes, "activation": config.activation}
        options["generator"] = experience.weights
        if self.discrete or config.version == "values-of-the-buffer":
            outputs = 1 if config.version == "values-of-the-buffer" else self.num_outputs
            return make_network(observation_space, outputs, initialization="uniform", **options)
        return make_q_functions(observation_space, self.num_outputs, count=1, **options)

    def q_values(self, critic: nn.Module, observations: Tensor, actions: Tensor) -> Tensor:
        """Returns Q(s, a), `(K, B)`, of K actions in each of B states, `(K, B)` or `(K, B, A)`."""
        if self.discrete:
            found: Tensor = critic(observations).gather(1, actions.T).T
            return found
        count, size = actions.shape[:2]
        repeated = observations if count == 1 else observations.expand(count, *observations.shape).flatten(0, 1)
        return critic(repeated, actions.flatten(0, 1))[0].view(count, size)  # type: ignore[no-any-return]

    @torch.no_grad()
    def targets(self, batch: Transitions, noise: Noise) -> Tensor:
        """Returns what the critic follows, `(B,)`: r + gamma Q'(s', a') with a' ~ pi; no future after `terminated`."""
        critic, observations = self.target.network, batch.next_observations
        if self.config.version == "values-of-the-buffer":
            next_values = critic(observations).squeeze(1)
        elif self.config.gradient == "expectation":
            next_values = (self.actor(observations).log_probs.exp() * critic(observations)).sum(1)
        else:
            actions = self.actor(observations).sample(noise.next_actions)
            next_values = self.q_values(critic, observations, actions).squeeze(0)
        targets: Tensor = batch.rewards + batch.discounts * torch.where(batch.terminated, 0.0, next_values)
        return targets

    def update_critic(self, batch: Transitions, noise: Noise) -> Tensor:
        """Takes one gradient step of the critic; returns its loss and its mean value, on the device."""
        targets = self.targets(batch, noise)
        if self.config.version == "values-of-the-buffer":
            values = self.critic(batch.observations).squeeze(1)
        else:
            values = self.q_values(self.critic, batch.observations, batch.actions[None]).squeeze(0)
        loss = q_loss(values, targets)
        self.q_optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.q_optimizer.step()
        return torch.stack([loss.detach(), values.detach().mean()])

    def policy_loss(self, batch: Transitions, noise: Noise) -> tuple[Tensor, Tensor]:
        """Returns the loss whose gradient is the policy gradient's negative, and the mean entropy, in nats."""
        config, observations = self.config, batch.observations
        distribution = self.actor(observations)
        if isinstance(distribution, Categorical):
            entropy = distribution.entropy().mean()
        else:
            entropy = -distribution.sample_and_log_prob(noise.entropy)[1].mean()
        if config.version != "correct":
            weights = self.weights_of_the_buffers_actions(batch, distribution, noise)
            return score_function_loss(distribution.log_prob(batch.actions), weights), entropy
        if config.gradient == "expectation":
            return -(distribution.log_probs.exp() * self.critic(observations)).sum(1).mean(), entropy
        assert noise.actions is not None
        if config.gradient == "reparameterized":
            return -self.q_values(self.critic, observations, distribution.sample(noise.actions)).mean(), entropy
        actions, log_probs = sample_with_log_prob(distribution, noise.actions)
        q_values = self.q_values(self.critic, observations, actions)
        return score_function_loss(log_probs, minus_the_others(q_values)), entropy

    @torch.no_grad()
    def weights_of_the_buffers_actions(
        self, batch: Transitions, distribution: Categorical | TanhGaussian, noise: Noise
    ) -> Tensor:
        """Returns what the broken versions weigh the buffer's actions with, `(B,)`."""
        if self.config.version == "values-of-the-buffer":
            values: Tensor = self.critic(batch.observations).squeeze(1)
            return self.targets(batch, noise) - values
        q_values = self.q_values(self.critic, batch.observations, batch.actions[None]).squeeze(0)
        if noise.actions is None:
            return q_values
        drawn = distribution.sample(noise.actions)
        return q_values - self.q_values(self.critic, batch.observations, drawn).mean(0)

    def update_policy(self, batch: Transitions, noise: Noise) -> Tensor:
        """Takes one gradient step of the actor; returns its loss and the entropy, on the device."""
        config = self.config
        # The gradient may pass through the critic to the action; the critic's own is not computed.
        for p in self.critic_parameters:
            p.requires_grad_(False)
        loss, entropy = self.policy_loss(batch, noise)
        for p in self.critic_parameters:
            p.requires_grad_(True)
        self.policy_optimizer.zero_grad()
        (loss - config.ent_coef * entropy).backward()  # type: ignore[no-untyped-call]
        self.policy_optimizer.step()
        return torch.stack([loss.detach(), entropy.detach()])

    def update(self) -> Tensor:
        """Takes one gradient step of the critic and one of the actor; returns `METRICS`, on the device.

        Nothing is read from it.
        """
        size = self.config.batch_size
        metrics: Tensor = self.learn(self.experience.sample(size), self.draw(size))
        self.num_updates += 1
        return metrics

    def gradient_step(self, batch: Transitions, noise: Noise) -> Tensor:
        """What an update does with its batch. Nothing is drawn or read back here: a CUDA graph can hold it."""
        of_critic = self.update_critic(batch, noise)
        of_policy = self.update_policy(batch, noise)
        self.target.follow()
        return torch.cat([of_critic, of_policy])

    def anneal(self, remaining: float) -> None:
        """Sets the learning rates; `remaining` is the share of all steps that are still to come, from 1 to 0."""
        share = remaining if self.config.anneal_lr else 1.0
        self.policy_optimizer.param_groups[0]["lr"] = share * self.config.policy_lr
        self.q_optimizer.param_groups[0]["lr"] = share * self.config.q_lr

    def draw(self, batch_size: int) -> Noise:
        """Draws the noise of one update."""
        config = self.config
        summed = config.gradient == "expectation"
        of_next = None if summed or config.version == "values-of-the-buffer" else self.noise(1, batch_size)
        of_entropy = None if self.discrete else self.noise(1, batch_size)
        # The broken versions weigh the buffer's action: one of them by what K - 1 others are worth.
        of_buffer = {"actions-of-the-buffer": config.num_action_samples - 1, "values-of-the-buffer": 0}
        count = of_buffer.get(config.version, 0 if summed else config.num_action_samples)
        return Noise(of_next, of_entropy, self.noise(count, batch_size) if count else None)

    def noise(self, count: int, batch_size: int) -> Tensor:
        """What draws `count` actions in each of B states: Gumbel noise `(count, B, n)`, or normal `(count, B, A)`."""
        shape, generator = (count, batch_size, self.num_outputs), self.experience.generator
        drawn = gumbel(shape, generator) if self.discrete else torch.randn(shape, generator=generator)
        return sent(drawn, self.device)

    def state_dict(self) -> dict[str, Any]:
        """Returns everything needed to go on bit for bit, the replay buffer included."""
        return {
            **self.experience.state_dict(),
            "critic": self.critic.state_dict(),
            "target": self.target.network.state_dict(),
            "policy_optimizer": self.policy_optimizer.state_dict(),
            "q_optimizer": self.q_optimizer.state_dict(),
            "num_updates": self.num_updates,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores `state_dict`'s result."""
        self.experience.load_state_dict(state)
        self.critic.load_state_dict(state["critic"])
        self.target.network.load_state_dict(state["target"])
        self.policy_optimizer.load_state_dict(state["policy_optimizer"])
        self.q_optimizer.load_state_dict(state["q_optimizer"])
        self.num_updates = state["num_updates"]
        graphs.reset(self.learn)


def train(
    config: Config,
    callback: Callback | None = None,
    *,
    run_dir: str | Path | None = None,
    checkpoint: dict[str, Any] | None = None,
    progress_bar: bool = False,
) -> Result:
    """Trains off-policy actor-critic.

    Args:
        config: What and how.
        callback: Called every `log_interval` steps with a `fastac.run.Progress`; returning False stops cleanly.
        run_dir: Where config, log and checkpoints go; new or empty. None: nothing is written.
        checkpoint: What `fastac.checkpoint.load` returned for `run_dir`, to go on from there.
        progress_bar: Show one on stderr.

    Returns:
        The policy, and how the training ended.

    Raises:
        fastac.envs.EnvError: unknown environment, or spaces that the algorithm cannot take.
        fastac.run.RunError: an option that cannot be, or a run folder that cannot be written or is not empty.

    Example:
        >>> result = train(Config(total_timesteps=240, learning_starts=200, batch_size=32, hidden_sizes=(32,)))
        >>> result.global_step, result.policy.act([0.0, 0.0, 0.0, 0.0]).shape
        (240, ())
    """
    with torch_threads(config.torch_threads):
        algorithm = OffPolicy(config)
        experience = algorithm.experience
        try:
            if checkpoint is not None:
                algorithm.load_state_dict(checkpoint)
            with Run(
                "off_policy",
                config,
                experience.policy,
                run_dir=run_dir,
                checkpoint=checkpoint,
                callback=callback,
                progress_bar=progress_bar,
                why_not_restorable=None if run_dir is None else experience.envs.why_not_restorable,
            ) as run:
                while experience.global_step < config.total_timesteps and not run.stopped:
                    episodes, records = Episodes([], []), list[Tensor]()
                    next_log = (experience.global_step // config.log_interval + 1) * config.log_interval
                    end = min(next_log, config.total_timesteps)
                    while experience.global_step < end and not run.stopped:
                        warming_up = experience.global_step < config.learning_starts
                        experience.step_async(
                            experience.random_actions() if warming_up else experience.sampled_actions()
                        )
                        if experience.num_steps % config.train_frequency == 0:
                            algorithm.anneal(1.0 - experience.global_step / config.total_timesteps)
                            learnt = experience.global_step - config.learning_starts
                            while algorithm.num_updates < int(learnt * config.updates_per_step):
                                records.append(algorithm.update())
                        ended = experience.step_wait()
                        episodes.returns.extend(ended.returns)
                        episodes.lengths.extend(ended.lengths)
                    values = torch.stack(records).mean(0).tolist() if records else [math.nan] * len(METRICS)
                    metrics = dict(zip(METRICS, values, strict=True))
                    metrics["charts/learning_rate"] = algorithm.policy_optimizer.param_groups[0]["lr"]
                    run.record(experience.global_step, metrics, episodes, algorithm.state_dict)
                return run.finish(experience.global_step, algorithm.state_dict)
        finally:
            experience.close()
