"""Actor-critic, in batches and online (A2C): its gradient is the policy gradient, its V is fitted first, it learns."""

import dataclasses

import actor_critic_reference as reference
import enumeration as mdp
import gymnasium
import numpy as np
import probe_envs
import pytest
import sample_envs
import torch
from test_ppo import Reads
from test_run import everything

from fastac.algorithms import actor_critic, ppo, preset, resume
from fastac.buffers.rollout import Transitions
from fastac.evaluate import evaluate, interquartile_mean
from fastac.losses import score_loss
from fastac.returns import gae
from fastac.run import RunError, torch_threads

probe_envs.register()

TARGETS = ("monte-carlo", "td0", "n-step", "lambda")


@pytest.fixture(autouse=True)
def _one_thread():
    with torch_threads(1):
        yield


def small(env_id="CartPole-v1", **options):
    return actor_critic.Config(env_id=env_id, **{"num_envs": 4, "hidden_sizes": (16, 16), "log_interval": 3, **options})


# The estimator, against the enumeration of every trajectory


def expected_gradient(V, gamma, gae_lambda):
    """E[sum_t grad log pi(a_t | s_t) A_t] of the loss, which is a mean over the rows; V is a table V_t(s)."""
    actor, expected = mdp.make_actor(mdp.THETA), 0.0
    for p, (x,) in mdp.batches(mdp.THETA):
        T = len(x.states)
        ended = torch.arange(T) == T - 1
        states = np.append(x.states, 0)  # what follows the end has a value that nobody reads
        numbers = (x.rewards, V[np.arange(T), x.states], V[np.arange(T) + 1, states[1:]])
        rows = Transitions(*map(torch.from_numpy, numbers), ended, torch.zeros(T).bool(), torch.ones(T).bool())
        advantages = gae(*rows, gamma=gamma, gae_lambda=gae_lambda).advantages
        log_probs = actor(mdp.observe(x.states)).log_prob(torch.from_numpy(x.actions))
        expected = expected - p * T * mdp.gradient_of(score_loss(log_probs, advantages), actor)
    return expected


def wrong_values():
    return np.random.default_rng(0).normal(size=(mdp.STEPS + 1, mdp.STATES))


@pytest.mark.parametrize("gae_lambda", [0.0, 0.5, 1.0])
def test_with_the_true_values_every_lambda_gives_the_gradient(gae_lambda):
    V = mdp.values(mdp.THETA, 1.0)[0].detach().numpy()
    found = expected_gradient(V, 1.0, gae_lambda)
    np.testing.assert_allclose(found, mdp.exact_gradient(mdp.THETA, 1.0), rtol=0, atol=1e-12)
    differences = mdp.finite_differences(lambda theta: mdp.expected_return(theta, 1.0), mdp.THETA)
    np.testing.assert_allclose(found, differences, rtol=0, atol=1e-8)


def test_with_lambda_one_wrong_values_do_no_harm():
    found = expected_gradient(wrong_values(), 1.0, 1.0)
    np.testing.assert_allclose(found, mdp.exact_gradient(mdp.THETA, 1.0), rtol=0, atol=1e-12)


def test_with_lambda_zero_wrong_values_bias_by_the_known_amount():
    """In the place of Q_t(s, a) stands r + gamma E[V_{t+1}(s')]: the price of less variance."""
    V, gamma = wrong_values(), 0.9
    theta = torch.tensor(mdp.THETA, requires_grad=True)
    d, not_the_last = mdp.state_probabilities(mdp.THETA), (np.arange(mdp.STEPS) < mdp.STEPS - 1)[:, None, None]
    Q = mdp.REWARDS + gamma * not_the_last * np.einsum("sau,tu->tsa", mdp.NEXT[:, :, : mdp.STATES], V[1:])
    (torch.from_numpy(d[:, :, None] * Q) * mdp.log_policy(theta).exp()).sum().backward()
    np.testing.assert_allclose(expected_gradient(V, gamma, 0.0), theta.grad, rtol=0, atol=1e-12)
    assert np.abs(theta.grad.numpy() - mdp.exact_gradient(mdp.THETA, gamma)).max() > 0.01


# The update


def layers(network):
    return [(m.weight.detach().double().numpy().copy(), m.bias.detach().double().numpy().copy()) for m in network[::2]]


def flat(network):
    return [x for layer in layers(network) for x in layer]


def rolled_out(config):
    agent = actor_critic.ActorCritic(config)
    agent.collect()
    return agent


def in_float64(agent):
    """The same rollout and weights in double precision."""
    for module in (agent.actor, agent.critic):
        module.double()
    agent.collector.observations = agent.collector.observations.double()
    agent.buffer._observations = agent.buffer._observations.double()
    agent.buffer._fields = [field.double() if field.is_floating_point() else field for field in agent.buffer._fields]
    return agent


FILLERS = "next_step/Walk-v0"
gymnasium.register(FILLERS, sample_envs.Walk, vector_entry_point=sample_envs.VectorWalk, kwargs={"mode": "NextStep"})
ONLINE = {"num_steps": 5}
BATCH = {"num_envs": 2, "num_steps": 20, "critic_steps": 3, "norm_adv": True, "optimizer": "adam", "gae_lambda": 0.9}


@pytest.mark.parametrize("updates", [1, 100])
@pytest.mark.parametrize(
    ("env_id", "options"),
    [
        ("sample_envs:Walk-v0", ONLINE),
        (FILLERS, {**ONLINE, "num_steps": 12, "vectorization": "vector_entry_point", "ent_coef": 0.02}),
        ("sample_envs:Continuous-v0", {**ONLINE, "num_steps": 12, "ent_coef": 0.02, "vf_coef": 0.5}),
        ("sample_envs:Walk-v0", {**BATCH, "critic_target": "td0"}),
        ("sample_envs:Walk-v0", {**BATCH, "critic_target": "lambda", "td_lambda": 0.7}),
        ("sample_envs:Continuous-v0", {**BATCH, "critic_target": "n-step", "n_step": 3}),
    ],
    ids=lambda x: x if isinstance(x, str) else "-".join(map(str, x.values())),
)
def test_updates_agree_with_the_float64_reference(env_id, options, updates):
    """The parameters after 1 and after 100 updates on the same rollout."""
    config = small(env_id, hidden_sizes=(8, 8), learning_rate=1e-3, **options)
    agent = in_float64(rolled_out(config))
    assert agent.buffer.truncated.any() or config.num_steps < 6
    rollout = reference.pieces(agent.buffer, agent.collector.observations)
    log_std = agent.actor.log_std.detach().numpy().copy() if "Continuous" in env_id else None
    again = reference.Update(layers(agent.actor.network), log_std, layers(agent.critic), config)
    for _ in range(updates):
        agent.fit()
        agent.estimate()
        agent.update()
        again(rollout)
    updated = flat(agent.actor.network) + ([] if log_std is None else [agent.actor.log_std.detach().numpy()])
    updated += [] if config.critic_steps else flat(agent.critic)
    for ours, theirs in zip(updated, again.parameters, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-9, rtol=1e-7)
    for ours, theirs in zip(flat(agent.critic), again.critic_parameters, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-9, rtol=1e-7)


@pytest.mark.parametrize("critic_target", TARGETS)
def test_the_targets_of_a_rollout(critic_target):
    """Rows R1, R2 and R15: time limits, ends and fillers, against sums from their definitions."""
    options = {"num_steps": 20, "vectorization": "vector_entry_point", "gae_lambda": 0.8, "gamma": 0.9}
    agent = rolled_out(small(FILLERS, critic_target=critic_target, **options))
    buffer = agent.buffer
    assert not buffer.mask.all()
    assert (buffer.truncated & buffer.mask).any()
    assert (buffer.terminated & buffer.mask).any()
    agent.estimate()
    rollout = reference.pieces(buffer, agent.collector.observations)
    y, A = reference.estimates(rollout, layers(agent.critic), agent.config)
    assert len(agent.batch.targets) == agent.global_step == len(y)
    rows = np.arange(buffer.mask.size).reshape(buffer.mask.shape).T[buffer.mask.T]  # piece after piece
    order = np.searchsorted(np.flatnonzero(buffer.mask), rows)
    np.testing.assert_allclose(agent.batch.targets[order], y, atol=1e-5)
    np.testing.assert_allclose(agent.batch.advantages[order], A, atol=1e-5)


def test_the_batch_algorithm_fits_the_critic_before_and_leaves_it_alone_after():
    agent = rolled_out(small(**BATCH))
    first = flat(agent.critic)
    agent.fit()
    agent.estimate()
    fitted = flat(agent.critic)
    assert not np.array_equal(first[0], fitted[0])
    with torch.no_grad():
        assert torch.equal(agent.batch.values, agent.critic(agent.batch.observations).squeeze(-1))
    agent.update()
    assert all(np.array_equal(a, b) for a, b in zip(fitted, flat(agent.critic), strict=True))


def test_online_the_advantages_are_of_the_critic_before_its_step():
    agent = rolled_out(small())
    first = flat(agent.critic)
    agent.fit()
    agent.estimate()
    assert all(np.array_equal(a, b) for a, b in zip(first, flat(agent.critic), strict=True))
    agent.update()
    assert not np.array_equal(first[0], flat(agent.critic)[0])


def test_a2c_is_ppo_with_a_single_step_on_the_rollout():
    """Huang et al. 2022, "A2C is a special case of PPO": the ratio is 1, so nothing is clipped."""
    shared = {"env_id": "CartPole-v1", "num_envs": 4, "num_steps": 16, "hidden_sizes": (16, 16), "learning_rate": 1e-3}
    proximal = ppo.PPO(
        ppo.Config(
            **shared, gae_lambda=1.0, update_epochs=1, num_minibatches=1, norm_adv=False, clip_vloss=False, ent_coef=0.0
        )
    )
    online = actor_critic.ActorCritic(actor_critic.Config(**shared, optimizer="adam", vf_coef=0.5))
    for agent in (proximal, online):
        agent.collector.collect()
        agent.estimate()
    online.update()
    proximal.update(remaining=1.0)
    for ours, theirs in zip(online.parameters, proximal.parameters, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6)


@pytest.mark.parametrize("options", [{}, BATCH], ids=["online", "batch"])
def test_nothing_is_read_from_the_device_in_an_iteration(options):
    """Row A11: the metrics stay where they are until they are logged."""
    agent = rolled_out(small(**options))
    with Reads() as reads:
        agent.fit()
        agent.estimate()
        agent.update()
    assert reads.found == []


def test_metrics_have_the_names_of_ppos():
    found = []
    result = actor_critic.train(small(total_timesteps=240), lambda progress: found.append(progress.metrics))
    assert result.finished
    assert {*found[0]} <= {*ppo.METRICS, "losses/explained_variance", "charts/learning_rate"}
    assert len(found) == 4, "an iteration is log_interval rollouts"


def test_learning_rates_fall_linearly():
    rates = []
    config = small(total_timesteps=160, anneal_lr=True, log_interval=2, learning_rate=1e-3)
    actor_critic.train(config, lambda progress: rates.append(progress.metrics["charts/learning_rate"]))
    np.testing.assert_allclose(rates, 1e-3 * (1 - np.array([20, 60, 100, 140]) / 160))


# What it learns


def trained(name, *, log_std=None, **options):
    config = small(
        f"probe/{name}-v0", **{"total_timesteps": 4000, "num_steps": 5, "learning_rate": 3e-3, "gamma": 0.99, **options}
    )
    agent = actor_critic.ActorCritic(config)
    if log_std is not None:
        torch.nn.init.constant_(agent.actor.log_std, log_std)
    while agent.global_step < config.total_timesteps:
        agent.collect()
        agent.fit()
        agent.estimate()
        agent.update()
    agent.collector.close()
    return agent


FITTED = {"num_steps": 25, "optimizer": "adam", "critic_steps": 10, "critic_learning_rate": 1e-2, "learning_rate": 1e-2}
KINDS = pytest.mark.parametrize("kind", [{}, {**FITTED, "critic_target": "td0"}], ids=["online", "batch"])


def value_of(agent, observation):
    with torch.no_grad():
        return agent.critic(torch.tensor([[observation]])).item()


@KINDS
def test_a_constant_value_is_learnt(kind):
    assert value_of(trained("Constant", **kind), 0.0) == pytest.approx(1.0, abs=0.02)


@KINDS
def test_a_value_that_depends_on_the_observation_is_learnt(kind):
    agent = trained("Observed", **kind)
    assert value_of(agent, 1.0) == pytest.approx(1.0, abs=0.05)
    assert value_of(agent, -1.0) == pytest.approx(-1.0, abs=0.05)


@KINDS
def test_values_are_discounted(kind):
    agent = trained("Discounted", **kind, gamma=0.5)
    assert value_of(agent, 1.0) == pytest.approx(1.0, abs=0.05)
    assert value_of(agent, 0.0) == pytest.approx(0.5, abs=0.05)


@KINDS
def test_the_action_that_pays_is_learnt(kind):
    agent = trained("Rewarding", **kind)
    with torch.no_grad():
        assert agent.actor(torch.zeros(1, 1)).log_probs.exp()[0, 1] > 0.95


@KINDS
def test_the_action_that_fits_the_observation_is_learnt(kind):
    agent = trained("Matching", **kind)
    assert agent.collector.policy.act(np.array([[1.0], [-1.0]])).tolist() == [1, 0]


@KINDS
def test_a_continuous_target_is_learnt(kind):
    agent = trained("Target", **kind, log_std=-1.0)
    assert agent.collector.policy.act(np.zeros(1))[0] == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("critic_target", ["td0", "lambda"])
def test_a_time_limit_is_not_an_end(critic_target):
    """Row R1: r = 1 for ever, gamma = 0.98, truncated every 10 steps: V = 50 (below 10 if truncation were the end)."""
    options = {**FITTED, "critic_target": critic_target, "critic_steps": 40, "critic_learning_rate": 3e-2}
    agent = trained("Endless", **options, gamma=0.98, total_timesteps=2500, max_grad_norm=100.0)
    assert value_of(agent, 0.0) == pytest.approx(50.0, abs=2.5)


def test_a_time_limit_is_not_an_end_online_either():
    """Row R1."""
    agent = trained("Endless", gamma=0.98, total_timesteps=12_000, learning_rate=1e-2)
    assert value_of(agent, 0.0) == pytest.approx(50.0, abs=2.5)


@KINDS
def test_a_time_limit_is_an_episodes_end_nevertheless(kind):
    """Rows R1 and R2: V(1) = 2; 1.5 or less if truncation were termination, or the next episode's value leaked in."""
    agent = trained("Later", **kind, gamma=0.5)
    assert value_of(agent, 1.0) == pytest.approx(2.0, abs=0.1)
    assert value_of(agent, 0.0) == pytest.approx(1.0, abs=0.1)


def test_cartpole_improves():
    config = dataclasses.replace(actor_critic.PRESETS["batch"], total_timesteps=20_000)
    assert actor_critic.train(config).episode_return > 60


def test_it_learns_from_images():
    config = small("sample_envs:Pixels-v0", num_steps=16, norm_adv=True, activation="relu", log_interval=1)
    result = actor_critic.train(dataclasses.replace(config, total_timesteps=1280, learning_rate=1e-3))
    assert evaluate(result.policy, config.env_id, episodes=10).mean > 3.5


@pytest.mark.slow
@pytest.mark.parametrize(("name", "threshold"), [("a2c", 475), ("batch", 195)])
def test_cartpole_is_learnt(name, threshold):
    configs = [dataclasses.replace(actor_critic.PRESETS[name], seed=seed) for seed in range(5)]
    means = [evaluate(actor_critic.train(config).policy, "CartPole-v1").mean for config in configs]
    assert interquartile_mean(means) >= threshold


# Options and resuming


@pytest.mark.parametrize(
    "options",
    [
        {"vectorization": "vector_entry_point", "anneal_lr": True},
        {"env_id": "Pendulum-v1", "normalize_observations": True, "normalize_rewards": True, **BATCH},
    ],
    ids=["online", "batch"],
)
def test_a_resumed_run_is_the_same_bit_for_bit(options, tmp_path):
    """Row A9: training 2N equals training N, saving, loading, training N."""
    config = small(**{"num_steps": 16, **options})
    config = dataclasses.replace(config, total_timesteps=12 * config.num_envs * config.num_steps)
    actor_critic.train(config, run_dir=tmp_path / "whole")
    stopped = actor_critic.train(config, lambda progress: progress.iteration < 2, run_dir=tmp_path / "parts")
    assert not stopped.finished
    assert resume(tmp_path / "parts").finished
    assert everything(tmp_path / "parts") == everything(tmp_path / "whole")


def test_defaults_are_sb3s():
    """Rows A4 and A5: one Config, against the documented table (reference: SB3's A2C; no advantage is normalised)."""
    expected = {
        "learning_rate": 7e-4,
        "optimizer": "rmsprop",
        "num_envs": 1,
        "num_steps": 5,
        "anneal_lr": False,
        "gamma": 0.99,
        "gae_lambda": 1.0,
        "critic_target": "monte-carlo",  # what lambda = 1 is
        "critic_steps": 0,
        "norm_adv": False,
        "ent_coef": 0.0,
        "vf_coef": 2 * 0.5,  # SB3 takes a whole squared error
        "max_grad_norm": 0.5,
        "hidden_sizes": (64, 64),
        "activation": "tanh",
    }
    found = dataclasses.asdict(actor_critic.PRESETS["sb3"])
    assert {name: found[name] for name in expected} == expected
    zoo = actor_critic.PRESETS["sb3-zoo"]["CartPole-v1"]
    assert zoo == dataclasses.replace(actor_critic.PRESETS["sb3"], num_envs=8) == actor_critic.Config()
    optimizer = actor_critic.ActorCritic(zoo).optimizer
    assert isinstance(optimizer, torch.optim.RMSprop)
    assert {name: optimizer.defaults[name] for name in ("alpha", "eps", "momentum", "centered", "weight_decay")} == {
        "alpha": 0.99,
        "eps": 1e-5,
        "momentum": 0,
        "centered": False,
        "weight_decay": 0,
    }


def test_every_preset_can_be():
    for name, entry in actor_critic.PRESETS.items():
        for env_id in entry if isinstance(entry, dict) else ["Acrobot-v1"]:
            config = preset("actor_critic", name, env_id)
            config.check()
            assert config.env_id == env_id


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"gamma": 1.5}, "gamma: got 1.5, expected between 0 and 1"),
        ({"td_lambda": -0.1}, "td_lambda: got -0.1, expected between 0 and 1"),
        ({"num_steps": 0}, "num_steps: got 0, expected at least 1"),
        ({"n_step": 0}, "n_step: got 0, expected at least 1"),
        ({"critic_steps": -1}, "critic_steps: got -1, expected at least 0"),
        ({"vf_coef": -1.0}, "vf_coef: got -1.0, expected at least 0"),
        ({"max_grad_norm": 0.0}, "max_grad_norm: got 0.0, expected above 0"),
        ({"device": "cuda:99"}, "device: got 'cuda:99'"),
    ],
)
def test_options_that_cannot_be_are_named(option, message):
    with pytest.raises(RunError, match=message):
        actor_critic.train(actor_critic.Config(**option))
