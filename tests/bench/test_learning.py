"""The learning harness: fixed starts, equal hyperparameters, and runs that are recorded once."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from bench import learning, learning_tasks, ppo_settings, record
from fastac.algorithms import preset


def test_evaluation_starts_are_the_fixed_ones() -> None:
    """The return of each start is what one environment alone gives for it."""
    returns = learning.evaluate(lambda observations: (observations[:, 2] + observations[:, 3] > 0).astype(int))
    assert len(returns) == learning.EPISODES
    for k in (0, 7, 99):
        env = gymnasium.make(ppo_settings.ENV_ID)
        observation, _ = env.reset(seed=learning.FIRST_START + k)
        total, done = 0.0, False
        while not done:
            action = int(observation[2] + observation[3] > 0)
            observation, reward, terminated, truncated, _ = env.step(action)
            total, done = total + float(reward), terminated or truncated
        assert returns[k] == total


@pytest.mark.parametrize("name", list(ppo_settings.SETTINGS))
def test_totals_are_whole_rollouts(name: str) -> None:
    setting = ppo_settings.SETTINGS[name]
    rollout = setting.num_envs * setting.num_steps
    assert setting.steps % rollout == 0
    assert 0 <= setting.total_timesteps - setting.steps < rollout


@pytest.mark.parametrize("name", ["cleanrl", "zoo"])
def test_fastac_gets_the_published_options(name: str) -> None:
    """The same as its presets, which are tested against the publications, but for whole rollouts and the seed."""
    published = preset("ppo", "cleanrl" if name == "cleanrl" else "sb3-zoo")
    setting = ppo_settings.SETTINGS[name]
    assert ppo_settings.fastac_config(setting, 3) == dataclasses.replace(
        published, seed=3, total_timesteps=setting.steps
    )


@pytest.mark.parametrize("name", list(ppo_settings.SETTINGS))
def test_sb3_gets_the_same_options(name: str) -> None:
    pytest.importorskip("stable_baselines3", reason="the peer is not installed")
    setting = ppo_settings.SETTINGS[name]
    model = ppo_settings.sb3_model(setting, 0)
    assert model.n_steps == setting.num_steps
    assert model.n_envs == setting.num_envs
    assert model.batch_size * setting.num_minibatches == setting.num_envs * setting.num_steps
    assert model.lr_schedule(0.5) == setting.learning_rate / 2
    assert (model.clip_range_vf is None) == (not setting.clip_vloss)
    group = model.policy.optimizer.param_groups[0]
    assert group["eps"] == setting.adam_eps
    sizes = [layer.out_features for layer in model.policy.mlp_extractor.value_net if hasattr(layer, "out_features")]
    assert tuple(sizes) == setting.hidden_sizes


def test_a_recorded_seed_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[int] = []

    def run(setting: Any, seed: int) -> dict[str, Any]:
        ran.append(seed)
        return learning.summary(seed, 100, 1.0, 1.0, [1.0, 3.0], [])

    monkeypatch.setattr(record, "RESULTS", tmp_path)
    monkeypatch.setitem(learning.RUNNERS, "sb3", run)
    learning.main("sb3", "zoo", [0, 2])
    learning.main("sb3", "zoo", [0, 1, 2])
    assert ran == [0, 2, 1]
    stored = json.loads((tmp_path / "learning" / "sb3-zoo.json").read_text())
    assert [item["seed"] for item in stored["runs"]] == [0, 1, 2]
    assert np.mean([item["mean_return"] for item in stored["runs"]]) == 2.0
    learning.main("sb3", "zoo", [1], again=True)
    assert ran == [0, 2, 1, 1]
    stored = json.loads((tmp_path / "learning" / "sb3-zoo.json").read_text())
    assert [item["seed"] for item in stored["runs"]] == [0, 1, 2]


def test_the_zoos_tasks_are_the_presets() -> None:
    for name, algorithm in (("a2c-zoo", "actor_critic"), ("sac-zoo", "sac")):
        task = learning_tasks.TASKS[name]
        published = preset(algorithm, "sb3-zoo", task.env_id)
        assert (published.env_id, published.total_timesteps) == (task.env_id, task.steps)
        assert published.num_envs == task.hyperparameters.get("num_envs", 1)


def test_evaluation_takes_continuous_actions() -> None:
    returns = learning.evaluate(lambda observations: np.zeros((len(observations), 1), np.float32), "Pendulum-v1")
    assert len(returns) == learning.EPISODES
    assert max(returns) < 0.0


def test_rendered_results_are_json() -> None:
    value = {"a": [1, 2.5, None], "b": {"c": "x" * 200, "d": [{"e": list(range(50))}]}, "f": {}, "g": []}
    assert json.loads(record.render(value)) == value
