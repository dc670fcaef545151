"""Adam and RMSprop for parameters on CUDA, with nothing in their steps that a CUDA graph could not hold."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor

from fastac.optim import Adam, RMSprop

__all__ = ["CapturableAdam", "CapturableRMSprop", "make_adam", "make_rmsprop"]


class _Capturable(torch.optim.Optimizer):
    """What the two share: where step counts and sizes are kept, and the bound on the gradient's norm."""

    HERE: ClassVar[dict[str, Any]]  # torch's options for the step on CUDA
    ELSEWHERE: ClassVar[dict[str, Any]]  # those of the optimiser for the CPU

    def _start(self, max_grad_norm: float | None) -> None:
        if max_grad_norm is not None and not max_grad_norm > 0.0:
            raise ValueError(f"max_grad_norm: got {max_grad_norm}, expected a number above 0, or None")
        self.max_grad_norm = max_grad_norm
        self._norm: float | Tensor = math.nan
        self._rates: list[tuple[float, Tensor]] = []

    def _mark(self) -> None:
        """Says of each group what torch asks while a graph is captured."""
        for group in self.param_groups:
            group.update(self.HERE, capturable=group["params"][0].is_cuda)

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
        """Returns what the optimiser for the CPU returns: either loads the other's."""
        state = super().state_dict()
        for group in state["param_groups"]:
            group.update(self.ELSEWHERE, capturable=False)
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores `state_dict`'s result; graphs that were captured before are void."""
        super().load_state_dict(state_dict)
        self._mark()
        for p, state in self.state.items():
            state["step"] = state["step"].to(device=p.device, dtype=torch.float32)


class CapturableAdam(_Capturable, torch.optim.Adam):
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

    HERE: ClassVar[dict[str, Any]] = {"fused": True}
    ELSEWHERE: ClassVar[dict[str, Any]] = {"fused": None}

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        *,
        max_grad_norm: float | None = None,
    ):
        self._start(max_grad_norm)
        super().__init__(params, lr=lr, betas=betas, eps=eps, fused=True)
        self._mark()


class CapturableRMSprop(_Capturable, torch.optim.RMSprop):
    """`fastac.optim.RMSprop` on CUDA, as `CapturableAdam` is Adam; torch's operations on lists take the step.

    Args:
        params: As for `torch.optim.RMSprop`.
        lr: Step size.
        alpha: Decay of the mean square.
        eps: Added to the square root.
        max_grad_norm: Bound on the Euclidean norm of the whole gradient; None for none.

    Example:
        >>> weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
        >>> optimizer = CapturableRMSprop([weight], lr=0.05)
        >>> weight.square().sum().backward()
        >>> optimizer.step()
        >>> weight.data
        tensor([0.5000, 1.5000])
    """

    HERE: ClassVar[dict[str, Any]] = {"foreach": True}
    ELSEWHERE: ClassVar[dict[str, Any]] = {"foreach": False}

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        *,
        max_grad_norm: float | None = None,
    ):
        self._start(max_grad_norm)
        super().__init__(params, lr=lr, alpha=alpha, eps=eps, foreach=True)
        self._mark()


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


def make_rmsprop(params: Iterable[Any], **options: Any) -> RMSprop | CapturableRMSprop:
    """Returns the RMSprop that fits where the parameters are, as `make_adam` does.

    Args:
        params: Tensors, all on one device.
        options: `lr`, `alpha`, `eps`, `max_grad_norm`.

    Example:
        >>> type(make_rmsprop([torch.nn.Parameter(torch.zeros(1))], lr=0.1)).__name__
        'RMSprop'
    """
    parameters = list(params)
    on_cuda = any(p.is_cuda for p in parameters)
    return CapturableRMSprop(parameters, **options) if on_cuda else RMSprop(parameters, **options)
