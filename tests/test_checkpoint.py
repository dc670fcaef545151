"""Checkpoints: everything comes back, nothing damaged or foreign does, and the old file outlives a failed save."""

import errno
import os
import struct
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from fastac import checkpoint
from fastac.checkpoint import CheckpointError


def trained_state() -> dict[str, object]:
    """What a trainer saves: weights, optimizer, generators, arrays, counters."""
    torch_generator = torch.Generator().manual_seed(3)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-4, eps=1e-5)
    model(torch.randn(5, 4, generator=torch_generator)).square().sum().backward()
    optimizer.step()
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "torch_generator": torch_generator.get_state(),
        "numpy_generators": [
            np.random.default_rng(7).bit_generator.state,
            np.random.MT19937(7).state,
            np.random.Philox(7).state,
        ],
        "mean": np.linspace(0, 1, 6, dtype=np.float32).reshape(2, 3),
        "steps": 2**127 - 1,
        "name": "x",
    }


def assert_same(a: object, b: object) -> None:
    if isinstance(a, torch.Tensor):
        assert isinstance(b, torch.Tensor)
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    elif isinstance(a, np.ndarray | np.generic):
        assert type(a) is type(b)
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        assert a.tobytes() == b.tobytes()
    elif isinstance(a, dict):
        assert type(b) is dict
        assert list(a) == list(b)
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert type(a) is type(b)
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert type(a) is type(b)
        assert a == b or (a != a and b != b)


def test_what_a_trainer_saves_comes_back_and_goes_on_the_same(tmp_path: Path) -> None:
    state = trained_state()
    checkpoint.save(tmp_path / "c.pt", state)
    loaded = checkpoint.load(tmp_path / "c.pt")
    assert_same({**state, "model": dict(state["model"])}, loaded)  # type: ignore[call-overload]
    generator = np.random.default_rng()
    generator.bit_generator.state = loaded["numpy_generators"][0]
    assert generator.random() == np.random.default_rng(7).random()
    generator = torch.Generator()
    generator.set_state(loaded["torch_generator"])
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
    model.load_state_dict(loaded["model"])
    torch.optim.Adam(model.parameters()).load_state_dict(loaded["optimizer"])


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**130), 2**130),
    st.floats(),
    st.text(max_size=5),
    npst.arrays(
        st.one_of(npst.scalar_dtypes(), npst.unicode_string_dtypes(max_len=4)),
        npst.array_shapes(min_dims=0, min_side=0),
    ),
    npst.arrays(npst.scalar_dtypes(), ()).map(lambda array: array[()]),
)
states = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.one_of(st.text(max_size=4), st.integers()), inner, max_size=3),
    ),
    max_leaves=8,
)


@settings(max_examples=80, deadline=None)
@given(state=st.dictionaries(st.text(max_size=4), states, max_size=4))
def test_any_plain_state_comes_back(state: dict[str, object]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "c.pt"
        checkpoint.save(path, state)
        assert_same(state, checkpoint.load(path))


def test_the_same_state_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in "ab":
        torch.manual_seed(0)
        checkpoint.save(tmp_path / f"{name}.pt", trained_state())
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()


def test_equal_strings_give_equal_bytes_whichever_objects_they_are(tmp_path: Path) -> None:
    """A resumed run's strings come from a file, those of an uninterrupted one from the source."""
    one, another = "learning_rate", "".join(["learning", "_rate"])
    assert one is not another
    checkpoint.save(tmp_path / "a.pt", {"x": one, "y": [{one: 1}]})
    checkpoint.save(tmp_path / "b.pt", {"x": one, "y": [{another: 1}]})
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()


def test_the_disk_has_it_all_before_the_old_file_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (events.append("fsync"), fsync(descriptor)))
    monkeypatch.setattr(os, "replace", lambda *paths: (events.append("replace"), replace(*paths)))
    checkpoint.save(tmp_path / "c.pt", {})
    assert events[:2] == ["fsync", "replace"]


@pytest.mark.filterwarnings("error")
def test_views_arrays_and_graphs_are_saved_without_what_is_around_them(tmp_path: Path) -> None:
    large = torch.zeros(1_000_000, requires_grad=True)
    array = np.arange(10)[::2]
    read_only = np.arange(3)
    read_only.flags.writeable = False
    checkpoint.save(
        tmp_path / "c.pt",
        {"view": large[:3], "strided": array, "read_only": read_only, "transposed": torch.ones(2, 3).T},
    )
    assert (tmp_path / "c.pt").stat().st_size < 10_000
    loaded = checkpoint.load(tmp_path / "c.pt")
    assert loaded["view"].tolist() == [0, 0, 0]
    assert not loaded["view"].requires_grad
    assert loaded["strided"].tolist() == [0, 2, 4, 6, 8]
    loaded["read_only"] += 1
    assert loaded["transposed"].shape == (3, 2)


@pytest.fixture(scope="module")
def good() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save(Path(folder) / "c.pt", trained_state())
        return (Path(folder) / "c.pt").read_bytes()


def refused(content: bytes) -> CheckpointError:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "c.pt"
        path.write_bytes(content)
        with pytest.raises(CheckpointError) as error:
            checkpoint.load(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
    return error.value


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_file_with_any_byte_changed_is_refused(good: bytes, data: st.DataObject) -> None:
    damaged = bytearray(good)
    positions = data.draw(st.lists(st.integers(0, len(good) - 1), min_size=1, max_size=4, unique=True))
    for position in positions:
        damaged[position] ^= data.draw(st.integers(1, 255))
    refused(bytes(damaged))


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_file_cut_at_any_length_is_refused(good: bytes, data: st.DataObject) -> None:
    refused(good[: data.draw(st.integers(0, len(good) - 1))])


def test_every_byte_of_the_trailer_is_checked_and_so_is_what_is_added(good: bytes) -> None:
    for position in range(len(good) - 40, len(good)):
        for flip in (1, 128):
            refused(good[:position] + bytes([good[position] ^ flip]) + good[position + 1 :])
        refused(good[:position])
    refused(good + b"\0")
    refused(good + good)


def with_trailer(content: bytes, version: int = checkpoint.FORMAT_VERSION) -> bytes:
    crc = zlib.crc32(content + struct.pack("<IQ", version, len(content)))
    return content + struct.pack("<IQI", version, len(content), crc) + b"\nfastac-checkpoint\r\n"


def torch_bytes(value: object, folder: Path) -> bytes:
    torch.save(value, folder / "foreign.pt")
    return (folder / "foreign.pt").read_bytes()


def test_a_newer_format_says_so(good: bytes) -> None:
    assert "format 2" in str(refused(with_trailer(good[:-36], version=2)))


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    assert "no checkpoint of fastac" in str(refused(torch_bytes({"model": torch.ones(2)}, tmp_path)))
    assert "no checkpoint of fastac" in str(refused(b"hello"))
    assert "list" in str(refused(with_trailer(torch_bytes([1], tmp_path))))
    refused(with_trailer(b"hello"))
    for entry in (("O", (1,), torch.zeros(8, dtype=torch.uint8)), ("<f4", (3,), torch.zeros(8, dtype=torch.uint8)), 3):
        refused(with_trailer(torch_bytes({"x": {"__numpy__": entry}}, tmp_path)))


class Harmful:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_code_in_a_checkpoint_is_not_executed(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    content = with_trailer(torch_bytes({"model": Harmful(trap)}, tmp_path))
    assert "is refused" in str(refused(content))
    assert not trap.exists()
    torch.load(tmp_path / "foreign.pt", weights_only=False)
    assert trap.exists()  # the trap works where code is executed


def test_missing_files_and_folders_give_one_line(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot read checkpoint .*missing\.pt: No such file"):
        checkpoint.load(tmp_path / "missing.pt")
    with pytest.raises(CheckpointError, match="cannot read checkpoint"):
        checkpoint.load(tmp_path)
    with pytest.raises(CheckpointError, match=r"cannot write checkpoint .*: No such file"):
        checkpoint.save(tmp_path / "no" / "c.pt", {})


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("at", ["write", "finish", "replace"])
def test_the_old_file_outlives_a_save_that_fails_midway(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException, at: str
) -> None:
    path = tmp_path / "c.pt"
    checkpoint.save(path, {"steps": 1})
    before = path.read_bytes()

    def fail(*args: object) -> int:
        raise failure

    if at == "replace":
        monkeypatch.setattr(os, "replace", fail)
    else:
        monkeypatch.setattr(checkpoint._Writer, at, fail)
    expected = CheckpointError if isinstance(failure, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        checkpoint.save(path, {"steps": 2, "x": torch.zeros(10_000)})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["c.pt"]


@pytest.mark.parametrize(
    ("value", "where"),
    [
        ({"a": [1, object()]}, r"state\['a'\]\[1\]: got a object"),
        ({"a": {(1, 2): 3}}, r"state\['a'\]: got the key \(1, 2\)"),
        ({"a": np.array([None])}, r"state\['a'\]: an array of dtype object"),
        ({"a": {"__numpy__": 3}}, r"state\['a'\]: got the key '__numpy__'"),
    ],
)
def test_what_cannot_be_saved_is_named_and_nothing_is_written(
    tmp_path: Path, value: dict[str, object], where: str
) -> None:
    with pytest.raises(TypeError, match=where):
        checkpoint.save(tmp_path / "c.pt", value)
    assert os.listdir(tmp_path) == []


def test_a_checkpoint_is_a_torch_file_too(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "c.pt", {"weight": torch.ones(2)})
    assert torch.load(tmp_path / "c.pt", weights_only=True)["weight"].tolist() == [1, 1]


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "c.pt", {})
    (tmp_path / "d").write_bytes(b"")
    assert (tmp_path / "c.pt").stat().st_mode == (tmp_path / "d").stat().st_mode
