"""PPO's loss in one kernel: the numbers and gradients of the equations in float64, and torch's way wherever it must."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastac.distributions import Categorical, Gaussian
from fastac.losses import METRICS, ppo_loss

OPTIONS: dict[str, Any] = {"clip_coef": 0.2, "vf_coef": 0.5, "ent_coef": 0.01}


def minibatch(discrete: bool, rows: int, count: int, seed: int = 0, spread: float = 0.4) -> dict[str, Any]:
    """Heads that want gradients, and data around them: ratios on both sides of the clip."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g)

    heads = [normal(rows, count)] if discrete else [normal(rows, count), 0.3 * normal(count)]
    actions = torch.randint(count, (rows,), generator=g) if discrete else normal(rows, count)
    values = normal(rows, 1)
    made = distribution([h.clone() for h in heads])
    return {
        "heads": heads,
        "actions": actions,
        "old_log_probs": made.log_prob(actions) + spread * normal(rows),
        "advantages": normal(rows),
        "values": values,
        "old_values": values[:, 0] + 0.3 * normal(rows),
        "returns": normal(rows),
    }


def distribution(heads: list[Tensor]) -> Categorical | Gaussian:
    return Categorical(heads[0]) if len(heads) == 1 else Gaussian(heads[0], heads[1])


def run(batch: dict[str, Any], dtype: torch.dtype, **options: Any) -> tuple[Tensor, Tensor, list[Tensor]]:
    """The loss, the metrics, and the gradients of the heads and the values."""
    data = {k: v.to(dtype) if v.is_floating_point() else v for k, v in batch.items() if k != "heads"}
    heads = [h.detach().to(dtype).requires_grad_() for h in batch["heads"]]
    values = data.pop("values").detach().requires_grad_()
    loss, metrics = ppo_loss(distribution(heads), values=values, **data, **{**OPTIONS, **options})
    return loss.detach(), metrics, list(torch.autograd.grad(loss, [*heads, values]))


def by_hand(batch: dict[str, Any], **options: Any) -> Tensor:
    """Equation 9 row by row, in Python's floats; differentiable by finite differences only."""
    o = {"norm_adv": True, "clip_vloss": False, "dual_clip": None, **OPTIONS, **options}
    made = distribution([h.detach().double() for h in batch["heads"]])
    log_probs, entropies = (
        made.log_prob(batch["actions"] if batch["actions"].ndim == 1 else batch["actions"].double()),
        made.entropy(),
    )
    a = batch["advantages"].double()
    if o["norm_adv"]:
        a = (a - a.mean()) / (a.std() + 1e-8) if len(a) > 1 else a * 0
    total = 0.0
    for i in range(len(a)):
        rho = float((log_probs[i] - batch["old_log_probs"][i].double()).exp())
        advantage = float(a[i])
        objective = min(rho * advantage, min(max(rho, 1 - o["clip_coef"]), 1 + o["clip_coef"]) * advantage)
        if o["dual_clip"] is not None and advantage < 0:
            objective = max(objective, o["dual_clip"] * advantage)
        v, old, r = float(batch["values"][i, 0]), float(batch["old_values"][i]), float(batch["returns"][i])
        squared = (v - r) ** 2
        if o["clip_vloss"]:
            squared = max(squared, (min(max(v, old - o["clip_coef"]), old + o["clip_coef"]) - r) ** 2)
        total += -objective + o["vf_coef"] * 0.5 * squared - o["ent_coef"] * float(entropies[i])
    return torch.tensor(total / len(a), dtype=torch.float64)


@settings(max_examples=60, deadline=None)
@given(
    discrete=st.booleans(),
    rows=st.integers(1, 50),
    count=st.integers(1, 7),
    norm_adv=st.booleans(),
    clip_vloss=st.booleans(),
    dual_clip=st.none() | st.floats(1.01, 3.0),
    seed=st.integers(0, 10_000),
)
def test_kernel_equals_float64_and_the_equation(
    discrete: bool, rows: int, count: int, norm_adv: bool, clip_vloss: bool, dual_clip: float | None, seed: int
) -> None:
    batch = minibatch(discrete, rows, count, seed)
    options = {"norm_adv": norm_adv and rows > 1, "clip_vloss": clip_vloss, "dual_clip": dual_clip}
    loss, metrics, gradients = run(batch, torch.float32, **options)
    exact, exact_metrics, exact_gradients = run(batch, torch.float64, **options)
    torch.testing.assert_close(exact, by_hand(batch, **options), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=1e-5)
    # A row whose ratio rounds to the other side of the clip changes the fraction and a gradient.
    ratios = (
        distribution([h.detach().double() for h in batch["heads"]]).log_prob(
            batch["actions"] if discrete else batch["actions"].double()
        )
        - batch["old_log_probs"].double()
    )
    on_edge = any(((ratios.exp() - edge).abs() < 1e-5).any() for edge in (0.8, 1.2, dual_clip or 0.8))
    if not on_edge:
        torch.testing.assert_close(metrics.double(), exact_metrics, rtol=1e-5, atol=1e-5)
        for g, e in zip(gradients, exact_gradients, strict=True):
            torch.testing.assert_close(g.double(), e, rtol=1e-4, atol=1e-6 * float(1 + e.abs().max()))


@pytest.mark.parametrize("discrete", [True, False])
def test_the_kernel_is_taken_and_what_it_cannot_do_torch_does(discrete: bool) -> None:
    batch = minibatch(discrete, 6, 3)

    def node(**changes: Any) -> str:
        data = {**batch, **changes}
        made = distribution([h.requires_grad_() for h in data.pop("heads")])
        loss, _ = ppo_loss(made, **data, **OPTIONS)
        assert loss.grad_fn is not None
        return loss.grad_fn.name()

    assert node() == "_NodeBackward"
    assert node(values=batch["values"][:, 0]) == "_NodeBackward"
    assert node(returns=batch["returns"].double()) != "_NodeBackward"
    assert node(advantages=torch.zeros(12)[::2]) != "_NodeBackward"


@pytest.mark.parametrize("discrete", [True, False])
def test_gradients_are_zero_where_the_clip_says_so(discrete: bool) -> None:
    """A > 0 and rho > 1 + eps, or A < 0 and rho < 1 - eps; the log-ratio's bound, too."""
    batch = minibatch(discrete, 5, 3)
    made = distribution(batch["heads"]).log_prob(batch["actions"])
    shift = torch.tensor([1.0, -1.0, 1.0, -1.0, 30.0])
    batch["old_log_probs"] = made - shift
    batch["advantages"] = torch.tensor([1.0, -1.0, -1.0, 1.0, -1.0])
    _, _, gradients = run(batch, torch.float32, norm_adv=False, ent_coef=0.0)
    rows = gradients[0]
    assert (rows[[0, 1, 4]] == 0).all()
    assert (rows[[2, 3]].abs().sum(1) > 0).all()


def test_gradients_scale_and_add_up_over_two_backward_passes() -> None:
    batch = minibatch(True, 6, 3)
    heads = [h.requires_grad_() for h in batch.pop("heads")]
    loss, _ = ppo_loss(distribution(heads), **batch, **OPTIONS)
    (3.0 * loss).backward(retain_graph=True)
    first = heads[0].grad.clone()  # type: ignore[union-attr]
    loss.backward()
    torch.testing.assert_close(heads[0].grad, first * 4 / 3)


def test_derivatives_of_derivatives() -> None:
    """The values' loss is quadratic: its second derivative is vf_coef / B."""
    batch = minibatch(True, 4, 3)
    values = batch.pop("values").requires_grad_()
    made = distribution(batch.pop("heads"))
    loss, _ = ppo_loss(made, values=values, **batch, **OPTIONS)
    (slope,) = torch.autograd.grad(loss, values, create_graph=True)
    (second,) = torch.autograd.grad(slope.sum(), values)
    torch.testing.assert_close(second, torch.full((4, 1), 0.5 / 4))


@pytest.mark.parametrize("action", [-1, 3])
def test_an_action_out_of_range_is_an_error(action: int) -> None:
    batch = minibatch(True, 4, 3)
    batch["actions"][2] = action
    with pytest.raises(ValueError, match=r"actions: got .* expected 0 to 2"):
        run(batch, torch.float32)


def test_metrics_have_names_and_no_gradient() -> None:
    _, metrics, _ = run(minibatch(False, 4, 2), torch.float32)
    assert metrics.shape == (len(METRICS),)
    assert not metrics.requires_grad


def test_nan_reaches_the_loss_and_the_gradients() -> None:
    for name in ("heads", "advantages", "returns", "old_log_probs"):
        batch = minibatch(True, 4, 3)
        poisoned = batch[name][0] if name == "heads" else batch[name]
        poisoned.view(-1)[0] = float("nan")
        loss, _, gradients = run(batch, torch.float32, norm_adv=False)
        assert loss.isnan()
        assert any(g.isnan().any() for g in gradients)


def test_compiles_as_a_whole() -> None:
    batch = minibatch(True, 4, 3)
    heads = batch.pop("heads")

    def function(logits: Tensor) -> Tensor:
        return ppo_loss(Categorical(logits), **batch, **OPTIONS)[0]

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(heads[0]), function(heads[0]))
