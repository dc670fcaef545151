"""Figures of learning curves, and of what came out at the end."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastac.curves import Group
from fastac.run import RunError

__all__ = ["Outcome", "draw"]

COLOURS = ("#1f6feb", "#c2410c", "#2da44e", "#8250df", "#bf3989", "#6e7781", "#9a6700", "#0a7ea4")
STYLE: Any = {
    "font.size": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e8ec",
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What the trained policies of one label did in one environment."""

    env_id: str
    label: str
    means: list[float]
    """Mean return of each seed's evaluation."""
    interquartile_mean: float
    """Of `means`."""
    interval: tuple[float, float]
    """Its 95 % bootstrap interval over seeds."""


def draw(path: str | Path, groups: Sequence[Group], outcomes: Sequence[Outcome] = ()) -> None:
    """Draws a row for each environment: its learning curves, and beside them, if there are any, the outcomes.

    A line is the interquartile mean over seeds of a run's return (`fastac.curves.Curve`), its band the 95 % bootstrap
    interval. The same curves give the same bytes.

    Args:
        path: The file; its suffix says which kind (.png, .svg, .pdf).
        groups: Curves, as `fastac.curves.group` gathers them.
        outcomes: As `fastac compare` evaluates them; a label has one colour in all panels.

    Raises:
        RunError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    env_ids = list(dict.fromkeys([group.env_id for group in groups] + [outcome.env_id for outcome in outcomes]))
    labels = dict.fromkeys([group.label for group in groups] + [outcome.label for outcome in outcomes])
    colours = {label: COLOURS[i % len(COLOURS)] for i, label in enumerate(labels)}
    with _style():
        columns = 2 if outcomes else 1
        figure = Figure(figsize=(6.0 * columns, 3.6 * len(env_ids)), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(len(env_ids), columns, squeeze=False)
        for env_id, row in zip(env_ids, panels, strict=True):
            _curves(row[0], env_id, [group for group in groups if group.env_id == env_id], colours)
            if outcomes:
                _outcomes(row[1], env_id, [outcome for outcome in outcomes if outcome.env_id == env_id], colours)
        try:
            # The version of what drew it would change the bytes.
            metadata = {"Software": None} if Path(path).suffix == ".png" else None
            figure.savefig(path, dpi=130, facecolor="white", metadata=metadata)
        except (OSError, ValueError) as error:
            raise RunError(f"{path}: cannot write the figure ({' '.join(str(error).split())})") from error


@contextlib.contextmanager
def _style() -> Iterator[None]:
    import matplotlib as mpl

    with mpl.rc_context(STYLE):
        yield


def _curves(axes: Any, env_id: str, groups: Sequence[Group], colours: dict[str, str]) -> None:
    if not groups:
        axes.set_axis_off()
        return
    for group in groups:
        steps, mean, low, high = group.band()
        count = len(group.curves)
        name = f"{group.label} ({count} seed{'s' if count > 1 else ''})"
        axes.plot(steps, mean, color=colours[group.label], linewidth=1.6, label=name)
        if count > 1:
            axes.fill_between(steps, low, high, color=colours[group.label], alpha=0.18, linewidth=0)
    axes.set_title(f"{env_id}: return while training")
    axes.set_xlabel("environment steps")
    axes.set_ylabel("return")
    axes.set_xlim(left=0.0)
    axes.ticklabel_format(axis="x", style="sci", scilimits=(0, 5), useMathText=True)
    axes.legend(frameon=False, fontsize=8)


def _outcomes(axes: Any, env_id: str, outcomes: Sequence[Outcome], colours: dict[str, str]) -> None:
    if not outcomes:
        axes.set_axis_off()
        return
    places = -np.arange(len(outcomes))
    for place, outcome in zip(places, outcomes, strict=True):
        colour = colours[outcome.label]
        axes.plot(outcome.interval, [place, place], color=colour, linewidth=5, alpha=0.3, solid_capstyle="butt")
        axes.plot(outcome.means, [place] * len(outcome.means), "o", color=colour, markersize=3, alpha=0.7)
        axes.plot(outcome.interquartile_mean, place, "|", color=colour, markersize=16, markeredgewidth=2.5)
        axes.annotate(
            outcome.label, (0.0, place), xycoords=("axes fraction", "data"), xytext=(4, 13), textcoords="offset points"
        )
    axes.set_yticks([])
    axes.set_ylim(-len(outcomes) + 0.5, 0.5)
    axes.grid(visible=False, axis="y")
    axes.set_title("Trained policies: interquartile mean, 95 % interval, seeds")
    axes.set_xlabel("mean return over fixed starts")
