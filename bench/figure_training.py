"""The figure's upper part: steps per CPU-second of whole trainings, from their trainers to their limits."""

from collections.abc import Mapping
from typing import Any

TRAINERS = ("cleanrl", "sb3", "sbx", "fastac")
LABELS = {"cleanrl": "CleanRL", "sb3": "SB3", "sbx": "SBX (JAX)", "fastac": "fastac", "limit": "limit"}
MARKERS = {"cleanrl": "^", "sb3": "v", "sbx": "s", "fastac": "o"}
# The colours of the lower parts: SB3 is the same one, the others stand in no other panel together.
COLOURS = {"cleanrl": "tianshou", "sbx": "rlax"}


def training_numbers(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row a training: its title and everyone's speed."""
    rows = []
    for case in result.get("results", ()):
        speeds = {name: entry["steps_per_cpu_second"] for name, entry in case["contenders"].items()}
        shown = {name: speeds[name] for name in (*TRAINERS, "limit") if name in speeds}
        rows.append({"title": case["title"], "speeds": shown})
    return rows


def draw_training(axes: Any, rows: list[dict[str, Any]], colours: Mapping[str, str]) -> None:
    """A line a training, from its slowest trainer to its limit."""
    for place, row in enumerate(rows):
        speeds = row["speeds"]
        axes.plot(
            [min(speeds.values()), max(speeds.values())], [place, place], color=colours["grid"], linewidth=1.2, zorder=1
        )
        if "limit" in speeds:
            axes.plot([speeds["limit"]], [place], "|", color=colours["limit"], markersize=17, markeredgewidth=2.4)
        for name in TRAINERS:
            if name in speeds:
                own = name == "fastac"
                axes.plot(
                    [speeds[name]],
                    [place],
                    MARKERS[name],
                    color=colours[COLOURS.get(name, name)],
                    markersize=9 if own else 6.5,
                    zorder=3 if own else 2,
                )
        if "fastac" in speeds:
            axes.annotate(
                f"{speeds['fastac']:,.0f}",
                (speeds["fastac"], place),
                xytext=(0, 7),
                textcoords="offset points",
                ha="center",
                color=colours["fastac"],
                weight="bold",
                fontsize=8.5,
            )
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_yticks(range(len(rows)), [row["title"] for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.75)
    axes.grid(axis="x", color=colours["grid"], linewidth=0.6)
    axes.set_title(
        "Training: environment steps per CPU-second, one core (log scale)", loc="left", fontsize=10, fontweight="bold"
    )
    there = {name for row in rows for name in row["speeds"]}
    handles = [
        axes.plot([], [], MARKERS.get(name, "|"), color=colours[COLOURS.get(name, name)], label=LABELS[name])[0]
        for name in ("fastac", "sbx", "sb3", "cleanrl", "limit")
        if name in there
    ]
    axes.legend(
        handles=handles, loc="lower right", frameon=False, ncols=len(handles), fontsize=9, labelcolor="linecolor"
    )
