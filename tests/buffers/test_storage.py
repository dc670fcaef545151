"""Storages: arrays that outlive their process, and counters that are whole wherever it ended."""

import json
import os
import random
import shutil
import signal
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastac.buffers.storage import Storage, StorageError

FIELDS: dict[str, tuple[tuple[int, ...], Any]] = {
    "observations/position": ((6, 3), np.float32),
    "terminated": ((6,), np.bool_),
    "empty": ((6, 0), np.float64),
}


@pytest.fixture(params=["memory", "mapped"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    return None if request.param == "memory" else tmp_path / "replay"


class TestArrays:
    def test_zeros_at_a_cache_line(self, folder: Path | None) -> None:
        storage = Storage.create(folder, FIELDS)
        for name, (shape, dtype) in FIELDS.items():
            array = storage.arrays[name]
            assert type(array) is np.ndarray
            assert (array.shape, array.dtype) == (shape, np.dtype(dtype))
            assert array.flags.c_contiguous
            assert array.flags.writeable
            assert not array.any()
            assert array.size == 0 or array.ctypes.data % 64 == 0

    def test_growing_keeps_what_there_was(self, folder: Path | None) -> None:
        storage = Storage.create(folder, FIELDS, counters={"added": 0})
        storage.arrays["observations/position"][:] = 7
        old = storage.arrays["observations/position"]
        array = storage.grow("observations/position", 100)
        assert array is storage.arrays["observations/position"]
        assert array.shape == (100, 3)
        assert (array[:6] == 7).all()
        assert not array[6:].any()
        assert storage.grow("observations/position", 5) is array
        if folder:
            old[0] = 8  # the same memory still
            assert (array[0] == 8).all()
            del array, old
            storage.close()
            assert Storage.open(folder).arrays["observations/position"].shape == (100, 3)

    def test_dtypes_are_plain(self, folder: Path | None) -> None:
        with pytest.raises(TypeError, match=r"fields\['x'\]: got dtype object"):
            Storage.create(folder, {"x": ((1,), object)})

    def test_a_sparse_file_costs_what_was_written(self, tmp_path: Path) -> None:
        Storage.create(tmp_path / "s", {"x": ((1 << 28,), np.uint8)}).arrays["x"][5] = 1
        file = next((tmp_path / "s").glob("*x.bin"))
        assert file.stat().st_size == 1 << 28
        if sys.platform == "linux":
            assert file.stat().st_blocks * 512 < 1 << 20


class TestReopening:
    def test_arrays_counters_and_metadata_come_back(self, tmp_path: Path) -> None:
        storage = Storage.create(
            tmp_path / "a" / "b", FIELDS, counters={"added": 0, "state": 5}, metadata={"gamma": 0.99, "spaces": [1]}
        )
        storage.arrays["terminated"][2] = True
        storage.commit({"state": 2**64 - 1, "added": 3})
        storage.flush()
        storage.close()
        storage = Storage.open(tmp_path / "a" / "b")
        assert storage.counters == {"added": 3, "state": 2**64 - 1}
        assert storage.metadata == {"gamma": 0.99, "spaces": [1]}
        assert list(storage.arrays) == list(FIELDS)
        assert storage.arrays["terminated"].tolist() == [False, False, True, False, False, False]
        assert storage.arrays["empty"].shape == (6, 0)

    def test_commits_go_on_after_reopening(self, tmp_path: Path) -> None:
        Storage.create(tmp_path, {}, counters={"added": 0}).close()
        for added in range(1, 8):
            storage = Storage.open(tmp_path)
            assert storage.counters == {"added": added - 1}
            storage.commit({"added": added})
            storage.close()

    def test_a_record_cut_anywhere_leaves_the_one_before(self, tmp_path: Path) -> None:
        """Every prefix of a commit's bytes, as a crash in the middle leaves them."""
        storage = Storage.create(tmp_path / "s", {}, counters={"added": 0, "begun": 0})
        commits = tmp_path / "s" / "commits.bin"
        for added in range(1, 4):
            storage.commit({"added": added, "begun": added})
        before = commits.read_bytes()
        storage.commit({"added": 4, "begun": 4})
        after = commits.read_bytes()
        storage.close()
        changed = [i for i in range(len(before)) if before[i] != after[i]]
        for end in range(min(changed), max(changed) + 1):
            commits.write_bytes(after[:end] + before[end:])
            assert self.counters(tmp_path / "s") == {"added": 3, "begun": 3}
        commits.write_bytes(after)
        assert self.counters(tmp_path / "s") == {"added": 4, "begun": 4}

    @staticmethod
    def counters(folder: Path) -> dict[str, int]:
        storage = Storage.open(folder)
        storage.close()
        return storage.counters

    def test_one_damaged_record_leaves_the_other(self, tmp_path: Path) -> None:
        storage = Storage.create(tmp_path, {}, counters={"added": 0})
        storage.commit({"added": 1})
        storage.close()
        commits = tmp_path / "commits.bin"
        half = commits.stat().st_size // 2
        whole = commits.read_bytes()
        for position in (3, half + 3):
            damaged = bytearray(whole)
            damaged[position] ^= 1
            commits.write_bytes(damaged)
            assert self.counters(tmp_path)["added"] in (0, 1)
        commits.write_bytes(bytes(len(whole)))
        with pytest.raises(StorageError, match="neither of its two records is whole"):
            Storage.open(tmp_path)


class TestRefusals:
    def test_open_twice(self, tmp_path: Path) -> None:
        storage = Storage.create(tmp_path, FIELDS)
        with pytest.raises(StorageError, match="is open already"):
            Storage.open(tmp_path)
        storage.close()
        Storage.open(tmp_path).close()

    def test_create_over_another(self, tmp_path: Path) -> None:
        storage = Storage.create(tmp_path, FIELDS)
        storage.arrays["terminated"][:] = True
        storage.close()
        with pytest.raises(StorageError, match="holds a storage already"):
            Storage.create(tmp_path, FIELDS)
        assert Storage.open(tmp_path).arrays["terminated"].all()

    def test_a_creation_that_was_not_completed_is_done_again(self, tmp_path: Path) -> None:
        storage = Storage.create(tmp_path, FIELDS, counters={"added": 0})
        storage.arrays["terminated"][:] = True
        storage.close()
        (tmp_path / "layout.json").unlink()
        with pytest.raises(StorageError, match="holds no storage"):
            Storage.open(tmp_path)
        assert not Storage.create(tmp_path, FIELDS).arrays["terminated"].any()

    def test_no_room(self, tmp_path: Path) -> None:
        with pytest.raises(StorageError, match=r"bytes free, the arrays take 4611686018427387904"):
            Storage.create(tmp_path / "s", {"x": ((1 << 62,), np.uint8)})

    def test_no_folder(self, tmp_path: Path) -> None:
        with pytest.raises(StorageError, match="holds no storage"):
            Storage.open(tmp_path / "nothing")
        (tmp_path / "file").write_text("x")
        with pytest.raises(StorageError, match="cannot create"):
            Storage.create(tmp_path / "file", FIELDS)

    def test_damaged_folders(self, tmp_path: Path) -> None:
        Storage.create(tmp_path / "s", FIELDS, counters={"added": 0}).close()

        def damaged(name: str, change: Any) -> Path:
            folder = tmp_path / "damaged"
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(tmp_path / "s", folder)
            (folder / name).write_bytes(change((folder / name).read_bytes()))
            return folder

        layout = (tmp_path / "s" / "layout.json").read_bytes()
        for position in range(len(layout) - 1):
            folder = damaged("layout.json", lambda b, p=position: b[:p] + bytes([b[p] ^ 1]) + b[p + 1 :])
            with pytest.raises(StorageError, match="damaged"):
                Storage.open(folder)
        for cut in (1, 12, 71):
            with pytest.raises(StorageError, match="is damaged: it has"):
                Storage.open(damaged("00-observations_position.bin", lambda b, c=cut: b[:-c]))
        with pytest.raises(StorageError, match="two records"):
            Storage.open(damaged("commits.bin", lambda b: b""))
        (folder := damaged("commits.bin", bytes)).joinpath("01-terminated.bin").unlink()
        with pytest.raises(StorageError, match=r"cannot open .*No such file.*01-terminated\.bin"):
            Storage.open(folder)

    def test_a_newer_version(self, tmp_path: Path) -> None:
        Storage.create(tmp_path, FIELDS).close()
        text = json.dumps({"format": 2}).encode()
        (tmp_path / "layout.json").write_bytes(b"fastac-storage %08x\n%s\n" % (zlib.crc32(text), text))
        with pytest.raises(StorageError, match="format 2, this fastac reads up to 1"):
            Storage.open(tmp_path)

    @pytest.mark.parametrize("counters", [{}, {"added": 1, "x": 1}, {"x": 1}, {"added": -1}, {"added": 2**64}])
    def test_other_counters(self, tmp_path: Path, counters: dict[str, int]) -> None:
        storage = Storage.create(tmp_path, {}, counters={"added": 0})
        with pytest.raises(ValueError, match="counters: got"):
            storage.commit(counters)
        assert storage.counters == {"added": 0}


@pytest.mark.skipif(sys.platform == "win32", reason="forks")
def test_killed_at_any_moment_every_counted_row_is_whole(tmp_path: Path) -> None:
    """A ring written as buffers do it: commit that rows are gone, write, commit that they are there."""
    rows, width, rng = 8, 4096, random.Random(1)
    Storage.create(tmp_path, {"x": ((rows, width), np.int64)}, counters={"added": 0, "begun": 0}).close()
    for _ in range(100):
        child = os.fork()
        if not child:
            try:
                storage = Storage.open(tmp_path)
                added = storage.counters["added"]
                for row in range(added, added + 10_000_000):
                    storage.commit({"added": row, "begun": row + 1})
                    storage.arrays["x"][row % rows] = row
                    storage.commit({"added": row + 1, "begun": row + 1})
            finally:
                os._exit(1)
        time.sleep(rng.uniform(0.002, 0.012))
        os.kill(child, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
        storage = Storage.open(tmp_path)
        added, begun = storage.counters["added"], storage.counters["begun"]
        assert begun - added in (0, 1)
        for row in range(max(0, begun - rows), added):
            assert (storage.arrays["x"][row % rows] == row).all()
        storage.close()
    assert added > 1000  # it wrote, and wrapped
