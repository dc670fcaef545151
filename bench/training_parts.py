"""Two parts of PPO on CartPole alone: an update on a minibatch of 128 rows, and acting in four environments.

Beside fastac's the same in plain torch, as CleanRL's script has it: modules one by one, `torch.distributions`,
`clip_grad_norm_`, `torch.optim.Adam`.
"""

from collections.abc import Callable, Mapping
from typing import Any

from bench import timing
from bench.ppo_settings import SETTINGS, fastac_config

SETTING = SETTINGS["cleanrl"]


def agent() -> Any:
    """PPO with a rollout, its advantages computed."""
    import torch

    from fastac.algorithms.ppo import PPO

    torch.set_num_threads(1)
    ppo = PPO(fastac_config(SETTING, seed=1))
    ppo.collector.collect()
    ppo.estimate()
    return ppo


def plain(ppo: Any) -> tuple[Any, Any]:
    """Actor and critic of the same weights, without anything of fastac."""
    import torch

    networks = []
    for module in (ppo.actor.network, ppo.critic):
        layers = [
            torch.nn.Linear(layer.in_features, layer.out_features) if hasattr(layer, "weight") else torch.nn.Tanh()
            for layer in module
        ]
        network = torch.nn.Sequential(*layers)
        network.load_state_dict(module.state_dict())
        networks.append(network)
    return networks[0], networks[1]


def updates() -> dict[str, Callable[[], Any]]:
    """A gradient step on the same 128 rows, again and again."""
    import torch

    ppo = agent()
    batch = next(ppo.buffer.minibatches(SETTING.num_minibatches, ppo.collector.generator))
    actor, critic = plain(ppo)
    parameters = [*actor.parameters(), *critic.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=SETTING.learning_rate, eps=SETTING.adam_eps)

    def in_torch() -> None:
        distribution = torch.distributions.Categorical(logits=actor(batch.observations))
        log_ratio = distribution.log_prob(batch.actions) - batch.log_probs
        ratio = log_ratio.exp()
        with torch.no_grad():
            [(-log_ratio).mean(), (ratio - 1.0 - log_ratio).mean()]
            ((ratio - 1.0).abs() > SETTING.clip_coef).float().mean().item()
        advantages = (batch.advantages - batch.advantages.mean()) / (batch.advantages.std() + 1e-8)
        clipped = ratio.clamp(1.0 - SETTING.clip_coef, 1.0 + SETTING.clip_coef)
        pg_loss = torch.max(-advantages * ratio, -advantages * clipped).mean()
        values = critic(batch.observations).view(-1)
        near = batch.values + (values - batch.values).clamp(-SETTING.clip_coef, SETTING.clip_coef)
        v_loss = 0.5 * torch.max((values - batch.returns) ** 2, (near - batch.returns) ** 2).mean()
        total = pg_loss - SETTING.ent_coef * distribution.entropy().mean() + v_loss * 2 * SETTING.value_mse_coef
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(parameters, SETTING.max_grad_norm)
        optimizer.step()

    return {"fastac": lambda: ppo.step(batch, SETTING.clip_coef), "torch": in_torch}


def acts() -> dict[str, Callable[[], Any]]:
    """Actions and values for four observations, arrays in and arrays out."""
    import itertools

    import torch

    from fastac.acting import ArrayActor

    ppo = agent()
    observations = ppo.collector.policy.observe(ppo.collector.raw_observations)
    actor, critic = plain(ppo)
    acting = ArrayActor(ppo.actor, ppo.critic)
    act, sample = acting.evaluator(), acting.sampler()
    noise = itertools.cycle(acting.noise((SETTING.num_steps, SETTING.num_envs), ppo.collector.generator))

    def in_torch() -> None:
        with torch.no_grad():
            x = torch.Tensor(observations)
            distribution = torch.distributions.Categorical(logits=actor(x))
            actions = distribution.sample()
            distribution.log_prob(actions), critic(x).flatten()
            actions.cpu().numpy()

    return {
        "fastac": lambda: act(observations, next(noise)),
        # With a look at where the parameters are, for networks that change between two calls.
        "fastac_checked": lambda: acting.act(observations, next(noise)),
        # What a rollout takes: values and log-probabilities come for all its rows at once.
        "fastac_actor": lambda: sample(observations, next(noise)),
        "torch": in_torch,
    }


def measure(title: str, calls: Mapping[str, Callable[[], Any]], seconds: float) -> dict[str, Any]:
    samples = timing.interleave(calls, seconds=seconds)
    return {"title": title, "contenders": timing.summarise(samples, "fastac")}


def minibatch(seconds: float) -> dict[str, Any]:
    return measure("an update of PPO on CartPole, 128 rows", updates(), seconds)


def acting(seconds: float) -> dict[str, Any]:
    return measure("acting, 4 observations: actor, critic and sample", acts(), seconds)


def shown(name: str, result: Mapping[str, Any]) -> str:
    times = "  ".join(f"{who} {entry['median_ns'] / 1e3:,.1f}" for who, entry in result["contenders"].items())
    return f"{name}, us: {times}"
