"""Vector environments: true final observations, fillers masked, and advantages that come out right."""

import os
import sys
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
import sample_envs
from fresh import ROOT, SOURCES, run_python
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

import fastac
from fastac.envs import EnvError, Envs, Step, make_envs

N = 3
GAMMA, LAMBDA = 0.9, 0.8
Maker = Callable[[], Envs]


def same_step_entry_point(num_envs: int = N, seed: int = 0) -> Envs:
    return make_envs("sample_envs:Walk-v0", num_envs, seed=seed, vectorization="vector_entry_point")


def next_step_entry_point(num_envs: int = N, seed: int = 0) -> Envs:
    return make_envs("sample_envs:Walk-v0", num_envs, seed=seed, vectorization="vector_entry_point", mode="NextStep")


def envpool_like(num_envs: int = N, seed: int = 0) -> Envs:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "envpool", sample_envs.PoolWalk)
        return make_envs("Walk-v0", num_envs, seed=seed, vectorization="envpool")


MAKERS: dict[str, Maker] = {
    "sync": lambda: make_envs("sample_envs:Walk-v0", N, seed=0),
    "one array": lambda: make_envs("sample_envs:OneArray-v0", N, seed=0),
    "async": lambda: make_envs("sample_envs:Walk-v0", N, seed=0, vectorization="async"),
    "async, one array": lambda: make_envs("sample_envs:OneArray-v0", N, seed=0, vectorization="async"),
    "same-step entry point": same_step_entry_point,
    "next-step entry point": next_step_entry_point,
    "EnvPool's conventions": envpool_like,
}


@pytest.fixture(params=MAKERS)
def envs(request: pytest.FixtureRequest) -> Any:
    made = MAKERS[request.param]()
    yield made
    made.close()


def value(observations: NDArray[Any]) -> NDArray[Any]:
    """Some critic: any function of the observation does."""
    return np.sin(3.0 * observations[..., 0]) + 0.5 * np.cos(observations[..., 1]) * observations[..., 0]


def rollout(envs: Envs, length: int, seed: int = 5) -> tuple[NDArray[Any], NDArray[Any], list[Step]]:
    generator = np.random.default_rng(seed)
    observations, steps = [envs.reset()], []
    actions = generator.integers(0, 2, (length, envs.num_envs))
    for row in actions:
        steps.append(envs.step(row))
        observations.append(steps[-1].observations)
    return np.array(observations), actions, steps


def true_episodes(observations: NDArray[Any], actions: NDArray[Any], masks: NDArray[Any]) -> list[list[Any]]:
    """One environment's episodes from Walk's definition: starts are read off, all else follows from the actions.

    Returns rows (t, x, steps since the start, reward, next x, terminated, truncated), a list per episode.
    """
    episodes: list[list[Any]] = []
    episode: list[Any] = []
    for t, action in enumerate(actions):
        if not masks[t]:
            continue
        if not episode:
            x, age = float(observations[t, 0]), 0
            assert observations[t, 1] == 0
        reached = x + 2 * int(action) - 1
        terminated, truncated = abs(reached) >= sample_envs.EDGE, age + 1 >= sample_envs.LIMIT
        episode.append((t, x, age, reached, reached, terminated, truncated))
        x, age = reached, age + 1
        if terminated or truncated:
            episodes.append(episode)
            episode = []
    return [*episodes, *([episode] if episode else [])]


def brute_force(episodes: list[list[Any]], length: int) -> NDArray[Any]:
    """GAE as its definition: every advantage is its own sum over the episode's TD errors, nothing is carried."""
    advantages = np.zeros(length)
    for episode in episodes:
        errors = []
        for _, x, age, reward, reached, terminated, _ in episode:
            future = 0.0 if terminated else float(value(np.array([reached, age + 1.0])))
            errors.append(reward + GAMMA * future - float(value(np.array([x, float(age)]))))
        for k, (t, *_) in enumerate(episode):
            advantages[t] = sum((GAMMA * LAMBDA) ** (j - k) * errors[j] for j in range(k, len(episode)))
    return advantages


def test_advantages_from_steps_are_the_definitions(envs: Envs) -> None:
    """R1-R4, R15, rule 4: both autoreset modes give the brute-force GAE.

    next_values are the next row's values and, where an episode ended, those of the final observations.
    """
    length = 40
    observations, actions, steps = rollout(envs, length)
    values = value(observations)
    next_values = values[1:].copy()
    masks = np.array([step.mask for step in steps])
    terminated, truncated = (np.array([getattr(step, name) for step in steps]) for name in ("terminated", "truncated"))
    for t, step in enumerate(steps):
        ended = np.flatnonzero((step.terminated | step.truncated) & step.mask)
        assert len(step.final_observations) == len(step.episode_returns) == len(step.episode_lengths) == len(ended)
        if envs.autoreset_mode == "next_step":
            assert (step.final_observations == step.observations[ended]).all()
        else:
            next_values[t, ended] = value(step.final_observations)
    assert (truncated & masks).sum() >= 3
    assert (terminated & masks).sum() >= 3
    assert (~masks).any() == (envs.autoreset_mode == "next_step")
    rewards = np.array([step.rewards for step in steps])
    advantages, _ = fastac.gae(
        rewards, values[:-1], next_values, terminated, truncated, masks, gamma=GAMMA, gae_lambda=LAMBDA
    )
    for i in range(N):
        expected = brute_force(true_episodes(observations[:, i], actions[:, i], masks[:, i]), length)
        np.testing.assert_allclose(advantages[:, i], expected, rtol=1e-5, atol=1e-5)


def test_episodes_are_as_the_environment_defines_them(envs: Envs) -> None:
    """Flags, final observations, undiscounted returns, and lengths in valid rows."""
    length = 40
    observations, actions, steps = rollout(envs, length)
    masks = np.array([step.mask for step in steps])
    finals: dict[tuple[int, int], Any] = {}
    for t, step in enumerate(steps):
        ended = np.flatnonzero((step.terminated | step.truncated) & step.mask)
        for i, *row in zip(ended, step.final_observations, step.episode_returns, step.episode_lengths, strict=True):
            finals[t, int(i)] = row
    for i in range(N):
        for episode in true_episodes(observations[:, i], actions[:, i], masks[:, i]):
            for t, _, _, reward, _, terminated, truncated in episode:
                assert steps[t].rewards[i] == reward
                assert steps[t].terminated[i] == terminated
                assert steps[t].truncated[i] == truncated
            t, _, age, _, reached, terminated, truncated = episode[-1]
            if terminated or truncated:
                final, episode_return, episode_length = finals.pop((t, i))
                assert final.tolist() == [reached, age + 1]
                assert episode_return == sum(row[3] for row in episode)
                assert episode_length == len(episode)
    assert not finals


def test_dtypes_and_shapes(envs: Envs) -> None:
    assert envs.reset().dtype == np.float32
    for _ in range(8):
        step = envs.step(np.ones(N, np.int64))
        k = len(step.final_observations)
        assert step.observations.shape == (N, 2)
        assert step.final_observations.shape == (k, 2)
        assert step.observations.dtype == step.final_observations.dtype == np.float32
        assert step.terminated.dtype == step.truncated.dtype == step.mask.dtype == np.bool_
        assert step.episode_returns.dtype == np.float64
        assert step.episode_lengths.dtype == np.int64
        assert step.rewards.shape == step.terminated.shape == step.truncated.shape == step.mask.shape == (N,)


def test_a_step_is_the_callers_to_keep(envs: Envs) -> None:
    """No array is written to by a later step, nor is ours harmed by what the caller does to it."""
    envs.reset()
    kept = []
    for _ in range(10):
        step = envs.step(np.ones(N, np.int64))
        kept.append((step, Step(*(part.copy() for part in step))))
    for step, copy in kept:
        for a, b in zip(step, copy, strict=True):
            np.testing.assert_array_equal(a, b)
            a[...] = 1
        step.mask[:] = False
    other = rollout(envs, 10)[2]
    assert [step.episode_lengths.tolist() for step in other if len(step.episode_lengths)]
    assert all(step.mask.all() for step in other) == (envs.autoreset_mode == "same_step")


def test_a_reset_midway_starts_the_sums_anew(envs: Envs) -> None:
    envs.reset()
    for _ in range(2):
        envs.step(np.ones(N, np.int64))
    starts = envs.reset()[:, 0]
    assert envs.step(np.ones(N, np.int64)).mask.all()
    step = envs.step(np.zeros(N, np.int64))
    while not step.terminated.any():
        step = envs.step(np.zeros(N, np.int64))
    first = np.flatnonzero(step.terminated)
    assert step.episode_lengths.tolist() == [2 + 3 + int(starts[i]) for i in first]
    # start + 1, then down to -3
    assert step.episode_returns.tolist() == [starts[i] + 1 + sum(range(-3, int(starts[i]) + 1)) for i in first]


def test_the_filler_is_masked_across_rollouts() -> None:
    """R15: the first row of a rollout is a filler where the last row of the one before ended an episode."""
    envs = next_step_entry_point(num_envs=1)
    envs.reset()
    while not (step := envs.step([1])).terminated[0]:
        assert step.mask[0]
    assert step.mask[0]
    filler = envs.step([1])
    assert not filler.mask[0]
    assert filler.rewards[0] == 99.0  # as it was paid; it is in no return
    assert filler.observations[0, 1] == 0
    while not (step := envs.step([1])).terminated[0]:
        assert step.mask[0]
    assert step.episode_returns[0] < 99.0
    envs.reset()
    assert envs.step([1]).mask[0]


def test_cartpoles_own_vector_form_agrees_with_a_cartpole() -> None:
    envs = make_envs("CartPole-v1", 2, seed=3, vectorization="vector_entry_point", max_episode_steps=7)
    assert envs.autoreset_mode == "next_step"
    observations = envs.reset()
    single = gymnasium.make("CartPole-v1").unwrapped
    single.reset(seed=0)
    fillers = 0
    for t in range(60):
        actions = np.array([t % 2, t // 3 % 2])
        step = envs.step(actions)
        for i in range(2):
            if step.mask[i]:
                single.state = observations[i].astype(np.float64)
                single.steps_beyond_terminated = None
                expected, _, terminated, _, _ = single.step(actions[i])
                np.testing.assert_allclose(step.observations[i], expected, atol=1e-5)
                assert step.terminated[i] == terminated
            else:
                fillers += 1
                assert (np.abs(step.observations[i]) <= 0.05).all()
        assert (step.episode_lengths <= 7).all()
        observations = step.observations
    assert fillers >= 14


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_steps_are_those_of_gymnasiums_own_vector_environment(env_id: str) -> None:
    """The loop of our own does what SyncVectorEnv does, bit for bit, and so do the worker processes."""
    envs = [make_envs(env_id, 3, seed=1), make_envs(env_id, 3, seed=1, vectorization="async")]
    theirs = gymnasium.make_vec(
        env_id, 3, vectorization_mode="sync", vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP}
    )
    expected, _ = theirs.reset(seed=envs[0]._seeds)  # type: ignore[arg-type]
    for ours in envs:
        assert ours.reset().tobytes() == expected.tobytes()
    theirs.action_space.seed(0)
    ends = 0
    for _ in range(450):
        actions = theirs.action_space.sample()
        observations, rewards, terminated, truncated, infos = theirs.step(actions)
        for ours in envs:
            step = ours.step(actions)
            for a, b in zip(step, (observations, rewards, terminated, truncated), strict=False):
                assert a.tobytes() == b.tobytes()
            for row, i in enumerate(np.flatnonzero(terminated | truncated)):
                assert step.final_observations[row].tobytes() == infos["final_obs"][i].tobytes()
                ends += 1
    assert ends >= 6
    for made in (*envs, theirs):
        made.close()


def test_seeds_are_reproducible_and_share_no_copies() -> None:
    """Copies start differently, so do runs with neighbouring seeds, and a second reset goes on instead of repeating."""

    def starts(seed: int) -> list[bytes]:
        envs = make_envs("CartPole-v1", 4, seed=seed)
        return [row.tobytes() for _ in range(2) for row in envs.reset()]

    assert starts(0) == starts(0)
    assert len({*starts(0), *starts(1), *starts(2)}) == 24


@pytest.mark.parametrize(
    ("env_id", "kwargs", "message"),
    [
        ("CartPol-v1", {}, r"env_id 'CartPol-v1': .* Did you mean: `CartPole`\?"),
        ("CartPole-v9", {}, "env_id 'CartPole-v9': .*`v1`"),
        ("no_such_module:X-v0", {}, "No module named 'no_such_module'"),
        ("a:b:c", {}, "env_id 'a:b:c'"),
        ("CartPole-v1", {"gravity_of": 3}, "unexpected keyword argument 'gravity_of'"),
        ("sample_envs:Breaks-v0", {}, "no licence found"),
        ("FrozenLake-v1", {}, r"observations are Discrete\(16\), expected a Box of one dimension"),
        ("sample_envs:Speck-v0", {}, "its images are 35 x 84, expected at least 36 x 36"),
        ("sample_envs:Empty-v0", {}, "observations are Box.*expected a Box of one dimension, not empty"),
        ("sample_envs:Grid-v0", {}, "observations are Box.*expected a Box of one dimension"),
        ("sample_envs:Several-v0", {}, r"actions are MultiDiscrete.*expected Discrete or a flat Box of floats"),
        ("sample_envs:IntegerBox-v0", {}, r"actions are Box.*expected Discrete or a flat Box of floats"),
        ("Acrobot-v1", {"vectorization": "vector_entry_point"}, "doesn't have a vector entry point"),
        ("sample_envs:Walk-v0", {"vectorization": "vector_entry_point", "mode": "Disabled"}, "its autoreset mode is"),
        ("CartPole-v1", {"vectorization": "threads"}, "vectorization: got 'threads', expected one of sync, async"),
        ("CartPole-v1", {"num_envs": 0}, "num_envs: got 0"),
        ("CartPole-v1", {"seed": -1}, "seed: got -1"),
    ],
)
def test_what_cannot_be_made_is_said_in_one_line(env_id: str, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(EnvError, match=message) as error:
        make_envs(env_id, **{"num_envs": 2, "seed": 0, **kwargs})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("vectorization", ["async", "vector_entry_point"])
def test_spaces_are_checked_whoever_steps(vectorization: Any) -> None:
    with pytest.raises(EnvError):
        make_envs("FrozenLake-v1", 2, seed=0, vectorization=vectorization)


def test_observations_that_are_not_of_their_space() -> None:
    with pytest.raises(EnvError, match=r"observations have shape \(2, 2\), expected \(2, 3\)"):
        make_envs("sample_envs:WrongShape-v0", 2, seed=0).reset()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"size": 3}, r"its step returned an observation of shape \(3,\), expected \(2,\) by its space"),
        ({"reward": [1.0, 2.0]}, r"its step returned the reward \[1.0, 2.0\], expected a number"),
        ({"reward": "a"}, "its step returned the reward 'a', expected a number"),
    ],
)
def test_steps_that_are_not_of_their_space(kwargs: dict[str, Any], message: str) -> None:
    envs = make_envs("sample_envs:Misfit-v0", 2, seed=0, **kwargs)
    envs.reset()
    envs.step(np.zeros(2, np.int64))
    with pytest.raises(EnvError, match=message):
        envs.step(np.zeros(2, np.int64))


def test_wrong_actions_are_named(envs: Envs) -> None:
    envs.reset()
    with pytest.raises(ValueError, match=r"actions: got shape \(2,\), expected \(3,\)"):
        envs.step(np.zeros(2, np.int64))
    with pytest.raises(TypeError, match="actions: got float64, expected int64"):
        envs.step(np.zeros(N))
    envs.step(np.zeros(N, np.int32))


def test_box_actions_reach_the_environment_in_its_dtype() -> None:
    envs = make_envs("Pendulum-v1", 2, seed=0)
    envs.reset()
    with pytest.raises(ValueError, match=r"actions: got shape \(2,\), expected \(2, 1\)"):
        envs.step(np.zeros(2))
    assert envs.step(np.zeros((2, 1))).rewards.shape == (2,)


def test_module_and_keyword_arguments_reach_every_vectorization() -> None:
    for vectorization in ("sync", "async"):
        envs = make_envs("sample_envs:Walk-v0", 2, seed=0, vectorization=vectorization, max_episode_steps=2)  # type: ignore[arg-type]
        envs.reset()
        envs.step([0, 1])
        assert envs.step([1, 0]).truncated.all()
        envs.close()
        envs.close()


@pytest.mark.parametrize(
    "begun_beside", [lambda: make_envs("CartPole-v1", N, seed=0, vectorization="async"), envpool_like]
)
def test_a_step_begun_and_waited_for_is_a_step(begun_beside: Maker) -> None:
    """The caller's array is its own as soon as the step has begun."""
    whole, parts = begun_beside(), begun_beside()
    assert whole.reset().tobytes() == parts.reset().tobytes()
    for t in range(60):
        actions = np.array([t % 2, 1, t % 3 % 2])
        step = whole.step(actions)
        parts.step_async(actions)
        actions[:] = 7
        for a, b in zip(step, parts.step_wait(), strict=True):
            assert a.tobytes() == b.tobytes()
    parts.step_async([0, 0, 0])
    with pytest.raises(Exception, match="step_async"):
        parts.step_async([0, 0, 0])
    parts.step_wait()
    with pytest.raises(Exception, match=r"step_async|no step was begun"):
        parts.step_wait()
    parts.step_async([0, 0, 0])
    for envs in (whole, parts):
        envs.close()
        envs.close()


def test_what_steps_in_this_process_begins_no_step() -> None:
    for envs in (make_envs("CartPole-v1", 2, seed=0), next_step_entry_point(2)):
        envs.reset()
        with pytest.raises(EnvError, match="its steps are taken in this process"):
            envs.step_async([0, 1])
        with pytest.raises(EnvError, match="step_wait without step_async"):
            envs.step_wait()


def test_a_worker_has_one_thread_of_its_own() -> None:
    """Whatever its libraries had before; torch's threads, started before the fork, would be waited for without end."""
    code = """
import os, numpy as np, torch
import sample_envs
from fastac.envs import make_envs
torch.set_num_threads(2)
square = torch.ones(600, 600)
for _ in range(3): square @ square
envs = make_envs("sample_envs:Threads-v0", 2, seed=0, vectorization="async")
envs.reset()
for _ in range(2): step = envs.step([0, 1])
print(*step.observations.max(0), torch.get_num_threads())
envs.close()
"""
    limits = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "2")
    sources = os.pathsep.join([SOURCES, str(ROOT / "tests")])
    numpy, torch, here = map(float, run_python(code, path=sources, env=limits, timeout=60).split())
    assert numpy < 1.5 > torch
    assert here == 2


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_images_stay_bytes(vectorization: Any) -> None:
    envs = make_envs("sample_envs:Pixels-v0", 2, seed=0, vectorization=vectorization)
    observations = envs.reset()
    assert observations.dtype == np.uint8
    assert observations.shape == (2, 36, 40, 2)
    for _ in range(4):
        step = envs.step([0, 1])
    assert step.observations.dtype == step.final_observations.dtype == np.uint8
    assert step.final_observations.shape == (2, 36, 40, 2)
    state = envs.state_dict()
    following = envs.step([0, 0])
    envs.load_state_dict(state)
    assert np.array_equal(envs.step([0, 0]).observations, following.observations)
    envs.close()
