"""Replay on the device, here on CPU tensors: the rows of a plain list, ends, breaks and fillers included."""

import copy
import pickle
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from device_cases import Steps, assert_rows, example
from nothing_read import NothingRead

from fastac.buffers import DeviceReplayBuffer, Transitions
from fastac.buffers.saving import ArchiveError


def filled(
    seed: int = 0, kind: str = "tensors", fillers: bool = False, draws: int = 0, steps: int = 20, **options: Any
) -> Steps:
    options = {"capacity": 12, "num_envs": 2, "n_step": 3, "gamma": 0.5, "device": "cpu"} | options
    buffer = DeviceReplayBuffer.from_example(options.pop("capacity"), example(), seed=draws, **options)
    made = Steps(buffer, seed, kind=kind, fillers=fillers)
    for _ in range(steps):
        made.step()
    return made


@pytest.mark.parametrize("fillers", [False, True])
@pytest.mark.parametrize("kind", ["tensors", "arrays"])
@pytest.mark.parametrize("num_envs", [1, 3, None])
@pytest.mark.parametrize("n_step", [1, 2, 4])
def test_every_row_after_every_step(n_step: int, num_envs: int | None, kind: str, fillers: bool) -> None:
    """Rows B1 to B5: final observations, the newest row, windows that stop, gamma^k, the tails of episodes."""
    if num_envs is None and n_step > 1:
        return
    buffer = DeviceReplayBuffer.from_example(13, example(), num_envs=num_envs, n_step=n_step, gamma=0.9, device="cpu")
    made = Steps(buffer, n_step, kind=kind, fillers=fillers)
    for _ in range(25):
        made.step()
        assert_rows(buffer.gather(made.naive.stored()), made.naive)
        drawable = made.naive.drawable()
        assert len(buffer) == len(drawable)
        assert buffer.added == made.naive.added
        assert buffer.breaks == made.breaks
        if drawable:
            assert set(buffer.sample(50).indices.tolist()) <= set(drawable)
            distinct = buffer.sample(len(drawable), replace=False).indices.tolist()
            assert sorted(distinct) == drawable


def test_many_unrelated_rows_at_once() -> None:
    """More than the buffer holds: the last ones stay."""
    buffer = DeviceReplayBuffer.from_example(7, example(), num_envs=None, device="cpu")
    made = Steps(buffer, 0, rows=17, kind="arrays")
    for _ in range(3):
        made.step()
        assert_rows(buffer.gather(made.naive.stored()), made.naive)


def test_draws_are_uniform_over_what_is_no_filler() -> None:
    made = filled(fillers=True, capacity=20, steps=50)
    drawable = made.naive.drawable()
    indices = made.buffer.sample(200_000).indices.numpy()
    counts = np.bincount(indices - drawable[0], minlength=20)[np.array(drawable) - drawable[0]]
    expected = len(indices) / len(drawable)
    assert ((counts - expected) ** 2 / expected).sum() < 3 * len(drawable) + 30
    assert counts.sum() == len(indices)


def test_same_seed_same_bytes_and_a_generator_of_its_own() -> None:
    """Row B13."""
    batches = []
    for _ in range(2):
        torch.manual_seed(np.random.default_rng().integers(2**31))
        before = torch.get_rng_state()
        batches.append(filled(7).buffer.sample(64))
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(batches[0].indices, batches[1].indices)
    assert not torch.equal(batches[0].indices, filled(7, draws=1).buffer.sample(64).indices)


def test_a11_nothing_is_read_back() -> None:
    """Row A11: adding and sampling wait for nothing."""
    made = filled(fillers=True)
    made.buffer.sample(4)
    made.buffer._may_read = False
    with NothingRead():
        for _ in range(20):
            made.step()
            batch = made.buffer.sample(8)
            made.buffer.sample(8, out=batch)
    assert_rows(batch, made.naive)


def test_out_is_filled() -> None:
    made = filled()
    out = made.buffer.sample(5)
    before = out.observations.data_ptr()
    state = made.buffer.state_dict()
    expected = made.buffer.sample(5)
    made.buffer.load_state_dict(state)
    assert made.buffer.sample(5, out=out) is out
    assert out.observations.data_ptr() == before
    assert torch.equal(out.indices, expected.indices)
    assert_rows(out, made.naive)
    with pytest.raises(ValueError, match=r"out\.observations: got \(5, 2\) torch.float32, expected \(6, 2\)"):
        made.buffer.sample(6, out=out)


@pytest.mark.parametrize("way", ["save", "pickle", "deepcopy"])
def test_a9_goes_on_bit_for_bit(way: str, tmp_path: Any) -> None:
    """Rows A9 and B12."""
    made, other = filled(3, fillers=True), filled(3, fillers=True)
    made.buffer.sample(9), other.buffer.sample(9)
    if way == "save":
        other.buffer.save(tmp_path / "buffer")
        other.buffer = DeviceReplayBuffer.load(tmp_path / "buffer")
    else:
        other.buffer = pickle.loads(pickle.dumps(other.buffer)) if way == "pickle" else copy.deepcopy(other.buffer)
    for _ in range(10):
        made.step(), other.step()
        one, two = made.buffer.sample(16), other.buffer.sample(16)
        assert torch.equal(one.indices, two.indices)
        assert torch.equal(one.next_observations, two.next_observations)
    assert_rows(other.buffer.gather(other.naive.stored()), other.naive)


def test_files_of_other_kinds_are_refused(tmp_path: Any) -> None:
    from fastac.buffers import DevicePrioritizedReplayBuffer, ReplayBuffer

    filled().buffer.save(tmp_path / "buffer")
    with pytest.raises(ArchiveError, match="DeviceReplayBuffer, not a DevicePrioritizedReplayBuffer"):
        DevicePrioritizedReplayBuffer.load(tmp_path / "buffer")
    with pytest.raises(ArchiveError):
        ReplayBuffer.load(tmp_path / "buffer")


def test_spaces_and_dicts() -> None:
    spaces = {"image": gymnasium.spaces.Box(0, 255, (2, 3), np.uint8), "speed": gymnasium.spaces.Box(-1, 1, (3,))}
    space, action = gymnasium.spaces.Dict(spaces), gymnasium.spaces.Box(-1, 1, (2,))
    buffer = DeviceReplayBuffer(10, space, action, num_envs=2, device="cpu")
    for kind in (torch.as_tensor, np.asarray):
        first = {"image": np.full((2, 2, 3), 7, np.uint8), "speed": np.ones((2, 3), np.float32)}
        second = {"image": np.full((2, 2, 3), 8, np.uint8), "speed": np.zeros((2, 3), np.float32)}
        given = [{key: kind(x) for key, x in part.items()} for part in (first, second)]
        buffer.add(given[0], kind(np.ones((2, 2), np.float32)), [1.0, 2.0], given[1], [False, True], [False, False])
    batch = buffer.gather([0, 1, 2, 3])
    assert isinstance(batch, Transitions)
    assert batch.observations["image"].dtype is torch.uint8
    assert (batch.next_observations["image"] == 8).all()
    assert batch.rewards.tolist() == [1.0, 2.0, 1.0, 2.0]
    assert buffer.breaks == 1  # the second environment's episode had ended
    assert batch.actions.shape == (4, 2)


def test_wrong_arguments_are_named() -> None:
    made = filled()
    row = [np.zeros((2, 2), np.float32), [0, 0], [0.0, 0.0], np.zeros((2, 2), np.float32), [0, 0], [0, 0]]
    with pytest.raises(ValueError, match="extra: got the fields"):
        made.buffer.add(*row)
    with pytest.raises(ValueError, match=r"rewards: got shape \(3,\), expected \(2,\)"):
        made.buffer.add(*row[:2], [0.0] * 3, *row[3:], tag=[0.0, 0.0])
    with pytest.raises(IndexError, match="indices: got 3, which was overwritten"):
        made.buffer.gather([3])
    with pytest.raises(IndexError, match="indices: got 99, which was never added"):
        made.buffer.gather(torch.tensor([39, 99]))
    with pytest.raises(ValueError, match="holds 0 transitions"):
        DeviceReplayBuffer.from_example(5, example(), device="cpu").sample(1)
    with pytest.raises(ValueError, match="num_envs: got None, which n_step above 1"):
        DeviceReplayBuffer.from_example(5, example(), num_envs=None, n_step=2, device="cpu")
    with pytest.raises(TypeError, match="unexpected options"):
        DeviceReplayBuffer.from_example(5, example(), frame_stack=4, device="cpu")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="device: got 'cuda', but PyTorch finds no CUDA device"):
            DeviceReplayBuffer.from_example(5, example())


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kind", ["tensors", "arrays"])
def test_on_cuda(kind: str) -> None:
    """The same rows, in a stream of one's own, with nothing read back once there is something to draw."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        made = filled(kind=kind, fillers=True, device="cuda")
        made.buffer.sample(4)
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(20):
                made.step()
                batch = made.buffer.sample(64)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert_rows(batch, made.naive)
        assert_rows(made.buffer.gather(made.naive.stored()), made.naive)
