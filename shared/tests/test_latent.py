"""Active units and the information of a code: plain loops in float64, limits, tiles, large means, wrong use."""

import doctest
import math

import numpy as np
import pytest
import torch
from scipy import stats

from gen_core.evaluation import latent
from gen_core.evaluation.latent import active_units, latent_information
from gen_core.losses.variational import total_correlation_terms


def code(n=40, d=3, seed=0, dtype=torch.float64):
    """Means, log-variances and a sample of each posterior."""
    generator = torch.Generator().manual_seed(seed)
    mean, log_variance, noise = (torch.randn(n, d, generator=generator, dtype=torch.float64) for _ in range(3))
    log_variance = log_variance - 1
    return tuple(x.to(dtype) for x in (mean + (log_variance / 2).exp() * noise, mean, log_variance))


def by_loops(z, mean, log_variance):
    z, mean, deviation = z.double().numpy(), mean.double().numpy(), np.exp(log_variance.double().numpy() / 2)
    total = 0.0
    for i in range(len(z)):
        densities = [stats.norm.logpdf(z[i], mean[j], deviation[j]).sum() for j in range(len(z))]
        total += densities[i] - math.log(sum(math.exp(one) for one in densities) / len(z))
    return total / len(z)


def test_examples():
    assert doctest.testmod(latent).failed == 0


@pytest.mark.parametrize("threshold", [0.0, 0.01, 0.04, 0.5])
def test_active_units_against_numpy(threshold):
    scale = np.array([0.0, 0.05, 0.09, 0.11, 0.19, 0.21, 0.6, 2.0])
    means = 30 + scale * np.random.default_rng(0).standard_normal((200, 8))
    wanted = sum(float(np.var(means[:, k], ddof=1)) > threshold for k in range(8))
    assert 0 < wanted < 8
    assert active_units(means, threshold) == active_units(torch.from_numpy(means), threshold) == wanted


def test_the_variance_has_n_minus_1_below_it_and_must_exceed_the_threshold():
    means = torch.tensor([[0.0, 0.0], [1.0, 1.5]], dtype=torch.float64)  # variances 1/2 and 9/8; by n 1/4 and 9/16
    assert [active_units(means, threshold) for threshold in (0.3, 0.5, 0.6, 1.125)] == [2, 1, 1, 0]
    assert active_units(means / 10) == 1  # 0.005 and 0.01125 against the default 0.01


def test_a_large_common_mean_activates_nothing():
    flat = torch.full((1000, 2), 12345.678)
    assert active_units(flat) == 0
    flat[:, 1] += 0.3 * torch.randn(1000, generator=torch.Generator().manual_seed(0))
    assert active_units(flat) == 1


@pytest.mark.parametrize("seed", range(3))
def test_information_against_a_double_loop(seed):
    given = code(seed=seed)
    wanted = by_loops(*given)
    assert 0.5 < wanted < math.log(40) - 0.5  # far from both limits
    assert latent_information(*given) == pytest.approx(wanted, abs=1e-11)
    low = tuple(x.float() for x in given)
    assert latent_information(*low) == pytest.approx(by_loops(*low), abs=1e-11)  # the densities are made in float64
    assert latent_information(*(x.numpy() for x in given)) == latent_information(*given)


def test_codes_that_never_meet_say_which_image_it_was():
    z, mean, log_variance = code(n=50)
    apart = 50 * torch.arange(50, dtype=torch.float64)[:, None]
    assert latent_information(z + apart, mean + apart, log_variance) == pytest.approx(math.log(50), abs=1e-8)
    shared = apart[::2].repeat_interleave(2, 0)  # two images have one code
    assert latent_information(shared, shared, torch.zeros_like(shared)) == pytest.approx(math.log(25), abs=1e-8)


def test_equal_posteriors_say_nothing():
    z, mean, log_variance = code()
    found = latent_information(z, mean[:1].expand(40, 3), log_variance[:1].expand(40, 3))
    assert found == pytest.approx(0, abs=1e-12)


def test_a_dimension_that_ignores_the_image_changes_nothing():
    given = code()
    noise = torch.randn(40, 2, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    padded = [torch.cat(pair, 1) for pair in zip(given, (noise, noise * 0, noise * 0), strict=True)]
    assert latent_information(*padded) == pytest.approx(latent_information(*given), abs=1e-11)


@pytest.mark.parametrize("tile", [1, 40, 7 * 40 + 3, 39 * 40])
def test_the_size_of_a_tile_does_not_matter(monkeypatch, tile):
    given = code()
    whole = latent_information(*given)
    monkeypatch.setattr(latent, "_TILE", tile)
    assert latent_information(*given) == pytest.approx(whole, abs=1e-12)


@pytest.mark.parametrize("shift", [1e3, -1e6, 1e8])
def test_large_means_keep_digits(shift):
    z, mean, log_variance = code()
    z, mean = ((x * 2**20).round() / 2**20 for x in (z, mean))  # so that the shift itself rounds nothing
    moved = latent_information(z + shift, mean + shift, log_variance)
    assert moved == pytest.approx(by_loops(z, mean, log_variance), abs=1e-7)


def test_information_is_beta_tcvaes_of_one_batch():
    given = code(n=25, d=4, seed=5)
    wanted = total_correlation_terms(*given).mutual_information.item()
    assert latent_information(*given) == pytest.approx(wanted, abs=1e-11)


Z, MEAN, LOG_VARIANCE = code(n=4)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: active_units(MEAN * math.nan), "means must be finite"),
        (lambda: active_units(MEAN.long()), "means must be floating"),
        (lambda: active_units(MEAN[0]), "means must be floating of shape"),
        (lambda: active_units(MEAN[:1]), "means must have at least 2 rows, got 1"),
        (lambda: latent_information(Z * math.inf, MEAN, LOG_VARIANCE), "z must be finite"),
        (lambda: latent_information(Z, MEAN * math.nan, LOG_VARIANCE), "mean must be finite"),
        (lambda: latent_information(Z, MEAN, LOG_VARIANCE / 0), "log_variance must be finite"),
        (lambda: latent_information(Z, MEAN, LOG_VARIANCE[:, 0]), "log_variance must be floating of shape"),
        (lambda: latent_information(Z, MEAN[:2], LOG_VARIANCE), r"one shape, got \[\(4, 3\), \(2, 3\), \(4, 3\)\]"),
        (lambda: latent_information(Z, MEAN, LOG_VARIANCE[:, :2]), "z, mean and log_variance must have one shape"),
        (lambda: latent_information(Z[:0], MEAN[:0], LOG_VARIANCE[:0]), "z must be floating of shape"),
    ],
)
def test_wrong_use(call, match):
    with pytest.raises(ValueError, match=match):
        call()
