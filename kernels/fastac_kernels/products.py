"""Products of float32 matrices by the faster of two BLAS: SciPy's, which Numba takes, and one given by its address.

    times: C = A B        times_transposed: C = A B^T        transposed_times: C = A^T B

All are C-contiguous. The address is that of Fortran's SGEMM with 64-bit integers, or 0 for none: MKL's, which torch
brings, takes four fifths of the time at 256 x 256 and half of it at some narrow shapes, and more than SciPy's at small
ones. Its matrices lie column by column, where a matrix of ours is its own transpose: C^T = op(B)^T op(A)^T.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from fastac_kernels._jit import inline
from fastac_kernels.memory import address_of

INTEGER, BYTE, FLOAT = ir.IntType(64), ir.IntType(8), ir.FloatType()


@intrinsic  # type: ignore[untyped-decorator]
def _call(
    typingctx: Any, blas: Any, first: Any, second: Any, rows: Any, columns: Any, inner: Any,
    a: Any, lead_a: Any, b: Any, lead_b: Any, c: Any, lead_c: Any,
) -> Any:  # fmt: skip
    """SGEMM in its own order of arguments, all int64: letters as their codes, matrices as addresses."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        def reference(value: Any) -> Any:
            memory = cgutils.alloca_once(builder, value.type)
            builder.store(value, memory)
            return builder.bitcast(memory, BYTE.as_pointer())

        def letter(value: Any) -> Any:
            return reference(builder.trunc(value, BYTE))

        def matrix(address: Any) -> Any:
            return builder.inttoptr(address, BYTE.as_pointer())

        blas, first, second, rows, columns, inner, a, lead_a, b, lead_b, c, lead_c = args
        one, zero = ir.Constant(FLOAT, 1.0), ir.Constant(FLOAT, 0.0)
        arguments = [
            letter(first), letter(second), reference(rows), reference(columns), reference(inner),
            reference(one), matrix(a), reference(lead_a), matrix(b), reference(lead_b),
            reference(zero), matrix(c), reference(lead_c),
        ]  # fmt: skip
        function = ir.FunctionType(ir.VoidType(), [BYTE.as_pointer()] * len(arguments))
        builder.call(builder.inttoptr(blas, function.as_pointer()), arguments)
        return context.get_dummy_value()

    return types.void(*(types.int64,) * 12), codegen


N, T = ord("N"), ord("T")


def _given(blas: int, a: Any, transposes_a: bool, b: Any, transposes_b: bool, out: Any) -> None:
    """Writes op(a) op(b) by the BLAS at that address; plain Python has numpy's."""
    np.dot(a.T if transposes_a else a, b.T if transposes_b else b, out)


@overload(_given, jit_options={"forceinline": True})  # type: ignore[untyped-decorator]
def _given_compiled(blas: Any, a: Any, transposes_a: Any, b: Any, transposes_b: Any, out: Any) -> Any:
    def call(blas: Any, a: Any, transposes_a: Any, b: Any, transposes_b: Any, out: Any) -> None:
        _call(
            blas,
            T if transposes_b else N,
            T if transposes_a else N,
            out.shape[1],
            out.shape[0],
            a.shape[0] if transposes_a else a.shape[1],
            address_of(b),
            b.shape[1],
            address_of(a),
            a.shape[1],
            address_of(out),
            out.shape[1],
        )

    return call


@inline
def _is_large(rows: int, columns: int, inner: int) -> bool:
    """Whether the given BLAS is the faster one for a product whose second matrix is not transposed."""
    return min(rows, columns, inner) >= 16 and rows * columns * inner >= 500_000


@inline
def times_transposed(blas: int, a: Any, b: Any, out: Any) -> None:
    """Writes a b^T: `(n, k)`, `(m, k)`, `(n, m)`."""
    if blas != 0 and a.shape[0] >= 32 and b.shape[0] >= 8:
        _given(blas, a, False, b, True, out)
    else:
        np.dot(a, b.T, out)


@inline
def transposed_times(blas: int, a: Any, b: Any, out: Any) -> None:
    """Writes a^T b: `(k, n)`, `(k, m)`, `(n, m)`."""
    if blas != 0 and _is_large(a.shape[1], b.shape[1], a.shape[0]):
        _given(blas, a, True, b, False, out)
    else:
        np.dot(a.T, b, out)


@inline
def times(blas: int, a: Any, b: Any, out: Any) -> None:
    """Writes a b: `(n, k)`, `(k, m)`, `(n, m)`."""
    if a.shape[1] == 1:
        for r in range(a.shape[0]):
            for c in range(b.shape[1]):
                out[r, c] = a[r, 0] * b[0, c]
    elif blas != 0 and _is_large(a.shape[0], b.shape[1], a.shape[1]):
        _given(blas, a, False, b, False, out)
    else:
        np.dot(a, b, out)
