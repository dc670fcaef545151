"""An update as a CUDA graph: its hundreds of kernels are recorded once, and then launched by one call.

What is captured must be a function of tensors that reads nothing back, draws nothing and leaves its results in place:
parameters, moments, targets. Sampling and noise stay outside. On the CPU there is nothing to capture, and the function
runs on the same static buffers: so tests see what a graph would be given.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from fastac.buffers.transfer import sent

WARM_UP = 3
MOST_GRAPHS = 4


class Prepared(Protocol):
    """What keeps numbers on the device that Python changes: `CapturableAdam` its step size."""

    def prepare(self) -> None:
        """Brings them there."""


class GraphedUpdate:
    """Calls `function`, from the fourth call of a kind on by replaying a CUDA graph.

    Arguments are trees (tuples, named tuples, lists, dicts) whose leaves decide what a call is:

    * Tensors, on the CPU too, are copied into static buffers.
    * Floats become scalar tensors on the device: they may change from call to call.
    * Everything else - None, bools, integers, strings - is a constant. Shapes, dtypes and constants make the kind of
      a call; each kind has a graph of its own. Kinds beyond `max_graphs` run without one: minibatches whose sizes
      change in every rollout.

    The first calls of a kind are real ones, on a stream of their own, as capturing wants it; so the sequence of updates
    is that of the function alone. Results are copies: the next call does not overwrite them.

    Args:
        function: Of tensors, in place, without a look at a value. It is run by Python while being captured only.
        device: Where the static buffers are.
        optimizers: Prepared before each call.
        warm_up: Calls of a kind before it is captured; at least 1.
        max_graphs: How many kinds get a graph.

    Raises:
        RuntimeError: While calling: the function cannot be captured.

    Example:
        >>> total = torch.zeros(2)
        >>> def step(x, scale):
        ...     return total.add_(scale * x).sum()
        >>> update = GraphedUpdate(step, torch.device("cpu"))
        >>> [float(update(torch.ones(2), 0.5)) for _ in range(3)]
        [1.0, 2.0, 3.0]
    """

    def __init__(
        self,
        function: Callable[..., Any],
        device: torch.device,
        *,
        optimizers: Sequence[Prepared] = (),
        warm_up: int = WARM_UP,
        max_graphs: int = MOST_GRAPHS,
    ):
        if warm_up < 1:
            raise ValueError(f"warm_up: got {warm_up}, expected at least 1: a captured kernel has to be loaded before")
        self.function, self.device, self.optimizers = function, device, list(optimizers)
        self.warm_up, self.max_graphs = warm_up, max_graphs
        self._kinds: dict[Hashable, _Kind] = {}

    def __call__(self, *arguments: Any) -> Any:
        """Runs the function once; returns its results."""
        for optimizer in self.optimizers:
            optimizer.prepare()
        signature = _signature(arguments)
        kind = self._kinds.get(signature)
        if kind is None:
            if len(self._kinds) >= self.max_graphs:
                return self.function(*_mapped(arguments, lambda leaf: _placed(leaf, self.device)))
            kind = self._kinds[signature] = _Kind(arguments, self.device)
        kind.load(arguments)
        return kind.run(self.function, self.warm_up)

    def reset(self) -> None:
        """Forgets all graphs: for whoever has put other tensors where the function's were, as loading a state does."""
        self._kinds.clear()


class _Kind:
    """Static buffers, and perhaps a graph that reads them."""

    def __init__(self, arguments: tuple[Any, ...], device: torch.device):
        self.buffers: list[Tensor] = []
        self.numbers: list[float | None] = []
        self.arguments = _mapped(arguments, lambda leaf: self._static(leaf, device))
        self.device, self.runs = device, 0
        self.graph: Any = None
        self.results: Any = None
        self.stream: Any = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def _static(self, leaf: Any, device: torch.device) -> Any:
        if isinstance(leaf, Tensor):
            buffer = torch.empty(leaf.shape, dtype=leaf.dtype, device=device)
        elif isinstance(leaf, float):
            buffer = torch.empty((), device=device)
        else:
            return leaf
        self.buffers.append(buffer)
        self.numbers.append(None)
        return buffer

    def load(self, arguments: tuple[Any, ...]) -> None:
        """Copies a call's tensors and numbers to where the graph reads them."""
        given = [leaf for leaf in _leaves(arguments) if isinstance(leaf, Tensor | float)]
        with torch.no_grad():
            for i, (buffer, leaf) in enumerate(zip(self.buffers, given, strict=True)):
                if isinstance(leaf, Tensor):
                    buffer.copy_(sent(leaf.detach(), self.device))
                elif leaf != self.numbers[i]:
                    buffer.fill_(leaf)
                    self.numbers[i] = leaf

    def run(self, function: Callable[..., Any], warm_up: int) -> Any:
        if self.device.type != "cuda":
            return _mapped(function(*self.arguments), _copied)
        if self.runs < warm_up:
            self.runs += 1
            current = torch.cuda.current_stream(self.device)
            self.stream.wait_stream(current)
            with torch.cuda.stream(self.stream):
                results = function(*self.arguments)
            current.wait_stream(self.stream)
            return results
        if self.graph is None:
            self._capture(function)
        self.graph.replay()
        return _mapped(self.results, _copied)

    def _capture(self, function: Callable[..., Any]) -> None:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self.stream):
                self.results = function(*self.arguments)
        except RuntimeError as error:
            raise RuntimeError(
                f"the update cannot be captured in a CUDA graph ({str(error).splitlines()[0]}); without one: "
                "cudagraphs=False, --no-cudagraphs"
            ) from error
        self.graph = graph


def on_device(
    function: Callable[..., Any],
    device: torch.device,
    *,
    cudagraphs: bool,
    compile: bool,
    optimizers: Sequence[Any] = (),
) -> Callable[..., Any]:
    """Returns `function`, on CUDA as a `GraphedUpdate` if `cudagraphs`, through `torch.compile` if `compile`.

    Args:
        function: As `GraphedUpdate` wants it.
        device: Where its tensors are.
        cudagraphs: Nothing on the CPU.
        compile: By torch's default backend; anywhere.
        optimizers: Those that it steps.
    """
    chosen: Callable[..., Any] = torch.compile(function) if compile else function
    if device.type != "cuda" or not cudagraphs:
        return chosen
    return GraphedUpdate(chosen, device, optimizers=[x for x in optimizers if hasattr(x, "prepare")])


def reset(update: Callable[..., Any]) -> None:
    """Forgets the graphs of what `on_device` returned, if it has any."""
    if isinstance(update, GraphedUpdate):
        update.reset()


def _signature(tree: Any) -> Hashable:
    if isinstance(tree, Tensor):
        return tuple(tree.shape), tree.dtype
    if isinstance(tree, float):
        return float
    if isinstance(tree, dict):
        return tuple((key, _signature(value)) for key, value in tree.items())
    if isinstance(tree, tuple | list):
        return type(tree), tuple([_signature(part) for part in tree])
    return type(tree), tree


def _leaves(tree: Any) -> list[Any]:
    if isinstance(tree, dict):
        return [leaf for part in tree.values() for leaf in _leaves(part)]
    if isinstance(tree, tuple | list):
        return [leaf for part in tree for leaf in _leaves(part)]
    return [tree]


def _mapped(tree: Any, of_leaf: Callable[[Any], Any]) -> Any:
    """A tree of the same structure."""
    if isinstance(tree, dict):
        return {key: _mapped(part, of_leaf) for key, part in tree.items()}
    if isinstance(tree, tuple | list):
        parts = [_mapped(part, of_leaf) for part in tree]
        return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)
    return of_leaf(tree)


def _copied(leaf: Any) -> Any:
    return leaf.detach().clone() if isinstance(leaf, Tensor) else leaf


def _placed(leaf: Any, device: torch.device) -> Any:
    return sent(leaf.detach(), device) if isinstance(leaf, Tensor) else leaf
