"""Runs: reproducible, resumable bit for bit, and never writing over anything."""

import csv
import dataclasses
import json
import math
import sys
import time

import gymnasium
import numpy as np
import pytest
import torch
from fresh import run_python

from fastac import checkpoint
from fastac.algorithms import ppo, resume
from fastac.run import Run, RunError

ENVIRONMENTS = {
    "CartPole-v1": {},
    "Acrobot-v1": {"normalize_rewards": True},
    "Pendulum-v1": {"normalize_observations": True, "normalize_rewards": True},
    "HalfCheetah-v5": {"normalize_observations": True, "normalize_rewards": True, "num_envs": 1},
    "LunarLander-v3": {"anneal_clip": True},
}
TIMES = ("charts/SPS", "time/elapsed_seconds")


def config_for(env_id, **options):
    base = {"env_id": env_id, "num_envs": 2, "num_steps": 64, "hidden_sizes": (16, 16), "update_epochs": 2}
    config = ppo.Config(**{**base, **ENVIRONMENTS.get(env_id, {}), **options})
    return dataclasses.replace(config, total_timesteps=8 * config.num_envs * config.num_steps)


def flat(state, prefix=""):
    """Every leaf of nested containers, as bytes where it is an array."""
    if isinstance(state, dict):
        return {k: v for key, value in state.items() for k, v in flat(value, f"{prefix}/{key}").items()}
    if isinstance(state, list | tuple):
        return {k: v for i, value in enumerate(state) for k, v in flat(value, f"{prefix}/{i}").items()}
    if isinstance(state, torch.Tensor | np.ndarray):
        return {prefix: np.asarray(state).tobytes()}
    return {prefix: state}


def everything(run_dir):
    """The checkpoint's and the log's content, but for times."""
    state = flat(checkpoint.load(run_dir / "checkpoint.pt"))
    del state["/run/elapsed_seconds"]
    rows = list(csv.DictReader((run_dir / "progress.csv").open()))
    return state, [{name: cell for name, cell in row.items() if name not in TIMES} for row in rows]


@pytest.fixture(autouse=True)
def _somewhere_else(tmp_path, monkeypatch):
    # MuJoCo writes its warnings to a file in the current folder.
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("env_id", ENVIRONMENTS)
def test_the_same_seed_gives_the_same_bytes_and_a_resumed_run_too(env_id, tmp_path):
    """Row A9: training 2N equals training N, saving, loading, training N: weights, optimiser, generators, log."""
    config = config_for(env_id)
    ppo.train(config, run_dir=tmp_path / "whole")
    ppo.train(config, run_dir=tmp_path / "again")
    stopped = ppo.train(config, lambda progress: progress.iteration < 4, run_dir=tmp_path / "parts")
    assert not stopped.finished
    assert stopped.global_step == config.total_timesteps // 2
    # As if the first part had gone on after its last checkpoint, and then died while writing.
    with (tmp_path / "parts" / "progress.csv").open("a") as file:
        file.write("5,9999" + ",0.0" * 12 + "\n6,1")
    assert resume(tmp_path / "parts").finished
    whole = everything(tmp_path / "whole")
    assert len(whole[1]) == 8
    assert everything(tmp_path / "again") == whole
    assert everything(tmp_path / "parts") == whole


def test_another_seed_gives_other_bytes(tmp_path):
    for seed in (1, 2):
        ppo.train(config_for("CartPole-v1", seed=seed), run_dir=tmp_path / str(seed))
    one, two = (everything(tmp_path / str(seed))[0] for seed in (1, 2))
    for name in ("/policy/actor/network.0.weight", "/critic/0.weight", "/generator", "/envs/observations"):
        assert one[name] != two[name]


def test_fillers_resume_bitwise_too(tmp_path):
    config = config_for("CartPole-v1", vectorization="vector_entry_point", normalize_observations=True)
    ppo.train(config, run_dir=tmp_path / "whole")
    ppo.train(config, lambda progress: progress.iteration < 3, run_dir=tmp_path / "parts")
    resume(tmp_path / "parts")
    assert everything(tmp_path / "parts") == everything(tmp_path / "whole")


def test_environments_that_cannot_be_restored_are_named_and_start_anew(tmp_path, monkeypatch, capsys):
    from fastac.env_base import Envs

    monkeypatch.setattr(Envs, "why_not_restorable", "it is a test")
    config = config_for("CartPole-v1", normalize_rewards=True)
    ppo.train(config, lambda progress: progress.iteration < 3, run_dir=tmp_path / "run")
    assert capsys.readouterr().err == (
        "The environments' state is not saved (it is a test): a resumed run would start new episodes.\n"
    )
    assert resume(tmp_path / "run").finished
    assert "(it is a test): this run starts new episodes" in capsys.readouterr().err


def test_a_run_folder_says_what_it_is(tmp_path):
    config = config_for("CartPole-v1")
    result = ppo.train(config, run_dir=tmp_path / "a" / "run")
    assert result.run_dir == tmp_path / "a" / "run"
    assert {path.name.split(".")[0] for path in result.run_dir.iterdir()} == {
        "config",
        "checkpoint",
        "progress",
        "events",
    }
    content = json.loads((result.run_dir / "config.json").read_text())
    assert content["algorithm"] == "ppo"
    assert ppo.Config(**{**content["config"], "hidden_sizes": tuple(content["config"]["hidden_sizes"])}) == config
    assert {"python", "fastac", "torch", "numpy", "gymnasium"} <= content["versions"].keys()


def test_a_callback_sees_each_iteration():
    seen = []
    result = ppo.train(config_for("CartPole-v1"), seen.append)
    assert [progress.iteration for progress in seen] == list(range(1, 9))
    assert seen[-1].global_step == result.global_step == 8 * 128
    assert seen[-1].episode_return == result.episode_return == seen[-1].episode_length
    assert seen[-1].steps_per_second > 0
    assert np.isfinite(seen[-1].metrics["losses/policy_loss"])
    assert result.finished
    assert result.run_dir is None


def test_nothing_is_overwritten(tmp_path):
    config = config_for("CartPole-v1")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="not empty"):
        ppo.train(config, run_dir=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(RunError, match="cannot write"):
        ppo.train(config, run_dir=tmp_path / "notes.txt" / "run")
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_what_cannot_be_resumed_is_named(tmp_path):
    config = config_for("CartPole-v1")
    run = tmp_path / "run"
    ppo.train(config, lambda progress: progress.iteration < 2, run_dir=run)
    with pytest.raises(RunError, match="total_timesteps: got 5000, expected 1024 with anneal_lr"):
        resume(run, total_timesteps=5000)
    resume(run)
    with pytest.raises(RunError, match="finished, all 1,024 steps are done"):
        resume(run)
    state = checkpoint.load(run / "checkpoint.pt")
    checkpoint.save(run / "other.pt", {**state, "config": {**state["config"], "colour": "red"}})
    (run / "other.pt").rename(run / "checkpoint.pt")
    with pytest.raises(checkpoint.CheckpointError, match=r"options are another version's .*colour"):
        resume(run)
    checkpoint.save(run / "checkpoint.pt", {**state, "algorithm": "../evil"})
    with pytest.raises(checkpoint.CheckpointError, match=r"\.\./evil', expected one of policy_evaluation, .*ppo"):
        resume(run)


class Broken(gymnasium.Env):
    """Pays what is not a number from the hundredth step on."""

    observation_space = gymnasium.spaces.Box(-1, 1, (1,))
    action_space = gymnasium.spaces.Discrete(2)
    steps = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action):
        Broken.steps += 1
        return np.zeros(1, np.float32), math.nan if Broken.steps > 100 else 1.0, True, False, {}


def test_a_policy_of_nan_never_replaces_a_checkpoint(tmp_path, monkeypatch):
    config, run = config_for("CartPole-v1", anneal_lr=False), tmp_path / "run"
    ppo.train(config, lambda progress: progress.iteration < 2, run_dir=run)
    before = (run / "checkpoint.pt").read_bytes()

    def diverge(progress):
        with torch.no_grad():
            next(progress.policy.actor.parameters()).fill_(math.nan)
        return False

    with pytest.raises(RunError, match="parameters are not finite any more after 3 iterations"):
        resume(run, diverge)
    assert (run / "checkpoint.pt").read_bytes() == before


def test_rewards_of_nan_end_a_run(tmp_path):
    gymnasium.register("Broken-v0", entry_point=Broken, disable_env_checker=True)
    config = config_for("Broken-v0")
    with pytest.raises(RunError, match=r"env_id 'Broken-v0': got rewards that sum to nan in an episode before"):
        ppo.train(config, run_dir=tmp_path / "run")


@pytest.mark.skipif(sys.platform == "win32", reason="resource is of POSIX")
def test_a_full_disk_is_one_line_and_the_checkpoint_stays(tmp_path):
    run = tmp_path / "run"
    code = """
import resource, sys
from fastac.algorithms import ppo
from fastac.__main__ import main
config = ppo.Config(total_timesteps=4096, num_steps=64, anneal_lr=False, hidden_sizes=(16,))
ppo.train(config, lambda progress: progress.iteration < 4, run_dir=sys.argv[1])
written = (__import__("pathlib").Path(sys.argv[1]) / "progress.csv").stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (written + 300, resource.RLIM_INFINITY))
sys.exit(main(["resume", sys.argv[1]]))
"""
    said = run_python(code, str(run), returncode=2)
    assert f"fastac resume: {run}: cannot write (File too large)" in said
    assert "Traceback" not in said
    assert checkpoint.load(run / "checkpoint.pt")["run"]["iteration"] == 4


def test_a_run_without_annealing_can_be_lengthened(tmp_path):
    config = config_for("CartPole-v1", anneal_lr=False)
    double = dataclasses.replace(config, total_timesteps=2 * config.total_timesteps)
    ppo.train(double, run_dir=tmp_path / "whole")
    ppo.train(config, run_dir=tmp_path / "parts")
    assert resume(tmp_path / "parts", total_timesteps=double.total_timesteps).global_step == double.total_timesteps
    assert everything(tmp_path / "parts") == everything(tmp_path / "whole")


def test_checkpoints_are_written_in_between(tmp_path, monkeypatch):
    monkeypatch.setattr("fastac.run.SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    monkeypatch.setattr("fastac.run.SHARE_OF_SAVING", math.inf)
    saved = []
    original = Run.save
    monkeypatch.setattr(Run, "save", lambda self, state: saved.append(self.iteration) or original(self, state))
    ppo.train(config_for("CartPole-v1"), run_dir=tmp_path / "run")
    assert saved == [*range(1, 9), 8]


def test_slow_checkpoints_are_written_more_seldom(tmp_path, monkeypatch):
    monkeypatch.setattr("fastac.run.SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    saved = []

    def slowly(path, state):
        saved.append(state["run"]["iteration"])
        time.sleep(0.5)

    monkeypatch.setattr("fastac.run.checkpoints.save", slowly)
    ppo.train(config_for("CartPole-v1"), run_dir=tmp_path / "run")
    assert saved == [1, 8]  # the next would have been due ten seconds later; the last is written always
