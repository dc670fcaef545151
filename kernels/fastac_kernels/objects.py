"""What lies behind numpy arrays and scalars, read by compiled code from their published C structures.

A compiled function takes 100 ns for each array it is given, and is compiled anew for each dtype and number of
dimensions. Given a tuple as it is instead (`OBJECT`), it reads the arrays' own fields, as an extension module would:
`PyArrayObject` is part of numpy's binary interface, `PyFloatObject` and tuples of CPython's. `READABLE` says whether a
trial read at import found what it should; where it did not, callers ask numpy and fill the table of addresses.
"""

import ctypes
import math
import sys
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import NativeValue, models, register_model, unbox

from fastac_kernels._jit import inline, kernel
from fastac_kernels.pointers import emits, load, store, word_at

# Where fields lie. A pointer to an object's type ends its head; what is its own follows.
HEAD, ITEMS = object.__basicsize__, tuple.__basicsize__
TYPE, SIZE = HEAD - 8, ITEMS - 8
DATA, NDIM, DIMENSIONS, DTYPE, FLAGS = HEAD, HEAD + 8, HEAD + 16, HEAD + 40, HEAD + 48
C_CONTIGUOUS, ALIGNED, WRITEABLE = 0x1, 0x100, 0x400

# An item's description: what `read` compares an object with. One of these kinds,
FIELD, REWARD, FLAG, OPTIONAL_FLAG, OUTPUT = range(5)
# then the addresses of its dtype and of that dtype's scalar type, and a row's number of dimensions, sizes and bytes.
KIND, ITEM_DTYPE, ITEM_SCALAR, ITEM_NDIM, ITEM_SHAPE, ITEM_BYTES, WIDTH = 0, 1, 2, 3, 4, 12, 13

# What else `read` has to recognise: places in the table `KNOWN`. Addresses differ from process to process, so none may
# become a constant of cached machine code.
ARRAY_TYPE, FLOAT_TYPE, DOUBLE_TYPE, DOUBLE, NONE, YES, NO, NUMPY_YES, NUMPY_NO, TRUTHS, KNOWN_SIZE = range(11)
KNOWN = np.zeros(KNOWN_SIZE, np.int64)
for _place, _object in {
    ARRAY_TYPE: np.ndarray, FLOAT_TYPE: float, DOUBLE_TYPE: np.float64, DOUBLE: np.dtype(np.float64), NONE: None,
    YES: True, NO: False, NUMPY_YES: np.True_, NUMPY_NO: np.False_,
}.items():  # fmt: skip
    KNOWN[_place] = id(_object)
KNOWN[TRUTHS] = int.from_bytes(b"\0\1\0\0\0\0\0\0", "little")  # a byte 0 and a byte 1


class ObjectType(types.Type):  # type: ignore[misc]
    """Numba's type of any Python object, of which compiled code sees the address. The caller keeps it alive."""

    def __init__(self) -> None:
        super().__init__(name="fastac.Object")


OBJECT = ObjectType()


@register_model(ObjectType)
class _ObjectModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, ir.IntType(64))


@unbox(ObjectType)  # type: ignore[untyped-decorator]
def _unbox_object(kind: Any, value: Any, context: Any) -> Any:
    return NativeValue(context.builder.ptrtoint(value, ir.IntType(64)))


@emits(lambda value: types.int64(value), lambda context, builder, signature, args: args[0])
def object_address(value: Any) -> int:
    """Where an object lies: CPython's `id`, which any audit hook of the process (JAX has one) slows down by 200 ns."""
    return id(value)


def describe(kind: int, dtype: Any, shape: tuple[int, ...]) -> list[int]:
    """The description of an item, `WIDTH` integers."""
    dtype = np.dtype(dtype)
    sizes = [*shape, *[0] * (ITEM_BYTES - ITEM_SHAPE - len(shape))]
    return [kind, id(dtype), id(dtype.type), len(shape), *sizes, math.prod(shape) * dtype.itemsize]


@inline
def _rows_of(array: int, item: int, lead: bool) -> int:
    """Rows of an array whose rows have the item's shape: 1 where it has no dimension for them; -1 for other shapes."""
    ndim, own = load(array + NDIM, np.int32(0)), word_at(item + 8 * ITEM_NDIM)
    if ndim != own + 1 and (ndim != own or lead):
        return -1
    sizes = word_at(array + DIMENSIONS) + 8 * (ndim - own)
    for i in range(own):
        if word_at(sizes + 8 * i) != word_at(item + 8 * (ITEM_SHAPE + i)):
            return -1
    return 1 if ndim == own else word_at(sizes - 8)


@inline
def _overlap(described: int, count: int, table: int, rows: int) -> bool:
    """Whether any two of the arrays found share memory."""
    for i in range(1, count):
        begin, size = word_at(table + 8 * i), rows * word_at(described + 8 * (WIDTH * i + ITEM_BYTES))
        for j in range(i):
            other, other_size = word_at(table + 8 * j), rows * word_at(described + 8 * (WIDTH * j + ITEM_BYTES))
            if begin < other + other_size and other < begin + size:
                return True
    return False


@kernel
def read(described: int, count: int, items: int, rows: int, table: int, known: int) -> int:
    """Finds the memory of numpy arrays and scalars, and checks their types and shapes.

    Args:
        described: Address of `count` descriptions of `WIDTH` words.
        count: Items.
        items: Address of `count` addresses of objects, as a tuple has them at `ITEMS`.
        rows: How many rows every array has, -1: as many as the first. One row may come without that dimension, and a
            scalar of its dtype (for rewards a float, for flags a bool) stands for one row of shape `()`.
        table: Address of `count + 2` words. Receives the items' addresses (0: None), the number of rows, and 1 where
            rewards are float64.
        known: Address of `KNOWN`.

    Returns:
        -1, or the first item that is something else, or `count` where outputs overlap. What was written is then not
        to be used.
    """
    array_type, double_dtype, none = word_at(known), word_at(known + 8 * DOUBLE), word_at(known + 8 * NONE)
    for i in range(count):
        item, x = described + 8 * WIDTH * i, word_at(items + 8 * i)
        kind, own = word_at(item), word_at(x + TYPE)
        at, length = 0, 1
        if own == array_type:
            dtype, flags = word_at(x + DTYPE), load(x + FLAGS, np.int32(0))
            needed = C_CONTIGUOUS | ALIGNED | (WRITEABLE if kind == OUTPUT else 0)
            length = _rows_of(x, item, kind == OUTPUT)
            double = kind == REWARD and dtype == double_dtype
            if (dtype != word_at(item + 8 * ITEM_DTYPE) and not double) or (flags & needed) != needed or length < 0:
                return i
            at = word_at(x + DATA)
            if kind == REWARD:
                store(table + 8 * (count + 1), np.int64(double))
        elif kind == OPTIONAL_FLAG and x == none:
            store(table + 8 * i, np.int64(0))
            continue
        elif word_at(item + 8 * ITEM_NDIM) != 0 or kind == OUTPUT:
            return i
        elif kind == FIELD and own == word_at(item + 8 * ITEM_SCALAR):
            at = x + HEAD
        elif kind == REWARD and (own == word_at(known + 8 * FLOAT_TYPE) or own == word_at(known + 8 * DOUBLE_TYPE)):
            at = x + HEAD
            store(table + 8 * (count + 1), np.int64(1))
        elif kind in (FLAG, OPTIONAL_FLAG) and (x == word_at(known + 8 * YES) or x == word_at(known + 8 * NUMPY_YES)):
            at = known + 8 * TRUTHS + 1
        elif kind in (FLAG, OPTIONAL_FLAG) and (x == word_at(known + 8 * NO) or x == word_at(known + 8 * NUMPY_NO)):
            at = known + 8 * TRUTHS
        else:
            return i
        if rows < 0:
            rows = length
        elif length != rows:
            return i
        store(table + 8 * i, np.int64(at))
    if count > 0 and word_at(described) == OUTPUT and _overlap(described, count, table, rows):
        return count
    store(table + 8 * count, np.int64(rows))
    return -1


def _trial() -> bool:
    """Whether what would be read is what numpy says."""

    def word(address: int, kind: Any = ctypes.c_int64) -> int:
        return kind.from_address(address).value  # type: ignore[no-any-return]

    array, scalar, number = np.arange(6, dtype=np.float32).reshape(2, 3), np.int64(7), 2.5
    objects, at = (array, scalar), id(array)
    return (
        HEAD == 16
        and [word(id(objects) + ITEMS + 8 * i) for i in range(2)] == [id(x) for x in objects]
        and [word(id(x) + TYPE) for x in (array, scalar, number)] == [id(type(x)) for x in (array, scalar, number)]
        and word(at + DATA) == array.ctypes.data
        and word(at + NDIM, ctypes.c_int32) == 2
        and [word(word(at + DIMENSIONS) + 8 * i) for i in range(2)] == [2, 3]
        and word(at + DTYPE) == id(np.dtype(np.float32))
        and word(at + FLAGS, ctypes.c_int32) & 0x501 == 0x501
        and word(id(scalar) + HEAD) == 7
        and word(id(number) + HEAD, ctypes.c_double) == 2.5
    )


READABLE = sys.implementation.name == "cpython" and sys.maxsize > 2**32 and _trial()
