import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastac.normalize import ObservationNormalizer, RewardNormalizer, RunningMeanStd, normalize_advantages

KINDS = [lambda x: x, torch.from_numpy]


def as_array(x):
    return x.numpy() if isinstance(x, torch.Tensor) else x


@pytest.mark.parametrize("wrong", ["x", [1.0, 2.0], None])
def test_what_is_neither_array_nor_tensor_is_named(wrong):
    with pytest.raises(TypeError, match=f"advantages: got {type(wrong).__name__}, expected a numpy array or a torch"):
        normalize_advantages(wrong)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_advantages_come_out_standardised(kind, dtype):
    x = (np.random.default_rng(0).normal(size=(7, 9)) * 3 + 1000).astype(dtype)
    wide = x.astype(np.float64)
    expected = (wide - wide.mean()) / (wide.std(ddof=1) + 1e-8)
    out = as_array(normalize_advantages(kind(x)))
    assert out.dtype == dtype
    np.testing.assert_allclose(out, expected, atol=3e-4 if dtype is np.float32 else 1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_masked_elements_count_in_nothing(kind):
    """Row R12: statistics over the valid rows alone, whatever stands under the mask."""
    rng = np.random.default_rng(1)
    x, mask = rng.normal(size=50).astype(np.float32), rng.random(50) < 0.6
    expected = np.zeros_like(x)
    expected[mask] = normalize_advantages(x[mask])
    x[~mask] = np.where(rng.random((~mask).sum()) < 0.5, np.nan, np.inf)
    np.testing.assert_allclose(as_array(normalize_advantages(kind(x), kind(mask))), expected, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("values", [[], [3.5], [0.1] * 7, [1e-20] * 3, [0.1] * 1000])
@pytest.mark.parametrize("masked", [False, True])
def test_one_element_or_a_constant_gives_zeros(kind, values, masked):
    """Row R12: zeros, not NaN, and no remainder of rounding blown up."""
    x = np.array(values, np.float32)
    mask = kind(np.ones(len(x), bool)) if masked else None
    assert not as_array(normalize_advantages(kind(x), mask)).any()


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_mask_gives_zeros(kind):
    assert not as_array(normalize_advantages(kind(np.full(4, np.nan)), kind(np.zeros(4, bool)))).any()


@pytest.mark.parametrize("kind", KINDS)
def test_a_nan_that_comes_in_goes_out(kind):
    assert np.isnan(as_array(normalize_advantages(kind(np.array([1.0, np.nan, 2.0]))))).any()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_constant_beside_a_nan_is_none(dtype):
    assert np.isnan(normalize_advantages(np.array([np.nan, 1.0, 1.0], dtype))).all()
    kept = normalize_advantages(np.array([np.nan, 1.0, 3.0], dtype), np.array([False, True, True]))
    np.testing.assert_allclose(kept, [0, -(0.5**0.5), 0.5**0.5], rtol=1e-6)


@pytest.mark.parametrize("size", [2047, 2048, 2049, 10_000])
def test_large_arrays_far_from_zero_keep_their_digits(size):
    """Row R11: across blocks, against float64; any layout."""
    x = (np.random.default_rng(size).normal(size=(size, 2)) + 1e3).astype(np.float32)
    wide = x.astype(np.float64)
    expected = (wide - wide.mean()) / wide.std(ddof=1)
    np.testing.assert_allclose(normalize_advantages(x), expected, atol=2e-6)
    np.testing.assert_allclose(normalize_advantages(x.T), expected.T, atol=2e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("offset", [0.0, 1e3])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 3e-6), (np.float64, 1e-10)])
def test_blocks_merge_whatever_the_mask_leaves_of_them(kind, offset, dtype, tolerance):
    """Row R11: whole blocks masked, one element left of another, means far apart; NaN and infinity under the mask."""
    rng = np.random.default_rng(3)
    x = (rng.normal(size=5 * 2048 + 7) + offset).astype(dtype)
    x[2048 : 3 * 2048] += 5
    mask = rng.random(len(x)) < 0.7
    mask[:2048] = mask[3 * 2048 : 4 * 2048] = False
    mask[3 * 2048 + 5] = True
    wide = x.astype(np.float64)
    kept = wide[mask]
    expected = np.where(mask, (wide - kept.mean()) / (kept.std(ddof=1) + 1e-8), 0)
    x[~mask] = np.resize([np.nan, np.inf, -np.inf], (~mask).sum())
    out = as_array(normalize_advantages(kind(x), kind(mask)))
    assert out.dtype == dtype
    np.testing.assert_allclose(out, expected, atol=tolerance * max(1, offset / 10))


@pytest.mark.parametrize("kind", KINDS)
def test_constant_but_for_the_last_element_is_no_constant(kind):
    x = np.full(5000, 0.1, np.float32)
    x[-1] = 0.2
    assert as_array(normalize_advantages(kind(x)))[-1] > 10
    mask = np.ones(5000, bool)
    mask[-1] = False
    assert not as_array(normalize_advantages(kind(x), kind(mask))).any()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_tensors_of_every_layout_agree_with_plain_ones(dtype, masked):
    """Views, other masks and a negated imaginary part take torch's operations, plain tensors the kernel."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 8, generator=generator).to(dtype)
    mask = torch.rand(6, 8, generator=generator) < 0.7 if masked else None
    expected = normalize_advantages(x.clone(), mask).double()
    tolerance = {torch.float16: 2e-3, torch.bfloat16: 2e-2, torch.float32: 1e-6, torch.float64: 1e-12}[dtype]
    strided = torch.empty(6, 16, dtype=dtype)[:, ::2].copy_(x)
    others = [(strided, mask), (x.t().contiguous().t(), mask), (x.clone().requires_grad_(), mask)]
    others += [] if mask is None else [(x, mask.float()), (x, mask.t().contiguous().t())]
    if dtype is torch.float64:
        others.append((torch.complex(x, -x).conj().imag, mask))
    for y, valid in others:
        out = normalize_advantages(y, valid)
        assert out.dtype is dtype
        assert not out.requires_grad
        torch.testing.assert_close(out.double(), expected, rtol=0, atol=tolerance)


def test_whoever_listens_to_torch_hears_of_it():
    """Under `vmap`, a dispatch mode or the compiler the operations are torch's, with the same result."""
    x = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    rows = torch.stack([normalize_advantages(row) for row in x])
    torch.testing.assert_close(torch.func.vmap(normalize_advantages)(x), rows)
    compiled = torch.compile(normalize_advantages, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x[0]), rows[0])
    with torch.utils.flop_counter.FlopCounterMode(display=False):
        torch.testing.assert_close(normalize_advantages(x[1]), rows[1])


def test_wrong_arguments_are_named():
    with pytest.raises(TypeError, match="advantages: got dtype int64"):
        normalize_advantages(np.arange(3))
    with pytest.raises(TypeError, match="mask: got Tensor, expected ndarray"):
        normalize_advantages(np.zeros(3), torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"mask: got shape \(2,\), expected \(3,\)"):
        normalize_advantages(np.zeros(3), np.ones(2, bool))


def test_tensors_come_out_detached():
    assert not normalize_advantages(torch.randn(4, requires_grad=True)).requires_grad


@given(st.lists(st.integers(0, 6), max_size=6), st.integers(0, 2**31))
def test_moments_merge_to_those_of_everything(sizes, seed):
    rng = np.random.default_rng(seed)
    batches = [rng.normal(size=(n, 3)) * [1, 10, 100] + [0, 1e3, -5] for n in sizes]
    moments = RunningMeanStd((3,))
    for batch in batches:
        moments.update(batch)
    everything = np.concatenate([np.zeros((0, 3)), *batches])
    assert moments.count == len(everything)
    if len(everything):
        np.testing.assert_allclose(moments.mean, everything.mean(0), rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(moments.var, everything.var(0), rtol=1e-9, atol=1e-9)


def test_observations_are_normalised_per_dimension():
    """Row A1."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1000, 2)) * [1, 1000] + [5, -300]
    normalize = ObservationNormalizer((2,))
    normalize.update(x)
    out = normalize(x)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(out.std(0), 1, atol=1e-5)
    assert np.abs(normalize(x * 100)).max() == 10


def test_calling_does_not_move_the_statistics():
    normalize = ObservationNormalizer((1,))
    normalize.update(np.array([[0.0], [2.0]]))
    before = normalize.state_dict()
    normalize(np.array([[100.0]]))
    assert normalize.state_dict() == before


def test_rewards_are_scaled_by_the_discounted_returns_deviation():
    """Row A2: against a loop over the running discounted return, reset at episode ends, fillers left out."""
    rng = np.random.default_rng(0)
    shape, gamma = (40, 3), 0.9
    rewards, ended, mask = rng.normal(size=shape) + 2, rng.random(shape) < 0.2, rng.random(shape) < 0.8
    normalizer = RewardNormalizer(3, gamma)
    halves = [normalizer(rewards[s], ended[s], mask[s]) for s in (slice(0, 20), slice(20, 40))]
    seen = []
    for n in range(3):
        running = 0.0
        for t in range(40):
            if mask[t, n]:
                running = gamma * running + rewards[t, n]
                seen.append((t, running))
                running = 0.0 if ended[t, n] else running
    for half, end in zip(halves, (20, 40), strict=True):
        std = np.std([value for t, value in seen if t < end])
        rows = slice(end - 20, end)
        expected = np.where(mask[rows], rewards[rows] / std, 0)
        np.testing.assert_allclose(half, expected, rtol=1e-5)
    assert np.std([v for _, v in seen]) != pytest.approx(rewards.std(), rel=0.1)


def test_normalisers_go_on_from_their_state():
    rng = np.random.default_rng(0)
    rewards, no, yes = rng.normal(size=(2, 5, 2)), np.zeros((5, 2), bool), np.ones((5, 2), bool)
    first, second = RewardNormalizer(2, 0.9), RewardNormalizer(2, 0.9)
    first(rewards[0], no, yes)
    second.load_state_dict(first.state_dict())
    assert np.array_equal(first(rewards[1], no, yes), second(rewards[1], no, yes))
    one, two = ObservationNormalizer((2,)), ObservationNormalizer((2,))
    one.update(rewards[0])
    two.load_state_dict(one.state_dict())
    one.update(rewards[1])
    two.update(rewards[1])
    assert np.array_equal(one(rewards[0]), two(rewards[0]))


def test_r11_normalised_advantages_far_from_zero() -> None:
    """Row R11: E[x^2] - E[x]^2 of values around 1e4 has no digit left in float32; centred squares have them all."""
    x = (1e4 + np.random.default_rng(0).normal(size=10_000)).astype(np.float32)
    wide = x.astype(np.float64)
    expected = (wide - wide.mean()) / wide.std(ddof=1)
    for kind in KINDS:
        np.testing.assert_allclose(as_array(normalize_advantages(kind(x))), expected, atol=2e-3)


def moments_of_numpy(batches):
    """The running moments by the operations of NumPy, each rounded by itself."""
    mean, var, count = None, None, 0
    for rows in batches:
        n, center = len(rows), rows.mean(0)
        squares = ((rows - center) * (rows - center)).sum(0)
        if count == 0:
            mean, var = center, squares / n
        else:
            delta, total = center - mean, count + n
            mean = mean + delta * (n / total)
            var = (var * count + squares + delta * delta * (count * n / total)) / total
        count += n
    return mean, var


@pytest.mark.parametrize(("rows", "size"), [(1, 17), (4, 4), (16, 6)])
def test_the_kernels_round_as_numpy_does(rows, size):
    """What a policy saw can be computed again from the statistics, bit for bit."""
    rng = np.random.default_rng(0)
    batches = [rng.normal(size=(rows, size)) * 3 + 5 for _ in range(50)]
    normalizer = ObservationNormalizer((size,))
    for k, batch in enumerate(batches, 1):
        normalizer.update(batch)
        mean, var = moments_of_numpy(batches[:k])
        np.testing.assert_array_equal(normalizer.moments.mean, mean)
        np.testing.assert_array_equal(normalizer.moments.var, var)
        wanted = np.clip((batch - mean) / np.sqrt(var + 1e-8), -10.0, 10.0).astype(np.float32)
        np.testing.assert_array_equal(normalizer(batch), wanted)
        np.testing.assert_array_equal(normalizer(np.asfortranarray(batch)), wanted)


def test_what_was_handed_out_of_the_moments_stays():
    normalizer = ObservationNormalizer((2,))
    normalizer.update(np.ones((3, 2)))
    mean = normalizer.moments.mean
    normalizer.update(np.zeros((3, 2)))
    assert mean.tolist() == [1.0, 1.0]
