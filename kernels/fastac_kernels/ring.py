"""Insertion into a ring of packed rows, one step of all environments at a time.

Row t of environment e has the serial number t * N + e, counted over the ring's whole life, and lies in slot
serial % slots. It begins with the observation; then come action, extra fields, the reward (float32), a byte of flags, a
byte of age and, where its next observation lies apart, that one's serial number in the side table.

The next observation of row t is written where row t + 1 will begin. When that row is added, its observation is compared
with what lies there: mostly they are the same bytes, and are stored once. Where they differ - an episode ended, or the
caller changed the observation - what lies there is filed in the side table, a ring of observations of its own, before
it is overwritten. So the ring has a step more than its capacity.
"""

from typing import Any

import numpy as np

from fastac_kernels._jit import inline, kernel
from fastac_kernels.objects import read
from fastac_kernels.pointers import copy, equal, load, prefetch, store

# The words of a ring's state, all int64. Counters and the generator first: they are saved.
ADDED, FILLERS, SIDE_HEAD, SIDE_SIZE, SEED, COUNTER, BREAKS = range(7)
COUNTERS = ("added", "fillers", "side_head", "side_size", "seed", "counter", "breaks")
# What follows from the layout.
(
    CAPACITY, SLOTS, ENVS, ROW, OBSERVATION, REWARD_AT, SIDE_AT, CHAINED, STACK, N_STEP,
    ROWS, SIDE, MARKS, LEAVES, OBSERVATION_LEAVES, ROW_LEAVES, ITEMS, ITEM_COUNT, OUTPUTS, OUTPUT_COUNT,
    TRUTHS, TABLE, OUTPUT_TABLE, POWERS, STATE_SIZE,
) = range(8, 33)  # fmt: skip

# Flags of a row. CUT: no window goes on from here to the next row. FILED: the next observation is in the side table.
TERMINATED, TRUNCATED, VALID, CUT, FILED = 1, 2, 4, 8, 16
FLAGS_AFTER, AGE_AFTER = 4, 5  # bytes after the reward's address
INSERTED, FULL_SIDE = -1, -2


@inline
def get(state: int, word: int) -> int:
    """A word of the state."""
    value: int = load(state + 8 * word, np.int64(0))
    return value


@inline
def put(state: int, word: int, value: int) -> None:
    """Sets a word of the state."""
    store(state + 8 * word, np.int64(value))


@inline
def slot_of(state: int, serial: int) -> int:
    """Where a row lies."""
    return serial % get(state, SLOTS)


@inline
def _flag(address: int, i: int) -> int:
    return 1 if address != 0 and load(address + i, np.uint8(0)) != 0 else 0


@inline
def _reward(address: int, i: int, double: int) -> Any:
    if double:
        return np.float32(load(address + 8 * i, np.float64(0)))
    return load(address + 4 * i, np.float32(0))


@inline
def _forget(state: int, first: int, count: int) -> None:
    """Takes rows that fall out of the capacity out of the count of fillers."""
    if get(state, FILLERS) == 0:
        return
    flags_at, row, fillers = get(state, REWARD_AT) + FLAGS_AFTER, get(state, ROW), get(state, FILLERS)
    for serial in range(max(first, 0), max(first + count, 0)):
        flags = load(get(state, ROWS) + slot_of(state, serial) * row + flags_at, np.uint8(0))
        if not flags & VALID:
            fillers -= 1
    put(state, FILLERS, fillers)


@inline
def _side_free(state: int, step: int) -> int:
    """Entries of the side table that no row refers to once this step's are overwritten."""
    steps = get(state, SLOTS) // get(state, ENVS)
    oldest = step + 2 - steps
    tail = 0 if oldest <= 0 else load(get(state, MARKS) + 8 * (oldest % steps), np.int64(0))
    return get(state, SIDE_SIZE) - (get(state, SIDE_HEAD) - tail)


@inline
def _leaf(state: int, leaf: int) -> tuple[int, int]:
    """Offset in the row, and size in bytes, of a field."""
    at = get(state, LEAVES) + 16 * leaf
    return load(at, np.int64(0)), load(at + 8, np.int64(0))


@inline
def _insert_step(state: int, table: int) -> int:
    """One step of all environments of a chained ring; see `insert`."""
    envs, slots, row = get(state, ENVS), get(state, SLOTS), get(state, ROW)
    added, rows, reward_at = get(state, ADDED), get(state, ROWS), get(state, REWARD_AT)
    observation_leaves, row_leaves = get(state, OBSERVATION_LEAVES), get(state, ROW_LEAVES)
    side_at, side_row, side_size = get(state, SIDE_AT), get(state, OBSERVATION), get(state, SIDE_SIZE)
    step = added // envs
    if _side_free(state, step) < envs:
        return FULL_SIDE
    _forget(state, added - get(state, CAPACITY), envs)
    head, fillers, breaks = get(state, SIDE_HEAD), get(state, FILLERS), get(state, BREAKS)
    store(get(state, MARKS) + 8 * (step % (slots // envs)), np.int64(head))
    items = table + 8 * (observation_leaves + row_leaves)  # next observations, rewards, flags
    after = items + 8 * observation_leaves
    rewards, double = load(after, np.int64(0)), load(after + 40, np.int64(0))
    terminated, truncated, mask = (
        load(after + 8, np.int64(0)),
        load(after + 16, np.int64(0)),
        load(after + 24, np.int64(0)),
    )
    first = added % slots
    before, behind = (first - envs if first > 0 else slots - envs), (first + envs if first + envs < slots else 0)
    for e in range(envs):
        here = rows + (first + e) * row
        flags = _flag(terminated, e) * TERMINATED | _flag(truncated, e) * TRUNCATED
        if mask == 0 or _flag(mask, e):
            flags |= VALID
        else:
            flags |= CUT
            fillers += 1
        if flags & (TERMINATED | TRUNCATED):
            flags |= CUT
        prefetch(here + 8 * row)
        same = added > 0
        if same:
            for leaf in range(observation_leaves):
                offset, size = _leaf(state, leaf)
                same = same and equal(load(table + 8 * leaf, np.int64(0)) + e * size, here + offset, size)
        if not same:
            if added > 0:
                last = rows + (before + e) * row + reward_at + FLAGS_AFTER
                last_flags = load(last, np.uint8(0))
                if last_flags & VALID:
                    if not last_flags & CUT:
                        breaks += 1
                    copy(get(state, SIDE) + (head % side_size) * side_row, here, side_row)
                    store(rows + (before + e) * row + side_at, np.int64(head))
                    store(last, np.uint8(last_flags | FILED | CUT))
                    head += 1
            for leaf in range(observation_leaves):
                offset, size = _leaf(state, leaf)
                copy(here + offset, load(table + 8 * leaf, np.int64(0)) + e * size, size)
        elif not flags & VALID:
            last = rows + (before + e) * row + reward_at + FLAGS_AFTER
            store(last, np.uint8(load(last, np.uint8(0)) | CUT))
        for leaf in range(observation_leaves, observation_leaves + row_leaves):
            offset, size = _leaf(state, leaf)
            copy(here + offset, load(table + 8 * leaf, np.int64(0)) + e * size, size)
        store(here + reward_at, _reward(rewards, e, double))
        store(here + reward_at + FLAGS_AFTER, np.uint8(flags))
        there = rows + (behind + e) * row
        for leaf in range(observation_leaves):
            offset, size = _leaf(state, leaf)
            copy(there + offset, load(items + 8 * leaf, np.int64(0)) + e * size, size)
    put(state, SIDE_HEAD, head)
    put(state, FILLERS, fillers)
    put(state, BREAKS, breaks)
    put(state, ADDED, added + envs)
    return INSERTED


@inline
def _insert_rows(state: int, table: int, count: int) -> int:
    """Independent transitions; see `insert`."""
    slots, row = get(state, SLOTS), get(state, ROW)
    rows, reward_at = get(state, ROWS), get(state, REWARD_AT)
    observation_leaves, row_leaves = get(state, OBSERVATION_LEAVES), get(state, ROW_LEAVES)
    leaves = observation_leaves + row_leaves
    after = table + 8 * (leaves + observation_leaves)
    rewards, double = load(after, np.int64(0)), load(after + 40, np.int64(0))
    terminated, truncated, mask = (
        load(after + 8, np.int64(0)),
        load(after + 16, np.int64(0)),
        load(after + 24, np.int64(0)),
    )
    for i in range(count):
        added = get(state, ADDED)
        _forget(state, added - slots, 1)
        here = rows + (added % slots) * row
        flags = CUT | _flag(terminated, i) * TERMINATED | _flag(truncated, i) * TRUNCATED
        if mask == 0 or _flag(mask, i):
            flags |= VALID
        else:
            put(state, FILLERS, get(state, FILLERS) + 1)
        for leaf in range(leaves + observation_leaves):
            offset, size = _leaf(state, leaf)
            copy(here + offset, load(table + 8 * leaf, np.int64(0)) + i * size, size)
        store(here + reward_at, _reward(rewards, i, double))
        store(here + reward_at + FLAGS_AFTER, np.uint8(flags))
        put(state, ADDED, added + 1)
    return INSERTED


@kernel
def insert(state: int, objects: int) -> int:
    """Adds one step of all environments, or any number of independent transitions.

    Args:
        state: Address of the ring's state.
        objects: Address of a tuple of numpy arrays and scalars: observations, actions and extra fields, next
            observations, rewards, terminated, truncated, mask. 0: their addresses are in the state's table already.

    Returns:
        -1 where it was done; -2 where the side table has to grow first; else the number of an item that is not plain
        memory of the right type and shape. Nothing is written but in the first case.
    """
    table, count = get(state, TABLE), get(state, ITEM_COUNT)
    chained = get(state, CHAINED)
    if objects != 0:
        rows = get(state, ENVS) if chained else -1
        item = read(get(state, ITEMS), count, objects, rows, table, get(state, TRUTHS))
        if item >= 0:
            return item
    if chained:
        return _insert_step(state, table)
    return _insert_rows(state, table, load(table + 8 * count, np.int64(0)))


@kernel
def grow_side(state: int, size: int) -> None:
    """Spreads the side table's entries over `size` places, a multiple of those it has; the memory is there already."""
    head, old, row, side = get(state, SIDE_HEAD), get(state, SIDE_SIZE), get(state, OBSERVATION), get(state, SIDE)
    for serial in range(max(head - old, 0), head):
        if serial % old != serial % size:
            copy(side + (serial % size) * row, side + (serial % old) * row, row)
    put(state, SIDE_SIZE, size)
