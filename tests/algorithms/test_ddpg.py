import dataclasses
import inspect

import pytest
import replay_agents
import replay_reference as reference

from fastac.algorithms import ddpg, preset
from fastac.run import RunError, torch_threads

replay_agents.register()


@pytest.fixture(autouse=True)
def _one_thread():
    with torch_threads(1):
        yield


@pytest.mark.parametrize("updates", [1, 100])
@pytest.mark.parametrize("options", [{}, {"policy_frequency": 1}, {"env_id": "continuous/Observed-v0"}])
def test_updates_agree_with_the_float64_reference(options, updates):
    """Algorithm 1; the parameters and the targets after 1 and after 100 updates."""
    agent = replay_agents.filled("ddpg", **options)
    batches, _ = replay_agents.in_float64(agent)
    actor, qs = replay_agents.networks_of(agent)
    assert len(qs) == 1
    other = reference.TD3(actor, qs, agent.config, smooth=False)
    for _ in range(updates):
        agent.update()
        other.update(replay_agents.rows_of(batches[-1]), [])
    replay_agents.assert_same(agent, other)


def test_defaults_are_cleanrls():
    """Row A5: one Config, against the documented table (CleanRL's ddpg_continuous_action.py)."""
    expected = {
        "total_timesteps": 1_000_000, "learning_rate": 3e-4, "buffer_size": 1_000_000, "gamma": 0.99, "tau": 0.005,
        "batch_size": 256, "exploration_noise": 0.1, "learning_starts": 25_000, "policy_frequency": 2,
        "hidden_sizes": (256, 256), "activation": "relu", "num_envs": 1,
    }  # fmt: skip
    found = dataclasses.asdict(ddpg.Config())
    assert {name: found[name] for name in expected} == expected
    assert ddpg.PRESETS["cleanrl"] == ddpg.Config()


def test_the_sb3_preset_is_sb3s_defaults():
    """Row A5."""
    sb3 = pytest.importorskip("stable_baselines3", reason="the peer is not installed")
    theirs = {name: p.default for name, p in inspect.signature(sb3.DDPG.__init__).parameters.items()}
    ours = preset("ddpg", "sb3")
    same = ("learning_rate", "buffer_size", "learning_starts", "batch_size", "tau", "gamma")
    assert {name: getattr(ours, name) for name in same} == {name: theirs[name] for name in same}
    assert theirs["action_noise"] is None
    assert (ours.exploration_noise, ours.policy_frequency) == (0.0, 1)


def test_the_zoos_presets():
    zoo = preset("ddpg", "sb3-zoo", "Pendulum-v1")
    assert (zoo.gamma, zoo.learning_starts, zoo.policy_frequency, zoo.hidden_sizes) == (0.98, 10_000, 1, (400, 300))
    for env_id in ddpg.PRESETS["sb3-zoo"]:
        preset("ddpg", "sb3-zoo", env_id).check()


def test_an_option_that_cannot_be_is_named():
    with pytest.raises(RunError, match=r"exploration_noise: got -1.0, expected at least 0"):
        ddpg.train(ddpg.Config(exploration_noise=-1.0))
