"""Prioritized replay against a plain list of priorities: rows B7 to B10 of the pitfalls, weights, draws, content."""

import copy
import math
import pickle
import shutil
import threading
from pathlib import Path
from typing import Any

import naive_sum_tree
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fastac.buffers.prioritized import PrioritizedReplayBuffer
from fastac.buffers.replay import ReplayBuffer

EXAMPLE = {"observations": np.zeros(1, np.float32), "actions": np.int64(0)}


def make(capacity: int, **options: Any) -> PrioritizedReplayBuffer:
    return PrioritizedReplayBuffer.from_example(capacity, EXAMPLE, **options)


def add(buffer: PrioritizedReplayBuffer, rows: int, mask: Any = None) -> None:
    """Rows in a chain; the reward is the row's serial number."""
    for i in range(rows):
        t, valid = buffer.added, None if mask is None else mask[i : i + 1]
        buffer.add(np.float32([[t]]), [t % 7], [t], np.float32([[t + 1]]), [False], [False], valid)


def filled(priorities: Any, **options: Any) -> PrioritizedReplayBuffer:
    """As many rows as priorities."""
    buffer = make(len(priorities), **options)
    add(buffer, len(priorities))
    buffer.update_priorities(np.arange(len(priorities)), priorities)
    return buffer


def leaves(buffer: PrioritizedReplayBuffer) -> np.ndarray:
    assert buffer.total_priority == naive_sum_tree.levels(buffer._tree.leaves.tolist())[-1][0]
    return buffer._tree.leaves.copy()


class Plain:
    """Priorities in a list, each change at once."""

    def __init__(self, capacity: int, alpha: float):
        self.capacity, self.alpha = capacity, alpha
        self.leaves = [0.0] * capacity
        self.added, self.stale, self.largest = 0, 0, 1.0

    def add(self, valid: bool) -> None:
        self.leaves[self.added % self.capacity] = self.largest**self.alpha if valid else 0.0
        self.added += 1

    def update(self, indices: list[int], priorities: list[float]) -> None:
        for index, priority in zip(indices, priorities, strict=True):
            if index < self.added - self.capacity:
                self.stale += 1
            else:
                self.leaves[index % self.capacity] = priority**self.alpha
                self.largest = max(self.largest, priority)


@settings(max_examples=40, deadline=None)
@given(st.data(), st.integers(1, 40), st.sampled_from([0.0, 0.4, 1.0, 1.7]), st.integers(0, 2**40))
def test_any_adds_and_updates_as_the_plain_list(data: Any, capacity: int, alpha: float, seed: int) -> None:
    buffer, plain = make(capacity, alpha=alpha, seed=seed), Plain(capacity, alpha)
    draws = 0
    for _ in range(data.draw(st.integers(1, 8))):
        mask = data.draw(st.lists(st.booleans(), max_size=50))
        add(buffer, len(mask), np.array(mask))
        for valid in mask:
            plain.add(valid)
        known = [i for i in range(plain.added) if i < plain.added - capacity or plain.leaves[i % capacity] > 0]
        if known and data.draw(st.booleans()):
            indices = data.draw(st.lists(st.sampled_from(known), min_size=1, max_size=30))
            priority = st.floats(1e-9, 1e9) | st.sampled_from([1.0, 1e-30, 1e30])
            priorities = data.draw(st.lists(priority, min_size=len(indices), max_size=len(indices)))
            buffer.update_priorities(indices, priorities)
            plain.update(indices, priorities)
        if data.draw(st.booleans()):
            found = leaves(buffer)
            np.testing.assert_allclose(found, plain.leaves, rtol=1e-13)
            assert (buffer.max_priority, buffer.stale_updates) == (plain.largest, plain.stale)
            if found.any():
                n = data.draw(st.integers(1, 20))
                places = np.array(naive_sum_tree.draw(found.tolist(), n, seed, draws))
                draws += n
                indices = buffer.sample(n).indices
                np.testing.assert_array_equal(indices % capacity, places)
                assert ((indices >= plain.added - capacity) & (indices < plain.added)).all()


def test_a_batch_is_what_gather_returns_and_its_weights_are_the_paper_s() -> None:
    """Schaul et al. 2016, section 3.4, evaluated as it is written, with N and the sum."""
    rng = np.random.default_rng(0)
    priorities = 10.0 ** rng.uniform(-4, 4, 500)
    buffer = filled(priorities, alpha=0.6, beta=0.4, n_step=3)
    add(buffer, 37)
    probabilities = leaves(buffer) / buffer.total_priority
    for beta in (None, 0.0, 0.4, 1, 1.0, 2.5):
        batch = buffer.sample(64, beta=beta)
        same = buffer.gather(batch.indices)
        for name in ("observations", "actions", "rewards", "next_observations", "terminated", "discounts", "indices"):
            np.testing.assert_array_equal(getattr(batch, name), getattr(same, name))
        weights = (500 * probabilities[batch.indices % 500]) ** -(0.4 if beta is None else beta)
        assert batch.weights.dtype == np.float32
        np.testing.assert_allclose(batch.weights, weights / weights.max(), rtol=2e-7)
        assert batch.weights.max() == 1.0


def test_n_step_targets_of_prioritized_rows() -> None:
    buffer = filled([1e-9, 1e-9, 1.0, 1e-9, 1e-9], n_step=3, gamma=0.5, alpha=1.0)
    batch = buffer.sample(2)
    np.testing.assert_array_equal(batch.indices, [2, 2])
    np.testing.assert_array_equal(batch.rewards, np.float32([2 + 0.5 * 3 + 0.25 * 4] * 2))
    np.testing.assert_array_equal(batch.discounts, np.float32([0.125] * 2))
    np.testing.assert_array_equal(batch.next_observations, np.float32([[5], [5]]))


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_draws_are_proportional(alpha: float) -> None:
    """Chi-square over a ring that has wrapped, of draws one by one (stratified ones: see the tree's tests)."""
    rng = np.random.default_rng(1)
    buffer = make(50, alpha=alpha, seed=5)
    add(buffer, 75)
    priorities = rng.exponential(size=50) + 0.01
    buffer.update_priorities(np.arange(25, 75), priorities)
    counts = np.bincount([int(buffer.sample(1).indices[0]) for _ in range(20_000)], minlength=75)
    assert not counts[:25].any()
    expected = 20_000 * priorities**alpha / (priorities**alpha).sum()
    chance = stats.chi2(49).sf(((counts[25:] - expected) ** 2 / expected).sum())
    assert 1e-3 < chance < 1 - 1e-3


def test_b7_fillers_and_zero_leaves_are_never_drawn() -> None:
    """Row B7: of a buffer of fillers but for one row, or of huge and tiny priorities, a draw is always a stored row."""
    buffer = make(1000, num_envs=1, alpha=1.0)
    mask = np.zeros(1500, np.bool_)
    mask[1234] = True
    add(buffer, 1500, mask)
    for size in (1, 3, 256):
        assert (buffer.sample(size).indices == 1234).all()
    buffer.update_priorities([1234], [1e-30])
    assert (buffer.sample(64).indices == 1234).all()
    add(buffer, 3, np.array([False, True, False]))
    buffer.update_priorities([1501], [1e30])
    assert (buffer.sample(4096).indices == 1501).all()
    buffer.update_priorities([1501], [1e-30])
    assert set(buffer.sample(64).indices.tolist()) == {1234, 1501}


def test_b8_the_raw_maximum_is_kept_and_transformed_once() -> None:
    """Row B8: a new row's leaf is max^alpha, not max^(alpha^2), and the maximum outlives the row that had it."""
    buffer = filled([4.0, 0.25], alpha=0.5)
    assert buffer.max_priority == 4.0
    add(buffer, 1)  # overwrites the row that had the largest priority
    np.testing.assert_array_equal(leaves(buffer), [2.0, 0.5])
    buffer.update_priorities([1, 2], [0.01, 0.01])
    add(buffer, 1)
    assert buffer.max_priority == 4.0
    np.testing.assert_allclose(leaves(buffer), [0.1, 2.0], rtol=1e-15)
    assert make(3).max_priority == 1.0
    assert filled([0.1, 0.2]).max_priority == 1.0


def test_b8_new_rows_get_the_same_bits_as_an_update_with_the_maximum() -> None:
    """Row B8."""
    for alpha in (0.0, 0.3, 0.6, 1.0):
        for largest in (1.0, 1.7, np.pi * 1e10, 1e300):
            buffer = make(2, alpha=alpha)
            add(buffer, 1)
            buffer.update_priorities([0], [largest])
            add(buffer, 1)
            first, second = leaves(buffer)
            assert first == second


def test_b9_priorities_of_overwritten_rows_are_dropped_and_counted() -> None:
    """Row B9: between `sample` and `update_priorities` the slots were given to other rows, once or many times over."""
    buffer = filled([1.0] * 8, alpha=1.0)
    indices = buffer.sample(8).indices
    np.testing.assert_array_equal(indices, np.arange(8))
    add(buffer, 3)
    before = leaves(buffer)
    buffer.update_priorities(indices, np.full(8, 9.0))
    assert buffer.stale_updates == 3
    np.testing.assert_array_equal(leaves(buffer), [1, 1, 1, 9, 9, 9, 9, 9])
    add(buffer, 80)
    before = leaves(buffer)
    buffer.update_priorities(indices, np.full(8, 100.0))
    assert buffer.stale_updates == 11
    np.testing.assert_array_equal(leaves(buffer), before)
    assert buffer.max_priority == 9.0  # nor does a dropped one count as the maximum


def test_b9_when_all_were_overwritten_between_two_calls() -> None:
    """Row B9: more rows added at once than there are places."""
    buffer = make(10, num_envs=None, alpha=1.0)
    for rows in (7, 25, 10, 3):
        x = np.zeros((rows, 1), np.float32)
        buffer.add(x, np.zeros(rows, np.int64), np.zeros(rows), x, np.zeros(rows, bool), np.zeros(rows, bool))
        stored = np.arange(max(buffer.added - 10, 0), buffer.added)
        buffer.update_priorities(np.arange(buffer.added), np.arange(buffer.added) + 1.0)
        np.testing.assert_array_equal(leaves(buffer)[stored % 10], stored + 1.0)
    assert buffer.stale_updates == 22 + 32 + 35


def test_b10_one_writer_four_readers_that_update() -> None:
    """Row B10: each batch is of whole rows that were stored then, and the tree is whole afterwards."""
    buffer = make(512, num_envs=4, seed=3)
    ones = np.ones(4, np.float32)

    def step(t: int) -> None:
        x = np.full((4, 1), t, np.float32)
        buffer.add(x, np.full(4, t), ones * t, x + 1, np.zeros(4, bool), np.zeros(4, bool))

    for t in range(200):
        step(t)
    errors: list[BaseException] = []
    done = threading.Event()

    def read(seed: int) -> None:
        rng = np.random.default_rng(seed)
        try:
            while not done.is_set():
                batch = buffer.sample(64)
                time = batch.indices // 4
                assert (batch.rewards == time).all()
                assert (batch.observations[:, 0] == time).all()
                assert (batch.next_observations[:, 0] == time + 1).all()
                assert (batch.actions == time).all()
                assert batch.weights.max() == 1
                buffer.update_priorities(batch.indices, rng.exponential(size=64) + 1e-3)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for t in range(200, 4000):
        step(t)
    done.set()
    for thread in threads:
        thread.join()
    assert not errors, errors
    assert (leaves(buffer) > 0).all()
    assert buffer.stale_updates > 0


def test_the_last_of_duplicates_stays() -> None:
    buffer = filled([1.0, 1.0, 1.0], alpha=1.0)
    buffer.update_priorities([1, 0, 1, 1], [5.0, 2.0, 7.0, 3.0])
    np.testing.assert_array_equal(leaves(buffer), [2, 3, 1])
    assert buffer.max_priority == 7.0  # every priority given counts


@pytest.mark.parametrize("bad", [0.0, -1.0, -0.0, np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bad_priorities_are_refused_and_nothing_is_written(bad: float, dtype: Any) -> None:
    buffer = filled([1.0, 2.0, 3.0], alpha=1.0)
    with pytest.raises(ValueError, match=rf"priorities: got {bad} for index 2, expected finite numbers above 0"):
        buffer.update_priorities([0, 1, 2, 0], np.array([9, 9, bad, 9], dtype))
    np.testing.assert_array_equal(leaves(buffer), [1, 2, 3])
    assert buffer.max_priority == 3.0


def test_other_errors() -> None:
    buffer = make(4, alpha=1.0)
    with pytest.raises(ValueError, match="holds no transition"):
        buffer.sample(1)
    add(buffer, 2, np.array([True, False]))
    with pytest.raises(ValueError, match="got 1, which is a filler"):
        buffer.update_priorities([0, 1], [9.0, 9.0])
    for index in (-1, 2, 2**62):
        with pytest.raises(IndexError, match=f"got {index}, which was never added"):
            buffer.update_priorities([0, index], [9.0, 9.0])
    np.testing.assert_array_equal(leaves(buffer), [1, 0, 0, 0])
    with pytest.raises(ValueError, match=r"priorities: got shape \(1,\) for indices of shape \(2,\)"):
        buffer.update_priorities([0, 0], [9.0])
    with pytest.raises(ValueError, match=r"priorities: got shape \(1, 1\)"):
        buffer.update_priorities([[0]], [[9.0]])
    with pytest.raises(TypeError, match="indices: got dtype float64"):
        buffer.update_priorities([0.0], [9.0])
    with pytest.raises(ValueError, match="batch_size"):
        buffer.sample(0)
    with pytest.raises(ValueError, match="replace: got False"):
        buffer.sample(1, replace=False)
    for value in (-0.1, np.nan, np.inf, True, "a"):
        for name in ("alpha", "beta"):
            with pytest.raises(ValueError, match=f"{name}: got"):
                make(4, **{name: value})
        with pytest.raises(ValueError, match="beta: got"):
            buffer.sample(1, beta=value)  # type: ignore[arg-type]
    add(buffer, 8, np.zeros(8, bool))
    with pytest.raises(ValueError, match="holds no transition"):
        buffer.sample(1)


def test_edges_of_float64() -> None:
    """Priorities from the smallest to the largest float64: leaves are clipped, all sums finite, none of them lost."""
    values = [5e-324, 1e-300, 1.0, 1e300, np.finfo(np.float64).max]
    for alpha in (0.5, 1.0, 3.0):
        buffer = filled(values, alpha=alpha)
        found = leaves(buffer)
        with np.errstate(all="ignore"):
            np.testing.assert_allclose(found, np.clip(np.float64(values) ** alpha, 2.0**-960, 2.0**960), rtol=1e-12)
        assert math.isfinite(buffer.total_priority)
        batch = buffer.sample(32)
        assert np.isfinite(batch.weights).all()
    buffer.update_priorities([3, 4], [5e-324, 5e-324])
    buffer.update_priorities([2], [5e-324])
    assert set(buffer.sample(64).indices.tolist()) == set(range(5))


@pytest.mark.parametrize("capacity", [1, 2, 15, 16, 17, 100, 257])
def test_capacities(capacity: int) -> None:
    buffer = make(capacity, alpha=1.0, seed=capacity)
    for rows in (1, capacity, 3, 2 * capacity + 1):
        add(buffer, rows)
        oldest = max(buffer.added - capacity, 0)
        stored = np.arange(oldest, buffer.added)
        batch = buffer.sample(4 * len(stored))
        np.testing.assert_array_equal(np.unique(batch.indices), stored)  # equal priorities: each has a part of its own


def test_the_same_seed_gives_the_same_bytes() -> None:
    def run(disturb: bool) -> bytes:
        buffer = make(100, seed=7)
        result = b""
        for round_ in range(5):
            add(buffer, 30)
            if disturb:
                np.random.seed(0)  # noqa: NPY002
                make(3, seed=7)
                torch.manual_seed(0)
                buffer.gather([buffer.added - 1])
                assert buffer.total_priority > 0
            batch = buffer.sample(32, beta=0.1 * round_)
            buffer.update_priorities(batch.indices, np.abs(batch.rewards) + 0.5)
            result += batch.indices.tobytes() + batch.weights.tobytes() + batch.observations.tobytes()
        return result + leaves(buffer).tobytes()

    assert run(False) == run(True)


def test_the_time_of_the_tree_s_work_does_not_matter() -> None:
    """Rows get their leaf when the tree is next used: the same bits as if it were used after each of them."""
    buffers = make(64, seed=1), make(64, seed=1)
    for rows in (40, 100, 5, 64, 65, 1):
        for _ in range(rows):
            add(buffers[0], 1)
            assert buffers[0].total_priority > 0
        add(buffers[1], rows)
        for buffer in buffers:
            batch = buffer.sample(16)
            buffer.update_priorities(batch.indices, batch.indices % 13 + 0.25)
        assert leaves(buffers[0]).tobytes() == leaves(buffers[1]).tobytes()


def test_tensors_and_outputs() -> None:
    buffer, other = filled(np.arange(1.0, 41.0), seed=2), filled(np.arange(1.0, 41.0), seed=2)
    batch, tensors = buffer.sample(16, beta=0.7), other.sample(16, beta=0.7, device="cpu")
    for x, y in zip(batch[:-1], tensors[:-1], strict=True):
        assert isinstance(y, torch.Tensor)
        np.testing.assert_array_equal(x, y.numpy())
    buffer.update_priorities(batch.indices, np.float64(batch.rewards) + 1)
    other.update_priorities(tensors.indices, tensors.rewards.double().requires_grad_() + 1)
    assert leaves(buffer).tobytes() == leaves(other).tobytes()
    wanted = buffer.sample(16, beta=0.7)
    again = other.sample(16, beta=0.7, out=tensors)
    assert again is tensors
    for x, y in zip(wanted[:-1], tensors[:-1], strict=True):
        np.testing.assert_array_equal(x, y.numpy())
    for weights in (None, np.empty(15, np.float32), np.empty(16), np.empty((32,), np.float32)[::2]):
        with pytest.raises(ValueError, match="out: weights"):
            buffer.sample(16, out=batch._replace(weights=weights))
    with pytest.raises(ValueError, match="out: weights: shares memory with discounts"):
        buffer.sample(16, out=batch._replace(weights=batch.discounts))
    with pytest.raises(ValueError, match="out: rewards"):
        buffer.sample(16, out=batch._replace(rewards=np.empty(15, np.float32)))
    assert buffer.sample(16).indices.tolist() == other.sample(16).indices.tolist()  # a refused call draws nothing


def test_readonly_strided_and_integer_arguments() -> None:
    buffer = filled(np.arange(1.0, 11.0), alpha=1.0)
    indices = np.arange(10)
    indices.flags.writeable = False
    buffer.update_priorities(indices, np.arange(20)[1::2])
    np.testing.assert_array_equal(leaves(buffer), np.arange(20)[1::2])
    buffer.update_priorities(np.arange(20, dtype=np.int32)[:10:2], np.full(5, 2, np.float16))
    np.testing.assert_array_equal(leaves(buffer)[::2], [2] * 5)
    buffer.update_priorities([], [])


def test_the_same_where_objects_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other interpreters: addresses are asked of numpy."""
    buffer = filled(np.arange(1.0, 41.0), seed=2)
    wanted = buffer.sample(16)
    monkeypatch.setattr("fastac.buffers.prioritized.READABLE", False)
    monkeypatch.setattr("fastac.buffers.replay_ring.READABLE", False)
    other = filled(np.arange(1.0, 41.0), seed=2)
    for x, y in zip(wanted[:-1], other.sample(16)[:-1], strict=True):
        np.testing.assert_array_equal(x, y)
    add(other, 1)
    assert other.added == 41


def used(capacity: int = 40, rows: int = 70, **options: Any) -> PrioritizedReplayBuffer:
    """With fillers, wrapped, updated, some of it too late."""
    rng = np.random.default_rng(0)
    buffer = make(capacity, alpha=0.7, seed=4, **options)
    add(buffer, 20, np.arange(20) % 5 != 1)
    indices = buffer.sample(16).indices
    add(buffer, rows - 20)
    buffer.update_priorities(indices, rng.exponential(size=16) + 0.1)
    batch = buffer.sample(32)
    buffer.update_priorities(batch.indices, rng.exponential(size=32) + 0.1)
    buffer.beta = 0.55
    add(buffer, 3)
    return buffer


def assert_same_future(first: PrioritizedReplayBuffer, second: PrioritizedReplayBuffer) -> None:
    """Both go on alike, bit for bit."""
    for name in ("alpha", "beta", "added", "max_priority", "stale_updates", "total_priority"):
        assert getattr(first, name) == getattr(second, name), name
    for _ in range(3):
        batches = first.sample(24), second.sample(24)
        for x, y in zip(*(batch[:-1] for batch in batches), strict=True):
            assert x.tobytes() == y.tobytes()
        for buffer, batch in zip((first, second), batches, strict=True):
            buffer.update_priorities(batch.indices, batch.indices % 7 + 0.3)
            add(buffer, 11)
        assert leaves(first).tobytes() == leaves(second).tobytes()


@pytest.mark.parametrize("rows", [25, 70])
def test_save_and_load_bit_for_bit(tmp_path: Path, rows: int) -> None:
    """Rows added since the tree was last used, too, and the file depends on nothing but the buffer."""
    buffer, other = used(rows=rows), used(rows=rows)
    buffer.save(tmp_path / "one")
    other.save(tmp_path / "two")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    loaded = PrioritizedReplayBuffer.load(tmp_path / "one")
    assert loaded.stale_updates == buffer.stale_updates
    assert_same_future(buffer, loaded)
    mapped = PrioritizedReplayBuffer.load(tmp_path / "two", storage=tmp_path / "storage")
    assert_same_future(other, mapped)
    mapped.close()


def test_copies_go_on_alike() -> None:
    for duplicate in (copy.deepcopy, lambda buffer: pickle.loads(pickle.dumps(buffer))):
        buffer = used()
        assert_same_future(buffer, duplicate(buffer))


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    used().save(tmp_path / "prioritized")
    ReplayBuffer.from_example(4, EXAMPLE).save(tmp_path / "uniform")
    with pytest.raises(ValueError, match="PrioritizedReplayBuffer"):
        ReplayBuffer.load(tmp_path / "prioritized")
    with pytest.raises(ValueError, match="ReplayBuffer"):
        PrioritizedReplayBuffer.load(tmp_path / "uniform")


def test_mapped_storage_keeps_priorities_when_the_process_dies(tmp_path: Path) -> None:
    """A copy of the files as they are is what a killed process leaves."""
    buffer = used(storage=tmp_path / "first")
    shutil.copytree(tmp_path / "first", tmp_path / "second")
    again = PrioritizedReplayBuffer.open(tmp_path / "second")
    assert_same_future(buffer, again)
    buffer.close()
    again.close()
    memory = used()
    opened = PrioritizedReplayBuffer.open(tmp_path / "first")
    for name in ("alpha", "beta"):
        assert getattr(memory, name) == getattr(opened, name)
    opened.close()
