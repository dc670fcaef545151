"""What is between CUDA tensors and their kernels: addresses, sizes, streams, devices and dtypes, the driver stubbed.

The functions that take CUDA tensors never ask where memory is but for a device's index, so that CPU tensors show what
would be launched. That the kernels compute what they should is tested in tests/kernels, in a simulator.
"""

import math
import time
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from cases import FULL_ONLY, NUMBERS, OPTIONS, REFERENCES, TWO_OUTPUTS

import fastac
from fastac import _torch_cuda, _torch_ops, _torch_ratio
from fastac._arrays import Arguments
from fastac._estimators import ESTIMATORS
from fastac_kernels.operands import FULL, MASK, PACKED, TERMINATED, TRUNCATED, VALUES


class Kernels:
    """Stands in for `fastac_kernels.cuda`: remembers calls, and fills outputs through what it was told."""

    def __init__(self, missing: str | None = None, carries: int = 0, error: Exception | None = None):
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.missing, self.carries, self.error = missing, carries, error
        self.partials = 7
        self.ESTIMATORS = {name: self.named(name) for name in ESTIMATORS}
        self.PLANS = {name: self.plan(name) for name in ESTIMATORS}

    def named(self, name: str) -> Any:
        def launch(*given: Any) -> None:
            if self.error is not None:
                raise self.error
            self.calls.append((name, given))

        return launch

    def plan(self, name: str) -> Any:
        """As the estimator of that name is called, of what a plan and its launch are given."""

        def plan(real: Any, present: int, *numbers: Any) -> tuple[int, Any]:
            def launch(addresses: tuple[int, ...], stream: int, device: int) -> None:
                bits = (VALUES, FULL, 0, TERMINATED, TRUNCATED, MASK, PACKED)
                assert present == sum(bit for bit, at in zip(bits, addresses[2:9], strict=True) if at)
                ratios, outputs = name in ("vtrace", "retrace"), ESTIMATORS[name].outputs
                assert (bool(addresses[0]), bool(addresses[10])) == (ratios, outputs == 2)
                used = (*addresses[:1][:ratios], *addresses[1:9], *addresses[9:][:outputs])
                self.named(name)(*used, *numbers, real(0), addresses[11], stream, device)

            return self.carries, launch

        return plan

    def ppo_clip_loss_plan(self, real: Any, total: int, masked: bool, *numbers: Any) -> tuple[int, Any]:
        def launch(addresses: tuple[int, ...], stream: int, device: int) -> None:
            assert masked == (addresses[3] != 0)
            self.named("ppo_clip_loss")(*addresses[:7], total, *numbers, real(0), addresses[7], stream, device)

        return self.partials, launch

    def carries_size(self, total: int, sequences: int, lanes: int) -> int:
        return self.carries


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Kernels:
    stub = Kernels()
    put(stub, monkeypatch)
    monkeypatch.setattr(_torch_cuda, "stream_of", lambda device: 1000 + device)
    return stub


def put(kernels: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those kernels, as if none had run so far."""
    for name, value in (("_kernels", kernels), ("_plans", {}), ("_loss_plans", {})):
        monkeypatch.setattr(_torch_cuda, name, value)


def arguments(name: str, shape: tuple[int, ...] = (6, 5), dtype: torch.dtype = torch.float32, *,
              full: bool = True, flags: bool = True, **more: Any) -> Arguments:  # fmt: skip
    given: dict[str, Any] = {key: torch.randn(shape).to(dtype) for key in NUMBERS[name]}
    given["values"] = given.pop("q_values", given.get("values"))
    for key in ("terminated", "truncated", "mask") if flags else ():
        given[key] = torch.rand(shape) < 0.5
    if not full:
        given |= {"next_values": torch.randn(shape[1:]).to(dtype), "truncated": None}
    places = dict.fromkeys(Arguments._fields) | {"batch_first": False}
    return Arguments(**places | given | more)


def address(x: Any) -> int:
    return 0 if x is None else x.data_ptr()


def expected(name: str, a: Arguments, outputs: Any, sizes: tuple[int, int, int], like: Any, *,
             scratch: int = 0, full: bool = True, cu_seqlens: int = 0) -> tuple[Any, ...]:  # fmt: skip
    """The whole call as the contract of `fastac_kernels.cuda` has it."""
    following = address(a.next_values)
    ratios = (address(a.log_ratios),) if name in ("vtrace", "retrace") else ()
    numbers = (address(a.rewards), address(a.values), following if full else 0, 0 if full else following)
    flags = (address(a.terminated), address(a.truncated), address(a.mask))
    more = ESTIMATORS[name].more
    return (*ratios, *numbers, *flags, cu_seqlens, *map(address, outputs), *sizes, *OPTIONS[name].values(), *more, like,
            scratch, 1000 + a.rewards.get_device(), a.rewards.get_device())  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("flags", [True, False])
@pytest.mark.parametrize("name", REFERENCES)
def test_the_short_way(kernels: Kernels, name: str, flags: bool, full: bool, dtype: torch.dtype) -> None:
    """Addresses of the very tensors in their places, sizes, scalars, dtype, stream and device; nothing is copied."""
    if name in FULL_ONLY and not full:
        return
    for shape in ((6, 5), (7,))[: 1 + full]:
        a = arguments(name, shape, dtype, full=full, flags=flags)
        outputs = _torch_cuda.plain(name, a, tuple(OPTIONS[name].values()))
        assert outputs is not None
        assert len(outputs) == 1 + (name in TWO_OUTPUTS)
        assert all(x.dtype is dtype and x.shape == shape for x in outputs)
        lanes = shape[1] if len(shape) == 2 else 1
        called, given = kernels.calls.pop()
        assert called == name
        assert given == expected(name, a, outputs, (a.rewards.numel(), 1, lanes), _torch_cuda.LIKE[dtype], full=full)
        assert type(given[-4]) is type(_torch_cuda.LIKE[dtype])


@pytest.mark.parametrize("name", REFERENCES)
class TestTheLongWay:
    def run(self, name: str, a: Arguments, out: Any = None) -> Any:
        return _torch_cuda.estimate(name, a, tuple(OPTIONS[name].values()), out)

    def last(self, kernels: Kernels, name: str) -> dict[str, Any]:
        _, given = kernels.calls.pop()
        outputs, ratios = ESTIMATORS[name].outputs, name in ("vtrace", "retrace")
        names = ["log_ratios"] * ratios + ["rewards", "values", "next_values", "last_values", "terminated", "truncated",
                 "mask", "cu_seqlens"] + ["out"] * outputs + ["total", "sequences", "lanes"]  # fmt: skip
        found = dict(zip(names, given, strict=False))
        return found | {"like": given[-4], "carries": given[-3], "stream": given[-2], "device": given[-1]}

    def test_batch_first(self, kernels: Kernels, name: str) -> None:
        a = arguments(name, batch_first=True)
        self.run(name, a)
        call = self.last(kernels, name)
        assert (call["total"], call["sequences"], call["lanes"]) == (30, 6, 1)
        assert call["rewards"] == a.rewards.data_ptr()
        assert (call["stream"], call["device"]) == (1000, 0)

    def test_transposed_memory_is_taken_as_it_is(self, kernels: Kernels, name: str) -> None:
        a = arguments(name)
        turned = Arguments(*(x.t() if isinstance(x, torch.Tensor) else x for x in a))._replace(batch_first=True)
        outputs = self.run(name, turned)
        call = self.last(kernels, name)
        assert (call["sequences"], call["lanes"]) == (1, 5)
        assert call["rewards"] == a.rewards.data_ptr()
        assert call["mask"] == a.mask.data_ptr()
        assert outputs[0].shape == (5, 6)
        assert outputs[0].t().is_contiguous()

    def test_packed(self, kernels: Kernels, name: str) -> None:
        boundaries = torch.tensor([0, 4, 4, 30])
        for cu_seqlens in (boundaries, boundaries.int()):
            self.run(name, arguments(name, (30,), cu_seqlens=cu_seqlens))
            call = self.last(kernels, name)
            assert (call["total"], call["sequences"], call["lanes"]) == (30, 3, 1)
            assert (call["cu_seqlens"] == boundaries.data_ptr()) == (cu_seqlens is boundaries)
            assert call["cu_seqlens"]

    def test_half_precisions_are_converted_around_the_call(self, kernels: Kernels, name: str) -> None:
        for dtype in (torch.float16, torch.bfloat16):
            outputs = self.run(name, arguments(name, dtype=dtype))
            assert all(x.dtype is dtype for x in outputs)
            assert type(self.last(kernels, name)["like"]) is np.float32

    def test_flags_of_any_dtype_and_a_scalar_next_value(self, kernels: Kernels, name: str) -> None:
        a = arguments(name)
        a = a._replace(terminated=a.terminated.to(torch.uint8), mask=a.mask.double())
        self.run(name, a)
        call = self.last(kernels, name)
        assert call["terminated"] == a.terminated.data_ptr()
        assert call["mask"] not in (0, a.mask.data_ptr())
        if name not in FULL_ONLY:
            self.run(name, arguments(name)._replace(next_values=0.5, truncated=None))
            call = self.last(kernels, name)
            assert call["next_values"] == 0
            assert call["last_values"]

    def test_out_is_written_where_it_is(self, kernels: Kernels, name: str) -> None:
        out = tuple(torch.empty(6, 5) for _ in range(ESTIMATORS[name].outputs))
        versions = [x._version for x in out]
        assert self.run(name, arguments(name), out) is out
        _, given = kernels.calls.pop()
        assert {x.data_ptr() for x in out} <= set(given)
        assert [x._version for x in out] == [v + 1 for v in versions]

    def test_carries(self, kernels: Kernels, name: str) -> None:
        kernels.carries = 11
        self.run(name, arguments(name))
        assert self.last(kernels, name)["carries"]
        assert _torch_cuda.plain(name, arguments(name), tuple(OPTIONS[name].values()))
        assert self.last(kernels, name)["carries"]

    def test_nothing_to_do(self, kernels: Kernels, name: str) -> None:
        for shape in ((0, 5), (6, 0), (0,)):
            outputs = self.run(name, arguments(name, shape))
            assert all(x.shape == shape for x in outputs)
        assert not kernels.calls

    def test_what_the_short_way_leaves(self, kernels: Kernels, name: str) -> None:
        scalars = tuple(OPTIONS[name].values())
        a = arguments(name)
        assert _torch_cuda.plain(name, a._replace(rewards=a.rewards.t().contiguous().t()), scalars) is None
        assert _torch_cuda.plain(name, a._replace(mask=a.mask.float()), scalars) is None
        assert _torch_cuda.plain(name, a._replace(rewards=a.rewards.double()), scalars) is None
        assert _torch_cuda.plain(name, arguments(name, (0, 5)), scalars) is None
        assert _torch_cuda.plain(name, a._replace(next_values=torch.empty(7)), scalars) is None
        assert not kernels.calls


@pytest.mark.parametrize("masked", [False, True])
def test_the_loss(kernels: Kernels, masked: bool) -> None:
    new, old, a = (torch.randn(9) for _ in range(3))
    mask = torch.rand(9) < 0.5 if masked else None
    for run in (_torch_cuda.ppo_clip_loss, _torch_cuda.plain_ppo_clip_loss):
        loss, gradient, statistics = run(new, old, a, mask, 0.2, 3.0)
        name, given = kernels.calls.pop()
        assert name == "ppo_clip_loss"
        assert given[:7] == tuple(map(address, (new, old, a, mask, loss, gradient, statistics)))
        assert given[7:10] == (9, 0.2, 3.0)
        assert given[11]
        assert given[12:] == (999, -1)
        assert (loss.shape, gradient.shape, statistics.shape) == ((), (9,), (5,))
    loss, gradient, _ = _torch_cuda.ppo_clip_loss(new.half(), old, a.double(), mask, 0.2, 3.0)
    assert loss.dtype is gradient.dtype is torch.float32
    assert _torch_cuda.plain_ppo_clip_loss(new.half(), old, a, mask, 0.2, 3.0) is None
    kernels.partials = 0  # a block alone
    _torch_cuda.plain_ppo_clip_loss(new, old, a, mask, 0.1, 3.0)
    assert kernels.calls.pop()[1][11] == 0


def test_without_kernels_torch_takes_over_and_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_torch_cuda, "_kernels", False)
    monkeypatch.setattr("fastac_kernels.cuda.unavailable", lambda: "there is no driver", raising=False)
    a = arguments("gae")
    with pytest.warns(RuntimeWarning, match=r'there is no driver.*pip install "fastac-rl\[cuda\]"'):
        found = _torch_ops._on_cuda("gae", a, (0.9, 0.8), None)
    reference = _torch_ops._on_cpu("gae", a, (0.9, 0.8), None)
    for result, other in zip(found, reference, strict=True):
        torch.testing.assert_close(result, other)
    new, old = torch.randn(2, 9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _torch_ops._on_cuda("gae", a._replace(next_values=0.5, truncated=None), (0.9, 0.8), None)
        loss, *_ = _torch_ratio._ppo_clip_loss_cuda(new, old, old, None, 0.2, 3.0)
    torch.testing.assert_close(loss, fastac.ppo_clip_loss(new, old, old, clip_coef=0.2, dual_clip=3.0).loss)
    assert _torch_cuda.plain("gae", a, (0.9, 0.8)) is None


def test_a_kernel_that_cannot_be_compiled_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    put(Kernels(error=OSError("libnvvm.so.4: not found\nmore")), monkeypatch)
    monkeypatch.setattr(_torch_cuda, "stream_of", lambda device: 0)
    with pytest.warns(RuntimeWarning, match=r"OSError: libnvvm\.so\.4: not found\)") as said:
        found = _torch_ops._on_cuda("gae", arguments("gae"), (0.9, 0.8), None)
    assert len(said) == 1
    assert len(found) == 2
    assert _torch_cuda._kernels is None


@pytest.mark.parametrize("name", REFERENCES)
def test_with_the_kernels_own_recorder(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The real launchers take what they are given, on the stream and the device."""
    cuda = pytest.importorskip("fastac_kernels.cuda")
    put(cuda, monkeypatch)
    monkeypatch.setattr(_torch_cuda, "stream_of", lambda device: 77)
    with cuda.recorded() as launches:
        for shape in ((6, 5), (100_000, 2)):
            launches.clear()
            a = arguments(name, shape)
            outputs = _torch_cuda.plain(name, a, tuple(OPTIONS[name].values()))
            assert outputs is not None
            assert 1 <= len(launches) <= 3
            for launch in launches:
                assert (launch.stream, launch.device) == (77, -1)
                assert "float32" in launch.kernel.name
                assert a.rewards.data_ptr() in launch.arguments
                assert len(launch.arguments) == len(launch.kernel.argument_types)
            assert outputs[0].data_ptr() in launches[-1].arguments


def own_time(call: Any) -> float:
    """Processor time of a call in microseconds, the least of many rounds, on a machine as fast as the one of the bound.

    That one takes 0.65 us for `torch.empty_like`: where it takes longer, everything does.
    """
    like = torch.empty(6, 5)

    def least(function: Any) -> float:
        times = []
        for _ in range(25):
            start = time.thread_time_ns()
            for _ in range(100):
                function()
            times.append((time.thread_time_ns() - start) / 1e5)
        return min(times)

    pairs = [(least(call), least(lambda: torch.empty_like(like))) for _ in range(3)]
    return min(took / max(slow / 0.65, 1.0) for took, slow in pairs)


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("name", [*REFERENCES, "ppo_clip_loss"])
def test_overhead_on_the_host(monkeypatch: pytest.MonkeyPatch, name: str, full: bool) -> None:
    """All of ours from checked numbers to the driver, under 5 us: not the driver's, nor torch's memory for outputs."""
    cuda = pytest.importorskip("fastac_kernels.cuda")
    put(cuda, monkeypatch)
    monkeypatch.setattr(_torch_cuda, "stream_of", lambda device: 77)
    given = torch.empty(6, 5)
    monkeypatch.setattr(_torch_cuda, "_empty_like", lambda like: given)
    if name == "ppo_clip_loss":
        new, old, a = torch.randn(3, 30)
        mask = torch.rand(30) < 0.5 if full else None
        call: Any = lambda: _torch_cuda.plain_ppo_clip_loss(new, old, a, mask, 0.2, math.inf)  # noqa: E731
    else:
        a, scalars = arguments(name, full=full or name in FULL_ONLY), tuple(OPTIONS[name].values())
        call = lambda: _torch_cuda.plain(name, a, scalars)  # noqa: E731
    with cuda.recorded() as launches:
        assert call() is not None
        assert launches
    with cuda.recorded(lambda *asked: None):
        assert own_time(call) < 5.0


def test_plans_are_forgotten(kernels: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shapes that come and go fill no memory; what is forgotten is made again."""
    monkeypatch.setattr(_torch_cuda, "MOST_PLANS", 2)
    for _ in range(2):
        for rows in range(1, 6):
            a = arguments("gae", (rows, 2))
            outputs = _torch_cuda.plain("gae", a, (0.9, 0.8))
            assert outputs is not None
            assert outputs[0].shape == (rows, 2)
            assert kernels.calls.pop()[1][10] == 2 * rows
            assert _torch_cuda.plain_ppo_clip_loss(*torch.randn(3, rows), None, 0.2, math.inf) is not None
            assert kernels.calls.pop()[1][7] == rows
    assert len(_torch_cuda._plans) <= 2
    assert len(_torch_cuda._loss_plans) <= 2


def test_a_plan_is_of_its_scalars_and_operands(kernels: Kernels) -> None:
    """Calls that differ in one of them never share one."""
    a = arguments("gae")
    for scalars in ((0.9, 0.8), (0.9, 0.7), (0.8, 0.8)):
        _torch_cuda.plain("gae", a, scalars)
        assert kernels.calls.pop()[1][13:15] == scalars
    for missing in ("terminated", "truncated", "mask"):
        b = a._replace(**{missing: None})
        outputs = _torch_cuda.plain("gae", b, (0.9, 0.8))
        assert kernels.calls.pop()[1] == expected("gae", b, outputs, (30, 1, 5), np.float32(0))


@pytest.mark.parametrize("name", REFERENCES)
def test_what_is_wrong_is_noticed_after_a_plan_was_made(kernels: Kernels, name: str) -> None:
    """A plan remembers shapes, never tensors: each call's are looked at."""
    a, scalars = arguments(name), tuple(OPTIONS[name].values())
    assert _torch_cuda.plain(name, a, scalars) is not None
    kernels.calls.clear()
    for field, x in a._asdict().items():
        if not isinstance(x, torch.Tensor):
            continue
        wrong = [x[:5], x.t().contiguous().t(), x.to(torch.float64), torch.nn.Parameter(x.float())]
        if x.is_floating_point():
            wrong.append(torch._neg_view(x))
        for other in wrong:
            if field == "rewards" and type(other) is not torch.Tensor:
                continue  # the caller's to see
            assert _torch_cuda.plain(name, a._replace(**{field: other}), scalars) is None, field
    assert not kernels.calls


def test_a_wrong_loss_is_noticed_after_a_plan_was_made(kernels: Kernels) -> None:
    new, old, a = torch.randn(3, 6, 5)
    mask = torch.rand(6, 5) < 0.5
    given = [new, old, a, mask]
    assert _torch_cuda.plain_ppo_clip_loss(*given, 0.2, math.inf) is not None
    for i, x in enumerate(given):
        for other in (x[:5], x.t().contiguous().t(), x.to(torch.float64)):
            assert _torch_cuda.plain_ppo_clip_loss(*given[:i], other, *given[i + 1 :], 0.2, math.inf) is None
        if i < 3:
            assert (
                _torch_cuda.plain_ppo_clip_loss(*given[:i], torch._neg_view(x), *given[i + 1 :], 0.2, math.inf) is None
            )
    assert len(kernels.calls) == 1
