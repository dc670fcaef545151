"""Replay buffers against a plain list of transitions, over whatever sequence of calls hypothesis thinks of.

After every call everything that is stored is read and compared, byte for byte: adding, wrapping, ends, breaks, fillers,
n steps, stacks of frames, priorities, saving and loading, memory-mapped storage opened again. More examples:

    HYPOTHESIS_PROFILE=thorough pytest tests/buffers/test_replay_model.py

Pitfalls B1-B5, B8, B9, B13 and B14 of other libraries are all departures from this model.
"""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fastac.buffers.prioritized import PrioritizedReplayBuffer
from fastac.buffers.replay import ReplayBuffer

GAMMA, ALPHA = 0.5, 0.75
FRAME = (2, 3)
EXAMPLES = 12 if settings.default.max_examples <= 120 else settings.default.max_examples

# What may happen to an environment in a step. A filler is the row after an end, under next-step autoreset.
EVENTS = st.sampled_from(["go on"] * 4 + ["terminate", "truncate", "both", "break", "break by a sign", "filler"])


@dataclass
class Row:
    """One transition as it was given."""

    observation: np.ndarray
    action: int
    reward: float
    next_observation: np.ndarray
    terminated: bool
    truncated: bool
    valid: bool


class Model:
    """All transitions that were ever added, and what a sample of each has to be."""

    def __init__(self, num_envs: int | None, n_step: int, capacity: int) -> None:
        self.envs = num_envs or 1
        self.linked = num_envs is not None
        self.n_step = n_step
        self.capacity = capacity // self.envs * self.envs
        self.rows: list[Row] = []
        self.priorities: dict[int, float] = {}
        self.largest = 1.0
        self.stale = 0

    @property
    def oldest(self) -> int:
        return max(0, len(self.rows) - self.capacity)

    @property
    def stored(self) -> list[int]:
        return [i for i in range(self.oldest, len(self.rows)) if self.rows[i].valid]

    def goes_on(self, index: int) -> bool:
        """Whether a target may reach from this row into the next one of its environment."""
        row, after = self.rows[index], index + self.envs
        if not self.linked or row.terminated or row.truncated or not row.valid or after >= len(self.rows):
            return False
        return self.rows[after].valid and self.rows[after].observation.tobytes() == row.next_observation.tobytes()

    def target(self, index: int) -> tuple[float, float, Row]:
        """The n-step reward, the discount, and the last row."""
        reward, discount, last = self.rows[index].reward, GAMMA, index
        for k in range(1, self.n_step):
            if not self.goes_on(last):
                break
            last += self.envs
            reward += GAMMA**k * self.rows[last].reward
            discount *= GAMMA
        return reward, discount, self.rows[last]

    def batch(self, indices: list[int]) -> dict[str, np.ndarray]:
        rows = [self.rows[i] for i in indices]
        targets = [self.target(i) for i in indices]
        return {
            "observations": np.stack([row.observation for row in rows]),
            "actions": np.array([row.action for row in rows], np.int64),
            "rewards": np.array([reward for reward, _, _ in targets], np.float32),
            "next_observations": np.stack([last.next_observation for _, _, last in targets]),
            "terminated": np.array([last.terminated for _, _, last in targets]),
            "truncated": np.array([last.truncated for _, _, last in targets]),
            "discounts": np.array([discount for _, discount, _ in targets], np.float32),
            "indices": np.array(indices, np.int64),
        }


def assert_batch(batch: Any, model: Model) -> None:
    for name, expected in model.batch(batch.indices.tolist()).items():
        found = getattr(batch, name)
        assert found.dtype == expected.dtype, name
        assert found.shape == expected.shape, name
        assert found.tobytes() == expected.tobytes(), f"{name}: {found} instead of {expected}"


class Machine(RuleBasedStateMachine):
    @initialize(
        prioritized=st.booleans(),
        num_envs=st.sampled_from([1, 1, 2, 3, None]),
        n_step=st.integers(1, 4),
        capacity=st.integers(3, 14),
        stack=st.sampled_from([None, None, 2, 3]),
        mapped=st.booleans(),
        seed=st.integers(0, 2**63 - 1),
    )
    def make(
        self, prioritized: bool, num_envs: int | None, n_step: int, capacity: int, stack: int | None, mapped: bool,
        seed: int,
    ) -> None:  # fmt: skip
        self.folder = Path(tempfile.mkdtemp())
        self.copies = 0
        self.kind = PrioritizedReplayBuffer if prioritized else ReplayBuffer
        self.stack = stack if num_envs is not None else None
        self.mapped = mapped
        options: dict[str, Any] = {"n_step": n_step if num_envs is not None else 1, "frame_stack": self.stack}
        options |= {"alpha": ALPHA} if prioritized else {}
        observation = np.zeros(3, np.float32) if self.stack is None else np.zeros((self.stack, *FRAME), np.uint8)
        self.buffer: Any = self.kind.from_example(
            capacity,
            {"observations": observation, "actions": np.int64(0)},
            num_envs=num_envs,
            gamma=GAMMA,
            seed=seed,
            storage=self.folder / "0" if mapped else None,
            **options,
        )
        self.num_envs = num_envs
        self.model = Model(num_envs, options["n_step"], capacity)
        self.numbers = 0
        self.pending: list[np.ndarray | None] = [None] * self.model.envs

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder, ignore_errors=True)

    def fresh(self, previous: np.ndarray | None = None) -> np.ndarray:
        """A new observation; a stack goes on from the previous one, or repeats an episode's first frame."""
        self.numbers += 1
        if self.stack is None:
            special = [0.0, -0.0, np.nan][self.numbers % 3]
            return np.array([self.numbers, 0.5, special], np.float32)
        frame = np.full((1, *FRAME), self.numbers % 256, np.uint8)
        frame[0, 0, 0] = self.numbers // 256 % 256
        return np.repeat(frame, self.stack, 0) if previous is None else np.concatenate([previous[1:], frame])

    def one(self, env: int, event: str) -> Row:
        now = self.pending[env]
        if event.startswith("break") or now is None:
            if event == "break by a sign" and now is not None and self.stack is None and now[2] == 0:
                now = now * np.array([1, 1, -1], np.float32)  # -0.0 for 0.0: equal, and other bytes
            else:
                now = self.fresh()
        following = self.fresh(now)
        ended = event in ("terminate", "truncate", "both")
        self.pending[env] = None if ended else following
        self.numbers += 1
        return Row(
            now, self.numbers, float(self.numbers % 9 - 4), following, event in ("terminate", "both"),
            event in ("truncate", "both"), event != "filler",
        )  # fmt: skip

    def put(self, rows: list[Row]) -> None:
        fields = (
            np.stack([row.observation for row in rows]),
            np.array([row.action for row in rows]),
            np.array([row.reward for row in rows], np.float32),
            np.stack([row.next_observation for row in rows]),
            np.array([row.terminated for row in rows]),
            np.array([row.truncated for row in rows]),
        )
        self.buffer.add(*fields, mask=np.array([row.valid for row in rows]))
        for row in rows:
            if row.valid:
                self.model.priorities[len(self.model.rows)] = self.model.largest
            self.model.rows.append(row)

    @rule(steps=st.lists(st.lists(EVENTS, min_size=3, max_size=3), min_size=1, max_size=6))
    def add(self, steps: list[list[str]]) -> None:
        for events in steps:
            if self.num_envs is None:
                self.pending = [None]
                self.put([self.one(0, event) for event in events[: min(3, self.model.capacity)]])
            else:
                self.put([self.one(env, events[env]) for env in range(self.model.envs)])

    @precondition(lambda self: self.model.stored)
    @rule(size=st.integers(1, 9))
    def sample(self, size: int) -> None:
        batch = self.buffer.sample(size)
        assert set(batch.indices.tolist()) <= set(self.model.stored)
        assert_batch(batch, self.model)
        if self.kind is PrioritizedReplayBuffer:
            powers = np.array([self.model.priorities[i] ** ALPHA for i in batch.indices.tolist()])
            weights = (powers / powers.min()) ** -self.buffer.beta
            np.testing.assert_allclose(batch.weights, weights, rtol=1e-5)
        else:
            assert batch.weights is None

    @precondition(lambda self: self.model.stored and self.kind is ReplayBuffer)
    @rule()
    def sample_all(self) -> None:
        """Without replacement, as many as there are: each once."""
        batch = self.buffer.sample(len(self.model.stored), replace=False)
        assert sorted(batch.indices.tolist()) == self.model.stored
        assert_batch(batch, self.model)

    @precondition(lambda self: self.model.priorities and self.kind is PrioritizedReplayBuffer)
    @rule(data=st.data())
    def update_priorities(self, data: st.DataObject) -> None:
        """Of any transitions that ever were, the overwritten ones included."""
        pairs = data.draw(
            st.lists(
                st.tuples(st.sampled_from(sorted(self.model.priorities)), st.floats(1e-6, 1e6)), min_size=1, max_size=6
            )
        )
        self.buffer.update_priorities([i for i, _ in pairs], [p for _, p in pairs])
        for index, priority in pairs:
            if index < self.model.oldest:
                self.model.stale += 1
            else:
                self.model.priorities[index] = priority
                self.model.largest = max(self.model.largest, priority)

    @rule(mapped=st.booleans())
    def save_and_load(self, mapped: bool) -> None:
        """What was loaded goes on as what was saved would have, wherever either lies."""
        path = self.folder / "saved"
        self.buffer.save(path)
        self.copies += mapped
        loaded = self.kind.load(path, storage=self.folder / str(self.copies) if mapped else None)
        if self.model.stored:
            assert self.buffer.sample(5).indices.tolist() == loaded.sample(5).indices.tolist()
        self.buffer, self.mapped = loaded, mapped

    @precondition(lambda self: self.mapped)
    @rule()
    def open_again(self) -> None:
        """A copy of the files as they are, as a process that was killed leaves them."""
        before = self.folder / str(self.copies)
        self.copies += 1
        shutil.copytree(before, self.folder / str(self.copies))
        self.buffer = self.kind.open(self.folder / str(self.copies))

    @invariant()
    def everything_is_there(self) -> None:
        if not hasattr(self, "model"):
            return
        model, buffer = self.model, self.buffer
        assert buffer.added == len(model.rows)
        assert len(buffer) == len(model.stored)
        if model.stored:
            assert_batch(buffer.gather(model.stored), model)
        for index in (model.oldest - 1, len(model.rows)):
            with pytest.raises(IndexError):
                buffer.gather([index])
        if self.kind is PrioritizedReplayBuffer:
            total = sum(model.priorities[i] ** ALPHA for i in model.stored)
            assert buffer.total_priority == pytest.approx(total, rel=1e-12)
            assert buffer.max_priority == model.largest
            assert buffer.stale_updates == model.stale


class TestReplayModel(Machine.TestCase):
    settings = settings(max_examples=EXAMPLES, stateful_step_count=15, deadline=None)
