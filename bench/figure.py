"""The README's figure, once for light and once for dark pages, from the recorded results.

Above: whole trainings beside their limits. Below: GAE, nanoseconds per element; CartPole, return against CPU-seconds
(mean and quartiles of ten seeds). The file carries a digest of the numbers that it shows, so that a test can tell
whether it belongs to the results.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from bench import record
from bench.figure_training import draw_training, training_numbers
from bench.tables import TITLES, Results, need, peer_time

FOLDER = record.ROOT / "docs"
THEMES = {
    "light": {"text": "#1f2328", "grid": "#d8dee4", "fastac": "#0550ae", "limit": "#6e7781"},
    "dark": {"text": "#e6edf3", "grid": "#30363d", "fastac": "#58a6ff", "limit": "#9198a1"},
}
PEERS = {
    "light": {"rlax": "#bc4c00", "tianshou": "#1a7f37", "rlox": "#8250df", "sb3": "#cf222e"},
    "dark": {"rlax": "#f0883e", "tianshou": "#3fb950", "rlox": "#bc8cff", "sb3": "#ff7b72"},
}
MARKERS = {"fastac": "o", "limit": None, "rlax": "s", "tianshou": "^", "rlox": "D", "sb3": "v"}


def numbers(results: Results) -> dict[str, Any]:
    """Everything that is drawn."""
    cases = [c for c in need(results, "gae")["results"] if (c["estimator"], c["form"]) == ("gae", "short")]
    lines: dict[str, list[float | None]] = {}
    for name in MARKERS:
        entries = [peer_time(case["contenders"], name) for case in cases]
        if any(entries):
            pairs = zip(entries, cases, strict=True)
            lines[name] = [round(e["median_ns"] / (c["T"] * c["N"]), 4) if e else None for e, c in pairs]
    curves = {}
    for library in ("fastac", "sb3"):
        runs = need(results, f"learning/{library}-cleanrl")["runs"]
        points = [run["training_curve"] for run in runs]
        length = min(map(len, points))
        returns = np.array([[value for _, value in curve[:length]] for curve in points])
        speed = float(np.median([run["steps_per_cpu_second"] for run in runs]))
        curves[library] = {
            "cpu_seconds": [round(step / speed, 2) for step, _ in points[0][:length]],
            "mean": returns.mean(0).round(1).tolist(),
            "low": np.quantile(returns, 0.25, axis=0).round(1).tolist(),
            "high": np.quantile(returns, 0.75, axis=0).round(1).tolist(),
        }
    shown = {"shapes": [f"{c['T']}x{c['N']}" for c in cases], "ns_per_element": lines, "curves": curves}
    trainings = training_numbers(need(results, "training"))
    return shown | ({"trainings": trainings} if trainings else {})


def digest(results: Results) -> str:
    return hashlib.sha256(json.dumps(numbers(results), sort_keys=True).encode()).hexdigest()[:16]


def path(theme: str) -> Path:
    return FOLDER / f"benchmarks-{theme}.svg"


def stale(results: Results) -> list[str]:
    """Figures that do not show these results."""
    mark = digest(results)
    return [path(t).name for t in THEMES if not path(t).exists() or mark not in path(t).read_text(encoding="utf-8")]


def draw(results: Results) -> None:
    """Write both figures."""
    import matplotlib as mpl

    mpl.use("Agg")
    shown = numbers(results)
    FOLDER.mkdir(exist_ok=True)
    for theme in THEMES:
        draw_theme(shown, theme, path(theme), digest(results))


def draw_theme(shown: dict[str, Any], theme: str, target: Path, mark: str) -> None:
    import matplotlib as mpl
    from matplotlib import pyplot as plt

    colours = {**THEMES[theme], **PEERS[theme]}
    style = {
        "font.size": 9.5,
        "axes.edgecolor": colours["grid"],
        "axes.labelcolor": colours["text"],
        "text.color": colours["text"],
        "xtick.color": colours["text"],
        "ytick.color": colours["text"],
        "axes.spines.top": False,
        "axes.spines.right": False,
        "svg.hashsalt": "fastac",
    }
    with mpl.rc_context(style):
        trainings = shown.get("trainings")
        figure: Any = plt.figure(figsize=(10, 7.4 if trainings else 3.7), layout="constrained")
        lower = figure
        if trainings:
            # Each half with margins of its own.
            upper, lower = figure.subfigures(2, 1, height_ratios=(1, 1.05), hspace=0.03)
            draw_training(upper.subplots(), trainings, colours)
        left, right = lower.subplots(1, 2, width_ratios=(1.25, 1))
        draw_estimators(left, shown, colours)
        draw_learning(right, shown, colours)
        figure.savefig(target, transparent=True, metadata={"Date": None, "Description": f"results {mark}"})
        plt.close(figure)


def draw_estimators(axes: Any, shown: dict[str, Any], colours: dict[str, str]) -> None:
    places = np.arange(len(shown["shapes"]))
    ends = {}
    for name, line in shown["ns_per_element"].items():
        values = np.array([np.nan if value is None else value for value in line])
        own = name == "fastac"
        axes.plot(
            places,
            values,
            color=colours[name],
            marker=MARKERS[name],
            markersize=5 if own else 3.5,
            linewidth=2.4 if own else 1.2,
            linestyle="--" if name == "limit" else "-",
            zorder=3 if own else 2,
        )
        ends[name] = float(values[-1])
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xticks(places, shown["shapes"])
    axes.set_xlim(-0.3, len(places) + 0.15)
    axes.grid(axis="y", color=colours["grid"], linewidth=0.6)
    axes.set_xlabel("steps x environments")
    axes.set_title("GAE: ns per element, one core (log scale)", loc="left", fontsize=10, fontweight="bold")
    for name, height in spread(ends, 1.55).items():
        weight = "bold" if name == "fastac" else "normal"
        axes.text(len(places) - 0.85, height, TITLES.get(name, name), color=colours[name], va="center", weight=weight)


def spread(heights: dict[str, float], factor: float) -> dict[str, float]:
    """Labels' heights on a log axis, each at least `factor` above the one below."""
    placed: dict[str, float] = {}
    below = 0.0
    for name, height in sorted(heights.items(), key=lambda item: item[1]):
        placed[name] = below = max(height, below * factor)
    return placed


def draw_learning(axes: Any, shown: dict[str, Any], colours: dict[str, str]) -> None:
    for library, curve in shown["curves"].items():
        seconds = curve["cpu_seconds"]
        axes.fill_between(seconds, curve["low"], curve["high"], color=colours[library], alpha=0.18, linewidth=0)
        axes.plot(seconds, curve["mean"], color=colours[library], linewidth=2.4 if library == "fastac" else 1.6)
        axes.annotate(
            TITLES.get(library, library),
            (seconds[-1], curve["mean"][-1]),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            color=colours[library],
            weight="bold" if library == "fastac" else "normal",
        )
    axes.set_ylim(0, 515)
    axes.set_xlim(0, 1.15 * max(curve["cpu_seconds"][-1] for curve in shown["curves"].values()))
    axes.grid(color=colours["grid"], linewidth=0.6)
    axes.set_xlabel("CPU-seconds, one core")
    axes.set_title("PPO on CartPole-v1: return while training", loc="left", fontsize=10, fontweight="bold")
