"""SAC's, PPO's and A2C's updates per second on a GPU: eager, compiled, in a CUDA graph, and both.

The updates are those of `fastac.algorithms`, put together from the same losses, networks and optimisers without what
acts in environments: nothing here needs Gymnasium. A test holds them against the algorithms' own.
"""

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bench.gpu_timing import compiled, failure, measure
from fastac.buffers.replay import Transitions
from fastac.capturable import make_adam, make_rmsprop
from fastac.distributions import Categorical, TanhGaussian
from fastac.graphs import GraphedUpdate
from fastac.losses import a2c_loss, ppo_loss
from fastac.q_losses import policy_loss, q_loss, q_targets

LOG_STD_MIN, LOG_STD_MAX = -20.0, 2.0


def mlp(sizes: list[int], activation: type[nn.Module], device: torch.device) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(len(sizes) - 1):
        layers += [nn.Linear(sizes[i], sizes[i + 1]), activation()]
    return nn.Sequential(*layers[:-1]).to(device)


class SAC:
    """`fastac.algorithms.sac.SAC.gradient_step`, with a turn of the actor in every update."""

    def __init__(self, observation: int, action: int, width: int, device: torch.device):
        torch.manual_seed(0)
        self.actor = mlp([observation, width, width, 2 * action], nn.ReLU, device)
        self.q = nn.ModuleList(mlp([observation + action, width, width, 1], nn.ReLU, device) for _ in range(2))
        self.target = copy.deepcopy(self.q).requires_grad_(False)
        self.log_alpha = nn.Parameter(torch.zeros((), device=device))
        self.target_entropy = -float(action)
        self.policy_optimizer = make_adam(self.actor.parameters(), lr=3e-4)
        self.q_optimizer = make_adam(self.q.parameters(), lr=1e-3)
        self.alpha_optimizer = make_adam([self.log_alpha], lr=1e-3)
        self.optimizers = [self.policy_optimizer, self.q_optimizer, self.alpha_optimizer]

    def values(self, networks: Any, observations: Tensor, actions: Tensor) -> tuple[Tensor, ...]:
        inputs = torch.cat([observations, actions], 1)
        return tuple(network(inputs).squeeze(1) for network in networks)

    def distribution(self, observations: Tensor) -> TanhGaussian:
        mean, log_std = self.actor(observations).chunk(2, dim=-1)
        return TanhGaussian(mean, log_std.clamp(LOG_STD_MIN, LOG_STD_MAX))

    def step(self, batch: Transitions, noises: list[Tensor]) -> Tensor:
        alpha = self.log_alpha.detach().exp()
        with torch.no_grad():
            actions, log_probs = self.distribution(batch.next_observations).sample_and_log_prob(noises[0])
            after = self.values(self.target, batch.next_observations, actions)
            targets = q_targets(
                batch.rewards, batch.discounts, batch.terminated, after, alpha=alpha, log_probs=log_probs
            )
        loss = q_loss(self.values(self.q, batch.observations, batch.actions), targets, None)
        self.q_optimizer.zero_grad()
        loss.backward()
        self.q_optimizer.step()
        for noise in noises[1:]:
            alpha = self.log_alpha.detach().exp()
            actions, log_probs = self.distribution(batch.observations).sample_and_log_prob(noise)
            for p in self.q.parameters():
                p.requires_grad_(False)
            of_policy = policy_loss(alpha, log_probs, self.values(self.q, batch.observations, actions))
            for p in self.q.parameters():
                p.requires_grad_(True)
            self.policy_optimizer.zero_grad()
            of_policy.backward()
            self.policy_optimizer.step()
            of_alpha = self.log_alpha * (-log_probs.detach().mean() - self.target_entropy)
            self.alpha_optimizer.zero_grad()
            of_alpha.backward()
            self.alpha_optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(list(self.target.parameters()), list(self.q.parameters()), 0.005)
        return loss.detach()

    def arguments(self, batch: int, observation: int, action: int, device: torch.device) -> tuple[Any, ...]:
        generator = torch.Generator().manual_seed(1)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(device)

        ends = torch.zeros(batch, dtype=torch.bool, device=device)
        discounts, indices = torch.full((batch,), 0.99, device=device), torch.arange(batch, device=device)
        rows = Transitions(normal(batch, observation), normal(batch, action).tanh(), normal(batch),
                           normal(batch, observation), ends, ends, discounts, indices, None, {})  # fmt: skip
        return rows, [normal(batch, action) for _ in range(2)]


class PPO:
    """`fastac.algorithms.ppo.PPO.step` for discrete actions."""

    def __init__(self, observation: int, actions: int, width: int, device: torch.device):
        torch.manual_seed(0)
        self.actor = mlp([observation, width, width, actions], nn.Tanh, device)
        self.critic = mlp([observation, width, width, 1], nn.Tanh, device)
        parameters = [*self.actor.parameters(), *self.critic.parameters()]
        self.optimizer = make_adam(parameters, lr=2.5e-4, eps=1e-5, max_grad_norm=0.5)
        self.optimizers = [self.optimizer]

    def step(self, batch: tuple[Tensor, ...], clip_coef: Any) -> Tensor:
        observations, actions, log_probs, values, advantages, returns = batch
        total, metrics = ppo_loss(
            Categorical(self.actor(observations)), actions, log_probs, advantages, self.critic(observations), values,
            returns, clip_coef=clip_coef, vf_coef=0.5, ent_coef=0.01, clip_vloss=True,
        )  # fmt: skip
        self.optimizer.zero_grad()
        total.backward()
        self.optimizer.step()
        return metrics

    def arguments(self, batch: int, observation: int, actions: int, device: torch.device) -> tuple[Any, ...]:
        generator = torch.Generator().manual_seed(1)
        numbers = [torch.randn(batch, generator=generator).to(device) for _ in range(3)]
        observed = torch.randn(batch, observation, generator=generator).to(device)
        chosen = torch.randint(actions, (batch,), generator=generator).to(device)
        old = torch.full((batch,), -math.log(actions), device=device)
        return (observed, chosen, old, *numbers), 0.2


class A2C:
    """`fastac.algorithms.actor_critic.ActorCritic.step` for discrete actions, V's step being the policy's."""

    def __init__(self, observation: int, actions: int, width: int, device: torch.device):
        torch.manual_seed(0)
        self.actor = mlp([observation, width, width, actions], nn.Tanh, device)
        self.critic = mlp([observation, width, width, 1], nn.Tanh, device)
        parameters = [*self.actor.parameters(), *self.critic.parameters()]
        self.optimizer = make_rmsprop(parameters, lr=7e-4, eps=1e-5, max_grad_norm=0.5)
        self.optimizers = [self.optimizer]

    def step(self, batch: tuple[Tensor, ...]) -> Tensor:
        observations, actions, advantages, targets, values = batch
        total, metrics = a2c_loss(
            Categorical(self.actor(observations)), actions, advantages, self.critic(observations), targets,
            vf_coef=1.0, ent_coef=0.0,
        )  # fmt: skip
        self.optimizer.zero_grad()
        total.backward()
        self.optimizer.step()
        explained = 1.0 - (targets - values).var() / targets.var()
        return torch.cat([metrics, explained.reshape(1)])

    def arguments(self, batch: int, observation: int, actions: int, device: torch.device) -> tuple[Any, ...]:
        generator = torch.Generator().manual_seed(1)
        observed = torch.randn(batch, observation, generator=generator).to(device)
        chosen = torch.randint(actions, (batch,), generator=generator).to(device)
        numbers = [torch.randn(batch, generator=generator).to(device) for _ in range(3)]
        return ((observed, chosen, *numbers),)


CASES: tuple[tuple[str, Any, dict[str, int]], ...] = (
    ("SAC, batch 256, 256 wide", SAC, {"batch": 256, "observation": 17, "action": 6, "width": 256}),
    ("SAC, batch 4096, 256 wide", SAC, {"batch": 4096, "observation": 17, "action": 6, "width": 256}),
    ("PPO, minibatch 128, 64 wide", PPO, {"batch": 128, "observation": 4, "action": 2, "width": 64}),
    ("A2C, rollout of 40, 64 wide", A2C, {"batch": 40, "observation": 4, "action": 2, "width": 64}),
    ("PPO, minibatch 32768, 256 wide", PPO, {"batch": 32768, "observation": 60, "action": 8, "width": 256}),
)


def forms(
    kind: Any, sizes: dict[str, int], device: torch.device, backend: str | None, *, compile: bool
) -> dict[str, Callable[[], Any]]:
    """One learner for each way of running its update; what is compiled is compiled once."""
    found = {}
    batch, observation, action, width = (sizes[name] for name in ("batch", "observation", "action", "width"))
    for name in ("eager", "graphed", *(("compiled", "compiled and graphed") if compile else ())):
        if name != "compiled and graphed":
            learner = kind(observation, action, width, device)
            step = compiled(learner.step, backend) if name == "compiled" else learner.step
        if "graphed" in name:
            capturable = [x for x in learner.optimizers if hasattr(x, "prepare")]
            step = GraphedUpdate(step, device, optimizers=capturable)
        arguments = learner.arguments(batch, observation, action, device)
        found[name] = lambda s=step, a=arguments: s(*a)
    return found


def run(
    device: torch.device, cases: Any, seconds: float, backend: str | None, *, late: Callable[[], bool] = lambda: False
) -> list[dict[str, Any]]:
    """Updates per second of every case and form; nothing is compiled any more when it is late."""
    rows = []
    for name, kind, sizes in cases:
        try:
            found = measure(
                forms(kind, sizes, device, backend, compile=not late()), device, seconds=seconds, graphs=False
            )
        except Exception as error:
            rows.append({"case": name} | failure(error))
            continue
        results = {
            form: times | ({"updates_per_second": round(1e6 / times["call_us"], 1)} if "call_us" in times else {})
            for form, times in found.items()
        }
        rows.append({"case": name, **sizes, "results": results})
        torch._dynamo.reset()
    return rows
