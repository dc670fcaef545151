import pytest
import torch
from torch.distributions import Categorical as TorchCategorical
from torch.distributions import Independent, Normal
from torch.distributions import kl_divergence as torch_kl_divergence

from fastac.distributions import Categorical, Gaussian, gumbel, kl_divergence


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


def pairs():
    """Two categorical and two Gaussian distributions of six states, ours and torch's, and what they are made of."""
    generator = torch.Generator().manual_seed(0)

    def leaf(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    logits = leaf(6, 4), leaf(6, 4)
    yield "categorical", logits, [Categorical(x) for x in logits], [TorchCategorical(logits=x) for x in logits]
    means, log_stds = (leaf(6, 3), leaf(6, 3)), (leaf(3), leaf(6, 3))
    ours = [Gaussian(mean, log_std) for mean, log_std in zip(means, log_stds, strict=True)]
    theirs = [
        Independent(Normal(mean, log_std.exp().expand(6, 3)), 1) for mean, log_std in zip(means, log_stds, strict=True)
    ]
    yield "gaussian", (*means, *log_stds), ours, theirs


@pytest.mark.parametrize(
    ("kind", "leaves", "ours", "theirs"), [*pairs()], ids=lambda x: x if isinstance(x, str) else ""
)
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_kl_agrees_with_torch_in_values_and_gradients_in_both_directions(kind, leaves, ours, theirs, order):
    p, q = order
    mine, other = kl_divergence(ours[p], ours[q]), torch_kl_divergence(theirs[p], theirs[q])
    assert mine.shape == (6,)
    torch.testing.assert_close(mine, other)
    for leaf in leaves:
        gradient = torch.autograd.grad(mine.sum(), leaf, retain_graph=True)[0]
        torch.testing.assert_close(gradient, torch.autograd.grad(other.sum(), leaf, retain_graph=True)[0])
    assert not torch.allclose(mine, kl_divergence(ours[q], ours[p])), "the direction matters"


def test_kl_is_the_expectation_over_its_first_argument():
    """By sum over the actions, and by integration."""
    p, q = torch.tensor([0.9, 0.1], dtype=torch.float64), torch.tensor([0.5, 0.5], dtype=torch.float64)
    expected = (p * (p.log() - q.log())).sum()
    torch.testing.assert_close(kl_divergence(Categorical(p.log()[None]), Categorical(q.log()[None]))[0], expected)
    narrow, wide = (Gaussian(torch.zeros(1, 1).double(), torch.tensor([x]).double()) for x in (-1.0, 0.5))
    x = torch.linspace(-8, 8, 20_001, dtype=torch.float64)[:, None]
    density = narrow.log_prob(x).exp()
    integral = torch.trapezoid(density * (narrow.log_prob(x) - wide.log_prob(x)), x[:, 0])
    torch.testing.assert_close(kl_divergence(narrow, wide)[0], integral, atol=1e-8, rtol=0)


def test_kl_of_what_is_almost_equal_is_not_lost_in_float32():
    """Two log deviations 1e-3 apart are 1e-6 nats apart: squares, one minus the other, would leave a tenth of it."""
    for shift in (1e-3, -1e-3):
        p, q = (Gaussian(torch.zeros(1, 1), torch.tensor([x])) for x in (0.7, 0.7 + shift))
        exact = kl_divergence(*(Gaussian(d.mean.double(), d.log_std.double()) for d in (p, q))).item()
        assert kl_divergence(p, q).item() == pytest.approx(exact, rel=0.1)
        assert kl_divergence(p, p).item() == 0.0
    with pytest.raises(TypeError, match="q: got Categorical, expected Gaussian like p"):
        kl_divergence(p, Categorical(torch.zeros(1, 2)))


def test_a_frozen_distribution_stays_while_the_actors_parameters_move():
    for distribution, parameters in [
        (lambda x: Categorical(x), torch.zeros(2, 3)),
        (lambda x: Gaussian(x, x[0]), torch.zeros(2, 3)),
    ]:
        parameters.requires_grad_()
        moving = distribution(parameters)
        frozen = moving.frozen()
        assert kl_divergence(moving, frozen).abs().max() == 0
        assert not frozen.log_prob(frozen.mode()).requires_grad
        with torch.no_grad():
            parameters[0, 1] += 1.0
        assert kl_divergence(distribution(parameters), frozen).sum() > 0.1
