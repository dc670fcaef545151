"""Sequences of different lengths, one after another in one array (rule 8 of the contract for time)."""

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from cases import FLAGS, FULL_ONLY, NUMBERS, OPTIONS, REFERENCES, Case, as_tuple, assert_within, cases
from hypothesis import given

import fastac


def call(name: str, total: int, cu_seqlens: Any, **changes: Any) -> tuple[np.ndarray, ...]:
    arguments: dict[str, Any] = {k: np.ones(total, np.float32) for k in NUMBERS[name]}
    result = getattr(fastac, name)(**{**arguments, **OPTIONS[name], **changes}, cu_seqlens=cu_seqlens)
    return as_tuple(name, result)


@pytest.mark.parametrize("name", REFERENCES)
class TestPacked:
    @given(st.data())
    def test_each_sequence_is_a_window_of_its_own(self, name: str, data: Any) -> None:
        lengths = data.draw(st.lists(st.integers(0, 40), max_size=12), "lengths")
        case = data.draw(cases((name,), packed=True))
        total, generator = sum(lengths), np.random.default_rng(0)
        # the drawn case gives dtypes and options; rows are drawn again, as many as the lengths ask for
        rows = generator.integers(0, len(case.arguments["rewards"]), total)
        arguments = {k: a[rows] if np.ndim(a) == 1 else a for k, a in case.arguments.items()}
        full = np.ndim(arguments["next_values"]) == 1
        if not full and data.draw(st.booleans(), "one short value a sequence") and total != len(lengths):
            arguments["next_values"] = generator.normal(size=len(lengths)).astype(case.dtype)
        cu_seqlens = np.cumsum([0, *lengths]).astype(data.draw(st.sampled_from(["int32", "int64"])))
        tensors = data.draw(st.booleans(), "tensors")

        def present(_: str, array: Any) -> Any:
            return torch.from_numpy(np.array(array)) if tensors and np.ndim(array) else array

        results = Case(name, arguments, case.options).call(present, cu_seqlens=present("", cu_seqlens))
        for i, length in enumerate(lengths):
            stretch = slice(cu_seqlens[i], cu_seqlens[i] + length)
            alone = {k: a[stretch] if np.ndim(a) == 1 and len(a) == total else a for k, a in arguments.items()}
            if not full and np.ndim(arguments["next_values"]) == 1:
                alone["next_values"] = float(arguments["next_values"][i])
            assert_within(tuple(np.asarray(r)[stretch] for r in results), Case(name, alone, case.options))

    @pytest.mark.parametrize(
        "cu_seqlens",
        [
            np.array([1, 6]),
            np.array([0, 5]),
            np.array([0, 7]),
            np.array([0, 4, 3, 6]),
            np.array([0, -1, 6]),
            np.array([]).astype(np.int64),
            np.array([[0, 6]]),
        ],
    )
    def test_contents_are_checked(self, name: str, cu_seqlens: np.ndarray) -> None:
        with pytest.raises(ValueError, match="cu_seqlens"):
            call(name, 6, cu_seqlens)
        with pytest.raises(ValueError, match="cu_seqlens"):
            call(name, 6, cu_seqlens.astype(np.int32))

    def test_other_dtypes_are_refused(self, name: str) -> None:
        for wrong in (np.array([0.0, 6.0]), np.array([0, 6], np.uint8), np.array([False, True])):
            with pytest.raises((TypeError, ValueError), match="cu_seqlens"):
                call(name, 6, wrong)

    def test_not_with_batch_first_and_not_in_two_dimensions(self, name: str) -> None:
        cu_seqlens = np.array([0, 2, 6])
        with pytest.raises(ValueError, match="batch_first"):
            call(name, 6, cu_seqlens, batch_first=True)
        two = {k: np.ones((6, 1), np.float32) for k in NUMBERS[name]}
        with pytest.raises(ValueError, match=r"(rewards|values).*\(6, 1\)"):
            call(name, 6, cu_seqlens, **two)

    def test_shapes_of_next_values(self, name: str) -> None:
        cu_seqlens = np.array([0, 2, 2, 6])
        for shape in [(6,), *([] if name in FULL_ONLY else [(3,), ()])]:
            call(name, 6, cu_seqlens, next_values=np.zeros(shape, np.float32))
        for shape in [(1,), (2,), (4,), (5,), (6, 1)]:
            with pytest.raises(ValueError, match="next_values"):
                call(name, 6, cu_seqlens, next_values=np.zeros(shape, np.float32))
        with pytest.raises(ValueError, match="next_values"):
            call(name, 6, cu_seqlens, next_values=np.zeros(3, np.float32), truncated=np.zeros(6, bool))

    def test_mixed_kinds_are_refused(self, name: str) -> None:
        with pytest.raises(TypeError, match="cu_seqlens"):
            call(name, 6, torch.tensor([0, 6]))

    def test_nothing_packed(self, name: str) -> None:
        for cu_seqlens in (np.array([0]), np.array([0, 0, 0])):
            assert all(r.shape == (0,) for r in call(name, 0, cu_seqlens))

    def test_flags_may_be_of_any_kind(self, name: str) -> None:
        flags = {k: np.array([0, 1.5, 0, 0, -1, 0]) for k in FLAGS}
        flags["mask"] = 1 - flags["mask"]
        one = call(name, 6, np.array([0, 2, 6]), **flags)
        two = call(name, 6, np.array([0, 2, 6]), **{k: f != 0 for k, f in flags.items()})
        for a, b in zip(one, two, strict=True):
            np.testing.assert_array_equal(a, b)
