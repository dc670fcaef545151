"""Acting: from observations to actions in numpy, without a gradient, on the actor's own weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fastac.distributions import gumbel
from fastac.mlp import AVAILABLE, MLP, Plan
from fastac.networks import (
    LOG_STD_MAX,
    LOG_STD_MIN,
    AnyActor,
    CategoricalActor,
    GaussianActor,
    TanhActor,
    TanhGaussianActor,
)
from fastac_kernels.acting import (
    act_categorical,
    act_gaussian,
    draw_categorical,
    draw_gaussian,
    evaluate_categorical,
    evaluate_gaussian,
    forward,
)

Draw = Callable[[NDArray[Any], NDArray[np.float32]], NDArray[Any]]
FLOAT32 = np.dtype(np.float32)
STOCHASTIC = (CategoricalActor, GaussianActor)


class Acted(NamedTuple):
    """Actions, and what a learner needs to know of them later."""

    actions: NDArray[Any]  # (B,) int64, or raw (B, A) float32
    log_probs: NDArray[np.float32]  # (B,), log pi(a | s)
    values: NDArray[np.float32]  # (B,), V(s)


class ArrayActor:
    """Draws raw actions from an actor, arrays in and arrays out.

    Noise comes from outside, so that it can be drawn once a rollout. Log-probabilities and values are cheaper for a
    whole rollout at once (and from the parameters that drew the actions); who needs them at every step calls `act`.

    A categorical or Gaussian actor whose network is an `MLP` on the CPU acts in one compiled call.

    Args:
        actor: Its parameters are read at every call (its standard deviations too), so it follows the optimiser.
        critic: V, `(B, *obs)` to `(B, 1)`, for `act`.

    Example:
        >>> from fastac.networks import mlp
        >>> generator = torch.Generator().manual_seed(0)
        >>> acting = ArrayActor(CategoricalActor(mlp([4, 8, 2])))
        >>> noise = acting.noise((10, 3), generator)  # ten steps of three environments
        >>> acting.sample(np.zeros((3, 4), np.float32), noise[0]).shape
        (3,)
    """

    def __init__(self, actor: AnyActor, critic: nn.Module | None = None):
        self._actor, self._critic = actor, critic
        self._compiled: tuple[Plan, Draw] | None = None
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
        return self.sampler()(observations, noise)

    def sampler(self) -> Draw:
        """Returns `sample` without its look at where the parameters are: for as long as they only change in place."""
        actor = self._actor
        plan = _plan(actor.network) if isinstance(actor, STOCHASTIC) else None
        if plan is None:
            return self._sample_apart
        if self._compiled is None or self._compiled[0] is not plan or isinstance(actor, GaussianActor):
            self._compiled = plan, self._compile(plan)
        return self._compiled[1]

    def _sample_apart(self, observations: NDArray[Any], noise: NDArray[np.float32]) -> NDArray[Any]:
        return self._draw(self._forward(observations), noise)

    def _compile(self, plan: Plan) -> Draw:
        network, (inputs, count, hidden, _) = (*plan.where, plan.activation), plan.widths
        actor = self._actor
        if isinstance(actor, CategoricalActor):

            def draw(observations: NDArray[Any], noise: NDArray[np.float32]) -> NDArray[Any]:
                rows = len(observations)
                if not fits(observations, (rows, inputs)) or not fits(noise, (rows, count)):
                    return self._sample_apart(observations, noise)
                room, logits = np.empty(rows * hidden, FLOAT32), np.empty((rows, count), FLOAT32)
                actions = np.empty(rows, np.int64)
                act_categorical(*network, observations, noise, room, logits, actions)
                return actions

            return draw
        assert isinstance(actor, GaussianActor)
        log_stds = actor.log_std.detach().numpy()

        def draw_around(observations: NDArray[Any], noise: NDArray[np.float32]) -> NDArray[Any]:
            rows = len(observations)
            if not fits(observations, (rows, inputs)) or not fits(noise, (rows, count)):
                return self._sample_apart(observations, noise)
            actions = np.empty((rows, count), FLOAT32)
            act_gaussian(*network, observations, noise, np.empty(rows * hidden, FLOAT32), actions, log_stds)
            return actions

        return draw_around

    def act(self, observations: NDArray[Any], noise: NDArray[np.float32]) -> Acted:
        """Returns raw actions as `sample` does, their log-probabilities, and the values of the observations.

        Raises:
            TypeError: there is no critic, or the actor is neither categorical nor Gaussian.

        Example:
            >>> from fastac.networks import mlp
            >>> acting = ArrayActor(CategoricalActor(mlp([4, 8, 2])), mlp([4, 8, 1]))
            >>> acting.act(np.zeros((3, 4), np.float32), np.zeros((3, 2), np.float32)).values
            array([0., 0., 0.], dtype=float32)
        """
        return self.evaluator()(observations, noise)

    def evaluator(self) -> Callable[[NDArray[Any], NDArray[np.float32]], Acted]:
        """Returns `act` as `sampler` returns `sample`: 4 us instead of 11 for four observations."""
        actor, critic = self._actor, self._critic
        if critic is None or not isinstance(actor, STOCHASTIC):
            raise TypeError("act: needs a critic and a categorical or Gaussian actor")
        of_actor, of_critic = _plan(actor.network), _plan(critic)
        if of_actor is None or of_critic is None or of_critic.widths[:2] != (of_actor.widths[0], 1):
            return self._act_in_torch
        inputs, count, hidden, _ = of_actor.widths
        hidden = max(hidden, of_critic.widths[2])
        network, other = (*of_actor.where, of_actor.activation), (*of_critic.where[1:], of_critic.activation)
        log_stds = actor.log_std.detach().numpy() if isinstance(actor, GaussianActor) else None

        def act(observations: NDArray[Any], noise: NDArray[np.float32]) -> Acted:
            rows = len(observations)
            if not fits(observations, (rows, inputs)) or not fits(noise, (rows, count)):
                return self._act_in_torch(observations, noise)
            room, outputs = np.empty(rows * hidden, FLOAT32), np.empty((rows, count), FLOAT32)
            log_probs, values = np.empty(rows, FLOAT32), np.empty(rows, FLOAT32)
            if log_stds is not None:
                evaluate_gaussian(
                    *network, observations, noise, room, outputs, log_stds, *other, log_probs, values
                )  # fmt: skip
                return Acted(outputs, log_probs, values)
            actions = np.empty(rows, np.int64)
            evaluate_categorical(*network, observations, noise, room, outputs, actions, *other, log_probs, values)
            return Acted(actions, log_probs, values)

        return act

    @torch.inference_mode()
    def _act_in_torch(self, observations: NDArray[Any], noise: NDArray[np.float32]) -> Acted:
        assert self._critic is not None
        device = next(self._critic.parameters()).device
        x = torch.from_numpy(np.ascontiguousarray(observations)).to(device)
        distribution: Any = self._actor(x)
        actions = distribution.sample(torch.from_numpy(np.ascontiguousarray(noise)).to(device))
        found = actions, distribution.log_prob(actions), self._critic(x).squeeze(-1)
        return Acted(*(tensor.cpu().numpy() for tensor in found))

    def mode(self, observations: NDArray[Any]) -> NDArray[Any]:
        """Returns the most probable raw actions; tanh of the mean where a Gaussian goes through tanh."""
        return self._mode(self._forward(observations))


def _plan(network: nn.Module) -> Plan | None:
    """What kernels need to know of a network, as it is now; None where they cannot run it."""
    return network.plan() if type(network) is MLP and AVAILABLE else None


def fits(x: NDArray[Any], shape: tuple[int, int]) -> bool:
    """Whether kernels can take it: C-contiguous float32 of that shape, not empty."""
    return x.dtype is FLOAT32 and x.shape == shape and x.flags.c_contiguous and shape[0] > 0


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
