"""The tables and figures of the README and of docs, written from the recorded results and from nothing else.

A table goes between `<!-- bench:NAME -->` and `<!-- /bench:NAME -->`, one pair for each name in `TABLES`, on one page.
`python -m bench report` rewrites them; `--check` says whether anything would change.
"""

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench import record
from bench.tables import TITLES, ReportError, Results, footnote, microseconds, need, peer_time, table, times

README = record.ROOT / "README.md"
PAGES = (README, *sorted((record.ROOT / "docs").glob("*.md")))
PEERS = ("rlax", "tianshou", "rlox", "sb3", "torchrl", "scipy")
SETTING_TITLES = {
    "cleanrl": "CleanRL's classic",
    "cleanrl-unclipped": "the same, values not clipped",
    "zoo": "RL Zoo's CartPole",
    "a2c-zoo": "A2C, RL Zoo's CartPole",
    "sac-zoo": "SAC, RL Zoo's Pendulum",
}
OPTIONAL_SETTINGS = ("cleanrl-unclipped", "a2c-zoo", "sac-zoo")


def load(folder: Path = record.RESULTS) -> dict[str, dict[str, Any]]:
    """All recorded results by name; those of learning as `learning/LIBRARY-SETTING`."""
    return {path.relative_to(folder).with_suffix("").as_posix(): record.read(path) for path in folder.rglob("*.json")}


def estimator_table(result: dict[str, Any], estimator: str, form: str, n: int = 5) -> str:
    """One row a shape: fastac's time, its share of the limit, each peer's time and how many times fastac's it is."""
    wanted = (estimator, form, n)
    cases = [case for case in result["results"] if (case["estimator"], case["form"], case.get("n", 5)) == wanted]
    peers = [p for p in PEERS if any(peer_time(case["contenders"], p) for case in cases)]
    rows = []
    for case in cases:
        contenders = case["contenders"]
        entries = {peer: peer_time(contenders, peer) for peer in peers}
        best = min((e["median_ns"] for e in entries.values() if e), default=None)
        row = [
            f"{case['T']} x {case['N']}",
            microseconds(contenders["fastac"]["median_ns"]),
            f"{contenders['fastac']['median_ns'] / (case['T'] * case['N']):.2f}",
            f"{contenders['limit']['over_fastac']:.2f}",
        ]
        for entry in entries.values():
            cell = f"{microseconds(entry['median_ns'])} ({times(entry['over_fastac'])})" if entry else "-"
            row.append(f"**{cell}**" if entry and entry["median_ns"] == best else cell)
        rows.append(row)
    header = ["T x N", "fastac, us", "ns an element", "of the limit", *(f"{TITLES.get(p, p)}, us" for p in peers)]
    return table(header, rows)


def gae(results: Results) -> str:
    result = need(results, "gae")
    return "\n\n".join(
        [
            "GAE, float32, NumPy with `out=`; a next value for each environment and `terminated`:",
            estimator_table(result, "gae", "short"),
            "A next value for each row, `terminated` and `truncated` (rlax, rlox and SB3 have no such form):",
            estimator_table(result, "gae", "full"),
            footnote(
                result,
                "numba jax rlax tianshou rlox torch torchrl stable-baselines3",
                also=" Median CPU times of interleaved rounds; in brackets the median over rounds of the peer's time"
                " over fastac's; bold: the fastest peer. *Of the limit*: the time to stream the same bytes over"
                " fastac's. rlax and tianshou give advantages alone.",
            ),
        ]
    )


def returns(results: Results) -> str:
    result = need(results, "returns")
    said = any("n" in case for case in result["results"])  # results before n = 3 was measured do not say it
    parts = []
    for estimator in ("discounted_returns", "n_step_returns", "lambda_returns"):
        for n in sorted({case.get("n", 5) for case in result["results"] if case["estimator"] == estimator}):
            steps = f", n = {n}" if estimator == "n_step_returns" and said else ""
            parts += [f"`{estimator}`{steps}, a next value for each environment:"]
            parts += [estimator_table(result, estimator, "short", n)]
    return "\n\n".join(
        [
            *parts,
            footnote(
                result,
                "numba jax rlax tianshou torch torchrl scipy",
                also=f"{'' if said else ' n = 5.'} SciPy's filter knows no episode's end.",
            ),
        ]
    )


def traces(results: Results) -> str:
    result = need(results, "traces")
    return "\n\n".join(
        [
            "`vtrace`, a next value for each environment:",
            estimator_table(result, "vtrace", "short"),
            "`retrace`, a next value for each row, `terminated` alone:",
            estimator_table(result, "retrace", "short"),
            footnote(
                result,
                "numba jax rlax torch torchrl",
                also=" Everyone is given logarithms of the ratios. rlax returns targets minus values.",
            ),
        ]
    )


def tokens(results: Results) -> str:
    result = need(results, "tokens")
    rows = []
    for case in result["results"]:
        contenders = case["contenders"]
        cells = [
            f"{contenders[name]['median_ns'] / 1e6:.2f} ({times(contenders[name]['over_fastac'])})"
            if name in contenders
            else (f"failed: {case['failed'][name]}" if name in case["failed"] else case["not_offered"].get(name, "-"))
            for name in ("fastac_tensors", "trl", "verl")
        ]
        own, share = contenders["fastac"]["median_ns"] / 1e6, contenders["limit"]["over_fastac"]
        title = f"{case['kind']}, {case['valid']:.0%} valid" + (", whitened" if case["whiten"] else "")
        rows.append([title, f"{own:.2f}", f"{share:.2f}", *cells])
    first = result["results"][0]
    lead = f"GAE over {first['B']} masked sequences of {first['T']} tokens, float32, batch-major, milliseconds:"
    header = ["mask", "fastac, NumPy `out=`", "of the limit", "fastac, tensors", "TRL's loop", "verl"]
    note = footnote(
        result,
        "numba torch trl verl",
        also=" In brackets the time over fastac's on arrays. TRL and verl: their own text, taken out of the installed"
        " packages. The limit streams what GAE reads and writes; whitening goes over it twice more.",
    )
    return "\n\n".join([lead, table(header, rows), note])


def ratio(results: Results) -> str:
    from bench import ratio as suite

    return suite.page(need(results, "ratio"))


def overhead(results: Results) -> str:
    result = need(results, "overhead")
    calls, first, imports = result["calls"], result["first_call_seconds"], result["import_seconds"]
    kinds = {
        "numpy_out": "NumPy, `out=`",
        "numpy": "NumPy",
        "tensor_out": "tensors, `out=`",
        "tensor": "tensors",
    }
    rows = [[f"`gae` at 128 x 8, {title}", f"{calls[kind]['median_ns'] / 1e3:.2f} us"] for kind, title in kinds.items()]
    rows.append(["`import fastac` (NumPy and Numba included)", f"{imports['fastac']:.2f} s"])
    for name, seconds in first.items():
        rows.append([f"first GAE call of a process, {name}", f"{seconds['first']:.2f} s"])
        if name == "fastac":
            rows.append(["the same with cached machine code", f"{seconds['again'] * 1e3:.0f} ms"])
    note = footnote(result, "numba jax rlax tianshou torch", also=" CPU time.")
    return table(["", "time"], rows) + "\n\n" + note


def training(results: Results) -> str:
    result = need(results, "training")
    from bench import report_training

    return report_training.page(result)


def learning(results: Results) -> str:
    from fastac.evaluate import bootstrap_interval, interquartile_mean

    rows, shown = [], None
    for setting, title in SETTING_TITLES.items():
        if setting in OPTIONAL_SETTINGS and f"learning/sb3-{setting}" not in results:
            continue
        for library in ("fastac", "sb3"):
            name = f"learning/{library}-{setting}"
            result = need(results, name)
            shown = shown or result
            means = [run["mean_return"] for run in result["runs"]]
            low, high = bootstrap_interval(means, interquartile_mean)
            rows.append(
                [
                    f"{title}, {result['runs'][0]['steps']:,} steps",
                    TITLES.get(library, library),
                    f"{interquartile_mean(means):.1f} [{low:.1f}, {high:.1f}]",
                    f"{sum(means) / len(means):.1f}",
                    f"{min(means):.1f}",
                    str(len(means)),
                ]
            )
    assert shown is not None
    others = any(f"learning/sb3-{name}" in results for name in OPTIONAL_SETTINGS[1:])
    lead = f"PPO on {shown['env_id']}{', where nothing else is said' if others else ''}; {shown['evaluation']}."
    header = ["hyperparameters", "", "interquartile mean [95 %]", "mean", "worst seed", "seeds"]
    versions = need(results, "learning/sb3-cleanrl")["runs"][0]["versions"]
    note = (
        f"<sub>Intervals: bootstrap over seeds. torch {versions['torch']}, stable-baselines3 "
        f"{versions['stable-baselines3']}, Gymnasium {versions['gymnasium']}; "
        "`python -m bench learning --library fastac --setting cleanrl`, and so on.</sub>"
    )
    return "\n\n".join([lead, table(header, rows), note])


def ladder(results: Results) -> str:
    result = need(results, "ladder")
    rows = []
    for entry in result["results"]:
        means = [run["mean_return"] for run in entry["runs"]]
        low, high = entry["interval"]
        wanted = entry["wanted"]
        rows.append(
            [
                f"{entry['name']} (`{entry['label']}`)",
                entry["env_id"],
                f"{entry['total_timesteps']:,}",
                str(len(means)),
                f"{entry['interquartile_mean']:.1f} [{low:.1f}, {high:.1f}]",
                f"{sorted(means)[len(means) // 2]:.1f}",
                f"{min(means):.1f}",
                "-" if wanted is None else f"{wanted:g} ({entry['statistic']})",
            ]
        )
    first = result["results"][0]
    versions = first["versions"]
    header = ["", "", "steps", "seeds", "interquartile mean [95 %]", "median", "worst seed", "wanted"]
    note = (
        f"<sub>Seeds from 0 on; {first['evaluation']}. Intervals: bootstrap over seeds. torch {versions['torch']}, "
        f"Gymnasium {versions['gymnasium']}; `python -m bench ladder`.</sub>"
    )
    return "\n\n".join([table(header, rows), note])


REPLAY_PEERS = ("cpprb", "rlox", "sb3", "tianshou", "torchrl", "flashbax")
REPLAY_KINDS = {
    "plain": "",
    "n_step": "3 steps, ",
    "prioritized": "prioritized, ",
    "frames": "84 x 84 x 4 uint8, ",
    "sequences": "32 windows of 64, ",
    "tiny": "32 windows of 64, rows of 32 bytes, ",
}


def replay_row(result: dict[str, Any]) -> list[str]:
    """Nanoseconds per transition: fastac's three forms, each peer, and random rows of the same bytes."""
    contenders, count = result["contenders"], result["transitions"]
    kind, envs, rows = result["kind"], result["num_envs"], result["capacity"]
    what = REPLAY_KINDS[kind] + (result["operation"] if kind not in ("sequences", "tiny") else f"of {rows:,} rows")
    if kind == "plain" and envs > 1 and not result["operation"].startswith("add"):
        what += f" of {envs} environments"

    def cell(name: str) -> str:
        if name in result["failed"]:
            return "fails"
        if name not in contenders:
            return "-"
        value = contenders[name]["median_ns"] / count
        text = f"{value:,.0f}" if value >= 20 else f"{value:.1f}"
        return text + "†" * (name in result["wrong_ends"])

    cells = {name: cell(name) for name in REPLAY_PEERS}
    there = [name for name in REPLAY_PEERS if name in contenders]
    if there:
        best = min(there, key=lambda name: contenders[name]["median_ns"])
        cells[best] = f"**{cells[best]}**"
    limit = "limit_streamed" if "limit_gathered" not in contenders else "limit_gathered"
    own = [cell(name) for name in ("fastac_out", "fastac", "fastac_tensors")]
    return [what, *own, *cells.values(), cell(limit)]


def replay(results: Results) -> str:
    result = need(results, "replay")
    header = ["ns a transition", "fastac, `out=`", "arrays", "tensors"]
    header += [*(TITLES.get(name, name) for name in REPLAY_PEERS), "limit"]
    memory = result["memory"]
    sizes = {name: f"{size:,.0f}" for name, size in memory["bytes_per_transition"].items()}
    titles = {"sb3": "SB3", "sb3_optimized": "SB3, `optimize_memory_usage`"}
    wrong = {name: why for row in result["results"] for name, why in row["wrong_ends"].items()}
    failed = {name: why for row in result["results"] for name, why in row["failed"].items()}
    notes = [f"{TITLES.get(name, name)} {why}" for name, why in wrong.items()]
    fails = [f"{TITLES.get(name, name)} fails where the table says so: {why}" for name, why in failed.items()]
    capacity = next(row["capacity"] for row in result["results"] if row["kind"] == "frames")
    return "\n\n".join(
        [
            table(header, [replay_row(row) for row in result["results"]]),
            "Bytes per transition of a buffer of Atari's stacked frames (84 x 84 x 4), as allocated:",
            table(
                ["", "bytes"],
                [[titles.get(name, name), size] for name, size in sizes.items()]
                + [["least: one frame, action, reward, flags", f"{memory['least']:,}"]],
            ),
            footnote(
                result,
                "numba cpprb rlox stable-baselines3 tianshou torchrl flashbax jax torch",
                also=" Observations of 17 and actions of 6 floats, full buffers of 1,000,000 transitions (images:"
                f" {capacity:,}); median CPU times of interleaved rounds; bold: the fastest peer. *Limit*: the same"
                " bytes gathered from random rows in compiled code (adding: streamed). Tensors: those of SB3 and"
                " TorchRL, too; flashbax is jitted on the CPU. cpprb computes n-step targets at insertion. Every batch"
                f" was held against what was added; † wrong at an episode's end: {'; '.join(notes)}. "
                + "".join(f"{text}. " for text in fails)
                + f"Bytes: at {memory['capacity']:,} transitions.",
            ),
        ]
    )


def conformance(results: Results) -> str:
    from bench import conformance as suite

    return suite.page(need(results, "conformance"))


def doors(results: Results) -> str:
    from bench import doors as suite

    return suite.page(need(results, "doors"))


TABLES: dict[str, Callable[[Results], str]] = {
    "gae": gae,
    "returns": returns,
    "traces": traces,
    "tokens": tokens,
    "ratio": ratio,
    "replay": replay,
    "ladder": ladder,
    "overhead": overhead,
    "training": training,
    "learning": learning,
    "conformance": conformance,
    "doors": doors,
}


def fill(text: str, results: Results) -> str:
    """A page with every marked table written anew.

    Raises:
        ReportError: One of a pair of markers or a result is missing, a pair is there twice, or its name is unknown.
    """
    for name in dict.fromkeys(re.findall(r"<!-- /?bench:(\w+) -->", text)):
        if name not in TABLES:
            raise ReportError(f"<!-- bench:{name} -->: no such table, expected one of {', '.join(TABLES)}")
        start, end = f"<!-- bench:{name} -->", f"<!-- /bench:{name} -->"
        if text.count(start) != 1 or text.count(end) != 1 or text.index(start) > text.index(end):
            raise ReportError(f"expected `{start}` once, and `{end}` once after it")
        head, rest = text.split(start)
        tail = rest.split(end)[1]
        text = f"{head}{start}\n\n{TABLES[name](results)}\n\n{end}{tail}"
    return text


def main(*, check: bool = False, pages: Sequence[Path] = PAGES, folder: Path = record.RESULTS) -> int:
    """Write the pages' tables and the figures; with `check` only compare. Returns the exit code."""
    from bench import figure

    try:
        results = load(folder)
        before = {page: page.read_text(encoding="utf-8") for page in pages}
        missing = [name for name in TABLES if not any(f"<!-- bench:{name} -->" in text for text in before.values())]
        if missing:
            raise ReportError(f"no page has a place for {', '.join(missing)}: <!-- bench:{missing[0]} -->")
        after = {page: fill(text, results) for page, text in before.items()}
        if check:
            stale = [page.name for page in pages if before[page] != after[page]] + figure.stale(results)
            if stale:
                sys.stderr.write(f"out of date: {', '.join(stale)}; run `python -m bench report`\n")
            return int(bool(stale))
        figure.draw(results)
        for page, text in after.items():
            page.write_text(text, encoding="utf-8")
    except (ReportError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0
