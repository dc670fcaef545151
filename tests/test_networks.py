import math

import gymnasium
import pytest
import torch
from torch import nn

from fastac.networks import CategoricalActor, GaussianActor, make_actor, mlp


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("gain", [0.01, 1.0])
def test_layers_are_orthogonal_with_their_gains_and_no_bias(gain):
    network = mlp([4, 64, 32, 2], output_gain=gain, generator=generator())
    for layer, expected in zip(network[::2], (math.sqrt(2), math.sqrt(2), gain), strict=True):
        weight = layer.weight.detach().double()
        short = weight @ weight.T if weight.shape[0] <= weight.shape[1] else weight.T @ weight
        torch.testing.assert_close(short, expected**2 * torch.eye(len(short)).double(), atol=1e-5, rtol=1e-5)
        assert not layer.bias.any()


def test_the_global_generator_is_never_touched_and_a_seed_gives_the_same_bytes():
    before = torch.get_rng_state()
    first, second = (mlp([3, 8, 1], generator=generator(5)).state_dict() for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_state_loads_into_a_network_written_by_hand():
    ours = mlp([4, 8, 2], generator=generator())
    theirs = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(5, 4)
    assert torch.equal(ours(x), theirs(x))


def test_actors_follow_the_action_space():
    observations = gymnasium.spaces.Box(-1, 1, (3,))
    assert isinstance(make_actor(observations, gymnasium.spaces.Discrete(4)), CategoricalActor)
    gaussian = make_actor(observations, gymnasium.spaces.Box(-1, 1, (2,)))
    assert isinstance(gaussian, GaussianActor)
    assert gaussian.log_std.tolist() == [0.0, 0.0], "row A5: the log deviation starts at 0"
    with pytest.raises(TypeError, match="action_space: got MultiBinary"):
        make_actor(observations, gymnasium.spaces.MultiBinary(2))


def test_widths_are_checked():
    with pytest.raises(ValueError, match=r"sizes: got \[4\]"):
        mlp([4])
