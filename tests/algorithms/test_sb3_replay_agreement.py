"""The same weights, batches and noise: SAC, TD3 and DDPG take Stable-Baselines3's steps, 1 and 100 of them.

For development: Stable-Baselines3 is a peer to compare with, not a dependency (`pip install -e ".[bench]"`).
"""

from types import SimpleNamespace

import pytest
import replay_agents
import torch

from fastac.run import torch_threads

sb3 = pytest.importorskip("stable_baselines3", reason="Stable-Baselines3 is not installed: nothing to agree with")

from stable_baselines3.common import distributions  # noqa: E402
from stable_baselines3.common.logger import Logger  # noqa: E402

replay_agents.register()
pytestmark = pytest.mark.filterwarnings("ignore:.*render_mode")
HIDDEN, BATCH = (16, 16), 32
OURS = {"hidden_sizes": HIDDEN, "batch_size": BATCH, "gamma": 0.97, "tau": 0.01}


@pytest.fixture(autouse=True)
def _one_thread():
    with torch_threads(1):
        state = torch.get_rng_state()
        yield
        torch.set_rng_state(state)


def their_model(kind, env_id, learning_rate):
    options = {"policy_kwargs": {"net_arch": list(HIDDEN)}, "device": "cpu", "seed": 0, "gamma": 0.97, "tau": 0.01}
    model = kind("MlpPolicy", env_id, learning_rate=learning_rate, **options)
    model.set_logger(Logger(None, []))
    return model


def pairs(agent, model):
    """(ours, theirs) of all parameters; our actor's last layer holds both of SAC's heads."""
    found = []
    for q, theirs in zip(agent.q.networks, model.critic.q_networks, strict=True):
        found += zip(q.parameters(), theirs.parameters(), strict=True)
    for q, theirs in zip(agent.target.network.networks, model.critic_target.q_networks, strict=True):
        found += zip(q.parameters(), theirs.parameters(), strict=True)
    actors = [(agent.actor.network, model.actor)]
    if hasattr(agent, "target_actor"):
        actors.append((agent.target_actor.network.network, model.actor_target))
    for ours, theirs in actors:
        if hasattr(theirs, "mu") and hasattr(theirs, "log_std"):
            *hidden, weight, bias = ours.parameters()
            found += zip(hidden, theirs.latent_pi.parameters(), strict=True)
            size = len(bias) // 2
            found += [(weight[:size], theirs.mu.weight), (bias[:size], theirs.mu.bias)]
            found += [(weight[size:], theirs.log_std.weight), (bias[size:], theirs.log_std.bias)]
        else:
            found += zip(ours.parameters(), theirs.mu.parameters(), strict=True)
    if hasattr(agent, "log_alpha"):
        found.append((agent.log_alpha.reshape(1), model.log_ent_coef))
    return found


def handed_over(agent, model):
    """Their weights become ours; from now on their batches are those that ours drew last."""
    with torch.no_grad():
        for ours, theirs in pairs(agent, model):
            theirs.copy_(ours)
    sample, drawn = agent.experience.sample, []

    def sampled(size):
        drawn[:] = [sample(size)]
        return drawn[0]

    def shown(*_, **__):
        batch = drawn[0]
        columns = {
            "rewards": batch.rewards[:, None], "dones": batch.terminated.float()[:, None],
            "discounts": batch.discounts[:, None],
        }  # fmt: skip
        return SimpleNamespace(
            observations=batch.observations, actions=batch.actions, next_observations=batch.next_observations, **columns
        )

    agent.experience.sample = sampled
    model.replay_buffer.sample = shown


def assert_same(agent, model, atol):
    for ours, theirs in pairs(agent, model):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)


ENVIRONMENTS = pytest.mark.parametrize("env_id", ["Pendulum-v1", "continuous/Observed-v0"])


def compared(agent, model, monkeypatch):
    """100 updates of both, noise the same."""
    handed_over(agent, model)
    before, noises = [ours.detach().clone() for ours, _ in pairs(agent, model)], []

    def same_noise(shape, dtype, device):
        # Ours draw for the next states first, theirs last.
        return noises.pop()

    if hasattr(agent, "noise"):
        draw = agent.noise
        monkeypatch.setattr(agent, "noise", lambda: noises.append(draw()) or noises[-1])
    monkeypatch.setattr(torch.distributions.normal, "_standard_normal", same_noise)
    monkeypatch.setattr(torch.Tensor, "normal_", lambda x, mean, std: x.copy_(std * noises.pop()))
    for update in range(1, 101):
        agent.update()
        model.train(1, BATCH)
        assert not noises
        if update == 1:
            assert_same(agent, model, atol=1e-6)
    assert_same(agent, model, atol=1e-5)
    assert max((ours - old).abs().max() for (ours, _), old in zip(pairs(agent, model), before, strict=True)) > 0.02


@ENVIRONMENTS
def test_sac(env_id, monkeypatch):
    """Their log(1 - a^2 + 1e-6) is bounded below, ours exact: without that constant they are the same."""
    agent = replay_agents.filled("sac", env_id=env_id, policy_frequency=1, **OURS, **replay_agents.rates("sac", 1e-3))
    model = their_model(sb3.SAC, env_id, 1e-3)
    assert isinstance(model.actor.action_dist, distributions.SquashedDiagGaussianDistribution)
    model.actor.action_dist.epsilon = 0.0
    compared(agent, model, monkeypatch)


@ENVIRONMENTS
def test_td3(env_id, monkeypatch):
    agent = replay_agents.filled("td3", env_id=env_id, policy_noise=0.3, **OURS, learning_rate=1e-3)
    model = their_model(sb3.TD3, env_id, 1e-3)
    model.target_policy_noise = 0.3
    compared(agent, model, monkeypatch)


@ENVIRONMENTS
def test_ddpg(env_id, monkeypatch):
    agent = replay_agents.filled("ddpg", env_id=env_id, policy_frequency=1, **OURS, learning_rate=1e-3)
    model = their_model(sb3.DDPG, env_id, 1e-3)
    assert model.target_policy_noise <= 0.1  # what they have in place of none
    model.target_policy_noise, model.target_noise_clip = 0.0, 0.0
    noise = torch.zeros(BATCH, 1)
    monkeypatch.setattr(type(agent), "noise", lambda self: noise, raising=False)
    update = agent.update
    monkeypatch.setattr(agent, "update", lambda: (agent.noise(), update()))
    compared(agent, model, monkeypatch)
