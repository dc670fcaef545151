"""README's table of whole trainings, from the recorded result."""

import statistics
from collections.abc import Mapping
from typing import Any

from bench.tables import TITLES, footnote, microseconds, table, times

TRAINERS = ("sb3", "cleanrl", "sbx")
NAMES = {**TITLES, "cleanrl": "CleanRL", "sbx": "SBX (JAX)"}
FORMS = {"fastac": ("", "limit"), "fastac_vector": (", the environment's vector form", "limit_vector")}


def speed(entry: Mapping[str, Any]) -> str:
    value = entry["steps_per_cpu_second"]
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def over(own: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """The median over rounds of one speed over another."""
    return statistics.median(a / b for a, b in zip(own["rounds"], other["rounds"], strict=True))


def rows(result: Mapping[str, Any]) -> list[list[str]]:
    """A row a training, and one more where fastac took the environment's vector form."""
    found = []
    for case in result["results"]:
        contenders = case["contenders"]
        there = [name for name in TRAINERS if name in contenders]
        best = max(there, key=lambda name: contenders[name]["steps_per_cpu_second"], default=None)
        for own, (form, limit) in FORMS.items():
            if own not in contenders:
                continue
            row = [case["title"] + form, speed(contenders[own])]
            for name in TRAINERS:
                if name in contenders:
                    cell = f"{speed(contenders[name])} ({times(over(contenders[own], contenders[name]))})"
                    row.append(f"**{cell}**" if name == best else cell)
                else:
                    row.append("fails" if name in case["failed"] else "-")
            found.append([*row, speed(contenders[limit]), f"{over(contenders[own], contenders[limit]):.2f}"])
    return found


def part_rows(parts: Mapping[str, Any]) -> list[list[str]]:
    found = []
    for name in ("minibatch", "acting"):
        if name in parts:
            contenders = parts[name]["contenders"]
            own, other = (microseconds(contenders[who]["median_ns"]) for who in ("fastac", "torch"))
            ratio = times(contenders["torch"]["over_fastac"])
            found.append([parts[name]["title"], f"{own} us", f"{other} us ({ratio})"])
    if "solved" in parts:
        solved = parts["solved"]
        returns = sorted(solved["mean_returns"])
        what = f"{solved['title']}, `{solved['command']}`"
        outcome = f"{solved['solved']} of {len(returns)} seeds at 475 or more, the worst at {returns[0]:.1f}"
        found.append([f"{what}: {outcome}", f"{solved['seconds']:.1f} s", "-"])
    return found


def page(result: Mapping[str, Any]) -> str:
    """Everything between the markers."""
    failed = {
        f"{NAMES[name]} in {case['title']}": why
        for case in result["results"]
        for name, why in case["failed"].items()
        if name in NAMES
    }
    edits = len(result["cleanrl_edits"])
    parts = part_rows(result["parts"])
    return "\n\n".join(
        [
            "Environment steps per CPU-second, whole trainings in turn on one core; in brackets how many times faster"
            " fastac is:",
            table(
                ["", "fastac", *(NAMES[name] for name in TRAINERS), "limit", "of the limit"],
                rows(result),
            ),
            *([table(["", "fastac", "torch, as CleanRL has it"], parts)] if parts else []),
            footnote(
                dict(result),
                "numba torch gymnasium stable-baselines3 sbx-rl jax",
                also=" The same environments, networks and hyperparameters; one process each, medians over rounds of"
                " CPU time with all threads, the first round (imports, compiling) not counted. *Limit*: of PPO and A2C"
                " the environments alone with random actions, of SAC its matrix products alone. SBX's PPO does not"
                f" clip values; CleanRL's scripts log to TensorBoard and are run with {edits} lines changed for"
                " today's Gymnasium. Bold: the fastest peer."
                + "".join(f" {who} fails: {why}." for who, why in failed.items()),
            ),
        ]
    )
