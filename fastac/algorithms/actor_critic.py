"""Actor-critic: the policy gradient with advantages from a fitted V; online it is A2C (Mnih et al. 2016, algorithm S3).

One iteration:

1. `collect`: run the policy in N environments for T steps.
2. `fit`: V to targets y that bootstrap from V itself (Monte Carlo, TD(0), n-step or lambda), k gradient steps on

       1/2 mean (V(s_t) - y_t)^2        y renewed before each of them

3. `estimate`: advantages A_t of V, by generalised advantage estimation (Schulman et al. 2016, eq. 16).
4. `update`: one gradient step on

       L = -mean log pi(a_t | s_t) A_t - ent_coef mean S[pi(s_t)]        + vf_coef 1/2 mean (V(s_t) - y_t)^2 where k = 0

With long rollouts and k > 0 this is the batch algorithm: V is fitted to the new data before it judges them, by an
optimiser of its own. With k = 0 rollouts may be as short as a few steps: A and y come from the V that there is, and V
takes its one step together with the policy, in one optimiser and under one bound on the gradient's norm. That is A2C.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from fastac import graphs
from fastac.buffers.rollout import Transitions
from fastac.capturable import make_adam, make_rmsprop
from fastac.collector import Collector, Episodes
from fastac.envs import Vectorization
from fastac.fused import fused_a2c_loss
from fastac.losses import a2c_loss
from fastac.networks import Activation, Actor
from fastac.returns import discounted_returns, gae, lambda_returns, n_step_returns
from fastac.run import Callback, Result, Run, RunError, check_options, torch_threads


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of actor-critic. The defaults are Stable-Baselines3's A2C, in eight environments."""

    env_id: str = "CartPole-v1"
    """Gymnasium's id; `module:Id` imports the module first."""
    seed: int = 1
    """Of everything random: environments, weights, actions."""
    total_timesteps: int = 500_000
    """Environment steps, over all environments together; training ends with the rollout that reaches them."""
    learning_rate: float = 7e-4
    """Step size of the policy's optimiser, which is the value's, too, where critic_steps is 0."""
    optimizer: Literal["rmsprop", "adam"] = "rmsprop"
    """RMSprop with a decay of 0.99 (Tieleman and Hinton 2012) or Adam (Kingma and Ba 2015); eps is 1e-5."""
    num_envs: int = 8
    """N, environments side by side."""
    num_steps: int = 5
    """T, steps of each environment in a rollout."""
    anneal_lr: bool = False
    """Lower the learning rates linearly to 0 over total_timesteps."""
    gamma: float = 0.99
    """Discount per step."""
    gae_lambda: float = 1.0
    """Decay of the advantage's trace per step; 0 is the one-step TD error, 1 the return of the rollout minus V."""
    critic_target: Literal["monte-carlo", "td0", "n-step", "lambda"] = "monte-carlo"
    """What V is fitted to. At a rollout's end and at time limits every kind takes V for the future."""
    n_step: int = 5
    """n of the n-step target."""
    td_lambda: float = 0.95
    """lambda of the lambda target."""
    critic_steps: int = 0
    """k, gradient steps on V, each over the whole rollout, before the advantages are evaluated (the batch algorithm).
    0: V's one step is taken together with the policy's (A2C)."""
    critic_learning_rate: float = 1e-3
    """Step size of V's own optimiser, where critic_steps is not 0."""
    norm_adv: bool = False
    """Standardise the advantages of a rollout: for long ones; 40 samples are too few."""
    ent_coef: float = 0.0
    """Weight of the entropy bonus, per nat."""
    vf_coef: float = 1.0
    """Weight of the value loss, half a squared error, where critic_steps is 0."""
    max_grad_norm: float = 0.5
    """Bound on the Euclidean norm of each optimiser's gradient."""
    normalize_observations: bool = False
    """Standardise every dimension by its running mean and deviation, clipped to +-10."""
    normalize_rewards: bool = False
    """Divide by the deviation of the running discounted return, clipped to +-10 (Engstrom et al. 2020)."""
    hidden_sizes: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers, of the actor and of the critic."""
    activation: Activation = "tanh"
    """Between the layers."""
    log_interval: int = 50
    """Rollouts that make an iteration: one row of the log, the mean over their updates."""
    vectorization: Vectorization = "sync"
    """One process; one process each; the environment's own vector form, where it has one; or EnvPool's threads."""
    device: str = "cpu"
    """Where the networks live: cpu, cuda, cuda:1, ..."""
    cudagraphs: bool = True
    """On CUDA: capture the policy's step, and V's, in CUDA graphs. Collecting and estimating are outside."""
    compile: bool = False
    """Put these steps through torch.compile."""
    torch_threads: int = 1
    """Threads of torch on the CPU while training; networks this small are fastest on one."""

    def check(self) -> None:
        """Raises `RunError` naming the option that cannot be."""
        check_options(
            self,
            at_least_one=("total_timesteps", "num_envs", "num_steps", "n_step", "log_interval", "torch_threads"),
            fractions=("gamma", "gae_lambda", "td_lambda"),
            positive=("learning_rate", "critic_learning_rate", "max_grad_norm"),
        )
        for name in ("critic_steps", "ent_coef", "vf_coef"):
            if getattr(self, name) < 0:
                raise RunError(f"{name}: got {getattr(self, name)}, expected at least 0")


NORMALIZED: dict[str, Any] = {"normalize_observations": True, "normalize_rewards": True}

PRESETS: dict[str, Config | dict[str, Config]] = {
    "a2c": Config(),
    "batch": Config(
        total_timesteps=100_000,
        learning_rate=5e-3,
        optimizer="adam",
        num_steps=128,
        anneal_lr=True,
        gae_lambda=0.95,
        critic_target="lambda",
        critic_steps=20,
        critic_learning_rate=5e-3,
        log_interval=1,
    ),
    # The defaults of Stable-Baselines3. Its value loss is a whole squared error times 0.5, ours half of one times 1.
    "sb3": Config(num_envs=1),
    # RL Baselines3 Zoo, hyperparams/a2c.yml (April 2026), where it has no state-dependent exploration (use_sde).
    "sb3-zoo": {
        "CartPole-v1": Config(),
        "Acrobot-v1": Config(env_id="Acrobot-v1", num_envs=16, **NORMALIZED),
        "MountainCar-v0": Config(env_id="MountainCar-v0", total_timesteps=1_000_000, num_envs=16, **NORMALIZED),
        "LunarLander-v3": Config(
            env_id="LunarLander-v3",
            total_timesteps=200_000,
            learning_rate=8.3e-4,
            anneal_lr=True,
            gamma=0.995,
            ent_coef=1e-5,
        ),
        **{
            env_id: Config(env_id=env_id, total_timesteps=1_000_000, num_envs=1, **NORMALIZED)
            for env_id in ("HalfCheetah-v4", "Ant-v4", "Hopper-v4", "Walker2d-v4")
        },
    },
}


@torch.no_grad()
def targets(transitions: Transitions, config: Config) -> Tensor:
    """Returns y of every transition, `(T, N)`, from the values that V has now."""
    rewards, values, *rest = transitions
    if config.critic_target == "monte-carlo":
        return discounted_returns(rewards, *rest, gamma=config.gamma)
    if config.critic_target == "lambda":
        return lambda_returns(rewards, values, *rest, gamma=config.gamma, td_lambda=config.td_lambda)
    n = 1 if config.critic_target == "td0" else config.n_step
    return n_step_returns(rewards, values, *rest, n=n, gamma=config.gamma)


def value_loss(values: Tensor, y: Tensor) -> Tensor:
    """Returns 1/2 mean (V - y)^2.

    Example:
        >>> value_loss(torch.tensor([1.0]), torch.tensor([3.0]))
        tensor(2.)
    """
    return 0.5 * (values - y).square().mean()


METRICS = ("losses/policy_loss", "losses/value_loss", "losses/entropy", "losses/explained_variance")


class Batch(NamedTuple):
    """The valid rows of a rollout, in the order of time."""

    observations: Tensor  # (B, *observation), as the policy saw them
    actions: Tensor  # (B, *action), raw
    advantages: Tensor  # (B,)
    targets: Tensor  # (B,), y
    values: Tensor  # (B,), V(s_t) that the advantages and y were computed from


def loss(actor: Actor, critic: torch.nn.Module, batch: Batch, config: Config) -> tuple[Tensor, Tensor]:
    """Returns L (`fastac.losses.a2c_loss` has its terms) and the first three of `METRICS`, on the device."""
    options: dict[str, Any] = {
        "vf_coef": config.vf_coef, "ent_coef": config.ent_coef, "norm_adv": config.norm_adv
    }  # fmt: skip
    _, actions, advantages, y, values = batch
    if config.critic_steps:
        # V has been fitted: its values are numbers here, and the loss has no gradient in them.
        return a2c_loss(actor(batch.observations), actions, advantages, values, y, **options)
    return fused_a2c_loss(actor, critic, batch.observations, actions, advantages, y, **options)


class ActorCritic:
    """Everything that changes while training, and the four parts of an iteration."""

    def __init__(self, config: Config):
        config.check()
        self.config = config
        self.collector = Collector(config)
        self.buffer = self.collector.buffer
        self.actor: Actor = self.collector.actor
        self.critic = self.collector.make_critic()
        critic_parameters = list(self.critic.parameters())
        self.parameters = [*self.actor.parameters(), *([] if config.critic_steps else critic_parameters)]
        make: Any = {"rmsprop": make_rmsprop, "adam": make_adam}[config.optimizer]
        shared: dict[str, Any] = {"eps": 1e-5, "max_grad_norm": config.max_grad_norm}
        self.optimizer = make(self.parameters, lr=config.learning_rate, **shared)
        self.critic_optimizer = make(critic_parameters, lr=config.critic_learning_rate, **shared)
        where: dict[str, Any] = {"cudagraphs": config.cudagraphs, "compile": config.compile}
        device = self.collector.device
        self.learn = graphs.on_device(self.step, device, optimizers=(self.optimizer,), **where)
        self.learn_values = graphs.on_device(self.value_step, device, optimizers=(self.critic_optimizer,), **where)

    @property
    def global_step(self) -> int:
        """Environment steps so far."""
        return self.collector.global_step

    def collect(self) -> Episodes:
        """Runs the policy for T steps in N environments."""
        return self.collector.collect()

    def evaluate(self) -> Transitions:
        """Returns the rollout's rows with the values that V has now."""
        with torch.no_grad():
            return self.buffer.transitions(self.critic(self.collector.observations).squeeze(-1))

    def anneal(self, remaining: float) -> float:
        """Sets the step sizes for what is left of the training, 1 at its start, 0 at its end; returns the policy's."""
        config = self.config
        share = remaining if config.anneal_lr else 1.0
        self.optimizer.param_groups[0]["lr"] = config.learning_rate * share
        self.critic_optimizer.param_groups[0]["lr"] = config.critic_learning_rate * share
        return config.learning_rate * share

    def fit(self) -> None:
        """Takes k steps of V alone; none in A2C."""
        config, buffer = self.config, self.buffer
        for _ in range(config.critic_steps):
            y = targets(self.evaluate(), config)  # renewed: V has changed
            self.learn_values(*buffer.valid(buffer.flat()[0], y.flatten()))

    def value_step(self, observations: Tensor, y: Tensor) -> None:
        """Takes a step of V alone on y, `(B,)`."""
        self.critic_optimizer.zero_grad()
        value_loss(self.critic(observations).squeeze(-1), y).backward()  # type: ignore[no-untyped-call]
        self.critic_optimizer.step()

    def estimate(self) -> None:
        """Computes the advantages of V as it is, and y."""
        config, buffer = self.config, self.buffer
        transitions = self.evaluate()
        advantages = gae(*transitions, gamma=config.gamma, gae_lambda=config.gae_lambda).advantages
        fields = (advantages, targets(transitions, config), transitions.values)
        self.batch = Batch(*buffer.valid(*buffer.flat(), *(field.flatten() for field in fields)))

    def update(self) -> Tensor:
        """Takes the policy's step, in A2C with V's; returns `METRICS`, on the device."""
        metrics: Tensor = self.learn(self.batch)
        return metrics

    def step(self, batch: Batch) -> Tensor:
        """What `update` does with its batch. Nothing is drawn or read back here: a CUDA graph can hold it."""
        total, metrics = loss(self.actor, self.critic, batch, self.config)
        self.optimizer.zero_grad()
        total.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        explained = 1.0 - (batch.targets - batch.values).var() / batch.targets.var()
        return torch.cat([metrics, explained.reshape(1)])

    def state_dict(self) -> dict[str, Any]:
        """Returns everything needed to go on bit for bit, in plain containers and tensors."""
        return {
            **self.collector.state_dict(),
            "critic": self.critic.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "critic_optimizer": self.critic_optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores `state_dict`'s result. Environments whose state it does not hold go on with new episodes."""
        self.collector.load_state_dict(state)
        self.critic.load_state_dict(state["critic"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.critic_optimizer.load_state_dict(state["critic_optimizer"])
        graphs.reset(self.learn)
        graphs.reset(self.learn_values)


def train(
    config: Config,
    callback: Callback | None = None,
    *,
    run_dir: str | Path | None = None,
    checkpoint: dict[str, Any] | None = None,
    progress_bar: bool = False,
) -> Result:
    """Trains actor-critic.

    Args:
        config: What and how.
        callback: Called once an iteration with a `fastac.run.Progress`; returning False stops cleanly.
        run_dir: Where config, log and checkpoints go; new or empty. None: nothing is written.
        checkpoint: What `fastac.checkpoint.load` returned for `run_dir`, to go on from there.
        progress_bar: Show one on stderr.

    Returns:
        The policy, and how the training ended.

    Raises:
        fastac.envs.EnvError: unknown environment, or spaces that actor-critic cannot take.
        fastac.run.RunError: an option that cannot be, or a run folder that cannot be written or is not empty.

    Example:
        >>> result = train(Config(env_id="CartPole-v1", total_timesteps=400))
        >>> result.global_step, result.policy.act([0.0, 0.0, 0.0, 0.0]).shape
        (400, ())
    """
    with torch_threads(config.torch_threads):
        agent = ActorCritic(config)
        try:
            if checkpoint is not None:
                agent.load_state_dict(checkpoint)
            with Run(
                "actor_critic",
                config,
                agent.collector.policy,
                run_dir=run_dir,
                checkpoint=checkpoint,
                callback=callback,
                progress_bar=progress_bar,
                why_not_restorable=None if run_dir is None else agent.collector.envs.why_not_restorable,
            ) as run:
                while agent.global_step < config.total_timesteps and not run.stopped:
                    episodes, records = Episodes([], []), list[Tensor]()
                    while len(records) < config.log_interval and agent.global_step < config.total_timesteps:
                        learning_rate = agent.anneal(1.0 - agent.global_step / config.total_timesteps)
                        ended = agent.collect()
                        agent.fit()
                        agent.estimate()
                        records.append(agent.update())
                        episodes.returns.extend(ended.returns)
                        episodes.lengths.extend(ended.lengths)
                    metrics = dict(zip(METRICS, torch.stack(records).mean(0).tolist(), strict=True))
                    metrics["charts/learning_rate"] = learning_rate
                    run.record(agent.global_step, metrics, episodes, agent.state_dict)
                return run.finish(agent.global_step, agent.state_dict)
        finally:
            agent.collector.close()
