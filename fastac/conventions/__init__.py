"""How each library lays out time, flags, next values and results: one table of adapters.

`CONVENTIONS` has one row a library. A row says in words how that library holds its data, and its `adapters` call a
function written for that library with data in fastac's own convention (`Call`) and bring the results back. The pieces
they are made of work in both directions and are public: `starts_from_ends` and `ends_from_starts`, `ends_from_dones`
and `dones_from_ends`, `by_environment` and `from_environments`, `fold_truncations`.

No library of the table is imported here. Where a library leaves part of the work to its caller, the adapter does what
that library's own trainer does, and `caller` says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from fastac.conventions import adapters
from fastac.conventions.call import Call, CannotSayError, Outputs
from fastac.conventions.pieces import (
    by_environment,
    dones_from_ends,
    ends_from_dones,
    ends_from_starts,
    fold_truncations,
    from_environments,
    starts_from_ends,
)

__all__ = [
    "CONVENTIONS",
    "Call",
    "CannotSayError",
    "Convention",
    "by_environment",
    "dones_from_ends",
    "ends_from_dones",
    "ends_from_starts",
    "fold_truncations",
    "from_environments",
    "starts_from_ends",
]


class Convention(NamedTuple):
    """One row of the table.

    Attributes:
        time: The arrays' layout.
        flags: What says that an episode ended.
        next_values: Where V(s_{t+1}) comes from.
        outputs: What comes back.
        caller: What the library leaves to its caller, and the adapter therefore does.
        function: What a function of this convention is called with, by estimator.
        adapters: Calls such a function with a `Call` and returns `(T, N)` outputs by name, by estimator.
        needs: Packages that the adapters import.
    """

    time: str
    flags: str
    next_values: str
    outputs: str
    caller: str
    function: Mapping[str, str]
    adapters: Mapping[str, Callable[[Callable[..., Any], Call], Outputs]]
    needs: tuple[str, ...] = ()


_ALL = ("gae", "discounted_returns", "n_step_returns", "lambda_returns", "vtrace", "retrace")
_RLOX = Convention(
    time="one environment after the other, flat; V-trace one environment at a time",
    flags="dones[t]: transition t",
    next_values="the next row's value; last_values after the last row",
    outputs="advantages and returns; V-trace: targets and advantages",
    caller="adds gamma V(final observation) to a truncated row's reward and passes dones = terminated, as "
    "RolloutCollector does; IMPALA: dones = either flag, no bootstrap at a time limit",
    function={
        "gae": "f(rewards, values, dones, last_values, n_steps, gamma, lam)",
        "vtrace": "f(log_rhos, rewards, values, dones, bootstrap_value, gamma, rho_bar, c_bar)",
    },
    adapters={"gae": adapters.rlox_gae, "vtrace": adapters.rlox_vtrace},
)
CONVENTIONS: Mapping[str, Convention] = {
    "fastac": Convention(
        time="(T, N); (N, T) with batch_first=True",
        flags="terminated[t] and truncated[t]: transition t",
        next_values="of each row, or after the last row",
        outputs="GAE(advantages, returns), VTrace(targets, advantages), returns, or Retrace's targets",
        caller="nothing",
        function={
            "gae": "f(rewards, values, next_values, terminated, truncated=None, mask=None, *, gamma, gae_lambda)",
            "discounted_returns": "f(rewards, next_values, terminated, truncated=None, mask=None, *, gamma)",
            "n_step_returns": "f(rewards, values, next_values, terminated, truncated=None, mask=None, *, n, gamma)",
            "lambda_returns": "f(rewards, values, next_values, terminated, truncated=None, mask=None, *, gamma, "
            "td_lambda)",
            "vtrace": "f(log_ratios, rewards, values, next_values, terminated, truncated=None, mask=None, *, gamma, "
            "trace_lambda, rho_clip, c_clip, pg_rho_clip)",
            "retrace": "f(log_ratios, rewards, q_values, next_values, terminated, truncated=None, mask=None, *, gamma, "
            "trace_lambda)",
        },
        adapters=dict.fromkeys(_ALL, adapters.fastac),
    ),
    "cleanrl": Convention(
        time="(T, N)",
        flags="dones[t] says that row t starts an episode, next_done the same of the row after the window; "
        "terminated and truncated are one",
        next_values="the next row's value; next_value after the last row",
        outputs="advantages, returns",
        caller="shifts the flags by one row",
        function={"gae": "f(rewards, values, dones, next_value, next_done, gamma, gae_lambda)"},
        adapters={"gae": adapters.cleanrl},
    ),
    "sb3": Convention(
        time="(T, N), added row by row to a rollout buffer",
        flags="episode_start of row t says that row t starts an episode; dones of the last row at the end",
        next_values="the next row's value; last_values after the last row",
        outputs="the buffer's attributes advantages and returns",
        caller="adds gamma V(final observation) to a truncated row's reward, as collect_rollouts does",
        function={
            "gae": "a buffer class f(buffer_size, observation_space, action_space, device, gamma, gae_lambda, n_envs) "
            "with reset, add and compute_returns_and_advantage"
        },
        adapters={"gae": adapters.sb3},
        needs=("torch", "gymnasium"),
    ),
    "tianshou": Convention(
        time="one environment after the other, flat, in a buffer",
        flags="terminated[t] and truncated[t]: transition t; unfinished_index() is where what is stored ends",
        next_values="v_s_ of each row, which the function multiplies by ~terminated",
        outputs="returns, advantages; n-step: batch.returns",
        caller="nothing; the buffer is a stand-in that has what the functions read",
        function={
            "gae": "f(batch, buffer, indices, v_s_, v_s, gamma, gae_lambda)",
            "n_step_returns": "f(batch, buffer, indices, target_q_fn, gamma, n_step)",
        },
        adapters={"gae": adapters.tianshou_gae, "n_step_returns": adapters.tianshou_n_step},
        needs=("torch",),
    ),
    "torchrl": Convention(
        time="(N, T, 1) tensors",
        flags="done[t] (either end) and terminated[t]: transition t",
        next_values="of each row",
        outputs="advantage, value_target; V-trace: advantages, targets; or returns",
        caller="nothing",
        function={
            "gae": "f(gamma, lmbda, state_value, next_state_value, reward, done, terminated)",
            "discounted_returns": "f(gamma, next_state_value, reward, done, terminated)",
            "lambda_returns": "f(gamma, lmbda, next_state_value, reward, done, terminated)",
            "vtrace": "f(gamma, log_pi, log_mu, state_value, next_state_value, reward, done, terminated, "
            "rho_thresh, c_thresh)",
        },
        adapters=dict.fromkeys(("gae", "discounted_returns", "lambda_returns", "vtrace"), adapters.torchrl),
        needs=("torch",),
    ),
    "rlax": Convention(
        time="(T,), one environment at a time, float32",
        flags="discount_t[t], 0 where transition t terminated; a time limit only where there is a lambda for each row",
        next_values="v_t of each row; GAE: the next row's value",
        outputs="advantages; returns; V-trace: errors = targets - values, and pg_advantage; Retrace: errors",
        caller="adds the values to advantages and errors; lambda_t[t] = 0 at a time limit, where there is lambda_t",
        function={
            "gae": "f(r_t, discount_t, lambda_, values)",
            "discounted_returns": "f(r_t, discount_t, v_t)",
            "n_step_returns": "f(r_t, discount_t, v_t, n, lambda_t)",
            "lambda_returns": "f(r_t, discount_t, v_t, lambda_)",
            "vtrace": "f(v_tm1, v_t, r_t, discount_t, rho_tm1, lambda_, clip_rho_threshold, clip_pg_rho_threshold)",
            "retrace": "f(q_tm1, q_t, v_t, r_t, discount_t, log_rhos, lambda_)",
        },
        adapters=dict.fromkeys(_ALL, adapters.rlax),
    ),
    "rlox": _RLOX,
    "rlox-folded": _RLOX._replace(
        caller="adds gamma V(final observation) to a truncated row's reward and passes dones = either flag: not what "
        "RolloutCollector does",
        function={"gae": _RLOX.function["gae"]},
        adapters={"gae": adapters.rlox_folded},
    ),
}
