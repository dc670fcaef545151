"""Prioritized replay on the device, here on CPU tensors: as on the host, and what is wrong found without waiting."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from device_cases import Steps, assert_rows, example
from nothing_read import NothingRead

from fastac.buffers import DevicePrioritizedReplayBuffer, PrioritizedReplayBuffer
from fastac.buffers.device_priorities import _find, _last_of_each


def filled(steps: int = 20, fillers: bool = False, device: str = "cpu", **options: Any) -> Steps:
    options = {"capacity": 12, "num_envs": 2, "n_step": 2, "gamma": 0.5, "alpha": 0.75} | options
    buffer = DevicePrioritizedReplayBuffer.from_example(options.pop("capacity"), example(), device=device, **options)
    made = Steps(buffer, 0, fillers=fillers)
    for _ in range(steps):
        made.step()
    return made


def probabilities(buffer: DevicePrioritizedReplayBuffer) -> np.ndarray:
    """Of every place in the ring."""
    leaves = buffer._leaves[: buffer.capacity].numpy()
    return leaves / leaves.sum()


@pytest.mark.parametrize("alpha", [0.0, 0.75, 1.0])
@pytest.mark.parametrize("capacity", [5, 64, 130])
def test_leaves_and_weights_are_those_of_the_host(capacity: int, alpha: float) -> None:
    """Rows B7, B8 and B9, against the buffer on the host after the same random calls."""
    rng = np.random.default_rng(capacity)
    one = {"observations": np.zeros(1, np.float32), "actions": np.int64(0)}
    there = DevicePrioritizedReplayBuffer.from_example(capacity, one, num_envs=1, alpha=alpha, device="cpu")
    host = PrioritizedReplayBuffer.from_example(capacity, one, num_envs=1, alpha=alpha)
    for _ in range(200):
        here, there_next = np.full((1, 1), there.added, np.float32), np.ones((1, 1), np.float32)
        valid = [there.added % 7 != 3]
        for buffer in (there, host):
            buffer.add(here, [0], [1.0], there_next, [0], [0], valid)
        if rng.random() < 0.5 and len(host):
            drawn = there.sample(16)
            priorities = rng.gamma(0.5, 2.0, 16) + 1e-6
            if rng.random() < 0.3:
                priorities *= 1e3
            there.update_priorities(drawn.indices, torch.from_numpy(priorities))
            host.update_priorities(drawn.indices.numpy(), priorities)
        assert there.total_priority == pytest.approx(host.total_priority, rel=1e-9)
        assert there.max_priority == pytest.approx(host.max_priority, rel=1e-12)
        assert there.stale_updates == host.stale_updates
        leaves = there._leaves[:capacity].numpy()
        np.testing.assert_allclose(leaves, host._tree.leaves[:capacity], rtol=1e-9)
        np.testing.assert_allclose(there._table.sum(1), there._sums, rtol=0)


@pytest.mark.parametrize("fillers", [False, True])
def test_draws_follow_the_priorities_and_weights_correct_them(fillers: bool) -> None:
    made = filled(capacity=40, steps=60, fillers=fillers)
    buffer = made.buffer
    drawn = buffer.sample(64).indices
    buffer.update_priorities(drawn, torch.rand(64) + 0.01)
    batch = buffer.sample(100_000, beta=0.5)
    assert_rows(buffer.sample(8), made.naive)
    expected = probabilities(buffer)
    counts = np.bincount(batch.indices.numpy() % 40, minlength=40)
    # Stratified: the number of draws is off by less than one from what is expected, at either end of the share.
    assert np.abs(counts - 100_000 * expected).max() <= 2
    weights = (expected[batch.indices.numpy() % 40] * len(buffer)) ** -0.5
    np.testing.assert_allclose(batch.weights, weights / weights.max(), rtol=1e-5)
    assert batch.weights.dtype is torch.float32
    assert batch.weights.max() == 1
    assert set(batch.indices.tolist()) <= set(made.naive.drawable())


def test_the_last_of_several_priorities_stays_and_overwritten_rows_are_dropped() -> None:
    """Row B9: an index of an overwritten row shares its place with a live one, and does not touch it."""
    buffer = filled(alpha=1.0).buffer
    newest = buffer.added - 1
    place = newest % buffer.capacity
    buffer.update_priorities(
        torch.tensor([newest, newest - 1, newest, newest - buffer.capacity]), torch.tensor([9.0, 3.0, 5.0, 7.0])
    )
    assert buffer._leaves[place] == 5.0
    assert buffer._leaves[place - 1] == 3.0
    assert buffer.stale_updates == 1
    assert buffer.max_priority == 9.0


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_priorities_are_refused_at_once_where_that_costs_nothing(bad: float) -> None:
    buffer = filled().buffer
    before = buffer._leaves.clone()
    indices = torch.tensor([buffer.added - 1, buffer.added - 2])
    for priorities in (torch.tensor([1.0, bad]), [1.0, bad]):
        with pytest.raises(ValueError, match="expected finite numbers above 0"):
            buffer.update_priorities(indices, priorities)
    with pytest.raises(IndexError, match="which was never added"):
        buffer.update_priorities([buffer.added], [1.0])
    with pytest.raises(IndexError, match="which was never added"):
        buffer.update_priorities(torch.tensor([-1]), torch.tensor([1.0]))
    assert torch.equal(buffer._leaves, before)
    assert buffer.refused_updates == 0


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf"), "unknown", "filler"])
def test_bad_priorities_are_refused_without_waiting_on_cuda(bad: Any) -> None:
    """As on CUDA: all or none, counted there, raised by `check`."""
    buffer = filled(fillers=True, steps=40).buffer
    drawable = buffer.sample(2).indices
    buffer._may_read = False
    before, largest = buffer._leaves[:-1].clone(), buffer.max_priority
    indices, priorities = drawable.clone(), torch.tensor([5.0, 1.0])
    if bad == "unknown":
        indices[1] = buffer.added
    elif bad == "filler":
        stored = set(range(buffer.added - buffer.capacity, buffer.added))
        indices[1] = next(iter(stored - set(buffer.sample(500).indices.tolist())))
    else:
        priorities[1] = bad
    with NothingRead():
        buffer.update_priorities(indices, priorities)
    assert torch.equal(buffer._leaves[:-1], before)
    assert (buffer.max_priority, buffer.refused_updates, buffer.stale_updates) == (largest, 1, 0)
    with pytest.raises(ValueError, match="priorities: 1 updates had one that is not finite and above 0"):
        buffer.check()
    with NothingRead():
        buffer.update_priorities(drawable, torch.tensor([5.0, 2.0]))
    assert buffer.max_priority == max(5.0, largest)


def test_a11_nothing_is_read_back() -> None:
    """Row A11."""
    made = filled(fillers=True)
    made.buffer.sample(4)
    made.buffer._may_read = False
    with NothingRead():
        for _ in range(20):
            made.step()
            batch = made.buffer.sample(8)
            made.buffer.update_priorities(batch.indices, batch.weights + 0.5)
    made.buffer.check()
    assert_rows(batch, made.naive)


def test_a9_goes_on_bit_for_bit(tmp_path: Any) -> None:
    """Row A9."""
    made, other = filled(fillers=True), filled(fillers=True)
    for buffer in (made.buffer, other.buffer):
        buffer.update_priorities(buffer.sample(9).indices, torch.linspace(0.1, 3, 9))
    other.buffer.save(tmp_path / "buffer")
    other.buffer = copy.deepcopy(DevicePrioritizedReplayBuffer.load(tmp_path / "buffer"))
    for _ in range(10):
        made.step(), other.step()
        one, two = made.buffer.sample(16), other.buffer.sample(16)
        assert torch.equal(one.indices, two.indices)
        assert torch.equal(one.weights, two.weights)
        for buffer in (made.buffer, other.buffer):
            buffer.update_priorities(one.indices, one.weights + 0.1)
    assert made.buffer.total_priority == other.buffer.total_priority


def test_a_search_never_ends_at_a_weight_of_zero() -> None:
    """Row B7: not even where rounding puts a target behind the last sum, or sums do not rise."""
    weights = torch.tensor([0.0, 1.0, 0.0, 0.0, 2.0, 0.0], dtype=torch.float64)
    upto = torch.tensor([0.0, 1.0, 1.0 + 1e-15, 1.0, 3.0, 3.0 + 1e-15], dtype=torch.float64)
    targets = torch.tensor([0.0, 0.5, 1.0, 2.0, 3.0, 3.5], dtype=torch.float64)
    found, rest = _find(upto, weights, targets)
    assert found.tolist() == [1, 1, 4, 4, 4, 4]
    assert (rest >= 0).all()
    rows, _ = _find(upto.expand(6, -1), weights.expand(6, -1), targets)
    assert torch.equal(rows, found)


def test_writes_do_not_depend_on_their_order() -> None:
    assert _last_of_each(torch.tensor([3, 1, 3, 2, 1, 3]), 9).tolist() == [9, 9, 9, 2, 1, 3]


def test_wrong_arguments_are_named() -> None:
    buffer = filled().buffer
    with pytest.raises(ValueError, match="beta: got -1"):
        buffer.sample(2, beta=-1)
    with pytest.raises(ValueError, match="replace: got False"):
        buffer.sample(2, replace=False)
    with pytest.raises(TypeError, match=r"indices: got dtype torch\.float32"):
        buffer.update_priorities(torch.zeros(2), torch.ones(2))
    with pytest.raises(ValueError, match=r"shape \(3,\) for indices of shape \(2,\)"):
        buffer.update_priorities(torch.tensor([38, 39]), torch.ones(3))
    with pytest.raises(ValueError, match="alpha: got nan"):
        DevicePrioritizedReplayBuffer.from_example(2, example(), alpha=float("nan"), device="cpu")
    buffer.update_priorities([], [])


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_cuda() -> None:
    made = filled(fillers=True, device="cuda", capacity=1000, steps=700)
    made.buffer.sample(4)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(20):
            made.step()
            batch = made.buffer.sample(256)
            made.buffer.update_priorities(batch.indices, batch.weights + 0.5)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    made.buffer.check()
    assert_rows(batch, made.naive)
    torch.testing.assert_close(made.buffer._table.sum(1), made.buffer._sums, rtol=0, atol=0)
