"""The public functions on a CUDA device: equal to the CPU's, on any stream, compiled, and inside a CUDA graph."""

from typing import Any

import pytest
import torch
from cases import FULL_ONLY, NUMBERS, OPTIONS, REFERENCES, as_tuple

import fastac
from fastac import _torch_cuda

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
SHAPES = [(64, 33), (1, 1), (5000, 3), (7, 2000)]


def given(name: str, shape: tuple[int, ...], dtype: torch.dtype, *, short: bool = False) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(len(shape) + shape[0])
    found: dict[str, Any] = {key: torch.randn(shape, generator=generator).to(dtype) for key in NUMBERS[name]}
    for key, chance in (("terminated", 0.1), ("truncated", 0.1), ("mask", 0.9)):
        found[key] = torch.rand(shape, generator=generator) < chance
    if short and name not in FULL_ONLY:
        found |= {"next_values": torch.randn(shape[1:], generator=generator).to(dtype), "truncated": None}
    return found


def there(arguments: dict[str, Any]) -> dict[str, Any]:
    return {key: x.cuda() if isinstance(x, torch.Tensor) else x for key, x in arguments.items()}


def call(name: str, arguments: dict[str, Any], **more: Any) -> tuple[torch.Tensor, ...]:
    return as_tuple(name, getattr(fastac, name)(**arguments, **OPTIONS[name], **more))


def assert_close(results: Any, expected: Any, dtype: torch.dtype = torch.float32) -> None:
    tolerance = {torch.float64: 1e-11, torch.float32: 2e-4, torch.float16: 2e-2}[dtype]
    for result, wanted in zip(results, expected, strict=True):
        assert result.is_cuda
        assert result.dtype is wanted.dtype
        torch.testing.assert_close(result.cpu(), wanted, rtol=tolerance, atol=tolerance)


def test_the_kernels_run() -> None:
    """What follows would pass by torch operations, too."""
    assert _torch_cuda.kernels() is not None


@pytest.mark.parametrize("short", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", REFERENCES)
def test_every_layout(name: str, shape: tuple[int, ...], dtype: torch.dtype, short: bool) -> None:
    arguments = given(name, shape, dtype, short=short)
    expected, on_device = call(name, arguments), there(arguments)
    torch.cuda.set_sync_debug_mode("error")
    try:
        results = call(name, on_device)
        turned = {k: x.t() if isinstance(x, torch.Tensor) and x.ndim == 2 else x for k, x in on_device.items()}
        by_rows = call(name, {k: x.contiguous() if isinstance(x, torch.Tensor) else x for k, x in turned.items()},
                       batch_first=True)  # fmt: skip
        seen_turned = call(name, turned, batch_first=True)
        out = tuple(torch.empty_like(x) for x in results)
        written = call(name, on_device, out=out if len(out) > 1 else out[0])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert_close(results, expected, dtype)
    assert_close([x.t() for x in by_rows], expected, dtype)
    assert_close([x.t() for x in seen_turned], expected, dtype)
    assert_close(written, expected, dtype)
    again = call(name, on_device)
    assert all(torch.equal(x, y) for x, y in zip(results, again, strict=True))


@pytest.mark.parametrize("name", REFERENCES)
def test_packed(name: str) -> None:
    arguments = given(name, (3000,), torch.float32)
    arguments["cu_seqlens"] = torch.tensor([0, 5, 5, 1500, 2999, 3000])
    assert_close(call(name, there(arguments)), call(name, arguments))


@pytest.mark.parametrize("name", REFERENCES)
def test_compiled(name: str) -> None:
    torch._dynamo.reset()
    arguments = given(name, (64, 33), torch.float32)
    compiled = torch.compile(lambda a: tuple(2 * x for x in call(name, a)), fullgraph=True)
    assert_close([x / 2 for x in compiled(there(arguments))], call(name, arguments))


@pytest.mark.parametrize("name", REFERENCES)
def test_in_a_graph_and_on_another_stream(name: str) -> None:
    """A replay computes what is in the inputs then; a call on a stream waits for what that stream does before."""
    arguments, others = given(name, (200, 9), torch.float32), given(name, (200, 9), torch.float32)
    others["rewards"] = others["rewards"] + 1.0
    static = there(arguments)
    call(name, static)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = call(name, static)
    static["rewards"].copy_(others["rewards"])
    graph.replay()
    assert_close(results, call(name, others))
    stream, late = torch.cuda.Stream(), there(arguments)
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        late["rewards"].add_(1.0)
        results = call(name, late)
    stream.synchronize()
    assert_close(results, call(name, others))


@pytest.mark.parametrize("masked", [False, True])
def test_the_loss_and_ratios(masked: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    new, old, a = (torch.randn(100_003, generator=generator) for _ in range(3))
    mask = torch.rand(100_003, generator=generator) < 0.7 if masked else None
    leaf, far = new.clone().requires_grad_(), new.cuda().requires_grad_()
    on_device = [x if x is None else x.cuda() for x in (old, a, mask)]
    expected = fastac.ppo_clip_loss(leaf, old, a, mask, clip_coef=0.2, dual_clip=3.0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        result = fastac.ppo_clip_loss(far, *on_device, clip_coef=0.2, dual_clip=3.0)
        result.loss.backward()
        ratios = fastac.importance_ratio(far, on_device[0], mask=on_device[2], cumulative=True)
        normalized = fastac.normalize_advantages(on_device[1], on_device[2])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected.loss.backward()
    for x, y in ((result.loss, expected.loss), (far.grad, leaf.grad), (result.statistics, expected.statistics)):
        torch.testing.assert_close(x.detach().cpu(), y.detach(), rtol=2e-5, atol=1e-6)
    torch.testing.assert_close(
        ratios.detach().cpu(), fastac.importance_ratio(new, old, mask=mask, cumulative=True), rtol=1e-2, atol=1e-6
    )
    torch.testing.assert_close(normalized.cpu(), fastac.normalize_advantages(a, mask), rtol=1e-4, atol=1e-5)
