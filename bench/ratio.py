"""PPO's clipped loss with its gradient: fastac's two forms, torch eager and compiled, JAX, and the limit of memory.

Everyone computes the loss and its gradient with respect to the new log probabilities, float32, one core. fastac
computes the three KL estimates, the clip fraction and the mean ratio besides; the others do not, which favours them.
There are two questions, and a peer answers one of them. *Value and gradient*, handed back as arrays: JAX, fastac on
arrays, fastac on tensors. *Into `log_probs.grad`*: fastac's direct form and its autograd node, torch eager and
compiled; torch's own `backward` takes a dozen microseconds of each call.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench import limits, record, timing

SIZES = (64, 2048, 65536, 1 << 20)
CLIP_COEF = 0.2
TOLERANCE = 2e-6
BYTES_PER_ELEMENT = 16  # three arrays are read, the gradient is written
PLACEMENTS = 3
PEERS = {"jax": "jax", "torch_eager": "torch", "torch_compile": "torch"}
TITLES = {
    "fastac": "fastac, direct",
    "fastac_autograd": "fastac, autograd",
    "fastac_numpy": "fastac, NumPy",
    "fastac_tensors": "fastac, tensors",
    "torch_eager": "torch",
    "torch_compile": "`torch.compile`",
    "jax": "JAX `value_and_grad`",
}
# Who answers which question, and fastac's answer that ratios are taken over.
QUESTIONS = {
    "Loss and gradient handed back as arrays": ("fastac_numpy", "fastac_tensors", "jax"),
    "The gradient into `log_probs.grad`, torch's own `backward` included": (
        "fastac", "fastac_autograd", "torch_compile", "torch_eager",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """Log probabilities of actions before and after some steps of a policy, and standardised advantages."""

    log_probs: np.ndarray
    old_log_probs: np.ndarray
    advantages: np.ndarray

    def expected(self) -> tuple[float, np.ndarray]:
        """Loss and gradient in float64."""
        new, old, a = (x.astype(np.float64) for x in (self.log_probs, self.old_log_probs, self.advantages))
        ratio = np.exp(new - old)
        clipped = np.clip(ratio, 1 - CLIP_COEF, 1 + CLIP_COEF)
        slope = np.where(ratio * a <= clipped * a, ratio * a, 0.0)
        return float(-np.minimum(ratio * a, clipped * a).mean()), -slope / a.size


def make_case(size: int) -> Case:
    generator = np.random.default_rng(0)
    old = generator.standard_normal(size) * 0.5 - 1.5
    new = old + 0.15 * generator.standard_normal(size)
    advantages = generator.standard_normal(size)
    return Case(*(x.astype(np.float32) for x in (new, old, advantages)))


@dataclass(frozen=True)
class Contender:
    """`call` is what is timed; `read` gives loss and gradient after a call."""

    call: Callable[[], Any]
    read: Callable[[Any], tuple[Any, Any]] | None


def tensors(case: Case) -> list[Any]:
    import torch

    torch.set_num_threads(1)
    new, old, a = (torch.from_numpy(x.copy()) for x in (case.log_probs, case.old_log_probs, case.advantages))
    return [new.requires_grad_(), old, a]


def fastac_direct(case: Case) -> Contender:
    """The gradient handed to `log_probs.backward`."""
    import fastac

    new, old, a = tensors(case)

    def call() -> Any:
        new.grad = None
        result = fastac.ppo_clip_loss(new.detach(), old, a, clip_coef=CLIP_COEF)
        new.backward(result.gradient)
        return result.loss

    return Contender(call, lambda loss: (loss, new.grad))


def by_autograd(case: Case, loss_of: Callable[..., Any]) -> Contender:
    new, old, a = tensors(case)

    def call() -> Any:
        new.grad = None
        loss = loss_of(new, old, a)
        loss.backward()
        return loss.detach()

    return Contender(call, lambda loss: (loss, new.grad))


def fastac_autograd(case: Case) -> Contender:
    import fastac

    return by_autograd(case, lambda *x: fastac.ppo_clip_loss(*x, clip_coef=CLIP_COEF).loss)


def fastac_numpy(case: Case) -> Contender:
    """Loss and gradient of NumPy arrays; nothing is handed on."""
    import fastac

    arrays = case.log_probs, case.old_log_probs, case.advantages
    return Contender(lambda: fastac.ppo_clip_loss(*arrays, clip_coef=CLIP_COEF), lambda r: (r.loss, r.gradient))


def fastac_tensors(case: Case) -> Contender:
    """Loss and gradient of tensors; nothing is handed on."""
    import fastac

    new, old, a = tensors(case)
    new = new.detach()
    return Contender(lambda: fastac.ppo_clip_loss(new, old, a, clip_coef=CLIP_COEF), lambda r: (r.loss, r.gradient))


def surrogate(new: Any, old: Any, a: Any) -> Any:
    """The loss as CleanRL writes it."""
    import torch

    ratio = (new - old).exp()
    return torch.max(-a * ratio, -a * torch.clamp(ratio, 1 - CLIP_COEF, 1 + CLIP_COEF)).mean()


def torch_eager(case: Case) -> Contender:
    return by_autograd(case, surrogate)


@functools.cache
def compiled_surrogate() -> Any:
    import torch

    return torch.compile(surrogate, fullgraph=True, dynamic=False)


def torch_compile(case: Case) -> Contender:
    return by_autograd(case, compiled_surrogate())


def jax_jit(case: Case) -> Contender:
    """`jit(value_and_grad)` of device arrays, dispatched synchronously, which is fastest here."""
    import jax

    jax.config.update("jax_cpu_enable_async_dispatch", False)

    def loss(new: Any, old: Any, a: Any) -> Any:
        ratio = jax.numpy.exp(new - old)
        return -jax.numpy.minimum(ratio * a, jax.numpy.clip(ratio, 1 - CLIP_COEF, 1 + CLIP_COEF) * a).mean()

    arrays = [jax.numpy.asarray(x) for x in (case.log_probs, case.old_log_probs, case.advantages)]
    compiled = jax.jit(jax.value_and_grad(loss))
    return Contender(lambda: jax.block_until_ready(compiled(*arrays)), lambda result: result)


def limit(case: Case) -> Contender:
    target = np.zeros_like(case.log_probs)
    no_flags = np.zeros(8, np.uint8)
    extras = [case.old_log_probs, case.advantages]
    return Contender(limits.limit([case.log_probs], [target], extras, [no_flags]), None)


CONTENDERS: dict[str, Callable[[Case], Contender]] = {
    "fastac": fastac_direct,
    "fastac_autograd": fastac_autograd,
    "fastac_numpy": fastac_numpy,
    "fastac_tensors": fastac_tensors,
    "torch_eager": torch_eager,
    "torch_compile": torch_compile,
    "jax": jax_jit,
    "limit": limit,
}


def build(name: str, case: Case) -> Callable[[], Any]:
    """The call, after it has computed the right numbers.

    Raises:
        ArithmeticError: It computes something else.
    """
    made = CONTENDERS[name](case)
    if made.read is not None:
        loss, gradient = made.read(made.call())
        expected_loss, expected = case.expected()
        scale = float(np.abs(case.advantages).mean())
        # At the edge of the clip float32 and float64 may decide differently.
        ratio = np.exp(case.log_probs.astype(np.float64) - case.old_log_probs)
        inside = np.abs(np.abs(ratio - 1) - CLIP_COEF) > 1e-6
        errors = np.abs(np.asarray(gradient) - expected)[inside] / np.abs(expected).max()
        worst = max(float(errors.max()), abs(float(loss) - expected_loss) / scale)
        if not worst < TOLERANCE:
            raise ArithmeticError(f"{name} differs from float64 by {worst:.1e}")
    return made.call


def measure(size: int, seconds: float) -> dict[str, Any]:
    """Times of everyone at this size; who failed, and how, is part of the result."""
    samples: dict[str, list[float]] = {}
    failed: dict[str, str] = {}
    alive = []
    for _ in range(PLACEMENTS):
        case, calls = make_case(size), {}
        for name in CONTENDERS:
            try:
                calls[name] = build(name, case)
            except Exception as error:  # a peer that fails is reported and stops nobody else
                if name not in PEERS:
                    raise
                failed[name] = f"{type(error).__name__}: {error}".splitlines()[0]
        alive.append(calls)
        for name, times in timing.interleave(calls, seconds=seconds / PLACEMENTS, rounds=7).items():
            samples.setdefault(name, []).extend(times)
    return {
        "size": size,
        "bytes_per_element": BYTES_PER_ELEMENT,
        "rounds": len(samples["fastac"]),
        "contenders": timing.summarise(samples, "fastac"),
        "failed": failed,
    }


def main(seconds: float) -> None:
    results = []
    for size in SIZES:
        result = measure(size, seconds)
        results.append(result)
        shown = "  ".join(
            f"{name} {entry['median_ns'] / 1e3:.1f} us ({entry['over_fastac']:.2f}x)"
            for name, entry in result["contenders"].items()
        )
        print(f"{size}: {shown}", *(f"FAILED {name}: {why}" for name, why in result["failed"].items()), flush=True)
    record.write(
        record.RESULTS / "ratio.json",
        {
            "command": "python -m bench ratio",
            "machine": record.machine(),
            "method": "interleaved rounds; CPU ns per call (median, quartiles); median per-round time over the direct"
            " form's; loss and gradient, float32",
            "results": results,
        },
    )


def page(result: dict[str, Any]) -> str:
    """Markdown: a table for each question, times of the first column's contender in brackets."""
    from bench.tables import footnote, microseconds, table, times

    parts = []
    for question, who in QUESTIONS.items():
        rows = []
        for case in result["results"]:
            contenders = case["contenders"]
            own = contenders[who[0]]["median_ns"]
            row = [f"{case['size']:,}", microseconds(own), f"{contenders['limit']['median_ns'] / own:.2f}"]
            for name in who[1:]:
                entry = contenders.get(name)
                row.append(f"{microseconds(entry['median_ns'])} ({times(entry['median_ns'] / own)})" if entry else "-")
            rows.append(row)
        header = ["elements", f"{TITLES[who[0]]}, us", "of the limit", *(f"{TITLES[name]}, us" for name in who[1:])]
        parts += [f"{question}:", table(header, rows)]
    note = footnote(
        result, "numba torch jax", also=" `ppo_clip_loss`, float32; fastac's KL and clip fraction included."
    )
    return "\n\n".join([*parts, note])
