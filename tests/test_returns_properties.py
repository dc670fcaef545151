"""The estimators against the float64 references, over random flags, masks, dtypes, shapes and layouts."""

from typing import Any

import hypothesis.strategies as st
import naive
import numpy as np
import pytest
import torch
from cases import (
    FLAGS,
    FULL_ONLY,
    LAYOUTS,
    OPTIONS,
    REFERENCES,
    Case,
    assert_same_bytes,
    assert_within,
    cases,
    example,
    lay_out,
)
from hypothesis import given

import fastac


@pytest.mark.parametrize("name", REFERENCES)
class TestAgainstReference:
    @given(st.data())
    def test_within_the_accuracy_bound(self, name: str, data: Any) -> None:
        """Rules 1 to 5 and 13, and the result's dtype (rule 9)."""
        case = data.draw(cases((name,)))
        results = case.call()
        assert all(result.dtype == case.dtype for result in results)
        assert all(isinstance(result, np.ndarray) and result.flags.c_contiguous for result in results)
        assert_within(results, case)

    @given(st.data())
    def test_layouts_and_batch_first(self, name: str, data: Any) -> None:
        """Rule 8: every layout of every argument, time-major and batch-major, with and without `out`."""
        case = data.draw(cases((name,)))
        layouts = {argument: data.draw(st.sampled_from(LAYOUTS), argument) for argument in case.arguments}
        batch_first = data.draw(st.booleans(), "batch_first")
        shape = case.arguments["rewards"].shape

        def present(argument: str, array: Any) -> Any:
            if np.ndim(array) == 0:
                return array
            array = array.T if batch_first and array.ndim == 2 else array
            return lay_out(array, layouts[argument])

        keywords: dict[str, Any] = {"batch_first": batch_first}
        if data.draw(st.booleans(), "out"):
            out = tuple(
                np.full(shape[::-1] if batch_first else shape, np.nan, case.dtype) for _ in range(case.num_outputs)
            )
            keywords["out"] = out if case.num_outputs == 2 else out[0]
        results = case.call(present, **keywords)
        if "out" in keywords:
            assert all(np.shares_memory(a, b) or a.size == 0 for a, b in zip(results, out, strict=True))
        assert_within(tuple(r.T if batch_first else r for r in results), case)

    @given(st.data())
    def test_what_must_not_be_read_is_not(self, name: str, data: Any) -> None:
        """Rules 1 and 3: NaN or infinity in every unread place leaves every byte of the result as it was."""
        case = data.draw(cases((name,), flag_dtypes=("float32", "float64"), reward_dtypes=("same", "float64")))
        poison = data.draw(st.sampled_from([np.nan, np.inf, -np.inf]))
        spoiled = {}
        for argument, places in case.unread().items():
            spoiled[argument] = np.where(places, poison, case.arguments[argument]).astype(
                case.arguments[argument].dtype
            )
        results = case.with_arguments(**spoiled).call()
        assert_same_bytes(results, case.call())
        assert all(np.isfinite(result).all() for result in results)

    @given(st.data())
    def test_nan_that_is_read_comes_through(self, name: str, data: Any) -> None:
        """Rule 1: select where it is unread, IEEE elsewhere: NaN shows in just the rows whose sum it enters."""
        case = data.draw(cases((name,), flag_dtypes=("bool",), reward_dtypes=("same",), inner=True))
        generator = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
        spoiled = {}
        for argument, array in case.arguments.items():
            if isinstance(array, np.ndarray) and argument not in FLAGS:
                spoiled[argument] = np.where(generator.random(array.shape) < 0.05, np.nan, array).astype(array.dtype)
        case = case.with_arguments(**spoiled)
        assert_within(case.call(), case)

    @given(st.data())
    def test_masked_rows_are_as_if_deleted(self, name: str, data: Any) -> None:
        """Rule 3, without the reference: one sequence with holes equals the sequence without those rows; outputs 0."""
        case = data.draw(cases((name,)))
        if "mask" not in case.arguments:
            return
        results = case.call()
        mask = case.arguments["mask"] != 0
        assert all((result[~mask] == 0).all() for result in results)
        width = 1 if mask.ndim == 1 else mask.shape[1]
        for i in range(min(width, 5)):
            rows = mask if mask.ndim == 1 else mask[:, i]
            column = case.arguments if mask.ndim == 1 else {k: naive.take(a, i) for k, a in case.arguments.items()}
            kept = {k: a[rows] if np.ndim(a) == 1 else a for k, a in column.items() if k != "mask"}
            alone = Case(case.name, kept, case.options)
            bounds = alone.bounds()
            for result, single, bound in zip(results, alone.call(), bounds, strict=True):
                part = result[rows] if mask.ndim == 1 else result[rows, i]
                assert (np.abs(part.astype(np.float64) - single) <= 2 * bound).all()

    @given(st.data())
    def test_half_precision_is_float32_rounded_once(self, name: str, data: Any) -> None:
        """Rule 9: float16 is computed in float32."""
        case = data.draw(cases((name,), dtypes=("float16",), reward_dtypes=("same",)))
        single = {k: a if a is None or k in FLAGS else np.asarray(a, np.float32) for k, a in case.arguments.items()}
        results = case.call()
        assert all(result.dtype == np.float16 for result in results)
        with np.errstate(over="ignore"):
            expected = tuple(result.astype(np.float16) for result in case.with_arguments(**single).call())
        assert_same_bytes(results, expected)

    @given(st.data())
    def test_the_same_call_gives_the_same_bytes(self, name: str, data: Any) -> None:
        case = data.draw(cases((name,)))
        before = {k: None if a is None else np.copy(a) for k, a in case.arguments.items()}
        assert_same_bytes(case.call(), case.call())
        for argument, copy in before.items():
            np.testing.assert_array_equal(case.arguments[argument], copy)


TORCH_DTYPES = {"float32": torch.float32, "float64": torch.float64}


def to_tensor(array: Any, layout: str = "contiguous") -> Any:
    """A tensor of the same numbers; the layouts torch has."""
    if np.ndim(array) == 0:
        return array
    tensor = torch.from_numpy(np.array(array, copy=True, order="C"))
    if layout == "transposed" and tensor.ndim == 2:
        return tensor.t().contiguous().t()
    if layout == "strided":
        wide = torch.zeros([2 * s for s in tensor.shape], dtype=tensor.dtype)
        wide[tuple(slice(None, None, 2) for _ in tensor.shape)] = tensor
        return wide[tuple(slice(None, None, 2) for _ in tensor.shape)]
    if layout == "offset":
        return torch.cat([torch.ones(1, dtype=tensor.dtype), tensor.reshape(-1)])[1:].view(tensor.shape)
    return tensor


@pytest.mark.parametrize("name", REFERENCES)
class TestTensors:
    @given(st.data())
    def test_within_the_accuracy_bound(self, name: str, data: Any) -> None:
        """Rules 8 to 11 on tensors: any layout in, the dtype and device of `values` out."""
        case = data.draw(cases((name,)))
        layouts = ["contiguous", "transposed", "strided", "offset"]
        chosen = {argument: data.draw(st.sampled_from(layouts), argument) for argument in case.arguments}
        batch_first = data.draw(st.booleans(), "batch_first")

        def present(argument: str, array: Any) -> Any:
            array = array.T if batch_first and np.ndim(array) == 2 else array
            return to_tensor(array, chosen[argument])

        keywords: dict[str, Any] = {"batch_first": batch_first}
        if data.draw(st.booleans(), "out"):
            shape = case.arguments["rewards"].shape
            shape = shape[::-1] if batch_first else shape
            dtype = TORCH_DTYPES[str(case.dtype)]
            out = tuple(torch.full(shape, torch.nan, dtype=dtype) for _ in range(case.num_outputs))
            keywords["out"] = out if case.num_outputs == 2 else out[0]
        results = case.call(present, **keywords)
        assert all(isinstance(r, torch.Tensor) and not r.requires_grad for r in results)
        assert all(r.is_contiguous() or r.t().is_contiguous() for r in results)
        assert all(r.dtype == TORCH_DTYPES[str(case.dtype)] for r in results)
        if "out" in keywords:
            assert all(a.data_ptr() == b.data_ptr() for a, b in zip(results, out, strict=True))
        assert_within(tuple(r.numpy().T if batch_first else r.numpy() for r in results), case)

    @given(st.data())
    def test_equal_to_the_array_call(self, name: str, data: Any) -> None:
        case = data.draw(cases((name,)))
        tensors = case.call(lambda _, array: to_tensor(array))
        assert_same_bytes(tuple(t.numpy() for t in tensors), case.call())

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    @given(st.data())
    def test_half_precision_is_float32_rounded_once(self, name: str, dtype: torch.dtype, data: Any) -> None:
        """Rule 9: both half precisions."""
        case = data.draw(cases((name,), dtypes=("float32",), reward_dtypes=("same",)))

        def half(argument: str, array: Any) -> Any:
            tensor = to_tensor(array)
            return tensor.to(dtype) if argument not in FLAGS and isinstance(tensor, torch.Tensor) else tensor

        def single(argument: str, array: Any) -> Any:
            tensor = half(argument, array)
            return tensor.float() if argument not in FLAGS and isinstance(tensor, torch.Tensor) else tensor

        for result, expected in zip(case.call(half), case.call(single), strict=True):
            assert result.dtype == dtype
            torch.testing.assert_close(result, expected.to(dtype), rtol=0, atol=0, equal_nan=True)


def random_case(name: str, shape: tuple[int, ...], *, full: bool, masked: bool, seed: int) -> Case:
    """Every flag that the form allows, with the options in the middle of their ranges."""
    generator = np.random.default_rng(seed)
    full = full or name in FULL_ONLY
    arguments = example(name, shape, seed)
    if not full:
        arguments["next_values"] = generator.normal(size=shape[1:]).astype(np.float32)
    arguments["terminated"] = generator.random(shape) < 0.1
    if full:
        arguments["truncated"] = generator.random(shape) < 0.1
    if masked:
        arguments["mask"] = generator.random(shape) < 0.9
    return Case(name, arguments, {**OPTIONS[name], "gamma": 0.97})


def spoiled_out(case: Case, *, turned: bool = False) -> Any:
    """Outputs full of NaN: fresh memory may hold an earlier call's right answer, and hide what was not written."""
    shape = case.arguments["rewards"].shape
    out = tuple(np.full(shape[::-1] if turned else shape, np.nan, case.dtype) for _ in range(case.num_outputs))
    return out if case.num_outputs == 2 else out[0]


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("name", REFERENCES)
def test_every_shape_variant(name: str, batch_first: bool, full: bool) -> None:
    """Kernels have variants for one, few and many environments; each has a remainder to get wrong."""
    turn = (lambda _, a: np.ascontiguousarray(a.T)) if batch_first else None
    for width in (1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 32, 33, 47, 48, 49, 64):
        for length in (1, 2, 7, 19):
            for masked in (False, True):
                case = random_case(name, (length, width), full=full, masked=masked, seed=100 * length + width)
                results = case.call(turn, batch_first=batch_first, out=spoiled_out(case, turned=batch_first))
                assert_within(tuple(r.T if batch_first else r for r in results), case)


LONG = [(1023,), (1024,), (1025,), (3001, 1), (520, 2), (700, 5), (150, 7), (40, 33)]
WIDE = [(3, 1023), (4, 1024), (3, 1025), (5, 2100)]


@pytest.mark.parametrize("shape", LONG + WIDE, ids=str)
@pytest.mark.parametrize("name", REFERENCES)
def test_windows_larger_than_a_tile(name: str, shape: tuple[int, ...]) -> None:
    """Kernels work through long and wide windows in pieces; nothing may be lost between two."""
    for full in (False, True):
        case = random_case(name, shape, full=full, masked=False, seed=shape[0])
        for flags in ({}, {"terminated": np.zeros(shape, bool), "truncated": None}):
            for n in (2, 40) if name == "n_step_returns" else (1,):
                options = {**case.options, "n": n} if name == "n_step_returns" else case.options
                sized = Case(name, {**case.arguments, **flags}, options)
                assert_within(sized.call(out=spoiled_out(sized)), sized)


@pytest.mark.parametrize("shape", [(1500,), (400, 5), (3, 1100)], ids=str)
@pytest.mark.parametrize("name", REFERENCES)
def test_nothing_unread_matters_in_large_windows(name: str, shape: tuple[int, ...]) -> None:
    """Rule 1 where steps are summed ahead of their turn: NaN behind an episode's end stays there."""
    case = random_case(name, shape, full=True, masked=False, seed=1)
    spoiled = {}
    for argument, places in case.unread().items():
        array = case.arguments[argument]
        spoiled[argument] = array if argument in FLAGS else np.where(places, np.float32(np.nan), array)
    assert_same_bytes(case.with_arguments(**spoiled).call(), case.call())


def test_a_long_horizon_stays_within_the_bound() -> None:
    """Rule 13 where it is hardest to hold: many steps and gamma lambda near 1."""
    generator = np.random.default_rng(0)
    for length, width in [(5000, 1), (2000, 3), (1000, 20)]:
        shape = (length, width)
        arguments = {"rewards": generator.random(shape).astype(np.float32)}
        arguments["values"] = generator.normal(size=shape).astype(np.float32)
        arguments["next_values"] = generator.normal(size=width).astype(np.float32)
        for discount in (0.99, 0.999, 1.0):
            case = Case("gae", arguments, {"gamma": discount, "gae_lambda": 1.0})
            assert_within(case.call(), case)


def test_public_names() -> None:
    assert set(REFERENCES) <= set(fastac.__all__)
