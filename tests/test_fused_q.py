"""SAC's big steps in one call: the same numbers and gradients as the modules one by one, whatever their owner does."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastac import mlp as module
from fastac.fused_q import fused_policy_loss, fused_q_loss, soft_q_targets
from fastac.networks import TanhGaussianActor, mlp
from fastac.q_functions import QFunctions

OBSERVATIONS, ACTIONS, BATCH = 5, 2, 33
ALPHA = torch.tensor(0.3)


def networks(count: int = 2, hidden: int = 16, activation: Any = "relu") -> tuple[TanhGaussianActor, QFunctions]:
    generator = torch.Generator().manual_seed(0)

    def made(inputs: int, outputs: int, *widths: int) -> Any:
        return mlp([inputs, *widths, outputs], activation=activation, initialization="uniform", generator=generator)

    actor = TanhGaussianActor(made(OBSERVATIONS, 2 * ACTIONS, hidden, 2 * hidden))
    return actor, QFunctions([made(OBSERVATIONS + ACTIONS, 1, hidden + 4, hidden) for _ in range(count)])


def batch(rows: int = BATCH) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    return {
        "x": normal(rows, OBSERVATIONS), "actions": normal(rows, ACTIONS).tanh(), "noise": normal(rows, ACTIONS),
        "rewards": normal(rows), "discounts": torch.full((rows,), 0.97), "targets": normal(rows),
        "weights": normal(rows).abs(), "terminated": normal(rows) > 1,
    }  # fmt: skip


def targets_of(actor: TanhGaussianActor, q: QFunctions, b: dict[str, Tensor]) -> list[Tensor]:
    alpha = ALPHA.to(b["x"].dtype)
    return [soft_q_targets(actor, q, b["x"], b["noise"], b["rewards"], b["discounts"], b["terminated"], alpha)]


def critics_of(actor: TanhGaussianActor, q: QFunctions, b: dict[str, Tensor]) -> list[Tensor]:
    loss, values = fused_q_loss(q, b["x"], b["actions"], b["targets"], b["weights"], coef=0.7)
    return [loss, *values]


def policy_of(actor: TanhGaussianActor, q: QFunctions, b: dict[str, Tensor]) -> list[Tensor]:
    return list(fused_policy_loss(actor, q, b["x"], b["noise"], ALPHA.to(b["x"].dtype)))


Step = Callable[[TanhGaussianActor, QFunctions, dict[str, Tensor]], list[Tensor]]
STEPS: list[Step] = [targets_of, critics_of, policy_of]
LOSSES: list[Step] = [critics_of, policy_of]


def results(step: Step, actor: TanhGaussianActor, q: QFunctions, b: dict[str, Tensor], scale: float = 1.0) -> Any:
    """What a step returns, and all gradients."""
    parameters = [*actor.parameters(), *q.parameters()]
    for p in parameters:
        p.grad = None
    found = step(actor, q, b)
    if found[0].requires_grad:
        (scale * found[0]).backward()  # type: ignore[no-untyped-call]
    return [x.detach() for x in found], [p.grad for p in parameters]


def is_fused(loss: Tensor) -> bool:
    return loss.grad_fn is not None and loss.grad_fn.name() == "_NodeBackward"


def assert_same(got: Any, wanted: Any, rtol: float = 1e-5) -> None:
    for mine, other in zip([*got[0], *got[1]], [*wanted[0], *wanted[1]], strict=True):
        assert (mine is None) == (other is None)
        if mine is not None:
            size = float(other.abs().max())
            torch.testing.assert_close(mine.double(), other.double(), rtol=rtol, atol=rtol * size + 1e-7)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("scale", [1.0, -2.0])
def test_equals_float64(step: Step, count: int, activation: str, scale: float) -> None:
    actor, q = networks(count, activation=activation)
    b = batch()
    got = results(step, actor, q, b, scale)
    if step is not targets_of:
        assert is_fused(step(actor, q, b)[0])
    double = {name: x.double() if x.is_floating_point() else x for name, x in b.items()}
    assert_same(got, results(step, copy.deepcopy(actor).double(), copy.deepcopy(q).double(), double, scale))


@pytest.mark.parametrize("step", STEPS)
def test_large_layers(step: Step) -> None:
    actor, q = networks(hidden=128)
    b = batch(256)
    got = results(step, actor, q, b)
    double = {name: x.double() if x.is_floating_point() else x for name, x in b.items()}
    assert_same(got, results(step, actor.double(), q.double(), double), rtol=3e-5)


@pytest.mark.parametrize("step", STEPS)
def test_the_modules_one_by_one_agree(step: Step, monkeypatch: pytest.MonkeyPatch) -> None:
    actor, q = networks()
    b = batch()
    got = results(step, actor, q, b)
    monkeypatch.setattr(module, "AVAILABLE", False)
    assert_same(got, results(step, actor, q, b))


def changes() -> dict[str, Callable[[TanhGaussianActor, QFunctions], Any]]:
    def other_activation(actor: TanhGaussianActor, q: QFunctions) -> None:
        q.networks[0][1] = nn.ELU()  # type: ignore[index]

    def hook(actor: TanhGaussianActor, q: QFunctions) -> None:
        actor.register_forward_hook(lambda *_: None)
        q.networks[1][0].register_forward_hook(lambda *_: None)  # type: ignore[index]

    def layer_norm(actor: TanhGaussianActor, q: QFunctions) -> None:
        q.networks[1] = mlp([OBSERVATIONS + ACTIONS, 8, 1], layer_norm=True)

    return {"other activation": other_activation, "hooks": hook, "layer norm": layer_norm}


@pytest.mark.parametrize("step", LOSSES)
@pytest.mark.parametrize("name", changes())
def test_networks_that_kernels_cannot_run_run_in_torch(step: Step, name: str) -> None:
    actor, q = networks()
    changes()[name](actor, q)
    b = batch()
    assert not is_fused(step(actor, q, b)[0])
    got = results(step, actor, q, b)
    double = {k: x.double() if x.is_floating_point() else x for k, x in b.items()}
    assert_same(got, results(step, copy.deepcopy(actor).double(), copy.deepcopy(q).double(), double))


def test_a_frozen_layer_gets_no_gradient() -> None:
    actor, q = networks()
    frozen = next(q.networks[0].parameters()).requires_grad_(False)
    _, gradients = results(critics_of, actor, q, batch())
    assert frozen.grad is None
    assert sum(gradient is None for gradient in gradients) == 1 + len(list(actor.parameters()))


@pytest.mark.parametrize("step", LOSSES)
def test_backward_again_and_once_more(step: Step) -> None:
    actor, q = networks()
    b = batch()
    _, once = results(step, actor, q, b)
    kept = [None if g is None else g.clone() for g in once]
    for p in (*actor.parameters(), *q.parameters()):
        p.grad = None
    loss = step(actor, q, b)[0]
    loss.backward(retain_graph=True)  # type: ignore[no-untyped-call]
    loss.backward()  # type: ignore[no-untyped-call]
    for p, gradient in zip((*actor.parameters(), *q.parameters()), kept, strict=True):
        if gradient is not None:
            torch.testing.assert_close(p.grad, 2 * gradient)
    loss = step(actor, q, b)[0]
    wanted = list((q if step is critics_of else actor).parameters())
    first = torch.autograd.grad(loss, wanted, create_graph=True)
    assert all(g.requires_grad for g in first)
    torch.autograd.grad(sum(g.square().sum() for g in first), wanted)  # type: ignore[arg-type]
    with torch.no_grad():
        wanted[0] += 1.0
    loss.backward(retain_graph=True)  # type: ignore[no-untyped-call]
    with pytest.raises(RuntimeError, match="changed in place"):
        loss.backward()  # type: ignore[no-untyped-call]


def test_without_a_gradient_nothing_is_fused() -> None:
    actor, q = networks()
    b = batch()
    for step in LOSSES:
        expected = step(actor, q, b)
        with torch.no_grad():
            found = step(actor, q, b)
        assert not found[0].requires_grad
        for mine, other in zip(found, expected, strict=True):
            torch.testing.assert_close(mine, other.detach())
    assert all(p.requires_grad for p in q.parameters())
