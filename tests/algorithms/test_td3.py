import dataclasses
import inspect

import numpy as np
import pytest
import replay_agents
import replay_reference as reference
import torch

from fastac.algorithms import preset, td3
from fastac.run import RunError, torch_threads

replay_agents.register()


@pytest.fixture(autouse=True)
def _one_thread():
    with torch_threads(1):
        yield


@pytest.mark.parametrize("updates", [1, 100])
@pytest.mark.parametrize(
    "options", [{}, {"policy_frequency": 1, "policy_noise": 0.6}, {"env_id": "continuous/Observed-v0"}]
)
def test_updates_agree_with_the_float64_reference(options, updates):
    """Equations 10 and 14 and the delay; the parameters and the targets after 1 and after 100 updates."""
    agent = replay_agents.filled("td3", **options)
    batches, noises = replay_agents.in_float64(agent)
    actor, qs = replay_agents.networks_of(agent)
    other = reference.TD3(actor, qs, agent.config, smooth=True)
    for _ in range(updates):
        noises.clear()
        agent.update()
        other.update(replay_agents.rows_of(batches[-1]), [noise.numpy() for noise in noises])
    replay_agents.assert_same(agent, other)


def test_the_actor_and_the_targets_wait_for_their_turn():
    agent = replay_agents.filled("td3", policy_frequency=3)
    followers = [
        *agent.actor.parameters(),
        *agent.target.network.parameters(),
        *agent.target_actor.network.parameters(),
    ]
    before = [p.clone() for p in followers]
    for turn in (1, 2, 3):
        agent.update()
        changed = [not torch.equal(p, old) for p, old in zip(followers, before, strict=True)]
        assert all(changed) if turn == 3 else not any(changed)


def test_target_noise_is_clipped_and_the_action_stays_in_the_box():
    actions = torch.tensor([[0.0], [0.9], [-0.9]])
    noise = torch.tensor([[9.0], [9.0], [-1.0]])
    assert td3.smoothed(actions, noise, 0.2, 0.5).flatten().tolist() == pytest.approx([0.5, 1.0, -1.0])


def test_exploration_adds_gaussian_noise_in_the_box():
    agent = td3.TD3(replay_agents.small("td3", num_envs=1000, exploration_noise=0.1, buffer_size=2000))
    mean = agent.experience.most_probable_actions()
    noise = (agent.explore() - mean)[np.abs(mean) < 0.5]
    assert noise.std() == pytest.approx(0.1, rel=0.1)
    assert abs(noise.mean()) < 0.02
    loud = td3.TD3(replay_agents.small("td3", num_envs=100, exploration_noise=5.0))
    assert np.abs(loud.explore()).max() == 1.0


def test_defaults_are_cleanrls():
    """Row A5: one Config, against the documented table (CleanRL's td3_continuous_action.py)."""
    expected = {
        "total_timesteps": 1_000_000, "learning_rate": 3e-4, "num_envs": 1, "buffer_size": 1_000_000, "gamma": 0.99,
        "tau": 0.005, "batch_size": 256, "policy_noise": 0.2, "exploration_noise": 0.1, "learning_starts": 25_000,
        "policy_frequency": 2, "noise_clip": 0.5, "hidden_sizes": (256, 256), "activation": "relu",
    }  # fmt: skip
    found = dataclasses.asdict(td3.Config())
    assert {name: found[name] for name in expected} == expected
    assert td3.PRESETS["cleanrl"] == td3.Config()


def test_the_sb3_preset_is_sb3s_defaults():
    """Row A5."""
    sb3 = pytest.importorskip("stable_baselines3", reason="the peer is not installed")
    theirs = {name: p.default for name, p in inspect.signature(sb3.TD3.__init__).parameters.items()}
    ours = preset("td3", "sb3")
    same = {
        "learning_rate": "learning_rate", "buffer_size": "buffer_size", "learning_starts": "learning_starts",
        "batch_size": "batch_size", "tau": "tau", "gamma": "gamma", "policy_frequency": "policy_delay",
        "policy_noise": "target_policy_noise", "noise_clip": "target_noise_clip",
    }  # fmt: skip
    assert {name: getattr(ours, name) for name in same} == {name: theirs[other] for name, other in same.items()}
    assert theirs["action_noise"] is None
    assert ours.exploration_noise == 0.0


def test_the_zoos_presets():
    zoo = preset("td3", "sb3-zoo", "Pendulum-v1")
    assert (zoo.gamma, zoo.buffer_size, zoo.learning_starts, zoo.total_timesteps) == (0.98, 200_000, 10_000, 20_000)
    assert (zoo.exploration_noise, zoo.learning_rate, zoo.hidden_sizes) == (0.1, 1e-3, (400, 300))
    for env_id in td3.PRESETS["sb3-zoo"]:
        preset("td3", "sb3-zoo", env_id).check()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"policy_noise": -0.1}, "policy_noise: got -0.1, expected at least 0"),
        ({"tau": 0.0}, "tau: got 0.0, expected above 0"),
        ({"policy_frequency": 0}, "policy_frequency: got 0, expected at least 1"),
    ],
)
def test_options_that_cannot_be_are_named(option, message):
    with pytest.raises(RunError, match=message):
        td3.train(td3.Config(**option))
