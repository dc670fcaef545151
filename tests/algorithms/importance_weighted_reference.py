"""Importance-weighted updates written a second time: float64 numpy, gradients by hand, one row at a time."""

import numpy as np
from ppo_reference import backward, forward


class Policy:
    """Distribution parameters of one state, and the gradients of three scalars in outputs and log_std."""

    def __init__(self, output, log_std):
        self.output, self.log_std = output, log_std
        if log_std is None:
            self.p = np.exp(output - output.max())
            self.p /= self.p.sum()

    def log_prob(self, action):
        if self.log_std is None:
            slope = -self.p
            slope[action] += 1
            return np.log(self.p[action]), slope, 0.0
        z = (action - self.output) / np.exp(self.log_std)
        value = (-0.5 * z**2 - self.log_std - 0.5 * np.log(2 * np.pi)).sum()
        return value, z / np.exp(self.log_std), z**2 - 1

    def entropy(self):
        if self.log_std is None:
            h = -(self.p * np.log(self.p)).sum()
            return h, -self.p * (np.log(self.p) + h), 0.0
        return (self.log_std + 0.5 * np.log(2 * np.pi * np.e)).sum(), 0 * self.output, np.ones_like(self.log_std)

    def kl(self, old):
        """KL(self || old): an expectation over this one."""
        if self.log_std is None:
            log_ratio = np.log(self.p) - np.log(old.p)
            value = (self.p * log_ratio).sum()
            return value, self.p * (log_ratio - value), 0.0
        variance, old_variance = np.exp(2 * self.log_std), np.exp(2 * old.log_std)
        moved = self.output - old.output
        value = (old.log_std - self.log_std + (variance + moved**2) / (2 * old_variance) - 0.5).sum()
        return value, moved / old_variance, variance / old_variance - 1


def policies(actor, log_std, observations):
    return [Policy(output, log_std) for output in forward(actor, observations)[1]]


def weight_slopes(log_ratios, advantages, ended, mask, cumulative):
    """d(sum w A) / d log pi of every row, of one environment's column of T rows."""
    slopes = np.zeros(len(log_ratios))
    begin = 0
    for t in range(len(log_ratios)):
        if not mask[t]:
            continue
        first = begin if cumulative else t
        factors = [u for u in range(first, t + 1) if mask[u]]
        weight = np.exp(sum(log_ratios[u] for u in factors))
        for u in factors:
            slopes[u] += weight * advantages[t]
        if ended[t]:
            begin = t + 1
    return slopes


def gradients(actor, log_std, critic, old, rows, config, kl_coef):
    """Of the loss: of the actor's layers, log_std (None: categorical) and the critic's."""
    observations, actions, old_log_probs, advantages, returns, ended, mask = rows
    shape, valid = mask.shape, mask.sum()
    new = policies(actor, log_std, observations)
    log_probs = np.array([x.log_prob(a)[0] for x, a in zip(new, actions, strict=True)]).reshape(shape)
    slopes = np.zeros(shape)
    for n in range(shape[1]):
        slopes[:, n] = weight_slopes(
            (log_probs - old_log_probs)[:, n],
            advantages[:, n],
            ended[:, n],
            mask[:, n],
            config.importance_weights == "per_decision",
        )
    actor_inputs, outputs = forward(actor, observations)
    critic_inputs, values = forward(critic, observations)
    output_gradient, std_gradient, value_gradient = np.zeros_like(outputs), 0.0, np.zeros_like(values)
    for i in np.flatnonzero(mask):
        terms = [(-slopes.flat[i], new[i].log_prob(actions[i])), (-config.ent_coef, new[i].entropy())]
        if config.constraint == "penalty":
            terms.append((kl_coef, new[i].kl(old[i])))
        for factor, (_, of_output, of_std) in terms:
            output_gradient[i] += factor * of_output / valid
            std_gradient = std_gradient + factor * of_std / valid
        value_gradient[i] = config.vf_coef * (values[i, 0] - returns.flat[i]) / valid
    return (
        backward(actor, actor_inputs, output_gradient),
        None if log_std is None else std_gradient,
        backward(critic, critic_inputs, value_gradient),
    )


def mean_kl(actor, log_std, old, observations, mask):
    new = policies(actor, log_std, observations)
    return np.mean([new[i].kl(old[i])[0] for i in np.flatnonzero(mask)])
