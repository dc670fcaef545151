"""TorchRL's door: its functions' numbers, its modules, every boundary, and a prioritized sampler.

`FASTAC_TORCHRL=PATH pytest tests/compat/test_torchrl.py` runs the GAE tests of a checkout at PATH, too.
"""

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fresh import SOURCES
from torch import Tensor, nn

pytest.importorskip("torchrl", reason="TorchRL is not installed: pip install torchrl")

from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torchrl.data import LazyTensorStorage, ReplayBuffer, TensorDictReplayBuffer
from torchrl.objectives.value import GAE, TD1Estimator, TDLambdaEstimator, VTrace, advantages, functional

from bench import doors_torchrl
from fastac import conformance
from fastac.compat import torchrl as door

CHECKOUT = os.environ.get("FASTAC_TORCHRL")
# Ours, TorchRL's plain one, what it takes before the arrays, and which arrays.
FUNCTIONS: dict[str, tuple[Callable[..., Any], Callable[..., Any], int, str]] = {
    "gae": (door.generalized_advantage_estimate, functional.generalized_advantage_estimate, 2, "value next reward"),
    "td1": (door.td1_return_estimate, functional.td1_return_estimate, 1, "next reward"),
    "td_lambda": (door.td_lambda_return_estimate, functional.td_lambda_return_estimate, 2, "next reward"),
    "vtrace": (door.vtrace_advantage_estimate, functional.vtrace_advantage_estimate, 1, "pi mu value next reward"),
}
ESTIMATORS = {"gae": "gae", "td1": "discounted_returns", "td_lambda": "lambda_returns", "vtrace": "vtrace"}


def arrays(shape: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    made = {
        name: torch.randn(shape, generator=generator, dtype=dtype) for name in ("value", "next", "reward", "pi", "mu")
    }
    terminated = torch.rand(shape, generator=generator) < 0.1
    return made | {"terminated": terminated, "done": terminated | (torch.rand(shape, generator=generator) < 0.1)}


def close(mine: Tensor, other: Tensor) -> None:
    """TorchRL's discounts are float32 in float64, too."""
    torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


def both(name: str, data: dict[str, Tensor], scalars: Any = (0.9, 0.8), **options: Any) -> Any:
    ours, theirs, count, wanted = FUNCTIONS[name]
    given = [*scalars[:count], *(data[key] for key in (*wanted.split(), "done", "terminated"))]
    found = []
    for function in (ours, theirs):
        result = function(*given, **options)
        found.append(result if isinstance(result, tuple) else (result,))
    return found


@pytest.mark.parametrize("shape", [(1, 5, 1), (3, 40, 1), (2, 3, 17, 1), (40, 3), (3, 40, 2), (2, 1, 1)])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_its_numbers(name: str, shape: tuple[int, ...]) -> None:
    """Batches of any number of dimensions, features, no batch at all."""
    for mine, other in zip(*both(name, arrays(shape)), strict=True):
        assert (mine.shape, mine.dtype) == (other.shape, other.dtype)
        close(mine, other)


@pytest.mark.parametrize("time_dim", [0, 1, 2, -3, -1])
@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name != "vtrace"])  # TorchRL's takes -2 alone
def test_any_dimension_may_be_time(name: str, time_dim: int) -> None:
    for mine, other in zip(*both(name, arrays((4, 5, 6)), time_dim=time_dim), strict=True):
        close(mine, other)


@pytest.mark.parametrize("time_dim", [0, 1, -1])
def test_vtrace_along_any_dimension(time_dim: int) -> None:
    data = arrays((4, 5, 6))
    moved = {key: x.movedim(time_dim, -2) for key, x in data.items()}
    given = [data[key] for key in ("pi", "mu", "value", "next", "reward", "done", "terminated")]
    ours = door.vtrace_advantage_estimate(0.9, *given, time_dim=time_dim)
    for mine, other in zip(ours, both("vtrace", moved)[1], strict=True):
        close(mine.movedim(time_dim, -2), other)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_boundary(name: str) -> None:
    """TorchRL's own spread a NaN that lies behind a termination, and fail at lambda 0: these do not."""
    report = conformance.check(FUNCTIONS[name][0], "torchrl", ESTIMATORS[name])
    assert report.ok, str(report)
    assert "a time limit is no termination" in {result.scenario.name for result in report.right}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_time_limit_inside_the_window(name: str) -> None:
    """Rows R5 and R8: the future of a row that was cut is its own next value; what follows does not reach it."""
    data = arrays((1, 6, 1))
    data["terminated"] = torch.zeros(1, 6, 1, dtype=torch.bool)
    data["done"] = data["terminated"].clone()
    data["done"][0, 2] = True
    whole = both(name, data)[0]
    part = both(name, {key: x[:, :3] for key, x in data.items()})[0]
    for all_rows, first_rows in zip(whole, part, strict=True):
        torch.testing.assert_close(all_rows[:, :3], first_rows)


def test_lambda_0() -> None:
    """Row R6: TorchRL's own raises IndexError here."""
    data = arrays((2, 5, 1))
    result, _ = door.generalized_advantage_estimate(
        0.9, 0.0, data["value"], data["next"], data["reward"], data["done"], data["terminated"]
    )
    expected = data["reward"] + 0.9 * data["next"] * ~data["terminated"] - data["value"]
    torch.testing.assert_close(result, expected)


def test_what_is_handed_to_torchrl() -> None:
    """Gradients, a gamma for each row, shapes that it refuses, what torch.compile traces."""
    data = arrays((2, 5, 1))
    given = [data[key] for key in ("value", "next", "reward", "done", "terminated")]
    differentiable = door.generalized_advantage_estimate(0.9, 0.8, given[0].requires_grad_(), *given[1:])[0]
    assert differentiable.requires_grad
    with torch.no_grad():
        assert not door.generalized_advantage_estimate(0.9, 0.8, *given)[0].requires_grad
        gammas = torch.full((2, 5, 1), 0.9, dtype=torch.float64)
        found = door.generalized_advantage_estimate(gammas, 0.8, *given)[0]
        close(found, door.generalized_advantage_estimate(0.9, 0.8, *given)[0])
        with pytest.raises(RuntimeError, match="shape"):
            door.generalized_advantage_estimate(0.9, 0.8, given[0][:, :3], *given[1:])
        without = door.generalized_advantage_estimate(0.9, 0.8, *given[:4])[0]
        torch.testing.assert_close(without, door.generalized_advantage_estimate(0.9, 0.8, *given[:4], given[3])[0])


class Values(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Linear(3, 1)

    def forward(self, observation: Tensor) -> Tensor:
        result: Tensor = self.net(observation)
        return result


def rollout() -> TensorDict:
    generator = torch.Generator().manual_seed(1)
    shape = (4, 25)
    terminated = torch.rand(*shape, 1, generator=generator) < 0.1
    done = terminated | (torch.rand(*shape, 1, generator=generator) < 0.1)
    observations = torch.randn(2, *shape, 3, generator=generator)
    following = {
        "observation": observations[1], "reward": torch.randn(*shape, 1, generator=generator),
        "done": done, "terminated": terminated,
    }  # fmt: skip
    root = {"observation": observations[0], "next": TensorDict(following, shape)}
    return TensorDict(root, shape, names=[None, "time"])


@pytest.mark.parametrize("vectorized", [False, True])
@pytest.mark.parametrize("kind", ["gae", "td1", "td_lambda"])
def test_its_modules(kind: str, vectorized: bool) -> None:
    """The module's own numbers, and ours are what it called."""
    network = TensorDictModule(Values(), in_keys=["observation"], out_keys=["state_value"])
    options: dict[str, Any] = {"gamma": 0.9, "value_network": network}
    module: Any = {
        "gae": lambda: GAE(lmbda=0.8, vectorized=vectorized, **options),
        "td1": lambda: TD1Estimator(**options),
        "td_lambda": lambda: TDLambdaEstimator(lmbda=0.8, vectorized=vectorized, **options),
    }[kind]()
    own = module(rollout())
    originals = dict(vars(advantages))
    with door.returns():
        assert advantages.vec_generalized_advantage_estimate is door.generalized_advantage_estimate
        with pytest.MonkeyPatch.context() as patch:
            for name in door.THEIRS:
                patch.setitem(door.THEIRS, name, None)  # whatever is handed on would fail
            ours = module(rollout())
    assert dict(vars(advantages)) == originals
    for key in ("advantage", "value_target"):
        torch.testing.assert_close(ours[key], own[key], rtol=1e-4, atol=1e-5)


def test_the_vtrace_module_finds_ours() -> None:
    assert VTrace.forward.__globals__ is vars(advantages)
    with door.returns():
        assert VTrace.forward.__globals__["vtrace_advantage_estimate"] is door.vtrace_advantage_estimate


def sampler(**options: Any) -> door.PrioritizedSampler:
    return door.PrioritizedSampler(**({"max_capacity": 8, "alpha": 0.5, "beta": 0.7, "eps": 0.0} | options))


def buffer(size: int = 8, rows: int = 5, batch_size: int = 1000, **options: Any) -> ReplayBuffer:
    made = ReplayBuffer(
        storage=LazyTensorStorage(size), sampler=sampler(max_capacity=size, **options), batch_size=batch_size
    )
    made.extend(torch.arange(rows, dtype=torch.float32))
    return made


def test_draws_in_proportion_to_a_power_of_the_priority() -> None:
    """And weights by hand; a priority of 0 is never drawn, nor is what was not stored (row B7)."""
    replay = buffer()
    priorities = torch.tensor([4.0, 0.0, 1.0, 9.0, 0.25])
    replay.update_priority(torch.arange(5), priorities)
    batch, info = replay.sample(return_info=True)
    shares = priorities.sqrt() / priorities.sqrt().sum()
    drawn = torch.bincount(info["index"], minlength=8)
    assert (drawn[:5] - 1000 * shares).abs().max() < 1.0 + 1e-9  # stratified
    assert drawn[1] == 0
    assert drawn[5:].sum() == 0
    torch.testing.assert_close(batch, info["index"].float())
    expected = shares[info["index"]] ** -0.7
    torch.testing.assert_close(info["priority_weight"], expected / expected.max())


def test_new_rows_get_the_largest_priority() -> None:
    """Row B8: the raw one, not transformed twice, and not that of a row which is gone, where that is asked for."""
    replay = buffer(size=4, rows=3)
    assert replay._sampler.default_priority == 1.0
    replay.update_priority(torch.tensor([0, 1]), torch.tensor([4.0, 9.0]))
    replay.extend(torch.tensor([7.0, 8.0]))  # places 3 and 0
    assert replay._sampler._priorities.tolist() == [9.0, 9.0, 1.0, 9.0]
    assert replay._sampler._tree.leaves.tolist() == [3.0, 3.0, 1.0, 3.0]
    within = buffer(size=4, rows=4, max_priority_within_buffer=True)
    within.update_priority(torch.tensor([0]), torch.tensor([9.0]))
    within.update_priority(torch.tensor([0]), torch.tensor([0.5]))
    assert within._sampler.default_priority == 1.0
    assert buffer(rows=3)._sampler.default_priority == 1.0


def test_same_seed_same_draws() -> None:
    """Row B13: nobody else's draws matter."""
    first, second, other = buffer(seed=1), buffer(seed=1), buffer(seed=2)
    a = first.sample(32)
    np.random.seed(3)  # noqa: NPY002
    torch.manual_seed(3)
    b = second.sample(32)
    assert torch.equal(a, b)
    assert not torch.equal(first.sample(32), other.sample(32))
    for replay in (first, other):
        replay.set_rng(torch.Generator().manual_seed(5))
    assert torch.equal(first.sample(32), other.sample(32))


def test_saved_and_loaded(tmp_path: Path) -> None:
    replay = buffer(seed=4)
    replay.update_priority(torch.arange(4), torch.tensor([1.0, 2.0, 0.0, 5.0]))
    replay.sample(10)
    state = copy.deepcopy(replay.state_dict())
    replay.dumps(tmp_path / "replay")
    expected = replay.sample(50, return_info=True)
    for load in (lambda other: other.load_state_dict(state), lambda other: other.loads(tmp_path / "replay")):
        other = buffer(rows=1, alpha=0.1, seed=9)
        load(other)
        found = other.sample(50, return_info=True)
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1]["priority_weight"], expected[1]["priority_weight"])
        assert other._sampler.default_priority == 5.0
    with pytest.raises(ValueError, match="expected \\(4,\\)"):
        sampler(max_capacity=4).load_state_dict(state["_sampler"])


def test_alpha_set_anew_holds_for_what_is_stored() -> None:
    replay = buffer()
    replay.update_priority(torch.arange(5), torch.tensor([4.0, 0.0, 1.0, 9.0, 0.25]))
    replay._sampler.alpha = 1.0
    assert replay._sampler._tree.leaves.tolist() == [4.0, 0.0, 1.0, 9.0, 0.25, 0.0, 0.0, 0.0]


def test_a_tensordict_buffer() -> None:
    """`update_tensordict_priority` reads the key, and the sample carries its weights."""
    replay = TensorDictReplayBuffer(
        storage=LazyTensorStorage(20), sampler=sampler(max_capacity=20), priority_key="td_error", batch_size=64
    )
    replay.extend(TensorDict({"x": torch.arange(12.0), "td_error": torch.rand(12) + 0.5}, [12]))
    sample = replay.sample()
    assert {"index", "priority_weight"} <= set(sample.keys())
    sample["td_error"] = torch.where(sample["x"] == 3, 1000.0, 0.0)
    replay.update_tensordict_priority(sample)
    drawn = replay.sample()
    assert (drawn["x"] == 3).float().mean() > 0.5
    replay.empty()
    replay.extend(TensorDict({"x": torch.arange(2.0), "td_error": torch.ones(2)}, [2]))
    assert set(replay.sample()["x"].tolist()) == {0.0, 1.0}


def test_storage_of_two_dimensions() -> None:
    replay = ReplayBuffer(
        storage=LazyTensorStorage(12, ndim=2), sampler=sampler(max_capacity=12, alpha=1.0), batch_size=200
    )
    replay.extend(torch.arange(8).reshape(2, 4).float())
    # Places are (time, batch), and rows came as (batch, time).
    replay.update_priority(torch.tensor([[0, 1], [3, 0], [-1, -1]]), torch.tensor([50.0, 44.0, 7.0]))
    batch, info = replay.sample(return_info=True)
    assert len(info["index"]) == 2
    assert torch.bincount(batch.long(), minlength=8).tolist() == [2, 2, 2, 88, 100, 2, 2, 2]


def test_errors() -> None:
    replay = buffer()
    with pytest.raises(RuntimeError, match="empty storage"):
        ReplayBuffer(storage=LazyTensorStorage(8), sampler=sampler()).sample(3)
    for wrong in (float("nan"), float("inf"), -1.0):
        with pytest.raises(ValueError, match="priority"):
            replay.update_priority(torch.tensor([0, 1]), torch.tensor([1.0, wrong]))
    with pytest.raises(ValueError, match="3 for 2 places"):
        replay.update_priority(torch.tensor([0, 1]), torch.ones(3))
    with pytest.raises(IndexError, match="less than 8"):
        replay.update_priority(torch.tensor([8]), torch.ones(1))
    storage = LazyTensorStorage(8, ndim=2)
    storage.set(torch.arange(2), torch.zeros(2, 2))
    with pytest.raises(IndexError, match=r"\(2, 2\)"):
        sampler().update_priority(torch.tensor([[0, 9]]), 1.0, storage=storage)
    replay.update_priority(torch.tensor([-1, 2]), torch.tensor([3.0, 4.0]))  # -1: a writer's "not stored"
    assert replay._sampler._priorities[2] == 4.0
    replay.update_priority(torch.arange(5), 0.0)
    with pytest.raises(RuntimeError, match="every priority is 0"):
        replay.sample()
    for name in ("alpha", "beta", "eps"):
        with pytest.raises(ValueError, match=name):
            sampler(**{name: -1.0})
    with pytest.raises(ValueError, match="max_capacity"):
        sampler(max_capacity=0)


def test_it_is_a_prioritized_sampler_of_theirs() -> None:
    """Buffers ask, and then give rows that are there already the largest priority."""
    from torchrl.data.replay_buffers.samplers import PrioritizedSampler

    assert issubclass(door.PrioritizedSampler, PrioritizedSampler)
    storage = LazyTensorStorage(8)
    ReplayBuffer(storage=storage, batch_size=2).extend(torch.arange(3.0))
    later = ReplayBuffer(storage=storage, sampler=sampler(), batch_size=300)
    assert torch.bincount(later.sample().long()).tolist() == [100, 100, 100]


@pytest.mark.parametrize("vectorized", [False, True])
def test_training_ends_in_the_same_weights(vectorized: bool) -> None:
    """PPO with its collector, `GAE`, replay buffer and `ClipPPOLoss`, and the diff of the README."""
    own, weights = doors_torchrl.train(1, vectorized=vectorized, rollout=256)
    ours, same = doors_torchrl.train(1, ours=True, vectorized=vectorized, rollout=256)
    assert same == pytest.approx(weights, rel=1e-6)
    assert min(own.part, ours.part) > 0  # both were called


# Ours in place of TorchRL's functions, before its tests import them.
PLUGIN = """
from torchrl.objectives.value import functional
from fastac.compat import torchrl as door
functional.generalized_advantage_estimate = door.generalized_advantage_estimate
functional.vec_generalized_advantage_estimate = door.generalized_advantage_estimate
functional.vtrace_advantage_estimate = door.vtrace_advantage_estimate
functional.td_lambda_return_estimate = door.td_lambda_return_estimate
from torchrl.objectives.value import advantages
for name in vars(functional):
    if name in vars(advantages):
        setattr(advantages, name, getattr(functional, name))
"""


@pytest.mark.skipif(CHECKOUT is None, reason="no TorchRL checkout: FASTAC_TORCHRL=PATH names one")
def test_its_own_tests(tmp_path: Path) -> None:
    """Its GAE and V-trace tests, with our functions under the names that they import."""
    path = Path(str(CHECKOUT)) / "test" / "objectives" / "test_values.py"
    assert path.is_file(), f"{path} is missing: FASTAC_TORCHRL has to name a TorchRL checkout"
    (tmp_path / "ours_inside.py").write_text(PLUGIN)
    (tmp_path / "test_values.py").write_text(path.read_text(encoding="utf-8"))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "ours_inside", "-k", "gae or vtrace", "-x", "--no-header",
         "-p", "no:cacheprovider", "test_values.py"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), SOURCES])},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    print(done.stdout.splitlines()[-1])
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
