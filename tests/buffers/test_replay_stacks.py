"""Frames stored once: stacks come back byte for byte, whatever the wrappers around the environment did."""

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from naive_replay import NaiveReplay, Row

from fastac.buffers import ReplayBuffer

K = 3
SPACE = spaces.Box(0, 255, (K, 2, 5), np.uint8)


def pushed(stack: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The stack moved on by a frame; few values, so that frames coincide now and then."""
    return np.concatenate([stack[1:], rng.integers(0, 2, (1, *stack.shape[1:])).astype(np.uint8)])


def first(padding: str, rng: np.random.Generator) -> np.ndarray:
    frame = rng.integers(0, 2, SPACE.shape[1:]).astype(np.uint8)
    older = {"reset": frame, "zero": np.zeros_like(frame), "other": frame + 1}[padding]
    return np.stack([older] * (K - 1) + [frame])


@given(
    st.sampled_from(["reset", "zero", "other"]), st.integers(1, 3), st.integers(1, 9), st.integers(1, 3),
    st.integers(1, 40), st.floats(0, 0.3), st.integers(0, 2**31),
)  # fmt: skip
def test_stacks_come_back(
    padding: str, num_envs: int, steps: int, n_step: int, added: int, odd: float, seed: int
) -> None:
    """Row B12: any padding at an episode's start, breaks, fillers, and next observations that no frame leads to."""
    rng = np.random.default_rng(seed)
    buffer = ReplayBuffer(
        num_envs * steps,
        SPACE,
        spaces.Discrete(3),
        num_envs=num_envs,
        n_step=n_step,
        gamma=0.9,
        frame_stack=K,
        seed=seed,
    )
    naive = NaiveReplay(num_envs * steps, num_envs, n_step, 0.9)
    current = [first(padding, rng) for _ in range(num_envs)]
    for _ in range(added):
        rows = []
        for e in range(num_envs):
            following, end, valid = pushed(current[e], rng), rng.random(), rng.random() < 0.9
            if rng.random() < odd:
                following = rng.integers(0, 2, SPACE.shape).astype(np.uint8)
            rows.append(Row(current[e], rng.integers(3), 1.0, following, end < 0.1, 0.1 < end < 0.2, valid))
            current[e] = following if end > 0.2 and rng.random() > odd else first(padding, rng)
        naive.add(rows)
        buffer.add(
            np.stack([r.observation for r in rows]), np.array([r.action for r in rows]), np.ones(num_envs),
            np.stack([r.next_observation for r in rows]), np.array([r.terminated for r in rows]),
            np.array([r.truncated for r in rows]), np.array([r.valid for r in rows]),
        )  # fmt: skip
    indices = naive.drawable()
    batch = buffer.gather(indices)
    for i, index in enumerate(indices):
        wanted = naive.transition(index)
        np.testing.assert_array_equal(batch.observations[i], wanted["observations"])
        np.testing.assert_array_equal(batch.next_observations[i], wanted["next_observations"])
        assert batch.discounts[i] == pytest.approx(wanted["discounts"])
