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

from fastac_kernels import ring
from fastac_kernels._jit import inline, kernel
from fastac_kernels.objects import read
from fastac_kernels.pointers import copy, high_word, load, prefetch_far, store
from fastac_kernels.ring import byte_at, frame_address, get, next_frame_address, put, word_at

AHEAD = 32
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
def _gather_row(state: int, plan: tuple[int, ...], i: int, serial: int, drawn: bool) -> bool:
    """Copies one row's transition to place i of the outputs; False, and nothing, where it was drawn and is a filler."""
    rows, slots, row, envs, reward_at, n, added = plan[0], plan[1], plan[2], plan[3], plan[4], plan[5], plan[6]
    leaves, observation_leaves, others, out, powers, stack = plan[11], plan[12], plan[13], plan[14], plan[15], plan[16]
    slot = serial - plan[7]
    slot = slot + slots if slot < 0 else slot
    first, here = slot, rows + slot * row
    flags = byte_at(here + reward_at + ring.FLAGS_AFTER)
    if drawn and not flags & ring.VALID:
        return False
    for leaf in range(0 if stack == 1 else observation_leaves, others):
        size = word_at(leaves + 16 * leaf + 8)
        copy(word_at(out + 8 * leaf) + i * size, here + word_at(leaves + 16 * leaf), size)
    last, m = here, 1
    reward = load(here + reward_at, np.float32(0))
    if n > 1:
        total = np.float64(reward)
        while m < n and not flags & ring.CUT and serial + m * envs < added:
            slot = _wrapped(slot + envs, slots)
            last = rows + slot * row
            total += load(powers + 8 * m, np.float64(0)) * load(last + reward_at, np.float32(0))
            flags = byte_at(last + reward_at + ring.FLAGS_AFTER)
            m += 1
        reward = np.float32(total)
    if stack > 1:
        _copy_stack(state, first, slot, i, plan)
    else:
        if not plan[8]:
            following = here + plan[9]
        elif flags & ring.FILED:
            following = ring.side_address(state, word_at(last + plan[9]))
        else:
            following = rows + _wrapped(slot + envs, slots) * row
        for leaf in range(observation_leaves):
            size = word_at(leaves + 16 * leaf + 8)
            copy(word_at(out + 8 * (others + leaf)) + i * size, following + word_at(leaves + 16 * leaf), size)
    after = out + 8 * (others + observation_leaves)
    store(word_at(after) + 4 * i, reward)
    store(word_at(after + 8) + i, np.uint8(flags & ring.TERMINATED != 0))
    store(word_at(after + 16) + i, np.uint8(flags & ring.TRUNCATED != 0))
    store(word_at(after + 24) + 4 * i, np.float32(load(powers + 8 * m, np.float64(0))))
    store(word_at(after + 32) + 8 * i, np.int64(serial))
    return True


@kernel
def sample(state: int, objects: int, batch: int) -> int:
    """Draws `batch` rows uniformly, with replacement, among those that are no fillers.

    Args:
        state: Address of the ring's state.
        objects: Address of a tuple of numpy arrays: observations, actions and extra fields, next observations, rewards,
            terminated, truncated, discounts, indices. 0: their addresses are in the state's output table already.
        batch: Rows of each.

    Returns:
        -1; -2 where there is nothing to draw; or the number of an item that is not a plain array of the right type and
        shape.
    """
    out = get(state, ring.OUTPUT_TABLE)
    if objects != 0:
        item = read(
            get(state, ring.OUTPUTS), get(state, ring.OUTPUT_COUNT), objects, batch, out, get(state, ring.TRUTHS)
        )
        if item >= 0:
            return item
    seed, counter, added = get(state, ring.SEED), get(state, ring.COUNTER), get(state, ring.ADDED)
    plan = _plan(state)
    oldest = max(added - get(state, ring.CAPACITY), 0)
    size = added - oldest
    if size == get(state, ring.FILLERS):
        return EMPTY
    for c in range(counter, counter + min(AHEAD, batch)):
        _fetch_row(plan, oldest + random_below(seed, c, size))
    i = 0
    while i < batch:
        _fetch_row(plan, oldest + random_below(seed, counter + AHEAD, size))
        i += _gather_row(state, plan, i, oldest + random_below(seed, counter, size), True)
        counter += 1
    put(state, ring.COUNTER, counter)
    return FINE


@kernel
def gather(state: int, objects: int, batch: int, serials: int) -> int:
    """The same for the `batch` serial numbers at address `serials`, all of them stored; fillers come as they are."""
    out = get(state, ring.OUTPUT_TABLE)
    if objects != 0:
        item = read(
            get(state, ring.OUTPUTS), get(state, ring.OUTPUT_COUNT), objects, batch, out, get(state, ring.TRUTHS)
        )
        if item >= 0:
            return item
    plan = _plan(state)
    for i in range(min(AHEAD, batch)):
        _fetch_row(plan, word_at(serials + 8 * i))
    for i in range(batch):
        if i + AHEAD < batch:
            _fetch_row(plan, word_at(serials + 8 * (i + AHEAD)))
        _gather_row(state, plan, i, word_at(serials + 8 * i), False)
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
