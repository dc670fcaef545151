"""Priorities of the transitions in a ring: leaves of a sum tree, draws in proportion to them, and importance weights.

    leaf = p^alpha,   P(i) = leaf_i / sum_k leaf_k,   w_i = (N P(i))^-beta / max_j (N P(j))^-beta

(Schaul et al. 2016, *Prioritized Experience Replay*, equation 1 and section 3.4; the maximum is that of the batch.)
N and the sum cancel out of the weights: w_i = (leaf_i / min_j leaf_j)^-beta. Leaves are clipped to 2^-960 and 2^960, so
that none of a priority above 0 is 0 and no sum is infinite. Fillers have the leaf 0.

The transition with serial number s has leaf s % capacity. New rows get theirs, that of the largest priority so far,
when the tree is used next and not when they are added: it comes to the same, and many neighbours at once cost less.
"""

from typing import Any

import numpy as np
from numba import types
from numpy.typing import NDArray

from fastac_kernels import ring
from fastac_kernels._jit import door, inline, kernel
from fastac_kernels.memory import array_at
from fastac_kernels.objects import OBJECT
from fastac_kernels.pointers import get, load, prefetch, put, store
from fastac_kernels.power import LIMIT, exp2, log2
from fastac_kernels.sampling import EMPTY, FINE, gather_rows, read_outputs
from fastac_kernels.sum_tree import NODE, SHIFT, draw, leaves_of, recompute_range_at, recompute_touched, total_of, touch

# The words of the priorities' state: addresses, counters, and from ALPHA on float64, LARGEST being the largest priority
# so far and NEW_LEAF its leaf.
TREE, SERIALS, LEAVES, KNOWN, STALE, ALPHA, BETA, LARGEST, NEW_LEAF, STATE_SIZE = range(10)
SMALLEST_LEAF, LARGEST_LEAF = 2.0**-LIMIT, 2.0**LIMIT
# What is wrong with an update, beside FINE: its first ...
BAD_INDEX, BAD_PRIORITY, FILLER = -3, -4, -5


@inline
def _real(priorities: int, word: int) -> Any:
    return load(priorities + 8 * word, 0.0)


@inline
def _leaf(priority: Any, alpha: float) -> Any:
    """priority^alpha, clipped; exact where alpha is 0 or 1."""
    priority = np.float64(priority)
    if alpha == 1.0:
        leaf = SMALLEST_LEAF if priority < SMALLEST_LEAF else priority
        return LARGEST_LEAF if leaf > LARGEST_LEAF else leaf
    return exp2(alpha * log2(priority))


@inline
def _slot(serial: int, start: int, capacity: int) -> int:
    """The remainder serial % capacity, where `start` is the first serial number of the ring's present round."""
    slot = serial - start
    return slot if slot >= 0 else slot + capacity


@inline
def _fill(priorities: int, state: int, first: int, last: int) -> None:
    """Gives the rows from `first` to `last`, which lie in one piece, the largest priority."""
    tree, leaf, capacity = get(priorities, TREE), _real(priorities, NEW_LEAF), get(state, ring.CAPACITY)
    leaves, fillers, slots = leaves_of(tree), get(state, ring.FILLERS), get(state, ring.SLOTS)
    row, flags = get(state, ring.ROW), get(state, ring.ROWS) + get(state, ring.REWARD_AT) + ring.FLAGS_AFTER
    at = first % capacity
    for i in range(last - first):
        valid = fillers == 0 or load(flags + (first + i) % slots * row, np.uint8(0)) & ring.VALID
        store(leaves + 8 * (at + i), leaf if valid else 0.0)
    recompute_range_at(tree, at, at + last - first)


@kernel
def set_new(priorities: int, state: int) -> None:
    """Gives all rows that were added since the last time the largest priority, and the leaf 0 to fillers.

    Args:
        priorities: Address of the priorities' state.
        state: Address of the ring's state.
    """
    added, capacity = get(state, ring.ADDED), get(state, ring.CAPACITY)
    first = max(get(priorities, KNOWN), added - capacity)
    turn = min(added, first // capacity * capacity + capacity)
    _fill(priorities, state, first, turn)
    _fill(priorities, state, turn, added)
    put(priorities, KNOWN, added)


@kernel
def update(priorities: int, state: int, indices: NDArray[np.int64], values: NDArray[Any]) -> tuple[int, int]:
    """Gives transitions new priorities, the last of those given twice winning. All of them are written, or none.

    Args:
        priorities: Address of the priorities' state, whose LEAVES are scratch for B words.
        state: Address of the ring's state.
        indices: `(B,)`: serial numbers. Those of rows that were overwritten are left out and counted.
        values: `(B,)`, float32 or float64.

    Returns:
        What is wrong, and where.
    """
    if get(priorities, KNOWN) < get(state, ring.ADDED):
        set_new(priorities, state)
    tree, alpha = get(priorities, TREE), _real(priorities, ALPHA)
    added, capacity = get(state, ring.ADDED), get(state, ring.CAPACITY)
    leaf = array_at(get(priorities, LEAVES), indices.size, 0.0)
    leaves, oldest, start = leaves_of(tree), max(added - capacity, 0), added // capacity * capacity
    for i in range(indices.size):
        if (indices[i] < 0) | (indices[i] >= added):
            return BAD_INDEX, i
        if not ((values[i] > 0.0) & (values[i] < np.inf)):
            return BAD_PRIORITY, i
        node = leaves + (_slot(max(indices[i], oldest), start, capacity) >> SHIFT) * NODE
        prefetch(node)
        prefetch(node + NODE // 2)
    for i in range(indices.size):
        leaf[i] = _leaf(values[i], alpha)
    for i in range(indices.size):
        if indices[i] >= oldest and load(leaves + 8 * _slot(indices[i], start, capacity), 0.0) == 0.0:
            return FILLER, i
    count: Any = np.int64(0)
    stale, largest = 0, _real(priorities, LARGEST)
    for i in range(indices.size):
        if indices[i] < oldest:
            stale += 1
            continue
        slot = _slot(indices[i], start, capacity)
        store(leaves + 8 * slot, leaf[i])
        count = touch(tree, count, slot >> SHIFT)
        largest = values[i] if values[i] > largest else largest
    recompute_touched(tree, count)
    put(priorities, STALE, get(priorities, STALE) + stale)
    if largest > _real(priorities, LARGEST):
        store(priorities + 8 * LARGEST, np.float64(largest))
        store(priorities + 8 * NEW_LEAF, _leaf(largest, alpha))
    return FINE, 0


@kernel
def set_exponents(priorities: int, alpha: float, beta: float) -> None:
    """Sets both exponents, of priorities of which none has been used yet: the largest is 1."""
    store(priorities + 8 * ALPHA, alpha)
    store(priorities + 8 * BETA, beta)
    store(priorities + 8 * LARGEST, 1.0)
    store(priorities + 8 * NEW_LEAF, _leaf(1.0, alpha))


@inline
def weigh(leaves: int, weights: NDArray[np.float32], beta: float) -> None:
    """Importance weights of as many leaves above 0, float64 at an address."""
    leaf = array_at(leaves, weights.size, 0.0)
    # Of floats above 0 the order is that of their bits, and integers have a minimum that vectorises.
    bits = array_at(leaves, weights.size, 0)
    lowest = bits[0]
    for i in range(weights.size):
        lowest = min(lowest, bits[i])
    scale = log2(np.int64(lowest).view(np.float64))
    for i in range(weights.size):
        weights[i] = np.float32(exp2(beta * (scale - log2(leaf[i]))))


@door(types.int64, types.int64, OBJECT, types.float32[::1], types.float64)
def sample_prioritized(priorities: int, state: int, objects: Any, weights: NDArray[np.float32], beta: float) -> int:
    """Draws transitions in proportion to their leaves, stratified, with their importance weights.

    Args:
        priorities: Address of the priorities' state, whose SERIALS and LEAVES are scratch for B words each.
        state: Address of the ring's state.
        objects: As in `sampling.sample`.
        weights: Output, `(B,)`.
        beta: Exponent of the weights.

    Returns:
        FINE, EMPTY where there is no transition, or the number of an item that is no plain array of the right type.
    """
    n = weights.size
    item = read_outputs(state, objects, n)
    if item >= 0:
        return item
    if get(priorities, KNOWN) < get(state, ring.ADDED):
        set_new(priorities, state)
    tree, serials, leaves = get(priorities, TREE), get(priorities, SERIALS), get(priorities, LEAVES)
    if not total_of(tree) > 0.0:
        return EMPTY
    draw(tree, get(state, ring.SEED), get(state, ring.COUNTER), serials, leaves, n)
    put(state, ring.COUNTER, get(state, ring.COUNTER) + n)
    weigh(leaves, weights, beta)
    added, capacity = get(state, ring.ADDED), get(state, ring.CAPACITY)
    start = added // capacity * capacity
    index = array_at(serials, n, 0)
    for i in range(n):
        index[i] += start if index[i] < added - start else start - capacity
    gather_rows(state, n, serials)
    return FINE
