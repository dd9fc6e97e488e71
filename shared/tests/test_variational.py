"""KL, free bits, total correlation, IWAE and likelihoods: worked numbers, plain loops, normalisation, extremes."""

import doctest
import itertools
import math
from decimal import Decimal, getcontext

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from gen_core.losses import variational
from gen_core.losses.variational import (
    bernoulli_nll,
    bits_per_dim,
    discretized_logistic_mixture_nll,
    free_bits,
    gaussian_nll,
    iwae_bound,
    kl_balance,
    kl_diagonal,
    kl_standard_normal,
    sample_discretized_logistic_mixture,
    total_correlation_terms,
)

K = torch.arange(12, dtype=torch.float64).view(4, 3)
A, B = torch.sin(0.37 * K + 0.1), torch.cos(0.53 * K + 0.2)  # mean and log variance of the worked tables
Z = A + (B / 2).exp() * torch.cos(1.1 * K)
PER_DIM = 0.5 * (A**2 + B.exp() - 1 - B)


def gen(seed):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=gen(seed), dtype=dtype)


def test_examples():
    assert doctest.testmod(variational).failed == 0


# --- KL


def test_kl_worked():
    assert kl_diagonal(A, B, B / 2, A / 2).item() == pytest.approx(1.846638, abs=1e-6)
    low = kl_diagonal(*(v.float() for v in (A, B, B / 2, A / 2)))
    assert low.dtype == torch.float32
    assert low.item() == pytest.approx(1.846638, abs=1e-4)
    zero = torch.zeros_like(A)
    assert kl_diagonal(A, B, zero, zero).item() == pytest.approx(1.086391, abs=1e-6)


def test_kl_direction_of_the_consistency_term():
    mu, lv = torch.sin(0.71 * K), 0.6 * torch.sin(0.29 * K + 2)
    mu_t, lv_t = mu + 0.3 * torch.sin(0.43 * K + 1), 0.6 * torch.sin(0.51 * K + 0.3)
    assert kl_diagonal(mu_t, lv_t, mu, lv).item() == pytest.approx(0.156304767, abs=1e-9)
    assert kl_diagonal(mu, lv, mu_t, lv_t).item() == pytest.approx(0.141011312, abs=1e-9)
    assert kl_diagonal(mu, lv, mu, lv).item() == 0
    mu.requires_grad_()
    mu_t.requires_grad_()
    kl_diagonal(mu_t, lv_t, mu, lv).backward()
    assert (mu.grad * mu_t.grad < 0).all()  # both sides learn


def test_kl_to_each_component_of_a_mixture():
    n = torch.arange(6, dtype=torch.float64).view(3, 2)
    m, l = 2 * torch.sin(1.1 * n), 0.5 * torch.sin(0.6 * n + 1)  # noqa: E741
    mu, lv = torch.tensor([[[0.3, -0.4]]]).double(), torch.tensor([[[-1.0, -0.5]]]).double()
    found = kl_diagonal(*torch.broadcast_tensors(mu, lv, m, l), "none")
    assert found.shape == (1, 3)
    assert found[0].tolist() == pytest.approx([1.989294, 0.997024, 3.652759], abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_kl_against_the_integral(seed):
    mu_q, lv_q, mu_p, lv_p = randn(4, seed=seed).tolist()
    x = np.linspace(-30, 30, 200_001)
    q, p = stats.norm(mu_q, math.exp(lv_q / 2)), stats.norm(mu_p, math.exp(lv_p / 2))
    wanted = integrate.trapezoid(q.pdf(x) * (q.logpdf(x) - p.logpdf(x)), x)
    row = [torch.tensor([[v]], dtype=torch.float64) for v in (mu_q, lv_q, mu_p, lv_p)]
    assert kl_diagonal(*row).item() == pytest.approx(wanted, rel=1e-7)


def test_kl_reductions_and_gradients():
    rows = [kl_diagonal(*(v[i : i + 1] for v in (A, B, B / 2, A / 2))).item() for i in range(4)]
    assert kl_diagonal(A, B, B / 2, A / 2, "none").tolist() == pytest.approx(rows)
    assert kl_diagonal(A, B, B / 2, A / 2, "sum").item() == pytest.approx(sum(rows))
    inputs = [v.clone().requires_grad_() for v in (A, B, B / 2, A / 2)]
    assert torch.autograd.gradcheck(kl_diagonal, inputs)


def test_kl_of_wide_and_narrow_variances_is_finite():
    big = torch.full((2, 3), 60.0)
    zero = torch.zeros(2, 3)
    assert kl_diagonal(zero, big, zero, big).item() == 0  # e^60 / e^60, never inf / inf
    assert kl_diagonal(zero, -big, zero, -big).item() == 0
    assert kl_diagonal(zero, -big, zero, zero).item() == pytest.approx(1.5 * 59, rel=1e-6)


# --- free bits and balance


@pytest.mark.parametrize(
    ("floor", "over", "value"),
    [
        (0.1, "batch", 1.086391),
        (0.5, "batch", 1.500000),
        (0.1, "sample", 1.116880),
        (0.5, "sample", 1.598746),
        (0.1, "total", 1.086391),
        (0.5, "total", 1.536118),
    ],
)
def test_free_bits_worked(floor, over, value):
    kl = kl_standard_normal(A.unsqueeze(-1), B.unsqueeze(-1), "none")
    torch.testing.assert_close(kl, PER_DIM, rtol=1e-12, atol=0)
    assert free_bits(kl, floor, over).item() == pytest.approx(value, abs=1e-6)
    assert free_bits(kl, 0.0, over).item() == pytest.approx(1.086391, abs=1e-6)


def test_free_bits_gradient_stops_below_the_floor():
    kl = torch.tensor([[0.2, 3.0], [1.0, 0.1]], dtype=torch.float64)  # means 0.6 and 1.55; sums 3.2 and 1.1
    wanted = {"batch": [[0, 0.5], [0, 0.5]], "sample": [[0, 0.5], [0.5, 0]], "total": [[0.5, 0.5], [0, 0]]}
    for over, gradient in wanted.items():
        x = kl.clone().requires_grad_()
        free_bits(x, 0.7, over).backward()
        assert x.grad.tolist() == gradient, over
        assert torch.autograd.gradcheck(lambda v, o=over: free_bits(v, 0.7, o), x)


def test_kl_balance_is_a_constant_weight_of_mean_one():
    kl, size = randn(5, 3, seed=1).abs() * torch.tensor([0.1, 1.0, 4.0]), [1.0, 1.0, 4.0]
    kl[0, 0] = -0.3  # an estimate from a sample can be negative
    share = [(sum(abs(v) for v in kl[:, l].tolist()) / 5 + 0.01) / size[l] for l in range(3)]  # noqa: E741
    share = [s / (sum(share) / 3) for s in share]
    wanted = sum(share[l] * sum(kl[:, l].tolist()) / 5 for l in range(3))  # noqa: E741
    x = kl.clone().requires_grad_()
    loss = kl_balance(x, size)
    loss.backward()
    assert loss.item() == pytest.approx(wanted, rel=1e-12)
    assert x.grad[2].tolist() == pytest.approx([s / 5 for s in share])  # detached coefficients
    assert kl_balance(kl, [8.0 * s for s in size]).item() == pytest.approx(wanted)
    assert kl_balance(torch.full((4, 3), 2.0), [1, 1, 1]).item() == pytest.approx(6.0)


# --- total correlation


def test_total_correlation_worked():
    found = total_correlation_terms(Z, A, B)
    assert [v.item() for v in found] == pytest.approx([0.490425, 0.065600, 0.081061], abs=1e-6)
    assert sum(v.item() for v in found) == pytest.approx(0.637086, abs=1e-6)
    low = total_correlation_terms(Z.float(), A.float(), B.float())
    assert [v.item() for v in low] == pytest.approx([0.490425, 0.065600, 0.081061], abs=1e-4)


def test_total_correlation_with_the_size_of_the_data():
    plain, sized = total_correlation_terms(Z, A, B), total_correlation_terms(Z, A, B, dataset_size=1000)
    log_size = math.log(1000)
    shifts = [b.item() - a.item() for a, b in zip(plain, sized, strict=True)]
    assert shifts == pytest.approx([log_size, 2 * log_size, -3 * log_size])


@pytest.mark.parametrize("seed", range(2))
def test_total_correlation_against_scipy(seed):
    n, d = 5, 2
    mean, log_var, noise = (randn(n, d, seed=seed + s) for s in (0, 10, 20))
    z = mean + (log_var / 2).exp() * noise
    pdf = [
        [[stats.norm.pdf(z[i, k], mean[j, k], math.exp(log_var[j, k] / 2)) for k in range(d)] for j in range(n)]
        for i in range(n)
    ]
    mi = tc = kl = 0.0
    for i in range(n):
        joint = math.log(sum(math.prod(pdf[i][j]) for j in range(n)) / n)
        dims = sum(math.log(sum(pdf[i][j][k] for j in range(n)) / n) for k in range(d))
        mi += (math.log(math.prod(pdf[i][i])) - joint) / n
        tc += (joint - dims) / n
        kl += (dims - sum(stats.norm.logpdf(z[i, k]) for k in range(d))) / n
    found = total_correlation_terms(z, mean, log_var)
    assert [v.item() for v in found] == pytest.approx([mi, tc, kl], abs=1e-10)
    order = torch.randperm(n, generator=gen(seed))
    again = total_correlation_terms(z[order], mean[order], log_var[order])
    assert [v.item() for v in again] == pytest.approx([mi, tc, kl], abs=1e-10)


def test_total_correlation_gradients_and_far_codes():
    inputs = [v.clone().requires_grad_() for v in (Z, A, B)]
    assert torch.autograd.gradcheck(lambda *v: torch.stack(total_correlation_terms(*v)), inputs)
    far = (1e4 * A).float().requires_grad_()
    parts = total_correlation_terms(far, far, B.float() - 10)
    assert parts.mutual_information.item() == pytest.approx(math.log(4), abs=1e-5)
    parts.total_correlation.backward()
    assert far.grad.isfinite().all()


# --- bounds


def test_iwae_against_plain_python():
    w = [[-1.0, -2.0, 0.5], [-1.5, -4.0, 0.1]]
    wanted = sum(math.log((math.exp(a) + math.exp(b)) / 2) for a, b in zip(*w, strict=True)) / 3
    weights = torch.tensor(w, dtype=torch.float64)
    assert iwae_bound(weights).item() == pytest.approx(wanted, abs=1e-12)
    assert iwae_bound(weights.T, dim=1).item() == pytest.approx(wanted, abs=1e-12)
    assert iwae_bound(weights.T, dim=-1).item() == pytest.approx(wanted, abs=1e-12)
    assert iwae_bound(weights - 1e4).item() == pytest.approx(wanted - 1e4, abs=1e-8)
    assert iwae_bound(weights[:1]).item() == pytest.approx(weights[0].mean().item())  # K = 1: the ELBO
    assert torch.autograd.gradcheck(iwae_bound, weights.clone().requires_grad_())


def test_iwae_finds_the_evidence_of_a_linear_gaussian_model():
    # z ~ N(0, 1), x | z ~ N(z, 1): x ~ N(0, 2). q = N(x / 2 + .3, 1), not the posterior N(x / 2, 1/2).
    x, evidence = 0.7, stats.norm.logpdf(0.7, 0, math.sqrt(2))
    z = x / 2 + 0.3 + randn(2000, 200, seed=3)
    log_w = sum(-0.5 * (math.log(2 * math.pi) + e**2) * s for e, s in ((z, 1), (x - z, 1), (z - x / 2 - 0.3, -1)))
    bounds = [iwae_bound(log_w.reshape(k, -1)).item() for k in (1, 5, 50, 2000)]
    gap = 0.5 * (math.log(0.5) + (1 + 0.3**2) / 0.5 - 1)  # KL(q || posterior)
    assert bounds[0] == pytest.approx(evidence - gap, abs=5e-3)  # measured 1e-3
    assert bounds == sorted(bounds)
    assert bounds[-1] == pytest.approx(evidence, abs=2e-3)


def test_an_impossible_sample_counts_as_zero():
    weights = torch.tensor([[0.0], [-math.inf]], requires_grad=True)
    bound = iwae_bound(weights)
    bound.backward()
    assert bound.item() == pytest.approx(-math.log(2))
    assert weights.grad.flatten().tolist() == [1.0, 0.0]


def test_bits_per_dim():
    assert bits_per_dim(torch.tensor([math.log(256.0) * 12]), 12).item() == pytest.approx(8.0)


# --- likelihoods


def test_bernoulli_against_scipy():
    logits, target = randn(3, 2, 4, 4), (randn(3, 2, 4, 4, seed=1) > 0).double()
    wanted = [-stats.bernoulli.logpmf(t, 1 / (1 + np.exp(-l))).sum() for t, l in zip(target.numpy(), logits.numpy())]  # noqa: B905, E741
    assert bernoulli_nll(logits, target, "none").tolist() == pytest.approx(wanted)
    assert bernoulli_nll(logits, target).item() == pytest.approx(sum(wanted) / 3)
    assert bernoulli_nll(logits, target, "sum").item() == pytest.approx(sum(wanted))
    assert torch.autograd.gradcheck(lambda l: bernoulli_nll(l, target.sigmoid()), logits.requires_grad_())  # noqa: E741


def test_bernoulli_extremes():
    logits = torch.tensor([[1e4, -1e4, 200.0, 0.0]], requires_grad=True)
    loss = bernoulli_nll(logits, torch.tensor([[0.0, 1.0, 1.0, 0.25]]))
    loss.backward()
    assert loss.item() == pytest.approx(2e4 + math.log(2))
    assert logits.grad.tolist() == [[1.0, -1.0, 0.0, 0.25]]
    half = bernoulli_nll(torch.full((1, 70_000), 10.0).half(), torch.zeros(1, 70_000).half())
    assert half.item() == pytest.approx(7e5, rel=1e-3)  # a sum that overflows float16
    batched = torch.func.vmap(bernoulli_nll)(torch.zeros(3, 2, 5), torch.ones(3, 2, 5))
    assert batched.tolist() == pytest.approx([5 * math.log(2)] * 3)


def test_gaussian_against_scipy():
    mean, target, log_var = randn(3, 2, 5), randn(3, 2, 5, seed=1), randn(3, 2, 5, seed=2)
    for given, full in ((log_var, log_var), (2 * math.log(0.3), torch.full_like(mean, 2 * math.log(0.3)))):
        deviation = np.exp(full.numpy() / 2)
        wanted = -stats.norm.logpdf(target.numpy(), mean.numpy(), deviation).sum((1, 2))
        assert gaussian_nll(mean, target, given, "none").tolist() == pytest.approx(wanted.tolist())
        assert gaussian_nll(mean, target, given).item() == pytest.approx(wanted.mean())
    one = torch.tensor([0.4], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda m, v: gaussian_nll(m, target, v), (mean.requires_grad_(), one))
    half_square = 0.5 * (mean - target).square().sum((1, 2)) + 5 * math.log(2 * math.pi)
    torch.testing.assert_close(gaussian_nll(mean, target, reduction="none"), half_square)


# --- discretised logistics


def mixture(m, channels, n=2, pixels=(2, 3), seed=0, dtype=torch.float64):
    per_component = 3 if channels == 1 else 10
    return randn(n, per_component * m, *pixels, seed=seed, dtype=torch.float64).to(dtype)


def grid(bins, dtype=torch.float64):
    return torch.arange(bins, dtype=dtype) * 2 / (bins - 1) - 1


def reference(parameters, target, bins):
    """One number a sample, from the definition with scipy's logistic cdf, pixel by pixel."""
    n, channels = target.shape[:2]
    m = parameters.shape[1] // (3 if channels == 1 else 10)
    result = []
    for p, x in zip(parameters.flatten(2).numpy(), target.flatten(2).numpy(), strict=True):
        total = 0.0
        for at in range(x.shape[1]):
            pi = np.exp(p[:m, at] - np.log(np.exp(p[:m, at]).sum()))
            means, scales, coefficients = np.split(p[m:, at], [channels * m, 2 * channels * m])
            prob = 0.0
            for k in range(m):
                mu = [means[c * m + k] for c in range(channels)]
                if channels == 3:
                    a, b, c = np.tanh(coefficients[k::m])
                    mu = [mu[0], mu[1] + a * x[0, at], mu[2] + b * x[0, at] + c * x[1, at]]
                factor = pi[k]
                for c in range(channels):
                    law = stats.logistic(mu[c], math.exp(max(scales[c * m + k], -7)))
                    high = 1.0 if x[c, at] > 1 - 1e-9 else law.cdf(x[c, at] + 1 / (bins - 1))
                    low = 0.0 if x[c, at] < -1 + 1e-9 else law.cdf(x[c, at] - 1 / (bins - 1))
                    factor *= high - low
                prob += factor
            total -= math.log(prob)
        result.append(total)
    assert len(result) == n
    return result


@pytest.mark.parametrize(("m", "channels", "bins"), [(1, 1, 256), (5, 1, 256), (2, 1, 4), (1, 3, 256), (4, 3, 32)])
def test_mixture_against_scipy(m, channels, bins):
    parameters = mixture(m, channels)
    target = grid(bins)[torch.randint(bins, (2, channels, 2, 3), generator=gen(1))]
    target[0, 0, 0, :2] = torch.tensor([-1.0, 1.0])
    target[1, -1, 1, :2] = torch.tensor([1.0, -1.0])
    wanted = reference(parameters, target, bins)
    found = discretized_logistic_mixture_nll(parameters, target, bins, "none")
    assert found.tolist() == pytest.approx(wanted, rel=1e-9)
    assert discretized_logistic_mixture_nll(parameters, target, bins).item() == pytest.approx(sum(wanted) / 2)
    low = discretized_logistic_mixture_nll(parameters.float(), target.float(), bins, "none")
    assert low.dtype == torch.float32
    assert low.tolist() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("shift", [0.0, -6.0, 3.0])
def test_the_256_values_of_one_channel_sum_to_one(shift):
    parameters = mixture(4, 1, n=1, pixels=(7,), seed=2)
    parameters[:, 8:] += shift  # log scales from wide to about a bin
    values = grid(256)[:, None, None].expand(256, 1, 7)
    each = torch.stack(
        [
            discretized_logistic_mixture_nll(
                parameters[:, :, i : i + 1].expand(256, -1, -1), values[:, :, :1], 256, "none"
            )
            for i in range(7)
        ]
    )
    assert (-each).exp().sum(1).tolist() == pytest.approx([1.0] * 7, abs=1e-10)


@pytest.mark.parametrize("bins", [2, 5])
def test_all_colours_sum_to_one(bins):
    parameters = mixture(3, 3, n=1, pixels=(1,), seed=3)
    colours = torch.tensor(list(itertools.product(grid(bins).tolist(), repeat=3)), dtype=torch.float64)
    nll = discretized_logistic_mixture_nll(parameters.expand(bins**3, -1, -1), colours[:, :, None], bins, "none")
    assert (-nll).exp().sum().item() == pytest.approx(1.0, abs=1e-12)


def decimal_log_prob(x, mu, s, h):
    """log( sigmoid((x + h - mu) / s) - sigmoid((x - h - mu) / s) ) with 400 digits."""
    getcontext().prec = 400
    up, low = ((Decimal(v) - Decimal(mu)) / Decimal(s) for v in (x + h, x - h))
    difference = 1 / (1 + (-up).exp()) - 1 / (1 + (-low).exp())
    return float(difference.ln())


@pytest.mark.parametrize(("mean", "log_scale"), [(0.1, -7.0), (-0.9, -6.0), (0.4, 8.0), (1.5, -3.0), (30.0, 0.0)])
def test_tails_are_exact_in_float32(mean, log_scale):
    x = grid(256, torch.float32)[200]
    parameters = torch.tensor([[0.3, mean, log_scale]])
    parameters.requires_grad_()
    nll = discretized_logistic_mixture_nll(parameters, x.view(1, 1))
    wanted = -decimal_log_prob(x.item(), parameters[0, 1].item(), math.exp(log_scale), 1 / 255)
    assert nll.item() == pytest.approx(wanted, rel=2e-5)
    nll.backward()
    assert parameters.grad.isfinite().all()


@pytest.mark.parametrize("value", [-1.0, 1.0, 201 / 255 * 2 - 1])
@pytest.mark.parametrize("scale", [-1e4, 1e4])
def test_parameters_far_out_are_finite(value, scale):
    parameters = torch.tensor([[50.0, -50.0, scale, -scale, -3e2, 20.0]]).requires_grad_()
    nll = discretized_logistic_mixture_nll(parameters, torch.full((1, 1), value))
    nll.backward()
    assert nll.isfinite() and parameters.grad.isfinite().all()
    assert parameters.grad[0, 4] == 0  # no gradient below the floor of the scale


def test_the_floor_of_the_log_scale_is_that_of_the_paper():
    x = grid(256, torch.float64)[200:201, None]
    at = lambda log_scale: discretized_logistic_mixture_nll(torch.tensor([[0.0, 0.56, log_scale]]).double(), x).item()  # noqa: E731
    assert at(-7.0) == at(-7.01) == at(-20.0)
    assert at(-6.99) != at(-7.0)


@pytest.mark.parametrize("channels", [1, 3])
def test_mixture_gradcheck(channels):
    target = grid(8)[torch.randint(8, (2, channels, 1, 2), generator=gen(5))]
    target[0, 0, 0, 0], target[1, 0, 0, 1] = -1, 1
    parameters = mixture(2, channels, pixels=(1, 2), seed=4).requires_grad_()
    assert torch.autograd.gradcheck(lambda p: discretized_logistic_mixture_nll(p, target, 8, "none"), parameters)


def test_half_precision_targets_find_their_bins():
    parameters, pixels = mixture(2, 1, n=1, pixels=(256,)), (torch.arange(256) / 127.5 - 1).view(1, 1, 256)
    exact = discretized_logistic_mixture_nll(parameters, pixels)
    for dtype in (torch.float16, torch.bfloat16):
        low = discretized_logistic_mixture_nll(parameters.to(dtype), pixels.to(dtype))
        assert low.dtype == torch.float32
        assert low.item() == pytest.approx(exact.item(), rel=5e-3)


def test_samples_have_the_probabilities_of_the_likelihood():
    bins, n = 3, 40_000
    parameters = mixture(2, 3, n=1, pixels=(1,), seed=7)
    parameters[0, :2, 0] = torch.tensor([-1.4, 0.0])
    parameters[0, 2:8, 0] = torch.tensor([0.9, -0.5, 0.4, -0.6, 0.7, -0.3])
    x = sample_discretized_logistic_mixture(parameters.expand(n, -1, -1), 3, bins, gen(0))
    assert x.shape == (n, 3, 1) and set(x.unique().tolist()) == {-1.0, 0.0, 1.0}
    colours = torch.tensor(list(itertools.product([-1.0, 0.0, 1.0], repeat=3)), dtype=torch.float64)
    nll = discretized_logistic_mixture_nll(parameters.expand(27, -1, -1), colours[:, :, None], bins, "none")
    code = ((x[:, :, 0] + 1) @ torch.tensor([9.0, 3.0, 1.0]).double()).long()
    counts = torch.bincount(code, minlength=27).double()
    expected = n * (-nll).exp()
    assert expected.min() > 5
    chi2 = ((counts - expected) ** 2 / expected).sum().item()
    assert stats.chi2.sf(chi2, 26) > 1e-3


def test_samples_of_one_channel_are_pixels():
    parameters = mixture(3, 1, n=4, pixels=(5, 6), dtype=torch.float32).requires_grad_()
    x = sample_discretized_logistic_mixture(parameters, 1, generator=gen(1))
    assert x.shape == (4, 1, 5, 6) and not x.requires_grad
    assert ((x + 1) * 127.5 - ((x + 1) * 127.5).round()).abs().max() < 1e-4
    assert torch.equal(x, sample_discretized_logistic_mixture(parameters, 1, generator=gen(1)))
    assert discretized_logistic_mixture_nll(parameters, x).isfinite()
    sure = torch.tensor([[-100.0, 100.0, -0.8, 0.4980392, -7.0, -7.0]]).repeat(500, 1)  # the second component, at 191
    low = sample_discretized_logistic_mixture(sure, 1, generator=gen(2))
    assert ((low.mean() + 1) * 127.5).item() == pytest.approx(191, abs=0.05)


# --- wrong use

PARAMETERS, PIXELS = torch.zeros(2, 20, 4), torch.zeros(2, 3, 4)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: kl_diagonal(A, B, A[:2], B[:2]), r"mean_p must have the shape of mean_q, \(4, 3\), got \(2, 3\)"),
        (lambda: kl_diagonal(A, B, A, B[0]), "log_variance_p must have the shape of mean_p"),
        (lambda: kl_diagonal(A, B, A * math.nan, B), "mean_p must be finite"),
        (lambda: kl_diagonal(A, B, A, B, "all"), "reduction must be"),
        (lambda: free_bits(A, -1.0), "floor must be a finite number of at least 0, got -1"),
        (lambda: free_bits(A, 0.1, "group"), "over must be 'batch', 'sample' or 'total', got 'group'"),
        (lambda: free_bits(A[0], 0.1), "kl must have 2 dimension"),
        (lambda: free_bits(A / 0, 0.1), "kl must be finite"),
        (lambda: kl_balance(A, [1.0, 1.0]), "size must hold 3 numbers"),
        (lambda: kl_balance(A, [1.0, 1.0, 0.0]), "size must be a finite number above 0"),
        (lambda: total_correlation_terms(Z[:1], A[:1], B[:1]), "z must have at least 2 rows"),
        (lambda: total_correlation_terms(Z, A[:2], B[:2]), "mean must have the shape of z"),
        (lambda: total_correlation_terms(Z, A, B, 3), "dataset_size must be at least the 4 rows of z, got 3"),
        (lambda: total_correlation_terms(Z * math.nan, A, B), "z must be finite"),
        (lambda: iwae_bound(A, 2), "dim must be a dimension of log_weights"),
        (lambda: iwae_bound(A * math.nan), "log_weights must be finite"),
        (lambda: bits_per_dim(A, 0), "dims must be at least 1, got 0"),
        (lambda: bernoulli_nll(A, A), r"target must be in \[0, 1\], got -"),
        (lambda: bernoulli_nll(A, A[:2]), "target must have the shape of logits"),
        (lambda: bernoulli_nll(A, torch.zeros(4, 3).long()), "target must have a floating dtype"),
        (lambda: bernoulli_nll(A, A * math.nan), "target must be finite"),
        (lambda: gaussian_nll(A, A, B[0]), "log_variance must be one number or have the shape of mean"),
        (lambda: gaussian_nll(A, A, math.inf), "log_variance must be finite, got inf"),
        (lambda: gaussian_nll(A, A, B * math.nan), "log_variance must be finite"),
        (lambda: discretized_logistic_mixture_nll(PARAMETERS[:, :19], PIXELS), r"parameters must have shape \(N, 10 M"),
        (lambda: discretized_logistic_mixture_nll(PARAMETERS[:1], PIXELS), r"parameters must have shape \(2, 'K', 4\)"),
        (lambda: discretized_logistic_mixture_nll(PARAMETERS, PIXELS[:, :2]), "C = 1 or 3"),
        (lambda: discretized_logistic_mixture_nll(PARAMETERS, PIXELS + 2), r"target must be in \[-1, 1\], got 2 to 2"),
        (lambda: discretized_logistic_mixture_nll(PARAMETERS * math.nan, PIXELS), "parameters must be finite"),
        (lambda: discretized_logistic_mixture_nll(PARAMETERS, PIXELS, bins=1), "bins must be at least 2"),
        (lambda: sample_discretized_logistic_mixture(PARAMETERS, 2), "channels must be 1 or 3, got 2"),
        (lambda: sample_discretized_logistic_mixture(PARAMETERS / 0, 3), "parameters must be finite"),
    ],
)
def test_wrong_use(call, match):
    with pytest.raises(ValueError, match=match):
        call()
