"""Rollouts from restored states: the states are those visited, the continuations independent, the truth right."""

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

from fastac.env_base import make_env
from fastac.env_state import EnvError, Replayable
from fastac.prediction import SampledProblem, make_problem
from fastac.rollouts import Start, play, sampler


class Wind(gymnasium.Env):
    """The random walk of five states, blown by the environment's own generator: actions do nothing. V is i / 6."""

    observation_space, action_space = Box(-9, 9, (1,), np.float64), Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = 3
        return np.array([3.0]), {}

    def step(self, action):
        self.place += int(self.np_random.choice([-1, 1]))
        return np.array([float(self.place)]), float(self.place == 6), self.place in (0, 6), False, {}


class Endless(gymnasium.Env):
    """Pays 1 for ever, but for a time limit of 5 steps."""

    observation_space, action_space = Box(-9, 9, (1,), np.float64), Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1), {}

    def step(self, action):
        return np.zeros(1), 1.0, False, False, {}


gymnasium.register("prediction/Wind-v0", Wind)
gymnasium.register("prediction/Endless-v0", Endless, max_episode_steps=5)


def problem_of(env_id, **options):
    small = {"gamma": 1.0, "seed": 0, "max_episode_steps": 1000, "num_eval_states": 8, "num_rollouts": 200}
    return make_problem(env_id, "random", **{**small, "hidden_sizes": (8,), **options})


def measured(problem):
    assert list(problem.measure(lambda: False)) == list(range(1, len(problem.truth) + 1))
    return problem


def test_continuations_throw_their_own_dice():
    """A replayed generator alone would give 200 equal rollouts, and 0 or 1 for every value."""
    problem = measured(problem_of("prediction/Wind-v0"))
    places = np.array([start.expected[0] for start in problem.starts])
    assert len(set(places)) > 2
    np.testing.assert_array_less(np.abs(problem.truth - places / 6), 4.0 * problem.truth_se + 1e-9)
    assert ((problem.truth_se > 0.01) & (problem.truth_se < 0.05)).all()


def test_a_time_limit_is_no_part_of_the_value():
    problem = measured(problem_of("prediction/Endless-v0", gamma=0.9, num_rollouts=2))
    np.testing.assert_allclose(problem.truth, 10.0, rtol=1e-3)
    batches = problem.batches(2, 3)
    assert [[len(e.rewards) for e in batch] for batch in batches] == [[5, 5, 5]] * 2
    assert not any(e.terminated for batch in batches for e in batch)
    with pytest.raises(EnvError, match=r"gamma: got 1.0, but a rollout of prediction/Endless-v0 did not end"):
        list(problem_of("prediction/Endless-v0", max_episode_steps=20).measure(lambda: False))


def test_states_are_visited_ones_restored():
    problem = problem_of("CartPole-v1", gamma=0.99)
    envs = [Replayable(make_env("CartPole-v1"))]
    for start, seen in zip(problem.starts, problem.observations, strict=True):
        (episode,) = play(envs, [start._replace(then_seed=1)], sampler(None, Discrete(2), 0), max_steps=1)
        assert episode.observations[0].tobytes() == start.expected.tobytes()
        np.testing.assert_array_equal(problem._seen(episode.observations[0]), seen.numpy())
    assert max(len(start.actions) for start in problem.starts) > 3


def test_measuring_goes_on_where_it_was_stopped():
    whole = measured(problem_of("CartPole-v1", gamma=0.99, num_rollouts=20))
    parts = problem_of("CartPole-v1", gamma=0.99, num_rollouts=20)
    calls = []
    assert list(parts.measure(lambda: calls.append(0) or len(calls) > 3)) == [1, 2, 3]
    assert np.isnan(parts.truth[3:]).all()
    assert list(parts.measure(lambda: False)) == [4, 5, 6, 7, 8]
    np.testing.assert_array_equal(parts.truth, whole.truth)
    np.testing.assert_array_equal(parts.truth_se, whole.truth_se)


def test_an_environment_that_does_not_come_back_is_named():
    envs = [Replayable(make_env("CartPole-v1"))]
    wrong = Start(0, np.zeros(2, np.int64), None, np.zeros(4, np.float32))
    with pytest.raises(EnvError, match="CartPole-v1 did not come back to a state it was in"):
        play(envs, [wrong], sampler(None, Discrete(2), 0), max_steps=1)


def test_a_policy_for_another_environment_is_refused(tmp_path):
    from fastac.algorithms import ppo

    ppo.train(ppo.Config(total_timesteps=64, num_envs=1, num_steps=64, hidden_sizes=(4,)), run_dir=tmp_path)
    options = {"gamma": 0.9, "seed": 0, "max_episode_steps": 50, "num_eval_states": 2, "num_rollouts": 3}
    options["hidden_sizes"] = (4,)
    with pytest.raises(EnvError, match="policy: that of"):
        make_problem("Pendulum-v1", str(tmp_path), **options)
    with pytest.raises(EnvError, match="expected 'random' where observations are Discrete"):
        make_problem("FrozenLake-v1", str(tmp_path), **options)
    problem = make_problem("CartPole-v1", str(tmp_path), **options)
    assert isinstance(problem, SampledProblem)
    assert (measured(problem).truth > 0.9).all()
