"""Loads, stores, copies and prefetches at raw addresses, for kernels over packed rows.

A packed row holds fields of several types, so its kernels see bytes. Nothing here is checked: whoever computes an
address has checked what it is computed from.
"""

import ctypes
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from fastac_kernels._jit import inline


@intrinsic  # type: ignore[untyped-decorator]
def _load(typingctx: Any, address: Any, like: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], ir.PointerType(context.get_data_type(like)))
        value = builder.load(pointer)
        value.align = 1
        return value

    return like(address, like), codegen


@intrinsic  # type: ignore[untyped-decorator]
def _store(typingctx: Any, address: Any, value: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], ir.PointerType(context.get_data_type(value)))
        builder.store(args[1], pointer).align = 1
        return context.get_dummy_value()

    return types.void(address, value), codegen


@intrinsic  # type: ignore[untyped-decorator]
def _copy(typingctx: Any, target: Any, source: Any, size: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        byte, word = ir.IntType(8).as_pointer(), ir.IntType(64)
        memcpy = builder.module.declare_intrinsic("llvm.memcpy", [byte, byte, word])
        to, of = (builder.inttoptr(x, byte) for x in args[:2])
        builder.call(memcpy, [to, of, args[2], ir.Constant(ir.IntType(1), 0)])
        return context.get_dummy_value()

    return types.void(target, source, size), codegen


def _copy_of(size: int) -> Any:
    """A copy of a known number of bytes: as many loads and stores, no call."""

    @intrinsic  # type: ignore[untyped-decorator]
    def copy_known(typingctx: Any, target: Any, source: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            byte, word = ir.IntType(8).as_pointer(), ir.IntType(64)
            memcpy = builder.module.declare_intrinsic("llvm.memcpy", [byte, byte, word])
            to, of = (builder.inttoptr(x, byte) for x in args)
            builder.call(memcpy, [to, of, ir.Constant(word, size), ir.Constant(ir.IntType(1), 0)])
            return context.get_dummy_value()

        return types.void(target, source), codegen

    return copy_known


copy_32, copy_16, copy_8, copy_4 = _copy_of(32), _copy_of(16), _copy_of(8), _copy_of(4)


def _prefetch_of(write: int, locality: int) -> Any:
    @intrinsic  # type: ignore[untyped-decorator]
    def prefetch_line(typingctx: Any, address: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            byte, small = ir.IntType(8).as_pointer(), ir.IntType(32)
            kind = ir.FunctionType(ir.VoidType(), [byte, small, small, small])
            hint = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
            how = [ir.Constant(small, x) for x in (write, locality, 1)]
            builder.call(hint, [builder.inttoptr(args[0], byte), *how])
            return context.get_dummy_value()

        return types.void(address), codegen

    return prefetch_line


_prefetch, _prefetch_far, _prefetch_to_write = _prefetch_of(0, 3), _prefetch_of(0, 2), _prefetch_of(1, 3)


@intrinsic  # type: ignore[untyped-decorator]
def _fence(typingctx: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.fence("release")
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic  # type: ignore[untyped-decorator]
def _high(typingctx: Any, a: Any, b: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        wide = ir.IntType(128)
        product = builder.mul(builder.zext(args[0], wide), builder.zext(args[1], wide))
        return builder.trunc(builder.lshr(product, ir.Constant(wide, 64)), ir.IntType(64))

    return types.uint64(types.uint64, types.uint64), codegen


def load(address: int, like: Any) -> Any:
    """The value of the type of the scalar `like` at an address, aligned or not."""
    dtype = np.dtype(type(like))
    return np.frombuffer(ctypes.string_at(int(address), dtype.itemsize), dtype)[0]


@overload(load, inline="always")  # type: ignore[untyped-decorator]
def _load_overload(address: Any, like: Any) -> Any:
    def compiled(address: Any, like: Any) -> Any:
        return _load(address, like)

    return compiled


def store(address: int, value: Any) -> None:
    """Writes the scalar `value` at an address, aligned or not."""
    data = np.asarray(value).tobytes()
    ctypes.memmove(int(address), data, len(data))


@overload(store, inline="always")  # type: ignore[untyped-decorator]
def _store_overload(address: Any, value: Any) -> Any:
    def compiled(address: Any, value: Any) -> Any:
        _store(address, value)

    return compiled


def copy(target: int, source: int, size: int) -> None:
    """Copies `size` bytes that do not overlap."""
    ctypes.memmove(int(target), int(source), int(size))


@overload(copy, jit_options={"forceinline": True})  # type: ignore[untyped-decorator]
def _copy_overload(target: Any, source: Any, size: Any) -> Any:
    def compiled(target: Any, source: Any, size: Any) -> Any:
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
                _store(target + i, _load(source + i, np.uint8(0)))

    return compiled


def prefetch(address: int) -> None:
    """Asks for the cache line of an address, which need not be readable."""


@overload(prefetch, inline="always")  # type: ignore[untyped-decorator]
def _prefetch_overload(address: Any) -> Any:
    def compiled(address: Any) -> Any:
        _prefetch(address)

    return compiled


def prefetch_far(address: int) -> None:
    """The same for the second-level cache: more of these can be under way at once (30 against 42 ns for four lines)."""


@overload(prefetch_far, inline="always")  # type: ignore[untyped-decorator]
def _prefetch_far_overload(address: Any) -> Any:
    def compiled(address: Any) -> Any:
        _prefetch_far(address)

    return compiled


def prefetch_to_write(address: int) -> None:
    """The same for a line that is about to be written."""


@overload(prefetch_to_write, inline="always")  # type: ignore[untyped-decorator]
def _prefetch_to_write_overload(address: Any) -> Any:
    def compiled(address: Any) -> Any:
        _prefetch_to_write(address)

    return compiled


def fence() -> None:
    """Keeps the compiler from moving stores over this point: a killed process leaves the first half of them."""


@overload(fence, inline="always")  # type: ignore[untyped-decorator]
def _fence_overload() -> Any:
    def compiled() -> Any:
        _fence()

    return compiled


def high_word(a: Any, b: Any) -> Any:
    """The upper 64 bits of the product of two unsigned 64-bit integers."""
    return np.uint64((int(a) * int(b)) >> 64)


@overload(high_word, inline="always")  # type: ignore[untyped-decorator]
def _high_word_overload(a: Any, b: Any) -> Any:
    def compiled(a: Any, b: Any) -> Any:
        return _high(np.uint64(a), np.uint64(b))

    return compiled


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
