"""Deep deterministic policy gradient (Lillicrap et al. 2016, arXiv:1509.02971).

After every environment step, on a batch from the replay buffer (their algorithm 1):

1. Q follows r + gamma Q'(s', mu'(s')), by the squared error: `q_targets`, `fused_q_loss`.
2. The actor takes a step up Q(s, mu(s)): the deterministic policy gradient (their equation 6; Silver et al. 2014).
3. The target networks Q' and mu' follow Q and mu.

Actions are in [-1, 1]^A, in which the exploration noise is measured; the environment gets them scaled to its bounds.
The noise is independent and Gaussian, the paper's was correlated (an Ornstein-Uhlenbeck process), which has been found
to make no difference (Fujimoto et al. 2018, section 6.1).
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastac import graphs
from fastac.buffers import Transitions
from fastac.capturable import make_adam
from fastac.envs import Vectorization
from fastac.experience import Episodes, Experience
from fastac.fused_q import fused_q_loss
from fastac.networks import Activation, make_tanh_actor
from fastac.q_functions import Target, make_q_functions
from fastac.q_losses import q_targets
from fastac.run import Callback, Result, Run, RunError, check_options, torch_threads


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of DDPG. The defaults are CleanRL's."""

    env_id: str = "Pendulum-v1"
    """Gymnasium's id; `module:Id` imports the module first. Its actions: a Box with finite bounds."""
    seed: int = 1
    """Of everything random: environments, weights, noise, batches."""
    total_timesteps: int = 1_000_000
    """Environment steps, over all environments together."""
    learning_rate: float = 3e-4
    """Adam's step size for the actor and the critic (Kingma and Ba 2015)."""
    anneal_lr: bool = False
    """Lower it linearly to 0 over total_timesteps."""
    num_envs: int = 1
    """N, environments side by side."""
    buffer_size: int = 1_000_000
    """Transitions that the replay buffer keeps."""
    learning_starts: int = 25_000
    """Environment steps of uniformly random actions before anything is learnt."""
    updates_per_step: float = 1.0
    """Updates for each environment step after those; with N environments N times as many for a step of all."""
    train_frequency: int = 1
    """Steps of all environments between updates, which are then made up for."""
    batch_size: int = 256
    """Transitions an update."""
    gamma: float = 0.99
    """Discount per step."""
    tau: float = 0.005
    """Share of the networks in an update of their targets."""
    exploration_noise: float = 0.1
    """Standard deviation of the Gaussian noise on actions, in [-1, 1]^A."""
    policy_frequency: int = 2
    """Updates of the critic for one of the actor and the targets; 1 in the paper."""
    normalize_observations: bool = False
    """Standardise every dimension by its running mean and deviation, clipped to +-10."""
    hidden_sizes: tuple[int, ...] = (256, 256)
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
    """Threads of torch on the CPU while training."""

    def check(self) -> None:
        """Raises `RunError` naming the option that cannot be."""
        check_options(
            self,
            at_least_one=(
                "total_timesteps", "num_envs", "buffer_size", "train_frequency", "batch_size", "policy_frequency",
                "log_interval", "torch_threads",
            ),
            fractions=("gamma", "tau"),
            positive=("learning_rate", "updates_per_step", "tau"),
        )  # fmt: skip
        for name in ("learning_starts", "exploration_noise"):
            if getattr(self, name) < 0:
                raise RunError(f"{name}: got {getattr(self, name)}, expected at least 0")


# Stable-Baselines3's defaults; it has no exploration noise of its own.
SB3 = Config(
    learning_rate=1e-3, learning_starts=100, exploration_noise=0.0, policy_frequency=1, hidden_sizes=(400, 300)
)
ZOO = dataclasses.replace(SB3, exploration_noise=0.1)

PRESETS: dict[str, Config | dict[str, Config]] = {
    "cleanrl": Config(),  # ddpg_continuous_action.py
    "sb3": SB3,
    # RL Baselines3 Zoo, hyperparams/ddpg.yml (April 2026), but for MountainCarContinuous, whose noise is correlated.
    "sb3-zoo": {
        **{
            env_id: dataclasses.replace(
                ZOO,
                env_id=env_id,
                total_timesteps=steps,
                gamma=0.98,
                buffer_size=200_000,
                learning_starts=10_000,
            )
            for env_id, steps in (
                ("Pendulum-v1", 20_000),
                ("LunarLanderContinuous-v3", 300_000),
                ("BipedalWalker-v3", 1_000_000),
            )
        },
        "BipedalWalkerHardcore-v3": dataclasses.replace(
            ZOO,
            env_id="BipedalWalkerHardcore-v3",
            total_timesteps=10_000_000,
            learning_rate=7e-4,
            anneal_lr=True,
            learning_starts=10_000,
        ),
        "default": ZOO,
    },
}

METRICS = ("losses/q_loss", "losses/q_values", "losses/policy_loss")


class DDPG:
    """Everything that changes while training, and what an update does."""

    def __init__(self, config: Config):
        config.check()
        self.config = config
        self.experience = Experience(config, make_tanh_actor)
        self.device, self.actor = self.experience.device, self.experience.actor
        self.action_size = self.experience.action_shape[1]
        self.q = make_q_functions(
            self.experience.envs.single_observation_space,
            self.action_size,
            count=1,
            hidden_sizes=config.hidden_sizes,
            activation=config.activation,
            generator=self.experience.weights,
        ).to(self.device)
        self.q_parameters = list(self.q.parameters())
        self.target, self.target_actor = Target(self.q, config.tau), Target(self.actor, config.tau)
        self.policy_optimizer = make_adam(self.actor.parameters(), lr=config.learning_rate)
        self.q_optimizer = make_adam(self.q_parameters, lr=config.learning_rate)
        self.learn = graphs.on_device(
            self.gradient_step,
            self.device,
            cudagraphs=config.cudagraphs,
            compile=config.compile,
            optimizers=(self.policy_optimizer, self.q_optimizer),
        )
        self.num_updates = 0
        self._no_policy_loss = torch.full((), math.nan, device=self.device)

    def anneal(self, remaining: float) -> None:
        """Sets the learning rate; `remaining` is the share of all steps that are still to come, from 1 to 0."""
        share = remaining if self.config.anneal_lr else 1.0
        for optimizer in (self.policy_optimizer, self.q_optimizer):
            optimizer.param_groups[0]["lr"] = share * self.config.learning_rate

    def explore(self) -> NDArray[np.float32]:
        """Returns clip(mu(s) + N(0, exploration_noise), -1, 1), `(N, A)`, to act with and to store."""
        noise = torch.randn(self.experience.action_shape, generator=self.experience.generator).numpy()
        actions = self.experience.most_probable_actions() + np.float32(self.config.exploration_noise) * noise
        return np.clip(actions, -1.0, 1.0)

    def update(self) -> Tensor:
        """Takes one gradient step of the critic, and of the actor and the targets when it is their turn.

        Returns:
            `METRICS`, on the device, from which nothing is read; the actor's is NaN when it was not its turn.
        """
        batch = self.experience.sample(self.config.batch_size)
        self.num_updates += 1
        metrics: Tensor = self.learn(batch, self.num_updates % self.config.policy_frequency == 0)
        return metrics

    def gradient_step(self, batch: Transitions, policy: bool) -> Tensor:
        """What an update does with its batch. Nothing is drawn or read back here: a CUDA graph can hold it.

        Args:
            batch: Transitions.
            policy: Whether it is the actor's turn.
        """
        with torch.no_grad():
            actions = self.target_actor.network(batch.next_observations)
            next_q_values = self.target.network(batch.next_observations, actions)
            targets = q_targets(batch.rewards, batch.discounts, batch.terminated, next_q_values)
        loss, (q_values,) = fused_q_loss(self.q, batch.observations, batch.actions, targets, coef=1.0)
        self.q_optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.q_optimizer.step()

        policy_loss = self._no_policy_loss
        if policy:
            policy_loss = self.update_policy(batch.observations)
            self.target.follow()
            self.target_actor.follow()
        return torch.stack([loss.detach(), q_values.mean(), policy_loss])

    def update_policy(self, observations: Tensor) -> Tensor:
        """Takes one gradient step of the actor up Q(s, mu(s)) (equation 6); returns its loss."""
        # The gradient passes through the critic to the action; the critic's own is not computed.
        for p in self.q_parameters:
            p.requires_grad_(False)
        loss = -self.q.first(observations, self.actor(observations)).mean()
        for p in self.q_parameters:
            p.requires_grad_(True)
        self.policy_optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.policy_optimizer.step()
        return loss.detach()

    def state_dict(self) -> dict[str, Any]:
        """Returns everything needed to go on bit for bit, the replay buffer included."""
        return {
            **self.experience.state_dict(),
            "q": self.q.state_dict(),
            "target": self.target.network.state_dict(),
            "target_actor": self.target_actor.network.state_dict(),
            "policy_optimizer": self.policy_optimizer.state_dict(),
            "q_optimizer": self.q_optimizer.state_dict(),
            "num_updates": self.num_updates,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores `state_dict`'s result."""
        self.experience.load_state_dict(state)
        self.q.load_state_dict(state["q"])
        self.target.network.load_state_dict(state["target"])
        self.target_actor.network.load_state_dict(state["target_actor"])
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
    """Trains DDPG.

    Args:
        config: What and how.
        callback: Called every `log_interval` steps with a `fastac.run.Progress`; returning False stops cleanly.
        run_dir: Where config, log and checkpoints go; new or empty. None: nothing is written.
        checkpoint: What `fastac.checkpoint.load` returned for `run_dir`, to go on from there.
        progress_bar: Show one on stderr.

    Returns:
        The policy, and how the training ended.

    Raises:
        fastac.envs.EnvError: unknown environment, or spaces that DDPG cannot take.
        fastac.run.RunError: an option that cannot be, or a run folder that cannot be written or is not empty.

    Example:
        >>> result = train(Config(total_timesteps=250, learning_starts=200, batch_size=32, hidden_sizes=(32,)))
        >>> result.global_step, result.policy.act([0.0, 1.0, 0.0]).shape
        (250, (1,))
    """
    with torch_threads(config.torch_threads):
        ddpg = DDPG(config)
        experience = ddpg.experience
        try:
            if checkpoint is not None:
                ddpg.load_state_dict(checkpoint)
            with Run(
                "ddpg",
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
                        experience.step_async(experience.random_actions() if warming_up else ddpg.explore())
                        if experience.num_steps % config.train_frequency == 0:
                            ddpg.anneal(1.0 - experience.global_step / config.total_timesteps)
                            learnt = experience.global_step - config.learning_starts
                            while ddpg.num_updates < int(learnt * config.updates_per_step):
                                records.append(ddpg.update())
                        ended = experience.step_wait()
                        episodes.returns.extend(ended.returns)
                        episodes.lengths.extend(ended.lengths)
                    values = torch.stack(records).nanmean(0).tolist() if records else [math.nan] * len(METRICS)
                    metrics = dict(zip(METRICS, values, strict=True))
                    metrics["charts/learning_rate"] = ddpg.policy_optimizer.param_groups[0]["lr"]
                    run.record(experience.global_step, metrics, episodes, ddpg.state_dict)
                return run.finish(experience.global_step, ddpg.state_dict)
        finally:
            experience.close()
