"""EnvPool's environments against Gymnasium's own; without EnvPool, its conventions are tested by a stand-in.

`sample_envs.PoolWalk` is that stand-in: tests/test_envs.py takes it through everything that is asked of all kinds.
"""

import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import sample_envs

from fastac import checkpoint
from fastac.algorithms import ppo, sac
from fastac.envs import EnvError, Envs, make_envs

try:
    import envpool
except ImportError:
    envpool = None

installed = pytest.mark.skipif(envpool is None, reason="could not import 'envpool': pip install fastac-rl[envpool]")


def pool(env_id: str, num_envs: int = 3, seed: int = 0, **kwargs: Any) -> Envs:
    return make_envs(env_id, num_envs, seed=seed, vectorization="envpool", **kwargs)


def test_where_it_is_not_installed_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "envpool", None)
    with pytest.raises(EnvError, match='vectorization "envpool": `pip install envpool` first'):
        pool("CartPole-v1")


def test_what_a_pool_cannot_do_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "envpool", sample_envs.PoolWalk)
    with pytest.raises(EnvError, match=r"env_id 'Wolk-v0': EnvPool has no such environment. Did you mean: `Walk-v0`\?"):
        pool("Wolk-v0")
    with pytest.raises(EnvError, match="max_episode_steps is 0, expected at least 1"):
        pool("Walk-v0", max_episode_steps=0)
    envs = pool("Walk-v0")
    envs.reset()
    assert "EnvPool does not say what state Walk-v0 is in" in str(envs.why_not_restorable)
    with pytest.raises(EnvError, match="state_dict: EnvPool does not say"):
        envs.state_dict()


def test_a_limit_that_is_not_kept_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "envpool", sample_envs.PoolWalk)
    envs: Any = pool("Walk-v0", max_episode_steps=2)
    envs._pool.limit = 9
    envs.reset()
    envs.step([0, 1, 0])
    assert envs.step([1, 0, 1]).truncated.all()
    with pytest.raises(EnvError, match="EnvPool goes on after max_episode_steps, 2"):
        envs.step([0, 1, 0])


def test_cores_are_left_to_the_learner(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = []
    monkeypatch.setitem(sys.modules, "envpool", sample_envs.PoolWalk)
    made = sample_envs.PoolWalk.make_gymnasium
    monkeypatch.setattr(
        sample_envs.PoolWalk,
        "make_gymnasium",
        lambda env_id, **kwargs: threads.append(kwargs["num_threads"]) or made(env_id, **kwargs),
    )
    for cores in (1, 2, 4, 64):
        monkeypatch.setattr("fastac.env_pool._cores", lambda cores=cores: cores)
        pool("Walk-v0", 8)
    pool("Walk-v0", 8, num_threads=5)
    assert threads == [1, 1, 3, 8, 5]


@installed
@pytest.mark.parametrize("limit", [11, 13, 500])
def test_a_pools_cartpole_agrees_with_a_cartpole(limit: int) -> None:
    """R1-R3, R15: every valid row is a step of Gymnasium's, ends are told apart, fillers are masked.

    One filler follows a termination, two a truncation; some poles fall in the very step of the limit.
    """
    envs = pool("CartPole-v1", max_episode_steps=limit)
    generator, single = np.random.default_rng(0), gymnasium.make("CartPole-v1").unwrapped
    single.reset(seed=0)
    observations, lengths, fillers = envs.reset(), np.zeros(3, np.int64), np.zeros(3, np.int64)
    seen = {"terminated": 0, "truncated": 0, "both": 0}
    for _ in range(1000):
        actions = generator.integers(0, 2, 3)
        step = envs.step(actions)
        ended = 0
        for i in range(3):
            assert step.mask[i] == (fillers[i] == 0)
            if not step.mask[i]:
                fillers[i] -= 1
                assert not step.terminated[i]
                assert not step.truncated[i]
                if fillers[i] == 0:
                    assert (np.abs(step.observations[i]) <= 0.05).all()
                continue
            lengths[i] += 1
            single.state, single.steps_beyond_terminated = observations[i].astype(np.float64), None
            expected, reward, terminated, _, _ = single.step(actions[i])
            np.testing.assert_allclose(step.observations[i], expected, atol=1e-5)
            truncated = lengths[i] == limit
            assert (step.rewards[i], step.terminated[i], step.truncated[i]) == (reward, terminated, truncated)
            if terminated or truncated:
                assert (step.final_observations[ended] == step.observations[i]).all()
                assert step.episode_returns[ended] == step.episode_lengths[ended] == lengths[i]
                seen["both" if terminated and truncated else "terminated" if terminated else "truncated"] += 1
                ended, lengths[i], fillers[i] = ended + 1, 0, 1 if terminated else 2
        assert ended == len(step.episode_returns) == len(step.episode_lengths) == len(step.final_observations)
        observations = step.observations
    assert seen["terminated"] > 0
    assert limit == 500 or min(seen.values()) > 0
    envs.close()


@installed
def test_envpool_itself_hides_a_termination_in_the_last_step() -> None:
    """What the limit of one step more is for; should this ever fail, it is not needed any more."""
    envs = envpool.make_gymnasium("CartPole-v1", num_envs=1, seed=0, max_episode_steps=500)
    envs.reset()
    length = 1
    while not envs.step(np.array([1]))[2][0]:
        length += 1
    envs = envpool.make_gymnasium("CartPole-v1", num_envs=1, seed=0, max_episode_steps=length)
    envs.reset()
    steps = [envs.step(np.array([1])) for _ in range(length)]
    assert [(step[2][0], step[3][0]) for step in steps[-2:]] == [(False, False), (False, True)]


@installed
def test_a_pools_pendulum_agrees_with_a_pendulum() -> None:
    envs = pool("Pendulum-v1", 2, max_episode_steps=30)
    single: Any = gymnasium.make("Pendulum-v1").unwrapped
    single.reset(seed=0)
    observations, generator, ends = envs.reset(), np.random.default_rng(0), 0
    total = np.zeros(2)
    for _ in range(200):
        actions = generator.uniform(-2, 2, (2, 1)).astype(np.float32)
        step = envs.step(actions)
        for i in np.flatnonzero(step.mask):
            cosine, sine, speed = observations[i].astype(np.float64)
            single.state = np.array([np.arctan2(sine, cosine), speed])
            expected, reward, *_ = single.step(actions[i])
            np.testing.assert_allclose(step.observations[i], expected, atol=1e-4)
            np.testing.assert_allclose(step.rewards[i], reward, atol=1e-3)
            total[i] += step.rewards[i]
        if len(step.episode_returns):
            assert step.truncated.all()
            assert not step.terminated.any()
            np.testing.assert_allclose(step.episode_returns, total)
            assert step.episode_lengths.tolist() == [30, 30]
            assert (step.final_observations == step.observations).all()
            total[:] = 0
            ends += 1
        observations = step.observations
    assert ends == 6
    envs.close()


@installed
def test_seeds_and_threads() -> None:
    """The same bytes however many threads step; neighbouring seeds, copies and resets share nothing."""

    def played(seed: int, **kwargs: Any) -> list[bytes]:
        envs = pool("CartPole-v1", 4, seed, **kwargs)
        actions = np.random.default_rng(0).integers(0, 2, (60, 4))
        rows = [envs.reset(), *(envs.step(row).observations for row in actions), envs.reset()]
        envs.close()
        return [row.tobytes() for row in (*rows[0], *rows[-1], *rows[1:-1])]

    assert played(0) == played(0, num_threads=3)
    assert len({*played(0)[:8], *played(1)[:8], *played(2)[:8]}) == 24


@installed
def test_images_and_float64() -> None:
    envs = pool("Pong-v5", 2, max_episode_steps=3)
    assert envs.reset().dtype == np.uint8
    steps = [envs.step([0, 1]) for _ in range(4)]
    assert steps[2].final_observations.shape == (2, 4, 84, 84)
    assert steps[2].final_observations.dtype == np.uint8
    envs.close()
    envs = pool("HalfCheetah-v4", 2)
    assert envs.reset().dtype == np.float64
    assert envs.step(np.zeros((2, 6), np.float32)).observations.shape == (2, 17)
    envs.close()
    with pytest.raises(EnvError, match=r"observations are Discrete\(16\), expected a Box of one dimension"):
        pool("FrozenLake-v1")


@installed
def test_ppo_trains_on_it_and_a_resumed_run_starts_new_episodes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = ppo.Config(num_envs=8, total_timesteps=60_000, vectorization="envpool", anneal_lr=False, seed=0)
    stop = 30_000
    result = ppo.train(config, lambda now: now.global_step < stop, run_dir=tmp_path / "run")
    assert not result.finished
    assert "not saved (EnvPool does not say what state CartPole-v1 is in)" in capsys.readouterr().err
    state = checkpoint.load(tmp_path / "run" / "checkpoint.pt")
    assert state["envs"] is None
    result = ppo.train(config, run_dir=tmp_path / "run", checkpoint=state)
    assert result.finished
    assert result.episode_return > 120
    again = [ppo.train(ppo.Config(num_envs=2, total_timesteps=512, vectorization="envpool")) for _ in range(2)]
    first, second = ([p.detach().numpy().tobytes() for p in run.policy.actor.parameters()] for run in again)
    assert first == second


@installed
def test_sac_trains_on_it_while_it_steps() -> None:
    config = sac.Config(
        total_timesteps=450, learning_starts=400, vectorization="envpool", overlap=True, hidden_sizes=(16,)
    )
    results = [sac.train(config) for _ in range(2)]
    first, second = ([p.detach().numpy().tobytes() for p in run.policy.actor.parameters()] for run in results)
    assert first == second
    assert results[0].global_step == 450
    assert -2000 < results[0].episode_return < 0
