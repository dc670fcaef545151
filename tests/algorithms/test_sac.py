import dataclasses
import inspect
import math

import gymnasium
import numpy as np
import pytest
import replay_agents
import replay_reference as reference
import torch

from fastac.algorithms import preset, sac
from fastac.buffers import PrioritizedReplayBuffer
from fastac.distributions import TanhGaussian
from fastac.run import RunError, torch_threads

replay_agents.register()


@pytest.fixture(autouse=True)
def _one_thread():
    with torch_threads(1):
        yield


def filled(**options):
    return replay_agents.filled("sac", **options)


# The update


@pytest.mark.parametrize("updates", [1, 100])
@pytest.mark.parametrize(
    "options",
    [
        {"policy_frequency": 1},
        {"policy_frequency": 2, "n_step": 3},
        {"prioritized_replay": True, "policy_frequency": 1},
        {"autotune": False, "alpha": 0.3, "env_id": "continuous/Observed-v0", "policy_frequency": 1},
    ],
    ids=["plain", "delayed", "prioritized", "terminated"],
)
def test_updates_agree_with_the_float64_reference(options, updates):
    """Row A6: the entropy's sign, min Q, the tanh correction; the parameters after 1 and after 100 updates."""
    agent = filled(**options)
    batches, noises = replay_agents.in_float64(agent)
    actor, qs = replay_agents.networks_of(agent)
    other = reference.SAC(actor, qs, agent.config, agent.target_entropy)
    other.log_alpha[...] = agent.log_alpha.item()  # which began in float32
    for _ in range(updates):
        noises.clear()
        agent.update()
        other.update(replay_agents.rows_of(batches[-1]), [noise.numpy() for noise in noises])
    replay_agents.assert_same(agent, other)
    assert agent.log_alpha.item() == pytest.approx(float(other.log_alpha), abs=1e-10)


def test_the_actors_step_computes_no_gradient_of_the_critics():
    agent = filled(policy_frequency=1)
    agent.update()
    before = [p.grad.clone() for p in agent.q_parameters]
    agent.update_policy(agent.experience.sample(32).observations, agent.noise())
    assert all(torch.equal(p.grad, kept) for p, kept in zip(agent.q_parameters, before, strict=True))
    assert all(p.requires_grad for p in agent.q_parameters)
    assert all(p.grad is None for p in agent.target.network.parameters())


def test_priorities_are_the_temporal_differences():
    """|Q - target|, averaged over both critics."""
    agent = filled(prioritized_replay=True, policy_frequency=1000)
    replay, given = agent.experience.replay, []
    assert isinstance(replay, PrioritizedReplayBuffer)
    assert (replay.alpha, replay.beta) == (0.6, 0.4)
    update = replay.update_priorities
    replay.update_priorities = lambda indices, errors: (
        given.append((indices.clone(), errors)) or update(indices, errors)
    )
    sample, batches = agent.experience.sample, []
    agent.experience.sample = lambda size: batches.append(sample(size)) or batches[-1]
    before = [p.clone() for p in agent.q_parameters]
    state = agent.experience.generator.get_state()
    agent.update()
    batch, (indices, errors) = batches[0], given[0]
    assert torch.equal(indices, batch.indices)
    with torch.no_grad():
        for p, old in zip(agent.q_parameters, before, strict=True):
            p.copy_(old)
        agent.target.network.load_state_dict(agent.q.state_dict())  # what it was, before it followed
        agent.experience.generator.set_state(state)
        actions, log_probs = agent.actor(batch.next_observations).sample_and_log_prob(agent.noise())
        target = batch.rewards + 0.99 * (agent.q.minimum(batch.next_observations, actions) - log_probs)  # alpha is 1
        expected = sum((q - target).abs() for q in agent.q(batch.observations, batch.actions)) / 2
    torch.testing.assert_close(errors, expected, rtol=1e-4, atol=2e-6)
    assert batch.weights.max() == 1
    torch.testing.assert_close(replay.max_priority, max(1.0, errors.max().item()))


def test_n_step_targets_stop_at_an_episodes_end():
    agent = filled(n_step=5, env_id="continuous/Discounted-v0", gamma=0.5)
    batch = agent.experience.sample(64)
    assert batch.terminated.all(), "episodes have two steps"
    first = batch.observations[:, 0] == 0
    assert torch.equal(batch.rewards, torch.where(first, 0.5, 1.0))


# What it converges to: one state, in which the action pays alpha log p(a) and the episode ends


BEST = TanhGaussian(torch.tensor([[0.4]]), torch.tensor([[math.log(0.6)]]))
TEMPERATURE = 0.5


class Bandit(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action):
        inside = torch.as_tensor(action).reshape(1, 1).clamp(-0.999, 0.999)
        return np.zeros(1, np.float32), TEMPERATURE * BEST.log_prob(inside).item(), True, False, {}


@pytest.fixture
def bandit(monkeypatch):
    spec = gymnasium.envs.registration.EnvSpec("continuous/Bandit-v0", Bandit, disable_env_checker=True)
    monkeypatch.setitem(gymnasium.registry, spec.id, spec)
    return {"env_id": spec.id, "steps": 600, "hidden_sizes": (32, 32), "batch_size": 128, "policy_frequency": 1}


def learnt(updates, **options):
    agent = filled(**options)
    for _ in range(updates):
        agent.update()
    with torch.no_grad():
        distribution = agent.actor(torch.zeros(20_000, 1))
        noise = torch.randn(20_000, 1, generator=torch.Generator().manual_seed(0))
        return agent, distribution, -distribution.sample_and_log_prob(noise)[1].mean().item()


def test_the_policy_becomes_the_softmax_of_q(bandit):
    """Pi is proportional to exp(Q / alpha): here p, whose entropy has no temperature to learn."""
    agent, found, _ = learnt(1500, **bandit, policy_lr=3e-3, q_lr=3e-3, autotune=False, alpha=TEMPERATURE)
    assert found.mean[0].item() == pytest.approx(BEST.mean.item(), abs=0.1)
    assert found.log_std[0].item() == pytest.approx(BEST.log_std.item(), abs=0.15)
    actions = torch.linspace(-0.7, 0.7, 15)[:, None]
    q = agent.q.minimum(torch.zeros(15, 1), actions)
    torch.testing.assert_close(q, TEMPERATURE * BEST.log_prob(actions), atol=0.1, rtol=0)


@pytest.mark.parametrize("target", [-0.3, 0.6])
def test_the_learned_temperature_reaches_the_target_entropy(bandit, target):
    """From above and from below: at this temperature the entropy would be p's own."""
    noise = torch.randn(20_000, 1, generator=torch.Generator().manual_seed(1))
    own = -BEST.sample_and_log_prob(noise)[1].mean().item()
    agent, _, entropy = learnt(1200, **bandit, policy_lr=3e-3, q_lr=3e-3, target_entropy=target, alpha=TEMPERATURE)
    assert entropy == pytest.approx(target, abs=0.12)
    assert (agent.log_alpha.exp().item() > TEMPERATURE) == (target > own)


def test_the_temperature_starts_at_one_and_its_target_is_minus_the_actions():
    agent = sac.SAC(replay_agents.small("sac"))
    assert agent.log_alpha.item() == 0.0
    assert agent.target_entropy == -1.0
    loss = sac.temperature_loss(agent.log_alpha, torch.tensor(-3.0), -1.0)
    loss.backward()
    assert agent.log_alpha.grad.item() == -2.0, "too little entropy: alpha rises"


# Options


def test_defaults_are_cleanrls():
    """Row A5: one Config, against the documented table (CleanRL's sac_continuous_action.py)."""
    expected = {
        "total_timesteps": 1_000_000, "num_envs": 1, "buffer_size": 1_000_000, "gamma": 0.99, "tau": 0.005,
        "batch_size": 256, "learning_starts": 5000, "policy_lr": 3e-4, "q_lr": 1e-3, "policy_frequency": 2,
        "autotune": True, "alpha": 1.0, "target_entropy": None, "hidden_sizes": (256, 256), "activation": "relu",
        "seed": 1, "n_step": 1, "updates_per_step": 1.0,
    }  # fmt: skip
    found = dataclasses.asdict(sac.Config())
    assert {name: found[name] for name in expected} == expected
    assert sac.PRESETS["cleanrl"] == sac.Config()


def test_the_sb3_preset_is_sb3s_defaults():
    """Row A5."""
    sb3 = pytest.importorskip("stable_baselines3", reason="the peer is not installed")
    theirs = {name: p.default for name, p in inspect.signature(sb3.SAC.__init__).parameters.items()}
    ours = preset("sac", "sb3")
    assert ours.policy_lr == ours.q_lr == theirs["learning_rate"]
    same = ("buffer_size", "learning_starts", "batch_size", "tau", "gamma")
    assert {name: getattr(ours, name) for name in same} == {name: theirs[name] for name in same}
    assert (theirs["train_freq"], theirs["gradient_steps"], theirs["n_steps"]) == (1, 1, ours.n_step)
    assert (theirs["ent_coef"], theirs["target_entropy"], theirs["target_update_interval"]) == ("auto", "auto", 1)
    assert ours.policy_frequency == 1


def test_the_zoos_presets():
    zoo = preset("sac", "sb3-zoo", "Pendulum-v1")
    assert (zoo.policy_lr, zoo.q_lr, zoo.total_timesteps, zoo.learning_starts) == (1e-3, 1e-3, 20_000, 100)
    assert preset("sac", "sb3-zoo").env_id == "Pendulum-v1"
    assert preset("sac", "sb3-zoo", "HalfCheetah-v4").learning_starts == 10_000
    assert preset("sac", "sb3-zoo", "HalfCheetah-v5") == dataclasses.replace(sac.SB3, env_id="HalfCheetah-v5")
    for env_id in sac.PRESETS["sb3-zoo"]:
        preset("sac", "sb3-zoo", env_id).check()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"alpha": 0.0}, "alpha: got 0.0, expected above 0"),
        ({"n_step": 0}, "n_step: got 0, expected at least 1"),
        ({"priority_exponent": -1.0}, "priority_exponent: got -1.0, expected at least 0"),
    ],
)
def test_options_that_cannot_be_are_named(option, message):
    with pytest.raises(RunError, match=message):
        sac.train(sac.Config(**option))
