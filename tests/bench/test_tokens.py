"""The token benchmark compares like with like, and takes peers' own text out of their files."""

import ast
from pathlib import Path
from typing import Any

import naive
import numpy as np
import pytest

from bench import sources, tokens
from bench.cases import GAMMA, LAMBDA


@pytest.mark.parametrize("kind", tokens.KINDS)
def test_expected_numbers_are_the_plain_reference(kind: str) -> None:
    case = tokens.make_case(kind, False, (3, 80))
    advantages, returns = case.expected()
    assert not case.mask.all()
    for i in range(3):
        wanted = naive.gae(case.rewards[i], case.values[i], 0.0, mask=case.mask[i], gamma=GAMMA, gae_lambda=LAMBDA)
        np.testing.assert_allclose(advantages[i], wanted[0], rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(returns[i], wanted[1], rtol=1e-12, atol=1e-12)


def test_whoever_computes_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    case = tokens.make_case("holes", True, tokens.SMALLEST)
    for name in ("fastac", "fastac_tensors", "limit"):
        tokens.build(name, case)
    right = case.expected()
    wrong = tokens.Contender(lambda: (right[0] + 1e-2, right[1]), lambda result: result)
    monkeypatch.setitem(tokens.CONTENDERS, "wrong", lambda case: wrong)
    with pytest.raises(ArithmeticError, match="wrong differs from float64"):
        tokens.build("wrong", case)


def test_a_missing_peer_is_part_of_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(case: Any) -> tokens.Contender:
        sources.parse("no_such_library", "x.py")
        raise AssertionError

    monkeypatch.setitem(tokens.CONTENDERS, "trl", absent)
    monkeypatch.setitem(tokens.CONTENDERS, "verl", absent)
    result = tokens.measure("responses", True, 0.01, tokens.SMALLEST)
    assert result["failed"] == dict.fromkeys(("trl", "verl"), "ModuleNotFoundError: No module named 'no_such_library'")
    assert set(result["contenders"]) == {"fastac", "fastac_tensors", "limit"}


def test_text_is_taken_out_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "some_peer"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('never imported')\n")
    (package / "trainer.py").write_text(
        "@register('x')\ndef twice(x):\n    return 2 * x\n\n"
        "class Trainer:\n    def train(self):\n        unused = 1\n        total = 0\n        for x in values:\n"
        "            total = total + twice(x)\n        result = total + args.more\n        after = 2\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    tree = sources.parse("some_peer", "trainer.py")
    names = sources.execute(sources.functions(tree, "twice"), {})
    body = sources.between(tree, "total = 0", "result =")
    assert len(body) == 3
    function = sources.as_function(body, "values, args", "result", names)
    assert function([1, 2], type("Args", (), {"more": 10})) == 16
    with pytest.raises(LookupError, match="expected the functions"):
        sources.functions(tree, "thrice")
    with pytest.raises(LookupError, match="expected statements"):
        sources.between(tree, "nothing = 0", "result =")
    with pytest.raises(FileNotFoundError, match=r"the installed some_peer has no other\.py"):
        sources.parse("some_peer", "other.py")
    with pytest.raises(LookupError):
        sources.between(ast.parse("total = 0"), "total = 0", "result =")
