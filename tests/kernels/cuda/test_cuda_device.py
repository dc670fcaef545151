"""Every CUDA kernel on a device, against the references: `pytest -m cuda tests/kernels/cuda`."""

from typing import Any

import naive_ratio
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("numba_cuda", reason="numba-cuda is not installed")
from cuda_cases import LAYOUTS, NAMES, Case, make  # noqa: E402

import fastac_kernels.cuda as kernels  # noqa: E402
from fastac_kernels.cuda import scan  # noqa: E402

MISSING = kernels.unavailable() if torch.cuda.is_available() else "there is no CUDA device"
pytestmark = [pytest.mark.cuda, pytest.mark.skipif(MISSING is not None, reason=str(MISSING))]
FORMS = [(name, full) for name in NAMES for full in (True, False) if full or name != "retrace"]
# Lengths that reach every way: one round, several, a block for each sequence, two launches.
LENGTHS, COUNTS = (1, 3, 17, 33, 130, 1000), (1, 3, 33, 70)
LONG = (70_001,)


class Device:
    """Places arrays on the device, and fetches outputs back."""

    def __init__(self) -> None:
        self.pairs: list[tuple[np.ndarray, Any]] = []

    def place(self, array: np.ndarray, is_output: bool) -> int:
        tensor = torch.from_numpy(array.copy()).cuda()
        self.pairs.append((array, tensor))
        address: int = tensor.data_ptr()
        return address

    def fetch(self) -> None:
        torch.cuda.synchronize()
        for array, tensor in self.pairs:
            array[...] = tensor.cpu().numpy()


def on_device(case: Case) -> list[np.ndarray]:
    """Run a call on torch's current stream."""
    device = Device()
    torch.cuda.synchronize()
    outputs = case.call(device.place, torch.cuda.current_stream().cuda_stream, torch.cuda.current_device())
    device.fetch()
    return outputs


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("name", "full"), FORMS)
def test_estimators(name: str, full: bool, layout: str, dtype: type) -> None:
    generator = np.random.default_rng([NAMES.index(name), full, LAYOUTS.index(layout)])
    for _ in range(4):
        case = make(name, layout, full, dtype, generator, LENGTHS, COUNTS)
        outputs = on_device(case)
        case.check(outputs)
        for one, other in zip(outputs, on_device(case), strict=True):
            np.testing.assert_array_equal(one, other)  # the same bits every time


@pytest.mark.parametrize(("name", "full"), FORMS)
def test_chunks(name: str, full: bool) -> None:
    generator = np.random.default_rng(NAMES.index(name))
    case = make(name, "single", full, np.float32, generator, LONG)
    assert kernels.carries_size(*case.sizes) > 0
    case.check(on_device(case))


def call_gae(tensors: list[Any], out: list[Any], stream: Any) -> None:
    rewards, values, last, terminated = tensors
    lanes = rewards.shape[1]
    kernels.gae_at(
        rewards.data_ptr(), values.data_ptr(), 0, last.data_ptr(), terminated.data_ptr(), 0, 0, 0, out[0].data_ptr(),
        out[1].data_ptr(), rewards.numel(), 1, lanes, 0.99, 0.95, np.float32(0), 0, stream.cuda_stream, 0,
    )  # fmt: skip


def gae_tensors() -> tuple[list[Any], list[Any]]:
    torch.manual_seed(0)
    shape = (128, 512)
    tensors = [torch.randn(shape).cuda(), torch.randn(shape).cuda(), torch.randn(512).cuda()]
    tensors.append((torch.rand(shape) < 0.05).cuda())
    return tensors, [torch.full(shape, float("nan")).cuda() for _ in range(2)]


def expected_gae(tensors: list[Any]) -> Any:
    import naive

    rewards, values, last, terminated = (x.cpu().double().numpy() for x in tensors)
    columns = [
        naive.gae(rewards[:, n], values[:, n], float(last[n]), terminated[:, n], gamma=0.99, gae_lambda=0.95)[0]
        for n in range(rewards.shape[1])
    ]
    return torch.from_numpy(np.stack(columns, axis=1)).float()


def test_another_stream() -> None:
    """The kernel waits for what its own stream does before, and for nothing else."""
    tensors, out = gae_tensors()
    wanted = expected_gae(tensors)
    rewards = tensors[0].clone()
    call_gae(tensors, out, torch.cuda.current_stream())  # compiled before the streams race
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    tensors[0].fill_(float("nan"))
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        tensors[0].copy_(rewards)
        call_gae(tensors, out, stream)
    assert not stream.query()  # launched without waiting
    stream.synchronize()
    torch.testing.assert_close(out[0].cpu(), wanted, rtol=1e-4, atol=1e-4)


def test_captured_in_a_graph() -> None:
    tensors, out = gae_tensors()
    call_gae(tensors, out, torch.cuda.current_stream())
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call_gae(tensors, out, torch.cuda.current_stream())
    tensors[0].mul_(2)
    graph.replay()
    torch.cuda.synchronize()
    torch.testing.assert_close(out[0].cpu(), expected_gae(tensors), rtol=1e-4, atol=1e-4)


def test_chunks_in_a_graph() -> None:
    """Two launches on one stream, over the same carries every time."""
    rows = 70_001
    generator = np.random.default_rng(0)
    case = make("gae", "single", True, np.float32, generator, (rows,), flags=("terminated",), poison=False)
    assert scan.shape_of(*case.sizes).chunks > 1
    device = Device()
    call, outputs = case.prepare(device.place)
    call(torch.cuda.current_stream().cuda_stream, 0)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call(torch.cuda.current_stream().cuda_stream, 0)
    for array, tensor in device.pairs:
        if any(array is output for output in outputs):
            tensor.fill_(77)
    graph.replay()
    device.fetch()
    case.check(outputs)


@pytest.mark.parametrize("total", [1, 17, 4096, 300_001])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_ppo_clip_loss(total: int, masked: bool, dtype: type) -> None:
    generator = np.random.default_rng([total, masked])
    old, advantages = (generator.normal(size=total).astype(dtype) for _ in range(2))
    new = (old + 0.3 * generator.normal(size=total)).astype(dtype)
    mask = (generator.random(total) < 0.7) if masked else None
    tensors = [torch.from_numpy(x).cuda() for x in (new, old, advantages)]
    valid = None if mask is None else torch.from_numpy(mask).cuda()
    loss, gradient, statistics = (torch.empty(n, dtype=tensors[0].dtype, device="cuda") for n in (1, total, 5))
    partials = torch.empty(kernels.partials_size(total), dtype=loss.dtype, device="cuda")
    for _ in range(2):
        kernels.ppo_clip_loss_at(
            *(x.data_ptr() for x in tensors), 0 if valid is None else valid.data_ptr(), loss.data_ptr(),
            gradient.data_ptr(), statistics.data_ptr(), total, 0.2, 3.0, dtype(0), partials.data_ptr(),
            torch.cuda.current_stream().cuda_stream, 0,
        )  # fmt: skip
    torch.cuda.synchronize()
    wanted = naive_ratio.ppo_clip_loss(new, old, advantages, mask, clip_coef=0.2, dual_clip=3.0)
    tolerance = 1e-5 if dtype is np.float32 else 1e-12
    assert loss.item() == pytest.approx(wanted[0], rel=tolerance, abs=tolerance)
    np.testing.assert_allclose(gradient.cpu().numpy(), wanted[1], rtol=tolerance, atol=tolerance / total)
    np.testing.assert_allclose(statistics.cpu().numpy(), list(wanted[2].values()), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("n_step", [1, 3])
@pytest.mark.parametrize("width", [1, 17, 376])
def test_gather_transitions(n_step: int, width: int) -> None:
    """What torch operations gather there, and once more in a graph."""
    from fastac.buffers import DeviceReplayBuffer, device_gather

    example = {"observations": np.zeros(width, np.float32), "actions": np.zeros(2, np.float32)}
    buffer = DeviceReplayBuffer.from_example(1000, example, num_envs=8, n_step=n_step, gamma=0.9, device="cuda")
    for _ in range(150):
        x, actions = torch.randn(8, width, device="cuda"), torch.randn(8, 2, device="cuda")
        rewards, flags = torch.randn(8, device="cuda"), torch.rand(3, 8, device="cuda") < 0.1
        buffer.add(x, actions, rewards, x, flags[0], flags[1], mask=~flags[2])
    serials = torch.randint(buffer.added - 1000, buffer.added, (257,), device="cuda")
    tail = buffer._packing.following.start

    def same(found: Any, wanted: Any) -> None:
        assert torch.equal(found.rows, wanted.rows)
        assert torch.equal(found.last_rows[:, tail:], wanted.last_rows[:, tail:])
        torch.testing.assert_close(found.rewards, wanted.rewards)
        assert torch.equal(found.discounts, wanted.discounts)

    found = device_gather.by_kernel(buffer._ring, serials)
    assert found is not None
    same(found, device_gather.by_torch(buffer._ring, serials))
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        found = device_gather.by_kernel(buffer._ring, serials)
    serials.copy_(serials.flip(0))
    graph.replay()
    same(found, device_gather.by_torch(buffer._ring, serials))
