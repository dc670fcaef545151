"""Trust region policy optimisation (Schulman, Levine, Moritz, Jordan and Abbeel 2015, arXiv:1502.05477).

One iteration (their sections 5 and 6, appendix C):

1. `collect`: run the old policy in N environments for T steps.
2. `estimate`: V of every observation, generalised advantages (Schulman et al. 2016).
3. `update_actor`: one step of

       maximise L(theta) = E[ pi_theta(a | s) / pi_old(a | s) A ]   subject to   E[ KL(pi_old || pi_theta) ] <= delta

   (eq. 14). To first order in L and second order in KL the answer lies along the natural gradient F^-1 g, where g is
   L's gradient and F the Hessian of the mean KL at the old parameters, Fisher's information. Conjugate gradient finds
   it from products F v alone. The length sqrt(2 delta / x'Fx) reaches the boundary, and a line search takes back what
   the two approximations promised too much. Where nothing is left, the old parameters stay, bit for bit.
4. `update_critic`: K epochs of shuffled minibatches, Adam on V's squared error.

The divergence is the paper's, KL(old || new). The other direction, KL(new || old), has the same Hessian at the old
parameters: to the order to which the step is computed it is the same constraint.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

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
from fastac.run import Callback, Result, Run, RunError, check_options, torch_threads


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of TRPO. The defaults are sb3-contrib's."""

    env_id: str = "CartPole-v1"
    """Gymnasium's id; `module:Id` imports the module first."""
    seed: int = 1
    """Of everything random: environments, weights, actions, minibatches."""
    total_timesteps: int = 100_000
    """Environment steps, over all environments together; training ends with the rollout that reaches them."""
    num_envs: int = 1
    """N, environments side by side."""
    num_steps: int = 2048
    """T, steps of each environment in a rollout."""
    gamma: float = 0.99
    """Discount per step."""
    gae_lambda: float = 0.95
    """Decay of the advantage's trace per step (Schulman et al. 2016, eq. 16)."""
    norm_adv: bool = True
    """Standardise the advantages of a rollout."""
    target_kl: float = 0.01
    """delta, in nats: the bound on the mean KL(old || new) of an iteration (eq. 14)."""
    cg_iterations: int = 15
    """Of conjugate gradient."""
    cg_damping: float = 0.1
    """Added to F's diagonal, which makes it regular."""
    line_search_coef: float = 0.8
    """The step shrinks by it, ..."""
    line_search_steps: int = 10
    """... so many lengths being tried, the whole step first."""
    learning_rate: float = 1e-3
    """Of the critic: Adam's step size (Kingma and Ba 2015). The actor has none."""
    update_epochs: int = 10
    """K, passes of the critic over a rollout."""
    num_minibatches: int = 16
    """Minibatches of such a pass; their size is num_envs * num_steps / num_minibatches."""
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
    """On CUDA: capture the natural gradient with its conjugate gradients, and the critic's step, in CUDA graphs. The
    line search is outside: it reads each trial's two numbers."""
    compile: bool = False
    """Put the critic's step through torch.compile. The actor's needs second derivatives, which that has not."""
    torch_threads: int = 1
    """Threads of torch on the CPU while training; networks this small are fastest on one."""

    def check(self) -> None:
        """Raises `RunError` naming the option that cannot be."""
        counts = ("total_timesteps", "num_envs", "num_steps", "cg_iterations", "line_search_steps", "update_epochs")
        check_options(
            self,
            at_least_one=(*counts, "num_minibatches", "torch_threads"),
            fractions=("gamma", "gae_lambda"),
            positive=("learning_rate", "target_kl"),
        )
        if not self.cg_damping >= 0.0:
            raise RunError(f"cg_damping: got {self.cg_damping}, expected at least 0")
        if not 0.0 < self.line_search_coef < 1.0:
            raise RunError(f"line_search_coef: got {self.line_search_coef}, expected between 0 and 1")
        if self.num_minibatches > self.num_envs * self.num_steps:
            rows = self.num_envs * self.num_steps
            raise RunError(f"num_minibatches: got {self.num_minibatches}, expected at most {rows}, a rollout")


NORMALIZED: dict[str, Any] = {"normalize_observations": True, "normalize_rewards": True}

PRESETS: dict[str, Config | dict[str, Config]] = {
    "sb3": Config(),
    # RL Baselines3 Zoo, hyperparams/trpo.yml (April 2026).
    "sb3-zoo": {
        "CartPole-v1": Config(
            num_envs=2,
            num_steps=512,
            gae_lambda=0.98,
            cg_damping=1e-3,
            update_epochs=20,
            num_minibatches=2,
        ),
        "Acrobot-v1": Config(env_id="Acrobot-v1", num_envs=2, num_steps=1024, **NORMALIZED),
        "MountainCar-v0": Config(env_id="MountainCar-v0", num_envs=2, num_steps=1024, update_epochs=20, **NORMALIZED),
        # The zoo explores by generalised state-dependent noise there (use_sde), drawn anew every 4 steps; here by
        # independent Gaussian noise in every step.
        "Pendulum-v1": Config(env_id="Pendulum-v1", num_envs=2, num_steps=1024, gamma=0.9, update_epochs=15),
        "LunarLander-v3": Config(
            env_id="LunarLander-v3",
            total_timesteps=200_000,
            num_envs=2,
            num_steps=512,
            gae_lambda=0.98,
            cg_damping=0.01,
            update_epochs=15,
            num_minibatches=8,
        ),
        "LunarLanderContinuous-v3": Config(
            env_id="LunarLanderContinuous-v3", num_envs=2, num_steps=1024, update_epochs=20, **NORMALIZED
        ),
    },
}


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """Returns one vector of all elements."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


@torch.no_grad()
def set_parameters(parameters: Sequence[Tensor], values: Tensor) -> None:
    """Writes a vector as `flat` makes it into the parameters' own memory, which acting reads as well."""
    parts = torch.split(values, [parameter.numel() for parameter in parameters])
    for parameter, value in zip(parameters, parts, strict=True):
        parameter.copy_(value.view_as(parameter))


def fisher_vector_product(
    mean_kl: Tensor, parameters: Sequence[Tensor], *, damping: float
) -> Callable[[Tensor], Tensor]:
    """Returns v -> (F + damping I) v, F the Hessian of a mean KL at the parameters that it was computed at.

    F v is the gradient of (gradient of KL)'v (Pearlmutter 1994): two backward passes, and F is never formed.

    Args:
        mean_kl: No dimension; with its graph. At the old parameters it is 0, its gradient is 0, and its Hessian is
            Fisher's information matrix in either direction of KL.
        parameters: n elements in all.
        damping: Added to F's diagonal.

    Example:
        >>> x = torch.tensor([3.0, 4.0], requires_grad=True)
        >>> fisher_vector_product((x[0] * x[1] ** 2).sum(), [x], damping=0.5)(torch.tensor([1.0, 0.0]))
        tensor([0.5000, 8.0000])
    """
    gradient = flat(torch.autograd.grad(mean_kl, parameters, create_graph=True))

    def product(vector: Tensor) -> Tensor:
        return flat(torch.autograd.grad(gradient @ vector, parameters, retain_graph=True)) + damping * vector

    return product


def conjugate_gradient(product: Callable[[Tensor], Tensor], b: Tensor, *, iterations: int) -> Tensor:
    """Returns x with A x ~ b for a positive definite A of which only v -> A v is known.

    Hestenes and Stiefel 1952. After n iterations x is the best of all in the span of b, A b, ... A^(n-1) b. Nothing is
    read from the device: where the residual has vanished, x stays.

    Example:
        >>> matrix = torch.tensor([[2.0, 1.0], [1.0, 3.0]])
        >>> conjugate_gradient(lambda v: matrix @ v, torch.tensor([3.0, 4.0]), iterations=2)
        tensor([1.0000, 1.0000])
    """
    x = torch.zeros_like(b)
    residual, direction = b.clone(), b.clone()
    rr = residual @ residual
    negligible = rr * torch.finfo(b.dtype).eps ** 2
    for _ in range(iterations):
        a_direction = product(direction)
        going_on = rr > negligible
        alpha = torch.where(going_on, rr / (direction @ a_direction), 0.0)
        x = x + alpha * direction
        residual = residual - alpha * a_direction
        rr_before, rr = rr, residual @ residual
        direction = residual + torch.where(going_on, rr / rr_before, 0.0) * direction
    return x


def surrogate(log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor) -> Tensor:
    """Returns L = mean rho A, rho = pi_theta(a | s) / pi_old(a | s) (eq. 14): at the old parameters mean A.

    Its gradient there is the policy gradient's.

    Example:
        >>> new, old = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.5]).log()
        >>> surrogate(new, old, torch.tensor([1.0, -1.0]))
        tensor(0.5000)
    """
    return (importance_ratio(log_probs, old_log_probs) * advantages).mean()


METRICS = (
    "losses/policy_loss",  # -L after the update
    "losses/entropy",  # of the old policy
    "losses/old_approx_kl",  # k1 = -log rho, and
    "losses/approx_kl",  # k3 = rho - 1 - log rho: both estimate KL(old || new) (Schulman 2020), after the update
    "losses/kl",  # KL(old || new) itself, after the update
    "losses/improvement",  # of L; 0 where nothing was accepted
    "losses/step_fraction",  # what the line search left of the step; 0 where nothing was accepted
)


class TRPO:
    """Everything that changes while training, and what an iteration does after `collector.collect()`."""

    def __init__(self, config: Config):
        config.check()
        self.config = config
        self.collector = Collector(config)
        self.buffer = self.collector.buffer
        self.actor, self.critic = self.collector.actor, self.collector.make_critic()
        self.parameters = list(self.actor.parameters())
        self.optimizer = make_adam(self.critic.parameters(), lr=config.learning_rate, eps=1e-5)
        device, cudagraphs = self.collector.device, config.cudagraphs
        self.find_step = graphs.on_device(self.natural_step, device, cudagraphs=cudagraphs, compile=False)
        self.learn_values = graphs.on_device(
            self.value_step, device, cudagraphs=cudagraphs, compile=config.compile, optimizers=(self.optimizer,)
        )

    def estimate(self) -> None:
        """Computes old log-probabilities, values, advantages and returns of the whole rollout in one batch."""
        with torch.no_grad():
            values = self.critic(self.collector.observations).squeeze(-1)
            observations, actions = self.buffer.flat()
            log_probs = self.actor(observations).log_prob(actions)
        self.buffer.compute_advantages(log_probs, values, gamma=self.config.gamma, gae_lambda=self.config.gae_lambda)

    def natural_step(
        self, observations: Tensor, actions: Tensor, old_log_probs: Tensor, advantages: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns L at the old parameters, and the step along the natural gradient that reaches the boundary.

        Nothing is read back here: a CUDA graph can hold it.
        """
        config, parameters = self.config, self.parameters
        distribution = self.actor(observations)
        before = surrogate(distribution.log_prob(actions), old_log_probs, advantages)
        gradient = flat(torch.autograd.grad(before, parameters, retain_graph=True))
        mean_kl = kl_divergence(distribution.frozen(), distribution).mean()
        fisher = fisher_vector_product(mean_kl, parameters, damping=config.cg_damping)
        direction = conjugate_gradient(fisher, gradient, iterations=config.cg_iterations)
        # Without a gradient there is no direction, and 0 / 0 is accepted nowhere.
        return before.detach(), torch.sqrt(2.0 * config.target_kl / (direction @ fisher(direction))) * direction

    def update_actor(self) -> dict[str, float]:
        """Takes the longest step along the natural gradient that is accepted, or none; returns `METRICS`.

        A step is accepted if the mean KL(old || new) is below delta *and* L grew. Each trial reads two numbers from the
        device.
        """
        config, buffer, parameters = self.config, self.buffer, self.parameters
        estimates = (buffer.log_probs.flatten(), buffer.advantages.flatten())
        observations, actions, old_log_probs, advantages = buffer.valid(*buffer.flat(), *estimates)
        if config.norm_adv:
            advantages = normalize_advantages(advantages)
        with torch.no_grad():
            old = self.actor(observations).frozen()
        before, step = self.find_step(observations, actions, old_log_probs, advantages)

        old_parameters = flat(parameters).detach()
        with torch.no_grad():
            fraction = 1.0
            for _ in range(config.line_search_steps):
                set_parameters(parameters, old_parameters + fraction * step)
                distribution = self.actor(observations)
                log_probs = distribution.log_prob(actions)
                after = surrogate(log_probs, old_log_probs, advantages)
                kl = kl_divergence(old, distribution).mean()
                if accepted(after - before, kl, config.target_kl):
                    break
                fraction *= config.line_search_coef
            else:
                set_parameters(parameters, old_parameters)
                log_probs, after, fraction, kl = old_log_probs, before, 0.0, torch.zeros_like(kl)
            k1, _, k3 = approx_kl(log_probs, old_log_probs)
            record = torch.stack([-after, old.entropy().mean(), k1, k3, kl, after - before])
        return dict(zip(METRICS, [*record.tolist(), fraction], strict=True))

    def update_critic(self) -> dict[str, float]:
        """Takes K epochs of gradient steps on 1/2 mean (V - R)^2; returns the metrics, nothing being read before."""
        config, buffer = self.config, self.buffer
        rows = (buffer.flat()[0], buffer.returns.flatten())
        losses: list[Tensor] = []
        for _ in range(config.update_epochs):
            for observations, returns in buffer.shuffled(rows, config.num_minibatches, self.collector.generator):
                losses.append(self.learn_values(observations, returns))
        returns, values = buffer.valid(buffer.returns.flatten(), buffer.values.flatten())
        explained = 1.0 - (returns - values).var() / returns.var()
        numbers = torch.stack([torch.stack(losses).mean(), explained]).tolist()
        return dict(zip(("losses/value_loss", "losses/explained_variance"), numbers, strict=True))

    def value_step(self, observations: Tensor, returns: Tensor) -> Tensor:
        """Takes a gradient step of the critic on a minibatch; returns its loss, on the device."""
        loss: Tensor = 0.5 * (self.critic(observations).squeeze(-1) - returns).square().mean()
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return loss.detach()

    def state_dict(self) -> dict[str, Any]:
        """Returns everything needed to go on bit for bit, in plain containers and tensors."""
        learned = {"critic": self.critic.state_dict(), "optimizer": self.optimizer.state_dict()}
        return {**self.collector.state_dict(), **learned}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores `state_dict`'s result."""
        self.collector.load_state_dict(state)
        self.critic.load_state_dict(state["critic"])
        self.optimizer.load_state_dict(state["optimizer"])
        graphs.reset(self.find_step)
        graphs.reset(self.learn_values)


def accepted(improvement: Tensor, kl: Tensor, target_kl: float) -> bool:
    """Whether L grew and KL is below delta. NaN is neither."""
    gained, moved = torch.stack([improvement, kl]).tolist()
    return bool(gained > 0.0 and moved < target_kl)


def train(
    config: Config,
    callback: Callback | None = None,
    *,
    run_dir: str | Path | None = None,
    checkpoint: dict[str, Any] | None = None,
    progress_bar: bool = False,
) -> Result:
    """Trains TRPO.

    Args:
        config: What and how.
        callback: Called once an iteration with a `fastac.run.Progress`; returning False stops cleanly.
        run_dir: Where config, log and checkpoints go; new or empty. None: nothing is written.
        checkpoint: What `fastac.checkpoint.load` returned for `run_dir`, to go on from there.
        progress_bar: Show one on stderr.

    Returns:
        The policy, and how the training ended.

    Raises:
        fastac.envs.EnvError: unknown environment, or spaces that TRPO cannot take.
        fastac.run.RunError: an option that cannot be, or a run folder that cannot be written or is not empty.

    Example:
        >>> import numpy as np
        >>> result = train(Config(env_id="CartPole-v1", total_timesteps=256, num_steps=256))
        >>> result.global_step, result.policy.act(np.zeros(4)).shape
        (256, ())
    """
    with torch_threads(config.torch_threads):
        trpo = TRPO(config)
        collector = trpo.collector
        try:
            if checkpoint is not None:
                trpo.load_state_dict(checkpoint)
            with Run(
                "trpo",
                config,
                collector.policy,
                run_dir=run_dir,
                checkpoint=checkpoint,
                callback=callback,
                progress_bar=progress_bar,
                why_not_restorable=None if run_dir is None else collector.envs.why_not_restorable,
            ) as run:
                while collector.global_step < config.total_timesteps and not run.stopped:
                    episodes = collector.collect()
                    trpo.estimate()
                    metrics = {**trpo.update_actor(), **trpo.update_critic()}
                    run.record(collector.global_step, metrics, episodes, trpo.state_dict)
                return run.finish(collector.global_step, trpo.state_dict)
        finally:
            collector.close()
