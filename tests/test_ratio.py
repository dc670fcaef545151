"""Ratios, PPO's clipped loss and KL estimates against float64 loops, eager torch and enumeration.

Rows R11, R12, R13, A11, N4 and N8 of the pitfalls.
"""

import math
from typing import Any

import naive_ratio
import numpy as np
import pytest
import torch
from fresh import run_python
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from fastac import _torch_ratio
from fastac.normalize import normalize_advantages
from fastac.ratio import PPOClipLoss, approx_kl, clip_ratio, importance_ratio, ppo_clip_loss

KINDS = [lambda x: x, torch.from_numpy]
NAMES = ("k1", "k2", "k3", "clip_fraction", "mean_ratio")
EPS = {np.float32: 1.2e-7, np.float64: 2.3e-16}


def as_array(x: Any) -> np.ndarray:
    return x.detach().double().numpy() if isinstance(x, torch.Tensor) else np.asarray(x, np.float64)


def sample(size: int, seed: int = 0, dtype: Any = np.float32, spread: float = 0.3) -> list[np.ndarray]:
    """New and old log probabilities, advantages."""
    rng = np.random.default_rng(seed)
    new = rng.normal(size=size) - 1.5
    return [x.astype(dtype) for x in (new, new + spread * rng.normal(size=size), rng.normal(size=size))]


def eager(new: Any, old: Any, a: Any, mask: Any = None, *, clip_coef: float, dual_clip: float | None = None) -> Any:
    """PPO's loss as anybody writes it in torch."""
    x = new - old
    if mask is not None:
        x, a = torch.where(mask, x, 0.0), torch.where(mask, a, 0.0)
    ratio = x.clamp(-20, 20).exp()
    s = torch.minimum(ratio * a, ratio.clamp(1 - clip_coef, 1 + clip_coef) * a)
    if dual_clip is not None:
        s = torch.where(a < 0, torch.maximum(s, dual_clip * a), s)
    return -s.mean() if mask is None else -s.sum() / mask.sum().clamp(min=1)


def gradient_of(function: Any, new: torch.Tensor, *others: Any, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    leaf = new.clone().requires_grad_()
    result = function(leaf, *others, **options)
    loss = result.loss if isinstance(result, PPOClipLoss) else result
    loss.backward()
    return loss.detach(), leaf.grad


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dual_clip", [None, 1.5])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [1, 7, 16, 64, 333, 5000])
def test_loss_against_the_reference(kind: Any, dual_clip: Any, masked: bool, dtype: Any, size: int) -> None:
    data = sample(size, size, dtype)
    mask = np.random.default_rng(size).random(size) < 0.7 if masked else None
    loss, gradient, statistics = naive_ratio.ppo_clip_loss(*data, mask, clip_coef=0.2, dual_clip=dual_clip)
    given = [kind(x) for x in data]
    result = ppo_clip_loss(*given, None if mask is None else kind(mask), clip_coef=0.2, dual_clip=dual_clip)
    scale = np.abs(data[2]).mean() + 1e-30
    tolerance = 4 * EPS[dtype]
    assert abs(as_array(result.loss) - loss) <= tolerance * scale * 2
    np.testing.assert_allclose(as_array(result.gradient), gradient, rtol=tolerance, atol=0)
    for name in NAMES:
        np.testing.assert_allclose(
            as_array(getattr(result, name)), statistics[name], rtol=20 * EPS[dtype], atol=3 * EPS[dtype] * 0.3
        )
    for x in result:
        assert x.dtype == given[0].dtype
        assert type(x) is type(given[0]) or x.ndim == 0


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.floats(-25, 25), st.floats(-3, 3), st.sampled_from([0, 1, 255, 7]), st.sampled_from([np.nan, 0.0])
        ),
        max_size=40,
    ),
    st.floats(0.01, 0.9),
    st.sampled_from([None, 1.01, 3.0]),
)
def test_any_numbers_against_the_reference(rows: Any, clip_coef: float, dual_clip: float | None) -> None:
    x, a, mask, garbage = (np.array(column) for column in zip(*rows, strict=True)) if rows else (np.zeros(0),) * 4
    mask = mask.astype(np.uint8)
    new = np.where(mask == 0, garbage, x)
    loss, gradient, statistics = naive_ratio.ppo_clip_loss(
        new, 0 * x, a, mask, clip_coef=clip_coef, dual_clip=dual_clip
    )
    for kind in KINDS:
        result = ppo_clip_loss(*map(kind, (new, 0 * x, a)), kind(mask), clip_coef=clip_coef, dual_clip=dual_clip)
        np.testing.assert_allclose(as_array(result.loss), loss, rtol=1e-13, atol=1e-15)
        np.testing.assert_allclose(as_array(result.gradient), gradient, rtol=1e-13)
        for name in NAMES:
            np.testing.assert_allclose(as_array(getattr(result, name)), statistics[name], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dual_clip", [None, 2.0])
@pytest.mark.parametrize("size", [64, 2048, 65536])
def test_equals_eager_torch(size: int, dual_clip: Any, masked: bool) -> None:
    """Loss and gradient within 5e-7, relatively; the loss relative to what is averaged."""
    new, old, a = (torch.from_numpy(x) for x in sample(size))
    mask = torch.from_numpy(np.random.default_rng(1).random(size) < 0.8) if masked else None
    options: dict[str, Any] = {"clip_coef": 0.2, "dual_clip": dual_clip}
    loss, gradient = gradient_of(ppo_clip_loss, new, old, a, mask, **options)
    expected, expected_gradient = gradient_of(eager, new, old, a, mask, **options)
    assert (loss - expected).abs() <= 5e-7 * a.abs().mean()
    torch.testing.assert_close(gradient, expected_gradient, rtol=5e-7, atol=0)
    direct = ppo_clip_loss(new, old, a, mask, **options)
    assert torch.equal(direct.gradient, gradient)
    assert torch.equal(direct.loss, loss)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_gradient_is_zero_exactly_where_the_clip_says(dtype: Any) -> None:
    """A > 0 and rho > 1 + eps, or A < 0 and rho < 1 - eps; nowhere else."""
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, 4000).astype(dtype)
    a = rng.normal(size=4000).astype(dtype)
    result = ppo_clip_loss(x, np.zeros_like(x), a, clip_coef=0.2)
    ratio = np.exp(x.astype(np.float64))
    clipped = ((a > 0) & (ratio > 1.2)) | ((a < 0) & (ratio < 0.8))
    assert clipped.any()
    assert ((result.gradient == 0) == clipped).all()
    dual = ppo_clip_loss(x, np.zeros_like(x), a, clip_coef=0.2, dual_clip=1.5)
    assert ((dual.gradient == 0) == (clipped | ((a < 0) & (ratio > 1.5)))).all()


def test_at_the_old_policy_it_is_the_policy_gradient() -> None:
    new, _, a = sample(100)
    result = ppo_clip_loss(new, new, a, clip_coef=0.2)
    np.testing.assert_allclose(result.gradient, -a / 100, rtol=3e-7)
    assert result.k1 == result.k2 == result.k3 == result.clip_fraction == 0
    assert result.mean_ratio == 1


def test_dual_clip_by_hand() -> None:
    """Ye et al. 2020, equation 5: A = -1, rho = 4 and c = 3 give 3; positive advantages are untouched."""
    new = np.log([4.0, 4.0, 2.0])
    result = ppo_clip_loss(new, np.zeros(3), np.array([-1.0, 1.0, -1.0]), clip_coef=0.2, dual_clip=3.0)
    assert result.loss == pytest.approx((3 - 1.2 + 2) / 3)
    np.testing.assert_allclose(result.gradient, [0, 0, 2 / 3], rtol=1e-15)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_r13_no_overflow_and_nan_goes_through(kind: Any, dtype: Any) -> None:
    """Row R13: the exponent is bounded before exp; beyond +-20 no gradient; a NaN that comes in goes out."""
    x = np.array([19.0, 20.0, 21.0, 500.0, np.inf, -19.0, -20.0, -21.0, -500.0, -np.inf], dtype)
    zero, a = np.zeros_like(x), np.full_like(x, -1.0)
    result = ppo_clip_loss(kind(x), kind(zero), kind(a), clip_coef=0.2)
    for value in result:
        assert np.isfinite(as_array(value)).all()
    slope = as_array(result.gradient) * 10
    np.testing.assert_allclose(slope[:2], np.exp(x[:2].astype(float)), rtol=3e-7)
    assert (slope[2:] == 0).all()
    ratios = as_array(importance_ratio(kind(x), kind(zero)))
    np.testing.assert_allclose(ratios, np.exp(np.clip(x.astype(float), -20, 20)), rtol=3e-7)
    for bad in (np.nan, np.inf):  # inf - inf
        broken = x.copy()
        broken[3] = bad
        other = zero.copy()
        other[3] = bad
        result = ppo_clip_loss(kind(broken), kind(other), kind(a), clip_coef=0.2)
        assert np.isnan(as_array(result.loss))
        assert np.isnan(as_array(result.gradient)[3])
        assert np.isnan(as_array(importance_ratio(kind(broken), kind(other)))[3])
        assert np.isnan(as_array(result.k3))
    a[0] = np.nan
    result = ppo_clip_loss(kind(x), kind(zero), kind(a), clip_coef=0.2)
    assert np.isnan(as_array(result.loss))
    assert np.isnan(as_array(result.gradient)[0])


@pytest.mark.parametrize("cumulative", [False, True])
def test_r13_gradients_of_ratios_are_zero_beyond_the_bound(cumulative: bool) -> None:
    """Row R13: never inf * 0."""
    new = torch.tensor([1000.0, -1000.0, 0.5, 20.0], requires_grad=True)
    importance_ratio(new, torch.zeros(4), torch.tensor([True] * 4), cumulative=cumulative).sum().backward()
    expected = torch.tensor([0.0, 0.0, math.exp(0.5), math.exp(20.0)])
    torch.testing.assert_close(new.grad, expected, rtol=5e-7, atol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf, 1e30])
def test_what_the_mask_drops_does_no_harm(kind: Any, garbage: float) -> None:
    """Rule 3 and row R12: masked elements are selected away, whatever they hold."""
    data = sample(500)
    mask = np.random.default_rng(2).random(500) < 0.6
    kept = ppo_clip_loss(*(x[mask] for x in data), clip_coef=0.2)
    for x in data:
        x[~mask] = garbage
    result = ppo_clip_loss(*map(kind, data), kind(mask), clip_coef=0.2)
    np.testing.assert_allclose(as_array(result.loss), kept.loss, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(as_array(result.gradient)[mask], kept.gradient, rtol=3e-7)
    assert (as_array(result.gradient)[~mask] == 0).all()
    for name in NAMES:
        np.testing.assert_allclose(as_array(getattr(result, name)), getattr(kept, name), rtol=2e-6, atol=1e-8)
    ratios = as_array(importance_ratio(kind(data[0]), kind(data[1]), mask=kind(mask)))
    assert (ratios[~mask] == 0).all()
    for found, wanted in zip(approx_kl(kind(data[0]), kind(data[1]), kind(mask)), (kept.k1, kept.k2, kept.k3)):  # noqa: B905
        np.testing.assert_allclose(as_array(found), wanted, rtol=2e-6, atol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [0, 5])
def test_nothing_left_gives_zero(kind: Any, size: int) -> None:
    """Rule 11: an all-masked loss is 0 with zero gradient, an empty one too."""
    x, mask = kind(np.full(size, np.nan, np.float32)), kind(np.zeros(size, bool))
    result = ppo_clip_loss(x, x, x, mask, clip_coef=0.2)
    for value in (*result, *approx_kl(x, x, mask)):
        assert (as_array(value) == 0).all()
    if kind is torch.from_numpy:
        loss, gradient = gradient_of(ppo_clip_loss, x, x, x, mask, clip_coef=0.2)
        assert loss == 0
        assert (gradient == 0).all()


def test_k3_keeps_its_digits_close_to_the_old_policy() -> None:
    """Rho - 1 - x of ratios a thousandth from 1 loses every digit in float32 unless it is a series."""
    x = np.linspace(-1e-3, 1e-3, 1001).astype(np.float32)
    wanted = (np.expm1(x.astype(float)) - x.astype(float)).mean()
    result = ppo_clip_loss(x, np.zeros_like(x), x, clip_coef=0.2)
    assert result.k3 == pytest.approx(wanted, rel=1e-6)
    across = np.linspace(-0.7, 0.7, 4001).astype(np.float32)
    for at in across:
        one = np.full(1, at)
        assert ppo_clip_loss(one, 0 * one, one, clip_coef=0.2).k3 == pytest.approx(
            math.expm1(float(at)) - float(at), rel=2e-6, abs=1e-12
        )


def test_a_million_float32_elements_keep_the_mean() -> None:
    """Block sums in float64: the sum of a million does not drift."""
    new, old, a = sample(1_000_000)
    result = ppo_clip_loss(new, old, a + 1, clip_coef=0.2)
    wide = ppo_clip_loss(*(x.astype(np.float64) for x in (new, old, a + 1)), clip_coef=0.2)
    for value, exact in zip((result.loss, *result.statistics), (wide.loss, *wide.statistics), strict=True):
        assert value == pytest.approx(exact, rel=5e-7, abs=1e-8)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    """Computed in float32; the gradient is rounded once, when autograd hands it on."""
    new, old, a = (torch.from_numpy(x).to(dtype) for x in sample(3000))
    result = ppo_clip_loss(new, old, a, clip_coef=0.2)
    wide = ppo_clip_loss(new.float(), old.float(), a.float(), clip_coef=0.2)
    for value, expected in zip(result, wide, strict=True):
        assert value.dtype == torch.float32
        assert torch.equal(value, expected)
    leaf = new.clone().requires_grad_()
    (ppo_clip_loss(leaf, old, a, clip_coef=0.2).loss * 1024).backward()
    assert torch.equal(leaf.grad, (wide.gradient * 1024).to(dtype))
    other = new.clone().requires_grad_()
    other.backward(result.gradient * 1024)
    assert torch.equal(other.grad, leaf.grad)
    ratios = importance_ratio(new, old)
    assert ratios.dtype == dtype
    assert torch.equal(ratios, importance_ratio(new.float(), old.float()).to(dtype))
    half = ppo_clip_loss(*(x.astype(np.float16) for x in sample(10)), clip_coef=0.2)
    assert half.gradient.dtype == half.loss.dtype == np.float32


def test_other_dtypes_and_layouts_are_converted() -> None:
    new, old, a = (torch.from_numpy(x).reshape(20, 30) for x in sample(600))
    expected = ppo_clip_loss(new, old, a, clip_coef=0.2)
    result = ppo_clip_loss(new.t().contiguous().t(), old.double(), a, torch.ones(20, 30), clip_coef=0.2)
    torch.testing.assert_close(result.gradient, expected.gradient)
    whole = torch.arange(600).reshape(20, 30)
    assert torch.equal(
        ppo_clip_loss(new, old, whole, clip_coef=0.2).loss, ppo_clip_loss(new, old, whole.float(), clip_coef=0.2).loss
    )
    arrays = ppo_clip_loss(new.numpy().T, old.numpy().T.astype(">f8"), a.numpy().T, clip_coef=np.float32(0.2))
    np.testing.assert_allclose(arrays.gradient.T, expected.gradient.numpy(), rtol=1e-6)
    read_only = [x.numpy().copy() for x in (new, old, a)]
    for x in read_only:
        x.setflags(write=False)
    assert (ppo_clip_loss(*read_only, clip_coef=0.2).gradient == expected.gradient.numpy()).all()


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


def op_cases() -> dict[str, tuple[str, tuple[Any, ...]]]:
    new, old, a = (torch.from_numpy(x).reshape(12, 5) for x in sample(60))
    generator = torch.Generator().manual_seed(0)
    ended, mask = (torch.rand(12, 5, generator=generator) < p for p in (0.2, 0.8))
    flat = [x.reshape(-1) for x in (new, old, ended, mask)]
    cu_seqlens = torch.tensor([0, 11, 11, 13, 40, 60], dtype=torch.int32)
    return {
        "loss": ("ppo_clip_loss", (new, old, a, None, 0.2, math.inf)),
        "masked loss": ("ppo_clip_loss", (new, old, a, mask, 0.2, 3.0)),
        "half loss": ("ppo_clip_loss", (new.half(), old, a, mask, 0.2, 3.0)),
        "ratio": ("importance_ratio", (new, old, None, None, mask, None, False, False)),
        "product": ("importance_ratio", (new, old, ended, None, mask, None, True, False)),
        "batch first": ("importance_ratio", (new, old, ended, ended, None, None, True, True)),
        "packed": ("importance_ratio", (flat[0], flat[1], flat[2], None, flat[3], cu_seqlens, True, False)),
        "backward": ("importance_ratio_backward", (a, new, None, None, None, None, False, False)),
        "product backward": ("importance_ratio_backward", (a, new, ended, None, mask, None, True, False)),
        "batch first backward": ("importance_ratio_backward", (a, new, ended, ended, None, None, True, True)),
        "packed backward": (
            "importance_ratio_backward",
            (a.reshape(-1), flat[0], flat[2], None, flat[3], cu_seqlens, True, False),
        ),
    }


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


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", ["time first", "batch first", "packed", "one sequence"])
@pytest.mark.parametrize("cumulative", [False, True])
@pytest.mark.parametrize("flags", ["none", "ends", "all"])
def test_ratios_against_the_reference(kind: Any, layout: str, cumulative: bool, flags: str) -> None:
    """Rules 3 and 8: products begin anew after every end and in every window, and pass masked rows."""
    rng = np.random.default_rng(5)
    lengths = [13, 0, 1, 26] if layout == "packed" else [40] if layout == "one sequence" else [10] * 4
    sequences = []
    for length in lengths:
        new, old = rng.normal(size=(2, length))
        old[: length // 3] += 30 * (rng.random(length // 3) < 0.1)
        ends = [rng.random(length) < 0.15 if flags != "none" else None for _ in range(2)]
        mask = rng.random(length) < 0.7 if flags == "all" else None
        outer = rng.normal(size=length)
        sequences.append((new, old, *ends, mask, outer))
    expected = [naive_ratio.importance_ratio(*s[:5], cumulative=cumulative) for s in sequences]
    gradients = [naive_ratio.ratio_gradient(s[5], *s[:5], cumulative=cumulative) for s in sequences]

    def together(parts: list[Any]) -> Any:
        if parts[0] is None:
            return None
        if layout in ("packed", "one sequence"):
            return np.concatenate(parts)
        return np.stack(parts, 0 if layout == "batch first" else 1)

    new, old, terminated, truncated, mask, outer = (together(list(column)) for column in zip(*sequences, strict=True))
    if mask is not None:
        new[~mask], old[~mask] = np.nan, np.inf
    given = [None if x is None else kind(x) for x in (new, old, terminated, truncated, mask)]
    options: dict[str, Any] = {"cumulative": cumulative}
    if layout == "packed":
        options["cu_seqlens"] = kind(np.cumsum([0, *lengths]).astype(np.int32))
    if layout == "batch first":
        options["batch_first"] = True
    np.testing.assert_allclose(as_array(importance_ratio(*given, **options)), together(expected), rtol=1e-12)
    if kind is torch.from_numpy:
        leaf = given[0].clone().requires_grad_()
        importance_ratio(leaf, *given[1:], **options).backward(torch.from_numpy(outer))
        np.testing.assert_allclose(leaf.grad.numpy(), together(gradients), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (1, 1)])
@pytest.mark.parametrize("cumulative", [False, True])
def test_empty_and_single(shape: tuple[int, ...], cumulative: bool) -> None:
    """Rule 11."""
    for kind in KINDS:
        x = kind(np.zeros(shape, np.float32))
        for batch_first in (False, True):
            result = importance_ratio(x, x, cumulative=cumulative, batch_first=batch_first)
            assert tuple(result.shape) == shape
            assert (as_array(result) == 1).all()
    leaf = torch.zeros(shape, requires_grad=True)
    importance_ratio(leaf, leaf.detach(), cumulative=cumulative).sum().backward()
    assert (leaf.grad == 1).all()


@pytest.mark.parametrize("kind", KINDS)
def test_clip_ratio(kind: Any) -> None:
    x = kind(np.array([0.1, 0.8, 1.0, 1.2, 5.0, np.nan, np.inf], np.float32))
    out = clip_ratio(x, clip_coef=0.25)
    assert out.dtype == x.dtype
    np.testing.assert_array_equal(as_array(out), [0.75, np.float32(0.8), 1, np.float32(1.2), 1.25, np.nan, 1.25])


def test_kl_estimators_have_a_direction() -> None:
    """Enumerated: in expectation under the old policy k1 and k3 are KL(old || new), not KL(new || old)."""
    old, new = np.array([0.7, 0.2, 0.1]), np.array([0.1, 0.3, 0.6])
    estimates = [approx_kl(np.log(new[[i]]), np.log(old[[i]])) for i in range(3)]
    forward, reverse = (old * np.log(old / new)).sum(), (new * np.log(new / old)).sum()
    assert abs(forward - reverse) > 0.01
    for name in ("k1", "k3"):
        assert sum(p * getattr(e, name) for p, e in zip(old, estimates, strict=True)) == pytest.approx(forward)
    exchanged = [approx_kl(np.log(old[[i]]), np.log(new[[i]])) for i in range(3)]
    assert sum(p * e.k3 for p, e in zip(new, exchanged, strict=True)) == pytest.approx(reverse)
    x, y, a = sample(500)
    together = ppo_clip_loss(x, y, a, clip_coef=0.2)
    for name, value in approx_kl(x, y)._asdict().items():
        assert value.dtype == np.float32
        assert value == pytest.approx(getattr(together, name), rel=1e-6)
        assert getattr(approx_kl(torch.from_numpy(x), torch.from_numpy(y)), name).item() == pytest.approx(
            value, rel=1e-5
        )


def test_r11_normalised_advantages_far_from_zero() -> None:
    """Row R11: E[x^2] - E[x]^2 of values around 1e4 has no digit left in float32; centred squares have them all."""
    x = (1e4 + np.random.default_rng(0).normal(size=10_000)).astype(np.float32)
    wide = x.astype(np.float64)
    expected = (wide - wide.mean()) / wide.std(ddof=1)
    for kind in KINDS:
        np.testing.assert_allclose(as_array(normalize_advantages(kind(x))), expected, atol=2e-3)


def test_r12_padding_counts_in_no_mean() -> None:
    """Row R12: padded steps change neither normalised advantages nor the loss; one element or a constant gives 0."""
    new, old, a = sample(40)
    mask = np.arange(60) < 40
    padded = [np.concatenate([x, np.full(20, 7, np.float32)]) for x in (new, old, a)]
    for kind in KINDS:
        normal = normalize_advantages(kind(padded[2]), kind(mask))
        np.testing.assert_allclose(as_array(normal)[:40], as_array(normalize_advantages(kind(a))), atol=1e-6)
        loss = ppo_clip_loss(*map(kind, padded), kind(mask), clip_coef=0.2).loss
        assert float(loss) == pytest.approx(float(ppo_clip_loss(new, old, a, clip_coef=0.2).loss), abs=1e-7)
        for constant in ([3.5], [0.1] * 9):
            assert not as_array(normalize_advantages(kind(np.array(constant, np.float32)))).any()


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


def test_n4_nothing_float32_is_computed_in_float64() -> None:
    """Row N4: in the loop over elements; one sum a block is widened on purpose."""
    run_python(
        "import numpy as np\n"
        "from fastac.ratio import importance_ratio, ppo_clip_loss\n"
        "from fastac_kernels import ratio as kernels\n"
        "x = np.ones(8, np.float32)\n"
        "importance_ratio(x, x, cumulative=True), ppo_clip_loss(x, x, x, clip_coef=0.2)\n"
        "def widened(d): return max(d.inspect_llvm(s).count('fpext') for s in d.signatures)\n"
        "assert widened(kernels.importance_ratio_at) == 0\n"
        "assert widened(kernels.ppo_clip_loss_at) <= 10, widened(kernels.ppo_clip_loss_at)\n",
        env={"FASTAC_CACHE": "0"},
    )


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_arguments_are_named(kind: Any) -> None:
    x, y = kind(np.zeros((4, 3), np.float32)), kind(np.zeros((4, 2), np.float32))
    other = KINDS[1 - KINDS.index(kind)](np.zeros((4, 3), np.float32))
    loss = lambda *arguments, **more: ppo_clip_loss(*arguments, **{"clip_coef": 0.2, **more})  # noqa: E731
    for name, call in (
        ("old_log_probs", lambda: loss(x, y, x)),
        ("advantages", lambda: loss(x, x, y)),
        ("mask", lambda: loss(x, x, x, y)),
        ("old_log_probs", lambda: loss(x[0], y[0], x[0])),
        ("advantages", lambda: loss(x[0], x[0], y[0])),
        ("clip_coef", lambda: loss(x, x, x, clip_coef=0.0)),
        ("clip_coef", lambda: loss(x, x, x, clip_coef=math.nan)),
        ("dual_clip", lambda: loss(x, x, x, dual_clip=1.0)),
        ("clip_coef", lambda: clip_ratio(x, clip_coef=-1)),
        ("terminated", lambda: importance_ratio(x, x, y)),
        ("batch_first", lambda: importance_ratio(x, x, batch_first=True, cu_seqlens=x)),
        ("log_probs", lambda: importance_ratio(x, x, cu_seqlens=x)),
        ("log_probs", lambda: importance_ratio(x[None], x[None], cumulative=True)),
        ("cu_seqlens", lambda: importance_ratio(x[0], x[0], cu_seqlens=kind(np.array([0, 2])))),
    ):
        with pytest.raises(ValueError, match=f"^{name}: expected .* got "):
            call()
    for name, call in (
        ("log_probs", lambda: loss([1.0], x, x)),
        ("log_probs", lambda: loss(kind(np.zeros(3, np.int64)), x, x)),
        ("old_log_probs", lambda: loss(x, other, x)),
        ("old_log_probs", lambda: loss(x, None, x)),
        ("mask", lambda: loss(x, x, x, [True])),
        ("advantages", lambda: loss(x, x, kind(np.zeros((4, 3), np.complex64)))),
        ("clip_coef", lambda: loss(x, x, x, clip_coef="0.2")),
        ("ratios", lambda: clip_ratio(3.0, clip_coef=0.2)),
        ("cu_seqlens", lambda: importance_ratio(x[0], x[0], cu_seqlens=kind(np.array([0.0, 3.0])))),
        ("cu_seqlens", lambda: importance_ratio(x[0], x[0], cu_seqlens=[0, 3])),
    ):
        with pytest.raises(TypeError, match=f"^{name}: expected .* got "):
            call()


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
