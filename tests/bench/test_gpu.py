"""`python -m bench gpu`, at tiny sizes on the CPU: so that it does not fail on its first day with a device."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from fresh import ROOT

from bench import gpu, gpu_learners, gpu_peers, gpu_replay, gpu_timing
from fastac.algorithms import actor_critic, ppo, sac
from fastac.buffers import Batch

CPU = torch.device("cpu")


def errors(part: Any) -> list[Any]:
    """Every error in a result, but for what needs a device."""
    if isinstance(part, dict):
        own = [part["error"]] if part.get("error", "needs CUDA") != "needs CUDA" else []
        return own + [found for value in part.values() for found in errors(value)]
    return [found for value in part for found in errors(value)] if isinstance(part, list) else []


def test_all_parts_run_and_agree_with_the_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    result = gpu.run(CPU, seconds=0.002, tiny=True, backend=None)
    assert not errors(result["parts"])
    assert list(result["parts"])[:5] == ["estimators", "replay", "tokens", "loss", "learners"]
    assert all(0 <= row["error_against_cpu"] < 1e-5 for row in result["parts"]["estimators"])
    assert len(result["parts"]["estimators"]) == 2 * 6
    for row in result["parts"]["gae against peers"]:
        found = {name: x for name, x in row["results"].items() if "error" not in x}
        assert set(found) == {"fastac", "torch loop", "torch.compile doubling"}
        assert all(x["call_us"] > 0 and x["fraction"] >= 0 for x in found.values())
    assert set(result["parts"]["gae against a compiled loop"][0]["results"]) == {"fastac", "torch.compile loop"}
    assert result["parts"]["loss"]["difference"] < 1e-4
    assert [set(row["results"]) for row in result["parts"]["learners"]] == [
        {"eager", "compiled", "graphed", "compiled and graphed"}
    ] * 3
    json.dumps(result)


def test_without_a_device_it_says_so_in_one_line() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    command = [sys.executable, "-c", "import sys; sys.modules['gymnasium'] = None\n"
               "sys.argv = ['bench', 'gpu']; import runpy; runpy.run_module('bench', run_name='__main__')"]  # fmt: skip
    found = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": found})
    assert done.returncode == 2
    assert done.stderr == "gpu: there is no CUDA device that PyTorch can use: nothing was measured\n"


def test_a_part_that_fails_leaves_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of memory\nmore")

    for name in ("ours", "tokens", "loss", "against_peers"):
        monkeypatch.setattr(gpu.gpu_estimators, name, broken)
    monkeypatch.setattr(gpu.gpu_learners, "run", broken)
    result = gpu.run(CPU, seconds=0.002, tiny=True, backend=None)
    assert result["parts"]["loss"] == {"error": "RuntimeError: out of memory"}
    assert not errors(result["parts"]["replay"])
    monkeypatch.setattr(gpu, "LIMIT", -1.0)
    assert "left out" in gpu.run(CPU, seconds=0.002, tiny=True, backend=None)["parts"]["replay"]["error"]


def test_a_contender_that_fails_does_not_stop_the_others() -> None:
    found = gpu_timing.measure({"bad": lambda: 1 / 0, "good": lambda: None}, CPU, seconds=0.001)
    assert found["bad"] == {"error": "ZeroDivisionError: division by zero"}
    assert found["good"]["call_us"] >= 0


def test_the_sum_tree_is_one() -> None:
    tree = gpu_replay.SumTree(5, CPU)
    tree.update(torch.arange(5), torch.tensor([1.0, 0.0, 2.0, 3.0, 4.0], dtype=torch.float64))
    assert tree.levels[0] == 10
    index, leaves = tree.sample(20_000)
    counts = torch.bincount(index, minlength=8) / 20_000
    torch.testing.assert_close(counts[:5], torch.tensor([0.1, 0.0, 0.2, 0.3, 0.4]), atol=0.02, rtol=0)
    assert torch.equal(leaves, tree.levels[-1][index])


def test_peers_that_are_left_out_say_why() -> None:
    found = gpu_peers.contenders(131_072, CPU, None)
    assert found["torch loop"] == "left out: 131072 steps"
    assert found["torch associative_scan"] == "needs CUDA"


def test_the_sac_learner_is_the_algorithms() -> None:
    """The same weights, batch and noise: the same parameters after an update with a turn of the actor."""
    config = sac.Config(batch_size=16, hidden_sizes=(8, 8), buffer_size=100, policy_frequency=1)
    agent = sac.SAC(config)
    for _ in range(40):
        agent.experience.step(agent.experience.random_actions())
    batch, noises = agent.experience.sample(16), [agent.noise(), agent.noise()]
    learner = gpu_learners.SAC(3, 1, 8, CPU)
    learner.actor.load_state_dict(agent.actor.network.state_dict())
    for ours, theirs in zip(learner.q, agent.q.networks, strict=True):
        ours.load_state_dict(theirs.state_dict())
    learner.target.load_state_dict(learner.q.state_dict())
    for _ in range(2):
        agent.gradient_step(batch, noises)
        learner.step(batch, noises)
    for module, other in ((learner.actor, agent.actor), (learner.q, agent.q), (learner.target, agent.target.network)):
        for p, q in zip(module.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(learner.log_alpha, agent.log_alpha, rtol=1e-4, atol=1e-5)
    agent.experience.close()


def test_the_ppo_learner_is_the_algorithms() -> None:
    agent = ppo.PPO(ppo.Config(hidden_sizes=(8, 8), num_envs=2, num_steps=8))
    learner = gpu_learners.PPO(4, 2, 8, CPU)
    learner.actor.load_state_dict(agent.actor.network.state_dict())
    learner.critic.load_state_dict(agent.critic.state_dict())
    rows, clip_coef = learner.arguments(32, 4, 2, CPU)
    agent.optimizer.param_groups[0]["lr"] = 2.5e-4
    for _ in range(2):
        learner.step(rows, clip_coef)
        agent.step(Batch(*rows), clip_coef)
    ours = [*learner.actor.parameters(), *learner.critic.parameters()]
    for p, q in zip(ours, agent.parameters, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)
    agent.collector.close()


def test_the_a2c_learner_is_the_algorithms() -> None:
    agent = actor_critic.ActorCritic(actor_critic.Config(hidden_sizes=(8, 8), num_envs=2, num_steps=8))
    learner = gpu_learners.A2C(4, 2, 8, CPU)
    learner.actor.load_state_dict(agent.actor.network.state_dict())
    learner.critic.load_state_dict(agent.critic.state_dict())
    (rows,) = learner.arguments(40, 4, 2, CPU)
    for _ in range(2):
        found = learner.step(rows)
        torch.testing.assert_close(found, agent.step(actor_critic.Batch(*rows)), rtol=1e-4, atol=1e-5)
    ours = [*learner.actor.parameters(), *learner.critic.parameters()]
    for p, q in zip(ours, agent.parameters, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)
    agent.collector.close()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_cuda_at_tiny_sizes() -> None:
    result = gpu.run(torch.device("cuda"), seconds=0.01, tiny=True)
    assert not errors(result["parts"])
