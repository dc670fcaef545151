import dataclasses

import numpy as np
import pytest
import torch

import fastac
from fastac.algorithms import ppo, resume
from fastac.collector import Collector
from fastac.evaluate import evaluate
from fastac.returns import discounted_returns
from fastac.run import RunError


def config(env_id="CartPole-v1", **options):
    return ppo.Config(env_id=env_id, **{"num_envs": 3, "num_steps": 40, "hidden_sizes": (8,), **options})


@pytest.mark.parametrize("vectorization", ["sync", "vector_entry_point"])
def test_whole_episodes_are_whole_and_begin_anew(vectorization):
    """Each environment's rows are its first four episodes, from start to end."""
    collector = Collector(config(vectorization=vectorization), num_episodes=4)
    for _ in range(3):
        before = collector.global_step
        episodes = collector.collect()
        buffer = collector.buffer
        ended = buffer.terminated | buffer.truncated
        lengths = []
        for n in range(3):
            rows = np.flatnonzero(buffer.mask[:, n])
            assert ended[rows[-1], n]
            ends = np.flatnonzero(ended[rows, n])
            lengths += np.diff(ends, prepend=-1).tolist()
            assert len(ends) == 4
            assert np.abs(buffer.observations[0, n]).max() < 0.05, "CartPole starts there"
        assert sorted(episodes.lengths) == sorted(lengths)
        assert episodes.returns == episodes.lengths
        assert collector.global_step - before >= sum(lengths)
        assert sum(lengths) == buffer.mask.sum() == len(buffer.valid(buffer.flat()[1])[0])
        assert len(buffer.rewards) == buffer.num_steps == buffer.mask.any(1).sum() > 40
    collector.close()


def test_the_returns_of_whole_episodes_need_no_critic():
    collector = Collector(config("sample_envs:Walk-v0"), num_episodes=3)
    episodes = collector.collect()
    rows = collector.buffer.transitions(torch.zeros(len(collector.observations)))
    over = rows.terminated | rows.truncated
    returns = discounted_returns(rows.rewards, torch.zeros(3), terminated=over, mask=rows.mask, gamma=1.0)
    first = torch.cat([torch.ones(1, 3, dtype=torch.bool), over[:-1]]) & rows.mask
    assert sorted(returns[first].tolist()) == sorted(episodes.returns)
    collector.close()


def test_a_rollout_that_is_cut_has_no_more_than_its_steps():
    collector = Collector(config())
    episodes = collector.collect()
    assert collector.buffer.mask.all()
    assert collector.global_step == 120
    assert len(episodes.returns) == (collector.buffer.terminated | collector.buffer.truncated).sum()
    assert len(collector.observations) == 40 * 3 + 3 + (collector.buffer.truncated).sum()
    collector.close()


@pytest.mark.parametrize("num_episodes", [None, 2])
@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_a_restored_collector_goes_on_with_the_same_bytes(num_episodes, env_id):
    """Row A9."""
    options = config(env_id, normalize_observations=True, normalize_rewards=True)
    first, second = (Collector(options, num_episodes=num_episodes) for _ in range(2))
    for _ in range(2):
        first.collect()
    second.load_state_dict(first.state_dict())
    for _ in range(2):
        assert first.collect() == second.collect()
        for name in ("observations", "actions", "rewards", "mask"):
            assert np.array_equal(getattr(first.buffer, name), getattr(second.buffer, name))
        assert torch.equal(first.observations, second.observations)
    assert first.global_step == second.global_step
    first.close()
    second.close()


def test_shuffled_gives_every_valid_row_of_any_fields_once():
    collector = Collector(config("Pendulum-v1", num_envs=1, num_steps=10))
    collector.collect()
    observations, actions = collector.buffer.flat()
    numbers = torch.arange(10)
    parts = list(collector.buffer.shuffled((observations, actions, numbers), 3, torch.Generator()))
    assert sorted(torch.cat([part[2] for part in parts]).tolist()) == [*range(10)]
    for rows, drawn, which in parts:
        assert torch.equal(rows, observations[which])
        assert torch.equal(drawn, actions[which])
        assert drawn.shape == (len(which), 1)
    collector.close()


def test_images_are_kept_as_bytes_and_not_normalised():
    pixels = config("sample_envs:Pixels-v0", num_steps=9)
    collector = Collector(pixels)
    collector.collect()
    assert collector.buffer.observations.dtype == np.uint8
    assert collector.observations.dtype == collector.buffer.flat()[0].dtype == torch.uint8
    with torch.no_grad():
        assert collector.make_critic()(collector.observations).shape == (9 * 3 + 3, 1)
    collector.close()
    with pytest.raises(RunError, match="normalize_observations: got True for images"):
        Collector(dataclasses.replace(pixels, normalize_observations=True))


def test_ppo_learns_from_images(tmp_path):
    options = {"num_envs": 4, "num_steps": 16, "num_minibatches": 1, "learning_rate": 2e-3, "activation": "relu"}
    pixels = config("sample_envs:Pixels-v0", total_timesteps=640, **options)
    ppo.train(pixels, lambda progress: progress.iteration < 9, run_dir=tmp_path / "run")
    result = resume(tmp_path / "run")
    assert evaluate(result.policy, pixels.env_id, episodes=10).mean > 3.5
    assert evaluate(fastac.load(tmp_path / "run"), pixels.env_id, episodes=10).mean > 3.5
