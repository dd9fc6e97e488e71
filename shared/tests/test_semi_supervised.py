"""Mixing, sharpening and ramps: worked numbers, exact arithmetic, the law of the draws, gradients, bad input."""

import math
from decimal import Decimal, localcontext

import pytest
import torch
import torch.nn.functional as F
from scipy import stats

from gen_core.losses.semi_supervised import mixup, mixup_draw, ramp_up, sharpen

K = torch.arange(12, dtype=torch.float64).view(4, 3)
A = torch.sin(0.37 * K + 0.1)
PARTNER = torch.tensor([2, 0, 0, 3])


def generator(seed):
    return torch.Generator().manual_seed(seed)


def rows(n, c, seed, dtype=torch.float64):
    return torch.randn(n, c, generator=generator(seed), dtype=torch.float64).mul(3).softmax(1).to(dtype)


# --- mixup


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("shape", [(4,), (4, 3), (4, 1, 3)])
def test_mixup_against_a_plain_loop(weight, shape):
    x = A.flatten()[: math.prod(shape)].view(shape)
    flat = x.reshape(4, -1).tolist()
    expected = [
        [weight * u + (1 - weight) * v for u, v in zip(flat[i], flat[j], strict=True)]
        for i, j in enumerate(PARTNER.tolist())
    ]
    found = mixup(x, weight, PARTNER)
    assert found.shape == x.shape
    torch.testing.assert_close(found.reshape(4, -1), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-15)


def test_mixed_labels_are_a_mixture_of_cross_entropies():
    logits, labels = torch.sin(0.91 * K), torch.tensor([0, 2, 1, 1])
    soft = mixup(F.one_hot(labels).double(), 0.3, PARTNER)
    expected = 0.3 * F.cross_entropy(logits, labels) + 0.7 * F.cross_entropy(logits, labels[PARTNER])
    torch.testing.assert_close(F.cross_entropy(logits, soft), expected, rtol=1e-12, atol=0)


def test_optimal_interpolation_worked():
    """SHOT-VAE's table: nearest partners, weight 0.3, the un-mixed predictions as predictions."""
    logits = torch.sin(0.91 * torch.arange(20, dtype=torch.float64)).view(4, 5)
    target = mixup(logits.softmax(1), 0.3, torch.tensor([1, 0, 1, 0]))
    assert F.cross_entropy(logits, target).item() == pytest.approx(1.715564, abs=1e-6)
    whole = mixup(logits.softmax(1), 1.0, torch.tensor([1, 0, 1, 0]))
    assert F.cross_entropy(logits, whole).item() == pytest.approx(1.436645, abs=1e-6)


def test_mixup_gradients_reach_both_rows():
    x = A.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda v: mixup(v, 0.3, PARTNER), (x,))
    mixup(x, 0.25, PARTNER).sum().backward()
    assert x.grad[:, 0].tolist() == pytest.approx([0.25 + 2 * 0.75, 0.25, 0.25 + 0.75, 0.25 + 0.75])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_mixup_keeps_the_dtype(dtype):
    x = (A * 6e4).to(dtype)  # near float16's end
    found = mixup(x, 0.5, PARTNER)
    assert found.dtype == dtype and found.isfinite().all()
    torch.testing.assert_close(found, mixup(x.double(), 0.5, PARTNER).to(dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(mixup(x, 0.5, PARTNER), found)


def test_bad_mixup():
    for wrong in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"weight must lie in \[0, 1\], got"):
            mixup(A, wrong, PARTNER)
    for wrong, message in [
        (PARTNER[:3], r"4 int64, one for each row of x, got torch.int64 \(3,\)"),
        (PARTNER.float(), "4 int64"),
        (PARTNER.bool(), "4 int64"),
        (PARTNER[:, None], "4 int64"),
    ]:
        with pytest.raises(ValueError, match="partner must be " + message):
            mixup(A, 0.5, wrong)
    for wrong in (torch.tensor([0, 1, 2, 4]), torch.tensor([-1, 0, 0, 0])):
        with pytest.raises(ValueError, match=r"partner must lie in 0\.\.3, got"):
            mixup(A, 0.5, wrong)
    with pytest.raises(ValueError, match=r"x must have a floating dtype, got torch\.int64"):
        mixup(torch.tensor([0, 1, 2, 3]), 0.5, PARTNER)
    with pytest.raises(ValueError, match="x must not be empty"):
        mixup(A[:0], 0.5, PARTNER[:0])
    with pytest.raises(ValueError, match=r"x must have shape \(N, ...\)"):
        mixup(torch.tensor(1.0), 0.5, PARTNER)
    with pytest.raises(ValueError, match="x must be finite"):
        mixup(A / 0, 1.0, PARTNER)


# --- the draw


@pytest.mark.parametrize("alpha", [0.1, 0.4, 1.0, 2.0, 50.0])
def test_weights_follow_the_beta_law(alpha):
    g = generator(1)
    drawn = [mixup_draw(1, alpha, g)[0] for _ in range(2000)]
    assert all(0 <= v <= 1 for v in drawn)
    assert (
        stats.kstest(drawn, stats.beta(alpha, alpha).cdf).pvalue > 0.01
    )  # 0.85 at this seed; below 2e-3 where alpha is 1.3 times as large


def test_partners_are_uniform_permutations():
    g = generator(0)
    counts = torch.zeros(4, 4)
    for _ in range(2000):
        partner = mixup_draw(4, 1.0, g)[1]
        assert sorted(partner.tolist()) == [0, 1, 2, 3]
        counts[torch.arange(4), partner] += 1
    assert (counts - 500).abs().max() < 100  # 5 standard deviations of 19.4


def test_the_generator_alone_decides():
    state = torch.random.get_rng_state()
    first, again, other = (mixup_draw(50, 0.4, generator(seed)) for seed in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert first[0] == again[0] and torch.equal(first[1], again[1])
    assert first[0] != other[0] and not torch.equal(first[1], other[1])
    torch.manual_seed(5)
    free = mixup_draw(50, 0.4)
    torch.manual_seed(5)
    assert mixup_draw(50, 0.4)[0] == free[0] != mixup_draw(50, 0.4)[0]


def test_extreme_alphas():
    weight, partner = mixup_draw(6, 0.0, generator(0))
    assert weight == 1.0 and len(partner) == 6 and partner.dtype == torch.int64
    x = rows(6, 3, 0)
    assert torch.equal(mixup(x, weight, partner), x)
    for alpha in (1e-8, 1e-3, 1e3, 1e8):
        drawn = [mixup_draw(1, alpha, generator(seed))[0] for seed in range(20)]
        assert all(0 <= v <= 1 for v in drawn)
        assert min(min(v, 1 - v) for v in drawn) < 1e-3 if alpha < 1 else max(abs(v - 0.5) for v in drawn) < 0.1
    assert mixup_draw(1, 1.0)[1].tolist() == [0]


def test_bad_draws():
    for alpha in (-0.1, math.nan, math.inf):
        with pytest.raises(ValueError, match="alpha must be a finite number of at least 0, got"):
            mixup_draw(4, alpha)
    for count in (0, -3):
        with pytest.raises(ValueError, match="rows must be at least 1, got"):
            mixup_draw(count, 1.0)


# --- sharpen


def exact_sharpen(row, temperature):
    with localcontext() as context:
        context.prec, context.Emin, context.Emax = 50, -(10**9), 10**9
        powers = [Decimal(p) ** (1 / Decimal(temperature)) if p > 0 else Decimal(0) for p in row]
        return [float(p / sum(powers)) for p in powers]


@pytest.mark.parametrize(
    ("temperature", "value"), [(0.1, [0.993886, 0.006010, 0.000104]), (0.5, [0.657895, 0.236842, 0.105263])]
)
def test_sharpen_worked(temperature, value):
    p = torch.tensor([[0.5, 0.3, 0.2]])
    assert sharpen(p.double(), temperature)[0].tolist() == pytest.approx(value, abs=1e-6)
    assert sharpen(p, temperature)[0].tolist() == pytest.approx(value, abs=1e-5)
    torch.testing.assert_close(sharpen(p, 1.0), p)


@pytest.mark.parametrize("temperature", [1e-3, 0.1, 0.5, 1.0, 3.0, 100.0])
def test_sharpen_against_exact_powers(temperature):
    p = torch.cat([rows(5, 4, 0), torch.tensor([[1e-30, 0.5, 0.5 - 1e-30, 0], [0, 1, 0, 0]]).double()])
    expected = [exact_sharpen(row, temperature) for row in p.tolist()]
    found = sharpen(p, temperature)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-10, atol=1e-300)
    torch.testing.assert_close(found.sum(1), torch.ones(7).double())
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(sharpen(p[:, order], temperature), found[:, order], rtol=1e-12, atol=0)


@pytest.mark.parametrize("temperature", [1e-2, 1e-6, 1e-30, 1e-40, 1e-300])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_tiny_temperatures_end_at_one_hot(temperature, dtype):
    p = torch.tensor([[0.5, 0.25, 0.25], [0.4, 0.2, 0.4], [1e-4, 0.0, 0.9999], [0, 1, 0]], dtype=dtype)
    found = sharpen(p, temperature)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    expected = torch.tensor([[1, 0, 0], [0.5, 0, 0.5], [0, 0, 1], [0, 1, 0]], dtype=found.dtype)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    even = torch.full((1, 128), 1 / 128, dtype=dtype)  # log(1 / 128) / T is beyond float32
    torch.testing.assert_close(sharpen(even, temperature), even.to(found.dtype), rtol=1e-6, atol=0)


def test_sharpen_gradients():
    p = rows(4, 3, 1).requires_grad_()
    for temperature in (0.5, 1.0, 2.0):
        assert torch.autograd.gradcheck(lambda v, t=temperature: sharpen(v, t), (p,))
    zeros = torch.tensor([[0.0, 0.5, 0.5], [0.0, 1.0, 0.0]], requires_grad=True)
    sharpen(zeros, 0.1)[:, 1].sum().backward()
    assert zeros.grad.isfinite().all() and zeros.grad[0, 1] > 0
    assert zeros.grad[0, 0] == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_softmax_rows_in_half_precision_are_probabilities(dtype):
    p = rows(64, 100, 2, dtype)
    found = sharpen(p, 0.5)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.sum(1), torch.ones(64))
    torch.testing.assert_close(found.double(), sharpen(p.double(), 0.5), rtol=1e-5, atol=1e-7)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(sharpen(p, 0.5), found)


def test_bad_sharpen():
    p = rows(3, 4, 0)
    nan = p.clone()
    nan[1, 1] = math.nan
    for wrong in (p.log(), p * 2, p[:, :2] * 0, nan, p / 0, torch.tensor([[1.2, -0.2]])):
        with pytest.raises(ValueError, match="probabilities must hold rows >= 0 that sum to 1, got a lowest entry of"):
            sharpen(wrong, 0.5)
    with pytest.raises(ValueError, match="probabilities must have 2 dim"):
        sharpen(p[0], 0.5)
    with pytest.raises(ValueError, match="probabilities must have a floating"):
        sharpen(p.long(), 0.5)
    with pytest.raises(ValueError, match="probabilities must not be empty"):
        sharpen(p[:0], 0.5)
    for temperature in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="temperature must be a finite number above 0"):
            sharpen(p, temperature)


# --- ramp


def test_ramp_worked():
    assert [ramp_up(e, 200) for e in (0, 50, 100, 200)] == pytest.approx([0.006738, 0.060055, 0.286505, 1], abs=1e-6)
    late = [10 * ramp_up(t - 500, 500) for t in (0, 500, 750, 1000, 5000)]  # GraphMix: steps 500 to 1000, times 10
    assert late == pytest.approx([0.067379, 0.067379, 2.865048, 10, 10], abs=1e-6)
    assert [ramp_up(e, 10, "linear") for e in (-1, 0, 2.5, 10, 11)] == [0, 0, 0.25, 1, 1]


@pytest.mark.parametrize("shape", ["sigmoid", "linear"])
@pytest.mark.parametrize("length", [1, 7, 0.3, 1e-300, 1e300])
def test_ramp_is_monotone_and_ends_at_one(shape, length):
    values = [ramp_up(length * i / 50, length, shape) for i in range(-5, 60)]
    assert values == sorted(values)
    assert values[0] == values[5] and values[55:] == [1.0] * 10
    assert all(0 <= v <= 1 for v in values)


def test_no_ramp():
    for shape in ("sigmoid", "linear"):
        assert [ramp_up(step, 0, shape) for step in (-1, 0, 5)] == [1, 1, 1]


def test_bad_ramps():
    for step in (math.nan, math.inf):
        with pytest.raises(ValueError, match="step must be a finite number, got"):
            ramp_up(step, 10)
    for length in (-1, math.nan, math.inf):
        with pytest.raises(ValueError, match="length must be a finite number of at least 0, got"):
            ramp_up(1, length)
    with pytest.raises(ValueError, match="shape must be 'sigmoid' or 'linear', got 'cosine'"):
        ramp_up(1, 10, "cosine")
