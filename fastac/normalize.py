"""Normalisation: advantages of a minibatch, observations per dimension, rewards by their discounted return."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastac import _arrays
from fastac._arrays import FLOAT32, FLOAT64, LIKE
from fastac_kernels import running
from fastac_kernels.moments import normalize_at

if TYPE_CHECKING:
    from torch import Tensor

    Array = TypeVar("Array", NDArray[Any], Tensor)

EPSILON = 1e-8
_normalize_at: Callable[..., None] = normalize_at


def normalize_advantages(advantages: Array, mask: Array | None = None) -> Array:
    """Returns (x - mean) / (std + 1e-8), std with ddof 1, over the valid elements; masked ones become 0.

    Two-pass: the squares are of centred values. A single valid element, or a constant, gives zeros (a numerical
    remainder is not blown up; Stable-Baselines3 leaves a single element as it is).

    Args:
        advantages: Any shape; a floating numpy array or a tensor (CPU or CUDA, no synchronisation).
        mask: Same shape and kind; False elements count in neither mean nor deviation and come out as 0.

    Returns:
        Same kind, shape and dtype. Tensors come out detached.

    Raises:
        TypeError: advantages and mask of different kinds, or advantages that are not floating.
        ValueError: mask of another shape.

    Example:
        >>> normalize_advantages(np.array([1.0, 2.0, 3.0])).round(6)
        array([-1.,  0.,  1.])
    """
    if mask is not None:
        if isinstance(mask, np.ndarray) != isinstance(advantages, np.ndarray):
            raise TypeError(f"mask: got {type(mask).__name__}, expected {type(advantages).__name__} like advantages")
        if mask.shape != advantages.shape:
            raise ValueError(f"mask: got shape {tuple(mask.shape)}, expected {tuple(advantages.shape)} like advantages")
    if isinstance(advantages, np.ndarray):
        return _normalize_array(advantages, mask)
    if not _arrays.is_tensor(advantages):
        raise TypeError(f"advantages: got {type(advantages).__name__}, expected a numpy array or a torch tensor")
    return _normalize_tensor(advantages, mask)


def _normalize_array(x: NDArray[Any], mask: NDArray[Any] | None) -> NDArray[Any]:
    if not np.issubdtype(x.dtype, np.floating):
        raise TypeError(f"advantages: got dtype {x.dtype}, expected a floating one")
    work = FLOAT32 if x.dtype in (np.float16, np.float32) else FLOAT64
    values, out = np.ascontiguousarray(x, work), np.empty(x.shape, work)
    valid = None if mask is None else _arrays._flags(mask, False)
    addresses = [0 if array is None else _arrays._address(array) for array in (values, valid, out)]
    _normalize_at(*addresses, x.size, EPSILON, LIKE[work])
    return out.astype(x.dtype, copy=False)


def _is_plain(x: Tensor) -> bool:
    """Whether its memory is what it says: a CPU tensor proper, dense, contiguous, not negated in passing."""
    import torch

    return (
        type(x) in (torch.Tensor, torch.nn.Parameter)
        and x.layout is torch.strided
        and x.is_cpu
        and x.is_contiguous()
        and not x.is_neg()
    )


def _normalize_tensor(x: Tensor, mask: Any) -> Tensor:
    import torch

    if not x.is_floating_point():
        raise TypeError(f"advantages: got dtype {x.dtype}, expected a floating one")
    if not torch.compiler.is_compiling():
        from fastac import _torch_ops

        like = _torch_ops._LIKE.get(x.dtype)
        plain = _is_plain(x) and (mask is None or (mask.dtype is torch.bool and _is_plain(mask)))
        if like is not None and plain and _torch_ops._unheard():
            out = torch.empty_like(x.detach())
            valid = 0 if mask is None else mask.data_ptr()
            _normalize_at(x.data_ptr(), valid, out.data_ptr(), x.numel(), EPSILON, like)
            return out
    with torch.no_grad():
        work = x.detach()
        if work.dtype in (torch.float16, torch.bfloat16):
            work = work.float()
        if work.numel() < 2:
            return torch.zeros_like(work, dtype=x.dtype)
        if mask is None:
            var, mean = torch.var_mean(work, correction=1)
            low, high = torch.aminmax(work)
            centred = work - mean
        else:
            valid = mask.bool()
            count = valid.sum()
            # Select, never multiply: a NaN under the mask does no harm.
            mean = torch.where(valid, work, 0).sum() / count.clamp(min=1)
            centred = torch.where(valid, work - mean, 0)
            var = centred.square().sum() / (count - 1).clamp(min=1)
            low = torch.where(valid, work, torch.inf).amin()
            high = torch.where(valid, work, -torch.inf).amax()
        normalized = centred / (var.sqrt() + EPSILON)
        constant = (low == high) | (low > high)
        return normalized.masked_fill_(constant, 0.0).to(x.dtype)


def _kernels_take(rows: NDArray[Any], shape: tuple[int, ...]) -> bool:
    """Whether they are C-contiguous float32 or float64, `(B, *shape)`."""
    return rows.dtype in (FLOAT32, FLOAT64) and rows.shape[1:] == shape and rows.flags.c_contiguous


class RunningMeanStd:
    """Mean and variance of everything seen, per dimension, merged batch by batch (Chan, Golub and LeVeque 1979).

    Kept in float64. Before the first update the mean is 0 and the variance 1.

    Example:
        >>> moments = RunningMeanStd((2,))
        >>> moments.update(np.array([[1.0, 10.0], [3.0, 30.0]]))
        >>> moments.mean, moments.var
        (array([ 2., 20.]), array([  1., 100.]))
    """

    def __init__(self, shape: tuple[int, ...]):
        self.mean = np.zeros(shape, np.float64)
        self.var = np.ones(shape, np.float64)
        self.count = 0

    def update(self, batch: ArrayLike) -> None:
        """Adds the rows of `batch`, shape `(B, *shape)`; B may be 0."""
        rows = np.asarray(batch)
        count = len(rows)
        if count == 0:
            return
        if self.mean.ndim == 1 and _kernels_take(rows, self.mean.shape):
            self.mean, self.var = self.mean.copy(), self.var.copy()  # what was handed out stays as it was
            running.update(self.mean, self.var, self.count, rows)
            self.count += count
            return
        rows = rows.astype(np.float64, copy=False)
        mean = rows.mean(0)
        centred = rows - mean
        m2 = (centred * centred).sum(0)
        if self.count:
            total = self.count + count
            delta = mean - self.mean
            self.mean = self.mean + delta * (count / total)
            self.var = (self.var * self.count + m2 + delta * delta * (self.count * count / total)) / total
            self.count = total
        else:
            self.mean, self.var, self.count = mean, m2 / count, count

    def state_dict(self) -> dict[str, Any]:
        """Returns copies of everything needed to go on."""
        return {"mean": np.array(self.mean), "var": np.array(self.var), "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores `state_dict`'s result."""
        self.mean = np.array(state["mean"], np.float64)
        self.var = np.array(state["var"], np.float64)
        self.count = int(state["count"])


class ObservationNormalizer:
    """clip((x - mean) / sqrt(var + 1e-8), -clip, clip), with a mean and a variance for every dimension.

    `update` and calling are apart: statistics move when the trainer says so, and an observation is stored as the policy
    saw it.

    Example:
        >>> normalize = ObservationNormalizer((1,))
        >>> normalize.update(np.array([[0.0], [2.0]]))
        >>> normalize(np.array([[2.0], [1000.0]]))
        array([[ 1.],
               [10.]], dtype=float32)
    """

    def __init__(self, shape: tuple[int, ...], clip: float = 10.0):
        self.moments = RunningMeanStd(shape)
        self.clip = clip

    def update(self, observations: ArrayLike) -> None:
        """Adds observations `(B, *shape)` to the statistics."""
        self.moments.update(observations)

    def __call__(self, observations: NDArray[Any]) -> NDArray[np.float32]:
        """Returns normalised observations of the same shape, float32."""
        moments = self.moments
        if moments.mean.ndim == 1 and _kernels_take(observations, moments.mean.shape):
            seen = np.empty(observations.shape, FLOAT32)
            running.standardize(observations, moments.mean, moments.var, EPSILON, self.clip, seen)
            return seen
        scaled = (observations - moments.mean) / np.sqrt(moments.var + EPSILON)
        np.clip(scaled, -self.clip, self.clip, out=scaled)
        return scaled.astype(np.float32)

    def of_tensor(self, observations: Tensor) -> Tensor:
        """Returns the same of a tensor, on its device, float32; nothing is read back from there."""
        import torch

        if observations.is_cpu:
            return torch.from_numpy(self(observations.numpy()))
        both = torch.from_numpy(np.stack([self.moments.mean, np.sqrt(self.moments.var + EPSILON)]))
        both = both.pin_memory() if observations.is_cuda else both
        mean, deviation = both.to(observations.device, non_blocking=observations.is_cuda)
        scaled: Tensor = ((observations - mean) / deviation).clamp(-self.clip, self.clip)
        return scaled.to(torch.float32)

    def state_dict(self) -> dict[str, Any]:
        """Returns copies of everything needed to go on."""
        return {"moments": self.moments.state_dict(), "clip": self.clip}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores `state_dict`'s result."""
        self.moments.load_state_dict(state["moments"])
        self.clip = float(state["clip"])


class RewardNormalizer:
    """Divides rewards by the deviation of the running discounted return, and clips them.

    G_t = gamma G_{t-1} + r_t, from 0 at each episode's first step. The deviation is of G, not of r, over all time
    (Engstrom et al. 2020, section 3); the mean is not subtracted, so a reward keeps its sign.

    A whole rollout is scaled by one deviation, the one after it was seen: its advantages then add rewards of one unit.
    (Gymnasium's wrapper moves the scale with every step.)

    Example:
        >>> normalizer = RewardNormalizer(num_envs=1, gamma=0.0)
        >>> never = np.zeros((2, 1), bool)
        >>> normalizer(np.array([[1.0], [3.0]]), never, ~never)
        array([[1.],
               [3.]], dtype=float32)
    """

    def __init__(self, num_envs: int, gamma: float, clip: float = 10.0):
        self.gamma = gamma
        self.clip = clip
        self.moments = RunningMeanStd(())
        self.returns = np.zeros(num_envs, np.float64)

    def __call__(self, rewards: NDArray[Any], ended: NDArray[np.bool_], mask: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Returns the scaled rewards of a rollout.

        Args:
            rewards: `(T, N)`, as the environment paid them.
            ended: `(T, N)`: transition t ended its episode (terminated or truncated), so G starts anew after it.
            mask: `(T, N)`: False rows are not in time.

        Returns:
            float32, `(T, N)`; masked rows are 0.
        """
        returns, running_returns = np.empty(rewards.shape, np.float64), self.returns.copy()
        running.accumulate(rewards, ended, mask, self.gamma, running_returns, returns)
        self.returns = running_returns
        self.moments.update(returns[mask])
        scaled = np.clip(rewards / np.sqrt(self.moments.var + EPSILON), -self.clip, self.clip)
        return np.where(mask, scaled, 0.0).astype(np.float32)

    def state_dict(self) -> dict[str, Any]:
        """Returns copies of everything needed to go on."""
        return {"moments": self.moments.state_dict(), "returns": self.returns.copy()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores `state_dict`'s result."""
        self.moments.load_state_dict(state["moments"])
        self.returns = np.array(state["returns"], np.float64)
