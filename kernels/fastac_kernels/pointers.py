"""Loads, stores, copies and prefetches at raw addresses, for kernels over packed rows.

A packed row holds fields of several types, so its kernels see bytes. Nothing here is checked: whoever computes an
address has checked what it is computed from.
"""

import ctypes
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import lower_builtin, type_callable

from fastac_kernels._jit import Function, inline

_BYTE, _WORD = ir.IntType(8).as_pointer(), ir.IntType(64)


def emits(typed: Callable[..., Any], emit: Callable[[Any, Any, Any, Any], Any]) -> Callable[[Function], Function]:
    """Has compiled code emit LLVM instructions where it calls the function.

    There are hundreds of such calls. Functions of their own (`inline`, `overload`) would each be compiled, and
    optimised once more in everything that calls them: a third of what compiling the replay kernels took.

    Args:
        typed: From the arguments' types the call's signature.
        emit: Takes Numba's context, LLVM's builder, the signature and the arguments' values.
    """

    def decorate(function: Function) -> Function:
        type_callable(function)(lambda context: typed)
        lower_builtin(function, *[types.Any] * len(inspect.signature(typed).parameters))(emit)
        return function

    return decorate


def _emit_load(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    pointer = builder.inttoptr(args[0], ir.PointerType(context.get_data_type(signature.return_type)))
    value = builder.load(pointer)
    value.align = 1
    return value


@emits(lambda address, like: like(types.int64, like), _emit_load)
def load(address: int, like: Any) -> Any:
    """The value of the type of the scalar `like` at an address, aligned or not."""
    dtype = np.dtype(type(like))
    return np.frombuffer(ctypes.string_at(int(address), dtype.itemsize), dtype)[0]


def _emit_store(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    pointer = builder.inttoptr(args[0], ir.PointerType(context.get_data_type(signature.args[1])))
    builder.store(args[1], pointer).align = 1
    return context.get_dummy_value()


@emits(lambda address, value: types.void(types.int64, value), _emit_store)
def store(address: int, value: Any) -> None:
    """Writes the scalar `value` at an address, aligned or not."""
    data = np.asarray(value).tobytes()
    ctypes.memmove(int(address), data, len(data))


@emits(lambda address: types.int64(types.int64), _emit_load)
def word_at(address: int) -> int:
    """The int64 at an address."""
    return int(load(address, np.int64(0)))


def _emit_get(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    place = builder.gep(builder.inttoptr(args[0], _WORD.as_pointer()), [args[1]])
    value = builder.load(place)
    value.align = 1
    return value


@emits(lambda address, word: types.int64(types.int64, types.int64), _emit_get)
def get(address: int, word: int) -> int:
    """Word number `word`, an int64, of those at an address."""
    return word_at(address + 8 * word)


def _emit_put(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    place = builder.gep(builder.inttoptr(args[0], _WORD.as_pointer()), [args[1]])
    builder.store(args[2], place).align = 1
    return context.get_dummy_value()


@emits(lambda address, word, value: types.void(types.int64, types.int64, types.int64), _emit_put)
def put(address: int, word: int, value: int) -> None:
    """Sets word number `word` of those at an address."""
    store(address + 8 * word, np.int64(value))


def _emit_byte(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    return builder.zext(builder.load(builder.inttoptr(args[0], _BYTE)), _WORD)


@emits(lambda address: types.int64(types.int64), _emit_byte)
def byte_at(address: int) -> int:
    """The byte at an address, as int64: bits of a uint8 do not mix well with those of other types."""
    return int(load(address, np.uint8(0)))


def _emit_memcpy(size: int | None) -> Callable[[Any, Any, Any, Any], Any]:
    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        memcpy = builder.module.declare_intrinsic("llvm.memcpy", [_BYTE, _BYTE, _WORD])
        to, of = (builder.inttoptr(x, _BYTE) for x in args[:2])
        count = args[2] if size is None else ir.Constant(_WORD, size)
        builder.call(memcpy, [to, of, count, ir.Constant(ir.IntType(1), 0)])
        return context.get_dummy_value()

    return emit


@emits(lambda target, source, size: types.void(types.int64, types.int64, types.int64), _emit_memcpy(None))
def _copy(target: int, source: int, size: int) -> None:
    ctypes.memmove(int(target), int(source), int(size))


def _copy_of(size: int) -> Any:
    """A copy of a known number of bytes: as many loads and stores, no call."""

    @emits(lambda target, source: types.void(types.int64, types.int64), _emit_memcpy(size))
    def copy_known(target: int, source: int) -> None:
        ctypes.memmove(int(target), int(source), size)

    return copy_known


copy_32, copy_16, copy_8, copy_4 = _copy_of(32), _copy_of(16), _copy_of(8), _copy_of(4)


@inline
def copy(target: int, source: int, size: int) -> None:
    """Copies `size` bytes that do not overlap."""
    # Short copies overlap at their end rather than to branch on every length, or to call.
    if size > 192:
        _copy(target, source, size)
    elif size >= 32:
        done = 0
        while done + 32 < size:
            copy_32(target + done, source + done)
            done += 32
        copy_32(target + size - 32, source + size - 32)
    elif size >= 16:
        copy_16(target, source)
        copy_16(target + size - 16, source + size - 16)
    elif size >= 8:
        copy_8(target, source)
        copy_8(target + size - 8, source + size - 8)
    elif size >= 4:
        copy_4(target, source)
        copy_4(target + size - 4, source + size - 4)
    else:
        for i in range(size):
            store(target + i, load(source + i, np.uint8(0)))


def _emit_prefetch(write: int, locality: int) -> Callable[[Any, Any, Any, Any], Any]:
    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        small = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [_BYTE, small, small, small])
        hint = builder.module.declare_intrinsic("llvm.prefetch", [_BYTE], kind)
        builder.call(hint, [builder.inttoptr(args[0], _BYTE), *(ir.Constant(small, x) for x in (write, locality, 1))])
        return context.get_dummy_value()

    return emit


@emits(lambda address: types.void(types.int64), _emit_prefetch(0, 3))
def prefetch(address: int) -> None:
    """Asks for the cache line of an address, which need not be readable."""


@emits(lambda address: types.void(types.int64), _emit_prefetch(0, 2))
def prefetch_far(address: int) -> None:
    """The same for the second-level cache: more of these can be under way at once (30 against 42 ns for four lines)."""


@emits(lambda address: types.void(types.int64), _emit_prefetch(1, 3))
def prefetch_to_write(address: int) -> None:
    """The same for a line that is about to be written."""


def _emit_fence(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    builder.fence("release")
    return context.get_dummy_value()


@emits(lambda: types.void(), _emit_fence)
def fence() -> None:
    """Keeps the compiler from moving stores over this point: a killed process leaves the first half of them."""


def _emit_high(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    wide = ir.IntType(128)
    product = builder.mul(builder.zext(args[0], wide), builder.zext(args[1], wide))
    return builder.trunc(builder.lshr(product, ir.Constant(wide, 64)), _WORD)


@emits(lambda a, b: types.uint64(types.uint64, types.uint64), _emit_high)
def high_word(a: Any, b: Any) -> Any:
    """The upper 64 bits of the product of two unsigned 64-bit integers."""
    return np.uint64((int(a) * int(b)) >> 64)


@inline
def equal(a: int, b: int, size: int) -> bool:
    """Whether `size` bytes are the same at both addresses."""
    if size < 8:
        other = np.uint8(0)
        for i in range(size):
            other |= load(a + i, np.uint8(0)) ^ load(b + i, np.uint8(0))
        return bool(other == 0)
    # Eight words at a time, so that long ones are compared in vector registers; the last word may overlap.
    word = np.uint64(0)
    i = 0
    while i + 64 <= size:
        different = word
        for j in range(i, i + 64, 8):
            different |= load(a + j, word) ^ load(b + j, word)
        if different != 0:
            return False
        i += 64
    while i + 8 <= size:
        if load(a + i, word) != load(b + i, word):
            return False
        i += 8
    return bool(load(a + size - 8, word) == load(b + size - 8, word))
