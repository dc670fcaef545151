"""The estimators by name: which kernel each runs, and what it needs of its arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from fastac_kernels.gae import gae_at
from fastac_kernels.n_step import n_step_returns_at
from fastac_kernels.retrace import retrace_at
from fastac_kernels.returns import lambda_returns_at
from fastac_kernels.vtrace import vtrace_at


class Estimator(NamedTuple):
    """One estimator.

    Attributes:
        kernel: Takes addresses, sizes, the estimator's scalars, `more`, and a scalar of the dtype.
        more: The kernel's scalars that are no arguments of the public function.
        outputs: How many arrays it returns.
        reads_values: Whether it reads `values`: "always", in the "short" form of `next_values`, or "never".
        reads_ratios: Whether it takes `log_ratios`; its kernel then takes their address first.
        full_only: Whether `next_values` must be full.
        values_name: What the public function calls `values`.
    """

    kernel: Callable[..., bool]
    more: tuple[Any, ...]
    outputs: int
    reads_values: Literal["always", "short", "never"]
    reads_ratios: bool = False
    full_only: bool = False
    values_name: str = "values"


ESTIMATORS = {
    "gae": Estimator(gae_at, (), 2, "always"),
    "discounted_returns": Estimator(lambda_returns_at, (1.0, True), 1, "never"),
    "lambda_returns": Estimator(lambda_returns_at, (False,), 1, "short"),
    "n_step_returns": Estimator(n_step_returns_at, (), 1, "short"),
    "vtrace": Estimator(vtrace_at, (), 2, "always", reads_ratios=True),
    "retrace": Estimator(retrace_at, (), 1, "always", reads_ratios=True, full_only=True, values_name="q_values"),
}
