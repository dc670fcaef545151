"""Batches sampled in the background while the learner works on the one before, on the learner's device."""

from __future__ import annotations

import atexit
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar

import torch

from fastac.buffers.transfer import Slot, Transfer, transfer_to

Batch = TypeVar("Batch")
Batch_co = TypeVar("Batch_co", covariant=True)
PATIENCE = 10.0  # seconds for a sampler to return when staging closes


class Sampler(Protocol[Batch_co]):
    """Anything that draws a batch, into `out` where that is given: every replay buffer of this package."""

    def sample(self, batch_size: int, *, out: Any = None) -> Batch_co:
        """Returns a batch of arrays or CPU tensors."""


class Staging(Generic[Batch]):
    """An endless iterator of batches, one of which is always being sampled ahead by a thread.

    There are two preallocated batches. The learner holds one while the thread fills the other; asking for the next
    gives the first one back. **A batch is the learner's until it asks for the next one, and is overwritten then**:
    clone what has to last. On CUDA the thread samples into pinned memory and copies on a stream of its own, in one copy
    a batch; the learner's current stream waits for the copy, and the copy for the learner's stream, so neither Python
    thread waits for the device, and the addresses of the tensors stay the same two. Use the batch on the stream that is
    current when it is asked for and when the next one is.

    Sampling starts when the first batch is asked for. Batches come in the order in which they were sampled: as long as
    nothing is added meanwhile, a seed gives the same batches as calls of `sample`, one after the other. A batch sampled
    ahead does not hold what is added after it; and at most two batches are sampled and never handed out, so the
    sampler's generator may stand that much further when staging ends.

    An error of the sampler is raised in the learner, as the cause of a `RuntimeError`, where the batch would have come.
    The thread ends with `close`, at the end of a `with` block however it is left, when the object is garbage, and when
    the interpreter exits. One learner: a `Staging` is not to be shared between threads.

    Args:
        source: A buffer with `sample(batch_size, out=...)`, or a function of these arguments; further arguments of a
            buffer's go in with `functools.partial(buffer.sample, beta=0.5)`. The first batch is drawn without `out` and
            gives structure, shapes and dtypes. What ignores `out` is copied.
        batch_size: Passed on.
        device: Where the tensors go.

    Raises:
        TypeError: `source` can draw nothing.
        ValueError: `batch_size` is less than 1, or there is no such device.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> def sample(batch_size, out=None):
        ...     return {"rewards": rng.random(batch_size, dtype=np.float32)}
        >>> with Staging(sample, batch_size=4) as batches:
        ...     batch = next(batches)
        ...     batch["rewards"].shape
        ...     first = batch["rewards"].clone()  # `next` overwrites the batch
        ...     bool((next(batches)["rewards"] == first).any())
        torch.Size([4])
        False
    """

    def __init__(
        self, source: Sampler[Batch] | Callable[..., Batch], batch_size: int, device: torch.device | str = "cpu"
    ):
        sample = getattr(source, "sample", source)
        if not callable(sample):
            raise TypeError(f"source: got {type(source).__name__}, expected a buffer with `sample`, or a function")
        if batch_size < 1:
            raise ValueError(f"batch_size: got {batch_size}, expected at least 1")
        self._transfer = transfer_to(device)
        self._pipe: _Pipe[Batch] = _Pipe()
        self._thread = threading.Thread(
            target=_work, args=(self._pipe, sample, batch_size, self._transfer), name="fastac-staging", daemon=True
        )
        self._held: Slot[Batch] | None = None
        # The thread knows the pipe, not this object: so this can become garbage, which stops the thread.
        weakref.finalize(self, self._pipe.stop).atexit = False

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """Returns the next batch; the one before may be overwritten from now on.

        Raises:
            RuntimeError: sampling failed (its error is the cause), or staging is closed.
        """
        pipe = self._pipe
        if pipe.stopped:
            raise RuntimeError("Staging: closed; no further batches")
        if self._thread.ident is None:
            _RUNNING[self._thread] = pipe
            self._thread.start()
        if self._held is not None:
            held, self._held = self._held, None
            self._transfer.release(held)
            pipe.free.put(held)
        if pipe.filled.empty() and not self._thread.is_alive():
            raise RuntimeError("Staging: the sampling thread is gone (it does not survive a fork)")
        slot = pipe.filled.get()
        if isinstance(slot, BaseException):
            self.close()
            raise RuntimeError(f"Staging: sampling failed: {type(slot).__name__}: {slot}") from slot
        self._transfer.receive(slot)
        self._held = slot
        return slot.batch

    def close(self) -> None:
        """Stops sampling and waits for the thread. The last batch stays valid; closing twice does nothing."""
        self._pipe.stop()
        _join(self._thread)
        self._held = None

    def __enter__(self) -> Staging[Batch]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class _Pipe(Generic[Batch]):
    """What learner and thread share. `SimpleQueue.put` may be called by a finaliser at any point of any thread."""

    def __init__(self) -> None:
        self.free: SimpleQueue[Slot[Batch] | None] = SimpleQueue()
        self.filled: SimpleQueue[Slot[Batch] | BaseException] = SimpleQueue()
        self.stopped = False

    def stop(self) -> None:
        self.stopped = True
        self.free.put(None)


def _work(pipe: _Pipe[Batch], sample: Callable[..., Batch], batch_size: int, transfer: Transfer) -> None:
    """The thread: fills free slots until it is stopped, or sampling fails."""
    try:
        try:
            example = sample(batch_size)
            first, second = Slot(example, transfer), Slot(example, transfer)
            first.put(example)
            del example
            pipe.filled.put(first)
            pipe.free.put(second)
            del first, second
            while (slot := pipe.free.get()) is not None and not pipe.stopped:
                slot.fill(sample, batch_size)
                pipe.filled.put(slot)
        finally:
            transfer.finish()  # no memory is given back under a copy
    except BaseException as error:
        pipe.filled.put(error)


_RUNNING: weakref.WeakKeyDictionary[threading.Thread, _Pipe[Any]] = weakref.WeakKeyDictionary()


def _join(thread: threading.Thread) -> None:
    if thread.ident is None or thread is threading.current_thread():
        return
    thread.join(PATIENCE)
    if thread.is_alive():
        message = f"Staging: the sampler has not returned for {PATIENCE:g} s; its thread is left to itself"
        warnings.warn(message, RuntimeWarning, stacklevel=3)


@atexit.register
def _stop_all() -> None:
    """Ends the threads before the interpreter takes their modules away."""
    running = list(_RUNNING.items())
    for _, pipe in running:
        pipe.stop()
    for thread, _ in running:
        _join(thread)
