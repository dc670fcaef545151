"""Where a run's time goes: the training itself, looked at a thousand times a second.

A timer interrupts the run; what stands on the stack then says which part it is in. Nothing is wrapped, replaced or run
a second time, and a part's share is what it takes itself, without the parts that it calls. An observation takes a few
microseconds, which are measured and taken off.
"""

from __future__ import annotations

import dataclasses
import math
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from fastac.run import Progress, Result, RunError

__all__ = ["Profile", "profile", "show"]

PERIOD = 0.001  # seconds between observations
PACKAGE = Path(__file__).parent

START = "start: imports, environments, networks, kernels"
ACTING = "policy forward and sampling"
ENVIRONMENT = "environment"
STORAGE = "storage and conversion"
ESTIMATES = "estimates: old values, log-probabilities, advantages"
BATCHES = "minibatches: drawing and gathering"
FUSED = "forward, losses and gradients in one call"
FORWARD = "forward in the update"
LOSSES = "losses and targets"
BACKWARD = "backward"
OPTIMIZER = "clipping and optimiser"
TARGETS = "target networks"
LOGGING = "logging and checkpoints"
OTHER = "other"
PARTS = (
    ACTING, ENVIRONMENT, STORAGE, ESTIMATES, BATCHES, FUSED, FORWARD, LOSSES, BACKWARD, OPTIMIZER, TARGETS, LOGGING,
    OTHER,
)  # fmt: skip
"""In the order in which an iteration comes to them."""

# Modules of fastac, and what their own lines do.
MODULES = {
    "policy": ACTING,
    "env_base": ENVIRONMENT,
    "env_state": ENVIRONMENT,
    "envs": ENVIRONMENT,
    "prediction": ENVIRONMENT,
    "rollouts": ENVIRONMENT,
    "tabular": ENVIRONMENT,
    "buffers": STORAGE,
    "collector": STORAGE,
    "episodes": STORAGE,
    "experience": STORAGE,
    "normalize": STORAGE,
    "returns": ESTIMATES,
    "traces": ESTIMATES,
    "fused": FUSED,
    "fused_q": FUSED,
    "graphs": FUSED,
    "critics": FORWARD,
    "mlp": FORWARD,
    "networks": FORWARD,
    "q_functions": FORWARD,
    "algorithms": LOSSES,
    "distributions": LOSSES,
    "losses": LOSSES,
    "q_losses": LOSSES,
    "ratio": LOSSES,
    "optim": OPTIMIZER,
    "capturable": OPTIMIZER,
    "checkpoint": LOGGING,
    "log": LOGGING,
    "run": LOGGING,
}
# Functions whose own lines do something else: module (or None for all), function, part.
FUNCTIONS: dict[tuple[str | None, str], str] = {
    (None, "backward"): BACKWARD,
    ("algorithms", "explore"): ACTING,
    ("algorithms", "noise"): FORWARD,
    ("algorithms", "train"): OTHER,
    ("experience", "random_actions"): ACTING,
    ("experience", "sampled_actions"): ACTING,
    ("experience", "most_probable_actions"): ACTING,
    ("experience", "sample"): BATCHES,
    ("buffers", "sample"): BATCHES,
    ("buffers", "minibatches"): BATCHES,
    ("buffers", "shuffled"): BATCHES,
    ("buffers", "update_priorities"): BATCHES,
    ("normalize", "normalize_advantages"): LOSSES,
    ("q_functions", "follow"): TARGETS,
}
# These count with all that they call: module, function (or None for all), part.
WHOLE: dict[tuple[str, str | None], str] = {
    ("acting", None): ACTING,
    ("algorithms", "__init__"): START,
    ("algorithms", "estimate"): ESTIMATES,
    ("algorithms", "ActorCritic.evaluate"): ESTIMATES,
    ("algorithms", "labels"): ESTIMATES,
    ("run", "__init__"): START,
    ("run", "__enter__"): START,
    ("run", "record"): LOGGING,
    ("run", "finish"): LOGGING,
}
# So do these of other packages: the end of the file's name, part.
OTHERS = {
    "torch/_tensor.py": BACKWARD,
    "torch/autograd/__init__.py": BACKWARD,
    "torch/nn/utils/clip_grad.py": OPTIMIZER,
    "torch/optim/": OPTIMIZER,
}
# Compiling a kernel, or loading it from the cache, and imports: where these are on the stack, the run has not begun.
STARTING = ("<frozen importlib", "/numba/core/", "/llvmlite/")


@dataclasses.dataclass(frozen=True)
class Profile:
    """Where a run's time went."""

    seconds: dict[str, float]
    """Of each part, in the order of `PARTS`; wall-clock time."""
    steps: int
    """Environment steps (of policy evaluation: gradient steps) in that time."""
    steps_before: int
    """Steps before the measurement: those in which nothing was learnt yet."""
    start_seconds: float
    """What came before the first step: imports, environments, networks, compiling or loading kernels."""
    observations: int
    """How often the run was looked at; a share of p is known to +-2 sqrt(p (1 - p) / observations)."""
    overhead: float
    """Share of the time that the looking took; it is not in `seconds`."""

    @property
    def total(self) -> float:
        """Seconds of all parts."""
        return math.fsum(self.seconds.values())

    def as_dict(self) -> dict[str, Any]:
        """Returns plain data: every part's seconds, percent and microseconds a step, and the rest."""
        parts = {
            part: {
                "seconds": round(seconds, 4),
                "percent": round(100.0 * seconds / self.total, 2),
                "us_per_step": round(1e6 * seconds / self.steps, 3),
            }
            for part, seconds in self.seconds.items()
        }
        return {
            "parts": parts,
            "seconds": round(self.total, 4),
            "steps": self.steps,
            "steps_before": self.steps_before,
            "steps_per_second": round(self.steps / self.total, 1),
            "start_seconds": round(self.start_seconds, 4),
            "observations": self.observations,
            "overhead_percent": round(100.0 * self.overhead, 2),
        }


def profile(train: Callable[..., Result], config: Any, *, seconds: float | None = None) -> Profile:
    """Trains, watches, and says where the time went.

    The run is a real one, with its log and its checkpoints, in a folder that is thrown away. The measurement covers
    whole iterations; it begins where something was learnt for the first time. Ctrl-C ends it, as `seconds` do.

    Args:
        train: An algorithm's.
        config: Its options.
        seconds: The measurement's length, ended with the iteration that reaches it; None for the whole training.

    Raises:
        fastac.run.RunError: this system has no interval timer, this is not the main thread, `seconds` are not above 0,
            or not one iteration was finished; and whatever `train` raises.

    Example:
        >>> from fastac.algorithms import ppo
        >>> found = profile(ppo.train, ppo.Config(total_timesteps=4096))
        >>> found.steps, 0.0 < found.seconds["environment"] < found.total
        (4096, True)
    """
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        raise RunError("profile: needs an interval timer, and to be called in the main thread")
    if seconds is not None and not seconds > 0.0:
        raise RunError(f"seconds: got {seconds}, expected above 0")
    observer = _Observer()
    snapshots = [observer.snapshot(0)]

    def callback(progress: Progress) -> None:
        # A run that nobody wants to keep need not be saved when it is interrupted.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        losses = [value for name, value in progress.metrics.items() if name.startswith("losses/")]
        if losses and all(map(math.isnan, losses)):
            snapshots.clear()
        snapshots.append(observer.snapshot(progress.global_step))
        if seconds is not None and _measured(snapshots[0], snapshots[-1]) >= seconds:
            raise _EnoughError

    before = signal.signal(signal.SIGALRM, observer)
    signal.siginterrupt(signal.SIGALRM, False)
    try:
        with tempfile.TemporaryDirectory(prefix="fastac-profile-") as folder:
            signal.setitimer(signal.ITIMER_REAL, PERIOD, PERIOD)
            try:
                train(config, callback, run_dir=folder, progress_bar=True)
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0.0)
    except (_EnoughError, KeyboardInterrupt):
        pass
    finally:
        signal.signal(signal.SIGALRM, before)
    if len(snapshots) < 2 or snapshots[-1].step == snapshots[0].step:
        raise RunError("profile: not one iteration of learning was finished; give it more time or steps")
    return _between(snapshots[0], snapshots[-1])


def show(found: Profile, title: str, console: Console | None = None) -> None:
    """Prints a table: every part's share and its microseconds a step.

    Example:
        >>> from rich.console import Console
        >>> found = Profile({"environment": 0.03, "backward": 0.01, "other": 0.0}, 1000, 0, 1.0, 40, 0.004)
        >>> show(found, "ppo", Console(width=80))  # doctest: +ELLIPSIS
        ppo...
          environment   75.0 %   30.0...
          backward      25.0 %   10.0...
    """
    console = Console() if console is None else console
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=True)
    table.add_column("")
    table.add_column("time", justify="right")
    table.add_column("us a step", justify="right")
    for part, seconds in found.seconds.items():
        if seconds > 0.0:
            share, each = seconds / found.total, 1e6 * seconds / found.steps
            table.add_row(part, f"{100.0 * share:.1f} %", f"{each:,.1f}")
    table.add_section()
    table.add_row("all", "100.0 %", f"{1e6 * found.total / found.steps:,.1f}", style="bold")
    console.print(table)
    before = f", after {found.steps_before:,} without learning" if found.steps_before else ""
    error = 100.0 * math.sqrt(0.25 / found.observations) * 2.0
    console.print(
        f"{found.steps:,} steps in {found.total:.1f} s{before}: {found.steps / found.total:,.0f} a second. "
        f"Before the first: {found.start_seconds:.1f} s for imports, environments, networks and kernels.\n"
        f"{found.observations:,} observations, a share is known to {error:.1f} %; observing took "
        f"{100.0 * found.overhead:.1f} % more, which is taken off.",
        highlight=False,
        soft_wrap=True,
    )


class _EnoughError(Exception):
    """The time is over."""


class _Snapshot(NamedTuple):
    step: int
    time: float
    overhead: float  # seconds
    ticks: Counter[str]


class _Observer:
    """The timer's signal handler: it counts the ticks since it was called last for the part that runs now.

    Python calls it between two of its own instructions. In a long call into compiled code several ticks pass, and all
    of them belong to it.
    """

    def __init__(self) -> None:
        self.ticks: Counter[str] = Counter()
        self.overhead = 0.0
        self._start = time.perf_counter()
        self._seen = 0
        self._rules: dict[tuple[str, str], tuple[str, bool] | None] = {}

    def __call__(self, number: int, frame: FrameType | None) -> None:
        now = time.perf_counter()
        due = int((now - self._start) / PERIOD)
        if due > self._seen:
            self.ticks[self.part(frame)] += due - self._seen
            self._seen = due
        self.overhead += time.perf_counter() - now

    def snapshot(self, step: int) -> _Snapshot:
        return _Snapshot(step, time.perf_counter(), self.overhead, self.ticks.copy())

    def part(self, frame: FrameType | None) -> str:
        """Returns the outermost part that counts with all it calls; else the innermost of all."""
        inner = whole = None
        while frame is not None:
            # Not by the code itself: two of them are equal where they differ in the file alone.
            key = (frame.f_code.co_filename, frame.f_code.co_qualname)
            try:
                rule = self._rules[key]
            except KeyError:
                rule = self._rules[key] = rule_of(*key)
            if rule is not None:
                part, with_all_it_calls = rule
                if with_all_it_calls:
                    whole = part
                    if part == START:
                        break
                elif inner is None:
                    inner = part
            frame = frame.f_back
        return whole or inner or OTHER


def rule_of(file: str, function: str) -> tuple[str, bool] | None:
    """Returns the part that a function belongs to, and whether with all that it calls; None: with what called it.

    Example:
        >>> rule_of(str(PACKAGE / "envs.py"), "SyncEnvs.step")
        ('environment', False)
        >>> rule_of("/lib/gymnasium/core.py", "Wrapper.step") is None
        True
    """
    path = Path(file)
    name = function.rpartition(".")[2]
    if not path.is_relative_to(PACKAGE):
        posix = path.as_posix()
        if any(mark in posix for mark in STARTING):
            return START, True
        return next(((part, True) for ending, part in OTHERS.items() if ending in posix), None)
    module = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    whole = WHOLE.get((module, name)) or WHOLE.get((module, function)) or WHOLE.get((module, None))
    if whole is not None:
        return whole, True
    part = FUNCTIONS.get((module, name)) or FUNCTIONS.get((None, name)) or MODULES.get(module)
    return None if part is None else (part, False)


def _measured(first: _Snapshot, last: _Snapshot) -> float:
    """Seconds between, without those in which kernels were loaded."""
    return last.time - first.time - PERIOD * (last.ticks[START] - first.ticks[START])


def _between(first: _Snapshot, last: _Snapshot) -> Profile:
    ticks = last.ticks - first.ticks
    del ticks[START]
    observed = max(ticks.total(), 1)
    share = min((last.overhead - first.overhead) / (last.time - first.time), 1.0)
    seconds = max(_measured(first, last), PERIOD) * (1.0 - share)
    return Profile(
        seconds={part: seconds * ticks[part] / observed for part in PARTS},
        steps=last.step - first.step,
        steps_before=first.step,
        start_seconds=last.ticks[START] * PERIOD,
        observations=observed,
        overhead=share,
    )
