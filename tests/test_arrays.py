"""The border: what is refused, and that the message names the argument, what it had and what was expected.

Rules 8 to 12 of the contract for time.
"""

from typing import Any

import numpy as np
import pytest
import torch
from cases import FULL_ONLY, NUMBERS, OPTIONS, REFERENCES, TWO_OUTPUTS, as_tuple

import fastac

SHAPE = (6, 4)
VTRACE_DEFAULTS = {"trace_lambda", "rho_clip", "c_clip", "pg_rho_clip"}


def arguments(name: str, **changes: Any) -> dict[str, Any]:
    """A call that works, then changed."""
    base: dict[str, Any] = {key: np.ones(SHAPE, np.float32) for key in NUMBERS[name]}
    return {**base, **OPTIONS[name], **changes}


def call(name: str, **changes: Any) -> Any:
    return getattr(fastac, name)(**arguments(name, **changes))


def outputs(name: str, **changes: Any) -> tuple[Any, ...]:
    result = call(name, **changes)
    return as_tuple(name, result)


def shaped_out(name: str, array: Any) -> Any:
    """`out` in the result's structure: the array for each output."""
    if name not in TWO_OUTPUTS:
        return array
    return (array, array.clone() if isinstance(array, torch.Tensor) else array.copy())


def tensors(name: str, **changes: Any) -> dict[str, Any]:
    base = {k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in arguments(name).items()}
    return {**base, **changes}


def refuses(name: str, *words: str, error: Any = ValueError, **changes: Any) -> None:
    """The call raises `error`, and its text holds every word."""
    with pytest.raises(error) as caught:
        call(name, **changes)
    for word in words:
        assert word in str(caught.value), f"{word!r} not in {caught.value!s}"


@pytest.mark.parametrize("name", REFERENCES)
class TestShapes:
    @pytest.mark.parametrize("argument", ["values", "q_values", "log_ratios", "terminated", "truncated", "mask"])
    def test_a_different_shape_is_refused(self, name: str, argument: str) -> None:
        if argument not in (*NUMBERS[name], "terminated", "truncated", "mask"):
            return
        for shape in [(6, 5), (5, 4), (6,), (4, 6), (6, 4, 1), (1, 4)]:
            words = [str(shape)] if len(shape) > 2 else [str(shape), str(SHAPE)]
            refuses(name, argument, *words, **{argument: np.ones(shape, np.float32)})

    def test_next_values_of_a_wrong_shape_are_refused(self, name: str) -> None:
        for shape in [(6, 5), (6,), (5,), (1,), (1, 4), (4, 6)]:
            refuses(name, "next_values", str(shape), str(SHAPE), **{"next_values": np.ones(shape, np.float32)})

    def test_rewards_have_one_or_two_dimensions(self, name: str) -> None:
        for shape in [(), (2, 3, 4)]:
            array = np.ones(shape, np.float32)
            changes = {k: array for k in NUMBERS[name]}
            refuses(name, "(T, N)", str(shape), error=(ValueError, TypeError), **changes)

    def test_batch_first_shapes(self, name: str) -> None:
        """(N, T) with `(N,)` next values; `(T,)` of them are refused."""
        if name in FULL_ONLY:
            refuses(name, "next_values", "(6,)", batch_first=True, next_values=np.ones(6, np.float32))
            return
        result = outputs(name, batch_first=True, next_values=np.ones(6, np.float32))
        assert all(r.shape == SHAPE for r in result)
        refuses(name, "next_values", "(4,)", batch_first=True, next_values=np.ones(4, np.float32))

    def test_one_sequence_may_be_one_dimensional(self, name: str) -> None:
        one = {k: np.ones(6, np.float32) for k in NUMBERS[name]}
        results = outputs(name, **one)
        for result, batched in zip(results, outputs(name), strict=True):
            np.testing.assert_allclose(result, batched[:, 0], rtol=1e-6)
        assert all(r.shape == (6,) for r in outputs(name, **one, batch_first=True))

    @pytest.mark.parametrize("shape", [(0,), (0, 0), (0, 4), (6, 0)])
    @pytest.mark.parametrize("batch_first", [False, True])
    def test_empty_windows_give_empty_results(self, name: str, shape: tuple[int, ...], batch_first: bool) -> None:
        """Rule 11: T = 0 or N = 0."""
        empty = {k: np.ones(shape, np.float32) for k in NUMBERS[name]}
        flags = {k: np.ones(shape, bool) for k in ("terminated", "truncated", "mask")}
        for result in outputs(name, **empty, **flags, batch_first=batch_first):
            assert result.shape == shape
            assert result.dtype == np.float32
        scalar = {} if name in FULL_ONLY else {"next_values": 0.0}
        for result in outputs(name, **{**empty, **scalar}, batch_first=batch_first):
            assert result.shape == shape
        on_torch = {k: torch.from_numpy(v) for k, v in {**empty, **flags}.items()}
        assert all(r.shape == shape for r in outputs(name, **on_torch, batch_first=batch_first))


@pytest.mark.parametrize("name", REFERENCES)
class TestRanges:
    @pytest.mark.parametrize("number", [-0.1, 1.1, float("nan"), float("inf")])
    def test_discounts_lie_between_0_and_1(self, name: str, number: float) -> None:
        for option in OPTIONS[name]:
            if option != "n" and not (option.endswith("clip") and number > 1):
                refuses(name, option, str(number), **{option: number})

    @pytest.mark.parametrize("number", ["0.9", None, 1j, np.ones(3)])
    def test_discounts_are_numbers(self, name: str, number: Any) -> None:
        for option in OPTIONS[name]:
            if option != "n":
                refuses(name, option, error=(TypeError, ValueError), **{option: number})

    def test_numpy_scalars_are_numbers(self, name: str) -> None:
        changes = {k: np.float64(v) if isinstance(v, float) else np.int64(v) for k, v in OPTIONS[name].items()}
        for one, two in zip(outputs(name, **changes), outputs(name), strict=True):
            np.testing.assert_array_equal(one, two)

    def test_options_have_no_default(self, name: str) -> None:
        for option in set(OPTIONS[name]) - (VTRACE_DEFAULTS if name == "vtrace" else set()):
            given = arguments(name)
            given.pop(option)
            with pytest.raises(TypeError, match=option):
                getattr(fastac, name)(**given)

    def test_next_values_have_no_default(self, name: str) -> None:
        given = arguments(name)
        given.pop("next_values")
        with pytest.raises(TypeError, match="next_values"):
            getattr(fastac, name)(**given)


@pytest.mark.parametrize("n", [0, -1, 2.5, "3", None, float("nan")])
def test_n_is_a_positive_integer(n: Any) -> None:
    had = str(n) if isinstance(n, int) else type(n).__name__
    refuses("n_step_returns", "n: ", had, error=(TypeError, ValueError), n=n)


@pytest.mark.parametrize("name", REFERENCES)
class TestKinds:
    def test_arrays_and_tensors_mixed(self, name: str) -> None:
        """Rule 9: a `TypeError` that names the odd one out."""
        for argument in ("rewards", "next_values", "terminated", "truncated", "mask"):
            refuses(name, argument, error=TypeError, **{argument: torch.ones(SHAPE)})
            with pytest.raises(TypeError, match=argument):
                getattr(fastac, name)(**tensors(name, **{argument: np.ones(SHAPE, np.float32)}))

    def test_two_devices(self, name: str) -> None:
        for argument in ("next_values", "terminated", "mask"):
            with pytest.raises(TypeError, match=argument) as caught:
                getattr(fastac, name)(**tensors(name, **{argument: torch.ones(SHAPE, device="meta")}))
            assert "meta" in str(caught.value)
            assert "cpu" in str(caught.value)

    @pytest.mark.parametrize("dtype", ["complex64", "U3", "O", "datetime64[s]"])
    def test_dtypes_that_are_no_numbers(self, name: str, dtype: str) -> None:
        for argument in ("rewards", "next_values", "terminated", "mask"):
            refuses(name, argument, error=(TypeError, ValueError), **{argument: np.zeros(SHAPE).astype(dtype)})

    def test_complex_tensors(self, name: str) -> None:
        for argument in ("rewards", "next_values"):
            with pytest.raises((TypeError, ValueError), match=argument):
                getattr(fastac, name)(**tensors(name, **{argument: torch.zeros(SHAPE, dtype=torch.complex64)}))

    def test_something_else_altogether(self, name: str) -> None:
        for argument in ("rewards", "next_values", "terminated"):
            refuses(name, argument, error=(TypeError, ValueError), **{argument: object()})
            refuses(name, argument, error=(TypeError, ValueError), **{argument: "ones"})

    def test_array_in_array_out(self, name: str) -> None:
        """Rule 10."""
        assert all(type(r) is np.ndarray for r in outputs(name))
        result = getattr(fastac, name)(**tensors(name))
        assert all(type(r) is torch.Tensor for r in (as_tuple(name, result)))

    def test_short_next_values_may_be_a_zero_dimensional_array(self, name: str) -> None:
        if name in FULL_ONLY:
            refuses(name, "next_values", str(SHAPE), next_values=0.5)
            return
        expected = outputs(name, next_values=0.5)
        for number in (np.float32(0.5), np.array(0.5, np.float32), np.array(0.5)):
            for one, two in zip(outputs(name, next_values=number), expected, strict=True):
                np.testing.assert_array_equal(one, two)
        result = getattr(fastac, name)(**tensors(name, next_values=torch.tensor(0.5)))
        for one, two in zip(as_tuple(name, result), expected, strict=True):
            np.testing.assert_array_equal(one.numpy(), two)


@pytest.mark.parametrize("name", REFERENCES)
class TestOut:
    def test_results_are_written_into_out(self, name: str) -> None:
        """Rule 11."""
        out = shaped_out(name, np.full(SHAPE, 9, np.float32))
        results = outputs(name, out=out)
        for result, given, expected in zip(results, out if name in TWO_OUTPUTS else (out,), outputs(name), strict=True):
            assert result is given
            np.testing.assert_array_equal(result, expected)

    def test_results_are_written_into_tensors(self, name: str) -> None:
        out = shaped_out(name, torch.full(SHAPE, 9.0))
        result = getattr(fastac, name)(**tensors(name, out=out))
        for one, given in zip(as_tuple(name, result), out if name in TWO_OUTPUTS else (out,), strict=True):
            assert one is given

    @pytest.mark.parametrize(
        ("wrong", "words"),
        [
            (np.empty((4, 6), np.float32), ["(4, 6)", "(6, 4)"]),
            (np.empty((6,), np.float32), ["(6,)", "(6, 4)"]),
            (np.empty(SHAPE, np.float64), ["float64", "float32"]),
            (np.empty(SHAPE, np.int32), ["int32", "float32"]),
            (np.empty((4, 6), np.float32).T, ["ontiguous"]),
            (np.empty((12, 4), np.float32)[::2], ["ontiguous"]),
        ],
    )
    def test_out_of_another_kind_is_refused(self, name: str, wrong: np.ndarray, words: list[str]) -> None:
        out = (wrong, np.empty(SHAPE, np.float32)) if name in TWO_OUTPUTS else wrong
        refuses(name, "out", *words, error=(TypeError, ValueError), out=out)
        if name in TWO_OUTPUTS:
            refuses(name, "out", *words, error=(TypeError, ValueError), out=out[::-1])
        if wrong.dtype != np.int32:
            tensor = torch.from_numpy(wrong)
            on_torch = (tensor, torch.empty(SHAPE)) if name in TWO_OUTPUTS else tensor
            with pytest.raises((TypeError, ValueError), match="out"):
                getattr(fastac, name)(**tensors(name, out=on_torch))

    def test_out_that_cannot_be_written_is_refused(self, name: str) -> None:
        locked = np.empty(SHAPE, np.float32)
        locked.flags.writeable = False
        refuses(name, "out", out=(locked, np.empty(SHAPE, np.float32)) if name in TWO_OUTPUTS else locked)

    def test_out_of_the_wrong_structure_is_refused(self, name: str) -> None:
        array = np.empty(SHAPE, np.float32)
        wrongs = [array, (array,), (array, array.copy(), array.copy())] if name in TWO_OUTPUTS else [(array, array), 3]
        for wrong in wrongs:
            refuses(name, "out", error=(TypeError, ValueError), out=wrong)

    def test_a_tensor_out_for_arrays_is_refused(self, name: str) -> None:
        refuses(name, "out", error=TypeError, out=shaped_out(name, torch.empty(SHAPE)))
        with pytest.raises(TypeError, match="out"):
            getattr(fastac, name)(**tensors(name, out=shaped_out(name, np.empty(SHAPE, np.float32))))

    @pytest.mark.parametrize("kind", ["array", "tensor"])
    def test_out_overlapping_an_input_is_refused(self, name: str, kind: str) -> None:
        """Compared by address: the same array, and a shifted window of the same memory."""
        memory = np.ones(100, np.float32)
        inside, shifted = memory[:24].reshape(SHAPE), memory[20:44].reshape(SHAPE)
        apart = memory[60:84].reshape(SHAPE)
        given = NUMBERS[name]
        for argument in given:
            for target in (inside, shifted):
                changes = {argument: inside}
                spare = np.empty(SHAPE, np.float32)
                choices = [(target, spare), (spare, target)] if name in TWO_OUTPUTS else [target]
                for out in choices:
                    if kind == "array":
                        refuses(name, "out", "overlap", out=out, **changes)
                        continue
                    on_torch = tuple(map(torch.from_numpy, out)) if name in TWO_OUTPUTS else torch.from_numpy(out)
                    with pytest.raises(ValueError, match=r"out.*overlap"):
                        getattr(fastac, name)(**tensors(name, out=on_torch, **{argument: torch.from_numpy(inside)}))
        touching = memory[24:48].reshape(SHAPE)
        outputs(name, rewards=inside, out=(touching, apart) if name in TWO_OUTPUTS else touching)

    def test_out_overlapping_flags_is_refused(self, name: str) -> None:
        memory = np.zeros(96, np.uint8)
        flags, out = memory[:24].reshape(SHAPE), memory.view(np.float32).reshape(SHAPE)
        spare = np.empty(SHAPE, np.float32)
        for flag in ("terminated", "truncated", "mask"):
            refuses(name, "out", "overlap", out=(spare, out) if name in TWO_OUTPUTS else out, **{flag: flags})

    def test_inputs_are_untouched_after_a_refusal(self, name: str) -> None:
        rewards = np.arange(24, dtype=np.float32).reshape(SHAPE)
        refuses(
            name,
            "out",
            rewards=rewards,
            out=shaped_out(name, rewards) if name not in TWO_OUTPUTS else (rewards, rewards),
        )
        np.testing.assert_array_equal(rewards.ravel(), np.arange(24))


def test_outputs_overlapping_each_other_are_refused() -> None:
    memory = np.ones(60, np.float32)
    one = memory[:24].reshape(SHAPE)
    for other in (one, memory[23:47].reshape(SHAPE)):
        refuses("gae", "out", out=(one, other))
        with pytest.raises(ValueError, match="out"):
            fastac.gae(**tensors("gae", out=(torch.from_numpy(one), torch.from_numpy(other))))
    fastac.gae(**arguments("gae", out=(one, memory[24:48].reshape(SHAPE))))


def test_inputs_may_be_one_and_the_same_array() -> None:
    """Only outputs are promised to overlap nothing: inputs are read alone."""
    array = np.random.default_rng(0).normal(size=(9, 20)).astype(np.float32)
    copies = [array.copy() for _ in range(3)]
    same = fastac.gae(array, array, array, gamma=0.9, gae_lambda=0.8)
    np.testing.assert_array_equal(same, fastac.gae(*copies, gamma=0.9, gae_lambda=0.8))


def test_unaligned_and_byte_swapped_arrays() -> None:
    """Memory-mapped records come so: converted, not misread."""
    array = np.random.default_rng(0).normal(size=(9, 20)).astype(np.float32)
    raw = np.zeros(array.nbytes + 1, np.uint8)
    unaligned = raw[1:].view(np.float32).reshape(array.shape)
    unaligned[...] = array
    swapped = array.astype(">f4")
    expected = fastac.gae(array, array, array, gamma=0.9, gae_lambda=0.8)
    np.testing.assert_array_equal(fastac.gae(unaligned, unaligned, unaligned, gamma=0.9, gae_lambda=0.8), expected)
    result = fastac.gae(swapped, swapped, swapped, gamma=0.9, gae_lambda=0.8)
    np.testing.assert_array_equal(result, expected)
    assert result.advantages.dtype == np.float32


class Subclass(np.ndarray):
    """An array that changes what indexing means would break a kernel."""


def test_subclasses_of_arrays_are_read_as_plain_arrays() -> None:
    array = np.random.default_rng(0).normal(size=(9, 20)).astype(np.float32)
    view = array.view(Subclass)
    result = fastac.gae(view, view, view, gamma=0.9, gae_lambda=0.8)
    np.testing.assert_array_equal(result, fastac.gae(array, array, array, gamma=0.9, gae_lambda=0.8))
