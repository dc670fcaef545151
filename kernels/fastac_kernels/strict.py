"""Operations that are rounded in the order in which they are written, inside kernels that may re-associate all others.

    strict_add(a, b) = round(a + b),   strict_multiply(a, b) = round(a * b)

Kernels are compiled with `reassoc`; an operation that carries flags of its own keeps them instead.
"""

from typing import Any

from numba.extending import intrinsic


def _strict(operation: str) -> Any:
    """An operation that the compiler may contract and not re-associate: its rounding is what is wanted."""

    @intrinsic  # type: ignore[untyped-decorator]
    def strict(typingctx: Any, a: Any, b: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return getattr(builder, operation)(*args, flags=("contract",))

        return a(a, a), codegen

    return strict


strict_add, strict_multiply = _strict("fadd"), _strict("fmul")
