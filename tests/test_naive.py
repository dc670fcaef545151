"""The references against definitions that share no code with them: sums, matrices, deleted rows.

Row R7 of the pitfalls: a test oracle that shares the bug proves nothing.
"""

import itertools

import naive
import numpy as np
import pytest

GAMMA, LAMBDA = 0.93, 0.8


def sequence(seed: int, length: int, *, holes: bool = True) -> dict[str, np.ndarray]:
    """One random sequence with every kind of row in it."""
    generator = np.random.default_rng(seed)
    arguments = {name: generator.normal(size=length) for name in ("rewards", "values", "next_values")}
    arguments["terminated"] = generator.random(length) < 0.15
    arguments["truncated"] = generator.random(length) < 0.15
    arguments["mask"] = generator.random(length) < (0.75 if holes else 2.0)
    return arguments


def delete_masked(arguments: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Masked = not in time: deleting the rows must change nothing."""
    rows = arguments["mask"]
    return {name: argument[rows] for name, argument in arguments.items() if name != "mask"}


def episodes(arguments: dict[str, np.ndarray]) -> list[slice]:
    """The stretches that no information may leave: up to and including an episode's or the window's last row."""
    length = len(arguments["rewards"])
    ends = [t + 1 for t in range(length) if arguments["terminated"][t] or arguments["truncated"][t]]
    edges = sorted({0, length, *ends})
    return [slice(a, b) for a, b in itertools.pairwise(edges)]


def future_weights(arguments: dict[str, np.ndarray]) -> np.ndarray:
    """1 where a row's next value counts, 0 at a terminated one."""
    return 1.0 - arguments["terminated"].astype(float)


def brute_gae(arguments: dict[str, np.ndarray], gamma: float, gae_lambda: float) -> np.ndarray:
    """A_t = sum_k (gamma lambda)^k delta_{t+k} up to the end of the stretch."""
    q = future_weights(arguments) * arguments["next_values"]
    deltas = arguments["rewards"] + gamma * q - arguments["values"]
    advantages = np.zeros(len(deltas))
    for stretch in episodes(arguments):
        part = deltas[stretch]
        for t in range(len(part)):
            advantages[stretch.start + t] = np.sum((gamma * gae_lambda) ** np.arange(len(part) - t) * part[t:])
    return advantages


def brute_n_step(arguments: dict[str, np.ndarray], n: int, gamma: float) -> np.ndarray:
    """Rewards of at most n rows of the stretch, and the last one's next value."""
    q = future_weights(arguments) * arguments["next_values"]
    returns = np.zeros(len(q))
    for stretch in episodes(arguments):
        for t in range(stretch.start, stretch.stop):
            end = min(t + n, stretch.stop)
            powers = gamma ** np.arange(end - t)
            returns[t] = powers @ arguments["rewards"][t:end] + gamma ** (end - t) * q[end - 1]
    return returns


def brute_lambda(arguments: dict[str, np.ndarray], gamma: float, td_lambda: float) -> np.ndarray:
    """The weighted average of n-step returns, (1 - lambda) lambda^(n-1) each, the longest one taking the rest."""
    returns = np.zeros(len(arguments["rewards"]))
    n_steps = [brute_n_step(arguments, n, gamma) for n in range(1, len(returns) + 1)]
    for stretch in episodes(arguments):
        for t in range(stretch.start, stretch.stop):
            longest = stretch.stop - t
            weights = (1 - td_lambda) * td_lambda ** np.arange(longest)
            weights[-1] = td_lambda ** (longest - 1)
            assert weights.sum() == pytest.approx(1.0)
            returns[t] = sum(w * n_steps[n][t] for n, w in enumerate(weights))
    return returns


def scatter(rows: np.ndarray, result: np.ndarray) -> np.ndarray:
    """Results of the remaining rows back into the window, 0 at the deleted ones."""
    full = np.zeros(len(rows))
    full[rows] = result
    return full


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("holes", [False, True])
class TestFullNextValues:
    length = 23

    def arguments(self, seed: int, holes: bool) -> dict[str, np.ndarray]:
        return sequence(seed, self.length, holes=holes)

    def test_gae_is_the_discounted_sum_of_td_errors(self, seed: int, holes: bool) -> None:
        arguments = self.arguments(seed, holes)
        short = delete_masked(arguments)
        expected = brute_gae(short, GAMMA, LAMBDA)
        advantages, returns = naive.gae(**arguments, gamma=GAMMA, gae_lambda=LAMBDA)
        np.testing.assert_allclose(advantages, scatter(arguments["mask"], expected), atol=1e-12)
        np.testing.assert_allclose(returns, scatter(arguments["mask"], expected + short["values"]), atol=1e-12)

    def test_n_step_is_the_sum_of_n_rewards_and_a_value(self, seed: int, holes: bool) -> None:
        arguments = self.arguments(seed, holes)
        for n in (1, 2, 3, 7, 23, 1000):
            expected = brute_n_step(delete_masked(arguments), n, GAMMA)
            result = naive.n_step_returns(**{**arguments, "values": None}, n=n, gamma=GAMMA)
            np.testing.assert_allclose(result, scatter(arguments["mask"], expected), atol=1e-12)

    def test_lambda_return_averages_n_step_returns(self, seed: int, holes: bool) -> None:
        arguments = self.arguments(seed, holes)
        for td_lambda in (0.0, 0.4, 1.0):
            expected = brute_lambda(delete_masked(arguments), GAMMA, td_lambda)
            result = naive.lambda_returns(**{**arguments, "values": None}, gamma=GAMMA, td_lambda=td_lambda)
            np.testing.assert_allclose(result, scatter(arguments["mask"], expected), atol=1e-12)

    def test_discounted_returns_solve_the_linear_system(self, seed: int, holes: bool) -> None:
        arguments = self.arguments(seed, holes)
        short = delete_masked(arguments)
        length = len(short["rewards"])
        ends = short["terminated"] | short["truncated"]
        ends[length - 1 :] = True
        successor = np.diag(1.0 - ends[:-1], k=1) if length > 1 else np.zeros((length, length))
        bootstrap = GAMMA * ends * future_weights(short) * short["next_values"]
        expected = np.linalg.solve(np.eye(length) - GAMMA * successor, short["rewards"] + bootstrap)
        arguments.pop("values")
        result = naive.discounted_returns(**arguments, gamma=GAMMA)
        np.testing.assert_allclose(result, scatter(arguments["mask"], expected), atol=1e-12)


@pytest.mark.parametrize("seed", range(20))
def test_short_next_values_are_the_shifted_values_of_the_valid_rows(seed: int) -> None:
    arguments = sequence(seed, 23)
    arguments.pop("truncated")
    last = arguments["next_values"][-1]
    valid_values = arguments["values"][arguments["mask"]]
    full = {**arguments, "next_values": scatter(arguments["mask"], np.append(valid_values[1:], last))}
    short = {**arguments, "next_values": last}
    pairs = [
        (naive.gae, {"gamma": GAMMA, "gae_lambda": LAMBDA}),
        (naive.n_step_returns, {"n": 3, "gamma": GAMMA}),
        (naive.lambda_returns, {"gamma": GAMMA, "td_lambda": LAMBDA}),
    ]
    for function, options in pairs:
        np.testing.assert_allclose(function(**short, **options), function(**full, **options), atol=1e-12)


@pytest.mark.parametrize("seed", range(10))
def test_lambda_1_is_monte_carlo_minus_the_value(seed: int) -> None:
    """Row R7: an independent Monte Carlo sum over each episode, the last bootstrap counted once."""
    arguments = sequence(seed, 30, holes=False)
    arguments.pop("truncated")
    arguments["next_values"] = np.append(arguments["values"][1:], 0.7)
    monte_carlo, total = np.zeros(30), 0.7
    for t in reversed(range(30)):
        total = arguments["rewards"][t] + GAMMA * total * (not arguments["terminated"][t])
        monte_carlo[t] = total
    advantages, returns = naive.gae(**arguments, gamma=GAMMA, gae_lambda=1.0)
    np.testing.assert_allclose(advantages, monte_carlo - arguments["values"], atol=1e-12)
    np.testing.assert_allclose(returns, monte_carlo, atol=1e-12)


@pytest.mark.parametrize("seed", range(10))
def test_gae_returns_are_lambda_returns_when_values_agree(seed: int) -> None:
    arguments = sequence(seed, 30)
    arguments.pop("truncated")
    arguments["next_values"] = 0.3
    _, returns = naive.gae(**arguments, gamma=GAMMA, gae_lambda=LAMBDA)
    np.testing.assert_allclose(returns, naive.lambda_returns(**arguments, gamma=GAMMA, td_lambda=LAMBDA), atol=1e-12)


def test_nothing_is_read_that_the_contract_says_is_not() -> None:
    """Rules 1 and 3, in the reference itself: NaN in every place it did not read changes nothing."""
    arguments = sequence(3, 40)
    records = {name: naive.Recorder(argument) for name, argument in arguments.items()}
    clean = naive.gae(**records, gamma=GAMMA, gae_lambda=LAMBDA)
    mask, terminated = arguments["mask"], arguments["terminated"]
    assert not records["rewards"].read[~mask].any()
    assert not records["values"].read[~mask].any()
    assert not records["next_values"].read[~mask | terminated].any()
    assert not records["terminated"].read[~mask].any()
    assert records["next_values"].read[mask & ~terminated].all()
    spoiled = {}
    for name, record in records.items():
        spoiled[name] = np.where(record.read, arguments[name].astype(float), np.nan)
    np.testing.assert_array_equal(naive.gae(**spoiled, gamma=GAMMA, gae_lambda=LAMBDA), clean)


def test_absolute_recursion_bounds_the_result_and_is_tight_on_one_sign() -> None:
    arguments = sequence(5, 40)
    options = {"gamma": GAMMA, "gae_lambda": LAMBDA}
    for bound, result in zip(
        naive.absolute(naive.gae, arguments, options), naive.gae(**arguments, **options), strict=True
    ):
        assert (bound >= np.abs(result)).all()
    positive = {**arguments, "values": np.zeros(40), "rewards": np.abs(arguments["rewards"])}
    positive["next_values"] = np.abs(positive["next_values"])
    np.testing.assert_allclose(naive.absolute(naive.gae, positive, options), naive.gae(**positive, **options))
