"""What the pages' tables are made of: cells, rows, and the line below that says where it was measured."""

from collections.abc import Mapping
from typing import Any

TITLES = {"sb3": "SB3", "torchrl": "TorchRL", "scipy": "SciPy `lfilter`"}

Results = Mapping[str, dict[str, Any]]


class ReportError(ValueError):
    """Results or markers that are not there; the message is one line for the user."""


def need(results: Results, name: str) -> dict[str, Any]:
    if name not in results:
        raise ReportError(f"bench/results/{name}.json is missing: run `python -m bench {name.split('/')[0]}` first")
    return results[name]


def microseconds(nanoseconds: float) -> str:
    value = nanoseconds / 1e3
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def times(ratio: float) -> str:
    """A ratio to two decimals, or fewer where they say nothing."""
    return f"{ratio:,.0f}x" if ratio >= 100 else f"{ratio:.1f}x" if ratio >= 10 else f"{ratio:.2f}x"


def table(header: list[str], rows: list[list[str]]) -> str:
    ruler = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, ruler, *rows])


def peer_time(contenders: dict[str, dict[str, float]], peer: str) -> dict[str, float] | None:
    """A peer's fastest function for this case: rlox has two for one environment."""
    entries = [contenders[name] for name in (peer, f"{peer}_single") if name in contenders]
    return min(entries, key=lambda entry: entry["median_ns"]) if entries else None


def footnote(result: dict[str, Any], packages: str, *, also: str = "") -> str:
    """Machine, versions, command and what was missing: beside every table."""
    machine = result["machine"]
    named = [f"{name} {machine['versions'][name]}" for name in packages.split()]
    absent = result.get("missing") or {}
    gaps = f" Missing: {', '.join(sorted(absent))}." if absent else ""
    return (
        f"<sub>One core of {machine['cpu']}, one thread; {', '.join(n for n in named if not n.endswith('None'))}; "
        f"{machine['date']}; `{result['command']}`.{also}{gaps}</sub>"
    )
