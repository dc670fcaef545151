"""Plain references: one float64 loop per kernel, over one sequence, written from the contract.

Everything here works on one sequence (one environment, one episode after another) so that the time step is the only
index. Arguments are anything that can be indexed, one entry per row; `next_values` is either such a sequence (full: one
value per row) or a number (short: the value after the last row, the rows before it take the next row's value).
A flag is set when it is not 0. Nothing is read that the contract says is not read.

    s_t  --reward r_t-->  s_{t+1}        V_t = values[t]        q_t = next_values[t] = V(s_{t+1})
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Array = np.ndarray
Row = Any  # anything indexable by the row


def is_set(flags: Row | None, t: int) -> bool:
    """A flag that was not passed is not set; NaN, being not 0, is."""
    return flags is not None and bool(flags[t] != 0)


def is_valid(mask: Row | None, t: int) -> bool:
    """A row is in time unless the mask says otherwise."""
    return mask is None or bool(mask[t] != 0)


def is_full(next_values: Row) -> bool:
    """Full next values have one entry per row; short ones are a single number."""
    return not np.isscalar(next_values) and getattr(next_values, "ndim", 1) > 0


def next_valid(mask: Row | None, t: int, length: int) -> int | None:
    """The next row that is in time, or None after the last one."""
    return next((u for u in range(t + 1, length) if is_valid(mask, u)), None)


def next_value(values: Row | None, next_values: Row, mask: Row | None, t: int, length: int) -> float:
    """q_t: the row's own entry (full), else the value of the next valid row, else the short value."""
    if is_full(next_values):
        return float(next_values[t])
    u = next_valid(mask, t, length)
    return float(next_values) if u is None else float(values[u])


def gae(
    rewards: Row,
    values: Row,
    next_values: Row,
    terminated: Row | None = None,
    truncated: Row | None = None,
    mask: Row | None = None,
    *,
    gamma: float,
    gae_lambda: float,
) -> tuple[Array, Array]:
    """Generalised advantage estimation (Schulman et al. 2016, equation 16) and the returns A_t + V_t.

    delta_t = r_t + gamma q_t - V_t        (q_t absent at a terminated row)
    A_t     = delta_t + gamma lambda A_{t+1}        (A_{t+1} absent at an episode's end and after the last row)
    """
    length = len(rewards)
    advantages, returns = np.zeros(length), np.zeros(length)
    carry = 0.0
    for t in reversed(range(length)):
        if not is_valid(mask, t):
            continue
        value = float(values[t])
        if is_set(terminated, t):
            advantage = float(rewards[t]) - value
        else:
            advantage = float(rewards[t]) + gamma * next_value(values, next_values, mask, t, length) - value
            if not is_set(truncated, t):
                advantage += gamma * gae_lambda * carry
        advantages[t], returns[t] = advantage, advantage + value
        carry = advantage
    return advantages, returns


def discounted_returns(
    rewards: Row,
    next_values: Row,
    terminated: Row | None = None,
    truncated: Row | None = None,
    mask: Row | None = None,
    *,
    gamma: float,
) -> Array:
    """Reward-to-go: G_t = r_t + gamma G_{t+1} (Sutton and Barto 2018, equation 3.9).

    G_{t+1} is q_t at a truncated row and at the last one, and absent at a terminated one.
    """
    length = len(rewards)
    returns = np.zeros(length)
    carry = None  # None: no later row yet
    for t in reversed(range(length)):
        if not is_valid(mask, t):
            continue
        result = float(rewards[t])
        if not is_set(terminated, t):
            if carry is None or is_set(truncated, t):
                result += gamma * float(next_values[t] if is_full(next_values) else next_values)
            else:
                result += gamma * carry
        returns[t] = carry = result
    return returns


def n_step_returns(
    rewards: Row,
    values: Row | None,
    next_values: Row,
    terminated: Row | None = None,
    truncated: Row | None = None,
    mask: Row | None = None,
    *,
    n: int,
    gamma: float,
) -> Array:
    """n-step return (Sutton and Barto 2018, equation 7.1): sum_{k<m} gamma^k r_{t+k} + gamma^m q_{t+m-1}.

    m is n, or fewer where the episode or the window ends before; q is absent if that last row is terminated.
    Only valid rows count.
    """
    length = len(rewards)
    returns = np.zeros(length)
    for t in range(length):
        if not is_valid(mask, t):
            continue
        total, discount, u = float(rewards[t]), gamma, t
        for _ in range(n - 1):
            after = next_valid(mask, u, length)
            if after is None or is_set(terminated, u) or is_set(truncated, u):
                break
            u = after
            total += discount * float(rewards[u])
            discount *= gamma
        if not is_set(terminated, u):
            total += discount * next_value(values, next_values, mask, u, length)
        returns[t] = total
    return returns


def lambda_returns(
    rewards: Row,
    values: Row | None,
    next_values: Row,
    terminated: Row | None = None,
    truncated: Row | None = None,
    mask: Row | None = None,
    *,
    gamma: float,
    td_lambda: float,
) -> Array:
    """TD(lambda) return (Sutton and Barto 2018, equation 12.18): G_t = r_t + gamma [(1 - lambda) q_t + lambda G_{t+1}].

    At a truncated row and at the last one the bracket is q_t; at a terminated one it is absent.
    """
    length = len(rewards)
    returns = np.zeros(length)
    carry = None
    for t in reversed(range(length)):
        if not is_valid(mask, t):
            continue
        result = float(rewards[t])
        if not is_set(terminated, t):
            future = next_value(values, next_values, mask, t, length)
            if carry is not None and not is_set(truncated, t):
                future = (1 - td_lambda) * future + td_lambda * carry
            result += gamma * future
        returns[t] = carry = result
    return returns


def vtrace(
    log_ratios: Row,
    rewards: Row,
    values: Row,
    next_values: Row,
    terminated: Row | None = None,
    truncated: Row | None = None,
    mask: Row | None = None,
    *,
    gamma: float,
    trace_lambda: float = 1.0,
    rho_clip: float = 1.0,
    c_clip: float = 1.0,
    pg_rho_clip: float = 1.0,
) -> tuple[Array, Array]:
    """V-trace (Espeholt et al. 2018, remark 1): targets vs_t and the policy gradient's advantages.

    vs_t = V_t + min(rho_clip, rho_t) (r_t + gamma q_t - V_t) + gamma lambda min(c_clip, rho_t) (vs_u - V_u)
    A_t  = min(pg_rho_clip, rho_t) (r_t + gamma [lambda vs_u + (1 - lambda) q_t] - V_t)

    with u the next row. At a truncated row and at the last one the term with u is absent and the bracket is q_t; at a
    terminated one q_t and the bracket are absent, too.
    """
    length = len(rewards)
    targets, advantages = np.zeros(length), np.zeros(length)
    for t in reversed(range(length)):
        if not is_valid(mask, t):
            continue
        rho, value = np.exp(float(log_ratios[t])), float(values[t])
        u = next_valid(mask, t, length)
        delta = improved = float(rewards[t]) - value
        correction = 0.0
        if not is_set(terminated, t):
            future = next_value(values, next_values, mask, t, length)
            delta += gamma * future
            if u is not None and not is_set(truncated, t):
                correction = gamma * trace_lambda * np.minimum(c_clip, rho) * (targets[u] - float(values[u]))
                future = trace_lambda * targets[u] + (1 - trace_lambda) * future
            improved += gamma * future
        targets[t] = value + np.minimum(rho_clip, rho) * delta + correction
        advantages[t] = np.minimum(pg_rho_clip, rho) * improved
    return targets, advantages


def retrace(
    log_ratios: Row,
    rewards: Row,
    q_values: Row,
    next_values: Row,
    terminated: Row | None = None,
    truncated: Row | None = None,
    mask: Row | None = None,
    *,
    gamma: float,
    trace_lambda: float,
) -> Array:
    """Retrace (Munos et al. 2016, equation 3): G_t = r_t + gamma [q_t + lambda min(1, rho_u) (G_u - Q_u)].

    Here q_t is the expectation of Q over the next action, Q_u = q_values[u] and u the next row. At a truncated row and
    at the last one the term with u is absent, at a terminated one the bracket.
    """
    length = len(rewards)
    targets = np.zeros(length)
    for t in reversed(range(length)):
        if not is_valid(mask, t):
            continue
        target = float(rewards[t])
        if not is_set(terminated, t):
            future, u = float(next_values[t]), next_valid(mask, t, length)
            if u is not None and not is_set(truncated, t):
                trace = trace_lambda * np.minimum(1.0, np.exp(float(log_ratios[u])))
                future += trace * (targets[u] - float(q_values[u]))
            target += gamma * future
        targets[t] = target
    return targets


def absolute(kernel: Callable[..., Any], arguments: dict[str, Any], options: dict[str, Any]) -> tuple[Array, ...]:
    """S_t of the accuracy rule: the same recursion with every term replaced by its absolute value.

    Short next values become full ones first, because a value enters twice, once with each sign.
    """
    arguments = dict(arguments)
    mask, length = arguments.get("mask"), len(arguments["rewards"])
    if kernel not in (discounted_returns, retrace):
        terms = [
            abs(next_value(arguments["values"], arguments["next_values"], mask, t, length))
            if is_valid(mask, t) and not is_set(arguments.get("terminated"), t)
            else 0.0
            for t in range(length)
        ]
        arguments["next_values"] = np.array(terms)
    else:
        arguments["next_values"] = np.abs(arguments["next_values"])
    arguments["rewards"] = np.abs(arguments["rewards"])
    if kernel is vtrace:
        return absolute_vtrace(arguments, options)
    if kernel is retrace:
        return (retrace(**{**arguments, "q_values": -np.abs(arguments["q_values"])}, **options),)
    if kernel is gae:
        values = np.abs(arguments["values"])
        advantages, _ = gae(**{**arguments, "values": -values}, **options)
        rows = [is_valid(mask, t) for t in range(length)]
        return advantages, advantages + np.where(rows, values, 0.0)
    return (kernel(**arguments, **options),)


def absolute_vtrace(arguments: dict[str, Any], options: dict[str, Any]) -> tuple[Array, Array]:
    """The same for V-trace, of full next values and rewards that are absolute already."""
    length, mask = len(arguments["rewards"]), arguments.get("mask")
    values = np.array([abs(float(v)) if is_valid(mask, t) else 0.0 for t, v in enumerate(arguments["values"])])
    targets, _ = vtrace(**{**arguments, "values": -values}, **options)
    targets += 2 * values  # D_t - |V_t| becomes D_t + |V_t|
    advantages = np.zeros(length)
    for t in range(length):
        if not is_valid(mask, t):
            continue
        u, term = next_valid(mask, t, length), 0.0
        if not is_set(arguments.get("terminated"), t):
            term = arguments["next_values"][t]
            if u is not None and not is_set(arguments.get("truncated"), t):
                trace_lambda = options.get("trace_lambda", 1.0)
                term = trace_lambda * targets[u] + term  # |V(s_{t+1})| whole: it enters twice in the short form
        rho = np.minimum(options.get("pg_rho_clip", 1.0), np.exp(float(arguments["log_ratios"][t])))
        advantages[t] = rho * (arguments["rewards"][t] + values[t] + options["gamma"] * term)
    return targets, advantages


def over_sequences(function: Callable[..., Any], arguments: dict[str, Any], num_outputs: int) -> tuple[Array, ...]:
    """Apply a function of one sequence to every column of `(T, N)` arguments; `(N,)` arguments give one number each."""
    rewards = arguments["rewards"]
    if rewards.ndim == 1:
        results = function(arguments)
        return results if isinstance(results, tuple) else (results,)
    outputs = tuple(np.zeros(rewards.shape) for _ in range(num_outputs))
    for i in range(rewards.shape[1]):
        column = {name: take(argument, i) for name, argument in arguments.items()}
        results = function(column)
        for output, result in zip(outputs, results if isinstance(results, tuple) else (results,), strict=True):
            output[:, i] = result
    return outputs


def take(argument: Any, i: int) -> Any:
    """Sequence i of an argument; numbers and None belong to every sequence."""
    if argument is None or np.ndim(argument) == 0:
        return argument
    return argument[:, i] if argument.ndim == 2 else argument[i]


class Recorder(Sequence[Any]):
    """A sequence that remembers which of its entries were read."""

    def __init__(self, data: Any) -> None:
        self.data = data
        self.ndim = 1
        self.read = np.zeros(len(data), dtype=bool)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, t: Any) -> Any:
        self.read[t] = True
        return self.data[t]
