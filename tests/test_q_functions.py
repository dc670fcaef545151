import gymnasium
import numpy as np
import pytest
import torch

from fastac.networks import make_tanh_actor, make_tanh_gaussian_actor, mlp
from fastac.q_functions import Target, make_q_functions

FLAT = gymnasium.spaces.Box(-1, 1, (3,))
IMAGES = gymnasium.spaces.Box(0, 255, (40, 40, 3), np.uint8)
BOX = gymnasium.spaces.Box(-2, 2, (2,))


def test_each_q_sees_the_observation_and_the_action():
    q = make_q_functions(FLAT, 2, count=2, hidden_sizes=(8,), generator=torch.Generator().manual_seed(0))
    observations, actions = torch.randn(5, 3), torch.randn(5, 2)
    first, second = q(observations, actions)
    assert not torch.equal(first, second)
    expected = q.networks[0](torch.cat([observations, actions], 1)).squeeze(1)
    assert torch.equal(first, expected)
    assert torch.equal(q.minimum(observations, actions), torch.minimum(first, second))
    assert first.grad_fn.next_functions[0][0].name() == "MLPNodeBackward", "the compiled node is taken"


def test_images_share_their_convolutions():
    q = make_q_functions(IMAGES, 2, count=2, hidden_sizes=(8,))
    images = torch.randint(0, 256, (4, 40, 40, 3), dtype=torch.uint8)
    assert [values.shape for values in q(images, torch.zeros(4, 2))] == [(4,), (4,)]
    assert sum(isinstance(m, torch.nn.Conv2d) for m in q.modules()) == 3
    assert make_tanh_gaussian_actor(IMAGES, BOX, hidden_sizes=(8,))(images).mean.shape == (4, 2)


def test_layer_norm_stands_before_every_activation():
    q = make_q_functions(FLAT, 2, count=1, hidden_sizes=(8, 8), layer_norm=True)
    names = [type(layer).__name__ for layer in q.networks[0]]
    assert names == ["Linear", "LayerNorm", "ReLU", "Linear", "LayerNorm", "ReLU", "Linear"]
    q(torch.randn(5, 3), torch.randn(5, 2))[0].sum().backward()
    assert all(p.grad is not None for p in q.parameters())


def test_uniform_weights_are_those_of_torchs_layers():
    """SAC and TD3 were published with them: within 1 / sqrt(inputs), biases too."""
    network = mlp([400, 100, 1], initialization="uniform", generator=torch.Generator().manual_seed(0))
    for layer, inputs in ((network[0], 400), (network[2], 100)):
        for parameter in (layer.weight, layer.bias):
            assert parameter.abs().max() <= inputs**-0.5
        assert layer.weight.abs().max() > 0.95 * inputs**-0.5
    assert network[0].weight.std().item() == pytest.approx(400**-0.5 / 3**0.5, rel=0.02)


def test_a_target_follows():
    """After k steps theta' is theta + (1 - tau)^k (theta'_0 - theta); the copy is never trained."""
    q = make_q_functions(FLAT, 1, count=2, hidden_sizes=(4,))
    target = Target(q, tau=0.1)
    with torch.no_grad():
        for p in q.parameters():
            p += 1.0
    for _ in range(7):
        target.follow()
    for ours, theirs in zip(target.network.parameters(), q.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs - 0.9**7)
        assert not ours.requires_grad
        assert ours.data_ptr() != theirs.data_ptr()
    assert make_tanh_actor(FLAT, BOX)(torch.randn(5, 3)).abs().max() < 1
