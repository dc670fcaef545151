"""Actor-critic building blocks that are exact at every episode boundary and as fast as memory allows."""

from typing import TYPE_CHECKING, Any

from fastac._warmup import warmup
from fastac.returns import GAE, discounted_returns, gae, lambda_returns, n_step_returns

if TYPE_CHECKING:
    from fastac.policy import load

__version__ = "0.1.0"
__all__ = ["GAE", "discounted_returns", "gae", "lambda_returns", "load", "n_step_returns", "warmup"]


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
