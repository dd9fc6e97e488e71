"""Frechet distance against closed forms and scipy's square root; KID and the k-NN shares pair by pair."""

import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from gen_core.evaluation import frechet as module
from gen_core.evaluation.frechet import frechet_distance, frechet_features, frechet_floor, kid, manifold_scores


def spd(rng, d, rank=None):
    a = rng.normal(size=(d, rank or d))
    return a @ a.T / d


# ---------------------------------------------------------------------------------------------------------- frechet


def test_closed_forms():
    eye, zero = np.eye(2), np.zeros(2)
    assert frechet_distance(zero, eye, np.array([3.0, 4.0]), eye) == pytest.approx(25.0, abs=1e-12)
    assert frechet_distance(zero, eye, zero, 4 * eye) == pytest.approx(2.0, abs=1e-12)
    # one dimension: (m - n)^2 + (s - t)^2
    one = [np.array([v]) for v in (1.0, 4.0)], [np.array([[v**2]]) for v in (0.5, 3.0)]
    assert frechet_distance(one[0][0], one[1][0], one[0][1], one[1][1]) == pytest.approx(9 + 6.25, abs=1e-12)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_commuting_covariances(seed):
    """With the same axes: sum (sqrt l_i - sqrt m_i)^2 over the eigenvalues, some of them 0."""
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.normal(size=(7, 7)))[0]
    spread_a, spread_b, mean = rng.exponential(size=7), rng.exponential(size=7), rng.normal(size=7)
    spread_a[:2] = 0
    a, b = axes * spread_a @ axes.T, axes * spread_b @ axes.T
    expected = (mean**2).sum() + ((np.sqrt(spread_a) - np.sqrt(spread_b)) ** 2).sum()
    assert frechet_distance(mean, a, 0 * mean, b) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_against_scipy_and_the_other_order(seed):
    rng = np.random.default_rng(seed)
    mean_a, mean_b = rng.normal(size=(2, 12))
    a, b = spd(rng, 12), spd(rng, 12)
    expected = ((mean_a - mean_b) ** 2).sum() + np.trace(a + b - 2 * sqrtm(a @ b).real)
    found = frechet_distance(mean_a, a, mean_b, b)
    assert found == pytest.approx(expected, abs=1e-9)
    assert frechet_distance(mean_b, b, mean_a, a) == pytest.approx(found, abs=1e-9)
    turn = np.linalg.qr(rng.normal(size=(12, 12)))[0]
    turned = frechet_distance(turn @ mean_a, turn @ a @ turn.T, turn @ mean_b, turn @ b @ turn.T)
    assert turned == pytest.approx(found, abs=1e-9)
    assert frechet_distance(3 * mean_a, 9 * a, 3 * mean_b, 9 * b) == pytest.approx(9 * found, rel=1e-10)


def test_singular_covariances():
    rng = np.random.default_rng(0)
    zero, a = np.zeros(60), spd(rng, 60, rank=5)
    assert frechet_distance(zero, a, zero, a) == pytest.approx(0.0, abs=1e-10)
    assert frechet_distance(zero, a, zero, 4 * a) == pytest.approx(np.trace(a), rel=1e-8)
    assert frechet_distance(zero, a, zero, 0 * a) == pytest.approx(np.trace(a), rel=1e-12)
    # orthogonal supports share nothing: the traces add up
    u = np.linalg.qr(rng.normal(size=(60, 60)))[0]
    left, right = u[:, :5] @ u[:, :5].T, u[:, 5:9] @ u[:, 5:9].T
    assert frechet_distance(zero, left, zero, right) == pytest.approx(9.0, abs=1e-6)
    # two of low rank: the nuclear norm of the factors' product, (U U^T, V V^T) -> |U^T V|_*
    f, g = rng.normal(size=(60, 4)), rng.normal(size=(60, 6))
    cross = np.linalg.svd(f.T @ g, compute_uv=False).sum()
    expected = (f**2).sum() + (g**2).sum() - 2 * cross
    assert frechet_distance(zero, f @ f.T, zero, g @ g.T) == pytest.approx(expected, rel=1e-8)


def test_frechet_features():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(200, 6)), 1.5 * rng.normal(size=(150, 6)) + 0.3
    gap = a.mean(0) - b.mean(0)
    s, t = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    expected = gap @ gap + np.trace(s + t - 2 * sqrtm(s @ t).real)
    assert frechet_features(a, b) == pytest.approx(expected, abs=1e-9)
    assert frechet_features(torch.as_tensor(a), torch.as_tensor(b)) == pytest.approx(expected, abs=1e-9)
    assert frechet_features(a, a) == pytest.approx(0.0, abs=1e-12)
    assert frechet_features(a, a + 2) == pytest.approx(24.0, abs=1e-9)
    order = rng.permutation(200)
    assert frechet_features(a[order], b) == pytest.approx(expected, abs=1e-9)
    # single precision, and features far from 0, lose no more than their own rounding
    assert frechet_features((a + 1000).astype(np.float32), (b + 1000).astype(np.float32)) == pytest.approx(
        expected, abs=2e-3
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frechet_features(a, b)
    with pytest.warns(UserWarning, match="features_b has 6 rows of 6 features") as caught:
        assert frechet_features(a, b[:6]) > 0
    assert caught[0].filename == __file__


def test_the_floor_is_what_two_halves_are_apart():
    rng = np.random.default_rng(2)
    real = rng.normal(size=(1000, 8))
    floor = frechet_floor(real)
    assert 0 < floor < 0.3  # 0.09 measured
    assert frechet_floor(real, rows=100) > 2 * floor  # it falls with the rows
    assert frechet_floor(real, seed=1) != floor
    assert frechet_floor(real) == floor
    assert frechet_features(real, rng.normal(size=(1000, 8)) + 0.5) > 5 * floor
    # all rows are used, none twice: four points split in two pairs have three possible values
    four = np.array([[0.0], [1.0], [3.0], [9.0]])
    pairs = [
        frechet_features(four[list(p)], four[[i for i in range(4) if i not in p]]) for p in [(0, 1), (0, 2), (0, 3)]
    ]
    seen = {round(frechet_floor(four, seed=s), 9) for s in range(30)}
    assert seen == {round(v, 9) for v in pairs}


# -------------------------------------------------------------------------------------------------------------- kid


def plain_mmd(x, y):
    """Pair by pair from the definition."""

    def k(a, b):
        return (float(np.dot(a, b)) / len(a) + 1) ** 3

    n, m = len(x), len(y)
    within_x = sum(k(a, b) for a, b in itertools.permutations(x, 2)) / (n * (n - 1))
    within_y = sum(k(a, b) for a, b in itertools.permutations(y, 2)) / (m * (m - 1))
    return within_x + within_y - 2 * sum(k(a, b) for a in x for b in y) / (n * m)


@pytest.mark.parametrize("tile", [1, 50, 1 << 22])
def test_kid_of_one_block(tile, monkeypatch):
    monkeypatch.setattr(module, "_TILE", tile)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(14, 3)), rng.normal(size=(9, 3)) + 0.5
    found = kid(x, y, blocks=1)
    assert found.value == pytest.approx(plain_mmd(x, y), abs=1e-10)
    assert math.isnan(found.error)
    assert kid(y, x, blocks=1).value == pytest.approx(found.value, abs=1e-10)


def test_kid_of_blocks():
    """The blocks are a partition of each set: their mean and standard error, recomputed."""
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(23, 2)), rng.normal(size=(17, 2)) + 1
    generator = torch.Generator().manual_seed(4)
    order = [torch.randperm(n, generator=generator).numpy() for n in (23, 17)]
    parts = [np.array_split(o, 5) for o in order]
    values = [plain_mmd(x[i], y[j]) for i, j in zip(*parts, strict=True)]
    found = kid(x, y, blocks=5, seed=4)
    assert found.value == pytest.approx(np.mean(values), abs=1e-10)
    assert found.error == pytest.approx(np.std(values, ddof=1) / math.sqrt(5), abs=1e-10)
    assert kid(x, y, blocks=5, seed=5) != found


def test_kid_is_unbiased_and_its_error_is_right():
    rng = np.random.default_rng(2)
    found = [kid(rng.normal(size=(60, 4)), rng.normal(size=(60, 4)), blocks=6) for _ in range(300)]
    values, errors = np.array(found).T
    assert abs(values.mean()) < 4 * values.std() / math.sqrt(300)
    assert (values < 0).mean() > 0.25  # no clamp
    assert errors.mean() == pytest.approx(values.std(), rel=0.25)
    # of two Gaussians: E k(x, y) for x ~ N(0, s^2) in one dimension is 1 + 3 s^2 t^2
    far = [kid(rng.normal(size=(60, 1)), 2 * rng.normal(size=(60, 1)), blocks=2).value for _ in range(600)]
    truth = (1 + 3) + (1 + 3 * 16) - 2 * (1 + 3 * 4)
    assert np.mean(far) == pytest.approx(truth, abs=4 * np.std(far) / math.sqrt(600))


# ----------------------------------------------------------------------------------------------------------- k-NN balls


def plain_manifold(real, fake, k):
    def radius(x, i):
        return sorted(float(np.linalg.norm(x[i] - x[j])) for j in range(len(x)) if j != i)[k - 1]

    r, f = [radius(real, i) for i in range(len(real))], [radius(fake, j) for j in range(len(fake))]
    gap = [[float(np.linalg.norm(a - b)) for b in fake] for a in real]
    n, m = range(len(real)), range(len(fake))
    return (
        sum(any(gap[i][j] <= r[i] for i in n) for j in m) / len(m),
        sum(any(gap[i][j] <= f[j] for j in m) for i in n) / len(n),
        sum(gap[i][j] <= r[i] for i in n for j in m) / (k * len(m)),
        sum(any(gap[i][j] <= r[i] for j in m) for i in n) / len(n),
    )


@pytest.mark.parametrize("tile", [1, 100, 1 << 22])
@pytest.mark.parametrize("k", [1, 3, 5])
def test_manifold_scores_against_loops(k, tile, monkeypatch):
    monkeypatch.setattr(module, "_TILE", tile)
    rng = np.random.default_rng(k)
    real, fake = rng.normal(size=(40, 3)), 0.7 * rng.normal(size=(30, 3)) + 0.8
    expected = plain_manifold(real, fake, k)
    assert all(0.05 < v < 1.5 for v in expected)
    assert manifold_scores(real, fake, k) == pytest.approx(expected, abs=1e-12)
    precision, recall, _, _ = manifold_scores(fake, real, k)
    assert (recall, precision) == pytest.approx(expected[:2], abs=1e-12)
    far = manifold_scores((real + 500).astype(np.float32), (fake + 500).astype(np.float32), k)
    assert far == pytest.approx(expected, abs=0.04)  # ties at most
    assert manifold_scores(9 * real - 4, 9 * fake - 4, k) == pytest.approx(expected, abs=1e-12)


def test_manifold_scores_tell_fidelity_from_diversity():
    rng = np.random.default_rng(0)
    real = rng.normal(size=(500, 4))
    same = manifold_scores(real, rng.normal(size=(500, 4)))
    assert same.precision > 0.85 and same.recall > 0.85 and same.coverage > 0.85
    assert same.density == pytest.approx(1.0, abs=0.1)  # 1 in the mean for equal distributions
    collapsed = manifold_scores(real, 0.05 * rng.normal(size=(500, 4)))
    assert collapsed.precision == 1.0 and collapsed.recall < 0.05 and collapsed.coverage < 0.2
    wide = manifold_scores(real, 4 * rng.normal(size=(500, 4)))
    assert wide.precision < 0.4 and wide.density < 0.15
    apart = manifold_scores(real, real + 100)
    assert apart == (0.0, 0.0, 0.0, 0.0)


def test_copies_lie_in_balls_of_radius_zero():
    """Three equal rows have a second neighbour at 0; a generated copy of them is in their closed balls."""
    real, fake = np.repeat([[0.0], [5.0]], 3, 0), np.repeat([[0.0], [7.0]], 3, 0)
    assert manifold_scores(real, fake, k=2) == (0.5, 0.5, 0.75, 0.5)


def test_bad_input():
    eye, zero = np.eye(3), np.zeros(3)
    with pytest.raises(ValueError, match="mean_b must have 3 entries, as mean_a has, got 2"):
        frechet_distance(zero, eye, np.zeros(2), np.eye(2))
    with pytest.raises(ValueError, match="cov_b must be 3 x 3"):
        frechet_distance(zero, eye, zero, np.eye(2))
    with pytest.raises(ValueError, match="mean_a must have 1 dimension"):
        frechet_distance(eye, eye, zero, eye)
    with pytest.raises(ValueError, match="cov_a must be floating"):
        frechet_distance(zero, eye[0], zero, eye)
    with pytest.raises(ValueError, match="cov_a must be symmetric"):
        frechet_distance(zero, eye + np.eye(3, k=1), zero, eye)
    with pytest.raises(ValueError, match="cov_b must be positive semi-definite, got an eigenvalue of -1"):
        frechet_distance(zero, eye, zero, -eye)
    with pytest.raises(ValueError, match="cov_a must be finite"):
        frechet_distance(zero, eye * np.array(np.nan), zero, eye)
    x = np.random.default_rng(0).normal(size=(8, 3))
    for score in (frechet_features, kid):
        with pytest.raises(ValueError, match="features_b must have 3 columns, as features_a has, got 2"):
            score(x, x[:, :2])
        with pytest.raises(ValueError, match="features_b must have at least 2 rows, got 1"):
            score(x, x[:1])
        with pytest.raises(ValueError, match="features_a must be finite"):
            score(x * np.array(np.nan), x)
        with pytest.raises(ValueError, match="features_a must be floating"):
            score(x.astype(int), x)
    for rows in (1, 5):
        with pytest.raises(ValueError, match="rows must be between 2 and half of the 8 rows"):
            frechet_floor(x, rows=rows)
    for blocks in (0, 5):
        with pytest.raises(ValueError, match="blocks must be between 1 and 4"):
            kid(x, x, blocks=blocks)
    for k in (0, 8):
        with pytest.raises(ValueError, match="k must be between 1 and 7"):
            manifold_scores(x, x, k)
    with pytest.raises(ValueError, match="features_generated must have 3 columns, as features_real has"):
        manifold_scores(x, x[:, :1])
