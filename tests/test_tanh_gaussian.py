"""The compiled draws of a tanh-Gaussian: torch's numbers and gradients, far out in the tails as well."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastac.distributions import TanhGaussian

LOW, HIGH = -20.0, 2.0


def drawn(outputs: Tensor, noise: Tensor, gradients: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Actions, log-probabilities, and the gradient of the outputs."""
    leaf = outputs.detach().clone().requires_grad_()
    found = TanhGaussian.of_outputs(leaf, LOW, HIGH).sample_and_log_prob(noise.to(leaf.dtype))
    is_node = found[0].grad_fn is not None and found[0].grad_fn.name() == "_NodeBackward"
    assert is_node == (leaf.dtype is torch.float32)
    (gradient,) = torch.autograd.grad(found, leaf, [x.to(leaf.dtype) for x in gradients])
    return found[0].detach(), found[1].detach(), gradient


@settings(max_examples=40, deadline=None)
@given(
    size=st.integers(1, 40), batch=st.integers(1, 50), scale=st.sampled_from([0.1, 1.0, 5.0]), seed=st.integers(0, 99)
)
def test_equals_torchs_operations_in_float64(size: int, batch: int, scale: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    outputs, noise = scale * normal(batch, 2 * size), normal(batch, size)
    gradients = normal(batch, size), normal(batch)
    actions, log_probs, gradient = drawn(outputs, noise, gradients)
    exact_actions, exact_log_probs, exact_gradient = drawn(outputs.double(), noise, gradients)
    torch.testing.assert_close(actions.double(), exact_actions, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(log_probs.double(), exact_log_probs, rtol=1e-5, atol=3e-6 * size)
    torch.testing.assert_close(gradient.double(), exact_gradient, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("u", [0.0, 1e-6, 0.3, 3.0, 9.0, 30.0, 400.0])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_tails_are_finite_and_exact(u: float, sign: int) -> None:
    """1 - tanh(u)^2 rounds to 0 at |u| = 10 in float32; its logarithm is log 4 - 2 |u| there."""
    outputs, noise = torch.tensor([[sign * u, -1.0]]), torch.zeros(1, 1)
    gradients = torch.ones(1, 1), torch.ones(1)
    got, wanted = drawn(outputs, noise, gradients), drawn(outputs.double(), noise, gradients)
    for mine, exact in zip(got, wanted, strict=True):
        torch.testing.assert_close(mine.double(), exact, rtol=1e-6, atol=3e-7)


@pytest.mark.parametrize("log_std", [-21.0, -20.0, 2.0, 2.5, math.nan])
def test_a_clamped_deviation_has_no_gradient(log_std: float) -> None:
    """At the bounds themselves it has, as torch's clamp; NaN stays."""
    outputs, noise = torch.tensor([[0.3, log_std]]), torch.tensor([[0.7]])
    gradients = torch.tensor([[0.5]]), torch.tensor([0.2])
    got, wanted = drawn(outputs, noise, gradients), drawn(outputs.double(), noise, gradients)
    for mine, exact in zip(got, wanted, strict=True):
        torch.testing.assert_close(mine.double(), exact, rtol=1e-5, atol=1e-6, equal_nan=True)


def test_many_actions_multiply_beyond_no_bound() -> None:
    outputs, noise = torch.zeros(2, 4000), torch.zeros(2, 2000)
    _, log_probs = TanhGaussian.of_outputs(outputs, LOW, HIGH).sample_and_log_prob(noise)
    torch.testing.assert_close(log_probs, torch.full((2,), -2000 * 0.5 * math.log(2 * math.pi)))


def test_other_noise_and_derivatives_of_derivatives_take_torchs_operations() -> None:
    outputs = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    noise = torch.randn(5, 2, generator=torch.Generator().manual_seed(1))
    distribution = TanhGaussian.of_outputs(outputs, LOW, HIGH)
    many = distribution.sample_and_log_prob(noise.expand(3, 5, 2))
    assert many[0].shape == (3, 5, 2)
    actions, log_probs = distribution.sample_and_log_prob(noise)
    torch.testing.assert_close(many[0][1], actions)
    torch.testing.assert_close(many[1][2], log_probs)

    def second(pair: tuple[Tensor, Tensor]) -> Any:
        (first,) = torch.autograd.grad(pair[0].sum() + pair[1].sum(), outputs, create_graph=True)
        return torch.autograd.grad(first.square().sum(), outputs)[0]

    twin = TanhGaussian(distribution.mean, distribution.log_std)
    torch.testing.assert_close(
        second(distribution.sample_and_log_prob(noise)), second(twin.sample_and_log_prob(noise)), rtol=1e-4, atol=1e-5
    )


def test_without_a_gradient_there_is_no_node() -> None:
    outputs, noise = torch.zeros(2, 2), torch.ones(2, 1)
    with torch.no_grad():
        actions, log_probs = TanhGaussian.of_outputs(outputs, LOW, HIGH).sample_and_log_prob(noise)
    assert not actions.requires_grad
    assert not log_probs.requires_grad
    torch.testing.assert_close(actions, torch.ones(2, 1).tanh())
