"""Run a function against the boundaries, and say in words what came of it."""

from __future__ import annotations

import importlib.util
import textwrap
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastac.conformance.ends import ENDS
from fastac.conformance.rows import ROWS
from fastac.conformance.scenario import ESTIMATORS, Scenario
from fastac.conformance.steps import STEPS
from fastac.conformance.windows import WINDOWS
from fastac.conventions import CONVENTIONS, Call, CannotSayError, Convention

SCENARIOS: tuple[Scenario, ...] = WINDOWS + ENDS + ROWS + STEPS
TOLERANCE = 1e-5  # of the largest expected number: float32 with room, far below what any boundary changes
WIDTH = 96


class CallError(Exception):
    """The function cannot be called in this convention: it failed on every boundary, or there is no adapter for it."""


class Result(NamedTuple):
    """One boundary's outcome: `detail` says what differed, or what the convention lacks."""

    scenario: Scenario
    verdict: Literal["right", "wrong", "cannot say"]
    detail: str = ""


@dataclass(frozen=True)
class Report:
    """What a function gets right, gets wrong, and what its convention cannot express.

    Attributes:
        function: Its name.
        convention: Name of the convention it was called in.
        estimator: What it was taken for.
        results: One `Result` a boundary.
    """

    function: str
    convention: str
    estimator: str
    results: tuple[Result, ...]

    @property
    def right(self) -> tuple[Result, ...]:
        """Results that are exact."""
        return tuple(result for result in self.results if result.verdict == "right")

    @property
    def wrong(self) -> tuple[Result, ...]:
        """Results that differ, or calls that raised."""
        return tuple(result for result in self.results if result.verdict == "wrong")

    @property
    def cannot_say(self) -> tuple[Result, ...]:
        """Boundaries that the convention has no way to express."""
        return tuple(result for result in self.results if result.verdict == "cannot say")

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.wrong

    def __str__(self) -> str:
        """In plain words, over several lines."""
        lines = [
            f"{self.estimator} of {self.function}, called in the {self.convention} convention: "
            f"{len(self.right)} boundaries right, {len(self.wrong)} wrong, {len(self.cannot_say)} that it cannot say"
        ]
        if self.wrong:
            lines += ["", "wrong:"]
        for scenario, _, detail in self.wrong:
            rows = f" ({', '.join(scenario.pitfalls.split())})" if scenario.pitfalls else ""
            lines.append(f"  {scenario.name}{rows}")
            lines += textwrap.wrap(scenario.sentence, WIDTH, initial_indent="    ", subsequent_indent="    ")
            lines += textwrap.wrap(detail, WIDTH, initial_indent="    ", subsequent_indent="    ")
        lacks: dict[str, list[str]] = {}
        for scenario, _, detail in self.cannot_say:
            lacks.setdefault(detail, []).append(scenario.name)
        for lists, title in ((lacks, "cannot say, as the convention has"), ({"": _names(self.right)}, "right:")):
            if any(lists.values()):
                lines += ["", title]
            for detail, names in lists.items():
                text = "; ".join(names)
                text = f"{detail} ({text})" if detail else text
                lines += textwrap.wrap(text, WIDTH, initial_indent="  ", subsequent_indent="    ")
        return "\n".join(lines)


def _names(results: tuple[Result, ...]) -> list[str]:
    return [result.scenario.name for result in results]


def check(
    function: Callable[..., Any], convention: str = "fastac", estimator: str = "gae", *, tensors: bool = False
) -> Report:
    """Run a function against every boundary of its estimator.

    Args:
        function: What to call; `CONVENTIONS[convention].function[estimator]` says how it will be.
        convention: Name in `CONVENTIONS`: how the function lays out time, flags, next values and results.
        estimator: What it computes: "gae", "discounted_returns", "n_step_returns", "lambda_returns", "vtrace" or
            "retrace".
        tensors: Pass torch tensors where the convention leaves the choice.

    Returns:
        A report; print it, or read `ok`, `right`, `wrong` and `cannot_say`.

    Raises:
        ValueError: No such convention or estimator, or the convention has none.
        ModuleNotFoundError: The convention needs a package that is missing.
        CallError: The function raised on every boundary.

    Example:
        >>> import fastac
        >>> from fastac.conformance import check
        >>> check(fastac.gae).ok
        True
    """
    adapter = _adapter(convention, estimator, tensors)
    results, raised = [], []
    for scenario in SCENARIOS:
        if estimator in scenario.expected and (convention == "fastac" or not scenario.layout):
            result, error = _run(function, adapter, scenario, estimator, convention, tensors)
            results.append(result)
            if error is not None:
                raised.append(error)
    said = [result for result in results if result.verdict != "cannot say"]
    if raised and len(raised) == len(said):
        how = CONVENTIONS[convention].function[estimator]
        raise CallError(f"it raised {_line(raised[0])}; the {convention} convention calls {how}") from raised[0]
    return Report(_name(function), convention, estimator, tuple(results))


def _adapter(convention: str, estimator: str, tensors: bool) -> Callable[[Callable[..., Any], Call], Any]:
    """The adapter, after everything that can be wrong with the arguments."""
    if convention not in CONVENTIONS:
        raise ValueError(f"convention: expected one of {', '.join(CONVENTIONS)}, got {convention!r}")
    if estimator not in ESTIMATORS:
        raise ValueError(f"estimator: expected one of {', '.join(ESTIMATORS)}, got {estimator!r}")
    row: Convention = CONVENTIONS[convention]
    if estimator not in row.adapters:
        raise ValueError(f"estimator: the {convention} convention has {', '.join(row.adapters)}, got {estimator!r}")
    for package in (*row.needs, *(("torch",) if tensors else ())):
        if importlib.util.find_spec(package) is None:
            what = "tensors need" if package not in row.needs else f"the {convention} convention needs"
            raise ModuleNotFoundError(f'{what} {package}: pip install "fastac-rl[train]"', name=package)
    return row.adapters[estimator]


def _run(
    function: Callable[..., Any],
    adapter: Callable[[Callable[..., Any], Call], Any],
    scenario: Scenario,
    estimator: str,
    convention: str,
    tensors: bool,
) -> tuple[Result, Exception | None]:
    call, untouched = (scenario.call(estimator, tensors=tensors) for _ in range(2))
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            outputs = adapter(function, call)
    except CannotSayError as error:
        return Result(scenario, "cannot say", str(error)), None
    except Exception as error:  # whatever a stranger's function raises is its result on this boundary
        return Result(scenario, "wrong", f"it raised {_line(error)}"), error
    detail = _difference(outputs, scenario.outputs(estimator))
    if not detail and convention == "fastac" and call.rewards.dtype != call.values.dtype:
        dtype = (call.rewards if estimator == "discounted_returns" else call.values).dtype  # it takes no values
        detail = "; ".join(f"{name} are {x.dtype}, expected {dtype}" for name, x in outputs.items() if x.dtype != dtype)
    if not detail and _written(call, untouched):
        detail = "it wrote into its arguments"
    return Result(scenario, "wrong" if detail else "right", detail), None


def _difference(outputs: Mapping[str, NDArray[Any]], expected: Mapping[str, NDArray[np.float64]]) -> str:
    """The last row in which results differ, in words; empty where none does."""
    for name, right in expected.items():
        got = np.asarray(outputs[name])
        if got.shape != right.shape:
            return f"{name} have shape {got.shape}, expected {right.shape}"
        got = got.astype(np.float64)
        fixed = ~np.isnan(right)
        limit = TOLERANCE * max(1.0, float(np.max(np.abs(right[fixed]), initial=0.0)))
        wrong = fixed & ~(np.abs(got - right) <= limit)  # a NaN is wrong, too
        if wrong.any():
            t, e = (int(i) for i in np.argwhere(wrong)[-1])  # where it starts: sums run backwards in time
            where = f"row {t}" if right.shape[1] == 1 else f"row {t} of environment {e}"
            return f"{name} in {where}: {got[t, e]:.6g}, expected {right[t, e]:.6g}"
    return ""


def _written(call: Call, untouched: Call) -> bool:
    names = ("rewards", "values", "next_values", "terminated", "truncated", "mask", "log_ratios")
    pairs = [(getattr(call, name), getattr(untouched, name)) for name in names]
    return any(x is not None and x.tobytes() != y.tobytes() for x, y in pairs)


def _line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text if len(text) <= 200 else text[:200] + '...'}"


def _name(function: Callable[..., Any]) -> str:
    function = getattr(function, "func", function)  # of a functools.partial
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    return f"{module}.{name}" if module and name else name or repr(function)
