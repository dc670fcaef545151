"""Insertion into packed rows: bytes read by the format's description, against a list of transitions."""

from typing import Any

import numpy as np
import pytest
from fresh import run_python
from hypothesis import given
from hypothesis import strategies as st
from naive_replay import NaiveReplay, Row

from fastac.buffers import ReplayBuffer
from fastac_kernels import ring
from fastac_kernels._jit import opened
from fastac_kernels.ring import FULL_SIDE, INSERTED, grow_side, insert, recover

EXAMPLE = {"observations": np.zeros(3, np.float32), "actions": np.int64(0)}


def make(capacity: int, num_envs: int | None, **options: Any) -> ReplayBuffer:
    return ReplayBuffer.from_example(capacity, EXAMPLE, num_envs=num_envs, **options)


def add(buffer: ReplayBuffer, *items: Any) -> int:
    """The kernel by itself: observations, actions, next observations, rewards, terminated, truncated, mask."""
    return opened(insert)((buffer._state, *items))  # type: ignore[no-any-return]


class World:
    """Steps with ends, breaks and fillers, handed to the kernel and to the list."""

    def __init__(self, capacity: int, num_envs: int | None, seed: int):
        self.rng, self.num_envs = np.random.default_rng(seed), num_envs
        self.buffer, self.naive = make(capacity, num_envs), NaiveReplay(capacity, num_envs)
        self.current = self.observations(num_envs or 1)
        self.breaks = 0

    def observations(self, count: int) -> np.ndarray:
        return self.rng.integers(0, 4, (count, 3)).astype(np.float32)

    def step(self) -> tuple[Any, ...]:
        count = self.num_envs or int(self.rng.integers(1, 4))
        now = self.current if self.num_envs else self.observations(count)
        now = np.where(self.rng.random((count, 1)) < 0.1, self.observations(count), now)
        following, actions = self.observations(count), self.rng.integers(0, 9, count)
        rewards = self.rng.normal(size=count).astype(self.rng.choice([np.float32, np.float64]))
        terminated, truncated = self.rng.random((2, count)) < 0.15
        self.current = np.where((terminated | truncated)[:, None], self.observations(count), following)
        return now, actions, following, rewards, terminated, truncated, self.rng.random(count) < 0.9

    def add(self) -> None:
        items = self.step()
        while (code := add(self.buffer, *items)) == FULL_SIDE:
            self.buffer._grow_side()
        assert code == INSERTED
        columns = [list(x) for x in items]
        self.naive.add(
            [Row(o, a, float(r), n, bool(te), bool(tr), m) for o, a, n, r, te, tr, m in zip(*columns, strict=True)]
        )


def stored(buffer: ReplayBuffer, index: int) -> dict[str, Any]:
    """A row as its bytes say, by the description in `ring`'s docstring."""
    layout, arrays, envs = buffer._layout, buffer._storage.arrays, buffer.num_envs or 1
    rows = arrays["rows"]
    row = rows[index % len(rows)]
    flags = int(row[layout.reward + ring.FLAGS_AFTER])
    if not layout.chained:
        following = row[layout.following :]
    elif flags & ring.FILED:
        entry = row[layout.following :][:8].view(np.int64)[0]
        following = arrays["side"][entry % buffer._state[ring.SIDE_SIZE]]
    else:
        following = rows[(index + envs) % len(rows)]
    action_at = layout.leaves[1][0]
    return {
        "observations": row[:12].view(np.float32),
        "actions": row[action_at : action_at + 8].view(np.int64)[0],
        "rewards": row[layout.reward :][:4].view(np.float32)[0],
        "next_observations": following[:12].view(np.float32),
        "terminated": bool(flags & ring.TERMINATED),
        "truncated": bool(flags & ring.TRUNCATED),
        "flags": flags,
    }


def agree(buffer: ReplayBuffer, naive: NaiveReplay) -> None:
    rows = naive.stored()
    assert buffer.added == naive.added
    assert buffer._state[ring.FILLERS] == len(rows) - len(naive.drawable())
    for index in rows:
        got, wanted, row = stored(buffer, index), naive.transition(index), naive.row(index)
        assert bool(got["flags"] & ring.VALID) == row.valid
        if not row.valid:  # never drawn: its next observation is not kept
            continue
        for name in ("observations", "actions", "next_observations", "terminated", "truncated"):
            np.testing.assert_array_equal(got[name], wanted[name])
        assert got["rewards"] == np.float32(wanted["rewards"])
        t, e = divmod(index, naive.num_envs)
        newest = naive.related and t + 1 == len(naive.rows[e])
        cut = row.ended if newest else not naive.goes_on(naive.rows[e] if naive.related else naive.rows[0], t)
        assert bool(got["flags"] & ring.CUT) == cut


@given(st.sampled_from([1, 2, 3, None]), st.integers(1, 9), st.integers(1, 40), st.integers(0, 2**31))
def test_rows_hold_what_was_added(num_envs: int | None, steps: int, added: int, seed: int) -> None:
    """Through wraps, ends, breaks, fillers and a side table that has to grow."""
    world = World(steps * (num_envs or 1), num_envs, seed)
    for _ in range(added):
        world.add()
    agree(world.buffer, world.naive)


def test_what_is_no_plain_memory_is_named_and_nothing_is_written() -> None:
    world = World(8, 2, 0)
    for _ in range(3):
        world.add()
    good = world.step()
    before = {name: x.tobytes() for name, x in world.buffer._storage.arrays.items()}
    state = world.buffer._state[: len(ring.COUNTERS)].tolist()
    for place, item in enumerate(good):
        wrong = [
            item.tolist(),
            item[:1],
            np.concatenate([item, item])[::2],
            np.concatenate([item, item], axis=-1),
            item.astype(np.complex64),
            item.astype(item.dtype.newbyteorder()) if item.dtype.itemsize > 1 else item.astype(np.int16),
            object(),
            None if place < len(good) - 1 else 1.0,
        ]
        if item.dtype.itemsize > 1:
            odd = np.zeros(item.nbytes + 1, np.uint8)[1:].view(item.dtype)
            wrong.append(odd.reshape(item.shape))
        for x in wrong:
            assert add(world.buffer, *good[:place], x, *good[place + 1 :]) == place
    assert world.buffer._state[: len(ring.COUNTERS)].tolist() == state
    assert before == {name: x.tobytes() for name, x in world.buffer._storage.arrays.items() if name != "state"} | {
        "state": before["state"]
    }


@pytest.mark.parametrize("num_envs", [1, None])
def test_scalars_stand_for_one_row(num_envs: int | None) -> None:
    written = []
    for scalars in (False, True):
        buffer = make(4, num_envs)
        for t in range(3):
            now, following = np.full((2, 3), [[t], [t + 1]], np.float32)
            items: tuple[Any, ...] = (
                now[None],
                np.array([t]),
                following[None],
                np.array([0.1 * t]),
                *np.zeros((2, 1), bool),
            )
            if scalars:
                items = now, np.int64(t), following, 0.1 * t, False, np.False_
            assert add(buffer, *items, True if scalars else np.ones(1, bool)) == INSERTED
        written.append(buffer._storage.arrays["rows"].tobytes())
    assert written[0] == written[1]


def test_a_full_side_table_is_said_before_anything_is_written_and_growing_keeps_it() -> None:
    buffer, rng = make(1000, 2), np.random.default_rng(0)
    steps = []
    while True:
        now, following = rng.normal(size=(2, 2, 3)).astype(np.float32)
        no, yes = np.zeros(2, bool), np.ones(2, bool)
        rows = buffer._storage.arrays["rows"].tobytes()
        code = add(buffer, now, np.zeros(2, np.int64), following, np.zeros(2), yes, no, None)
        if code == FULL_SIDE:
            break
        steps.append(following)
    assert buffer._storage.arrays["rows"].tobytes() == rows
    size = 2 * int(buffer._state[ring.SIDE_SIZE])
    buffer._state[ring.SIDE] = buffer._storage.grow("side", size).ctypes.data
    grow_side(buffer._at, size)
    for t, following in enumerate(steps[:-1]):  # that of the newest row lies where the next will begin
        for e in range(2):
            np.testing.assert_array_equal(stored(buffer, 2 * t + e)["next_observations"], following[e])


@given(st.sampled_from([1, 2, 3]), st.integers(2, 9), st.integers(1, 30), st.integers(0, 2**31))
def test_an_add_that_was_not_counted_is_taken_back(num_envs: int, steps: int, added: int, seed: int) -> None:
    """A process killed in an add has written rows, flags and side entries, but not the counters."""
    world = World(steps * num_envs, num_envs, seed)
    for _ in range(added):
        world.add()
    state = world.buffer._state[: len(ring.COUNTERS)].copy()
    assert add(world.buffer, *world.step()) in (INSERTED, FULL_SIDE)
    size = world.buffer._state[ring.SIDE_SIZE]
    world.buffer._state[: len(ring.COUNTERS)] = state
    assert world.buffer._state[ring.SIDE_SIZE] == size
    recover(world.buffer._at)
    agree(world.buffer, world.naive)


def test_no_audit_hook_hears_of_objects_that_are_read() -> None:
    """CPython's `id` calls them all, 200 ns each where one is written in Python, as JAX's is."""
    run_python("""
import sys
import numpy as np
from fastac.buffers import ReplayBuffer

buffer = ReplayBuffer.from_example(10, {"observations": np.zeros(3, np.float32), "actions": np.int64(0)})
x = np.zeros((1, 3), np.float32)
def add():
    buffer.add(x, np.zeros(1, np.int64), np.zeros(1), x, np.zeros(1, bool), np.zeros(1, bool))
add()
out = buffer.sample(4)
heard = []
sys.addaudithook(lambda event, arguments: heard.append(event))
add()
buffer.sample(4, out=out)
assert not heard, heard
""")
