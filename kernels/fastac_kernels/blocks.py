"""A linear recurrence over one sequence, sixteen elements at a time inside vector registers.

    x[i] = a[i] + (0 where i ends its episode, else c[i] * x[i + 1])

Four rounds of doubling (Kogge and Stone 1973, *A Parallel Algorithm for the Efficient Solution of a General Class of
Recurrence Equations*) sum up 2, 4, 8 and 16 consecutive steps; what is behind the block is then one multiply-add away.
So the chain of dependent operations is a sixteenth as long. Ends are selected, never multiplied.

Addresses in, elements of the type of `carry`. LLVM splits the vectors where registers are narrower.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload
from numba.np.numpy_support import as_dtype
from numpy.typing import NDArray

from fastac_kernels.memory import array_at

Array = NDArray[Any]

WIDTH = 16
FASTMATH = ("contract", "nsz", "arcp", "reassoc")


class _Vectors:
    """What the code generators below share: vectors of WIDTH elements of one real type."""

    def __init__(self, builder: Any, element: Any) -> None:
        self.builder, self.element = builder, element
        self.zeros = self.constant(element, 0.0)
        self.ones = self.constant(element, 1.0)

    def constant(self, element: Any, value: Any) -> Any:
        return ir.Constant(ir.VectorType(element, WIDTH), [value] * WIDTH)

    def pointer(self, address: Any, element: Any) -> Any:
        return self.builder.inttoptr(address, ir.PointerType(ir.VectorType(element, WIDTH)))

    def load(self, address: Any) -> Any:
        return self.builder.load(self.pointer(address, self.element), align=4)

    def store(self, vector: Any, address: Any) -> None:
        self.builder.store(vector, self.pointer(address, self.element), align=4)

    def is_set(self, address: Any) -> Any:
        byte = ir.IntType(8)
        flags = self.builder.load(self.pointer(address, byte), align=1)
        return self.builder.icmp_unsigned("!=", flags, self.constant(byte, 0))

    def behind(self, vector: Any, steps: int, filler: Any) -> Any:
        """The elements `steps` behind each, `filler` beyond the block."""
        indices = [i + steps for i in range(WIDTH)]
        return self.builder.shuffle_vector(vector, filler, ir.Constant(ir.VectorType(ir.IntType(32), WIDTH), indices))

    def all_equal(self, scalar: Any) -> Any:
        first = ir.Constant(ir.IntType(32), 0)
        undefined = ir.Constant(ir.VectorType(scalar.type, WIDTH), ir.Undefined)
        vector = self.builder.insert_element(undefined, scalar, first)
        return self.builder.shuffle_vector(vector, undefined, self.constant(ir.IntType(32), 0))

    def first(self, vector: Any) -> Any:
        return self.builder.extract_element(vector, ir.Constant(ir.IntType(32), 0))

    def multiply(self, a: Any, b: Any) -> Any:
        return self.builder.fmul(a, b, flags=FASTMATH)

    def add_unless(self, cut: Any, a: Any, b: Any) -> Any:
        """The sum, or `a` alone where `cut` (None: nowhere)."""
        b = b if cut is None else self.builder.select(cut, self.zeros, b)
        return self.builder.fadd(a, b, flags=FASTMATH)

    def doubled(self, a: Any, cut: Any, factors: Any) -> tuple[Any, Any]:
        """Sums of WIDTH consecutive steps, and where an end cuts them off; `factors(k)` multiply what is 2^k behind."""
        for k in range(WIDTH.bit_length() - 1):
            a = self.add_unless(cut, a, self.multiply(factors(k), self.behind(a, 1 << k, self.zeros)))
            if cut is not None:
                nothing = self.constant(ir.IntType(1), 0)
                cut = self.builder.or_(cut, self.behind(cut, 1 << k, nothing))
        return a, cut


@intrinsic  # type: ignore[untyped-decorator]
def _plain_block(typingctx: Any, x: Any, decays: Any, powers: Any, carry: Any) -> Any:
    """One block without an end; `decays`: decay^1, ^2, ^4 and ^8."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        at, squares, powers, carry = args
        v = _Vectors(builder, carry.type)
        a, _ = v.doubled(v.load(at), None, lambda k: v.all_equal(builder.extract_value(squares, k)))
        a = v.add_unless(None, a, v.multiply(v.load(powers), v.all_equal(carry)))
        v.store(a, at)
        return v.first(a)

    return carry(types.int64, types.UniTuple(carry, 4), types.int64, carry), codegen


@intrinsic  # type: ignore[untyped-decorator]
def _block(typingctx: Any, x: Any, ends: Any, more_ends: Any, decays: Any, powers: Any, carry: Any) -> Any:
    """One block in which episodes may end."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        at, ends, more_ends, squares, powers, carry = args
        v = _Vectors(builder, carry.type)
        cut = builder.or_(v.is_set(ends), v.is_set(more_ends))
        a, cut = v.doubled(v.load(at), cut, lambda k: v.all_equal(builder.extract_value(squares, k)))
        a = v.add_unless(cut, a, v.multiply(v.load(powers), v.all_equal(carry)))
        v.store(a, at)
        return v.first(a)

    return carry(types.int64, types.int64, types.int64, types.UniTuple(carry, 4), types.int64, carry), codegen


@intrinsic  # type: ignore[untyped-decorator]
def _varying_block(typingctx: Any, x: Any, factors: Any, ends: Any, more_ends: Any, carry: Any) -> Any:
    """One block with a factor for each element."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        at, factors, ends, more_ends, carry = args
        v = _Vectors(builder, carry.type)
        cut = builder.or_(v.is_set(ends), v.is_set(more_ends))
        products = [v.load(factors)]
        for k in range(WIDTH.bit_length() - 1):
            products.append(v.multiply(products[k], v.behind(products[k], 1 << k, v.ones)))
        a, cut = v.doubled(v.load(at), cut, lambda k: products[k])
        a = v.add_unless(cut, a, v.multiply(products[-1], v.all_equal(carry)))
        v.store(a, at)
        return v.first(a)

    return carry(types.int64, types.int64, types.int64, types.int64, carry), codegen


def powers(decay: Any) -> Array:
    """decay^16, ..., decay^1: what the element behind a block is multiplied by for each element of the block."""
    table, power = np.empty(WIDTH, np.dtype(type(decay))), decay
    for k in range(WIDTH - 1, -1, -1):
        table[k] = power
        power = power * decay
    return table


@overload(powers)  # type: ignore[untyped-decorator]
def _powers(decay: Any) -> Any:
    dtype = as_dtype(decay)

    def compiled(decay: Any) -> Any:
        table, power = np.empty(WIDTH, dtype), decay
        for k in range(WIDTH - 1, -1, -1):
            table[k] = power
            power *= decay
        return table

    return compiled


def chain(x: int, terminated: int, truncated: int, size: int, any_end: bool, decays: int, carry: Any) -> Any:
    """The recurrence in place with one factor for all; returns the first element.

    Args:
        x: Address of `size` elements: a, and x on return.
        terminated: Address of as many bytes.
        truncated: Address of as many bytes; may be `terminated`.
        size: Number of elements.
        any_end: Whether any of the bytes is set: else they are not read.
        decays: Address of the factor's `powers`.
        carry: x behind the last element, of the elements' type.
    """
    elements, table = array_at(x, size, carry), array_at(decays, WIDTH, carry)
    ends, more_ends = array_at(terminated, size, np.uint8(0)), array_at(truncated, size, np.uint8(0))
    for k in range(size - 1, -1, -1):
        carry = elements[k] + (type(carry)(0) if ends[k] | more_ends[k] else table[WIDTH - 1] * carry)
        elements[k] = carry
    return carry


@overload(chain)  # type: ignore[untyped-decorator]
def _chain(x: Any, terminated: Any, truncated: Any, size: Any, any_end: Any, decays: Any, carry: Any) -> Any:
    def compiled(x: Any, terminated: Any, truncated: Any, size: Any, any_end: Any, decays: Any, carry: Any) -> Any:
        zero = type(carry)(0)
        elements, table = array_at(x, size, zero), array_at(decays, WIDTH, zero)
        ends, more_ends = array_at(terminated, size, np.uint8(0)), array_at(truncated, size, np.uint8(0))
        decay, doubled = table[WIDTH - 1], (table[WIDTH - 1], table[WIDTH - 2], table[WIDTH - 4], table[WIDTH - 8])
        i = size
        while i >= WIDTH:
            i -= WIDTH
            at = x + i * elements.itemsize
            if any_end:
                carry = _block(at, terminated + i, truncated + i, doubled, decays, carry)
            else:
                carry = _plain_block(at, doubled, decays, carry)
        for k in range(i - 1, -1, -1):
            carry = elements[k] + (zero if ends[k] | more_ends[k] else decay * carry)
            elements[k] = carry
        return carry

    return compiled


def varying_chain(x: int, factors: int, terminated: int, truncated: int, size: int, carry: Any) -> Any:
    """The same with a factor for each element, at the address `factors`; none may be above 1.

    Sixteen of them are multiplied: larger ones would overflow where the recurrence itself does not.
    """
    elements, factor = array_at(x, size, carry), array_at(factors, size, carry)
    byte = np.uint8(0)
    ends, more_ends = array_at(terminated, size, byte), array_at(truncated, size, byte)
    for k in range(size - 1, -1, -1):
        carry = elements[k] + (type(carry)(0) if ends[k] | more_ends[k] else factor[k] * carry)
        elements[k] = carry
    return carry


@overload(varying_chain)  # type: ignore[untyped-decorator]
def _varying_chain(x: Any, factors: Any, terminated: Any, truncated: Any, size: Any, carry: Any) -> Any:
    def compiled(x: Any, factors: Any, terminated: Any, truncated: Any, size: Any, carry: Any) -> Any:
        byte, zero = np.uint8(0), type(carry)(0)
        elements, factor = array_at(x, size, zero), array_at(factors, size, zero)
        ends, more_ends = array_at(terminated, size, byte), array_at(truncated, size, byte)
        i = size
        while i >= WIDTH:
            i -= WIDTH
            step = i * elements.itemsize
            carry = _varying_block(x + step, factors + step, terminated + i, truncated + i, carry)
        for k in range(i - 1, -1, -1):
            carry = elements[k] + (zero if ends[k] | more_ends[k] else factor[k] * carry)
            elements[k] = carry
        return carry

    return compiled
