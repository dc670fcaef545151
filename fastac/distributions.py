"""Action distributions without the overhead of `torch.distributions`: no validation, no broadcasting, one pass."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor

from fastac import tanh_gaussian
from fastac.tanh_gaussian import LOG_SQRT_2PI, log_slope_of_tanh


class Categorical:
    """pi(a) = exp(logits_a) / sum_b exp(logits_b) over n actions.

    Args:
        logits: Shape `(B, n)`, finite; normalised once, when something asks for it.

    Example:
        >>> Categorical(torch.zeros(1, 4)).entropy().exp()
        tensor([4.])
    """

    def __init__(self, logits: Tensor):
        self.logits = logits
        self._log_probs: Tensor | None = None

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """What the distribution was made from."""
        return (self.logits,)

    @property
    def log_probs(self) -> Tensor:
        """Log-probabilities of all actions, `(B, n)`."""
        if self._log_probs is None:
            self._log_probs = torch.log_softmax(self.logits, dim=-1)
        return self._log_probs

    def log_prob(self, actions: Tensor) -> Tensor:
        """Returns log pi(a), shape `(B,)`, of integer (int64) actions `(B,)`, counted from 0."""
        return self.log_probs.gather(-1, actions.unsqueeze(-1)).squeeze(-1)

    def entropy(self) -> Tensor:
        """Returns -sum_a pi(a) log pi(a) in nats, shape `(B,)`."""
        return -(self.log_probs.exp() * self.log_probs).sum(-1)

    def mode(self) -> Tensor:
        """Returns the most probable action, shape `(B,)`."""
        return self.log_probs.argmax(-1)

    def sample(self, noise: Tensor) -> Tensor:
        """Returns actions `(B,)` drawn with `noise` `(B, n)`, standard Gumbel: argmax_a logits_a + noise_a."""
        return (self.log_probs + noise).argmax(-1)

    def frozen(self) -> Categorical:
        """Returns it with parameters of its own and without a gradient: it stays while the actor goes on."""
        found = copy.copy(self)
        found.logits = found._log_probs = self.log_probs.detach().clone()
        return found


class Gaussian:
    """N(mean, diag(exp(log_std))^2) over A-dimensional raw actions.

    Log-probabilities belong to the raw action. An environment with bounds gets a clipped copy; the density of the
    clipped action is another one.

    Args:
        mean: Shape `(B, A)`.
        log_std: Shape `(A,)` or `(B, A)`.

    Example:
        >>> Gaussian(torch.zeros(1, 2), torch.zeros(2)).log_prob(torch.zeros(1, 2))
        tensor([-1.8379])
    """

    def __init__(self, mean: Tensor, log_std: Tensor):
        self.mean = mean
        self.log_std = log_std

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """What the distribution was made from."""
        return self.mean, self.log_std

    def log_prob(self, actions: Tensor) -> Tensor:
        """Returns log N(a), shape `(B,)`: -sum_i [((a_i - mean_i) / std_i)^2 / 2 + log std_i + log sqrt(2 pi)]."""
        z = (actions - self.mean) * torch.exp(-self.log_std)
        size = self.mean.shape[-1]
        return -0.5 * z.square().sum(-1) - self.log_std.sum(-1) - size * LOG_SQRT_2PI

    def entropy(self) -> Tensor:
        """Returns sum_i [log std_i + 1/2 + log sqrt(2 pi)] in nats, shape `(B,)`."""
        size = self.mean.shape[-1]
        return (self.log_std.sum(-1) + size * (0.5 + LOG_SQRT_2PI)).expand(self.mean.shape[:-1])

    def mode(self) -> Tensor:
        """Returns the mean, shape `(B, A)`."""
        return self.mean

    def sample(self, noise: Tensor) -> Tensor:
        """Returns actions `(B, A)` drawn with standard normal `noise` `(B, A)`: mean + std * noise."""
        return self.mean + torch.exp(self.log_std) * noise

    def frozen(self) -> Gaussian:
        """Returns it with parameters of its own and without a gradient: it stays while the actor goes on.

        `log_std` may be the actor's parameter itself, which an optimiser changes where it lies.
        """
        return Gaussian(self.mean.detach().clone(), self.log_std.detach().clone())


class TanhGaussian:
    """The distribution of a = tanh(u), u ~ N(mean, diag(exp(log_std))^2), over the box [-1, 1]^A.

        log pi(a) = log N(u) - sum_i log(1 - tanh(u_i)^2),   log(1 - tanh(u)^2) = 2 (log 2 - u - softplus(-2 u))

    (Haarnoja et al. 2018, *Soft Actor-Critic*, equation 21 of arXiv:1801.01290.) The right-hand form is finite for all
    u, and so is its gradient; 1 - tanh(u)^2 rounds to 0 at |u| = 10 in float32.

    **Densities are measured in the box [-1, 1]**, whatever the environment's bounds are: the action that it gets,
    low + (a + 1) (high - low) / 2, has log pi(a) - sum_i log((high_i - low_i) / 2). So a target entropy means the same
    in every environment. CleanRL subtracts that sum, Stable-Baselines3 does not.

    Args:
        mean: Of u, shape `(B, A)`.
        log_std: Of u, shape `(A,)` or `(B, A)`.

    Example:
        >>> distribution = TanhGaussian(torch.zeros(1, 1), torch.zeros(1))
        >>> distribution.sample_and_log_prob(torch.zeros(1, 1))
        (tensor([[0.]]), tensor([-0.9189]))
    """

    def __init__(self, mean: Tensor, log_std: Tensor):
        self._parameters: tuple[Tensor, Tensor] | None = (mean, log_std)
        self._outputs: Tensor | None = None
        self._bounds = (-math.inf, math.inf)

    @classmethod
    def of_outputs(cls, outputs: Tensor, low: float, high: float) -> TanhGaussian:
        """Returns the one whose mean is the first half of `outputs` `(B, 2A)`, and log_std the second, clamped.

        From contiguous float32 outputs on the CPU, `sample_and_log_prob` draws in one compiled call each way, equal to
        torch's operations to float32 rounding.

        Args:
            outputs: A network's.
            low: Least log_std.
            high: Largest log_std.

        Example:
            >>> TanhGaussian.of_outputs(torch.tensor([[0.5, 9.0]]), -20.0, 2.0).log_std
            tensor([[2.]])
        """
        found = cls.__new__(cls)
        found._parameters, found._outputs, found._bounds = None, outputs, (low, high)
        return found

    @property
    def parameters(self) -> tuple[Tensor, Tensor]:
        """What the distribution was made from: mean and log_std."""
        if self._parameters is None:
            assert self._outputs is not None
            mean, log_std = self._outputs.chunk(2, dim=-1)
            self._parameters = mean, log_std.clamp(*self._bounds)
        return self._parameters

    @property
    def mean(self) -> Tensor:
        """Of u, `(B, A)`."""
        return self.parameters[0]

    @property
    def log_std(self) -> Tensor:
        """Of u, `(A,)` or `(B, A)`."""
        return self.parameters[1]

    def sample(self, noise: Tensor) -> Tensor:
        """Returns actions `(B, A)` in [-1, 1] drawn with standard normal `noise` `(B, A)`: tanh(mean + std * noise)."""
        return torch.tanh(self.mean + torch.exp(self.log_std) * noise)

    def sample_and_log_prob(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Returns `sample(noise)` and its log pi, `(B,)`. Gradients go through both: the reparameterised ones.

        Exact where `log_prob` of the action alone is not: near the bounds many u round to one action.
        """
        if self._outputs is not None and tanh_gaussian.takes(self._outputs, noise):
            return tanh_gaussian.draw(self._outputs, noise, self._bounds)
        return tanh_gaussian.draw_in_torch(self.mean, self.log_std, noise)

    def log_prob(self, actions: Tensor) -> Tensor:
        """Returns log pi(a), shape `(B,)`, of actions `(B, A)`.

        u = artanh(a); an action at a bound, where u would be infinite, is taken as the nearest one inside.
        """
        limit = 1.0 - 0.5 * torch.finfo(actions.dtype).eps
        return self.log_prob_before_tanh(torch.atanh(actions.clamp(-limit, limit)))

    def log_prob_before_tanh(self, u: Tensor) -> Tensor:
        """Returns log pi(tanh(u)), shape `(B,)`, of u `(B, A)`."""
        z = (u - self.mean) * torch.exp(-self.log_std)
        return (-0.5 * z.square() - self.log_std - LOG_SQRT_2PI - log_slope_of_tanh(u)).sum(-1)

    def mode(self) -> Tensor:
        """Returns tanh(mean), shape `(B, A)`: the median of each action, which is what acts without noise."""
        return torch.tanh(self.mean)


Distribution = Categorical | Gaussian


def kl_divergence(p: Distribution, q: Distribution) -> Tensor:
    """Returns KL(p || q) in nats, shape `(B,)`, in closed form; never below 0 but for rounding.

        Categorical:  sum_a p(a) (log p(a) - log q(a))
        Gaussian:     sum_i [log std_q,i - log std_p,i + (std_p,i^2 + (mean_p,i - mean_q,i)^2) / (2 std_q,i^2) - 1/2]

    The direction matters: KL(p || q) is an expectation over p. Gradients reach both.

    Args:
        p: What the expectation is over, of B states.
        q: Of the same kind, states and number of actions.

    Raises:
        TypeError: one is categorical, the other Gaussian.

    Source:
        Kullback and Leibler 1951, *On Information and Sufficiency*, equation 2.4.

    Example:
        >>> p, q = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.25, 0.75]])
        >>> kl_divergence(Categorical(p.log()), Categorical(q.log()))
        tensor([0.1438])
        >>> kl_divergence(Categorical(q.log()), Categorical(p.log()))
        tensor([0.1308])
    """
    if isinstance(p, Categorical) and isinstance(q, Categorical):
        return (p.log_probs.exp() * (p.log_probs - q.log_probs)).sum(-1)
    if isinstance(p, Gaussian) and isinstance(q, Gaussian):
        log_ratio = q.log_std - p.log_std
        z = (p.mean - q.mean) * torch.exp(-q.log_std)
        # expm1: the deviations of two policies that are close differ by less than their squares can show.
        return (0.5 * torch.expm1(-2.0 * log_ratio) + log_ratio + 0.5 * z.square()).sum(-1)
    raise TypeError(f"q: got {type(q).__name__}, expected {type(p).__name__} like p")


def gumbel(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Returns standard Gumbel noise, -log(-log u): the largest of logits + noise is a draw from their softmax.

    Example:
        >>> gumbel((2, 3), torch.Generator().manual_seed(0)).shape
        torch.Size([2, 3])
    """
    exponential = torch.empty(shape, device=generator.device).exponential_(generator=generator)
    return -exponential.log()
