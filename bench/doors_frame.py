"""What a row of the doors' table is made of: a part of somebody's training step, timed inside real training.

`Clock` wraps the function that the door replaces and adds up the CPU time spent in it; `measure` trains with the
library's own part and with ours in turn, so that the machine's noise falls on both alike.
"""

import functools
import gc
import inspect
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any


class AbsentError(Exception):
    """The library, or its sources, are not here; the message says which and how to get them."""


@dataclass
class Clock:
    """CPU time of this process spent in wrapped functions, and how often they were called."""

    seconds: float = 0.0
    calls: int = 0

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, timed; not to be nested in another of the same clock."""

        @functools.wraps(function)
        def timed(*arguments: Any, **options: Any) -> Any:
            start = time.process_time()
            try:
                return function(*arguments, **options)
            finally:
                self.seconds += time.process_time() - start
                self.calls += 1

        return timed

    @contextmanager
    def inside(self, owner: Any, name: str) -> Iterator["Clock"]:
        """Time the function `name` of a class or a module while the block runs."""
        owned, real = name in vars(owner), inspect.getattr_static(owner, name)
        wrapped = staticmethod(self.wrap(real.__func__)) if isinstance(real, staticmethod) else self.wrap(real)
        setattr(owner, name, wrapped)
        try:
            yield self
        finally:
            if owned:
                setattr(owner, name, real)
            else:
                delattr(owner, name)


@dataclass
class Round:
    """One training run: CPU seconds of the part and of the whole, and how many training steps it made."""

    part: float
    whole: float
    steps: int


@dataclass
class Row:
    """One row of the table; times are CPU milliseconds of one training step, one figure a round.

    Attributes:
        door: What is trained with, such as `SB3 PPO`.
        part: The function that the door replaces, as the reader would find it.
        step: What one training step is, sizes included.
        part_before: The part with the library's own code.
        part_after: The part with ours.
        step_before: The whole training step with the library's own code.
        step_after: The whole training step with ours. Empty, like `step_before`, where no step was run.
        note: What a reader must know, or empty.
        versions: Packages measured, by name.
    """

    door: str
    part: str
    step: str
    part_before: list[float] = field(default_factory=list)
    part_after: list[float] = field(default_factory=list)
    step_before: list[float] = field(default_factory=list)
    step_after: list[float] = field(default_factory=list)
    note: str = ""
    versions: dict[str, str | None] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """The row as it is recorded: the figures of all rounds, their medians, and ratios within rounds."""
        result: dict[str, Any] = asdict(self)
        for name in ("part_before", "part_after", "step_before", "step_after"):
            rounds = [round(x, 4) for x in getattr(self, name)]
            result[name] = {"median_ms": round(statistics.median(rounds), 4), "rounds": rounds} if rounds else None
        result["part_times"] = ratio(self.part_before, self.part_after)
        result["share_before"] = ratio(self.part_before, self.step_before)
        result["share_after"] = ratio(self.part_after, self.step_after)
        result["step_times"] = ratio(self.step_before, self.step_after)
        return result


def ratio(above: list[float], below: list[float]) -> float | None:
    """The median of the ratios within rounds."""
    if not above or not below:
        return None
    return round(statistics.median(x / y for x, y in zip(above, below, strict=True)), 4)


def measure(row: Row, before: Callable[[], Round], after: Callable[[], Round], rounds: int) -> Row:
    """Train with each in turn, after one round of each that does not count (imports, compilation)."""
    before(), after()
    for number in range(rounds):
        runs = {"before": before, "after": after}
        for name in sorted(runs, reverse=number % 2 == 0):  # who goes first changes from round to round
            done = collected(runs[name])
            getattr(row, f"part_{name}").append(1e3 * done.part / done.steps)
            getattr(row, f"step_{name}").append(1e3 * done.whole / done.steps)
    return row


def collected(run: Callable[[], Round]) -> Round:
    """A run without the garbage collector, whose tens of milliseconds fall on whatever part allocates next."""
    gc.collect()
    gc.disable()
    try:
        return run()
    finally:
        gc.enable()
