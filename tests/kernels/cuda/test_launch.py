"""What the CUDA kernels' callers ask of the driver: streams, devices, addresses and types, without a device."""

import contextlib
import time
import types as python_types
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason="numba-cuda is not installed")
import fastac_kernels.cuda as kernels
from fastac_kernels.cuda import launch, ratio, scan

STREAM, DEVICE = 0x7F00_DEAD_BEE0, 3
SMALL, LARGE = np.float32(0), np.float64(0)


def gae(total: int, sequences: int, lanes: int, like: Any = SMALL, cu_seqlens: int = 0, carries: int = 0) -> None:
    kernels.gae_at(
        1, 2, 0, 3, 4, 0, 5, cu_seqlens, 6, 7, total, sequences, lanes, 0.5, 0.25, like, carries, STREAM, DEVICE
    )


def test_a_launch_is_what_was_asked() -> None:
    with kernels.recorded() as launches:
        gae(12, 1, 3)
    (asked,) = launches
    assert (asked.stream, asked.device) == (STREAM, DEVICE)
    assert asked.arguments[:12] == (0, 1, 2, 0, 3, 4, 0, 5, 0, 6, 7, 0)
    assert asked.arguments[12:17] == (4, 1, 3, 0, 2)
    assert asked.arguments[17] == scan.VALUES | scan.TERMINATED | scan.MASK | scan.SECOND
    assert asked.arguments[18:] == (0.5, 0.125, 0.0, 0.0, 0.0, 0.0)
    assert len(asked.arguments) == len(asked.kernel.argument_types)
    assert asked.kernel.name == "gae short float32"


def test_the_dtype_chooses_the_kernel() -> None:
    with kernels.recorded() as launches:
        gae(12, 1, 3, SMALL)
        gae(12, 1, 3, LARGE)
        gae(12, 1, 3, SMALL)
    assert [asked.kernel.name for asked in launches] == [
        f"gae short {name}" for name in ("float32", "float64", "float32")
    ]
    assert launches[0].kernel is launches[2].kernel  # compiled once


@pytest.mark.parametrize("name", kernels.ESTIMATORS)
def test_every_estimator_goes_the_same_way(name: str) -> None:
    """Arguments of the CPU's kernel, then carries, stream and device: what the API's table holds."""
    scalars: dict[str, tuple[Any, ...]] = {
        "gae": (0.9, 0.8), "discounted_returns": (0.9, 1.0, True), "lambda_returns": (0.9, 0.8, False),
        "n_step_returns": (3, 0.9), "vtrace": (0.9, 0.8, 1.0, 1.0, 1.0), "retrace": (0.9, 0.8),
    }  # fmt: skip
    ratios = (9,) if name in ("vtrace", "retrace") else ()
    outputs = (6, 7) if name in ("gae", "vtrace") else (6,)
    with kernels.recorded() as launches:
        kernels.ESTIMATORS[name](
            *ratios, 1, 2, 8, 0, 4, 5, 0, 0, *outputs, 40, 1, 4, *scalars[name], SMALL, 0, STREAM, DEVICE
        )
    (asked,) = launches
    assert asked.kernel.name == f"{name} full float32"
    assert (asked.stream, asked.device) == (STREAM, DEVICE)
    assert len(asked.arguments) == len(asked.kernel.argument_types)


def test_n_steps_beyond_the_window_are_a_scan() -> None:
    with kernels.recorded() as launches:
        for n in (3, 10, 100):
            kernels.n_step_returns_at(1, 2, 0, 3, 4, 0, 0, 0, 6, 40, 1, 4, n, 0.9, SMALL, 0, STREAM, DEVICE)
    assert [asked.kernel.name.split()[0] for asked in launches] == [
        "n_step_returns", "discounted_returns", "discounted_returns",
    ]  # fmt: skip


def test_nothing_to_do_launches_nothing() -> None:
    with kernels.recorded() as launches:
        gae(0, 1, 0)
        gae(0, 0, 1)
        kernels.gather_transitions_at(*range(1, 11), 0, 8, 1, 3, 64, 32, STREAM, DEVICE)
    assert launches == []
    assert kernels.carries_size(0, 0, 1) == kernels.carries_size(0, 1, 0) == 0


@pytest.mark.parametrize(("rows", "count"), [(131072, 256), (1_000_000, 1), (100_000, 7)])
@pytest.mark.parametrize("layout", ["time", "batch"])
def test_long_sequences_are_cut(rows: int, count: int, layout: str) -> None:
    """Two launches on the same stream, over carries of the size that was announced."""
    sizes = (rows * count, *((1, count) if layout == "time" else (count, 1)))
    size = kernels.carries_size(*sizes)
    with kernels.recorded() as launches:
        gae(*sizes, carries=99)
    first, second = launches
    assert first.kernel.name == "gae short float32 chunks"
    assert second.kernel.name == "gae short float32"
    chunks = second.grid[1]
    assert size == scan.SLOTS * chunks * count
    assert first.grid == (second.grid[0], chunks - 1)
    assert first.arguments == second.arguments
    assert first.arguments[11] == 99
    assert {asked.stream for asked in launches} == {STREAM}


def test_every_shape_fits_a_device() -> None:
    """Blocks are of a power of two threads, for each of which shared memory has a slot; every sequence has its own."""
    for rows in (1, 2, 3, 5, 16, 17, 128, 1000, 131072):
        for count in (1, 2, 3, 31, 32, 33, 256, 4096, 65536):
            for sequences, lanes in ((1, count), (count, 1), (2, count)):
                shape = scan.shape_of(rows * sequences * lanes, sequences, lanes)
                assert 1 <= shape.width * shape.depth <= scan.THREADS
                assert shape.width & (shape.width - 1) == shape.depth & (shape.depth - 1) == 0
                assert shape.tiles * shape.width >= sequences * lanes
                assert 1 <= shape.chunks <= scan.CHUNKS
    assert scan.shape_of(128 * 4096, 1, 4096).chunks == scan.shape_of(16 * 65536, 1, 65536).chunks == 1


def test_the_loss_is_one_launch_to_three() -> None:
    def run(mask: int, total: int) -> list[launch.Launch]:
        with kernels.recorded() as launches:
            kernels.ppo_clip_loss_at(1, 2, 3, mask, 5, 6, 7, total, 0.2, float("inf"), SMALL, 8, STREAM, DEVICE)
        return list(launches)

    plain, masked, empty, *small = run(0, 10_000), run(4, 10_000), run(0, 0), run(0, 1024), run(4, 1)
    assert [[asked.kernel for asked in alone] for alone in small] == [[plain[0].kernel]] * 2
    assert {asked.grid for alone in small for asked in alone} == {(1, 1)}
    assert [asked.kernel.name.split()[1] for asked in masked] == ["count", "float32", "finish"]
    assert [asked.kernel for asked in plain] == [asked.kernel for asked in masked[1:]]
    assert [asked.kernel.name for asked in empty] == ["ppo_clip_loss finish float32"]
    for asked in (*plain, *masked, *empty, *small[0], *small[1]):
        assert len(asked.arguments) == len(asked.kernel.argument_types)
        assert (asked.stream, asked.device) == (STREAM, DEVICE)
    assert plain[0].arguments[-3:] == (0.8, 1.2, float("inf"))
    for total in (0, 1, 1024, 1025, 10**7):
        blocks = ratio.blocks_of(total)
        assert kernels.partials_size(total) == (0 if blocks < 2 else 6 * blocks)
        assert blocks <= ratio.BLOCKS


def test_a_gather_is_one_launch() -> None:
    """A row of threads for every draw, no wider than a warp; sizes in words."""
    with kernels.recorded() as launches:
        for row_bytes in (48, 64, 4096):
            kernels.gather_transitions_at(*range(1, 11), 1000, 500, 4, 3, row_bytes, 16, STREAM, DEVICE)
    assert [(asked.grid, asked.block) for asked in launches] == [
        ((32, 1), (8, 32)), ((32, 1), (8, 32)), ((125, 1), (32, 8)),
    ]  # fmt: skip
    for asked, words in zip(launches, (6, 8, 512), strict=True):
        assert asked.arguments == (*range(1, 11), 1000, 500, 4, 3, words, 2)
        assert len(asked.arguments) == len(asked.kernel.argument_types)
        assert (asked.stream, asked.device) == (STREAM, DEVICE)


class FakeCuda:
    """As much of `numba.cuda` as the driver uses; remembers in which order."""

    def __init__(self) -> None:
        self.said: list[Any] = []
        self.inside: int | None = None
        self.gpus = self

    @contextlib.contextmanager
    def __call__(self, device: int) -> Iterator[None]:
        self.inside = device
        yield
        self.inside = None

    def __getitem__(self, device: int) -> Any:
        return self(device)

    def external_stream(self, pointer: int) -> str:
        assert self.inside is not None
        self.said.append(("external_stream", pointer))
        return f"stream {pointer}"

    def jit(self, signature: Any) -> Any:
        def compiling(function: Any) -> Any:
            assert self.inside is not None
            self.said.append(("compile", self.inside))
            return python_types.SimpleNamespace(configure=self.configure)

        return compiling

    def configure(self, grid: Any, block: Any, stream: Any) -> Any:
        warnings.warn("Grid size 1 will likely result in GPU under-utilization", stacklevel=1)
        return lambda *arguments: self.said.append(("launch", self.inside, grid, block, stream, arguments))


def test_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiles once for each device, wraps each stream once, is inside the device, and warns of no small grid."""
    fake = FakeCuda()
    monkeypatch.setattr(launch, "cuda", fake)
    driver = launch.Driver()
    kernel = launch.Kernel("none", lambda: None, ())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for stream, device in ((7, 0), (7, 0), (0, 0), (7, 1), (8, 0)):
            driver(kernel, (1, 1), (32, 1), stream, device, (stream,))
    assert [what for what in fake.said if what[0] == "compile"] == [("compile", 0), ("compile", 1)]
    assert [what[1] for what in fake.said if what[0] == "external_stream"] == [7, 7, 8]
    launches = [what[1:] for what in fake.said if what[0] == "launch"]
    assert [(device, stream) for device, _, _, stream, _ in launches] == [
        (0, "stream 7"), (0, "stream 7"), (0, 0), (1, "stream 7"), (0, "stream 8"),
    ]  # fmt: skip
    assert [arguments for *_, arguments in launches] == [(7,), (7,), (0,), (7,), (8,)]


def test_the_driver_is_put_back() -> None:
    before = launch.driver
    with contextlib.suppress(RuntimeError), kernels.recorded():
        raise RuntimeError
    assert launch.driver is before


def test_unavailable_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one line, whatever an import or a library's loader has to say."""
    monkeypatch.setattr(launch.cuda, "is_available", lambda: False)
    assert launch.unavailable.__wrapped__() == "there is no CUDA driver with a device"
    monkeypatch.setattr(launch.cuda, "is_available", lambda: True)
    assert launch.unavailable.__wrapped__() is None  # both are installed with the tests
    monkeypatch.setattr("numba.cuda.cudadrv.nvvm.NVVM", lambda: [][1])
    assert launch.unavailable.__wrapped__() == "libNVVM or NVRTC cannot be loaded (IndexError)"


def test_overhead_on_the_host() -> None:
    """Everything of ours between the caller and the driver, under 5 us; the best of a few."""
    best = float("inf")
    with kernels.recorded(lambda *asked: None):
        gae(128 * 4096, 1, 4096)
        for _ in range(9):
            start = time.thread_time_ns()
            for _ in range(200):
                gae(128 * 4096, 1, 4096)
            best = min(best, (time.thread_time_ns() - start) / 200)
    assert best < 5000
