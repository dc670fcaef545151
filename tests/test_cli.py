import importlib
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import fastac
from fastac import __main__ as command_line
from fastac import checkpoint
from fastac.__main__ import main
from fastac.algorithms import ALGORITHMS, preset

ROOT = Path(fastac.__file__).parents[1]
SMALL = ["--num-steps", "32", "--total-timesteps", "256", "--hidden-sizes", "16", "--eval-episodes", "3"]


def one_line(capsys):
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1, captured.err
    return captured.err


def start(*arguments, **options):
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths}
    return subprocess.Popen(
        [sys.executable, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def test_train_then_eval(tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["train", "ppo", "--run-dir", str(run), *SMALL]) == 0
    captured = capsys.readouterr()
    assert "CartPole-v1: mean return" in captured.out
    assert "3 episodes from fixed starts" in captured.out
    assert "not solved: the environment asks for a mean of 475" in captured.out
    assert "step 256 of 256 (100 %)" in captured.err
    first = captured.out
    assert main(["eval", str(run), "--episodes", "3"]) == 0
    assert capsys.readouterr().out == first
    assert main(["resume", str(run)]) == 2
    assert "finished" in one_line(capsys)
    assert main(["eval", str(run / "checkpoint.pt"), "--device", "cuda:99"]) == 2
    assert "device: got 'cuda:99'" in one_line(capsys)
    assert main(["eval", str(run), "--episodes", "0"]) == 2
    assert "episodes: got 0, expected at least 1" in one_line(capsys)
    assert main(["eval", str(run), "--seed", "-1"]) == 2
    assert "seed: got -1, expected at least 0" in one_line(capsys)


def test_more_than_the_memory_is_one_line(tmp_path, capsys):
    options = ["--buffer-size", str(10**15), "--run-dir", str(tmp_path / "run")]
    assert main(["train", "td3", "--env-id", "Pendulum-v1", *options]) == 2
    assert "fastac train: not enough memory: Unable to allocate" in one_line(capsys)


def test_a_misspelt_option_gets_the_named_algorithm_s_suggestions_alone(capsys):
    assert main(["train", "ppo", "--lerning-rate", "1"]) == 2
    said = capsys.readouterr().err
    assert "--learning-rate" in said
    assert "sac" not in said


@pytest.mark.parametrize(
    ("redirected", "said", "code"),
    [
        (">&-", "", 0),
        ("2>&-", "", 0),
        (
            "> /dev/full",
            "fastac --version: cannot write the output (No space left on device)\n",
            2,
        ),
    ],
)
def test_outputs_that_are_closed_or_full(redirected, said, code):
    if "full" in redirected and not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    command = f"{shlex.quote(sys.executable)} -m fastac --version {redirected}"
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    done = subprocess.run(
        command, shell=True, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths}, check=False
    )
    assert (done.returncode, done.stderr) == (code, said)


def test_a_reader_that_has_gone_is_no_traceback():
    reader, writer = os.pipe()
    os.close(reader)
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    done = subprocess.run(
        [sys.executable, "-m", "fastac", "--help"],
        stdout=writer, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": paths}, check=False,
    )  # fmt: skip
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


def test_the_default_folder_names_the_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "ppo", "--env-id", "Pendulum-v1", "--seed", "7", *SMALL]) == 0
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name.startswith("Pendulum-v1__ppo__7__")


def test_presets_are_defaults_that_options_change(tmp_path):
    run = tmp_path / "run"
    assert main(["train", "ppo", "--preset", "sb3-zoo", "--run-dir", str(run), "--gamma", "0.9", *SMALL]) == 0
    config = checkpoint.load(run / "checkpoint.pt")["config"]
    assert (config["update_epochs"], config["gae_lambda"], config["gamma"]) == (20, 0.8, 0.9)


def test_presets_depend_on_the_environment_where_the_publication_does(tmp_path, capsys):
    run = tmp_path / "run"
    options = ["--preset=sb3-zoo", "--env_id", "Acrobot-v1", "--num-minibatches", "1", "--num-envs", "2"]
    assert main(["train", "ppo", *options, "--run-dir", str(run), *SMALL]) == 0
    config = checkpoint.load(run / "checkpoint.pt")["config"]
    assert (config["env_id"], config["gae_lambda"], config["normalize_rewards"]) == ("Acrobot-v1", 0.94, True)
    assert main(["train", "ppo", "--preset", "sb3-zo", "--env-id", "Acrobot-v1"]) == 2
    assert "sb3-zoo" in capsys.readouterr().err


def test_an_environment_of_a_module(tmp_path, monkeypatch, capsys):
    (tmp_path / "some_module.py").write_text("import probe_envs\nprobe_envs.register()\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.syspath_prepend(Path(__file__).parent / "algorithms")
    run = ["--run-dir", str(tmp_path / "run")]
    assert main(["train", "ppo", "--env-id", "some_module:probe/Constant-v0", *run, *SMALL]) == 0
    assert "probe/Constant-v0: mean return 1.0, deviation 0.0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--env-id", "Nope-v1"], "Nope"),
        (["--env-id", "FrozenLake-v1"], "observations are Discrete"),
        (["--env-id", "no_such_module:Env-v0"], "no_such_module"),
        (["--gamma", "2"], "gamma: got 2.0, expected between 0 and 1"),
        (["--device", "cuda:99"], "device: got 'cuda:99'"),
        (["--device", "gpu"], "device: got 'gpu', which is not available here (expected cpu, cuda, cuda:1, ...)"),
        (["--seed", "-1"], "seed: got -1, expected an integer of at least 0, below 2^63"),
        (["--seed", str(2**63)], "expected an integer of at least 0, below 2^63"),
        (["--hidden-sizes", "8", "0"], "hidden_sizes: got 8 0, expected at least 1 each"),
        (["--eval-episodes", "-3"], "eval_episodes: got -3, expected at least 0"),
    ],
)
def test_what_is_wrong_is_one_line(arguments, message, tmp_path, capsys):
    assert main(["train", "ppo", *arguments, "--run-dir", str(tmp_path / "run")]) == 2
    assert message in one_line(capsys)
    assert not (tmp_path / "run").exists()


def test_folders_that_cannot_be_used(tmp_path, capsys):
    mine = tmp_path / "mine.txt"
    mine.write_text("mine")
    assert main(["train", "ppo", "--run-dir", str(tmp_path), *SMALL]) == 2
    assert "not empty" in one_line(capsys)
    assert main(["train", "ppo", "--run-dir", str(mine / "run"), *SMALL]) == 2
    assert "cannot write" in one_line(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    assert mine.read_text() == "mine"


def test_plot_says_what_is_wrong(tmp_path, capsys):
    assert main(["plot", str(tmp_path)]) == 2
    assert "no run here, or below" in one_line(capsys)
    assert main(["plot"]) == 2
    capsys.readouterr()


@pytest.mark.parametrize("command", ["resume", "eval"])
def test_checkpoints_that_cannot_be_used(command, tmp_path, capsys):
    assert main([command, str(tmp_path)]) == 2
    one_line(capsys)
    path = tmp_path / "checkpoint.pt"
    for content in (b"", b"something else", b"PK\x03\x04" + bytes(100)):
        path.write_bytes(content)
        assert main([command, str(tmp_path)]) == 2
        one_line(capsys)
        assert path.read_bytes() == content
    checkpoint.save(path, {"weights": 1})
    whole = path.read_bytes()
    assert main([command, str(tmp_path)]) == 2
    one_line(capsys)
    path.write_bytes(whole[:-5] + b"x" + whole[-4:])
    assert main([command, str(tmp_path)]) == 2
    one_line(capsys)
    assert sorted(tmp_path.iterdir()) == [path]


def test_help_names_the_algorithms_and_their_papers(capsys):
    assert main(["--help"]) == 0
    assert "fastac train ppo --env-id CartPole-v1" in capsys.readouterr().out
    assert main(["train", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "ppo Proximal policy optimisation" in text
    assert "Schulman et al. 2017, arXiv:1707.06347" in text
    assert main(["train", "ppo", "--help"]) == 0
    assert "--clip-coef" in capsys.readouterr().out


def test_the_algorithms_stand_in_the_order_of_their_ideas_each_with_its_source():
    ladder = [
        "policy_evaluation", "reinforce", "actor_critic", "importance_weighted", "trpo", "ppo",
        "off_policy", "sac", "td3", "ddpg",
    ]  # fmt: skip
    assert list(ALGORITHMS) == [name for name in ladder if name in ALGORITHMS]
    for name, description in ALGORITHMS.items():
        assert re.search(r"\b(19|20)\d\d\b", description), name
        module = importlib.import_module(f"fastac.algorithms.{name}")
        assert (module.__doc__ or "").count("\n") > 3, name
        for published in module.PRESETS:
            preset(name, published).check()


@pytest.mark.parametrize("arguments", [[], ["fly"], ["train"], ["train", "ppo", "--gama", "1"], ["warmup", "--fast"]])
def test_wrong_command_lines(arguments, capsys):
    assert main(arguments) == 2
    capsys.readouterr()


def test_a_base_install_names_the_missing_extra(monkeypatch, capsys):
    monkeypatch.setattr(command_line, "TRAIN_PACKAGES", ("numpy", "no_such_package"))
    for command in ("train", "resume", "eval", "plot", "compare"):
        assert main([command, "x"]) == 2
        assert one_line(capsys) == f'fastac {command} needs the "train" extra: pip install "fastac-rl[train]"\n'


def test_warmup_needs_neither_torch_nor_tyro(monkeypatch, capsys):
    def compile_all(progress=None):
        progress(1, 1, "gae")
        return 1

    monkeypatch.setattr(fastac, "warmup", compile_all, raising=False)
    assert main(["warmup"]) == 0
    assert capsys.readouterr().out.startswith("1 kernels ready after")
    script = (
        "import sys, fastac; fastac.warmup = lambda progress: 0\n"
        "from fastac.__main__ import main\n"
        "assert main(['warmup']) == 0\n"
        "assert not {'torch', 'tyro', 'gymnasium', 'rich'} & sys.modules.keys()\n"
    )
    process = start("-c", script)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, output + errors


def test_an_interrupted_run_saves_says_how_to_go_on_and_goes_on(tmp_path, capsys):
    run = tmp_path / "run"
    process = start(
        "-m", "fastac", "train", "ppo", "--run-dir", str(run), "--total-timesteps", "200000", "--num-steps", "32",
        "--no-anneal-lr", "--eval-episodes", "0", cwd=tmp_path,
    )  # fmt: skip
    log = run / "progress.csv"
    until = time.monotonic() + 60
    while (
        process.poll() is None and time.monotonic() < until and not (log.exists() and log.read_text().count("\n") > 3)
    ):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 130, errors
    assert "Stopping at the end of this iteration, to save." in errors
    assert errors.endswith(f"Go on with: fastac resume {run}\n")
    saved = checkpoint.load(run / "checkpoint.pt")
    assert saved["run"]["iteration"] == log.read_text().count("\n") - 1
    more = saved["global_step"] + 1000
    assert main(["resume", str(run), "--total-timesteps", str(more), "--eval-episodes", "1"]) == 0
    assert checkpoint.load(run / "checkpoint.pt")["global_step"] >= more
    assert "CartPole-v1: mean return" in capsys.readouterr().out
