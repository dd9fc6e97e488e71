"""Sliced Wasserstein, MMD, Chamfer and rate reduction: worked numbers, closed forms, numpy loops, bad input."""

import doctest
import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats

from gen_core.losses import geometry
from gen_core.losses.geometry import (
    chamfer,
    coding_rate,
    generalized_sliced_wasserstein,
    max_sliced_wasserstein,
    mmd,
    rate_reduction,
    sliced_wasserstein,
    wasserstein_1d,
)

T = torch.arange(10, dtype=torch.float64).view(5, 2)
X, Y = torch.sin(0.37 * T), 0.5 + torch.cos(0.53 * T)  # the points of the worked values
K = torch.arange(12, dtype=torch.float64).view(4, 3)
FEATURES = F.normalize(torch.cat([torch.sin(0.37 * K + 0.1), torch.cos(0.53 * K + 0.2)]))
ALTERNATE = torch.arange(8) % 2


def gen(seed):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=gen(seed), dtype=dtype)


def directions(count, span=math.pi):
    """Unit vectors of the plane at the angles k span / count."""
    angle = torch.arange(count, dtype=torch.float64) * span / count
    return torch.stack([angle.cos(), angle.sin()], 1)


def test_examples():
    assert doctest.testmod(geometry).failed == 0


# --- Wasserstein


@pytest.mark.parametrize(("p", "four", "circle"), [(1, 0.322292, 0.330795), (2, 0.156786, 0.156144)])
def test_sliced_worked(p, four, circle):
    assert sliced_wasserstein(X, Y, directions(4), p=p).item() == pytest.approx(four, abs=1e-6)
    assert sliced_wasserstein(X.float(), Y.float(), directions(4), p=p).item() == pytest.approx(four, abs=1e-4)
    assert sliced_wasserstein(X, Y, directions(20_000), p=p).item() == pytest.approx(circle, abs=1e-6)


@pytest.mark.parametrize(("p", "value", "degrees"), [(1, 0.485311, 20.6), (2, 0.286997, 18.2)])
def test_max_sliced_worked(p, value, degrees):
    grid = max_sliced_wasserstein(X, Y, directions(18_000), steps=0, p=p)
    ascent = max_sliced_wasserstein(X, Y, n_directions=5, p=p, generator=gen(0))
    for found, slack in ((grid, 1e-6), (ascent, 2e-6)):  # measured 7e-8 for the ascent
        assert found.distance.item() == pytest.approx(value, abs=slack)
        angle = math.degrees(math.atan2(found.direction[1], found.direction[0])) % 180
        assert angle == pytest.approx(degrees, abs=0.1)
        assert found.direction.norm().item() == pytest.approx(1)


@pytest.mark.parametrize(("p", "circular", "polynomial"), [(1, 0.338430, 0.534038), (2, 0.158290, 0.861856)])
def test_generalized_worked(p, circular, polynomial):
    found = generalized_sliced_wasserstein(X, Y, directions(4, 2 * math.pi), kind="circular", radius=2.0, p=p)
    assert found.item() == pytest.approx(circular, abs=1e-6)
    found = generalized_sliced_wasserstein(X, Y, torch.eye(4).double(), kind="polynomial", degree=3, p=p)
    assert found.item() == pytest.approx(polynomial, abs=1e-6)


def test_slices_of_ones_own():
    """Slices by a linear map that is not normalised: the root of the sums, of three views (CoCoNet's scale)."""
    weight = torch.sin(0.37 * torch.arange(160, dtype=torch.float64) + 0.3).view(16, 10)
    wave = 0.37 * torch.arange(128, dtype=torch.float64).view(8, 16)
    x, y, z = (F.normalize(torch.sin(wave + shift)) @ weight for shift in (0, 0.5, 1.0))
    total = sum((8 * 10 * wasserstein_1d(u, v).mean()).sqrt().item() for u, v in ((x, y), (x, z), (z, y)))
    assert total == pytest.approx(1.7568374, abs=1e-6)
    assert wasserstein_1d(x, x).sum() == 0


def quantile_loop(x, y, p):
    """W_p^p of two lists by the common refinement of their steps, in fractions."""
    x, y = sorted(x), sorted(y)
    cuts = sorted({Fraction(i, len(x)) for i in range(len(x) + 1)} | {Fraction(j, len(y)) for j in range(len(y) + 1)})
    total = 0.0
    for low, high in itertools.pairwise(cuts):
        middle = (low + high) / 2
        total += float(high - low) * abs(x[int(middle * len(x))] - y[int(middle * len(y))]) ** p
    return total


@pytest.mark.parametrize(("n", "m"), [(5, 5), (3, 7), (7, 3), (6, 4), (12, 8), (1, 9), (1, 1), (97, 64)])
def test_unequal_sizes_against_fractions_and_scipy(n, m):
    x, y = randn(n, 2, seed=n), 0.3 + 2 * randn(m, 2, seed=m + 100)
    for p in (1, 1.5, 2, 3):
        wanted = [quantile_loop(x[:, k].tolist(), y[:, k].tolist(), p) for k in range(2)]
        assert wasserstein_1d(x, y, p).tolist() == pytest.approx(wanted, rel=1e-10)
        assert wasserstein_1d(y, x, p).tolist() == pytest.approx(wanted, rel=1e-10)
    wanted = [stats.wasserstein_distance(x[:, k].numpy(), y[:, k].numpy()) for k in range(2)]
    assert wasserstein_1d(x, y, 1).tolist() == pytest.approx(wanted, rel=1e-10)


def test_a_repeated_sample_is_the_same_law():
    x, y = randn(6, 3, seed=1), randn(4, 3, seed=2)
    value = sliced_wasserstein(x, y, torch.eye(3))
    torch.testing.assert_close(sliced_wasserstein(x.repeat(2, 1), y.repeat(3, 1), torch.eye(3)), value)
    assert sliced_wasserstein(x, x.repeat(3, 1), n_directions=7).item() == pytest.approx(0, abs=1e-28)


@pytest.mark.parametrize("seed", range(3))
def test_sliced_is_a_distance(seed):
    x, y, z = (randn(n, 4, seed=10 * seed + n) for n in (9, 9, 6))
    theta = randn(20, 4, seed=seed)
    root = lambda u, v: sliced_wasserstein(u, v, theta).sqrt().item()  # noqa: E731
    assert root(x, y) == pytest.approx(root(y, x))
    assert root(x, z) <= root(x, y) + root(y, z) + 1e-12
    order = torch.randperm(9, generator=gen(seed))
    assert root(x[order], y) == pytest.approx(root(x, y))
    assert root(x + 1e3, y + 1e3) == pytest.approx(root(x, y), rel=1e-9)
    assert root(3 * x, 3 * y) == pytest.approx(3 * root(x, y))
    moved = x + torch.tensor([2.5, 0.0, 0.0, 0.0])
    assert sliced_wasserstein(x, moved, torch.eye(4)[:1]).item() == pytest.approx(2.5**2)
    torch.testing.assert_close(sliced_wasserstein(x, y, 7 * theta), sliced_wasserstein(x, y, theta))


def test_gaussians_have_their_closed_forms():
    d, mu = 10, torch.zeros(10)
    mu[3] = 1.5
    x, y = randn(4000, d, seed=1, dtype=torch.float32), randn(4000, d, seed=2, dtype=torch.float32) + mu
    found = sliced_wasserstein(x, y, n_directions=500, generator=gen(0)).item()
    assert found == pytest.approx(1.5**2 / d, rel=0.05)  # measured 3e-4
    best = max_sliced_wasserstein(x, y, generator=gen(0))
    assert best.distance.item() == pytest.approx(1.5**2, rel=0.1)  # measured 0.04
    assert best.direction[3].abs().item() > 0.99
    assert best.distance > max_sliced_wasserstein(x, y, steps=0, n_directions=200, generator=gen(0)).distance


def test_the_generator_fixes_the_directions():
    for call in (sliced_wasserstein, generalized_sliced_wasserstein):
        assert call(X, Y, n_directions=3, generator=gen(4)) == call(X, Y, n_directions=3, generator=gen(4))
        assert call(X, Y, n_directions=3, generator=gen(4)) != call(X, Y, n_directions=3, generator=gen(5))
    found = sliced_wasserstein(X, Y, n_directions=3, generator=gen(4))
    torch.testing.assert_close(found, sliced_wasserstein(X, Y, randn(3, 2, seed=4)))


def test_generalized_against_loops():
    x, y, r = randn(5, 3, seed=1), randn(4, 3, seed=2), 1.7
    theta = F.normalize(randn(6, 3, seed=3))
    wanted = 0.0
    for row in theta:
        a, b = ([math.dist(v, (r * row).tolist()) for v in sample.tolist()] for sample in (x, y))
        wanted += quantile_loop(a, b, 2) / 6
    found = generalized_sliced_wasserstein(x, y, theta, kind="circular", radius=r)
    assert found.item() == pytest.approx(wanted, rel=1e-10)
    exponents = [
        (3, 0, 0),
        (2, 1, 0),
        (2, 0, 1),
        (1, 2, 0),
        (1, 1, 1),
        (1, 0, 2),
        (0, 3, 0),
        (0, 2, 1),
        (0, 1, 2),
        (0, 0, 3),
    ]
    theta = F.normalize(randn(6, 10, seed=4))
    wanted = 0.0
    for row in theta.tolist():
        g = lambda v, row=row: sum(c * v[0] ** i * v[1] ** j * v[2] ** k for c, (i, j, k) in zip(row, exponents))  # noqa: B905, E731
        wanted += quantile_loop([g(v) for v in x.tolist()], [g(v) for v in y.tolist()], 1) / 6
    assert generalized_sliced_wasserstein(x, y, theta, degree=3, p=1).item() == pytest.approx(wanted, rel=1e-10)
    theta = randn(6, 3, seed=5)
    linear = generalized_sliced_wasserstein(x, y, theta, degree=1)
    torch.testing.assert_close(linear, sliced_wasserstein(x, y, theta))


@pytest.mark.parametrize("p", [1, 2, 2.5])
@pytest.mark.parametrize("m", [5, 3])
def test_wasserstein_gradcheck(p, m):
    x, y, theta = X.clone().requires_grad_(), Y[:m].clone().requires_grad_(), randn(3, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda *v: sliced_wasserstein(*v, p=p), (x, y, theta))
    for kind, dim in (("circular", 2), ("polynomial", 4)):
        slices = randn(3, dim, seed=1)
        assert torch.autograd.gradcheck(
            lambda a, b, k=kind, s=slices: generalized_sliced_wasserstein(a, b, s, kind=k, p=p), (x, y)
        )


def test_the_gradient_of_a_smooth_maximum():
    x, y = X.clone().requires_grad_(), Y + 4  # so far apart that no two projections change places at the maximum
    found = max_sliced_wasserstein(x, y, generator=gen(0), steps=200)
    found.distance.backward()
    assert not found.direction.requires_grad
    angle = math.atan2(found.direction[1], found.direction[0]) + torch.linspace(-0.05, 0.05, 20_001).double()
    near = torch.stack([angle.cos(), angle.sin()], 1)
    for k in range(5):  # by differences of the maximum taken anew
        step = torch.zeros_like(X)
        step[k, 0] = 1e-3
        up, down = (max_sliced_wasserstein(X + s * step, y, near, steps=0).distance.item() for s in (1, -1))
        assert x.grad[k, 0].item() == pytest.approx((up - down) / 2e-3, abs=1e-4)
    with torch.inference_mode():
        assert max_sliced_wasserstein(X, y, generator=gen(0), steps=200).distance == found.distance


def test_one_step_against_the_gradient_lowers_the_distance():
    x, y = randn(64, 8, seed=1).requires_grad_(), randn(48, 8, seed=2) + 1
    before = sliced_wasserstein(x, y, generator=gen(1))
    before.backward()
    assert sliced_wasserstein(x.detach() - 100 * x.grad, y, generator=gen(1)) < 0.7 * before


def test_equal_samples_cost_nothing_and_have_a_finite_gradient():
    for p in (1, 1.5, 2):
        x = X.clone().requires_grad_()  # and one of them in the centre of the circles
        loss = sliced_wasserstein(x, X.clone(), p=p) + generalized_sliced_wasserstein(
            x,
            X.clone(),
            X[1:2].clone(),
            kind="circular",
            radius=X[1].norm().item(),
            p=p,  # a point in a circle's centre
        )
        loss.backward()
        assert loss.item() == pytest.approx(0, abs=1e-12) and x.grad.isfinite().all()


# --- MMD


def kernel_loop(x, y, kernel, s):
    total = [[0.0] * len(y) for _ in x]
    for i, a in enumerate(x.tolist()):
        for j, b in enumerate(y.tolist()):
            square = math.dist(a, b) ** 2
            total[i][j] = math.exp(-square / (2 * s * s)) if kernel == "gaussian" else 2 * s * s / (2 * s * s + square)
    return np.array(total)


def test_mmd_worked():
    assert mmd(X, Y, bandwidth=1.0, unbiased=False).item() == pytest.approx(0.108196, abs=1e-6)
    assert mmd(X, Y, bandwidth=1.0).item() == pytest.approx(-0.064263, abs=1e-6)
    assert mmd(X, Y, "imq", 1.0).item() == pytest.approx(-0.055403, abs=1e-6)
    assert mmd(X, Y).item() == pytest.approx(mmd(X, Y, bandwidth=0.948678).item(), abs=1e-7)
    assert mmd(X.float(), Y.float(), bandwidth=1.0).item() == pytest.approx(-0.064263, abs=1e-6)


@pytest.mark.parametrize("kernel", ["gaussian", "imq"])
@pytest.mark.parametrize(("n", "m", "s"), [(4, 6, 0.7), (2, 2, 3.0), (7, 3, 1.5)])
def test_mmd_against_loops(kernel, n, m, s):
    x, y = randn(n, 3, seed=n), 2 + randn(m, 3, seed=m + 50)
    xx, yy, xy = kernel_loop(x, x, kernel, s), kernel_loop(y, y, kernel, s), kernel_loop(x, y, kernel, s)
    biased = xx.mean() + yy.mean() - 2 * xy.mean()
    unbiased = (xx.sum() - n) / (n * (n - 1)) + (yy.sum() - m) / (m * (m - 1)) - 2 * xy.mean()
    assert mmd(x, y, kernel, s, unbiased=False).item() == pytest.approx(biased, abs=1e-12)
    assert mmd(x, y, kernel, s).item() == pytest.approx(unbiased, abs=1e-12)
    assert mmd(y, x, kernel, s).item() == pytest.approx(unbiased, abs=1e-12)
    pooled = torch.cat([x, y]).tolist()
    distances = sorted(math.dist(a, b) for i, a in enumerate(pooled) for b in pooled[:i])
    median = distances[(len(distances) - 1) // 2]
    torch.testing.assert_close(mmd(x, y, kernel), mmd(x, y, kernel, median), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("d", "mu", "s", "value"), [(1, 1, 1, 0.177268), (2, 1, 1, 0.102346), (10, 1, 2, 0.021058)])
def test_mmd_of_gaussians(d, mu, s, value):
    shift = torch.zeros(d)
    shift[0] = mu
    closed = 2 * (s**2 / (s**2 + 2)) ** (d / 2) * (1 - math.exp(-(mu**2) / (2 * (s**2 + 2))))
    assert closed == pytest.approx(value, abs=1e-6)
    g = gen(5)
    draw = lambda: torch.randn(500, d, generator=g)  # noqa: E731
    found = [mmd(draw(), draw() + shift, bandwidth=float(s)).item() for _ in range(16)]
    error = np.std(found, ddof=1) / 4
    assert abs(np.mean(found) - closed) < 4 * error  # measured 0.4 to 2.1
    assert error < 0.05 * closed


def test_duplicates_and_far_offsets_are_exact():
    x = randn(6, 4, seed=1, dtype=torch.float32)
    twice = torch.cat([x, x])
    assert abs(mmd(twice, x, bandwidth=1e-3, unbiased=False).item()) < 1e-6  # only equal rows meet
    off = (x.double() + 4096).float()  # a Gram identity in float32 would be off by 1 or more here
    wanted = mmd(off.double() - 4096, 1.5 * (off.double() - 4096), bandwidth=0.5).item()
    wide = (4096 + 1.5 * (off.double() - 4096)).float()
    assert mmd(off, wide, bandwidth=0.5).item() == pytest.approx(wanted, abs=1e-3)
    v = mmd(twice, twice, bandwidth=0.01, unbiased=False)
    assert v.item() == pytest.approx(0, abs=1e-7)
    near = x + 1e-3 * randn(6, 4, seed=2, dtype=torch.float32)
    near[0] += 100
    found = mmd(x, near, bandwidth=2e-3, unbiased=False).item()
    loops = [kernel_loop(u.double(), v.double(), "gaussian", 2e-3).mean() for u, v in ((x, x), (near, near), (x, near))]
    assert found == pytest.approx(loops[0] + loops[1] - 2 * loops[2], abs=1e-6)
    grad = twice.clone().requires_grad_()
    mmd(grad, x, bandwidth=0.5).backward()
    assert grad.grad.isfinite().all()


@pytest.mark.parametrize("kernel", ["gaussian", "imq"])
@pytest.mark.parametrize("unbiased", [True, False])
def test_mmd_gradients(kernel, unbiased):
    x, y, s = X.clone().requires_grad_(), Y[:4].clone().requires_grad_(), torch.tensor(0.8).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b, c: mmd(a, b, kernel, c, unbiased=unbiased), (x, y, s))
    assert torch.autograd.gradgradcheck(lambda a, b: mmd(a, b, kernel, 0.8, unbiased=unbiased), (x, y))
    mmd(x, y, kernel).backward()  # the median is a constant
    pinned = X.clone().requires_grad_()
    pooled = torch.cat([X, Y[:4]])
    mmd(pinned, Y[:4], kernel, torch.pdist(pooled).median()).backward()
    torch.testing.assert_close(x.grad, pinned.grad)


def test_mmd_keeps_no_three_dimensional_tensor():
    n, d = 64, 500
    x, y = randn(n, d).requires_grad_(), randn(n, d, seed=1)
    largest = 0

    def pack(t):
        nonlocal largest
        largest = max(largest, t.numel())
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        mmd(x, y)
        sliced_wasserstein(x, y, n_directions=10)
    assert largest <= n * d


# --- Chamfer


def chamfer_loop(a, b):
    """Of each cloud, float64."""
    found = []
    for x, y in zip(a.double().tolist(), b.double().tolist(), strict=True):
        square = np.array([[math.dist(u, v) ** 2 for v in y] for u in x])
        found.append(square.min(1).mean() + square.min(0).mean())
    return found


@pytest.mark.parametrize(("n", "p", "q", "d"), [(3, 5, 5, 3), (2, 7, 3, 2), (1, 1, 6, 3), (4, 6, 1, 1), (1, 1, 1, 5)])
def test_chamfer_against_loops(n, p, q, d):
    a, b = randn(n, p, d, seed=p), 0.5 + randn(n, q, d, seed=q + 50)
    wanted = chamfer_loop(a, b)
    assert chamfer(a, b, "none").tolist() == pytest.approx(wanted, abs=1e-12)
    assert chamfer(a, b).item() == pytest.approx(np.mean(wanted), abs=1e-12)
    assert chamfer(a, b, "sum").item() == pytest.approx(np.sum(wanted), abs=1e-12)
    assert chamfer(b, a).item() == pytest.approx(np.mean(wanted), abs=1e-12)
    assert chamfer(a.float(), b.float()).item() == pytest.approx(np.mean(wanted), rel=1e-5)


def test_chamfer_sees_sets():
    a, b = randn(2, 9, 3), randn(2, 7, 3, seed=1)
    order, shift = torch.randperm(9, generator=gen(1)), torch.tensor([3.0, -1.0, 2.0])
    wanted = chamfer(a, b).item()
    assert chamfer(a[:, order], b).item() == pytest.approx(wanted, abs=1e-12)
    assert chamfer(a + shift, b + shift).item() == pytest.approx(wanted, abs=1e-12)
    assert chamfer(2 * a, 2 * b).item() == pytest.approx(4 * wanted, abs=1e-12)
    twice = torch.cat([a, a], 1)  # a mean over points, so that a repeated cloud is the same cloud
    assert chamfer(twice, b).item() == pytest.approx(wanted, abs=1e-12)
    assert chamfer(a, b).item() != pytest.approx(chamfer(a.flip(0), b).item(), abs=1e-3)  # cloud n meets cloud n only


def test_chamfer_of_identical_clouds_is_exactly_nothing():
    far = (1000 + randn(2, 300, 3)).float().requires_grad_()  # |a|^2 + |b|^2 - 2 a.b would be off by 0.1 here
    loss = chamfer(far, far.detach().flip(1))
    loss.backward()
    assert loss.item() == 0 and (far.grad == 0).all()


def test_chamfer_gradients():
    a, b = randn(2, 4, 3).requires_grad_(), randn(2, 6, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, y: chamfer(x, y, "none"), (a, b))
    assert torch.autograd.gradgradcheck(lambda x, y: chamfer(x, y), (a, b))


@pytest.mark.parametrize("size", [1, 10, 48, 100, 300])
def test_chamfer_in_tiles(size, monkeypatch):
    """Below one row, a few rows, one cloud but a few rows, one cloud, several clouds."""
    a, b = randn(5, 9, 3), randn(5, 7, 3, seed=1)
    b[:, 3] = b[:, 5] = a[:, 4] = a[:, 7]  # equal distances across tiles
    x, y = a.clone().requires_grad_(), b.clone().requires_grad_()
    whole = chamfer(x, y, "none")
    grads = torch.autograd.grad(whole.sum(), (x, y))
    held, cdist = [], torch.cdist

    def count(*args, **kwargs):
        found = cdist(*args, **kwargs)
        held.append(found.numel())
        return found

    monkeypatch.setattr(geometry, "TILE", size)
    monkeypatch.setattr(torch, "cdist", count)
    tiled = chamfer(x, y, "none")
    assert torch.equal(tiled, whole)
    for grad, wanted in zip(torch.autograd.grad(tiled.sum(), (x, y)), grads, strict=True):
        assert torch.equal(grad, wanted)
    assert max(held) <= max(size, 7) and sum(held) == 5 * 9 * 7


# --- coding rate


def test_rate_reduction_worked():
    for eps_squared, values in ((0.5, (0.098568, 1.242987, 1.144419)), (0.25, (0.159911, 1.749558, 1.589647))):
        for cast, slack in ((torch.float64, 1e-6), (torch.float32, 1e-5)):
            found = rate_reduction(FEATURES.to(cast), ALTERNATE, eps_squared)
            assert [v.item() for v in found] == pytest.approx(values, abs=slack)
        assert coding_rate(FEATURES, eps_squared).item() == pytest.approx(values[1], abs=1e-6)


def waves(step, stride):
    i, j = torch.meshgrid(torch.arange(12.0).double(), torch.arange(4.0).double(), indexing="ij")
    return F.normalize(torch.sin(step * i + stride * j + 0.1 * i * j))


def test_closed_loop_transcription_worked():
    """The three terms of CTRL's objective from these pieces, against values of the authors' code."""
    z, z_hat, labels = waves(0.37, 0.9), waves(0.53, 1.1), torch.arange(12) % 3

    def distance(u, v):
        return rate_reduction(torch.cat([u, v]), torch.tensor([0] * len(u) + [1] * len(v))).delta.item()

    assert coding_rate(z).item() == pytest.approx(1.9294745121747476, abs=1e-7)
    first, second = rate_reduction(z, labels).delta.item(), rate_reduction(z_hat, labels).delta.item()
    third = sum(distance(z[labels == c], z_hat[labels == c]) for c in range(3))
    assert first == pytest.approx(0.04270361958641833, abs=1e-7)
    assert second == pytest.approx(0.06833048506823003, abs=1e-7)
    assert third == pytest.approx(0.10338231658112651, abs=1e-7)
    assert distance(z, z_hat) == pytest.approx(0.02067397022152462, abs=1e-7)
    assert distance(z, z) == pytest.approx(0, abs=1e-12)
    assert rate_reduction(z, labels, 0.25).delta.item() == pytest.approx(0.07216536037974475, abs=1e-7)
    assert rate_reduction(z, labels, 1.0).delta.item() == pytest.approx(0.02100876733401158, abs=1e-7)


def test_orthogonal_classes_reach_the_ideal():
    found = rate_reduction(torch.eye(4).double().repeat(3, 1), torch.arange(4).repeat(3))
    assert found.whole.item() == pytest.approx(2 * math.log(3), abs=1e-12)
    assert found.delta.item() == pytest.approx(math.log(3), abs=1e-12)


@pytest.mark.parametrize(("m", "d", "classes"), [(9, 4, 3), (6, 20, 2), (5, 5, 5), (7, 3, 1), (30, 8, 4)])
def test_rate_reduction_against_numpy(m, d, classes):
    z, labels = F.normalize(randn(m, d, seed=m)), torch.arange(m) % classes

    def rate(rows):
        sign, value = np.linalg.slogdet(np.eye(d) + d / (len(rows) * 0.5) * rows.T @ rows)
        assert sign == 1
        return value / 2

    rows = z.numpy()
    parts = [rows[labels.numpy() == c] for c in range(classes)]
    wanted = rate(rows), sum(len(part) / m * rate(part) for part in parts)
    found = rate_reduction(z, 10 * labels - 3)  # any integers
    assert [found.whole.item(), found.classes.item()] == pytest.approx(wanted, abs=1e-10)
    assert found.delta.item() == pytest.approx(wanted[0] - wanted[1], abs=1e-10)
    assert found.delta >= -1e-12 and (classes > 1 or found.delta == 0)
    order = torch.randperm(m, generator=gen(m))
    rotation = torch.linalg.qr(randn(d, d, seed=1)).Q
    assert rate_reduction(z[order] @ rotation, labels[order]).delta.item() == pytest.approx(
        found.delta.item(), abs=1e-10
    )


def test_rate_reduction_gradients():
    z = FEATURES.clone().requires_grad_()
    single = torch.tensor([0, 1, 1, 2, 2, 2, 1, 2])  # class 0 has one row, class 1 as many as columns
    assert torch.autograd.gradcheck(lambda v: torch.stack(rate_reduction(v, single)), z)
    same = torch.ones(6, 3).requires_grad_()
    rate_reduction(same, torch.arange(6)).delta.backward()
    assert same.grad.isfinite().all()


# --- precision


def test_half_precision_and_autocast():
    x, y, labels = (
        randn(32, 16, dtype=torch.float32),
        randn(32, 16, seed=1, dtype=torch.float32) + 0.5,
        torch.arange(32) % 4,
    )
    calls = {
        "sliced": lambda u, v: sliced_wasserstein(u, v, generator=gen(0)),
        "max": lambda u, v: max_sliced_wasserstein(u, v, generator=gen(0)).distance,
        "circular": lambda u, v: generalized_sliced_wasserstein(u, v, kind="circular", generator=gen(0)),
        "polynomial": lambda u, v: generalized_sliced_wasserstein(u, v, generator=gen(0)),
        "mmd": mmd,
        "chamfer": lambda u, v: chamfer(u[None], v[None]),
        "rate": lambda u, v: rate_reduction(u, labels).delta,
    }
    for name, call in calls.items():
        plain = call(x, y)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(call(x, y), plain), name
        low = call(x.half(), y.half())
        assert low.dtype == torch.float32
        assert low.item() == pytest.approx(plain.item(), rel=1e-2), name
        assert call(x.double(), y.double()).dtype == torch.float64
        huge = (1e4 * x).requires_grad_()
        loss = call(huge, 1e4 * y)
        loss.backward()
        assert loss.isfinite() and huge.grad.isfinite().all(), name


# --- wrong use


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: sliced_wasserstein(X, Y[:, :1]), r"y must have 2 columns, as x has, got shape \(5, 1\)"),
        (lambda: sliced_wasserstein(X, Y.float()), "y must have the dtype of x"),
        (lambda: sliced_wasserstein(X[0], Y), "x must have 2 dimension"),
        (lambda: sliced_wasserstein(X[:0], Y), "x must not be empty"),
        (lambda: sliced_wasserstein(X.long(), Y), "x must have a floating dtype"),
        (lambda: sliced_wasserstein(X, Y * math.nan), "y must be finite"),
        (lambda: sliced_wasserstein(X, Y, p=0.5), "p must be a finite number of at least 1, got 0.5"),
        (lambda: sliced_wasserstein(X, Y, n_directions=0), "n_directions must be at least 1"),
        (
            lambda: sliced_wasserstein(X, Y, torch.ones(3, 5)),
            r"directions must have 2 columns here, got shape \(3, 5\)",
        ),
        (lambda: sliced_wasserstein(X, Y, torch.zeros(1, 2)), "directions must have no row of length 0"),
        (lambda: sliced_wasserstein(X, Y, torch.full((1, 2), math.nan)), "directions must be finite"),
        (lambda: wasserstein_1d(X / 0, Y), "x must be finite"),
        (lambda: max_sliced_wasserstein(X, Y, steps=-1), "steps must be at least 0"),
        (lambda: max_sliced_wasserstein(X, Y * math.nan), "y must be finite"),
        (lambda: generalized_sliced_wasserstein(X, Y, kind="square"), "kind must be 'circular' or 'polynomial'"),
        (lambda: generalized_sliced_wasserstein(X, Y, degree=2), "degree must be odd and above 0, got 2"),
        (lambda: generalized_sliced_wasserstein(X, Y, kind="circular", radius=0.0), "radius must be a finite number"),
        (lambda: generalized_sliced_wasserstein(X, Y, torch.ones(2, 2)), "directions must have 4 columns here"),
        (lambda: mmd(X, Y[:1]), "at least 2 rows each for the unbiased form, got 5 and 1"),
        (lambda: mmd(X, Y, "rbf"), "kernel must be 'gaussian' or 'imq', got 'rbf'"),
        (lambda: mmd(X, Y, bandwidth=0.0), "bandwidth must be a finite number above 0"),
        (lambda: mmd(torch.ones(4, 2), torch.ones(3, 2)), "bandwidth must be a finite number above 0"),
        (lambda: mmd(X, Y * math.nan), "y must be finite"),
        (lambda: mmd(X / 0, Y, bandwidth=1.0), "x must be finite"),
        (lambda: chamfer(X, Y), "a must have 3 dimension"),
        (lambda: chamfer(X[None], Y[None, :, :1]), r"b must have shape \(1, Q, 2\), as a has, got \(1, 5, 1\)"),
        (lambda: chamfer(X[None], Y.repeat(2, 1, 1)), r"b must have shape \(1, Q, 2\)"),
        (lambda: chamfer(X[None], Y[None].float()), "b must have the dtype of a"),
        (lambda: chamfer(X[None, :0], Y[None]), "a must not be empty"),
        (lambda: chamfer(X[None] / 0, Y[None]), "a must be finite"),
        (lambda: chamfer(X[None], Y[None] * math.nan), "b must be finite"),
        (lambda: chamfer(X[None], Y[None], "max"), "reduction must be"),
        (lambda: rate_reduction(FEATURES, ALTERNATE[:3]), "labels must be 8 integers, one a row"),
        (
            lambda: rate_reduction(FEATURES, F.one_hot(ALTERNATE)),
            r"labels must be 8 integers, .*\(8, 2\)",
        ),
        (lambda: rate_reduction(FEATURES, ALTERNATE, 0.0), "eps_squared must be a finite number above 0"),
        (lambda: rate_reduction(FEATURES * math.nan, ALTERNATE), "features must be finite"),
        (lambda: coding_rate(FEATURES / 0), "features must be finite"),
    ],
)
def test_wrong_use(call, match):
    with pytest.raises(ValueError, match=match):
        call()
