"""The suite notices planted defects (point 9 of what has to be shown): `python -m tests.mutations` runs them all."""

import mutations
import pytest
from fresh import ROOT


@pytest.mark.parametrize("mutation", mutations.MUTATIONS, ids=lambda mutation: mutation.name)
def test_every_defect_has_its_place(mutation):
    """A defect whose text is gone would be planted nowhere."""
    source = (ROOT / mutation.path).read_text(encoding="utf-8")
    assert mutations.planted(mutation, source) != source
    with pytest.raises(ValueError, match=f"{mutation.name}: its text occurs 0 times"):
        mutations.planted(mutation, "")


def test_a_defect_that_is_not_noticed_is_missed():
    harmless = mutations.Mutation(
        "harmless", "fastac/distributions.py", "Action dist", "The dist", "tests/test_networks.py"
    )
    broken = harmless._replace(old="import math", new="import maths")
    with mutations.copied() as copy:
        assert mutations.check(copy, harmless) == (False, "not noticed")
        caught, said = mutations.check(copy, broken)
    assert not caught
    assert said.startswith("error: ")


def test_an_unknown_name_is_named(capsys):
    assert mutations.main(["nothing"]) == 2
    assert "got nothing, expected some of gaussian-log-scale" in capsys.readouterr().err


@pytest.mark.slow
def test_every_defect_is_caught(capsys):
    assert mutations.main([]) == 0, capsys.readouterr().out
