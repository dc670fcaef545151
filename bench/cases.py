"""What is computed: estimators, shapes, inputs, and float64 results that every contender has to agree with."""

import dataclasses
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

SHAPES = ((2048, 1), (128, 8), (128, 128), (2048, 64), (32, 4096), (1024, 1024))
SMALLEST = (128, 8)
ESTIMATORS = ("gae", "discounted_returns", "n_step_returns", "lambda_returns", "vtrace", "retrace")
FORMS = ("short", "full")
GAMMA, LAMBDA = 0.99, 0.95
N_STEPS = (3, 5)  # of n-step returns

Form = Literal["short", "full"]


@dataclasses.dataclass(frozen=True)
class Case:
    """One estimator on one input, time-major `(T, N)` float32, flags bool.

    `short`: one next value for each column, rows terminate with probability 0.02. `full`: a next value for each row,
    and rows are truncated, too, with probability 0.01. Next values are the shifted values except where an episode ends.
    Retrace always reads a next value for each row. V-trace runs with lambda = 1, which is all that TorchRL has.
    """

    estimator: str
    form: Form
    T: int
    N: int
    rewards: NDArray[np.float32]
    values: NDArray[np.float32]
    next_values: NDArray[np.float32]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    log_ratios: NDArray[np.float32]
    n: int

    @property
    def last_values(self) -> NDArray[np.float32]:
        """The short form's next values, `(N,)`."""
        return self.next_values[-1]

    @property
    def ended(self) -> NDArray[np.bool_]:
        return self.terminated | self.truncated

    @property
    def outputs(self) -> int:
        return 2 if self.estimator in ("gae", "vtrace") else 1

    @property
    def reads_values(self) -> bool:
        """Returns in the full form are made of rewards and next values alone."""
        if self.estimator in ("gae", "vtrace", "retrace"):
            return True
        return self.form == "short" and self.estimator != "discounted_returns"

    @property
    def reads_ratios(self) -> bool:
        return self.estimator in ("vtrace", "retrace")

    @property
    def reads_next_rows(self) -> bool:
        """Whether there is a next value for each row."""
        return self.form == "full" or self.estimator == "retrace"

    @property
    def bytes_per_element(self) -> int:
        floats = 1 + self.reads_ratios + self.reads_values + self.reads_next_rows + self.outputs
        return 4 * floats + (2 if self.form == "full" else 1)


def make_case(estimator: str, form: Form, shape: tuple[int, int], *, ends: bool = True, n: int = N_STEPS[-1]) -> Case:
    """A case from a fixed seed; `ends=False` leaves every flag unset, `n` is that of n-step returns."""
    T, N = shape
    generator = np.random.default_rng(0)
    observed = generator.standard_normal((T + 1, N), dtype=np.float32)
    rewards = generator.standard_normal((T, N), dtype=np.float32)
    terminated = (generator.random((T, N)) < 0.02) & ends
    truncated = (generator.random((T, N)) < 0.01) & ~terminated & (form == "full") & ends
    next_values = observed[1:].copy()
    next_values[truncated] = generator.standard_normal(int(truncated.sum()), dtype=np.float32)
    log_ratios = np.float32(0.3) * generator.standard_normal((T, N), dtype=np.float32)
    return Case(estimator, form, T, N, rewards, observed[:-1].copy(), next_values, terminated, truncated, log_ratios, n)


def expected(case: Case) -> tuple[NDArray[np.float64], ...]:
    """Float64 results, row by row from the last."""
    r, v, w = (array.astype(np.float64) for array in (case.rewards, case.values, case.next_values))
    w = np.where(case.terminated, 0.0, w)
    going = ~case.ended
    out = np.zeros((case.T, case.N))
    if case.estimator == "n_step_returns":
        for t in range(case.T):
            discount, alive = np.ones(case.N), np.ones(case.N, dtype=bool)
            for k in range(t, min(t + case.n, case.T)):
                last = alive & (case.ended[k] | (k == min(t + case.n, case.T) - 1))
                out[t] += np.where(alive, discount * r[k], 0) + np.where(last, discount * GAMMA * w[k], 0)
                alive, discount = alive & going[k], discount * GAMMA
        return (out,)
    if case.reads_ratios:
        return expected_traces(case, r, v, w)
    carry = np.zeros(case.N)
    for t in reversed(range(case.T)):
        inside = going[t] & (t < case.T - 1)
        if case.estimator == "gae":
            carry = r[t] + GAMMA * w[t] - v[t] + np.where(inside, GAMMA * LAMBDA * carry, 0)
        elif case.estimator == "discounted_returns":
            carry = r[t] + GAMMA * np.where(inside, carry, w[t])
        else:
            carry = r[t] + GAMMA * np.where(inside, (1 - LAMBDA) * w[t] + LAMBDA * carry, w[t])
        out[t] = carry
    return (out, out + v) if case.estimator == "gae" else (out,)


def expected_traces(
    case: Case, r: NDArray[np.float64], v: NDArray[np.float64], w: NDArray[np.float64]
) -> tuple[NDArray[np.float64], ...]:
    """The same for V-trace (targets, advantages) and Retrace; `w` is 0 where there is no future."""
    weight = np.minimum(1.0, np.exp(case.log_ratios.astype(np.float64)))
    targets, advantages = np.zeros((case.T, case.N)), np.zeros((case.T, case.N))
    for t in reversed(range(case.T)):
        u = min(t + 1, case.T - 1)
        inside = ~case.ended[t] & (t < case.T - 1)
        correction = np.where(inside, targets[u] - v[u], 0)
        if case.estimator == "retrace":
            targets[t] = r[t] + GAMMA * (w[t] + LAMBDA * weight[u] * correction)
            continue
        targets[t] = v[t] + weight[t] * (r[t] + GAMMA * w[t] - v[t] + GAMMA * correction)
        advantages[t] = weight[t] * (r[t] + GAMMA * np.where(inside, targets[u], w[t]) - v[t])
    return (targets,) if case.estimator == "retrace" else (targets, advantages)


def disagreement(results: tuple[Any, ...], case: Case) -> float:
    """Largest difference from float64, in units of the largest result; a peer may return the first result alone."""
    differences = [
        np.max(np.abs(np.asarray(result, dtype=np.float64) - reference)) / np.max(np.abs(reference))
        for result, reference in zip(results, expected(case), strict=False)
    ]
    return float(np.max(differences))  # NaN where anything is
