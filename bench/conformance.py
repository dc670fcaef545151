"""The conformance suite on the peers: which episode boundaries each gets right, wrong, or cannot express."""

import importlib.util
import sys
from typing import Any

from bench import record

# Title, MODULE:FUNCTION, convention, estimator: the functions that each library's own users and trainers call.
FUNCTIONAL = "torchrl.objectives.value.functional"
TIANSHOU = "tianshou.algorithm.algorithm_base:Algorithm"
PEERS = (
    ("SB3 `RolloutBuffer`", "stable_baselines3.common.buffers:RolloutBuffer", "sb3", "gae"),
    ("TorchRL `generalized_advantage_estimate`", f"{FUNCTIONAL}:generalized_advantage_estimate", "torchrl", "gae"),
    (
        "TorchRL `vec_generalized_advantage_estimate`",
        f"{FUNCTIONAL}:vec_generalized_advantage_estimate",
        "torchrl",
        "gae",
    ),
    ("tianshou `compute_episodic_return`", f"{TIANSHOU}.compute_episodic_return", "tianshou", "gae"),
    (
        "rlax `truncated_generalized_advantage_estimation`",
        "rlax:truncated_generalized_advantage_estimation",
        "rlax",
        "gae",
    ),
    ("rlox `compute_gae_batched`, as its collector calls it", "rlox:compute_gae_batched", "rlox", "gae"),
    ("rlox `compute_gae_batched`, `dones` = either flag", "rlox:compute_gae_batched", "rlox-folded", "gae"),
    ("TorchRL `td1_return_estimate`", f"{FUNCTIONAL}:td1_return_estimate", "torchrl", "discounted_returns"),
    ("TorchRL `vec_td1_return_estimate`", f"{FUNCTIONAL}:vec_td1_return_estimate", "torchrl", "discounted_returns"),
    ("rlax `discounted_returns`", "rlax:discounted_returns", "rlax", "discounted_returns"),
    ("tianshou `compute_nstep_return`", f"{TIANSHOU}.compute_nstep_return", "tianshou", "n_step_returns"),
    ("rlax `n_step_bootstrapped_returns`", "rlax:n_step_bootstrapped_returns", "rlax", "n_step_returns"),
    ("TorchRL `td_lambda_return_estimate`", f"{FUNCTIONAL}:td_lambda_return_estimate", "torchrl", "lambda_returns"),
    (
        "TorchRL `vec_td_lambda_return_estimate`",
        f"{FUNCTIONAL}:vec_td_lambda_return_estimate",
        "torchrl",
        "lambda_returns",
    ),
    ("rlax `lambda_returns`", "rlax:lambda_returns", "rlax", "lambda_returns"),
    ("TorchRL `vtrace_advantage_estimate`", f"{FUNCTIONAL}:vtrace_advantage_estimate", "torchrl", "vtrace"),
    ("rlax `vtrace_td_error_and_advantage`", "rlax:vtrace_td_error_and_advantage", "rlax", "vtrace"),
    ("rlox `compute_vtrace`", "rlox:compute_vtrace", "rlox", "vtrace"),
    ("rlax `retrace_continuous`", "rlax:retrace_continuous", "rlax", "retrace"),
)
PACKAGES = ("stable-baselines3", "torchrl", "tianshou", "rlax", "rlox")
ROLLOUT = 8  # steps of the collector's rollout below
OURS = ("gae", "discounted_returns", "n_step_returns", "lambda_returns", "vtrace", "retrace")


def run() -> dict[str, Any]:
    """Every function against every boundary of its estimator; fastac's own first."""
    import fastac
    from fastac.conformance import check
    from fastac.conformance.command import CommandError, find

    entries = [(f"fastac `{name}`", f"fastac:{name}", "fastac", name) for name in OURS if hasattr(fastac, name)]
    results, missing = [], {}
    for title, path, convention, estimator in (*entries, *PEERS):
        module = path.partition(":")[0].partition(".")[0]
        if importlib.util.find_spec(module) is None:
            missing[module] = "not installed"
            continue
        try:
            function = find(path)
        except CommandError as error:
            missing[title] = str(error)
            continue
        sys.stderr.write(f"{title}\n")
        report = check(function, convention, estimator)
        results.append(
            {
                "title": title,
                "function": path,
                "convention": convention,
                "estimator": estimator,
                "right": [result.scenario.name for result in report.right],
                "wrong": {result.scenario.name: result.detail for result in report.wrong},
                "cannot_say": {result.scenario.name: result.detail for result in report.cannot_say},
            }
        )
    return {
        "command": "python -m bench conformance",
        "machine": record.machine(),
        "missing": missing,
        "rlox_collector": {} if "rlox" in missing else rlox_collector(),
        "results": results,
    }


def rlox_collector() -> dict[str, list[float]]:
    """What rlox's own collector passes on and gets back where time limits strike inside the rollout.

    Reward 1, gamma 1/2 and V = 2 everywhere: each advantage is 0 if a time limit (every third step) bootstraps once.
    """
    import gymnasium as gym
    import numpy as np
    import rlox
    import torch
    from rlox.collectors import RolloutCollector

    class Endless(gym.Env):  # type: ignore[type-arg]
        observation_space = gym.spaces.Box(-1, 1, (1,), np.float32)
        action_space = gym.spaces.Discrete(2)
        steps = 0

        def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
            self.steps = 0
            return np.zeros(1, np.float32), {}

        def step(self, action: Any) -> Any:
            self.steps += 1
            return np.zeros(1, np.float32), 1.0, False, self.steps % 3 == 0, {}

    class Policy(torch.nn.Module):
        def get_action_and_logprob(self, observations: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return torch.zeros(len(observations), dtype=torch.long), torch.zeros(len(observations))

        def get_value(self, observations: torch.Tensor) -> torch.Tensor:
            return torch.full((len(observations),), 2.0)

    gym.register("FastacEndless-v0", Endless)
    seen: dict[str, list[float]] = {}
    real = rlox.compute_gae_batched

    def watched(**arguments: Any) -> Any:
        result = real(**arguments)
        seen.update({name: arguments[name].tolist() for name in ("rewards", "dones")}, advantages=result[0].tolist())
        return result

    rlox.compute_gae_batched = watched
    try:
        RolloutCollector("FastacEndless-v0", n_envs=1, gamma=0.5, gae_lambda=1.0).collect(Policy(), ROLLOUT)
    finally:
        rlox.compute_gae_batched = real
    return seen


def wrong_words(wrong: dict[str, str]) -> str:
    """What goes wrong, in a cell: boundaries, errors raised at some, and how often a NaN spreads."""
    names = [name for name, detail in wrong.items() if not detail.startswith("it raised") and "NaN" not in name]
    cells = ["; ".join(names)] if names else []
    raised: dict[str, list[str]] = {}
    for name, detail in wrong.items():
        if detail.startswith("it raised"):
            raised.setdefault(detail.removeprefix("it raised ").partition(":")[0], []).append(name)
    cells += [f"{error} at {'; '.join(at)}" for error, at in raised.items()]
    spreads = sum("NaN" in name and not detail.startswith("it raised") for name, detail in wrong.items())
    return ". ".join([*cells, *([f"NaN spreads ({spreads})"] if spreads else [])])


def lack_words(cannot_say: dict[str, str]) -> str:
    counts: dict[str, int] = {}
    for detail in cannot_say.values():
        short = detail.partition(":")[0]
        counts[short] = counts.get(short, 0) + 1
    return "; ".join(f"{short} ({count})" for short, count in counts.items())


def page(result: dict[str, Any]) -> str:
    """The README's table: a row a function, those of one estimator together."""
    from fastac.conventions import CONVENTIONS

    titles = {
        "gae": "GAE",
        "discounted_returns": "discounted returns",
        "n_step_returns": "n-step returns",
        "lambda_returns": "lambda returns",
        "vtrace": "V-trace",
        "retrace": "Retrace",
    }
    lines = ["| | right | wrong | wrong at | cannot say |", "| --- | ---: | ---: | --- | --- |"]
    for estimator, title in titles.items():
        lines.append(f"| **{title}** | | | | |")
        for row in result["results"]:
            if row["estimator"] == estimator:
                wrong, lacks = wrong_words(row["wrong"]), lack_words(row["cannot_say"])
                lines.append(f"| {row['title']} | {len(row['right'])} | {len(row['wrong'])} | {wrong} | {lacks} |")
    versions = result["machine"]["versions"]
    named = [f"{name} {versions[name]}" for name in ("torch", "jax") if versions[name]]
    named = [f"{name} {versions[name]}" for name in PACKAGES if versions[name]] + named
    callers = [f"{title}: the caller {CONVENTIONS[name].caller}." for title, name in (("SB3", "sb3"), ("rlax", "rlax"))]
    notes = [*callers, collector_words(result["rlox_collector"])] if result["rlox_collector"] else callers
    absent = f" Missing: {', '.join(result['missing'])}." if result["missing"] else ""
    return "\n".join(lines) + (
        f"\n\n<sub>{', '.join(named)}; {result['machine']['date']}; `{result['command']}`. Each is called as its "
        f"library's own trainer or documentation has it, where the row does not say otherwise. {' '.join(notes)} "
        f"*NaN spreads*: what an ended episode must not read is multiplied by 0 instead of left out; without NaN that "
        f"does no harm. fastac's two boundaries more are layouts of its own.{absent}</sub>"
    )


def collector_words(seen: dict[str, list[float]]) -> str:
    """What was seen of rlox's collector, in a sentence; the numbers decide whether it may be written.

    Raises:
        ReportError: The collector flags time limits: the rlox row of `CONVENTIONS` is out of date.
    """
    from bench.tables import ReportError

    if any(seen["dones"]) or not any(seen["advantages"]):
        raise ReportError("rlox's collector now flags time limits: bring fastac.conventions up to date")
    worst = max(abs(x) for x in seen["advantages"])
    return (
        "rlox's collector was watched in an environment with a time limit every third step: it adds gamma V to the "
        f"reward there but passes `dones` of zeros, so advantages that are all 0 come out as up to {worst:.3g}."
    )


def main() -> None:
    result = run()
    record.write(record.RESULTS / "conformance.json", result)
    for row in result["results"]:
        wrong = "".join(f"\n    {name}: {detail}" for name, detail in row["wrong"].items())
        counts = f"{len(row['right'])} right, {len(row['wrong'])} wrong, {len(row['cannot_say'])} cannot say"
        sys.stdout.write(f"{row['title']}: {counts}{wrong}\n")
