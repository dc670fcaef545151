"""Arrays over raw addresses.

Kernels are entered with addresses: a tensor's address costs a tenth of a microsecond, its numpy view seven tenths. And
inside compiled code an array made from an address has no reference count: its upkeep would cost more than a short row.
"""

import ctypes
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.core import cgutils
from numba.extending import intrinsic, overload
from numpy.typing import NDArray

from fastac_kernels._jit import kernel

# For entries to hand on: a literal has a type of its own, for which what is called would be compiled once more.
NONE: Any = np.int64(0)
ONE: Any = np.int64(1)
YES: Any = np.bool_(True)


@intrinsic  # type: ignore[untyped-decorator]
def _pointer(typingctx: Any, address: Any, like: Any) -> Any:
    """The address as a pointer to elements of the type of `like`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], ir.PointerType(context.get_data_type(like)))

    return types.CPointer(like)(address, like), codegen


@intrinsic  # type: ignore[untyped-decorator]
def _data(typingctx: Any, array: Any) -> Any:
    """The address of an array's first element."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        fields = cgutils.create_struct_proxy(array)(context, builder, args[0])
        return builder.ptrtoint(fields.data, ir.IntType(64))

    return types.int64(array), codegen


def address_of(array: NDArray[Any]) -> int:
    """The address of an array's first element; for compiled code."""
    return array.ctypes.data


@overload(address_of)  # type: ignore[untyped-decorator]
def _address_of(array: Any) -> Any:
    def compiled(array: Any) -> Any:
        return _data(array)

    return compiled


def array_at(address: int, size: int, like: Any) -> NDArray[Any]:
    """A flat array of `size` elements of the type of the scalar `like` at `address`; empty where that is 0."""
    dtype = np.dtype(type(like))
    if address == 0 or size == 0:
        return np.empty(0, dtype)
    memory: Any = (ctypes.c_byte * (size * dtype.itemsize)).from_address(int(address))
    return np.frombuffer(memory, dtype)


@overload(array_at)  # type: ignore[untyped-decorator]
def _array_at(address: Any, size: Any, like: Any) -> Any:
    def compiled(address: Any, size: Any, like: Any) -> Any:
        return carray(_pointer(address, like), (size if address != 0 else 0,))

    return compiled


def rows_at(address: int, rows: int, lanes: int, like: Any) -> NDArray[Any]:
    """The same as an array of shape `(rows, lanes)`."""
    return array_at(address, rows * lanes, like).reshape((rows, lanes))


@overload(rows_at)  # type: ignore[untyped-decorator]
def _rows_at(address: Any, rows: Any, lanes: Any, like: Any) -> Any:
    def compiled(address: Any, rows: Any, lanes: Any, like: Any) -> Any:
        return carray(_pointer(address, like), (rows, lanes))

    return compiled


@intrinsic  # type: ignore[untyped-decorator]
def _prefer_512_bits(typingctx: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        # llvmlite knows no such attribute, but prints what the set holds.
        set.add(builder.function.attributes, '"prefer-vector-width"="512"')
        return context.get_dummy_value()

    return types.none(), codegen


def widest_vectors() -> None:
    """Let LLVM use 512-bit registers in the function that says so: by itself it stops at 256 on most processors."""


@overload(widest_vectors, inline="always")  # type: ignore[untyped-decorator]
def _widest_vectors() -> Any:
    return lambda: _prefer_512_bits()


@kernel
def addresses(
    a: NDArray[Any], b: NDArray[Any], c: NDArray[Any], d: NDArray[Any],
    e: NDArray[Any], f: NDArray[Any], g: NDArray[Any], h: NDArray[Any],
) -> tuple[int, ...]:  # fmt: skip
    """The addresses of eight arrays, for Python: one compiled call for all takes as long as numpy takes for one."""
    return (
        address_of(a), address_of(b), address_of(c), address_of(d),
        address_of(e), address_of(f), address_of(g), address_of(h),
    )  # fmt: skip
