"""Networks: orthogonally initialised MLPs, a categorical and a Gaussian actor. All are ordinary `torch.nn.Module`s."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, Literal

import gymnasium
import torch
from torch import Tensor, nn

from fastac.distributions import Categorical, Gaussian

Activation = Literal["tanh", "relu"]
ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU}


def mlp(
    sizes: Sequence[int],
    *,
    activation: Activation = "tanh",
    output_gain: float = 1.0,
    generator: torch.Generator | None = None,
) -> nn.Sequential:
    """Builds a multi-layer perceptron: `Linear`, activation, ..., `Linear`.

    Weights are orthogonal (Saxe et al. 2014) with gain sqrt 2, the last layer's with `output_gain`; biases are 0.

    Args:
        sizes: Widths, input first and output last; at least two.
        activation: Between the layers; none after the last.
        output_gain: Gain of the last layer: PPO takes 0.01 for a policy and 1 for a value.
        generator: Where the weights are drawn from; the global generator is never touched.

    Returns:
        An `nn.Sequential`; its `state_dict` loads into one written by hand.

    Example:
        >>> network = mlp([4, 64, 64, 2], output_gain=0.01, generator=torch.Generator().manual_seed(0))
        >>> [layer.__class__.__name__ for layer in network]
        ['Linear', 'Tanh', 'Linear', 'Tanh', 'Linear']
    """
    if len(sizes) < 2:
        raise ValueError(f"sizes: got {list(sizes)}, expected at least an input and an output width")
    if generator is None:
        generator = torch.Generator().manual_seed(0)
    layers: list[nn.Module] = []
    for i, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
        last = i == len(sizes) - 2
        # nn.Linear's own initialisation would draw from the global generator.
        layer = nn.Linear(inputs, outputs, device="meta").to_empty(device="cpu")
        nn.init.orthogonal_(layer.weight, output_gain if last else math.sqrt(2.0), generator=generator)
        nn.init.zeros_(layer.bias)
        layers.append(layer)
        if not last:
            layers.append(ACTIVATIONS[activation]())
    return nn.Sequential(*layers)


class CategoricalActor(nn.Module):
    """pi(a | s) over n discrete actions: an MLP gives the logits.

    Example:
        >>> actor = CategoricalActor(mlp([4, 8, 2]))
        >>> actor(torch.zeros(3, 4)).log_prob(torch.tensor([0, 1, 0])).shape
        torch.Size([3])
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, observations: Tensor) -> Categorical:
        """Maps observations `(B, D)` to the distribution of their actions."""
        return Categorical(self.network(observations))


class GaussianActor(nn.Module):
    """pi(a | s) = N(mean(s), diag(exp(log_std))^2): an MLP gives the mean; log_std does not depend on the state.

    Example:
        >>> actor = GaussianActor(mlp([3, 8, 1]), action_size=1)
        >>> actor(torch.zeros(5, 3)).log_prob(torch.zeros(5, 1)).shape
        torch.Size([5])
    """

    def __init__(self, network: nn.Module, action_size: int, initial_log_std: float = 0.0):
        super().__init__()
        self.network = network
        self.log_std = nn.Parameter(torch.full((action_size,), initial_log_std))

    def forward(self, observations: Tensor) -> Gaussian:
        """Maps observations `(B, D)` to the distribution of their raw (unclipped) actions `(B, A)`."""
        return Gaussian(self.network(observations), self.log_std)


Actor = CategoricalActor | GaussianActor


def make_actor(
    observation_space: gymnasium.spaces.Box,
    action_space: gymnasium.Space[Any],
    *,
    hidden_sizes: Sequence[int] = (64, 64),
    activation: Activation = "tanh",
    generator: torch.Generator | None = None,
) -> Actor:
    """Builds the actor that an action space asks for: categorical for `Discrete`, Gaussian for `Box`.

    Raises:
        TypeError: another action space.
    """
    size = math.prod(observation_space.shape)
    options: dict[str, Any] = {"activation": activation, "output_gain": 0.01, "generator": generator}
    if isinstance(action_space, gymnasium.spaces.Discrete):
        return CategoricalActor(mlp([size, *hidden_sizes, int(action_space.n)], **options))
    if isinstance(action_space, gymnasium.spaces.Box):
        action_size = math.prod(action_space.shape)
        return GaussianActor(mlp([size, *hidden_sizes, action_size], **options), action_size)
    raise TypeError(f"action_space: got {action_space}, expected Discrete or Box")
