"""Importance ratios and KL estimates against float64 loops and enumeration; dtypes, layouts and errors.

Rows R13 and N4 of the pitfalls.
"""

import math
from typing import Any

import naive_ratio
import numpy as np
import pytest
import torch
from fresh import run_python
from ratio_cases import KINDS, as_array, sample

from fastac.ratio import approx_kl, clip_ratio, importance_ratio, ppo_clip_loss


@pytest.mark.parametrize("cumulative", [False, True])
def test_r13_gradients_of_ratios_are_zero_beyond_the_bound(cumulative: bool) -> None:
    """Row R13: never inf * 0."""
    new = torch.tensor([1000.0, -1000.0, 0.5, 20.0], requires_grad=True)
    importance_ratio(new, torch.zeros(4), torch.tensor([True] * 4), cumulative=cumulative).sum().backward()
    expected = torch.tensor([0.0, 0.0, math.exp(0.5), math.exp(20.0)])
    torch.testing.assert_close(new.grad, expected, rtol=5e-7, atol=0)


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
