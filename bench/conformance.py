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
)
OURS = ("gae", "discounted_returns", "n_step_returns", "lambda_returns", "vtrace")


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
        "results": results,
    }


def main() -> None:
    result = run()
    record.write(record.RESULTS / "conformance.json", result)
    for row in result["results"]:
        wrong = "".join(f"\n    {name}: {detail}" for name, detail in row["wrong"].items())
        counts = f"{len(row['right'])} right, {len(row['wrong'])} wrong, {len(row['cannot_say'])} cannot say"
        sys.stdout.write(f"{row['title']}: {counts}{wrong}\n")
