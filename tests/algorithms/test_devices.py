"""`--device` of every algorithm: named where there is none, and a short training there is one."""

import dataclasses
import importlib
from typing import Any

import pytest
import torch

from fastac.algorithms import ALGORITHMS
from fastac.run import RunError

# Options of a training that is over at once.
SHORT: dict[str, dict[str, Any]] = {
    "policy_evaluation": {"num_batches": 4, "n_steps": (2,), "td_lambdas": (), "gradient_steps": (4,)},
    "reinforce": {"total_timesteps": 200},
    "actor_critic": {"total_timesteps": 200},
    "importance_weighted": {"total_timesteps": 200},
    "trpo": {"total_timesteps": 512},
    "ppo": {"total_timesteps": 2048},
    "off_policy": {"total_timesteps": 300},
    "sac": {"total_timesteps": 200, "learning_starts": 100, "batch_size": 32},
    "td3": {"total_timesteps": 200, "learning_starts": 100, "batch_size": 32},
    "ddpg": {"total_timesteps": 200, "learning_starts": 100, "batch_size": 32},
}


def config(name: str, **options: Any) -> Any:
    known = importlib.import_module(f"fastac.algorithms.{name}").Config
    names = {field.name for field in dataclasses.fields(known)}
    return known(**{key: value for key, value in options.items() if key in names})


def test_every_algorithm_is_here() -> None:
    assert set(SHORT) == set(ALGORITHMS)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_device_that_is_not_there_is_named(name: str) -> None:
    asked = config(name, device="cuda:99", num_envs=1)
    assert asked.device == "cuda:99"
    with pytest.raises(RunError, match="device: got 'cuda:99', which is not available here"):
        importlib.import_module(f"fastac.algorithms.{name}").train(asked)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", ALGORITHMS)
def test_on_cuda(name: str) -> None:
    result = importlib.import_module(f"fastac.algorithms.{name}").train(config(name, device="cuda", **SHORT[name]))
    assert result.finished
    if result.policy is not None:
        assert next(result.policy.actor.parameters()).is_cuda
