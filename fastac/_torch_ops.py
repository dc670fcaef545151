"""The estimators on tensors: registered with torch's dispatcher, and a short way past it for plain CPU tensors.

Each op takes the arguments of `_arrays.Arguments` as tensors, then its scalars, and returns fresh tensors. On the CPU
it runs the Numba kernel on the tensors' memory, on CUDA that of `_torch_cuda` or torch operations; under fake tensors
it gives shapes. The autograd kernel detaches: without one, results would claim a gradient that never arrives.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastac import _arrays, _torch_cuda, _torch_scan
from fastac._arrays import Arguments, fail
from fastac._estimators import ESTIMATORS, Estimator
from fastac._torch_memory import LIKE, WORK, is_transposed, operands, result_dtype

_NUMBERS = "Tensor rewards, Tensor? values, Tensor next_values, Tensor? terminated, Tensor? truncated, Tensor? mask"
_RATIOS = f"{_NUMBERS}, Tensor? cu_seqlens, bool batch_first, Tensor log_ratios"
_SCHEMAS = {
    "gae": f"({_NUMBERS}, Tensor? cu_seqlens, bool batch_first, float gamma, float gae_lambda) -> (Tensor, Tensor)",
    "discounted_returns": f"({_NUMBERS}, Tensor? cu_seqlens, bool batch_first, float gamma) -> Tensor",
    "lambda_returns": f"({_NUMBERS}, Tensor? cu_seqlens, bool batch_first, float gamma, float td_lambda) -> Tensor",
    "n_step_returns": f"({_NUMBERS}, Tensor? cu_seqlens, bool batch_first, int n, float gamma) -> Tensor",
    "vtrace": f"({_RATIOS}, float gamma, float trace_lambda, float rho_clip, float c_clip, float pg_rho_clip)"
    " -> (Tensor, Tensor)",
    "retrace": f"({_RATIOS}, float gamma, float trace_lambda) -> Tensor",
}
_LIKE, _WORK = LIKE, WORK
_NUMBER_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16,
                  torch.int8, torch.uint8, torch.bool)  # fmt: skip


def _check_dtypes(estimator: Estimator, arguments: Arguments) -> None:
    for name, x in arguments.named(estimator):
        if name in ("terminated", "truncated", "mask", "cu_seqlens"):
            continue
        if isinstance(x, Tensor) and x.dtype not in _NUMBER_DTYPES:
            fail(name, "a real number dtype", f"dtype {x.dtype}", TypeError)
        if isinstance(x, Tensor) and x.layout is not torch.strided:
            fail(name, "a dense tensor", f"layout {x.layout}", TypeError)
    cu_seqlens = arguments.cu_seqlens
    if cu_seqlens is not None and cu_seqlens.dtype not in (torch.int32, torch.int64):
        fail("cu_seqlens", "dtype int32 or int64", f"dtype {cu_seqlens.dtype}", TypeError)


def _on_cpu(
    name: str, arguments: Arguments, scalars: tuple[Any, ...], out: tuple[Tensor, ...] | None
) -> tuple[Tensor, ...]:
    """The Numba kernel on the tensors' memory; checked arguments, `out` of the result's dtype and contiguous."""
    transposed = is_transposed(arguments)
    plan = _arrays.layout(arguments, ESTIMATORS[name], transposed=transposed)
    result = result_dtype(arguments)
    work = _WORK.get(result, result)
    kernel, more, *_, reads_ratios, _, _ = ESTIMATORS[name]
    memory = operands(arguments, plan, work, reads_ratios=reads_ratios, transposed=transposed)
    if arguments.terminated is None:
        memory[4 + reads_ratios] = torch.zeros(plan.total, dtype=torch.uint8)
    if arguments.cu_seqlens is None:
        memory.append(None)
    else:
        memory.append(torch.from_numpy(_arrays.check_boundaries(arguments.cu_seqlens.numpy(), plan.total)))
    direct = out is not None and result is work and not transposed
    shape = plan.shape[::-1] if transposed else plan.shape
    outputs = (
        out
        if direct and out is not None
        else tuple(torch.empty(shape, dtype=work) for _ in range(ESTIMATORS[name].outputs))
    )
    addresses = [0 if x is None else x.data_ptr() for x in (*memory, *outputs)]
    if not kernel(*addresses, plan.total, plan.sequences, plan.lanes, *scalars, *more, _LIKE[work]):
        _arrays.overlaps()
    if direct:
        # Autograd counts writes: whoever saved these tensors for a backward pass is to be told.
        torch.autograd.graph.increment_version(outputs)
        return outputs
    return tuple((x.t() if transposed else x).to(result) for x in outputs)


def _in_torch(name: str, arguments: Arguments, scalars: tuple[Any, ...]) -> tuple[Tensor, ...]:
    """The same by torch operations, on any device."""
    plan = _arrays.layout(arguments, ESTIMATORS[name])
    result = result_dtype(arguments)
    outputs = _torch_scan.run(name, arguments, scalars, plan, _WORK.get(result, result))
    transposed = is_transposed(arguments)
    return tuple((x.t().contiguous().t() if transposed else x.contiguous()).to(result) for x in outputs)


def _on_cuda(
    name: str, arguments: Arguments, scalars: tuple[Any, ...], out: tuple[Tensor, ...] | None
) -> tuple[Tensor, ...]:
    """Our kernel, or torch operations where it cannot run; arguments as in `_on_cpu`."""
    found = _torch_cuda.estimate(name, arguments, scalars, out)
    if found is not None:
        return found
    next_values = _as_tensor(arguments.next_values, arguments)
    return _in_torch(name, arguments._replace(next_values=next_values), scalars)


def _as_tensor(next_values: Any, arguments: Arguments) -> Tensor:
    if isinstance(next_values, Tensor):
        return next_values
    return torch.full((), float(next_values), dtype=torch.float64, device=arguments.rewards.device)


def _shapes(name: str, arguments: Arguments) -> tuple[Tensor, ...]:
    anchor = arguments.rewards if arguments.values is None else arguments.values
    dtype, transposed = result_dtype(arguments), is_transposed(arguments)
    shape = anchor.shape[::-1] if transposed else anchor.shape
    outputs = tuple(torch.empty(shape, dtype=dtype, device=anchor.device) for _ in range(ESTIMATORS[name].outputs))
    return tuple(x.t() for x in outputs) if transposed else outputs


def arguments_of(name: str) -> int:
    """How many of `Arguments` an op takes, before its scalars."""
    return len(Arguments._fields) - (not ESTIMATORS[name].reads_ratios)


def _register(library: Any, name: str) -> None:
    """Define one op with its CPU, CUDA, fake and autograd kernels."""
    op_name = f"fastac::{name}"

    count = arguments_of(name)

    def unpack(args: tuple[Any, ...]) -> tuple[Arguments, tuple[Any, ...]]:
        return Arguments(*args[:count]), args[count:]

    def pack(outputs: tuple[Tensor, ...]) -> Any:
        return outputs if len(outputs) > 1 else outputs[0]

    def cpu(*args: Any) -> Any:
        return pack(_on_cpu(name, *unpack(args), None))

    def cuda(*args: Any) -> Any:
        return pack(_on_cuda(name, *unpack(args), None))

    def fake(*args: Any) -> Any:
        return pack(_shapes(name, unpack(args)[0]))

    def detaching(*args: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return getattr(torch.ops.fastac, name)(*args)

    library.define(name + _SCHEMAS[name])
    library.impl(name, cpu, "CPU")
    library.impl(name, cuda, "CUDA")
    library.impl(name, detaching, "Autograd")
    torch.library.register_fake(op_name, fake, lib=library)


_LIBRARY: Any = torch.library.Library("fastac", "DEF")  # type: ignore[no-untyped-call]
for _name in _SCHEMAS:
    _register(_LIBRARY, _name)


_is_compiling, _is_tracing = torch.compiler.is_compiling, torch._C._is_tracing
_dispatch_modes, _function_modes = torch._C._len_torch_dispatch_stack, torch._C._len_torch_function_stack
_transform = torch._C._functorch.peek_interpreter_stack


def _unheard() -> bool:
    """Whether nothing can be listening to the dispatcher: no compiler, mode, transform or tracer."""
    return (
        not _is_compiling() and _dispatch_modes() == 0 and _function_modes() == 0 and _transform() is None
        and not _is_tracing()
    )  # fmt: skip


def _is_plain(arguments: Arguments) -> bool:
    """Whether all are tensors proper on the CPU or on CUDA, and `_unheard`."""
    if not _unheard():
        return False
    for x in (*arguments[:7], arguments.log_ratios):
        if x is not None and type(x) is not Tensor and not isinstance(x, float | int):
            return False
    return bool(arguments.rewards.is_cpu or arguments.rewards.is_cuda)


def plain(name: str, arguments: Arguments, scalars: tuple[Any, ...], out: Any) -> tuple[Tensor, ...] | None:
    """The common case, checked in a few microseconds: contiguous tensors of one float dtype, boolean flags.

    None where it is another case, or where something is wrong that `call` will name. `rewards` is a tensor proper.
    """
    if not _unheard():
        return None
    if arguments[0].is_cuda and out is None:
        return _torch_cuda.plain(name, arguments, scalars)
    rewards, values, next_values, terminated, truncated, mask, cu_seqlens, batch_first, log_ratios = arguments
    if cu_seqlens is not None or batch_first or terminated is None:
        return None
    dtype, shape = rewards.dtype, rewards.shape
    like = _LIKE.get(dtype)
    if like is None or type(next_values) is not Tensor or not 0 < len(shape) < 3:
        return None
    for x in (rewards, values, next_values, log_ratios):
        if x is not None and not (
            type(x) is Tensor and x.dtype is dtype and x.is_cpu and x.is_contiguous() and not x.is_neg()
        ):
            return None
    for x in (terminated, truncated, mask):
        if x is not None and not (
            type(x) is Tensor and x.dtype is torch.bool and x.shape == shape and x.is_cpu and x.is_contiguous()
        ):
            return None
    kernel, more, count, reads_values, reads_ratios, full_only, _ = ESTIMATORS[name]
    full, two = next_values.shape == shape, len(shape) == 2
    if not full and not (two and truncated is None and not full_only and next_values.shape == shape[1:]):
        return None
    if reads_ratios and (log_ratios is None or log_ratios.shape != shape):
        return None
    if values is None:
        if reads_values == "always" or (reads_values == "short" and not full):
            return None
    elif values.shape != shape:
        return None
    if out is None:
        outputs = tuple([torch.empty_like(rewards) for _ in range(count)])
    else:
        outputs = tuple(out) if isinstance(out, tuple) else (out,)
        if len(outputs) != count:
            return None
        for x in outputs:
            if not (
                type(x) is Tensor and x.dtype is dtype and x.shape == shape and x.is_cpu and x.is_contiguous()
                and not x.requires_grad
            ):  # fmt: skip
                return None
    following = next_values.data_ptr()
    done = kernel(
        *([log_ratios.data_ptr()] if reads_ratios else []),
        rewards.data_ptr(), 0 if values is None else values.data_ptr(),
        following if full else 0, 0 if full else following,
        terminated.data_ptr(), 0 if truncated is None else truncated.data_ptr(), 0 if mask is None else mask.data_ptr(),
        0, *[x.data_ptr() for x in outputs], rewards.numel(), 1, shape[1] if two else 1, *scalars, *more, like,
    )  # fmt: skip
    if not done:
        return None
    if out is not None:
        torch.autograd.graph.increment_version(outputs)
    return outputs


def _extent(x: Tensor) -> tuple[int, int]:
    start: int = x.data_ptr()
    if x.numel() == 0:
        return start, start
    span = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True)) + 1
    return start, start + span * x.element_size()


def _check_out(out: tuple[Tensor, ...], arguments: Arguments) -> None:
    anchor = arguments.rewards if arguments.values is None else arguments.values
    dtype = result_dtype(arguments)
    for x in out:
        if x.shape != anchor.shape:
            fail("out", f"shape {tuple(anchor.shape)}", f"shape {tuple(x.shape)}")
        if x.dtype is not dtype:
            fail("out", f"dtype {dtype} like the result", f"dtype {x.dtype}", TypeError)
        if not x.is_contiguous():
            fail("out", "a C-contiguous tensor", f"strides {x.stride()}")
        if x.requires_grad:
            fail("out", "a tensor that requires no gradient", "one that does")


def _check_apart(out: tuple[Tensor, ...], arguments: Arguments) -> None:
    """Compare memory where there is some; the kernel itself sees copies of what had to be converted."""
    ranges = [_extent(x) for x in out]
    others = [_extent(x) for x in arguments if isinstance(x, Tensor)]
    for i, (start, stop) in enumerate(ranges):
        if any(start < b and a < stop for a, b in (*others, *ranges[i + 1 :])):
            _arrays.overlaps()


def call(name: str, arguments: Arguments, scalars: tuple[Any, ...], out: Any) -> tuple[Tensor, ...]:
    """Run the estimator `name` on tensors, past the dispatcher where nothing listens to it.

    Args:
        name: Of the op.
        arguments: As the caller gave them, all tensors on one device; `next_values` may be a number.
        scalars: The op's scalars, checked.
        out: As the caller gave it.

    Returns:
        The outputs, requiring no gradient.
    """
    _check_dtypes(ESTIMATORS[name], arguments)
    count = ESTIMATORS[name].outputs
    if out is not None:
        out = _arrays.check_out(out, count)
        _check_out(out, arguments)
    if _is_plain(arguments):
        if out is not None:
            _check_apart(out, arguments)
        run = _on_cpu if arguments.rewards.is_cpu else _on_cuda
        outputs = run(name, arguments, scalars, out)
    else:
        _arrays.layout(arguments, ESTIMATORS[name])
        given = arguments._replace(next_values=_as_tensor(arguments.next_values, arguments))
        result = getattr(torch.ops.fastac, name)(*given[: arguments_of(name)], *scalars)
        outputs = result if count > 1 else (result,)
    if out is None:
        return outputs
    for x, y in zip(out, outputs, strict=True):
        if x is not y:
            x.copy_(y)
    return tuple(out)
