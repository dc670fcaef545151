"""A driver that runs kernels in Numba's simulator, on memory that watches what is done to it."""

import os
import threading
from typing import Any

import numpy as np
from numba import cuda, types

assert os.environ.get("NUMBA_ENABLE_CUDASIM") == "1", "the simulator has to be chosen before Numba is imported"


class Memory:
    """Device memory behind a pointer: nothing outside it is touched, inputs are not written, nothing is there twice."""

    def __init__(self, array: np.ndarray, is_output: bool) -> None:
        self.array, self.is_output = array, is_output
        self.writes = np.zeros(array.size, np.int64)

    def _check(self, i: Any) -> int:
        assert isinstance(i, int | np.integer), f"index {i!r}"
        assert 0 <= i < self.array.size, f"element {i} of {self.array.size}"
        return int(i)

    def __getitem__(self, i: Any) -> Any:
        i = self._check(i)
        assert not self.is_output or self.writes[i], "read before it was written"
        return self.array[i]

    def __setitem__(self, i: Any, value: Any) -> None:
        assert self.is_output, "an input was written"
        i = self._check(i)
        if self.array.dtype.kind == "f":
            assert type(value) is self.array.dtype.type, f"{type(value)} where {self.array.dtype} belongs"
        self.writes[i] += 1
        self.array[i] = value


class Absent:
    """What address 0 points to."""

    def __getitem__(self, i: Any) -> Any:
        raise AssertionError("read where nothing is")

    def __setitem__(self, i: Any, value: Any) -> None:
        raise AssertionError("written where nothing is")


class Simulator:
    """Stands in for `fastac_kernels.cuda.launch.driver`; `place` gives arrays addresses."""

    def __init__(self) -> None:
        self.memory: dict[int, Memory] = {}
        self.launched: list[str] = []
        self.next_address = 4096

    def place(self, array: np.ndarray, is_output: bool) -> int:
        """An address for an array."""
        address, self.next_address = self.next_address, self.next_address + (array.nbytes // 4096 + 1) * 4096
        self.memory[address] = Memory(array, is_output)
        return address

    def _argument(self, kind: Any, value: Any) -> Any:
        if isinstance(kind, types.CPointer):
            if value == 0:
                return Absent()
            memory = self.memory[value]
            assert str(memory.array.dtype) == str(kind.dtype), f"{memory.array.dtype} passed as {kind}"
            return memory
        if kind in (types.float32, types.float64):
            return (np.float32 if kind is types.float32 else np.float64)(value)
        assert isinstance(value, int), f"{value!r} passed as {kind}"
        return value

    def __call__(
        self, kernel: Any, grid: Any, block: Any, stream: int, device: int, arguments: tuple[Any, ...]
    ) -> None:
        assert len(kernel.argument_types) == len(arguments)
        passed = [self._argument(*pair) for pair in zip(kernel.argument_types, arguments, strict=True)]
        self.launched.append(kernel.name)
        cuda.jit(kernel.function)[grid, block](*passed)


def rest_while_waiting() -> None:
    """The simulator asks its threads in a loop whether they still run; here it sleeps until the one asked stops."""
    from numba.cuda.simulator.kernel import BlockThread

    run = BlockThread.run

    def run_and_say(self: Any) -> None:
        try:
            run(self)
        finally:
            self.finished = True
            self.paused.set()

    def is_blocked(self: Any) -> bool:
        return bool(self.__dict__["blocked"])

    def block(self: Any, blocked: bool) -> None:
        if "paused" not in self.__dict__:
            self.paused, self.finished = threading.Event(), False
        self.__dict__["blocked"] = blocked
        if blocked:
            self.paused.set()

    def is_alive(self: Any) -> bool:
        if not self.finished and not self.syncthreads_blocked:
            self.paused.wait()
            self.paused.clear()
        return not self.finished

    BlockThread.run, BlockThread.is_alive = run_and_say, is_alive
    BlockThread.syncthreads_blocked = property(is_blocked, block)
