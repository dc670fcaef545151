import pytest
import torch
from torch.distributions import Categorical as TorchCategorical
from torch.distributions import Independent, Normal

from fastac.distributions import Categorical, Gaussian, gumbel


def test_categorical_agrees_with_torch_in_values_and_gradients():
    logits = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    actions = torch.tensor([0, 3, 1, 2, 2, 0])
    ours, theirs = Categorical(logits), TorchCategorical(logits=logits)
    torch.testing.assert_close(ours.log_prob(actions), theirs.log_prob(actions))
    torch.testing.assert_close(ours.entropy(), theirs.entropy())
    assert torch.equal(ours.mode(), theirs.mode)
    for mine, other in ((ours.log_prob(actions), theirs.log_prob(actions)), (ours.entropy(), theirs.entropy())):
        gradient = torch.autograd.grad(mine.sum(), logits, retain_graph=True)[0]
        torch.testing.assert_close(gradient, torch.autograd.grad(other.sum(), logits, retain_graph=True)[0])


def test_gaussian_agrees_with_torch_in_values_and_gradients():
    mean = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    log_std = torch.randn(3, dtype=torch.float64, requires_grad=True)
    actions = torch.randn(6, 3, dtype=torch.float64) * 3
    ours, theirs = Gaussian(mean, log_std), Independent(Normal(mean, log_std.exp().expand(6, 3)), 1)
    torch.testing.assert_close(ours.log_prob(actions), theirs.log_prob(actions))
    torch.testing.assert_close(ours.entropy(), theirs.entropy())
    for variable in (mean, log_std):
        gradient = torch.autograd.grad(ours.log_prob(actions).sum(), variable, retain_graph=True)[0]
        expected = torch.autograd.grad(theirs.log_prob(actions).sum(), variable, retain_graph=True)[0]
        torch.testing.assert_close(gradient, expected)


def test_a_gaussians_density_is_the_raw_actions():
    """Row A10: an action beyond the bounds has its own density; the clipped one would be more probable."""
    distribution = Gaussian(torch.zeros(1, 1), torch.zeros(1))
    raw = torch.tensor([[2.5]])
    assert distribution.log_prob(raw) < distribution.log_prob(raw.clamp(-1, 1))
    assert distribution.log_prob(raw).item() == pytest.approx(-0.5 * 2.5**2 - 0.9189385332)


def test_samples_follow_their_noise():
    logits = torch.tensor([[0.1, 0.7, 0.2]]).log().expand(20_000, 3)
    generator = torch.Generator().manual_seed(0)
    counts = Categorical(logits).sample(gumbel((20_000, 3), generator)).bincount() / 20_000
    torch.testing.assert_close(counts, torch.tensor([0.1, 0.7, 0.2]), atol=0.02, rtol=0)
    noise = torch.randn(5, 2)
    mean, log_std = torch.randn(5, 2), torch.tensor([0.3, -2.0])
    torch.testing.assert_close(Gaussian(mean, log_std).sample(noise), mean + log_std.exp() * noise)
