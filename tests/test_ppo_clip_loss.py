"""PPO's clipped loss against float64 loops and eager torch.

Rows R12 and R13 of the pitfalls.
"""

import math
from typing import Any

import naive_ratio
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ratio_cases import EPS, KINDS, NAMES, as_array, eager, gradient_of, sample

from fastac.normalize import normalize_advantages
from fastac.ratio import approx_kl, importance_ratio, ppo_clip_loss


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
