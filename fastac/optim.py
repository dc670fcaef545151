"""Adam and RMSprop with the bound on the gradient's norm in one compiled pass, as ordinary optimisers of torch."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import optimizer as hooks

from fastac_kernels.adam import adam_at, norm_at
from fastac_kernels.rmsprop import rmsprop_at

_adam_at: Any = adam_at
_rmsprop_at: Any = rmsprop_at


# torch wraps these so that their first call imports its compiler, which takes two seconds.
_add_param_group, _state_dict, _load_state_dict = (
    inspect.unwrap(method)
    for method in (
        torch.optim.Optimizer.add_param_group,
        torch.optim.Optimizer.state_dict,
        torch.optim.Optimizer.load_state_dict,
    )
)


class _Compiled(torch.optim.Optimizer):
    """What the optimisers share: when the kernels can take a step, and the bound on the gradient's norm."""

    STATE: tuple[str, ...]  # what a step moves besides the parameter, each as large as it
    PLAIN: tuple[str, ...]  # options that the kernel does not have
    PLAIN_STEP: Callable[..., Any]  # torch's own

    def _prepare(self, max_grad_norm: float | None) -> None:
        if max_grad_norm is not None and not max_grad_norm > 0.0:
            raise ValueError(f"max_grad_norm: got {max_grad_norm}, expected a number above 0, or None")
        self.max_grad_norm = max_grad_norm
        self._norm: float | Tensor = math.nan
        self._memory: list[_Memory] = []
        self._known_state: Any = None

    def _compiled_step(self, memory: _Memory, scale: float, group: dict[str, Any]) -> None:
        raise NotImplementedError

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's."""
        _add_param_group(self, param_group)

    def state_dict(self) -> dict[str, Any]:
        """As torch's."""
        state: dict[str, Any] = _state_dict(self)
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's."""
        _load_state_dict(self, state_dict)

    @property
    def grad_norm(self) -> float:
        """The Euclidean norm of the whole gradient at the last step, before it was bounded; NaN without a bound.

        Reading it waits for the device.
        """
        return float(self._norm)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Takes one step; returns what `closure` returns, if there is one."""
        heard = (
            self._optimizer_step_pre_hooks
            or self._optimizer_step_post_hooks
            or hooks._global_optimizer_pre_hooks
            or hooks._global_optimizer_post_hooks
        )
        return _heard_step(self, closure) if heard else self._step(closure)

    # torch would wrap every step in a profiler's record, which costs half as much as the step.
    step.hooked = True  # type: ignore[attr-defined]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Lets go of the gradients, or sets them to 0."""
        if not set_to_none:
            super().zero_grad(set_to_none=False)
            return
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = None

    def _step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        found = self._compiled_groups()
        if found is None:
            self._bound()
            with torch.set_grad_enabled(bool(self.defaults["differentiable"])):
                inspect.unwrap(type(self).PLAIN_STEP)(self)
            return loss
        scale = 1.0
        if self.max_grad_norm is not None:
            norms = [norm_at(memory.where[1], memory.where[-1], memory.count) for memory in found]
            self._norm = norm = math.hypot(*norms)
            scale = self.max_grad_norm / (norm + 1e-6)
            scale = 1.0 if scale > 1.0 else scale
        for group, memory in zip(self.param_groups, found, strict=True):
            self._compiled_step(memory, scale, group)
            torch.autograd.graph.increment_version(memory.parameters)
        return loss

    def _bound(self) -> None:
        """The bound by torch's operations."""
        if self.max_grad_norm is not None:
            parameters = [p for group in self.param_groups for p in group["params"]]
            self._norm = torch.nn.utils.clip_grad_norm_(parameters, self.max_grad_norm, foreach=True)

    def _compiled_groups(self) -> list[_Memory] | None:
        """Where each group's memory is, with this step's gradients; None where the kernels cannot take it."""
        if self._known_state is not self.state or len(self._memory) != len(self.param_groups):
            self._memory, self._known_state = [], self.state
        for k, group in enumerate(self.param_groups):
            if any([group[name] for name in self.PLAIN]) or type(group["lr"]) is not float:
                return None
            if k == len(self._memory):
                memory = self._read(group)
                if memory is None:
                    return None
                self._memory.append(memory)
            if not self._memory[k].take(group["params"]):
                self._memory = []
                return None
        return self._memory

    def _read(self, group: dict[str, Any]) -> _Memory | None:
        """The memory of a group's parameters and moments, the latter made where there are none yet."""
        parameters: list[Tensor] = group["params"]
        for p in parameters:
            if type(p) not in (Tensor, torch.nn.Parameter) or p.dtype is not torch.float32 or not p.is_cpu:
                return None
            if not p.is_contiguous() or p.grad is None or p.grad.layout is not torch.strided:
                return None
        for p in parameters:
            state = self.state[p]
            if not state:
                state["step"] = torch.tensor(0.0)
                for name in self.STATE:
                    state[name] = torch.zeros_like(p, memory_format=torch.contiguous_format)
        return _Memory(parameters, [[self.state[p][name] for p in parameters] for name in (*self.STATE, "step")])


class Adam(_Compiled, torch.optim.Adam):
    """`clip_grad_norm_` and `torch.optim.Adam`'s step in two passes over memory.

        g <- g min(1, max_grad_norm / (|g| + 1e-6)),   |g| over the parameters of all groups
        m <- beta1 m + (1 - beta1) g,   v <- beta2 v + (1 - beta2) g^2
        theta <- theta - lr / (1 - beta1^t) m / (sqrt(v / (1 - beta2^t)) + eps)

    (Kingma and Ba 2015, algorithm 1.) Its `state_dict` is `torch.optim.Adam`'s, either loads the other's, schedulers
    and hooks work, and the clipped gradients are left in `.grad`. Float32 parameters on the CPU without weight decay
    take the kernel; anything else takes torch's own operations. Both agree to float32 rounding.

    Args:
        params: As for `torch.optim.Adam`.
        lr: Step size.
        betas: Decay of the two moments.
        eps: Added to the square root.
        max_grad_norm: Bound on the Euclidean norm of the whole gradient; None for none.
        weight_decay: As for `torch.optim.Adam`.

    Example:
        >>> weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
        >>> optimizer = Adam([weight], lr=0.1, max_grad_norm=0.5)
        >>> weight.square().sum().backward()
        >>> optimizer.step()
        >>> round(optimizer.grad_norm, 3), round(weight.grad.norm().item(), 3)
        (4.472, 0.5)
        >>> weight.data
        tensor([0.9000, 1.9000])
    """

    STATE = ("exp_avg", "exp_avg_sq")
    PLAIN = ("amsgrad", "maximize", "capturable", "differentiable", "weight_decay")
    PLAIN_STEP = torch.optim.Adam.step

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        *,
        max_grad_norm: float | None = None,
        weight_decay: float = 0.0,
    ):
        self._prepare(max_grad_norm)
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, foreach=False)

    def _compiled_step(self, memory: _Memory, scale: float, group: dict[str, Any]) -> None:
        _adam_at(*memory.where, memory.count, scale, group["lr"], *group["betas"], group["eps"])


class RMSprop(_Compiled, torch.optim.RMSprop):
    """`clip_grad_norm_` and `torch.optim.RMSprop`'s step in two passes over memory.

        g <- g min(1, max_grad_norm / (|g| + 1e-6)),   |g| over the parameters of all groups
        v <- alpha v + (1 - alpha) g^2,   theta <- theta - lr g / (sqrt(v) + eps)

    (Tieleman and Hinton 2012, lecture 6.5 of *Neural Networks for Machine Learning*.) What is said of `Adam` holds
    here, too; the kernel has no momentum, centring or weight decay.

    Args:
        params: As for `torch.optim.RMSprop`.
        lr: Step size.
        alpha: Decay of v.
        eps: Added to the square root.
        max_grad_norm: Bound on the Euclidean norm of the whole gradient; None for none.
        weight_decay: As for `torch.optim.RMSprop`, and so are `momentum` and `centered`.
        momentum: See there.
        centered: See there.

    Example:
        >>> weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
        >>> optimizer = RMSprop([weight], lr=0.05)
        >>> weight.square().sum().backward()
        >>> optimizer.step()
        >>> weight.data
        tensor([0.5000, 1.5000])
    """

    STATE = ("square_avg",)
    PLAIN = ("momentum", "centered", "maximize", "capturable", "differentiable", "weight_decay")
    PLAIN_STEP = torch.optim.RMSprop.step

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        *,
        max_grad_norm: float | None = None,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
    ):
        self._prepare(max_grad_norm)
        options: dict[str, Any] = {"weight_decay": weight_decay, "momentum": momentum, "centered": centered}
        super().__init__(params, lr=lr, alpha=alpha, eps=eps, foreach=False, **options)

    def _compiled_step(self, memory: _Memory, scale: float, group: dict[str, Any]) -> None:
        _rmsprop_at(*memory.where, memory.count, scale, group["lr"], group["alpha"], group["eps"])


def _step(optimizer: _Compiled, closure: Callable[[], Any] | None = None) -> Any:
    return optimizer._step(closure)


_heard_step = torch.optim.Optimizer.profile_hook_step(_step)


class _Memory:
    """Addresses of a group's parameters, gradients, moments and counts."""

    def __init__(self, parameters: list[Tensor], moments: list[list[Tensor]]):
        self.parameters = list(parameters)
        self.count = len(parameters)
        self.pointers = [p.data_ptr() for p in parameters]
        self.sizes = [p.numel() for p in parameters]
        self.moments = moments
        rows = [
            self.pointers,
            [0] * self.count,
            *([tensor.data_ptr() for tensor in kind] for kind in moments),
            self.sizes,
        ]
        self.table: NDArray[np.int64] = np.array(rows, np.int64)
        self.where = tuple(row.ctypes.data for row in self.table)
        self.usable = all(
            moment.dtype is torch.float32 and moment.is_cpu and moment.is_contiguous()
            for kind in moments
            for moment in kind
        )

    def take(self, parameters: list[Tensor]) -> bool:
        """Notes where this step's gradients are; False where one is missing, or where the memory is another."""
        if not self.usable or len(parameters) != self.count:
            return False
        gradients = []
        for p, pointer, size, known in zip(parameters, self.pointers, self.sizes, self.parameters, strict=True):
            gradient = p.grad
            if gradient is None or p is not known or p.data_ptr() != pointer or not gradient.is_contiguous():
                return False
            if gradient.numel() != size:
                return False
            gradients.append(gradient.data_ptr())
        self.table[1] = gradients
        return True
