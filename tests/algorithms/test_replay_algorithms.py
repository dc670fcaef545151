"""What SAC, TD3 and DDPG have in common, each shown to have it."""

import dataclasses
import itertools

import numpy as np
import pytest
import replay_agents
import torch
from replay_agents import AGENTS, MODULES, NO_ENTROPY, filled, rates, small
from torch.utils._python_dispatch import TorchDispatchMode

from fastac import checkpoint, load, mlp
from fastac.algorithms import resume
from fastac.envs import EnvError
from fastac.optim import Adam
from fastac.run import RunError, torch_threads

replay_agents.register()
ALGORITHMS = pytest.mark.parametrize("name", AGENTS)


@pytest.fixture(autouse=True)
def _one_thread():
    with torch_threads(1):
        yield


# What it learns


def trained(name, env, updates=600, learning_rate=5e-3, **options):
    more = NO_ENTROPY | {"policy_frequency": 1} if name == "sac" else {}
    options = {"tau": 0.1, "gamma": 0.5, **rates(name, learning_rate), **more, **options}
    agent = filled(name, env_id=f"continuous/{env}-v0", **options)
    for _ in range(updates):
        agent.update()
    agent.experience.close()
    return agent


def value_of(agent, observation, action=0.3):
    with torch.no_grad():
        return agent.q.minimum(torch.tensor([[observation]]), torch.tensor([[action]])).item()


@ALGORITHMS
def test_a_constant_value_is_learnt(name):
    assert value_of(trained(name, "Constant", 300), 0.0) == pytest.approx(1.0, abs=0.03)


@ALGORITHMS
def test_a_value_that_depends_on_the_observation_is_learnt(name):
    agent = trained(name, "Observed", 300)
    assert value_of(agent, 1.0) == pytest.approx(1.0, abs=0.05)
    assert value_of(agent, -1.0) == pytest.approx(-1.0, abs=0.05)


@ALGORITHMS
def test_values_are_discounted(name):
    agent = trained(name, "Discounted")
    assert value_of(agent, 1.0) == pytest.approx(1.0, abs=0.05)
    assert value_of(agent, 0.0) == pytest.approx(0.5, abs=0.05)


@ALGORITHMS
def test_the_action_that_pays_is_learnt(name):
    """In the environment's units, whose bounds are +-2."""
    agent = trained(name, "Target", 1000)
    assert agent.experience.policy.act(np.zeros(1))[0] == pytest.approx(0.5, abs=0.15)


@ALGORITHMS
def test_a_time_limit_is_not_an_end(name):
    """Row R1: r = 1 for ever, gamma = 0.98, truncated every 10 steps: Q = 50 (10 if truncation were termination)."""
    agent = trained(name, "Endless", 1500, gamma=0.98, tau=0.5, learning_rate=1e-2)
    assert value_of(agent, 0.0) == pytest.approx(50.0, abs=2.5)


@ALGORITHMS
def test_a_time_limit_is_an_episodes_end_nevertheless(name):
    """Rows R1 and R2: Q(1) = 2; 1.33 if truncation were termination, 1.6 if the next episode's value leaked in."""
    agent = trained(name, "Later")
    assert value_of(agent, 1.0) == pytest.approx(2.0, abs=0.1)
    assert value_of(agent, 0.0) == pytest.approx(1.0, abs=0.1)


# The run


@ALGORITHMS
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"env_id": "sample_envs:Continuous-v0", "num_envs": 2, "normalize_observations": True},
        {"buffer_size": 90, "num_envs": 3, "train_frequency": 4},
    ],
)
def test_a_resumed_run_is_the_same_bit_for_bit(name, options, tmp_path):
    """Row A9: training 2N equals training N, saving, loading, training N, the replay buffer included."""
    more = {"n_step": 3, "prioritized_replay": not options, "layer_norm": True} if name == "sac" else {}
    config = small(name, total_timesteps=240, log_interval=30, **more, **options)
    train = MODULES[name].train
    train(config, run_dir=tmp_path / "whole")
    stopped = train(config, lambda progress: progress.iteration < 4, run_dir=tmp_path / "parts")
    assert (stopped.finished, stopped.global_step) == (False, 120)
    assert resume(tmp_path / "parts").finished
    whole, parts = (everything(checkpoint.load(tmp_path / kind / "checkpoint.pt")) for kind in ("whole", "parts"))
    assert whole == parts
    assert any("replay" in key for key in whole)
    logs = [(tmp_path / kind / "progress.csv").read_text().splitlines() for kind in ("whole", "parts")]
    assert len(logs[0]) == len(logs[1]) == 9
    for a, b in itertools.pairwise(logs):
        columns = a[0].split(",")
        same = [i for i, column in enumerate(columns) if column not in ("charts/SPS", "time/elapsed_seconds")]
        assert [[row.split(",")[i] for i in same] for row in a] == [[row.split(",")[i] for i in same] for row in b]


def everything(value, at=""):
    """A checkpoint's leaves by their place, as bytes; but not how long it took."""
    if isinstance(value, dict):
        return {k: v for key, item in value.items() for k, v in everything(item, f"{at}/{key}").items()}
    if isinstance(value, list | tuple):
        return {k: v for i, item in enumerate(value) for k, v in everything(item, f"{at}/{i}").items()}
    if "elapsed" in at:
        return {}
    data = value.numpy().tobytes() if isinstance(value, torch.Tensor) else None
    return {at: data or (value.tobytes() if isinstance(value, np.ndarray) else value)}


class Reads(TorchDispatchMode):
    """Counts what would wait for a GPU."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket.__name__ in ("_local_scalar_dense", "nonzero", "masked_select", "equal", "unique2"):
            self.found.append(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


@ALGORITHMS
def test_the_update_reads_nothing_from_the_device(name):
    """Row A11."""
    agent = filled(name)
    with Reads() as reads:
        for _ in range(4):
            metrics = agent.update()
    assert reads.found == []
    assert metrics.isfinite().all()
    assert len(metrics) == len(MODULES[name].METRICS)


@ALGORITHMS
def test_updates_keep_pace_with_steps(name, monkeypatch):
    """None before learning starts; then `updates_per_step` of them for every transition, also of many environments."""
    kind, counted = AGENTS[name], []
    update = kind.update
    monkeypatch.setattr(kind, "update", lambda self: counted.append(1) or update(self))
    for options, expected in (
        ({"num_envs": 1}, 136),
        ({"num_envs": 4}, 136),
        ({"num_envs": 4, "updates_per_step": 0.25}, 34),
        ({"num_envs": 2, "updates_per_step": 2.0, "train_frequency": 8}, 256),  # the last round is after 192 steps
    ):
        seen = []
        config = small(name, total_timesteps=200, log_interval=40, batch_size=4, hidden_sizes=(4,), **options)
        counted.clear()
        MODULES[name].train(config, seen.append)
        assert len(counted) == expected
        assert [progress.global_step for progress in seen] == [40, 80, 120, 160, 200]
        assert np.isnan(seen[0].metrics["losses/q_loss"])
        assert np.isfinite(list(seen[-1].metrics.values())).all()
        assert np.isfinite(list(seen[1].metrics.values())).all(), "updates without the actor do not blank its metrics"


@ALGORITHMS
def test_actions_are_random_until_learning_starts(name):
    config = small(name, total_timesteps=64)
    agent = AGENTS[name](config)
    MODULES[name].train(config)  # does not learn either
    drawn = []
    for _ in range(64):
        actions = agent.experience.random_actions()
        drawn.append(actions)
        agent.experience.step(actions)
    stored = agent.experience.replay.gather(np.arange(64)).actions
    assert np.array_equal(stored, np.concatenate(drawn))
    assert -1 <= stored.min() < -0.8
    assert 0.8 < stored.max() <= 1


@ALGORITHMS
def test_the_learning_rate_falls_linearly(name):
    seen = []
    config = small(name, total_timesteps=200, log_interval=50, anneal_lr=True, **rates(name, 1e-3))
    MODULES[name].train(config, lambda progress: seen.append(progress.metrics["charts/learning_rate"]))
    np.testing.assert_allclose(seen, [0.75e-3, 0.5e-3, 0.25e-3, 0.0], atol=1e-12)
    with pytest.raises(RunError, match="learning_starts: got -1, expected at least 0"):
        MODULES[name].train(dataclasses.replace(config, learning_starts=-1))


@ALGORITHMS
def test_images_are_learnt_from(name, tmp_path):
    """And a run on images is resumed bit for bit (row A9)."""
    options = {"learning_starts": 60, "batch_size": 4, "buffer_size": 70, "num_envs": 2, "log_interval": 4}
    config = small(name, "continuous/Halves-v0", total_timesteps=72, **options)
    MODULES[name].train(config, run_dir=tmp_path / "whole")
    MODULES[name].train(config, lambda progress: progress.iteration < 17, run_dir=tmp_path / "parts")
    result = resume(tmp_path / "parts")
    whole, parts = (everything(checkpoint.load(tmp_path / kind / "checkpoint.pt")) for kind in ("whole", "parts"))
    assert whole == parts
    assert result.policy.act(np.zeros((3, 36, 40, 2), np.uint8)).shape == (3, 1)
    with pytest.raises(RunError, match="normalize_observations: got True for images"):
        MODULES[name].train(dataclasses.replace(config, normalize_observations=True))


@ALGORITHMS
def test_discrete_actions_are_refused(name):
    with pytest.raises(EnvError, match="action_space: got Discrete"):
        MODULES[name].train(small(name, "CartPole-v1"))


@ALGORITHMS
def test_a_policy_is_loaded_with_its_normaliser_and_its_bounds(name, tmp_path):
    config = small(name, total_timesteps=100, normalize_observations=True)
    result = MODULES[name].train(config, run_dir=tmp_path / "run")
    observations = np.random.default_rng(0).normal(size=(50, 3)) * 3
    loaded = load(tmp_path / "run")
    assert np.array_equal(loaded.act(observations), result.policy.act(observations))
    actions = loaded.act(observations, deterministic=False)
    assert actions.dtype == np.float32
    assert np.abs(actions).max() <= 2
    with torch.no_grad():
        seen = torch.from_numpy(loaded.observe(observations))
        outputs = loaded.actor.network(seen)[:, :1]
    np.testing.assert_allclose(loaded.act(observations), 2 * torch.tanh(outputs).numpy(), rtol=1e-5, atol=1e-6)


@ALGORITHMS
def test_training_leaves_torch_as_it_was(name):
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    numpy_state = np.random.get_state()[1].copy()  # noqa: NPY002
    MODULES[name].train(small(name, total_timesteps=80))
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002


@pytest.mark.slow
@ALGORITHMS
def test_pendulum_swings_up(name):
    """The zoo's settings and steps; its single runs reach -157, -152 and -152, dynamic programming -138.5."""
    from fastac.algorithms import preset
    from fastac.evaluate import evaluate

    result = MODULES[name].train(preset(name, "sb3-zoo", "Pendulum-v1"))
    assert evaluate(result.policy, "Pendulum-v1").mean > -200


@pytest.mark.cuda
@ALGORITHMS
def test_training_on_a_gpu(name):
    more = {"prioritized_replay": True} if name == "sac" else {}
    config = small(name, total_timesteps=200, device="cuda", normalize_observations=True, **more)
    result = MODULES[name].train(config)
    assert result.finished
    assert next(result.policy.actor.parameters()).is_cuda
    assert result.policy.act(np.zeros((3, 3))).shape == (3, 1)


# The kernels


@ALGORITHMS
def test_a_hundred_updates_are_those_of_plain_torch(name, monkeypatch):
    """The fused steps, the optimiser and the networks, against torch's modules one by one and its own Adam."""
    agents = []
    for kernels in (True, False):
        if not kernels:
            monkeypatch.setattr(mlp, "AVAILABLE", False)
            monkeypatch.setattr(Adam, "_compiled_groups", lambda self: None)
        agent = filled(name, hidden_sizes=(32, 32), policy_frequency=1)
        for _ in range(100):
            agent.update()
        agents.append(agent)
    ours, plain = agents
    parameters = [
        [*agent.actor.parameters(), *agent.q.parameters(), *agent.target.network.parameters()] for agent in agents
    ]
    for mine, other in zip(*parameters, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-5)
    if name == "sac":
        torch.testing.assert_close(ours.log_alpha, plain.log_alpha, rtol=0, atol=1e-5)
