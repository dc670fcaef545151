"""Windows of consecutive rows of one environment in a ring: where they may start, draws of starts, and their rows.

A run of an environment is a longest sequence of rows that follow one another without an end, a break or a filler
between them. A window of L rows is one of three:

    whole     L rows of one run,
    padded    what is left of a run, at least `least` rows, and at most L; its last row is repeated up to L,
    across    any L rows that begin with no filler.

With N environments, row t of environment e has the serial number i = t N + e. When it is added, at most one window
becomes possible that was not before: the one that begins `least` - 1 rows earlier (L - 1 rows for whole ones and those
across). It ceases to be possible when its first row, the oldest it has, is overwritten. Starts therefore come in the
order of their serial numbers and go in that order: a queue in a ring holds them all, each row costs O(1), and draws
take O(1) however many rows there are.
"""

from typing import Any

import numpy as np
from numba import types
from numpy.typing import NDArray

from fastac_kernels import ring
from fastac_kernels._jit import door, inline, kernel
from fastac_kernels.memory import address_of
from fastac_kernels.objects import ITEMS, NONE, OBJECT, object_address, read
from fastac_kernels.pointers import copy, get, load, prefetch_far, put, store
from fastac_kernels.priorities import KNOWN, LEAVES, NEW_LEAF, TREE, weigh
from fastac_kernels.sampling import random_below
from fastac_kernels.sum_tree import SHIFT, draw, leaves_of, recompute_touched, touch

# The words of an index: steps that it has seen, the queue's ends (counted over its life), the rest fixed.
SEEN, HEAD, TAIL, LENGTH, LEAST, MODE, BURN_IN, QUEUE, QUEUE_SIZE, RUNS, INDEX_SIZE = range(11)
WHOLE, PADDED, ACROSS = range(3)
AHEAD = 32  # rows between a prefetch and its copy
LINES = 4  # cache lines of a row asked for in advance


@inline
def _flags_address(state: int, serial: int) -> int:
    """Address of a row's flags."""
    return (
        get(state, ring.ROWS)
        + serial % get(state, ring.SLOTS) * get(state, ring.ROW)
        + get(state, ring.REWARD_AT)
        + ring.FLAGS_AFTER
    )


@inline
def _flags(state: int, serial: int) -> Any:
    return load(_flags_address(state, serial), np.uint8(0))


@inline
def _in_queue(index: int, place: int) -> int:
    """Address of a place in the queue."""
    return get(index, QUEUE) + 8 * (place % get(index, QUEUE_SIZE))


@inline
def _set_leaf(tree: int, count: int, leaf: int, value: Any) -> int:
    """Sets a leaf, and notes what depends on it; returns how many nodes are noted now."""
    store(leaves_of(tree) + 8 * leaf, np.float64(value))
    return touch(tree, count, leaf >> SHIFT)


@kernel
def index_rows(state: int, index: int, priorities: int) -> None:
    """Takes the rows added since the last call into the index.

    Args:
        state: Address of the ring's state.
        index: Address of the index.
        priorities: Address of the priorities' state, where the leaf of row s is that of the window that starts with it:
            starts that go get the leaf 0, starts that come that of the largest priority. 0: there are none.
    """
    envs, capacity, added, runs = (
        get(state, ring.ENVS),
        get(state, ring.CAPACITY),
        get(state, ring.ADDED),
        get(index, RUNS),
    )
    tree, oldest = (get(priorities, TREE) if priorities != 0 else 0), max(added - capacity, 0)
    touched: Any = np.int64(0)
    leaf = load(priorities + 8 * NEW_LEAF, 0.0) if priorities != 0 else 0.0
    head, tail, mode, least = get(index, HEAD), get(index, TAIL), get(index, MODE), get(index, LEAST)
    while head < tail and load(_in_queue(index, head), np.int64(0)) < oldest:
        if tree != 0:
            touched = _set_leaf(tree, touched, load(_in_queue(index, head), np.int64(0)) % capacity, 0.0)
        head += 1
    for step in range(get(index, SEEN), added // envs):
        for e in range(envs):
            serial = step * envs + e
            flags, run = _flags(state, serial), load(runs + 8 * e, np.int64(0))
            if mode != ACROSS:
                if not flags & ring.VALID:
                    run = -1
                elif run > 0 and _flags(state, serial - envs) & ring.CUT:
                    run = 0
            run += 1
            store(runs + 8 * e, np.int64(run))
            if run < least:
                continue
            start = serial - (least - 1) * envs
            if mode == ACROSS and not _flags(state, start) & ring.VALID:
                continue
            store(_in_queue(index, tail), np.int64(start))
            tail += 1
            if tree != 0:
                touched = _set_leaf(tree, touched, start % capacity, leaf)
    put(index, SEEN, added // envs)
    put(index, HEAD, head)
    put(index, TAIL, tail)
    if tree != 0:
        recompute_touched(tree, touched)
        put(priorities, KNOWN, added)


@kernel
def not_a_start(index: int, count: int, starts: int) -> int:
    """Returns the place of the first of `count` int64 at address `starts` that no window starts at, or -1."""
    for i in range(count):
        start, low, high = load(starts + 8 * i, np.int64(0)), get(index, HEAD), get(index, TAIL)
        while low < high:
            middle = (low + high) // 2
            if load(_in_queue(index, middle), np.int64(0)) < start:
                low = middle + 1
            else:
                high = middle
        if low == get(index, TAIL) or load(_in_queue(index, low), np.int64(0)) != start:
            return i
    return -1


@kernel
def draw_starts(state: int, index: int, batch: int, starts: int) -> None:
    """Draws starts uniformly, with replacement, from a queue that holds some.

    Args:
        state: Address of the ring's state, whose generator is used.
        index: Address of the index.
        batch: How many.
        starts: Output, address of int64: serial numbers.
    """
    head, seed, counter = get(index, HEAD), get(state, ring.SEED), get(state, ring.COUNTER)
    size = get(index, TAIL) - head
    for i in range(batch):
        place = head + random_below(seed, counter + i, size)
        store(starts + 8 * i, load(_in_queue(index, place), np.int64(0)))
    put(state, ring.COUNTER, counter + batch)


@kernel
def draw_prioritized(
    state: int, priorities: int, starts: NDArray[np.int64], weights: NDArray[np.float32], beta: float
) -> None:
    """Draws starts in proportion to their leaves, stratified, with their importance weights.

    Args:
        state: Address of the ring's state, whose generator is used.
        priorities: Address of the priorities' state; LEAVES is scratch for B words. The tree's total is above 0.
        starts: Output, `(B,)`: serial numbers.
        weights: Output, `(B,)`.
        beta: Exponent of the weights.
    """
    counter, leaves = get(state, ring.COUNTER), get(priorities, LEAVES)
    draw(get(priorities, TREE), get(state, ring.SEED), counter, address_of(starts), leaves, starts.size)
    put(state, ring.COUNTER, counter + starts.size)
    weigh(leaves, weights, beta)
    added, capacity = get(state, ring.ADDED), get(state, ring.CAPACITY)
    round_start = added // capacity * capacity
    for i in range(starts.size):
        starts[i] += round_start if starts[i] < added - round_start else round_start - capacity


@inline
def _truth(address: int, i: int, value: Any) -> None:
    store(address + i, np.uint8(1) if value else np.uint8(0))


@inline
def _after(slot: int, envs: int, slots: int) -> int:
    """The slot of an environment's next row."""
    slot += envs
    return slot - slots if slot >= slots else slot


@inline
def _ask_for(state: int, slot: int) -> None:
    """Asks for the cache lines of a row; the hardware fetches the rest of a long one."""
    row = get(state, ring.ROW)
    here = get(state, ring.ROWS) + slot * row
    for i in range(0, min(row, LINES * 64), 64):
        prefetch_far(here + i)
    if row > LINES * 64:
        prefetch_far(here + get(state, ring.REWARD_AT))


@inline
def _copy_row(state: int, out: int, i: int, slot: int, flags: Any) -> None:
    """Copies a row with its next observation to place i of the outputs."""
    row, rows, reward_at, leaves = (
        get(state, ring.ROW), get(state, ring.ROWS), get(state, ring.REWARD_AT), get(state, ring.LEAVES)
    )  # fmt: skip
    observation_leaves, here = get(state, ring.OBSERVATION_LEAVES), rows + slot * row
    others = observation_leaves + get(state, ring.ROW_LEAVES)
    if flags & ring.FILED:
        entry = load(here + get(state, ring.SIDE_AT), np.int64(0)) % get(state, ring.SIDE_SIZE)
        following = get(state, ring.SIDE) + entry * get(state, ring.OBSERVATION)
    else:
        following = rows + _after(slot, get(state, ring.ENVS), get(state, ring.SLOTS)) * row
    for leaf in range(others):
        offset, size = load(leaves + 16 * leaf, np.int64(0)), load(leaves + 16 * leaf + 8, np.int64(0))
        copy(load(out + 8 * leaf, np.int64(0)) + i * size, here + offset, size)
    for leaf in range(observation_leaves):
        offset, size = load(leaves + 16 * leaf, np.int64(0)), load(leaves + 16 * leaf + 8, np.int64(0))
        copy(load(out + 8 * (others + leaf), np.int64(0)) + i * size, following + offset, size)
    after = out + 8 * (others + observation_leaves)
    store(load(after, np.int64(0)) + 4 * i, load(here + reward_at, np.float32(0)))
    _truth(load(after + 8, np.int64(0)), i, flags & ring.TERMINATED != 0)
    breaks = flags & (ring.VALID | ring.CUT | ring.TERMINATED) == ring.VALID | ring.CUT
    _truth(load(after + 16, np.int64(0)), i, flags & ring.TRUNCATED != 0 or breaks)


@inline
def _copy_window(
    state: int, index: int, out: int, b: int, batch: int, start: int, then: int,
    is_first: int, mask: int, loss_mask: int,
) -> None:  # fmt: skip
    """Copies window b of a batch, row k to place k * batch + b, and asks for the window that starts in slot `then`."""
    envs, added, slots = get(state, ring.ENVS), get(state, ring.ADDED), get(state, ring.SLOTS)
    length, burn_in, across = get(index, LENGTH), get(index, BURN_IN), get(index, MODE) == ACROSS
    row, flags_at = get(state, ring.ROW), get(state, ring.ROWS) + get(state, ring.REWARD_AT) + ring.FLAGS_AFTER
    slot, serial, inside, i = start % slots, start, True, b
    ahead = (start + min(AHEAD, length) * envs) % slots
    before: Any = ring.CUT if start < envs else _flags(state, start - envs)
    for k in range(length):
        ahead = then if k + AHEAD == length else ahead
        _ask_for(state, ahead)
        ahead = _after(ahead, envs, slots)
        flags = load(flags_at + slot * row, np.uint8(0))
        _copy_row(state, out, i, slot, flags)
        valid = inside and flags & ring.VALID != 0
        _truth(is_first, i, valid and before & ring.CUT != 0)
        _truth(mask, i, valid)
        _truth(loss_mask, i, valid and k >= burn_in)
        inside = inside and serial + envs < added and (across or not flags & ring.CUT)
        if inside:
            serial, slot, before = serial + envs, _after(slot, envs, slots), flags
        i += batch


@door(types.int64, types.int64, OBJECT, types.int64[::1], *[types.boolean[:, ::1]] * 3)
def gather_windows(
    state: int, index: int, objects: Any, starts: NDArray[np.int64],
    is_first: NDArray[np.bool_], mask: NDArray[np.bool_], loss_mask: NDArray[np.bool_],
) -> int:  # fmt: skip
    """Copies windows, time-major: row k of window b is number k * B + b of each output. All arrays are C-contiguous.

    A window's rows are read one after the other, although they are written far apart: memory that is read is not in the
    cache, memory that is written soon is.

    Args:
        state: Address of the ring's state.
        index: Address of the index.
        objects: A tuple of numpy arrays with L * B rows each: observations, actions and extra fields, next
            observations, rewards, terminated, truncated. None: their addresses are in the state's output table already.
        starts: `(B,)`, the serial numbers of the windows' first rows.
        is_first: Output, `(L, B)`: a row with which a run begins.
        mask: Output, `(L, B)`: neither filler nor padding.
        loss_mask: Output, `(L, B)`: the same without burn-in.

    Returns:
        -1, or the number of an item of the tuple that is not a plain array of the right type and shape.
    """
    batch, length, out = starts.size, get(index, LENGTH), get(state, ring.OUTPUT_TABLE)
    at, known = object_address(objects), get(state, ring.TRUTHS)
    if at != get(known, NONE):
        count = get(state, ring.OUTPUT_COUNT) - 2  # without discounts and indices
        item = read(get(state, ring.OUTPUTS), count, at + ITEMS, batch * length, out, known)
        if item >= 0:
            return item
    envs, slots = get(state, ring.ENVS), get(state, ring.SLOTS)
    for k in range(min(AHEAD, length) if batch > 0 else 0):
        _ask_for(state, (starts[0] + k * envs) % slots)
    for b in range(batch):
        _copy_window(
            state, index, out, b, batch, starts[b], starts[min(b + 1, batch - 1)] % slots,
            address_of(is_first), address_of(mask), address_of(loss_mask),
        )  # fmt: skip
    return -1
