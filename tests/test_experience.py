from functools import partial
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import torch

from fastac import checkpoint
from fastac.buffers import DevicePrioritizedReplayBuffer, PrioritizedReplayBuffer
from fastac.envs import EnvError
from fastac.experience import Experience
from fastac.networks import make_actor, make_tanh_actor, make_tanh_gaussian_actor
from fastac.run import RunError


def experience(env_id="Pendulum-v1", make=make_tanh_gaussian_actor, n_step=1, **options):
    config = {
        "env_id": env_id, "num_envs": 3, "vectorization": "sync", "seed": 5, "gamma": 0.9, "buffer_size": 6000,
        "normalize_observations": False, "hidden_sizes": (8,), "activation": "relu", "device": "cpu", "overlap": False,
    }  # fmt: skip
    replay = options.pop("replay", None)
    more = {} if replay is None else {"replay": replay}
    return Experience(SimpleNamespace(**config | options), make, n_step=n_step, **more)


@pytest.fixture
def short_pole(monkeypatch):
    """CartPole whose limit is reached: most episodes are truncated, some fall before; in both autoreset modes."""
    import dataclasses

    spec = dataclasses.replace(gymnasium.spec("CartPole-v1"), id="ShortPole-v0", max_episode_steps=15)
    spec.kwargs = {}
    monkeypatch.setitem(gymnasium.registry, "ShortPole-v0", spec)
    return "ShortPole-v0"


@pytest.mark.parametrize("vectorization", ["sync", "vector_entry_point"])
def test_transitions_hold_true_final_observations(short_pole, vectorization):
    """Rows R1, R2, R15: where an episode ended, the next observation is the last one, and no filler is drawn."""
    options = {"max_episode_steps": 15} if vectorization == "vector_entry_point" else {}
    gymnasium.registry[short_pole].kwargs = options
    held = experience(short_pole, make_actor, vectorization=vectorization)
    expected, step = [], held.envs.step

    def spy(actions):
        before, row = held.observations.copy(), step(actions)
        following = row.observations.copy()
        following[(row.terminated | row.truncated) & row.mask] = row.final_observations
        expected.extend(
            zip(before, actions, row.rewards, following, row.terminated, row.truncated, row.mask, strict=True)
        )
        return row

    held.envs.step = spy
    episodes = 0
    for _ in range(120):
        episodes += len(held.step(held.random_actions()).returns)
    valid = [row for row in expected if row[-1]]
    assert held.global_step == len(valid) == len(held.replay)
    stored = held.replay.gather([i for i, row in enumerate(expected) if row[-1]])
    for got, want in zip(stored[:6], (np.array([row[k] for row in valid]) for k in (0, 1, 2, 3, 4, 5)), strict=True):
        assert np.array_equal(got, want)
    assert episodes == (stored.terminated | stored.truncated).sum()
    assert stored.truncated.sum() > 5
    assert stored.terminated.sum() > 0
    assert held.replay.breaks == 0
    held.close()


def test_actions_are_stored_in_the_box_and_scaled_for_the_environment():
    """Row A7: log pi is measured in [-1, 1]; Pendulum's bounds are +-2."""
    held = experience()
    step, acted = held.envs.step, []
    held.envs.step = lambda actions: acted.append(actions.copy()) or step(actions)
    for draw in (held.random_actions, held.sampled_actions, held.most_probable_actions):
        held.step(draw())
    stored = held.replay.gather(np.arange(9)).actions
    assert np.abs(stored).max() <= 1
    np.testing.assert_allclose(np.concatenate(acted), 2 * stored, rtol=1e-6)
    assert acted[0].dtype == np.float32
    held.close()


def test_observations_are_normalised_when_they_are_sampled():
    """Row A1: per dimension; a stored row is seen with the newest statistics, as an observation is when acting."""
    held = experience(normalize_observations=True)
    for _ in range(150):
        held.step(held.random_actions())
    batch = held.sample(64)
    assert batch.observations.abs().max() < 10
    rows = held.replay.gather(batch.indices.numpy())
    assert np.array_equal(batch.observations.numpy(), held.policy.observe(rows.observations))
    assert np.array_equal(batch.next_observations.numpy(), held.policy.observe(rows.next_observations))
    seen = held.observation_normalizer.moments
    assert seen.count == held.global_step + 3
    assert (np.abs(seen.var - rows.observations.var(0)) < 0.5 * seen.var).all()
    held.close()


@pytest.mark.parametrize("replay", [None, PrioritizedReplayBuffer])
def test_it_goes_on_bit_for_bit(tmp_path, replay):
    """Row A9: 2N steps are N, saved, loaded, N; replay buffer and its generator included."""

    def go(held, steps):
        for _ in range(steps):
            held.step(held.sampled_actions())
        batch = held.sample(32)
        if replay is not None:
            held.replay.update_priorities(batch.indices, batch.rewards.abs() + 0.1)
        return batch

    options = {"normalize_observations": True, "replay": replay, "n_step": 3, "buffer_size": 500}
    straight, first = experience(**options), experience(**options)
    go(straight, 130)
    go(first, 130)
    checkpoint.save(tmp_path / "half.pt", first.state_dict())
    second = experience(**options)
    second.load_state_dict(checkpoint.load(tmp_path / "half.pt"))
    for _ in range(2):
        for a, b in zip(go(straight, 130), go(second, 130), strict=True):
            if isinstance(a, torch.Tensor):
                assert torch.equal(a, b)
    assert straight.replay.added > 500
    for kind in ("checkpoint_a", "checkpoint_b"):
        checkpoint.save(tmp_path / kind, (straight if kind == "checkpoint_a" else second).state_dict())
    assert (tmp_path / "checkpoint_a").read_bytes() == (tmp_path / "checkpoint_b").read_bytes()
    for held in (straight, first, second):
        held.close()


def test_priorities_that_a_device_refused_are_named():
    """The buffer on CUDA, here on the CPU, told not to look: whoever logs hears of it."""
    held = experience(replay=partial(DevicePrioritizedReplayBuffer, device="cpu"))
    for _ in range(10):
        held.step(held.sampled_actions())
    held.check_priorities()
    held.replay._may_read = False
    batch = held.sample(4)
    held.update_priorities(batch.indices, torch.full((4,), torch.nan))
    with pytest.raises(ValueError, match="priorities: 1 updates had one that is not finite"):
        held.check_priorities()
    held.close()
    held = experience(replay=PrioritizedReplayBuffer)
    held.check_priorities()
    held.close()


def test_a_batch_is_drawn_into_the_same_memory():
    held = experience()
    held.step(held.random_actions())
    assert held.sample(8).rewards.data_ptr() == held.sample(8).rewards.data_ptr()
    held.close()


def test_discrete_actions_and_deterministic_actors():
    held = experience("CartPole-v1", make_actor)
    held.step(held.random_actions())
    held.step(held.sampled_actions())
    assert held.sample(8).actions.dtype == torch.int64
    held.close()
    held = experience(make=make_tanh_actor)
    assert np.array_equal(held.sampled_actions(), held.most_probable_actions())
    held.close()


class Unbounded(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"env_id": "CartPole-v1"}, EnvError, "action_space: got Discrete"),
        ({"env_id": "probe/Unbounded-v0"}, EnvError, "expected finite bounds"),
        ({"buffer_size": 2}, RunError, "buffer_size: got 2, expected at least num_envs, 3"),
        ({"device": "cuda:99"}, RunError, "device: got 'cuda:99'"),
    ],
)
def test_what_cannot_be_is_named(monkeypatch, options, error, message):
    spec = gymnasium.envs.registration.EnvSpec("probe/Unbounded-v0", Unbounded, disable_env_checker=True)
    monkeypatch.setitem(gymnasium.registry, spec.id, spec)
    with pytest.raises(error, match=message):
        experience(**options)
