"""Off-policy actor-critic's update written a second time: float64 numpy, gradients by hand."""

import numpy as np
from ppo_reference import Adam
from replay_reference import QLearner, backward, copies, draw, flat, follow, forward, q_value


def softmax(logits):
    p = np.exp(logits - logits.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


class OffPolicy:
    """Changes an actor's and a critic's weights in place; the noise is that of the agent, in the order of its draws."""

    def __init__(self, actor, critic, config, discrete):
        self.actor, self.critic, self.config, self.discrete = actor, critic, config, discrete
        self.target = copies(critic)
        self.policy_adam = Adam(flat(actor), np.inf, eps=1e-8)
        self.q_adam = Adam(flat(critic), np.inf, eps=1e-8)

    def update(self, batch, noises):
        config, noises = self.config, iter(noises)
        observations, actions, rewards, following, terminated, discounts, _ = batch
        self.batch = batch
        of_states = config.version == "values-of-the-buffer"
        if of_states:
            next_values = forward(self.target, following)[1][:, 0]
        elif config.gradient == "expectation":
            next_values = (softmax(forward(self.actor, following)[1]) * forward(self.target, following)[1]).sum(1)
        else:
            next_values = self.q(self.target, following, self.draw(following, next(noises)[0]))
        self.targets = rewards + np.where(terminated, 0.0, discounts * next_values)

        inputs, out = forward(self.critic, self.critic_input(observations, actions))
        gradient = np.zeros_like(out)
        column = actions if self.discrete and not of_states else np.zeros(len(out), int)
        gradient[np.arange(len(out)), column] = (out[np.arange(len(out)), column] - self.targets) / len(out)
        self.q_adam.step(flat(self.critic), backward(self.critic, inputs, gradient)[0], config.q_lr)

        step = self.discrete_gradient if self.discrete else self.box_gradient
        self.policy_adam.step(flat(self.actor), step(observations, actions, noises), config.policy_lr)
        follow(flat(self.target), flat(self.critic), config.tau)

    def critic_input(self, observations, actions):
        whole = self.discrete or self.config.version == "values-of-the-buffer"
        return observations if whole else np.concatenate([observations, actions], 1)

    def q(self, critic, observations, actions):
        if self.discrete:
            return forward(critic, observations)[1][np.arange(len(actions)), actions]
        return q_value(critic, observations, actions)

    def draw(self, observations, noise):
        if self.discrete:
            return (forward(self.actor, observations)[1] + noise).argmax(1)
        return draw(self.actor, observations, noise)[3]

    def weights_of_the_buffers_actions(self, observations, actions, noises):
        config = self.config
        if config.version == "values-of-the-buffer":
            following, terminated, discounts = self.batch[3:6]
            next_values = forward(self.target, following)[1][:, 0]
            y = self.batch[2] + np.where(terminated, 0.0, discounts * next_values)
            return y - forward(self.critic, observations)[1][:, 0]
        w = self.q(self.critic, observations, actions)
        if config.num_action_samples > 1:
            w -= np.mean([self.q(self.critic, observations, self.draw(observations, x)) for x in next(noises)], 0)
        return w

    def weighed(self, observations, noises):
        """K draws in each state, and Q minus the mean Q of the other draws."""
        noise = next(noises)
        drawn = [self.draw(observations, x) for x in noise]
        q = np.array([self.q(self.critic, observations, a) for a in drawn])
        others = [np.delete(q, k, 0).mean(0) if len(q) > 1 else 0.0 for k in range(len(q))]
        return noise, drawn, q - np.array(others).reshape(len(q), -1)

    def discrete_gradient(self, observations, actions, noises):
        config, rows = self.config, len(observations)
        inputs, logits = forward(self.actor, observations)
        p = softmax(logits)
        one_hot = np.eye(p.shape[1])
        if config.version != "correct":
            w = self.weights_of_the_buffers_actions(observations, actions, noises)
            gradient = -w[:, None] * (one_hot[actions] - p)
        elif config.gradient == "expectation":
            q = forward(self.critic, observations)[1]
            gradient = -p * (q - (p * q).sum(1, keepdims=True))
        else:
            _, drawn, w = self.weighed(observations, noises)
            gradient = -np.mean([x[:, None] * (one_hot[a] - p) for a, x in zip(drawn, w, strict=True)], 0)
        entropy = -(p * np.log(p)).sum(1, keepdims=True)
        gradient += config.ent_coef * p * (np.log(p) + entropy)
        return backward(self.actor, inputs, gradient / rows)[0]

    def box_gradient(self, observations, actions, noises):
        config, rows = self.config, len(observations)
        noise = next(noises)[0]
        inputs, _, log_std, a, _ = draw(self.actor, observations, noise)
        mean, std = forward(self.actor, observations)[1][:, : a.shape[1]], np.exp(log_std)
        # The entropy bonus, ent_coef mean log pi of a reparameterised draw.
        of_mean = config.ent_coef * 2 * a
        of_std = config.ent_coef * (2 * a * std * noise - 1)

        def score(u, w):
            z = (u - mean) / std
            return -w[:, None] * z / std, -w[:, None] * (z**2 - 1)

        if config.version != "correct":
            w = self.weights_of_the_buffers_actions(observations, actions, noises)
            found = [score(np.arctanh(actions), w)]
        elif config.gradient == "score-function":
            several, _, weights = self.weighed(observations, noises)
            found = [score(mean + std * x, w) for x, w in zip(several, weights, strict=True)]
        else:
            found, critic = [], QLearner([self.critic], 0.0, 0.0, 0.0)
            for x in next(noises):
                drawn = draw(self.actor, observations, x)[3]
                of_u = -critic.action_gradient(observations, drawn, (0,)) * (1 - drawn**2)
                found.append((of_u, of_u * std * x))
        gradient = [of_mean + np.mean([m for m, _ in found], 0), of_std + np.mean([s for _, s in found], 0)]
        return backward(self.actor, inputs, np.concatenate(gradient, 1) / rows)[0]
