"""The estimators by torch operations, solved by doubling: against plain references, and without a look at memory."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from cases import OPTIONS, REFERENCES, Case, assert_within, cases
from hypothesis import given, settings

from fastac import _torch_ops
from fastac._arrays import Arguments
from fastac._torch_scan import solve


def evaluate(case: Case) -> tuple[Any, ...]:
    tensors = {k: torch.from_numpy(v.copy()) if isinstance(v, np.ndarray) else v for k, v in case.arguments.items()}
    if not isinstance(tensors["next_values"], torch.Tensor):
        tensors["next_values"] = torch.tensor(float(tensors["next_values"]), dtype=torch.float64)
    values = tensors.get("values", tensors.get("q_values"))
    places = {name: tensors.get(name) for name in Arguments._fields}
    arguments = Arguments(**{**places, "values": values, "batch_first": False})
    scalars = tuple(case.options[name] for name in OPTIONS[case.name])
    return tuple(x.numpy() for x in _torch_ops._in_torch(case.name, arguments, scalars))


@settings(max_examples=150)
@given(cases(reward_dtypes=("same",)))
def test_rule_13_on_random_calls(case: Case) -> None:
    assert_within(evaluate(case), case)


@pytest.mark.parametrize("length", [1, 2, 3, 7, 8, 9, 1000])
def test_a_recurrence_is_its_loop(length: int) -> None:
    generator = np.random.default_rng(length)
    b, a = generator.normal(size=(length, 3)), generator.random((length, 3))
    cut = generator.random((length, 3)) < 0.1
    expected = b.copy()
    for t in range(length - 2, -1, -1):
        expected[t] += np.where(cut[t], 0.0, a[t] * expected[t + 1])
    found = solve(*(torch.from_numpy(x) for x in (b, a, cut)))
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("everywhere", [True, False])
def test_infinity_spreads_as_in_a_loop_and_stops_at_a_cut(everywhere: bool) -> None:
    """0.5^5000 is 0 in any float, and 0 times infinity would be NaN."""
    b, cut = torch.zeros(5000, 1), torch.zeros(5000, 1, dtype=torch.bool)
    b[-1], cut[1000] = math.inf, True
    found = solve(b, 0.5 if everywhere else torch.full_like(b, 0.5), cut)
    assert torch.equal(torch.isinf(found), torch.arange(5000).unsqueeze(1) > 1000)
    assert not torch.isnan(found).any()


@pytest.mark.parametrize("form", ["full", "short", "packed", "packed short"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", REFERENCES)
def test_a11_nothing_is_read_back(name: str, masked: bool, form: str) -> None:
    """Row A11: on meta tensors there is nothing to read; whoever needed a number would fail."""
    if name == "retrace" and "short" in form:
        return
    shape = (30,) if "packed" in form else (6, 5)
    x, flags = torch.empty(shape, device="meta"), torch.empty(shape, dtype=torch.bool, device="meta")
    full = "short" not in form
    next_values = x if full else torch.empty(4 if "packed" in form else 5, device="meta")
    boundaries = torch.empty(5, dtype=torch.int32, device="meta") if "packed" in form else None
    arguments = Arguments(x, x, next_values, flags, flags if full else None, flags if masked else None,
                          boundaries, False, x)  # fmt: skip
    for result in _torch_ops._in_torch(name, arguments, tuple(OPTIONS[name].values())):
        assert result.shape == shape
        assert result.device.type == "meta"
