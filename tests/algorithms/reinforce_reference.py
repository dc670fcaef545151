"""REINFORCE written a second time: float64 numpy, episode by episode, gradients by hand."""

import numpy as np
from ppo_reference import Adam, backward, forward


def policy_gradient(actor, log_std, observations, actions, weights, ent_weight=0.0):
    """Gradients of sum_i [-weights_i log pi(a_i | s_i) - ent_weight S_i]: of the layers, and log_std (None: none)."""
    inputs, outputs = forward(actor, observations)
    output_gradient, std_gradient = np.zeros_like(outputs), np.zeros(0) if log_std is None else np.zeros_like(log_std)
    for i in range(len(outputs)):
        if log_std is None:
            p = np.exp(outputs[i] - outputs[i].max())
            p /= p.sum()
            entropy = -(p * np.log(p)).sum()
            output_gradient[i] = -weights[i] * (np.eye(len(p))[actions[i]] - p)
            output_gradient[i] += ent_weight * p * (np.log(p) + entropy)
        else:
            z = (actions[i] - outputs[i]) / np.exp(log_std)
            output_gradient[i] = -weights[i] * z / np.exp(log_std)
            std_gradient += -weights[i] * (z**2 - 1) - ent_weight
    return backward(actor, inputs, output_gradient), None if log_std is None else std_gradient


def value_gradient(critic, observations, targets):
    """The gradient of 1/2 mean (V - y)^2."""
    inputs, values = forward(critic, observations)
    return backward(critic, inputs, (values - np.asarray(targets)[:, None]) / len(values))


def values(critic, observations):
    return forward(critic, observations)[1][:, 0]


def rewards_to_go(rewards, last, gamma):
    """G_t of one episode that is worth `last` after its end."""
    found, G = np.zeros(len(rewards)), last
    for t in reversed(range(len(rewards))):
        G = rewards[t] + gamma * G
        found[t] = G
    return found


def credits(episodes, critic, config):
    """For each episode (observations, actions, rewards, cut, final observation): G_t and Psi_t."""
    found = []
    for observations, _, rewards, cut, final in episodes:
        last = values(critic, final[None])[0] if cut and config.baseline == "value" else 0.0
        G = rewards_to_go(rewards, last, config.gamma)
        psi = np.full_like(G, G[0]) if config.returns == "total" else G.copy()
        found.append((G, psi, observations))
    weighted = []
    for i, (G, psi, observations) in enumerate(found):
        if config.baseline == "value":
            b = values(critic, observations)
        elif config.baseline == "mean":
            b = np.concatenate([other for j, (_, other, _) in enumerate(found) if j != i]).mean()
        else:
            b = 0.0
        factor = config.gamma ** np.arange(len(G)) if config.discount_states else 1.0
        weighted.append((G, (psi - b) * factor))
    return weighted


class Update:
    """An iteration's update, on the same episodes as often as it is called; changes the parameters in place."""

    def __init__(self, actor, log_std, critic, config):
        self.actor, self.log_std, self.critic, self.config = actor, log_std, critic, config
        self.actor_parameters = [x for layer in actor for x in layer] + ([] if log_std is None else [log_std])
        self.critic_parameters = [x for layer in critic for x in layer]
        self.adams = [Adam(p, max_norm=np.inf) for p in (self.actor_parameters, self.critic_parameters)]

    def __call__(self, episodes, share):
        config = self.config
        weighted = credits(episodes, self.critic, config)
        observations, actions = (np.concatenate([episode[k] for episode in episodes]) for k in (0, 1))
        psi = np.concatenate([psi for _, psi in weighted])
        if config.norm_adv:
            psi = (psi - psi.mean()) / (psi.std(ddof=1) + 1e-8)
        layers, std = policy_gradient(self.actor, self.log_std, observations, actions, psi / len(episodes))
        gradients = [x for layer in layers for x in layer] + ([] if std is None else [std])
        self.adams[0].step(self.actor_parameters, gradients, config.learning_rate * share)
        if config.baseline == "value":
            G = np.concatenate([G for G, _ in weighted])
            for _ in range(config.critic_steps):
                gradients = [x for layer in value_gradient(self.critic, observations, G) for x in layer]
                self.adams[1].step(self.critic_parameters, gradients, config.critic_learning_rate * share)
