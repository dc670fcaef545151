"""The updates of SAC, TD3 and DDPG written a second time: float64 numpy, gradients by hand."""

import numpy as np
from ppo_reference import Adam


def forward(layers, x):
    """An MLP with ReLU; returns every layer's input and the output."""
    inputs = []
    for i, (w, b) in enumerate(layers):
        inputs.append(x)
        x = x @ w.T + b
        if i < len(layers) - 1:
            x = np.where(x > 0, x, 0.0)
    return inputs, x


def backward(layers, inputs, gradient):
    """Gradients of all weights and biases, one after the other, and of the input, from that of the output."""
    found = []
    for i in reversed(range(len(layers))):
        found.append([gradient.T @ inputs[i], gradient.sum(0)])
        gradient = gradient @ layers[i][0]
        if i > 0:
            gradient = gradient * (inputs[i] > 0)
    return [x for pair in reversed(found) for x in pair], gradient


def q_value(q, observations, actions):
    return forward(q, np.concatenate([observations, actions], 1))[1][:, 0]


def flat(*networks):
    """The arrays themselves, which an optimiser changes in place."""
    return [x for network in networks for layer in network for x in layer]


def copies(network):
    return [(w.copy(), b.copy()) for w, b in network]


def follow(targets, sources, tau):
    for target, source in zip(targets, sources, strict=True):
        target += tau * (source - target)


class QLearner:
    """Two Q-functions or one, their targets, and one optimiser for them."""

    def __init__(self, qs, learning_rate, tau, scale):
        self.qs, self.targets = qs, [copies(q) for q in qs]
        self.adam = Adam(flat(*qs), np.inf, eps=1e-8)
        self.learning_rate, self.tau, self.scale = learning_rate, tau, scale

    def next_values(self, observations, actions):
        return np.min([q_value(target, observations, actions) for target in self.targets], 0)

    def step(self, observations, actions, targets, weights=1.0):
        """Down scale * sum_k mean w (Q_k - target)^2; returns that loss."""
        gradients, loss = [], 0.0
        for q in self.qs:
            inputs, out = forward(q, np.concatenate([observations, actions], 1))
            error = out[:, 0] - targets
            loss += self.scale * (weights * error**2).mean()
            gradients += backward(q, inputs, (2 * self.scale * weights * error / len(error))[:, None])[0]
        self.adam.step(flat(*self.qs), gradients, self.learning_rate)
        return loss

    def action_gradient(self, observations, actions, which):
        """The gradient, in the action, of the smallest of the Q numbered in `which`, row by row."""
        inputs = np.concatenate([observations, actions], 1)
        values = [q_value(self.qs[k], observations, actions) for k in which]
        smallest = np.argmin(values, 0)
        result = np.zeros_like(actions)
        for k in which:
            layers, (kept, _) = self.qs[k], forward(self.qs[k], inputs)
            of_inputs = backward(layers, kept, np.ones((len(actions), 1)))[1]
            result[smallest == k] = of_inputs[smallest == k, observations.shape[1] :]
        return result

    def follow(self):
        follow(flat(*self.targets), flat(*self.qs), self.tau)


def draw(actor, observations, noise):
    """Everything about an action of a tanh-Gaussian actor."""
    inputs, out = forward(actor, observations)
    size = noise.shape[1]
    mean, raw = out[:, :size], out[:, size:]
    log_std = np.clip(raw, -20, 2)
    u = mean + np.exp(log_std) * noise
    a = np.tanh(u)
    log_slope = 2 * (np.log(2) - u - np.logaddexp(0, -2 * u))
    log_prob = (-0.5 * noise**2 - log_std - 0.5 * np.log(2 * np.pi) - log_slope).sum(1)
    return inputs, raw, log_std, a, log_prob


class SAC:
    def __init__(self, actor, qs, config, target_entropy):
        self.actor, self.config, self.target_entropy = actor, config, target_entropy
        self.critic = QLearner(qs, config.q_lr, config.tau, scale=0.5)
        self.log_alpha = np.array(np.log(config.alpha))
        self.policy_adam, self.alpha_adam = (
            Adam(flat(actor), np.inf, eps=1e-8),
            Adam([self.log_alpha], np.inf, eps=1e-8),
        )
        self.updates = 0

    def update(self, batch, noises):
        observations, actions, rewards, following, terminated, discounts, weights = batch
        noises = iter(noises)
        alpha = np.exp(self.log_alpha)
        *_, a, log_prob = draw(self.actor, following, next(noises))
        values = self.critic.next_values(following, a) - alpha * log_prob
        targets = rewards + np.where(terminated, 0.0, discounts * values)
        self.critic.step(observations, actions, targets, weights)
        self.updates += 1
        if self.updates % self.config.policy_frequency == 0:
            for _ in range(self.config.policy_frequency):
                self.update_policy(observations, next(noises))
        self.critic.follow()

    def update_policy(self, observations, noise):
        alpha, rows = np.exp(self.log_alpha), len(noise)
        inputs, raw, log_std, a, log_prob = draw(self.actor, observations, noise)
        of_action = -self.critic.action_gradient(observations, a, (0, 1))
        of_u = (alpha * 2 * a + of_action * (1 - a**2)) / rows
        of_std = (of_u * np.exp(log_std) * noise - alpha / rows) * ((raw >= -20) & (raw <= 2))
        gradients = backward(self.actor, inputs, np.concatenate([of_u, of_std], 1))[0]
        self.policy_adam.step(flat(self.actor), gradients, self.config.policy_lr)
        if self.config.autotune:
            gradient = np.array(-(log_prob.mean() + self.target_entropy))
            self.alpha_adam.step([self.log_alpha], [gradient], self.config.q_lr)


class TD3:
    """And DDPG: one Q, no noise on the target's action."""

    def __init__(self, actor, qs, config, smooth):
        self.actor, self.target_actor, self.config, self.smooth = actor, copies(actor), config, smooth
        self.critic = QLearner(qs, config.learning_rate, config.tau, scale=1.0)
        self.adam = Adam(flat(actor), np.inf, eps=1e-8)
        self.updates = 0

    def update(self, batch, noises):
        observations, actions, rewards, following, terminated, discounts, _ = batch
        a = np.tanh(forward(self.target_actor, following)[1])
        if self.smooth:
            clip = self.config.noise_clip
            a = np.clip(a + np.clip(self.config.policy_noise * noises[0], -clip, clip), -1, 1)
        values = self.critic.next_values(following, a)
        self.critic.step(observations, actions, rewards + np.where(terminated, 0.0, discounts * values))
        self.updates += 1
        if self.updates % self.config.policy_frequency == 0:
            inputs, out = forward(self.actor, observations)
            a = np.tanh(out)
            of_action = -self.critic.action_gradient(observations, a, (0,)) / len(a)
            gradients = backward(self.actor, inputs, of_action * (1 - a**2))[0]
            self.adam.step(flat(self.actor), gradients, self.config.learning_rate)
            self.critic.follow()
            follow(flat(self.target_actor), flat(self.actor), self.config.tau)
