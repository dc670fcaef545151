"""A run: its folder, its log, its checkpoints, and how it ends."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import json
import math
import os
import platform
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch

import fastac
from fastac import checkpoint as checkpoints
from fastac.log import CSVLog, ProgressBar, TensorBoardLog
from fastac.policy import CHECKPOINT, Policy

EPISODES = 100
SECONDS_BETWEEN_CHECKPOINTS = 60.0
# Of a run's time at most, so that a checkpoint with a large replay buffer is written more seldom.
SHARE_OF_SAVING = 0.05


class RunError(ValueError):
    """An option, or a run folder, that cannot be used; the message is one line for the user."""


@dataclasses.dataclass(frozen=True)
class Progress:
    """What a callback gets, once an iteration."""

    iteration: int
    """Counted from 1."""
    global_step: int
    """Environment steps so far."""
    total_timesteps: int
    """Environment steps at the end."""
    episode_return: float
    """Mean undiscounted return of the last 100 episodes; NaN before the first."""
    episode_length: float
    """Their mean length, in steps."""
    steps_per_second: float
    """Since the training started, or went on."""
    metrics: dict[str, float]
    """The algorithm's, by name."""
    policy: Policy
    """As it is now: it goes on changing."""


Callback = Callable[[Progress], bool | None]


@dataclasses.dataclass(frozen=True)
class Result:
    """How a training ended."""

    policy: Policy
    """Trained."""
    global_step: int
    """Environment steps."""
    episode_return: float
    """Mean undiscounted return of the last 100 training episodes; NaN where there was none."""
    finished: bool
    """All steps were done; else a callback or a signal stopped it."""
    signal: int | None
    """The signal that stopped it."""
    run_dir: Path | None
    """Where everything was written."""

    def summary(self) -> str | None:
        """Returns what there is to say at the end where that is not how well the policy does; None where it is."""
        return None


class Run:
    """The frame around an algorithm's loop: `record` once an iteration, `finish` at the end.

    SIGINT (Ctrl-C), SIGTERM and a closed terminal (SIGHUP) stop a run that has a folder at the next iteration's end,
    where it is saved; a second one raises `KeyboardInterrupt`.

    Args:
        algorithm: Its name, a module of `fastac.algorithms`.
        config: Its frozen dataclass; has `total_timesteps`.
        policy: Being trained.
        run_dir: The folder, new or empty (or the checkpoint's); None writes nothing.
        checkpoint: A loaded checkpoint, to go on from it.
        callback: Called with a `Progress` at each `record`.
        progress_bar: Show one.
        why_not_restorable: The reason why the environments' state is not in the checkpoints, if so.

    Raises:
        RunError: the folder cannot be written, or is not empty.
    """

    def __init__(
        self,
        algorithm: str,
        config: Any,
        policy: Policy,
        *,
        run_dir: str | Path | None = None,
        checkpoint: dict[str, Any] | None = None,
        callback: Callback | None = None,
        progress_bar: bool = False,
        why_not_restorable: str | None = None,
    ):
        self.algorithm, self.config, self.policy = algorithm, config, policy
        self.run_dir = None if run_dir is None else Path(run_dir)
        self.callback = callback
        state = {} if checkpoint is None else checkpoint["run"]
        self.iteration: int = state.get("iteration", 0)
        self.episode_returns: deque[float] = deque(state.get("episode_returns", ()), maxlen=EPISODES)
        self.episode_lengths: deque[int] = deque(state.get("episode_lengths", ()), maxlen=EPISODES)
        self.stopped = False
        self.signal: int | None = None
        self._elapsed: float = state.get("elapsed_seconds", 0.0)
        self._start_step: int = 0 if checkpoint is None else checkpoint["global_step"]
        self._start = self._saved = time.monotonic()
        self._saving = 0.0  # seconds that the last checkpoint took
        self._handlers: dict[int, Any] = {}
        self._csv: CSVLog | None = None
        self._tensorboard: TensorBoardLog | None = None
        if self.run_dir is not None:
            if checkpoint is None:
                create_run_folder(self.run_dir, algorithm, config)
            try:
                self._csv = CSVLog(self.run_dir / "progress.csv", self.iteration)
                self._tensorboard = TensorBoardLog(self.run_dir, self._start_step)
            except OSError as error:
                raise RunError(f"{self.run_dir}: cannot write ({error.strerror})") from error
            if why_not_restorable is not None:
                when = "a resumed run would start" if checkpoint is None else "this run starts"
                reason = " ".join(why_not_restorable.split())
                sys.stderr.write(f"The environments' state is not saved ({reason}): {when} new episodes.\n")
        self._bar = ProgressBar(config.total_timesteps, self._start_step) if progress_bar else None

    def __enter__(self) -> Run:
        if self.run_dir is not None and threading.current_thread() is threading.main_thread():
            for number in stopping_signals():
                self._handlers[number] = signal.signal(number, self._on_signal)
        if self._bar is not None:
            if self.run_dir is not None:
                sys.stderr.write(f"run folder {self.run_dir}\n")
            self._bar.__enter__()
        self._start = self._saved = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        # What could not be written before cannot be now.
        with contextlib.suppress(OSError) if error is not None else contextlib.nullcontext():
            if self._bar is not None:
                self._bar.__exit__(kind, error, trace)
        for log in (self._csv, self._tensorboard):
            with contextlib.suppress(OSError) if error is not None else contextlib.nullcontext():
                if log is not None:
                    log.close()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal, self.stopped = number, True
        with contextlib.suppress(OSError):  # past sys.stderr, in whose middle a signal may come
            os.write(2, b"\nStopping at the end of this iteration, to save. Once more stops at once, without.\n")

    def record(
        self,
        global_step: int,
        metrics: dict[str, float],
        episodes: tuple[list[float], list[int]],
        state_dict: Callable[[], dict[str, Any]],
    ) -> None:
        """Logs an iteration, shows it, calls the callback, and saves. Sets `stopped`.

        Saved is every minute, and more seldom where saving would take more than a twentieth of the time.

        Args:
            global_step: Environment steps so far.
            metrics: The algorithm's numbers, by name.
            episodes: Returns and lengths of the episodes that ended in this iteration.
            state_dict: The algorithm's state; called only to save it.

        Raises:
            RunError: an episode's return, or the policy, is not finite, or the log cannot be written. The last
                checkpoint stays as it is.
        """
        if not all(map(math.isfinite, episodes[0])):
            wrong = next(value for value in episodes[0] if not math.isfinite(value))
            raise RunError(
                f"env_id {self.config.env_id!r}: got rewards that sum to {wrong} in an episode before step "
                f"{global_step:,}, expected finite ones"
            )
        self.iteration += 1
        self.episode_returns.extend(episodes[0])
        self.episode_lengths.extend(episodes[1])
        now = time.monotonic()
        progress = Progress(
            iteration=self.iteration,
            global_step=global_step,
            total_timesteps=self.config.total_timesteps,
            episode_return=mean(self.episode_returns),
            episode_length=mean(self.episode_lengths),
            steps_per_second=(global_step - self._start_step) / max(now - self._start, 1e-9),
            metrics=metrics,
            policy=self.policy,
        )
        if self._csv is not None and self._tensorboard is not None:
            row = {
                "charts/episodic_return": progress.episode_return,
                "charts/episodic_length": progress.episode_length,
                **metrics,
                "charts/SPS": progress.steps_per_second,
                "time/elapsed_seconds": self._elapsed + now - self._start,
            }
            ended = {"ended_episodes": len(episodes[0]), "ended_return": mean(episodes[0])}
            try:
                self._csv.write({"iteration": self.iteration, "global_step": global_step, **row, **ended})
                self._tensorboard.write(row, global_step)
            except OSError as error:
                raise RunError(f"{self.run_dir}: cannot write ({error.strerror})") from error
        if self._bar is not None:
            try:
                self._bar.update(
                    global_step, episode_return=progress.episode_return, steps_per_second=progress.steps_per_second
                )
            except OSError:  # nobody looks any more: no reason to stop
                self._bar = None
        if self.callback is not None and self.callback(progress) is False:
            self.stopped = True
        if now - self._saved > max(SECONDS_BETWEEN_CHECKPOINTS, self._saving / SHARE_OF_SAVING):
            self.save(state_dict())

    def save(self, state: dict[str, Any]) -> None:
        """Writes the checkpoint, in place of the one before; a policy that acts by NaN never replaces another."""
        actor = getattr(self.policy, "actor", None)  # there is no policy where a fixed one is evaluated
        if actor is not None and not all(bool(parameter.isfinite().all()) for parameter in actor.parameters()):
            raise RunError(
                f"the policy's parameters are not finite any more after {self.iteration:,} iterations: observations or "
                "rewards are not, or the learning rate is too high"
            )
        if self.run_dir is None:
            return
        began = time.monotonic()
        run = {
            "iteration": self.iteration,
            "episode_returns": list(self.episode_returns),
            "episode_lengths": list(self.episode_lengths),
            "elapsed_seconds": self._elapsed + time.monotonic() - self._start,
        }
        config = dataclasses.asdict(self.config)
        checkpoints.save(
            self.run_dir / CHECKPOINT, {"algorithm": self.algorithm, "config": config, "run": run, **state}
        )
        self._saved = time.monotonic()
        self._saving = self._saved - began

    def finish(self, global_step: int, state_dict: Callable[[], dict[str, Any]]) -> Result:
        """Saves, and says how the training ended."""
        self.save(state_dict())
        return Result(
            policy=self.policy,
            global_step=global_step,
            episode_return=mean(self.episode_returns),
            finished=global_step >= self.config.total_timesteps,
            signal=self.signal,
            run_dir=self.run_dir,
        )


def check_options(
    config: Any, *, at_least_one: Sequence[str] = (), fractions: Sequence[str] = (), positive: Sequence[str] = ()
) -> None:
    """Checks options by name; an option that is None is off, and passes.

    `seed`, in [0, 2^63), and `hidden_sizes`, each at least 1, are checked wherever there are any.

    Args:
        config: Holds them.
        at_least_one: Names of counts, at least 1.
        fractions: Names of numbers between 0 and 1, both included.
        positive: Names of numbers above 0.

    Raises:
        RunError: naming the first option that cannot be.

    Example:
        >>> import types
        >>> check_options(types.SimpleNamespace(gamma=1.5), fractions=("gamma",))
        Traceback (most recent call last):
        fastac.run.RunError: gamma: got 1.5, expected between 0 and 1
    """
    kinds: tuple[tuple[Sequence[str], Callable[[Any], bool], str], ...] = (
        (at_least_one, lambda value: value >= 1, "at least 1"),
        (fractions, lambda value: 0.0 <= value <= 1.0, "between 0 and 1"),
        (positive, lambda value: value > 0.0, "above 0"),
    )
    for names, accepts, expected in kinds:
        for name in names:
            value = getattr(config, name)
            if value is not None and not accepts(value):
                raise RunError(f"{name}: got {value}, expected {expected}")
    seed, hidden_sizes = getattr(config, "seed", 0), getattr(config, "hidden_sizes", ())
    if not 0 <= seed < 2**63:
        raise RunError(f"seed: got {seed}, expected an integer of at least 0, below 2^63")
    if any(size < 1 for size in hidden_sizes):
        raise RunError(f"hidden_sizes: got {' '.join(map(str, hidden_sizes))}, expected at least 1 each")


def create_run_folder(run_dir: Path, algorithm: str, config: Any) -> None:
    """Makes the folder and writes `config.json`: the algorithm, its options, and the versions it ran with.

    Raises:
        RunError: it cannot be written, or holds something.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        if any(run_dir.iterdir()):
            raise RunError(f"{run_dir}: not empty; take a new folder, or go on there with `fastac resume {run_dir}`")
        content = {"algorithm": algorithm, "config": dataclasses.asdict(config), "versions": versions()}
        (run_dir / "config.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise RunError(f"{run_dir}: cannot write ({error.strerror})") from error


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that a result depends on."""
    found = {"python": platform.python_version(), "fastac": fastac.__version__}
    for package in ("numpy", "numba", "torch", "gymnasium"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Sets the number of torch's CPU threads, and puts the old one back.

    Example:
        >>> with torch_threads(1):
        ...     torch.get_num_threads()
        1
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def stopping_signals() -> list[signal.Signals]:
    """Returns the signals that ask a process to end; a terminal's end not where it is ignored, as under `nohup`."""
    known = [signal.SIGINT, signal.SIGTERM]
    if sys.platform != "win32" and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        known.append(signal.SIGHUP)
    return known


def torch_device(name: str) -> torch.device:
    """Returns the device of that name.

    Raises:
        RunError: there is none here.

    Example:
        >>> torch_device("cpu")
        device(type='cpu')
    """
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        if reason.startswith("Expected one of"):  # torch goes on with every kind that it has a name for
            reason = "expected cpu, cuda, cuda:1, ..."
        raise RunError(f"device: got {name!r}, which is not available here ({reason})") from error


def mean(values: Sequence[float]) -> float:
    """Returns the mean, or NaN of nothing."""
    return math.fsum(values) / len(values) if values else math.nan
