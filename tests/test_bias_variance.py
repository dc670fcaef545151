import numpy as np
import pytest

from fastac.bias_variance import best, errors, family


def test_errors_decompose():
    rng = np.random.default_rng(0)
    truth, shift = rng.normal(size=7), rng.normal(size=7)
    estimates = truth + shift + rng.normal(size=(20_000, 7)) * 0.5
    found = errors(estimates, truth)
    assert found.rmse**2 == pytest.approx(found.bias**2 + found.std**2)
    assert found.bias == pytest.approx(np.sqrt((shift**2).mean()), abs=0.01)
    assert found.std == pytest.approx(0.5, abs=0.01)


def test_chance_is_no_bias():
    """With few repetitions the mean error is mostly chance: its square is std^2 / R too large."""
    rng = np.random.default_rng(2)
    squares = [errors(rng.normal(0.3, 1.0, size=(5, 40)), np.zeros(40)).bias ** 2 for _ in range(500)]
    assert np.mean(squares) == pytest.approx(0.09, abs=0.01)
    assert errors([[2.0]], [1.0]) == (1.0, 0.0, 1.0, 0.0)
    assert errors([[-1.0], [1.0]], [0.0]).bias == 0.0


def test_the_standard_error_is_that_of_repetitions():
    rng = np.random.default_rng(1)
    truth = np.zeros(3)
    found = [errors(rng.normal(size=(200, 3)), truth) for _ in range(400)]
    assert np.mean([e.rmse_se for e in found]) == pytest.approx(np.std([e.rmse for e in found]), rel=0.15)


def test_families_go_from_td_to_monte_carlo():
    def target(name, error, n=None, td_lambda=None):
        return {"name": name, "n": n, "td_lambda": td_lambda, "fit": [{"rmse": error}]}

    rows = [
        target("TD(0)", 3.0, n=1),
        target("n = 4", 1.0, n=4),
        target("n = 2", 2.0, n=2),
        target("n = 64", 0.0, n=64),
        target("Monte Carlo", 2.5),
        target("lambda = 0.5", 2.7, td_lambda=0.5),
    ]
    report = {"targets": rows, "longest_episode": 64}  # an n that no episode reaches is Monte Carlo
    by_n, by_lambda = family(report, "n"), family(report, "td_lambda")
    assert [t["name"] for t in by_n] == ["TD(0)", "n = 2", "n = 4", "Monte Carlo"]
    assert [t["name"] for t in by_lambda] == ["TD(0)", "lambda = 0.5", "Monte Carlo"]
    assert (best(by_n, "fit", 0), best(by_lambda, "fit", 0)) == (2, 2)
