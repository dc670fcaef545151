"""A replay buffer anybody can read: one list of transitions per environment, float64, everything by the definition."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass
class Row:
    """What one environment's step was, as it was given."""

    observation: Any  # an array, or a dict of arrays
    action: Any
    reward: float
    next_observation: Any
    terminated: bool
    truncated: bool
    valid: bool = True
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def ended(self) -> bool:
        return self.terminated or self.truncated


def same(a: Any, b: Any) -> bool:
    """The same bytes."""
    if isinstance(a, dict):
        return all(same(a[key], b[key]) for key in a)
    return np.asarray(a).tobytes() == np.asarray(b).tobytes()


class NaiveReplay:
    """Every row ever added, of which the last `capacity` count. Row t of environment e has the index t * N + e."""

    def __init__(self, capacity: int, num_envs: int | None = 1, n_step: int = 1, gamma: float = 0.99) -> None:
        self.related = num_envs is not None
        self.num_envs = num_envs or 1
        self.capacity = capacity // self.num_envs * self.num_envs
        self.n_step, self.gamma = n_step, gamma
        self.rows: list[list[Row]] = [[] for _ in range(self.num_envs)]

    def add(self, step: list[Row]) -> None:
        for e, row in enumerate(step):
            self.rows[e if self.related else 0].append(row)

    @property
    def added(self) -> int:
        return sum(len(rows) for rows in self.rows)

    def stored(self) -> list[int]:
        """Indices that may be gathered."""
        return list(range(max(self.added - self.capacity, 0), self.added))

    def drawable(self) -> list[int]:
        return [index for index in self.stored() if self.row(index).valid]

    def row(self, index: int) -> Row:
        t, e = divmod(index, self.num_envs)
        return self.rows[e][t]

    def goes_on(self, rows: list[Row], t: int) -> bool:
        """Whether row t + 1 is the next step of row t's episode."""
        if not self.related or t + 1 == len(rows) or rows[t].ended or not rows[t].valid or not rows[t + 1].valid:
            return False
        return same(rows[t].next_observation, rows[t + 1].observation)

    def transition(self, index: int) -> dict[str, Any]:
        """The n-step transition from a row on."""
        t, e = divmod(index, self.num_envs)
        rows = self.rows[e]
        first, last, m, reward = rows[t], t, 1, float(np.float32(rows[t].reward))
        while m < self.n_step and self.goes_on(rows, last):
            last += 1
            reward += self.gamma**m * float(np.float32(rows[last].reward))
            m += 1
        return {
            "observations": first.observation,
            "actions": first.action,
            "rewards": reward,
            "next_observations": rows[last].next_observation,
            "terminated": rows[last].terminated,
            "truncated": rows[last].truncated,
            "discounts": self.gamma**m,
            "indices": index,
            "extra": first.extra,
        }
