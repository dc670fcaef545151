"""GAE on a GPU as others write it: a loop, a compiled loop, compiled scans, Triton's associative scan.

Short next values and terminations, float32, `(T, N)`. All compute A[t] = delta[t] + gamma lambda (1 - e[t]) A[t+1] and
returns A + V, from the same arguments.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.gpu_timing import compiled

Gae = Callable[[Tensor, Tensor, Tensor, Tensor], Any]
GAMMA, LAMBDA = 0.99, 0.95
LONGEST_LOOP = 4096


def deltas(rewards: Tensor, values: Tensor, last: Tensor, terminated: Tensor) -> tuple[Tensor, Tensor]:
    """What the recurrence is made of: delta and its factor."""
    alive = 1.0 - terminated.float()
    following = torch.cat([values[1:], last.unsqueeze(0)])
    return rewards + GAMMA * following * alive - values, GAMMA * LAMBDA * alive


def loop(rewards: Tensor, values: Tensor, last: Tensor, terminated: Tensor) -> tuple[Tensor, Tensor]:
    """CleanRL's loop, in torch."""
    alive = 1.0 - terminated.float()
    carry, following, rows = torch.zeros_like(last), last, []
    for t in range(len(rewards) - 1, -1, -1):
        delta = rewards[t] + GAMMA * following * alive[t] - values[t]
        carry = delta + GAMMA * LAMBDA * alive[t] * carry
        rows.append(carry)
        following = values[t]
    advantages = torch.stack(rows[::-1])
    return advantages, advantages + values


def doubling(rewards: Tensor, values: Tensor, last: Tensor, terminated: Tensor) -> tuple[Tensor, Tensor]:
    """Log2(T) passes."""
    b, a = deltas(rewards, values, last, terminated)
    distance = 1
    while distance < len(b):
        b = torch.cat([b[:-distance] + a[:-distance] * b[distance:], b[-distance:]])
        a = torch.cat([a[:-distance] * a[distance:], a[-distance:]])
        distance *= 2
    return b, b + values


def associative(rewards: Tensor, values: Tensor, last: Tensor, terminated: Tensor) -> tuple[Tensor, Tensor]:
    """Torch's own associative scan, which Inductor makes a Triton kernel of."""
    from torch._higher_order_ops.associative_scan import associative_scan

    def combine(first: Any, second: Any) -> Any:
        return first[0] * second[0], second[0] * first[1] + second[1]

    b, a = deltas(rewards, values, last, terminated)
    _, advantages = associative_scan(combine, (a, b), 0, reverse=True, combine_mode="pointwise")
    return advantages, advantages + values


def triton_scan() -> Gae:
    """A Triton kernel: tiles of rows and columns from the last row on, `tl.associative_scan` along the rows."""
    import triton
    import triton.language as tl

    @triton.jit
    def combine(a1, b1, a2, b2):  # type: ignore[no-untyped-def]
        return a1 * a2, b2 + a2 * b1

    @triton.jit
    def kernel(  # type: ignore[no-untyped-def]
        rewards, values, last, terminated, advantages, returns, length, lanes, gamma, decay,
        ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    ):  # fmt: skip
        column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
        inside = column < lanes
        carry = tl.zeros((COLUMNS,), tl.float32)
        for chunk in range(tl.cdiv(length, ROWS) - 1, -1, -1):
            row = chunk * ROWS + tl.arange(0, ROWS)
            here = (row[:, None] < length) & inside[None, :]
            at = row[:, None].to(tl.int64) * lanes + column[None, :]
            r = tl.load(rewards + at, mask=here, other=0.0)
            v = tl.load(values + at, mask=here, other=0.0)
            alive = 1.0 - tl.load(terminated + at, mask=here, other=0).to(tl.float32)
            is_last = (row[:, None] == length - 1) & inside[None, :]
            after = tl.load(values + at + lanes, mask=here & (row[:, None] < length - 1), other=0.0)
            after += tl.load(last + column[None, :] + 0 * row[:, None], mask=is_last, other=0.0)
            b = tl.where(here, r + gamma * after * alive - v, 0.0)
            a = tl.where(here, decay * alive, 1.0)
            scale, total = tl.associative_scan((a, b), 0, combine, reverse=True)
            total += scale * carry[None, :]
            tl.store(advantages + at, total, mask=here)
            tl.store(returns + at, total + v, mask=here)
            carry = tl.sum(tl.where(row[:, None] == chunk * ROWS, total, 0.0), 0)

    def gae(rewards: Tensor, values: Tensor, last: Tensor, terminated: Tensor) -> tuple[Tensor, Tensor]:
        length, lanes = rewards.shape
        rows = min(128, triton.next_power_of_2(length))
        columns = min(max(4096 // rows, 1), triton.next_power_of_2(lanes), 32)
        advantages, returns = torch.empty_like(rewards), torch.empty_like(rewards)
        kernel[(triton.cdiv(lanes, columns),)](
            rewards, values, last, terminated.view(torch.uint8), advantages, returns, length, lanes, GAMMA,
            GAMMA * LAMBDA, ROWS=rows, COLUMNS=columns,
        )  # fmt: skip
        return advantages, returns

    return gae


def contenders(length: int, device: torch.device, backend: str | None) -> dict[str, Gae | str]:
    """The peers at a length, those left out with the reason."""
    too_long = f"left out: {length} steps"
    found: dict[str, Gae | str] = {
        "torch loop": loop if length <= LONGEST_LOOP else too_long,
        "torch.compile doubling": compiled(doubling, backend),
        "torch associative_scan": compiled(associative, backend) if device.type == "cuda" else "needs CUDA",
    }
    try:
        found["triton associative_scan"] = triton_scan() if device.type == "cuda" else "needs CUDA"
    except Exception as error:
        found["triton associative_scan"] = f"{type(error).__name__}: {error}"
    return found


def compiled_loop(length: int, device: torch.device, backend: str | None) -> dict[str, Gae | str]:
    """The loop through `torch.compile`, which unrolls it: minutes, where it is long."""
    return {"torch.compile loop": compiled(loop, backend)}
