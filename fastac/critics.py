"""Several value functions trained side by side: as many independent fits in one pass as there are batches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastac.networks import ACTIVATIONS, Activation, mlp

__all__ = ["MLPCritics", "TableCritics"]


class TableCritics(nn.Module):
    """R tables of a value for each of S states, all 0 at first.

    Example:
        >>> critics = TableCritics(2, 5)
        >>> critics(torch.zeros(2, 7, dtype=torch.int64)).shape
        torch.Size([2, 7])
    """

    def __init__(self, count: int, num_states: int):
        super().__init__()
        self.values = nn.Parameter(torch.zeros(count, num_states, dtype=torch.float64))

    def forward(self, states: Tensor) -> Tensor:
        """Maps states `(R, B)`, row r for critic r, to their values `(R, B)`."""
        return self.values.gather(1, states)


class MLPCritics(nn.Module):
    """R multi-layer perceptrons of one shape, each with weights of its own, in float64.

    Args:
        count: R.
        sizes: Widths, the observation's first; an output of width 1 is added.
        activation: Between the layers.
        generator: Where the weights are drawn from, as `fastac.networks.mlp` draws them.

    Example:
        >>> critics = MLPCritics(2, [4, 8], generator=torch.Generator().manual_seed(0))
        >>> critics(torch.zeros(2, 7, 4, dtype=torch.float64)).shape
        torch.Size([2, 7])
    """

    def __init__(
        self, count: int, sizes: Sequence[int], *, activation: Activation = "tanh", generator: torch.Generator
    ):
        super().__init__()
        networks = [mlp([*sizes, 1], activation=activation, generator=generator) for _ in range(count)]
        parameters = zip(*(network.parameters() for network in networks), strict=True)
        # Weights (R, inputs, outputs) and biases (R, 1, outputs), in turn.
        self.weights = nn.ParameterList(
            torch.stack([p.detach().T if p.ndim == 2 else p.detach()[None] for p in same]).double()
            for same in parameters
        )
        self.activation = ACTIVATIONS[activation]()

    def forward(self, observations: Tensor) -> Tensor:
        """Maps observations `(R, B, D)`, row r for critic r, to their values `(R, B)`."""
        x = observations
        parameters = list(self.weights)
        for i in range(0, len(parameters), 2):
            weight, bias = parameters[i : i + 2]
            x = torch.baddbmm(bias, x if i == 0 else self.activation(x), weight)
        return x.squeeze(-1)
