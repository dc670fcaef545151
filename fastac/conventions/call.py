"""One call in fastac's own convention, which the adapters translate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[Any]
Flags = NDArray[np.bool_]
Outputs = dict[str, Floats]


class CannotSayError(Exception):
    """The convention has no way to express a call; the message names what it lacks."""


@dataclass(frozen=True)
class Call:
    """One call in fastac's convention: `(T, N)` NumPy arrays, flags bool, as `fastac.gae` describes them.

    Attributes:
        estimator: Name of the estimator.
        rewards: What transition t paid.
        values: V(s_t); for Retrace Q(s_t, a_t).
        next_values: V(s_{t+1}), full `(T, N)`, or short `(N,)`: the value after the last row. Retrace's are full.
        terminated: Transition t ended the episode.
        truncated: A time limit cut it; None where the call has none.
        mask: False where the row is not in time; None where the call has none.
        log_ratios: log pi - log mu, which V-trace and Retrace read.
        options: The estimator's keyword arguments.
        layout: "batch_first" asks for arrays `(N, T)`, "packed" for one sequence after the other: of fastac alone.
        tensors: Pass torch tensors, where the convention leaves the choice.
    """

    estimator: str
    rewards: Floats
    values: Floats
    next_values: Floats
    terminated: Flags
    truncated: Flags | None
    mask: Flags | None
    log_ratios: Floats
    options: Mapping[str, Any]
    layout: Literal["", "batch_first", "packed"] = ""
    tensors: bool = False

    @property
    def cut(self) -> Flags:
        """Where a time limit, and not a termination, ended the episode."""
        return np.zeros_like(self.terminated) if self.truncated is None else self.truncated & ~self.terminated

    @property
    def full_next_values(self) -> Floats:
        """V(s_{t+1}) of every row."""
        if self.next_values.ndim == 2:
            return self.next_values
        return np.concatenate([self.values[1:], self.next_values[None]])

    @property
    def last_values(self) -> Floats:
        """`(N,)`, the value after the last row."""
        last: Floats = self.full_next_values[-1]
        return last

    def refuse(self, *, time_limits: str = "", next_values: bool = False) -> None:
        """Raise for what every library but fastac lacks, and for what is named.

        Args:
            time_limits: Why the library has no time limits; empty where it has them.
            next_values: The library reads the next row's value and takes no others.

        Raises:
            CannotSayError: The call needs masked rows, time limits, or next values other than the shifted values.
        """
        if self.mask is not None:
            raise CannotSayError("no mask: rows cannot be taken out of time")
        if time_limits and self.cut.any():
            raise CannotSayError(time_limits)
        inside = ~(self.terminated | self.cut)[:-1]
        shifted = self.full_next_values[:-1] == self.values[1:]
        if next_values and not shifted[inside].all():
            raise CannotSayError("one value an observation: no next values of their own")

    def fixed(self, reason: str, **options: float) -> None:
        """Raise where an option differs from the one value that a library has.

        Raises:
            CannotSayError: It does.
        """
        if any(self.options[name] != value for name, value in options.items()):
            raise CannotSayError(reason)
