"""Chunks of a training that runs on and on: how many steps, how much CPU time, and a stop after each.

A trainer says after every iteration how many steps it has taken. The first chunk, in which things are compiled and
filled, is not counted. After each chunk the trainer waits, so that several of them can take turns: rounds, without
starting, compiling and filling anything anew.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass


class EnoughError(Exception):
    """Raised inside a trainer when nothing more is wanted of it."""


@dataclass(frozen=True)
class Chunk:
    steps: int
    cpu_seconds: float
    wall_seconds: float


class Pace:
    """Called with the number of environment steps so far.

    CPU time is that of the whole process, all threads: what a library computes in the background counts, while the
    trainer waits as well.

    Args:
        seconds: CPU time after which a chunk ends, with the iteration that is running.
        warm_steps: Environment steps before the first counted chunk may begin.
        finished: Called with every chunk, the uncounted one included; the trainer waits until it returns.
    """

    def __init__(self, seconds: float, warm_steps: int, finished: Callable[[Chunk], None]):
        self._seconds, self._warm_steps, self._finished = seconds, warm_steps, finished
        self._step = self._iterations = 0
        self._warming_up = True
        self._cpu, self._wall = time.process_time(), time.perf_counter()

    def __call__(self, step: int) -> None:
        self._iterations += 1
        if self._warming_up and (step < self._warm_steps or self._iterations < 2):
            return
        cpu = time.process_time()
        if cpu - self._cpu < self._seconds:
            return
        chunk = Chunk(step - self._step, cpu - self._cpu, time.perf_counter() - self._wall)
        self._finished(chunk)
        self._warming_up = False
        self._step, self._cpu, self._wall = step, cpu, time.perf_counter()
