"""TRPO's update written a second time: float64 numpy, Fisher's matrix in full, one row at a time."""

import numpy as np
from importance_weighted_reference import policies
from layers import flat
from ppo_reference import backward, forward


def vector(actor, log_std):
    """Parameters in the order of our actor's: a Gaussian's log_std first."""
    return np.concatenate([x.ravel() for x in flat(log_std, actor)])


def write(actor, log_std, values):
    for x in flat(log_std, actor):
        x[...], values = values[: x.size].reshape(x.shape), values[x.size :]


def jacobian(actor, observation):
    """Derivatives of the outputs in the actor's parameters: a row an output."""
    inputs, outputs = forward(actor, observation[None])
    rows = [backward(actor, inputs, np.eye(outputs.shape[1])[[i]]) for i in range(outputs.shape[1])]
    return np.stack([np.concatenate([x.ravel() for x in flat(row)]) for row in rows])


def fisher(actor, log_std, observations):
    """E[grad log pi grad log pi'] over states and actions: closed form in the outputs, then the chain rule."""
    stds = 0 if log_std is None else len(log_std)
    size = len(vector(actor, log_std))
    found = np.zeros((size, size))
    for observation, policy in zip(observations, policies(actor, log_std, observations), strict=True):
        J = jacobian(actor, observation)
        M = np.diag(policy.p) - np.outer(policy.p, policy.p) if log_std is None else np.diag(np.exp(-2 * log_std))
        found[stds:, stds:] += J.T @ M @ J / len(observations)
    found[:stds, :stds] = 2 * np.eye(stds)
    return found


def objective(actor, log_std, observations, actions, old_log_probs, advantages):
    found = policies(actor, log_std, observations)
    log_probs = np.array([x.log_prob(a)[0] for x, a in zip(found, actions, strict=True)])
    return np.mean(np.exp(log_probs - old_log_probs) * advantages)


def update(actor, log_std, batch, config):
    """Changes the arrays; returns what is left of the step, 0 where none was accepted."""
    observations, actions, old_log_probs, advantages = batch
    old = policies(actor, log_std, observations)
    inputs, outputs = forward(actor, observations)
    output_gradient, std_gradient = np.zeros_like(outputs), 0.0
    for i, policy in enumerate(old):
        log_prob, of_output, of_std = policy.log_prob(actions[i])
        slope = np.exp(log_prob - old_log_probs[i]) * advantages[i] / len(actions)
        output_gradient[i] = slope * of_output
        std_gradient = std_gradient + slope * of_std
    g = np.concatenate(
        [x.ravel() for x in flat(None if log_std is None else std_gradient, backward(actor, inputs, output_gradient))]
    )
    F = fisher(actor, log_std, observations) + config.cg_damping * np.eye(len(g))
    direction = np.linalg.solve(F, g)
    full = np.sqrt(2 * config.target_kl / (g @ direction)) * direction
    start, before = vector(actor, log_std), objective(actor, log_std, *batch)
    old = [type(x)(x.output.copy(), None if log_std is None else log_std.copy()) for x in old]
    fraction = 1.0
    for _ in range(config.line_search_steps):
        write(actor, log_std, start + fraction * full)
        # KL(old || new): an expectation over the old one.
        new = policies(actor, log_std, observations)
        kl = np.mean([x.kl(y)[0] for x, y in zip(old, new, strict=True)])
        if kl < config.target_kl and objective(actor, log_std, *batch) > before:
            return fraction
        fraction *= config.line_search_coef
    write(actor, log_std, start)
    return 0.0
