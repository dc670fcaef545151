"""The same weights and the same rollouts: A2C's and PPO's parameters are Stable-Baselines3's, after 1 and 100 updates.

For development: Stable-Baselines3 is a peer to compare with, not a dependency (`pip install -e ".[bench]"`).
"""

import dataclasses
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import torch

from fastac.algorithms import actor_critic, ppo
from fastac.run import torch_threads

sb3 = pytest.importorskip("stable_baselines3", reason="Stable-Baselines3 is not installed: nothing to agree with")

from stable_baselines3.common.env_util import make_vec_env  # noqa: E402
from stable_baselines3.common.logger import Logger  # noqa: E402

NUM_ENVS, NUM_STEPS, HIDDEN = 4, 8, (16, 16)
SHARED = {"num_envs": NUM_ENVS, "num_steps": NUM_STEPS, "hidden_sizes": HIDDEN, "gamma": 0.97}


@pytest.fixture(autouse=True)
def _one_thread():
    with torch_threads(1):
        yield


def theirs_for(kind, agent, env_id, **options):
    """Their model with our weights."""
    policy = {"net_arch": {"pi": list(HIDDEN), "vf": list(HIDDEN)}}
    envs = make_vec_env(lambda: gymnasium.make(env_id), n_envs=NUM_ENVS)
    shared = {"n_steps": NUM_STEPS, "gamma": SHARED["gamma"], "policy_kwargs": policy, "device": "cpu", "seed": 0}
    model = kind("MlpPolicy", envs, **shared, **options)
    model.set_logger(Logger(None, []))
    with torch.no_grad():
        for ours, theirs in zip(ours_of(agent), theirs_of(model), strict=True):
            theirs.copy_(ours)
    return model


def ours_of(agent):
    return [*agent.actor.network.parameters(), *agent.critic.parameters(), *log_std_of(agent.actor)]


def theirs_of(model):
    policy = model.policy
    networks = [
        *(policy.mlp_extractor.policy_net, policy.action_net),
        *(policy.mlp_extractor.value_net, policy.value_net),
    ]
    return [p for network in networks for p in network.parameters()] + log_std_of(policy)


def log_std_of(module):
    return [module.log_std] if hasattr(module, "log_std") else []


def hand_over(agent, model):
    """Our rollout into their buffer, as their `collect_rollouts` fills it; values and log-probabilities are theirs."""
    buffer, target, policy = agent.buffer, model.rollout_buffer, model.policy
    rows, envs = buffer.mask.size, buffer.num_envs
    finals = iter(agent.collector.observations[rows + envs :])
    gamma, starts = model.gamma, np.ones(envs)
    target.reset()
    with torch.no_grad():
        for t in range(buffer.num_steps):
            observations, actions = torch.from_numpy(buffer.observations[t]), torch.from_numpy(buffer.actions[t])
            values, log_probs, _ = policy.evaluate_actions(observations, actions)
            rewards = buffer.rewards[t].copy()
            for n in np.flatnonzero(buffer.truncated[t] & ~buffer.terminated[t]):
                rewards[n] += gamma * policy.predict_values(next(finals)[None]).item()
            stored = actions.reshape(envs, -1).numpy()
            target.add(buffer.observations[t], stored, rewards, starts, values, log_probs)
            starts = (buffer.terminated[t] | buffer.truncated[t]).astype(np.float32)
        last = policy.predict_values(agent.collector.observations[rows : rows + envs])
        target.compute_returns_and_advantage(last, starts)


def same_minibatches(agent, model):
    """Makes their next epochs draw the minibatches that ours are about to draw."""
    target = model.rollout_buffer
    generator = torch.Generator()
    generator.set_state(agent.collector.generator.get_state())

    def draw(batch_size):
        names = ("observations", "actions", "values", "log_probs", "advantages", "returns")
        fields = {name: torch.from_numpy(getattr(target, name).reshape(NUM_STEPS * NUM_ENVS, -1)) for name in names}
        fields["old_log_prob"], fields["old_values"] = fields["log_probs"], fields["values"]
        for rows in torch.randperm(NUM_STEPS * NUM_ENVS, generator=generator).split(batch_size):
            batch = {name: field[rows] for name, field in fields.items()}
            flat = ("advantages", "returns", "old_log_prob", "old_values")
            yield SimpleNamespace(**batch | {name: batch[name].flatten() for name in flat})

    target.get = draw


def assert_same(agent, model, atol):
    for ours, theirs in zip(ours_of(agent), theirs_of(model), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)


@pytest.fixture
def short_pole(monkeypatch):
    """CartPole with a limit that is reached: most episodes are truncated, some fall before."""
    spec = dataclasses.replace(gymnasium.spec("CartPole-v1"), id="ShortPole-v0", max_episode_steps=15)
    monkeypatch.setitem(gymnasium.registry, "ShortPole-v0", spec)


ENVIRONMENTS = pytest.mark.parametrize("env_id", ["ShortPole-v0", "Pendulum-v1"])


@ENVIRONMENTS
@pytest.mark.parametrize("ent_coef", [0.0, 0.01])
@pytest.mark.usefixtures("short_pole")
def test_a2c(env_id, ent_coef):
    config = actor_critic.Config(env_id=env_id, **SHARED, ent_coef=ent_coef)
    agent = actor_critic.ActorCritic(config)
    model = theirs_for(sb3.A2C, agent, env_id, ent_coef=ent_coef)  # all else: both at their defaults
    before, cut = [p.clone() for p in ours_of(agent)], 0
    for update in range(1, 101):
        agent.collect()
        hand_over(agent, model)
        agent.fit()
        agent.estimate()
        agent.update()
        model.train()
        cut += int(agent.buffer.truncated.sum())
        if update == 1:
            assert_same(agent, model, atol=5e-7)
    assert_same(agent, model, atol=5e-6)
    assert cut > 3, "time limits were reached"
    assert max((a - b).abs().max() for a, b in zip(ours_of(agent), before, strict=True)) > 0.05
    agent.collector.close()


@ENVIRONMENTS
@pytest.mark.usefixtures("short_pole")
def test_ppo(env_id):
    options = {"update_epochs": 2, "num_minibatches": 2, "learning_rate": 1e-3, "ent_coef": 0.01}
    agent = ppo.PPO(ppo.Config(env_id=env_id, **SHARED, **options, clip_vloss=False, anneal_lr=False, vf_coef=1.0))
    model = theirs_for(
        *(sb3.PPO, agent, env_id),
        learning_rate=1e-3,
        batch_size=NUM_ENVS * NUM_STEPS // 2,
        n_epochs=2,
        ent_coef=0.01,
    )
    before, cut = [p.clone() for p in ours_of(agent)], 0
    for update in range(1, 101):
        agent.collector.collect()
        hand_over(agent, model)
        same_minibatches(agent, model)
        agent.estimate()
        agent.update(remaining=1.0)
        model.train()
        cut += int(agent.buffer.truncated.sum())
        if update == 1:
            assert_same(agent, model, atol=5e-7)
    assert_same(agent, model, atol=5e-6)
    assert cut > 3, "time limits were reached"
    assert max((a - b).abs().max() for a, b in zip(ours_of(agent), before, strict=True)) > 0.05
    agent.collector.close()
