"""Soft actor-critic (Haarnoja, Zhou, Abbeel and Levine 2018; with a learned temperature Haarnoja et al. 2018b).

    J(pi) = sum_t E[r_t + alpha H(pi(. | s_t))]                         (equation 1 of arXiv:1801.01290)

After every environment step, on a batch from the replay buffer (algorithm 1 of arXiv:1812.05905):

1. Both Q follow r + gamma (min_k Q'_k(s', a') - alpha log pi(a' | s')), a' ~ pi(. | s'), by the squared error
   (equations 5 and 6): `soft_q_targets`, `fused_q_loss`.
2. pi moves towards exp(Q / alpha): down mean[alpha log pi(a | s) - min_k Q_k(s, a)], a ~ pi(. | s), by the
   reparameterised gradient (equation 7): `fused_policy_loss`.
3. `temperature_loss`: alpha keeps the entropy at its target (equation 18, in log alpha).
4. The target networks Q' follow Q.

Actions are in [-1, 1]^A, where log pi is measured; the environment gets them scaled to its bounds.
"""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastac import graphs
from fastac.buffers import PrioritizedReplayBuffer, ReplayBuffer, Transitions
from fastac.buffers.transfer import sent
from fastac.capturable import make_adam
from fastac.envs import Vectorization
from fastac.experience import Episodes, Experience
from fastac.fused_q import fused_policy_loss, fused_q_loss, soft_q_targets
from fastac.networks import Activation, make_tanh_gaussian_actor
from fastac.q_functions import Target, make_q_functions
from fastac.run import Callback, Result, Run, RunError, check_options, torch_threads


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of SAC. The defaults are CleanRL's."""

    env_id: str = "Pendulum-v1"
    """Gymnasium's id; `module:Id` imports the module first. Its actions: a Box with finite bounds."""
    seed: int = 1
    """Of everything random: environments, weights, actions, batches."""
    total_timesteps: int = 1_000_000
    """Environment steps, over all environments together."""
    policy_lr: float = 3e-4
    """Adam's step size for the actor (Kingma and Ba 2015)."""
    q_lr: float = 1e-3
    """Adam's step size for the critics and the temperature."""
    anneal_lr: bool = False
    """Lower both linearly to 0 over total_timesteps."""
    num_envs: int = 1
    """N, environments side by side."""
    buffer_size: int = 1_000_000
    """Transitions that the replay buffer keeps."""
    learning_starts: int = 5_000
    """Environment steps of uniformly random actions before anything is learnt."""
    updates_per_step: float = 1.0
    """Updates for each environment step after those; with N environments N times as many for a step of all."""
    train_frequency: int = 1
    """Steps of all environments between updates, which are then made up for."""
    batch_size: int = 256
    """Transitions an update."""
    gamma: float = 0.99
    """Discount per step."""
    n_step: int = 1
    """Rewards in a target before Q' takes over; uncorrected above 1, and without the entropies between."""
    tau: float = 0.005
    """Share of Q in an update of Q'."""
    policy_frequency: int = 2
    """Every so many updates the actor and the temperature are updated, so many times."""
    autotune: bool = True
    """Learn the temperature."""
    alpha: float = 1.0
    """The temperature, per nat of entropy; where it starts if it is learned."""
    target_entropy: float | None = None
    """In nats, of actions in [-1, 1]^A. None: -A."""
    prioritized_replay: bool = False
    """Draw by the absolute temporal difference (Schaul et al. 2016); costs a read from the device each update."""
    priority_exponent: float = 0.6
    """How much priorities count (their alpha)."""
    importance_exponent: float = 0.4
    """How much of the bias the importance weights correct (their beta)."""
    layer_norm: bool = False
    """Layer normalisation in the critics."""
    normalize_observations: bool = False
    """Standardise every dimension by its running mean and deviation, clipped to +-10."""
    hidden_sizes: tuple[int, ...] = (256, 256)
    """Widths of the hidden layers, of the actor and of the critics."""
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
                "total_timesteps", "num_envs", "buffer_size", "train_frequency", "batch_size", "n_step",
                "policy_frequency", "log_interval", "torch_threads",
            ),
            fractions=("gamma", "tau"),
            positive=("policy_lr", "q_lr", "updates_per_step", "tau", "alpha"),
        )  # fmt: skip
        for name in ("learning_starts", "priority_exponent", "importance_exponent"):
            if getattr(self, name) < 0:
                raise RunError(f"{name}: got {getattr(self, name)}, expected at least 0")


# Stable-Baselines3's defaults.
SB3 = Config(q_lr=3e-4, learning_starts=100, policy_frequency=1)
MUJOCO: dict[str, Any] = {"total_timesteps": 1_000_000, "learning_starts": 10_000}

PRESETS: dict[str, Config | dict[str, Config]] = {
    # sac_continuous_action.py, but for its log deviation, which it squashes into [-5, 2], its density, which counts the
    # bounds, and its temperature's loss, which is linear in alpha.
    "cleanrl": Config(),
    "sb3": SB3,
    # RL Baselines3 Zoo, hyperparams/sac.yml (April 2026). Left out is what explores by state-dependent noise there
    # (use_sde): MountainCarContinuous and BipedalWalker.
    "sb3-zoo": {
        "Pendulum-v1": dataclasses.replace(SB3, total_timesteps=20_000, policy_lr=1e-3, q_lr=1e-3),
        "LunarLanderContinuous-v3": dataclasses.replace(
            SB3,
            env_id="LunarLanderContinuous-v3",
            total_timesteps=500_000,
            policy_lr=7.3e-4,
            q_lr=7.3e-4,
            anneal_lr=True,
            learning_starts=10_000,
            tau=0.01,
            hidden_sizes=(400, 300),
        ),
        "BipedalWalkerHardcore-v3": dataclasses.replace(
            SB3,
            env_id="BipedalWalkerHardcore-v3",
            total_timesteps=10_000_000,
            policy_lr=7.3e-4,
            q_lr=7.3e-4,
            anneal_lr=True,
            learning_starts=10_000,
            tau=0.01,
            autotune=False,
            alpha=0.005,
            hidden_sizes=(400, 300),
        ),
        **{
            env_id: dataclasses.replace(SB3, env_id=env_id, **MUJOCO)
            for env_id in ("HalfCheetah-v4", "Ant-v4", "Hopper-v4", "Walker2d-v4")
        },
        "Humanoid-v4": dataclasses.replace(SB3, env_id="Humanoid-v4", **MUJOCO | {"total_timesteps": 2_000_000}),
        "Swimmer-v4": dataclasses.replace(SB3, env_id="Swimmer-v4", gamma=0.999, **MUJOCO),
        "default": SB3,
    },
}

METRICS = (
    "losses/q_loss",
    "losses/q_values",
    "losses/policy_loss",
    "losses/entropy",
    "losses/alpha",
    "losses/alpha_loss",
)


def temperature_loss(log_alpha: Tensor, entropy: Tensor, target_entropy: float) -> Tensor:
    """Returns log alpha (mean[-log pi(a | s)] - target entropy) (equation 18, with log alpha in place of alpha).

    Its gradient in log alpha does not shrink with alpha, so that a small temperature finds its way back.

    Args:
        log_alpha: Of the temperature.
        entropy: mean[-log pi(a | s)] of a batch, in nats; no gradient.
        target_entropy: In nats.

    Example:
        >>> temperature_loss(torch.tensor(-1.0), torch.tensor(-0.5), -1.0)
        tensor(-0.5000)
    """
    return log_alpha * (entropy - target_entropy)


class SAC:
    """Everything that changes while training, and what an update does."""

    def __init__(self, config: Config):
        config.check()
        self.config = config
        replay: Any = ReplayBuffer
        if config.prioritized_replay:
            alpha, beta = config.priority_exponent, config.importance_exponent
            replay = partial(PrioritizedReplayBuffer, alpha=alpha, beta=beta)
        self.experience = Experience(config, make_tanh_gaussian_actor, n_step=config.n_step, replay=replay)
        self.device, self.actor = self.experience.device, self.experience.actor
        self.action_size = self.experience.action_shape[1]
        self.q = make_q_functions(
            self.experience.envs.single_observation_space,
            self.action_size,
            count=2,
            hidden_sizes=config.hidden_sizes,
            activation=config.activation,
            layer_norm=config.layer_norm,
            generator=self.experience.weights,
        ).to(self.device)
        self.q_parameters = list(self.q.parameters())
        self.target = Target(self.q, config.tau)
        self.log_alpha = torch.nn.Parameter(torch.tensor(math.log(config.alpha), device=self.device))
        self.target_entropy = -float(self.action_size) if config.target_entropy is None else config.target_entropy
        self.policy_optimizer = make_adam(self.actor.parameters(), lr=config.policy_lr)
        self.q_optimizer = make_adam(self.q_parameters, lr=config.q_lr)
        self.alpha_optimizer = make_adam([self.log_alpha], lr=config.q_lr)
        self.learn = graphs.on_device(
            self.gradient_step,
            self.device,
            cudagraphs=config.cudagraphs,
            compile=config.compile,
            optimizers=(self.policy_optimizer, self.q_optimizer, self.alpha_optimizer),
        )
        self.num_updates = 0
        self._no_policy_metrics = torch.full((4,), math.nan, device=self.device)

    def anneal(self, remaining: float) -> None:
        """Sets the learning rates; `remaining` is the share of all steps that are still to come, from 1 to 0."""
        share = remaining if self.config.anneal_lr else 1.0
        self.policy_optimizer.param_groups[0]["lr"] = share * self.config.policy_lr
        self.q_optimizer.param_groups[0]["lr"] = share * self.config.q_lr
        self.alpha_optimizer.param_groups[0]["lr"] = share * self.config.q_lr

    def update(self) -> Tensor:
        """Takes one gradient step of the critics, and of the actor and the temperature when it is their turn.

        Returns:
            `METRICS`, on the device, the actor's NaN when it was not its turn; nothing is read from the device, but for
            prioritized replay on the CPU.
        """
        config, experience = self.config, self.experience
        batch = experience.sample(config.batch_size)
        self.num_updates += 1
        turn = self.num_updates % config.policy_frequency == 0
        noises = [self.noise() for _ in range(1 + config.policy_frequency * turn)]
        metrics: Tensor
        metrics, errors = self.learn(batch, noises)
        if errors is not None:
            experience.update_priorities(batch.indices, errors)
        return metrics

    def gradient_step(self, batch: Transitions, noises: list[Tensor]) -> tuple[Tensor, Tensor | None]:
        """What an update does with its batch. Nothing is drawn or read back here: a CUDA graph can hold it.

        Args:
            batch: Transitions.
            noises: `(B, A)` each: of the targets' actions, then of each step of the actor.

        Returns:
            `METRICS`, and where the batch has weights the transitions' new priorities.
        """
        alpha = self.log_alpha.detach().exp()
        targets = soft_q_targets(
            self.actor,
            self.target.network,
            batch.next_observations,
            noises[0],
            batch.rewards,
            batch.discounts,
            batch.terminated,
            alpha,
        )
        loss, q_values = fused_q_loss(self.q, batch.observations, batch.actions, targets, batch.weights)
        self.q_optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.q_optimizer.step()

        of_policy = self._no_policy_metrics
        for noise in noises[1:]:
            of_policy = self.update_policy(batch.observations, noise)
        self.target.follow()
        errors = None
        if batch.weights is not None:
            errors = torch.stack([(values - targets).abs() for values in q_values]).mean(0) + 1e-6
        return torch.cat([torch.stack([loss.detach(), q_values[0].mean()]), of_policy]), errors

    def update_policy(self, observations: Tensor, noise: Tensor) -> Tensor:
        """Takes one gradient step of the actor and of the temperature; returns their metrics."""
        alpha = self.log_alpha.detach().exp()
        loss, entropy = fused_policy_loss(self.actor, self.q, observations, noise, alpha)
        self.policy_optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.policy_optimizer.step()
        of_alpha = temperature_loss(self.log_alpha, entropy, self.target_entropy)
        if self.config.autotune:
            self.alpha_optimizer.zero_grad()
            of_alpha.backward()  # type: ignore[no-untyped-call]
            self.alpha_optimizer.step()
        return torch.stack([loss.detach(), entropy, alpha, of_alpha.detach()])

    def noise(self) -> Tensor:
        """Standard normal, `(B, A)`, for the draws of one batch's actions."""
        shape = (self.config.batch_size, self.action_size)
        return sent(torch.randn(shape, generator=self.experience.generator), self.device)

    def state_dict(self) -> dict[str, Any]:
        """Returns everything needed to go on bit for bit, the replay buffer included."""
        return {
            **self.experience.state_dict(),
            "q": self.q.state_dict(),
            "target": self.target.network.state_dict(),
            "log_alpha": self.log_alpha.detach(),
            "policy_optimizer": self.policy_optimizer.state_dict(),
            "q_optimizer": self.q_optimizer.state_dict(),
            "alpha_optimizer": self.alpha_optimizer.state_dict(),
            "num_updates": self.num_updates,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores `state_dict`'s result."""
        self.experience.load_state_dict(state)
        self.q.load_state_dict(state["q"])
        self.target.network.load_state_dict(state["target"])
        with torch.no_grad():
            self.log_alpha.copy_(state["log_alpha"])
        self.policy_optimizer.load_state_dict(state["policy_optimizer"])
        self.q_optimizer.load_state_dict(state["q_optimizer"])
        self.alpha_optimizer.load_state_dict(state["alpha_optimizer"])
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
    """Trains SAC.

    Args:
        config: What and how.
        callback: Called every `log_interval` steps with a `fastac.run.Progress`; returning False stops cleanly.
        run_dir: Where config, log and checkpoints go; new or empty. None: nothing is written.
        checkpoint: What `fastac.checkpoint.load` returned for `run_dir`, to go on from there.
        progress_bar: Show one on stderr.

    Returns:
        The policy, and how the training ended.

    Raises:
        fastac.envs.EnvError: unknown environment, or spaces that SAC cannot take.
        fastac.run.RunError: an option that cannot be, or a run folder that cannot be written or is not empty.

    Example:
        >>> result = train(Config(total_timesteps=250, learning_starts=200, batch_size=32, hidden_sizes=(32,)))
        >>> result.global_step, result.policy.act([0.0, 1.0, 0.0]).shape
        (250, (1,))
    """
    with torch_threads(config.torch_threads):
        sac = SAC(config)
        experience = sac.experience
        try:
            if checkpoint is not None:
                sac.load_state_dict(checkpoint)
            with Run(
                "sac",
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
                            sac.anneal(1.0 - experience.global_step / config.total_timesteps)
                            learnt = experience.global_step - config.learning_starts
                            while sac.num_updates < int(learnt * config.updates_per_step):
                                records.append(sac.update())
                        ended = experience.step_wait()
                        episodes.returns.extend(ended.returns)
                        episodes.lengths.extend(ended.lengths)
                    values = torch.stack(records).nanmean(0).tolist() if records else [math.nan] * len(METRICS)
                    metrics = dict(zip(METRICS, values, strict=True))
                    metrics["charts/learning_rate"] = sac.policy_optimizer.param_groups[0]["lr"]
                    experience.check_priorities()
                    run.record(experience.global_step, metrics, episodes, sac.state_dict)
                return run.finish(experience.global_step, sac.state_dict)
        finally:
            experience.close()
