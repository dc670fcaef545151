"""Policy evaluation: four kinds of labels, what each converges to, and what each costs on the way."""

import csv
import dataclasses
import json
import signal

import numpy as np
import pytest
import torch
from fresh import ROOT

from fastac import bias_variance, checkpoint
from fastac.__main__ import main
from fastac.algorithms import config_from_dict, resume
from fastac.algorithms import policy_evaluation as pe
from fastac.critics import MLPCritics, TableCritics
from fastac.episodes import Trajectory, pack
from fastac.prediction import FiniteProblem
from fastac.run import RunError, torch_threads
from fastac.tabular import from_transition_table

SMALL = pe.Config(num_batches=8, n_steps=(3,), td_lambdas=(0.8,), gradient_steps=(4, 16))
FOUR = [pe.Target("TD(0)", n=1), pe.Target("n = 3", n=3), pe.Target("Monte Carlo"), pe.Target("lambda", td_lambda=0.8)]
DOCS = ROOT / "docs" / "policy_evaluation.json"


@pytest.fixture(autouse=True)
def _one_thread():
    with torch_threads(1):
        yield


def fitted(target, critics, episodes, **options):
    """V after all gradient steps, as a table's values or None."""
    for _ in pe.fit(target, critics, episodes, dataclasses.replace(pe.Config(), **options)):
        pass
    return critics


def one_line(capsys):
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1, captured.err
    return captured.err


# What the fits converge to


def test_all_four_reproduce_the_random_walk():
    """1/6, 2/6, ... 5/6 on Sutton and Barto's example 6.2, from 4000 episodes (a deviation of 0.007)."""
    config = dataclasses.replace(
        SMALL, num_batches=2, num_episodes=2000, gradient_steps=(200,), learning_rate=3.0, seed=0
    )
    report = pe.train(config).report
    np.testing.assert_allclose(report["truth"], np.arange(1, 6) / 6, atol=1e-6)
    assert [target["name"] for target in report["targets"]] == ["TD(0)", "n = 3", "Monte Carlo", "lambda = 0.8"]
    for target in report["targets"]:
        np.testing.assert_allclose(target["values"], np.arange(1, 6) / 6, atol=0.02, err_msg=target["name"])


@pytest.mark.parametrize("seed", range(2))
def test_all_four_reproduce_the_solution_of_a_random_mdp(seed):
    rng = np.random.default_rng(seed)
    table = {
        s: {a: [(0.7, int(rng.integers(4)), float(rng.normal()), False), (0.3, 0, 1.0, True)] for a in range(2)}
        for s in range(4)
    }
    process = from_transition_table(table, np.ones(4) / 4, rng.dirichlet(np.ones(2), 4))
    problem = FiniteProblem(process, gamma=0.9, seed=seed, max_episode_steps=1000)
    episodes = problem.pack(problem.batches(1, 6000))
    for target in FOUR:
        critics = fitted(target, problem.make_critics(1), episodes, gamma=0.9, gradient_steps=(150,))
        np.testing.assert_allclose(critics.values.detach()[0], problem.truth, atol=0.06, err_msg=target.name)


def a_and_b():
    """Sutton and Barto's example 6.4: A, 0, B, 0; six times B, 1; once B, 0. A is state 0, B state 1."""

    def episode(*steps):
        states, rewards = zip(*steps, strict=True)
        return Trajectory(np.array([*states, 0]), np.empty((len(steps), 0)), np.array(rewards), True)

    return pack([[episode((0, 0.0), (1, 0.0)), *[episode((1, 1.0))] * 6, episode((1, 0.0))]])


@pytest.mark.parametrize(
    ("target", "value_of_a"),
    [
        (pe.Target("Monte Carlo"), 0.0),  # the only return that followed A
        (pe.Target("TD(0)", n=1), 0.75),  # A always goes to B for nothing, and V(B) is 6/8
        (pe.Target("n = 2", n=2), 0.0),  # two steps reach the end from A
        (pe.Target("lambda", td_lambda=0.25), 0.5625),  # (1 - lambda) V(B) + lambda 0
    ],
    ids=lambda x: x.name if isinstance(x, pe.Target) else "",
)
def test_one_batch_has_two_answers(target, value_of_a):
    """Monte Carlo has the least squared error on the batch, TD(0) the value in the process that it makes likeliest."""
    critics = fitted(target, TableCritics(1, 2), a_and_b(), gradient_steps=(400,))
    np.testing.assert_allclose(critics.values.detach()[0], [value_of_a, 0.75], atol=1e-9)


def test_the_two_answers_by_hand_on_any_batch():
    """Monte Carlo: every state's mean observed return. TD(0): (I - gamma P) V = r with the batch's frequencies."""
    problem = pe.PolicyEvaluation(dataclasses.replace(SMALL, gamma=0.9)).problem
    (batch,) = problem.batches(1, 20)
    counts, P, r, returns = np.zeros(5), np.zeros((5, 5)), np.zeros(5), np.zeros(5)
    for episode in batch:
        for t in range(len(episode.rewards)):
            state = episode.observations[t]
            counts[state] += 1
            r[state] += episode.rewards[t]
            returns[state] += 0.9 ** np.arange(len(episode.rewards) - t) @ episode.rewards[t:]
            if t + 1 < len(episode.rewards):
                P[state, episode.observations[t + 1]] += 1
    by_hand = {
        "Monte Carlo": returns / counts,
        "TD(0)": np.linalg.solve(np.eye(5) - 0.9 * P / counts[:, None], r / counts),
    }
    for target in (FOUR[0], FOUR[2]):
        critics = fitted(target, TableCritics(1, 5), pack([batch]), gamma=0.9, gradient_steps=(1500,))
        np.testing.assert_allclose(critics.values.detach()[0], by_hand[target.name], atol=1e-9)


# The labels and the loss


def test_labels_are_renewed_and_have_no_gradient():
    episodes, critics = a_and_b(), TableCritics(1, 2)
    td = FOUR[0]
    before = pe.labels(td, critics, episodes, 1.0)
    assert before.tolist() == [[0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0]]
    assert not before.requires_grad
    steps = pe.fit(td, critics, episodes, dataclasses.replace(pe.Config(), gradient_steps=(2,)))
    next(steps)
    after = pe.labels(td, critics, episodes, 1.0)
    assert after[0, 0].item() == critics.values[0, 1].item() == pytest.approx(6 / 9)  # from 0, by 1/9 of six ones
    # d/dV(B) of 1/2 mean (V - y)^2, y held: the label of A, which is V(B), adds nothing.
    critics.values.grad = None
    pe.loss(critics, episodes, after).backward()
    np.testing.assert_allclose(critics.values.grad[0], [(0 - 6 / 9) / 9, (8 * 6 / 9 - 6) / 9], atol=1e-15)


def test_where_an_episode_was_cut_labels_take_what_came_next():
    cut = Trajectory(np.array([0, 0, 1]), np.empty((2, 0)), np.array([1.0, 2.0]), False)
    critics = TableCritics(1, 2)
    with torch.no_grad():
        critics.values[:] = torch.tensor([10.0, 100.0])
    expected = {"TD(0)": [6.0, 52.0], "Monte Carlo": [27.0, 52.0], "n = 3": [27.0, 52.0], "lambda": [22.8, 52.0]}
    for target in FOUR:
        np.testing.assert_allclose(pe.labels(target, critics, pack([[cut]]), 0.5)[0], expected[target.name])


@pytest.mark.parametrize("target", FOUR, ids=lambda target: target.name)
def test_batches_are_fitted_independently(target):
    """The networks of two batches side by side are those of each batch alone."""
    rng = np.random.default_rng(0)

    def batch(size):
        return [
            Trajectory(rng.normal(size=(n + 1, 3)), np.empty((n, 0)), rng.normal(size=n), bool(n % 2))
            for n in rng.integers(1, 9, size)
        ]

    batches = [batch(4), batch(4)]

    def networks():
        return MLPCritics(2, [3, 8], generator=torch.Generator().manual_seed(0))

    options = {"optimizer": "adam", "learning_rate": 0.01, "gradient_steps": (20,), "gamma": 0.9}
    together = fitted(target, networks(), pack(batches), **options)
    for r in range(2):
        alone = networks()
        alone.weights = torch.nn.ParameterList(weight[r : r + 1].detach().clone() for weight in alone.weights)
        fitted(target, alone, pack([batches[r]]), **options)
        for ours, theirs in zip(alone.weights, together.weights, strict=True):
            np.testing.assert_allclose(ours.detach()[0], theirs.detach()[r], rtol=0, atol=1e-12)


# The figure


def test_the_documented_figure_shows_the_recorded_numbers():
    report = json.loads(DOCS.read_text(encoding="utf-8"))
    assert bias_variance.digest(report) in DOCS.with_suffix(".svg").read_text(encoding="utf-8")
    assert report["config"] == json.loads(json.dumps(dataclasses.asdict(pe.Config())))


def test_the_best_n_lies_between_one_and_t():
    """As long as V is on its way, and by more than chance; the four fits end at 1/6 ... 5/6."""
    report = json.loads(DOCS.read_text(encoding="utf-8"))
    by_n = bias_variance.family(report, "n")
    assert report["gradient_steps"] == [16, 32, 512]
    for b in (0, 1):
        at = bias_variance.best(by_n, "fit", b)
        assert 1 < by_n[at]["n"] < report["longest_episode"]
        found = by_n[at]["fit"][b]
        assert found["rmse"] + 2.0 * found["rmse_se"] < by_n[0]["fit"][b]["rmse"]
    best = by_n[bias_variance.best(by_n, "fit", 1)]["fit"][1]
    assert best["rmse"] + 2.0 * best["rmse_se"] < by_n[-1]["fit"][1]["rmse"]
    bias, std = ([target["fit"][1][name] for target in by_n] for name in ("bias", "std"))
    assert bias[0] == max(bias)
    assert std == sorted(std)
    shown = [target for target in report["targets"] if "values" in target]
    assert len(shown) == 4
    for target in shown:
        np.testing.assert_allclose(target["values"], np.arange(1, 6) / 6, atol=0.04)


def test_the_recorded_numbers_come_out_again():
    """A part of them; the slow test below has all."""
    recorded = {t["name"]: t for t in json.loads(DOCS.read_text(encoding="utf-8"))["targets"]}
    part = pe.train(dataclasses.replace(pe.Config(), n_steps=(6,), td_lambdas=(), gradient_steps=(16,))).report
    for target in part["targets"]:
        for name, value in target["fit"][0].items():
            assert recorded[target["name"]]["fit"][0][name] == pytest.approx(value, rel=1e-4), (target["name"], name)


@pytest.mark.slow
def test_all_recorded_numbers_come_out_again():
    recorded, again = json.loads(DOCS.read_text(encoding="utf-8")), pe.train(pe.Config()).report
    for ours, theirs in zip(again["targets"], recorded["targets"], strict=True):
        for what in ("fit", "labels"):
            for a, b in zip(ours[what], theirs[what], strict=True):
                assert a == pytest.approx(b, rel=1e-4, abs=1e-6), ours["name"]


# Runs


def everything(folder):
    """All that a run wrote, but for times."""
    rows = list(csv.DictReader((folder / "progress.csv").open()))
    numbers = [{k: v for k, v in row.items() if k not in ("charts/SPS", "time/elapsed_seconds")} for row in rows]
    estimates = checkpoint.load(folder / "checkpoint.pt")["estimates"]
    files = [(folder / f"policy_evaluation.{kind}").read_bytes() for kind in ("json", "png", "svg")]
    arrays = {name: {what: x.tobytes() for what, x in found.items()} for name, found in estimates.items()}
    return numbers, arrays, files


def test_the_same_seed_gives_the_same_bytes_and_a_resumed_run_too(tmp_path):
    pe.train(SMALL, run_dir=tmp_path / "whole")
    pe.train(SMALL, run_dir=tmp_path / "again")
    stopped = pe.train(SMALL, lambda progress: progress.iteration < 2, run_dir=tmp_path / "parts")
    assert (stopped.finished, stopped.report, stopped.global_step) == (False, None, 32)
    assert not (tmp_path / "parts" / "policy_evaluation.json").exists()
    assert resume(tmp_path / "parts").finished
    whole = everything(tmp_path / "whole")
    assert everything(tmp_path / "again") == whole
    assert everything(tmp_path / "parts") == whole
    assert len(whole[0]) == 4
    pe.train(dataclasses.replace(SMALL, seed=2), run_dir=tmp_path / "other")
    assert everything(tmp_path / "other")[2] != whole[2]


def test_cartpole_from_restored_states(tmp_path, capsys):
    """Networks, measured truth, resumed, in process and by the command line."""
    options = [
        "--preset", "cartpole", "--num-batches", "3", "--num-episodes", "4", "--n-steps", "4", "--td-lambdas", "0.9",
        "--gradient-steps", "10", "60", "--num-eval-states", "12", "--num-rollouts", "30", "--hidden-sizes", "16",
    ]  # fmt: skip
    assert main(["train", "policy_evaluation", *options, "--run-dir", str(tmp_path / "run")]) == 0
    captured = capsys.readouterr()
    assert "V of the random policy in CartPole-v1: 3 fits to 4 episodes each" in captured.out
    assert "after 60 gradient steps best:" in captured.out
    assert "true values: 10 of 12 states measured" in captured.err
    report = json.loads((tmp_path / "run" / "policy_evaluation.json").read_text())
    assert all(1.0 <= value < 40.0 for value in report["truth"])
    for target in report["targets"]:
        assert target["fit"][1]["rmse"] < target["fit"][0]["rmse"]

    config = config_from_dict(pe.Config, report["config"])
    assert pe.train(config).report == report


def test_a_run_folder_says_what_it_is(tmp_path):
    result = pe.train(SMALL, run_dir=tmp_path / "run")
    names = {path.name for path in (tmp_path / "run").iterdir() if not path.name.startswith("events.")}
    figures = {f"policy_evaluation.{kind}" for kind in ("json", "png", "svg")}
    assert names == {"config.json", "progress.csv", "checkpoint.pt", *figures}
    assert json.loads((tmp_path / "run" / "config.json").read_text())["algorithm"] == "policy_evaluation"
    assert json.loads((tmp_path / "run" / "policy_evaluation.json").read_text()) == result.report
    assert result.finished
    assert result.policy is None
    rows = list(csv.DictReader((tmp_path / "run" / "progress.csv").open()))
    assert [row["target/n"] for row in rows] == ["1.0", "3.0", "", ""]
    assert float(rows[2]["fit/rmse"]) == pytest.approx(result.report["targets"][2]["fit"][1]["rmse"], rel=1e-5)


def test_ctrl_c_saves_and_resume_goes_on(tmp_path, capsys):
    run = tmp_path / "run"
    stopped = pe.train(SMALL, lambda progress: signal.raise_signal(signal.SIGINT), run_dir=run)
    assert (stopped.signal, stopped.finished, stopped.global_step) == (signal.SIGINT, False, 16)
    assert main(["eval", str(run)]) == 2
    assert "no policy in this checkpoint" in one_line(capsys)
    assert main(["resume", str(run), "--total-timesteps", "5"]) == 2
    assert "total_timesteps: policy_evaluation has no such option" in one_line(capsys)
    assert main(["resume", str(run)]) == 0
    assert "after 16 gradient steps best:" in capsys.readouterr().out
    assert main(["resume", str(run)]) == 2
    assert "finished, all 64 steps are done" in one_line(capsys)


def test_the_command_line(tmp_path, capsys):
    run = tmp_path / "run"
    small = ["--num-batches", "8", "--n-steps", "2", "3", "--td-lambdas", "0.8", "--gradient-steps", "4", "16"]
    assert main(["train", "policy_evaluation", *small, "--run-dir", str(run)]) == 0
    captured = capsys.readouterr()
    assert captured.out == pe.train(pe.Config(
        num_batches=8, n_steps=(2, 3), td_lambdas=(0.8,), gradient_steps=(4, 16)
    )).summary()  # fmt: skip
    for word in ("TD(0)", "n = 3", "Monte Carlo", "lambda = 0.8", "bias", "std", "RMSE", "*"):
        assert word in captured.out
    assert "step 80 of 80 (100 %)" in captured.err
    assert main(["train", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "policy_evaluation Fit V of a fixed policy" in text
    assert "Sutton and Barto 2018, chapters 6, 7 and 12" in text
    assert main(["train", "policy_evaluation", "--help"]) == 0
    text = capsys.readouterr().out
    assert "--n-steps" in text
    assert "--eval-episodes" not in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--env-id", "Nope-v1"], "Nope"),
        (["--env-id", "Blackjack-v1"], "observations are Tuple"),
        (["--n-steps", "2", "0"], "n_steps: got 0, expected at least 1"),
        (["--td-lambdas", "1.5"], "td_lambdas: got 1.5, expected between 0 and 1"),
        (["--gamma", "-1"], "gamma: got -1.0, expected between 0 and 1"),
        (["--gradient-steps", "8", "4"], "gradient_steps: got (8, 4), expected increasing numbers"),
        (["--num-batches", "0"], "num_batches: got 0, expected at least 1"),
        (["--learning-rate", "0"], "learning_rate: got 0.0, expected above 0"),
        (["--policy", "runs/nothing"], "policy: got 'runs/nothing', expected 'random'"),
        (["--env-id", "CartPole-v1", "--policy", "no/run"], "no/run"),
    ],
)
def test_what_is_wrong_is_one_line(arguments, message, tmp_path, capsys):
    assert main(["train", "policy_evaluation", *arguments, "--run-dir", str(tmp_path / "run")]) == 2
    assert message in one_line(capsys)
    assert not (tmp_path / "run").exists()


def test_nothing_is_overwritten(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert main(["train", "policy_evaluation", "--run-dir", str(tmp_path)]) == 2
    assert "not empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_fit_that_diverges_is_named():
    with pytest.raises(RunError, match=r"learning_rate: got 100.0, with which the fit to TD\(0\) diverged"):
        pe.train(dataclasses.replace(SMALL, learning_rate=100.0, gradient_steps=(500,)))
