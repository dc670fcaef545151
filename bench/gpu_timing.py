"""Timing on a device: contenders in turn, calls back to back between two events, and once more inside a CUDA graph."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

Call = Callable[[], Any]


def compiled(function: Callable[..., Any], backend: str | None) -> Callable[..., Any]:
    """The function through `torch.compile`; None leaves it as it is, for tests of everything but the compiler."""
    return function if backend is None else torch.compile(function, backend=backend, dynamic=False)


class Clock:
    """Seconds between `start` and `stop`, the device's own on CUDA."""

    def __init__(self, device: torch.device):
        self.cuda = device.type == "cuda"
        if self.cuda:
            self.events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]

    def seconds(self, call: Call, count: int) -> float:
        if not self.cuda:
            start = time.perf_counter()
            for _ in range(count):
                call()
            return time.perf_counter() - start
        first, last = self.events
        first.record()
        for _ in range(count):
            call()
        last.record()
        last.synchronize()
        return float(first.elapsed_time(last)) / 1e3


def measure(
    calls: Mapping[str, Call], device: torch.device, *, seconds: float, rounds: int = 5, graphs: bool = True
) -> dict[str, dict[str, Any]]:
    """Microseconds per call of each contender, median over interleaved rounds; what fails is named, not fatal.

    `call_us` has the host's share where that is the longer one; `device_us` is the same call inside a CUDA graph.
    """
    clock, found = Clock(device), {}
    ready: dict[str, tuple[Call, int]] = {}
    for name, call in calls.items():
        try:
            for _ in range(3):
                call()
            once = max(clock.seconds(call, 1), 1e-7)
            if once > 20 * seconds:
                found[name] = {"call_us": once * 1e6, "rounds": 1}
                continue
            ready[name] = call, max(1, int(seconds / rounds / once))
        except Exception as error:
            found[name] = failure(error)
    samples: dict[str, list[float]] = {name: [] for name in ready}
    for _ in range(rounds):
        for name, (call, count) in ready.items():
            samples[name].append(clock.seconds(call, count) / count * 1e6)
    for name, times in samples.items():
        found[name] = {"call_us": round(statistics.median(times), 3), "best_us": round(min(times), 3), "rounds": rounds}
        if clock.cuda and graphs:
            found[name] |= in_graph(ready[name][0], clock, seconds)
    return {name: found[name] for name in calls}


def in_graph(call: Call, clock: Clock, seconds: float, copies: int = 10) -> dict[str, Any]:
    """The device's time of a call, from graphs that hold it many times."""
    try:
        stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            call()
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(graph, stream=stream):
            for _ in range(copies):
                call()
        graph.replay()
        once = max(clock.seconds(graph.replay, 1), 1e-7)
        count = max(1, int(seconds / 5 / once))
        times = [clock.seconds(graph.replay, count) / count / copies * 1e6 for _ in range(5)]
        return {"device_us": round(statistics.median(times), 3)}
    except Exception as error:
        torch.cuda.synchronize()
        return {"device_error": failure(error)["error"]}


def failure(error: Exception) -> dict[str, Any]:
    """What went wrong, in one line."""
    lines = str(error).splitlines()
    return {"error": f"{type(error).__name__}: {lines[0] if lines else ''}"[:200]}


def copy_bandwidth(device: torch.device, size: int) -> float:
    """Bytes read and written per second by a copy of `size` bytes on the device, the best of several."""
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    clock = Clock(device)
    clock.seconds(lambda: target.copy_(source), 3)
    return 2 * size / min(clock.seconds(lambda: target.copy_(source), 5) / 5 for _ in range(5))
