"""Interleaved timing: the machine's noise falls on every contender of a round alike, and ratios are taken per round.

Times are CPU time of the whole process, so that what other programs take from the core is left out; on one core and one
thread that is the wall clock's time otherwise.
"""

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

# Calls are repeated within a sample until it takes about SAMPLE_NS, and at least CALLS times: after another contender
# one call is not enough to bring megabytes back into the cache.
SAMPLE_NS = 500_000
CALLS = 3
# Slower calls are timed singly, and in few rounds.
SLOW_NS = 10_000_000
SLOW_ROUNDS = 2


def repeats(call: Callable[[], Any]) -> int:
    """How many calls make a sample; the call is warm afterwards."""
    call()
    start, count = time.process_time_ns(), 0
    while (elapsed := time.process_time_ns() - start) < SAMPLE_NS:
        call()
        count += 1
    return max(CALLS, round(count * SAMPLE_NS / elapsed)) if elapsed < SLOW_NS * count else 1


def interleave(calls: Mapping[str, Callable[[], Any]], *, seconds: float, rounds: int = 15) -> dict[str, list[float]]:
    """CPU nanoseconds per call, one figure a round, of each contender.

    In a round each is timed in turn, after as many untimed calls, which bring its own data back into the cache; the
    first of a round changes from round to round. At least `rounds` rounds, more until `seconds` have passed; contenders
    slower than 10 ms a call sit out all but the first two, with NaN for the rest.
    """
    counts = {name: repeats(call) for name, call in calls.items()}
    order = list(calls)
    samples: dict[str, list[float]] = {name: [] for name in order}
    end = time.perf_counter() + seconds
    gc.collect()
    gc.disable()
    try:
        while len(samples[order[0]]) < rounds or time.perf_counter() < end:
            for name in order:
                call, count = calls[name], counts[name]
                if len(samples[name]) >= SLOW_ROUNDS and samples[name][0] > SLOW_NS:
                    samples[name].append(math.nan)
                    continue
                for _ in range(count):
                    call()
                start = time.process_time_ns()
                for _ in range(count):
                    call()
                samples[name].append((time.process_time_ns() - start) / count)
            order.append(order.pop(0))
    finally:
        gc.enable()
    return samples


def summarise(samples: Mapping[str, list[float]], base: str) -> dict[str, dict[str, float]]:
    """Median and quartiles in nanoseconds, and the median over rounds of each contender's time over the base's."""
    summary = {}
    for name, times in samples.items():
        low, median, high = statistics.quantiles([time for time in times if not math.isnan(time)], n=4)
        ratios = (time / own for time, own in zip(times, samples[base], strict=True))
        ratio = statistics.median(ratio for ratio in ratios if not math.isnan(ratio))
        summary[name] = {
            "median_ns": round(median, 1),
            "low_ns": round(low, 1),
            "high_ns": round(high, 1),
            f"over_{base}": round(ratio, 3),
        }
    return summary
