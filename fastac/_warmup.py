"""Compile and cache the kernels of estimators, replay and networks, so that no later process waits for the compiler."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from fastac import normalize, ratio, returns, traces
from fastac_kernels import _jit
from fastac_kernels.ratio import importance_ratio_backward_at


def _estimators() -> list[tuple[str, Callable[[], Any]]]:
    """One call for each machine code that the public functions can reach, by name and dtype."""
    calls: list[tuple[str, Callable[[], Any]]] = []
    for dtype, ndim in itertools.product((np.float32, np.float64), (2, 1)):
        shape = (2, 2)[:ndim]
        x, ends = np.zeros(shape, dtype), np.zeros(shape, np.bool_)
        last: Any = np.zeros(2, dtype) if ndim == 2 else 0.0

        def add(name: str, call: Callable[[], Any], dtype: Any = dtype, ndim: int = ndim) -> None:
            calls.append((f"{name} {np.dtype(dtype).name} {ndim}-d", call))

        def full(x: Any = x, ends: Any = ends) -> Any:
            return returns.gae(x, x, x, ends, ends, gamma=0.9, gae_lambda=0.9)

        def short(x: Any = x, last: Any = last, ends: Any = ends) -> Any:
            return returns.gae(x, x, last, ends, gamma=0.9, gae_lambda=0.9)

        def masked(x: Any = x, last: Any = last, ends: Any = ends) -> Any:
            return returns.gae(x, x, last, ends, None, ~ends, gamma=0.9, gae_lambda=0.9)

        def discounted(x: Any = x, last: Any = last, ends: Any = ends) -> Any:
            return returns.discounted_returns(x, last, ends, gamma=0.9)

        def weighted(x: Any = x, last: Any = last, ends: Any = ends) -> Any:
            return returns.lambda_returns(x, x, last, ends, gamma=0.9, td_lambda=0.9)

        def n_step(x: Any = x, ends: Any = ends) -> Any:
            return returns.n_step_returns(x, x, x, ends, ends, n=2, gamma=0.9)

        def vtrace(x: Any = x, ends: Any = ends) -> Any:
            return traces.vtrace(x, x, x, x, ends, gamma=0.9)

        def retrace(x: Any = x, ends: Any = ends) -> Any:
            return traces.retrace(x, x, x, x, ends, gamma=0.9, trace_lambda=0.9)

        add("gae, full next values", full)
        add("gae, short next values", short)
        add("gae, masked", masked)
        add("discounted_returns", discounted)
        add("lambda_returns", weighted)
        add("n_step_returns", n_step)
        add("vtrace", vtrace)
        add("retrace", retrace)

        def loss(x: Any = x) -> Any:
            return ratio.ppo_clip_loss(x, x, x, clip_coef=0.2)

        def masked_loss(x: Any = x, ends: Any = ends) -> Any:
            return ratio.ppo_clip_loss(x, x, x, mask=~ends, clip_coef=0.2)

        def products(x: Any = x) -> Any:
            return ratio.importance_ratio(x, x, cumulative=True)

        def products_backward(x: Any = x) -> Any:
            at, like = x.ctypes.data, x.dtype.type(0)  # zeros: the output's memory may be the inputs'
            return importance_ratio_backward_at(at, at, 0, 0, 0, 0, at, x.size, 1, 1, True, like)

        def normalized(x: Any = x) -> Any:
            return normalize.normalize_advantages(x)

        if ndim == 1:
            add("normalize_advantages", normalized)
            add("ppo_clip_loss", loss)
            add("ppo_clip_loss, masked", masked_loss)
            add("importance_ratio", products)
            add("importance_ratio, backward", products_backward)
    return calls


def _replay() -> None:
    """Every kernel of the replay buffers, by small buffers of each kind."""
    from fastac.buffers.prioritized import PrioritizedReplayBuffer
    from fastac.buffers.replay import ReplayBuffer
    from fastac.buffers.sequence import SequenceReplayBuffer
    from fastac_kernels.ring import grow_side, recover

    example: dict[str, Any] = {"observations": np.zeros(2, np.float32), "actions": np.int64(0)}
    uniform = ReplayBuffer.from_example(8, example)
    prioritized = PrioritizedReplayBuffer.from_example(8, example)
    windows = SequenceReplayBuffer.from_example(8, example, length=2)
    chosen = SequenceReplayBuffer.from_example(8, example, length=2, alpha=0.6)
    x, action, no = np.zeros((1, 2), np.float32), np.zeros(1, np.int64), np.zeros(1, np.bool_)
    for _ in range(4):
        for buffer in (uniform, prioritized, windows, chosen):
            buffer.add(x, action, np.ones(1), x, no, no)
    uniform.sample(2), uniform.sample(2, replace=False)
    grow_side(uniform._at, uniform._counters()["side_size"])
    recover(uniform._at)
    for dtype in (np.float32, np.float64):
        prioritized.update_priorities(prioritized.sample(2).indices, np.ones(2, dtype))
    assert prioritized.total_priority > 0  # in a kernel of its own
    prioritized._tree.set([0], [1.0])
    prioritized._tree.draw(1, seed=0, counter=0)
    windows.sample(2), windows.gather([0])
    chosen.update_priorities(chosen.sample(2).indices, np.ones(2))


def _networks() -> None:
    """Every kernel of networks: acting, the losses of both kinds of policy, the optimisers' steps, normalisation."""
    import torch

    from fastac.acting import ArrayActor
    from fastac.fused import fused_a2c_loss
    from fastac.losses import ppo_loss
    from fastac.networks import CategoricalActor, GaussianActor, mlp
    from fastac.normalize import ObservationNormalizer, RewardNormalizer
    from fastac.optim import Adam, RMSprop

    x, noise = torch.zeros(2, 3), np.zeros((2, 2), np.float32)
    row, critic = torch.zeros(2), mlp([3, 4, 1])
    for actor, actions in ((CategoricalActor(mlp([3, 4, 2])), torch.zeros(2, dtype=torch.int64)),
                           (GaussianActor(mlp([3, 4, 2]), 2), torch.zeros(2, 2))):  # fmt: skip
        acting = ArrayActor(actor, critic)
        acting.sample(x.numpy(), noise)
        acting.mode(x.numpy())
        acting.act(x.numpy(), noise)
        parameters = [*actor.parameters(), *critic.parameters()]
        options: dict[str, Any] = {"vf_coef": 0.5, "ent_coef": 0.0}
        for loss, _ in (
            ppo_loss(actor(x), actions, row, row, critic(x), row, row, clip_coef=0.2, **options),
            fused_a2c_loss(actor, critic, x, actions, row, row, **options),
        ):
            loss.backward()  # type: ignore[no-untyped-call]
            for optimizer in (Adam(parameters, max_grad_norm=1.0), RMSprop(parameters)):
                optimizer.step()
    for dtype in (np.float32, np.float64):
        normalizer, observations = ObservationNormalizer((3,)), np.zeros((2, 3), dtype)
        normalizer.update(observations)
        normalizer(observations)
    rewards, ends = np.zeros((2, 2), np.float32), np.zeros((2, 2), np.bool_)
    RewardNormalizer(2, 0.9)(rewards, ends, ~ends)


def _calls() -> list[tuple[str, Callable[[], Any]]]:
    calls = [*_estimators(), ("replay", _replay)]
    if all(importlib.util.find_spec(name) for name in ("torch", "scipy")):
        calls.append(("networks", _networks))
    return calls


def warmup(progress: Callable[[int, int, str], None] | None = None) -> int:
    """Compile kernels and keep the machine code in the cache folder.

    Those of estimators and ratios for float32 and float64, those of replay, and where torch and scipy are there those
    of acting, losses and the optimiser's step.

    Args:
        progress: Called as `progress(done, total, name)` before each step and once at the end.

    Returns:
        How many specialisations are loaded of kernels that Python enters: one for each list of argument types.

    Example:
        >>> from fastac import warmup
        >>> warmup() > 0
        True
    """
    calls = _calls()
    for done, (name, call) in enumerate(calls):
        if progress is not None:
            progress(done, len(calls), name)
        call()
    if progress is not None:
        progress(len(calls), len(calls), "done")
    return _jit.loaded_specialisations()
