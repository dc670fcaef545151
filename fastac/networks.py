"""Networks: MLPs and convolutions, actors for all action spaces, the critic V.

All are ordinary `torch.nn.Module`s.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

import gymnasium
import torch
from torch import Tensor, nn

from fastac.distributions import Categorical, Gaussian, TanhGaussian
from fastac.images import Image, image_of
from fastac.mlp import MLP

Activation = Literal["tanh", "relu"]
Initialization = Literal["orthogonal", "uniform"]
ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU}


def mlp(
    sizes: Sequence[int],
    *,
    activation: Activation = "tanh",
    output_gain: float = 1.0,
    initialization: Initialization = "orthogonal",
    layer_norm: bool = False,
    generator: torch.Generator | None = None,
) -> MLP:
    """Builds a multi-layer perceptron: `Linear`, activation, ..., `Linear`.

    Weights are orthogonal (Saxe et al. 2014) with gain sqrt 2, the last layer's with `output_gain`; biases are 0. Or,
    as `nn.Linear` draws them, both are uniform in +-1 / sqrt(inputs): what the published results of SAC and TD3 began
    with.

    Args:
        sizes: Widths, input first and output last; at least two.
        activation: Between the layers; none after the last.
        output_gain: Gain of the last layer: PPO takes 0.01 for a policy and 1 for a value. Orthogonal weights only.
        initialization: "orthogonal" or "uniform".
        layer_norm: A `LayerNorm` before every activation (Ba et al. 2016); such a network runs layer by layer.
        generator: Where the weights are drawn from; the global generator is never touched.

    Returns:
        An `nn.Sequential` that runs as one operation; its `state_dict` loads into one written by hand.

    Raises:
        ValueError: fewer than two sizes.

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
        layer = uninitialized(nn.Linear(inputs, outputs, device="meta"))
        if initialization == "uniform":
            for parameter in (layer.weight, layer.bias):
                nn.init.uniform_(parameter, -1.0 / math.sqrt(inputs), 1.0 / math.sqrt(inputs), generator=generator)
        else:
            nn.init.orthogonal_(layer.weight, output_gain if last else math.sqrt(2.0), generator=generator)
            nn.init.zeros_(layer.bias)
        layers.append(layer)
        if not last:
            if layer_norm:
                layers.append(nn.LayerNorm(outputs))
            layers.append(ACTIVATIONS[activation]())
    return MLP(*layers)


Layer = TypeVar("Layer", bound=nn.Module)


def uninitialized(layer: Layer) -> Layer:
    """Gives a layer on the meta device memory on the CPU: by itself it would draw from the global generator.

    What `to_empty` does, which imports a second's worth of torch's compiler first.
    """
    for name, parameter in layer.named_parameters():
        setattr(layer, name, nn.Parameter(torch.empty(parameter.shape)))
    return layer


class NatureConvolutions(nn.Module):
    """Features of images: the three convolutions of Mnih et al. 2015 ("Human-level control ...", Methods).

    32 filters of 8 x 8, stride 4; 64 of 4 x 4, stride 2; 64 of 3 x 3, stride 1; a ReLU after each. Pixels are divided
    by 255. Weights are orthogonal with gain sqrt 2, biases 0.

    Args:
        image: How the observations lie in their arrays.
        generator: Where the weights are drawn from.

    Attributes:
        num_features: Width of the output, 3136 for 84 x 84 pixels.

    Example:
        >>> convolutions = NatureConvolutions(Image(4, 84, 84, channels_last=False))
        >>> convolutions(torch.zeros(2, 4, 84, 84, dtype=torch.uint8)).shape
        torch.Size([2, 3136])
    """

    def __init__(self, image: Image, generator: torch.Generator | None = None):
        super().__init__()
        self.image = image
        if generator is None:
            generator = torch.Generator().manual_seed(0)
        layers: list[nn.Module] = []
        channels, sides = image.channels, [image.height, image.width]
        for filters, size, stride in ((32, 8, 4), (64, 4, 2), (64, 3, 1)):
            layer = uninitialized(nn.Conv2d(channels, filters, size, stride, device="meta"))
            nn.init.orthogonal_(layer.weight, math.sqrt(2.0), generator=generator)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
            layers += [layer, nn.ReLU()]
            channels, sides = filters, [(side - size) // stride + 1 for side in sides]
        self.layers = nn.Sequential(*layers, nn.Flatten())
        self.num_features = channels * math.prod(sides)

    def forward(self, observations: Tensor) -> Tensor:
        """Maps images `(B, *shape)`, uint8, to features `(B, num_features)`."""
        if not torch.is_grad_enabled() and len(observations) > IMAGES_AT_A_TIME:
            # A whole rollout at once would take gigabytes of intermediate results.
            return torch.cat([self(part) for part in torch.split(observations, IMAGES_AT_A_TIME)])
        if observations.ndim == 3:
            observations = observations.unsqueeze(1)
        elif self.image.channels_last:
            observations = observations.movedim(-1, 1)
        features: Tensor = self.layers(observations.to(next(self.parameters()).dtype) / 255.0)
        return features


IMAGES_AT_A_TIME = 1024


def make_network(
    observation_space: gymnasium.spaces.Box,
    output_size: int,
    *,
    hidden_sizes: Sequence[int] = (64, 64),
    activation: Activation = "tanh",
    output_gain: float = 1.0,
    initialization: Initialization = "orthogonal",
    generator: torch.Generator | None = None,
) -> nn.Sequential:
    """Builds the network that an observation space asks for: an MLP, for images behind `NatureConvolutions`.

    With `hidden_sizes=(512,)` and `activation="relu"` the latter is the whole network of Mnih et al. 2015.

    Example:
        >>> from gymnasium.spaces import Box
        >>> [type(layer).__name__ for layer in make_network(Box(0, 255, (84, 84, 3), "uint8"), 2)]
        ['NatureConvolutions', 'Linear', 'Tanh', 'Linear', 'Tanh', 'Linear']
    """
    options: dict[str, Any] = {
        "activation": activation, "output_gain": output_gain, "initialization": initialization, "generator": generator
    }  # fmt: skip
    image = image_of(observation_space)
    if image is None:
        return mlp([math.prod(observation_space.shape), *hidden_sizes, output_size], **options)
    convolutions = NatureConvolutions(image, generator)
    return nn.Sequential(convolutions, *mlp([convolutions.num_features, *hidden_sizes, output_size], **options))


class CategoricalActor(nn.Module):
    """pi(a | s) over n discrete actions: a network gives the logits.

    Example:
        >>> actor = CategoricalActor(mlp([4, 8, 2]))
        >>> actor(torch.zeros(3, 4)).log_prob(torch.tensor([0, 1, 0])).shape
        torch.Size([3])
    """

    kind = "categorical"

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, observations: Tensor) -> Categorical:
        """Maps observations `(B, D)` to the distribution of their actions."""
        return Categorical(self.network(observations))


class GaussianActor(nn.Module):
    """pi(a | s) = N(mean(s), diag(exp(log_std))^2): a network gives the mean; log_std does not depend on the state.

    Example:
        >>> actor = GaussianActor(mlp([3, 8, 1]), action_size=1)
        >>> actor(torch.zeros(5, 3)).log_prob(torch.zeros(5, 1)).shape
        torch.Size([5])
    """

    kind = "gaussian"

    def __init__(self, network: nn.Module, action_size: int, initial_log_std: float = 0.0):
        super().__init__()
        self.network = network
        self.log_std = nn.Parameter(torch.full((action_size,), initial_log_std))

    def forward(self, observations: Tensor) -> Gaussian:
        """Maps observations `(B, D)` to the distribution of their raw (unclipped) actions `(B, A)`."""
        return Gaussian(self.network(observations), self.log_std)


LOG_STD_MIN, LOG_STD_MAX = -20.0, 2.0


class TanhGaussianActor(nn.Module):
    """pi(a | s) of `TanhGaussian`, over [-1, 1]^A: a network gives mean and log_std, the latter clamped to [-20, 2].

    Example:
        >>> actor = TanhGaussianActor(mlp([3, 8, 2]))  # one action
        >>> actor(torch.zeros(5, 3)).sample(torch.zeros(5, 1)).shape
        torch.Size([5, 1])
    """

    kind = "tanh_gaussian"

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, observations: Tensor) -> TanhGaussian:
        """Maps observations `(B, *obs)` to the distribution of their actions `(B, A)`."""
        return TanhGaussian.of_outputs(self.network(observations), LOG_STD_MIN, LOG_STD_MAX)


class TanhActor(nn.Module):
    """The deterministic mu(s) = tanh(network(s)), in [-1, 1]^A.

    Example:
        >>> TanhActor(mlp([3, 8, 1]))(torch.zeros(5, 3)).shape
        torch.Size([5, 1])
    """

    kind = "tanh"

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, observations: Tensor) -> Tensor:
        """Maps observations `(B, *obs)` to actions `(B, A)`."""
        return torch.tanh(self.network(observations))


Actor = CategoricalActor | GaussianActor
AnyActor = CategoricalActor | GaussianActor | TanhGaussianActor | TanhActor


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
    options: dict[str, Any] = {"hidden_sizes": hidden_sizes, "activation": activation, "generator": generator}
    if isinstance(action_space, gymnasium.spaces.Discrete):
        return CategoricalActor(make_network(observation_space, int(action_space.n), output_gain=0.01, **options))
    if isinstance(action_space, gymnasium.spaces.Box):
        size = math.prod(action_space.shape)
        return GaussianActor(make_network(observation_space, size, output_gain=0.01, **options), size)
    raise TypeError(f"action_space: got {action_space}, expected Discrete or Box")


def make_tanh_gaussian_actor(
    observation_space: gymnasium.spaces.Box, action_space: gymnasium.Space[Any], **options: Any
) -> TanhGaussianActor:
    """Builds SAC's actor: weights and biases uniform, as `mlp` says.

    Args:
        observation_space: Flat Box, or an image.
        action_space: A bounded Box; actions are in [-1, 1] nevertheless, and scaled where they leave.
        options: `hidden_sizes`, `activation`, `generator`, as for `make_network`.

    Raises:
        TypeError: another action space.
    """
    size = _size_of_box(action_space)
    return TanhGaussianActor(make_network(observation_space, 2 * size, initialization="uniform", **options))


def make_tanh_actor(
    observation_space: gymnasium.spaces.Box, action_space: gymnasium.Space[Any], **options: Any
) -> TanhActor:
    """Builds the actor of TD3 and DDPG; everything as for `make_tanh_gaussian_actor`."""
    size = _size_of_box(action_space)
    return TanhActor(make_network(observation_space, size, initialization="uniform", **options))


def _size_of_box(action_space: gymnasium.Space[Any]) -> int:
    if not isinstance(action_space, gymnasium.spaces.Box):
        raise TypeError(f"action_space: got {action_space}, expected a Box")
    return math.prod(action_space.shape)


ACTORS: dict[str, Callable[..., AnyActor]] = {
    "categorical": make_actor,
    "gaussian": make_actor,
    "tanh_gaussian": make_tanh_gaussian_actor,
    "tanh": make_tanh_actor,
}
"""What builds an actor of each `kind`."""


def make_critic(
    observation_space: gymnasium.spaces.Box,
    *,
    hidden_sizes: Sequence[int] = (64, 64),
    activation: Activation = "tanh",
    generator: torch.Generator | None = None,
) -> nn.Sequential:
    """Builds V: observations `(B, *obs)` to values `(B, 1)`; the last layer's gain is 1.

    Example:
        >>> make_critic(gymnasium.spaces.Box(-1, 1, (4,)))(torch.zeros(3, 4)).shape
        torch.Size([3, 1])
    """
    options: dict[str, Any] = {"hidden_sizes": hidden_sizes, "activation": activation, "generator": generator}
    return make_network(observation_space, 1, output_gain=1.0, **options)
