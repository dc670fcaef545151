"""The adapters: each calls a function written for one library with a `Call`, and brings its results back.

No library of the table is imported here; torch and gymnasium only where a convention cannot do without.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastac.conventions.call import Call, CannotSayError, Flags, Floats, Outputs
from fastac.conventions.pieces import by_environment, fold_truncations, from_environments, starts_from_ends


def _numpy(x: Any) -> Floats:
    return np.asarray(x.detach().cpu().numpy() if hasattr(x, "detach") else x)


def _tensor(x: Any) -> Any:
    import torch

    return torch.from_numpy(np.ascontiguousarray(x))


def _pair(result: Any, names: tuple[str, str], back: Callable[[Any], Floats] = _numpy) -> Outputs:
    """Two outputs by name; anything else than two is the function's fault."""
    first, second = result
    return {names[0]: back(first), names[1]: back(second)}


ONE_FLAG = "one flag for an episode's end: a time limit would be a termination"
# Why rlax's functions have no time limits; those that are missing have a lambda and a next value for each row.
RLAX_TIME_LIMITS = {
    "gae": "one value an observation: none for where a time limit led",
    "discounted_returns": "one discount a row: nothing that cuts without terminating",
    "vtrace": "the next row's value in the advantage: none for where a time limit led",
}
GAE, VTRACE = ("advantages", "returns"), ("targets", "advantages")


def _single(call: Call) -> str:
    """What the one output of an estimator is called."""
    return "targets" if call.estimator == "retrace" else "returns"


def _refuse_missing(function: Callable[..., Any], count: int, call: Call) -> None:
    """Raise for what the function has no argument for; a function that hides its signature is called.

    Raises:
        CannotSayError: It has none.
    """
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return
    kinds = {parameter.kind for parameter in parameters}
    positional = sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)
    needed = count - (2 if call.mask is not None else int(call.truncated is not None))
    if needed <= positional < count and inspect.Parameter.VAR_POSITIONAL not in kinds:
        lacks_truncated = call.truncated is not None and positional == needed
        raise CannotSayError("no argument truncated" if lacks_truncated else "no argument mask")
    keyword = {"batch_first": "batch_first", "packed": "cu_seqlens"}.get(call.layout)
    if keyword and inspect.Parameter.VAR_KEYWORD not in kinds and keyword not in {p.name for p in parameters}:
        raise CannotSayError(f"no argument {keyword}")


def fastac(function: Callable[..., Any], call: Call) -> Outputs:
    """Positional arrays up to the last that the call has, then keywords."""
    arrays: list[Any] = [call.next_values, call.terminated, call.truncated, call.mask]
    while arrays[-1] is None:
        arrays.pop()
    arrays = [call.rewards, *([] if call.estimator == "discounted_returns" else [call.values]), *arrays]
    if call.estimator in ("vtrace", "retrace"):
        arrays.insert(0, call.log_ratios)
    options = dict(call.options)
    _refuse_missing(function, len(arrays), call)
    if call.layout:
        # Short next values, one for each environment, are `(N,)` in every layout.
        arrays = [None if x is None else by_environment(x) if call.layout == "packed" else x.T.copy() for x in arrays]
        length, count = call.rewards.shape
        options |= (
            {"batch_first": True}
            if call.layout == "batch_first"
            else {"cu_seqlens": np.arange(count + 1, dtype=np.int32) * np.int32(length)}
        )
    if call.tensors:
        arrays = [None if x is None else _tensor(x) for x in arrays]
        options |= {"cu_seqlens": _tensor(options["cu_seqlens"])} if call.layout == "packed" else {}
    result = function(*arrays, **options)

    def back(x: Any) -> Floats:
        array = _numpy(x)
        if call.layout == "packed":
            return from_environments(array, call.rewards)
        return np.transpose(array) if call.layout else array

    if call.estimator in ("gae", "vtrace"):
        return _pair(result, GAE if call.estimator == "gae" else VTRACE, back)
    return {_single(call): back(result)}


def cleanrl(function: Callable[..., Any], call: Call) -> Outputs:
    """CleanRL's loop as a function: flags of the rows that start an episode."""
    call.refuse(time_limits=ONE_FLAG, next_values=True)
    dones, next_done = (x.astype(np.float32) for x in starts_from_ends(call.terminated))
    arrays = [call.rewards, call.values, dones, call.last_values, next_done]
    if call.tensors:
        arrays = [_tensor(x) for x in arrays]
    return _pair(function(*arrays, call.options["gamma"], call.options["gae_lambda"]), GAE)


def sb3(function: Callable[..., Any], call: Call) -> Outputs:
    """A rollout buffer class, filled and finished as `collect_rollouts` does."""
    import torch
    from gymnasium import spaces

    call.refuse(next_values=True)
    gamma, (length, count) = call.options["gamma"], call.rewards.shape
    buffer = function(
        length, spaces.Box(-1.0, 1.0, (1,)), spaces.Discrete(2),
        device="cpu", gamma=gamma, gae_lambda=call.options["gae_lambda"], n_envs=count,
    )  # fmt: skip
    starts, dones = starts_from_ends(call.terminated | call.cut)
    starts[0] = True
    rewards = fold_truncations(call.rewards, call.full_next_values, call.cut, gamma)
    zeros = np.zeros((count, 1), np.float32)
    buffer.reset()
    for t in range(length):
        buffer.add(zeros, zeros, rewards[t], starts[t], torch.from_numpy(call.values[t].copy()), torch.zeros(count))
    buffer.compute_returns_and_advantage(torch.from_numpy(call.last_values.copy()), dones)
    return {"advantages": _numpy(buffer.advantages), "returns": _numpy(buffer.returns)}


def _tianshou_buffer(call: Call) -> tuple[SimpleNamespace, SimpleNamespace, NDArray[np.int64]]:
    """A batch and a buffer with what tianshou's functions read, one environment's rows after the other's."""
    call.refuse()
    rewards, terminated, cut = map(by_environment, (call.rewards.astype(np.float64), call.terminated, call.cut))
    lasts = np.arange(1, call.rewards.shape[1] + 1) * len(call.rewards) - 1
    done = terminated | cut
    unfinished = lasts[~done[lasts]]
    stays = done.copy()
    stays[unfinished] = True
    batch = SimpleNamespace(rew=rewards, terminated=terminated, truncated=cut, done=done)
    # `next` of a row that ends an episode or what is stored is the row itself, as in tianshou's buffers.
    buffer = SimpleNamespace(
        **vars(batch), unfinished_index=lambda: unfinished, next=lambda i: np.where(stays[i], i, i + 1)
    )
    return batch, buffer, np.arange(done.size)


def tianshou_gae(function: Callable[..., Any], call: Call) -> Outputs:
    """`Algorithm.compute_episodic_return`: returns, then advantages."""
    batch, buffer, indices = _tianshou_buffer(call)
    values, next_values = (by_environment(x) for x in (call.values, call.full_next_values))
    result = function(
        batch, buffer, indices, next_values, values, gamma=call.options["gamma"], gae_lambda=call.options["gae_lambda"]
    )
    return _pair(result, (GAE[1], GAE[0]), lambda x: from_environments(_numpy(x), call.rewards))


def tianshou_n_step(function: Callable[..., Any], call: Call) -> Outputs:
    """`Algorithm.compute_nstep_return`: a function for the target's values, `batch.returns` as the result."""
    batch, buffer, indices = _tianshou_buffer(call)
    next_values = by_environment(call.full_next_values)

    class Batch(SimpleNamespace):
        def __len__(self) -> int:
            return int(indices.size)

    result = function(
        Batch(**vars(batch)), buffer, indices, lambda _, i: _tensor(next_values[i]),
        gamma=call.options["gamma"], n_step=call.options["n"],
    )  # fmt: skip
    return {"returns": from_environments(_numpy(result.returns), call.rewards)}


def torchrl(function: Callable[..., Any], call: Call) -> Outputs:
    """The functionals of `torchrl.objectives.value`: tensors `(N, T, 1)`."""
    call.refuse()
    rewards, values, next_values, terminated, done, log_ratios = (
        _tensor(x.T[..., None])
        for x in (call.rewards.astype(call.values.dtype), call.values, call.full_next_values, call.terminated,
                  call.terminated | call.cut, call.log_ratios)
    )  # fmt: skip
    gamma = call.options["gamma"]

    def back(x: Any) -> Floats:
        return _numpy(x)[..., 0].T

    if call.estimator == "gae":
        lmbda = call.options["gae_lambda"]
        return _pair(function(gamma, lmbda, values, next_values, rewards, done, terminated), GAE, back)
    if call.estimator == "discounted_returns":
        return {"returns": back(function(gamma, next_values, rewards, done, terminated))}
    if call.estimator == "lambda_returns":
        return {"returns": back(function(gamma, call.options["td_lambda"], next_values, rewards, done, terminated))}
    call.fixed("trace_lambda is always 1", trace_lambda=1.0)
    call.fixed("one threshold for both uses of rho", pg_rho_clip=call.options["rho_clip"])
    zeros, clips = log_ratios.new_zeros(log_ratios.shape), (call.options["rho_clip"], call.options["c_clip"])
    result = function(gamma, log_ratios, zeros, values, next_values, rewards, done, terminated, *clips)
    return _pair(result, (VTRACE[1], VTRACE[0]), back)


def rlax(function: Callable[..., Any], call: Call) -> Outputs:
    """Column by column, as `vmap` would; float32."""
    reason = RLAX_TIME_LIMITS.get(call.estimator, "")
    call.refuse(time_limits=reason, next_values=bool(reason))
    discounts = np.where(call.terminated, 0, call.options["gamma"]).astype(np.float32)
    # A lambda of 0 where a time limit strikes is how functions with a lambda a row stop there.
    lambda_ = call.options.get("trace_lambda" if call.estimator == "retrace" else "td_lambda", 1.0)
    lambdas = np.where(call.cut, 0, lambda_).astype(np.float32)
    rewards, values, next_values, ratios = (
        np.asarray(x, np.float32) for x in (call.rewards, call.values, call.full_next_values, np.exp(call.log_ratios))
    )
    columns: list[tuple[Floats, ...]] = []
    for e in range(rewards.shape[1]):
        r, d, w, v = rewards[:, e], discounts[:, e], next_values[:, e], values[:, e]
        if call.estimator == "gae":
            advantages = _numpy(function(r, d, call.options["gae_lambda"], np.append(v, w[-1:])))
            columns.append((advantages, advantages + v))
        elif call.estimator == "discounted_returns":
            columns.append((_numpy(function(r, d, float(w[-1]))),))
        elif call.estimator == "lambda_returns":
            columns.append((_numpy(function(r, d, w, lambdas[:, e])),))
        elif call.estimator == "n_step_returns":
            columns.append((_numpy(function(r, d, w, call.options["n"], lambdas[:, e])),))
        elif call.estimator == "retrace":
            # The trace from row t to t + 1 is weighed by row t + 1's ratio.
            log_ratios = np.asarray(call.log_ratios[1:, e], np.float32)
            columns.append((_numpy(function(v, v[1:], w, r, d, log_ratios, lambdas[:-1, e])) + v,))
        else:
            call.fixed("the trace's threshold is always 1", c_clip=1.0)
            clips = call.options["rho_clip"], call.options["pg_rho_clip"]
            result = function(v, w, r, d, ratios[:, e], call.options["trace_lambda"], *clips)
            columns.append((_numpy(result.errors) + v, _numpy(result.pg_advantage)))
    names = GAE if call.estimator == "gae" else VTRACE if call.estimator == "vtrace" else (_single(call),)
    return {name: np.stack(arrays, 1) for name, arrays in zip(names, zip(*columns, strict=True), strict=True)}


def rlox_gae(function: Callable[..., Any], call: Call, *, dones: Flags | None = None) -> Outputs:
    """`compute_gae_batched` as rlox's collector calls it: truncations folded, `dones` = terminated."""
    call.refuse(next_values=True)
    gamma = call.options["gamma"]
    rewards = fold_truncations(call.rewards, call.full_next_values, call.cut, gamma)
    arrays = (by_environment(x).astype(np.float64) for x in (rewards, call.values, call.terminated))
    flat_rewards, values, terminated = arrays
    flags = terminated if dones is None else by_environment(dones).astype(np.float64)
    last, length = call.last_values.astype(np.float64), len(call.rewards)
    result = function(flat_rewards, values, flags, last, length, gamma, call.options["gae_lambda"])
    return _pair(result, GAE, lambda x: from_environments(_numpy(x), call.rewards))


def rlox_folded(function: Callable[..., Any], call: Call) -> Outputs:
    """The same with `dones` = either flag, which is what folding truncations asks for."""
    return rlox_gae(function, call, dones=call.terminated | call.cut)


def rlox_vtrace(function: Callable[..., Any], call: Call) -> Outputs:
    """`compute_vtrace`, one environment at a time."""
    call.refuse(time_limits=ONE_FLAG, next_values=True)
    call.fixed("trace_lambda is always 1", trace_lambda=1.0)
    call.fixed("one threshold for both uses of rho", pg_rho_clip=call.options["rho_clip"])
    clips = (call.options["rho_clip"], call.options["c_clip"])
    columns = []
    for e in range(call.rewards.shape[1]):
        arrays = (np.ascontiguousarray(x[:, e], np.float32)
                  for x in (call.log_ratios, call.rewards, call.values, call.terminated))  # fmt: skip
        columns.append(function(*arrays, float(call.last_values[e]), call.options["gamma"], *clips))
    return {name: np.stack(arrays, 1) for name, arrays in zip(VTRACE, zip(*columns, strict=True), strict=True)}
