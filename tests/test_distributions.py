import math

import pytest
import torch
from torch.distributions import Categorical as TorchCategorical
from torch.distributions import Independent, Normal, TanhTransform, TransformedDistribution
from torch.distributions import kl_divergence as torch_kl_divergence

from fastac.distributions import Categorical, Gaussian, TanhGaussian, gumbel, kl_divergence


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


def tanh_gaussian(mean, log_std, dtype=torch.float64):
    return TanhGaussian(torch.tensor([[mean]], dtype=dtype), torch.tensor([[log_std]], dtype=dtype))


@pytest.mark.parametrize(("mean", "log_std"), [(0.0, 0.0), (0.7, -1.5), (-1.0, 0.5), (3.0, -0.5)])
def test_a_tanh_gaussian_integrates_to_one(mean, log_std):
    """Over a in [-1, 1], with a = tanh(u) on an even grid of u: da = (1 - tanh(u)^2) du."""
    u = torch.linspace(-20, 20, 400_001, dtype=torch.float64)
    actions = torch.tanh(u)
    inside = actions.abs() < 1 - 1e-12  # beyond, artanh has lost u; what lies there is little
    density = tanh_gaussian(mean, log_std).log_prob(actions[inside, None]).exp()
    mass = torch.trapezoid(density, actions[inside])
    assert mass.item() == pytest.approx(1.0, abs=2e-6)


def test_a_tanh_gaussian_is_the_change_of_variables():
    """Row A6: torch's own transformed distribution, where that is accurate; and both ways to log pi agree."""
    generator = torch.Generator().manual_seed(0)
    mean, log_std, noise = (torch.randn(50, 3, generator=generator, dtype=torch.float64) for _ in range(3))
    ours = TanhGaussian(mean, 0.3 * log_std)
    theirs = TransformedDistribution(Normal(mean, (0.3 * log_std).exp()), TanhTransform())
    actions, log_prob = ours.sample_and_log_prob(noise)
    torch.testing.assert_close(actions, ours.sample(noise))
    torch.testing.assert_close(log_prob, theirs.log_prob(actions).sum(-1), atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(log_prob, ours.log_prob(actions), atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(ours.mode(), torch.tanh(mean))
    # A histogram of draws has the density that is claimed.
    one = tanh_gaussian(0.4, -0.3)
    draws = one.sample(torch.randn(200_000, 1, generator=generator, dtype=torch.float64)).flatten()
    counts = torch.histc(draws, 40, -1, 1) / len(draws) * 20
    middles = torch.linspace(-0.975, 0.975, 40, dtype=torch.float64)
    torch.testing.assert_close(counts, one.log_prob(middles[:, None]).exp(), atol=0.03, rtol=0.1)


def test_a_tanh_gaussian_is_finite_far_out():
    """Row A6: at |u| = 20 float32's 1 - tanh(u)^2 is 0; log pi and its gradients are finite, and right."""
    for dtype in (torch.float32, torch.float64):
        for u in (20.0, -20.0, 60.0):
            mean = torch.tensor([[u]], dtype=dtype, requires_grad=True)
            log_std = torch.zeros(1, 1, dtype=dtype, requires_grad=True)
            actions, log_prob = TanhGaussian(mean, log_std).sample_and_log_prob(torch.full((1, 1), 0.5, dtype=dtype))
            (log_prob.sum() + actions.sum()).backward()
            at = u + 0.5
            expected = -0.5 * 0.25 - 0.9189385332 - 2 * (math.log(2) - abs(at))
            assert log_prob.item() == pytest.approx(expected, rel=1e-6)
            assert mean.grad.item() == pytest.approx(math.copysign(2.0, u), rel=1e-6)
            assert torch.isfinite(log_std.grad).all()
            assert torch.isfinite(TanhGaussian(mean, log_std).log_prob(torch.ones(1, 1, dtype=dtype))).all()


def test_the_score_function_and_the_reparameterised_gradient_agree():
    """Both estimate d/d(mean, log_std) E[Q(a) - alpha log pi(a)], within 4 standard errors of their difference."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(200_000, 1, generator=generator, dtype=torch.float64)
    mean = torch.full((200_000, 1), 0.3, dtype=torch.float64, requires_grad=True)
    log_std = torch.full((200_000, 1), -0.4, dtype=torch.float64, requires_grad=True)
    distribution, alpha = TanhGaussian(mean, log_std), 0.2

    def q(actions):
        return (2 * actions - actions**3).squeeze(-1)

    actions, log_prob = distribution.sample_and_log_prob(noise)
    reparameterised = torch.autograd.grad((q(actions) - alpha * log_prob).sum(), (mean, log_std), retain_graph=True)
    fixed, weight = actions.detach(), (q(actions) - alpha * log_prob).detach()
    score = torch.autograd.grad((distribution.log_prob(fixed) * weight).sum(), (mean, log_std))
    for one, other in zip(reparameterised, score, strict=True):
        difference = (one - other).flatten()
        assert difference.mean().abs() < 4 * difference.std() / len(difference) ** 0.5
        assert one.mean().abs() > 20 * one.std() / len(difference) ** 0.5, "the gradient is not nothing"
