"""What the tests of SAC, TD3 and DDPG share: small agents, continuous probe environments, float64."""

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box
from layers import layers
from probe_envs import Constant, Discounted, Endless, Later, Observed, Target
from sample_envs import Pixels

from fastac.algorithms import ddpg, sac, td3

AGENTS = {"sac": sac.SAC, "td3": td3.TD3, "ddpg": ddpg.DDPG}
MODULES = {"sac": sac, "td3": td3, "ddpg": ddpg}
SMALL = {"hidden_sizes": (16, 16), "batch_size": 32, "learning_starts": 64, "buffer_size": 4000}
NO_ENTROPY = {"autotune": False, "alpha": 1e-6}


def small(name, env_id="Pendulum-v1", **options):
    return MODULES[name].Config(env_id=env_id, **SMALL | options)


def rates(name, learning_rate):
    return {"policy_lr": learning_rate, "q_lr": learning_rate} if name == "sac" else {"learning_rate": learning_rate}


def filled(name, steps=200, **options):
    """An agent whose buffer holds random actions."""
    agent = AGENTS[name](small(name, **options))
    for _ in range(steps):
        agent.experience.step(agent.experience.random_actions())
    return agent


class Halves(Pixels):
    """Pays 1 where the action's sign says which half is bright."""

    action_space = Box(-2, 2, (1,), np.float32)

    def step(self, action):
        return super().step(int(action[0] > 0))


def register():
    """Registers `continuous/<Class>-v0`: the probes with one action in [-2, 2]."""
    if "continuous/Halves-v0" not in gymnasium.registry:
        gymnasium.register("continuous/Halves-v0", Halves, disable_env_checker=True)
    for probe in (Constant, Observed, Discounted, Endless, Later, Target):
        env_id = f"continuous/{probe.__name__}-v0"
        if env_id not in gymnasium.registry:
            kind = type(probe.__name__, (probe,), {"action_space": Box(-2, 2, (1,), np.float32)})
            gymnasium.register(env_id, kind, disable_env_checker=True)


def in_float64(agent):
    """The agent goes on in float64; its batches and its noise are kept, for a reference."""
    for network in (agent.actor, agent.q, agent.target.network):
        network.double()
    if hasattr(agent, "target_actor"):
        agent.target_actor.network.double()
    if hasattr(agent, "log_alpha"):
        agent.log_alpha.data = agent.log_alpha.data.double()
    sample, batches, noises = agent.experience.sample, [], []

    def sampled(batch_size):
        batch = sample(batch_size)
        doubled = [x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in batch]
        batches.append(type(batch)(*doubled))
        return batches[-1]

    agent.experience.sample = sampled
    if hasattr(agent, "noise"):
        noise = agent.noise
        agent.noise = lambda: noises.append(noise().double()) or noises[-1]
    return batches, noises


def rows_of(batch):
    """What a reference wants to know of a batch."""
    weights = 1.0 if batch.weights is None else batch.weights.numpy()
    fields = (batch.observations, batch.actions, batch.rewards, batch.next_observations, batch.terminated)
    return (*(x.numpy() for x in fields), batch.discounts.numpy(), weights)


def networks_of(agent):
    """Copies of the actor's and the critics' weights."""
    return layers(agent.actor.network), [layers(q) for q in agent.q.networks]


def assert_same(agent, reference):
    """All parameters, the targets' too."""
    actor, qs = networks_of(agent)
    targets = [layers(q) for q in agent.target.network.networks]
    pairs = [(actor, reference.actor), *zip(qs, reference.critic.qs, strict=True)]
    pairs += zip(targets, reference.critic.targets, strict=True)
    if hasattr(reference, "target_actor"):
        pairs.append((layers(agent.target_actor.network.network), reference.target_actor))
    for ours, theirs in pairs:
        for our_layer, their_layer in zip(ours, theirs, strict=True):
            for x, y in zip(our_layer, their_layer, strict=True):
                np.testing.assert_allclose(x, y, atol=1e-9, rtol=1e-7)
