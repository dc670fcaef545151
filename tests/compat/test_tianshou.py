"""tianshou's door: its own return tests, every boundary, and training to the same weights.

`FASTAC_TIANSHOU=PATH pytest tests/compat/test_tianshou.py` runs the tests of a checkout at PATH, too.
"""

import importlib.util
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("tianshou", reason="tianshou is not installed: pip install tianshou")

from tianshou.algorithm import Algorithm
from tianshou.data import Batch, ReplayBuffer, VectorReplayBuffer

from bench import doors_tianshou
from fastac import conformance
from fastac.compat import tianshou as door

CHECKOUT = os.environ.get("FASTAC_TIANSHOU")
NAMES = "compute_episodic_return", "compute_nstep_return"
ORIGINAL = {name: vars(Algorithm)[name] for name in NAMES}


def test_it_is_put_in_and_taken_out() -> None:
    with door.returns():
        assert Algorithm.compute_episodic_return is door.compute_episodic_return
        with door.returns():
            assert Algorithm.compute_nstep_return is door.compute_nstep_return
        assert Algorithm.compute_nstep_return is door.compute_nstep_return
    assert {name: vars(Algorithm)[name] for name in NAMES} == ORIGINAL
    with pytest.raises(RuntimeError, match="inside"), door.returns():
        raise RuntimeError("inside")
    assert {name: vars(Algorithm)[name] for name in NAMES} == ORIGINAL


def test_another_tianshou_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Algorithm, "compute_nstep_return")
    with pytest.raises(AttributeError, match="compute_nstep_return"), door.returns():
        pass
    assert vars(Algorithm)["compute_episodic_return"] is ORIGINAL["compute_episodic_return"]


@pytest.mark.parametrize("estimator", ["gae", "n_step_returns"])
def test_every_boundary(estimator: str) -> None:
    """Tianshou's own spread a NaN that lies behind a termination: these do not."""
    function = {"gae": door.compute_episodic_return, "n_step_returns": door.compute_nstep_return}[estimator]
    report = conformance.check(function, "tianshou", estimator)
    assert report.ok, str(report)
    assert "a time limit is no termination" in {result.scenario.name for result in report.right}


def filled(seed: int, num_envs: int, length: int, capacity: int) -> Any:
    generator = np.random.default_rng(seed)
    buffer = VectorReplayBuffer(capacity, num_envs) if num_envs > 1 else ReplayBuffer(capacity)
    for _ in range(length):
        row = {
            "obs": generator.random((num_envs, 2)), "act": np.zeros(num_envs), "obs_next": np.zeros((num_envs, 2)),
            "rew": generator.standard_normal(num_envs), "info": Batch(),
            "terminated": generator.random(num_envs) < 0.1, "truncated": generator.random(num_envs) < 0.1,
        }  # fmt: skip
        batch = Batch(row)
        buffer.add(batch, buffer_ids=np.arange(num_envs)) if num_envs > 1 else buffer.add(batch[0])
    return buffer


@pytest.mark.parametrize(("num_envs", "length", "capacity"), [(1, 30, 100), (1, 130, 50), (4, 40, 200), (3, 90, 60)])
def test_the_same_as_its_own(num_envs: int, length: int, capacity: int) -> None:
    """Buffers filled in part, and such that wrapped around: ends, unfinished episodes, several values a row."""
    buffer = filled(0, num_envs, length, capacity)
    generator = np.random.default_rng(1)
    indices = buffer.sample_indices(0)
    batch, values = buffer[indices], generator.standard_normal((2, len(indices))).astype(np.float32)
    for arguments in (
        (values[0], values[1], 0.9, 0.8),
        (torch.from_numpy(values[0]), None, 0.9, 0.8),
        (None, None, 0.9, 1.0),
    ):
        theirs = ORIGINAL["compute_episodic_return"](batch, buffer, indices, *arguments)
        ours = door.compute_episodic_return(batch, buffer, indices, *arguments)
        for mine, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(mine, other, atol=1e-12)
    chosen = generator.choice(indices, 64)
    targets = torch.from_numpy(generator.standard_normal((capacity + num_envs, 3)))
    for n_step in (1, 2, 5):
        for columns in (1, 3):

            def target_q_fn(_: Any, places: Any, columns: int = columns) -> torch.Tensor:
                return targets[places, :columns].clone()

            theirs, ours = (
                function(buffer[chosen], buffer, chosen, target_q_fn, 0.9, n_step).returns
                for function in (ORIGINAL["compute_nstep_return"], door.compute_nstep_return)
            )
            assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
            np.testing.assert_allclose(ours, theirs, atol=1e-12)


def test_wrong_arguments() -> None:
    buffer = filled(0, 1, 10, 20)
    indices = buffer.sample_indices(0)
    with pytest.raises(ValueError, match="v_s_"):
        door.compute_episodic_return(buffer[indices], buffer, indices, gae_lambda=0.5)
    with pytest.raises(ValueError, match="indices"):
        door.compute_nstep_return(buffer[indices], buffer, indices[:3], lambda *_: torch.zeros(3))


def test_the_target_is_left_alone() -> None:
    """Tianshou's own zeroes the target's memory where a row terminated."""
    buffer = filled(0, 1, 30, 40)
    indices = buffer.sample_indices(0)
    target = torch.ones(len(indices), 1)
    door.compute_nstep_return(buffer[indices], buffer, indices, lambda *_: target)
    assert torch.equal(target, torch.ones(len(indices), 1))


def test_training_ends_in_the_same_weights() -> None:
    _, theirs = doors_tianshou.train(1, rollout=256)
    _, ours = doors_tianshou.train(1, ours=True, rollout=256)
    assert ours == pytest.approx(theirs, rel=1e-6)
    assert {name: vars(Algorithm)[name] for name in NAMES} == ORIGINAL


@pytest.mark.skipif(CHECKOUT is None, reason="no tianshou checkout: FASTAC_TIANSHOU=PATH names one")
def test_its_own_tests() -> None:
    """test/base/test_returns.py as it stands, with our functions inside."""
    path = Path(str(CHECKOUT)) / "test" / "base" / "test_returns.py"
    assert path.is_file(), f"{path} is missing: FASTAC_TIANSHOU has to name a tianshou checkout"
    spec = importlib.util.spec_from_file_location("tianshou_test_returns", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    tests = [getattr(module, name) for name in dir(module) if name.startswith("test_")]
    assert len(tests) >= 3
    with door.returns():
        for test in tests:
            test()
