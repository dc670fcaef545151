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
from fastac.networks import Actor, CategoricalActor
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

    def __init__(self, actor: Actor):
        self._forward = array_forward(actor.network)
        self._log_std = None if isinstance(actor, CategoricalActor) else actor.log_std.detach()
        self._size = list(actor.network.parameters())[-1].shape[0]

    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> NDArray[np.float32]:
        """Returns what `sample` needs for actions of `shape`: `(*shape, n)` Gumbel or `(*shape, A)` normal noise."""
        if self._log_std is None:
            return gumbel((*shape, self._size), generator).numpy()
        return torch.randn((*shape, self._size), generator=generator).numpy()

    def sample(self, observations: NDArray[Any], noise: NDArray[np.float32]) -> NDArray[Any]:
        """Returns raw actions, `(B,)` int64 or `(B, A)` float32, of observations `(B, *obs)` as the actor sees them."""
        outputs = self._forward(observations)
        if self._log_std is not None:
            draw_gaussian(outputs, self._log_std.cpu().numpy(), noise)
            return outputs
        actions = np.empty(len(outputs), np.int64)
        draw_categorical(outputs, noise, actions)
        return actions

    def mode(self, observations: NDArray[Any]) -> NDArray[Any]:
        """Returns the most probable raw actions."""
        outputs = self._forward(observations)
        return np.argmax(outputs, axis=-1) if self._log_std is None else outputs


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
