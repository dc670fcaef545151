"""`fastac.optim`'s Adam and RMSprop are `torch.optim`'s after `clip_grad_norm_`, only faster."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fastac.optim import Adam, RMSprop


def parameters(shapes: list[tuple[int, ...]], dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype)) for shape in shapes]


def gradients(shapes: list[tuple[int, ...]], step: int, scale: float = 1.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    return [scale * torch.randn(shape, generator=generator) for shape in shapes]


def naive_adam(
    theta: list[np.ndarray],
    steps: list[list[np.ndarray]],
    lr: float,
    betas: tuple[float, float],
    eps: float,
    bound: Any,
) -> list[np.ndarray]:
    """Kingma and Ba's algorithm 1 in float64, after bounding the gradient's norm."""
    m, v = [np.zeros_like(x) for x in theta], [np.zeros_like(x) for x in theta]
    for t, gs in enumerate(steps, 1):
        norm = math.sqrt(sum(float((g * g).sum()) for g in gs))
        scale = 1.0 if bound is None else min(1.0, bound / (norm + 1e-6))
        for k, g in enumerate(gs):
            m[k] = betas[0] * m[k] + (1 - betas[0]) * g * scale
            v[k] = betas[1] * v[k] + (1 - betas[1]) * (g * scale) ** 2
            mean, square = m[k] / (1 - betas[0] ** t), v[k] / (1 - betas[1] ** t)
            theta[k] = theta[k] - lr * mean / (np.sqrt(square) + eps)
    return theta


@settings(max_examples=30, deadline=None)
@given(
    shapes=st.lists(st.lists(st.integers(1, 30), max_size=2).map(tuple), min_size=1, max_size=5),
    lr=st.floats(1e-5, 1.0),
    betas=st.tuples(st.floats(0.0, 0.99), st.floats(0.5, 0.9999)),
    eps=st.sampled_from([1e-8, 1e-5]),
    bound=st.none() | st.floats(1e-3, 100.0),
    scale=st.sampled_from([1e-4, 1.0, 1e4]),
)
def test_equals_the_algorithm_in_float64(
    shapes: list[tuple[int, ...]], lr: float, betas: tuple[float, float], eps: float, bound: Any, scale: float
) -> None:
    theta = parameters(shapes)
    start = [p.detach().double().numpy().copy() for p in theta]
    optimizer = Adam(theta, lr=lr, betas=betas, eps=eps, max_grad_norm=bound)
    steps = [gradients(shapes, step, scale) for step in range(10)]
    for gs in steps:
        for p, g in zip(theta, gs, strict=True):
            p.grad = g.clone()
        optimizer.step()
    assert optimizer._compiled_groups() is not None
    wanted = naive_adam(start, [[g.double().numpy() for g in gs] for gs in steps], lr, betas, eps, bound)
    for p, w in zip(theta, wanted, strict=True):
        np.testing.assert_allclose(p.detach().numpy(), w, rtol=1e-5, atol=3e-5 * lr + 1e-6)


def pair(bound: float | None = 0.5, **options: Any) -> tuple[Adam, torch.optim.Adam, list[tuple[int, ...]]]:
    shapes: list[tuple[int, ...]] = [(4, 3), (4,), ()]
    ours = Adam(parameters(shapes), lr=0.01, max_grad_norm=bound, **options)
    theirs = torch.optim.Adam(parameters(shapes), lr=0.01, **options)
    return ours, theirs, shapes


def step_both(
    ours: Adam | RMSprop, theirs: torch.optim.Adam, shapes: list[tuple[int, ...]], step: int, bound: float
) -> None:
    for optimizer in (ours, theirs):
        for p, g in zip(optimizer.param_groups[0]["params"], gradients(shapes, step), strict=True):
            p.grad = g
    ours.step()
    norm = nn.utils.clip_grad_norm_(theirs.param_groups[0]["params"], bound)
    theirs.step()
    assert ours.grad_norm == pytest.approx(float(norm), rel=1e-6)


def same(ours: torch.optim.Optimizer, theirs: torch.optim.Optimizer) -> None:
    for p, q in zip(ours.param_groups[0]["params"], theirs.param_groups[0]["params"], strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


def test_a_hundred_steps_equal_torchs_and_the_gradients_are_left_clipped() -> None:
    ours, theirs, shapes = pair()
    for step in range(100):
        step_both(ours, theirs, shapes, step, 0.5)
        for p, q in zip(ours.param_groups[0]["params"], theirs.param_groups[0]["params"], strict=True):
            torch.testing.assert_close(p.grad, q.grad)
    same(ours, theirs)


def test_state_dicts_are_exchangeable_in_both_directions() -> None:
    ours, theirs, shapes = pair()
    for step in range(3):
        step_both(ours, theirs, shapes, step, 0.5)
    a, b = copy.deepcopy(ours.state_dict()), copy.deepcopy(theirs.state_dict())
    assert a["param_groups"][0].keys() == b["param_groups"][0].keys()
    assert a["state"].keys() == b["state"].keys()
    assert all(a["state"][k].keys() == b["state"][k].keys() for k in a["state"])
    ours.load_state_dict(b)
    theirs.load_state_dict(a)
    for step in range(3, 6):
        step_both(ours, theirs, shapes, step, 0.5)
    same(ours, theirs)
    assert float(ours.state_dict()["state"][0]["step"]) == 6.0


def test_a_loaded_state_goes_on_bit_for_bit() -> None:
    ours, _, shapes = pair()

    def run(optimizer: Adam, first: int, last: int) -> None:
        for step in range(first, last):
            for p, g in zip(optimizer.param_groups[0]["params"], gradients(shapes, step), strict=True):
                p.grad = g
            optimizer.step()

    run(ours, 0, 3)
    saved = copy.deepcopy(ours.state_dict())
    other = [nn.Parameter(p.detach().clone()) for p in ours.param_groups[0]["params"]]
    run(ours, 3, 6)
    twin = Adam(other, lr=0.01, max_grad_norm=0.5)
    twin.load_state_dict(saved)
    run(twin, 3, 6)
    assert all(torch.equal(p, q) for p, q in zip(ours.param_groups[0]["params"], other, strict=True))


def test_schedulers_groups_and_frozen_parameters() -> None:
    """A parameter without a gradient is left as it is, as by torch; each group has its own rate."""
    shapes: list[tuple[int, ...]] = [(3,), (2, 2), (5,)]
    made = []
    for kind in (Adam, torch.optim.Adam):
        p = parameters(shapes)
        optimizer = kind([{"params": p[:2], "lr": 0.1}, {"params": p[2:], "lr": 0.01}])
        scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, 5)
        for step in range(8):
            for k, g in enumerate(gradients(shapes, step)):
                p[k].grad = None if k == 1 and step < 4 else g
            optimizer.step()
            scheduler.step()
        made.append(p)
    for a, b in zip(*made, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("option", [{"weight_decay": 0.1}, {"dtype": torch.float64}])
def test_what_the_kernel_does_not_do_torch_does(option: dict[str, Any]) -> None:
    shapes: list[tuple[int, ...]] = [(3, 2)]
    dtype = option.pop("dtype", torch.float32)
    ours, theirs = Adam(parameters(shapes, dtype), max_grad_norm=0.5, **option), None
    theirs = torch.optim.Adam(parameters(shapes, dtype), **option)
    for step in range(3):
        for optimizer in (ours, theirs):
            optimizer.param_groups[0]["params"][0].grad = gradients(shapes, step)[0].to(dtype)
        ours.step()
        nn.utils.clip_grad_norm_(theirs.param_groups[0]["params"], 0.5)
        theirs.step()
    same(ours, theirs)


def test_hooks_run_once_and_closures_are_called() -> None:
    ours, _, _ = pair()
    calls = []
    ours.register_step_pre_hook(lambda *_: calls.append("before"))
    ours.register_step_post_hook(lambda *_: calls.append("after"))

    def closure() -> float:
        calls.append("closure")
        for p in ours.param_groups[0]["params"]:
            p.grad = torch.ones_like(p)
        return 1.5

    assert ours.step(closure) == 1.5
    assert calls == ["before", "closure", "after"]


def test_parameters_that_move_are_followed() -> None:
    (p,) = parameters([(4,)])
    optimizer = Adam([p], lr=0.1)
    p.grad = torch.ones(4)
    optimizer.step()
    p.data = p.data.clone()
    before = p.detach().clone()
    p.grad = torch.ones(4)
    optimizer.step()
    torch.testing.assert_close(p.detach(), before - 0.1)


def test_a_step_counts_as_a_change_in_place() -> None:
    (p,) = parameters([(4,)])
    optimizer = Adam([p])
    y = (p * p).sum()
    p.grad = torch.ones(4)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_nan_gradients_are_not_hidden() -> None:
    ours, _, _ = pair()
    for p in ours.param_groups[0]["params"]:
        p.grad = torch.full_like(p, math.nan)
    ours.step()
    assert math.isnan(ours.grad_norm)
    assert all(p.isnan().all() for p in ours.param_groups[0]["params"])


def test_errors_name_the_argument() -> None:
    with pytest.raises(ValueError, match=r"max_grad_norm: got 0\.0, expected a number above 0"):
        Adam(parameters([(2,)]), max_grad_norm=0.0)


@settings(max_examples=20, deadline=None)
@given(
    shapes=st.lists(st.lists(st.integers(1, 30), max_size=2).map(tuple), min_size=1, max_size=5),
    lr=st.floats(1e-5, 1.0),
    alpha=st.floats(0.0, 0.999),
    eps=st.sampled_from([1e-8, 1e-5]),
    bound=st.none() | st.floats(1e-3, 100.0),
    scale=st.sampled_from([1e-4, 1.0, 1e4]),
)
def test_rmsprop_equals_the_algorithm_in_float64(
    shapes: list[tuple[int, ...]], lr: float, alpha: float, eps: float, bound: float | None, scale: float
) -> None:
    parameters_ = parameters(shapes)
    theta = [p.detach().double().numpy().copy() for p in parameters_]
    squares = [np.zeros_like(x) for x in theta]
    optimizer = RMSprop(parameters_, lr=lr, alpha=alpha, eps=eps, max_grad_norm=bound)
    for step in range(10):
        gs = gradients(shapes, step, scale)
        for p, g in zip(parameters_, gs, strict=True):
            p.grad = g.clone()
        optimizer.step()
        norm = math.sqrt(sum(float((g.double() ** 2).sum()) for g in gs))
        factor = 1.0 if bound is None else min(1.0, bound / (norm + 1e-6))
        for k, gradient in enumerate(gs):
            g64 = gradient.double().numpy() * factor
            squares[k] = alpha * squares[k] + (1 - alpha) * g64 * g64
            theta[k] = theta[k] - lr * g64 / (np.sqrt(squares[k]) + eps)
    assert optimizer._compiled_groups() is not None
    for p, w in zip(parameters_, theta, strict=True):
        np.testing.assert_allclose(p.detach().numpy(), w, rtol=1e-5, atol=1e-4 * lr + 1e-6)


def rmsprop_pair(**options: Any) -> tuple[RMSprop, torch.optim.RMSprop, list[tuple[int, ...]]]:
    shapes: list[tuple[int, ...]] = [(4, 3), (4,), ()]
    ours = RMSprop(parameters(shapes), lr=0.01, eps=1e-5, max_grad_norm=0.5, **options)
    return ours, torch.optim.RMSprop(parameters(shapes), lr=0.01, eps=1e-5, **options), shapes


def test_a_hundred_steps_of_rmsprop_equal_torchs_and_state_dicts_are_exchangeable() -> None:
    ours, theirs, shapes = rmsprop_pair()
    for step in range(50):
        step_both(ours, theirs, shapes, step, 0.5)
    a, b = copy.deepcopy(ours.state_dict()), copy.deepcopy(theirs.state_dict())
    assert a["param_groups"][0].keys() == b["param_groups"][0].keys()
    assert all(a["state"][k].keys() == b["state"][k].keys() for k in b["state"])
    ours.load_state_dict(b)
    theirs.load_state_dict(a)
    for step in range(50, 100):
        step_both(ours, theirs, shapes, step, 0.5)
    assert ours._compiled_groups() is not None
    same(ours, theirs)
    assert float(ours.state_dict()["state"][0]["step"]) == 100.0


@pytest.mark.parametrize("options", [{"momentum": 0.9}, {"centered": True}, {"weight_decay": 0.1}])
def test_what_rmsprops_kernel_does_not_have_takes_torch(options: dict[str, Any]) -> None:
    ours, theirs, shapes = rmsprop_pair(**options)
    for step in range(5):
        step_both(ours, theirs, shapes, step, 0.5)
    assert ours._compiled_groups() is None
    same(ours, theirs)


def test_a_group_without_parameters_is_left_alone() -> None:
    weight = nn.Parameter(torch.ones(2))
    optimizer = Adam([{"params": [weight]}, {"params": []}], lr=0.1)
    weight.grad = torch.ones(2)
    optimizer.step()
    assert optimizer._compiled_groups() is not None
    torch.testing.assert_close(weight.data, torch.full((2,), 0.9))


def test_moments_that_fade_become_zero() -> None:
    """Numbers below the normal ones would stay for ever, at a tenth of the speed."""
    weight = torch.nn.Parameter(torch.ones(40))
    optimizer = Adam([weight])
    weight.grad = torch.full((40,), 1e-3)
    optimizer.step()
    weight.grad.zero_()
    for _ in range(1200):
        optimizer.step()
    moment = optimizer.state[weight]["exp_avg"]
    assert (moment == 0).all()
    assert (optimizer.state[weight]["exp_avg_sq"] > 1e-10).all()
    weight.grad.fill_(float("nan"))
    optimizer.step()
    assert weight.isnan().all()
