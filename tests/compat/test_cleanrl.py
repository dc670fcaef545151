"""CleanRL's door: its own loop's numbers, its scripts trained with the edited lines, its replay rows.

The scripts are not installed but copied: `FASTAC_CLEANRL=PATH pytest tests/compat/test_cleanrl.py` runs those of a
checkout at PATH.
"""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fresh import ROOT
from gymnasium import spaces

from fastac import conformance
from fastac.compat import cleanrl

CHECKOUT = os.environ.get("FASTAC_CLEANRL")
needs_checkout = pytest.mark.skipif(CHECKOUT is None, reason="no CleanRL checkout: FASTAC_CLEANRL=PATH names one")


def naive(
    rewards: Any, values: Any, dones: Any, next_value: Any, next_done: Any, gamma: float, gae_lambda: float
) -> Any:
    """One environment at a time, in float64: flags of the row behind a transition say that it ended an episode."""
    length, count = rewards.shape
    advantages = np.zeros((length, count))
    for e in range(count):
        value, ended, carry = float(next_value[e]), float(next_done[e]), 0.0
        for t in reversed(range(length)):
            carry = (0.0 if ended else gamma * gae_lambda * carry) + float(rewards[t, e]) - float(values[t, e])
            carry += 0.0 if ended else gamma * value
            advantages[t, e] = carry
            value, ended = float(values[t, e]), float(dones[t, e])
    return advantages


def rollout(seed: int, shape: tuple[int, int] = (128, 4)) -> dict[str, Any]:
    generator = np.random.default_rng(seed)
    return {
        "rewards": generator.standard_normal(shape, np.float32),
        "values": generator.standard_normal(shape, np.float32),
        "dones": (generator.random(shape) < 0.1).astype(np.float32),
        "next_value": generator.standard_normal(shape[1], np.float32),
        "next_done": (generator.random(shape[1]) < 0.5).astype(np.float32),
    }


@pytest.mark.parametrize("tensors", [False, True])
def test_its_numbers(tensors: bool) -> None:
    """Row R16: flags that say that a row starts an episode."""
    data = rollout(0)
    expected = naive(**data, gamma=0.99, gae_lambda=0.95)
    given = {name: torch.from_numpy(x) for name, x in data.items()} if tensors else dict(data)
    given["next_value"] = given["next_value"].reshape(1, -1)  # as the scripts have it
    advantages, returns = cleanrl.gae(**given, gamma=0.99, gae_lambda=0.95)
    assert isinstance(advantages, torch.Tensor) == tensors
    assert np.abs(np.asarray(advantages) - expected).max() <= 1e-6 * np.abs(expected).max()
    np.testing.assert_allclose(np.asarray(returns), expected + data["values"], atol=1e-5)
    np.testing.assert_array_equal(np.asarray(given["dones"]), data["dones"])


def test_every_boundary() -> None:
    report = conformance.check(cleanrl.gae, "cleanrl")
    assert report.ok, str(report)
    assert {"terminated in the last row", "environments that end at different rows"} <= {
        result.scenario.name for result in report.right
    }


def test_no_rows() -> None:
    empty = np.zeros((0, 3), np.float32)
    result = cleanrl.gae(empty, empty, empty, np.zeros(3, np.float32), np.zeros(3), 0.9, 0.9)
    assert result.advantages.shape == (0, 3)


def test_replay_rows() -> None:
    """Shapes and dtypes that the scripts index, and every field of every row."""
    rb = cleanrl.ReplayBuffer(
        64, spaces.Box(-9, 9, (3,)), spaces.Discrete(5), "cpu", n_envs=2, handle_timeout_termination=False, seed=3
    )
    generator = np.random.default_rng(0)
    stored: dict[bytes, tuple[Any, ...]] = {}
    obs = generator.standard_normal((2, 3)).astype(np.float32)
    for step in range(20):
        actions, rewards = generator.integers(0, 5, 2), generator.standard_normal(2)
        terminations, truncations = np.array([step % 7 == 6, False]), np.array([False, step % 5 == 4])
        next_obs = generator.standard_normal((2, 3)).astype(np.float32)
        real_next_obs = np.where(truncations[:, None], generator.standard_normal((2, 3)), next_obs).astype(np.float32)
        rb.add(obs, real_next_obs, actions, rewards, terminations, {})
        for e in range(2):
            stored[obs[e].tobytes()] = actions[e], np.float32(rewards[e]), real_next_obs[e], terminations[e]
        obs = next_obs
    assert rb.size() == 40
    data = rb.sample(500)
    assert data.actions.dtype == torch.int64
    assert {x.shape for x in (data.actions, data.rewards, data.dones, data.discounts)} == {(500, 1)}
    assert {x.dtype for x in (data.rewards, data.dones, data.observations)} == {torch.float32}
    for i in range(500):
        action, reward, final, terminated = stored[data.observations[i].numpy().tobytes()]
        assert (int(data.actions[i]), float(data.rewards[i]), bool(data.dones[i])) == (action, reward, terminated)
        np.testing.assert_array_equal(data.next_observations[i].numpy(), final)  # row B1: at time limits, too
    assert torch.equal(data.discounts, torch.full((500, 1), 0.99))


def test_replay_rows_of_a_time_limit_and_several_steps() -> None:
    rb = cleanrl.ReplayBuffer(64, spaces.Box(-9, 9, (1,)), spaces.Box(-1, 1, (2,)), "cpu", n_step=3, gamma=0.5)
    for t in range(4):
        obs, next_obs = np.float32([[t]]), np.float32([[t + 1]])
        ended = t == 3
        rb.add(obs, next_obs, np.zeros((1, 2)), [1.0], [ended], [{"TimeLimit.truncated": ended}])
    data = rb.sample(100)
    assert data.actions.shape == (100, 2)
    assert not data.dones.any()  # a time limit is no termination
    rewards = dict(zip(data.observations[:, 0].tolist(), data.rewards[:, 0].tolist(), strict=True))
    discounts = dict(zip(data.observations[:, 0].tolist(), data.discounts[:, 0].tolist(), strict=True))
    assert rewards == {0.0: 1.75, 1.0: 1.75, 2.0: 1.5, 3.0: 1.0}
    assert discounts == {0.0: 0.125, 1.0: 0.125, 2.0: 0.25, 3.0: 0.5}  # row B4


FIRST, LAST = "advantages = torch.zeros_like(rewards).to(device)", "returns = advantages + values"
CALL = "advantages, returns = cleanrl.gae(rewards, values, dones, next_value, next_done, args.gamma, args.gae_lambda)\n"


def script(name: str) -> str:
    path = Path(str(CHECKOUT)) / "cleanrl" / name
    if not path.is_file():
        pytest.fail(f"{path} is missing: FASTAC_CLEANRL has to name a CleanRL checkout")
    return path.read_text(encoding="utf-8")


def edited(text: str) -> str:
    """The script with the diff of the door's docstring."""
    pattern = re.compile(rf"^( +){re.escape(FIRST)}\n.*?^ +{re.escape(LAST)}\n", re.MULTILINE | re.DOTALL)
    text, count = pattern.subn(lambda found: found[1] + CALL, text)
    assert count == 1
    return text.replace("import tyro\n", "import tyro\nfrom fastac.compat import cleanrl\n", 1)


@needs_checkout
@pytest.mark.parametrize(
    "name", ["ppo.py", "ppo_continuous_action.py", "ppo_atari.py", "ppo_atari_lstm.py", "rpo_continuous_action.py"]
)
def test_the_scripts_own_loop(name: str) -> None:
    """Its text, run on random rollouts: at most 1e-6 of the largest advantage apart."""
    pattern = re.compile(rf"^( +){re.escape(FIRST)}\n.*?^ +{re.escape(LAST)}\n", re.MULTILINE | re.DOTALL)
    found = pattern.search(script(name))
    assert found is not None
    lines = [line.removeprefix(found[1]) for line in found[0].splitlines()]
    loop = compile(ast.parse("\n".join(lines)), name, "exec")
    for seed in range(5):
        tensors = {key: torch.from_numpy(x) for key, x in rollout(seed).items()}
        tensors["next_value"] = tensors["next_value"].reshape(1, -1)

        class Args:
            num_steps, gamma, gae_lambda = 128, 0.99, 0.95

        names = {"torch": torch, "args": Args, "device": "cpu", **tensors}
        exec(loop, names)
        ours = cleanrl.gae(**tensors, gamma=0.99, gae_lambda=0.95)
        bound = 1e-6 * float(names["advantages"].abs().max())
        assert float((ours.advantages - names["advantages"]).abs().max()) <= bound
        assert float((ours.returns - names["returns"]).abs().max()) <= bound + 1e-6


# Runs the script given, as `python ppo.py` would, and says what its agent earns afterwards, and its weights' sum.
DRIVER = """
import runpy, sys
import gymnasium as gym, numpy as np, torch
torch.set_num_threads(1)
path, sys.argv = sys.argv[1], sys.argv[1:]
agent = runpy.run_path(path, run_name="__main__")["agent"]
env, earned = gym.make("CartPole-v1"), []
for seed in range(10):
    (obs, _), total, ended = env.reset(seed=seed), 0.0, False
    while not ended:
        with torch.no_grad():
            action = int(agent.actor(torch.as_tensor(obs)[None]).argmax())
        obs, reward, terminated, truncated, _ = env.step(action)
        total, ended = total + reward, terminated or truncated
    earned.append(total)
print("EARNED", np.mean(earned), sum(float(p.double().abs().sum()) for p in agent.parameters()))
"""


def run_script(text: str, folder: Path, *options: str) -> tuple[float, float]:
    folder.mkdir()
    (folder / "script.py").write_text(text, encoding="utf-8")
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), str(CHECKOUT)])
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, "script.py", "--no-cuda", *options],
        cwd=folder, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    _, earned, weights = done.stdout.splitlines()[-1].split()
    return float(earned), float(weights)


@needs_checkout
def test_the_edited_script_trains(tmp_path: Path) -> None:
    """The same weights as the script's own after an update, and a policy that balances after a minute's training."""
    before, after = script("ppo.py"), edited(script("ppo.py"))
    options = "--total-timesteps", "512"
    own, ours = run_script(before, tmp_path / "a", *options), run_script(after, tmp_path / "b", *options)
    assert ours[1] == pytest.approx(own[1], rel=1e-6)
    earned, _ = run_script(after, tmp_path / "c", "--total-timesteps", "20480", "--learning-rate", "1e-3")
    assert earned > 100, earned  # chance earns 20


@needs_checkout
@pytest.mark.parametrize("name", ["dqn.py", "ddpg_continuous_action.py", "sac_continuous_action.py"])
def test_scripts_that_replay(name: str, tmp_path: Path) -> None:
    """A few hundred steps with our rows."""
    text = script(name).replace(
        "from cleanrl_utils.buffers import ReplayBuffer", "from fastac.compat.cleanrl import ReplayBuffer"
    )
    assert "fastac" in text
    # gymnasium 1 calls it `final_obs`, and only with a reset in the same step.
    text = text.replace('infos["final_observation"][idx]', "next_obs[idx]")
    options = ["--total-timesteps", "300", "--learning-starts", "100"]
    if name != "dqn.py":
        options += ["--env-id", "Pendulum-v1"]
    (tmp_path / "script.py").write_text(text, encoding="utf-8")
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), str(CHECKOUT)])
    done = subprocess.run(
        [sys.executable, "script.py", "--no-cuda", *options],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
