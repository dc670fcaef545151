"""The natural gradient against matrices in full, the bound on KL, and what happens where no step is accepted."""

import dataclasses

import enumeration as mdp
import numpy as np
import ppo_reference
import probe_envs
import pytest
import torch
import trpo_reference as reference
from layers import flat, in_float64, layers
from test_run import everything
from torch.func import functional_call

from fastac.algorithms import preset, resume, trpo
from fastac.distributions import kl_divergence
from fastac.evaluate import evaluate
from fastac.networks import CategoricalActor, GaussianActor, mlp
from fastac.run import RunError, torch_threads

probe_envs.register()
ENVIRONMENTS = ("CartPole-v1", "Pendulum-v1")


@pytest.fixture(autouse=True)
def _one_thread(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with torch_threads(1):
        yield


def small(env_id="CartPole-v1", **options):
    base = {"num_envs": 2, "num_steps": 64, "hidden_sizes": (16, 16), "num_minibatches": 2}
    return trpo.Config(env_id=env_id, **{**base, **options})


def rolled_out(config):
    agent = trpo.TRPO(config)
    agent.collector.collect()
    agent.estimate()
    return agent


def bytes_of(module):
    return [parameter.detach().numpy().tobytes() for parameter in module.parameters()]


def random_actor(kind):
    generator = torch.Generator().manual_seed(0)
    network = mlp([3, 4, 2], output_gain=1.0, generator=generator)
    actor = CategoricalActor(network) if kind == "categorical" else GaussianActor(network, 2, initial_log_std=-0.3)
    observations = torch.randn(20, 3, generator=generator, dtype=torch.float64)
    return actor.double(), observations, generator


def kl_at(actor, observations, order):
    """A function of all parameters in one vector: the mean KL between the actor as it is and with those."""
    names = [name for name, _ in actor.named_parameters()]
    shapes = [p.shape for p in actor.parameters()]
    old = actor(observations).frozen()

    def mean_kl(values):
        parts = torch.split(values, [shape.numel() for shape in shapes])
        new = functional_call(
            actor, {n: x.view(s) for n, x, s in zip(names, parts, shapes, strict=True)}, (observations,)
        )
        return kl_divergence(*((old, new) if order == "old || new" else (new, old))).mean()

    return mean_kl


# The pieces


@pytest.mark.parametrize("kind", ["categorical", "gaussian"])
@pytest.mark.parametrize("order", ["old || new", "new || old"])
def test_the_fisher_vector_product_is_the_hessians(kind, order):
    """Against the explicit Hessian of KL, in both directions, which have the same one; and against Fisher's matrix."""
    actor, observations, generator = random_actor(kind)
    parameters = list(actor.parameters())
    values = trpo.flat(parameters).detach()
    hessian = torch.autograd.functional.hessian(kl_at(actor, observations, order), values)
    kl = kl_divergence(actor(observations).frozen(), actor(observations)).mean()
    for damping in (0.0, 0.1):
        product = trpo.fisher_vector_product(kl, parameters, damping=damping)
        for _ in range(3):
            v = torch.randn(len(values), generator=generator, dtype=torch.float64)
            torch.testing.assert_close(product(v), hessian @ v + damping * v, atol=1e-12, rtol=1e-10)
    log_std = None if kind == "categorical" else actor.log_std.detach().numpy()
    fisher = reference.fisher(layers(actor.network), log_std, observations.numpy())
    np.testing.assert_allclose(hessian, fisher, atol=1e-12)


def test_a_finite_difference_of_the_gradient_is_the_product():
    """Away from the old parameters, too: (grad KL(x + h v) - grad KL(x - h v)) / 2h."""
    actor, observations, generator = random_actor("categorical")
    kl = kl_at(actor, observations, "old || new")
    x = trpo.flat(list(actor.parameters())).detach()
    x = (x + 0.3 * torch.randn(len(x), generator=generator, dtype=torch.float64)).requires_grad_()
    v, h = torch.randn(len(x), generator=generator, dtype=torch.float64), 1e-5
    slopes = [torch.autograd.grad(kl(x + sign * h * v), x)[0] for sign in (1, -1)]
    found = trpo.fisher_vector_product(kl(x), [x], damping=0.0)(v)
    torch.testing.assert_close(found, (slopes[0] - slopes[1]) / (2 * h), atol=1e-8, rtol=1e-6)


def test_conjugate_gradient_solves():
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(12, 12, generator=generator, dtype=torch.float64)
    matrix = root @ root.T + 0.1 * torch.eye(12, dtype=torch.float64)
    b = torch.randn(12, generator=generator, dtype=torch.float64)
    exact = torch.linalg.solve(matrix, b)
    errors = []
    for iterations in (1, 4, 8, 12, 40):
        x = trpo.conjugate_gradient(lambda v: matrix @ v, b, iterations=iterations)
        errors.append(((x - exact) @ matrix @ (x - exact)).item())
    assert errors == sorted(errors, reverse=True), "every iteration is better in the matrix's norm"
    torch.testing.assert_close(x, exact, atol=1e-8, rtol=1e-8)


def test_conjugate_gradient_stays_where_it_has_converged():
    """After one iteration on a multiple of the identity there is nothing left: 0 / 0 would follow."""
    b = torch.tensor([3.0, 4.0])
    torch.testing.assert_close(trpo.conjugate_gradient(lambda v: 2.0 * v, b, iterations=15), b / 2.0)
    assert torch.equal(trpo.conjugate_gradient(lambda v: 2.0 * v, 0.0 * b, iterations=3), torch.zeros(2))


def test_the_surrogates_gradient_is_the_policy_gradient():
    """By enumeration, at the old parameters: to 1e-8; and beside them it is the first-order one of the ratios."""
    values, q_values = mdp.values(mdp.THETA, 0.9)
    actor, expected = mdp.make_actor(mdp.THETA), 0.0
    for p, (x,) in mdp.batches(mdp.THETA):
        t = torch.arange(len(x.states))
        advantages = 0.9**t * (q_values[t, x.states, x.actions] - values[t, x.states])
        log_probs = actor(mdp.observe(x.states)).log_prob(torch.from_numpy(x.actions))
        objective = trpo.surrogate(log_probs, log_probs.detach(), advantages)
        expected = expected + p * len(t) * mdp.gradient_of(objective, actor)
    np.testing.assert_allclose(expected, mdp.exact_gradient(mdp.THETA, 0.9), atol=1e-8)


def test_parameters_are_written_where_they_lie():
    """Acting reads their memory: a new one would leave the old policy acting."""
    agent = rolled_out(small())
    observations = np.ones((1, 4), np.float32)
    before = agent.collector.acting._forward(observations).copy()
    pointers = [parameter.data_ptr() for parameter in agent.parameters]
    assert agent.update_actor()["losses/step_fraction"] > 0
    assert [parameter.data_ptr() for parameter in agent.parameters] == pointers
    after = agent.collector.acting._forward(observations)
    assert not np.array_equal(before, after)
    with torch.no_grad():
        logits = agent.actor.network(torch.from_numpy(observations)).numpy()
    np.testing.assert_allclose(after, logits, rtol=1e-5)


# The step


@pytest.mark.parametrize("env_id", ENVIRONMENTS)
def test_the_steps_length_is_that_of_the_boundary(env_id, monkeypatch):
    """sqrt(2 delta / g'F^-1 g) along F^-1 g, F (damped) solved in full; KL is F's (undamped) quadratic form there."""
    monkeypatch.setattr(trpo, "accepted", lambda improvement, kl, target_kl: True)
    config = small(env_id, hidden_sizes=(4,), cg_damping=0.01, cg_iterations=300, target_kl=1e-8)
    agent = in_float64(rolled_out(config))
    log_std = agent.actor.log_std.detach().numpy().copy() if env_id == "Pendulum-v1" else None
    actor, buffer = layers(agent.actor.network), agent.buffer
    start = reference.vector(actor, log_std)
    observations, actions = buffer.flat()
    log_probs = agent.actor(observations).log_prob(actions)
    advantages = trpo.normalize_advantages(buffer.advantages.flatten())
    g = trpo.flat(torch.autograd.grad((log_probs * advantages).mean(), agent.parameters)).numpy()
    F = reference.fisher(actor, log_std, observations.numpy())
    damped = F + 0.01 * np.eye(len(g))
    natural = np.linalg.solve(damped, g)
    metrics = agent.update_actor()
    step = trpo.flat(agent.parameters).detach().numpy() - start
    assert 0.5 * step @ damped @ step == pytest.approx(1e-8, rel=1e-6)
    np.testing.assert_allclose(step, np.sqrt(2e-8 / (g @ natural)) * natural, rtol=1e-5, atol=1e-12)
    assert metrics["losses/kl"] == pytest.approx(0.5 * step @ F @ step, rel=0.01)
    assert metrics["losses/improvement"] == pytest.approx(g @ step, rel=0.01)


@pytest.mark.parametrize("env_id", ENVIRONMENTS)
@pytest.mark.parametrize("updates", [1, 20])
def test_updates_agree_with_the_float64_reference(env_id, updates):
    """Actor and critic after one and many updates on one rollout: Fisher's matrix in full, a direct solution, Adam."""
    vectorization = "vector_entry_point" if env_id == "CartPole-v1" else "sync"
    config = small(env_id, hidden_sizes=(4,), cg_iterations=150, update_epochs=2, vectorization=vectorization)
    agent = in_float64(rolled_out(config))
    log_std = agent.actor.log_std.detach().numpy().copy() if env_id == "Pendulum-v1" else None
    actor, critic = layers(agent.actor.network), layers(agent.critic)
    adam = ppo_reference.Adam(flat(critic), max_norm=np.inf)
    generator, fractions = torch.Generator(), []
    for _ in range(updates):
        agent.estimate()
        buffer = agent.buffer
        rows = np.flatnonzero(buffer.mask)
        assert (len(rows) < buffer.mask.size) == (env_id == "CartPole-v1"), "fillers have to be left out"
        advantages = buffer.advantages.flatten().numpy()[rows]
        advantages = (advantages - advantages.mean()) / (advantages.std(ddof=1) + 1e-8)
        observations, actions = (field.numpy()[rows] for field in buffer.flat())
        batch = (observations, actions, buffer.log_probs.flatten().numpy()[rows], advantages)
        fractions.append(reference.update(actor, log_std, batch, config))
        assert agent.update_actor()["losses/step_fraction"] == fractions[-1]
        generator.set_state(agent.collector.generator.get_state())
        for _ in range(config.update_epochs):
            for seen, returns in buffer.shuffled((buffer.flat()[0], buffer.returns.flatten()), 2, generator):
                inputs, values = ppo_reference.forward(critic, seen.numpy())
                slope = (values - returns.numpy()[:, None]) / len(values)
                adam.step(flat(critic), flat(ppo_reference.backward(critic, inputs, slope)), config.learning_rate)
        agent.update_critic()
        found = np.concatenate([x.ravel() for x in flat(layers(agent.critic))])
        np.testing.assert_allclose(found, np.concatenate([x.ravel() for x in flat(critic)]), atol=1e-9, rtol=1e-7)
    found = trpo.flat(agent.parameters).detach().numpy()
    np.testing.assert_allclose(found, reference.vector(actor, log_std), atol=1e-7, rtol=1e-6)
    assert any(fractions)


@pytest.mark.parametrize("env_id", ENVIRONMENTS)
def test_kl_stays_below_its_bound_and_the_objective_grows(env_id):
    agent = trpo.TRPO(small(env_id, target_kl=0.02, cg_damping=1e-3))
    accepted = 0
    for _ in range(10):
        agent.collector.collect()
        agent.estimate()
        buffer = agent.buffer
        observations, actions = buffer.flat()
        old = agent.actor(observations).frozen()
        metrics = agent.update_actor()
        new = agent.actor(observations)
        assert kl_divergence(old, new).mean().item() == pytest.approx(metrics["losses/kl"], rel=1e-4, abs=1e-8)
        assert metrics["losses/kl"] < 0.02
        advantages = trpo.normalize_advantages(buffer.advantages.flatten())
        ratio = (new.log_prob(actions) - old.log_prob(actions)).exp()
        improvement = ((ratio - 1) * advantages).mean().item()
        assert improvement == pytest.approx(metrics["losses/improvement"], abs=1e-5)
        assert -metrics["losses/policy_loss"] == pytest.approx(improvement, abs=1e-5)
        if metrics["losses/step_fraction"]:
            accepted += 1
            assert metrics["losses/improvement"] > 0
            assert metrics["losses/kl"] > 0
        agent.update_critic()
    assert accepted > 5


def test_kl_has_the_old_policy_first(monkeypatch):
    """The paper's direction, against a sum over the actions of a step long enough to tell them apart."""
    monkeypatch.setattr(trpo, "accepted", lambda improvement, kl, target_kl: True)
    agent = rolled_out(small(target_kl=0.5, cg_damping=1e-3))
    observations = agent.buffer.flat()[0]
    old = agent.actor(observations).log_probs.detach()
    kl = agent.update_actor()["losses/kl"]
    new = agent.actor(observations).log_probs.detach()
    assert kl == pytest.approx((old.exp() * (old - new)).sum(-1).mean().item(), rel=1e-4)
    assert kl != pytest.approx((new.exp() * (new - old)).sum(-1).mean().item(), rel=1e-2)


@pytest.mark.parametrize("env_id", ENVIRONMENTS)
def test_where_no_step_is_accepted_the_old_parameters_stay_bit_for_bit(env_id, monkeypatch):
    """Row A8, with every trial refused; the metrics say that nothing happened."""
    tried = []
    monkeypatch.setattr(trpo, "accepted", lambda improvement, kl, target_kl: bool(tried.append(kl.item())))
    agent = rolled_out(small(env_id))
    with torch.no_grad():
        agent.parameters[-1][0] = -0.0
    before = bytes_of(agent.actor)
    metrics = agent.update_actor()
    assert bytes_of(agent.actor) == before
    assert len(tried) == 10
    assert tried == sorted(tried, reverse=True)
    assert metrics["losses/step_fraction"] == metrics["losses/kl"] == metrics["losses/improvement"] == 0
    assert metrics["losses/approx_kl"] == metrics["losses/old_approx_kl"] == 0


@pytest.mark.parametrize("advantage", [0.0, np.nan])
def test_without_a_direction_the_old_parameters_stay(advantage):
    """Row A8: advantages that are all the same have no gradient, and with a NaN nothing can be trusted."""
    agent = rolled_out(small())
    agent.buffer.advantages[:] = 1.0
    agent.buffer.advantages[0, 0] += advantage
    before = bytes_of(agent.actor)
    assert agent.update_actor()["losses/step_fraction"] == 0
    assert bytes_of(agent.actor) == before


def test_a_step_needs_both_a_small_kl_and_an_improvement():
    yes, no = torch.tensor(0.005), torch.tensor(0.02)
    assert trpo.accepted(torch.tensor(0.1), yes, 0.01)
    assert not trpo.accepted(torch.tensor(0.1), no, 0.01)
    assert not trpo.accepted(torch.tensor(0.0), yes, 0.01)
    assert not trpo.accepted(torch.tensor(-0.1), yes, 0.01)
    assert not trpo.accepted(torch.tensor(0.1), torch.tensor(0.01), torch.tensor(0.01).item())
    assert not trpo.accepted(torch.tensor(torch.nan), yes, 0.01)
    assert not trpo.accepted(torch.tensor(0.1), torch.tensor(torch.nan), 0.01)


def test_the_line_search_takes_the_first_length_that_fits(monkeypatch):
    agent = rolled_out(small())
    start = trpo.flat(agent.parameters).detach().clone()
    trials = []

    def third(improvement, kl, target_kl):
        trials.append(trpo.flat(agent.parameters).detach() - start)
        return len(trials) == 3

    monkeypatch.setattr(trpo, "accepted", third)
    assert agent.update_actor()["losses/step_fraction"] == pytest.approx(0.64)
    torch.testing.assert_close(trials[1], 0.8 * trials[0], atol=1e-7, rtol=1e-3)
    torch.testing.assert_close(trpo.flat(agent.parameters).detach() - start, 0.64 * trials[0], atol=1e-7, rtol=1e-3)


# What it learns


def trained(name, **options):
    config = small(
        f"probe/{name}-v0",
        **{"total_timesteps": 3000, "num_envs": 4, "num_steps": 25, "learning_rate": 1e-2, "target_kl": 0.1, **options},
    )
    agent = trpo.TRPO(config)
    while agent.collector.global_step < config.total_timesteps:
        agent.collector.collect()
        agent.estimate()
        agent.update_actor()
        agent.update_critic()
    agent.collector.close()
    return agent


def value_of(agent, observation):
    with torch.no_grad():
        return agent.critic(torch.tensor([[observation]])).item()


def test_values_are_learnt():
    assert value_of(trained("Constant", total_timesteps=1000), 0.0) == pytest.approx(1.0, abs=0.02)
    agent = trained("Observed", total_timesteps=1000)
    assert value_of(agent, 1.0) == pytest.approx(1.0, abs=0.05)
    assert value_of(agent, -1.0) == pytest.approx(-1.0, abs=0.05)
    agent = trained("Discounted", gamma=0.5, total_timesteps=1000)
    assert value_of(agent, 1.0) == pytest.approx(1.0, abs=0.05)
    assert value_of(agent, 0.0) == pytest.approx(0.5, abs=0.05)


def test_the_action_that_pays_is_learnt():
    assert trained("Rewarding", total_timesteps=1000).collector.policy.act(np.zeros(1)) == 1
    agent = trained("Matching", total_timesteps=2000)
    assert agent.collector.policy.act(np.array([[1.0], [-1.0]])).tolist() == [1, 0]


def test_a_continuous_target_is_learnt():
    agent = trained("Target", total_timesteps=4000)
    assert agent.collector.policy.act(np.zeros(1))[0] == pytest.approx(0.5, abs=0.1)


def test_a_time_limit_is_not_an_end():
    """Row R1: r = 1 for ever, gamma = 0.98, truncated every 10 steps: V = 50 (10 if truncation were termination)."""
    agent = trained("Endless", gamma=0.98, total_timesteps=8000, learning_rate=2e-2, norm_adv=False)
    assert value_of(agent, 0.0) == pytest.approx(50.0, abs=2.5)


def test_a_time_limit_is_an_episodes_end_nevertheless():
    """Rows R1 and R2: V(1) = 2; 1.33 if truncation were termination, 1.6 if the next episode's value leaked in."""
    agent = trained("Later", gamma=0.5)
    assert value_of(agent, 1.0) == pytest.approx(2.0, abs=0.1)
    assert value_of(agent, 0.0) == pytest.approx(1.0, abs=0.1)


def test_it_learns_from_images():
    config = small("sample_envs:Pixels-v0", num_envs=4, num_steps=16, target_kl=0.1, activation="relu")
    result = trpo.train(dataclasses.replace(config, total_timesteps=640, update_epochs=1, cg_iterations=8))
    assert evaluate(result.policy, config.env_id, episodes=10).mean > 3.5


@pytest.mark.parametrize(
    "options",
    [
        {"vectorization": "vector_entry_point"},
        {"env_id": "Pendulum-v1", "normalize_observations": True, "normalize_rewards": True},
    ],
    ids=["categorical", "gaussian"],
)
def test_a_resumed_run_is_the_same_bit_for_bit(options, tmp_path):
    """Row A9: training 2N equals training N, saving, loading, training N."""
    config = small(**{"total_timesteps": 6 * 128, "update_epochs": 2, **options})
    trpo.train(config, run_dir=tmp_path / "whole")
    assert not trpo.train(config, lambda progress: progress.iteration < 3, run_dir=tmp_path / "parts").finished
    assert resume(tmp_path / "parts").finished
    assert everything(tmp_path / "parts") == everything(tmp_path / "whole")


def test_defaults_are_sb3_contribs():
    """Row A5: one Config, tested against the documented table (sb3_contrib.TRPO and RL Baselines3 Zoo's trpo.yml)."""
    expected = {
        "learning_rate": 1e-3,
        "num_envs": 1,
        "num_steps": 2048,
        "gamma": 0.99,
        "gae_lambda": 0.95,
        "norm_adv": True,
        "target_kl": 0.01,
        "cg_iterations": 15,
        "cg_damping": 0.1,
        "line_search_coef": 0.8,
        "line_search_steps": 10,
        "update_epochs": 10,
        "num_minibatches": 2048 // 128,
    }
    zoo = {
        "num_envs": 2,
        "num_steps": 512,
        "num_minibatches": 2 * 512 // 512,
        "cg_damping": 1e-3,
        "gae_lambda": 0.98,
        "gamma": 0.99,
        "learning_rate": 1e-3,
        "update_epochs": 20,
        "total_timesteps": 100_000,
    }
    for name, table in (("sb3", expected), ("sb3-zoo", {**expected, **zoo})):
        options = dataclasses.asdict(preset("trpo", name))
        assert {option: options[option] for option in table} == table


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"gae_lambda": 1.5}, "gae_lambda: got 1.5, expected between 0 and 1"),
        ({"cg_iterations": 0}, "cg_iterations: got 0, expected at least 1"),
        ({"target_kl": 0.0}, "target_kl: got 0.0, expected above 0"),
        ({"cg_damping": -0.1}, "cg_damping: got -0.1, expected at least 0"),
        ({"line_search_coef": 1.0}, "line_search_coef: got 1.0, expected between 0 and 1"),
        ({"num_minibatches": 5000}, "num_minibatches: got 5000, expected at most 2048"),
    ],
)
def test_options_that_cannot_be_are_named(option, message):
    with pytest.raises(RunError, match=message):
        trpo.train(trpo.Config(**option))


def test_cartpole_improves():
    result = trpo.train(dataclasses.replace(preset("trpo", "sb3-zoo"), total_timesteps=16_384))
    assert result.finished
    assert result.episode_return > 60


@pytest.mark.slow
def test_cartpole_is_solved():
    from fastac.evaluate import interquartile_mean

    configs = [dataclasses.replace(trpo.Config(), seed=seed) for seed in range(4)]
    assert interquartile_mean([evaluate(trpo.train(c).policy, "CartPole-v1").mean for c in configs]) >= 475
