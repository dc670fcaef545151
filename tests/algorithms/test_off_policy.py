"""Off-policy actor-critic: Q of the policy from anybody's transitions, and what the broken versions find instead."""

import dataclasses
import itertools

import enumeration as mdp
import gymnasium
import numpy as np
import off_policy_reference as reference
import probe_envs
import pytest
import replay_agents
import torch
from gymnasium.spaces import Box, Discrete
from layers import layers
from test_ppo import Reads
from test_run import everything
from torch import nn

from fastac.algorithms import off_policy, preset, resume
from fastac.buffers import Transitions
from fastac.envs import EnvError
from fastac.evaluate import evaluate
from fastac.q_functions import Target
from fastac.run import RunError, torch_threads

probe_envs.register()
replay_agents.register()

SMALL = {
    "hidden_sizes": (16, 16), "batch_size": 32, "learning_starts": 64, "buffer_size": 4000, "num_envs": 1,
    "updates_per_step": 1.0, "ent_coef": 0.0, "normalize_observations": False,
}  # fmt: skip
BROKEN = ("actions-of-the-buffer", "values-of-the-buffer")
GRADIENTS = [
    ("CartPole-v1", "score-function"),
    ("CartPole-v1", "expectation"),
    ("Pendulum-v1", "score-function"),
    ("Pendulum-v1", "reparameterized"),
]


@pytest.fixture(autouse=True)
def _one_thread():
    with torch_threads(1):
        yield


def small(**options):
    return off_policy.Config(**SMALL | options)


def filled(steps=200, **options):
    """An agent whose buffer holds random actions."""
    agent = off_policy.OffPolicy(small(**options))
    for _ in range(steps):
        agent.experience.step(agent.experience.random_actions())
    return agent


# What the critic converges to: the enumerated MDP of three states, for ever (gamma < 1), and a buffer of two policies
# that have been in its states differently often


GAMMA = 0.9
POLICIES = np.array([[[0.2, 0.8], [0.9, 0.1], [0.5, 0.5]], [[0.7, 0.3], [0.4, 0.6], [0.1, 0.9]]])
VISITS = np.array([[300, 100, 200], [100, 400, 200]])
MIXTURE = (VISITS[:, :, None] * POLICIES).sum(0) / VISITS.sum(0)[:, None]


class Finite(gymnasium.Env):
    """Gives an agent the right spaces; nobody plays it."""

    observation_space, action_space = Box(0, 1, (mdp.STATES,), np.float32), Discrete(mdp.ACTIONS)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.eye(3, dtype=np.float32)[0], {}


@pytest.fixture
def finite(monkeypatch):
    spec = gymnasium.envs.registration.EnvSpec("finite/Three-v0", Finite, disable_env_checker=True)
    monkeypatch.setitem(gymnasium.registry, spec.id, spec)
    return spec.id


class Newton:
    """Takes a table to the minimum of half a mean squared error in one step: the curvature is a cell's share."""

    def __init__(self, table, shares):
        self.table, self.shares = table, torch.from_numpy(shares)

    def zero_grad(self):
        self.table.grad = None

    def step(self):
        with torch.no_grad():
            self.table -= self.table.grad / self.shares


def rows(counts):
    """Transitions with whole multiplicities, counts[s, a] of each action in each state, following NEXT exactly."""
    s, a, after = (x.ravel() for x in np.indices((mdp.STATES, mdp.ACTIONS, mdp.STATES + 1)))
    many = np.rint(counts[s, a] * mdp.NEXT[s, a, after]).astype(int)
    np.testing.assert_allclose(many.reshape(3, 2, 4).sum(2), counts)
    s, a, after = (np.repeat(x, many) for x in (s, a, after))
    return batch_of(s, a, after)


def batch_of(s, a, after):
    ended = after == mdp.STATES
    rewards = torch.from_numpy(mdp.REWARDS[s, a])
    return Transitions(
        observations=mdp.observe(s),
        actions=torch.from_numpy(a),
        rewards=rewards,
        next_observations=torch.where(torch.from_numpy(ended)[:, None], torch.nan, mdp.observe(after % mdp.STATES)),
        terminated=torch.from_numpy(ended),
        truncated=torch.zeros(len(s)).bool(),
        discounts=torch.full_like(rewards, GAMMA),
        indices=None,
        weights=None,
        extra={},
    )


def tabular(env_id, theta, version="correct", gradient="score-function", **options):
    agent = off_policy.OffPolicy(small(env_id=env_id, version=version, gradient=gradient, gamma=GAMMA, **options))
    agent.actor = mdp.make_actor(theta)
    outputs = 1 if version == "values-of-the-buffer" else mdp.ACTIONS
    table(agent, np.zeros((mdp.STATES, outputs)))
    return agent


def table(agent, values):
    """Gives an agent this critic, (S, A) or (S, 1)."""
    agent.critic = nn.Linear(mdp.STATES, values.shape[1], bias=False, dtype=torch.float64)
    agent.critic.weight.data[:] = torch.as_tensor(values).T
    agent.critic_parameters = [agent.critic.weight]
    agent.target = Target(agent.critic, tau=1.0)


def noise_for(agent, batch):
    return agent.draw(len(batch.rewards))


def fitted(agent, counts, rounds=120):
    """The critic's table after so many rounds on a buffer with these actions in its states."""
    per_cell = counts.T if agent.critic.out_features > 1 else counts.sum(1)[None]
    agent.q_optimizer = Newton(agent.critic.weight, per_cell / counts.sum())
    batch = rows(counts)
    for _ in range(rounds):
        agent.update_critic(batch, noise_for(agent, batch))
        agent.target.follow()
    return agent.critic.weight.detach().numpy().T


def true_values(policy):
    """V, (S,), and Q, (S, A), of a policy (S, A): the solution of (I - gamma P) V = r."""
    P = mdp.NEXT[:, :, : mdp.STATES]
    V = np.linalg.solve(np.eye(mdp.STATES) - GAMMA * np.einsum("sa,sau->su", policy, P), (policy * mdp.REWARDS).sum(1))
    return V, mdp.REWARDS + GAMMA * P @ V


def probabilities(theta):
    return mdp.log_policy(theta).exp().numpy()


COUNTS = (VISITS[:, :, None] * POLICIES).sum(0)


@pytest.mark.parametrize("theta", [mdp.THETA, mdp.BEHAVIOUR], ids=["one", "another"])
def test_the_critic_becomes_q_of_the_policy_whoever_acted(finite, theta):
    found = fitted(tabular(finite, theta, gradient="expectation"), COUNTS)
    np.testing.assert_allclose(found, true_values(probabilities(theta))[1], rtol=0, atol=1e-9)
    others = fitted(tabular(finite, theta, gradient="expectation"), np.full((3, 2), 100))
    np.testing.assert_allclose(others, found, rtol=0, atol=1e-9, err_msg="it depends on who filled the buffer")


@pytest.mark.parametrize("theta", [mdp.THETA, mdp.BEHAVIOUR], ids=["one", "another"])
def test_values_of_the_buffer_are_those_of_the_mixture(finite, theta):
    """The lecture's first mistake: V belongs to nobody's policy, whatever the present one is."""
    found = fitted(tabular(finite, theta, version="values-of-the-buffer"), COUNTS)[:, 0]
    np.testing.assert_allclose(found, true_values(MIXTURE)[0], rtol=0, atol=1e-9)
    assert np.abs(found - true_values(probabilities(theta))[0]).max() > 0.1
    for policy in POLICIES:
        assert np.abs(found - true_values(policy)[0]).max() > 0.1


def test_next_actions_are_the_policys_on_average_its_expectation(finite):
    """Over all draws a' of pi, weighted with their probabilities, the target is the exact sum."""
    Q, batch, theta = np.random.default_rng(0).normal(size=(3, 2)), rows(COUNTS), mdp.THETA
    expected, agent = tabular(finite, theta, gradient="expectation"), tabular(finite, theta)
    for each in (expected, agent):
        table(each, Q)
    pi = np.nan_to_num(agent.actor(batch.next_observations).log_probs.exp().detach().numpy())
    total = 0.0
    for a in range(mdp.ACTIONS):
        force(agent, [a])
        total = total + torch.from_numpy(pi[:, a]) * agent.targets(batch, noise_for(agent, batch))
    going_on = ~batch.terminated
    wanted = expected.targets(batch, noise_for(expected, batch))
    torch.testing.assert_close(total[going_on], wanted[going_on], rtol=0, atol=1e-12)
    found = agent.targets(batch, noise_for(agent, batch))
    assert torch.equal(found[batch.terminated], batch.rewards[batch.terminated])


def force(agent, actions):
    """Every draw gives these actions, the k-th of them in all states."""
    noise = torch.full((len(actions), 1, mdp.ACTIONS), -1e9, dtype=torch.float64)
    noise[torch.arange(len(actions)), 0, torch.tensor(actions)] = 1e9
    agent.noise = lambda count, size: (noise if count == len(noise) else noise[:1]).expand(count, size, -1)


# The policy's gradient, against the enumeration of all actions


def state(s):
    """One row of a batch whose action and outcome are of no interest."""
    return batch_of(np.array([s]), np.array([0]), np.array([0]))


def gradient_of(agent, batch):
    return -mdp.gradient_of(agent.policy_loss(batch, noise_for(agent, batch))[0], agent.actor)


def expected_gradient(agent, weights):
    """sum_s weights[s] E[the agent's gradient in s], over every K-tuple of the policy's actions."""
    pi, found = torch.softmax(agent.actor.network.weight.T, 1).detach().numpy(), 0.0
    K = agent.config.num_action_samples if agent.config.gradient == "score-function" else 0
    for s in range(mdp.STATES):
        for actions in itertools.product(range(mdp.ACTIONS), repeat=K):
            if K:
                force(agent, list(actions))
            found = found + weights[s] * np.prod(pi[s, list(actions)]) * gradient_of(agent, state(s))
    return found


@pytest.mark.parametrize(
    ("gradient", "samples"), [("expectation", 1), ("score-function", 1), ("score-function", 2), ("score-function", 3)]
)
def test_actions_of_the_policy_give_the_gradient_of_its_return(finite, gradient, samples):
    """Policy gradient theorem: with Q of pi and the states as pi visits them; K - 1 draws as a baseline change nothing.

    Against finite differences of J, which the list of actions owes nothing to.
    """
    agent = tabular(finite, mdp.THETA, gradient=gradient, num_action_samples=samples)
    pi = probabilities(mdp.THETA)
    table(agent, true_values(pi)[1])
    P = np.einsum("sa,sau->su", pi, mdp.NEXT[:, :, : mdp.STATES])
    visits = np.linalg.solve(np.eye(mdp.STATES) - GAMMA * P.T, mdp.START)
    found = expected_gradient(agent, visits)
    differences = mdp.finite_differences(lambda x: mdp.START @ true_values(probabilities(x))[0], mdp.THETA)
    np.testing.assert_allclose(found, differences, rtol=0, atol=1e-8)


@pytest.mark.parametrize("samples", [1, 3])
def test_a_constant_in_q_changes_nothing(finite, samples):
    """Of the correct version's expected gradient, with or without a baseline."""
    agent = tabular(finite, mdp.THETA, num_action_samples=samples)
    Q = true_values(POLICIES[0])[1]
    table(agent, Q)
    before = expected_gradient(agent, np.ones(3))
    table(agent, Q + 100.0)
    np.testing.assert_allclose(expected_gradient(agent, np.ones(3)), before, rtol=0, atol=1e-10)


def gradient_on_the_buffer(agent, counts):
    """The expectation over the buffer's transitions."""
    return gradient_of(agent, rows(counts))


def test_actions_of_the_buffer_make_the_policy_proportional_to_mixture_times_q(finite):
    """The lecture's second mistake, without a baseline: the worst action stays, and a constant in Q matters."""
    agent = tabular(finite, mdp.THETA, version="actions-of-the-buffer", num_action_samples=1, policy_lr=0.1)
    Q = true_values(POLICIES[0])[1] + 4.0
    assert (Q > 0).all()
    table(agent, Q)
    d = VISITS.sum(0) / VISITS.sum()
    pi = probabilities(mdp.THETA)
    found = gradient_on_the_buffer(agent, COUNTS)
    weighed = MIXTURE * Q
    np.testing.assert_allclose(found, d[:, None] * (weighed - pi * weighed.sum(1, keepdims=True)), rtol=0, atol=1e-12)

    agent.policy_optimizer = torch.optim.Adam(agent.actor.parameters(), lr=0.1)
    for _ in range(300):
        agent.update_policy(rows(COUNTS), noise_for(agent, rows(COUNTS)))
    share = weighed / weighed.sum(1, keepdims=True)
    reached = torch.softmax(agent.actor.network.weight.T, 1).detach().numpy()
    np.testing.assert_allclose(reached, share, atol=1e-3)
    assert reached.max(1).min() < 0.8, "no state has its best action alone"
    agent.config = dataclasses.replace(agent.config, version="correct", gradient="expectation")
    for _ in range(300):
        agent.update_policy(rows(COUNTS), noise_for(agent, rows(COUNTS)))
    best = torch.softmax(agent.actor.network.weight.T, 1).detach().numpy()
    assert np.array_equal(best.argmax(1), Q.argmax(1))
    assert best.max(1).min() > 0.99


def test_a_baseline_of_the_policys_own_does_not_repair_it(finite):
    """With Q - V of pi, by draws of pi, the buffer's actions still give another gradient, of the amount enumerated."""
    agent = tabular(finite, mdp.THETA, version="actions-of-the-buffer", num_action_samples=2)
    Q, pi = true_values(probabilities(mdp.THETA))[1], probabilities(mdp.THETA)
    table(agent, Q)
    found, d = 0.0, VISITS.sum(0) / VISITS.sum()
    for s, a, other in itertools.product(range(3), range(2), range(2)):
        force(agent, [other])
        one = batch_of(np.array([s]), np.array([a]), np.array([0]))
        found = found + d[s] * MIXTURE[s, a] * pi[s, other] * gradient_of(agent, one)
    A = MIXTURE * (Q - (pi * Q).sum(1, keepdims=True))
    np.testing.assert_allclose(found, d[:, None] * (A - pi * A.sum(1, keepdims=True)), rtol=0, atol=1e-12)
    correct = d[:, None] * pi * (Q - (pi * Q).sum(1, keepdims=True))
    assert np.abs(found - correct).max() > 0.02


def test_values_of_the_buffer_improve_on_the_mixture(finite):
    """E over the buffer of grad log pi(a | s) A(s, a), A being the mixture's advantage, not the policy's."""
    agent = tabular(finite, mdp.THETA, version="values-of-the-buffer")
    V, Q = true_values(MIXTURE)
    table(agent, V[:, None])
    A, pi, d = MIXTURE * (Q - V[:, None]), probabilities(mdp.THETA), VISITS.sum(0) / VISITS.sum()
    expected = d[:, None] * (A - pi * A.sum(1, keepdims=True))
    np.testing.assert_allclose(gradient_on_the_buffer(agent, COUNTS), expected, rtol=0, atol=1e-12)


def test_score_function_and_reparameterised_gradients_agree():
    """Within 4 standard errors, of the same smooth Q; each minibatch of noise is one sample of either."""
    agent = filled(env_id="Pendulum-v1", gradient="reparameterized", num_action_samples=256, activation="tanh")
    batch, found = agent.experience.sample(8), {}
    for parameter in agent.actor.network[-1].parameters():
        parameter.data *= 3.0
    for gradient in ("reparameterized", "score-function"):
        agent.config = dataclasses.replace(agent.config, gradient=gradient)
        samples = []
        for _ in range(120):
            loss, _ = agent.policy_loss(batch, agent.draw(8))
            parameters = list(agent.actor.network[-1].parameters())
            samples.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)]))
        samples = torch.stack(samples)
        found[gradient] = samples.mean(0), samples.std(0) / len(samples) ** 0.5
    (one, error_one), (two, error_two) = found.values()
    assert ((one - two).abs() <= 4 * (error_one**2 + error_two**2).sqrt() + 1e-7).all()
    assert (one.abs() > 4 * error_one).any(), "there is a gradient to agree on"
    assert error_one.mean() < error_two.mean(), "through Q the scatter is smaller"


# The update


@pytest.mark.parametrize("updates", [1, 100])
@pytest.mark.parametrize(
    "options",
    [
        {"env_id": "CartPole-v1", "num_action_samples": 3, "ent_coef": 0.01},
        {"env_id": "CartPole-v1", "gradient": "expectation", "ent_coef": 0.01},
        {"env_id": "CartPole-v1", "version": "actions-of-the-buffer", "num_action_samples": 1},
        {"env_id": "CartPole-v1", "version": "values-of-the-buffer"},
        {"env_id": "Pendulum-v1", "num_action_samples": 3, "ent_coef": 0.01},
        {"env_id": "Pendulum-v1", "gradient": "reparameterized", "num_action_samples": 2, "ent_coef": 0.01},
        {"env_id": "continuous/Observed-v0", "version": "actions-of-the-buffer", "num_action_samples": 3},
        {"env_id": "continuous/Observed-v0", "version": "values-of-the-buffer"},
    ],
    ids=lambda x: "-".join(map(str, x.values())),
)
def test_updates_agree_with_the_float64_reference(options, updates):
    """The parameters after 1 and after 100 updates, same weights, batches and noise."""
    agent = filled(**options)
    for network in (agent.actor, agent.critic, agent.target.network):
        network.double()
    sample, noise, batches, noises = agent.experience.sample, agent.noise, [], []

    def sampled(batch_size):
        batch = sample(batch_size)
        double = [x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in batch]
        batches.append(type(batch)(*double))
        return batches[-1]

    agent.experience.sample = sampled
    agent.noise = lambda *shape: noises.append(noise(*shape).double()) or noises[-1]

    def network(module):
        return module.networks[0] if hasattr(module, "networks") else module

    critic = network(agent.critic)
    other = reference.OffPolicy(layers(agent.actor.network), layers(critic), agent.config, agent.discrete)
    for _ in range(updates):
        noises.clear()
        agent.update()
        other.update(replay_agents.rows_of(batches[-1]), [x.numpy() for x in noises])
    pairs = [
        (agent.actor.network, other.actor), (critic, other.critic), (network(agent.target.network), other.target)
    ]  # fmt: skip
    for ours, theirs in pairs:
        for our_layer, their_layer in zip(layers(ours), theirs, strict=True):
            for x, y in zip(our_layer, their_layer, strict=True):
                np.testing.assert_allclose(x, y, atol=1e-9, rtol=1e-7)


@pytest.mark.parametrize(("env_id", "gradient"), GRADIENTS)
def test_nothing_is_read_from_the_device_in_an_update(env_id, gradient):
    """Row A11."""
    agent = filled(env_id=env_id, gradient=gradient)
    with Reads() as reads:
        agent.update()
    assert reads.found == []


@pytest.mark.parametrize("version", BROKEN)
def test_nothing_is_read_in_the_broken_versions_either(version):
    """Row A11."""
    agent = filled(version=version)
    with Reads() as reads:
        agent.update()
    assert reads.found == []


def test_the_actors_step_computes_no_gradient_of_the_critic():
    agent = filled(env_id="Pendulum-v1", gradient="reparameterized")
    agent.update()
    before = [p.grad.clone() for p in agent.critic_parameters]
    agent.update_policy(agent.experience.sample(32), agent.draw(32))
    assert all(torch.equal(p.grad, kept) for p, kept in zip(agent.critic_parameters, before, strict=True))
    assert all(p.requires_grad for p in agent.critic_parameters)


# What it learns


def learnt(updates=400, **options):
    """From a buffer of random actions alone."""
    agent = filled(**{"steps": 400, "policy_lr": 3e-3, "q_lr": 3e-3, "tau": 0.05, **options})
    for _ in range(updates):
        agent.update()
    return agent


def values_of(agent, observation):
    """Of each action, or of -1, 0 and 1."""
    observations = torch.full((3, 1), float(observation))
    with torch.no_grad():
        if agent.discrete:
            return agent.critic(observations)[0]
        return agent.critic(observations, torch.tensor([[-1.0], [0.0], [1.0]]))[0]


KINDS = pytest.mark.parametrize(
    ("family", "gradient"),
    [
        ("probe", "score-function"), ("probe", "expectation"), ("continuous", "score-function"),
        ("continuous", "reparameterized"),
    ],
)  # fmt: skip


@KINDS
def test_a_value_that_depends_on_the_observation_is_learnt(family, gradient):
    agent = learnt(env_id=f"{family}/Observed-v0", gradient=gradient)
    for observation in (-1, 1):
        np.testing.assert_allclose(values_of(agent, observation), observation, atol=0.1)


@KINDS
def test_values_are_discounted(family, gradient):
    agent = learnt(env_id=f"{family}/Discounted-v0", gradient=gradient, gamma=0.5)
    np.testing.assert_allclose(values_of(agent, 1.0), 1.0, atol=0.1)
    np.testing.assert_allclose(values_of(agent, 0.0), 0.5, atol=0.1)


@pytest.mark.parametrize("gradient", ["score-function", "expectation"])
def test_the_action_that_fits_the_observation_is_learnt(gradient):
    agent = learnt(env_id="probe/Matching-v0", gradient=gradient)
    assert agent.experience.policy.act(np.array([[1.0], [-1.0]])).tolist() == [1, 0]
    with torch.no_grad():
        assert agent.actor(torch.ones(1, 1)).log_probs.exp()[0, 1] > 0.9


@pytest.mark.parametrize("gradient", ["score-function", "reparameterized"])
def test_a_continuous_target_is_learnt(gradient):
    """The environment's bounds are +-2, the action that pays is 0.5 there."""
    agent = learnt(env_id="continuous/Target-v0", gradient=gradient, ent_coef=0.1, updates=600)
    assert agent.experience.policy.act(np.zeros(1))[0] == pytest.approx(0.5, abs=0.15)


@KINDS
def test_a_time_limit_is_not_an_end(family, gradient):
    """Row R1: r = 1 for ever, gamma = 0.98, truncated every 10 steps: V = 50 (below 10 if truncation were the end)."""
    agent = learnt(updates=700, env_id=f"{family}/Endless-v0", gradient=gradient, gamma=0.98, q_lr=1e-2, tau=0.5)
    np.testing.assert_allclose(values_of(agent, 0.0), 50.0, atol=3)


def test_cartpole_improves():
    config = off_policy.Config(gradient="expectation", total_timesteps=5000)
    assert off_policy.train(config).episode_return > 35


def test_it_learns_from_images():
    config = small(
        env_id="sample_envs:Pixels-v0", gradient="expectation", total_timesteps=264, tau=0.1, gamma=0.5,
        policy_lr=3e-3, q_lr=3e-3,
    )  # fmt: skip
    result = off_policy.train(config)
    assert evaluate(result.policy, config.env_id, episodes=10).mean > 3.5


@pytest.mark.slow
def test_cartpole_is_learnt():
    means = [evaluate(off_policy.train(off_policy.Config(seed=seed)).policy, "CartPole-v1").mean for seed in range(2)]
    assert min(means) >= 475


# Options, logs and resuming


@pytest.mark.parametrize(
    "options",
    [
        {"env_id": "CartPole-v1", "num_envs": 2, "anneal_lr": True, "train_frequency": 3},
        {"env_id": "Pendulum-v1", "normalize_observations": True, "gradient": "reparameterized"},
        {"env_id": "Pendulum-v1", "num_action_samples": 2, "updates_per_step": 0.5, "ent_coef": 0.1},
        {"env_id": "CartPole-v1", "version": "values-of-the-buffer", "vectorization": "vector_entry_point"},
    ],
    ids=lambda x: "-".join(map(str, x.values())),
)
def test_a_resumed_run_is_the_same_bit_for_bit(options, tmp_path):
    """Row A9: training 2N equals training N, saving, loading, training N; the buffer included, and twice over."""
    config = small(**options, total_timesteps=400, log_interval=100, buffer_size=150)
    off_policy.train(config, run_dir=tmp_path / "whole")
    off_policy.train(config, run_dir=tmp_path / "again")
    stopped = off_policy.train(config, lambda progress: progress.iteration < 2, run_dir=tmp_path / "parts")
    assert not stopped.finished
    assert resume(tmp_path / "parts").finished
    whole = everything(tmp_path / "whole")
    assert any(name.startswith("/replay/arrays") for name in whole[0])
    assert everything(tmp_path / "again") == whole
    assert everything(tmp_path / "parts") == whole


def test_metrics_have_the_names_of_sacs():
    found = []
    off_policy.train(small(total_timesteps=100, log_interval=50), lambda progress: found.append(progress.metrics))
    assert {*found[0]} == {*off_policy.METRICS, "charts/learning_rate"}
    assert len(found) == 2
    assert np.isnan(found[0]["losses/q_loss"]), "nothing is learnt before learning_starts"
    assert np.isfinite(list(found[1].values())).all()


def test_as_many_updates_as_steps():
    agents = []
    for options in ({}, {"num_envs": 3}, {"train_frequency": 7}, {"updates_per_step": 0.5}):
        config = small(total_timesteps=126, **options)
        agent, loop = None, off_policy.OffPolicy.update
        counted = []

        class Counting(off_policy.OffPolicy):
            def update(self, loop=loop, counted=counted):
                counted.append(self.experience.global_step)
                return loop(self)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(off_policy, "OffPolicy", Counting)
            off_policy.train(config)
        agents.append(len(counted))
        assert min(counted) > config.learning_starts, agent
    assert agents == [62, 62, 62, 31]


def test_every_preset_can_be():
    for name, entry in off_policy.PRESETS.items():
        for env_id in entry:
            config = preset("off_policy", name, None if env_id == "default" else env_id)
            config.check()
            assert config.gradient == name
            assert config.version == "correct"
    assert off_policy.PRESETS["score-function"]["CartPole-v1"] == off_policy.Config()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"gamma": 1.5}, "gamma: got 1.5, expected between 0 and 1"),
        ({"tau": 0.0}, "tau: got 0.0, expected above 0"),
        ({"num_action_samples": 0}, "num_action_samples: got 0, expected at least 1"),
        ({"ent_coef": -1.0}, "ent_coef: got -1.0, expected at least 0"),
        ({"learning_starts": -1}, "learning_starts: got -1, expected at least 0"),
        ({"buffer_size": 1, "num_envs": 2}, "buffer_size: got 1, expected at least num_envs, 2"),
        ({"device": "cuda:99"}, "device: got 'cuda:99'"),
        (
            {"version": "values-of-the-buffer", "gradient": "expectation"},
            "gradient: got expectation, expected score-function: values-of-the-buffer has no other",
        ),
    ],
)
def test_options_that_cannot_be_are_named(option, message):
    with pytest.raises(RunError, match=message):
        off_policy.train(small(**option))


@pytest.mark.parametrize(
    ("env_id", "gradient", "message"),
    [
        ("CartPole-v1", "reparameterized", r"its actions are Discrete\(2\), expected Box with reparameterized"),
        ("Pendulum-v1", "expectation", r"its actions are Box\(.*\), expected Discrete with expectation"),
    ],
)
def test_gradients_that_the_actions_do_not_have_are_named(env_id, gradient, message):
    with pytest.raises(EnvError, match=message):
        off_policy.train(small(env_id=env_id, gradient=gradient))
