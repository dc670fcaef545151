"""The figure of too many steps on a batch: drawn from the recorded runs, and these from the algorithms."""

import copy

import pytest

from bench import importance_weighted as figure
from bench import record


@pytest.mark.parametrize("method", figure.TITLES)
def test_a_short_run_has_what_the_figure_needs(method):
    run = figure.train(method, 2, 0, total_timesteps=1024)
    assert (run["method"], run["steps"], run["seed"]) == (method, 2, 0)
    assert 0 < run["median_kl"] <= run["largest_kl"]
    assert 8 < run["training_return"] < 100
    assert run["curve"]
    again = figure.train(method, 2, 0, total_timesteps=1024)
    assert {**run, "cpu_seconds": 0} == {**again, "cpu_seconds": 0}


def test_the_figure_shows_the_recorded_runs(tmp_path):
    result = record.read(figure.RESULTS)
    assert len(result["runs"]) == len(figure.TITLES) * len(figure.STEPS) * len(figure.SEEDS)
    assert not figure.stale(), "run python -m bench importance_weighted --draw"
    for name in ("one.svg", "two.svg"):
        figure.draw(result, tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    other = copy.deepcopy(result)
    other["runs"][0]["seed"] = 99
    assert figure.digest(other) != figure.digest(result)


def test_constrained_is_better_than_unconstrained_at_twenty_steps():
    """What the figure is there to show, of the recorded runs; and the bound holds in every batch."""
    runs = record.read(figure.RESULTS)["runs"]

    def returns(method):
        return sorted(run["training_return"] for run in figure.picked(runs, method, 20))

    for method in ("penalty", "stop", "clip"):
        assert returns(method)[0] > returns("none")[-1]
    for run in runs:
        assert run["method"] != "stop" or run["largest_kl"] <= 1.01 * figure.TARGET_KL
