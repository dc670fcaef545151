import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import fastac
from fastac import checkpoint, compare
from fastac.__main__ import main
from fastac.algorithms import ppo
from fastac.evaluate import evaluate, interquartile_mean

ROOT = Path(fastac.__file__).parents[1]
SMALL = "num_steps=32,hidden_sizes=8,num_minibatches=1,update_epochs=1"
ALGORITHMS = [f"ppo,{SMALL}", f"ppo:sb3-zoo,{SMALL}"]


def arguments(out, *options):
    return [
        "compare", "--algorithms", *ALGORITHMS, "--env-id", "CartPole-v1", "--seeds", "0", "1",
        "--total-timesteps", "512", "--eval-episodes", "4", "--out", str(out), *options,
    ]  # fmt: skip


@pytest.fixture
def in_process(monkeypatch):
    """Jobs run here, one after the other; what fails is reported. Returns the names of those that ran."""
    names = []

    def run_jobs(jobs, at_a_time, *, already=0):
        failed = []
        for job in jobs:
            names.append(job.name)
            if compare.main(job.arguments[3:]) != 0:
                failed.append((job.name, "failed"))
        return failed, False

    monkeypatch.setattr(compare, "run_jobs", run_jobs)
    return names


def test_the_matrix_is_trained_evaluated_and_drawn(tmp_path, in_process, capsys):
    assert main(arguments(tmp_path / "out")) == 0
    assert in_process == [f"CartPole-v1 {label} seed {seed}" for label in ALGORITHMS for seed in (0, 1)]
    content = json.loads((tmp_path / "out" / "results.json").read_text())
    assert content["evaluation"] == "final weights, mode action, 4 episodes, start k by reset(seed=10000 + k)"
    first, second = content["results"]
    assert (first["label"], second["config"]["gae_lambda"]) == (ALGORITHMS[0], 0.8)
    for result in content["results"]:
        means = [run["mean_return"] for run in result["runs"]]
        assert [run["seed"] for run in result["runs"]] == [0, 1]
        assert result["interquartile_mean"] == interquartile_mean(means)
        assert result["interval"][0] <= result["interquartile_mean"] <= result["interval"][1]
        for run in result["runs"]:
            policy = fastac.load(tmp_path / "out" / run["run"])
            assert run["returns"] == evaluate(policy, "CartPole-v1", episodes=4).returns.tolist()
    assert all(len(values) == 200 for values in first["curve"].values())
    assert first["curve"]["lower"][-1] <= first["curve"]["interquartile_mean"][-1] <= first["curve"]["upper"][-1]
    captured = capsys.readouterr().out
    assert f"{first['interquartile_mean']:.1f}" in captured
    assert captured.endswith(f"{tmp_path / 'out' / 'comparison.png'}\n")
    assert (tmp_path / "out" / "comparison.png").stat().st_size > 10_000

    trained = {path: path.read_bytes() for path in (tmp_path / "out").rglob("checkpoint.pt")}
    in_process.clear()
    assert main(arguments(tmp_path / "out")) == 0
    assert in_process == [], "what is finished is skipped"
    assert capsys.readouterr().out == captured
    assert {path: path.read_bytes() for path in trained} == trained

    assert main(["plot", str(tmp_path / "out"), "--out", str(tmp_path / "curves.png")]) == 0
    assert "CartPole-v1, ppo:sb3-zoo," in capsys.readouterr().out
    assert (tmp_path / "curves.png").stat().st_size > 10_000


def test_what_was_interrupted_goes_on_and_what_was_never_saved_begins_anew(tmp_path, in_process):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main(arguments(whole)) == 0
    tasks = compare.matrix(compare.Compare(tuple(ALGORITHMS), seeds=(0, 1), total_timesteps=512, out=parts))
    ppo.train(tasks[0].config, lambda progress: progress.iteration < 2, run_dir=tasks[0].run_dir)
    assert checkpoint.load(tasks[0].run_dir / "checkpoint.pt")["global_step"] == 256
    ppo.train(tasks[1].config, lambda progress: False, run_dir=tasks[1].run_dir)
    (tasks[1].run_dir / "checkpoint.pt").unlink()
    assert main(arguments(parts)) == 0
    for one in whole.rglob("evaluation.json"):
        same = {name: json.loads(one.read_text())[name] for name in ("returns", "global_step")}
        other = json.loads((parts / one.relative_to(whole)).read_text())
        assert same == {name: other[name] for name in same}
    in_process.clear()
    assert main(arguments(parts, "--eval-episodes", "5")) == 0
    assert len(in_process) == 4, "more episodes: evaluated anew, not trained"
    assert len(json.loads(one.read_text())["returns"]) == 4


def test_a_failure_leaves_the_others_and_is_said(tmp_path, in_process, capsys, monkeypatch):
    run = compare.Task.run
    monkeypatch.setattr(compare.Task, "run", lambda task: 1 if task.config.seed == 0 else run(task))
    assert main(arguments(tmp_path)) == 1
    assert capsys.readouterr().err.count(" seed 0: failed\n") == 2
    for result in json.loads((tmp_path / "results.json").read_text())["results"]:
        assert result["missing_seeds"] == [0]
        assert [one["seed"] for one in result["runs"]] == [1]


def test_a_folder_of_other_runs_is_not_touched(tmp_path, in_process, capsys):
    assert main(arguments(tmp_path)) == 0
    capsys.readouterr()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert main([*arguments(tmp_path), "--total-timesteps", "600"]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "other options (total_timesteps 512, now 600); take another --out" in message
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_run_from_before_an_option_existed_has_its_default(tmp_path, in_process):
    assert main(arguments(tmp_path)) == 0
    for path in tmp_path.rglob("config.json"):
        content = json.loads(path.read_text())
        del content["config"]["device"]
        path.write_text(json.dumps(content))
    in_process.clear()
    assert main(arguments(tmp_path)) == 0
    assert in_process == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--env-id", "Nope-v1"], "Nope"),
        (["--seeds", "1", "1"], "seeds: got 1 1, expected at least one, each once"),
        (["--jobs", "0"], "jobs: got 0, expected at least 1"),
        (["--seeds", "0", "-1"], "seed: got -1, expected an integer of at least 0"),
        (["--eval-seed", "-1"], "eval_seed: got -1, expected at least 0"),
        (["--algorithms", "ppo", "sac"], "algorithms: got 'sac' for CartPole-v1, whose actions are discrete"),
        (["--algorithms", "ppo,gamma=2"], "gamma: got 2.0, expected between 0 and 1"),
        (["--algorithms", "ppo,gamma=.5", "ppo:gamma=.5"], "preset: got"),
    ],
)
def test_what_is_wrong_is_said_before_anything_runs(options, message, tmp_path, in_process, capsys):
    given = ["compare", "--algorithms", "ppo", "--env-id", "CartPole-v1", "--out", str(tmp_path / "out")]
    assert main([*given, *options]) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("\n") == 1
    assert in_process == []
    assert not (tmp_path / "out").exists()


def test_ctrl_c_saves_and_the_same_command_goes_on(tmp_path):
    """The real thing: processes of processes."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])
    command = [
        sys.executable, "-m", "fastac", "compare", "--algorithms", "ppo,num_steps=32", "--seeds", "0",
        "--total-timesteps", "100000000", "--out", "out",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": paths}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    run = tmp_path / "out" / "CartPole-v1__ppo-num_steps=32__0"
    until = time.monotonic() + 90
    log = run / "progress.csv"
    while process.poll() is None and time.monotonic() < until:
        if log.exists() and log.read_text().count("\n") > 3:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    errors = process.communicate(timeout=90)[1]
    assert process.returncode == 130, errors
    assert errors.endswith("Saved. The same command again goes on.\n")
    saved = checkpoint.load(run / "checkpoint.pt")
    assert saved["run"]["iteration"] == log.read_text().count("\n") - 1
    assert np.isfinite(saved["global_step"])
