"""Density ratios: worked numbers, trained classifiers against closed forms, the shuffles, and the samplers."""

import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from gen_core.estimators.bounds import Pairs, dv, nwj
from gen_core.estimators.density_ratio import (
    DensityRatio,
    effective_sample_size,
    langevin,
    log_partition,
    permute_dims,
    permute_nearest,
    permute_within,
    sir,
)

N = torch.arange(6, dtype=torch.float64)
JOINT = torch.stack([torch.sin(0.37 * N), torch.sin(0.83 * N + 1)], 1)  # two logits of z, and of z permuted
SHUFFLED = torch.stack([torch.sin(0.57 * N + 2), torch.sin(0.19 * N - 1)], 1)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def identity(nu=1.0):
    """A ratio whose net's input is its logits."""
    return DensityRatio(nn.Identity(), nu)


def sp(u):
    return max(u, 0.0) + math.log1p(math.exp(-abs(u)))


def correlated(corr, n, seed):
    """(n, 3) normal x, y, z with unit variances and the correlations xy, xz, yz."""
    xy, xz, yz = corr
    factor = torch.linalg.cholesky(torch.tensor([[1, xy, xz], [xy, 1, yz], [xz, yz, 1]], dtype=torch.float64))
    return randn(n, 3, seed=seed) @ factor.T


class Quadratic(nn.Module):
    """Logits that are quadratic in the inputs: what the log-ratio of two Gaussians is."""

    def __init__(self, columns):
        super().__init__()
        self.pairs = torch.triu_indices(columns, columns)
        self.linear = nn.Linear(columns + self.pairs.shape[1], 1).double()
        nn.init.zeros_(self.linear.weight)

    def forward(self, *inputs):
        v = torch.cat([x.view(len(x), -1) for x in inputs], 1)
        return self.linear(torch.cat([v, v[:, self.pairs[0]] * v[:, self.pairs[1]]], 1))


def fitted(ratio, pos, neg):
    """The minimum of the full batch: no noise but that of the samples."""
    optimizer = torch.optim.LBFGS(
        ratio.parameters(), max_iter=200, tolerance_grad=1e-9, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        loss = ratio.loss(pos, neg)
        loss.backward()
        return loss

    optimizer.step(closure)
    return ratio


def train(ratio, draw, steps, lr=2e-3):
    """Adam with a cosine, fresh samples at each step; `draw(step)` gives positives and negatives."""
    optimizer = torch.optim.Adam(ratio.parameters(), lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        optimizer.zero_grad()
        ratio.loss(*draw(step)).backward()
        optimizer.step()
        schedule.step()
    return ratio


# --- the interface


def test_worked_total_correlation_and_discriminator_loss():
    ratio = identity()
    assert ratio.log_ratio(JOINT).mean().item() == pytest.approx(0.631445, abs=1e-6)
    assert ratio.loss(JOINT, SHUFFLED).item() / 2 == pytest.approx(0.766430, abs=1e-6)
    assert ratio.loss(JOINT.float(), SHUFFLED.float()).item() / 2 == pytest.approx(0.766430, abs=1e-4)
    entropy = nn.functional.cross_entropy(JOINT, torch.zeros(6).long())
    entropy = (entropy + nn.functional.cross_entropy(SHUFFLED, torch.ones(6).long())) / 2
    assert ratio.loss(JOINT, SHUFFLED).item() / 2 == pytest.approx(entropy.item(), abs=1e-12)


def test_two_logits_agree_with_one():
    ratio = identity()
    pos, neg = JOINT[:, 0] - JOINT[:, 1], SHUFFLED[:, 0] - SHUFFLED[:, 1]
    for shape in ((6,), (6, 1)):
        assert ratio.loss(pos.view(shape), neg.view(shape)).item() == ratio.loss(JOINT, SHUFFLED).item()
        assert torch.equal(ratio.log_ratio(pos.view(shape)), ratio.log_ratio(JOINT))
    assert torch.equal(ratio(JOINT), ratio.log_ratio(JOINT))


@pytest.mark.parametrize(("nu", "value"), [(1, 1.027076), (3, 1.638407)])
def test_worked_loss_with_nu(nu, value):
    """The fixed matrix f holds log-ratios; the net's logits are log nu below."""
    f = torch.sin(0.37 * torch.arange(16, dtype=torch.float64).view(4, 4)) + 1.5 * torch.eye(4)
    u = f - math.log(nu)
    off = u[~torch.eye(4, dtype=torch.bool)]
    ratio = identity(nu)
    assert ratio.loss(u.diagonal(), off).item() == pytest.approx(value, abs=1e-6)
    by_hand = sum(sp(-v) for v in u.diagonal().tolist()) / 4 + nu * sum(sp(v) for v in off.tolist()) / 12
    assert ratio.loss(u.diagonal(), off).item() == pytest.approx(by_hand, abs=1e-12)
    torch.testing.assert_close(ratio.log_ratio(u.diagonal()), f.diagonal())


def test_worked_symmetric_forms():
    """The plug-in and variational values of a pair of log-ratio vectors, as Wyner's model uses them."""
    n = torch.arange(8, dtype=torch.float64)
    p, q = 1.2 * torch.sin(0.37 * n + 0.5), 0.8 * torch.sin(0.61 * n - 1)
    ratio = identity()
    assert (2 * math.log(2) - ratio.loss(p, q)).item() == pytest.approx(0.173555, abs=1e-6)
    assert ratio.log_ratio(p).mean().item() == pytest.approx(0.791770, abs=1e-6)
    assert -ratio.log_ratio(q).mean().item() == pytest.approx(-0.194846, abs=1e-6)
    assert (dv(Pairs(p, q)) + dv(Pairs(-q, -p))).item() == pytest.approx(1.012899, abs=1e-6)
    assert (nwj(Pairs(1 + p, 1 + q)) + nwj(Pairs(1 - q, 1 - p))).item() == pytest.approx(0.755182, abs=1e-6)


@pytest.mark.parametrize("nu", [1.0, 3.0])
@pytest.mark.parametrize("repeat", [1, 5])
def test_neither_nu_nor_the_number_of_negatives_moves_the_learnt_ratio(nu, repeat):
    p, q = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2]), torch.tensor([0, 0, 1, 1, 2, 2, 2, 2])
    net = nn.Embedding.from_pretrained(torch.zeros(3, 1, dtype=torch.float64), freeze=False)
    ratio = fitted(DensityRatio(net, nu), p, q.repeat(repeat))
    expected = torch.tensor([2.0, 1.0, 0.5], dtype=torch.float64).log()
    torch.testing.assert_close(ratio.log_ratio(torch.arange(3)).detach(), expected, atol=1e-5, rtol=0)


def test_nu_corrects_a_net_trained_elsewhere_on_unequal_classes():
    p, q = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2]), torch.tensor([0, 0, 1, 1, 2, 2, 2, 2]).repeat(3)
    counts = torch.stack([torch.bincount(p), torch.bincount(q)]).double()
    net = nn.Embedding.from_pretrained((counts[0] / counts[1]).log()[:, None])  # plain cross entropy's optimum
    expected = torch.tensor([2.0, 1.0, 0.5], dtype=torch.float64).log()
    torch.testing.assert_close(DensityRatio(net, nu=len(q) / len(p)).log_ratio(torch.arange(3)), expected)


def test_gradients():
    net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    ratio = DensityRatio(net, nu=2.0)
    pos, neg = randn(3, 2).requires_grad_(), randn(4, 2, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(ratio.loss, (pos, neg))
    assert torch.autograd.gradcheck(ratio.log_ratio, (pos,))


def test_extremes_and_precision():
    ratio = identity()
    assert ratio.loss(torch.tensor([1e4]), torch.tensor([-1e4])).item() == 0
    assert ratio.loss(torch.tensor([-1e4]), torch.tensor([1e4])).item() == 2e4  # a sigmoid would give infinity
    assert ratio.log_ratio(torch.tensor([[500.0, -500.0]])).item() == 1000  # so would log D / (1 - D)
    assert ratio.log_ratio(torch.ones(2).bfloat16()).dtype == torch.float32
    net = nn.Linear(2, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert DensityRatio(net).loss(torch.ones(2, 2), torch.zeros(3, 2)).dtype == torch.float32


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: DensityRatio(nn.Identity(), nu=0), r"nu must be a finite number above 0, got 0"),
        (lambda: identity().log_ratio(), r"inputs must hold at least one"),
        (lambda: identity().log_ratio(torch.zeros(4, 1, 1)), r"\(4,\), \(4, 1\) or \(4, 2\).*got \(4, 1, 1\)"),
        (lambda: identity().log_ratio(torch.zeros(4, 3)), r"got \(4, 3\)"),
        (lambda: identity().log_ratio(torch.zeros(4).long()), r"logits must have a floating dtype"),
        (lambda: DensityRatio(nn.Flatten(0)).log_ratio(torch.zeros(4, 2)), r"for 4 samples, got \(8,\)"),
        (lambda: identity().log_ratio(torch.tensor([math.nan])), r"logits must be finite"),
        (lambda: identity().loss(torch.zeros(0), torch.zeros(2)), r"logits must not be empty"),
    ],
)
def test_wrong_use_of_a_ratio(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# --- trained classifiers


def test_total_correlation_of_a_correlated_gaussian():
    rho = 0.8
    torch.manual_seed(0)
    ratio = DensityRatio(nn.Sequential(nn.Linear(2, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2)))

    def codes(n, seed):
        e = randn(n, 2, seed=seed).float()
        return torch.stack([e[:, 0], rho * e[:, 0] + math.sqrt(1 - rho**2) * e[:, 1]], 1)

    def draw(step):
        return codes(512, 2 * step + 10), permute_dims(codes(512, 2 * step + 11), seeded(step))

    train(ratio, draw, steps=400, lr=3e-3)
    with torch.no_grad():
        assert ratio.log_ratio(codes(20_000, 1)).mean().item() == pytest.approx(0.510826, abs=0.05)


def test_kl_of_two_gaussians_from_logits():
    """N(1, 1) against N(0, 1): log r = x - 1/2, KL either way 0.5, together 1."""
    pos, neg = randn(20_000, 1) + 1, randn(20_000, 1, seed=1)
    ratio = fitted(DensityRatio(Quadratic(1)), pos, neg)
    with torch.no_grad():
        both = ratio.log_ratio(pos).mean() - ratio.log_ratio(neg).mean()
    assert both.item() == pytest.approx(1.0, abs=0.1)


def mixture_log_ratio(z):
    """q = 0.5 N(-1.5, 0.3^2) + 0.5 N(1.5, 0.3^2) over p = N(0, 1)."""
    q = torch.logaddexp(-((z + 1.5) ** 2) / 0.18, -((z - 1.5) ** 2) / 0.18) - math.log(0.6)
    return q + z**2 / 2


def mixture(n, seed):
    sign = torch.randint(2, (n, 1), generator=seeded(seed)) * 2 - 1
    return 1.5 * sign + 0.3 * randn(n, 1, seed=seed)


def test_noise_contrastive_prior_in_one_dimension():
    at = torch.tensor([0.0, 0.5, 1.5, 2.5], dtype=torch.float64)
    expected = torch.tensor([-11.29603, -4.91973, 1.63583, -1.91973], dtype=torch.float64)
    torch.testing.assert_close(mixture_log_ratio(at), expected, atol=1e-5, rtol=0)
    torch.manual_seed(0)
    ratio = DensityRatio(nn.Sequential(nn.Linear(1, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1)))

    def draw(step):
        return mixture(1024, step + 10).float(), randn(1024, 1, seed=step + 5000).float()

    train(ratio, draw, steps=600, lr=5e-3)
    with torch.no_grad():
        loss = ratio.loss(mixture(50_000, 1).float(), randn(50_000, 1, seed=2).float()).item()
        z = torch.linspace(1, 2, 21)[:, None]
        error = (ratio.log_ratio(z) - mixture_log_ratio(z)[:, 0]).abs().max().item()
        log_z, standard_error = log_partition(ratio.log_ratio(randn(50_000, 1, seed=3).float()))
    assert 0.76 < loss <= 0.79  # the minimum is 0.771823
    assert error < 0.3
    assert abs(log_z.item()) < 0.1 and standard_error.item() < 0.02


# --- conditional mutual information

COLLIDER, CONFOUNDER = (0.0, 0.6, 0.5), (0.6, 0.5, 0.4)


def mi_by_classifier(pos, neg):
    ratio = fitted(DensityRatio(Quadratic(sum(x[0].numel() for x in pos))), pos, neg)
    with torch.no_grad():
        return ratio.log_ratio(*pos).mean().item()


@pytest.mark.parametrize(
    ("corr", "conditional", "marginal", "both"),
    [(CONFOUNDER, 0.146494, 0.223144, 0.233671), (COLLIDER, 0.103820, 0.0, 0.247662)],
)
def test_conditional_information_by_nearest_neighbours(corr, conditional, marginal, both):
    xy, xz, yz = corr
    partial = (xy - xz * yz) / math.sqrt((1 - xz**2) * (1 - yz**2))
    assert -0.5 * math.log(1 - partial**2) == pytest.approx(conditional, abs=1e-6)
    assert conditional - 0.5 * math.log(1 - yz**2) == pytest.approx(both, abs=1e-6)
    estimates: list[list[float]] = []
    for seed in range(3):  # one has a standard deviation of about 0.01
        x, y, z = correlated(corr, 6000, seed).split(1, dim=1)
        near = permute_nearest(z, k=5, generator=seeded(seed))
        # the commonest bug: y shuffled over the whole batch tells I(X; Y), or, with z in sight, I(Y; X, Z)
        far = torch.randperm(6000, generator=seeded(seed))
        negatives = ((x, y[near], z), (x, y[far]), (x, y[far], z))
        estimates.append([mi_by_classifier((x, y, z)[: len(neg)], neg) for neg in negatives])
    assert np.mean(estimates, axis=0) == pytest.approx([conditional, marginal, both], abs=0.025)
    assert abs(both - conditional) > 0.08


def test_conditional_information_within_groups():
    """x = 2 c + e, y = 2 c + e', corr(e, e') = rho: given the group c only rho counts."""
    n, rho = 8000, 0.5
    c = torch.randint(3, (n,), generator=seeded())
    e = randn(n, 2)
    x = 2.0 * c + e[:, 0]
    y = 2.0 * c + rho * e[:, 0] + math.sqrt(1 - rho**2) * e[:, 1]
    rows, partner, skipped = permute_within(c, seeded(1))
    assert skipped == 0 and len(rows) == n
    z = 2.0 * c  # the log-ratio is quadratic in x - z and y - z
    estimate = mi_by_classifier((x, y, z), (x, y[partner], z))
    assert estimate == pytest.approx(-0.5 * math.log(1 - rho**2), abs=0.03)  # 0.143841; six seeds: within 0.011
    far = torch.randperm(n, generator=seeded())
    assert mi_by_classifier((x, y), (x, y[far])) > 0.5  # I(X; Y), 0.64 to 0.67, most of it the groups'


# --- the shuffles


def test_permute_dims_keeps_columns_and_breaks_rows():
    z = torch.arange(200.0).view(50, 4).half()
    before = torch.random.get_rng_state()
    shuffled = permute_dims(z, seeded())
    assert torch.equal(before, torch.random.get_rng_state())  # the global generator is left alone
    assert shuffled.dtype == z.dtype
    assert torch.equal(shuffled.sort(0).values, z)
    rows = (shuffled.float() / 4).long()  # the row each entry came from
    assert all((rows[:, a] != rows[:, b]).sum() > 40 for a, b in itertools.combinations(range(4), 2))
    assert torch.equal(shuffled, permute_dims(z, seeded()))
    assert not torch.equal(shuffled, permute_dims(z, seeded(1)))


def test_permute_dims_is_uniform_and_independent():
    z = torch.arange(3.0)[:, None].expand(3, 2)
    generator, counts = seeded(), {}
    for _ in range(3600):
        key = tuple(permute_dims(z, generator).flatten().int().tolist())
        counts[key] = counts.get(key, 0) + 1
    assert len(counts) == 36  # 3! orders of each column, 100 expected of each
    assert sum((c - 100) ** 2 / 100 for c in counts.values()) < 66.6  # chi-square, 35 degrees, 0.1 %


def test_permute_dims_carries_the_gradient():
    z = randn(5, 2).requires_grad_()
    weight = randn(5, 2, seed=1)
    (permute_dims(z, seeded()) * weight).sum().backward()
    assert torch.equal(z.grad.sort(0).values, weight.sort(0).values)


def test_permute_within_keeps_each_group_and_has_no_fixed_point():
    groups = torch.randint(-1, 12, (200,), generator=seeded())
    groups[3], groups[7] = 50, 60  # alone
    rows, partner, skipped = permute_within(groups, seeded(1))
    assert torch.equal(rows.sort().values, rows) and len(rows) + skipped == 200
    assert skipped == 2 + int((groups == -1).sum())
    assert torch.equal(groups[rows], groups[partner])
    assert torch.equal(partner.sort().values, rows)  # every kept row is taken once
    assert bool((rows != partner).all())
    assert torch.equal(partner, permute_within(groups, seeded(1)).partner)
    assert not torch.equal(partner, permute_within(groups, seeded(2)).partner)


def test_permute_within_is_uniform_over_the_others():
    groups, generator = torch.tensor([4, 0, 4, 4, 0, 4]), seeded()
    counts = torch.zeros(6, 6)
    for _ in range(1500):
        rows, partner, _ = permute_within(groups, generator)
        counts[rows, partner] += 1
    four = [0, 2, 3, 5]
    assert counts[1, 4] == counts[4, 1] == 1500
    of_four = counts[four][:, four]
    assert of_four.diagonal().sum() == 0
    assert (of_four[~torch.eye(4, dtype=torch.bool)] - 500).abs().max() < 75  # 4 standard deviations of 18.3


def test_permute_within_nothing_to_pair():
    for groups in (torch.tensor([-1, -1, -1]), torch.tensor([1, 2, 3]), torch.tensor([0])):
        rows, partner, skipped = permute_within(groups)
        assert len(rows) == len(partner) == 0 and skipped == len(groups)


@pytest.mark.parametrize("k", [1, 3, 39])
def test_permute_nearest_against_sorting(k):
    z = randn(40, 2) + 1e4  # far from zero: expanded squares in float32 would mistake the neighbours
    partners = torch.stack([permute_nearest(z.float(), k, seeded(s)) for s in range(60)])
    points = z.float().double().numpy()
    for i in range(40):
        distance = np.linalg.norm(points - points[i], axis=1)
        nearest = [j for j in np.argsort(distance, kind="stable").tolist() if j != i][:k]
        assert set(partners[:, i].tolist()) <= set(nearest)
    if k == 3:
        assert all(len(set(partners[:, i].tolist())) == 3 for i in range(40))


def test_permute_nearest_in_blocks_with_duplicates():
    z = torch.arange(3000).div(2, rounding_mode="floor").float()[:, None]  # 2i and 2i + 1 are equal; 3 blocks
    assert torch.equal(permute_nearest(z, k=1), torch.arange(3000).view(-1, 2).flip(1).flatten())
    assert (permute_nearest(torch.zeros(9, 1), k=8, generator=seeded()) != torch.arange(9)).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: permute_dims(torch.zeros(1, 3)), r"z must have at least 2 rows"),
        (lambda: permute_dims(torch.zeros(3)), r"z must have 2 dimension"),
        (lambda: permute_dims(torch.zeros(3, 2).long()), r"z must have a floating dtype"),
        (lambda: permute_within(torch.zeros(3)), r"groups must be a vector of integers"),
        (lambda: permute_within(torch.zeros(2, 2).long()), r"groups must be a vector of integers"),
        (lambda: permute_within(torch.zeros(0).long()), r"groups must not be empty"),
        (lambda: permute_nearest(torch.zeros(4)), r"z must have 2 dimension"),
        (lambda: permute_nearest(torch.zeros(4, 1), k=4), r"k must be from 1 to 3, .* got 4"),
        (lambda: permute_nearest(torch.zeros(4, 1), k=0), r"k must be from 1 to 3, .* got 0"),
        (lambda: permute_nearest(torch.tensor([[0.0], [math.nan]]), k=1), r"z must be finite"),
    ],
)
def test_wrong_use_of_a_shuffle(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# --- effective sample size and log Z


def gaussian_log_ratio(x, y, rho):
    """log p(x, y) / p(x) p(y) of independent pairs of correlation rho, summed over d."""
    quadratic = (rho**2 * (x**2 + y**2) - 2 * rho * x * y) / (2 * (1 - rho**2))
    return (-0.5 * math.log(1 - rho**2) - quadratic).sum(-1)


@pytest.mark.parametrize(("d", "rho"), [(1, 0.3), (1, 0.5), (3, 0.3)])
def test_effective_sample_size_and_log_z_of_the_exact_ratio(d, rho):
    """E_q[r] = 1 and E_q[r^2] = (1 - rho^2)^-d."""
    m = 200_000
    log_r = gaussian_log_ratio(randn(m, d), randn(m, d, seed=1), rho)
    second = (1 - rho**2) ** -d
    assert effective_sample_size(log_r).item() / m == pytest.approx(1 / second, rel=0.03)
    value, error = log_partition(log_r)
    assert error.item() == pytest.approx(math.sqrt((second - 1) / m), rel=0.03)
    assert abs(value.item()) < 3 * error.item()


def test_effective_sample_size_and_log_z_by_hand():
    log_r = randn(3, 7)
    r = log_r.exp().numpy()
    np.testing.assert_allclose(effective_sample_size(log_r).numpy(), r.sum(1) ** 2 / (r**2).sum(1), atol=1e-12)
    value, error = log_partition(log_r)
    np.testing.assert_allclose(value.numpy(), np.log(r.mean(1)), atol=1e-12)
    np.testing.assert_allclose(error.numpy(), r.std(1, ddof=1) / r.mean(1) / math.sqrt(7), atol=1e-12)
    shifted = log_partition(log_r + 1000)
    np.testing.assert_allclose(shifted.value.numpy(), value.numpy() + 1000, atol=1e-9)
    np.testing.assert_allclose(shifted.standard_error.numpy(), error.numpy(), atol=1e-9)
    assert effective_sample_size(torch.zeros(5).half()).item() == pytest.approx(5)
    assert log_partition(torch.zeros(4)).standard_error.item() == 0
    assert torch.autograd.gradcheck(lambda u: log_partition(u).value, log_r.requires_grad_())


def test_log_z_is_biased_low_by_half_the_squared_error():
    rho, m, reps = 0.5, 50, 40_000
    shape = (reps, m, 1)
    value, error = log_partition(gaussian_log_ratio(randn(*shape), randn(*shape, seed=1), rho))
    bias, noise = value.mean().item(), value.std().item() / math.sqrt(reps)
    assert bias == pytest.approx(-(1 / (1 - rho**2) - 1) / (2 * m), abs=3 * noise)  # -0.00333
    assert error.mean().item() == pytest.approx(value.std().item(), rel=0.1)
    assert bias < -3 * noise


# --- sampling-importance-resampling


def normal_ratio(z, mean, sd):
    """log N(z; mean, sd^2) - log N(z; 0, 1), both unnormalised by a common constant."""
    return -((z - mean) ** 2) / (2 * sd**2) + z**2 / 2


def test_sir_reproduces_a_gaussian():
    mean, sd, rows, m = 0.8, 0.5, 20_000, 200
    z = randn(rows, m)
    samples, chosen, ess = sir(z, normal_ratio(z, mean, sd) + 500, generator=seeded(1))
    assert samples.shape == chosen.shape == ess.shape == (rows,)
    assert torch.equal(samples, z.gather(1, chosen[:, None])[:, 0])
    assert samples.mean().item() == pytest.approx(mean, abs=4 * sd / math.sqrt(rows) + 0.005)
    assert samples.std().item() == pytest.approx(sd, abs=4 * sd / math.sqrt(2 * rows) + 0.005)
    # E_q[r] ^2 / E_q[r^2] = sd sqrt(2 - sd^2) exp(-mean^2 / (2 - sd^2))
    share = sd * math.sqrt(2 - sd**2) * math.exp(-(mean**2) / (2 - sd**2))
    assert ess.mean().item() / m == pytest.approx(share, rel=0.03)


@pytest.mark.parametrize(("m", "expected"), [(1, 0.80), (10, 1.44), (1000, 1.50)])
def test_sir_tends_to_the_mixture(m, expected):
    z = randn(4000, m)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = sir(z, mixture_log_ratio(z), generator=seeded(1))
    assert result.samples.abs().mean().item() == pytest.approx(expected, abs=0.03)
    if m == 1:
        assert torch.equal(result.samples, z[:, 0])  # the base prior itself


def test_sir_group_by_group():
    """Two groups with exact conditional ratios: ancestral resampling reproduces E z1 = 0.8 and E z2 = 0.56."""

    def log_normal(z, mean, sd):
        return -((z - mean) ** 2) / (2 * sd**2) - math.log(sd)

    def first(z1):
        return log_normal(z1, 0.8, 0.5) - log_normal(z1, 0.0, 1.0)

    def second(z2, z1):
        return log_normal(z2, 0.7 * z1, 0.6) - log_normal(z2, 0.3 * z1, 1.0)

    assert first(0.6) == pytest.approx(0.793147, abs=1e-6)
    assert second(-0.2, 0.6) == pytest.approx(0.049137, abs=1e-6)
    rows, m = 4000, 500
    z = randn(rows, m)
    z1 = sir(z, first(z), generator=seeded(1)).samples
    z = 0.3 * z1[:, None] + randn(rows, m, seed=2)
    z2 = sir(z, second(z, z1[:, None]), generator=seeded(3)).samples
    for values, mean in ((z1, 0.8), (z2, 0.56)):
        assert abs(values.mean().item() - mean) < 3 * values.std().item() / math.sqrt(rows)


def test_sir_shapes_and_draws():
    z = torch.arange(24).view(2, 4, 3)  # any dtype, any further dimensions
    log_r = torch.zeros(2, 4)
    one, many = sir(z, log_r, generator=seeded()), sir(z, log_r, n=5, generator=seeded())
    assert one.samples.shape == (2, 3) and one.chosen.shape == (2,)
    assert many.samples.shape == (2, 5, 3) and many.chosen.shape == (2, 5)
    for b, k in itertools.product(range(2), range(5)):
        assert torch.equal(many.samples[b, k], z[b, many.chosen[b, k]])
    assert torch.equal(many.chosen, sir(z, log_r.half(), n=5, generator=seeded()).chosen)
    masked = torch.tensor([[0.0, -math.inf, 0.0, -math.inf]]).expand(2, 4)
    assert set(sir(z, masked, n=50, generator=seeded()).chosen.flatten().tolist()) == {0, 2}


def test_sir_draws_in_proportion_to_the_ratio():
    r = torch.tensor([1.0, 2.0, 3.0, 4.0])
    chosen = sir(torch.zeros(1, 4), r.log()[None], n=20_000, generator=seeded()).chosen
    share = torch.bincount(chosen[0]) / 20_000
    assert (share - r / 10).abs().max() < 4 * math.sqrt(0.24 / 20_000)


def test_sir_warns_where_few_proposals_carry_all_weight():
    z = torch.zeros(3, 500)
    peaked = torch.zeros(3, 500)
    peaked[:, 0] = 20.0
    with pytest.warns(UserWarning, match=r"effective sample size of 500 proposals is 1\.00 in the mean over rows"):
        sir(z, peaked)
    few = torch.full((1, 8000), -100.0)
    few[0, :4] = 0
    with pytest.warns(UserWarning, match=r"of 8000 proposals is 4\.00"):  # below M / 1000
        sir(torch.zeros(1, 8000), few)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sir(z, torch.zeros(3, 500))
        sir(z[:, :3], peaked[:, :3])  # so few that the weight of one means nothing
        sir(z[:, :1], peaked[:, :1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sir(torch.zeros(2, 4), torch.zeros(2, 5)), r"proposals must have shape \(2, 5, ...\).*got \(2, 4\)"),
        (lambda: sir(torch.zeros(2, 4), torch.zeros(4)), r"log_ratio must have 2 dimension"),
        (lambda: sir(torch.zeros(2, 4), torch.zeros(2, 4), n=0), r"n must be at least 1 or None, got 0"),
        (lambda: sir(torch.zeros(2, 0), torch.zeros(2, 0)), r"log_ratio must not be empty"),
        (lambda: sir(torch.zeros(1, 2), torch.tensor([[0.0, math.nan]])), r"log_ratio must be finite"),
        (lambda: sir(torch.zeros(1, 2), torch.full((1, 2), -math.inf)), r"log_ratio must be finite"),
        (lambda: log_partition(torch.zeros(3, 1)), r"log_ratio must hold at least 2 samples"),
        (lambda: log_partition(torch.tensor(0.0)), r"log_ratio must have at least 1 dimension"),
        (lambda: log_partition(torch.tensor([0.0, math.nan])), r"log_ratio must be finite"),
        (lambda: effective_sample_size(torch.tensor([0.0, math.inf])), r"log_weights must be finite"),
        (lambda: effective_sample_size(torch.zeros(2).long()), r"log_weights must have a floating dtype"),
    ],
)
def test_wrong_use_of_the_resampler(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# --- Langevin dynamics


@pytest.mark.parametrize(("variance", "step_size"), [(1.0, 0.1), (1.0, 1.0), (0.25, 0.3)])
def test_langevin_stationary_variance(variance, step_size):
    """z <- (1 - s/(2v)) z + sqrt(s) n has the variance s / (1 - (1 - s/(2v))^2) = v / (1 - s/(4v))."""
    rows = 40_000
    z = langevin(
        randn(rows, 1) + 1,
        lambda z: -((z[:, 0] - 2) ** 2) / (2 * variance),
        steps=150,
        step_size=step_size,
        generator=seeded(1),
    )
    expected = variance / (1 - step_size / (4 * variance))
    assert z.mean().item() == pytest.approx(2.0, abs=4 * math.sqrt(expected / rows))
    assert z.var().item() == pytest.approx(expected, rel=4 * math.sqrt(2 / rows))


def test_langevin_is_its_recursion():
    start = randn(3, 2)
    z = langevin(start, lambda z: torch.cos(z).sum(1), steps=3, step_size=0.2, generator=seeded(5))
    generator, x = seeded(5), start.numpy().copy()
    for _ in range(3):
        noise = torch.randn(3, 2, dtype=torch.float64, generator=generator).numpy()
        x = x + 0.1 * -np.sin(x) + math.sqrt(0.2) * noise
    np.testing.assert_allclose(z.numpy(), x, atol=1e-12)
    assert torch.equal(start, randn(3, 2))


def test_langevin_reaches_a_contrastive_prior_and_leaves_no_gradient():
    """Base N(0, 1), r = N(0.8, 0.5^2) / N(0, 1), in the noise of the base; under no_grad, half precision given."""
    net = Quadratic(1)
    with torch.no_grad():
        net.linear.weight.copy_(torch.tensor([[0.8 / 0.25, 0.5 - 0.5 / 0.25]]))
        ratio = DensityRatio(net)
        e = langevin(
            randn(20_000, 1),
            lambda e: ratio.log_ratio(e) - e.square().sum(1) / 2,
            steps=100,
            step_size=0.05,
            generator=seeded(1),
        )
        half = langevin(torch.zeros(4, 1).half(), lambda e: -e.square().sum(1), steps=2, step_size=0.1)
    assert not e.requires_grad and net.linear.weight.grad is None
    assert e.mean().item() == pytest.approx(0.8, abs=0.02)
    assert e.var().item() == pytest.approx(0.25 / (1 - 0.05), rel=0.05)
    assert half.dtype == torch.float32


def test_langevin_names_the_step_that_diverged():
    calls = []

    def explodes(z):
        calls.append(1)
        return z.sum(1) * (math.inf if len(calls) == 3 else 1.0)

    with pytest.raises(ValueError, match=r"step_size 0\.1 gave NaN or infinite z at step 3 of 10"):
        langevin(torch.zeros(4, 2), explodes, steps=10, step_size=0.1)
    with pytest.raises(ValueError, match=r"at step \d+ of 400; try a smaller step_size"):
        langevin(torch.zeros(4, 2), lambda z: -z.square().sum(1) / 2, steps=400, step_size=5.0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"steps": 0}, r"steps must be at least 1, got 0"),
        ({"step_size": 0.0}, r"step_size must be a finite number above 0"),
        ({"z": torch.zeros(3).long()}, r"z must have a floating dtype"),
        ({"z": torch.tensor([[math.nan]])}, r"z must be finite"),
        ({"z": torch.tensor(1.0)}, r"z must have at least 1 dimension"),
        ({"log_density": lambda z: z}, r"log_density must return shape \(3,\), one a row, got \(3, 2\)"),
        ({"log_density": lambda z: z.detach().sum(1)}, r"log_density must be differentiable in z"),
    ],
)
def test_wrong_use_of_langevin(given, message):
    call = {"z": torch.zeros(3, 2), "log_density": lambda z: -z.square().sum(1), "steps": 2, "step_size": 0.1} | given
    with pytest.raises(ValueError, match=message):
        langevin(**call)
