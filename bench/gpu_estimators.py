"""The estimators on a GPU: time per call, and how much of the copy's bandwidth; GAE beside its peers."""

from typing import Any

import numpy as np
import torch

import fastac
from bench.gpu_peers import GAMMA, LAMBDA, contenders
from bench.gpu_timing import compiled, failure, measure

SHAPES = ((128, 4096), (512, 16384), (16, 65536), (131072, 256), (1024, 1024))
TOKENS = (256, 4096)
OPTIONS: dict[str, dict[str, Any]] = {
    "gae": {"gamma": GAMMA, "gae_lambda": LAMBDA},
    "discounted_returns": {"gamma": GAMMA},
    "n_step_returns": {"n": 5, "gamma": GAMMA},
    "lambda_returns": {"gamma": GAMMA, "td_lambda": LAMBDA},
    "vtrace": {"gamma": GAMMA, "trace_lambda": LAMBDA},
    "retrace": {"gamma": GAMMA, "trace_lambda": LAMBDA},
}
# Bytes an element that are read and written, float32; next values short but in Retrace.
BYTES = {"gae": 17, "discounted_returns": 9, "n_step_returns": 13, "lambda_returns": 13, "vtrace": 21, "retrace": 21}


def arguments(name: str, shape: tuple[int, ...], seed: int = 0) -> dict[str, np.ndarray]:
    """One call's arrays."""
    rng = np.random.default_rng(seed)

    def numbers(scale: float = 1.0, size: tuple[int, ...] = shape) -> np.ndarray:
        return (scale * rng.standard_normal(size, np.float32)).astype(np.float32)

    found = {"rewards": numbers(), "terminated": rng.random(shape, np.float32) < 0.01}
    found["next_values"] = numbers(size=shape if name == "retrace" else shape[1:])
    if name in ("vtrace", "retrace"):
        found["log_ratios"] = numbers(0.2)
    if name != "discounted_returns":
        found["q_values" if name == "retrace" else "values"] = numbers()
    return found


def on(device: torch.device, given: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {key: torch.from_numpy(x).to(device) for key, x in given.items()}


def as_tuple(result: Any) -> tuple[Any, ...]:
    return tuple(result) if isinstance(result, tuple) else (result,)


def error(results: Any, expected: Any) -> float:
    """The largest absolute difference over the largest magnitude."""
    worst = 0.0
    for result, wanted in zip(as_tuple(results), as_tuple(expected), strict=True):
        found, known = result.cpu().double().numpy(), np.asarray(wanted, np.float64)
        worst = max(worst, float(np.abs(found - known).max() / max(np.abs(known).max(), 1e-30)))
    return worst


def with_fraction(times: dict[str, Any], size: int, bandwidth: float) -> dict[str, Any]:
    """Adds the share of the copy's bandwidth, by the device's own time where that is known."""
    best = times.get("device_us", times.get("call_us"))
    return times if best is None else times | {"fraction": round(size / (best * 1e-6) / bandwidth, 4)}


def ours(device: torch.device, shapes: Any, bandwidth: float, seconds: float) -> list[dict[str, Any]]:
    """Every estimator at every shape."""
    rows = []
    for shape in shapes:
        for name, options in OPTIONS.items():
            given = arguments(name, shape)
            there, function = on(device, given), getattr(fastac, name)
            row: dict[str, Any] = {"estimator": name, "shape": list(shape)}
            try:
                row["error_against_cpu"] = error(function(**there, **options), function(**given, **options))
            except Exception as problem:
                rows.append(row | failure(problem))
                continue
            times = measure({"fastac": lambda f=function, a=there, o=options: f(**a, **o)}, device, seconds=seconds)
            rows.append(row | with_fraction(times["fastac"], BYTES[name] * shape[0] * shape[1], bandwidth))
    return rows


def against_peers(
    device: torch.device,
    shapes: Any,
    bandwidth: float,
    seconds: float,
    backend: str | None,
    *,
    late: Any = None,
    peers: Any = contenders,
) -> list[dict[str, Any]]:
    """GAE beside its peers, each checked against the CPU's kernel first."""
    rows = []
    for shape in shapes:
        if late is not None and late():
            rows.append({"shape": list(shape), "error": "left out: the time was up"})
            continue
        given = arguments("gae", shape)
        there = on(device, given)
        expected = fastac.gae(**given, **OPTIONS["gae"])
        positions = [there[name] for name in ("rewards", "values", "next_values", "terminated")]
        calls: dict[str, Any] = {"fastac": lambda a=there: fastac.gae(**a, **OPTIONS["gae"])}
        results: dict[str, Any] = {}
        for name, peer in peers(shape[0], device, backend).items():
            if isinstance(peer, str):
                results[name] = {"error": peer}
                continue
            try:
                wrong = error(peer(*positions), expected)
                results[name] = {"error_against_cpu": wrong}
                if wrong < 1e-3:
                    calls[name] = lambda f=peer, p=positions: f(*p)
                else:
                    results[name]["error"] = "another result"
            except Exception as problem:
                results[name] = failure(problem)
        size = BYTES["gae"] * shape[0] * shape[1]
        for name, times in measure(calls, device, seconds=seconds).items():
            results[name] = results.get(name, {}) | with_fraction(times, size, bandwidth)
        rows.append({"shape": list(shape), "results": results})
        torch._dynamo.reset()
    return rows


def tokens(device: torch.device, shape: tuple[int, int], bandwidth: float, seconds: float) -> list[dict[str, Any]]:
    """Masked GAE over `(sequences, tokens)`, and the same tokens packed."""
    sequences, longest = shape
    rng = np.random.default_rng(0)
    lengths = rng.integers(longest // 4, longest + 1, sequences)
    given = arguments("gae", (longest, sequences))
    padded = {key: np.ascontiguousarray(x.T) for key, x in given.items()}
    padded["mask"] = np.arange(longest) < lengths[:, None]
    inside = padded["mask"]
    packed = {key: x[inside] for key, x in padded.items() if key not in ("mask", "next_values")}
    packed |= {"next_values": given["next_values"], "cu_seqlens": np.concatenate([[0], lengths.cumsum()])}
    rows = []
    for form, arrays, count, more in (
        ("masked, batch first", padded, sequences * longest, {"batch_first": True}),
        ("packed", packed, int(lengths.sum()), {}),
    ):
        there, options = on(device, arrays), OPTIONS["gae"] | more
        row: dict[str, Any] = {"form": form, "sequences": sequences, "longest": longest, "elements": count}
        try:
            row["error_against_cpu"] = error(fastac.gae(**there, **options), fastac.gae(**arrays, **options))
            times = measure({"fastac": lambda a=there, o=options: fastac.gae(**a, **o)}, device, seconds=seconds)
            row |= with_fraction(times["fastac"], (18 if form != "packed" else 17) * count, bandwidth)
        except Exception as problem:
            row |= failure(problem)
        rows.append(row)
    return rows


def loss(device: torch.device, size: int, bandwidth: float, seconds: float, backend: str | None) -> dict[str, Any]:
    """PPO's clipped loss with its gradient: ours, torch's operations, and those compiled."""
    generator = torch.Generator().manual_seed(0)
    new, old, advantages = ((0.1 * torch.randn(size, generator=generator)).to(device) for _ in range(3))

    def plain(new: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        leaf = new.detach().requires_grad_()
        ratio = (leaf - old).exp()
        total = -torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages).mean()
        return total.detach(), torch.autograd.grad(total, leaf)[0]

    def direct(new: torch.Tensor) -> torch.Tensor:
        return fastac.ppo_clip_loss(new, old, advantages, clip_coef=0.2).gradient

    through = compiled(plain, backend)
    calls = {"fastac": lambda: direct(new), "torch": lambda: plain(new), "torch.compile": lambda: through(new)}
    found = measure(calls, device, seconds=seconds)
    difference = float((direct(new) - plain(new)[1]).abs().max() * size)
    results = {name: with_fraction(times, 16 * size, bandwidth) for name, times in found.items()}
    return {"elements": size, "difference": difference, "results": results}
