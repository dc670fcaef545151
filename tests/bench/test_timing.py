"""Rounds are whole, counts fit, and ratios are taken per round."""

import math
import time

from bench import timing


def spin(milliseconds: float) -> None:
    end = time.process_time() + milliseconds / 1e3
    while time.process_time() < end:
        pass


def test_every_contender_is_timed_in_every_round() -> None:
    samples = timing.interleave({"a": lambda: spin(0.2), "b": lambda: spin(0.4)}, seconds=0.0, rounds=7)
    assert {name: len(times) for name, times in samples.items()} == {"a": 7, "b": 7}
    ratio = timing.summarise(samples, "a")["b"]["over_a"]
    assert 1.6 < ratio < 2.4


def test_slow_contenders_sit_out_late_rounds() -> None:
    samples = timing.interleave({"slow": lambda: spin(12), "fast": lambda: spin(0.2)}, seconds=0.0, rounds=9)
    assert [math.isnan(time) for time in samples["slow"]] == [False] * timing.SLOW_ROUNDS + [True] * 7
    assert not any(map(math.isnan, samples["fast"]))
    assert 30 < timing.summarise(samples, "fast")["slow"]["over_fast"] < 90


def test_sleep_is_not_counted() -> None:
    """CPU time: what the process does not use is not its own."""
    samples = timing.interleave({"a": lambda: (spin(0.2), time.sleep(0.002))}, seconds=0.0, rounds=5)
    assert timing.summarise(samples, "a")["a"]["median_ns"] < 1e6


def test_ratios_are_medians_over_rounds() -> None:
    samples = {"own": [1.0, 10.0, 100.0], "peer": [2.0, 20.0, 100.0]}
    assert timing.summarise(samples, "own")["peer"]["over_own"] == 2.0
