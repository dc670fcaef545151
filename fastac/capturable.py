"""Adam for parameters on CUDA, with nothing in its step that a CUDA graph could not hold."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from fastac.optim import Adam

__all__ = ["CapturableAdam", "make_adam"]


class CapturableAdam(torch.optim.Adam):
    """`fastac.optim.Adam` on CUDA: the same arguments and state; step count and step size are on the device.

    The step size stays a float in `param_groups`, to be changed as ever; `prepare` brings it to the device, and `step`
    does so itself unless it is being captured. Torch's fused kernel takes the step.

    Args:
        params: As for `torch.optim.Adam`.
        lr: Step size.
        betas: Decay of the two moments.
        eps: Added to the square root.
        max_grad_norm: Bound on the Euclidean norm of the whole gradient; None for none.

    Example:
        >>> weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
        >>> optimizer = CapturableAdam([weight], lr=0.1, max_grad_norm=0.5)
        >>> weight.square().sum().backward()
        >>> optimizer.step()
        >>> weight.data
        tensor([0.9000, 1.9000])
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        *,
        max_grad_norm: float | None = None,
    ):
        if max_grad_norm is not None and not max_grad_norm > 0.0:
            raise ValueError(f"max_grad_norm: got {max_grad_norm}, expected a number above 0, or None")
        self.max_grad_norm = max_grad_norm
        self._norm: float | Tensor = math.nan
        self._rates: list[tuple[float, Tensor]] = []
        super().__init__(params, lr=lr, betas=betas, eps=eps, fused=True)
        self._mark()

    def _mark(self) -> None:
        """Says of each group what torch asks while a graph is captured."""
        for group in self.param_groups:
            group["fused"], group["capturable"] = True, group["params"][0].is_cuda

    @property
    def grad_norm(self) -> float:
        """As in `fastac.optim.Adam`; reading it waits for the device."""
        return float(self._norm)

    def prepare(self) -> None:
        """Brings the step sizes to the device, where they have changed."""
        for k, group in enumerate(self.param_groups):
            if k == len(self._rates):
                self._rates.append((math.nan, torch.zeros((), device=group["params"][0].device)))
            known, rate = self._rates[k]
            if group["lr"] != known:
                rate.fill_(group["lr"])
                self._rates[k] = group["lr"], rate

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Takes one step; returns what `closure` returns, if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if not (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()):
            self.prepare()
        if self.max_grad_norm is not None:
            parameters = [p for group in self.param_groups for p in group["params"]]
            self._norm = torch.nn.utils.clip_grad_norm_(parameters, self.max_grad_norm, foreach=True)
        numbers = [group["lr"] for group in self.param_groups]
        try:
            for group, (_, rate) in zip(self.param_groups, self._rates, strict=True):
                group["lr"] = rate
            super().step()
        finally:
            for group, number in zip(self.param_groups, numbers, strict=True):
                group["lr"] = number
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Returns what `fastac.optim.Adam` returns: either loads the other's."""
        state = super().state_dict()
        for group in state["param_groups"]:
            group["fused"], group["capturable"] = None, False
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores `state_dict`'s result; graphs that were captured before are void."""
        super().load_state_dict(state_dict)
        self._mark()
        for p, state in self.state.items():
            state["step"] = state["step"].to(device=p.device, dtype=torch.float32)


def make_adam(params: Iterable[Any], **options: Any) -> Adam | CapturableAdam:
    """Returns the Adam that fits where the parameters are: `CapturableAdam` on CUDA, else `fastac.optim.Adam`.

    Args:
        params: Tensors, all on one device.
        options: `lr`, `betas`, `eps`, `max_grad_norm`.

    Example:
        >>> type(make_adam([torch.nn.Parameter(torch.zeros(1))], lr=0.1)).__name__
        'Adam'
    """
    parameters = list(params)
    on_cuda = any(p.is_cuda for p in parameters)
    return CapturableAdam(parameters, **options) if on_cuda else Adam(parameters, **options)
