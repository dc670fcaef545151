"""What each door changes in somebody's training: the time of the part that is replaced, and its share of the step.

Each library trains as its users run it, with its own part and with ours in turn; a part is timed where it stands. How
little most of them are of a whole step is a result as good as another.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import record
from bench.doors_frame import AbsentError, Row


def suites(cleanrl: Path | None, *, smallest: bool = False) -> dict[str, Callable[[], list[Row]]]:
    """The rows of each library; each may raise `AbsentError`."""
    from bench import doors_cleanrl, doors_tianshou, doors_tokens, doors_torchrl

    def sb3() -> list[Row]:
        from bench import doors_sb3

        return doors_sb3.rows(smallest=smallest)

    return {
        "sb3": sb3,
        "cleanrl": lambda: doors_cleanrl.rows(cleanrl, smallest=smallest),
        "tianshou": lambda: doors_tianshou.rows(smallest=smallest),
        "torchrl": lambda: doors_torchrl.rows(smallest=smallest),
        "tokens": lambda: doors_tokens.rows(smallest=smallest),
    }


def run(cleanrl: Path | None, *, smallest: bool = False) -> dict[str, Any]:
    """Everyone's rows, and who is missing and why."""
    rows, missing = [], {}
    for name, suite in suites(cleanrl, smallest=smallest).items():
        try:
            found = suite()
        except AbsentError as reason:
            missing[name] = str(reason)
            sys.stderr.write(f"missing: {reason}\n")
            continue
        for row in found:
            rows.append(row.summary())
            sys.stderr.write(words(rows[-1]) + "\n")
    return {
        "command": "python -m bench doors --cleanrl PATH",
        "machine": record.machine(),
        "method": "CPU ms a training step, library's own and ours in turn: a round of each that does not count, then "
        "medians over rounds; ratios within rounds",
        "missing": missing,
        "rows": rows,
    }


def words(row: dict[str, Any]) -> str:
    whole = f", a step {row['step_before']['median_ms']:.1f} ms" if row["step_before"] else ""
    return (
        f"{row['door']}, {row['part']}: {row['part_before']['median_ms']:.3f} ms, ours "
        f"{row['part_after']['median_ms']:.3f} ms{whole}"
    )


def main(cleanrl: Path | None) -> int:
    """Measure and record. Returns the exit code."""
    result = run(cleanrl)
    if not result["rows"]:
        sys.stderr.write("nothing to measure: none of the libraries is here; nothing was recorded\n")
        return 2
    record.write(record.RESULTS / "doors.json", result)
    return 0


def page(result: dict[str, Any]) -> str:
    """The README's table."""
    from bench.tables import table, times

    header = ["door", "part", "own, ms", "ours, ms", "own / ours", "a step, ms", "part of it", "ours", "step / step"]
    lines = []
    for row in result["rows"]:
        step, ratios = row["step_before"], (row["share_before"], row["share_after"])
        shares = [share(x) for x in ratios] if step else ["-", "-"]
        lines.append(
            [
                f"{row['door']}: {row['step']}",
                row["part"],
                milliseconds(row["part_before"]["median_ms"]),
                milliseconds(row["part_after"]["median_ms"]),
                times(row["part_times"]),
                milliseconds(step["median_ms"]) if step else "-",
                *shares,
                times(row["step_times"]) if step else "-",
            ]
        )
    versions: dict[str, str] = {}
    for row in result["rows"]:
        versions |= {name: version for name, version in row["versions"].items() if version and name != "torch"}
    named = ", ".join(f"{name} {version}" for name, version in versions.items())
    notes = "".join(dict.fromkeys(f" {row['door']}: {row['note']}." for row in result["rows"] if row["note"]))
    absent = "".join(f" Missing: {reason}." for reason in result["missing"].values())
    machine = result["machine"]
    return (
        table(header, lines)
        + f"\n\n<sub>One core of {machine['cpu']}, one thread; {named}, torch {machine['versions']['torch']}; "
        f"{machine['date']}; `{result['command']}`. CPU time of one training step, each library training as its users "
        f"run it, with its own part and with ours in turn; medians over rounds.{notes}{absent}</sub>"
    )


def milliseconds(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2g}"


def share(value: float) -> str:
    return f"{value:.0%}" if value >= 0.1 else f"{value:.1%}" if value >= 0.001 else f"{value:.2%}"
