"""The doors' table: the clock times what it should and leaves things as they were; rows, ratios and who is missing."""

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench import doors, doors_cleanrl
from bench.doors_frame import AbsentError, Clock, Round, Row, measure


def busy(milliseconds: float) -> float:
    end = time.process_time() + milliseconds / 1e3
    while time.process_time() < end:
        pass
    return milliseconds


class Parent:
    def method(self, milliseconds: float) -> float:
        return busy(milliseconds)

    @staticmethod
    def static(milliseconds: float) -> float:
        return busy(milliseconds)


class Child(Parent):
    pass


@pytest.mark.parametrize(("owner", "name"), [(Parent, "method"), (Child, "method"), (Parent, "static")])
def test_the_clock_times_a_function_and_puts_it_back(owner: type, name: str) -> None:
    """Methods, inherited ones, static ones."""
    before = dict(vars(owner)), dict(vars(Parent))
    with Clock().inside(owner, name) as clock:
        assert getattr(owner(), name)(5) == 5
        getattr(owner(), name)(milliseconds=5)
    busy(5)
    assert clock.calls == 2
    assert 0.010 <= clock.seconds < 0.015
    assert (dict(vars(owner)), dict(vars(Parent))) == before


def test_the_clock_counts_what_raises() -> None:
    module = SimpleNamespace(fail=lambda: 1 / 0)
    with Clock().inside(module, "fail") as clock, pytest.raises(ZeroDivisionError):
        module.fail()
    assert clock.calls == 1


def test_rounds_take_turns_and_the_first_does_not_count() -> None:
    order: list[str] = []

    def runs(name: str, part: float) -> Any:
        def run() -> Round:
            order.append(name)
            return Round(part=part * len(order), whole=1.0, steps=10)

        return run

    row = measure(Row("a door", "a part", "a step"), runs("before", 0.2), runs("after", 0.1), rounds=2)
    assert order == ["before", "after", "after", "before", "before", "after"] or order == [
        "before", "after", "before", "after", "after", "before",
    ]  # fmt: skip
    assert len(row.part_before) == len(row.step_after) == 2
    assert row.step_before == [100.0, 100.0]
    summary = row.summary()
    assert summary["share_before"] == pytest.approx(sum(row.part_before) / 200)
    assert summary["step_times"] == 1.0


def recorded(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    def absent() -> list[Row]:
        raise AbsentError("somebody is not installed: pip install somebody")

    whole = Row("A PPO", "`f`", "a rollout", [4.0, 5.0], [0.4, 0.5], [40.0, 50.0], [36.0, 45.0], versions={"a": "1.2"})
    alone = Row("tokens", "`g`", "B x T", [190.0], [2.0], note="no step here")
    monkeypatch.setattr(doors, "suites", lambda *_, **__: {"a": lambda: [whole], "b": absent, "c": lambda: [alone]})
    return doors.run(None)


def test_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    result = recorded(monkeypatch)
    assert result["missing"] == {"b": "somebody is not installed: pip install somebody"}
    page = doors.page(result)
    assert "| A PPO: a rollout | `f` | 4.5 | 0.45 | 10.0x | 45.0 | 10% | 1.1% | 1.11x |" in page
    assert "| tokens: B x T | `g` | 190 | 2 | 95.0x | - | - | - | - |" in page
    assert "no step here" in page
    assert "somebody is not installed" in page


def test_nothing_to_measure_is_not_recorded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doors, "suites", lambda *_, **__: {})
    monkeypatch.setattr(doors.record, "write", lambda *_: pytest.fail("written"))
    assert doors.main(None) == 2
    assert "nothing was recorded" in capsys.readouterr().err


SCRIPT = """
def train():
    for iteration in range(2):
        if True:
            advantages = torch.zeros_like(rewards).to(device)
            lastgaelam = 0
            returns = advantages + values
        print(iteration)
"""


def test_the_script_is_edited_where_its_loop_stands() -> None:
    own, ours = doors_cleanrl.timed(SCRIPT, ours=False), doors_cleanrl.timed(SCRIPT, ours=True)
    for text in (own, ours):
        compile(text, "script", "exec")
        assert text.count("_time.process_time()") == 2
    assert "lastgaelam = 0" in own
    assert "lastgaelam = 0" not in ours
    assert "            advantages, returns = cleanrl.gae(" in ours
    with pytest.raises(AbsentError, match="loop"):
        doors_cleanrl.timed("print()", ours=True)
    with pytest.raises(AbsentError, match="--cleanrl"):
        doors_cleanrl.rows(Path("/nowhere"))
