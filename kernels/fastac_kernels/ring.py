"""Insertion into a ring of packed rows, one step of all environments at a time.

Row t of environment e has a serial number, counted over the ring's whole life, and lies in a slot:

    serial = t * N + e,   slot = serial % slots

It begins with the observation; then come action, extra fields, the reward (float32), a byte of flags, a
byte of age and, where its next observation lies apart, that one's place in the side table.

The next observation of row t is written where row t + 1 will begin. When that row is added, its observation is compared
with what lies there: mostly they are the same bytes, and are stored once. Where they differ - an episode ended, or
the caller changed the observation - what lies there is filed in the side table, a ring of observations of its own,
before it is overwritten.

**Stacks.** Where an observation stacks K frames, a row stores the newest one, the others lie in the rows before it:
`age` says in how many, at most K - 1. A row of age 0 is a start; what its stack holds from before is filed in the side
table, unless all of it is the same frame. A next observation that is not the observation moved on by a frame is filed
whole. All of this is found by comparing bytes, so whatever wraps the environments, stacks come back as they were given.

**Crashes.** The ring has more steps than its capacity needs: one for the next observations, K - 1 for stacks, and one
more, so that an add writes nothing that belongs to a stored row but the flags and the pending next observations of the
newest rows; `recover` puts those back.
"""

from typing import Any

import numpy as np

from fastac_kernels._jit import door, inline, kernel
from fastac_kernels.objects import DATA, ITEMS, OBJECT, SIZE, object_address, read
from fastac_kernels.pointers import byte_at, copy, equal, fence, get, load, prefetch_to_write, put, store, word_at

# The words of a ring's state, all int64. Counters and the generator first: they are saved.
ADDED, FILLERS, SIDE_HEAD, SIDE_SIZE, SEED, COUNTER, BREAKS = range(7)
COUNTERS = ("added", "fillers", "side_head", "side_size", "seed", "counter", "breaks")
# What follows from the layout.
(
    CAPACITY, SLOTS, ENVS, ROW, OBSERVATION, REWARD_AT, SIDE_AT, CHAINED, STACK, N_STEP,
    ROWS, SIDE, MARKS, LEAVES, OBSERVATION_LEAVES, ROW_LEAVES, DESCRIPTIONS, ITEM_COUNT, OUTPUTS, OUTPUT_COUNT,
    TRUTHS, TABLE, OUTPUT_TABLE, POWERS, STATE_SIZE,
) = range(8, 33)  # fmt: skip

# Flags of a row. CUT: no window goes on from here to the next row. FILED: the next observation is in the side table,
# WHOLE: all of its frames are. START_FILED: the older frames of a start are.
TERMINATED, TRUNCATED, VALID, CUT, FILED, WHOLE, START_FILED = 1, 2, 4, 8, 16, 32, 64
FLAGS_AFTER, AGE_AFTER = 4, 5  # bytes after the reward's address
START_AFTER = 8  # after the address of the next observation's place in the side table: that of the start's older frames
INSERTED, FULL_SIDE = -1, -2


@inline
def row_address(state: int, slot: int) -> int:
    """Where a slot begins; slots before the first and after the last are those from the other end."""
    slots = get(state, SLOTS)
    if slot < 0:
        slot += slots
    elif slot >= slots:
        slot -= slots
    return get(state, ROWS) + slot * get(state, ROW)


@inline
def side_address(state: int, entry: int) -> int:
    """Where an entry of the side table lies."""
    return get(state, SIDE) + entry % get(state, SIDE_SIZE) * get(state, OBSERVATION)


@inline
def frame_address(state: int, slot: int, back: int) -> int:
    """Where the frame lies that is so many frames older than a row's own, `back` < K."""
    here, after, envs = row_address(state, slot), get(state, REWARD_AT), get(state, ENVS)
    age = byte_at(here + after + AGE_AFTER)
    if back <= age:
        return row_address(state, slot - back * envs)
    start = row_address(state, slot - age * envs)
    if byte_at(start + after + FLAGS_AFTER) & START_FILED:
        entry = word_at(start + get(state, SIDE_AT) + START_AFTER)
        return side_address(state, entry + get(state, STACK) - 1 - (back - age))
    return start


@inline
def next_frame_address(state: int, slot: int, back: int) -> int:
    """The same for the row's next observation."""
    here = row_address(state, slot)
    flags, entry = byte_at(here + get(state, REWARD_AT) + FLAGS_AFTER), word_at(here + get(state, SIDE_AT))
    if flags & WHOLE:
        return side_address(state, entry + get(state, STACK) - 1 - back)
    if back > 0:
        return frame_address(state, slot, back - 1)
    return side_address(state, entry) if flags & FILED else row_address(state, slot + get(state, ENVS))


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
    flags_at, slots, fillers = get(state, REWARD_AT) + FLAGS_AFTER, get(state, SLOTS), get(state, FILLERS)
    for serial in range(max(first, 0), max(first + count, 0)):
        if not byte_at(row_address(state, serial % slots) + flags_at) & VALID:
            fillers -= 1
    put(state, FILLERS, fillers)


@inline
def _side_room(state: int, step: int) -> int:
    """Entries of the side table that no row refers to once this step has overwritten what it overwrites."""
    steps = get(state, SLOTS) // get(state, ENVS)
    oldest = step + 2 - steps
    tail = 0 if oldest <= 0 else word_at(get(state, MARKS) + 8 * (oldest % steps))
    return get(state, SIDE_SIZE) - (get(state, SIDE_HEAD) - tail)


@inline
def _file_observation(state: int, observation: int, entry: int) -> None:
    copy(side_address(state, entry), observation, get(state, OBSERVATION))


@inline
def _file_frames(state: int, items: int, e: int, first: int, count: int, entry: int) -> None:
    """Files frames of environment e's stack from the first on, in consecutive entries."""
    leaves, stack = get(state, LEAVES), get(state, STACK)
    for leaf in range(get(state, OBSERVATION_LEAVES)):
        offset, size = word_at(leaves + 16 * leaf), word_at(leaves + 16 * leaf + 8)
        frames = word_at(items + 8 * leaf) + e * stack * size
        for j in range(count):
            copy(side_address(state, entry + j) + offset, frames + (first + j) * size, size)


@inline
def _same_stack(state: int, items: int, e: int, last: int) -> bool:
    """Whether environment e's stack is the next observation of the row in slot `last`."""
    leaves, stack = get(state, LEAVES), get(state, STACK)
    for leaf in range(get(state, OBSERVATION_LEAVES)):
        offset, size = word_at(leaves + 16 * leaf), word_at(leaves + 16 * leaf + 8)
        newest = word_at(items + 8 * leaf) + ((e + 1) * stack - 1) * size
        for back in range(stack):
            if not equal(newest - back * size, next_frame_address(state, last, back) + offset, size):
                return False
    return True


@inline
def _all_one_frame(state: int, items: int, e: int) -> bool:
    """Whether environment e's stack is one frame, repeated."""
    leaves, stack = get(state, LEAVES), get(state, STACK)
    for leaf in range(get(state, OBSERVATION_LEAVES)):
        size = word_at(leaves + 16 * leaf + 8)
        first = word_at(items + 8 * leaf) + e * stack * size
        if not equal(first, first + size, (stack - 1) * size):
            return False
    return True


@inline
def _moved_on(state: int, items: int, next_items: int, e: int) -> bool:
    """Whether environment e's next stack is its stack without the oldest frame, and a new one."""
    leaves, stack = get(state, LEAVES), get(state, STACK)
    for leaf in range(get(state, OBSERVATION_LEAVES)):
        size = word_at(leaves + 16 * leaf + 8)
        at = e * stack * size
        if not equal(word_at(items + 8 * leaf) + at + size, word_at(next_items + 8 * leaf) + at, (stack - 1) * size):
            return False
    return True


@inline
def _insert_step(state: int, items: int) -> int:
    """One step of all environments of a chained ring; see `insert`."""
    envs, slots, row, stack = get(state, ENVS), get(state, SLOTS), get(state, ROW), get(state, STACK)
    added, rows, reward_at = get(state, ADDED), get(state, ROWS), get(state, REWARD_AT)
    leaves, observation_leaves = get(state, LEAVES), get(state, OBSERVATION_LEAVES)
    others, side_at = observation_leaves + get(state, ROW_LEAVES), get(state, SIDE_AT)
    step = added // envs
    if _side_room(state, step) < envs * (1 if stack == 1 else 2 * stack):
        return FULL_SIDE
    _forget(state, added - get(state, CAPACITY), envs)
    head, fillers, breaks = get(state, SIDE_HEAD), get(state, FILLERS), get(state, BREAKS)
    store(get(state, MARKS) + 8 * (step % (slots // envs)), np.int64(head))
    next_items = items + 8 * others
    after = next_items + 8 * observation_leaves
    rewards, terminated, truncated, mask = word_at(after), word_at(after + 8), word_at(after + 16), word_at(after + 24)
    double = word_at(after + 40)
    first = added % slots
    before, behind = (first - envs if first > 0 else slots - envs), (first + envs if first + envs < slots else 0)
    for e in range(envs):
        here, last, there = rows + (first + e) * row, rows + (before + e) * row, rows + (behind + e) * row
        ahead = there + 4 * row
        for line in range(0, min(row, 256), 64):
            prefetch_to_write(ahead + line)
        flags = _flag(terminated, e) * TERMINATED | _flag(truncated, e) * TRUNCATED
        if mask == 0 or _flag(mask, e):
            flags |= VALID
        else:
            flags |= CUT
            fillers += 1
        if flags & (TERMINATED | TRUNCATED):
            flags |= CUT
        last_flags, age = 0, 0
        same = added > 0
        if same:
            last_flags = byte_at(last + reward_at + FLAGS_AFTER)
            if stack > 1:
                known = last_flags & (WHOLE | VALID) != WHOLE  # of a filler, no next observation is kept whole
                same = known and _same_stack(state, items, e, before + e)
                age = min(byte_at(last + reward_at + AGE_AFTER) + 1, stack - 1) if not last_flags & WHOLE else 0
            else:
                for leaf in range(observation_leaves):
                    offset, size = word_at(leaves + 16 * leaf), word_at(leaves + 16 * leaf + 8)
                    same = same and equal(word_at(items + 8 * leaf) + e * size, here + offset, size)
        if not same:
            if last_flags & VALID:
                if not last_flags & CUT:
                    breaks += 1
                if not last_flags & FILED:
                    _file_observation(state, here, head)
                    store(last + side_at, np.int64(head))
                    head += 1
                fence()
                store(last + reward_at + FLAGS_AFTER, np.uint8(last_flags | FILED | CUT))
                fence()
            age = 0
            for leaf in range(observation_leaves):
                offset, size = word_at(leaves + 16 * leaf), word_at(leaves + 16 * leaf + 8)
                copy(here + offset, word_at(items + 8 * leaf) + ((e + 1) * stack - 1) * size, size)
        elif not flags & VALID:
            store(last + reward_at + FLAGS_AFTER, np.uint8(last_flags | CUT))
        for leaf in range(observation_leaves, others):
            offset, size = word_at(leaves + 16 * leaf), word_at(leaves + 16 * leaf + 8)
            copy(here + offset, word_at(items + 8 * leaf) + e * size, size)
        store(here + reward_at, _reward(rewards, e, double))
        if stack > 1:
            if age == 0 and not _all_one_frame(state, items, e):
                _file_frames(state, items, e, 0, stack - 1, head)
                store(here + side_at + START_AFTER, np.int64(head))
                head += stack - 1
                flags |= START_FILED
            if not _moved_on(state, items, next_items, e):
                if flags & VALID:
                    _file_frames(state, next_items, e, 0, stack, head)
                    store(here + side_at, np.int64(head))
                    head += stack
                    flags |= FILED
                flags |= WHOLE
            store(here + reward_at + AGE_AFTER, np.uint8(age))
        store(here + reward_at + FLAGS_AFTER, np.uint8(flags))
        for leaf in range(observation_leaves):
            offset, size = word_at(leaves + 16 * leaf), word_at(leaves + 16 * leaf + 8)
            copy(there + offset, word_at(next_items + 8 * leaf) + ((e + 1) * stack - 1) * size, size)
    put(state, SIDE_HEAD, head)
    put(state, FILLERS, fillers)
    put(state, BREAKS, breaks)
    put(state, ADDED, added + envs)
    return INSERTED


@inline
def _insert_rows(state: int, items: int, count: int) -> int:
    """Independent transitions; see `insert`."""
    slots, row, rows, reward_at = get(state, SLOTS), get(state, ROW), get(state, ROWS), get(state, REWARD_AT)
    leaves, observation_leaves = get(state, LEAVES), get(state, OBSERVATION_LEAVES)
    all_leaves = 2 * observation_leaves + get(state, ROW_LEAVES)
    after = items + 8 * all_leaves
    rewards, terminated, truncated, mask = word_at(after), word_at(after + 8), word_at(after + 16), word_at(after + 24)
    double, capacity = word_at(after + 40), get(state, CAPACITY)
    slot = get(state, ADDED) % slots
    for i in range(count):
        added = get(state, ADDED)
        _forget(state, added - capacity, 1)
        here = rows + slot * row
        flags = CUT | _flag(terminated, i) * TERMINATED | _flag(truncated, i) * TRUNCATED
        if mask == 0 or _flag(mask, i):
            flags |= VALID
        else:
            put(state, FILLERS, get(state, FILLERS) + 1)
        for leaf in range(all_leaves):
            offset, size = word_at(leaves + 16 * leaf), word_at(leaves + 16 * leaf + 8)
            copy(here + offset, word_at(items + 8 * leaf) + i * size, size)
        store(here + reward_at, _reward(rewards, i, double))
        store(here + reward_at + FLAGS_AFTER, np.uint8(flags))
        put(state, ADDED, added + 1)
        slot = slot + 1 if slot + 1 < slots else 0
    return INSERTED


@door(OBJECT)
def insert(objects: Any) -> int:
    """Adds one step of all environments, or any number of independent transitions.

    Args:
        objects: A tuple: the array of the ring's state, then arrays and scalars: observations, actions and extra
            fields, next observations, rewards, terminated, truncated, mask. Without these, their addresses are in the
            state's table already.

    Returns:
        -1 where it was done; -2 where the side table has to grow first; else the number of an item that is not plain
        memory of the right type and shape. Nothing is written but in the first case.
    """
    at = object_address(objects)
    state = word_at(word_at(at + ITEMS) + DATA)
    count, table, chained = get(state, ITEM_COUNT), get(state, TABLE), get(state, CHAINED)
    if word_at(at + SIZE) > 1:
        rows = get(state, ENVS) if chained else -1
        item = read(get(state, DESCRIPTIONS), count, at + ITEMS + 8, rows, table, get(state, TRUTHS))
        if item >= 0:
            return item
    return _insert_step(state, table) if chained else _insert_rows(state, table, word_at(table + 8 * count))


@kernel
def insert_filled(state: int) -> int:
    """The same where objects cannot be read: addresses are in the table of the state at this address."""
    table = get(state, TABLE)
    if get(state, CHAINED):
        return _insert_step(state, table)
    return _insert_rows(state, table, word_at(table + 8 * get(state, ITEM_COUNT)))


@kernel
def grow_side(state: int, size: int) -> None:
    """Spreads the side table's entries over `size` places, a multiple of those it has; the memory is there already."""
    head, old, row, side = get(state, SIDE_HEAD), get(state, SIDE_SIZE), get(state, OBSERVATION), get(state, SIDE)
    for entry in range(max(head - old, 0), head):
        if entry % old != entry % size:
            copy(side + (entry % size) * row, side + (entry % old) * row, row)
    put(state, SIDE_SIZE, size)


@kernel
def recover(state: int) -> None:
    """Takes back what an add has changed that did not come to its end: the state's counters do not know of it."""
    envs, added, slots = get(state, ENVS), get(state, ADDED), get(state, SLOTS)
    if not get(state, CHAINED) or added == 0:
        return
    for e in range(envs):
        slot = (added - envs) % slots + e
        here = row_address(state, slot)
        at = here + get(state, REWARD_AT) + FLAGS_AFTER
        flags, entry = byte_at(at), word_at(here + get(state, SIDE_AT))
        if flags & FILED and entry >= get(state, SIDE_HEAD):
            copy(row_address(state, slot + envs), side_address(state, entry), get(state, OBSERVATION))
            flags &= ~FILED
        flags &= ~CUT
        if flags & (TERMINATED | TRUNCATED) or not flags & VALID:
            flags |= CUT
        store(at, np.uint8(flags))
