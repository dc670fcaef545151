"""Adam and RMSprop for CUDA, here on the CPU, take the steps of those for the CPU."""

import copy
from typing import Any

import pytest
import torch

from fastac.capturable import CapturableAdam, CapturableRMSprop, make_adam, make_rmsprop
from fastac.optim import Adam, RMSprop

KINDS: Any = pytest.mark.parametrize(
    ("capturable", "plain"), [(CapturableAdam, Adam), (CapturableRMSprop, RMSprop)], ids=["Adam", "RMSprop"]
)


def weights() -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((3, 4), (5,))]


def train(optimizer: Any, parameters: list[torch.nn.Parameter], steps: range) -> None:
    for k in steps:
        optimizer.param_groups[0]["lr"] = 0.1 / (k + 1)
        optimizer.zero_grad()
        sum((p.square().sum() * (k + 1) for p in parameters), torch.zeros(())).backward()
        optimizer.step()


@KINDS
@pytest.mark.parametrize("max_grad_norm", [None, 0.5])
def test_the_same_steps(max_grad_norm: float | None, capturable: Any, plain: Any) -> None:
    ours, theirs = weights(), weights()
    one = capturable(ours, lr=0.3, eps=1e-5, max_grad_norm=max_grad_norm)
    two = plain(theirs, lr=0.3, eps=1e-5, max_grad_norm=max_grad_norm)
    train(one, ours, range(20)), train(two, theirs, range(20))
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
    assert type(one.param_groups[0]["lr"]) is float
    assert max_grad_norm is None or one.grad_norm == pytest.approx(two.grad_norm, rel=1e-4)


@KINDS
@pytest.mark.parametrize("way", ["to the CPU", "from the CPU"])
def test_a9_states_go_both_ways(way: str, capturable: Any, plain: Any) -> None:
    """Row A9: a checkpoint written on one device goes on on the other."""
    kinds = (capturable, plain) if way == "to the CPU" else (plain, capturable)
    whole = weights()
    reference = plain(whole, lr=0.1)
    train(reference, whole, range(10))
    parameters = weights()
    first = kinds[0](parameters, lr=0.1)
    train(first, parameters, range(5))
    second = kinds[1](parameters, lr=0.7)
    assert set(first.state_dict()["param_groups"][0]) == set(second.state_dict()["param_groups"][0])
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    train(second, parameters, range(5, 10))
    for p, q in zip(parameters, whole, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def test_the_step_size_is_written_where_it_changes() -> None:
    parameters = weights()
    optimizer = CapturableAdam(parameters, lr=0.25)
    optimizer.prepare()
    rate = optimizer._rates[0][1]
    version = rate._version
    optimizer.prepare()
    assert rate._version == version
    optimizer.param_groups[0]["lr"] = 0.5
    optimizer.prepare()
    assert optimizer._rates[0][1] is rate
    assert rate == 0.5


def test_the_choice_and_wrong_options() -> None:
    assert type(make_adam(iter(weights()), lr=0.1, max_grad_norm=1.0)) is Adam
    assert type(make_rmsprop(iter(weights()), lr=0.1, max_grad_norm=1.0)) is RMSprop
    for kind in (CapturableAdam, CapturableRMSprop):
        with pytest.raises(ValueError, match="max_grad_norm: got 0"):
            kind(weights(), max_grad_norm=0.0)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@KINDS
def test_on_cuda_steps_wait_for_nothing(capturable: Any, plain: Any) -> None:
    """Row A11, and the CPU's steps to rounding."""
    ours, theirs = [torch.nn.Parameter(p.detach().cuda()) for p in weights()], weights()
    one, two = capturable(ours, lr=0.3, max_grad_norm=0.5), plain(theirs, lr=0.3, max_grad_norm=0.5)
    train(one, ours, range(1)), train(two, theirs, range(1))
    torch.cuda.set_sync_debug_mode("error")
    try:
        one.zero_grad()
        sum(p.square().sum() for p in ours).backward()
        one.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    two.zero_grad()
    sum(p.square().sum() for p in theirs).backward()
    two.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p.cpu(), q, rtol=1e-5, atol=1e-6)
