"""An MDP of three states, two actions and at most three steps: every trajectory listed, the exact gradient beside it.

The policy is a softmax over a table, pi(a | s) = exp(theta[s, a]) / sum_b exp(theta[s, b]); the objective is
J = E[sum_t gamma^t r_t]. J and its gradient come from backward induction and owe nothing to the list of trajectories,
so that the expectation of an estimator over the list can be held against them. Everything is float64.

    expected = sum(p * gradient_estimate(batch) for p, batch in batches(theta, size=1))
    np.testing.assert_allclose(expected, exact_gradient(theta, gamma), atol=1e-8)
"""

import itertools
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from fastac.networks import CategoricalActor

STATES, ACTIONS, STEPS = 3, 2, 3
START = np.array([0.5, 0.3, 0.2])
# NEXT[s, a] are the probabilities of the three states that may follow, then that of the end.
NEXT = np.array(
    [
        [[0.1, 0.6, 0.1, 0.2], [0.5, 0.0, 0.4, 0.1]],
        [[0.3, 0.2, 0.5, 0.0], [0.0, 0.4, 0.1, 0.5]],
        [[0.2, 0.2, 0.2, 0.4], [0.7, 0.1, 0.1, 0.1]],
    ]
)
REWARDS = np.array([[1.0, -0.5], [0.3, 2.0], [-1.5, 0.7]])
THETA = np.array([[0.3, -0.4], [-0.2, 0.5], [0.6, 0.1]])
"""A policy to take gradients at."""
BEHAVIOUR = np.array([[-0.5, 0.2], [0.4, -0.1], [0.0, 0.3]])
"""Another policy, to draw from where the two differ."""


class Trajectory(NamedTuple):
    """One of them: T rows, the last of which ends the episode (the third step always does)."""

    states: np.ndarray  # (T,) int64
    actions: np.ndarray  # (T,) int64
    rewards: np.ndarray  # (T,)
    chance: float  # the environment's part of its probability; the policy's is not in it


def trajectories(steps=STEPS):
    """All trajectories of at most `steps` steps; what follows the last step is summed over."""
    found = []

    def go_on(states, actions, chance):
        s = states[-1]
        for a in range(ACTIONS):
            taken = [*actions, a]
            ends = 1.0 if len(taken) == steps else NEXT[s, a, STATES]
            if ends > 0:
                rewards = REWARDS[states, taken]
                found.append(Trajectory(np.array(states), np.array(taken), rewards, chance * ends))
            if len(taken) < steps:
                for after in range(STATES):
                    if NEXT[s, a, after] > 0:
                        go_on([*states, after], taken, chance * NEXT[s, a, after])

    for s in range(STATES):
        go_on([s], [], START[s])
    return found


def log_policy(theta):
    """Log-probabilities, (S, A), of an array or a tensor."""
    return torch.log_softmax(torch.as_tensor(theta, dtype=torch.float64), dim=-1)


def probability(trajectory, theta):
    """p_theta(trajectory)."""
    log_pi = log_policy(theta).detach().numpy()
    return trajectory.chance * float(np.exp(log_pi[trajectory.states, trajectory.actions].sum()))


def batches(theta, size=1, steps=STEPS):
    """Every ordered batch of `size` independent trajectories, with its probability."""
    listed = [(probability(trajectory, theta), trajectory) for trajectory in trajectories(steps)]
    for members in itertools.product(listed, repeat=size):
        yield float(np.prod([p for p, _ in members])), [trajectory for _, trajectory in members]


def values(theta, gamma, steps=STEPS):
    """V_t(s) and Q_t(s, a): tensors (steps + 1, S), 0 in the last row, and (steps, S, A); differentiable in theta."""
    pi, P, r = log_policy(theta).exp(), torch.from_numpy(NEXT[:, :, :STATES]), torch.from_numpy(REWARDS)
    V, Q = [torch.zeros(STATES, dtype=torch.float64)], []
    for _ in range(steps):
        Q.insert(0, r + gamma * P @ V[0])
        V.insert(0, (pi * Q[0]).sum(-1))
    return torch.stack(V), torch.stack(Q)


def state_probabilities(theta, steps=STEPS):
    """d_t(s), (steps, S): the probability of being in s at step t, the episode not having ended."""
    pi, d = log_policy(theta).exp().detach().numpy(), [START]
    for _ in range(steps - 1):
        d.append(np.einsum("s,sa,sau->u", d[-1], pi, NEXT[:, :, :STATES]))
    return np.stack(d)


def expected_return(theta, gamma, steps=STEPS):
    """J, a tensor; differentiable in theta."""
    return torch.from_numpy(START) @ values(theta, gamma, steps)[0][0]


def exact_gradient(theta, gamma, steps=STEPS):
    """The gradient of J in theta, (S, A)."""
    theta = torch.tensor(theta, dtype=torch.float64, requires_grad=True)
    return torch.autograd.grad(expected_return(theta, gamma, steps), theta)[0].numpy()


def finite_differences(function, theta, h=1e-3):
    """The gradient of a function of an array, by central differences of fourth order: errors of h^4 and 1e-16 / h."""
    gradient = np.zeros_like(theta)
    for index in np.ndindex(theta.shape):
        step = np.zeros_like(theta)
        step[index] = h
        f = [float(function(theta + k * step)) for k in (-2, -1, 1, 2)]
        gradient[index] = (f[0] - 8 * f[1] + 8 * f[2] - f[3]) / (12 * h)
    return gradient


def make_actor(theta):
    """Our actor with this policy: it takes one-hot states; its only parameter is the transposed table."""
    network = nn.Linear(STATES, ACTIONS, bias=False, dtype=torch.float64)
    with torch.no_grad():
        network.weight[:] = torch.as_tensor(theta).T
    return CategoricalActor(network)


def observe(states):
    """One-hot float64 observations (..., S) of states."""
    return torch.from_numpy(np.eye(STATES)[states])


def gradient_of(loss, actor):
    """A loss's gradient in theta, (S, A), of an actor that `make_actor` made."""
    return torch.autograd.grad(loss, actor.network.weight)[0].numpy().T
