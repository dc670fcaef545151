"""The README's diffs: what they take away and what they put in its place run on the installed library and agree."""

import re
import sys
import textwrap
from functools import partial
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from fresh import ROOT
from test_token_trainers import verl_namespace

BLOCKS = {
    found[1]: block
    for block in re.findall(r"^```diff\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)
    if (found := re.search(r"^\+from fastac\.compat(?:\.| import )(\w+)", block, re.MULTILINE))
}


def lines(library: str, sign: str) -> str:
    """The lines that a diff takes away (-) or puts in (+), as a program."""
    chosen = [line[1:] for line in BLOCKS[library].splitlines() if line.startswith(sign)]
    outer = [line for line in chosen if not line.startswith(" ")]  # imports stand at the file's head
    return "\n".join(outer) + "\n" + textwrap.dedent("\n".join(line for line in chosen if line.startswith(" ")))


def test_there_is_one_for_each() -> None:
    assert set(BLOCKS) == {"sb3", "cleanrl", "torchrl", "tianshou", "tokens"}


def test_sb3() -> None:
    """Every line that makes a model makes one that learns, its buffer ours or its own."""
    pytest.importorskip("stable_baselines3", reason="Stable-Baselines3 is not installed: pip install stable-baselines3")
    import gymnasium as gym
    from stable_baselines3 import PPO, SAC
    from stable_baselines3.common import buffers

    made: dict[str, list[Any]] = {"-": [], "+": []}
    for sign, models in made.items():
        names: dict[str, Any] = {"PPO": partial(PPO, n_steps=16, batch_size=16), "SAC": SAC}
        for line in lines("sb3", sign).splitlines():
            names["env"] = gym.make("Pendulum-v1")
            exec(line, names)
            if line.startswith("model"):
                models.append(names["model"].learn(102))
    own, ours = ([getattr(m, "rollout_buffer", None) or m.replay_buffer for m in made[sign]] for sign in made)
    assert {type(buffer) for buffer in own} == {buffers.RolloutBuffer, buffers.ReplayBuffer}
    assert [type(buffer).__module__.startswith("fastac.compat.sb3") for buffer in ours] == [True] * 3
    assert [type(buffer).__name__ for buffer in ours] == ["RolloutBuffer", "ReplayBuffer", "PrioritizedReplayBuffer"]


def test_cleanrl() -> None:
    """The line that comes in, against the loop that goes; the ends of that loop are those that scripts have."""
    assert "advantages = torch.zeros_like(rewards).to(device)\n" in lines("cleanrl", "-")
    assert lines("cleanrl", "-").endswith("returns = advantages + values")
    generator = torch.Generator().manual_seed(0)
    rewards, values, uniform = (torch.rand(16, 3, generator=generator) for _ in range(3))
    names: dict[str, Any] = {
        "args": SimpleNamespace(gamma=0.9, gae_lambda=0.8), "rewards": rewards, "values": values,
        "dones": (uniform < 0.2).float(), "next_value": values[:1] + 1.0, "next_done": torch.tensor([0.0, 1.0, 0.0]),
    }  # fmt: skip
    exec(lines("cleanrl", "+"), names)
    following, ended, carry = names["next_value"][0], names["next_done"], torch.zeros(3)
    for t in reversed(range(16)):
        carry = rewards[t] + 0.9 * following * (1 - ended) - values[t] + 0.9 * 0.8 * (1 - ended) * carry
        torch.testing.assert_close(names["advantages"][t], carry)
        following, ended = values[t], names["dones"][t]
    torch.testing.assert_close(names["returns"], names["advantages"] + values)


def test_torchrl() -> None:
    pytest.importorskip("torchrl", reason="TorchRL is not installed: pip install torchrl")
    from tensordict import TensorDict
    from tensordict.nn import TensorDictModule
    from torchrl.objectives.value import GAE

    from fastac.compat import torchrl as door

    generator = torch.Generator().manual_seed(0)
    flags = torch.rand(2, 16, 1, generator=generator) < 0.2
    following = {"reward": torch.rand(2, 16, 1, generator=generator), "done": flags, "terminated": flags}
    following["observation"] = torch.rand(2, 16, 3, generator=generator)
    root = {"observation": torch.rand(2, 16, 3, generator=generator), "next": TensorDict(following, (2, 16))}
    network = TensorDictModule(torch.nn.Linear(3, 1), in_keys=["observation"], out_keys=["state_value"])
    found = []
    for sign in "-+":
        rows = TensorDict(root, (2, 16), names=[None, "time"]).clone()
        module = GAE(gamma=0.9, lmbda=0.8, value_network=network, vectorized=True)
        with pytest.MonkeyPatch.context() as patch:
            for name in door.THEIRS if sign == "+" else ():
                patch.setitem(door.THEIRS, name, None)  # whatever is handed on would fail
            exec(lines("torchrl", sign), {"advantage_module": module, "tensordict": rows})
        found.append(rows)
    for key in ("advantage", "value_target"):
        torch.testing.assert_close(found[1][key], found[0][key], rtol=1e-4, atol=1e-5)


def test_tianshou() -> None:
    """Both programs train, the second with our functions in the place of tianshou's."""
    pytest.importorskip("tianshou", reason="tianshou is not installed: pip install tianshou")
    from tianshou.algorithm import Algorithm

    from fastac.compat import tianshou as door

    calls = []

    class Trained:
        def run_training(self, params: Any) -> None:
            calls.append((params, Algorithm.compute_episodic_return is door.compute_episodic_return))

    for sign in "-+":
        exec(lines("tianshou", sign), {"algorithm": Trained(), "params": "params"})
    assert calls == [("params", False), ("params", True)]


def test_verl(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the trainer calls by name is ours. Importing its module takes Ray: one with its function's text will do."""
    core_algos = verl_namespace()
    theirs = core_algos.compute_gae_advantage_return
    for name in ("verl", "verl.trainer", "verl.trainer.ppo"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setattr(sys.modules["verl.trainer.ppo"], "core_algos", core_algos, raising=False)
    exec(lines("tokens", "+"), {})
    generator = np.random.default_rng(0)
    rewards, values = torch.from_numpy(generator.standard_normal((2, 4, 9), np.float32))
    mask = torch.from_numpy(np.arange(9) < generator.integers(3, 9, (4, 1))).long()
    rewards *= mask  # one on a masked token is moved, where verl drops it
    ours = core_algos.compute_gae_advantage_return
    assert ours is not theirs
    for mine, other in zip(ours(rewards, values, mask, 0.9, 0.8), theirs(rewards, values, mask, 0.9, 0.8), strict=True):
        torch.testing.assert_close(mine * mask, other * mask, rtol=1e-4, atol=1e-4)
