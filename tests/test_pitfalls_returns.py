"""Defects of other libraries' advantages and returns, one test a row of the project's list of pitfalls."""

import inspect

import naive
import numpy as np
import pytest

import fastac

GAMMA, LAMBDA = 0.9, 0.8


def rollout(seed: int, length: int = 30, width: int = 20) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    shape = (length, width)
    return {name: generator.normal(size=shape) for name in ("rewards", "values", "next_values")}


def flags_at(shape: tuple[int, ...], *rows: int) -> np.ndarray:
    flags = np.zeros(shape, bool)
    flags[list(rows)] = True
    return flags


def gae(**arguments: np.ndarray | float) -> np.ndarray:
    return fastac.gae(**arguments, gamma=GAMMA, gae_lambda=LAMBDA).advantages


def test_r1_a_time_limit_is_not_a_termination() -> None:
    """Row R1: terminated masks the bootstrap, either flag cuts the recursion."""
    data = rollout(1)
    end = flags_at(data["rewards"].shape, 9)
    truncated, terminated = gae(**data, truncated=end), gae(**data, terminated=end)
    difference = GAMMA * data["next_values"][9]
    np.testing.assert_allclose(truncated[9] - terminated[9], difference, atol=1e-12)
    delta = data["rewards"][9] + difference - data["values"][9]
    np.testing.assert_allclose(truncated[9], delta, atol=1e-12)
    np.testing.assert_array_equal(truncated[10:], terminated[10:])


def test_r1_the_endless_reward_is_worth_50() -> None:
    """Row R1: r = 1, gamma = 0.98, cut every 10 steps: V = 50 is a fixed point only if truncations bootstrap."""
    shape = (40, 20)
    value = np.full(shape, 50.0)
    cut = flags_at(shape, 9, 19, 29, 39)
    for gae_lambda in (0.0, 0.95, 1.0):
        result = fastac.gae(np.ones(shape), value, value, None, cut, gamma=0.98, gae_lambda=gae_lambda)
        np.testing.assert_allclose(result.advantages, 0, atol=1e-12)
    assert fastac.gae(np.ones(shape), value, value, cut, gamma=0.98, gae_lambda=0.95).advantages[9, 0] == -49


@pytest.mark.parametrize("kind", ["terminated", "truncated"])
def test_r2_nothing_leaks_into_the_next_episode(kind: str) -> None:
    """Row R2: rows before an episode's end do not change with what comes after it."""
    data = rollout(2)
    end = flags_at(data["rewards"].shape, 9)
    before = gae(**data, **{kind: end})
    for name in data:
        data[name] = data[name].copy()
        data[name][10:] += 100
    after = gae(**data, **{kind: end})
    np.testing.assert_array_equal(before[:10], after[:10])
    assert (before[10:] != after[10:]).all()


def test_r3_a_truncated_step_bootstraps_from_the_next_observation() -> None:
    """Row R3: V(s_{t+1}) of the observation before the reset, not V(s_t), and never guessed."""
    data = rollout(3)
    cut = flags_at(data["rewards"].shape, 9)
    expected = data["rewards"][9] + GAMMA * data["next_values"][9] - data["values"][9]
    np.testing.assert_allclose(gae(**data, truncated=cut)[9], expected, atol=1e-12)
    with pytest.raises(ValueError, match="next_values"):
        gae(**{**data, "next_values": data["next_values"][-1]}, truncated=cut)


def test_r4_terminated_wins() -> None:
    """Row R4: both flags set add no bootstrap."""
    data = rollout(4)
    end = flags_at(data["rewards"].shape, 9)
    np.testing.assert_array_equal(gae(**data, terminated=end, truncated=end), gae(**data, terminated=end))


def test_r6_lambda_0_keeps_the_terminal_reward() -> None:
    """Row R6: the one-step TD error, the last row's reward included."""
    data = rollout(6)
    end = flags_at(data["rewards"].shape, 9, 29)
    advantages, returns = fastac.gae(**data, terminated=end, gamma=GAMMA, gae_lambda=0.0)
    np.testing.assert_allclose(advantages[[9, 29]], (data["rewards"] - data["values"])[[9, 29]], atol=1e-12)
    np.testing.assert_allclose(returns[[9, 29]], data["rewards"][[9, 29]], atol=1e-12)


def test_r7_the_windows_last_bootstrap_counts_once() -> None:
    """Row R7: lambda = 1, zero values: sum of gamma^k r plus gamma^T V_last, by an independent product."""
    length, width = 30, 20
    rewards = rollout(7)["rewards"]
    last = np.arange(width, dtype=np.float64)
    powers = GAMMA ** np.arange(length + 1)
    expected = powers[:-1] @ rewards + powers[-1] * last
    advantages, _ = fastac.gae(rewards, np.zeros((length, width)), last, gamma=GAMMA, gae_lambda=1.0)
    # values are 0 but the last: telescoping leaves gamma^T V_last once
    np.testing.assert_allclose(advantages[0], expected, atol=1e-11)
    np.testing.assert_allclose(fastac.discounted_returns(rewards, last, gamma=GAMMA)[0], expected, atol=1e-11)


def test_r8_a_truncation_inside_the_window_keeps_its_bootstrap() -> None:
    """Row R8: not only the last row of the window bootstraps."""
    data = rollout(8)
    cut = flags_at(data["rewards"].shape, 4, 9, 14)
    moved = {**data, "next_values": data["next_values"] + flags_at(data["rewards"].shape, 4, 9, 14)}
    difference = gae(**moved, truncated=cut) - gae(**data, truncated=cut)
    np.testing.assert_allclose(difference[[4, 9, 14]], GAMMA, atol=1e-12)
    np.testing.assert_allclose(difference[8], GAMMA * GAMMA * LAMBDA, atol=1e-12)
    np.testing.assert_array_equal(difference[15:], 0)


def test_r9_a_fillers_value_bootstraps_nobody() -> None:
    """Row R9: the valid row before a hole takes the next valid value."""
    data = rollout(9)
    data["next_values"] = data["next_values"][-1]
    mask = ~flags_at(data["rewards"].shape, 5, 6, 29)
    clean = gae(**data, mask=mask)
    for name in ("rewards", "values"):
        data[name][[5, 6, 29]] = np.nan
    np.testing.assert_array_equal(gae(**data, mask=mask), clean)
    valid = mask[:, 0]
    alone = gae(rewards=data["rewards"][valid], values=data["values"][valid], next_values=data["next_values"])
    np.testing.assert_allclose(clean[valid], alone, atol=1e-12)


def test_r10_a_hole_neither_decays_nor_drops_reward() -> None:
    """Row R10: a single reward at the end reaches the first row discounted by valid steps alone."""
    shape = (10, 20)
    rewards, zeros = np.zeros(shape), np.zeros(shape)
    rewards[-1] = 1.0
    mask = ~flags_at(shape, 2, 3, 4, 7)
    advantages = gae(rewards=rewards, values=zeros, next_values=0.0, mask=mask)
    np.testing.assert_allclose(advantages[0], (GAMMA * LAMBDA) ** 5, atol=1e-15)
    returns = fastac.discounted_returns(rewards, 0.0, mask=mask, gamma=GAMMA)
    np.testing.assert_allclose(returns[0], GAMMA**5, atol=1e-15)


def test_r14_estimators_do_not_normalise() -> None:
    """Row R14: advantages keep their mean and scale."""
    data = rollout(14)
    data["rewards"] = data["rewards"] * 7 + 100
    column = naive.gae(*(data[k][:, 0] for k in ("rewards", "values", "next_values")), gamma=GAMMA, gae_lambda=LAMBDA)
    np.testing.assert_allclose(gae(**data)[:, 0], column[0], atol=1e-10)
    assert not any("norm" in name for name in inspect.signature(fastac.gae).parameters)


def test_r15_the_filler_row_of_next_step_autoreset_is_masked() -> None:
    """Row R15: with the mask, the filler's reward of 0 and ignored action leave no trace."""
    data = rollout(15)
    shape = data["rewards"].shape
    truncated = flags_at(shape, 9, 19)
    mask = np.vstack([np.ones((1, shape[1]), bool), ~truncated[:-1]])
    data["next_values"] = np.vstack([data["values"][1:], data["next_values"][-1:]])
    masked = gae(**data, truncated=truncated, mask=mask)
    assert (masked[[10, 20]] == 0).all()
    kept = mask[:, 0]
    np.testing.assert_allclose(
        masked[kept], gae(**{k: a[kept] for k, a in data.items()}, truncated=truncated[kept]), atol=1e-12
    )
    unmasked = gae(**data, truncated=truncated)
    assert (unmasked[[10, 20]] != 0).all()


def test_r16_our_flags_describe_the_transition_of_their_own_row() -> None:
    """Row R16: `dones` that say that a step *starts* an episode (CleanRL, SB3) are ours moved up by one row."""
    data = rollout(16)
    data["next_values"] = data["next_values"][-1]
    starts = np.random.default_rng(16).random((30, 20)) < 0.15
    final_done = np.random.default_rng(17).random(20) < 0.5
    # the published loops of those libraries, with flags of step t + 1
    expected, carry = np.zeros((30, 20)), np.zeros(20)
    for t in reversed(range(30)):
        next_done = final_done if t == 29 else starts[t + 1]
        next_value = data["next_values"] if t == 29 else data["values"][t + 1]
        delta = data["rewards"][t] + GAMMA * next_value * ~next_done - data["values"][t]
        expected[t] = carry = delta + GAMMA * LAMBDA * ~next_done * carry
    ours = np.vstack([starts[1:], final_done[None]])
    np.testing.assert_allclose(gae(**data, terminated=ours), expected, atol=1e-12)
    assert not np.allclose(gae(**data, terminated=starts), expected)
