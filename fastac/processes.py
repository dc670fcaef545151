"""Training runs in processes of their own, several at a time, with one picture of how far they are."""

from __future__ import annotations

import dataclasses
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from fastac.envs import THREAD_LIMITS
from fastac.log import Screen
from fastac.run import stopping_signals

__all__ = ["Job", "last_progress", "run_jobs"]

SECONDS_BETWEEN_LOOKS = 0.2
SECONDS_BETWEEN_LINES = 60.0


@dataclasses.dataclass(frozen=True)
class Job:
    """A process that trains into a run folder, and stops at SIGINT after saving."""

    name: str
    arguments: list[str]
    run_dir: Path
    total_timesteps: int


def run_jobs(jobs: Sequence[Job], at_a_time: int, *, already: int = 0) -> tuple[list[tuple[str, str]], bool]:
    """Runs processes, `at_a_time` of them side by side, each with one thread of BLAS.

    SIGINT (Ctrl-C), SIGTERM and a closed terminal stop them all: each gets a SIGINT and is waited for; a second one
    ends them at once.

    Args:
        jobs: What to run; what one writes to stdout and stderr goes to `<run_dir>.log`.
        at_a_time: How many.
        already: Jobs that were done before, for the picture alone.

    Returns:
        Names and last words of those that failed, and whether it was interrupted.
    """
    waiting, running = deque(jobs), dict[subprocess.Popen[bytes], Job]()
    failed: list[tuple[str, str]] = []
    signals: list[int] = []

    def on_signal(number: int, frame: FrameType | None) -> None:
        signals.append(number)
        for process in running:
            process.send_signal(signal.SIGINT if len(signals) == 1 else signal.SIGKILL)

    main_thread = threading.current_thread() is threading.main_thread()
    numbers = stopping_signals() if main_thread else ()
    handlers = {number: signal.signal(number, on_signal) for number in numbers}
    with Picture(len(jobs) + already, already) as picture:
        try:
            while running or (waiting and not signals):
                while waiting and len(running) < at_a_time and not signals:
                    job = waiting.popleft()
                    running[_start(job)] = job
                    picture.started(job)
                    if signals:  # it came while the process was started
                        next(reversed(running)).send_signal(signal.SIGINT)
                time.sleep(SECONDS_BETWEEN_LOOKS)
                for process, job in list(running.items()):
                    code = process.poll()
                    if code is None:
                        picture.moved(job)
                        continue
                    del running[process]
                    if code != 0 and not signals:
                        failed.append((job.name, _last_words(job, code)))
                    picture.ended(job, "finished" if code == 0 else "stopped" if signals else "failed")
        finally:
            for process in running:
                process.kill()
            for number, handler in handlers.items():
                signal.signal(number, handler)
    return failed, bool(signals)


def _start(job: Job) -> subprocess.Popen[bytes]:
    # What can be imported here can be imported there.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    environment.update({name: environment.get(name, "1") for name in THREAD_LIMITS})
    job.run_dir.parent.mkdir(parents=True, exist_ok=True)
    with log_of(job).open("ab") as log:
        # A session of its own, so that Ctrl-C reaches it from here alone, once.
        return subprocess.Popen(
            job.arguments, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )


def log_of(job: Job) -> Path:
    """Returns the file that a job's stdout and stderr go to."""
    return job.run_dir.with_name(f"{job.run_dir.name}.log")


def _last_words(job: Job, code: int) -> str:
    lines = log_of(job).read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return f"{lines[-1] if lines else 'it said nothing'} (exit code {code}; {log_of(job)})"


def last_progress(run_dir: Path) -> tuple[int, float]:
    """Returns environment steps and mean episode return of the last row of `progress.csv`; (0, NaN) without one."""
    try:
        with (run_dir / "progress.csv").open("rb") as file:
            header = file.readline().decode().rstrip("\n").split(",")
            file.seek(max(file.tell(), file.seek(0, os.SEEK_END) - 8192))
            lines = file.read().split(b"\n")[:-1]
        cells = dict(zip(header, lines[-1].decode().split(","), strict=True))
        return int(float(cells["global_step"])), float(cells.get("charts/episodic_return") or math.nan)
    except (OSError, IndexError, KeyError, ValueError):
        return 0, math.nan


class Picture:
    """A bar for each running job and one for all of them on a terminal; elsewhere a line a minute, and for each end."""

    def __init__(self, total: int, done: int, console: Console | None = None):
        self._console = Screen() if console is None else console
        self._total, self._done = total, done
        self._rows: dict[str, Any] = {}
        self._next: dict[str, float] = {}  # when each running job's next line is due
        self._live: Progress | None = None
        if self._console.is_terminal:
            self._live = Progress(
                TextColumn("{task.description}"),
                BarColumn(20),
                MofNCompleteColumn(),
                TextColumn("{task.fields[said]}"),
                TimeElapsedColumn(),
                console=self._console,
            )
            self._all = self._live.add_task("runs", total=total, completed=done, said="")

    def __enter__(self) -> Picture:
        if self._live is not None:
            self._live.start()
        elif self._done:
            self._say(f"{self._done} of {self._total} runs are finished already")
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()

    def started(self, job: Job) -> None:
        """A process was started."""
        self._next[job.name] = time.monotonic() + SECONDS_BETWEEN_LINES
        if self._live is not None:
            self._rows[job.name] = self._live.add_task(job.name, total=job.total_timesteps, said="")

    def moved(self, job: Job) -> None:
        """It may have got further."""
        if self._live is not None:
            step, value = last_progress(job.run_dir)
            said = "" if math.isnan(value) else f"return {value:.1f}"
            self._live.update(self._rows[job.name], completed=step, said=said)
        elif time.monotonic() >= self._next[job.name]:
            self._next[job.name] += SECONDS_BETWEEN_LINES
            step, value = last_progress(job.run_dir)
            said = "" if math.isnan(value) else f", return {value:.1f}"
            self._say(f"{self._done} of {self._total}: {job.name} at step {step:,} of {job.total_timesteps:,}{said}")

    def ended(self, job: Job, how: str) -> None:
        """It has ended."""
        self._done += how == "finished"
        step, value = last_progress(job.run_dir)
        said = "" if math.isnan(value) else f", return {value:.1f}"
        if self._live is not None:
            self._live.remove_task(self._rows.pop(job.name))
            self._live.update(self._all, completed=self._done)
        self._say(f"{self._done} of {self._total}: {job.name} {how} after {step:,} steps{said}")

    def _say(self, line: str) -> None:
        self._console.print(line, highlight=False, soft_wrap=True, markup=False)
