"""Proximal policy optimisation with a clipped objective (Schulman, Wolski, Dhariwal, Radford and Klimov 2017).

One iteration (their algorithm 1):

1. `collect`: run the old policy in N environments for T steps.
2. `estimate`: V of every observation, generalised advantages (Schulman et al. 2016).
3. `update`: K epochs of shuffled minibatches, each one Adam step on

       L(theta) = E[ -L_CLIP + vf_coef L_VF - ent_coef S[pi_theta](s) ]                        (eq. 9, as a loss)
       L_CLIP   = min(rho A, clip(rho, 1 - eps, 1 + eps) A),   rho = pi_theta(a | s) / pi_old(a | s)     (eq. 7)

Implementation details follow Huang et al. 2022, "The 37 implementation details of PPO".
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastac import graphs
from fastac.buffers import Batch
from fastac.capturable import make_adam
from fastac.collector import Collector
from fastac.envs import Vectorization
from fastac.fused import fused_ppo_loss
from fastac.losses import METRICS
from fastac.networks import Activation, Actor
from fastac.run import Callback, Result, Run, RunError, check_options, torch_threads


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of PPO. The defaults are CleanRL's for classic control."""

    env_id: str = "CartPole-v1"
    """Gymnasium's id; `module:Id` imports the module first."""
    seed: int = 1
    """Of everything random: environments, weights, actions, minibatches."""
    total_timesteps: int = 500_000
    """Environment steps, over all environments together; training ends with the rollout that reaches them."""
    learning_rate: float = 2.5e-4
    """Adam's step size (Kingma and Ba 2015)."""
    num_envs: int = 4
    """N, environments side by side."""
    num_steps: int = 128
    """T, steps of each environment in a rollout."""
    anneal_lr: bool = True
    """Lower the learning rate linearly to 0 over total_timesteps."""
    gamma: float = 0.99
    """Discount per step."""
    gae_lambda: float = 0.95
    """Decay of the advantage's trace per step (Schulman et al. 2016, eq. 16)."""
    num_minibatches: int = 4
    """Minibatches an epoch; their size is num_envs * num_steps / num_minibatches."""
    update_epochs: int = 4
    """K, passes over a rollout."""
    norm_adv: bool = True
    """Standardise the advantages of each minibatch."""
    clip_coef: float = 0.2
    """eps, how far the ratio may gain from leaving 1 (eq. 7)."""
    anneal_clip: bool = False
    """Lower clip_coef linearly to 0 over total_timesteps."""
    clip_vloss: bool = True
    """Clip the change of the value, too (not in the paper; from its authors' code)."""
    ent_coef: float = 0.01
    """Weight of the entropy bonus, per nat (eq. 9's c2)."""
    vf_coef: float = 0.5
    """Weight of the value loss, half a squared error (eq. 9's c1)."""
    max_grad_norm: float = 0.5
    """Bound on the Euclidean norm of the whole gradient."""
    target_kl: float | None = None
    """End the update after an epoch whose mean KL(old || new) exceeds this, in nats. None: never."""
    dual_clip: float | None = None
    """c > 1: where A < 0, the objective is at least c A (Ye et al. 2020, eq. 5). None: off."""
    normalize_observations: bool = False
    """Standardise every dimension by its running mean and deviation, clipped to +-10."""
    normalize_rewards: bool = False
    """Divide by the deviation of the running discounted return, clipped to +-10 (Engstrom et al. 2020)."""
    hidden_sizes: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers, of the actor and of the critic."""
    activation: Activation = "tanh"
    """Between the layers."""
    vectorization: Vectorization = "sync"
    """One process; one process each; the environment's own vector form, where it has one; or EnvPool's threads."""
    device: str = "cpu"
    """Where the networks live: cpu, cuda, cuda:1, ..."""
    cudagraphs: bool = True
    """On CUDA: capture a minibatch's update in a CUDA graph."""
    compile: bool = False
    """Put that through torch.compile."""
    torch_threads: int = 1
    """Threads of torch on the CPU while training; networks this small are fastest on one."""

    def check(self) -> None:
        """Raises `RunError` naming the option that cannot be."""
        at_least_one = ("total_timesteps", "num_envs", "num_steps", "num_minibatches", "update_epochs", "torch_threads")
        check_options(
            self,
            at_least_one=at_least_one,
            fractions=("gamma", "gae_lambda"),
            positive=("learning_rate", "clip_coef", "max_grad_norm"),
        )
        if self.num_minibatches > self.num_envs * self.num_steps:
            rows = self.num_envs * self.num_steps
            raise RunError(f"num_minibatches: got {self.num_minibatches}, expected at most {rows}, a rollout")
        if self.dual_clip is not None and not self.dual_clip > 1.0:
            raise RunError(f"dual_clip: got {self.dual_clip}, expected above 1, or None")


# The defaults of Stable-Baselines3's PPO. Its value loss is a whole squared error times 0.5, ours half of one times 1.
SB3 = Config(
    learning_rate=3e-4,
    num_envs=1,
    num_steps=2048,
    anneal_lr=False,
    num_minibatches=32,
    update_epochs=10,
    clip_vloss=False,
    ent_coef=0.0,
    vf_coef=1.0,
)
NORMALIZED: dict[str, Any] = {"normalize_observations": True, "normalize_rewards": True}

PRESETS: dict[str, Config | dict[str, Config]] = {
    "cleanrl": Config(),
    # ppo_continuous_action.py.
    "cleanrl-mujoco": Config(
        env_id="HalfCheetah-v5",
        total_timesteps=1_000_000,
        learning_rate=3e-4,
        num_envs=1,
        num_steps=2048,
        num_minibatches=32,
        update_epochs=10,
        ent_coef=0.0,
        **NORMALIZED,
    ),
    # ppo_atari.py, but for its actor and critic that share their convolutions. Frames are skipped, resized and stacked
    # by the environment, or not at all: gymnasium.wrappers.AtariPreprocessing, FrameStackObservation.
    "cleanrl-atari": Config(
        env_id="ALE/Breakout-v5",
        total_timesteps=10_000_000,
        num_envs=8,
        clip_coef=0.1,
        hidden_sizes=(512,),
        activation="relu",
    ),
    "sb3": SB3,
    # RL Baselines3 Zoo, hyperparams/ppo.yml (April 2026). MuJoCo's are left out: they need what we do not have, weights
    # that are not orthogonal and a log deviation that starts at -2.
    "sb3-zoo": {
        "CartPole-v1": dataclasses.replace(
            SB3,
            total_timesteps=100_000,
            learning_rate=1e-3,
            anneal_lr=True,
            num_envs=8,
            num_steps=32,
            gamma=0.98,
            gae_lambda=0.8,
            num_minibatches=1,
            update_epochs=20,
            anneal_clip=True,
        ),
        "Acrobot-v1": dataclasses.replace(
            SB3,
            env_id="Acrobot-v1",
            total_timesteps=1_000_000,
            num_envs=16,
            num_steps=256,
            gae_lambda=0.94,
            num_minibatches=64,
            update_epochs=4,
            **NORMALIZED,
        ),
        # The zoo explores by generalised state-dependent noise there (use_sde), drawn anew every 4 steps; here by
        # independent Gaussian noise in every step.
        "Pendulum-v1": dataclasses.replace(
            SB3,
            env_id="Pendulum-v1",
            total_timesteps=100_000,
            learning_rate=1e-3,
            num_envs=4,
            num_steps=1024,
            gamma=0.9,
            num_minibatches=64,
        ),
        "MountainCar-v0": dataclasses.replace(
            SB3,
            env_id="MountainCar-v0",
            total_timesteps=1_000_000,
            num_envs=16,
            num_steps=16,
            gae_lambda=0.98,
            num_minibatches=4,
            update_epochs=4,
            **NORMALIZED,
        ),
        **{
            env_id: dataclasses.replace(
                SB3,
                env_id=env_id,
                total_timesteps=1_000_000,
                num_envs=16,
                num_steps=1024,
                gamma=0.999,
                gae_lambda=0.98,
                num_minibatches=256,
                update_epochs=4,
                ent_coef=0.01,
            )
            for env_id in ("LunarLander-v3", "LunarLanderContinuous-v3")
        },
        "BipedalWalker-v3": dataclasses.replace(
            SB3,
            env_id="BipedalWalker-v3",
            total_timesteps=5_000_000,
            num_envs=32,
            gamma=0.999,
            num_minibatches=1024,
            clip_coef=0.18,
            **NORMALIZED,
        ),
        "default": dataclasses.replace(SB3, total_timesteps=1_000_000),
    },
}


APPROX_KL = METRICS.index("losses/approx_kl")


def loss(
    actor: Actor, critic: torch.nn.Module, batch: Batch, config: Config, clip_coef: float
) -> tuple[Tensor, Tensor]:
    """Returns the loss of a minibatch (eq. 9; `fastac.losses.ppo_loss` has its terms) and `METRICS`, on the device."""
    return fused_ppo_loss(
        actor,
        critic,
        batch.observations,
        batch.actions,
        batch.log_probs,
        batch.advantages,
        batch.values,
        batch.returns,
        clip_coef=clip_coef,
        vf_coef=config.vf_coef,
        ent_coef=config.ent_coef,
        norm_adv=config.norm_adv,
        clip_vloss=config.clip_vloss,
        dual_clip=config.dual_clip,
    )


class PPO:
    """Everything that changes while training, and what an iteration does after `collector.collect()`."""

    def __init__(self, config: Config):
        config.check()
        self.config = config
        self.collector = Collector(config)
        self.buffer = self.collector.buffer
        self.actor, self.critic = self.collector.actor, self.collector.make_critic()
        self.parameters = [*self.actor.parameters(), *self.critic.parameters()]
        self.optimizer = make_adam(
            self.parameters, lr=config.learning_rate, eps=1e-5, max_grad_norm=config.max_grad_norm
        )
        self.learn = graphs.on_device(
            self.step,
            self.collector.device,
            cudagraphs=config.cudagraphs,
            compile=config.compile,
            optimizers=(self.optimizer,),
        )

    def estimate(self) -> None:
        """Computes old log-probabilities, values, advantages and returns of the whole rollout in one batch."""
        with torch.no_grad():
            values = self.critic(self.collector.observations).squeeze(-1)
            observations, actions = self.buffer.flat()
            log_probs = self.actor(observations).log_prob(actions)
        self.buffer.compute_advantages(log_probs, values, gamma=self.config.gamma, gae_lambda=self.config.gae_lambda)

    def step(self, batch: Batch, clip_coef: float) -> Tensor:
        """Takes a gradient step on a minibatch; returns `METRICS`, on the device."""
        total, metrics = loss(self.actor, self.critic, batch, self.config, clip_coef)
        self.optimizer.zero_grad()
        total.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return metrics

    def update(self, remaining: float) -> dict[str, float]:
        """Takes K epochs of gradient steps; returns the metrics' means over the minibatches.

        Nothing is read from the device before the end (with `target_kl`, one number an epoch).

        Args:
            remaining: What is left of the training, 1 at its start, 0 at its end.
        """
        config = self.config
        learning_rate = config.learning_rate * remaining if config.anneal_lr else config.learning_rate
        clip_coef = config.clip_coef * remaining if config.anneal_clip else config.clip_coef
        self.optimizer.param_groups[0]["lr"] = learning_rate
        records: list[Tensor] = []
        for _ in range(config.update_epochs):
            start = len(records)
            for batch in self.buffer.minibatches(config.num_minibatches, self.collector.generator):
                records.append(self.learn(batch, clip_coef))
            if config.target_kl is not None:
                kl = torch.stack(records[start:])[:, APPROX_KL].mean()
                if float(kl) > config.target_kl:
                    break

        valid = self.buffer.valid_rows()
        returns, values = (field.flatten()[valid] for field in (self.buffer.returns, self.buffer.values))
        explained = 1.0 - (returns - values).var() / returns.var()
        numbers = torch.cat([torch.stack(records).mean(0), explained.reshape(1)]).tolist()
        return dict(
            zip((*METRICS, "losses/explained_variance"), numbers, strict=True),
            **{"charts/learning_rate": learning_rate},
        )

    def state_dict(self) -> dict[str, Any]:
        """Returns everything needed to go on bit for bit, in plain containers and tensors."""
        learned = {"critic": self.critic.state_dict(), "optimizer": self.optimizer.state_dict()}
        return {**self.collector.state_dict(), **learned}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores `state_dict`'s result."""
        self.collector.load_state_dict(state)
        self.critic.load_state_dict(state["critic"])
        self.optimizer.load_state_dict(state["optimizer"])
        graphs.reset(self.learn)


def train(
    config: Config,
    callback: Callback | None = None,
    *,
    run_dir: str | Path | None = None,
    checkpoint: dict[str, Any] | None = None,
    progress_bar: bool = False,
) -> Result:
    """Trains PPO.

    Args:
        config: What and how.
        callback: Called once an iteration with a `fastac.run.Progress`; returning False stops cleanly.
        run_dir: Where config, log and checkpoints go; new or empty. None: nothing is written.
        checkpoint: What `fastac.checkpoint.load` returned for `run_dir`, to go on from there.
        progress_bar: Show one on stderr.

    Returns:
        The policy, and how the training ended.

    Raises:
        fastac.envs.EnvError: unknown environment, or spaces that PPO cannot take.
        fastac.run.RunError: an option that cannot be, or a run folder that cannot be written or is not empty.

    Example:
        >>> result = train(Config(env_id="CartPole-v1", total_timesteps=256, num_steps=64))
        >>> result.global_step, result.policy.act([[0.0, 0.0, 0.0, 0.0]]).shape
        (256, (1,))
    """
    with torch_threads(config.torch_threads):
        ppo = PPO(config)
        collector = ppo.collector
        try:
            if checkpoint is not None:
                ppo.load_state_dict(checkpoint)
            with Run(
                "ppo",
                config,
                collector.policy,
                run_dir=run_dir,
                checkpoint=checkpoint,
                callback=callback,
                progress_bar=progress_bar,
                why_not_restorable=None if run_dir is None else collector.envs.why_not_restorable,
            ) as run:
                while collector.global_step < config.total_timesteps and not run.stopped:
                    remaining = 1.0 - collector.global_step / config.total_timesteps
                    episodes = collector.collect()
                    ppo.estimate()
                    metrics = ppo.update(remaining)
                    run.record(collector.global_step, metrics, episodes, ppo.state_dict)
                return run.finish(collector.global_step, ppo.state_dict)
        finally:
            collector.close()
