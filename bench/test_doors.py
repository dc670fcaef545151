"""Every door at its smallest size: `pytest bench -k doors`; what is not here skips and says why."""

import os
from pathlib import Path

import pytest

from bench import doors
from bench.doors_frame import AbsentError

CHECKOUT = os.environ.get("FASTAC_CLEANRL")


@pytest.mark.parametrize("name", ["sb3", "cleanrl", "tianshou", "torchrl", "tokens"])
def test_doors(name: str) -> None:
    suite = doors.suites(Path(CHECKOUT) if CHECKOUT else None, smallest=True)[name]
    try:
        rows = suite()
    except AbsentError as reason:
        pytest.skip(str(reason))
    assert rows
    for row in rows:
        assert "ms" in doors.words(row.summary())
