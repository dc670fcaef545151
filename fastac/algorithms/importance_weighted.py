"""Several gradient steps on one batch, with importance weights, and what keeps the policy near the one that sampled.

One iteration:

1. `collect`: run the old policy in N environments for T steps.
2. `estimate`: V of every observation, generalised advantages (Schulman et al. 2016).
3. `update`: K steps of Adam, each on the whole batch, on

     L(theta) = -E[ w_t A_t ] + vf_coef L_VF - ent_coef S[pi_theta](s),  rho_t = pi_theta(a_t | s_t) / pi_old(a_t | s_t)

   per_decision:  w_t = rho_b ... rho_t, from the first row b of the episode (or of the window) on. E[ sum_t gamma^t w_t
                  A_t ] is exactly what theta gains over the old policy (Kakade and Langford 2002, lemma 6.1; weights of
                  Precup, Sutton and Singh 2000), its gradient theta's policy gradient. Its variance grows with t.
   per_step:      w_t = rho_t, the first-order form. The actions are theta's, but the states are the old policy's still:
                  right at the old parameters, less and less so beside them.

   Either is worth something near the old policy only: without a bound they go wrong. `constraint` says what holds them
   back, by KL(new || old) = E_s[ sum_a pi_theta log(pi_theta / pi_old) ], in closed form:

   none:     nothing.
   penalty:  beta KL(new || old) is added to L; after a batch beta is halved where KL < delta / 1.5, and doubled where
             KL > 1.5 delta (Schulman et al. 2017, section 4).
   stop:     the first step that ends beyond KL(new || old) = delta is halved until it does not (and undone after ten
             halvings), and the actor is left alone until the next batch; the critic takes its K steps.

The direction is that of the performance bounds, the new policy first. Schulman et al. 2017 write KL(old || new); so do
`trpo` and PPO's diagnostics. The clipped ratio, the other remedy, is `ppo`.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from fastac import graphs
from fastac.capturable import make_adam
from fastac.collector import Collector
from fastac.distributions import kl_divergence
from fastac.envs import Vectorization
from fastac.networks import Activation
from fastac.normalize import normalize_advantages
from fastac.ratio import approx_kl, importance_ratio
from fastac.returns import gae
from fastac.run import Callback, Result, Run, RunError, check_options, torch_threads


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of importance-weighted policy gradients."""

    env_id: str = "CartPole-v1"
    """Gymnasium's id; `module:Id` imports the module first."""
    seed: int = 1
    """Of everything random: environments, weights, actions."""
    total_timesteps: int = 100_000
    """Environment steps, over all environments together; training ends with the rollout that reaches them."""
    learning_rate: float = 3e-3
    """Adam's step size (Kingma and Ba 2015)."""
    num_envs: int = 8
    """N, environments side by side."""
    num_steps: int = 128
    """T, steps of each environment in a rollout; N * T rows are the batch."""
    anneal_lr: bool = False
    """Lower the learning rate linearly to 0 over total_timesteps."""
    gamma: float = 0.99
    """Discount per step."""
    gae_lambda: float = 0.95
    """Decay of the advantage's trace per step (Schulman et al. 2016, eq. 16)."""
    norm_adv: bool = True
    """Standardise the advantages of a batch."""
    importance_weights: Literal["per_step", "per_decision"] = "per_step"
    """rho_t, or the product of the ratios up to t."""
    update_epochs: int = 20
    """K, gradient steps on a batch."""
    constraint: Literal["none", "penalty", "stop"] = "penalty"
    """What bounds KL(new || old) of a batch: nothing, a penalty with adaptive weight, or stopping there."""
    target_kl: float = 0.02
    """delta, in nats: what KL(new || old) is led to (penalty) or may not exceed (stop)."""
    kl_coef: float = 1.0
    """beta of the first batch, per nat (penalty)."""
    ent_coef: float = 0.0
    """Weight of the entropy bonus, per nat."""
    vf_coef: float = 0.5
    """Weight of the value loss, half a squared error."""
    max_grad_norm: float = 0.5
    """Bound on the Euclidean norm of the whole gradient."""
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
    """On CUDA: capture a gradient step in a CUDA graph. With `stop`, what is read between the steps is outside."""
    compile: bool = False
    """Put a gradient step through torch.compile."""
    torch_threads: int = 1
    """Threads of torch on the CPU while training; networks this small are fastest on one."""

    def check(self) -> None:
        """Raises `RunError` naming the option that cannot be."""
        check_options(
            self,
            at_least_one=("total_timesteps", "num_envs", "num_steps", "update_epochs", "torch_threads"),
            fractions=("gamma", "gae_lambda"),
            positive=("learning_rate", "max_grad_norm", "target_kl", "kl_coef"),
        )
        choices = {"importance_weights": ("per_step", "per_decision"), "constraint": ("none", "penalty", "stop")}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise RunError(f"{name}: got {getattr(self, name)!r}, expected one of {', '.join(known)}")


PRESETS = {
    "penalty": Config(),
    "stop": Config(constraint="stop"),
    "unconstrained": Config(constraint="none"),
}


def policy_loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    mask: Tensor,
    *,
    importance_weights: Literal["per_step", "per_decision"],
) -> tuple[Tensor, Tensor]:
    """Returns -mean w A over the valid rows, and the weights w `(T, N)`, 0 where masked.

    At the old parameters w is 1; the gradient of the first-order form is then the policy gradient's. Gradients reach
    `log_probs` alone, through every factor of a product.

    Args:
        log_probs: `(T, N)`, as are all: log pi_theta(a_t | s_t).
        old_log_probs: log pi_old(a_t | s_t).
        advantages: A_t of the old policy.
        terminated: Transition t ended the episode: the product begins anew at t + 1.
        truncated: A time limit cut it: likewise.
        mask: False where the row is not in time.
        importance_weights: rho_t, or rho_b ... rho_t.

    Example:
        >>> new, old = torch.tensor([0.5, 0.5, 0.5]).log(), torch.tensor([0.25, 0.5, 0.25]).log()
        >>> no, yes = torch.zeros(3, dtype=torch.bool), torch.ones(3, dtype=torch.bool)
        >>> for kind in ("per_step", "per_decision"):
        ...     loss, weights = policy_loss(new, old, torch.ones(3), no, no, yes, importance_weights=kind)
        ...     print(weights)
        tensor([2., 1., 2.])
        tensor([2., 2., 4.])
    """
    cumulative = importance_weights == "per_decision"
    weights = importance_ratio(log_probs, old_log_probs, terminated, truncated, mask, cumulative=cumulative)
    return -masked_mean(weights * advantages, mask), weights


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Returns the mean of the elements that the mask leaves, without waiting for the device.

    Example:
        >>> masked_mean(torch.tensor([1.0, torch.nan, 3.0]), torch.tensor([True, False, True]))
        tensor(2.)
    """
    return torch.where(mask, x, 0.0).sum() / mask.sum()


def adapted(kl_coef: float, kl: float, target_kl: float) -> float:
    """Returns the next batch's beta (Schulman et al. 2017, section 4).

    Example:
        >>> [adapted(1.0, kl, target_kl=0.015) for kl in (0.009, 0.015, 0.024)]
        [0.5, 1.0, 2.0]
    """
    if kl < target_kl / 1.5:
        return kl_coef / 2.0
    return kl_coef * 2.0 if kl > target_kl * 1.5 else kl_coef


METRICS = (
    # Means over the steps, each before it was taken:
    "losses/policy_loss",
    "losses/entropy",
    "losses/old_approx_kl",  # k1 = -log rho, and
    "losses/approx_kl",  # k3 = rho - 1 - log rho: both estimate KL(old || new) (Schulman 2020)
    "losses/value_loss",
    "losses/explained_variance",
    # After the last step:
    "losses/kl",  # KL(new || old)
    "losses/effective_samples",  # as a share of the batch
)


class Batch(NamedTuple):
    """A rollout, fillers included; nothing of it changes while it is learnt from."""

    observations: Tensor  # (T * N, *observation), as the policy saw them
    actions: Tensor  # (T * N, *action), raw
    old: tuple[Tensor, ...]  # what pi_old's distributions are made from, (T * N, ...)
    old_log_probs: Tensor  # (T, N), as are all that follow
    advantages: Tensor
    returns: Tensor
    terminated: Tensor
    truncated: Tensor
    mask: Tensor


class ImportanceWeighted:
    """Everything that changes while training, and what an iteration does after `collector.collect()`."""

    def __init__(self, config: Config):
        config.check()
        self.config = config
        self.collector = Collector(config)
        self.buffer = self.collector.buffer
        self.actor, self.critic = self.collector.actor, self.collector.make_critic()
        self.actor_parameters = list(self.actor.parameters())
        self.parameters = [*self.actor_parameters, *self.critic.parameters()]
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
        self.kl_coef = config.kl_coef

    def estimate(self) -> None:
        """Computes old distributions, values, advantages and returns `(T, N)` of the whole rollout in one batch."""
        config = self.config
        with torch.no_grad():
            values = self.critic(self.collector.observations).squeeze(-1)
            observations, actions = self.buffer.flat()
            old = self.actor(observations)
            rows = self.buffer.transitions(values)
            old_log_probs = old.log_prob(actions).view_as(rows.values)
        advantages, returns = gae(*rows, gamma=config.gamma, gae_lambda=config.gae_lambda)
        if config.norm_adv:
            advantages = normalize_advantages(advantages, rows.mask)
        # Copies: the actor's own log_std may be among the parameters.
        parameters = tuple(parameter.detach().clone() for parameter in old.parameters)
        self.values = rows.values
        self.batch = Batch(observations, actions, parameters, old_log_probs, advantages, returns, *rows[3:])

    def step(self, batch: Batch, kl_coef: float, moving: bool) -> tuple[Tensor, Tensor | None]:
        """Takes a gradient step. Nothing is drawn or read back here: a CUDA graph can hold it.

        Args:
            batch: The whole rollout.
            kl_coef: beta.
            moving: Whether the actor takes part.

        Returns:
            The value loss and, where the actor takes part, the first four of `METRICS`, on the device.
        """
        squared_error = (self.critic(batch.observations).view_as(batch.returns) - batch.returns).square()
        v_loss = 0.5 * masked_mean(squared_error, batch.mask)
        total, record = self.config.vf_coef * v_loss, None
        if moving:
            policy_total, record = self.policy_terms(batch, kl_coef)
            total = total + policy_total
        # Adam leaves alone what has no gradient: a stopped actor does not drift on with its momentum.
        self.optimizer.zero_grad()
        total.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return v_loss.detach(), record

    def policy_terms(self, batch: Batch, kl_coef: float) -> tuple[Tensor, Tensor]:
        """Returns the actor's part of the loss, and the first four of `METRICS`."""
        config, mask = self.config, batch.mask
        distribution = self.actor(batch.observations)
        log_probs = distribution.log_prob(batch.actions).view_as(batch.old_log_probs)
        pg_loss, _ = policy_loss(
            log_probs,
            batch.old_log_probs,
            batch.advantages,
            batch.terminated,
            batch.truncated,
            mask,
            importance_weights=config.importance_weights,
        )
        entropy = masked_mean(distribution.entropy().view_as(log_probs), mask)
        total = pg_loss - config.ent_coef * entropy
        if config.constraint == "penalty":
            kl = kl_divergence(distribution, type(distribution)(*batch.old)).view_as(log_probs)
            total = total + kl_coef * masked_mean(kl, mask)
        estimates = approx_kl(log_probs.detach(), batch.old_log_probs, mask)
        return total, torch.stack([pg_loss.detach(), entropy.detach(), estimates.k1, estimates.k3])

    @torch.no_grad()
    def distance(self) -> tuple[Tensor, Tensor]:
        """Returns the mean KL(new || old) of the batch, and the share of its rows that the weights leave effective.

        The latter is (sum w)^2 / (n sum w^2) (Kong 1992): 1 for equal weights, 1 / n where one outweighs all others.
        """
        batch, mask = self.batch, self.batch.mask
        distribution = self.actor(batch.observations)
        kl = masked_mean(kl_divergence(distribution, type(distribution)(*batch.old)).view_as(batch.returns), mask)
        weights = importance_ratio(
            distribution.log_prob(batch.actions).view_as(batch.returns),
            batch.old_log_probs,
            batch.terminated,
            batch.truncated,
            mask,
            cumulative=self.config.importance_weights == "per_decision",
        )
        return kl, masked_mean(weights, mask).square() / masked_mean(weights.square(), mask)

    def near(self) -> bool:
        """Whether KL(new || old) is within delta; NaN is not."""
        return bool(self.distance()[0].item() <= self.config.target_kl)

    @torch.no_grad()
    def shorten(self, before: list[Tensor]) -> float:
        """Halves the actor's last step until KL(new || old) is within delta; returns what is left of the step.

        After ten halvings it is undone, bit for bit. Adam's moments keep its gradient, which was right: its length was
        wrong.
        """
        steps = [parameter - start for parameter, start in zip(self.actor_parameters, before, strict=True)]
        for halvings in range(1, 11):
            fraction = 0.5**halvings
            for parameter, start, step in zip(self.actor_parameters, before, steps, strict=True):
                parameter.copy_(start + fraction * step)
            if self.near():
                return fraction
        for parameter, start in zip(self.actor_parameters, before, strict=True):
            parameter.copy_(start)
        return 0.0

    def update(self, remaining: float) -> dict[str, float]:
        """Takes K gradient steps; returns the metrics.

        Nothing is read from the device before the end (with `constraint="stop"`, one number for each length that a step
        of the actor is tried with).

        Args:
            remaining: What is left of the training, 1 at its start, 0 at its end.
        """
        config = self.config
        learning_rate = config.learning_rate * remaining if config.anneal_lr else config.learning_rate
        self.optimizer.param_groups[0]["lr"] = learning_rate
        policy_records: list[Tensor] = []
        value_losses: list[Tensor] = []
        stopping = config.constraint == "stop"
        policy_steps, moving = 0.0, True
        for _ in range(config.update_epochs):
            before = [parameter.detach().clone() for parameter in self.actor_parameters] if moving and stopping else []
            v_loss, record = self.learn(self.batch, self.kl_coef, moving)
            value_losses.append(v_loss)
            if moving:
                policy_records.append(record)
            policy_steps += moving
            if moving and stopping and not self.near():
                moving = False
                policy_steps += self.shorten(before) - 1.0

        returns, values = self.buffer.valid(self.batch.returns.flatten(), self.values.flatten())
        explained = 1.0 - (returns - values).var() / returns.var()
        last = torch.stack([torch.stack(value_losses).mean(), explained, *self.distance()])
        numbers = torch.cat([torch.stack(policy_records).mean(0), last]).tolist()
        metrics = dict(zip(METRICS, numbers, strict=True))
        metrics |= {"losses/policy_steps": policy_steps, "losses/kl_coef": self.kl_coef}
        if config.constraint == "penalty":
            self.kl_coef = adapted(self.kl_coef, metrics["losses/kl"], config.target_kl)
        return {**metrics, "charts/learning_rate": learning_rate}

    def state_dict(self) -> dict[str, Any]:
        """Returns everything needed to go on bit for bit, in plain containers and tensors."""
        learned = {"critic": self.critic.state_dict(), "optimizer": self.optimizer.state_dict()}
        return {**self.collector.state_dict(), **learned, "kl_coef": self.kl_coef}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores `state_dict`'s result."""
        self.collector.load_state_dict(state)
        self.critic.load_state_dict(state["critic"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.kl_coef = state["kl_coef"]
        graphs.reset(self.learn)


def train(
    config: Config,
    callback: Callback | None = None,
    *,
    run_dir: str | Path | None = None,
    checkpoint: dict[str, Any] | None = None,
    progress_bar: bool = False,
) -> Result:
    """Trains with importance-weighted policy gradients.

    Args:
        config: What and how.
        callback: Called once an iteration with a `fastac.run.Progress`; returning False stops cleanly.
        run_dir: Where config, log and checkpoints go; new or empty. None: nothing is written.
        checkpoint: What `fastac.checkpoint.load` returned for `run_dir`, to go on from there.
        progress_bar: Show one on stderr.

    Returns:
        The policy, and how the training ended.

    Raises:
        fastac.envs.EnvError: unknown environment, or spaces that this algorithm cannot take.
        fastac.run.RunError: an option that cannot be, or a run folder that cannot be written or is not empty.

    Example:
        >>> import numpy as np
        >>> result = train(Config(env_id="CartPole-v1", total_timesteps=256, num_envs=4, num_steps=64))
        >>> result.global_step, result.policy.act(np.zeros(4)).shape
        (256, ())
    """
    with torch_threads(config.torch_threads):
        algorithm = ImportanceWeighted(config)
        collector = algorithm.collector
        try:
            if checkpoint is not None:
                algorithm.load_state_dict(checkpoint)
            with Run(
                "importance_weighted",
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
                    algorithm.estimate()
                    metrics = algorithm.update(remaining)
                    run.record(collector.global_step, metrics, episodes, algorithm.state_dict)
                return run.finish(collector.global_step, algorithm.state_dict)
        finally:
            collector.close()
