"""Memory-mapped replay, crashes, saving, copies."""

import copy
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from fresh import ROOT, SOURCES

from fastac.buffers import ReplayBuffer
from fastac.buffers.saving import ArchiveError

EXAMPLE = {"observations": np.zeros(3, np.float32), "actions": np.int64(0)}


def fill(buffer: ReplayBuffer, steps: int, seed: int = 0) -> ReplayBuffer:
    rng = np.random.default_rng(seed)
    count = buffer.num_envs or 2
    current = rng.normal(size=(count, 3)).astype(np.float32)
    for _ in range(steps):
        following = rng.normal(size=(count, 3)).astype(np.float32)
        end = rng.random((2, count)) < 0.2
        buffer.add(current, rng.integers(0, 4, count), rng.normal(size=count), following, *end, rng.random(count) < 0.9)
        current = np.where(end.any(0)[:, None], rng.normal(size=(count, 3)), following).astype(np.float32)
    return buffer


def everything(buffer: ReplayBuffer) -> list[bytes]:
    """All that can be asked, and what comes next."""
    stored = range(max(buffer.added - buffer.capacity, 0), buffer.added)
    batches = buffer.gather(stored), buffer.sample(50), buffer.sample(5, replace=False)
    return [x.tobytes() for batch in batches for x in batch[:8]]


def made(num_envs: int | None, storage: Path | None = None) -> ReplayBuffer:
    return ReplayBuffer.from_example(
        30, EXAMPLE, num_envs=num_envs, n_step=1 if num_envs is None else 3, seed=5, storage=storage
    )


@pytest.mark.parametrize("num_envs", [1, 3, None])
@pytest.mark.parametrize("steps", [0, 4, 200])
class TestCopies:
    def test_saved_and_loaded(self, tmp_path: Path, num_envs: int | None, steps: int) -> None:
        """Row B13: the generator's state is saved with the buffer; both go on alike."""
        buffer = fill(made(num_envs), steps)
        buffer.save(tmp_path / "a")
        other = ReplayBuffer.load(tmp_path / "a")
        third = ReplayBuffer.load(tmp_path / "a", storage=tmp_path / "mapped")
        other.save(tmp_path / "b")
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
        for x in (buffer, other, third):
            fill(x, 9, seed=1)
        assert everything(buffer) == everything(other) == everything(third)

    def test_pickled_and_copied(self, tmp_path: Path, num_envs: int | None, steps: int) -> None:
        buffer = fill(made(num_envs), steps)
        others = pickle.loads(pickle.dumps(buffer)), copy.deepcopy(buffer)
        for x in (buffer, *others):
            fill(x, 9, seed=1)
        assert everything(buffer) == everything(others[0]) == everything(others[1])

    def test_opened_again(self, tmp_path: Path, num_envs: int | None, steps: int) -> None:
        buffer = fill(made(num_envs), steps)
        mapped = fill(made(num_envs, tmp_path / "s"), steps)
        if steps:
            assert buffer.sample(7).indices.tolist() == mapped.sample(7).indices.tolist()
        mapped.close()
        mapped = ReplayBuffer.open(tmp_path / "s")
        for x in (buffer, mapped):
            fill(x, 9, seed=1)
        assert everything(buffer) == everything(mapped)


def test_refusals(tmp_path: Path) -> None:
    buffer = fill(made(1, tmp_path / "s"), 5)
    with pytest.raises(TypeError, match="save and load"):
        pickle.dumps(buffer)
    buffer.save(tmp_path / "a")
    data = (tmp_path / "a").read_bytes()
    (tmp_path / "a").write_bytes(data[:-3] + b"xyz")
    with pytest.raises(ArchiveError, match="checksum"):
        ReplayBuffer.load(tmp_path / "a")

    class Other(ReplayBuffer):
        pass

    (tmp_path / "a").write_bytes(data)
    with pytest.raises(ArchiveError, match="ReplayBuffer"):
        Other.load(tmp_path / "a")


WRITER = """
import sys
sys.path[:0] = [{tests!r}, {buffers!r}]
import numpy as np
from pathlib import Path
from test_replay_saving import made, fill
buffer = made(3, Path(sys.argv[1]))
rng = np.random.default_rng(0)
current = [None] * 3
number = 0
while True:
    if buffer.added == 60:
        print("ready", flush=True)
    rows, following, ends = [], [], []
    for e in range(3):
        if current[e] is None:
            number += 1
            current[e] = np.full(3, number, np.float32)
        number += 1
        rows.append(current[e])
        following.append(np.full(3, number, np.float32))
        ends.append(rng.random() < 0.3)
        current[e] = None if ends[e] else following[e]
    actions = np.array([int(x[0]) for x in following])
    buffer.add(np.stack(rows), actions, np.ones(3), np.stack(following), np.array(ends), np.zeros(3, bool))
"""


def test_killed_at_any_moment(tmp_path: Path) -> None:
    """Every counted row is whole, the newest included: its action names its next observation."""
    code = WRITER.format(tests=str(ROOT / "tests"), buffers=str(ROOT / "tests" / "buffers"))
    for trial in range(4):
        folder = tmp_path / str(trial)
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": SOURCES}
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.003 + 0.0017 * trial)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        buffer = ReplayBuffer.open(folder)
        assert len(buffer) == buffer.capacity
        stored = buffer.gather(range(buffer.added - 30, buffer.added))
        rows = np.round(np.log(stored.discounts) / np.log(0.99)).astype(int)  # as many as the window has
        last = np.arange(30) + 3 * (rows - 1)
        np.testing.assert_array_equal(stored.next_observations, np.repeat(stored.actions[last, None], 3, axis=1))
        fill(buffer, 20)
        assert len(everything(buffer)) == 24
        buffer.close()
