"""A sum tree: leaves >= 0 in float64, drawn in proportion to their value, each in as many steps as the tree has levels.

Sixteen children make a node. A node's sums run from its first child to its last,

    s_1 = c_1,   s_j = s_{j-1} + c_j,   total = s_16 (rounded after each addition, in this order),

and its total is a child of the node above. Totals are always recomputed from the children, never changed by what a
leaf was changed by, so that a tree depends on its leaves alone and not on the order of its updates. The running sums
of inner nodes are stored besides: the child that x in [0, total) falls to is then the number of s_j <= x, which
vector instructions count.

The walk never ends on a leaf that is 0, whatever rounding does: running sums of what is >= 0 never fall, x is kept
below the total that the node itself adds up to, and therefore s_{j-1} <= x < s_j at the child that is chosen, which
says c_j > 0. The only condition is a total above 0 (and finite).

Draws are stratified (Schaul et al. 2016, *Prioritized Experience Replay*, appendix B.2.1): of n draws, draw i falls
uniformly on the i-th of n equal parts of the whole. Each leaf's expected count is n c / total, as of independent draws,
with less variance, and the draws come in the order of the nodes. The batch descends level by level, since that lets the
misses of the cache overlap; walking one draw at a time takes eight times as long.

A tree is handed over as the address of its header, int64: `LEVELS`, `TOUCHED` (memory for one more int64 than there are
nodes above the leaves), then for each level, leaves first, the addresses of its values (leaves, or totals of the level
below), of its running sums (none at the leaves) and of its marks (a byte for each node, 0 between calls). One more row
holds the address of the root's total.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastac_kernels._jit import inline, kernel
from fastac_kernels.memory import array_at
from fastac_kernels.pointers import load, prefetch, store
from fastac_kernels.sampling import random_word
from fastac_kernels.strict import strict_add, strict_multiply

ARITY, SHIFT = 16, 4
NODE = 8 * ARITY  # bytes
LEVELS, TOUCHED, ROWS = 0, 8, 16  # bytes from the header's beginning
VALUES, SUMS, MARKS, ROW = 0, 8, 16, 24  # bytes from a row's beginning, and its size


@intrinsic  # type: ignore[untyped-decorator]
def _count_up_to(typingctx: Any, address: Any, x: Any) -> Any:
    """How many of sixteen float64 at an address are <= x."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        lanes = ir.VectorType(ir.DoubleType(), ARITY)
        sums = builder.load(builder.inttoptr(args[0], lanes.as_pointer()), align=8)
        none = ir.Constant(lanes, ir.Undefined)
        first = builder.insert_element(none, args[1], ir.Constant(ir.IntType(32), 0))
        everywhere = ir.Constant(ir.VectorType(ir.IntType(32), ARITY), [0] * ARITY)
        bits = builder.fcmp_ordered("<=", sums, builder.shuffle_vector(first, none, everywhere))
        return builder.zext(builder.ctpop(builder.bitcast(bits, ir.IntType(ARITY))), ir.IntType(64))

    return types.int64(types.int64, types.float64), codegen


@inline
def _below(x: Any, total: Any) -> Any:
    """Keeps x under a total above 0: the remainder of a rounded subtraction may be the whole child, or more."""
    top = np.int64(np.float64(total).view(np.int64) - 1).view(np.float64)  # the next smaller number
    return x if x < top else top


@inline
def _inner_step(sums: int, x: Any) -> Any:
    """The child of the inner node with these running sums that x falls to, and what is left of x there."""
    x = _below(x, load(sums + NODE - 8, 0.0))
    child = _count_up_to(sums, x)
    before = load(sums + 8 * max(child - 1, 0), 0.0)
    return child, x - (before if child > 0 else 0.0)


@inline
def _leaf_step(leaves: int, x: Any) -> Any:
    """The leaf that x falls to."""
    total = 0.0
    for j in range(ARITY):
        total = strict_add(total, load(leaves + 8 * j, 0.0))
    x = _below(x, total)
    total, child = 0.0, 0
    for j in range(ARITY):
        total = strict_add(total, load(leaves + 8 * j, 0.0))
        child += total <= x
    return child


@inline
def leaves_of(tree: int) -> Any:
    """The address of the leaves."""
    return load(tree + ROWS + VALUES, 0)


@inline
def total_of(tree: int) -> Any:
    """The root's total."""
    return load(load(tree + ROWS + ROW * load(tree + LEVELS, 0) + VALUES, 0), 0.0)


@inline
def _recompute(row: int, node: int, inner: bool) -> None:
    """A node's total from its children, and the running sums of an inner node."""
    children, sums = load(row + VALUES, 0) + node * NODE, load(row + SUMS, 0) + node * NODE
    total = 0.0
    if inner:
        for j in range(ARITY):
            total = strict_add(total, load(children + 8 * j, 0.0))
            store(sums + 8 * j, total)
    else:
        for j in range(ARITY):
            total = strict_add(total, load(children + 8 * j, 0.0))
    store(load(row + ROW + VALUES, 0) + 8 * node, total)


@kernel
def recompute_range_at(tree: int, start: int, stop: int) -> None:
    """Recomputes whatever depends on the leaves from `start` to `stop`, the last one excluded.

    Args:
        tree: Address of the tree's header.
        start: First leaf.
        stop: One more than the last leaf. Where there is none, nothing happens.
    """
    if start >= stop:
        return
    first, last = start, stop - 1
    for level in range(load(tree + LEVELS, 0)):
        first, last = first >> SHIFT, last >> SHIFT
        for node in range(first, last + 1):
            _recompute(tree + ROWS + ROW * level, node, level > 0)


@inline
def _touch(row: int, touched: int, count: int, node: int) -> int:
    mark = load(row + MARKS, 0) + node
    store(touched + 8 * count, node)
    count += 1 - load(mark, np.uint8(0))
    store(mark, np.uint8(1))
    return count


@inline
def touch(tree: int, count: int, node: int) -> int:
    """Appends a node above the leaves to the `count` touched ones, unless it is there; returns their number."""
    return _touch(tree + ROWS, load(tree + TOUCHED, 0), count, node)


@inline
def recompute_touched(tree: int, count: int) -> None:
    """Recomputes the `count` touched nodes above the leaves and whatever depends on them, each node once."""
    touched, levels = load(tree + TOUCHED, 0), load(tree + LEVELS, 0)
    for level in range(levels):
        row = tree + ROWS + ROW * level
        marks = load(row + MARKS, 0)
        parents: Any = np.int64(0)
        for i in range(count):
            node = load(touched + 8 * i, 0)
            _recompute(row, node, level > 0)
            store(marks + node, np.uint8(0))
            if level + 1 < levels:
                parents = _touch(row + ROW, touched, parents, node >> SHIFT)
        count = parents


@kernel
def set_leaves_at(tree: int, leaves: int, values: int, n: int) -> None:
    """Writes leaves, the last of those given twice winning, and recomputes what depends on them.

    Args:
        tree: Address of the tree's header.
        leaves: Address of n int64: which.
        values: Address of n float64, >= 0 and finite.
        n: How many.
    """
    base = leaves_of(tree)
    count: Any = np.int64(0)
    for i in range(n):
        leaf = load(leaves + 8 * i, 0)
        store(base + 8 * leaf, load(values + 8 * i, 0.0))
        count = touch(tree, count, leaf >> SHIFT)
    recompute_touched(tree, count)


@inline
def _uniform(seed: int, counter: int) -> Any:
    """Number `counter` of the generator on [0, 1)."""
    return np.float64(random_word(seed, counter) >> np.uint64(11)) * 2.0**-53


@inline
def draw(tree: int, seed: int, counter: int, leaves: int, values: int, n: int) -> None:
    """Draws n leaves; the arguments are those of `draw_at`."""
    out, left = array_at(leaves, n, 0), array_at(values, n, 0.0)
    levels = load(tree + LEVELS, 0)
    part = total_of(tree) / n
    for i in range(n):
        out[i] = 0
        left[i] = strict_multiply(strict_add(np.float64(i), _uniform(seed, counter + i)), part)
    for level in range(levels - 1, 0, -1):
        row = tree + ROWS + ROW * level
        sums = load(row + SUMS, 0)
        down = load(row - ROW + (SUMS if level > 1 else VALUES), 0)
        for i in range(n):
            child, rest = _inner_step(sums + out[i] * NODE, left[i])
            node = out[i] * ARITY + child
            out[i], left[i] = node, rest
            prefetch(down + node * NODE)
            prefetch(down + node * NODE + NODE // 2)
    base = leaves_of(tree)
    for i in range(n):
        leaf = out[i] * ARITY + _leaf_step(base + out[i] * NODE, left[i])
        out[i], left[i] = leaf, load(base + 8 * leaf, 0.0)


@kernel
def draw_at(tree: int, seed: int, counter: int, leaves: int, values: int, n: int) -> None:
    """Draws n leaves in proportion to their values, stratified.

    Args:
        tree: Address of the header of a tree whose total is above 0.
        seed: Seed of the generator.
        counter: Its position; draw i takes number counter + i.
        leaves: Output, address of n int64.
        values: Output, address of n float64: the leaves' values.
        n: Number of draws.
    """
    draw(tree, seed, counter, leaves, values, n)
