"""Bias, variance and error of estimates over repeated fits: the numbers, a table, a figure.

A report is plain data, as `json` writes it: `policy_evaluation.evaluate` makes it, and says what is in it.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from rich.console import Console
from rich.table import Table

__all__ = ["Errors", "best", "digest", "draw", "errors", "family", "rounded", "table", "verdict"]

Report = Mapping[str, Any]
FAMILIES = {"n": "n", "td_lambda": "lambda"}
BLUES = ("#9ecae9", "#4a98c9", "#08519c", "#062a52")


class Errors(NamedTuple):
    """How far estimates are from the truth, over R repetitions and M states: rmse^2 = bias^2 + std^2.

    Attributes:
        bias: Root mean square over the states of the expected error. Its square is estimated without bias: the part of
            the mean error that chance puts there, std^2 / R, is taken off. 0 where nothing is left.
        std: Root of the mean over the states of the variance over the repetitions (ddof 1; 0 for a single one).
        rmse: Root mean square error.
        rmse_se: Its standard error over the repetitions; 0 for a single one.
    """

    bias: float
    std: float
    rmse: float
    rmse_se: float


def errors(estimates: ArrayLike, truth: ArrayLike) -> Errors:
    """Returns the errors of estimates (R, M) of truth (M,).

    Example:
        >>> errors([[2.0, 3.0], [4.0, 5.0]], [1.0, 2.0])
        Errors(bias=1.7320508075688772, std=1.4142135623730951, rmse=2.23606797749979, rmse_se=0.8944271909999159)
    """
    error = np.asarray(estimates, np.float64) - np.asarray(truth, np.float64)
    repetitions = len(error)
    squares = (error**2).mean(1)
    square = float(squares.mean())
    variance = float(error.var(0, ddof=1).mean()) if repetitions > 1 else 0.0
    rmse, se = math.sqrt(square), 0.0
    if repetitions > 1 and rmse > 0.0:
        se = float(squares.std(ddof=1)) / math.sqrt(repetitions) / (2.0 * rmse)
    return Errors(math.sqrt(max(square - variance, 0.0)), math.sqrt(variance), rmse, se)


def family(report: Report, name: str) -> list[Mapping[str, Any]]:
    """Returns the targets from TD(0) to Monte Carlo by growing n, or by growing lambda ("td_lambda").

    An n that no episode reaches is Monte Carlo, and left out.
    """
    first, last = ([t for t in report["targets"] if t["name"] == end] for end in ("TD(0)", "Monte Carlo"))
    between = [t for t in report["targets"] if t[name] is not None and t["name"] != "TD(0)"]
    if name == "n":
        between = [t for t in between if t["n"] < report["longest_episode"]]
    return [*first, *sorted(between, key=lambda t: float(t[name])), *last]


def best(targets: Sequence[Mapping[str, Any]], what: str, budget: int) -> int:
    """Returns the index of the target with the smallest error; `what` is "fit" or "labels"."""
    return int(np.argmin([target[what][budget]["rmse"] for target in targets]))


def verdict(report: Report) -> list[str]:
    """Says for each number of gradient steps which n and which lambda were best, and against what."""
    lines = []
    for b, steps in enumerate(report["gradient_steps"]):
        parts = []
        for name, shown in FAMILIES.items():
            targets = family(report, name)
            at = best(targets, "fit", b)
            ends = f"{targets[0]['fit'][b]['rmse']:.3g} by TD(0), {targets[-1]['fit'][b]['rmse']:.3g} by Monte Carlo"
            value = targets[at]["name"] if at in (0, len(targets) - 1) else f"{shown} = {targets[at][name]:g}"
            parts.append(f"{value} (RMSE {targets[at]['fit'][b]['rmse']:.3g})")
        lines.append(f"after {steps:,} gradient steps best: {parts[0]} and {parts[1]}; {ends}")
    return lines


def table(report: Report, what: str, title: str) -> str:
    """Returns bias, standard deviation and RMSE of every target after each number of gradient steps; * marks the best.

    Args:
        report: The report.
        what: "fit" or "labels".
        title: Above the table.
    """
    grid = Table(title=title, title_justify="left", title_style="bold")
    grid.add_column("target", no_wrap=True)
    for steps in report["gradient_steps"]:
        for number, heading in enumerate(("bias", "std", "RMSE")):
            grid.add_column(f"{steps:,} steps\n{heading}" if number == 0 else f"\n{heading}", justify="right")
    budgets = range(len(report["gradient_steps"]))
    marked = set()
    for name in FAMILIES:
        targets = family(report, name)
        marked |= {(targets[best(targets, what, b)]["name"], b) for b in budgets}
    for target in report["targets"]:
        cells = []
        for b in budgets:
            found = target[what][b]
            star = "*" if (target["name"], b) in marked else " "
            cells += [f"{found['bias']:.3g}", f"{found['std']:.3g}", f"{found['rmse']:.3g}{star}"]
        grid.add_row(target["name"], *cells)
    stream = io.StringIO()
    Console(file=stream, width=16 + 33 * len(budgets)).print(grid)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"


def draw(report: Report, *paths: Path) -> None:
    """Draws the report; the same report gives the same bytes.

    Above: the fits' bias, standard deviation and RMSE over n. Below: the four kinds of fit against the true values,
    the fits' RMSE over lambda, the labels' RMSE over n. Rings mark the best.

    Args:
        report: The report.
        paths: Files to write; their suffix says which kind.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style: Any = {
        "font.size": 8.5,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": "#e4e8ec",
        "axes.titlesize": 9.5,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "svg.hashsalt": "fastac",
        "svg.fonttype": "none",
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=(10, 5.8), layout="constrained")
        FigureCanvasAgg(figure)
        above, below = figure.subplots(2, 3)
        for axes, measure, title in zip(
            above, ("bias", "std", "rmse"), ("Bias", "Deviation", "Error (RMSE)"), strict=True
        ):
            _curves(axes, report, "n", "fit", measure)
            axes.set_title(f"{title} of V over n")
        above[0].legend(title="gradient steps", frameon=False, fontsize=8)
        _values(below[0], report)
        _curves(below[1], report, "td_lambda", "fit", "rmse")
        below[1].set_title("Error (RMSE) of V over lambda")
        _curves(below[2], report, "n", "labels", "rmse")
        below[2].set_title("Error (RMSE) of the labels over n")
        figure.suptitle(report["title"], fontsize=10)
        for path in paths:
            metadata = {"Date": None, "Description": f"report {digest(report)}"}
            if path.suffix == ".png":
                metadata = {"Software": None, "Description": f"report {digest(report)}"}
            figure.savefig(path, dpi=110, facecolor="white", metadata=metadata)


def digest(report: Report) -> str:
    """Returns what a figure carries, so that it can be told whether it shows this report."""
    return hashlib.sha256(json.dumps(report, sort_keys=True).encode()).hexdigest()[:16]


def rounded(data: Any) -> Any:
    """Returns plain data with its floats rounded to 6 digits, so that machines' last bits seldom show.

    Example:
        >>> rounded({"pi": (3.14159265, 3)})
        {'pi': [3.14159, 3]}
    """
    if isinstance(data, dict):
        return {key: rounded(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [rounded(value) for value in data]
    return float(f"{data:.6g}") if isinstance(data, float) else data


def _curves(axes: Any, report: Report, name: str, what: str, measure: str) -> None:
    targets = family(report, name)
    last = len(targets) - 1
    if name == "n":
        axes.set_xscale("log", base=2)
        places = [1.0, *(float(target["n"]) for target in targets[1:-1]), float(report["longest_episode"])]
        axes.set_xticks(places, ["1", *(str(target["n"]) for target in targets[1:-1]), "T"], fontsize=7)
        axes.minorticks_off()
        axes.set_xlabel("n: 1 is TD(0), T is Monte Carlo")
    else:
        places = [0.0, *(float(target["td_lambda"]) for target in targets[1:-1]), 1.0]
        axes.set_xlabel("lambda: 0 is TD(0), 1 is Monte Carlo")
    for b, steps in enumerate(report["gradient_steps"]):
        colour = BLUES[min(b * len(BLUES) // max(len(report["gradient_steps"]), 1), len(BLUES) - 1)]
        axes.plot(
            places,
            [target[what][b][measure] for target in targets],
            marker="o",
            markersize=3,
            color=colour,
            label=f"{steps:,}",
        )
        at = best(targets, what, b)
        if measure == "rmse":
            inside = 0 < at < last
            axes.plot(
                places[at],
                targets[at][what][b][measure],
                marker="o",
                markersize=10,
                fillstyle="none",
                markeredgewidth=1.6,
                color="#c2410c" if inside else "#8b949e",
                zorder=4,
            )
    axes.set_ylim(bottom=0.0)


def _values(axes: Any, report: Report) -> None:
    truth = np.array(report["truth"])
    order = np.argsort(truth)
    low, high = float(truth.min()), float(truth.max())
    axes.plot([low, high], [low, high], color="#8b949e", linewidth=1, zorder=1)
    shown = [target for target in report["targets"] if "values" in target]
    width = (high - low) / max(len(truth), 1) * 0.12
    for number, (target, marker) in enumerate(zip(shown, "osD^", strict=False)):
        places = truth[order] + (number - (len(shown) - 1) / 2) * width
        means, stds = np.array(target["values"])[order], np.array(target["values_std"])[order]
        axes.errorbar(places, means, stds, fmt=marker, markersize=3.5, linewidth=0.8, label=target["name"])
    if len(truth) < 10:
        axes.set_xticks(truth[order], [f"{value:.3g}" for value in truth[order]])
    axes.set_title(f"V against the truth, {report['gradient_steps'][-1]:,} steps")
    axes.set_xlabel("true value (mean and deviation over batches)")
    axes.legend(frameon=False, fontsize=8)
