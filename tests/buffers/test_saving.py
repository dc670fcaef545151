"""Archives: what goes in comes out, nothing damaged or foreign does, and the old file outlives every failed save."""

import errno
import os
import random
import signal
import struct
import sys
import time
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from fastac import _files
from fastac.buffers import saving
from fastac.buffers.saving import ArchiveError, read_archive, write_archive

DTYPES = ["?", "u1", "i2", ">i4", "<i8", "<u8", "<f2", ">f4", "<f8", "<c8"]


def example() -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(0)
    return {
        "observations": rng.standard_normal((5, 3)).astype(np.float32),
        "terminated": rng.random(5) < 0.5,
        "nothing": np.zeros((0, 4), np.int64),
        "one": np.asarray(2.5),
    }


def same(a: dict[str, np.ndarray[Any, Any]], b: dict[str, np.ndarray[Any, Any]]) -> bool:
    return list(a) == list(b) and all(
        a[k].shape == b[k].shape
        and a[k].dtype.newbyteorder("<") == b[k].dtype
        and a[k].astype(b[k].dtype).tobytes() == b[k].tobytes()
        for k in a
    )


@settings(max_examples=60)
@given(
    arrays=st.dictionaries(
        st.text(max_size=5),
        st.sampled_from(DTYPES).flatmap(lambda d: npst.arrays(d, npst.array_shapes(min_dims=0, min_side=0))),
        max_size=3,
    ),
    strides=st.sampled_from([1, 2, -1]),
    metadata=st.dictionaries(st.text(max_size=5), st.integers() | st.text() | st.none() | st.lists(st.booleans())),
)
def test_what_goes_in_comes_out(
    tmp_path_factory: pytest.TempPathFactory, arrays: Any, strides: int, metadata: Any
) -> None:
    """Bit for bit (NaN's too), whatever the dtype, byte order, shape and strides."""
    path = tmp_path_factory.getbasetemp() / "any.fastac"
    arrays = {name: array[::strides].T if array.ndim else array for name, array in arrays.items()}
    write_archive(path, arrays, metadata)
    read_metadata, read = read_archive(path)
    assert read_metadata == metadata
    assert same(arrays, read)
    assert all(array.flags.c_contiguous and array.flags.writeable for array in read.values())


def test_arrays_of_many_chunks_strided_or_not(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 255, (7, 3, 700_001), np.uint8)
    views = {"whole": array, "transposed": array.T, "rows": array[::2], "columns": array[:, ::2], "wide": array[:, 0]}
    write_archive(tmp_path / "a", views, {})
    assert same(views, read_archive(tmp_path / "a")[1])


def test_equal_contents_are_equal_files(tmp_path: Path) -> None:
    write_archive(tmp_path / "a", example(), {"added": 3})
    write_archive(tmp_path / "b", example(), {"added": 3})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_any_damaged_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_archive(path, example(), {"added": 3})
    whole = path.read_bytes()
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ (1 << position % 8)]) + whole[position + 1 :])
        with pytest.raises(ArchiveError, match=r"damaged|no archive|cut short"):
            read_archive(path)


def test_any_cut_and_any_surplus_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_archive(path, example(), {"added": 3})
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ArchiveError, match="cut short"):
            read_archive(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(ArchiveError, match="its header says"):
        read_archive(path)


def test_arrays_of_another_file_are_noticed(tmp_path: Path) -> None:
    """A sum covers its header too: rows cannot move between files, though each part is whole."""
    for name, added in (("a", 3), ("b", 4)):
        write_archive(tmp_path / name, example(), {"added": added})
    a, b = (tmp_path / "a").read_bytes(), (tmp_path / "b").read_bytes()
    tail = 4 + len(example()["one"].tobytes())
    (tmp_path / "a").write_bytes(a[:-tail] + b[-tail:])
    with pytest.raises(ArchiveError, match="the checksum of one is wrong"):
        read_archive(tmp_path / "a")


def archive_of(header: bytes, version: int = 1, rest: bytes = b"") -> bytes:
    crc = zlib.crc32(header, zlib.crc32(struct.pack("<IQ", version, len(header))))
    return struct.pack("<16sIQI", b"\x89fastac-arrays\r\n", version, len(header), crc) + header + rest


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no archive of fastac"),
        (b"PK\x03\x04 a zip file that is rather longer than an archive's head", "no archive of fastac"),
        (archive_of(b"{}", version=2), "format 2, this fastac reads up to 1"),
        (archive_of(b"{}"), "describes no arrays"),
        (archive_of(b"[" * 100_000), "describes no arrays"),
        (archive_of(b'{"metadata": {}, "arrays": [["x", "|O8", [1]]]}', rest=bytes(12)), "describes no arrays"),
        (archive_of(b'{"metadata": {}, "arrays": [["x", "<f4,<f4", [1]]]}', rest=bytes(12)), "describes no arrays"),
        (archive_of(b'{"metadata": {}, "arrays": [["x", "<f4", [-1]]]}'), "describes no arrays"),
        (archive_of(b'{"metadata": {}, "arrays": [["x", "<f4", [0, 1e300]]]}', rest=bytes(4)), "describes no arrays"),
        (archive_of(b'{"metadata": {}, "arrays": [["x", "<f4", [1000000000000]]]}'), "cut short"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_foreign_and_newer_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(ArchiveError, match=message):
        read_archive(tmp_path / "a")


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match=r"cannot read .*No such file"):
        read_archive(tmp_path / "a")
    with pytest.raises(ArchiveError, match=r"cannot write .*No such file"):
        write_archive(tmp_path / "folder" / "a", example(), {})


@pytest.mark.parametrize(
    "array", [np.array([object()]), np.array(["text"]), np.zeros(2, "f4,i4"), np.zeros(2, "M8[s]")]
)
def test_what_would_need_pickle_is_refused(tmp_path: Path, array: np.ndarray[Any, Any]) -> None:
    with pytest.raises(TypeError, match=r"arrays\['x'\]: got dtype"):
        write_archive(tmp_path / "a", {"x": array}, {})


@pytest.mark.parametrize("value", [float("nan"), {1, 2}, b"x"])
def test_metadata_is_plain(tmp_path: Path, value: object) -> None:
    with pytest.raises(TypeError, match=r"metadata: .*expected what JSON can hold"):
        write_archive(tmp_path / "a", {}, {"x": value})
    assert not list(tmp_path.iterdir())


class TestAllocate:
    def test_reads_into_the_filled_part(self, tmp_path: Path) -> None:
        write_archive(tmp_path / "a", {"rewards": np.arange(3.0)}, {"added": 3})
        ring = np.full(8, -1.0)

        def allocate(metadata: dict[str, Any], fields: saving.Fields) -> dict[str, np.ndarray[Any, Any]]:
            assert fields == {"rewards": ((3,), np.dtype(float))}
            return {"rewards": ring[: metadata["added"]]}

        read_archive(tmp_path / "a", allocate)
        assert ring.tolist() == [0, 1, 2, -1, -1, -1, -1, -1]

    def test_into_another_byte_order(self, tmp_path: Path) -> None:
        write_archive(tmp_path / "a", {"x": np.arange(5, dtype="<i4")}, {})
        _, arrays = read_archive(tmp_path / "a", lambda *_: {"x": np.empty(5, ">i4")})
        assert arrays["x"].tolist() == [0, 1, 2, 3, 4]

    @pytest.mark.parametrize(
        ("targets", "message"),
        [
            ({"x": np.zeros(3)}, r"x has shape \(2,\) and dtype float64, expected \(3,\)"),
            ({"x": np.zeros(2, np.float32)}, "dtype float64, expected .* and float32"),
            ({"y": np.zeros(2)}, r"holds the arrays \['x'\], expected \['y'\]"),
            ({"x": np.zeros(4)[::2]}, "C-contiguous and writable"),
        ],
    )
    def test_other_arrays_are_refused(self, tmp_path: Path, targets: Any, message: str) -> None:
        write_archive(tmp_path / "a", {"x": np.ones(2)}, {})
        with pytest.raises(ValueError, match=message):
            read_archive(tmp_path / "a", lambda *_: targets)


def peak_of(function: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_peak_memory_is_a_chunk(tmp_path: Path) -> None:
    """Contract: at most 1.2 times one field, the field included. Pitfalls B12 (SB3 pickles 2.5 GB with 17)."""
    field = np.ones((24, 1 << 20), np.uint8)
    assert peak_of(lambda: write_archive(tmp_path / "a", {"x": field, "y": field.T}, {})) < 0.15 * field.nbytes
    target = np.empty_like(field), np.empty_like(field.T, order="C")
    allocate = lambda *_: dict(zip("xy", target, strict=True))  # noqa: E731
    assert peak_of(lambda: read_archive(tmp_path / "a", allocate)) < 0.05 * field.nbytes
    assert peak_of(lambda: read_archive(tmp_path / "a")) < 2.05 * field.nbytes  # it makes two


class TestFailedSaves:
    def test_a_full_disk_leaves_the_old_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write_archive(tmp_path / "a", example(), {"added": 1})

        def full(descriptor: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(_files.os, "fsync", full)
        with pytest.raises(ArchiveError, match="No space left"):
            write_archive(tmp_path / "a", example(), {"added": 2})
        assert read_archive(tmp_path / "a")[0] == {"added": 1}
        assert [p.name for p in tmp_path.iterdir()] == ["a"]

    def test_an_interrupt_leaves_the_old_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write_archive(tmp_path / "a", example(), {"added": 1})
        monkeypatch.setattr(saving, "_write_array", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            write_archive(tmp_path / "a", example(), {"added": 2})
        assert read_archive(tmp_path / "a")[0] == {"added": 1}
        assert [p.name for p in tmp_path.iterdir()] == ["a"]

    def test_two_savers_leave_one_whole_file(self, tmp_path: Path) -> None:
        """A save within a save: neither takes the other's file for abandoned."""
        with _files.atomic_file(tmp_path / "a") as file:
            file.write(b"half of ")
            (tmp_path / "other").write_bytes(b"")
            with _files.atomic_file(tmp_path / "b") as inner:
                inner.write(b"b")
            _files._remove_abandoned(tmp_path, ".a.saving-")
            file.write(b"it")
        assert (tmp_path / "a").read_bytes() == b"half of it"

    @pytest.mark.skipif(sys.platform == "win32", reason="forks")
    def test_killed_while_saving_nothing_is_lost(self, tmp_path: Path) -> None:
        """SIGKILL at random moments: the file is the last that was saved, or the one in the making, and whole."""
        path, rng, saved = tmp_path / "a", random.Random(0), 0
        write_archive(path, {"x": np.full(1 << 18, 0)}, {"generation": 0})
        for _ in range(100):
            read_end, write_end = os.pipe()
            child = os.fork()
            if not child:
                try:
                    for generation in range(saved + 1, saved + 100_000):
                        write_archive(path, {"x": np.full(1 << 18, generation)}, {"generation": generation})
                        os.write(write_end, struct.pack("<q", generation))
                finally:
                    os._exit(1)
            os.close(write_end)
            time.sleep(rng.uniform(0.001, 0.03))
            os.kill(child, signal.SIGKILL)
            assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
            with open(read_end, "rb") as pipe:
                acknowledged = [g for (g,) in struct.iter_unpack("<q", pipe.read())]
            metadata, arrays = read_archive(path)
            generation = metadata["generation"]
            assert generation - max(acknowledged, default=saved) in (0, 1)
            assert (arrays["x"] == generation).all()
            saved = generation
        write_archive(path, {}, {})
        assert [p.name for p in tmp_path.iterdir()] == ["a"]  # what the killed ones left is gone
