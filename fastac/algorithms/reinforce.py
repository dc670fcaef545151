"""REINFORCE: the policy gradient from whole episodes (Williams 1992; Sutton, McAllester, Singh and Mansour 2000).

One iteration:

1. `collect`: play E whole episodes with the policy.
2. `estimate`: what every action is credited with, Psi_t, without bootstrapping:

       total return     R   = sum_{t' >= 0} gamma^t' r_t'               the whole episode's, the past included
       reward-to-go     G_t = sum_{t' >= t} gamma^(t' - t) r_t'         an action cannot change what was paid before it

   less a baseline that the action has no part in: nothing, the mean of the batch's other episodes, or V(s_t).
3. `update`: one step of Adam on

       L(theta) = -1/E sum_episodes sum_t log pi_theta(a_t | s_t) Psi_t       whose gradient is -dJ / dtheta on average

   and, where there is a V, steps on 1/2 mean (V(s_t) - G_t)^2: after the policy's, so that V(s_t) knows nothing of a_t.

An episode that a time limit cut has a future that Monte Carlo cannot see. With V it is gamma^T V of the observation
that the episode was cut at. Without, there is nothing to take it from: the time limit then counts as the episode's end.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastac.collector import Collector, Episodes
from fastac.envs import Vectorization
from fastac.networks import Activation, Actor
from fastac.normalize import normalize_advantages
from fastac.returns import discounted_returns
from fastac.run import Callback, Result, Run, RunError, check_options, torch_threads


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of REINFORCE. The defaults are tuned for CartPole."""

    env_id: str = "CartPole-v1"
    """Gymnasium's id; `module:Id` imports the module first. Its episodes have to end."""
    seed: int = 1
    """Of everything random: environments, weights, actions."""
    total_timesteps: int = 100_000
    """Environment steps, over all environments together; training ends with the batch that reaches them."""
    learning_rate: float = 1e-2
    """Adam's step size (Kingma and Ba 2015)."""
    num_envs: int = 4
    """N, environments side by side. What one does while it waits for the others' episodes to end is thrown away."""
    num_episodes: int = 8
    """E, whole episodes a batch: num_envs times as many as each environment plays."""
    anneal_lr: bool = True
    """Lower the learning rates linearly to 0 over total_timesteps."""
    gamma: float = 0.99
    """Discount per step."""
    returns: Literal["total", "reward-to-go"] = "reward-to-go"
    """What an action is credited with: the whole episode's return, or what came after."""
    baseline: Literal["none", "mean", "value"] = "value"
    """What is subtracted: nothing, the mean over the batch's other episodes, or a value network."""
    discount_states: bool = False
    """Weigh step t by gamma^t, as the gradient of the discounted return asks for and practice does not (Thomas 2014).
    Only for the reward-to-go: in the total return it is there already."""
    norm_adv: bool = False
    """Standardise what the actions of a batch are credited with."""
    critic_learning_rate: float = 1e-2
    """Adam's step size for the value network."""
    critic_steps: int = 10
    """Gradient steps on the value network a batch, each over all of it."""
    normalize_observations: bool = False
    """Standardise every dimension by its running mean and deviation, clipped to +-10."""
    normalize_rewards: bool = False
    """Divide by the deviation of the running discounted return, clipped to +-10 (Engstrom et al. 2020)."""
    hidden_sizes: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers, of the actor and of the value network."""
    activation: Activation = "tanh"
    """Between the layers."""
    vectorization: Vectorization = "sync"
    """One process; one process each; the environment's own vector form, where it has one; or EnvPool's threads."""
    device: str = "cpu"
    """Where the networks live: cpu, cuda, cuda:1, ... No update is captured in a CUDA graph: one serves batches of
    one size, and of whole episodes hardly two batches have the same."""
    torch_threads: int = 1
    """Threads of torch on the CPU while training; networks this small are fastest on one."""

    def check(self) -> None:
        """Raises `RunError` naming the option that cannot be."""
        counts = ("total_timesteps", "num_envs", "num_episodes", "critic_steps", "torch_threads")
        positive = ("learning_rate", "critic_learning_rate")
        check_options(self, at_least_one=counts, fractions=("gamma",), positive=positive)
        if self.num_episodes % self.num_envs:
            raise RunError(f"num_episodes: got {self.num_episodes}, expected a multiple of num_envs, {self.num_envs}")
        if self.baseline == "mean" and self.num_episodes < 2:
            raise RunError(f"num_episodes: got {self.num_episodes}, expected at least 2 for a mean of the others")
        if self.discount_states and self.returns == "total":
            raise RunError("discount_states: got True, expected False with total returns, which are discounted already")


PRESETS = {
    "cartpole": Config(),
    # As Williams had it, and the two steps from there to the default.
    "total-return": Config(returns="total", baseline="none"),
    "reward-to-go": Config(baseline="none"),
    "mean-baseline": Config(baseline="mean"),
}


def credit(returns: Tensor, values: Tensor, lengths: Tensor, config: Config) -> Tensor:
    """Returns what each action's log-probability is multiplied with.

    Args:
        returns: `(B,)`, G_t of every step of whole episodes, one behind the other.
        values: `(B,)`, V(s_t) of before this batch; read with `baseline="value"` alone.
        lengths: `(E,)` int64, the episodes' numbers of steps.
        config: Of which `returns`, `baseline`, `discount_states` and `gamma` are read.

    Example:
        >>> returns, lengths = torch.tensor([3.0, 2.0, 1.0, 5.0]), torch.tensor([3, 1])
        >>> credit(returns, torch.zeros(4), lengths, Config(returns="total", baseline="none"))
        tensor([3., 3., 3., 5.])
        >>> credit(returns, torch.zeros(4), lengths, Config(baseline="mean"))  # the others' means are 5 and 2
        tensor([-2., -3., -4.,  3.])
    """
    steps = len(returns)
    first = lengths.cumsum(0) - lengths
    psi = returns
    if config.returns == "total":
        psi = returns[first].repeat_interleave(lengths, output_size=steps)
    if config.baseline == "value":
        psi = psi - values
    elif config.baseline == "mean":
        psi = psi - mean_of_the_others(psi, lengths).repeat_interleave(lengths, output_size=steps)
    if config.discount_states:
        t = torch.arange(steps, device=psi.device) - first.repeat_interleave(lengths, output_size=steps)
        psi = psi * config.gamma ** t.to(psi.dtype)
    return psi


def mean_of_the_others(psi: Tensor, lengths: Tensor) -> Tensor:
    """Returns for each episode the mean of psi over all steps of the other episodes, `(E,)`.

    With its own steps in the mean an episode would subtract a part of itself: the gradient would come out too small, by
    the factor 1 - 1/E where all have the same length (Kool, van Hoof and Welling 2019).
    """
    episode = torch.arange(len(lengths), device=psi.device).repeat_interleave(lengths, output_size=len(psi))
    sums = torch.zeros(len(lengths), dtype=psi.dtype, device=psi.device)
    sums.index_add_(0, episode, psi)
    return (sums.sum() - sums) / (lengths.sum() - lengths)


def loss(actor: Actor, observations: Tensor, actions: Tensor, psi: Tensor, num_episodes: int) -> tuple[Tensor, Tensor]:
    """Returns -1/E sum log pi(a | s) Psi over the steps `(B,)` of E episodes, and the mean entropy (no gradient)."""
    distribution = actor(observations)
    return -(distribution.log_prob(actions) * psi).sum() / num_episodes, distribution.entropy().mean().detach()


def value_loss(values: Tensor, returns: Tensor) -> Tensor:
    """Returns 1/2 mean (V - G)^2."""
    return 0.5 * (values - returns).square().mean()


METRICS = (
    "losses/policy_loss",
    "losses/value_loss",  # NaN without a value network, as is
    "losses/entropy",
    "losses/explained_variance",  # of the rewards-to-go, by V of before the batch
)


class Batch(NamedTuple):
    """Whole episodes, one behind the other: B steps of E episodes."""

    observations: Tensor  # (B, *observation), as the policy saw them
    actions: Tensor  # (B, *action), raw
    returns: Tensor  # (B,), G_t
    values: Tensor  # (B,), V(s_t) of before this batch; 0 where there is no value network
    lengths: Tensor  # (E,) int64


class REINFORCE:
    """Everything that changes while training, and the three parts of an iteration."""

    def __init__(self, config: Config):
        config.check()
        self.config = config
        self.collector = Collector(config, num_episodes=config.num_episodes // config.num_envs)
        self.buffer = self.collector.buffer
        self.actor = self.collector.actor
        self.optimizer = torch.optim.Adam(self.actor.parameters(), lr=config.learning_rate, eps=1e-5, fused=True)
        self.critic = self.collector.make_critic() if config.baseline == "value" else None
        if self.critic is not None:
            self.critic_optimizer = torch.optim.Adam(
                self.critic.parameters(), lr=config.critic_learning_rate, eps=1e-5, fused=True
            )

    @property
    def global_step(self) -> int:
        """Environment steps so far, those between an environment's last episode and the batch's end included."""
        return self.collector.global_step

    def collect(self) -> Episodes:
        """Plays E whole episodes."""
        return self.collector.collect()

    def estimate(self) -> None:
        """Computes G_t, and V(s_t) of before this batch."""
        buffer, observations = self.buffer, self.collector.observations
        with torch.no_grad():
            if self.critic is None:
                values = torch.zeros(len(observations), device=observations.device)
            else:
                values = self.critic(observations).squeeze(-1)
        # Without a critic V is 0, and what a time limit cut off with it: the episode ended there.
        rewards, values, *ends = buffer.transitions(values)
        returns = discounted_returns(rewards, *ends, gamma=self.config.gamma)
        # Rows are in the order of time, all environments' next to each other; here environment after environment.
        steps, envs = buffer.mask.shape
        rows = np.arange(steps * envs).reshape(steps, envs).T[buffer.mask.T]
        last = np.flatnonzero((buffer.terminated | buffer.truncated).T[buffer.mask.T])
        order, lengths = (
            torch.from_numpy(array).to(observations.device) for array in (rows, np.diff(last, prepend=-1))
        )
        fields = (*buffer.flat(), returns.flatten(), values.flatten())
        observations, actions, returns, values = (field.index_select(0, order) for field in fields)
        self.batch = Batch(observations, actions, returns, values, lengths)

    def update(self, remaining: float) -> dict[str, float]:
        """Takes the policy's step, then fits the value network; returns the metrics.

        Args:
            remaining: What is left of the training, 1 at its start, 0 at its end.
        """
        config, batch = self.config, self.batch
        share = remaining if config.anneal_lr else 1.0
        psi = credit(batch.returns, batch.values, batch.lengths, config)
        if config.norm_adv:
            psi = normalize_advantages(psi)
        self.optimizer.param_groups[0]["lr"] = config.learning_rate * share
        total, entropy = loss(self.actor, batch.observations, batch.actions, psi, config.num_episodes)
        self.optimizer.zero_grad()
        total.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        v_loss = explained = torch.full_like(total, torch.nan)
        if self.critic is not None:
            v_loss = self.fit(self.critic, config.critic_learning_rate * share)
            explained = 1.0 - (batch.returns - batch.values).var() / batch.returns.var()
        numbers = torch.stack([total.detach(), v_loss, entropy, explained]).tolist()
        return dict(zip(METRICS, numbers, strict=True), **{"charts/learning_rate": config.learning_rate * share})

    def fit(self, critic: torch.nn.Module, learning_rate: float) -> Tensor:
        """Fits V to the rewards-to-go; returns the mean of its losses."""
        batch, records = self.batch, list[Tensor]()
        self.critic_optimizer.param_groups[0]["lr"] = learning_rate
        for _ in range(self.config.critic_steps):
            v_loss = value_loss(critic(batch.observations).squeeze(-1), batch.returns)
            self.critic_optimizer.zero_grad()
            v_loss.backward()  # type: ignore[no-untyped-call]
            self.critic_optimizer.step()
            records.append(v_loss.detach())
        return torch.stack(records).mean()

    def state_dict(self) -> dict[str, Any]:
        """Returns everything needed to go on bit for bit, in plain containers and tensors."""
        state = {**self.collector.state_dict(), "optimizer": self.optimizer.state_dict()}
        if self.critic is not None:
            state |= {"critic": self.critic.state_dict(), "critic_optimizer": self.critic_optimizer.state_dict()}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores `state_dict`'s result. Environments whose state it does not hold go on with new episodes."""
        self.collector.load_state_dict(state)
        self.optimizer.load_state_dict(state["optimizer"])
        if self.critic is not None:
            self.critic.load_state_dict(state["critic"])
            self.critic_optimizer.load_state_dict(state["critic_optimizer"])


def train(
    config: Config,
    callback: Callback | None = None,
    *,
    run_dir: str | Path | None = None,
    checkpoint: dict[str, Any] | None = None,
    progress_bar: bool = False,
) -> Result:
    """Trains REINFORCE.

    Args:
        config: What and how.
        callback: Called once an iteration with a `fastac.run.Progress`; returning False stops cleanly.
        run_dir: Where config, log and checkpoints go; new or empty. None: nothing is written.
        checkpoint: What `fastac.checkpoint.load` returned for `run_dir`, to go on from there.
        progress_bar: Show one on stderr.

    Returns:
        The policy, and how the training ended.

    Raises:
        fastac.envs.EnvError: unknown environment, or spaces that REINFORCE cannot take.
        fastac.run.RunError: an option that cannot be, or a run folder that cannot be written or is not empty.

    Example:
        >>> result = train(Config(env_id="CartPole-v1", total_timesteps=500))
        >>> result.finished, result.policy.act(np.zeros(4)).shape
        (True, ())
    """
    with torch_threads(config.torch_threads):
        reinforce = REINFORCE(config)
        try:
            if checkpoint is not None:
                reinforce.load_state_dict(checkpoint)
            with Run(
                "reinforce",
                config,
                reinforce.collector.policy,
                run_dir=run_dir,
                checkpoint=checkpoint,
                callback=callback,
                progress_bar=progress_bar,
                why_not_restorable=None if run_dir is None else reinforce.collector.envs.why_not_restorable,
            ) as run:
                while reinforce.global_step < config.total_timesteps and not run.stopped:
                    remaining = 1.0 - reinforce.global_step / config.total_timesteps
                    episodes = reinforce.collect()
                    reinforce.estimate()
                    metrics = reinforce.update(remaining)
                    run.record(reinforce.global_step, metrics, episodes, reinforce.state_dict)
                return run.finish(reinforce.global_step, reinforce.state_dict)
        finally:
            reinforce.collector.close()
