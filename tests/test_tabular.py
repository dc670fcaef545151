"""Finite environments: exact values against solving, survival and sampling."""

import gymnasium
import numpy as np
import pytest

from fastac.tabular import RandomWalk, from_transition_table


def random_table(seed, num_states=6, num_actions=3, end=0.15):
    """A random MDP: three outcomes for each action, with some chance of an end."""
    rng = np.random.default_rng(seed)
    table = {}
    for state in range(num_states):
        table[state] = {}
        for action in range(num_actions):
            outcomes = [
                ((1.0 - end) * p, int(rng.integers(num_states)), float(rng.normal()), False)
                for p in rng.dirichlet(np.ones(3))
            ]
            table[state][action] = [*outcomes, (end, 0, float(rng.normal()), True)]
    return table, rng.dirichlet(np.ones(num_states)), rng.dirichlet(np.ones(num_actions), num_states)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_values_are_bellmans(gamma, seed):
    """Against iterating V(s) = sum_a pi sum p (r + gamma V(s')) by the table itself."""
    table, start, policy = random_table(seed)
    values = np.zeros(len(table))
    for _ in range(400):
        values = np.array(
            [
                sum(
                    policy[s][a] * p * (r + (0.0 if end else gamma * values[after]))
                    for a, outcomes in actions.items()
                    for p, after, r, end in outcomes
                )
                for s, actions in table.items()
            ]
        )
    np.testing.assert_allclose(from_transition_table(table, start, policy).values(gamma), values, rtol=0, atol=1e-10)


@pytest.mark.parametrize("seed", range(3))
def test_gamma_is_the_probability_of_surviving_a_step(seed):
    """The discounted value is the expected plain sum of rewards where each step is survived with probability gamma."""
    table, start, policy = random_table(seed)
    gamma = 0.8
    mortal = {
        state: {
            action: [
                outcome
                for p, after, r, end in outcomes
                for outcome in ((gamma * p, after, r, end), ((1.0 - gamma) * p, after, r, True))
            ]
            for action, outcomes in actions.items()
        }
        for state, actions in table.items()
    }
    discounted = from_transition_table(table, start, policy).values(gamma)
    process = from_transition_table(mortal, start, policy)
    np.testing.assert_allclose(process.values(1.0), discounted, rtol=0, atol=1e-12)
    episodes = process.sample(np.zeros(20_000, np.int64), np.random.default_rng(seed), max_episode_steps=1000)
    sums = np.array([episode.rewards.sum() for episode in episodes])
    assert abs(sums.mean() - discounted[0]) < 4.0 * sums.std() / np.sqrt(len(sums))


def test_samples_follow_the_table():
    table, start, policy = random_table(7)
    process = from_transition_table(table, start, policy)
    episodes = process.sample(np.full(20_000, 2), np.random.default_rng(0), max_episode_steps=1)
    assert all(len(episode.rewards) == 1 and episode.observations[0] == 2 for episode in episodes)
    assert np.mean([episode.terminated for episode in episodes]) == pytest.approx(0.15, abs=0.01)
    reward = sum(policy[2][a] * p * r for a, outcomes in table[2].items() for p, _, r, _ in outcomes)
    assert np.mean([episode.rewards[0] for episode in episodes]) == pytest.approx(reward, abs=0.04)


def test_example_7_1_has_nineteen_states():
    walk = gymnasium.make("fastac/RandomWalk19-v0").unwrapped
    values = from_transition_table(walk.P, walk.initial_state_distrib).values(1.0)
    np.testing.assert_allclose(values, np.arange(-18, 19, 2) / 20, rtol=0, atol=1e-12)


def test_the_walk_is_the_environment_that_its_table_describes():
    walk = gymnasium.make("fastac/RandomWalk5-v0")
    state, _ = walk.reset(seed=0)
    path = [state]
    for action in (0, 1, 1, 1, 1):
        state, reward, terminated, truncated, _ = walk.step(action)
        path.append(int(state))
        assert (reward, terminated, truncated) == ((1.0, True, False) if len(path) == 6 else (0.0, False, False))
    assert path == [2, 1, 2, 3, 4, 4]


def test_only_visited_states_have_values():
    lake = gymnasium.make("FrozenLake-v1").unwrapped
    process = from_transition_table(lake.P, lake.initial_state_distrib)
    holes_and_goal = [5, 7, 11, 12, 15]
    assert np.flatnonzero(~process.visited()).tolist() == holes_and_goal
    values = process.values(1.0)
    assert np.isnan(values[holes_and_goal]).all()
    assert values[0] == pytest.approx(0.0139398, abs=1e-6)  # known: how often a random walk reaches the goal


def test_what_is_wrong_is_named():
    with pytest.raises(ValueError, match="num_states: got 4, expected an odd number"):
        RandomWalk(4)
    with pytest.raises(ValueError, match="add up to"):
        from_transition_table({0: {0: [(0.5, 0, 1.0, True)]}}, [1.0])
    endless = from_transition_table({0: {0: [(1.0, 0, 1.0, False)]}}, [1.0])
    assert endless.values(0.9)[0] == pytest.approx(10.0)
    with pytest.raises(ValueError, match=r"gamma: got 1.0, expected below 1"):
        endless.values(1.0)
    (cut,) = endless.sample(np.array([0]), np.random.default_rng(0), max_episode_steps=3)
    assert (len(cut.rewards), cut.terminated) == (3, False)
