"""Random steps for replay buffers on a device, the same steps in a plain list."""

from typing import Any

import numpy as np
import torch
from naive_replay import NaiveReplay, Row


class Steps:
    """Steps of `num_envs` environments with ends, breaks and fillers, added to a buffer and to the plain list."""

    def __init__(self, buffer: Any, seed: int, *, fillers: bool = False, kind: str = "tensors", rows: int = 3):
        self.buffer, self.kind, self.fillers = buffer, kind, fillers
        self.related = buffer.num_envs is not None
        self.count = buffer.num_envs or rows
        self.rng = np.random.default_rng(seed)
        self.naive = NaiveReplay(buffer.capacity, buffer.num_envs, buffer.n_step, buffer.gamma)
        self.breaks = 0
        self.last: list[Row | None] = [None] * self.count

    def observation(self) -> np.ndarray:
        return self.rng.integers(-3, 3, 2).astype(np.float32)

    def step(self) -> None:
        rows = [self.row(e) for e in range(self.count)]
        self.naive.add(rows)
        given = [
            np.stack([row.observation for row in rows]), np.array([row.action for row in rows]),
            np.array([row.reward for row in rows]), np.stack([row.next_observation for row in rows]),
            np.array([row.terminated for row in rows]), np.array([row.truncated for row in rows]),
            np.array([row.valid for row in rows]) if self.fillers else None,
        ]  # fmt: skip
        extra = {"tag": np.array([row.extra["tag"] for row in rows], np.float64)}
        if self.kind == "tensors":
            given = [None if x is None else torch.from_numpy(x).to(self.buffer.device) for x in given]
            extra = {"tag": torch.from_numpy(extra["tag"]).to(self.buffer.device)}
        self.buffer.add(*given, **extra)

    def row(self, e: int) -> Row:
        before = self.last[e]
        start = self.observation()
        broken = self.rng.random() < 0.1
        filler = self.fillers and before is not None and before.valid and before.ended and self.related
        if self.related and before is not None and not broken and (not before.ended or filler):
            start = before.next_observation
        if self.related and before is not None and before.valid and not before.ended:
            self.breaks += start.tobytes() != before.next_observation.tobytes()
        terminated, truncated = (not filler and self.rng.random() < 0.15 for _ in range(2))
        row = Row(start, int(self.rng.integers(5)), float(np.float32(self.rng.normal())), self.observation(),
                  terminated, truncated, not filler, {"tag": float(self.rng.normal())})  # fmt: skip
        if not self.related and self.fillers:
            row.valid = bool(self.rng.random() < 0.7)
        self.last[e] = row
        return row


def example() -> dict[str, Any]:
    return {"observations": np.zeros(2, np.float32), "actions": np.int64(0), "tag": np.float64(0)}


def assert_rows(batch: Any, naive: NaiveReplay) -> None:
    """Every field of a batch is that of the rows its indices name."""
    for i, index in enumerate(batch.indices.tolist()):
        wanted = naive.transition(index)
        for name in ("observations", "next_observations"):
            assert getattr(batch, name)[i].cpu().numpy().tobytes() == wanted[name].tobytes(), (name, index)
        for name in ("actions", "terminated", "truncated"):
            assert getattr(batch, name)[i].item() == wanted[name], (name, index)
        np.testing.assert_allclose(batch.rewards[i].item(), wanted["rewards"], rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(batch.discounts[i].item(), wanted["discounts"], rtol=1e-6)
        assert batch.extra["tag"][i].item() == wanted["extra"]["tag"]
