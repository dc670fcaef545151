"""Operations that are rounded in the order in which they are written, inside kernels that may re-associate all others.

    strict_add(a, b) = round(a + b),   strict_multiply(a, b) = round(a * b)

Kernels are compiled with `reassoc`; an operation that carries flags of its own keeps them instead. The `strict_` ones
may still be contracted (a b + c rounded once); the `rounded_` ones are IEEE's, each rounded by itself as NumPy does.
"""

from typing import Any

from numba.extending import intrinsic


def _strict(operation: str, flag: str) -> Any:
    """An operation with one flag and no other."""

    @intrinsic  # type: ignore[untyped-decorator]
    def strict(typingctx: Any, a: Any, b: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return getattr(builder, operation)(*args, flags=(flag,))

        return a(a, a), codegen

    return strict


strict_add, strict_multiply = _strict("fadd", "contract"), _strict("fmul", "contract")
# Without any flag they would be given all; the sign of zero is the least of them.
rounded_add, rounded_multiply, rounded_divide = (_strict(operation, "nsz") for operation in ("fadd", "fmul", "fdiv"))
