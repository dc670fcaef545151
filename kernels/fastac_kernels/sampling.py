"""Uniform draws from a ring of packed rows, and the gather of what was drawn, in one pass over the batch.

Draw c of a ring with seed k is splitmix64's output number c for that seed (Steele, Lea and Flood 2014, *Fast splittable
pseudorandom number generators*, figure 13 with its mixing constants by Stafford); x uniform over 64 bits becomes
floor(x n / 2^64) in [0, n), whose bias is below n / 2^64. Draws are a function of the counter alone, so a later one is
known in advance, and its row is on the way from memory while an earlier one is copied.

n-step rows (Sutton 1988; `fastac.n_step_returns`): m = min(n, rows to the window's end),

    rewards = sum_{k < m} gamma^k r_{t+k},   discounts = gamma^m

and next observations and flags are those of row t + m - 1.
"""

from typing import Any

import numpy as np
from numba import types

from fastac_kernels import ring
from fastac_kernels._jit import door, inline, kernel
from fastac_kernels.objects import ITEMS, NONE, OBJECT, object_address, read
from fastac_kernels.pointers import (
    byte_at,
    copy,
    copy_8,
    copy_16,
    copy_32,
    get,
    high_word,
    load,
    prefetch_far,
    put,
    store,
    word_at,
)
from fastac_kernels.ring import frame_address, next_frame_address

TILE = 32  # rows that are asked for, found and copied together
LINES = 4  # cache lines of an observation asked for in advance; the hardware fetches the rest of a long one
FINE, EMPTY = -1, -2  # all is done; there is nothing to draw
GOLDEN = np.uint64(0x9E3779B97F4A7C15)
MIX_1, MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


@inline
def random_word(seed: int, counter: int) -> Any:
    """Output number `counter`, from 0, of splitmix64."""
    x = np.uint64(seed) + np.uint64(counter + 1) * GOLDEN
    x = (x ^ (x >> np.uint64(30))) * MIX_1
    x = (x ^ (x >> np.uint64(27))) * MIX_2
    return x ^ (x >> np.uint64(31))


@inline
def random_below(seed: int, counter: int, bound: int) -> int:
    """Draw number `counter` in [0, bound)."""
    below: Any = np.int64(high_word(random_word(seed, counter), np.uint64(bound)))
    return below  # type: ignore[no-any-return]


@inline
def _plan(state: int) -> tuple[int, ...]:
    """What a gather needs of the state, read once: the compiler cannot know that no output lies in it."""
    added, slots = get(state, ring.ADDED), get(state, ring.SLOTS)
    chained = get(state, ring.CHAINED)
    return (
        get(state, ring.ROWS),
        slots,
        get(state, ring.ROW),
        get(state, ring.ENVS),
        get(state, ring.REWARD_AT),
        get(state, ring.N_STEP),
        added,
        added - added % slots,  # subtracted from a stored serial number it gives the slot; below 0, `slots` is added
        chained,
        get(state, ring.SIDE_AT),
        get(state, ring.OBSERVATION) if chained else 0,
        get(state, ring.LEAVES),
        get(state, ring.OBSERVATION_LEAVES),
        get(state, ring.OBSERVATION_LEAVES) + get(state, ring.ROW_LEAVES),
        get(state, ring.OUTPUT_TABLE),
        get(state, ring.POWERS),
        get(state, ring.STACK),
    )


@inline
def _fetch(address: int, size: int) -> None:
    for i in range(0, min(size, LINES * 64), 64):
        prefetch_far(address + i)


@inline
def _wrapped(slot: int, slots: int) -> int:
    return slot - slots if slot >= slots else slot


@inline
def _fetch_row(plan: tuple[int, ...], serial: int) -> None:
    """Asks for the lines that the row will be gathered from, if its window is a whole one."""
    rows, slots, row, envs, reward_at, n = plan[0], plan[1], plan[2], plan[3], plan[4], plan[5]
    slot = serial - plan[7]
    slot = slot + slots if slot < 0 else slot
    _fetch(rows + slot * row, row)
    if row > LINES * 64:
        prefetch_far(rows + slot * row + reward_at)
    if plan[8]:
        for _ in range(1, n):
            slot = _wrapped(slot + envs, slots)
            prefetch_far(rows + slot * row + reward_at)
        _fetch(rows + _wrapped(slot + envs, slots) * row, plan[10])


@inline
def _copy_stack(state: int, slot: int, following: int, i: int, plan: tuple[int, ...]) -> None:
    """Copies the stacks of a row and of the next observation of another, frame by frame."""
    leaves, observation_leaves, others, out, stack = plan[11], plan[12], plan[13], plan[14], plan[16]
    for leaf in range(observation_leaves):
        offset, size = word_at(leaves + 16 * leaf), word_at(leaves + 16 * leaf + 8)
        newest = word_at(out + 8 * leaf) + ((i + 1) * stack - 1) * size
        next_newest = word_at(out + 8 * (others + leaf)) + ((i + 1) * stack - 1) * size
        for back in range(stack):
            copy(newest - back * size, frame_address(state, slot, back) + offset, size)
        for back in range(stack):
            copy(next_newest - back * size, next_frame_address(state, following, back) + offset, size)


@inline
def _copy_rows(count: int, rows: int, offset: int, out: int, size: int) -> None:
    """Copies a field of `count` rows, whose addresses lie at `rows`. One loop for each length: none branches inside."""
    if 64 < size <= 96:
        for j in range(count):
            source, target = word_at(rows + 8 * j) + offset, out + j * size
            copy_32(target, source)
            copy_32(target + 32, source + 32)
            copy_32(target + size - 32, source + size - 32)
    elif 32 <= size <= 64:
        for j in range(count):
            source, target = word_at(rows + 8 * j) + offset, out + j * size
            copy_32(target, source)
            copy_32(target + size - 32, source + size - 32)
    elif 16 <= size < 32:
        for j in range(count):
            source, target = word_at(rows + 8 * j) + offset, out + j * size
            copy_16(target, source)
            copy_16(target + size - 16, source + size - 16)
    elif 8 <= size < 16:
        for j in range(count):
            source, target = word_at(rows + 8 * j) + offset, out + j * size
            copy_8(target, source)
            copy_8(target + size - 8, source + size - 8)
    else:
        for j in range(count):
            copy(out + j * size, word_at(rows + 8 * j) + offset, size)


@inline
def _copy_fields(state: int, plan: tuple[int, ...], count: int, first: int, scratch: int) -> None:
    """Copies the fields of a tile of rows, and their next observations, to places `first` and up of the outputs."""
    leaves, observation_leaves, others, out, stack = plan[11], plan[12], plan[13], plan[14], plan[16]
    for leaf in range(0 if stack == 1 else observation_leaves, others):
        size = word_at(leaves + 16 * leaf + 8)
        _copy_rows(count, scratch, word_at(leaves + 16 * leaf), word_at(out + 8 * leaf) + first * size, size)
    if stack == 1:
        for leaf in range(observation_leaves):
            size = word_at(leaves + 16 * leaf + 8)
            target = word_at(out + 8 * (others + leaf)) + first * size
            _copy_rows(count, scratch + 8 * TILE, word_at(leaves + 16 * leaf), target, size)


@inline
def _serial(state: int, serials: int, number: int, oldest: int, size: int) -> int:
    """Row number so and so of a list, or of the draws where there is none."""
    if serials != 0:
        return word_at(serials + 8 * number)
    return oldest + random_below(get(state, ring.SEED), number, size)


@inline
def gather_rows(state: int, batch: int, serials: int) -> int:
    """Gathers listed rows, or draws rows that are no fillers; returns how many were looked at.

    Tile by tile: what the next tile will need is asked for, then this one's rows are found, then its fields copied.
    """
    plan = _plan(state)
    rows, slots, row, envs, reward_at, n, added = plan[0], plan[1], plan[2], plan[3], plan[4], plan[5], plan[6]
    observation_leaves, others, out, powers, stack = plan[12], plan[13], plan[14], plan[15], plan[16]
    scratch = out + 8 * (get(state, ring.OUTPUT_COUNT) + 2)
    after = out + 8 * (others + observation_leaves)
    rewards, terminated, truncated = word_at(after), word_at(after + 8), word_at(after + 16)
    discounts, indices = word_at(after + 24), word_at(after + 32)
    oldest = max(added - get(state, ring.CAPACITY), 0)
    size, number = added - oldest, get(state, ring.COUNTER) if serials == 0 else 0
    begin = number
    i: Any = np.int64(0)  # and not 0, for whose literal type helpers would be compiled once more
    for k in range(number, number + min(TILE, batch)):
        _fetch_row(plan, _serial(state, serials, k, oldest, size))
    while i < batch:
        length = min(TILE, batch - i)
        for k in range(number + length, number + length + min(TILE, batch - i - length)):
            _fetch_row(plan, _serial(state, serials, k, oldest, size))
        count: Any = np.int64(0)
        for k in range(number, number + length):
            serial = _serial(state, serials, k, oldest, size)
            slot = serial - plan[7]
            slot = slot + slots if slot < 0 else slot
            first, here = slot, rows + slot * row
            flags = byte_at(here + reward_at + ring.FLAGS_AFTER)
            if serials == 0 and not flags & ring.VALID:
                continue
            last, m, reward = here, 1, load(here + reward_at, np.float32(0))
            if n > 1:
                total = np.float64(reward)
                while m < n and not flags & ring.CUT and serial + m * envs < added:
                    slot = _wrapped(slot + envs, slots)
                    last = rows + slot * row
                    total += load(powers + 8 * m, np.float64(0)) * load(last + reward_at, np.float32(0))
                    flags = byte_at(last + reward_at + ring.FLAGS_AFTER)
                    m += 1
                reward = np.float32(total)
            if not plan[8]:
                following = here + plan[9]
            elif flags & ring.FILED:
                following = ring.side_address(state, word_at(last + plan[9]))
            else:
                following = rows + _wrapped(slot + envs, slots) * row
            at = i + count
            store(scratch + 8 * count, np.int64(here))
            store(scratch + 8 * (TILE + count), np.int64(following))
            store(rewards + 4 * at, reward)
            store(terminated + at, np.uint8(flags & ring.TERMINATED != 0))
            store(truncated + at, np.uint8(flags & ring.TRUNCATED != 0))
            store(discounts + 4 * at, np.float32(load(powers + 8 * m, np.float64(0))))
            store(indices + 8 * at, np.int64(serial))
            if stack > 1:
                _copy_stack(state, first, slot, at, plan)
            count += 1
        _copy_fields(state, plan, count, i, scratch)
        number += length
        i += count
    return number - begin


@inline
def read_outputs(state: int, objects: Any, batch: int) -> int:
    """Fills the output table from a tuple of arrays of so many rows; see `sample`."""
    at, known = object_address(objects), get(state, ring.TRUTHS)
    if at == get(known, NONE):
        return FINE
    described, count, out = get(state, ring.OUTPUTS), get(state, ring.OUTPUT_COUNT), get(state, ring.OUTPUT_TABLE)
    return read(described, count, at + ITEMS, batch, out, known)


@door(types.int64, OBJECT, types.int64, types.int64)
def sample(state: int, objects: Any, batch: int, serials: int) -> int:
    """Draws `batch` rows uniformly, with replacement, among those that are no fillers; or gathers the rows of a list.

    Args:
        state: Address of the ring's state.
        objects: A tuple of numpy arrays: observations, actions and extra fields, next observations, rewards,
            terminated, truncated, discounts, indices. None: their addresses are in the state's output table already.
        batch: Rows of each.
        serials: Address of `batch` serial numbers, all of them stored; fillers come as they are. 0: rows are drawn.

    Returns:
        -1; -2 where there is nothing to draw; or the number of an item that is not a plain array of the right type and
        shape.
    """
    item = read_outputs(state, objects, batch)
    if item >= 0:
        return item
    draws = serials == 0
    if draws and min(get(state, ring.ADDED), get(state, ring.CAPACITY)) == get(state, ring.FILLERS):
        return EMPTY
    seen = gather_rows(state, batch, serials)
    if draws:
        put(state, ring.COUNTER, get(state, ring.COUNTER) + seen)
    return FINE


@kernel
def draw_distinct(state: int, batch: int, serials: int, seen: int, places: int) -> None:
    """Draws `batch` different rows that are no fillers, every ordered selection being equally likely.

    Args:
        state: Address of the ring's state, which holds that many.
        batch: How many.
        serials: Address of `batch` int64, the result.
        seen: Address of `places` int64, scratch.
        places: A power of two, at least twice the batch.
    """
    added, seed, counter = get(state, ring.ADDED), get(state, ring.SEED), get(state, ring.COUNTER)
    base = added - added % get(state, ring.SLOTS)
    slots, row, flags_at = get(state, ring.SLOTS), get(state, ring.ROW), get(state, ring.REWARD_AT) + ring.FLAGS_AFTER
    oldest = max(added - get(state, ring.CAPACITY), 0)
    for j in range(places):
        store(seen + 8 * j, np.int64(-1))
    i = 0
    while i < batch:
        serial = oldest + random_below(seed, counter, added - oldest)
        counter += 1
        slot = serial - base
        slot = slot + slots if slot < 0 else slot
        if not load(get(state, ring.ROWS) + slot * row + flags_at, np.uint8(0)) & ring.VALID:
            continue
        place: Any = np.int64((np.uint64(serial) * GOLDEN) >> np.uint64(20)) & (places - 1)
        while load(seen + 8 * place, np.int64(0)) >= 0 and load(seen + 8 * place, np.int64(0)) != serial:
            place = (place + 1) & (places - 1)
        if load(seen + 8 * place, np.int64(0)) < 0:
            store(seen + 8 * place, np.int64(serial))
            store(serials + 8 * i, np.int64(serial))
            i += 1
    put(state, ring.COUNTER, counter)
