"""The interleaved runner over estimators, forms and shapes; its JSON is what the README's table is made from."""

import itertools
import warnings
from collections.abc import Callable
from typing import Any

from bench import contenders, record, timing
from bench.cases import FORMS, N_STEPS, SHAPES, Case, make_case

PLACEMENTS = 3  # arrays are laid out anew so often: where they lie in memory moves a short call by a third
COMMANDS = {
    "gae": ("gae",),
    "returns": ("discounted_returns", "n_step_returns", "lambda_returns"),
    "traces": ("vtrace", "retrace"),
}


def measure(
    estimator: str, form: Any, shape: tuple[int, int], absent: dict[str, str], seconds: float, n: int = N_STEPS[-1]
) -> dict[str, Any]:
    """Times of everyone who computes this case; who does not, and why, is part of the result."""
    samples: dict[str, list[float]] = {}
    alive = []
    for _ in range(PLACEMENTS):
        case = make_case(estimator, form, shape, n=n)
        calls, not_offered, failed = gather(case, absent)
        alive.append(calls)
        for name, times in timing.interleave(calls, seconds=seconds / PLACEMENTS, rounds=7).items():
            samples.setdefault(name, []).extend(times)
    return {
        "estimator": estimator,
        "form": form,
        **({"n": n} if estimator == "n_step_returns" else {}),
        "T": shape[0],
        "N": shape[1],
        "bytes_per_element": case.bytes_per_element,
        "rounds": len(samples["fastac"]),
        "contenders": timing.summarise(samples, "fastac"),
        "not_offered": not_offered,
        "failed": failed,
    }


def gather(case: Case, absent: dict[str, str]) -> tuple[dict[str, Callable[[], Any]], dict[str, str], dict[str, str]]:
    """Everyone's call, who has none and why, and who failed and how."""
    calls, not_offered, failed = {}, {}, {}
    for name in contenders.names():
        if name in absent:
            continue
        try:
            calls[name] = contenders.build(name, case).call
        except contenders.NotOfferedError as reason:
            not_offered[name] = str(reason)
        except Exception as error:  # a peer that fails is reported and stops nobody else
            if name == "fastac":
                raise
            failed[name] = f"{type(error).__name__}: {error}".splitlines()[0]
    return calls, not_offered, failed


def main(result_name: str, estimators: tuple[str, ...], seconds: float) -> None:
    warnings.filterwarnings("ignore", module="torchrl")
    absent = contenders.missing()
    for name, reason in absent.items():
        print(f"missing: {name} ({reason})", flush=True)
    results = []
    for estimator in estimators:
        for form, n in itertools.product(FORMS, N_STEPS if estimator == "n_step_returns" else N_STEPS[-1:]):
            for shape in SHAPES:
                result = measure(estimator, form, shape, absent, seconds, n)
                results.append(result)
                shown = "  ".join(
                    f"{name} {entry['median_ns'] / 1e3:.2f} us ({entry['over_fastac']:.2f}x)"
                    for name, entry in result["contenders"].items()
                )
                steps = f" n={n}" if "n" in result else ""
                failed = (f"FAILED {name}: {why}" for name, why in result["failed"].items())
                print(f"{estimator}{steps} {form} {shape}: {shown}", *failed, flush=True)
    record.write(
        record.RESULTS / f"{result_name}.json",
        {
            "command": f"python -m bench {result_name}",
            "machine": record.machine(),
            "method": "interleaved rounds; CPU ns per call (median, quartiles); median per-round time over fastac's",
            "missing": absent,
            "results": results,
        },
    )
