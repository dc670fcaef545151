"""Preallocated batches and their way to the learner's device: plain copies, or pinned memory and a stream on CUDA.

A slot is one block of host memory, carved into a batch's fields, and one block of the same layout on the device: a
batch travels in a single copy. What touches CUDA are the small functions at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

Batch = TypeVar("Batch")
ALIGNMENT = 64  # bytes: a cache line, and enough for every dtype


class Slot(Generic[Batch]):
    """Room for one batch: `out` is what a sampler fills, `batch` the same as tensors on the device.

    Args:
        example: A batch of the sampler's, whose structure, shapes and dtypes are kept: arrays or CPU tensors in named
            tuples, tuples, lists and dicts; None stays None.
        transfer: Where the memory comes from.
    """

    def __init__(self, example: Batch, transfer: Transfer):
        size = sum(_aligned(leaf.nbytes) for _, leaf in leaves(example))
        self.transfer = transfer
        self.host, self.block = transfer.allocate(size)
        self.ready: Any = None
        self.released: Any = None
        self.out: Batch = _carve(self.host, example, like_example=True)
        self.batch: Batch = _carve(self.block, example, like_example=False)
        transfer.prepare(self)

    def fill(self, sample: Callable[..., Batch], batch_size: int) -> None:
        """Draws a batch into the host's memory and sends it on its way."""
        self.transfer.reuse(self)
        self.put(sample(batch_size, out=self.out))

    def put(self, batch: Batch) -> None:
        """Sends a batch, copied first where it does not lie in `out` already."""
        if batch is not self.out:
            _copy_leaves(self.out, batch)
        self.transfer.upload(self)


class Transfer(Protocol):
    """What a slot asks of a device. `receive` and `release` are called by the learner, the rest by the worker."""

    def allocate(self, size: int) -> tuple[Tensor, Tensor]:
        """Returns `size` bytes on the host, and on the device."""

    def prepare(self, slot: Slot[Any]) -> None:
        """Gives a new slot what it needs beside memory."""

    def reuse(self, slot: Slot[Any]) -> None:
        """Waits until the slot's host memory may be written again."""

    def upload(self, slot: Slot[Any]) -> None:
        """Starts the copy from the host to the device, behind what the learner still does with the slot."""

    def receive(self, slot: Slot[Any]) -> None:
        """Lets the learner's further work wait for that copy."""

    def release(self, slot: Slot[Any]) -> None:
        """Lets the slot's next copy wait for the work that the learner has started."""

    def finish(self) -> None:
        """Waits for all copies."""


class PlainTransfer:
    """For the CPU, where the batch is the very memory that the sampler fills; other devices get a blocking copy."""

    def __init__(self, device: torch.device):
        self.device = device

    def allocate(self, size: int) -> tuple[Tensor, Tensor]:
        """Returns one block twice, or one block and its copy on the device."""
        host = torch.empty(size, dtype=torch.uint8)
        return host, host.to(self.device)

    def upload(self, slot: Slot[Any]) -> None:
        """Copies, where there is anything to copy."""
        if slot.block is not slot.host:
            slot.block.copy_(slot.host)

    def prepare(self, slot: Slot[Any]) -> None:
        """Nothing."""

    reuse = receive = release = prepare

    def finish(self) -> None:
        """Nothing: copies block."""


class CudaTransfer:
    """Pinned memory, and copies on a stream of their own, ordered by two events a slot.

    The host never waits for the learner's kernels: `upload` puts the wait for them on the copying stream.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.stream = new_stream(device)
        # Freed blocks go back to the stream that they were allocated on, so that one is the learner's.
        self.home = current_stream(device)

    def allocate(self, size: int) -> tuple[Tensor, Tensor]:
        """Returns pinned memory and device memory that nobody's earlier work still uses."""
        with on_stream(self.home):
            block = device_block(size, self.device)
        self.stream.wait_stream(self.home)
        return pinned_block(size), block

    def prepare(self, slot: Slot[Any]) -> None:
        """Two events: the copy has arrived; the learner is done."""
        slot.ready, slot.released = new_event(), new_event()

    def reuse(self, slot: Slot[Any]) -> None:
        """Waits for the copy out of the host's memory."""
        slot.ready.synchronize()

    def upload(self, slot: Slot[Any]) -> None:
        """Queues wait, copy and event on the copying stream."""
        with on_stream(self.stream):
            self.stream.wait_event(slot.released)
            copy_block(slot.block, slot.host)
            slot.ready.record(self.stream)

    def receive(self, slot: Slot[Any]) -> None:
        """Queues the wait on the learner's current stream."""
        stream = current_stream(self.device)
        stream.wait_event(slot.ready)
        if stream != self.home:
            slot.block.record_stream(stream)

    def release(self, slot: Slot[Any]) -> None:
        """Marks how far the learner's current stream has to come."""
        slot.released.record(current_stream(self.device))

    def finish(self) -> None:
        """Waits for the copying stream."""
        self.stream.synchronize()


def transfer_to(device: torch.device | str) -> Transfer:
    """Returns the way to a device.

    Raises:
        ValueError: there is no such device here.
    """
    target = checked_device(device)
    return CudaTransfer(target) if target.type == "cuda" else PlainTransfer(target)


def checked_device(device: torch.device | str) -> torch.device:
    """Returns the device, on CUDA with its number: the current one belongs to a thread, and a worker is another.

    Raises:
        ValueError: there is no such device here.
    """
    target = torch.device(device)
    if target.type != "cuda":
        return target
    if not torch.cuda.is_available():
        raise ValueError(f"device: got {str(device)!r}, but PyTorch finds no CUDA device here")
    return torch.device("cuda", torch.cuda.current_device()) if target.index is None else target


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """Returns a tensor on the device without waiting for it: through pinned memory that lives as long as the copy."""
    if tensor.device == device or device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def leaves(batch: Any, path: str = "batch") -> Iterator[tuple[str, Any]]:
    """Yields the arrays and tensors of a batch with their places in it.

    Raises:
        TypeError: something in it is neither.
    """
    if batch is None:
        return
    if isinstance(batch, np.ndarray | Tensor):
        if isinstance(batch, Tensor) and batch.device.type != "cpu":
            raise TypeError(f"{path}: got a tensor on {batch.device}, expected arrays or tensors on the CPU")
        yield path, batch
    elif isinstance(batch, dict):
        for key, value in batch.items():
            yield from leaves(value, f"{path}[{key!r}]")
    elif isinstance(batch, tuple | list):
        names = getattr(batch, "_fields", None)
        for number, value in enumerate(batch):
            yield from leaves(value, f"{path}.{names[number]}" if names else f"{path}[{number}]")
    else:
        raise TypeError(f"{path}: got {type(batch).__name__}, expected an array, a tensor, or a tuple, list or dict")


def _carve(block: Tensor, example: Any, *, like_example: bool) -> Any:
    """A batch like the example inside the block; arrays become tensors unless they are to stay what they are."""
    offset = 0

    def view(leaf: Any) -> Any:
        nonlocal offset
        is_array = isinstance(leaf, np.ndarray)
        dtype = torch.from_numpy(np.empty(0, leaf.dtype)).dtype if is_array else leaf.dtype
        tensor = block[offset : offset + leaf.nbytes].view(dtype).view(leaf.shape)
        offset += _aligned(leaf.nbytes)
        return tensor.numpy() if is_array and like_example else tensor

    def rebuilt(part: Any) -> Any:
        if part is None:
            return None
        if isinstance(part, dict):
            return {key: rebuilt(value) for key, value in part.items()}
        if isinstance(part, tuple | list):
            values = [rebuilt(value) for value in part]
            return type(part)(*values) if hasattr(part, "_fields") else type(part)(values)
        return view(part)

    return rebuilt(example)


def _copy_leaves(into: Any, batch: Any) -> None:
    """Copies what does not lie there already, after a look at every place, shape and dtype."""
    targets, sources = dict(leaves(into)), dict(leaves(batch))
    if list(targets) != list(sources):
        raise ValueError(f"batch: got {list(sources)}, expected {list(targets)} as in the first batch")
    for path, target in targets.items():
        leaf = sources[path]
        if leaf is target:
            continue
        if leaf.shape != target.shape or leaf.dtype != target.dtype:
            expected = f"{tuple(target.shape)} {target.dtype} as in the first batch"
            raise ValueError(f"{path}: got {tuple(leaf.shape)} {leaf.dtype}, expected {expected}")
        target[...] = leaf


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def pinned_block(size: int) -> Tensor:
    """Page-locked bytes."""
    return torch.empty(size, dtype=torch.uint8, pin_memory=True)


def device_block(size: int, device: torch.device) -> Tensor:
    """Bytes on the device, of its current stream."""
    return torch.empty(size, dtype=torch.uint8, device=device)


def new_stream(device: torch.device) -> Any:
    """A stream that copies beside the learner's kernels."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def current_stream(device: torch.device) -> Any:
    """The calling thread's current stream."""
    return torch.cuda.current_stream(device)


def on_stream(stream: Any) -> AbstractContextManager[Any]:
    """Makes the stream, and its device, the calling thread's current ones."""
    return torch.cuda.stream(stream)


def new_event() -> Any:
    """An event that times nothing."""
    return torch.cuda.Event()  # type: ignore[no-untyped-call]


def copy_block(block: Tensor, host: Tensor) -> None:
    """Queues a copy on the current stream."""
    block.copy_(host, non_blocking=True)
