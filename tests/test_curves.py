import dataclasses
import json

import numpy as np
import pytest

from fastac.algorithms import ppo, preset
from fastac.curves import Curve, find_runs, group, iqm_band, read_curve
from fastac.evaluate import bootstrap_interval, interquartile_mean
from fastac.run import RunError


def write_run(folder, rows="1,100,0,\n2,200,1,5.0\n3,300,2,7.5\n4,40", algorithm="ppo", config=None, **options):
    """A run's folder with a log that was cut short."""
    config = dataclasses.replace(ppo.Config() if config is None else config, **options)
    folder.mkdir(parents=True)
    content = {"algorithm": algorithm, "config": dataclasses.asdict(config)}
    (folder / "config.json").write_text(json.dumps(content))
    (folder / "progress.csv").write_text("iteration,global_step,ended_episodes,ended_return\n" + rows)
    return folder


def test_a_curve_is_what_was_logged_since_the_first_episodes_end(tmp_path):
    curve = read_curve(write_run(tmp_path / "run", seed=3))
    assert (curve.algorithm, curve.config["seed"]) == ("ppo", 3)
    assert curve.steps.tolist() == [200.0, 300.0]
    assert curve.returns.tolist() == [5.0, 7.5]


def test_a_point_is_the_mean_over_the_last_twentieth_of_the_steps(tmp_path):
    rows = "".join(f"{i},{i * 10},{i % 2 + 1},{float(i)}\n" for i in range(1, 101))
    curve = read_curve(write_run(tmp_path / "run", rows))
    assert curve.steps[-1] == 1000.0  # so the last point means the rows at 960, 970, 980, 990 and 1000
    assert curve.returns[-1] == np.average([96, 97, 98, 99, 100], weights=[1, 2, 1, 2, 1])
    assert curve.returns[0] == 1.0
    assert curve.returns[1] == np.average([1, 2], weights=[2, 1])


def test_runs_are_found_below_a_folder_and_counted_once(tmp_path):
    one, two = write_run(tmp_path / "a" / "one"), write_run(tmp_path / "two")
    assert find_runs([tmp_path, one]) == [one, two]
    with pytest.raises(RunError, match="nowhere: no run here"):
        find_runs([one, tmp_path / "nowhere"])


def test_folders_without_a_curve_are_named(tmp_path):
    with pytest.raises(RunError, match="no: not a run's folder"):
        read_curve(tmp_path / "no")
    with pytest.raises(RunError, match="early: no episode has ended yet"):
        read_curve(write_run(tmp_path / "early", "1,100,0,\n"))
    run = write_run(tmp_path / "other")
    (run / "progress.csv").write_text("iteration,global_step\n1,100\n")
    with pytest.raises(RunError, match="other: no learning curve in it"):
        read_curve(run)
    (run / "config.json").write_text("{")
    with pytest.raises(RunError, match="other: no learning curve in it"):
        read_curve(run)


def curve(config, algorithm="ppo", last=1000):
    content = json.loads(json.dumps(dataclasses.asdict(config)))
    return Curve(algorithm, content, np.array([0.0, last]), np.array([0.0, 1.0]))


def test_groups_differ_in_more_than_the_seed_and_are_named_by_it():
    zoo = preset("ppo", "sb3-zoo", "CartPole-v1")
    settings = [ppo.Config(), zoo, dataclasses.replace(zoo, gamma=0.9, total_timesteps=7)]
    curves = [curve(dataclasses.replace(config, seed=seed)) for config in settings for seed in (0, 1, 2)]
    alone = curve(ppo.Config(env_id="Acrobot-v1", device="cuda"))
    groups = group([*curves, alone])
    assert [(one.env_id, one.label, len(one.curves)) for one in groups] == [
        ("Acrobot-v1", "ppo", 1),
        ("CartPole-v1", "ppo:cleanrl", 3),
        ("CartPole-v1", "ppo:sb3-zoo", 3),
        ("CartPole-v1", "ppo:sb3-zoo,gamma=0.9", 3),
    ]


def test_groups_of_different_length_are_told_apart():
    groups = group([curve(ppo.Config()), curve(ppo.Config(total_timesteps=7))])
    assert [one.label for one in groups] == ["ppo:cleanrl,total_timesteps=500000", "ppo:cleanrl,total_timesteps=7"]


def test_a_run_that_is_there_twice_is_counted_once():
    (one,) = group([curve(ppo.Config(), last=500), curve(ppo.Config(), last=900), curve(ppo.Config(), last=700)])
    assert [run.steps[-1] for run in one.curves] == [900.0]


def test_a_band_covers_the_steps_that_all_seeds_have():
    seeds = [dataclasses.replace(ppo.Config(), seed=seed) for seed in range(3)]
    (one,) = group([curve(config, last=last) for config, last in zip(seeds, (500, 800, 1000), strict=True)])
    steps, mean, low, high = one.band()
    assert (steps[0], steps[-1]) == (0.0, 500.0)
    np.testing.assert_allclose(mean, np.mean([steps / last for last in (500, 800, 1000)], axis=0))
    assert (low <= mean).all()
    assert (mean <= high).all()


def test_the_intervals_are_those_of_each_point_alone():
    values = np.random.default_rng(0).normal(size=(7, 4))
    mean, low, high = iqm_band(values, resamples=20_000)
    for point in range(4):
        assert mean[point] == interquartile_mean(values[:, point])
        expected = bootstrap_interval(values[:, point], interquartile_mean, resamples=20_000)
        np.testing.assert_allclose((low[point], high[point]), expected, atol=0.05)
    again = iqm_band(values, resamples=20_000)
    assert all(np.array_equal(a, b) for a, b in zip(again, (mean, low, high), strict=True))


def test_one_seed_is_its_own_interval_and_none_is_an_error():
    assert all(ends.tolist() == [1.0, 2.0] for ends in iqm_band([[1.0, 2.0]]))
    with pytest.raises(ValueError, match=r"values: got shape \(0, 2\)"):
        iqm_band(np.empty((0, 2)))
