"""The estimators as torch operators: compiled, traced, differentiated around, on other devices.

Rules 8 to 11, and row N8 of the pitfalls.
"""

from typing import Any

import numpy as np
import pytest
import torch
from cases import FULL_ONLY, NUMBERS, OPTIONS, REFERENCES, TWO_OUTPUTS, Case, as_tuple, assert_within
from fresh import run_python
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import fastac
from fastac import _torch_ops
from fastac._arrays import Arguments


def arguments(name: str, shape: tuple[int, ...] = (12, 5), *, form: str = "full", seed: int = 0) -> dict[str, Any]:
    """Tensors for one call; `form` is full, vector or scalar next values, where the estimator takes them."""
    generator = torch.Generator().manual_seed(seed)
    form = "full" if name in FULL_ONLY else form
    given = {key: torch.randn(shape, generator=generator) for key in NUMBERS[name]}
    given["terminated"] = torch.rand(shape, generator=generator) < 0.2
    given["mask"] = torch.rand(shape, generator=generator) < 0.8
    if form == "full":
        given["truncated"] = torch.rand(shape, generator=generator) < 0.2
    elif form == "vector":
        given["next_values"] = torch.randn(shape[1:], generator=generator)
    else:
        given["next_values"] = 0.25
    return given


def call(name: str, given: dict[str, Any], **keywords: Any) -> tuple[torch.Tensor, ...]:
    result = getattr(fastac, name)(**given, **OPTIONS[name], **keywords)
    return as_tuple(name, result)


def assert_equal(results: tuple[torch.Tensor, ...], others: tuple[torch.Tensor, ...]) -> None:
    for result, other in zip(results, others, strict=True):
        torch.testing.assert_close(result, other, rtol=0, atol=0)


def reference_case(name: str, given: dict[str, Any]) -> Case:
    as_arrays = {k: v.numpy() if isinstance(v, torch.Tensor) else v for k, v in given.items()}
    return Case(name, as_arrays, OPTIONS[name])


@pytest.mark.parametrize("form", ["full", "vector", "scalar"])
@pytest.mark.parametrize("name", REFERENCES)
class TestCompile:
    def test_fullgraph(self, name: str, form: str) -> None:
        """No graph break, and the same numbers."""
        torch._dynamo.reset()
        given = arguments(name, form=form)

        def step(given: dict[str, Any]) -> Any:
            scaled = {**given, "rewards": given["rewards"] * 2}
            return tuple(r + 1 for r in call(name, scaled))

        compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
        assert_equal(compiled(given), step(given))

    def test_batch_first_and_other_layouts(self, name: str, form: str) -> None:
        torch._dynamo.reset()
        given = arguments(name, form=form)
        turned = {k: v.t() if isinstance(v, torch.Tensor) and v.ndim == 2 else v for k, v in given.items()}
        compiled = torch.compile(lambda g: call(name, g, batch_first=True), fullgraph=True, backend="aot_eager")
        expected = call(name, given)
        for result, other in zip(compiled(turned), expected, strict=True):
            torch.testing.assert_close(result.t(), other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", REFERENCES)
def test_compiled_with_dynamic_shapes(name: str) -> None:
    """One graph for every length, through fake tensors with symbolic sizes."""
    torch._dynamo.reset()
    compiled = torch.compile(lambda g: call(name, g), fullgraph=True, dynamic=True, backend="aot_eager")
    for length in (12, 7, 30):
        given = arguments(name, (length, 5))
        assert_equal(compiled(given), call(name, given))


def test_compiling_is_the_first_thing_a_process_does() -> None:
    """Operators registered at their first use would break the graph of the call that registers them."""
    run_python(
        "import torch, fastac\n"
        "step = torch.compile(lambda r, v: fastac.gae(r, v, 0.0, gamma=0.5, gae_lambda=0.5), fullgraph=True,\n"
        "                     backend='aot_eager')\n"
        "x = torch.ones(3, 2)\n"
        "assert step(x, x).advantages[0, 0] == fastac.gae(x, x, 0.0, gamma=0.5, gae_lambda=0.5).advantages[0, 0]\n"
    )


def operands(name: str, form: str, *, packed: bool = False) -> tuple[Any, ...]:
    """Arguments of the operator itself: every one in its place, then the options."""
    given = arguments(name, form=form)
    cu_seqlens = None
    if packed:
        given = {k: v.reshape(-1) if isinstance(v, torch.Tensor) and v.ndim == 2 else v for k, v in given.items()}
        cu_seqlens = torch.tensor([0, 11, 11, 13, 40, 60], dtype=torch.int32)
    if form == "scalar" and name not in FULL_ONLY:
        given["next_values"] = torch.tensor(0.25)
    return (*row(given, cu_seqlens)[: _torch_ops.arguments_of(name)], *OPTIONS[name].values())


def row(given: dict[str, Any], cu_seqlens: Any = None, batch_first: bool = False) -> Arguments:
    """Every argument in its place."""
    values = given.get("values", given.get("q_values"))
    places = {key: given.get(key) for key in Arguments._fields}
    return Arguments(**{**places, "values": values, "cu_seqlens": cu_seqlens, "batch_first": batch_first})


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("form", ["full", "vector", "scalar"])
@pytest.mark.parametrize("name", REFERENCES)
class TestOperators:
    def test_opcheck(self, name: str, form: str, packed: bool) -> None:
        """Schema, autograd registration, fake tensors and tracing, as torch tests its own."""
        torch.library.opcheck(getattr(torch.ops.fastac, name).default, operands(name, form, packed=packed))

    def test_the_fallback_gives_what_the_kernel_gives(self, name: str, form: str, packed: bool) -> None:
        """What CUDA tensors run through where no kernel of ours can, here on CPU tensors."""
        given = operands(name, form, packed=packed)
        expected = getattr(torch.ops.fastac, name)(*given)
        expected = expected if isinstance(expected, tuple) else (expected,)
        count = _torch_ops.arguments_of(name)
        results = _torch_ops._in_torch(name, Arguments(*given[:count]), given[count:])
        for result, other in zip(results, expected, strict=True):
            torch.testing.assert_close(result, other, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("shape", [(12, 5), (9,), (0,), (0, 5), (5, 0), (1, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", REFERENCES)
def test_the_fallback_against_the_reference(name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Rules 1 to 5, 9 and 13 for the fallback: NaN in every unread place, every dtype, both layouts."""
    for form in ("full", "vector"):
        given = arguments(name, shape, form=form if len(shape) == 2 else "full")
        given = {k: v.to(dtype) if v.is_floating_point() else v.float() for k, v in given.items()}
        case = reference_case(name, {k: v.double() for k, v in given.items()})
        for key, places in case.unread().items():
            given[key] = torch.where(torch.from_numpy(places), torch.nan, given[key])
        for batch_first in (False, True):
            turned = {k: v.t() if batch_first and v.ndim == 2 else v for k, v in given.items()}
            operands = row(turned, None, batch_first)
            results = _torch_ops._in_torch(name, operands, tuple(OPTIONS[name].values()))
            for result, expected in zip(results, case.expected(), strict=True):
                assert result.dtype == dtype
                tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 4e-3}.get(dtype, 3e-2)
                plain = (result.t() if batch_first else result).double().numpy()
                np.testing.assert_allclose(plain, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", REFERENCES)
class TestGradients:
    """Row N8: an operator without an Autograd kernel claims a gradient that never comes."""

    def requiring(self, name: str, form: str = "full") -> dict[str, Any]:
        given = arguments(name, form=form)
        for key in NUMBERS[name]:
            if isinstance(given.get(key), torch.Tensor):
                given[key].requires_grad_(True)
        return given

    @pytest.mark.parametrize("form", ["full", "vector", "scalar"])
    def test_eager_results_are_detached(self, name: str, form: str) -> None:
        """Rule 10."""
        for result in call(name, self.requiring(name, form)):
            assert not result.requires_grad
            assert result.grad_fn is None

    def test_results_are_detached_under_a_dispatch_mode(self, name: str) -> None:
        """The slow way through the dispatcher, which the fast path for plain tensors skips."""

        class Passing(TorchDispatchMode):
            def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                return func(*args, **(kwargs or {}))

        with Passing():
            assert all(not r.requires_grad for r in call(name, self.requiring(name)))
        parameters = {k: torch.nn.Parameter(v) if k in NUMBERS[name][-2:] else v for k, v in arguments(name).items()}
        assert all(not r.requires_grad for r in call(name, parameters))

    def test_compiled_results_are_detached(self, name: str) -> None:
        torch._dynamo.reset()
        compiled = torch.compile(lambda g: call(name, g), fullgraph=True, backend="aot_eager")
        results = compiled(self.requiring(name))
        assert all(not r.requires_grad for r in results)

    def test_a_loss_around_the_call_gets_its_own_gradient_alone(self, name: str) -> None:
        given = self.requiring(name)
        values = given["rewards"]
        loss = sum((r * values).sum() for r in call(name, given))
        loss.backward()
        expected = sum(call(name, given))
        torch.testing.assert_close(values.grad, expected)
        assert given["next_values"].grad is None

    def test_under_no_grad_and_inference_mode(self, name: str) -> None:
        given = arguments(name)
        with torch.inference_mode():
            inference = call(name, given)
        with torch.no_grad():
            assert_equal(call(name, self.requiring(name)), call(name, given))
        assert_equal(tuple(r.clone() for r in inference), call(name, given))


@pytest.mark.parametrize("name", REFERENCES)
class TestShapesAlone:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
    def test_meta_tensors(self, name: str, dtype: torch.dtype) -> None:
        given = {k: v.to("meta") for k, v in arguments(name).items()}
        given = {k: v.to(dtype) if v.is_floating_point() else v for k, v in given.items()}
        for result in call(name, given):
            assert result.device.type == "meta"
            assert result.shape == (12, 5)
            assert result.dtype == dtype
            assert not result.requires_grad

    def test_fake_tensors(self, name: str) -> None:
        with FakeTensorMode() as mode:
            given = {k: mode.from_tensor(v) for k, v in arguments(name).items()}
            for result in call(name, given):
                assert result.shape == (12, 5)
                assert result.dtype == torch.float32

    def test_errors_are_the_same_while_tracing(self, name: str) -> None:
        given = {k: v.to("meta") for k, v in arguments(name).items()}
        with pytest.raises(ValueError, match="terminated"):
            call(name, {**given, "terminated": torch.ones(3, 5, device="meta")})


@pytest.mark.parametrize("name", REFERENCES)
class TestTransforms:
    def test_functorch_grad_and_vmap(self, name: str) -> None:
        """Inside `grad` the estimator is a constant; `vmap` gives what a loop gives, or says that it cannot."""
        given = arguments(name)
        floating = given.pop("rewards")

        def loss(weights: torch.Tensor) -> torch.Tensor:
            return sum((r * weights).sum() for r in call(name, {"rewards": weights, **given}))

        gradient = torch.func.grad(loss)(floating)
        torch.testing.assert_close(gradient, sum(call(name, {"rewards": floating, **given})))

    def test_inputs_are_not_changed(self, name: str) -> None:
        given = arguments(name)
        before = {k: v.clone() for k, v in given.items()}
        versions = {k: v._version for k, v in given.items()}
        call(name, given)
        for key, tensor in given.items():
            assert torch.equal(tensor, before[key])
            assert tensor._version == versions[key]

    def test_subclasses_take_the_dispatcher(self, name: str) -> None:
        class Logged(torch.Tensor):
            pass

        given = arguments(name)
        given["rewards"] = given["rewards"].as_subclass(Logged)
        for result, other in zip(call(name, given), call(name, arguments(name)), strict=True):
            assert torch.equal(result.as_subclass(torch.Tensor), other)

    def test_writing_to_out_is_seen_by_autograd(self, name: str) -> None:
        """A result overwritten in place after it was saved for backward is an error, not a wrong gradient."""
        out = torch.zeros(12, 5)
        weight = torch.ones(12, 5, requires_grad=True)
        loss = (weight * out).sum()
        call(name, arguments(name), out=(out, torch.empty(12, 5)) if name in TWO_OUTPUTS else out)
        assert out.abs().sum() > 0
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


@pytest.mark.cuda
@pytest.mark.parametrize("form", ["full", "vector", "scalar"])
@pytest.mark.parametrize("name", REFERENCES)
def test_cuda_agrees_with_the_reference(name: str, form: str) -> None:
    given = arguments(name, (64, 33), form=form)
    on_device = {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in given.items()}
    torch.cuda.set_sync_debug_mode("error")
    try:
        results = call(name, on_device)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(r.is_cuda and not r.requires_grad for r in results)
    assert_within(tuple(r.cpu().numpy() for r in results), reference_case(name, given))


def test_random_state_is_left_alone() -> None:
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    for name in REFERENCES:
        call(name, arguments(name))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002
