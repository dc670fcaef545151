"""Actor-critic building blocks that are exact at every episode boundary and as fast as memory allows."""

from typing import TYPE_CHECKING, Any

from fastac._warmup import warmup
from fastac.normalize import normalize_advantages
from fastac.ratio import ApproxKL, PPOClipLoss, approx_kl, clip_ratio, importance_ratio, ppo_clip_loss
from fastac.returns import GAE, discounted_returns, gae, lambda_returns, n_step_returns
from fastac.traces import VTrace, retrace, vtrace

if TYPE_CHECKING:
    from fastac.policy import load

__version__ = "0.1.0"
__all__ = [
    "GAE",
    "ApproxKL",
    "PPOClipLoss",
    "VTrace",
    "approx_kl",
    "clip_ratio",
    "discounted_returns",
    "gae",
    "importance_ratio",
    "lambda_returns",
    "load",
    "n_step_returns",
    "normalize_advantages",
    "ppo_clip_loss",
    "retrace",
    "vtrace",
    "warmup",
]


def __getattr__(name: str) -> Any:
    # What needs torch is imported when it is asked for: whoever wants a numpy kernel does not wait for torch.
    if name != "load":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from fastac.policy import load
    except ModuleNotFoundError as error:
        missing = f'fastac.load needs the "train" extra ({error.name} is missing): pip install "fastac-rl[train]"'
        raise ModuleNotFoundError(missing, name=error.name) from error
    return load


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
