"""One boundary as data: what goes in, and what has to come out of each estimator, exactly.

Arrays are text: numbers in time, environments apart by `|`; flags are one letter a row, `x` where set. Every number is
a fraction with a power of two below it, so float32 holds inputs and results exactly. `?` is a result that no rule fixes
(it depends on a NaN that belongs to it).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fastac.conventions import Call

ESTIMATORS = ("gae", "discounted_returns", "n_step_returns", "lambda_returns", "vtrace", "retrace")
RATIOS = (2.0, 0.5, 1.0)  # pi / mu where a scenario names none: row t of environment e has RATIOS[t + e]


@dataclass(frozen=True)
class Scenario:
    """Inputs of a boundary and each estimator's results.

    Attributes:
        name: A few words.
        sentence: Which boundary it is about, and what goes wrong when it fails.
        rewards: Text of `(T, N)` numbers, environment by environment; `values` likewise, which for Retrace are
            Q(s_t, a_t).
        next_values: Full, as many as rewards, or short: one for each environment. Retrace always gets them full:
            in place of short ones, each valid row's is the next valid row's value.
        terminated: Flags; `truncated` and `mask` likewise. Truncated needs full next values.
        expected: By estimator; GAE's are the advantages, V-trace's targets and advantages, Retrace's the targets.
        pitfalls: Defects in public libraries that it stands for, by the project's numbers.
        gamma: Discount.
        lambda_: `gae_lambda` and `td_lambda`.
        trace_lambda: V-trace's and Retrace's lambda.
        n: Steps of n-step returns.
        ratios: pi / mu; V-trace's thresholds are `rho_clip`, `c_clip` and `pg_rho_clip`.
        rewards_dtype: Dtype of the rewards; values are float32.
        layout: "batch_first" asks for arrays `(N, T)`, "packed" for `cu_seqlens`: of fastac's own convention only.
    """

    name: str
    sentence: str
    rewards: str
    values: str
    next_values: str
    expected: Mapping[str, str | tuple[str, str]]
    terminated: str = ""
    truncated: str = ""
    mask: str = ""
    pitfalls: str = ""
    gamma: str = "1/2"
    lambda_: str = "1/2"
    trace_lambda: str = "1"
    n: int = 2
    ratios: str = ""
    rho_clip: float = 1.0
    c_clip: float = 1.0
    pg_rho_clip: float = 1.0
    rewards_dtype: str = "float32"
    layout: Literal["", "batch_first", "packed"] = ""

    def call(self, estimator: str, *, tensors: bool = False) -> Call:
        """New arrays of this scenario for one estimator, `(T, N)`."""
        rewards, values, next_values = (numbers(text) for text in (self.rewards, self.values, self.next_values))
        full = bool(self.truncated) or next_values.shape == rewards.shape != (1, rewards.shape[1])
        length, count = rewards.shape
        if estimator == "retrace" and not full:
            full, next_values = True, self._following(values, next_values[0])
        cycle = np.add.outer(np.arange(length), np.arange(count)) % len(RATIOS)
        ratios = numbers(self.ratios) if self.ratios else np.array(RATIOS)[cycle]
        gamma, lambda_ = float(Fraction(self.gamma)), float(Fraction(self.lambda_))
        clips = {"rho_clip": self.rho_clip, "c_clip": self.c_clip, "pg_rho_clip": self.pg_rho_clip}
        more: dict[str, dict[str, Any]] = {
            "gae": {"gae_lambda": lambda_},
            "discounted_returns": {},
            "n_step_returns": {"n": self.n},
            "lambda_returns": {"td_lambda": lambda_},
            "vtrace": {"trace_lambda": float(Fraction(self.trace_lambda)), **clips},
            "retrace": {"trace_lambda": float(Fraction(self.trace_lambda))},
        }
        return Call(
            estimator,
            rewards.astype(self.rewards_dtype),
            values.astype(np.float32),
            (next_values if full else next_values[0]).astype(np.float32),
            flags(self.terminated) if self.terminated else np.zeros(rewards.shape, np.bool_),
            flags(self.truncated) if self.truncated else None,
            flags(self.mask) if self.mask else None,
            np.log(ratios).astype(np.float32),
            {"gamma": gamma, **more[estimator]},
            self.layout,
            tensors,
        )

    def outputs(self, estimator: str) -> dict[str, NDArray[np.float64]]:
        """The exact results by name, `(T, N)`; NaN where no rule fixes one."""
        expected = self.expected[estimator]
        if isinstance(expected, tuple):
            return {"targets": numbers(expected[0]), "advantages": numbers(expected[1])}
        if estimator != "gae":
            return {"targets" if estimator == "retrace" else "returns": numbers(expected)}
        advantages, values = numbers(expected), numbers(self.values)
        returns = advantages + values
        return {"advantages": advantages, "returns": np.where(flags(self.mask), returns, 0) if self.mask else returns}

    def _following(self, values: NDArray[np.float64], last: NDArray[np.float64]) -> NDArray[np.float64]:
        """Each row's next valid row's value, and `last` behind the last one."""
        valid = flags(self.mask) if self.mask else np.ones(values.shape, np.bool_)
        following, after = np.empty_like(values), last
        for t in reversed(range(len(values))):
            following[t] = after
            after = np.where(valid[t], values[t], after)
        return following


def numbers(text: str) -> NDArray[np.float64]:
    """`"1 1/2 | 3 nan"` as the `(2, 2)` array of time by environments; `?` is NaN, too.

    Example:
        >>> numbers("1 1/2 | 3 nan")
        array([[1. , 3. ],
               [0.5, nan]])
    """
    columns = [
        [np.nan if word in ("nan", "?") else float(Fraction(word)) for word in column.split()]
        for column in text.split("|")
    ]
    return np.array(columns, np.float64).T.copy()


def flags(text: str) -> NDArray[np.bool_]:
    """`".x | x."` as an array of time by environments.

    Example:
        >>> flags(".x | x.")
        array([[False,  True],
               [ True, False]])
    """
    return np.array([[letter == "x" for letter in column.strip()] for column in text.split("|")]).T.copy()
