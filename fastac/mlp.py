"""A multi-layer perceptron that is an ordinary `nn.Sequential`, with one autograd node where torch has ten.

At the sizes of control problems a torch operation costs more than its arithmetic. `MLP` runs its `Linear`, `Tanh` and
`ReLU` forward in one compiled call and backward in another, on the parameters' own memory: nothing is copied, flattened
or renamed, so optimisers, hooks on parameters, `state_dict`, `deepcopy`, `.to()`, frozen layers and replaced ones all
work as ever. Whatever the kernels were not made for runs the layers one by one, as `nn.Sequential` does.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd import forward_ad

from fastac import _blas
from fastac._torch_ops import _unheard
from fastac_kernels.mlp import RELU, TANH, backward_at, forward_at, input_gradient_at

CODES: dict[type[nn.Module], int] = {nn.Tanh: TANH, nn.ReLU: RELU}
# Numba takes its matrix products from SciPy's BLAS.
AVAILABLE = importlib.util.find_spec("scipy") is not None
BLAS = _blas.sgemm()


class Plan(NamedTuple):
    """What the kernels need to know of a network, and what it was read from."""

    modules: tuple[nn.Module, ...]
    parameters: tuple[Tensor, ...]  # W_1, b_1, W_2, ...
    entries: tuple[tuple[dict[str, Any], str, Tensor, int, torch.Size], ...]  # where each is, what and where it was
    addresses: NDArray[np.int64]
    sizes: NDArray[np.int64]
    where: tuple[int, int, int, int]  # of a BLAS, addresses of the two arrays above, and the number of layers
    widths: tuple[int, int, int, int]  # input, output, sum of the hidden ones, the widest of all
    activation: int


class MLP(nn.Sequential):
    """`Linear`, activation, `Linear`, ..., `Linear`, run as one operation where possible.

    With z_l = W_l h_{l-1} + b_l and h_l = f(z_l), the output is z_L. One kernel call goes forward, one backward, for
    float32 matrices `(B, inputs)` on the CPU, `Tanh` or `ReLU` between all layers, and biases. Everything else takes
    torch's own way by itself: other types, devices, shapes, layers, hooks on layers, `torch.compile`, `vmap` and
    other transforms, autocast, forward-mode derivatives, and derivatives of derivatives. Both ways agree to float32
    rounding (tanh within 4e-7 relatively). A parameter changed in place between forward and backward is an error, as
    in torch.

    Args:
        *layers: As for `nn.Sequential`, whose `state_dict` this one shares.

    Example:
        >>> network = MLP(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 2))
        >>> network(torch.zeros(3, 4)).grad_fn.name()
        'MLPNodeBackward'
        >>> nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 2)).load_state_dict(network.state_dict())
        <All keys matched successfully>
    """

    _plan: Plan | None = None

    def __init__(self, *layers: nn.Module):
        super().__init__(*layers)

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out what is read from the layers again; for `pickle` and `deepcopy`."""
        return {name: value for name, value in self.__dict__.items() if name != "_plan"}

    def forward(self, input: Tensor) -> Tensor:
        """Maps `(B, inputs)` to `(B, outputs)`."""
        if torch.compiler.is_compiling() or not takes(input):
            return super().forward(input)  # type: ignore[no-untyped-call, no-any-return]
        plan = self.plan()
        if plan is None or input.shape[1] != plan.widths[0] or _is_heard(plan.modules):
            return super().forward(input)  # type: ignore[no-untyped-call, no-any-return]
        if torch.is_grad_enabled():
            outputs: Tensor = apply_node(input.contiguous(), plan, *plan.parameters)
            return outputs
        return run(plan, input.contiguous())[0]

    def plan(self) -> Plan | None:
        """What the kernels need, read from the layers as they are now; None where they cannot run them."""
        plan = self._plan
        if plan is not None and _is_current(plan, self._modules):
            return plan
        plan = self._plan = _read(tuple(self._modules.values()))
        return plan


class MLPNode(torch.autograd.Function):
    """The node in torch's graph: its inputs are the rows and every parameter."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, plan: Plan, *parameters: Tensor) -> Tensor:
        """Runs the network and keeps its hidden activations."""
        outputs, hidden = run(plan, x)
        ctx.plan, ctx.hidden = plan, hidden
        ctx.save_for_backward(x, *parameters)
        return outputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of the rows and the parameters that want one."""
        plan: Plan = ctx.plan
        x, *parameters = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        if torch.is_grad_enabled():
            return _differentiable(plan, x, parameters, gradients[0], wanted)
        gradient = gradients[0].contiguous()
        batch, widest = len(x), plan.widths[3]
        into_x = torch.empty_like(x) if wanted[0] else None
        x_at = 0 if into_x is None else into_x.data_ptr()
        hidden, output, work = ctx.hidden.data_ptr(), gradient.data_ptr(), torch.empty(2 * batch * widest)
        if not any(wanted[2:]):
            input_gradient_at(*plan.where, batch, hidden, output, x_at, work.data_ptr(), plan.activation)
            return (into_x, None, *[None] * len(parameters))
        into = [torch.empty_like(p) if want else None for p, want in zip(parameters, wanted[2:], strict=True)]
        # A copy of its own: another thread may be in the same network.
        addresses = np.array([0 if g is None else g.data_ptr() for g in into], np.int64)
        blas, at, sizes, layers = plan.where
        backward_at(
            blas,
            at,
            addresses.ctypes.data,
            sizes,
            layers,
            x.data_ptr(),
            batch,
            hidden,
            output,
            x_at,
            work.data_ptr(),
            plan.activation,
        )
        return (into_x, None, *into)


# `Function.apply` without its look for transforms, which `takes` has had already.
apply_node: Any = super(torch.autograd.Function, MLPNode).apply


def run(plan: Plan, x: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the outputs and the hidden activations of contiguous rows."""
    batch = len(x)
    outputs, hidden = torch.empty(batch, plan.widths[1]), torch.empty(batch * plan.widths[2])
    forward_at(*plan.where, x.data_ptr(), batch, hidden.data_ptr(), outputs.data_ptr(), plan.activation)
    return outputs, hidden


def takes(x: Tensor) -> bool:
    """Whether the kernels can take a matrix, and nothing listens to torch's own operations."""
    return x.ndim == 2 and is_plain(x)


def is_plain(x: Tensor) -> bool:
    """Whether a tensor is one that kernels can take, and nothing listens to torch's own operations."""
    return (
        AVAILABLE
        and type(x) is Tensor
        and x.dtype is torch.float32
        and x.is_cpu
        and x.layout is torch.strided
        and len(x) > 0
        and not x.is_neg()
        and not torch.is_autocast_enabled("cpu")
        and forward_ad._current_level < 0
        and _unheard()
    )


def _is_heard(modules: tuple[nn.Module, ...]) -> bool:
    """Whether hooks want to see the layers run one by one."""
    return any(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
        for module in modules
    )


def _is_current(plan: Plan, modules: Mapping[str, nn.Module | None]) -> bool:
    """Whether the layers, their parameters and the memory of these are what the plan was read from."""
    if len(modules) != len(plan.modules):
        return False
    for module, known in zip(modules.values(), plan.modules, strict=True):
        if module is not known:
            return False
    for holder, name, known_parameter, pointer, shape in plan.entries:
        p = holder.get(name)
        if p is not known_parameter or p.data_ptr() != pointer or p.shape != shape or not p.is_contiguous():
            return False
    return True


def _read(modules: tuple[nn.Module | None, ...]) -> Plan | None:
    """The plan of a standard MLP of contiguous float32 parameters on the CPU, or None."""
    kinds = {type(module) for module in modules[1::2] if module is not None}
    linears = tuple(module for module in modules[::2] if type(module) is nn.Linear)
    if len(modules) < 3 or len(modules) % 2 == 0 or len(linears) != len(modules[::2]):
        return None
    if len(kinds) != 1 or not kinds <= set(CODES):
        return None
    parameters: list[Tensor] = []
    for linear in linears:
        for p in (linear._parameters["weight"], linear._parameters["bias"]):
            if type(p) is not nn.Parameter or p.dtype is not torch.float32 or not p.is_cpu or not p.is_contiguous():
                return None
            parameters.append(p)
    widths = [linears[0].weight.shape[1], *(linear.weight.shape[0] for linear in linears)]
    if any(
        linear.weight.shape != (o, i) or linear.bias.shape != (o,)
        for linear, i, o in zip(linears, widths[:-1], widths[1:], strict=True)
    ):
        return None
    addresses, sizes = np.array([p.data_ptr() for p in parameters], np.int64), np.array(widths, np.int64)
    hidden = widths[1:-1]
    return Plan(
        modules=tuple(module for module in modules if module is not None),
        parameters=tuple(parameters),
        entries=tuple(
            (linear._parameters, name, p, p.data_ptr(), p.shape)
            for linear in linears
            for name in ("weight", "bias")
            if (p := linear._parameters[name]) is not None
        ),
        addresses=addresses,
        sizes=sizes,
        where=(BLAS, addresses.ctypes.data, sizes.ctypes.data, len(linears)),
        widths=(widths[0], widths[-1], sum(hidden), max(widths)),
        activation=CODES[next(iter(kinds))],
    )


def _differentiable(
    plan: Plan, x: Tensor, parameters: list[Tensor], gradient: Tensor, wanted: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    """The same gradients by torch's operations, which can be differentiated again."""
    with torch.enable_grad():
        h = x
        for k in range(0, len(parameters), 2):
            if k > 0:
                h = h.tanh() if plan.activation == TANH else h.relu()
            h = nn.functional.linear(h, parameters[k], parameters[k + 1])
        inputs = [x, *parameters]
        want = [wanted[0], *wanted[2:]]
        chosen = [tensor for tensor, wants in zip(inputs, want, strict=True) if wants]
        found = iter(torch.autograd.grad(h, chosen, gradient, create_graph=True))
    into_x, *into = [next(found) if wants else None for wants in want]
    return (into_x, None, *into)
