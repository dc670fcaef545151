import math

import gymnasium
import numpy as np
import pytest
import torch
from torch import nn

from fastac.images import image_of
from fastac.networks import CategoricalActor, GaussianActor, NatureConvolutions, make_actor, make_critic, mlp


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
    torch.testing.assert_close(ours(x), theirs(x))


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


def image_space(*shape):
    return gymnasium.spaces.Box(0, 255, shape, np.uint8)


def test_images_take_natures_network():
    """The layers and the number of parameters of Mnih et al. 2015: 4 x 84 x 84 to 512 features to the outputs."""
    actor = make_actor(image_space(4, 84, 84), gymnasium.spaces.Discrete(6), hidden_sizes=(512,), activation="relu")
    theirs = nn.Sequential(
        nn.Conv2d(4, 32, 8, stride=4), nn.ReLU(),
        nn.Conv2d(32, 64, 4, stride=2), nn.ReLU(),
        nn.Conv2d(64, 64, 3, stride=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(3136, 512), nn.ReLU(), nn.Linear(512, 6),
    )  # fmt: skip
    for hand, ours in zip(theirs.parameters(), actor.parameters(), strict=True):
        hand.data.copy_(ours.data)
    images = torch.randint(0, 256, (3, 4, 84, 84), dtype=torch.uint8, generator=generator())
    torch.testing.assert_close(actor.network(images), theirs(images / 255))
    assert sum(p.numel() for p in actor.parameters()) == 1_687_206


def test_every_layout_of_an_image_gives_the_same_features():
    first = torch.randint(0, 256, (2, 3, 40, 44), dtype=torch.uint8, generator=generator())
    networks = [NatureConvolutions(image_of(image_space(*shape)), generator()) for shape in ((3, 40, 44), (40, 44, 3))]
    torch.testing.assert_close(networks[0](first), networks[1](first.movedim(1, -1).contiguous()))
    grey = NatureConvolutions(image_of(image_space(40, 44)), generator())
    assert torch.equal(grey(first[:, 0]), grey(first[:, :1]))


def test_convolutions_are_orthogonal_and_seeded():
    before = torch.get_rng_state()
    first, second = (make_critic(image_space(36, 36), generator=generator(5)) for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(one, other) for one, other in zip(first.parameters(), second.parameters(), strict=True))
    for layer in first[0].layers[:-1:2]:
        weight = layer.weight.detach().flatten(1).double()
        short = weight @ weight.T if weight.shape[0] <= weight.shape[1] else weight.T @ weight
        torch.testing.assert_close(short, 2.0 * torch.eye(len(short)).double(), atol=1e-5, rtol=1e-5)
        assert not layer.bias.any()


def test_many_images_are_read_in_parts(monkeypatch):
    critic = make_critic(image_space(36, 36), generator=generator())
    images = torch.randint(0, 256, (7, 36, 36), dtype=torch.uint8, generator=generator())
    whole = critic(images)
    monkeypatch.setattr("fastac.networks.IMAGES_AT_A_TIME", 3)
    with torch.no_grad():
        torch.testing.assert_close(critic(images), whole)
