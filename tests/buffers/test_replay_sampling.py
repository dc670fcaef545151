"""What is drawn: uniformly, repeatably, without writing, by several threads at once, in any form."""

import threading

import numpy as np
import pytest
import torch
from fresh import run_python

from fastac.buffers import ReplayBuffer, Transitions

EXAMPLE = {"observations": np.zeros(3, np.float32), "actions": np.int64(0)}


def filled(
    steps: int = 60, num_envs: int = 2, fillers: bool = True, capacity: int = 80, **options: int
) -> ReplayBuffer:
    """Observations say their row, next observations the row after it; every seventh row is a filler."""
    buffer = ReplayBuffer.from_example(capacity, EXAMPLE, num_envs=num_envs, **options)
    for t in range(steps):
        now = np.full((num_envs, 3), t, np.float32)
        mask = np.full(num_envs, t % 7 != 3) if fillers else None
        flags = np.zeros(num_envs, bool)
        buffer.add(now, np.arange(num_envs), np.ones(num_envs), now + 1, flags, flags, mask)
    return buffer


def raw(batch: Transitions) -> list[bytes]:
    return [x.tobytes() for x in batch[:8]]


def test_same_seed_same_bytes() -> None:
    """Row B13: a generator of its own; global random state changes nothing, and is not changed."""
    first, second, third = filled(seed=3), filled(seed=3), filled(seed=4)
    np.random.seed(0)  # noqa: NPY002
    before = np.random.get_state()[1].tobytes()  # noqa: NPY002
    a = [raw(first.sample(9)) for _ in range(3)]
    assert np.random.get_state()[1].tobytes() == before  # noqa: NPY002
    np.random.random()  # noqa: NPY002
    assert a == [raw(second.sample(9)) for _ in range(3)]
    assert a != [raw(third.sample(9)) for _ in range(3)]
    state = first.state_dict()
    b = raw(first.sample(5, replace=False))
    first.load_state_dict(state)
    assert raw(first.sample(5, replace=False)) == b


@pytest.mark.parametrize("replace", [True, False])
def test_uniform(replace: bool) -> None:
    """Chi-square over all drawable rows, fillers in between; 5 sigma."""
    buffer = filled()
    stored = [i for i in range(40, 120) if (i // 2) % 7 != 3]
    assert len(buffer) == len(stored)
    draws = np.concatenate([buffer.sample(20, replace=replace).indices for _ in range(2000)])
    counts = np.array([np.sum(draws == i) for i in stored])
    assert counts.sum() == len(draws)
    expected = len(draws) / len(stored)
    spread = 1.0 if replace else 1.0 - 20 / len(stored)
    chi = ((counts - expected) ** 2 / expected).sum() / spread
    freedom = len(stored) - 1
    assert abs(chi - freedom) < 5 * np.sqrt(2 * freedom)


def test_sampling_writes_nothing() -> None:
    """Row B14."""
    buffer = filled(n_step=3)
    before = buffer._storage.arrays["rows"].tobytes(), buffer._storage.arrays["side"].tobytes()
    buffer.sample(50)
    buffer.sample(50, replace=False)
    assert before == (buffer._storage.arrays["rows"].tobytes(), buffer._storage.arrays["side"].tobytes())


def test_arrays_tensors_and_out() -> None:
    buffer = filled(seed=1)
    start = buffer.state_dict()
    arrays = buffer.sample(8)
    buffer.load_state_dict(start)
    tensors = buffer.sample(8, device="cpu")
    assert isinstance(tensors.rewards, torch.Tensor)
    assert tensors.terminated.dtype == torch.bool
    for out in (arrays, tensors):
        wanted = raw(arrays)
        buffer.load_state_dict(start)
        assert buffer.sample(8, out=out) is out
        assert [np.asarray(x).tobytes() for x in out[:8]] == wanted
    assert buffer.gather(torch.tensor([50, 60]), device="cpu").indices.tolist() == [50, 60]


def test_wrong_calls() -> None:
    buffer = filled()
    out = buffer.sample(4)
    wrong: list[tuple[type[Exception], str, Transitions]] = [
        (ValueError, "shape", buffer.sample(5)),
        (TypeError, "dtype", out._replace(rewards=np.zeros(4))),
        (ValueError, "contiguous", out._replace(observations=np.zeros((3, 4), np.float32).T)),
        (ValueError, "shares memory", out._replace(next_observations=out.observations)),
        (TypeError, "list", out._replace(rewards=[0.0] * 4)),
    ]
    for error, match, given in wrong:
        with pytest.raises(error, match=match):
            buffer.sample(4, out=given)
    for size in (0, -1):
        with pytest.raises(ValueError, match="batch_size"):
            buffer.sample(size)
    with pytest.raises(TypeError, match="batch_size"):
        buffer.sample(2.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="batch_size"):
        buffer.sample(len(buffer) + 1, replace=False)
    with pytest.raises(ValueError, match="batch_size: got 3, but the buffer holds 0 transitions"):
        filled(steps=0).sample(3)
    with pytest.raises(IndexError, match="overwritten"):
        buffer.gather([39])
    with pytest.raises(IndexError, match="never added"):
        buffer.gather([120])
    with pytest.raises(TypeError, match="integers"):
        buffer.gather([50.0])
    now, flags = np.zeros((2, 3), np.float32), np.zeros(2, bool)
    for name, error, arguments in (
        ("observations", ValueError, (now[:, :2], [0, 0], [1.0, 1.0], now, flags, flags)),
        ("actions", TypeError, (now, [0.5, 0.0], [1.0, 1.0], now, flags, flags)),
        ("next_observations", ValueError, (now, [0, 0], [1.0, 1.0], now[:1], flags, flags)),
        ("rewards", ValueError, (now, [0, 0], [1.0], now, flags, flags)),
        ("terminated", ValueError, (now, [0, 0], [1.0, 1.0], now, flags[:1], flags)),
    ):
        added = buffer.added
        with pytest.raises(error, match=f"^{name}"):
            buffer.add(*arguments)
        assert buffer.added == added


def test_one_writer_and_four_readers() -> None:
    """Row B10: no torn row, whoever runs when."""
    buffer = filled(steps=40, fillers=False)
    stop, wrong = threading.Event(), []

    def read() -> None:
        out = buffer.sample(64)
        while not stop.is_set():
            buffer.sample(64, out=out)
            if not (
                (out.observations[:, 0] == out.indices // 2).all()
                and (out.observations == out.observations[:, :1]).all()
                and (out.next_observations == out.observations + 1).all()
            ):
                wrong.append(out.indices.copy())
                return

    readers = [threading.Thread(target=read) for _ in range(4)]
    for reader in readers:
        reader.start()
    flags = np.zeros(2, bool)
    for t in range(40, 4000):
        now = np.full((2, 3), t, np.float32)
        buffer.add(now, np.arange(2), np.ones(2), now + 1, flags, flags)
    stop.set()
    for reader in readers:
        reader.join()
    assert not wrong
    assert buffer.added == 8000


def test_cached_code_takes_the_short_way() -> None:
    """Addresses differ from process to process, and none may be in cached machine code."""
    code = """
import numpy as np
from fastac.buffers import ReplayBuffer
buffer = ReplayBuffer.from_example(8, {"observations": np.zeros(3, np.float32), "actions": np.int64(0)})
buffer._insert_converted = buffer._check_out = None
x = np.zeros(3, np.float32)
buffer.add(x, np.int64(1), 1.0, x, False, np.False_)
buffer.sample(2)
buffer.sample(2, out=buffer.gather([0, 0]))
print(len(buffer))
"""
    assert [run_python(code).strip() for _ in range(2)] == ["1", "1"]
