"""GAE over tokens: a batch of sequences, each with a mask, as trainers of language models hold them.

B = 256 sequences of T = 4096 tokens, float32, batch-major. `responses`: valid from the first token to a random length,
padding behind. `holes`: stretches of tokens inside that somebody else wrote (tool output), over which time does not
pass. With whitening the advantages of valid tokens are centred and scaled over the whole batch besides.

TRL's loop stands inside its trainer's method and verl's module needs the whole trainer to be imported: both are taken
out of the installed sources as they stand (`sources.py`), and get tensors of the kind that their trainers hold.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from bench import limits, record, sources, timing
from bench.cases import GAMMA, LAMBDA

SHAPE = (256, 4096)
SMALLEST = (4, 64)
KINDS = ("responses", "holes")
TOLERANCE = 1e-4
PLACEMENTS = 3
BYTES_PER_ELEMENT = 17  # rewards, values and a mask are read, advantages and returns written
PEERS = ("trl", "verl")


class NotOfferedError(Exception):
    """The peer has no way to compute this case."""


@dataclass(frozen=True)
class Case:
    kind: str
    whiten: bool
    rewards: np.ndarray
    values: np.ndarray
    mask: np.ndarray

    def expected(self) -> tuple[np.ndarray, np.ndarray]:
        """Advantages and returns in float64, of valid tokens; nothing follows a sequence's last one."""
        B, T = self.mask.shape
        advantages = np.zeros((B, T))
        carry, after = np.zeros(B), np.zeros(B)
        for t in reversed(range(T)):
            valid = self.mask[:, t]
            value = self.values[:, t].astype(np.float64)
            advantage = self.rewards[:, t] + GAMMA * after - value + GAMMA * LAMBDA * carry
            carry, after = np.where(valid, advantage, carry), np.where(valid, value, after)
            advantages[:, t] = np.where(valid, advantage, 0)
        returns = np.where(self.mask, advantages + self.values, 0)
        if self.whiten:
            kept = advantages[self.mask]
            advantages = np.where(self.mask, (advantages - kept.mean()) / kept.std(ddof=1), 0)
        return advantages, returns


def make_case(kind: str, whiten: bool, shape: tuple[int, int] = SHAPE) -> Case:
    B, T = shape
    generator = np.random.default_rng(0)
    rewards, values = (generator.standard_normal(shape, dtype=np.float32) for _ in range(2))
    lengths = generator.integers(T // 4, T, B)
    mask = np.arange(T) < lengths[:, None]
    if kind == "holes":
        for row, length in zip(mask, lengths, strict=True):
            for start in generator.integers(0, length - 1, 8):
                row[start : min(start + generator.integers(5, 60), length - 1)] = False
    return Case(kind, whiten, rewards, values, mask)


@dataclass(frozen=True)
class Contender:
    """`call` is what is timed; `read` gives advantages and returns after a call, masked tokens whatever."""

    call: Callable[[], Any]
    read: Callable[[Any], tuple[Any, Any]] | None


def fastac_numpy(case: Case) -> Contender:
    """NumPy with `out=`."""
    import fastac

    last = np.zeros(len(case.mask), np.float32)
    out = np.empty_like(case.rewards), np.empty_like(case.rewards)

    def call() -> Any:
        advantages, returns = fastac.gae(
            case.rewards, case.values, last, mask=case.mask, gamma=GAMMA, gae_lambda=LAMBDA, batch_first=True, out=out
        )
        return (fastac.normalize_advantages(advantages, case.mask) if case.whiten else advantages), returns

    return Contender(call, lambda result: result)


def tensors(case: Case) -> list[Any]:
    import torch

    torch.set_num_threads(1)
    return [torch.from_numpy(x.copy()) for x in (case.rewards, case.values, case.mask)]


def fastac_tensors(case: Case) -> Contender:
    """Tensors, new ones for the results, as the peers make them."""
    import torch

    import fastac

    rewards, values, mask = tensors(case)
    last = torch.zeros(len(rewards))

    def call() -> Any:
        advantages, returns = fastac.gae(
            rewards, values, last, mask=mask, gamma=GAMMA, gae_lambda=LAMBDA, batch_first=True
        )
        return (fastac.normalize_advantages(advantages, mask) if case.whiten else advantages), returns

    return Contender(call, lambda result: result)


def trl_loop(case: Case) -> Contender:
    """`PPOTrainer.train`, part 6, with rewards and values of 0 on padding, as the parts before it leave them."""
    import torch

    if case.kind == "holes":
        raise NotOfferedError("knows padding alone")
    tree = sources.parse("trl", "experimental/ppo/ppo_trainer.py")
    names = sources.execute(sources.functions(tree, "masked_mean", "masked_var", "masked_whiten"), {"torch": torch})
    last = "advantages = torch.masked_fill" if case.whiten else "returns ="
    body = sources.between(tree, "lastgaelam = 0", last)
    loop = sources.as_function(body, "rewards, values, responses, padding_mask, args", "advantages, returns", names)
    rewards, values, mask = tensors(case)
    rewards, values, padding = rewards * mask, values * mask, ~mask
    args = SimpleNamespace(gamma=GAMMA, lam=LAMBDA)

    def call() -> Any:
        with torch.no_grad():
            return loop(rewards, values, values, padding, args)

    return Contender(call, lambda result: result)


def verl_function(case: Case) -> Contender:
    """`compute_gae_advantage_return`, with the int64 mask that its trainer passes."""
    import torch

    if not case.whiten:
        raise NotOfferedError("always whitens")
    helpers = sources.functions(
        sources.parse("verl", "utils/torch_functional.py"), "masked_sum", "masked_mean", "masked_var", "masked_whiten"
    )
    helper_names = sources.execute(helpers, {"torch": torch})
    tree = sources.parse("verl", "trainer/ppo/core_algos.py")
    names = {"torch": torch, "verl_F": SimpleNamespace(**helper_names)}
    function = sources.execute(sources.functions(tree, "compute_gae_advantage_return"), names)[
        "compute_gae_advantage_return"
    ]
    rewards, values, mask = tensors(case)
    response_mask = mask.long()
    return Contender(lambda: function(rewards, values, response_mask, GAMMA, LAMBDA), lambda result: result)


def limit(case: Case) -> Contender:
    floats = [case.rewards, case.values]
    return Contender(limits.limit(floats, [np.zeros_like(x) for x in floats], [], [case.mask]), None)


CONTENDERS: dict[str, Callable[[Case], Contender]] = {
    "fastac": fastac_numpy,
    "fastac_tensors": fastac_tensors,
    "trl": trl_loop,
    "verl": verl_function,
    "limit": limit,
}


def build(name: str, case: Case) -> Callable[[], Any]:
    """The call, after it has computed the right numbers for valid tokens.

    Raises:
        NotOfferedError: It cannot compute this case.
        ArithmeticError: It computes something else.
    """
    made = CONTENDERS[name](case)
    if made.read is not None:
        for result, wanted in zip(made.read(made.call()), case.expected(), strict=True):
            error = np.abs(np.asarray(result, np.float64) - wanted)[case.mask].max() / np.abs(wanted).max()
            if not error < TOLERANCE:
                raise ArithmeticError(f"{name} differs from float64 by {error:.1e} of the largest value")
    return made.call


def measure(kind: str, whiten: bool, seconds: float, shape: tuple[int, int] = SHAPE) -> dict[str, Any]:
    """Times of everyone who computes this case; who does not, and why, is part of the result."""
    samples: dict[str, list[float]] = {}
    not_offered: dict[str, str] = {}
    failed: dict[str, str] = {}
    alive = []
    for _ in range(PLACEMENTS):
        case, calls = make_case(kind, whiten, shape), {}
        for name in CONTENDERS:
            try:
                calls[name] = build(name, case)
            except NotOfferedError as reason:
                not_offered[name] = str(reason)
            except Exception as error:  # a peer that fails is reported and stops nobody else
                if name not in PEERS:
                    raise
                failed[name] = f"{type(error).__name__}: {error}".splitlines()[0]
        alive.append(calls)
        for name, times in timing.interleave(calls, seconds=seconds / PLACEMENTS, rounds=7).items():
            samples.setdefault(name, []).extend(times)
    return {
        "kind": kind,
        "whiten": whiten,
        "B": shape[0],
        "T": shape[1],
        "valid": round(float(make_case(kind, whiten, shape).mask.mean()), 3),
        "bytes_per_element": BYTES_PER_ELEMENT,
        "rounds": len(samples["fastac"]),
        "contenders": timing.summarise(samples, "fastac"),
        "not_offered": not_offered,
        "failed": failed,
    }


def main(seconds: float) -> None:
    results = []
    for kind in KINDS:
        for whiten in (False, True):
            result = measure(kind, whiten, seconds)
            results.append(result)
            shown = "  ".join(
                f"{name} {entry['median_ns'] / 1e6:.2f} ms ({entry['over_fastac']:.2f}x)"
                for name, entry in result["contenders"].items()
            )
            print(f"{kind} {'whitened' if whiten else 'plain'}: {shown}", result["failed"] or "", flush=True)
    record.write(
        record.RESULTS / "tokens.json",
        {
            "command": "python -m bench tokens",
            "machine": record.machine(),
            "method": "interleaved rounds; CPU ns per call (median, quartiles); median per-round time over fastac's",
            "results": results,
        },
    )
