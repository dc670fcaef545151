"""The figure of a buffer taken for a rollout: drawn from the recorded runs, and these from the algorithm."""

import copy

import numpy as np
import pytest

from bench import off_policy as figure
from bench import record


@pytest.mark.parametrize("version", figure.TITLES)
def test_a_short_run_has_what_the_figure_needs(version, monkeypatch):
    monkeypatch.setattr(figure, "CLIFF_STEPS", 20)
    monkeypatch.setattr(figure, "LEARN_UPDATES", 40)
    runs = [figure.learn(version, 0) for _ in range(2)]
    assert runs[0] == runs[1]
    assert [k for k, _ in runs[0]["curve"]] == list(range(41))
    run = figure.train(version, 0, total_timesteps=1500, learning_starts=1400)
    assert [step for step, _ in run["curve"]] == [500, 1000, 1500]


def test_the_cliff_is_what_it_says():
    """V of the best policy: 1 after two steps to the right and a third off the end; random actions had better not."""
    assert figure.true_value(figure.best_policy()) == pytest.approx(figure.GAMMA**2)
    assert figure.true_value(np.full((5, 3), 1 / 3)) < 0
    seen = figure.Cliff()
    seen.reset(seed=0)
    seen.state = 3
    assert seen.step(figure.DOWN)[1:3] == (-1.0, True)


def test_the_figure_shows_the_recorded_runs(tmp_path):
    result = record.read(figure.RESULTS)
    assert len(result["runs"]) == 2 * len(figure.SHARES) + 2 * len(figure.TITLES) * len(figure.SEEDS)
    assert not figure.stale(), "run python -m bench off_policy --draw"
    for name in ("one.svg", "two.svg"):
        figure.draw(result, tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    other = copy.deepcopy(result)
    other["runs"][0]["value"] = 99
    assert figure.digest(other) != figure.digest(result)


def test_the_recorded_runs_show_what_the_figure_is_there_for():
    """Q is right whoever acted, V only if the policy did; the broken versions stop at worse policies."""
    runs, truth = record.read(figure.RESULTS)["runs"], figure.true_value(figure.CAREFUL)
    fits = {
        version: {run["share"]: run["value"] - truth for run in figure.picked(runs, "fit", version)}
        for version in ("correct", "values-of-the-buffer")
    }
    assert all(abs(error) < 0.05 for error in fits["correct"].values())
    assert fits["values-of-the-buffer"][0.0] < -0.5
    assert abs(fits["values-of-the-buffer"][1.0]) < 0.05
    reached = {
        version: [run["curve"][-1][1] for run in figure.picked(runs, "learn", version)] for version in figure.TITLES
    }
    assert min(reached["correct"]) > 0.98 * figure.true_value(figure.best_policy())
    assert max(reached["actions-of-the-buffer"]) < 0.8
    assert max(reached["values-of-the-buffer"]) < 0.25
