"""Trainings against each other: what is counted, who takes which options, and how it is shown."""

import dataclasses
import statistics
import sys
from pathlib import Path
from typing import Any

import pytest

from bench import figure, record, report, report_training, training
from bench.figure_training import training_numbers
from bench.ppo_settings import fastac_config
from bench.training_cases import BY_NAME, CASES, ENDLESS, SB3_A2C, SB3_SAC, fastac_a2c, fastac_sac
from bench.training_limits import floating_point_operations, products
from bench.training_pace import Chunk, EnoughError, Pace
from bench.training_peers import CLEANRL_EDITS, cleanrl_command, trainers
from fastac.algorithms import preset


def test_the_first_chunk_is_apart_and_ends_after_the_warm_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk ends with an iteration; what is computed while a trainer waits counts, the waiting does not."""
    clock = {"cpu": 5.0, "wall": 50.0}
    monkeypatch.setattr("time.process_time", lambda: clock["cpu"])
    monkeypatch.setattr("time.perf_counter", lambda: clock["wall"])
    found: list[Chunk] = []

    def finished(chunk: Chunk) -> None:
        found.append(chunk)
        clock["wall"] += 100.0  # the others' turn
        clock["cpu"] += 0.25  # a thread in the background goes on

    pace = Pace(1.0, 30, finished)
    for step in range(10, 100, 10):
        clock["cpu"] += 0.5
        clock["wall"] += 0.5
        pace(step)
    assert [chunk.steps for chunk in found] == [30, 20, 20, 20]
    assert [chunk.cpu_seconds for chunk in found] == [1.5, 1.25, 1.25, 1.25]
    assert [chunk.wall_seconds for chunk in found] == [1.5, 1.0, 1.0, 1.0]


def test_fastac_gets_the_options() -> None:
    """The same as its presets, which are tested against the publications, but for the end and the log's rows."""
    endless = {"total_timesteps": ENDLESS, "seed": 3}
    a2c = fastac_a2c(BY_NAME["a2c-cartpole"], 3)
    assert a2c == dataclasses.replace(preset("actor_critic", "sb3"), log_interval=10, **endless)
    for name in ("sac-halfcheetah", "sac-pendulum"):
        ours = fastac_sac(BY_NAME[name], 3)
        assert ours == dataclasses.replace(preset("sac", "sb3", ours.env_id), log_interval=50, **endless)
    case = BY_NAME["ppo-halfcheetah"]
    assert case.setting is not None
    assert fastac_config(case.setting, 3) == dataclasses.replace(
        preset("ppo", "cleanrl-mujoco"), seed=3, total_timesteps=case.setting.steps
    )


def test_sb3_has_these_options_by_default() -> None:
    sb3 = pytest.importorskip("stable_baselines3", reason="the peer is not installed")
    a2c, sac = sb3.A2C("MlpPolicy", "CartPole-v1"), sb3.SAC("MlpPolicy", "Pendulum-v1")
    names = {"num_steps": "n_steps", "num_envs": "n_envs", "value_mse_coef": "vf_coef"}
    for name, value in SB3_A2C.items():
        if name != "hidden_sizes":
            assert getattr(a2c, names.get(name, name)) == value, name
    names = {"num_envs": "n_envs", "policy_lr": "learning_rate", "q_lr": "learning_rate"}
    for name, value in SB3_SAC.items():
        if name not in ("hidden_sizes", "policy_frequency", "autotune"):
            assert getattr(sac, names.get(name, name)) == value, name
    assert sac.actor.latent_pi[0].out_features == 256
    assert sac.ent_coef == "auto"


def test_a_trainer_stops_where_it_is_told() -> None:
    def finished(chunk: Chunk) -> None:
        assert chunk.steps == 100
        raise EnoughError

    case = BY_NAME["a2c-cartpole"]
    with pytest.raises(EnoughError):
        trainers(case, None)["fastac"](case, 1, Pace(0.0, 0, finished))


def test_a_round_of_the_limit_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "trainers", lambda case, checkout: {})
    result = training.measure(BY_NAME["ppo-cartpole"], rounds=2, seconds=0.01, checkout=None, absent={})
    limit = result["contenders"]["limit"]
    assert len(limit["rounds"]) == 2
    assert limit["steps_per_cpu_second"] > 1000
    assert result["failed"] == {}


SCRIPT = """
import argparse
from dataclasses import dataclass
import gymnasium as gym
from torch.utils.tensorboard import SummaryWriter

@dataclass
class Args:
    num_envs: int

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--num-envs", type=int)
    args = Args(parser.parse_known_args()[0].num_envs)
    make_env = lambda: gym.wrappers.RecordEpisodeStatistics(gym.make("CartPole-v1"))
    envs = gym.vector.SyncVectorEnv([make_env for _ in range(args.num_envs)])
    envs.reset(seed=0)
    writer = SummaryWriter("runs/one")
    for step in range(4, 1_000_000, 4):
        *_, infos = envs.step(envs.action_space.sample())
        if "final_info" in infos:
            for info in infos["final_info"]:
                print(info["episode"]["r"])
        if step % 400 == 0:
            writer.add_scalar("charts/SPS", 1, step)
"""


def test_a_cleanrl_script_runs_by_its_own_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cleanrl").mkdir()
    (tmp_path / "cleanrl" / "ppo.py").write_text(SCRIPT)
    for name, value in (("argv", list(sys.argv)), ("path", list(sys.path))):
        monkeypatch.setattr(sys, name, value)
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    writers = pytest.importorskip("torch.utils.tensorboard")
    monkeypatch.setattr(writers, "SummaryWriter", writers.SummaryWriter)
    monkeypatch.chdir(tmp_path)
    found: list[int] = []

    def finished(chunk: Chunk) -> None:
        found.append(chunk.steps)
        if len(found) == 3:
            raise EnoughError

    case = BY_NAME["ppo-cartpole"]
    with pytest.raises(EnoughError):
        trainers(case, tmp_path)["cleanrl"](case, 1, Pace(0.0, 0, finished))
    assert found == [800, 400, 400]
    assert (tmp_path / "runs" / "one").is_dir()


def test_cleanrl_gets_the_options() -> None:
    script, arguments = cleanrl_command(BY_NAME["ppo-cartpole-64"], 7)
    assert script == "ppo"
    assert {"--num-envs=64", "--num-steps=128", "--vf-coef=0.5", "--ent-coef=0.01", "--seed=7"} <= set(arguments)
    assert cleanrl_command(BY_NAME["ppo-halfcheetah"], 7)[0] == "ppo_continuous_action"
    script, arguments = cleanrl_command(BY_NAME["sac-pendulum"], 7)
    assert script == "sac_continuous_action"
    assert {"--policy-frequency=1", "--q-lr=0.0003", "--learning-starts=100"} <= set(arguments)


def test_the_products_of_sac() -> None:
    """Counted by hand for 17 observations and 6 actions: 11 forwards and backwards of a 256 x 256 layer, and so on."""
    case = BY_NAME["sac-halfcheetah"]
    assert sum(shape == (256, 256, 256) for shape in products(case)) == 8 + 3 + 5
    actor, q = 17 * 256 + 256 * 256 + 256 * 12, 23 * 256 + 256 * 256 + 256
    # The weights' gradients cost a forward pass; the inputs' as much, less the first layer where it is left out.
    every = 2 * actor + 6 * q + 2 * q + 2 * (q - 23 * 256) + actor + 2 * q + (actor - 17 * 256)
    assert floating_point_operations(case) == 2 * 256 * every


def recorded() -> dict[str, Any]:
    """What a recording looks like, with invented speeds."""
    results = []
    for case in CASES:
        names = ["fastac", *(["fastac_vector", "limit_vector"] if case.vectorized else []), *case.peers, "limit"]
        speeds = {name: 1000.0 * (1 + k) for k, name in enumerate(names)}
        speeds |= {"fastac": 9000.0, "limit": 20000.0}
        chunks = {name: [Chunk(int(speed), 1.0, 1.0)] * 3 for name, speed in speeds.items()}
        failed = {}
        if case.name == "ppo-halfcheetah":
            del chunks["sbx"]
            failed = {"sbx": "ValueError: no"}
        row = {"case": case.name, "title": case.title, "contenders": training.summarise(chunks), "failed": failed}
        results.append(row)
    timed = {"fastac": {"median_ns": 2e5, "over_fastac": 1.0}, "torch": {"median_ns": 2e6, "over_fastac": 10.0}}
    solved = {"title": "CartPole", "command": "fastac", "seconds": 3.0, "solved": 4, "mean_returns": [500.0, 400.0]}
    return {
        "command": "python -m bench training",
        "machine": record.machine(),
        "missing": {},
        "cleanrl_edits": CLEANRL_EDITS,
        "results": results,
        "parts": {"minibatch": {"title": "an update", "contenders": timed}, "solved": solved},
    }


def test_the_table_shows_everybody() -> None:
    page = report_training.page(recorded())
    assert (
        "| PPO, CartPole, 4 x 128 | 9,000 | 2,000 (4.50x) | 3,000 (3.00x) | **4,000 (2.25x)** | 20,000 | 0.45 |" in page
    )
    assert "the environment's vector form | 2,000 |" in page
    assert "| PPO, HalfCheetah, 1 x 2048 | 9,000 | 2,000 (4.50x) | **3,000 (3.00x)** | fails |" in page
    assert "SBX (JAX) in PPO, HalfCheetah, 1 x 2048 fails: ValueError: no." in page
    assert "| A2C, CartPole, 1 x 5 | 9,000 | **2,000 (4.50x)** | - | - |" in page
    assert "| an update | 200 us | 2,000 us (10.0x) |" in page
    assert "the worst at 400.0 | 3.0 s |" in page


def test_losses_are_shown() -> None:
    result = recorded()
    result["results"][0]["contenders"]["sbx"]["rounds"] = [18000.0] * 3
    assert "(0.50x)**" in report_training.page(result)


def test_the_figure_shows_the_trainings(tmp_path: Path) -> None:
    results = report.load() | {"training": recorded()}
    shown = figure.numbers(results)
    assert [row["title"] for row in shown["trainings"]] == [case.title for case in CASES]
    assert statistics.mean(row["speeds"]["limit"] for row in training_numbers(recorded())) == 20000.0
    assert figure.digest(results) != figure.digest(report.load())
    figure.draw_theme(shown, "light", tmp_path / "figure.svg", "mark")
    assert "PPO, CartPole" in (tmp_path / "figure.svg").read_text(encoding="utf-8")


def test_what_is_wrong_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert training.main(1, 0.1, "nothing", None) == 2
    assert training.main(1, 0.1, "acting", tmp_path) == 2
    assert capsys.readouterr().err.count("\n") == 2
