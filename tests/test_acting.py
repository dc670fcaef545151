import numpy as np
import pytest
import torch
from torch import nn

from fastac.acting import ArrayActor, array_forward
from fastac.networks import CategoricalActor, GaussianActor, mlp


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("sizes", [[5, 3], [5, 16, 3], [5, 64, 64, 3]])
def test_arrays_agree_with_torch_and_follow_the_optimiser(activation, sizes):
    network = mlp(sizes, activation=activation, generator=generator())
    forward = array_forward(network)
    x = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)
    kept = x.copy()
    for _ in range(2):
        with torch.no_grad():
            expected = network(torch.from_numpy(x)).numpy()
        np.testing.assert_allclose(forward(x), expected, atol=1e-5)
        assert np.array_equal(x, kept)
        optimizer = torch.optim.Adam(network.parameters(), lr=0.1, fused=True)
        network(torch.from_numpy(x)).square().sum().backward()
        optimizer.step()


def test_a_module_of_another_kind_takes_torch():
    network = nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    x = np.ones((3, 5), np.float32)
    with torch.no_grad():
        np.testing.assert_allclose(array_forward(network)(x), network(torch.from_numpy(x)).numpy())


def test_array_actor_draws_from_the_actors_distribution():
    actor = CategoricalActor(mlp([2, 8, 3], output_gain=2.0, generator=generator(1)))
    acting = ArrayActor(actor)
    observations = np.tile(np.float32([[0.5, -1.0]]), (20_000, 1))
    actions = acting.sample(observations, acting.noise((20_000,), generator(2)))
    with torch.no_grad():
        probs = actor(torch.from_numpy(observations[:1])).log_probs.exp().numpy()[0]
    counts = np.bincount(actions, minlength=3) / len(actions)
    assert np.all(np.abs(counts - probs) < 5 * np.sqrt(probs * (1 - probs) / len(actions)))
    assert acting.mode(observations[:1])[0] == probs.argmax()


def test_array_actor_draws_gaussians_with_the_present_deviation():
    actor = GaussianActor(mlp([2, 8, 2], generator=generator(1)), 2)
    acting = ArrayActor(actor)
    observations = np.tile(np.float32([[0.5, -1.0]]), (20_000, 1))
    with torch.no_grad():
        actor.log_std.copy_(torch.tensor([0.5, -1.0]))
        mean = actor(torch.from_numpy(observations[:1])).mode().numpy()[0]
    actions = acting.sample(observations, acting.noise((20_000,), generator(2)))
    std = np.exp([0.5, -1.0])
    assert np.all(np.abs(actions.mean(0) - mean) < 5 * std / np.sqrt(len(actions)))
    np.testing.assert_allclose(actions.std(0), std, rtol=0.03)


def test_draws_are_those_of_numpy():
    """The same noise gives the same actions as argmax of logits and noise, and mean plus scaled noise."""
    x = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    actor = CategoricalActor(mlp([4, 8, 5], output_gain=1.0, generator=generator(1)))
    acting = ArrayActor(actor)
    noise = acting.noise((50,), generator(2))
    logits = array_forward(actor.network)(x)
    np.testing.assert_array_equal(acting.sample(x, noise), np.argmax(logits + noise, -1))
    gaussian = GaussianActor(mlp([4, 8, 2], generator=generator(1)), 2)
    noise = ArrayActor(gaussian).noise((50,), generator(2))
    with torch.no_grad():
        gaussian.log_std.copy_(torch.tensor([0.5, -1.0]))
    wanted = array_forward(gaussian.network)(x) + np.exp(np.float32([0.5, -1.0])) * noise
    np.testing.assert_allclose(ArrayActor(gaussian).sample(x, noise), wanted, rtol=1e-6, atol=1e-6)


def test_observations_of_any_layout():
    network = mlp([4, 8, 2], generator=generator())
    forward = array_forward(network)
    x = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    assert forward(x[:0]).shape == (0, 2)
    for same in (np.asfortranarray(x), np.repeat(x, 2, axis=0)[::2]):
        np.testing.assert_allclose(forward(same), forward(x), rtol=1e-6, atol=1e-6)
    with pytest.raises(RuntimeError, match="shape"):
        forward(np.zeros((2, 5), np.float32))


@pytest.mark.parametrize("rows", [1, 4, 64])
@pytest.mark.parametrize("kind", ["categorical", "gaussian"])
def test_act_gives_the_draws_of_sample_with_log_probabilities_and_values(kind, rows):
    network = mlp([4, 16, 3], output_gain=1.0, generator=generator(1))
    actor = CategoricalActor(network) if kind == "categorical" else GaussianActor(network, 3, -0.5)
    critic = mlp([4, 8, 8, 1], activation="relu", generator=generator(2))
    acting = ArrayActor(actor, critic)
    x = np.random.default_rng(0).normal(size=(rows, 4)).astype(np.float32)
    noise = acting.noise((rows,), generator(3))
    for _ in range(2):
        found = acting.act(x, noise)
        np.testing.assert_array_equal(found.actions, acting.sample(x, noise))
        with torch.no_grad():
            observations = torch.from_numpy(x)
            log_probs = actor(observations).log_prob(torch.from_numpy(found.actions))
            np.testing.assert_allclose(found.log_probs, log_probs, atol=1e-5)
            np.testing.assert_allclose(found.values, critic(observations).squeeze(-1), atol=1e-5)
            for parameter in (*actor.parameters(), *critic.parameters()):
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator(4)))


def test_act_of_other_modules_takes_torch():
    actor = GaussianActor(nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2)), 2)
    critic = mlp([4, 8, 1])
    acting, x = ArrayActor(actor, critic), np.ones((3, 4), np.float32)
    found = acting.act(x, acting.noise((3,), generator()))
    assert found.actions.shape == (3, 2)
    assert found.log_probs.shape == found.values.shape == (3,)
    with pytest.raises(TypeError, match="critic"):
        ArrayActor(actor).act(x, acting.noise((3,), generator()))


def test_a_sampler_follows_steps_in_place_and_a_new_one_other_parameters():
    actor = CategoricalActor(mlp([4, 8, 5], output_gain=1.0, generator=generator(1)))
    acting = ArrayActor(actor)
    x = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    noise = acting.noise((50,), generator(2))
    sample = acting.sampler()
    with torch.no_grad():
        actor.network[-1].bias.copy_(torch.tensor([0.0, 0.0, 100.0, 0.0, 0.0]))
    assert (sample(x, noise) == 2).all()
    actor.network[-1].bias = nn.Parameter(torch.tensor([0.0, 0.0, 0.0, 100.0, 0.0]))
    assert (acting.sample(x, noise) == 3).all()
