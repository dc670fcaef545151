"""Whole trainings against SB3, CleanRL's scripts and SBX: environment steps per CPU-second, beside the limits.

Every trainer runs in a process of its own on the same core and stops after each chunk, so that they take turns: round
after round, one training each. The first chunk of each (imports, compiling, filling of buffers) is not counted.
"""

import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from bench import record, training_parts, training_solved
from bench.training_cases import CASES, NOTES, Case
from bench.training_limits import floating_point_operations, limits
from bench.training_pace import Chunk, Pace
from bench.training_peers import CLEANRL_EDITS, Train, quiet, trainers

MODULES = {"sb3": "stable_baselines3", "sbx": "sbx"}
PATIENCE = 300.0
"""Seconds that a trainer may take for a chunk before it counts as failed."""


def run(case: Case, name: str, seed: int, seconds: float, checkout: Path | None, pipe: Connection, log: Path) -> None:
    """A trainer's process: trains, sends every chunk, and goes on when told."""
    quiet(log)

    def finished(chunk: Chunk) -> None:
        pipe.send(chunk)
        if not pipe.recv():
            os._exit(0)

    every: Mapping[str, Train] = trainers(case, checkout) | limits(case)
    try:
        every[name](case, seed, Pace(seconds, case.warm_steps, finished))
        reason = "it stopped training by itself"
    except BaseException as error:  # whatever it is, the others go on
        traceback.print_exc()
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
    pipe.send(reason)


class Runner:
    """One trainer in its process."""

    def __init__(self, case: Case, name: str, seed: int, seconds: float, checkout: Path | None, folder: Path):
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        (folder / name).mkdir()
        arguments = (case, name, seed, seconds, checkout, theirs, folder / name / "output.txt")
        self._process = context.Process(target=run, args=arguments, daemon=True)
        self._process.start()
        theirs.close()

    def chunk(self) -> Chunk | str:
        """Waits for the chunk that is running; a text says why there is none."""
        if not self._pipe.poll(PATIENCE):
            return f"nothing within {PATIENCE:.0f} s"
        try:
            found: Chunk | str = self._pipe.recv()
        except EOFError:
            return "its process died"
        return found

    def go_on(self) -> None:
        self._pipe.send(True)

    def stop(self) -> None:
        self._process.kill()
        self._process.join()


def missing(checkout: Path | None) -> dict[str, str]:
    """Peers that are not here, and why."""
    absent = {} if checkout is not None else {"cleanrl": "no --cleanrl"}
    for name, module in MODULES.items():
        # Asked in another process: torch and JAX stay out of this one, which only waits.
        done = subprocess.run([sys.executable, "-c", f"import {module}"], capture_output=True, text=True)
        if done.returncode:
            absent[name] = done.stderr.strip().splitlines()[-1]
    return absent


def measure(
    case: Case, *, rounds: int, seconds: float, checkout: Path | None, absent: Mapping[str, str]
) -> dict[str, Any]:
    """Every trainer's speeds, and its speed below fastac's of the same round."""
    names = [name for name in [*trainers(case, checkout), *limits(case)] if name not in absent]
    chunks: dict[str, list[Chunk]] = {name: [] for name in names}
    failed: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        runners: dict[str, Runner] = {}
        try:
            for number in range(rounds + 1):
                for name in names:
                    if name in failed:
                        continue
                    if number == 0:
                        runners[name] = Runner(case, name, number, seconds, checkout, Path(folder))
                    else:
                        runners[name].go_on()
                    chunk = runners[name].chunk()
                    if isinstance(chunk, str):
                        failed[name] = chunk
                        print(f"{case.name} {name}: {chunk}", flush=True)
                    elif number > 0:
                        chunks[name].append(chunk)
                names.append(names.pop(0))
        finally:
            for runner in runners.values():
                runner.stop()
    result: dict[str, Any] = {
        "case": case.name,
        "title": case.title,
        "algorithm": case.algorithm,
        "env_id": case.env_id,
        "hyperparameters": case.hyperparameters,
        "contenders": summarise({name: found for name, found in chunks.items() if name not in failed}),
        "failed": failed,
        "fastac_commit": record.commit(),
    }
    if case.algorithm == "sac":
        result["floating_point_operations_an_update"] = floating_point_operations(case)
    return result


def summarise(chunks: Mapping[str, list[Chunk]]) -> dict[str, dict[str, Any]]:
    """Median steps per CPU-second and every round's; the median over rounds of fastac's speed over each one's."""
    speeds = {name: [chunk.steps / chunk.cpu_seconds for chunk in found] for name, found in chunks.items()}
    own = speeds.get("fastac")
    summary = {}
    for name, rounds in speeds.items():
        summary[name] = {
            "steps_per_cpu_second": round(statistics.median(rounds), 1),
            "rounds": [round(speed, 1) for speed in rounds],
            "cpu_over_wall": round(statistics.median(c.cpu_seconds / c.wall_seconds for c in chunks[name]), 3),
        }
        if own is not None:
            ratios = [ours / theirs for ours, theirs in zip(own, rounds, strict=True)]
            summary[name]["fastac_over"] = round(statistics.median(ratios), 3)
    return summary


def shown(result: Mapping[str, Any]) -> str:
    speeds = "  ".join(
        f"{name} {entry['steps_per_cpu_second']:,.0f} ({entry.get('fastac_over', 1.0):.2f}x)"
        for name, entry in result["contenders"].items()
    )
    return f"{result['title']}, steps per CPU-second: {speeds}"


PARTS: dict[str, Callable[[float], dict[str, Any]]] = {
    "minibatch": training_parts.minibatch,
    "acting": training_parts.acting,
}
NAMES = (*(case.name for case in CASES), *PARTS, "solved")


def main(rounds: int, seconds: float, only: str | None, checkout: Path | None) -> int:
    wanted = [name for name in NAMES if only is None or only in name]
    if not wanted:
        sys.stderr.write(f"--only {only}: expected a part of one of {', '.join(NAMES)}\n")
        return 2
    if checkout is not None and not (checkout / "cleanrl" / "ppo.py").exists():
        sys.stderr.write(f"--cleanrl {checkout}: no cleanrl/ppo.py there, expected a checkout of CleanRL\n")
        return 2
    checkout = None if checkout is None else checkout.resolve()
    absent = missing(checkout)
    for name, reason in absent.items():
        print(f"missing: {name} ({reason})", flush=True)
    path = record.RESULTS / "training.json"
    before = record.read(path) if path.exists() else {}
    results: dict[str, Any] = {row["case"]: row for row in before.get("results", ())}
    for case in CASES:
        if case.name in wanted:
            results[case.name] = measure(case, rounds=rounds, seconds=seconds, checkout=checkout, absent=absent)
            print(shown(results[case.name]), flush=True)
    parts: dict[str, Any] = dict(before.get("parts", {}))
    for name, part in PARTS.items():
        if name in wanted:
            parts[name] = part(seconds) | {"fastac_commit": record.commit()}
            print(training_parts.shown(name, parts[name]), flush=True)
    if "solved" in wanted:
        parts["solved"] = training_solved.measure(rounds) | {"fastac_commit": record.commit()}
        print(training_solved.shown(parts["solved"]), flush=True)
    record.write(
        path,
        {
            "command": command(rounds, seconds, only, checkout),
            "machine": record.machine(),
            "method": "one process each, in turn, a chunk of a training that goes on; the first chunk (imports,"
            " compiling, at least one update) not counted; CPU time of all threads; median over rounds of fastac's"
            " speed over each one's",
            "missing": absent,
            "cleanrl_commit": None if checkout is None else commit(checkout),
            "cleanrl_edits": CLEANRL_EDITS,
            "notes": NOTES,
            "results": [results[case.name] for case in CASES if case.name in results],
            "parts": parts,
        },
    )
    return 0


def command(rounds: int, seconds: float, only: str | None, checkout: Path | None) -> str:
    options = [f"--rounds {rounds} --seconds {seconds:g}"]
    options += [f"--only {only}"] * (only is not None) + ["--cleanrl PATH"] * (checkout is not None)
    return f"python -m bench training {' '.join(options)}"


def commit(checkout: Path) -> str | None:
    """Of the checkout, where it is a clone."""
    done = subprocess.run(["git", "-C", str(checkout), "rev-parse", "HEAD"], capture_output=True, text=True)
    return done.stdout.strip() or None
