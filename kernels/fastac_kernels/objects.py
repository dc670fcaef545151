"""What lies behind numpy arrays and scalars, read by compiled code from their published C structures.

A compiled function takes 100 ns for each array it is given, and is compiled anew for each dtype and number of
dimensions. Given the address of a tuple instead (CPython's `id`), it reads the arrays' own fields, as an extension
module would: `PyArrayObject` is part of numpy's binary interface, `PyFloatObject` and tuples of CPython's. The caller
keeps the tuple alive for the call. `READABLE` says whether a trial read at import found what it should; where it did
not, callers go through `describe`, which asks numpy, and pass the table that it returns.
"""

import ctypes
import sys
from typing import Any

import numpy as np

from fastac_kernels._jit import inline, kernel
from fastac_kernels.pointers import load, store

# Where fields lie. A pointer to an object's type ends its head; what is its own follows.
HEAD, ITEMS = object.__basicsize__, tuple.__basicsize__
TYPE = HEAD - 8
DATA, NDIM, DIMENSIONS, DTYPE, FLAGS = HEAD, HEAD + 8, HEAD + 16, HEAD + 40, HEAD + 48
C_CONTIGUOUS, ALIGNED, WRITEABLE = 0x1, 0x100, 0x400

# An item's description: what `read` compares an object with. One of these kinds,
FIELD, REWARD, FLAG, OPTIONAL_FLAG, OUTPUT = range(5)
# then the addresses of its dtype and of that dtype's scalar type, and the shape of a row: number of dimensions, sizes.
KIND, ITEM_DTYPE, ITEM_SCALAR, ITEM_NDIM, ITEM_SHAPE, WIDTH = 0, 1, 2, 3, 4, 12

ARRAY_TYPE, FLOAT_TYPE, DOUBLE_TYPE = id(np.ndarray), id(float), id(np.float64)
FLOAT32, FLOAT64, BOOL = id(np.dtype(np.float32)), id(np.dtype(np.float64)), id(np.dtype(np.bool_))
NONE, YES, NO, NUMPY_YES, NUMPY_NO = id(None), id(True), id(False), id(np.True_), id(np.False_)


def describe(kind: int, dtype: Any, shape: tuple[int, ...]) -> list[int]:
    """The description of an item, `WIDTH` integers."""
    dtype = np.dtype(dtype)
    sizes = [*shape, *[0] * (WIDTH - ITEM_SHAPE - len(shape))]
    return [kind, id(dtype), id(dtype.type), len(shape), *sizes]


@inline
def _word(address: int) -> int:
    word: int = load(address, np.int64(0))
    return word


@inline
def _rows_of(array: int, item: int, lead: bool) -> int:
    """Rows of an array whose rows have the item's shape: 1 where it has no dimension for them; -1 for other shapes."""
    ndim, own = load(array + NDIM, np.int32(0)), _word(item + 8 * ITEM_NDIM)
    if ndim != own + 1 and (ndim != own or lead):
        return -1
    sizes = _word(array + DIMENSIONS) + 8 * (ndim - own)
    for i in range(own):
        if _word(sizes + 8 * i) != _word(item + 8 * (ITEM_SHAPE + i)):
            return -1
    return 1 if ndim == own else _word(sizes - 8)


@kernel
def read(described: int, count: int, objects: int, rows: int, table: int, truths: int) -> int:
    """Finds the memory of a tuple's numpy arrays and scalars, and checks their types and shapes.

    Args:
        described: Address of `count` descriptions of `WIDTH` words.
        count: Items.
        objects: Address of the tuple, which has `count` items.
        rows: How many rows every array has, -1: as many as the first. One row may come without that dimension, and a
            scalar of its dtype (for rewards a float, for flags a bool) stands for one row of shape `()`.
        table: Address of `count + 2` words. Receives the items' addresses (0: None), the number of rows, and 1 where
            rewards are float64.
        truths: Address of a byte 0 and a byte 1.

    Returns:
        -1, or the first item that is something else; what was written is then not to be used.
    """
    for i in range(count):
        item, x = described + 8 * WIDTH * i, _word(objects + ITEMS + 8 * i)
        kind, own = _word(item), _word(x + TYPE)
        at, length = 0, 0
        if own == ARRAY_TYPE:
            dtype, flags = _word(x + DTYPE), load(x + FLAGS, np.int32(0))
            needed = C_CONTIGUOUS | ALIGNED | (WRITEABLE if kind == OUTPUT else 0)
            length = _rows_of(x, item, kind == OUTPUT)
            double = kind == REWARD and dtype == FLOAT64
            if (dtype != _word(item + 8 * ITEM_DTYPE) and not double) or (flags & needed) != needed or length < 0:
                return i
            at = _word(x + DATA)
            if kind == REWARD:
                store(table + 8 * (count + 1), np.int64(double))
        elif kind == OPTIONAL_FLAG and x == NONE:
            store(table + 8 * i, np.int64(0))
            continue
        elif _word(item + 8 * ITEM_NDIM) == 0 and kind != OUTPUT:
            length = 1
            if kind == FIELD and own == _word(item + 8 * ITEM_SCALAR):
                at = x + HEAD
            elif kind == REWARD and own in (FLOAT_TYPE, DOUBLE_TYPE):
                at = x + HEAD
                store(table + 8 * (count + 1), np.int64(1))
            elif kind in (FLAG, OPTIONAL_FLAG) and x in (YES, NUMPY_YES):
                at = truths + 1
            elif kind in (FLAG, OPTIONAL_FLAG) and x in (NO, NUMPY_NO):
                at = truths
            else:
                return i
        else:
            return i
        if rows < 0:
            rows = length
        elif length != rows:
            return i
        store(table + 8 * i, np.int64(at))
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
