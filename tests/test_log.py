import contextlib
import io
import math
import os

import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fastac.log import CSVLog, ProgressBar, TensorBoardLog


def rows(path):
    return [line.split(",") for line in path.read_text().splitlines()]


def test_rows_after_the_checkpoint_are_dropped_on_resume(tmp_path):
    path = tmp_path / "progress.csv"
    log = CSVLog(path)
    for iteration in range(1, 6):
        log.write({"iteration": iteration, "loss": iteration / 3})
    log.close()
    log = CSVLog(path, iteration=3)
    log.write({"iteration": 4, "loss": math.nan})
    log.close()
    assert [row[0] for row in rows(path)] == ["iteration", "1", "2", "3", "4"]
    assert float(rows(path)[3][1]) == 1.0
    assert rows(path)[4] == ["4", ""]


@pytest.mark.parametrize("cut", ["3,0.", "3", "3,0.5"])
def test_a_last_line_cut_short_is_dropped(tmp_path, cut):
    path = tmp_path / "progress.csv"
    path.write_text("iteration,loss\n1,0.5\n2,0.5\n" + cut)
    log = CSVLog(path, iteration=9)
    log.write({"iteration": 3, "loss": 0.25})
    log.close()
    assert path.read_text() == "iteration,loss\n1,0.5\n2,0.5\n3,0.25\n"


def test_a_header_cut_short_begins_anew(tmp_path):
    path = tmp_path / "progress.csv"
    path.write_text("iterat")
    log = CSVLog(path, iteration=0)
    log.write({"iteration": 1, "loss": 0.25})
    log.close()
    assert path.read_text() == "iteration,loss\n1,0.25\n"


def test_tensorboard_has_the_grouped_scalars_and_hides_what_was_redone(tmp_path):
    for resumed_from, steps in ((0, (10, 20, 30)), (20, (30, 40))):
        log = TensorBoardLog(tmp_path, resumed_from)
        for step in steps:
            log.write({"iteration": 1, "losses/a": step + resumed_from, "losses/b": math.nan}, step)
        log.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert events.Tags()["scalars"] == ["losses/a"]
    assert [(event.step, event.value) for event in events.Scalars("losses/a")] == [
        (10, 10.0),
        (20, 20.0),
        (30, 50.0),
        (40, 60.0),
    ]


def test_a_run_that_is_killed_has_all_but_the_last_second_in_tensorboard(tmp_path, monkeypatch):
    now = 0.0
    monkeypatch.setattr("fastac.log.time.monotonic", lambda: now)
    log = TensorBoardLog(tmp_path)
    for step in range(1, 6):
        now = 0.3 * step
        log.write({"losses/a": 0.5 * step, "charts/b": -1.0}, step)
    events = EventAccumulator(str(tmp_path)).Reload()  # nothing was closed
    assert [(event.step, event.value) for event in events.Scalars("losses/a")] == [(k, 0.5 * k) for k in range(1, 5)]
    assert [event.step for event in events.Scalars("charts/b")] == [1, 2, 3, 4]


def test_plain_lines_where_there_is_no_terminal():
    file = io.StringIO()
    with ProgressBar(1000, console=Console(file=file, width=40)) as bar:
        for step in range(0, 1001, 10):
            bar.update(step, episode_return=math.nan if step < 500 else 123.45, steps_per_second=100.0)
    assert file.getvalue().splitlines() == [
        "step 0 of 1,000 (0 %), return -, 100 steps/s, 0:10 left",
        "step 1,000 of 1,000 (100 %), return 123.5, 100 steps/s, 0:00 left",
    ]


def test_what_is_left_is_told_by_what_was_done_since_the_line_before(monkeypatch):
    now = 100.0
    monkeypatch.setattr("fastac.log.time.monotonic", lambda: now)
    file = io.StringIO()
    with ProgressBar(1000, console=Console(file=file, width=80)) as bar:
        bar.update(100, episode_return=1.0, steps_per_second=1.0)  # after a hundred seconds of compiling
        now = 110.0
        bar.update(400, episode_return=1.0, steps_per_second=3.6)
    assert [line.rpartition(", ")[2] for line in file.getvalue().splitlines()] == ["15:00 left", "0:20 left"]


def test_a_run_goes_on_when_nobody_reads_its_lines(monkeypatch):
    """The standard error of `fastac train 2>&1 | head`: rich would end the process there."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", buffering=1) as pipe:
        monkeypatch.setattr("sys.stderr", pipe)
        bar = ProgressBar(1000)
        for step in (500, 1000):
            bar.update(step, episode_return=1.0, steps_per_second=1.0)
        assert bar._console.quiet
        with contextlib.suppress(OSError):
            pipe.close()


def test_a_live_bar_on_a_terminal():
    file = io.StringIO()
    with ProgressBar(1000, console=Console(file=file, width=80, force_terminal=True)) as bar:
        bar.update(500, episode_return=42.0, steps_per_second=12345.6)
    text = file.getvalue()
    assert "…" not in text
    for part in ("500 / 1,000", "50 %", "return 42.0", "12,346 steps/s"):
        assert part in text
