"""`fastac profile`: what counts for which part, and what is left out."""

import json
import math
import signal
import sys
import time

import gymnasium
import numpy as np
import pytest
from rich.console import Console

from fastac import profile as module
from fastac.__main__ import main
from fastac.algorithms import ALGORITHMS, ppo, sac
from fastac.profile import (
    ACTING,
    BACKWARD,
    ENVIRONMENT,
    ESTIMATES,
    LOSSES,
    OTHER,
    PACKAGE,
    PERIOD,
    START,
    profile,
    show,
)
from fastac.run import Progress, RunError

SMALL = {"ppo": ["--num-steps", "64"], "policy_evaluation": ["--num-batches", "5", "--gradient-steps", "20"]}
OFF_POLICY = ["--learning-starts", "100", "--log-interval", "100", "--batch-size", "32"]


class Slow(gymnasium.Env):
    """An episode of ten steps, each of which takes two milliseconds."""

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (3,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(3, np.float32), {}

    def step(self, action):
        time.sleep(0.002)
        self.t += 1
        return np.zeros(3, np.float32), 1.0, self.t == 10, False, {}


@pytest.fixture
def slow():
    gymnasium.register("Slow-v0", Slow)
    yield "Slow-v0"
    del gymnasium.registry["Slow-v0"]


def test_a_slow_environment_is_what_it_finds(slow):
    found = profile(ppo.train, ppo.Config(env_id=slow, num_envs=1, total_timesteps=512))
    each = 1e6 * found.seconds[ENVIRONMENT] / found.steps
    assert 1900 < each < 20000, each
    assert found.seconds[ENVIRONMENT] > 0.5 * found.total
    assert found.steps == 512
    assert math.isclose(sum(found.seconds.values()), found.total)
    assert 0.0 < found.overhead < 0.5


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm(name, capsys):
    """Nothing much is left without a part, and what every algorithm does is there."""
    options = SMALL.get(name, OFF_POLICY if name in ("off_policy", "sac", "td3", "ddpg") else [])
    if name == "policy_evaluation":
        options = [*options, "--env-id", "FrozenLake-v1"]
    else:
        options = [*options, "--total-timesteps", "1000" if options is not OFF_POLICY else "400"]
    assert main(["profile", name, "--json", "--seconds", "2", *options]) == 0
    found = json.loads(capsys.readouterr().out)
    parts = found["parts"]
    assert found["algorithm"] == name
    assert found["steps"] > 0
    assert math.isclose(sum(part["percent"] for part in parts.values()), 100.0, abs_tol=0.1)
    assert parts[OTHER]["percent"] < 15.0
    assert parts[BACKWARD]["percent"] > 0.0
    assert parts[ESTIMATES if name == "policy_evaluation" else ENVIRONMENT]["percent"] > 0.0


def test_steps_in_which_nothing_is_learnt_are_left_out():
    config = sac.Config(total_timesteps=300, learning_starts=200, log_interval=100, batch_size=32, hidden_sizes=(8,))
    found = profile(sac.train, config)
    assert (found.steps_before, found.steps) == (200, 100)


def within(names, call):
    """Runs `call` inside functions that are named as if files of fastac (or others, from the root) had them."""
    for name in reversed(names):
        file, _, function = name.partition(":")
        scope = {"inside": call}
        exec(compile(f"def {function}():\n    return inside()\n", str(PACKAGE / file), "exec"), scope)
        call = scope[function]
    return call()


@pytest.mark.parametrize(
    ("names", "part"),
    [
        (
            ["algorithms/ppo.py:train", "collector.py:collect", "envs.py:step", "/lib/gymnasium/core.py:step"],
            ENVIRONMENT,
        ),
        (["algorithms/ppo.py:update", "losses.py:ppo_loss"], LOSSES),
        (["algorithms/ppo.py:update", "/lib/torch/_tensor.py:backward", "mlp.py:run"], BACKWARD),
        (["algorithms/ppo.py:update", "losses.py:backward"], BACKWARD),
        (["algorithms/ppo.py:estimate", "networks.py:forward", "mlp.py:forward"], ESTIMATES),
        (["collector.py:collect", "acting.py:sample", "networks.py:forward"], ACTING),
        (["collector.py:collect", "acting.py:sample", "/lib/numba/core/dispatcher.py:compile"], START),
        (["algorithms/ppo.py:__init__", "envs.py:make_envs"], START),
        (["algorithms/ppo.py:train"], OTHER),
        (["/somebody/else.py:main"], OTHER),
    ],
)
def test_what_counts_for_what(names, part):
    assert within(names, lambda: module._Observer().part(sys._getframe())) == part


def test_a_long_call_gets_all_its_ticks(monkeypatch):
    """Python handles a signal when compiled code comes back: the time until then belongs to that code."""
    now = [0.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    observer = module._Observer()
    for at in (1.2, 1.9, 7.5):
        now[0] = at * PERIOD
        within(["envs.py:step"], lambda: observer(signal.SIGALRM, sys._getframe()))
    assert observer.ticks == {ENVIRONMENT: 7}


def iterations(*metrics, then=None):
    """A training whose iterations take five milliseconds and end with these metrics."""

    def train(config, callback, *, run_dir, progress_bar):
        for number, values in enumerate(metrics, 1):
            until = time.perf_counter() + 0.005
            while time.perf_counter() < until:
                pass
            callback(Progress(number, 10 * number, 100, 0.0, 0.0, 0.0, values, None))
        if then is not None:
            raise then

    return train


def test_interrupted_it_shows_what_it_has():
    before = signal.getsignal(signal.SIGALRM), signal.getsignal(signal.SIGINT)
    found = profile(iterations({"losses/a": 1.0}, {"losses/a": 1.0}, then=KeyboardInterrupt), None)
    assert found.steps == 20
    signal.signal(signal.SIGINT, before[1])
    assert signal.getsignal(signal.SIGALRM) is before[0]


def test_it_ends_when_the_time_is_over():
    found = profile(iterations(*[{"losses/a": 1.0}] * 50), None, seconds=0.02)
    assert 10 <= found.steps < 500


def test_nothing_to_show_is_one_line(capsys):
    for train in (iterations(), iterations({"losses/a": math.nan}), iterations(then=KeyboardInterrupt)):
        with pytest.raises(RunError, match="not one iteration of learning") as caught:
            profile(train, None)
        assert "\n" not in str(caught.value)
    with pytest.raises(ZeroDivisionError):
        profile(iterations(then=ZeroDivisionError), None)
    assert main(["profile", "ppo", "--env-id", "Nope-v1"]) == 2
    assert "Nope" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.nan])
def test_no_time_is_no_measurement(seconds):
    with pytest.raises(RunError, match=r"seconds: got .*, expected above 0"):
        profile(iterations({"losses/a": 1.0}), None, seconds=seconds)


def test_the_table_leaves_out_what_took_no_time(capsys):
    found = module.Profile({ENVIRONMENT: 0.03, BACKWARD: 0.01, LOSSES: 0.0}, 1000, 500, 1.5, 40, 0.004)
    show(found, "ppo", Console(file=sys.stdout, width=100))
    text = capsys.readouterr().out
    assert LOSSES not in text
    assert "after 500 without learning: 25,000 a second" in text
    assert "observing took 0.4 % more" in text
