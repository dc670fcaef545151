"""Acting: from observations to actions in numpy, without a gradient, on the actor's own weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fastac.distributions import gumbel
from fastac.mlp import AVAILABLE, MLP
from fastac.networks import (
    LOG_STD_MAX,
    LOG_STD_MIN,
    AnyActor,
    CategoricalActor,
    GaussianActor,
    TanhActor,
    TanhGaussianActor,
)
from fastac_kernels.acting import draw_categorical, draw_gaussian, forward


class ArrayActor:
    """Draws raw actions from an actor, arrays in and arrays out.

    Only the actor's output is computed here. Log-probabilities and values are cheaper for a whole rollout at once, and
    from the parameters that drew the actions. Noise comes from outside, so that it can be drawn once a rollout.

    Args:
        actor: Its parameters are read at every call (its standard deviations too), so it follows the optimiser.

    Example:
        >>> from fastac.networks import mlp
        >>> generator = torch.Generator().manual_seed(0)
        >>> acting = ArrayActor(CategoricalActor(mlp([4, 8, 2])))
        >>> noise = acting.noise((10, 3), generator)  # ten steps of three environments
        >>> acting.sample(np.zeros((3, 4), np.float32), noise[0]).shape
        (3,)
    """

    def __init__(self, actor: AnyActor):
        self._forward = array_forward(actor.network)
        self._draw, self._mode = _heads(actor)
        outputs = list(actor.network.parameters())[-1].shape[0]
        self._size = outputs // 2 if isinstance(actor, TanhGaussianActor) else outputs
        self._categorical = isinstance(actor, CategoricalActor)

    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> NDArray[np.float32]:
        """Returns what `sample` needs for actions of `shape`: `(*shape, n)` Gumbel or `(*shape, A)` normal noise."""
        if self._categorical:
            return gumbel((*shape, self._size), generator).numpy()
        return torch.randn((*shape, self._size), generator=generator).numpy()

    def sample(self, observations: NDArray[Any], noise: NDArray[np.float32]) -> NDArray[Any]:
        """Returns raw actions, `(B,)` int64 or `(B, A)` float32, of observations `(B, *obs)` as the actor sees them.

        A deterministic actor's are its own, whatever the noise: how it explores is the algorithm's business.
        """
        return self._draw(self._forward(observations), noise)

    def mode(self, observations: NDArray[Any]) -> NDArray[Any]:
        """Returns the most probable raw actions; tanh of the mean where a Gaussian goes through tanh."""
        return self._mode(self._forward(observations))


Draw = Callable[[NDArray[np.float32], NDArray[np.float32]], NDArray[Any]]


def _heads(actor: AnyActor) -> tuple[Draw, Callable[[NDArray[np.float32]], NDArray[Any]]]:
    """How an actor's outputs become draws, and the most probable actions."""
    if isinstance(actor, CategoricalActor):

        def draw_action(outputs: NDArray[np.float32], noise: NDArray[np.float32]) -> NDArray[Any]:
            actions = np.empty(len(outputs), np.int64)
            draw_categorical(outputs, noise, actions)
            return actions

        return draw_action, lambda outputs: np.argmax(outputs, axis=-1)
    if isinstance(actor, GaussianActor):
        log_std = actor.log_std.detach()

        def draw_around(outputs: NDArray[np.float32], noise: NDArray[np.float32]) -> NDArray[Any]:
            draw_gaussian(outputs, log_std.cpu().numpy(), noise)
            return outputs

        return draw_around, lambda outputs: outputs
    if isinstance(actor, TanhActor):
        return lambda outputs, noise: np.tanh(outputs), np.tanh

    def draw_tanh(outputs: NDArray[np.float32], noise: NDArray[np.float32]) -> NDArray[Any]:
        size = outputs.shape[1] // 2
        std = np.exp(np.clip(outputs[:, size:], LOG_STD_MIN, LOG_STD_MAX))
        return np.tanh(outputs[:, :size] + std * noise)

    return draw_tanh, lambda outputs: np.tanh(outputs[:, : outputs.shape[1] // 2])


def array_forward(network: nn.Module) -> Callable[[NDArray[Any]], NDArray[np.float32]]:
    """Returns a function from arrays `(B, *obs)` to float32 arrays that runs `network` without a gradient.

    An `MLP` on the CPU runs in one compiled call on the weights' own memory (a tenth of the time of torch's calls at
    acting sizes), so it follows every optimiser step. Any other module, or one on a GPU, runs in torch. The two agree
    to float32 rounding.

    Example:
        >>> from fastac.networks import mlp
        >>> network = mlp([4, 8, 2])
        >>> array_forward(network)(np.zeros((3, 4), np.float32)).shape
        (3, 2)
    """
    parameter = next(network.parameters())

    def run_torch(observations: NDArray[Any]) -> NDArray[np.float32]:
        with torch.inference_mode():
            outputs: Tensor = network(torch.from_numpy(observations).to(parameter.device))
            return outputs.cpu().numpy()

    if not isinstance(network, MLP) or not AVAILABLE:
        return run_torch

    def run_kernel(observations: NDArray[Any]) -> NDArray[np.float32]:
        plan = network.plan()
        rows = len(observations)
        if plan is None or rows == 0 or observations.dtype != np.float32 or not observations.flags.c_contiguous:
            return run_torch(observations)
        inputs, columns, hidden, _ = plan.widths
        if observations.shape != (rows, inputs):
            return run_torch(observations)
        outputs = np.empty((rows, columns), np.float32)
        forward(*plan.where, plan.activation, observations, np.empty(rows * hidden, np.float32), outputs)
        return outputs

    return run_kernel
