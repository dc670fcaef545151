"""REINFORCE: its gradient is the gradient, its episodes are whole, and it learns."""

import dataclasses
import itertools

import enumeration as mdp
import numpy as np
import probe_envs
import pytest
import reinforce_reference as reference
import torch
from test_ppo import Reads
from test_run import everything

from fastac.algorithms import reinforce, resume
from fastac.evaluate import evaluate, interquartile_mean
from fastac.returns import discounted_returns
from fastac.run import RunError, torch_threads

probe_envs.register()


@pytest.fixture(autouse=True)
def _one_thread():
    with torch_threads(1):
        yield


def small(env_id="CartPole-v1", **options):
    return reinforce.Config(
        env_id=env_id, **{"num_envs": 2, "num_episodes": 6, "hidden_sizes": (16, 16), "total_timesteps": 500, **options}
    )


# The estimator, against the enumeration of every batch


def gradient_estimate(batch, config, actor, values):
    """What one batch of trajectories makes of dJ / dtheta; `values` is a table V_t(s)."""
    lengths = [len(x.states) for x in batch]
    ended = np.zeros(sum(lengths), np.bool_)
    ended[np.cumsum(lengths) - 1] = True
    rewards = torch.from_numpy(np.concatenate([x.rewards for x in batch]))
    returns = discounted_returns(rewards, 0.0, torch.from_numpy(ended), gamma=config.gamma)
    states = np.concatenate([x.states for x in batch])
    steps = np.concatenate([np.arange(length) for length in lengths])
    psi = reinforce.credit(returns, torch.from_numpy(values[steps, states]), torch.tensor(lengths), config)
    actions = torch.from_numpy(np.concatenate([x.actions for x in batch]))
    total, _ = reinforce.loss(actor, mdp.observe(states), actions, psi, len(batch))
    return -mdp.gradient_of(total, actor)


def moments(config, size=1, steps=mdp.STEPS, values=None):
    """The estimate's expectation, and its variance summed over the parameters."""
    values = np.random.default_rng(0).normal(size=(mdp.STEPS, mdp.STATES)) if values is None else values
    actor = mdp.make_actor(mdp.THETA)
    weights, estimates = [], []
    for p, batch in mdp.batches(mdp.THETA, size, steps):
        weights.append(p)
        estimates.append(gradient_estimate(batch, config, actor, values))
    mean = np.tensordot(weights, estimates, 1)
    return mean, float(weights @ ((np.array(estimates) - mean) ** 2).sum((1, 2)))


EXACT = [
    *[
        {"returns": returns, "baseline": baseline, "gamma": 1.0}
        for returns, baseline in itertools.product(["total", "reward-to-go"], ["none", "value"])
    ],
    {"returns": "total", "baseline": "none", "gamma": 0.8},
    {"returns": "total", "baseline": "value", "gamma": 0.8},
    {"returns": "reward-to-go", "baseline": "none", "gamma": 0.8, "discount_states": True},
    {"returns": "reward-to-go", "baseline": "value", "gamma": 0.8, "discount_states": True},
]


@pytest.mark.parametrize("options", EXACT, ids=lambda x: "-".join(map(str, x.values())))
def test_the_estimate_is_the_gradient_on_average(options):
    config = reinforce.Config(**options)
    mean, _ = moments(config)
    np.testing.assert_allclose(mean, mdp.exact_gradient(mdp.THETA, config.gamma), rtol=0, atol=1e-12)
    objective = lambda theta: mdp.expected_return(theta, config.gamma)  # noqa: E731
    np.testing.assert_allclose(mean, mdp.finite_differences(objective, mdp.THETA), rtol=0, atol=1e-8)


@pytest.mark.parametrize("returns", ["total", "reward-to-go"])
def test_the_mean_of_the_others_leaves_the_gradient_as_it_is(returns):
    """Over all pairs of trajectories; a mean with the episode's own return in it would halve the gradient or so."""
    mean, _ = moments(reinforce.Config(returns=returns, baseline="mean", gamma=1.0), size=2, steps=2)
    np.testing.assert_allclose(mean, mdp.exact_gradient(mdp.THETA, 1.0, steps=2), rtol=0, atol=1e-12)


def test_without_discounted_states_the_bias_is_the_known_one():
    """Practice's estimate is sum_t E[grad log pi(a | s) Q_t(s, a)]: gamma^t is missing before each term."""
    mean, _ = moments(reinforce.Config(baseline="none", gamma=0.8))
    theta = torch.tensor(mdp.THETA, requires_grad=True)
    d, Q = torch.from_numpy(mdp.state_probabilities(mdp.THETA)), mdp.values(mdp.THETA, 0.8)[1]
    (d[:, :, None] * mdp.log_policy(theta).exp() * Q).sum().backward()
    np.testing.assert_allclose(mean, theta.grad, rtol=0, atol=1e-12)
    assert np.abs(mean - mdp.exact_gradient(mdp.THETA, 0.8)).max() > 0.01


def test_every_refinement_takes_variance_away():
    """Exact variances: total return, then reward-to-go, then the true V as a baseline."""
    V = mdp.values(mdp.THETA, 1.0)[0].detach().numpy()
    variances = [
        moments(reinforce.Config(returns=returns, baseline=baseline, gamma=1.0), values=V)[1]
        for returns, baseline in [("total", "none"), ("reward-to-go", "none"), ("reward-to-go", "value")]
    ]
    assert variances[0] > variances[1] > variances[2]


# The batch


def collected(config):
    agent = reinforce.REINFORCE(config)
    episodes = agent.collect()
    agent.estimate()
    return agent, episodes


def cut_apart(agent):
    """The batch's episodes from the buffer, environment by environment, as the reference takes them."""
    buffer, found = agent.collector.buffer, []
    rows = buffer.mask.size
    finals = iter(agent.collector.observations[rows + buffer.num_envs :].numpy())
    final_of = {(t, n): next(finals) for t, n in zip(*np.nonzero(buffer.truncated & ~buffer.terminated), strict=True)}
    for n in range(buffer.num_envs):
        start = 0
        for t in range(buffer.num_steps):
            if not buffer.mask[t, n]:
                start = t + 1
            elif buffer.terminated[t, n] or buffer.truncated[t, n]:
                part = slice(start, t + 1)
                observations = buffer.observations[part, n].astype(np.float64)
                actions, rewards = buffer.actions[part, n], buffer.rewards[part, n].astype(np.float64)
                cut = bool(buffer.truncated[t, n] and not buffer.terminated[t, n])
                found.append((observations, actions, rewards, cut, np.float64(final_of.get((t, n), observations[-1]))))
                start = t + 1
    return found


@pytest.mark.parametrize("vectorization", ["sync", "vector_entry_point"])
def test_the_batch_is_whole_episodes_one_behind_the_other(vectorization):
    """Row R15: fillers, and what an environment does while it waits for the others, are not in it."""
    agent, episodes = collected(small(vectorization=vectorization))
    apart = cut_apart(agent)
    assert len(apart) == 6
    assert agent.batch.lengths.tolist() == [len(rewards) for _, _, rewards, _, _ in apart]
    assert sorted(agent.batch.lengths.tolist()) == sorted(episodes.lengths)
    assert np.array_equal(agent.batch.observations, np.concatenate([o for o, *_ in apart]))
    assert np.array_equal(agent.batch.actions, np.concatenate([a for _, a, *_ in apart]))
    assert agent.global_step >= sum(episodes.lengths)


def test_every_environment_plays_its_share_from_new_starts():
    agent = reinforce.REINFORCE(small("sample_envs:Walk-v0", num_envs=3, num_episodes=12))
    starts = []
    for _ in range(3):
        agent.collect()
        starts.append(agent.collector.buffer.observations[0])
        ended = (agent.collector.buffer.terminated | agent.collector.buffer.truncated) & agent.collector.buffer.mask
        assert ended.sum(0).tolist() == [4, 4, 4]
        assert not starts[-1][:, 1].any(), "the second number counts the steps since the start"
    agent.collector.close()


@pytest.mark.parametrize("baseline", ["none", "value"])
def test_a_time_limit(baseline):
    """Without a critic it ends the episode; with one, V of the observation it was cut at is the future."""
    agent, _ = collected(small("sample_envs:Walk-v0", baseline=baseline, gamma=0.9, num_episodes=20))
    critic = [] if agent.critic is None else layers(agent.critic)
    apart = cut_apart(agent)
    cuts = [cut for _, _, _, cut, _ in apart]
    assert any(cuts)
    assert not all(cuts)
    expected = np.concatenate([G for G, _ in reference.credits(apart, critic, agent.config)])
    np.testing.assert_allclose(agent.batch.returns, expected, rtol=1e-5, atol=1e-5)
    if baseline == "none":
        assert not agent.batch.values.any()


# The update


def layers(network):
    return [(m.weight.detach().double().numpy().copy(), m.bias.detach().double().numpy().copy()) for m in network[::2]]


def to_float64(agent):
    """The same rollout and weights in double precision."""
    agent.actor.double()
    if agent.critic is not None:
        agent.critic.double()
    buffer = agent.collector.buffer
    agent.collector.observations = agent.collector.observations.double()
    buffer._observations = buffer._observations.double()
    buffer._fields = [field.double() if field.is_floating_point() else field for field in buffer._fields]


@pytest.mark.parametrize("updates", [1, 100])
@pytest.mark.parametrize(
    ("env_id", "options"),
    [
        ("CartPole-v1", {"returns": "total", "baseline": "none"}),
        ("CartPole-v1", {"baseline": "mean", "norm_adv": True}),
        ("CartPole-v1", {"baseline": "value", "discount_states": True, "critic_steps": 3}),
        ("sample_envs:Continuous-v0", {"baseline": "value", "critic_steps": 2}),
    ],
    ids=str,
)
def test_updates_agree_with_the_float64_reference(env_id, options, updates):
    """The parameters after 1 and after 100 updates on the same episodes."""
    agent, _ = collected(small(env_id, learning_rate=1e-3, critic_learning_rate=2e-3, **options))
    apart = cut_apart(agent)
    to_float64(agent)
    critic = [] if agent.critic is None else layers(agent.critic)
    log_std = agent.actor.log_std.detach().numpy().copy() if "Continuous" in env_id else None
    again = reference.Update(layers(agent.actor.network), log_std, critic, agent.config)
    for _ in range(updates):
        agent.estimate()
        agent.update(remaining=0.75)
        again(apart, share=0.75)
    parameters = [x for layer in layers(agent.actor.network) for x in layer]
    if log_std is not None:
        parameters.append(agent.actor.log_std.detach().numpy())
    for ours, theirs in zip(parameters, again.actor_parameters, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-9, rtol=1e-7)
    if agent.critic is not None:
        updated = [x for layer in layers(agent.critic) for x in layer]
        for ours, theirs in zip(updated, again.critic_parameters, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-9, rtol=1e-7)


def test_the_policy_steps_before_its_baseline_does():
    """V fitted to a batch knows its actions; as a baseline in that batch it would bias the gradient."""
    agent, _ = collected(small())
    before = agent.batch.values.clone()
    agent.update(1.0)
    with torch.no_grad():
        assert not torch.equal(agent.critic(agent.batch.observations).squeeze(-1), before)
    assert torch.equal(agent.batch.values, before)


@pytest.mark.parametrize("baseline", ["none", "mean", "value"])
def test_nothing_is_read_from_the_device_in_an_iteration(baseline):
    """Row A11: the metrics alone, once, at the end."""
    agent, _ = collected(small(baseline=baseline))
    with Reads() as reads:
        agent.estimate()
        agent.update(1.0)
    assert reads.found == []


def test_metrics_have_the_names_of_ppos():
    from fastac.algorithms import ppo

    names = {}
    for baseline in ("none", "value"):
        agent, _ = collected(small(baseline=baseline))
        metrics = agent.update(0.5)
        assert metrics["charts/learning_rate"] == agent.config.learning_rate / 2
        names[baseline] = {name for name, value in metrics.items() if np.isfinite(value)}
    assert names["none"] < names["value"] <= {*ppo.METRICS, "losses/explained_variance", "charts/learning_rate"}


# What it learns


def trained(name, log_std=None, **options):
    config = small(
        f"probe/{name}-v0",
        **{
            "num_envs": 4,
            "num_episodes": 32,
            "learning_rate": 1e-2,
            "anneal_lr": False,
            "critic_steps": 20,
            **options,
        },
    )
    agent = reinforce.REINFORCE(config)
    if log_std is not None:
        torch.nn.init.constant_(agent.actor.log_std, log_std)
    while agent.global_step < config.total_timesteps:
        agent.collect()
        agent.estimate()
        agent.update(1.0)
    agent.collector.close()
    return agent


def value_of(agent, observation):
    with torch.no_grad():
        return agent.critic(torch.tensor([[observation]])).item()


def test_a_constant_value_is_learnt():
    assert value_of(trained("Constant"), 0.0) == pytest.approx(1.0, abs=0.02)


def test_a_value_that_depends_on_the_observation_is_learnt():
    agent = trained("Observed", total_timesteps=1500)
    assert value_of(agent, 1.0) == pytest.approx(1.0, abs=0.05)
    assert value_of(agent, -1.0) == pytest.approx(-1.0, abs=0.05)


def test_values_are_discounted():
    agent = trained("Discounted", gamma=0.5, total_timesteps=1500)
    assert value_of(agent, 1.0) == pytest.approx(1.0, abs=0.05)
    assert value_of(agent, 0.0) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(("returns", "baseline"), [("total", "none"), ("total", "mean"), ("reward-to-go", "value")])
def test_the_action_that_pays_is_learnt(returns, baseline):
    agent = trained("Rewarding", returns=returns, baseline=baseline, total_timesteps=1500, num_episodes=16)
    with torch.no_grad():
        assert agent.actor(torch.zeros(1, 1)).log_probs.exp()[0, 1] > 0.95


def test_the_action_that_fits_the_observation_is_learnt():
    agent = trained("Matching", total_timesteps=2000)
    assert agent.collector.policy.act(np.array([[1.0], [-1.0]])).tolist() == [1, 0]


def test_a_continuous_target_is_learnt():
    """With a deviation of 1, half of whose actions are clipped, the mean would first go where all of them are."""
    agent = trained("Target", log_std=-1.0, total_timesteps=4000)
    assert agent.collector.policy.act(np.zeros(1))[0] == pytest.approx(0.5, abs=0.1)


def test_a_time_limit_is_not_an_end_where_there_is_a_critic():
    """Row R1: r = 1 for ever, gamma = 0.98, truncated every 10 steps: V = 50 (9.1 if truncation were termination)."""
    agent = trained("Endless", gamma=0.98, total_timesteps=12_000, num_episodes=16, critic_learning_rate=3e-2)
    assert value_of(agent, 0.0) == pytest.approx(50.0, abs=2.5)


def test_a_time_limit_is_an_episodes_end_nevertheless():
    """Rows R1 and R2: V(1) = 2; 1.5 if truncation were termination."""
    agent = trained("Later", gamma=0.5, total_timesteps=3000)
    assert value_of(agent, 1.0) == pytest.approx(2.0, abs=0.1)
    assert value_of(agent, 0.0) == pytest.approx(1.0, abs=0.1)


def test_cartpole_improves():
    result = reinforce.train(dataclasses.replace(reinforce.PRESETS["cartpole"], total_timesteps=20_000, seed=0))
    assert result.finished
    assert result.episode_return > 100


def test_it_learns_from_images():
    config = small("sample_envs:Pixels-v0", num_envs=4, num_episodes=8, norm_adv=True, activation="relu")
    result = reinforce.train(
        dataclasses.replace(config, total_timesteps=960, learning_rate=1e-3, anneal_lr=False, critic_steps=2)
    )
    assert evaluate(result.policy, config.env_id, episodes=10).mean > 3.5


@pytest.mark.slow
def test_cartpole_is_learnt():
    configs = [dataclasses.replace(reinforce.PRESETS["cartpole"], seed=seed) for seed in range(5)]
    means = [evaluate(reinforce.train(config).policy, "CartPole-v1").mean for config in configs]
    assert interquartile_mean(means) >= 195


# Options and resuming


@pytest.mark.parametrize(
    "options",
    [
        {"vectorization": "vector_entry_point", "baseline": "mean"},
        {"env_id": "sample_envs:Continuous-v0", "normalize_observations": True, "normalize_rewards": True},
    ],
    ids=["categorical", "gaussian"],
)
def test_a_resumed_run_is_the_same_bit_for_bit(options, tmp_path):
    """Row A9: training 2N equals training N, saving, loading, training N."""
    config = small(**options, total_timesteps=900)
    reinforce.train(config, run_dir=tmp_path / "whole")
    assert not reinforce.train(config, lambda progress: progress.iteration < 2, run_dir=tmp_path / "parts").finished
    assert resume(tmp_path / "parts").finished
    assert everything(tmp_path / "parts") == everything(tmp_path / "whole")
    assert len(everything(tmp_path / "whole")[1]) > 3


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"gamma": 1.5}, "gamma: got 1.5, expected between 0 and 1"),
        ({"num_episodes": 0}, "num_episodes: got 0, expected at least 1"),
        ({"num_episodes": 6, "num_envs": 4}, "num_episodes: got 6, expected a multiple of num_envs, 4"),
        ({"num_episodes": 1, "num_envs": 1, "baseline": "mean"}, "num_episodes: got 1, expected at least 2"),
        ({"discount_states": True, "returns": "total"}, "discount_states: got True, expected False"),
        ({"learning_rate": 0.0}, "learning_rate: got 0.0, expected above 0"),
        ({"critic_steps": 0}, "critic_steps: got 0, expected at least 1"),
        ({"device": "cuda:99"}, "device: got 'cuda:99'"),
    ],
)
def test_options_that_cannot_be_are_named(option, message):
    with pytest.raises(RunError, match=message):
        reinforce.train(reinforce.Config(**option))


def test_presets_are_steps_from_williams_to_the_default():
    presets = reinforce.PRESETS
    assert (presets["total-return"].returns, presets["total-return"].baseline) == ("total", "none")
    assert dataclasses.replace(presets["total-return"], returns="reward-to-go") == presets["reward-to-go"]
    assert dataclasses.replace(presets["reward-to-go"], baseline="mean") == presets["mean-baseline"]
    assert dataclasses.replace(presets["mean-baseline"], baseline="value") == presets["cartpole"] == reinforce.Config()
    for config in presets.values():
        config.check()
