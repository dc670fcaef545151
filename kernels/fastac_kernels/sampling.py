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
from fastac_kernels.pointers import copy, high_word, load, prefetch, store
from fastac_kernels.ring import get, put

AHEAD = 16  # rows between a prefetch and its copy
LINES = 4  # cache lines of an observation asked for in advance; the hardware fetches the rest of a long one
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
def _fetch(address: int, size: int) -> None:
    for i in range(0, min(size, LINES * 64), 64):
        prefetch(address + i)


@inline
def _wrapped(slot: int, slots: int) -> int:
    return slot - slots if slot >= slots else slot


@inline
def _fetch_row(state: int, serial: int, base: int) -> None:
    """Asks for the lines that the row will be gathered from, if its window is a whole one."""
    slots, row = get(state, ring.SLOTS), get(state, ring.ROW)
    slot = serial - base
    slot = slot + slots if slot < 0 else slot
    at = get(state, ring.ROWS) + slot * row
    _fetch(at, row)
    prefetch(at + get(state, ring.REWARD_AT))
    if get(state, ring.CHAINED):
        envs, n = get(state, ring.ENVS), get(state, ring.N_STEP)
        for _ in range(1, n):
            slot = _wrapped(slot + envs, slots)
            prefetch(get(state, ring.ROWS) + slot * row + get(state, ring.REWARD_AT))
        slot = _wrapped(slot + envs, slots)
        _fetch(get(state, ring.ROWS) + slot * row, get(state, ring.OBSERVATION))


@inline
def _gather_row(state: int, out: int, i: int, serial: int, base: int, drawn: bool) -> bool:
    """Copies one row's transition to place i of the outputs; False, and nothing, where it was drawn and is a filler."""
    slots, row, rows, reward_at = (
        get(state, ring.SLOTS),
        get(state, ring.ROW),
        get(state, ring.ROWS),
        get(state, ring.REWARD_AT),
    )
    envs, added, chained = get(state, ring.ENVS), get(state, ring.ADDED), get(state, ring.CHAINED)
    slot = serial - base
    slot = slot + slots if slot < 0 else slot
    here = rows + slot * row
    flags = np.int64(load(here + reward_at + ring.FLAGS_AFTER, np.uint8(0)))
    if drawn and not flags & ring.VALID:
        return False
    leaves, powers = get(state, ring.LEAVES), get(state, ring.POWERS)
    observation_leaves = get(state, ring.OBSERVATION_LEAVES)
    others = observation_leaves + get(state, ring.ROW_LEAVES)
    for leaf in range(others):
        offset, size = load(leaves + 16 * leaf, np.int64(0)), load(leaves + 16 * leaf + 8, np.int64(0))
        copy(load(out + 8 * leaf, np.int64(0)) + i * size, here + offset, size)
    last, m, n = here, 1, get(state, ring.N_STEP)
    reward = load(here + reward_at, np.float32(0))
    if n > 1:
        total = np.float64(reward)
        while m < n and not flags & ring.CUT and serial + m * envs < added:
            slot = _wrapped(slot + envs, slots)
            last = rows + slot * row
            total += load(powers + 8 * m, np.float64(0)) * load(last + reward_at, np.float32(0))
            flags = np.int64(load(last + reward_at + ring.FLAGS_AFTER, np.uint8(0)))
            m += 1
        reward = np.float32(total)
    if not chained:
        following = here + get(state, ring.SIDE_AT)
    elif flags & ring.FILED:
        entry = load(last + get(state, ring.SIDE_AT), np.int64(0)) % get(state, ring.SIDE_SIZE)
        following = get(state, ring.SIDE) + entry * get(state, ring.OBSERVATION)
    else:
        following = rows + _wrapped(slot + envs, slots) * row
    for leaf in range(observation_leaves):
        offset, size = load(leaves + 16 * leaf, np.int64(0)), load(leaves + 16 * leaf + 8, np.int64(0))
        copy(load(out + 8 * (others + leaf), np.int64(0)) + i * size, following + offset, size)
    after = out + 8 * (others + observation_leaves)
    store(load(after, np.int64(0)) + 4 * i, reward)
    store(load(after + 8, np.int64(0)) + i, np.uint8(flags & ring.TERMINATED != 0))
    store(load(after + 16, np.int64(0)) + i, np.uint8(flags & ring.TRUNCATED != 0))
    store(load(after + 24, np.int64(0)) + 4 * i, np.float32(load(powers + 8 * m, np.float64(0))))
    store(load(after + 32, np.int64(0)) + 8 * i, np.int64(serial))
    return True


@inline
def _base(state: int) -> int:
    """What to subtract from a stored serial number to find its slot; below 0 the ring's length is added."""
    added, slots = get(state, ring.ADDED), get(state, ring.SLOTS)
    return added - added % slots


@kernel
def sample(state: int, objects: int, batch: int) -> int:
    """Draws `batch` rows uniformly, with replacement, among those that are no fillers.

    Args:
        state: Address of the ring's state, which holds such a row.
        objects: Address of a tuple of numpy arrays: observations, actions and extra fields, next observations, rewards,
            terminated, truncated, discounts, indices. 0: their addresses are in the state's output table already.
        batch: Rows of each.

    Returns:
        -1, or the number of an item that is not a plain array of the right type and shape.
    """
    out = get(state, ring.OUTPUT_TABLE)
    if objects != 0:
        item = read(
            get(state, ring.OUTPUTS), get(state, ring.OUTPUT_COUNT), objects, batch, out, get(state, ring.TRUTHS)
        )
        if item >= 0:
            return item
    added, seed, counter, base = get(state, ring.ADDED), get(state, ring.SEED), get(state, ring.COUNTER), _base(state)
    oldest = max(added - get(state, ring.CAPACITY), 0)
    size = added - oldest
    for c in range(counter, counter + min(AHEAD, batch)):
        _fetch_row(state, oldest + random_below(seed, c, size), base)
    i = 0
    while i < batch:
        _fetch_row(state, oldest + random_below(seed, counter + AHEAD, size), base)
        i += _gather_row(state, out, i, oldest + random_below(seed, counter, size), base, True)
        counter += 1
    put(state, ring.COUNTER, counter)
    return -1


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
    base = _base(state)
    for i in range(min(AHEAD, batch)):
        _fetch_row(state, load(serials + 8 * i, np.int64(0)), base)
    for i in range(batch):
        ahead = min(i + AHEAD, batch - 1)
        _fetch_row(state, load(serials + 8 * ahead, np.int64(0)), base)
        _gather_row(state, out, i, load(serials + 8 * i, np.int64(0)), base, False)
    return -1


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
    added, seed, counter, base = get(state, ring.ADDED), get(state, ring.SEED), get(state, ring.COUNTER), _base(state)
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
