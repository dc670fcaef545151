import gymnasium
import numpy as np
import pytest
import torch

import fastac
from fastac import checkpoint
from fastac.networks import make_actor
from fastac.normalize import ObservationNormalizer
from fastac.policy import Policy, load

OBSERVATIONS = gymnasium.spaces.Box(-1, 1, (3,))
ACTIONS = [gymnasium.spaces.Discrete(4, start=2), gymnasium.spaces.Box(np.float32([-0.01, -2]), np.float32([0.01, 3]))]


def make(actions, seed=0):
    normalizer = ObservationNormalizer((3,))
    normalizer.update(np.random.default_rng(seed).normal(size=(50, 3)) * 5 + 1)
    actor = make_actor(OBSERVATIONS, actions, hidden_sizes=(8,), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for parameter in actor.parameters():
            parameter.add_(0.3)
    return Policy(actor, OBSERVATIONS, actions, hidden_sizes=(8,), observation_normalizer=normalizer)


@pytest.mark.parametrize("actions", ACTIONS)
def test_actions_are_the_environments(actions):
    policy = make(actions)
    observations = np.random.default_rng(1).normal(size=(20, 3))
    for deterministic in (True, False):
        batch = policy.act(observations, deterministic)
        assert all(actions.contains(action) for action in batch)
        assert actions.contains(policy.act(observations[0], deterministic))
    one_by_one = np.stack([policy.act(observation) for observation in observations])
    np.testing.assert_allclose(policy.act(observations), one_by_one, rtol=1e-5)


@pytest.mark.parametrize("actions", ACTIONS)
def test_the_mode_is_the_actors_on_normalised_observations(actions):
    policy = make(actions)
    observations = np.random.default_rng(1).normal(size=(20, 3))
    moments = policy.observation_normalizer.moments
    normalised = ((observations - moments.mean) / np.sqrt(moments.var + 1e-8)).clip(-10, 10).astype(np.float32)
    with torch.no_grad():
        mode = policy.actor(torch.from_numpy(normalised)).mode().numpy()
    expected = mode + 2 if isinstance(actions, gymnasium.spaces.Discrete) else mode.clip(actions.low, actions.high)
    np.testing.assert_allclose(policy.act(observations), expected, atol=1e-5)


@pytest.mark.parametrize("actions", ACTIONS)
def test_a_saved_policy_acts_the_same_and_draws_on(actions, tmp_path):
    policy = make(actions)
    observations = np.random.default_rng(1).normal(size=(20, 3))
    policy.act(observations, deterministic=False)
    checkpoint.save(tmp_path / "checkpoint.pt", {"policy": policy.state_dict()})
    drawn = policy.act(observations, deterministic=False)
    for where in (tmp_path, tmp_path / "checkpoint.pt"):
        loaded = load(where)
        assert np.array_equal(loaded.act(observations, deterministic=False), drawn)
        assert np.array_equal(loaded.act(observations), policy.act(observations))
        assert loaded.action_space == actions
        assert loaded.observation_space == OBSERVATIONS
    assert fastac.load is load


def test_acting_changes_nothing_but_the_generator():
    policy = make(ACTIONS[0])
    before = policy.observation_normalizer.state_dict()
    policy.act(np.full((4, 3), 100.0))
    after = policy.observation_normalizer.state_dict()
    assert before["moments"]["count"] == after["moments"]["count"]


def test_wrong_observations_and_files_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"observations: got shape \(2, 4\), expected \(3,\)"):
        make(ACTIONS[0]).act(np.zeros((2, 4)))
    checkpoint.save(tmp_path / "other.pt", {"weights": 1})
    with pytest.raises(checkpoint.CheckpointError, match="no policy"):
        load(tmp_path / "other.pt")
    with pytest.raises(checkpoint.CheckpointError):
        load(tmp_path)


def test_a_policy_of_images_is_saved_and_acts(tmp_path):
    space = gymnasium.spaces.Box(0, 255, (36, 36, 3), np.uint8)
    actor = make_actor(space, ACTIONS[0], hidden_sizes=(8,), activation="relu")
    with torch.no_grad():
        actor.network[-1].weight.mul_(100.0)
    policy = Policy(actor, space, ACTIONS[0], hidden_sizes=(8,), activation="relu")
    images = np.random.default_rng(0).integers(0, 256, (20, 36, 36, 3), np.uint8)
    checkpoint.save(tmp_path / "checkpoint.pt", {"policy": policy.state_dict()})
    loaded = load(tmp_path)
    assert loaded.observation_space == space
    assert np.array_equal(loaded.act(images), policy.act(images))
    assert len(np.unique(policy.act(images))) > 1
    assert ACTIONS[0].contains(policy.act(images[0], deterministic=False))
    with pytest.raises(ValueError, match="observation_normalizer: got one for images"):
        Policy(actor, space, ACTIONS[0], observation_normalizer=ObservationNormalizer(space.shape))
