"""Environments go on bit for bit from where they were saved, or say why they cannot."""

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sample_envs  # noqa: F401  registers the environments
from numpy.typing import NDArray

from fastac import checkpoint
from fastac.env_state import ActionHistory, EnvError, plain_attributes
from fastac.envs import Envs, Step, make_envs


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MuJoCo writes its log where it stands."""
    monkeypatch.chdir(tmp_path)


def batches(envs: Envs, length: int, seed: int) -> list[NDArray[Any]]:
    generator = np.random.default_rng(seed)
    space, n = envs.single_action_space, envs.num_envs
    if hasattr(space, "n"):
        return list(generator.integers(0, space.n, (length, n)))
    low, high = space.low, space.high
    return list(generator.uniform(low, high, (length, n, *low.shape)).astype(low.dtype))


def same(a: Step, b: Step) -> bool:
    return all(x.dtype == y.dtype and x.tobytes() == y.tobytes() for x, y in zip(a, b, strict=True))


def check_restores(
    folder: Path, env_id: str, *, steps: int, saves: int, num_envs: int = 2, min_episodes: int, **kwargs: Any
) -> None:
    """Save at random moments; a fresh copy that loads the file steps on as the original does, to the next save."""
    original = make_envs(env_id, num_envs, seed=11, **kwargs)
    original.reset()
    assert original.why_not_restorable is None
    actions = batches(original, steps, seed=1)
    moments = {int(m) for m in np.random.default_rng(2).choice(steps, saves, replace=False)}
    copy: Envs | None = None
    episodes = 0
    for t, batch in enumerate(actions):
        if t in moments:
            if copy is not None:
                copy.close()
            checkpoint.save(folder / "envs.pt", original.state_dict())
            copy = make_envs(env_id, num_envs, seed=99, **kwargs)
            observations = copy.load_state_dict(checkpoint.load(folder / "envs.pt"))
            assert observations.tobytes() == original._observations.tobytes()
        step = original.step(batch)
        episodes += len(step.episode_returns)
        if copy is not None:
            assert same(step, copy.step(batch)), (env_id, t)
    assert episodes >= min_episodes
    for envs in (original, copy):
        if envs is not None:
            envs.close()


@pytest.mark.parametrize(
    ("env_id", "steps", "min_episodes", "kwargs"),
    [
        ("CartPole-v1", 1500, 100, {}),
        ("CartPole-v1", 600, 40, {"vectorization": "async"}),
        ("CartPole-v1", 1500, 100, {"vectorization": "vector_entry_point"}),
        ("Acrobot-v1", 1100, 4, {}),
        ("Pendulum-v1", 900, 8, {}),
        ("MountainCar-v0", 500, 4, {}),
        ("HalfCheetah-v5", 500, 8, {"max_episode_steps": 100}),
        ("HalfCheetah-v4", 500, 8, {"max_episode_steps": 100}),
        ("Hopper-v5", 600, 20, {}),
        ("LunarLander-v3", 2500, 40, {}),
        ("LunarLander-v3", 1500, 15, {"continuous": True, "enable_wind": True}),
        ("LunarLander-v3", 400, 4, {"vectorization": "async"}),
        ("sample_envs:Continuous-v0", 300, 60, {}),
        ("sample_envs:LevelOfSeed-v0", 200, 40, {}),
        ("sample_envs:OneArray-v0", 200, 40, {"vectorization": "async"}),
        ("sample_envs:Walk-v0", 200, 40, {"vectorization": "vector_entry_point"}),
        ("sample_envs:Walk-v0", 200, 40, {"vectorization": "vector_entry_point", "mode": "NextStep"}),
    ],
)
def test_environments_go_on_bit_for_bit(
    tmp_path: Path, env_id: str, steps: int, min_episodes: int, kwargs: dict[str, Any]
) -> None:
    """A9: what is resumed is what would have been."""
    check_restores(tmp_path, env_id, steps=steps, saves=12, min_episodes=min_episodes, **kwargs)


@pytest.mark.slow
@pytest.mark.parametrize("env_id", ["LunarLander-v3", "HalfCheetah-v5", "Acrobot-v1", "Humanoid-v5", "Ant-v5"])
def test_environments_go_on_bit_for_bit_over_many_episodes(tmp_path: Path, env_id: str) -> None:
    check_restores(tmp_path, env_id, steps=20_000, saves=200, min_episodes=20)


def test_the_saved_state_holds_one_episode_of_actions_not_the_run(tmp_path: Path) -> None:
    envs = make_envs("CartPole-v1", 4, seed=0)
    envs.reset()
    for batch in batches(envs, 3000, seed=0):
        envs.step(batch)
    state = envs.state_dict()
    assert max(map(len, state["actions"])) < 200
    checkpoint.save(tmp_path / "c.pt", state)
    assert (tmp_path / "c.pt").stat().st_size < 10_000


def test_saved_right_after_a_reset_and_after_the_second_reset() -> None:
    envs, copy = (make_envs("CartPole-v1", 2, seed=seed) for seed in (0, 1))
    for _ in range(2):
        first = envs.reset()
        assert copy.load_state_dict(envs.state_dict()).tobytes() == first.tobytes()
        assert same(envs.step([0, 1]), copy.step([0, 1]))


def test_a_restored_state_can_be_saved_again() -> None:
    envs = make_envs("CartPole-v1", 2, seed=0)
    envs.reset()
    for batch in batches(envs, 100, seed=0):
        envs.step(batch)
    second, third = make_envs("CartPole-v1", 2, seed=1), make_envs("CartPole-v1", 2, seed=2)
    second.load_state_dict(envs.state_dict())
    assert second.state_dict()["observations"].tobytes() == envs.state_dict()["observations"].tobytes()
    for batch in batches(envs, 5, seed=1):
        envs.step(batch)
        second.step(batch)
    third.load_state_dict(second.state_dict())
    for batch in batches(envs, 200, seed=2):
        assert same(envs.step(batch), third.step(batch))


def test_processes_and_loops_restore_each_other() -> None:
    """Both replay, so that a run may go on with the other vectorization."""
    workers = make_envs("CartPole-v1", 2, seed=0, vectorization="async")
    loop = make_envs("CartPole-v1", 2, seed=5)
    workers.reset()
    for batch in batches(workers, 50, seed=0):
        workers.step(batch)
    loop.load_state_dict(workers.state_dict())
    for batch in batches(workers, 50, seed=1):
        assert same(workers.step(batch), loop.step(batch))
    workers.close()


def test_ctrl_c_leaves_the_workers_to_be_saved() -> None:
    before = signal.getsignal(signal.SIGINT)
    envs = make_envs("CartPole-v1", 2, seed=0, vectorization="async")
    envs.reset()
    for process in envs._vector.processes:  # type: ignore[attr-defined]
        os.kill(process.pid, signal.SIGINT)
    envs.step([0, 1])
    assert len(envs.state_dict()["actions"][0]) == 1
    envs.close()
    # In this process it still means what it did (which is nothing in a shell's background job).
    if before is signal.default_int_handler:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(
    ("env_id", "vectorization", "reason"),
    [
        ("sample_envs:OwnGenerator-v0", "sync", "did not come back to where it was saved"),
        ("sample_envs:OwnGenerator-v0", "async", "did not come back to where it was saved"),
        ("sample_envs:Counting-v0", "sync", "did not come back|went on differently"),
        # It keeps its Box2D world over resets, unlike LunarLander.
        ("BipedalWalker-v3", "sync", "did not come back|went on differently"),
        ("sample_envs:Nondeterministic-v0", "sync", "is registered as nondeterministic"),
        ("sample_envs:Secrets-v0", "vector_entry_point", "its attribute 'secret' is of type generator"),
    ],
)
def test_what_cannot_be_restored_says_why(env_id: str, vectorization: Any, reason: str) -> None:
    envs = make_envs(env_id, 2, seed=0, vectorization=vectorization)
    envs.reset()
    assert envs.why_not_restorable is not None
    assert "\n" not in envs.why_not_restorable
    with pytest.raises(EnvError, match=reason):
        envs.state_dict()
    envs.close()


def test_a_replay_that_leads_elsewhere_is_noticed() -> None:
    envs, copy = (make_envs("CartPole-v1", 2, seed=seed) for seed in (0, 0))
    envs.reset()
    envs.step([0, 1])
    state = envs.state_dict()
    state["actions"][1] = 1 - state["actions"][1]
    with pytest.raises(EnvError, match="did not come back to where it was saved"):
        copy.load_state_dict(state)


def test_a_state_of_something_else_is_refused() -> None:
    envs = make_envs("CartPole-v1", 2, seed=0)
    with pytest.raises(EnvError, match="not been reset"):
        envs.state_dict()
    envs.reset()
    state = envs.state_dict()
    with pytest.raises(EnvError, match="num_envs is 2, expected 3"):
        make_envs("CartPole-v1", 3, seed=0).load_state_dict(state)
    with pytest.raises(EnvError, match="env_id is 'CartPole-v1', expected 'Acrobot-v1'"):
        make_envs("Acrobot-v1", 2, seed=0).load_state_dict(state)
    with pytest.raises(EnvError, match="restores_by is 'replay', expected 'attributes'"):
        make_envs("CartPole-v1", 2, seed=0, vectorization="vector_entry_point").load_state_dict(state)


def test_the_history_is_each_episodes_actions_and_stays_small() -> None:
    """Against lists; environments restart at random, one of them never for long."""
    generator = np.random.default_rng(0)
    history = ActionHistory(3, (2,), np.float32)
    expected: list[list[Any]] = [[], [], []]
    for t in range(5000):
        actions = generator.random((3, 2), np.float32)
        history.append(actions)
        for i in range(3):
            expected[i].append(actions[i])
            if generator.random() < (0.05, 0.2, 0.01 if t < 2500 else 0.3)[i]:
                history.restart(i)
                expected[i].clear()
        if t % 37 == 0:
            for i in range(3):
                assert history.length(i) == len(expected[i])
                assert history.episode(i).tolist() == np.array(expected[i], np.float32).reshape(-1, 2).tolist()
    assert len(history._rows) <= 4096
    other = ActionHistory(3, (2,), np.float32)
    other.load(history.episodes())
    for a, b in zip(history.episodes(), other.episodes(), strict=True):
        assert a.tobytes() == b.tobytes()
    history.clear()
    assert [history.length(i) for i in range(3)] == [0, 0, 0]


def test_the_history_follows_an_endless_episode() -> None:
    history = ActionHistory(2, (), np.int64)
    for t in range(1000):
        history.append(np.array([t, -t]))
        history.restart(1)
    assert history.episode(0).tolist() == list(range(1000))
    assert history.length(1) == 0


def test_plain_attributes_are_copies_and_know_their_limits() -> None:
    class Thing:
        def __init__(self) -> None:
            self.array = np.arange(3)
            self.parts = {"a": [1, (2.0, None)], 3: "x"}
            self.function = len

    thing = Thing()
    attributes = plain_attributes(thing)
    thing.array[0] = 7
    assert attributes["array"][0] == 0
    assert set(attributes) == {"array", "parts"}
    thing.parts["a"] = [{1, 2}]
    with pytest.raises(EnvError, match="its attribute 'parts' is of type set"):
        plain_attributes(thing)
