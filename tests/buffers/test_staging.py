"""Staging: batches, shutdown and errors on the CPU; its CUDA part on streams that run as late as they may."""

import functools
import gc
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
import warnings
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import pytest
import torch
from fresh import ROOT

from fastac.buffers import staging, transfer
from fastac.buffers.staging import Staging


class Rows(NamedTuple):
    observations: dict
    rewards: object
    terminated: object
    weights: object


class Counting:
    """Batches numbered in the order they were drawn, every field filled with the number."""

    def __init__(self, tensors=False, uses_out=True):
        self.drawn, self.tensors, self.uses_out, self.outs, self.threads = 0, tensors, uses_out, [], set()

    def sample(self, batch_size, *, out=None):
        number, self.drawn = self.drawn, self.drawn + 1
        self.threads.add(threading.current_thread())
        if out is None or not self.uses_out:
            fields = {"image": np.empty((batch_size, 3, 5), np.uint8), "speed": np.empty((batch_size,), np.float64)}
            out = Rows(fields, np.empty(batch_size, np.float32), np.empty(batch_size, np.bool_), None)
            if self.tensors:
                fields = {name: torch.from_numpy(field) for name, field in fields.items()}
                out = Rows(fields, torch.from_numpy(out.rewards), torch.from_numpy(out.terminated), None)
        else:
            self.outs.append(out)
        out.observations["image"][:] = number % 256
        out.observations["speed"][:] = number
        out.rewards[:] = number
        out.terminated[:] = number % 2
        return out


def number_of(batch):
    """The number that every field agrees on; a torn batch fails."""
    number = int(batch.rewards[0])
    assert batch.weights is None
    assert (batch.rewards == number).all()
    assert (batch.observations["image"] == number % 256).all()
    assert (batch.observations["speed"] == number).all()
    assert (batch.terminated == bool(number % 2)).all()
    return number


@pytest.mark.parametrize("tensors", [False, True], ids=["arrays", "tensors"])
@pytest.mark.parametrize("uses_out", [False, True], ids=["fresh", "out"])
def test_batches_come_in_the_order_drawn_as_tensors_of_two_buffers(tensors, uses_out):
    sampler = Counting(tensors, uses_out)
    addresses = set()
    with Staging(sampler, 7) as batches:
        for expected, batch in zip(range(50), batches, strict=False):
            assert number_of(batch) == expected
            addresses.add(batch.rewards.data_ptr())
            assert batch.observations["image"].shape == (7, 3, 5)
            types = batch.observations["image"].dtype, batch.observations["speed"].dtype, batch.terminated.dtype
            assert types == (torch.uint8, torch.float64, torch.bool)
    assert len(addresses) == 2
    assert all(type(out.rewards) is (torch.Tensor if tensors else np.ndarray) for out in sampler.outs)
    assert all(address % transfer.ALIGNMENT == 0 for address in addresses)


def test_the_batch_handed_out_stays_untouched_until_the_next_is_asked_for():
    """However long the learner takes: the thread has one batch ready and then waits."""
    sampler = Counting()
    with Staging(sampler, 4) as batches:
        for expected in range(3):
            batch = next(batches)
            waited = time.monotonic() + 5
            while sampler.drawn < expected + 2 and time.monotonic() < waited:
                time.sleep(0.001)
            time.sleep(0.02)
            assert sampler.drawn == expected + 2
            assert number_of(batch) == expected
        next(batches)
    assert number_of(batch) in (2, 4)  # overwritten once the next one was asked for


def test_the_last_batch_stays_valid_after_close():
    with Staging(Counting(), 4) as batches:
        next(batches)
        batch = next(batches)
    gc.collect()
    assert number_of(batch) == 1


def test_same_batches_as_direct_sampling():
    def sampler():
        rng = np.random.default_rng(3)

        def sample(batch_size, out=None):
            return {"x": rng.normal(size=(batch_size, 2)), "indices": rng.integers(0, 100, batch_size)}

        return sample

    direct = sampler()
    with Staging(sampler(), 5) as batches:
        for _ in range(20):
            staged, expected = next(batches), direct(5)
            assert {name: field.numpy().tobytes() for name, field in staged.items()} == {
                name: field.tobytes() for name, field in expected.items()
            }


def test_further_arguments_and_other_structures():
    def sample(batch_size, beta, out=None):
        return [np.full((), beta), (np.zeros((batch_size, 0)), torch.full((batch_size,), 3, dtype=torch.bfloat16))]

    with Staging(functools.partial(sample, beta=0.25), 2) as batches:
        for _ in range(4):
            beta, (empty, tensor) = next(batches)
            assert beta.item() == 0.25
            assert empty.shape == (2, 0)
            assert tensor.dtype == torch.bfloat16
            assert (tensor == 3).all()


def test_sampling_starts_with_the_first_batch_and_in_another_thread():
    sampler = Counting()
    with Staging(sampler, 2) as batches:
        time.sleep(0.02)
        assert sampler.drawn == 0
        next(batches)
        assert sampler.threads
        assert threading.current_thread() not in sampler.threads
    assert not any(thread.is_alive() for thread in sampler.threads)


def fails_at(number, error):
    def sample(batch_size, out=None):
        nonlocal number
        number -= 1
        if number < 0:
            raise error
        return np.zeros(batch_size)

    return sample


@pytest.mark.parametrize("good", [0, 1, 3])
def test_the_samplers_error_is_raised_in_the_learner_with_its_traceback(good):
    batches = Staging(fails_at(good, KeyError("no such row")), 2)
    for _ in range(good):
        next(batches)
    with pytest.raises(RuntimeError, match=r"sampling failed: KeyError: 'no such row'") as caught:
        next(batches)
    cause = caught.value.__cause__
    assert isinstance(cause, KeyError)
    assert "raise error" in "".join(traceback.format_exception(cause))
    assert not batches._thread.is_alive()
    with pytest.raises(RuntimeError, match="closed"):
        next(batches)
    batches.close()


def test_a_batch_of_another_shape_is_refused():
    sizes = iter([2, 2, 3])
    with Staging(lambda batch_size, out=None: {"x": np.zeros((next(sizes), 4))}, 2) as batches:
        next(batches)
        next(batches)
        with pytest.raises(RuntimeError, match=r"batch\['x'\]: got \(3, 4\) float64, expected \(2, 4\)"):
            next(batches)
    names = iter(["x", "y"])
    with Staging(lambda batch_size, out=None: {next(names): np.zeros(2)}, 2) as batches:
        next(batches)
        with pytest.raises(RuntimeError, match=r"got \[\"batch\['y'\]\"\], expected \[\"batch\['x'\]\"\]"):
            next(batches)


def test_wrong_arguments_are_named():
    with pytest.raises(TypeError, match="source: got int, expected a buffer"):
        Staging(3, 2)
    with pytest.raises(ValueError, match="batch_size: got 0"):
        Staging(Counting(), 0)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="device: got 'cuda', but PyTorch finds no CUDA device"):
            Staging(Counting(), 2, "cuda")
    with (
        Staging(lambda batch_size, out=None: (np.zeros(2), "text"), 2) as batches,
        pytest.raises(RuntimeError, match=r"TypeError: batch\[1\]: got str"),
    ):
        next(batches)


def test_the_threads_end_when_the_learner_fails_or_forgets_them():
    sampler = Counting()
    with pytest.raises(ZeroDivisionError), Staging(sampler, 2) as batches:  # noqa: PT012
        next(batches)
        1 / 0  # noqa: B018
    assert not any(thread.is_alive() for thread in sampler.threads)

    forgotten = Counting()
    batches = Staging(forgotten, 2)
    batch = next(batches)
    del batches
    gc.collect()
    (thread,) = forgotten.threads
    thread.join(5)
    assert not thread.is_alive()
    assert number_of(batch) == 0
    never_asked = Staging(Counting(), 2)
    never_asked.close()
    never_asked.close()


def test_garbage_collected_in_the_samplers_own_thread():
    """A finaliser may run anywhere, so it neither joins nor takes a lock."""
    holder = []

    def sample(batch_size, out=None):
        if holder and drawn:
            holder.clear()
            gc.collect()
        drawn.append(threading.current_thread())
        return np.zeros(batch_size)

    drawn = []
    holder.append(Staging(sample, 2))
    batch = next(holder[0])
    drawn[0].join(5)
    assert not drawn[0].is_alive()
    assert batch.shape == (2,)


def test_closing_does_not_wait_for_a_sampler_that_never_returns(monkeypatch):
    monkeypatch.setattr(staging, "PATIENCE", 0.05)
    leave = threading.Event()

    def sample(batch_size, out=None):
        if out is not None:
            leave.wait(10)
        return np.zeros(batch_size)

    batches = Staging(sample, 2)
    next(batches)
    with pytest.warns(RuntimeWarning, match="has not returned"):
        batches.close()
    leave.set()
    batches._thread.join(5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        batches.close()


SCRIPT = """
import sys, time
import numpy as np
from fastac.buffers.staging import Staging

def sample(batch_size, out=None):
    np.random.default_rng(0).normal(size=20000)
    return {"x": np.zeros(batch_size)}

batches = Staging(sample, 4)
next(batches)
"""
ENDS = {
    "the script ends": "",
    "the learner fails in a cycle": "cycle = [batches]; cycle.append(cycle); 1 / 0",
}


@pytest.mark.parametrize("end", ENDS)
def test_no_thread_keeps_the_interpreter(end):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT + ENDS[end]], capture_output=True, text=True, timeout=60, cwd=ROOT, env=env()
    )
    assert done.returncode == ("fails" in end)
    assert done.stderr == "" or (
        "fails" in end and done.stderr.rstrip().endswith("ZeroDivisionError: division by zero")
    )


def env():
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    return {**os.environ, "PYTHONPATH": path, "PYTHONFAULTHANDLER": "1"}


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("waiting", ["in the learner", "for a batch"])
def test_ctrl_c(waiting):
    """The learner is interrupted at once, also while it waits for a batch, and the process ends."""
    slow = "def sample(batch_size, out=None):\n    time.sleep(out is not None)\n    return np.zeros(4)\n"
    loop = "with Staging(sample, 4) as batches:\n    for batch in batches:\n        print('ready', flush=True)\n"
    sleep = "        time.sleep(30)\n" if waiting == "in the learner" else "        pass\n"
    restore = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    process = subprocess.Popen(
        [sys.executable, "-c", restore + SCRIPT.split("batches =")[0] + slow + loop + sleep],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=env(),
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode in (1, 130, -signal.SIGINT)
    assert errors.rstrip().endswith("KeyboardInterrupt")


class Device:
    """CUDA as bad as it may be: work in a stream's queue is done when somebody waits for it, and not before."""

    def __init__(self):
        self.lock, self.local, self.log = threading.RLock(), threading.local(), []
        self.default = FakeStream(self, "learner")

    def current(self, device=None):
        return getattr(self.local, "stream", self.default)

    @contextmanager
    def on(self, stream):
        before, self.local.stream = self.current(), stream
        yield
        self.local.stream = before

    def copy(self, block, host):
        assert block.data_ptr() != host.data_ptr()
        self.current().push("copy", lambda: block.copy_(host))


class FakeEvent:
    def __init__(self, device):
        self.device, self.stream, self.place = device, None, 0

    def record(self, stream):
        with self.device.lock:
            stream.push("record", None)
            self.stream, self.place = stream, stream.pushed

    def synchronize(self):
        if self.stream is not None:
            self.stream.run_to(self.place)


class FakeStream:
    def __init__(self, device, name):
        self.device, self.name, self.queue, self.pushed, self.done = device, name, [], 0, 0

    def push(self, kind, work):
        with self.device.lock:
            self.device.log.append((self.name, kind))
            self.queue.append(work)
            self.pushed += 1

    def run_to(self, place):
        with self.device.lock:
            while self.done < place:
                work = self.queue.pop(0)
                self.done += 1
                if work is not None:
                    work()

    def wait_event(self, event):
        stream, place = event.stream, event.place  # as of now: later records do not count
        self.push("wait", None if stream is None else lambda: stream.run_to(place))

    def wait_stream(self, stream):
        place = stream.pushed
        self.push("wait", lambda: stream.run_to(place))

    def synchronize(self):
        self.run_to(self.pushed)


@pytest.fixture
def device(monkeypatch):
    fake = Device()
    monkeypatch.setattr(transfer, "new_stream", lambda device: FakeStream(fake, "copies"))
    monkeypatch.setattr(transfer, "new_event", lambda: FakeEvent(fake))
    monkeypatch.setattr(transfer, "current_stream", fake.current)
    monkeypatch.setattr(transfer, "on_stream", fake.on)
    monkeypatch.setattr(transfer, "copy_block", fake.copy)
    monkeypatch.setattr(transfer, "pinned_block", lambda size: torch.zeros(size, dtype=torch.uint8))
    monkeypatch.setattr(transfer, "device_block", lambda size, device: torch.zeros(size, dtype=torch.uint8))
    monkeypatch.setattr(staging, "transfer_to", lambda device: transfer.CudaTransfer(torch.device("cpu")))
    return fake


@pytest.mark.parametrize("read_at", ["once", "the end"])
def test_streams_wait_for_each_other_where_they_must(device, read_at):
    """Whatever the learner's kernels find, run as late as the device can: the batch they were launched for."""
    seen = []
    with Staging(Counting(), 3, "cuda") as batches:
        for expected, batch in zip(range(30), batches, strict=False):
            device.default.push("kernel", lambda batch=batch: seen.append(number_of(batch)))
            if read_at == "once":
                device.default.synchronize()
                assert seen[-1] == expected
    device.default.synchronize()
    assert seen == list(range(30))
    copies = [kind for stream, kind in device.log if stream == "copies"]
    assert copies[:4] == ["wait", "wait", "wait", "copy"]  # for the memory of two slots; for the slot; one copy a batch
    kernels = [kind for stream, kind in device.log if stream == "learner" and kind != "record"]
    assert kernels == ["wait", "kernel"] * 30 + ["wait"] * (len(kernels) - 60)


@pytest.mark.parametrize(("missing", "eager"), [("receive", True), ("release", False), ("reuse", False)])
def test_the_simulated_device_finds_missing_waits(device, monkeypatch, missing, eager):
    """The test above can fail: without the learner's wait, without the copy's, without the sampler's."""
    monkeypatch.setattr(transfer.CudaTransfer, missing, lambda self, slot: None)
    seen = []
    with Staging(Counting(), 3, "cuda") as batches:
        for _, batch in zip(range(30), batches, strict=False):
            device.default.push("kernel", lambda batch=batch: seen.append(int(batch.rewards[0])))
            if eager:
                device.default.synchronize()
    device.default.synchronize()
    assert seen != list(range(30))


def test_copies_are_finished_when_staging_ends(device):
    with Staging(Counting(), 3, "cuda") as batches:
        next(batches)
    stream = batches._transfer.stream
    assert stream.done == stream.pushed > 0


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("own_stream", [False, True])
def test_on_cuda(own_stream):
    """Slow kernels on the batch, launched without waiting, see their own batch; the memory is pinned."""
    sampler = Counting()
    stream = torch.cuda.Stream() if own_stream else torch.cuda.current_stream()
    seen = []
    with torch.cuda.stream(stream), Staging(sampler, 4096, "cuda") as batches:
        for _, batch in zip(range(200), batches, strict=False):
            assert batch.rewards.device.type == "cuda"
            torch.cuda._sleep(1_000_000)
            seen.append(torch.stack([batch.rewards.min(), batch.rewards.max(), batch.observations["speed"].max()]))
        assert batches._held.host.is_pinned()
        assert all(out.rewards.flags.c_contiguous for out in sampler.outs)
    torch.cuda.synchronize()
    assert torch.equal(torch.stack(seen).cpu(), torch.arange(200.0).double()[:, None].expand(200, 3))
