"""The replay buffer against a list of transitions; rows B1 to B6, B10 and B12 to B14 of the pitfalls."""

from typing import Any

import numpy as np
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from naive_replay import NaiveReplay, Row

from fastac.buffers import ReplayBuffer, Transitions

BOX = spaces.Box(-np.inf, np.inf, (3,), np.float32)
ACTION = spaces.Box(-1, 1, (2,), np.float32)
KINDS: dict[str, tuple[Any, Any]] = {
    "box": (BOX, ACTION),
    "discrete": (spaces.Box(0, 255, (5, 7), np.uint8), spaces.Discrete(4)),
    "dict": (
        spaces.Dict({"image": spaces.Box(0, 255, (2, 9), np.uint8), "speed": spaces.Box(-1, 1, (), np.float32)}),
        spaces.MultiDiscrete([3, 4]),
    ),
}


def draw_leaf(space: Any, rng: np.random.Generator) -> np.ndarray:
    """Few different values, so that observations coincide now and then."""
    dtype = np.float32 if space.dtype == np.float64 else space.dtype
    return (
        rng.integers(0, 2, space.shape).astype(dtype)
        if rng.random() < 0.5
        else rng.integers(0, 9, space.shape).astype(dtype)
    )


def draw(space: Any, rng: np.random.Generator) -> Any:
    if isinstance(space, spaces.Dict):
        return {name: draw_leaf(part, rng) for name, part in space.spaces.items()}
    return draw_leaf(space, rng)


def stacked(items: list[Any]) -> Any:
    if isinstance(items[0], dict):
        return {name: np.stack([item[name] for item in items]) for name in items[0]}
    return np.stack(items)


class World:
    """Environments that end, stop, break off and pause at random, and both buffers, fed with the same."""

    def __init__(self, kind: str, capacity: int, num_envs: int | None, n_step: int, seed: int, *, plain: bool = False):
        self.spaces = KINDS[kind]
        self.rng = np.random.default_rng(seed)
        self.plain = plain  # no masks and no breaks
        self.num_envs = num_envs
        self.buffer = ReplayBuffer(
            capacity, *self.spaces, num_envs=num_envs, n_step=n_step, gamma=0.9, seed=seed,
            extra_fields={"log_probs": ((), np.float64)} if kind == "dict" else None,
        )  # fmt: skip
        self.naive = NaiveReplay(capacity, num_envs, n_step, 0.9)
        self.current: list[Any] = [None] * (num_envs or 1)
        self.kind = kind

    def step(self) -> None:
        rng, rows = self.rng, []
        count = self.num_envs or int(rng.integers(1, 5))
        for e in range(count):
            observation = self.current[e] if self.num_envs else None
            if observation is None or (not self.plain and rng.random() < 0.1):
                observation = draw(self.spaces[0], rng)
            following = draw(self.spaces[0], rng)
            end = rng.random()
            rows.append(
                Row(
                    observation, draw(self.spaces[1], rng), float(rng.normal()), following, end < 0.15,
                    0.1 < end < 0.25, self.plain or rng.random() < 0.85,
                    {"log_probs": rng.normal()} if self.kind == "dict" else {},
                )
            )  # fmt: skip
            if self.num_envs:
                ended = end < 0.25
                self.current[e] = draw(self.spaces[0], rng) if ended and rng.random() < 0.8 else following
        self.naive.add(rows)
        self.buffer.add(
            stacked([r.observation for r in rows]),
            np.stack([r.action for r in rows]),
            np.array([r.reward for r in rows], self.rng.choice([np.float32, np.float64])),
            stacked([r.next_observation for r in rows]),
            np.array([r.terminated for r in rows]),
            np.array([r.truncated for r in rows]),
            None if self.plain else np.array([r.valid for r in rows]),
            **{name: np.array([r.extra[name] for r in rows]) for name in rows[0].extra},
        )


def assert_row(batch: Transitions, i: int, naive: NaiveReplay) -> None:
    wanted = naive.transition(int(batch.indices[i]))
    for name in ("observations", "next_observations"):
        got = getattr(batch, name)
        if isinstance(got, dict):
            for key in got:
                np.testing.assert_array_equal(got[key][i], wanted[name][key])
        else:
            np.testing.assert_array_equal(got[i], wanted[name])
    for name in ("actions", "terminated", "truncated", "indices"):
        np.testing.assert_array_equal(getattr(batch, name)[i], wanted[name])
    for name in ("rewards", "discounts"):
        np.testing.assert_allclose(getattr(batch, name)[i], wanted[name], rtol=1e-6, atol=1e-6)
    for name, value in wanted["extra"].items():
        np.testing.assert_array_equal(batch.extra[name][i], value)


def assert_same(world: World) -> None:
    """Everything stored can be gathered and is right; everything drawn is, too."""
    buffer, naive = world.buffer, world.naive
    assert buffer.added == naive.added
    assert len(buffer) == len(naive.drawable())
    valid = naive.drawable()
    batch = buffer.gather(valid)
    for i in range(len(valid)):
        assert_row(batch, i, naive)
    if valid:
        batch = buffer.sample(17)
        assert set(batch.indices.tolist()) <= set(valid)
        for i in range(17):
            assert_row(batch, i, naive)
        batch = buffer.sample(len(valid), replace=False)
        assert sorted(batch.indices.tolist()) == valid


@given(
    st.sampled_from(list(KINDS)), st.integers(1, 4), st.integers(1, 12), st.integers(1, 4), st.integers(1, 40),
    st.integers(0, 2**31),
)  # fmt: skip
def test_like_a_list_of_transitions(kind: str, num_envs: int, steps: int, n_step: int, added: int, seed: int) -> None:
    """Rows B1 to B6: wraps, ends, truncations, fillers, breaks, n-step windows, several environments, dicts."""
    world = World(kind, num_envs * steps, num_envs, n_step, seed)
    for _ in range(added):
        world.step()
    assert_same(world)


@given(st.sampled_from(list(KINDS)), st.integers(1, 12), st.integers(1, 20), st.integers(0, 2**31))
def test_independent_transitions(kind: str, capacity: int, added: int, seed: int) -> None:
    world = World(kind, capacity, None, 1, seed)
    for _ in range(added):
        world.step()
    assert_same(world)
