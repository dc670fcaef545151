"""The replay buffers of the Stable-Baselines3 door, against Stable-Baselines3's own."""

import copy
import pickle

import numpy as np
import pytest
import torch

sb3 = pytest.importorskip("stable_baselines3", reason="Stable-Baselines3 is not installed: no door to try")

from gymnasium import spaces  # noqa: E402
from stable_baselines3.common import buffers as theirs  # noqa: E402
from stable_baselines3.common.env_util import make_vec_env  # noqa: E402
from stable_baselines3.common.type_aliases import DictReplayBufferSamples, ReplayBufferSamples  # noqa: E402
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize  # noqa: E402

from fastac.compat import sb3 as ours  # noqa: E402

BOX = spaces.Box(-1.0, 1.0, (3,))
IMAGE = spaces.Box(0, 255, (3, 4, 4), np.uint8)
DICT = spaces.Dict({"a": BOX, "b": IMAGE, "c": spaces.Discrete(5)})
ACTIONS = {
    "discrete": spaces.Discrete(4), "multidiscrete": spaces.MultiDiscrete([3, 4]), "multibinary": spaces.MultiBinary(3),
    "box": BOX, "float64": spaces.Box(-1.0, 1.0, (2, 2), np.float64),
}  # fmt: skip
ARRAYS = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")


def steps(space, action_space, envs, count, seed=0):
    """What `_store_transition` adds: `next_obs` is the next `obs` but where an episode ended."""
    rng = np.random.default_rng(seed)
    space.seed(seed), action_space.seed(seed)

    def observe():
        rows = [space.sample() for _ in range(envs)]
        return {k: np.stack([r[k] for r in rows]) for k in rows[0]} if isinstance(rows[0], dict) else np.stack(rows)

    obs = observe()
    for _ in range(count):
        following, first = observe(), observe()
        done = rng.random(envs) < 0.2
        timeout = done & (rng.random(envs) < 0.5)
        action = np.stack([action_space.sample() for _ in range(envs)])
        infos = [{"TimeLimit.truncated": bool(x)} for x in timeout]
        yield obs, copy.deepcopy(following), action, rng.normal(size=envs).astype(np.float32), done, infos

        def after(new, old, done=done):
            shape = (-1,) + (1,) * (old.ndim - 1)
            return np.where(done.reshape(shape), new, old).astype(old.dtype)

        if isinstance(obs, dict):
            obs = {key: after(first[key], following[key]) for key in obs}
        else:
            obs = after(first, following)


def pair(space, action_space, envs, count, size=12, module_pair=(ours, theirs), kind=None, **options):
    name = kind or ("DictReplayBuffer" if isinstance(space, spaces.Dict) else "ReplayBuffer")
    found = []
    for module in module_pair:
        buffer = getattr(module, name)(size * envs, space, action_space, device="cpu", n_envs=envs, **options)
        for step in steps(space, action_space, envs, count):
            buffer.add(*copy.deepcopy(step))
        found.append(buffer)
    return found


def leaves(value):
    return value if isinstance(value, dict) else {"": value}


@pytest.mark.parametrize("count", [0, 1, 7, 12, 31])
@pytest.mark.parametrize("action_space", ACTIONS.values(), ids=ACTIONS)
@pytest.mark.parametrize("space", [BOX, IMAGE, spaces.Discrete(7), DICT], ids=["box", "image", "discrete", "dict"])
def test_arrays_are_theirs(space, action_space, count) -> None:
    """B1, B2: the observations that truncated transitions led to are kept; rows past the cursor are nobody's."""
    own, other = pair(space, action_space, 3, count)
    assert isinstance(own, type(other))
    assert (own.pos, own.full, own.size(), own.buffer_size) == (other.pos, other.full, other.size(), other.buffer_size)
    for name in ARRAYS:
        for key, array in leaves(getattr(other, name)).items():
            mine = leaves(getattr(own, name))[key]
            assert mine.shape == array.shape, name
            assert mine.dtype == array.dtype, name
            np.testing.assert_array_equal(mine, array, err_msg=name)


@pytest.mark.parametrize("action_space", [ACTIONS["box"], ACTIONS["discrete"]], ids=["box", "discrete"])
@pytest.mark.parametrize("space", [BOX, IMAGE, DICT], ids=["box", "image", "dict"])
@pytest.mark.parametrize("envs", [1, 4])
def test_what_a_model_adds_is_taken_as_it_is(space, action_space, envs, monkeypatch) -> None:
    """Arrays of the stored dtypes are converted by nobody; the same as their conversions give, time limits included."""
    if space is DICT:
        space = spaces.Dict({"a": BOX, "b": IMAGE})
    name = "DictReplayBuffer" if isinstance(space, spaces.Dict) else "ReplayBuffer"
    plain, other = (
        getattr(module, name)(12 * envs, space, action_space, "cpu", n_envs=envs) for module in (ours, theirs)
    )
    with monkeypatch.context() as patch:
        patch.setattr(plain.inner, "add", None)
        for step in steps(space, action_space, envs, 31):
            other.add(*copy.deepcopy(step))
            plain.add(*step)
            for array in (*leaves(step[0]).values(), *leaves(step[1]).values(), *step[2:5]):
                array[...] = 0  # what was added is a copy
    for array in ARRAYS:
        for key, wanted in leaves(getattr(other, array)).items():
            np.testing.assert_array_equal(leaves(getattr(plain, array))[key], wanted, err_msg=array)


def test_what_is_not_plain_is_converted_as_assignment_does() -> None:
    (space, infos), envs = (spaces.Dict({"a": BOX, "b": IMAGE}), [{"TimeLimit.truncated": False}, {}]), 2
    own, other = (module.DictReplayBuffer(24, space, ACTIONS["box"], "cpu", n_envs=envs) for module in (ours, theirs))
    rng = np.random.default_rng(0)
    for t in range(6):
        a, b = rng.normal(size=(envs, 3)), rng.integers(0, 255, (envs, 3, 4, 4))
        obs = (
            {"a": a, "b": b, "nobody asked": 1}
            if t % 2
            else {"a": np.float32(a).T.copy().T, "b": np.uint8(b)[:, :, ::-1]}
        )
        done = np.array([t == 3, False], [np.float32, np.bool_][t % 2])
        rewards, action = rng.normal(size=(envs, 1))[:, 0], rng.normal(size=(envs, 3))
        for buffer in (own, other):
            buffer.add(obs, obs, action, rewards, done, infos)
    for array in ARRAYS:
        for key, wanted in leaves(getattr(other, array)).items():
            np.testing.assert_array_equal(leaves(getattr(own, array))[key], wanted, err_msg=array)
    for wrong in ([], [{}] * 3):
        for buffer in (own, other):
            with pytest.raises(ValueError, match=r"broadcast|reshape"):
                buffer.add(obs, obs, action, rewards, done, wrong)
    assert own.pos == 6


@pytest.mark.parametrize("action_space", ACTIONS.values(), ids=ACTIONS)
@pytest.mark.parametrize("space", [BOX, IMAGE, spaces.Discrete(7), DICT], ids=["box", "image", "discrete", "dict"])
@pytest.mark.parametrize("handle_timeout_termination", [True, False])
def test_batches_are_theirs(space, action_space, handle_timeout_termination) -> None:
    """The same positions of one environment give the same tensors."""
    own, other = pair(space, action_space, 1, 31, handle_timeout_termination=handle_timeout_termination)
    positions = np.array([0, 3, 11, 3, 6, 7, 8])
    first, second = own._get_samples(positions), other._get_samples(positions)
    assert type(first) is type(second) is (DictReplayBufferSamples if space is DICT else ReplayBufferSamples)
    same(first, second)
    assert own.sample(5).observations.__class__ is other.sample(5).observations.__class__


def same(first, second, atol=0.0) -> None:
    for name in second._fields:
        found, wanted = getattr(first, name), getattr(second, name)
        assert (found is None) == (wanted is None), name
        for key in leaves(wanted) if wanted is not None else ():
            torch.testing.assert_close(leaves(found)[key], leaves(wanted)[key], rtol=0, atol=atol, msg=name)


@pytest.mark.parametrize("n_steps", [1, 2, 5])
@pytest.mark.parametrize("count", [9, 12, 31])
def test_n_step_batches_are_theirs(count: int, n_steps: int) -> None:
    """B3, B4, B14: windows stop at the cursor and at ends, gamma^k is the window's, and flags stay as they are."""
    options = {"n_steps": n_steps, "gamma": 0.9}
    own, other = pair(BOX, ACTIONS["box"], 1, count, kind="NStepReplayBuffer", **options)
    assert isinstance(own, theirs.NStepReplayBuffer)
    positions = np.arange(own.size())
    before = np.array(own.timeouts)
    same(own._get_samples(positions), other._get_samples(positions), atol=1e-6)
    np.testing.assert_array_equal(own.timeouts, before)


def test_n_steps_with_dict_observations() -> None:
    """What Stable-Baselines3 does not have: the same targets as of the part alone."""
    box, whole = (pair(space, BOX, 1, 31, n_steps=3, gamma=0.9, module_pair=(ours,))[0] for space in (BOX, DICT))
    batch = whole._get_samples(np.arange(12))
    assert set(batch.observations) == {"a", "b", "c"}
    assert batch.discounts.shape == box._get_samples(np.arange(12)).discounts.shape == (12, 1)


@pytest.mark.parametrize("n_steps", [1, 3])
@pytest.mark.parametrize("space", [BOX, DICT], ids=["box", "dict"])
def test_normalised_when_sampled_and_stored_as_it_was(space, n_steps: int) -> None:
    """`VecNormalize`: rewards are clipped one by one before a target's are added up."""
    if space is DICT and n_steps > 1:
        pytest.skip("Stable-Baselines3 has no n-step targets for Dict observations: nothing to compare with")
    options = {"kind": "NStepReplayBuffer", "n_steps": n_steps, "gamma": 0.9} if n_steps > 1 else {}
    own, other = pair(space, BOX, 1, 31, **options)

    class Env(sb3.common.env_util.gym.Env):
        observation_space, action_space = space, BOX

    keys = {"norm_obs_keys": ["a"]} if space is DICT else {}
    env = VecNormalize(DummyVecEnv([Env]), clip_reward=0.7, **keys)
    for rms in env.obs_rms.values() if space is DICT else [env.obs_rms]:
        rms.mean, rms.var = rms.mean + 0.3, rms.var * 0.04
    env.ret_rms.var = np.float64(2.0)
    positions = np.arange(12)
    same(own._get_samples(positions, env), other._get_samples(positions, env), atol=1e-6)
    same(own._get_samples(positions), other._get_samples(positions), atol=1e-6)


def test_draws_are_uniform_over_positions_and_environments() -> None:
    (own,) = pair(BOX, BOX, 3, 31, module_pair=(ours,), seed=1)
    wanted = np.array(own.rewards).reshape(-1)
    drawn = own.sample(60_000).rewards.numpy()[:, 0]
    counts = np.array([(drawn == reward).sum() for reward in wanted])
    expected = len(drawn) / len(wanted)
    assert ((counts - expected) ** 2 / expected).sum() < 70  # chi-square of 35 degrees: beyond 0.999
    assert len(own._get_samples(np.zeros(50, np.int64)).rewards.unique()) == 3  # environments, too


def test_draws_are_the_buffers_own_and_follow_the_seed() -> None:
    """B13: nobody else's draws change them; `set_random_seed` before the model is made says which they are."""

    def draws(numpy_seed, between=0, **options):
        np.random.seed(numpy_seed)  # noqa: NPY002 as set_random_seed does
        (own,) = pair(BOX, BOX, 2, 12, module_pair=(ours,), **options)
        np.random.random(between)  # noqa: NPY002
        return [own.sample(8).rewards.flatten().tolist() for _ in range(2)]

    assert draws(0) == draws(0, between=5)
    assert draws(0) != draws(1)
    assert draws(0, seed=7) == draws(1, seed=7)


@pytest.mark.parametrize("how", ["pickle", "deepcopy"])
@pytest.mark.parametrize("kind", ["DictReplayBuffer", "PrioritizedDictReplayBuffer"])
def test_a_copy_goes_on_alike(how: str, kind: str) -> None:
    (own,) = pair(DICT, BOX, 2, 20, module_pair=(ours,), kind=kind)
    own.sample(3)
    twin = pickle.loads(pickle.dumps(own)) if how == "pickle" else copy.deepcopy(own)
    for step in steps(DICT, BOX, 2, 3, seed=5):
        own.add(*step), twin.add(*step)
    for name in ARRAYS:
        for key, array in leaves(getattr(own, name)).items():
            np.testing.assert_array_equal(array, leaves(getattr(twin, name))[key])
    np.testing.assert_array_equal(own.sample(9).rewards, twin.sample(9).rewards)


def test_arrays_are_indexed_as_arrays() -> None:
    own, other = pair(BOX, BOX, 3, 31)
    mask = np.zeros((12, 3), np.bool_)
    mask[[1, 5], [0, 2]] = True
    keys = [
        4, -1, slice(None), slice(2, 9, 3), np.array([1, 1, 7]), (5, 2), (np.array([1, 2]), np.array([0, 2])),
        (slice(1, 4), 1), mask, (mask, slice(1, 2)), ..., (..., 0), (3, ..., slice(0, 2)),
        (np.array([2, 3]), 1, slice(None)), ([1, 2], slice(None), 1), (None, 4),
    ]  # fmt: skip
    for key in keys:
        np.testing.assert_array_equal(own.observations[key], other.observations[key], err_msg=str(key))
    assert own.rewards[3, 1] == other.rewards[3, 1]
    np.testing.assert_array_equal(1.0 - own.dones, 1.0 - other.dones)
    np.testing.assert_array_equal(own.rewards.mean(axis=0), other.rewards.mean(axis=0))
    assert len(own.rewards) == len(list(own.rewards)) == 12
    with pytest.raises(IndexError):
        own.rewards[12]


def test_what_can_be_written_is_and_the_rest_is_refused() -> None:
    """`_setup_learn` writes `dones`; relabelling writes `rewards`."""
    own, other = pair(BOX, BOX, 3, 31)
    for buffer in (own, other):
        buffer.dones[buffer.pos - 1] = True
        buffer.timeouts[2, 1:] = [False, True]
        buffer.dones[2, 1:] = True
        buffer.rewards[np.array([1, 4]), 2] = [8.0, 9.0]
        buffer.rewards *= 2.0
        buffer.actions[5, :, 1:] = 0.25
        buffer.actions[buffer.dones[...] > 0] = 0.5
    for name in ("dones", "timeouts", "rewards", "actions"):
        np.testing.assert_array_equal(getattr(own, name), getattr(other, name), err_msg=name)
    with pytest.raises(TypeError, match="use add or extend"):
        own.observations[0] = 1.0
    (short,) = pair(BOX, BOX, 3, 2, module_pair=(ours,))
    with pytest.raises(IndexError, match="no transition"):
        short.rewards[2] = 1.0


def test_pos_and_full_follow_from_what_was_added() -> None:
    (own,) = pair(BOX, BOX, 3, 5, module_pair=(ours,))
    own.pos = 5
    with pytest.raises(ValueError, match="pos: got 2, it is 5"):
        own.pos = 2
    own.full = True  # as if the arrays of zeros were transitions
    assert (own.full, own.pos, own.size()) == (True, 0, 12)
    assert not np.array(own.rewards)[5:].any()
    with pytest.raises(ValueError, match="full"):
        own.full = False
    own.reset()
    assert (own.full, own.pos, own.size()) == (False, 0, 0)
    with pytest.raises(ValueError, match="holds 0"):
        own.sample(1)


def test_extend_adds_what_another_buffer_holds() -> None:
    own, other = pair(BOX, BOX, 2, 12)
    twin = ours.ReplayBuffer(24, BOX, BOX, "cpu", n_envs=2)
    infos = [[{"TimeLimit.truncated": t} for t in row] for row in np.array(own.timeouts)]
    twin.extend(own.observations, own.next_observations, own.actions, own.rewards, own.dones, infos)
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(twin, name), getattr(other, name), err_msg=name)


def test_memory_is_half_without_losing_final_observations() -> None:
    """B1, B12: Stable-Baselines3 refuses `optimize_memory_usage` with `handle_timeout_termination`."""
    image = spaces.Box(0, 255, (3, 24, 24), np.uint8)
    (own,) = pair(image, ACTIONS["discrete"], 1, 300, size=300, module_pair=(ours,), optimize_memory_usage=True)
    (other,) = pair(image, ACTIONS["discrete"], 1, 300, size=300, module_pair=(theirs,))
    np.testing.assert_array_equal(own.next_observations, other.next_observations)
    stored = sum(array.nbytes for array in own.inner._storage.arrays.values())
    # One observation in five is filed apart here; in an ordinary environment one in hundreds.
    assert stored < 0.8 * (other.observations.nbytes + other.next_observations.nbytes)


@pytest.mark.parametrize(
    ("algorithm", "env_id"), [("DQN", "CartPole-v1"), ("SAC", "Pendulum-v1"), ("TD3", "Pendulum-v1")]
)
def test_a_model_trains_saves_and_goes_on(algorithm, env_id, tmp_path) -> None:
    kind = getattr(sb3, algorithm)
    options = {"learning_starts": 20, "policy_kwargs": {"net_arch": [8]}, "device": "cpu", "buffer_size": 100}

    def model(seed=0):
        envs = VecNormalize(make_vec_env(env_id, n_envs=2, seed=0))
        kwargs = {"n_steps": 2, "gamma": 0.99}
        return kind(
            "MlpPolicy", envs, replay_buffer_class=ours.ReplayBuffer, replay_buffer_kwargs=kwargs, seed=seed, **options
        )

    first, again = model().learn(160), model().learn(160)
    for own, other in zip(first.policy.parameters(), again.policy.parameters(), strict=True):
        assert torch.equal(own, other)
    assert first.replay_buffer.full
    first.save_replay_buffer(tmp_path / "replay.pkl")
    first.save(tmp_path / "model.zip")
    loaded = kind.load(tmp_path / "model.zip", env=first.env)
    assert type(loaded.replay_buffer) is ours.ReplayBuffer
    loaded.load_replay_buffer(tmp_path / "replay.pkl")
    np.testing.assert_array_equal(loaded.replay_buffer.observations, first.replay_buffer.observations)
    assert loaded.replay_buffer.sample(4).discounts is not None
    loaded.learn(40, reset_num_timesteps=False)


@pytest.mark.parametrize("algorithm", ["DQN", "SAC", "TD3"])
def test_a_model_takes_the_steps_that_it_takes_with_their_buffer(algorithm: str) -> None:
    """The same positions drawn: the same parameters to the last bit, time limits and terminations on the way."""

    class TheirDraws(ours.ReplayBuffer):
        def sample(self, batch_size, env=None):
            positions = np.random.randint(0, self.size(), size=batch_size)  # noqa: NPY002 theirs
            np.random.randint(0, high=self.n_envs, size=batch_size)  # noqa: NPY002 their environments
            return self._get_samples(positions, env)

    def trained(kind, **options):
        env_id = "CartPole-v1" if algorithm == "DQN" else "Pendulum-v1"
        envs = make_vec_env(env_id, seed=0, wrapper_class=sb3.common.env_util.gym.wrappers.TimeLimit,
                            wrapper_kwargs={"max_episode_steps": 15})  # fmt: skip
        model = getattr(sb3, algorithm)(
            "MlpPolicy", envs, replay_buffer_class=kind, replay_buffer_kwargs=options, seed=0, device="cpu",
            buffer_size=40, learning_starts=5, batch_size=16, train_freq=1, policy_kwargs={"net_arch": [8]},
        )  # fmt: skip
        return model.learn(100).policy.parameters()

    for own, other in zip(trained(TheirDraws, seed=1), trained(theirs.ReplayBuffer), strict=True):
        assert torch.equal(own, other)


def test_hindsight_goals_come_from_our_memory() -> None:
    """`HerReplayBuffer` reads the arrays: the same as over their memory, draws alike."""
    from stable_baselines3.common.envs import BitFlippingEnv

    def filled(kind):
        env = DummyVecEnv([lambda: BitFlippingEnv(n_bits=4, continuous=True)])
        buffer = kind(50, env.observation_space, env.action_space, env, device="cpu", copy_info_dict=True)
        env.envs[0].unwrapped.seed(0)
        obs, rng = env.reset(), np.random.default_rng(0)
        for _ in range(70):
            action = rng.uniform(-1, 1, (1, 4)).astype(np.float32)
            following, reward, done, infos = env.step(action)
            final = {k: infos[0]["terminal_observation"][k][None] for k in following} if done[0] else following
            buffer.add(obs, copy.deepcopy(final), action, reward, done, infos)
            obs = following
        np.random.seed(1)  # noqa: NPY002 what hindsight draws from
        return buffer.sample(64)

    same(filled(ours.HerReplayBuffer), filled(sb3.HerReplayBuffer))
