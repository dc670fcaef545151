"""Q(s, a): one or several networks on observations and actions side by side, and the targets that follow them."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Generic, TypeVar, cast

import gymnasium
import torch
from torch import Tensor, nn

from fastac.images import image_of
from fastac.networks import Activation, NatureConvolutions, mlp
from fastac.q_losses import minimum

M = TypeVar("M", bound=nn.Module)


class QFunctions(nn.Module):
    """K independent Q(s, a), each an MLP on the observation and the action, side by side in one row.

    Images go through `NatureConvolutions` first, which the K networks share.

    Args:
        networks: One for each Q, from `features + A` inputs to 1 output.
        convolutions: For images; None for flat observations.

    Example:
        >>> space = gymnasium.spaces.Box(-1, 1, (3,))
        >>> q = make_q_functions(space, action_size=2, count=2)
        >>> [values.shape for values in q(torch.zeros(5, 3), torch.zeros(5, 2))]
        [torch.Size([5]), torch.Size([5])]
    """

    def __init__(self, networks: Sequence[nn.Module], convolutions: NatureConvolutions | None = None):
        super().__init__()
        self.convolutions = convolutions
        self.networks = nn.ModuleList(networks)

    def forward(self, observations: Tensor, actions: Tensor) -> tuple[Tensor, ...]:
        """Maps observations `(B, *obs)` and actions `(B, A)` to K values `(B,)` each."""
        inputs = self._inputs(observations, actions)
        return tuple(self._value(network, inputs) for network in self.networks)

    def _inputs(self, observations: Tensor, actions: Tensor) -> Tensor:
        features = observations if self.convolutions is None else self.convolutions(observations)
        return torch.cat([features, actions], dim=1)

    def _value(self, network: nn.Module, inputs: Tensor) -> Tensor:
        return cast(Tensor, network(inputs)).squeeze(1)

    def first(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Returns Q_1(s, a), `(B,)`; the other networks do not run."""
        return self._value(self.networks[0], self._inputs(observations, actions))

    def minimum(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Returns min_k Q_k(s, a), `(B,)` (clipped double Q-learning, Fujimoto et al. 2018, equation 10)."""
        return minimum(self(observations, actions))


def make_q_functions(
    observation_space: gymnasium.spaces.Box,
    action_size: int,
    *,
    count: int,
    hidden_sizes: Sequence[int] = (256, 256),
    activation: Activation = "relu",
    layer_norm: bool = False,
    generator: torch.Generator | None = None,
) -> QFunctions:
    """Builds K Q-functions for continuous actions, their weights and biases uniform as `fastac.networks.mlp` says.

    Args:
        observation_space: Flat Box, or an image.
        action_size: A.
        count: K: two for SAC and TD3, one for DDPG.
        hidden_sizes: Widths of each network's hidden layers.
        activation: Between them.
        layer_norm: A `LayerNorm` before every activation (Hiraoka et al. 2022, figure 1, without its dropout).
        generator: Where the weights are drawn from.

    Returns:
        The networks, on the CPU.
    """
    convolutions = None
    inputs = math.prod(observation_space.shape)
    image = image_of(observation_space)
    if image is not None:
        convolutions = NatureConvolutions(image, generator)
        inputs = convolutions.num_features
    networks = [
        mlp(
            [inputs + action_size, *hidden_sizes, 1],
            activation=activation,
            initialization="uniform",
            layer_norm=layer_norm,
            generator=generator,
        )
        for _ in range(count)
    ]
    return QFunctions(networks, convolutions)


class Target(Generic[M]):
    """A copy of networks that follows them: theta' <- theta' + tau (theta - theta'), Polyak averaging.

    (Lillicrap et al. 2016, algorithm 1, arXiv:1509.02971.)

    Args:
        network: What is followed; the copy begins equal.
        tau: Share of the new parameters, in (0, 1].

    Attributes:
        network: The copy; no gradient reaches its parameters.

    Example:
        >>> layer = nn.Linear(1, 1)
        >>> target = Target(layer, tau=0.25)
        >>> _ = layer.weight.data.copy_(target.network.weight + 4.0)
        >>> target.follow()
        >>> round((layer.weight - target.network.weight).item(), 5)
        3.0
    """

    def __init__(self, network: M, tau: float):
        self.tau = tau
        self.network: M = copy.deepcopy(network).requires_grad_(False)
        self._ours: list[Tensor] = list(self.network.parameters())
        self._theirs: list[Tensor] = list(network.parameters())

    def follow(self) -> None:
        """Takes one step."""
        with torch.no_grad():
            torch._foreach_lerp_(self._ours, self._theirs, self.tau)
