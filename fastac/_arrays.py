"""The border between callers and kernels: checks arguments, settles shape and dtype, and hands memory to a kernel.

What is common to numpy arrays and tensors stands here, with the numpy side; the tensor side is `fastac._torch_ops`.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from numbers import Real
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from fastac._estimators import Estimator

FLOAT32, FLOAT64, BOOL = np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.bool_)
# A kernel takes its dtype from a scalar of that dtype.
LIKE = {FLOAT32: np.float32(0), FLOAT64: np.float64(0)}


class Arguments(NamedTuple):
    """What estimators are given; None where an argument is absent. `values` decides the dtype, else `rewards`."""

    rewards: Any
    values: Any
    next_values: Any
    terminated: Any
    truncated: Any
    mask: Any
    cu_seqlens: Any
    batch_first: bool
    log_ratios: Any = None

    def named(self, estimator: Estimator) -> list[tuple[str, Any]]:
        """The arrays that are present, under the names that `estimator`'s caller knows."""
        names = ("rewards", estimator.values_name, *self._fields[2:7], "log_ratios")
        return [(name, x) for name, x in zip(names, (*self[:7], self.log_ratios), strict=True) if x is not None]


@dataclass(slots=True)
class Layout:
    """How flat memory is cut into sequences: see `fastac_kernels.gae.gae_at`."""

    shape: tuple[int, ...]
    sequences: int
    lanes: int
    full: bool  # next_values has the shape of rewards
    transposed: bool  # memory holds the transpose of what the caller sees

    @property
    def total(self) -> int:
        """Elements in all."""
        return math.prod(self.shape)


def fail(name: str, expected: str, had: str, error: type[Exception] = ValueError) -> NoReturn:
    """Raise `error` in the one form that all messages have."""
    raise error(f"{name}: expected {expected}, got {had}")


def unit_interval(name: str, value: Any) -> float:
    """`value` as a float in [0, 1]."""
    if type(value) is float and 0.0 <= value <= 1.0:
        return value
    if isinstance(value, bool) or not isinstance(value, Real):
        fail(name, "a number in [0, 1]", type(value).__name__, TypeError)
    number = float(value)
    if not 0.0 <= number <= 1.0:
        fail(name, "a number in [0, 1]", repr(value))
    return number


def positive_integer(name: str, value: Any) -> int:
    """`value` as an int of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        fail(name, "an integer of at least 1", type(value).__name__, TypeError)
    if value < 1:
        fail(name, "an integer of at least 1", repr(value))
    return int(value)


def is_tensor(x: Any) -> bool:
    """Whether `x` is a torch tensor, found out without importing torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def _describe(x: Any) -> str:
    if isinstance(x, np.ndarray):
        return "a numpy array"
    return f"a tensor on {x.device}" if is_tensor(x) else type(x).__name__


def on_tensors(estimator: Estimator, arguments: Arguments, out: Any = None) -> bool:
    """Whether a call is about tensors; raises `TypeError` where kinds or devices are mixed, or neither is given."""
    named = arguments.named(estimator)
    values = arguments.values
    first_name, first = ("rewards", arguments.rewards) if values is None else (estimator.values_name, values)
    tensors = is_tensor(first)
    if not tensors and not isinstance(first, np.ndarray):
        fail(first_name, "a numpy array or a torch tensor", type(first).__name__, TypeError)
    required = ("rewards", "log_ratios") if estimator.reads_ratios else ("rewards",)
    for name in required:
        if getattr(arguments, name) is None:
            fail(name, f"{_describe(first)} like {first_name}", "None", TypeError)
    if out is None and {type(x) for _, x in named} == {np.ndarray}:
        return False
    outs = out if isinstance(out, tuple | list) else (out,)
    named += [("out", x) for x in outs]
    for name, x in named:
        if x is None or (name == "next_values" and isinstance(x, Real)):
            continue
        same = is_tensor(x) and x.device == first.device if tensors else isinstance(x, np.ndarray)
        if not same:
            fail(name, f"{_describe(first)} like {first_name}", _describe(x), TypeError)
    return tensors


def layout(arguments: Arguments, estimator: Estimator, *, transposed: bool = False) -> Layout:
    """Check shapes against the contract, by metadata alone, and settle how memory is cut into sequences.

    Args:
        arguments: As the caller gave them.
        estimator: Whose they are.
        transposed: Two-dimensional arrays lie in memory as their transposes.

    Raises:
        ValueError: A shape is wrong, or `truncated` comes without full next values.
    """
    rewards, values, next_values, _, truncated, _, cu_seqlens, batch_first, _ = arguments
    anchor, anchor_name = (rewards, "rewards") if values is None else (values, estimator.values_name)
    shape = tuple(anchor.shape)
    packed = cu_seqlens is not None
    if packed and batch_first:
        fail("batch_first", "False together with cu_seqlens", "True")
    if packed and len(shape) != 1:
        fail(anchor_name, "shape (total,) together with cu_seqlens", f"shape {shape}")
    if len(shape) not in (1, 2):
        fail(anchor_name, "shape (T, N) or (T,)", f"shape {shape}")
    for name in ("rewards", "terminated", "truncated", "mask", "log_ratios"):
        x = getattr(arguments, name)
        if x is not None and tuple(x.shape) != shape:
            fail(name, f"shape {shape} like {anchor_name}", f"shape {tuple(x.shape)}")
    if packed:
        if cu_seqlens.ndim != 1 or cu_seqlens.shape[0] < 1:
            fail("cu_seqlens", "shape (num_sequences + 1,)", f"shape {tuple(cu_seqlens.shape)}")
        count = cu_seqlens.shape[0] - 1
    else:
        count = 1 if len(shape) == 1 else shape[0] if batch_first else shape[1]
    next_shape = () if isinstance(next_values, Real) else tuple(next_values.shape) if next_values is not None else None
    full = next_shape == shape
    short = (count,) if len(shape) == 2 or packed else ()
    if not full and (estimator.full_only or next_shape not in ((), short)):
        forms = "" if estimator.full_only else f", {short} (short) or a scalar" if short else " or a scalar"
        expected = f"shape {shape} (full){forms}"
        fail("next_values", expected, "None" if next_shape is None else f"shape {next_shape}")
    if truncated is not None and not full:
        fail("next_values", f"full shape {shape}, since truncated is given", f"shape {next_shape}")
    needed = estimator.reads_values == "always" or (estimator.reads_values == "short" and not full)
    if values is None and needed:
        fail(estimator.values_name, "an array" + ("" if full else ", since next_values is short"), "None")
    one_lane = len(shape) == 1 or batch_first != transposed
    return Layout(shape, count if packed or (len(shape) == 2 and one_lane) else 1,
                  1 if one_lane else count, full, transposed)  # fmt: skip


def _flags(x: NDArray[Any] | None, transposed: bool) -> NDArray[Any] | None:
    """Contiguous bytes, not 0 meaning True."""
    if x is None:
        return None
    x = x.T if transposed else x
    if x.dtype.itemsize != 1:
        x = x != 0
    return np.ascontiguousarray(x)


def check_boundaries(cu_seqlens: NDArray[Any], total: int) -> NDArray[np.int64]:
    """Packed boundaries as int64, from 0 to `total` and never falling.

    Raises:
        TypeError: Not int32 or int64.
        ValueError: Not such boundaries.
    """
    if cu_seqlens.dtype not in (np.int32, np.int64):
        fail("cu_seqlens", "dtype int32 or int64", f"dtype {cu_seqlens.dtype}", TypeError)
    boundaries = np.ascontiguousarray(cu_seqlens, np.int64)
    if boundaries[0] != 0 or boundaries[-1] != total or (np.diff(boundaries) < 0).any():
        fail("cu_seqlens", f"boundaries that rise from 0 to {total}", np.array2string(boundaries, threshold=8))
    return boundaries


def check_out(out: Any, count: int) -> tuple[Any, ...]:
    """`out` as a tuple of `count` arrays: the structure of the result."""
    if count == 1:
        if not (isinstance(out, np.ndarray) or is_tensor(out)):
            fail("out", "one array, the structure of the result", type(out).__name__, TypeError)
        return (out,)
    if not isinstance(out, tuple | list) or len(out) != count:
        had = f"{len(out)} arrays" if isinstance(out, tuple | list) else type(out).__name__
        fail("out", f"a tuple of {count} arrays, the structure of the result", had, TypeError)
    return tuple(out)


def _check_numpy_out(out: tuple[NDArray[Any], ...], shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    for x in out:
        if x.shape != shape:
            fail("out", f"shape {shape}", f"shape {x.shape}")
        if x.dtype != dtype:
            fail("out", f"dtype {dtype} like the result", f"dtype {x.dtype}", TypeError)
        if not x.flags.c_contiguous:
            fail("out", "a C-contiguous array", f"strides {x.strides}")
        if not x.flags.writeable:
            fail("out", "a writable array", "a read-only one")


def overlaps() -> NoReturn:
    """Raise for outputs that share memory."""
    fail("out", "memory apart from every input and from the other outputs", "overlapping memory")


def call_numpy(
    estimator: Estimator, arguments: Arguments, scalars: tuple[Any, ...], out: Any
) -> tuple[NDArray[Any], ...]:
    """Run an estimator's kernel over numpy arrays of any layout and dtype.

    Args:
        estimator: One of `ESTIMATORS`.
        arguments: As the caller gave them, all numpy arrays.
        scalars: The estimator's scalars, checked.
        out: As the caller gave it.

    Returns:
        The outputs, in the caller's shape and dtype.
    """
    kernel, more, count, *_ = estimator
    rewards, values, next_values, terminated, truncated, mask, cu_seqlens, _, log_ratios = arguments
    anchor = rewards if values is None else values
    flags = anchor.flags
    transposed = anchor.ndim == 2 and not flags.c_contiguous and flags.f_contiguous
    plan = layout(arguments, estimator, transposed=transposed)
    for name, x in arguments.named(estimator):
        if isinstance(x, np.ndarray) and x.dtype.kind not in "fiub":
            fail(name, "a boolean or real number dtype", f"dtype {x.dtype}", TypeError)
    # Half precision is computed in float32 and rounded once; other numbers follow numpy's promotion to float64.
    result = anchor.dtype.newbyteorder("=")
    result = result if result in (np.float16, FLOAT32) else FLOAT64
    work = FLOAT64 if result == FLOAT64 else FLOAT32

    def floats(x: NDArray[Any]) -> NDArray[Any]:
        return np.ascontiguousarray(x.T if transposed else x, work)

    total, counted = plan.total, plan.sequences * plan.lanes
    memory = [None if x is None else floats(x) for x in (rewards, values)]
    if plan.full:
        memory += [floats(next_values), None]
    elif isinstance(next_values, np.ndarray) and next_values.ndim == 1:
        memory += [None, np.ascontiguousarray(next_values, work)]
    else:
        memory += [None, np.full(counted, next_values, work)]
    memory.append(np.zeros(total, np.uint8) if terminated is None else _flags(terminated, transposed))
    memory += [_flags(truncated, transposed), _flags(mask, transposed)]
    memory.append(None if cu_seqlens is None else check_boundaries(cu_seqlens, total))
    ratios = (floats(log_ratios),) if estimator.reads_ratios else ()

    shape = plan.shape[::-1] if transposed else plan.shape
    direct = out is not None and result == work and not transposed
    if out is not None:
        out = check_out(out, count)
        _check_numpy_out(out, plan.shape, result)
        read = (*memory[:2], memory[2] if plan.full else memory[3], *memory[4:7], *ratios)
        for given, used in zip((*arguments[:6], log_ratios), read, strict=False):
            copied = isinstance(given, np.ndarray) and used is not None and not np.may_share_memory(given, used)
            if copied and any(np.may_share_memory(given, x) for x in out):
                overlaps()
    outputs = out if direct else tuple(np.empty(shape, work) for _ in range(count))
    addresses = [0 if x is None else _address(x) for x in (*ratios, *memory, *outputs)]
    if not kernel(*addresses, total, plan.sequences, plan.lanes, *scalars, *more, LIKE[work]):
        overlaps()
    if direct:
        return outputs
    seen = tuple((x.T if transposed else x).astype(result, copy=False) for x in outputs)
    if out is None:
        return seen
    if any(np.may_share_memory(x, y) for i, x in enumerate(out) for y in out[i + 1 :]):
        overlaps()
    for x, y in zip(out, seen, strict=True):
        x[...] = y
    return tuple(out)


def _address(x: NDArray[Any]) -> int:
    return x.__array_interface__["data"][0]  # type: ignore[no-any-return]
