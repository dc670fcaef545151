"""Environments that step while the learner learns: the same bytes each time, nothing lost, errors heard."""

import dataclasses
import signal

import gymnasium
import numpy as np
import pytest
import replay_agents
import torch
from replay_agents import small

from fastac import checkpoint
from fastac.algorithms import ddpg, off_policy, resume, sac, td3
from fastac.run import RunError, torch_threads

replay_agents.register()
AGENTS = {"sac": sac.SAC, "td3": td3.TD3, "ddpg": ddpg.DDPG, "off_policy": off_policy.OffPolicy}
MODULES = {"sac": sac, "td3": td3, "ddpg": ddpg, "off_policy": off_policy}
OPTIONS = {"num_envs": 2, "train_frequency": 3, "total_timesteps": 180, "log_interval": 40, "hidden_sizes": (8,)}


@pytest.fixture(autouse=True)
def _one_thread():
    with torch_threads(1):
        yield


def config_of(name, **options):
    options = {**OPTIONS, **options}
    if name == "off_policy":
        return off_policy.Config(env_id="Pendulum-v1", batch_size=32, learning_starts=64, buffer_size=4000, **options)
    return small(name, **options)


def overlapped(name, **options):
    return config_of(name, vectorization="async", overlap=True, **options)


def parameters(actor):
    return [parameter.detach().numpy().tobytes() for parameter in actor.parameters()]


@pytest.mark.parametrize("name", AGENTS)
def test_it_is_act_learn_step(name):
    """Beside each other is as one after the other: act, make the updates that are due, step. Nothing else changes."""
    config = config_of(name, normalize_observations=True)
    agent = AGENTS[name](config)
    experience, updates = agent.experience, []
    while experience.global_step < config.total_timesteps:
        if experience.global_step < config.learning_starts:
            actions = experience.random_actions()
        else:
            actions = agent.explore() if name in ("td3", "ddpg") else experience.sampled_actions()
        if experience.num_steps % config.train_frequency == 0:
            agent.anneal(1.0 - experience.global_step / config.total_timesteps)
            learnt = experience.global_step - config.learning_starts
            while agent.num_updates < int(learnt * config.updates_per_step):
                updates.append(agent.update())
        experience.step(actions)
    result = MODULES[name].train(overlapped(name, normalize_observations=True))
    assert len(updates) > 40
    assert parameters(result.policy.actor) == parameters(agent.actor)
    plain = MODULES[name].train(config)
    assert parameters(result.policy.actor) != parameters(plain.policy.actor)
    experience.close()


@pytest.mark.parametrize("name", ["sac", "td3"])
def test_a_resumed_run_is_the_same_bit_for_bit(name, tmp_path):
    """Row A9: no step is under way when a checkpoint is written."""
    config = overlapped(name)
    MODULES[name].train(config, run_dir=tmp_path / "whole")
    MODULES[name].train(config, lambda progress: progress.iteration < 3, run_dir=tmp_path / "parts")
    assert resume(tmp_path / "parts").finished
    states = [checkpoint.load(tmp_path / kind / "checkpoint.pt") for kind in ("whole", "parts")]
    for state in states:
        state["run"].pop("elapsed_seconds")
        checkpoint.save(tmp_path / "again.pt", state)
        state["bytes"] = (tmp_path / "again.pt").read_bytes()
    assert states[0]["bytes"] == states[1]["bytes"]
    assert len(states[0]["envs"]["seeds"]) == 2


def test_ctrl_c_in_the_middle_of_a_step_loses_nothing(tmp_path, monkeypatch):
    config = overlapped("sac")
    whole = sac.train(config)
    update = sac.SAC.update

    def interrupted(agent):
        if agent.num_updates == 40:
            signal.raise_signal(signal.SIGINT)
        return update(agent)

    with monkeypatch.context() as patch:
        patch.setattr(sac.SAC, "update", interrupted)
        result = sac.train(config, run_dir=tmp_path / "run")
    assert result.signal == signal.SIGINT
    state = checkpoint.load(tmp_path / "run" / "checkpoint.pt")
    assert 64 + 40 <= state["global_step"] == result.global_step < 120
    assert state["num_steps"] * 2 == state["global_step"]
    assert state["replay"]["metadata"] is not None
    assert parameters(resume(tmp_path / "run").policy.actor) == parameters(whole.policy.actor)


class Fails(replay_agents.Observed):
    action_space = gymnasium.spaces.Box(-2, 2, (1,), np.float32)
    steps = 0

    def step(self, action):
        self.steps += 1
        if self.steps > 40:
            raise FloatingPointError("the simulation diverged")
        return super().step(action)


def test_an_error_in_a_worker_is_raised(monkeypatch):
    spec = gymnasium.envs.registration.EnvSpec("probe/Fails-v0", Fails, disable_env_checker=True)
    monkeypatch.setitem(gymnasium.registry, spec.id, spec)
    with pytest.raises(FloatingPointError, match="the simulation diverged"):
        sac.train(overlapped("sac", env_id="probe/Fails-v0"))


@pytest.mark.parametrize("vectorization", ["sync", "vector_entry_point"])
@pytest.mark.parametrize("name", AGENTS)
def test_nothing_overlaps_with_what_this_process_steps(name, vectorization):
    config = dataclasses.replace(overlapped(name), vectorization=vectorization)
    with pytest.raises(
        RunError, match=f"overlap: got True with vectorization '{vectorization}'.* one of async, envpool"
    ):
        MODULES[name].train(config)


def test_the_learners_threads_are_its_own():
    """Of torch there are as many as asked for while the workers, with one each, are at work."""
    seen = []
    config = dataclasses.replace(overlapped("sac"), torch_threads=2, total_timesteps=40)
    sac.train(config, lambda progress: seen.append(torch.get_num_threads()))
    assert seen == [2]
    assert torch.get_num_threads() == 1
