"""PPO's update written a second time: float64 numpy, gradients by hand, one sample at a time where it matters."""

import numpy as np


def forward(weights, x):
    """An MLP with tanh; returns every layer's input and the output."""
    inputs = []
    for i, (w, b) in enumerate(weights):
        inputs.append(x)
        x = x @ w.T + b
        if i < len(weights) - 1:
            x = np.tanh(x)
    return inputs, x


def backward(weights, inputs, gradient):
    """Gradients of all weights and biases from that of the output."""
    found = []
    for i in reversed(range(len(weights))):
        found.append((gradient.T @ inputs[i], gradient.sum(0)))
        gradient = (gradient @ weights[i][0]) * (1 - inputs[i] ** 2)
    return found[::-1]


def surrogate_slope(log_prob, old_log_prob, advantage, eps):
    """d(-min(rho A, clip(rho) A)) / d log pi."""
    ratio = np.exp(log_prob - old_log_prob)
    stopped = (advantage > 0 and ratio > 1 + eps) or (advantage < 0 and ratio < 1 - eps)
    return 0.0 if stopped else -ratio * advantage


def value_slope(value, old_value, target, eps):
    """d(1/2 max((V - R)^2, (clipped V - R)^2)) / dV."""
    clipped = old_value + np.clip(value - old_value, -eps, eps)
    if (value - target) ** 2 >= (clipped - target) ** 2:
        return value - target
    return clipped - target if abs(value - old_value) <= eps else 0.0


def gradients(actor, log_std, critic, batch, config):
    """Gradients of eq. 9 over one minibatch: of the actor's layers, log_std (None: categorical) and the critic's."""
    observations, actions, old_log_probs, old_values, advantages, returns = batch
    count = len(observations)
    if config.norm_adv:
        advantages = (advantages - advantages.mean()) / (advantages.std(ddof=1) + 1e-8)
    actor_inputs, outputs = forward(actor, observations)
    critic_inputs, values = forward(critic, observations)
    output_gradient, std_gradient = np.zeros_like(outputs), 0.0
    value_gradient = np.zeros_like(values)
    for i in range(count):
        if log_std is None:
            p = np.exp(outputs[i] - outputs[i].max())
            p /= p.sum()
            slope = surrogate_slope(np.log(p[actions[i]]), old_log_probs[i], advantages[i], config.clip_coef)
            entropy = -(p * np.log(p)).sum()
            output_gradient[i] = slope * (np.eye(len(p))[actions[i]] - p)
            output_gradient[i] -= config.ent_coef * -p * (np.log(p) + entropy)
        else:
            std = np.exp(log_std)
            z = (actions[i] - outputs[i]) / std
            log_prob = (-0.5 * z**2 - log_std - 0.5 * np.log(2 * np.pi)).sum()
            slope = surrogate_slope(log_prob, old_log_probs[i], advantages[i], config.clip_coef)
            output_gradient[i] = slope * z / std
            std_gradient = std_gradient + (slope * (z**2 - 1) - config.ent_coef) / count
        eps = config.clip_coef if config.clip_vloss else np.inf
        value_gradient[i] = config.vf_coef * value_slope(values[i, 0], old_values[i], returns[i], eps)
    return (
        backward(actor, actor_inputs, output_gradient / count),
        None if log_std is None else std_gradient,
        backward(critic, critic_inputs, value_gradient / count),
    )


class Adam:
    """Kingma and Ba 2015, algorithm 1, after clipping the gradient's norm."""

    def __init__(self, parameters, max_norm, eps=1e-5):
        self.m = [np.zeros_like(p) for p in parameters]
        self.v = [np.zeros_like(p) for p in parameters]
        self.t, self.max_norm, self.eps = 0, max_norm, eps

    def step(self, parameters, gradients, learning_rate):
        norm = np.sqrt(sum((g**2).sum() for g in gradients))
        gradients = [g * min(1.0, self.max_norm / (norm + 1e-6)) for g in gradients]
        self.t += 1
        for p, g, m, v in zip(parameters, gradients, self.m, self.v, strict=True):
            m += 0.1 * (g - m)
            v += 0.001 * (g**2 - v)
            p -= learning_rate * (m / (1 - 0.9**self.t)) / (np.sqrt(v / (1 - 0.999**self.t)) + self.eps)
