"""Actor, critic and loss as one node: the same numbers, gradients and rules as the modules one by one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastac.fused import fused_a2c_loss, fused_ppo_loss
from fastac.losses import a2c_loss, ppo_loss
from fastac.networks import Actor, CategoricalActor, GaussianActor, mlp
from fastac.optim import Adam

PPO: dict[str, Any] = {"clip_coef": 0.2, "vf_coef": 0.5, "ent_coef": 0.01, "clip_vloss": True}
A2C: dict[str, Any] = {"vf_coef": 0.5, "ent_coef": 0.01}
KINDS = ["categorical", "gaussian"]
LOSSES = ["ppo", "a2c"]


class Pair:
    """Networks, a minibatch, and both ways to a loss."""

    def __init__(self, kind: str, loss: str, rows: int = 40, activation: Any = "tanh"):
        g = torch.Generator().manual_seed(rows)
        count = 3
        network = mlp([5, 16, 8, count], activation=activation, generator=g)
        self.actor: Actor = CategoricalActor(network) if kind == "categorical" else GaussianActor(network, count, -0.3)
        self.critic: nn.Module = mlp([5, 24, 1], activation="relu", generator=g)
        self.x = torch.randn(rows, 5, generator=g)
        discrete = kind == "categorical"
        actions = torch.randint(count, (rows,), generator=g) if discrete else torch.randn(rows, count, generator=g)
        old, advantages, old_values, returns = torch.randn(4, rows, generator=g)
        with torch.no_grad():
            old = self.actor(self.x).log_prob(actions) + 0.3 * old
        self.ppo = loss == "ppo"
        self.data = (actions, old, advantages, old_values, returns)
        self.options = PPO if self.ppo else A2C

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [*self.actor.parameters(), *self.critic.parameters()]

    def fused(self) -> Tensor:
        return self.both_fused()[0]

    def both_fused(self) -> tuple[Tensor, Tensor]:
        actions, old, advantages, old_values, returns = self.data
        if self.ppo:
            return fused_ppo_loss(
                self.actor, self.critic, self.x, actions, old, advantages, old_values, returns, **self.options
            )
        return fused_a2c_loss(self.actor, self.critic, self.x, actions, advantages, returns, **self.options)

    def apart(self) -> tuple[Tensor, Tensor]:
        actions, old, advantages, old_values, returns = self.data
        made, values = self.actor(self.x), self.critic(self.x)
        if self.ppo:
            return ppo_loss(made, actions, old, advantages, values, old_values, returns, **self.options)
        return a2c_loss(made, actions, advantages, values, returns, **self.options)

    def in_float64(self) -> Pair:
        """The same, which no kernel takes."""
        other = copy.deepcopy(self)
        other.actor.double()
        other.critic.double()
        other.x = other.x.double()
        other.data = tuple(x.double() if x.is_floating_point() else x for x in other.data)  # type: ignore[assignment]
        return other


@pytest.fixture(params=[(kind, loss) for kind in KINDS for loss in LOSSES], ids="-".join)
def pair(request: pytest.FixtureRequest) -> Pair:
    return Pair(*request.param)


def name_of(loss: Tensor) -> str:
    assert loss.grad_fn is not None
    return loss.grad_fn.name()


@pytest.mark.parametrize("rows", [1, 40, 128])
@pytest.mark.parametrize("norm_adv", [True, False])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_modules_one_by_one_and_float64(kind: str, loss: str, norm_adv: bool, rows: int) -> None:
    pair = Pair(kind, loss, rows)
    pair.options = {**pair.options, "norm_adv": norm_adv and rows > 1}
    (fused, metrics), (apart, apart_metrics) = pair.both_fused(), pair.apart()
    exact_pair = pair.in_float64()
    exact, exact_metrics = exact_pair.both_fused()
    assert name_of(fused) == "FusedNodeBackward" != name_of(exact)
    torch.testing.assert_close(fused, apart)
    torch.testing.assert_close(metrics, apart_metrics)
    torch.testing.assert_close(metrics.double(), exact_metrics, rtol=1e-5, atol=1e-5)
    gradients = torch.autograd.grad(fused, pair.parameters)
    for ours, theirs in zip(gradients, torch.autograd.grad(apart, pair.parameters), strict=True):
        torch.testing.assert_close(ours, theirs)
    for ours, theirs in zip(gradients, torch.autograd.grad(exact, exact_pair.parameters), strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-6)


def test_a_hundred_steps_leave_the_parameters_of_plain_torch(pair: Pair) -> None:
    """Issue 7: within 1e-5 of `nn.Sequential`, torch's losses, `clip_grad_norm_` and `torch.optim.Adam` in float32."""
    plain = copy.deepcopy(pair)
    plain.actor.network = nn.Sequential(*plain.actor.network)
    plain.critic = nn.Sequential(*plain.critic)  # type: ignore[arg-type]
    ours = Adam(pair.parameters, lr=1e-3, eps=1e-5, max_grad_norm=0.5)
    theirs = torch.optim.Adam(plain.parameters, lr=1e-3, eps=1e-5)
    for _ in range(100):
        ours.zero_grad()
        pair.fused().backward()  # type: ignore[no-untyped-call]
        ours.step()
        theirs.zero_grad()
        loss = plain.fused()
        assert name_of(loss) != "FusedNodeBackward"
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(plain.parameters, 0.5)
        theirs.step()
    for p, q in zip(pair.parameters, plain.parameters, strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-5)


def test_gradients_scale_and_add_up_over_two_backward_passes(pair: Pair) -> None:
    wanted = torch.autograd.grad(pair.apart()[0], pair.parameters)
    loss = pair.fused()
    loss.backward(retain_graph=True)  # type: ignore[no-untyped-call]
    (3.0 * loss).backward()  # type: ignore[no-untyped-call]
    (0.5 * pair.fused()).backward()  # type: ignore[no-untyped-call]
    for p, g in zip(pair.parameters, wanted, strict=True):
        torch.testing.assert_close(p.grad, 4.5 * g, rtol=1e-5, atol=1e-7)


def test_derivatives_of_derivatives(pair: Pair) -> None:
    def second(pair: Pair, loss: Tensor) -> tuple[Tensor, ...]:
        slopes = torch.autograd.grad(loss, pair.parameters, create_graph=True)
        return torch.autograd.grad(sum((slope.square().sum() for slope in slopes), torch.zeros(())), pair.parameters)

    exact = pair.in_float64()
    for ours, theirs in zip(second(pair, pair.fused()), second(exact, exact.fused()), strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-3, atol=1e-5)


def test_a_change_before_backward_does_no_harm_and_before_a_second_one_is_an_error(pair: Pair) -> None:
    wanted = torch.autograd.grad(pair.apart()[0], pair.parameters)
    loss = pair.fused()
    with torch.no_grad():
        pair.parameters[0].add_(1.0)
    for ours, theirs in zip(torch.autograd.grad(loss, pair.parameters, retain_graph=True), wanted, strict=True):
        torch.testing.assert_close(ours, theirs)
    with pytest.raises(RuntimeError, match="changed in place"):
        loss.backward()  # type: ignore[no-untyped-call]


def test_frozen_parameters_get_no_gradient_and_the_others_theirs(pair: Pair) -> None:
    wanted = dict(zip(pair.parameters, torch.autograd.grad(pair.apart()[0], pair.parameters), strict=True))
    frozen = pair.parameters[0], pair.parameters[-2]
    for p in frozen:
        p.requires_grad_(False)
    pair.fused().backward()  # type: ignore[no-untyped-call]
    for p, g in wanted.items():
        if any(p is q for q in frozen):
            assert p.grad is None
        else:
            torch.testing.assert_close(p.grad, g)


def test_networks_that_share_a_layer_add_its_gradients(pair: Pair) -> None:
    assert isinstance(pair.actor.network, nn.Sequential)
    pair.critic = mlp([5, 16, 1])
    pair.critic[0] = pair.actor.network[0]
    pair.fused().backward()  # type: ignore[no-untyped-call]
    shared = pair.actor.network[0].weight
    (wanted,) = torch.autograd.grad(pair.apart()[0], shared)
    torch.testing.assert_close(shared.grad, wanted)


def with_hook(pair: Pair) -> None:
    pair.actor.register_forward_hook(lambda *_: None)


def with_other_layers(pair: Pair) -> None:
    pair.critic = nn.Sequential(nn.Linear(5, 1))


def with_subclass(pair: Pair) -> None:
    pair.actor.__class__ = type("Mine", (type(pair.actor),), {})


def with_strided_data(pair: Pair) -> None:
    pair.data = (*pair.data[:2], pair.data[2].repeat_interleave(2)[::2], *pair.data[3:])


def with_gradient_of_observations(pair: Pair) -> None:
    pair.x.requires_grad_()


@pytest.mark.parametrize(
    "change", [with_hook, with_other_layers, with_subclass, with_strided_data, with_gradient_of_observations]
)
def test_what_the_kernel_cannot_do_the_modules_do(pair: Pair, change: Callable[[Pair], None]) -> None:
    change(pair)
    loss = pair.fused()
    assert name_of(loss) != "FusedNodeBackward"
    torch.testing.assert_close(loss, pair.apart()[0])


def test_hooks_on_parameters_fire(pair: Pair) -> None:
    pair.parameters[0].register_hook(lambda gradient: 2.0 * gradient)
    pair.fused().backward()  # type: ignore[no-untyped-call]
    (wanted,) = torch.autograd.grad(pair.apart()[0], pair.parameters[0])
    torch.testing.assert_close(pair.parameters[0].grad, wanted)  # `grad` runs the hook, too


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("action", [-1, 3])
def test_an_action_out_of_range_is_an_error(action: int, loss: str) -> None:
    pair = Pair("categorical", loss)
    pair.data[0][7] = action
    with pytest.raises(ValueError, match=r"actions: got .* expected 0 to 2"):
        pair.fused()


def test_without_a_gradient_the_numbers_are_the_same(pair: Pair) -> None:
    with torch.no_grad():
        loss = pair.fused()
    assert not loss.requires_grad
    torch.testing.assert_close(loss, pair.fused().detach())
