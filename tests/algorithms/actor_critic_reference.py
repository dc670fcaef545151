"""Actor-critic written a second time: float64 numpy, sums from their definitions, gradients by hand."""

from typing import NamedTuple

import numpy as np
from ppo_reference import Adam
from reinforce_reference import policy_gradient, value_gradient, values


class Piece(NamedTuple):
    """Consecutive rows of one environment: up to an episode's end, or the rollout's."""

    observations: np.ndarray  # (L + 1, D): the last one is what the last transition led to
    actions: np.ndarray
    rewards: np.ndarray
    terminated: bool


def pieces(buffer, observations):
    """Takes a rollout apart; `observations` are all that have a value: rows, the last ones, those at truncations."""
    steps, envs = buffer.mask.shape
    observations = np.asarray(observations, np.float64)
    last, finals = observations[steps * envs :][:envs], iter(observations[(steps + 1) * envs :])
    cut = buffer.truncated & ~buffer.terminated & buffer.mask
    final_of = {(t, n): next(finals) for t, n in zip(*np.nonzero(cut), strict=True)}
    found = []
    for n in range(envs):
        start = 0
        for t in range(steps):
            ended = buffer.terminated[t, n] or buffer.truncated[t, n]
            if not buffer.mask[t, n]:
                start = t + 1
            elif ended or t == steps - 1:
                after = final_of.get((t, n), last[n])
                part = slice(start, t + 1)
                seen = np.concatenate([buffer.observations[part, n].astype(np.float64), after[None]])
                rewards = buffer.rewards[part, n].astype(np.float64)
                found.append(Piece(seen, buffer.actions[part, n], rewards, bool(buffer.terminated[t, n])))
                start = t + 1
    return found


def n_step(piece, V, t, n, gamma):
    """r_t + ... + gamma^(m-1) r_{t+m-1} + gamma^m V(s_{t+m}), m = n or what is left."""
    m = min(n, len(piece.rewards) - t)
    future = 0.0 if piece.terminated and t + m == len(piece.rewards) else V[t + m]
    return sum(gamma**k * piece.rewards[t + k] for k in range(m)) + gamma**m * future


def lambda_return(piece, V, t, td_lambda, gamma):
    """(1 - lambda) sum_n lambda^(n-1) G^(n), the longest having all the weight that is left."""
    left = len(piece.rewards) - t
    shorter = sum((1 - td_lambda) * td_lambda ** (n - 1) * n_step(piece, V, t, n, gamma) for n in range(1, left))
    return shorter + td_lambda ** (left - 1) * n_step(piece, V, t, left, gamma)


def target(piece, V, t, config):
    kinds = {
        "td0": lambda: n_step(piece, V, t, 1, config.gamma),
        "n-step": lambda: n_step(piece, V, t, config.n_step, config.gamma),
        "monte-carlo": lambda: n_step(piece, V, t, len(piece.rewards), config.gamma),
        "lambda": lambda: lambda_return(piece, V, t, config.td_lambda, config.gamma),
    }
    return kinds[config.critic_target]()


def estimates(rollout, critic, config):
    """Targets and advantages of all rows, piece after piece."""
    y, A = [], []
    for piece in rollout:
        V = values(critic, piece.observations)
        for t in range(len(piece.rewards)):
            y.append(target(piece, V, t, config))
            A.append(lambda_return(piece, V, t, config.gae_lambda, config.gamma) - V[t])
    return np.array(y), np.array(A)


class RMSprop:
    """Tieleman and Hinton 2012, after clipping the gradient's norm; eps is outside the root."""

    def __init__(self, parameters, max_norm):
        self.v, self.max_norm = [np.zeros_like(p) for p in parameters], max_norm

    def step(self, parameters, gradients, learning_rate):
        norm = np.sqrt(sum((g**2).sum() for g in gradients))
        for p, g, v in zip(parameters, gradients, self.v, strict=True):
            clipped = g * min(1.0, self.max_norm / (norm + 1e-6))
            v += 0.01 * (clipped**2 - v)
            p -= learning_rate * clipped / (np.sqrt(v) + 1e-5)


class Update:
    """Everything after the rollout, on the same one as often as it is called; changes the parameters in place."""

    def __init__(self, actor, log_std, critic, config):
        self.actor, self.log_std, self.critic, self.config = actor, log_std, critic, config
        self.critic_parameters = [x for layer in critic for x in layer]
        actor_parameters = [x for layer in actor for x in layer] + ([] if log_std is None else [log_std])
        self.parameters = actor_parameters + ([] if config.critic_steps else self.critic_parameters)
        kind = {"adam": Adam, "rmsprop": RMSprop}[config.optimizer]
        self.optimizer = kind(self.parameters, config.max_grad_norm)
        self.critic_optimizer = kind(self.critic_parameters, config.max_grad_norm)

    def __call__(self, rollout):
        config = self.config
        observations = np.concatenate([piece.observations[:-1] for piece in rollout])
        actions = np.concatenate([piece.actions for piece in rollout])
        for _ in range(config.critic_steps):
            y, _ = estimates(rollout, self.critic, config)
            gradients = [x for layer in value_gradient(self.critic, observations, y) for x in layer]
            self.critic_optimizer.step(self.critic_parameters, gradients, config.critic_learning_rate)
        y, A = estimates(rollout, self.critic, config)
        if config.norm_adv:
            A = (A - A.mean()) / (A.std(ddof=1) + 1e-8)
        count = len(A)
        layers, std = policy_gradient(
            self.actor, self.log_std, observations, actions, A / count, config.ent_coef / count
        )
        gradients = [x for layer in layers for x in layer] + ([] if std is None else [std])
        if not config.critic_steps:
            by_value = value_gradient(self.critic, observations, y)
            gradients += [config.vf_coef * x for layer in by_value for x in layer]
        self.optimizer.step(self.parameters, gradients, config.learning_rate)
