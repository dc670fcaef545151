"""Ratios and PPO's loss as torch sees them: autograd, compiled, operators, and what CUDA tensors run through.

Rows A11 and N8 of the pitfalls.
"""

import math
from typing import Any

import numpy as np
import pytest
import torch
from fresh import run_python
from ratio_cases import op_cases, sample
from torch._subclasses.fake_tensor import FakeTensorMode

from fastac import _torch_ratio
from fastac.ratio import approx_kl, clip_ratio, importance_ratio, ppo_clip_loss


class TestAutograd:
    """Rule 10 and row N8."""

    def test_gradcheck(self) -> None:
        rng = np.random.default_rng(3)
        # No ratio at a kink, where the numerical derivative is another one.
        x = torch.tensor(rng.choice([-25.0, -0.9, -0.5, -0.1, 0.0, 0.1, 0.5, 0.9], 60), requires_grad=True)
        old, a = torch.zeros(60, dtype=torch.float64), torch.from_numpy(rng.normal(size=60))
        mask = torch.from_numpy(rng.random(60) < 0.8)
        for options in ({}, {"dual_clip": 1.5}):
            function = lambda new, options=options: ppo_clip_loss(new, old, a, mask, clip_coef=0.2, **options).loss  # noqa: E731
            assert torch.autograd.gradcheck(function, (x,))
        ended = torch.from_numpy(rng.random((12, 5)) < 0.2)
        grid = (0.3 * torch.from_numpy(rng.normal(size=(12, 5)))).requires_grad_()
        for cumulative in (False, True):
            assert torch.autograd.gradcheck(
                lambda new, c=cumulative: importance_ratio(
                    new, 0 * new.detach(), ended, mask=mask.reshape(12, 5), cumulative=c
                ),
                (grid,),
            )
        assert torch.autograd.gradcheck(lambda new: approx_kl(new, old + 0.1, mask), (x,))

    def test_who_requires_a_gradient(self) -> None:
        new, old, a = (torch.from_numpy(x).requires_grad_() for x in sample(10))
        result = ppo_clip_loss(new, old, a, clip_coef=0.2)
        assert result.loss.requires_grad
        assert not result.gradient.requires_grad
        assert not result.statistics.requires_grad
        assert not result.k3.requires_grad
        result.loss.backward()
        assert old.grad is None
        assert a.grad is None
        assert torch.equal(new.grad, result.gradient)
        assert not ppo_clip_loss(new.detach(), old, a, clip_coef=0.2).loss.requires_grad
        assert importance_ratio(new, old).requires_grad
        assert not importance_ratio(new.detach(), old).requires_grad
        assert clip_ratio(importance_ratio(new, old), clip_coef=0.2).requires_grad
        with torch.no_grad():
            assert not ppo_clip_loss(new, old, a, clip_coef=0.2).loss.requires_grad
            assert not importance_ratio(new, old).requires_grad
        with torch.inference_mode():
            assert torch.equal(ppo_clip_loss(new, old, a, clip_coef=0.2).loss, result.loss)

    @pytest.mark.parametrize("op", ["ppo_clip_loss", "importance_ratio"])
    def test_n8_the_operators_themselves_detach(self, op: str) -> None:
        """Row N8: an operator without an Autograd kernel claims a gradient that never comes."""
        new, old, a = (torch.from_numpy(x).requires_grad_() for x in sample(10))
        more = (a, None, 0.2, math.inf) if op == "ppo_clip_loss" else (None, None, None, None, True, False)
        for value in getattr(torch.ops.fastac, op)(new, old, *more):
            assert not value.requires_grad

    def test_the_direct_form_beside_another_loss(self) -> None:
        weights = torch.randn(8, dtype=torch.float64, requires_grad=True, generator=torch.Generator().manual_seed(0))
        inputs = torch.randn(50, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        old, a = (torch.from_numpy(x) for x in sample(50, dtype=np.float64)[1:])

        def terms() -> tuple[torch.Tensor, torch.Tensor]:
            out = inputs @ weights
            return torch.nn.functional.logsigmoid(out), (out**2).mean()

        log_probs, value_loss = terms()
        (ppo_clip_loss(log_probs, old, a, clip_coef=0.2).loss + value_loss).backward()
        expected = weights.grad.clone()
        weights.grad = None
        log_probs, value_loss = terms()
        with torch.no_grad():
            result = ppo_clip_loss(log_probs, old, a, clip_coef=0.2)
        torch.autograd.backward([log_probs, value_loss], [result.gradient, None])
        torch.testing.assert_close(weights.grad, expected)

    def test_twice_backward_and_scaled(self) -> None:
        new, old, a = (torch.from_numpy(x) for x in sample(100))
        leaf = new.clone().requires_grad_()
        result = ppo_clip_loss(leaf, old, a, clip_coef=0.2)
        kept = result.gradient.clone()
        (3 * result.loss).backward(retain_graph=True)
        result.loss.backward()
        torch.testing.assert_close(leaf.grad, 4 * kept)
        assert torch.equal(result.gradient, kept)
        for function in (
            lambda: ppo_clip_loss(leaf, old, a, clip_coef=0.2).loss,
            lambda: importance_ratio(leaf, old).sum(),
        ):
            with pytest.raises(RuntimeError, match=r"differentiable once.*create_graph"):
                torch.autograd.grad(function(), leaf, create_graph=True)

    def test_a_gradient_changed_in_place_before_backward_is_an_error(self) -> None:
        new, old, a = (torch.from_numpy(x) for x in sample(10))
        result = ppo_clip_loss(new.requires_grad_(), old, a, clip_coef=0.2)
        result.gradient.zero_()
        with pytest.raises(RuntimeError, match="inplace"):
            result.loss.backward()

    def test_functorch_transforms(self) -> None:
        new, old, a = (torch.from_numpy(x) for x in sample(60, dtype=np.float64))
        result = ppo_clip_loss(new, old, a, clip_coef=0.2)
        gradient = torch.func.grad(lambda x: ppo_clip_loss(x, old, a, clip_coef=0.2).loss)(new)
        torch.testing.assert_close(gradient, result.gradient)
        rows = [x.reshape(6, 10) for x in (new, old, a)]
        batched = torch.func.vmap(lambda *x: ppo_clip_loss(*x, clip_coef=0.2))(*rows)
        for i in range(6):
            one = ppo_clip_loss(*(x[i] for x in rows), clip_coef=0.2)
            torch.testing.assert_close(batched.loss[i], one.loss)
            torch.testing.assert_close(batched.gradient[i], one.gradient)
        products = torch.func.vmap(lambda x, y: importance_ratio(x, y, cumulative=True))(*rows[:2])
        torch.testing.assert_close(products, importance_ratio(*rows[:2], cumulative=True, batch_first=True))


class TestCompile:
    @pytest.mark.parametrize("masked", [False, True])
    def test_fullgraph(self, masked: bool) -> None:
        """No graph break, the same loss, statistics and gradient."""
        torch._dynamo.reset()
        new, old, a = (torch.from_numpy(x) for x in sample(200))
        mask = torch.from_numpy(np.random.default_rng(0).random(200) < 0.8) if masked else None

        def step(new: torch.Tensor) -> Any:
            log_probs = new * 1.5
            result = ppo_clip_loss(log_probs, old, a, mask, clip_coef=0.2, dual_clip=3.0)
            ratios = importance_ratio(log_probs, old, mask, cumulative=True)
            loss = result.loss + ratios.mean() + clip_ratio(ratios, clip_coef=0.2).sum()
            return loss, result.k3, sum(approx_kl(log_probs, old, mask))

        compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
        leaf, other = new.clone().requires_grad_(), new.clone().requires_grad_()
        results, expected = compiled(leaf), step(other)
        results[0].backward()
        expected[0].backward()
        for value, wanted in zip((*results, leaf.grad), (*expected, other.grad), strict=True):
            torch.testing.assert_close(value, wanted)
        assert not compiled(new)[0].requires_grad

    def test_direct_form(self) -> None:
        torch._dynamo.reset()
        new, old, a = (torch.from_numpy(x) for x in sample(200))
        compiled = torch.compile(
            lambda *x: ppo_clip_loss(*x, clip_coef=0.2), fullgraph=True, dynamic=True, backend="aot_eager"
        )
        for size in (200, 100, 37):
            cut = [x[:size] for x in (new, old, a)]
            for value, wanted in zip(compiled(*cut), ppo_clip_loss(*cut, clip_coef=0.2), strict=True):
                assert torch.equal(value, wanted)

    def test_first_thing_in_a_process(self) -> None:
        run_python(
            "import torch\nfrom fastac import ratio\n"
            "x = torch.ones(3, requires_grad=True)\n"
            "step = torch.compile(lambda x: ratio.ppo_clip_loss(x, x.detach(), x.detach(), clip_coef=0.2).loss,\n"
            "                     fullgraph=True, backend='aot_eager')\n"
            "step(x).backward()\n"
            "assert torch.allclose(x.grad, torch.full((3,), -1 / 3)), x.grad\n"
        )


@pytest.mark.parametrize("case", op_cases())
class TestOperators:
    def test_opcheck(self, case: str) -> None:
        op, arguments = op_cases()[case]
        torch.library.opcheck(getattr(torch.ops.fastac, op).default, arguments)

    def test_the_fallback_gives_what_the_kernel_gives(self, case: str) -> None:
        """What CUDA tensors run through, here on CPU tensors; shapes, dtypes and strides are those of fake tensors."""
        op, arguments = op_cases()[case]
        expected = getattr(torch.ops.fastac, op)(*arguments)
        results = getattr(_torch_ratio, f"_{op}_torch")(*arguments)
        fakes = getattr(_torch_ratio, f"_{op}_fake")(*arguments)
        if isinstance(expected, torch.Tensor):
            expected, results, fakes = (expected,), (results,), (fakes,)
        for result, wanted, fake in zip(results, expected, fakes, strict=True):
            torch.testing.assert_close(result, wanted, rtol=3e-6, atol=1e-6)
            assert result.dtype == wanted.dtype == fake.dtype
            assert result.shape == wanted.shape == fake.shape
            assert result.stride() == wanted.stride() == fake.stride()

    def test_meta_and_fake_tensors(self, case: str) -> None:
        op, arguments = op_cases()[case]
        on_meta = [x.to("meta") if isinstance(x, torch.Tensor) else x for x in arguments]
        getattr(torch.ops.fastac, op)(*on_meta)
        with FakeTensorMode() as mode:
            faked = [mode.from_tensor(x) if isinstance(x, torch.Tensor) else x for x in arguments]
            getattr(torch.ops.fastac, op)(*faked)


def test_a11_nothing_is_read_back_from_the_device() -> None:
    """Row A11: on meta tensors there is nothing to read; whoever needed a number would fail."""
    x = torch.empty(8, 4, device="meta", requires_grad=True)
    mask = torch.empty(8, 4, device="meta", dtype=torch.bool)
    result = ppo_clip_loss(x, x, x, mask, clip_coef=0.2, dual_clip=2.0)
    result.loss.backward()
    importance_ratio(x, x, mask, mask=mask, cumulative=True).sum().backward()
    approx_kl(x, x, mask)
    _torch_ratio._ppo_clip_loss_torch(x, x, x, mask, 0.2, 3.0)
    _torch_ratio._importance_ratio_torch(x, x, mask, None, mask, None, True, False)
    _torch_ratio._importance_ratio_backward_torch(x, x, mask, None, mask, None, True, False)
    assert result.k3.device.type == "meta"


@pytest.mark.cuda
@pytest.mark.parametrize("case", op_cases())
def test_cuda(case: str) -> None:
    op, arguments = op_cases()[case]
    on_device = [x.cuda() if isinstance(x, torch.Tensor) else x for x in arguments]
    torch.cuda.set_sync_debug_mode("error")
    try:
        results = getattr(torch.ops.fastac, op)(*on_device)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected = getattr(torch.ops.fastac, op)(*arguments)
    results = results if isinstance(results, tuple) else (results,)
    expected = expected if isinstance(expected, tuple) else (expected,)
    for result, wanted in zip(results, expected, strict=True):
        torch.testing.assert_close(result.cpu(), wanted, rtol=3e-6, atol=1e-6)
