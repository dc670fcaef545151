"""What a run tells: a progress bar, `progress.csv` and TensorBoard events, with the same names in both."""

from __future__ import annotations

import csv
import itertools
import math
import os
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_REFRESHES = 0.25
SECONDS_BETWEEN_LINES = 10.0
SECONDS_BETWEEN_FLUSHES = 1.0

_FILES = itertools.count()


class CSVLog:
    """One row an iteration; the first row fixes the columns.

    Args:
        path: The file. Continued where it exists.
        iteration: The last iteration that counts: later rows, written after the checkpoint that a resumed run goes on
            from, are dropped, and so is a last line that was cut short.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "progress.csv"
        >>> log = CSVLog(path)
        >>> log.write({"iteration": 1, "loss": 0.5})
        >>> log.write({"iteration": 2, "loss": math.nan})
        >>> log.close()
        >>> path.read_text().splitlines()
        ['iteration,loss', '1,0.5', '2,']
    """

    def __init__(self, path: Path, iteration: int = 0):
        self._columns: list[str] = []
        if path.exists():
            self._keep(path, iteration)
        self._file = path.open("a", newline="", encoding="utf-8", buffering=1)
        self._writer = csv.writer(self._file, lineterminator="\n")

    def _keep(self, path: Path, iteration: int) -> None:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        if not lines or not lines[0].endswith("\n"):
            path.unlink()
            return
        self._columns = lines[0].rstrip("\n").split(",")
        kept = [line for line in lines[1:] if line.endswith("\n") and int(line.split(",", 1)[0]) <= iteration]
        partial = path.with_suffix(".csv.tmp")
        partial.write_text("".join([lines[0], *kept]), encoding="utf-8")
        os.replace(partial, path)

    def write(self, row: Mapping[str, float]) -> None:
        """Appends a row; NaN is an empty cell. The first column has to be `iteration`."""
        if not self._columns:
            self._columns = list(row)
            self._writer.writerow(self._columns)
        cells = (row[name] for name in self._columns)
        self._writer.writerow(["" if math.isnan(value) else repr(value) for value in cells])

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class TensorBoardLog:
    """Scalars over environment steps, as TensorBoard events.

    Args:
        folder: Where the event file goes.
        global_step: On resume, the checkpoint's: later events of earlier files are hidden.
    """

    def __init__(self, folder: Path, global_step: int = 0):
        # Imported late: training without a run folder does not need it.
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = Event, Summary
        name = f"events.out.tfevents.{time.time():010.0f}.{socket.gethostname()}.{os.getpid()}.{next(_FILES)}"
        # Not `SummaryWriter`: its thread, woken for every scalar, takes the interpreter away from the training.
        self._file = (folder / name).open("wb")
        self._writer = RecordWriter(self._file)
        self._write(file_version="brain.Event:2")
        if global_step:
            self._write(step=global_step + 1, session_log=SessionLog(status=SessionLog.START))
        self._file.flush()
        self._next = time.monotonic() + SECONDS_BETWEEN_FLUSHES

    def _write(self, **content: Any) -> None:
        self._writer.write(self._event(wall_time=time.time(), **content).SerializeToString())

    def write(self, row: Mapping[str, float], global_step: int) -> None:
        """Adds every scalar whose name has a group (`charts/SPS`); NaN is left out. On disk within a second."""
        found = [(name, value) for name, value in row.items() if "/" in name and not math.isnan(value)]
        values = [self._summary.Value(tag=name, simple_value=value) for name, value in found]
        self._write(step=global_step, summary=self._summary(value=values))
        now = time.monotonic()
        if now >= self._next:
            self._file.flush()
            self._next = now + SECONDS_BETWEEN_FLUSHES

    def close(self) -> None:
        """Flushes and closes the file."""
        self._file.close()


class Screen(Console):
    """Standard error. Nobody being there to read it any more, as after `| head`, is no reason to stop."""

    def __init__(self) -> None:
        super().__init__(file=sys.stderr)

    def on_broken_pipe(self) -> None:
        """Shows nothing from here on; rich would end the process."""
        self.quiet = True


class ProgressBar:
    """Steps, mean episode return, steps per second and time left: live on a terminal, plain lines elsewhere.

    Args:
        total_timesteps: Steps at 100 %.
        global_step: Steps already behind.
        console: Where to; standard error by default.

    Example:
        >>> with ProgressBar(100, console=Console(file=sys.stdout, width=120)) as bar:
        ...     bar.update(50, episode_return=21.0, steps_per_second=1000.0)
        step 50 of 100 (50 %), return 21.0, 1,000 steps/s, 0:00 left
    """

    def __init__(self, total_timesteps: int, global_step: int = 0, console: Console | None = None):
        self._total = total_timesteps
        self._before: tuple[float, float] | None = None  # time and step of the last line
        self._console = Screen() if console is None else console
        self._next = 0.0
        self._live: Progress | None = None
        if self._console.is_terminal:
            self._live = Progress(
                TextColumn("{task.completed:,.0f} / {task.total:,.0f}"),
                BarColumn(14),
                TextColumn(
                    "{task.percentage:.0f} %  return {task.fields[episode_return]}  {task.fields[speed]} steps/s"
                ),
                TimeRemainingColumn(elapsed_when_finished=True),
                console=self._console,
                # No thread of its own: it is redrawn between iterations.
                auto_refresh=False,
            )
            self._task = self._live.add_task(
                "train", total=total_timesteps, completed=global_step, episode_return="-", speed="-"
            )

    def __enter__(self) -> ProgressBar:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.refresh()
            self._live.stop()

    def update(self, global_step: int, *, episode_return: float, steps_per_second: float) -> None:
        """Shows a new state; most calls do nothing, so that it may be called in every iteration."""
        now = time.monotonic()
        shown_return = "-" if math.isnan(episode_return) else f"{episode_return:.1f}"
        speed = f"{steps_per_second:,.0f}"
        if self._live is not None:
            self._live.update(self._task, completed=global_step, episode_return=shown_return, speed=speed)
            if now >= self._next:
                self._live.refresh()
                self._next = now + SECONDS_BETWEEN_REFRESHES
        elif now >= self._next or global_step >= self._total:
            # What comes before the first line, compiling for one, tells nothing of what is left.
            if self._before is not None and global_step > self._before[1] and now - self._before[0] > 1.0:
                recently = (global_step - self._before[1]) / (now - self._before[0])
            else:
                recently = steps_per_second
            self._before = now, global_step
            seconds = max(0.0, self._total - global_step) / max(recently, 1e-9)
            minutes, seconds = divmod(round(seconds), 60)
            percent = 100.0 * min(1.0, global_step / self._total)
            self._console.print(
                f"step {global_step:,} of {self._total:,} ({percent:.0f} %), return {shown_return}, "
                f"{speed} steps/s, {minutes}:{seconds:02} left",
                highlight=False,
                soft_wrap=True,
            )
            self._next = now + SECONDS_BETWEEN_LINES
