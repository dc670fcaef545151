"""Prioritized replay for Stable-Baselines3's DQN, SAC and TD3: weights and priorities by hand, losses, learning."""

import copy

import gymnasium
import numpy as np
import pytest
import torch

sb3 = pytest.importorskip("stable_baselines3", reason="Stable-Baselines3 is not installed: no door to try")

from gymnasium import spaces  # noqa: E402
from stable_baselines3.common.callbacks import EvalCallback  # noqa: E402
from stable_baselines3.common.env_util import make_vec_env  # noqa: E402
from stable_baselines3.common.evaluation import evaluate_policy  # noqa: E402
from stable_baselines3.common.logger import Logger  # noqa: E402
from stable_baselines3.common.type_aliases import ReplayBufferSamples  # noqa: E402
from stable_baselines3.common.vec_env import VecNormalize  # noqa: E402

from fastac.compat import sb3 as ours  # noqa: E402

BOX = spaces.Box(-1.0, 1.0, (3,))
ENVS = {"DQN": "CartPole-v1", "SAC": "Pendulum-v1", "TD3": "Pendulum-v1", "DDPG": "Pendulum-v1"}


def small():
    """Anew each time: SAC writes into its `policy_kwargs`."""
    network = {"net_arch": [8]}
    return {"policy_kwargs": network, "learning_starts": 20, "device": "cpu", "seed": 0, "buffer_size": 200}


def filled(count=8, **options):
    buffer = ours.PrioritizedReplayBuffer(count, BOX, BOX, "cpu", seed=0, **options)
    for t in range(count):
        row = np.full((1, 3), t, np.float32)
        buffer.add(row, row + 1, row, np.array([float(t)]), np.array([False]), [{}])
    return buffer


def test_draws_and_weights_are_those_of_the_paper() -> None:
    """P(i) = p_i^alpha / sum p^alpha, w_i = (N P(i))^-beta over the batch's largest; p_i = |TD error| + epsilon."""
    alpha, beta, epsilon = 0.7, 0.5, 0.01
    buffer = filled(alpha=alpha, beta=beta, epsilon=epsilon)
    td_errors = np.array([0.1, -2.0, 0.0, 3.0, -0.5, 1.0, 0.7, -4.0])
    buffer.update_priorities(np.arange(8), torch.tensor(td_errors)[:, None])
    probabilities = (np.abs(td_errors) + epsilon) ** alpha
    probabilities /= probabilities.sum()
    batch = buffer.sample(4096)
    counts = np.bincount(batch.indices, minlength=8)
    np.testing.assert_allclose(counts / 4096, probabilities, atol=2 / 4096)  # stratified: off by less than two draws
    weights = (8 * probabilities) ** -beta
    weights /= weights[np.unique(batch.indices)].max()
    np.testing.assert_allclose(batch.weights[:, 0], weights[batch.indices], rtol=1e-5)
    np.testing.assert_array_equal(batch.rewards[:, 0], batch.indices)
    np.testing.assert_array_equal(batch.observations[:, 0], batch.indices)


def test_beta_is_annealed_from_first_to_last() -> None:
    buffer = filled(beta=0.4, final_beta=1.0)
    for annealed, beta in [(-1, 0.4), (0.0, 0.4), (0.5, 0.7), (1.0, 1.0), (2.0, 1.0)]:
        buffer.annealed = annealed
        assert buffer.beta == pytest.approx(beta)
    buffer.update_priorities(np.arange(8), np.arange(8))
    buffer.annealed = 1.0
    weights = buffer.sample(64)
    order = np.argsort(weights.indices)
    assert (np.diff(weights.weights.numpy()[order, 0]) <= 0).all()  # the more often drawn, the less each counts


def test_new_transitions_have_the_largest_priority_and_stale_ones_none() -> None:
    """B8, B9: the raw maximum is kept; a priority for a transition that was overwritten meanwhile is dropped."""
    buffer = filled(alpha=1.0, epsilon=0.5)
    buffer.update_priorities(np.arange(8), np.array([0, 0, 0, 0, 0, 0, 0, 9.5]))
    row = np.zeros((1, 3), np.float32)
    buffer.add(row, row, row, np.array([-1.0]), np.array([False]), [{}])
    rewards = buffer.sample(2000).rewards.numpy()[:, 0]
    np.testing.assert_allclose((rewards == -1).mean(), 10 / 23, atol=0.01)  # 10 of 10 + 10 + 6 * 0.5
    buffer.update_priorities(np.array([0]), np.array([1000.0]))
    assert buffer.inner.stale_updates == 1
    assert buffer.inner.max_priority == 10.0


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"alpha": -1.0}, "alpha"),
        ({"beta": np.nan}, "beta"),
        ({"final_beta": -1}, "final_beta"),
        ({"epsilon": 0}, "eps"),
    ],
)
def test_what_is_out_of_range_is_refused(options, name) -> None:
    with pytest.raises(ValueError, match=name):
        filled(**options)


def test_td_errors_that_are_not_finite_are_refused() -> None:
    buffer = filled()
    with pytest.raises(ValueError, match="nan"):
        buffer.update_priorities(np.arange(2), torch.tensor([0.0, float("nan")]))


def quiet(model):
    model.set_logger(Logger(None, []))
    return model


def fixed_batches(count=6, size=32, seed=0, *, discrete: bool):
    """The same transitions each time."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        shape = (size, 4 if discrete else 3)
        observations, following = (torch.from_numpy(rng.normal(size=shape)).float() for _ in range(2))
        actions = torch.from_numpy(rng.integers(0, 2, (size, 1)) if discrete else rng.uniform(-1, 1, (size, 1)))
        rewards, dones = torch.from_numpy(rng.normal(size=(size, 1))), torch.from_numpy(rng.random((size, 1)) < 0.2)
        actions = actions if discrete else actions.float()
        yield ReplayBufferSamples(observations, actions, following, dones.float(), rewards.float())


@pytest.mark.parametrize("algorithm", ENVS)
def test_with_weights_of_one_the_steps_are_theirs(algorithm: str) -> None:
    """The same weights, batches and noise: the same parameters after some steps."""
    kind, found = getattr(sb3, algorithm), []
    for cls in (kind, ours.prioritized(kind)):
        model = quiet(cls("MlpPolicy", ENVS[algorithm], **small()))
        batches = fixed_batches(discrete=algorithm == "DQN")
        if cls is not kind:
            batches = (
                ours.PrioritizedSamples(*batch, torch.ones_like(batch.rewards), np.arange(32) % 20) for batch in batches
            )
            for step in range(20):
                x, shape = np.full((1, model.observation_space.shape[0]), step, np.float32), model.action_space.shape
                model.replay_buffer.add(x, x + 1, np.zeros((1, *shape)), np.ones(1), np.zeros(1), [{}])
        model.replay_buffer.sample = lambda size, env=None, batches=batches: next(batches)
        torch.manual_seed(3)
        model.train(gradient_steps=6, batch_size=32)
        found.append([*model.policy.parameters()])
        assert model._n_updates == 6
    for own, other in zip(*found, strict=True):
        torch.testing.assert_close(own, other, rtol=0, atol=1e-6)


@pytest.mark.parametrize("algorithm", ["DQN", "SAC", "TD3"])
def test_weights_scale_each_transitions_part_of_the_critics_gradient(algorithm: str) -> None:
    """A weight of 0 takes a transition out, and one of 2 counts it twice; priorities are the TD errors."""
    model = quiet(ours.prioritized(getattr(sb3, algorithm))("MlpPolicy", ENVS[algorithm], **small()))
    (batch,) = fixed_batches(1, 8, discrete=algorithm == "DQN")
    written, losses = [], []
    model.replay_buffer.update_priorities = lambda indices, errors: written.append(errors.reshape(-1).clone())
    model.lr_schedule = lambda _: 0.0  # parameters stay
    for weights in ([1.0] * 8, [0.0] * 4 + [2.0] * 4):
        sample = ours.PrioritizedSamples(*batch, torch.tensor(weights)[:, None], np.arange(8))
        model.replay_buffer.sample = lambda size, env=None, sample=sample: sample
        torch.manual_seed(0)
        model.train(gradient_steps=1, batch_size=8)
        losses.append(model.logger.name_to_value["train/loss" if algorithm == "DQN" else "train/critic_loss"])
    errors = written[0].abs().numpy()
    np.testing.assert_allclose(errors, written[1].abs(), rtol=1e-6)
    if algorithm == "DQN":
        each = np.where(errors < 1, 0.5 * errors**2, errors - 0.5)
        np.testing.assert_allclose(losses, [each.mean(), 2 * each[4:].sum() / 8], rtol=1e-5)
    else:  # two critics: the mean of |error| bounds the mean of squares from below
        factor = 0.5 if algorithm == "SAC" else 1.0
        assert losses[0] >= factor * 2 * (errors**2).mean() * (1 - 1e-5)
        assert losses[1] >= factor * 2 * 2 * (errors[4:] ** 2).sum() / 8 * (1 - 1e-5)


@pytest.mark.parametrize("algorithm", ENVS)
def test_a_model_trains_saves_loads_and_goes_on(algorithm: str, tmp_path) -> None:
    """The model's file holds the exponents, the replay buffer's the priorities; the same seed is the same run."""
    cls = ours.prioritized(getattr(sb3, algorithm))
    assert issubclass(cls, getattr(sb3, algorithm))
    assert ours.prioritized(getattr(sb3, algorithm)) is cls

    def model():
        kwargs = {"alpha": 0.8, "beta": 0.5, "final_beta": 0.9, "epsilon": 1e-3}
        envs = VecNormalize(make_vec_env(ENVS[algorithm], n_envs=2, seed=0))
        return cls("MlpPolicy", envs, n_steps=2, replay_buffer_kwargs=kwargs, **small())

    first, again = model().learn(140), model().learn(140)
    for own, other in zip(first.policy.parameters(), again.policy.parameters(), strict=True):
        assert torch.equal(own, other)
    assert first.n_steps == 2
    buffer = first.replay_buffer
    assert buffer.sample(3).discounts is not None
    assert buffer.beta == pytest.approx(0.9)  # all of learning is over
    assert buffer.inner.alpha == 0.8
    assert np.unique(np.round(buffer.inner._tree.leaves[:140], 9)).size > 20  # priorities are TD errors
    first.save(tmp_path / "model.zip")
    first.save_replay_buffer(tmp_path / "replay.pkl")
    loaded = cls.load(tmp_path / "model.zip", env=first.env)
    assert (loaded.replay_buffer.alpha, loaded.replay_buffer.first_beta, loaded.n_steps) == (0.8, 0.5, 2)
    assert loaded.replay_buffer.n_steps == 2
    loaded.load_replay_buffer(tmp_path / "replay.pkl")
    np.testing.assert_array_equal(loaded.replay_buffer.inner._tree.leaves, buffer.inner._tree.leaves)
    np.testing.assert_array_equal(loaded.replay_buffer.sample(16).indices, buffer.sample(16).indices)
    before = copy.deepcopy(loaded.policy.state_dict())
    loaded.learn(40, reset_num_timesteps=False)
    assert any(not torch.equal(before[name], value) for name, value in loaded.policy.state_dict().items())


def test_dict_observations() -> None:
    from stable_baselines3.common.envs import SimpleMultiObsEnv

    options = small() | {"policy_kwargs": {"net_arch": [4], "features_extractor_kwargs": {"cnn_output_dim": 4}}}
    model = ours.prioritized(sb3.DQN)("MultiInputPolicy", SimpleMultiObsEnv(random_start=False), **options)
    assert type(model.replay_buffer) is ours.PrioritizedDictReplayBuffer
    model.learn(40)


def test_other_models_are_refused() -> None:
    class Own(sb3.SAC):
        def train(self, gradient_steps, batch_size=64):
            pass

    class Named(sb3.SAC):
        pass

    assert ours.prioritized(Named).__mro__[1:] == (
        ours.PrioritizedSAC,
        *ours.PrioritizedSAC.__mro__[1:2],
        *Named.__mro__,
    )
    assert ours.prioritized(ours.PrioritizedSAC) is ours.PrioritizedSAC
    with pytest.raises(TypeError, match="Own has a train of its own"):
        ours.prioritized(Own)
    with pytest.raises(TypeError, match="got PPO, expected DQN, SAC, TD3"):
        ours.prioritized(sb3.PPO)
    with pytest.raises(TypeError, match="replay_buffer_class: got ReplayBuffer"):
        ours.prioritized(sb3.SAC)("MlpPolicy", "Pendulum-v1", replay_buffer_class=ours.ReplayBuffer)


class Match(gymnasium.Env):
    """One step: the action that fits the observation is worth 0, or 1 where there are two to choose from."""

    def __init__(self, discrete):
        self.observation_space = spaces.Box(-1.0, 1.0, (1,))
        self.action_space = spaces.Discrete(2) if discrete else spaces.Box(-1.0, 1.0, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = self.np_random.uniform(-1, 1, 1).astype(np.float32)
        return self.state, {}

    def step(self, action):
        if isinstance(self.action_space, spaces.Discrete):
            reward = float(action == int(self.state[0] > 0))
        else:
            reward = -float((action[0] - 0.8 * self.state[0]) ** 2)
        return self.state, reward, True, False, {}


@pytest.mark.parametrize(("algorithm", "steps"), [("DQN", 1200), ("SAC", 500), ("TD3", 500)])
def test_it_learns_what_one_step_is_worth(algorithm: str, steps: int) -> None:
    discrete = algorithm == "DQN"
    options = {"learning_rate": 5e-3, "learning_starts": 50, "device": "cpu", "seed": 0, "buffer_size": 1000}
    options |= {"target_update_interval": 50, "train_freq": 2} if discrete else {"batch_size": 64}
    model = ours.prioritized(getattr(sb3, algorithm))(
        "MlpPolicy",
        Match(discrete),
        policy_kwargs={"net_arch": [32]},
        replay_buffer_kwargs={"epsilon": 1e-2},
        **options,
    )
    model.learn(steps)
    states = np.linspace(-0.9, 0.9, 20, dtype=np.float32)[:, None]
    actions, _ = model.predict(states, deterministic=True)
    if discrete:
        assert (actions == (states[:, 0] > 0)).all()
    else:
        assert np.abs(actions - 0.8 * states).mean() < 0.15  # of no action at all 0.38


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_dqn_learns_cartpole(seed, tmp_path) -> None:
    """Settings as published for plain DQN (rl-baselines3-zoo); random: 22.

    The best policy of a run counts: from one evaluation to the next DQN falls from 500 to 20 and comes back, with
    priorities (ours or cpprb's) as without.
    """
    options = {
        "learning_rate": 2.3e-3, "batch_size": 64, "buffer_size": 100_000, "learning_starts": 1000,
        "target_update_interval": 10, "train_freq": 256, "gradient_steps": 128, "exploration_fraction": 0.16,
        "exploration_final_eps": 0.04,
    }  # fmt: skip
    envs, width = make_vec_env("CartPole-v1", seed=seed), {"net_arch": [256, 256]}
    model = ours.prioritized(sb3.DQN)("MlpPolicy", envs, policy_kwargs=width, device="cpu", seed=seed, **options)
    evaluation = EvalCallback(
        make_vec_env("CartPole-v1", seed=1000), n_eval_episodes=20, eval_freq=2560, log_path=str(tmp_path), verbose=0
    )
    model.learn(50_000, callback=evaluation)
    assert evaluation.best_mean_reward >= 475
    returns = np.load(tmp_path / "evaluations.npz")["results"].mean(1)
    assert returns[len(returns) // 2 :].mean() >= 150, returns


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    ("algorithm", "steps", "enough", "options"),
    [
        ("SAC", 20_000, -250.0, {"learning_rate": 1e-3, "buffer_size": 20_000}),
        ("TD3", 8_000, -300.0, {"learning_rate": 1e-3, "buffer_size": 20_000}),
    ],
)  # fmt: skip
def test_it_learns(algorithm, steps, enough, options, seed) -> None:
    """Settings as published for the plain algorithms (rl-baselines3-zoo), the last policy; random: -1227."""
    envs = make_vec_env(ENVS[algorithm], seed=seed)
    width = {"net_arch": [64, 64]}
    if algorithm == "TD3":
        from stable_baselines3.common.noise import NormalActionNoise

        options = options | {"action_noise": NormalActionNoise(np.zeros(1), 0.1 * np.ones(1))}
    model = ours.prioritized(getattr(sb3, algorithm))(
        "MlpPolicy", envs, policy_kwargs=width, device="cpu", seed=seed, **options
    )
    model.learn(steps)
    score, _ = evaluate_policy(model, make_vec_env(ENVS[algorithm], seed=100), n_eval_episodes=20)
    assert score > enough
