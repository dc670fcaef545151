"""Targets, the critics' loss and the actor's: the kernels against float64 loops and torch's own operations."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastac import mlp, q_losses
from fastac.q_losses import minimum, policy_loss, q_loss, q_targets

ROWS = 37


def rows(count: int, seed: int = 0, size: int = ROWS) -> list[Tensor]:
    return list(torch.randn(count, size, generator=torch.Generator().manual_seed(seed)).unbind())


def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on torch's operations run."""
    monkeypatch.setattr(mlp, "AVAILABLE", False)


@settings(max_examples=30, deadline=None)
@given(count=st.integers(1, 4), size=st.integers(1, 70), soft=st.booleans(), seed=st.integers(0, 1000))
def test_targets_are_those_of_a_loop(count: int, size: int, soft: bool, seed: int) -> None:
    rewards, discounts, log_probs, *values = rows(3 + count, seed, size)
    terminated = torch.rand(size, generator=torch.Generator().manual_seed(seed)) < 0.3
    alpha = torch.tensor(0.3)
    options = {"alpha": alpha, "log_probs": log_probs} if soft else {}
    targets = q_targets(rewards, discounts, terminated, tuple(values), **options)
    for i in range(size):
        least = min(v[i].item() for v in values)
        future = least - (alpha.item() * log_probs[i].item() if soft else 0.0)
        expected = rewards[i].item() + (0.0 if terminated[i] else discounts[i].item() * future)
        assert targets[i].item() == pytest.approx(expected, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("kernels", [True, False])
def test_nothing_of_the_future_is_read_where_an_episode_terminated(
    kernels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row B1 of the pitfalls: a network's NaN at a final observation does no harm; elsewhere it shows."""
    if not kernels:
        plain(monkeypatch)
    nan = torch.full((2,), math.nan)
    one, terminated = torch.ones(2), torch.tensor([True, False])
    for values in ((nan, one), (one, nan), (one, nan, one)):
        targets = q_targets(one, one, terminated, values, alpha=torch.tensor(0.1), log_probs=nan)
        assert targets[0] == 1.0
        assert targets[1].isnan()
        assert q_targets(one, one, terminated, values)[1].isnan()


def q_loss_of(x: list[Tensor]) -> Tensor:
    targets, weights, *values = x
    return q_loss(tuple(values), targets.detach(), weights.detach())


def unweighted(x: list[Tensor]) -> Tensor:
    targets, _, *values = x
    return q_loss(tuple(values), targets.detach(), coef=1.0)


def policy_loss_of(x: list[Tensor]) -> Tensor:
    _, log_probs, *values = x
    return policy_loss(torch.tensor(0.7, dtype=log_probs.dtype), log_probs, tuple(values))


LOSSES: list[Callable[[list[Tensor]], Tensor]] = [q_loss_of, unweighted, policy_loss_of]


def with_gradients(loss: Callable[[list[Tensor]], Tensor], x: list[Tensor], dtype: Any) -> tuple[Tensor, list[Any]]:
    leaves = [value.detach().to(dtype).requires_grad_() for value in x]
    value = loss(leaves)
    (value * 3.0).backward()  # type: ignore[no-untyped-call]
    return value.detach(), [leaf.grad for leaf in leaves]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_losses_and_gradients_are_those_of_float64(loss: Callable[[list[Tensor]], Tensor], count: int) -> None:
    x = rows(2 + count)
    value, gradients = with_gradients(loss, x, torch.float32)
    expected, wanted = with_gradients(loss, x, torch.float64)
    torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=1e-6)
    for got, other in zip(gradients, wanted, strict=True):
        assert (got is None) == (other is None)
        if got is not None:
            torch.testing.assert_close(got.double(), other, rtol=1e-5, atol=1e-8)


def test_the_kernels_are_taken_and_torch_where_they_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    targets, _, values = (x.requires_grad_() for x in rows(3))
    targets = targets.detach()
    assert q_loss((values,), targets).grad_fn.name() == "_QLossBackward"  # type: ignore[union-attr]
    loss = policy_loss(torch.tensor(0.1), values, (targets,))
    assert loss.grad_fn.name() == "_PolicyLossBackward"  # type: ignore[union-attr]
    for other in (values[::2], values.double()):
        same = targets[::2] if len(other) < ROWS else targets.double()
        assert q_loss((other,), same).grad_fn.name() != "_QLossBackward"  # type: ignore[union-attr]
    plain(monkeypatch)
    assert q_loss((values,), targets).grad_fn.name() != "_QLossBackward"  # type: ignore[union-attr]


def test_equal_q_share_the_gradient_as_in_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    x = rows(3)
    x = [*x, x[2]]
    _, gradients = with_gradients(policy_loss_of, x, torch.float32)
    plain(monkeypatch)
    _, expected = with_gradients(policy_loss_of, x, torch.float32)
    for got, wanted in zip(gradients[1:], expected[1:], strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("loss", LOSSES)
def test_derivatives_of_derivatives(loss: Callable[[list[Tensor]], Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    def second() -> list[Any]:
        leaves = [x.requires_grad_() for x in rows(4)]
        (first,) = torch.autograd.grad(loss(leaves), leaves[3], create_graph=True)
        if not first.requires_grad:
            return [first]
        return [first, *torch.autograd.grad(first.square().sum(), leaves[2:], allow_unused=True)]

    got = second()
    plain(monkeypatch)
    for mine, wanted in zip(got, second(), strict=True):
        assert (mine is None) == (wanted is None)
        if mine is not None:
            torch.testing.assert_close(mine, wanted)


def test_a_second_backward_pass_finds_the_same() -> None:
    values, targets = rows(2)
    values.requires_grad_()
    loss = q_loss((values,), targets)
    loss.backward(retain_graph=True)  # type: ignore[no-untyped-call]
    assert values.grad is not None
    once = values.grad.clone()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(values.grad, 2 * once)
    with torch.no_grad():
        other = q_loss((values,), targets)
    assert not other.requires_grad
    assert other == loss


def test_a_value_changed_in_place_is_an_error() -> None:
    x, targets = rows(2)
    values = x.requires_grad_() * 1.0
    loss = q_loss((values,), targets)
    values += 1.0
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()  # type: ignore[no-untyped-call]


def test_compiled_graphs_take_torchs_operations() -> None:
    values, targets = rows(2)
    compiled = torch.compile(lambda x, y: q_losses.q_loss((x,), y), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(values, targets), q_loss((values,), targets))


def test_a_minimum_is_nan_where_one_element_is() -> None:
    nan = torch.tensor([math.nan])
    assert minimum((nan, torch.ones(1))).isnan()
    assert minimum((torch.ones(1), nan)).isnan()
