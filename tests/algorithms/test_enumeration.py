"""The list of all trajectories, backward induction and finite differences say the same."""

import enumeration as mdp
import numpy as np
import pytest
import torch


@pytest.mark.parametrize("steps", [2, 3])
def test_probabilities_add_up_to_one(steps):
    for theta in (mdp.THETA, mdp.BEHAVIOUR):
        assert sum(p for p, _ in mdp.batches(theta, steps=steps)) == pytest.approx(1.0, abs=1e-14)
    assert all(1 <= len(trajectory.states) <= steps for trajectory in mdp.trajectories(steps))


@pytest.mark.parametrize("gamma", [0.8, 1.0])
def test_the_expected_return_by_both_ways(gamma):
    listed = sum(p * gamma ** np.arange(len(x.rewards)) @ x.rewards for p, (x,) in mdp.batches(mdp.THETA))
    assert listed == pytest.approx(mdp.expected_return(mdp.THETA, gamma).item(), abs=1e-14)


def test_state_probabilities_by_both_ways():
    listed = np.zeros((mdp.STEPS, mdp.STATES))
    for p, (x,) in mdp.batches(mdp.THETA):
        listed[np.arange(len(x.states)), x.states] += p
    np.testing.assert_allclose(listed, mdp.state_probabilities(mdp.THETA), atol=1e-14)


@pytest.mark.parametrize("gamma", [0.8, 1.0])
def test_the_exact_gradient_by_three_ways(gamma):
    """Autograd through backward induction, finite differences of it, and the policy gradient theorem."""
    exact = mdp.exact_gradient(mdp.THETA, gamma)
    differences = mdp.finite_differences(lambda theta: mdp.expected_return(theta, gamma), mdp.THETA)
    np.testing.assert_allclose(differences, exact, atol=1e-10)
    d, (_, Q) = mdp.state_probabilities(mdp.THETA), mdp.values(mdp.THETA, gamma)
    theta = torch.tensor(mdp.THETA, requires_grad=True)
    weights = gamma ** np.arange(mdp.STEPS)[:, None] * d
    (torch.from_numpy(weights)[:, :, None] * mdp.log_policy(theta).exp() * Q).sum().backward()
    np.testing.assert_allclose(theta.grad, exact, atol=1e-12)


def test_the_actor_is_the_table():
    actor = mdp.make_actor(mdp.THETA)
    np.testing.assert_allclose(actor(mdp.observe(np.arange(3))).log_probs.detach(), mdp.log_policy(mdp.THETA))
    x = mdp.trajectories()[-1]
    found = mdp.gradient_of(actor(mdp.observe(x.states)).log_prob(torch.from_numpy(x.actions)).sum(), actor)
    expected = mdp.finite_differences(lambda theta: np.log(mdp.probability(x, theta)), mdp.THETA)
    np.testing.assert_allclose(found, expected, atol=1e-9)
