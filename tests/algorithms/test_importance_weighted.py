"""Importance weights by enumeration, the update by a second implementation, and what bounds KL does bound it."""

import dataclasses

import enumeration as mdp
import importance_weighted_reference as reference
import numpy as np
import ppo_reference
import probe_envs
import pytest
import torch
from layers import flat, in_float64, layers
from test_ppo import Reads
from test_run import everything

from fastac.algorithms import importance_weighted as iw
from fastac.algorithms import resume
from fastac.distributions import Categorical, kl_divergence
from fastac.evaluate import evaluate
from fastac.run import RunError, torch_threads

probe_envs.register()
GAMMA = 0.9
KINDS = ("per_step", "per_decision")


@pytest.fixture(autouse=True)
def _one_thread(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with torch_threads(1):
        yield


def small(env_id="CartPole-v1", **options):
    return iw.Config(env_id=env_id, **{"num_envs": 2, "num_steps": 32, "hidden_sizes": (16, 16), **options})


def rolled_out(config):
    agent = iw.ImportanceWeighted(config)
    agent.collector.collect()
    agent.estimate()
    return agent


def bytes_of(module):
    return [parameter.detach().numpy().tobytes() for parameter in module.parameters()]


# The weights, by enumeration


def expected_gradient(theta, behaviour, kind, what="advantages"):
    """E[gradient of sum_t gamma^t w_t x_t] over all trajectories of `behaviour`; x: its advantages, or rewards."""
    values, q_values = mdp.values(behaviour, GAMMA)
    actor, expected = mdp.make_actor(theta), 0.0
    for p, (x,) in mdp.batches(behaviour):
        t = torch.arange(len(x.states))
        advantages = q_values[t, x.states, x.actions] - values[t, x.states]
        paid = advantages if what == "advantages" else torch.from_numpy(x.rewards)
        log_probs = actor(mdp.observe(x.states)).log_prob(torch.from_numpy(x.actions))
        old_log_probs = mdp.log_policy(behaviour)[x.states, x.actions]
        no = torch.zeros(len(t), dtype=torch.bool)
        loss, _ = iw.policy_loss(log_probs, old_log_probs, GAMMA**t * paid, no, no, ~no, importance_weights=kind)
        expected = expected - p * len(t) * mdp.gradient_of(loss, actor)
    return expected


@pytest.mark.parametrize("what", ["advantages", "rewards"])
def test_per_decision_weights_give_the_gradient_of_another_policys_return(what):
    """To 1e-8; with the old policy's advantages, too, since what they add up to is the difference of the returns."""
    found = expected_gradient(mdp.THETA, mdp.BEHAVIOUR, "per_decision", what)
    np.testing.assert_allclose(found, mdp.exact_gradient(mdp.THETA, GAMMA), atol=1e-8)
    differences = mdp.finite_differences(lambda theta: mdp.expected_return(theta, GAMMA), mdp.THETA)
    np.testing.assert_allclose(found, differences, atol=1e-8)


def test_per_trajectory_weights_give_it_as_well_and_vary_more():
    """One product for all of a trajectory is the last row's; its gradient is the likelihood ratio's."""
    expected, squares = 0.0, dict.fromkeys(("trajectory", "decision"), 0.0)
    for p, (x,) in mdp.batches(mdp.BEHAVIOUR):
        actor, t = mdp.make_actor(mdp.THETA), torch.arange(len(x.states))
        log_probs = actor(mdp.observe(x.states)).log_prob(torch.from_numpy(x.actions))
        old_log_probs = mdp.log_policy(mdp.BEHAVIOUR)[x.states, x.actions]
        no, paid = torch.zeros(len(t), dtype=torch.bool), GAMMA**t * torch.from_numpy(x.rewards)
        _, weights = iw.policy_loss(log_probs, old_log_probs, paid, no, no, ~no, importance_weights="per_decision")
        expected = expected + p * mdp.gradient_of(weights[-1] * paid.sum(), actor)
        squares["trajectory"] += p * (weights[-1] * paid.sum()).item() ** 2
        squares["decision"] += p * (weights * paid).sum().item() ** 2
    np.testing.assert_allclose(expected, mdp.exact_gradient(mdp.THETA, GAMMA), atol=1e-8)
    assert squares["decision"] < squares["trajectory"]


def first_order(theta, behaviour):
    """sum_t gamma^t sum_s d_t,old(s) sum_a grad pi(a | s) A_t,old(s, a): theta's actions in the old policy's states."""
    table = torch.tensor(theta, requires_grad=True)
    values, q_values = mdp.values(behaviour, GAMMA)
    advantages = q_values - values[:-1, :, None]
    weights = GAMMA ** np.arange(mdp.STEPS)[:, None] * mdp.state_probabilities(behaviour)
    surrogate = (torch.from_numpy(weights)[:, :, None] * mdp.log_policy(table).exp() * advantages).sum()
    return torch.autograd.grad(surrogate, table)[0].numpy()


def test_per_step_weights_are_biased_by_what_is_left_out():
    """By exactly the old policy's state probabilities in the place of the new one's."""
    found, exact = expected_gradient(mdp.THETA, mdp.BEHAVIOUR, "per_step"), mdp.exact_gradient(mdp.THETA, GAMMA)
    np.testing.assert_allclose(found, first_order(mdp.THETA, mdp.BEHAVIOUR), atol=1e-8)
    assert np.abs(found - exact).max() > 0.01


def test_per_step_weights_are_right_to_first_order():
    """No bias at the old policy; twice as near, half as much."""
    old, direction = mdp.BEHAVIOUR, mdp.THETA - mdp.BEHAVIOUR
    np.testing.assert_allclose(expected_gradient(old, old, "per_step"), mdp.exact_gradient(old, GAMMA), atol=1e-8)
    biases = []
    for h in (0.02, 0.01):
        near = old + h * direction
        biases.append(np.abs(expected_gradient(near, old, "per_step") - mdp.exact_gradient(near, GAMMA)).max())
    assert biases[0] / biases[1] == pytest.approx(2.0, rel=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_products_begin_anew_with_every_episode_and_pass_fillers(kind):
    """A weight of row 0 must not reach the next episode, nor a filler's ratio anything."""
    ratios = torch.tensor([[2.0], [3.0], [1e6], [5.0], [7.0], [11.0]])
    yes = torch.ones(6, 1, dtype=torch.bool)
    terminated, truncated, mask = ~yes, ~yes, yes.clone()
    terminated[1], truncated[4], mask[2] = True, True, False
    log_probs = ratios.log().requires_grad_()
    advantages = torch.tensor([[1.0], [1.0], [0.0], [1.0], [-1.0], [1.0]])
    loss, weights = iw.policy_loss(
        log_probs, torch.zeros(6, 1), advantages, terminated, truncated, mask, importance_weights=kind
    )
    expected = [2, 3, 0, 5, 7, 11] if kind == "per_step" else [2, 6, 0, 5, 35, 11]
    torch.testing.assert_close(weights[:, 0], torch.tensor(expected, dtype=torch.float32))
    assert loss.item() == pytest.approx(-(expected[0] + expected[1] + expected[3] - expected[4] + expected[5]) / 5)
    loss.backward()
    slopes = [2, 3, 0, 5, -7, 11] if kind == "per_step" else [8, 6, 0, -30, -35, 11]
    torch.testing.assert_close(log_probs.grad[:, 0], -torch.tensor(slopes, dtype=torch.float32) / 5)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_at_the_old_parameters_the_gradient_is_the_policy_gradients(env_id):
    agent = rolled_out(small(env_id))
    _, record = agent.policy_terms(agent.batch, agent.kl_coef)
    assert record[2:].abs().max() == 0, "rows A3: the ratio of the first step is 1"
    parameters, batch = agent.actor_parameters, agent.batch
    log_probs = agent.actor(batch.observations).log_prob(batch.actions).view_as(batch.advantages)
    loss, weights = iw.policy_loss(
        log_probs, batch.old_log_probs, batch.advantages, *batch[-3:], importance_weights="per_step"
    )
    assert torch.equal(weights, torch.ones_like(weights))
    found = torch.autograd.grad(loss, parameters, retain_graph=True)
    expected = torch.autograd.grad(-(log_probs * batch.advantages).mean(), parameters)
    torch.testing.assert_close(found, expected)


# The update


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
@pytest.mark.parametrize("constraint", ["none", "penalty", "stop"])
@pytest.mark.parametrize("kind", KINDS)
def test_updates_agree_with_the_float64_reference(env_id, constraint, kind):
    """The parameters after 1 and 100 steps of Adam; with `stop`, up to the one that is halved."""
    for epochs in (1, 100):
        config = small(
            env_id,
            num_steps=24,
            hidden_sizes=(8,),
            update_epochs=epochs,
            constraint=constraint,
            importance_weights=kind,
            target_kl=0.005,
            kl_coef=0.7,
            ent_coef=0.02,
            vectorization="vector_entry_point" if env_id == "CartPole-v1" else "sync",
        )
        agent = iw.ImportanceWeighted(config)
        agent.collector.collect()
        in_float64(agent)
        rows = agent.batch
        if env_id == "CartPole-v1":
            assert not rows.mask.all(), "fillers have to be among the rows"
        observations, actions = (field.numpy() for field in agent.buffer.flat())
        fields = (rows.old_log_probs, rows.advantages, rows.returns, rows.terminated | rows.truncated, rows.mask)
        batch = (observations, actions, *(field.numpy() for field in fields))
        actor, critic = layers(agent.actor.network), layers(agent.critic)
        log_std = agent.actor.log_std.detach().numpy().copy() if env_id == "Pendulum-v1" else None
        old = reference.policies([tuple(x.copy() for x in layer) for layer in actor], None, observations)
        if log_std is not None:
            old = [reference.Policy(x.output, log_std.copy()) for x in old]

        both = [flat(actor, log_std, critic), flat(critic)]
        adam = ppo_reference.Adam(both[0], config.max_grad_norm)
        moving, kept = True, 0
        for _ in range(epochs):
            found = reference.gradients(actor, log_std, critic, old, batch, config, config.kl_coef)
            if not moving:
                if len(adam.m) > len(both[1]):
                    adam.m, adam.v = adam.m[-len(both[1]) :], adam.v[-len(both[1]) :]
                adam.step(both[1], flat(found[2]), config.learning_rate)
                continue
            before = [x.copy() for x in flat(actor, log_std)]
            adam.step(both[0], flat(*found), config.learning_rate)
            kept += 1
            after, fraction = [x.copy() for x in flat(actor, log_std)], 1.0
            while constraint == "stop" and reference.mean_kl(actor, log_std, old, observations, batch[-1]) > 0.005:
                moving, fraction = False, fraction / 2
                for x, start, end in zip(flat(actor, log_std), before, after, strict=True):
                    x[...] = start + fraction * (end - start)
            kept += fraction - 1
        metrics = agent.update(1.0)
        assert metrics["losses/policy_steps"] == kept
        if constraint == "stop" and epochs == 100:
            assert 0 < kept < 100
        kl = reference.mean_kl(actor, log_std, old, observations, batch[-1])
        assert metrics["losses/kl"] == pytest.approx(kl, rel=1e-6, abs=1e-12)
        stds = [] if log_std is None else [agent.actor.log_std.detach().numpy()]
        updated = flat(layers(agent.actor.network), *stds, layers(agent.critic))
        for ours, theirs in zip(updated, both[0], strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-9, rtol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_stop_keeps_kl_below_its_bound_where_steps_alone_do_not(kind):
    far = {}
    for constraint in ("none", "stop"):
        agent = iw.ImportanceWeighted(
            small(constraint=constraint, update_epochs=50, learning_rate=3e-3, importance_weights=kind)
        )
        for _ in range(5):
            agent.collector.collect()
            agent.estimate()
            old = agent.actor(agent.buffer.flat()[0])
            metrics = agent.update(1.0)
            kl = kl_divergence(agent.actor(agent.buffer.flat()[0]), old).mean().item()
            assert metrics["losses/kl"] == pytest.approx(kl, rel=1e-4, abs=1e-7)
            far[constraint] = max(far.get(constraint, 0.0), kl)
            if constraint == "stop":
                assert metrics["losses/policy_steps"] < 50
    assert far["stop"] <= 0.02 < 0.1 < far["none"]


def test_the_step_that_went_too_far_is_halved_until_it_does_not():
    agent = rolled_out(small(constraint="stop", update_epochs=1, learning_rate=0.1, target_kl=1e-3))
    before = [parameter.detach().clone() for parameter in agent.actor_parameters]
    metrics = agent.update(1.0)
    halvings = -np.log2(metrics["losses/policy_steps"])
    assert halvings == round(halvings) > 0
    assert 1e-4 < metrics["losses/kl"] <= 1e-3
    with torch.no_grad():
        for parameter, start in zip(agent.actor_parameters, before, strict=True):
            parameter.copy_(start + 2 * (parameter - start))
    assert agent.distance()[0] > 1e-3


def test_what_remains_too_far_is_undone_bit_for_bit():
    """Row A8, of this algorithm: and the actor does not drift on with Adam's momentum, while the critic goes on."""
    agent = rolled_out(small(constraint="stop", update_epochs=7, learning_rate=1e4))
    actor, critic = bytes_of(agent.actor), bytes_of(agent.critic)
    metrics = agent.update(1.0)
    assert metrics["losses/policy_steps"] == 0
    assert metrics["losses/kl"] == 0
    assert bytes_of(agent.actor) == actor
    assert bytes_of(agent.critic) != critic
    steps = [agent.optimizer.state[parameter]["step"].item() for parameter in agent.parameters]
    assert set(steps[: len(agent.actor_parameters)]) == {1}
    assert set(steps[len(agent.actor_parameters) :]) == {7}


def test_a_nan_is_undone_too():
    agent = rolled_out(small(constraint="stop", update_epochs=2))
    agent.batch.advantages[0, 0] = torch.nan
    actor = bytes_of(agent.actor)
    assert agent.update(1.0)["losses/policy_steps"] == 0
    assert bytes_of(agent.actor) == actor


def test_kl_has_the_new_policy_first():
    """Against a sum over the actions: KL(new || old), not KL(old || new)."""
    agent = rolled_out(small(constraint="none", update_epochs=20, learning_rate=1e-2))
    observations = agent.buffer.flat()[0]
    old = agent.actor(observations).log_probs.detach()
    kl = agent.update(1.0)["losses/kl"]
    new = agent.actor(observations).log_probs.detach()
    assert kl == pytest.approx((new.exp() * (new - old)).sum(-1).mean().item(), rel=1e-4)
    assert kl != pytest.approx((old.exp() * (old - new)).sum(-1).mean().item(), rel=1e-2)


def test_the_penaltys_weight_follows_kl_and_resumes():
    agent = rolled_out(small(target_kl=10.0))
    agent.update(1.0)
    assert agent.kl_coef == 0.5
    assert agent.state_dict()["kl_coef"] == 0.5
    agent = rolled_out(small(target_kl=1e-9))
    agent.update(1.0)
    assert agent.kl_coef == 2.0
    for constraint in ("none", "stop"):
        agent = rolled_out(small(target_kl=1e-9, constraint=constraint))
        agent.update(1.0)
        assert agent.kl_coef == 1.0


def test_a_heavy_penalty_holds_the_policy():
    moved = {}
    for kl_coef in (1e-3, 100.0):
        agent = rolled_out(small(update_epochs=50, kl_coef=kl_coef))
        moved[kl_coef] = agent.update(1.0)["losses/kl"]
    assert moved[100.0] < 0.1 * moved[1e-3]


def test_effective_samples():
    agent = rolled_out(small(update_epochs=1, constraint="none", importance_weights="per_step"))
    assert agent.distance()[1].item() == pytest.approx(1.0)
    with torch.no_grad():
        agent.batch.old_log_probs[0, 0] -= 18.0  # one weight is e^18, the others 1
    assert agent.distance()[1].item() == pytest.approx(1 / 64, rel=1e-4)


def test_the_update_reads_nothing_from_the_device():
    """Row A11; with `stop`, one number a step of the actor."""
    for constraint, expected in (("none", 0), ("penalty", 0), ("stop", 3)):
        agent = rolled_out(small(update_epochs=3, constraint=constraint, target_kl=100.0))
        with Reads() as reads:
            agent.update(1.0)
        assert reads.found == ["_local_scalar_dense"] * expected


def test_the_learning_rate_falls_linearly():
    rates = []
    iw.train(
        small(total_timesteps=256, update_epochs=1, anneal_lr=True),
        lambda progress: rates.append(progress.metrics["charts/learning_rate"]),
    )
    np.testing.assert_allclose(rates, 3e-3 * np.array([1, 0.75, 0.5, 0.25]))


def test_the_adapted_weight_and_the_masked_mean():
    assert iw.masked_mean(torch.tensor([[np.inf, 2.0]]), torch.tensor([[False, True]])) == 2.0
    distribution = Categorical(torch.zeros(1, 2))
    assert kl_divergence(distribution, distribution).item() == 0.0
    assert [iw.adapted(4.0, kl, 0.15) for kl in (0.0, 0.11, 0.22, np.inf)] == [2.0, 4.0, 4.0, 8.0]


# What it learns


def trained(name, **options):
    config = small(
        f"probe/{name}-v0",
        **{
            "total_timesteps": 2000,
            "num_envs": 4,
            "num_steps": 25,
            "learning_rate": 1e-2,
            "vf_coef": 1.0,
            "update_epochs": 10,
            **options,
        },
    )
    agent = iw.ImportanceWeighted(config)
    while agent.collector.global_step < config.total_timesteps:
        agent.collector.collect()
        agent.estimate()
        agent.update(1.0)
    agent.collector.close()
    return agent


def value_of(agent, observation):
    with torch.no_grad():
        return agent.critic(torch.tensor([[observation]])).item()


def test_values_are_learnt():
    assert value_of(trained("Constant"), 0.0) == pytest.approx(1.0, abs=0.02)
    agent = trained("Observed")
    assert value_of(agent, 1.0) == pytest.approx(1.0, abs=0.05)
    assert value_of(agent, -1.0) == pytest.approx(-1.0, abs=0.05)
    agent = trained("Discounted", gamma=0.5)
    assert value_of(agent, 1.0) == pytest.approx(1.0, abs=0.05)
    assert value_of(agent, 0.0) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("constraint", ["none", "penalty", "stop"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_action_that_pays_is_learnt(constraint, kind):
    # Without a bound more steps on the first batch leave no exploration: the figure in the documentation shows it.
    steps = 2 if constraint == "none" else 10
    agent = trained("Matching", constraint=constraint, importance_weights=kind, update_epochs=steps)
    assert agent.collector.policy.act(np.array([[1.0], [-1.0]])).tolist() == [1, 0]


def test_a_continuous_target_is_learnt():
    agent = trained("Target", total_timesteps=6000)
    assert agent.collector.policy.act(np.zeros(1))[0] == pytest.approx(0.5, abs=0.1)


def test_a_time_limit_is_not_an_end():
    """Row R1: r = 1 for ever, gamma = 0.98, truncated every 10 steps: V = 50 (10 if truncation were termination)."""
    agent = trained("Endless", gamma=0.98, total_timesteps=10_000, learning_rate=2e-2, max_grad_norm=10.0)
    assert value_of(agent, 0.0) == pytest.approx(50.0, abs=2.5)


def test_a_time_limit_is_an_episodes_end_nevertheless():
    """Rows R1 and R2: V(1) = 2; 1.33 if truncation were termination, 1.6 if the next episode's value leaked in."""
    agent = trained("Later", gamma=0.5)
    assert value_of(agent, 1.0) == pytest.approx(2.0, abs=0.1)
    assert value_of(agent, 0.0) == pytest.approx(1.0, abs=0.1)


def test_it_learns_from_images():
    config = small("sample_envs:Pixels-v0", num_envs=4, num_steps=16, learning_rate=2e-3, activation="relu")
    result = iw.train(dataclasses.replace(config, total_timesteps=640, update_epochs=4, target_kl=0.05))
    assert evaluate(result.policy, config.env_id, episodes=10).mean > 3.5


@pytest.mark.parametrize(
    "options",
    [
        {"vectorization": "vector_entry_point", "importance_weights": "per_decision"},
        {"env_id": "Pendulum-v1", "normalize_observations": True, "normalize_rewards": True},
        {"constraint": "stop", "anneal_lr": True},
    ],
    ids=["penalty", "gaussian", "stop"],
)
def test_a_resumed_run_is_the_same_bit_for_bit(options, tmp_path):
    """Row A9: training 2N equals training N, saving, loading, training N."""
    config = small(**{"total_timesteps": 384, "update_epochs": 3, **options})
    iw.train(config, run_dir=tmp_path / "whole")
    assert not iw.train(config, lambda progress: progress.iteration < 3, run_dir=tmp_path / "parts").finished
    assert resume(tmp_path / "parts").finished
    assert everything(tmp_path / "parts") == everything(tmp_path / "whole")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"gamma": 1.5}, "gamma: got 1.5, expected between 0 and 1"),
        ({"update_epochs": 0}, "update_epochs: got 0, expected at least 1"),
        ({"target_kl": 0.0}, "target_kl: got 0.0, expected above 0"),
        ({"kl_coef": -1.0}, "kl_coef: got -1.0, expected above 0"),
        ({"constraint": "clip"}, "constraint: got 'clip', expected one of none, penalty, stop"),
        ({"importance_weights": "all"}, "importance_weights: got 'all', expected one of per_step, per_decision"),
    ],
)
def test_options_that_cannot_be_are_named(option, message):
    with pytest.raises(RunError, match=message):
        iw.train(iw.Config(**option))


def test_cartpole_improves():
    result = iw.train(dataclasses.replace(iw.Config(), total_timesteps=20_000))
    assert result.finished
    assert result.episode_return > 100
