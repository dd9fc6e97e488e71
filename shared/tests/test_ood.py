"""Scores against worked numbers and plain loops; the metrics by counting pairs and thresholds."""

import math
import warnings

import numpy as np
import pytest
import torch

from gen_core.evaluation.ood import energy_score, knn_score, mahalanobis_score, msp_score, ood_metrics

LOGITS = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.4, 0.3]], dtype=torch.float64)

# ------------------------------------------------------------------------------------------------------------- logits


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_worked_numbers_of_logits(dtype):
    x, close = LOGITS.to(dtype), {"abs": 1e-6 if dtype == torch.float64 else 1e-5}
    assert msp_score(x).tolist() == pytest.approx([0.843795, 0.367165], **close)
    assert energy_score(x).tolist() == pytest.approx([2.169846, 1.501943], **close)
    assert energy_score(x, temperature=10).tolist() == pytest.approx([11.398311, 11.386456], **close)
    # ODIN without its step is the softmax of logits / T
    assert msp_score(x / 1000).tolist() == pytest.approx([0.333889, 0.333367], **close)


@pytest.mark.parametrize("seed", [0, 1])
def test_logit_scores_against_plain_python(seed):
    x = 3 * np.random.default_rng(seed).normal(size=(20, 7))
    for row, p, e in zip(x.tolist(), msp_score(x).tolist(), energy_score(x, 0.7).tolist(), strict=True):
        assert p == pytest.approx(max(math.exp(v) for v in row) / sum(math.exp(v) for v in row), abs=1e-12)
        assert e == pytest.approx(0.7 * math.log(sum(math.exp(v / 0.7) for v in row)), abs=1e-12)


def test_shifts_and_order_of_classes():
    x = torch.as_tensor(np.random.default_rng(2).normal(size=(9, 5)))
    torch.testing.assert_close(msp_score(x + 7), msp_score(x))
    torch.testing.assert_close(energy_score(x + 7), energy_score(x) + 7)
    torch.testing.assert_close(energy_score(x.flip(1), 2.0), energy_score(x, 2.0))


def test_extreme_logits():
    x = torch.tensor([[1e4, -1e4, 0.0]])
    assert msp_score(x).tolist() == [1.0]
    assert energy_score(x).tolist() == [1e4]
    assert energy_score(x, 1e-3).tolist() == pytest.approx([1e4])
    assert msp_score(x[:, :1]).tolist() == [1.0]
    masked = torch.tensor([[0.0, 0.0, -math.inf]])
    assert msp_score(masked).tolist() == [0.5]
    assert energy_score(masked).item() == pytest.approx(math.log(2))
    half = LOGITS.bfloat16()
    assert energy_score(half).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert energy_score(LOGITS.float()).tolist() == pytest.approx([2.169846, 1.501943], abs=1e-5)


# ----------------------------------------------------------------------------------------------------------- features


def plain_mahalanobis(x, y, q):
    """Row by row from the definition, with numpy's inverse."""
    means = {c: x[y == c].mean(0) for c in set(y.tolist())}
    s = sum(np.outer(v - means[c], v - means[c]) for v, c in zip(x, y.tolist(), strict=True)) / len(x)
    inverse = np.linalg.inv(s)
    return [-min(float((v - m) @ inverse @ (v - m)) for m in means.values()) for v in q]


def blobs(n, seed, d=5, classes=4):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, n)
    return np.random.default_rng(9).normal(size=(classes, d))[y] + 0.5 * rng.normal(size=(n, d)), y


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_mahalanobis_against_numpy(seed):
    (x, y), (q, _) = blobs(80, seed), blobs(30, seed + 10)
    y = y * 3 + 2  # gaps between the labels
    expected = plain_mahalanobis(x, y, q)
    assert mahalanobis_score(x, y, q).tolist() == pytest.approx(expected, rel=1e-9)
    assert mahalanobis_score(*(torch.as_tensor(v) for v in (x, y, q))).tolist() == pytest.approx(expected, rel=1e-9)
    # no affine map changes it, and float32 features far from 0 keep their digits
    a = np.random.default_rng(seed).normal(size=(5, 5))
    assert mahalanobis_score(x @ a + 3, y, q @ a + 3).tolist() == pytest.approx(expected, rel=1e-7)
    far = mahalanobis_score((x + 100).astype(np.float32), y, (q + 100).astype(np.float32))
    assert far.tolist() == pytest.approx(expected, rel=1e-3)
    order = np.random.default_rng(0).permutation(80)
    assert mahalanobis_score(x[order], y[order], q).tolist() == pytest.approx(expected, rel=1e-9)


def test_mahalanobis_worked_case():
    """Means (1, 1) and (5, 5), covariance I: (3, 1) is at squared distance 4 of the first, 20 of the second."""
    cross = math.sqrt(2) * np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    x, y = np.concatenate([cross + 1, cross + 5]), np.repeat([0, 1], 4)
    found = mahalanobis_score(x, y, np.array([[3.0, 1.0], [5.0, 5.0]])).tolist()
    assert found == pytest.approx([-4.0, 0.0], abs=1e-12)


def test_mahalanobis_with_a_singular_covariance():
    (x, y), (q, _) = blobs(80, 0, d=3), blobs(20, 1, d=3)
    expected = plain_mahalanobis(x, y, q)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mahalanobis_score(x, y, q)
    # a constant and a repeated feature add nothing that can be divided by
    wide = [np.concatenate([v, np.full((len(v), 1), 0.1), v[:, :1]], 1) for v in (x, q)]
    with pytest.warns(UserWarning, match="in 3 of 5 dimensions only") as caught:
        found = mahalanobis_score(wide[0], y, wide[1]).tolist()
    assert caught[0].filename == __file__
    assert found == pytest.approx(expected, rel=1e-6)
    with pytest.warns(UserWarning, match="singular"):  # fewer rows than features
        few = mahalanobis_score(*blobs(10, 0, d=20, classes=2), blobs(6, 1, d=20)[0])
    assert torch.isfinite(few).all() and (few <= 0).all()
    with pytest.raises(ValueError, match="z_train must vary within a class"):
        mahalanobis_score(np.eye(3), np.arange(3), np.eye(3))


def plain_knn(x, q, k):
    def unit(v):
        return v / np.linalg.norm(v)

    return [-sorted(float(np.linalg.norm(unit(v) - unit(r))) for r in x)[k - 1] for v in q]


@pytest.mark.parametrize("k", [1, 3, 60])
@pytest.mark.parametrize("chunk", [1, 7, 1024])
def test_knn_against_numpy(k, chunk):
    (x, _), (q, _) = blobs(60, 0), blobs(25, 1)
    expected = plain_knn(x, q, k)
    assert knn_score(x, q, k=k, chunk=chunk).tolist() == pytest.approx(expected, abs=1e-12)
    assert knn_score(5 * x, q / 7, k=k, chunk=chunk).tolist() == pytest.approx(expected, abs=1e-12)
    single = knn_score(x.astype(np.float32), q.astype(np.float32), k=k, chunk=chunk)
    assert single.tolist() == pytest.approx(expected, abs=1e-5)


def test_knn_keeps_the_digits_of_near_neighbours():
    angle = torch.tensor([0.0, 2e-4, 5e-4])
    z = torch.stack([angle.cos(), angle.sin()], 1)
    assert knn_score(z[:1], z, k=1).tolist() == pytest.approx([0.0, -2e-4, -5e-4], rel=1e-3)
    assert knn_score(z.double(), z.double(), k=1).tolist() == [0.0, 0.0, 0.0]


def test_scores_find_outliers():
    """Each is higher for rows of the training classes than for rows elsewhere."""
    (x, y), (same, _) = blobs(300, 0), blobs(200, 1)
    other = np.random.default_rng(5).normal(size=(200, 5)) * 2
    logits = [-np.square(v[:, None] - np.stack([x[y == c].mean(0) for c in range(4)])).sum(2) for v in (same, other)]
    found = {
        "mahalanobis": ood_metrics(mahalanobis_score(x, y, same), mahalanobis_score(x, y, other)).auroc,
        "knn": ood_metrics(knn_score(x, same, k=10), knn_score(x, other, k=10)).auroc,
        "msp": ood_metrics(msp_score(logits[0]), msp_score(logits[1])).auroc,
        "energy": ood_metrics(energy_score(logits[0]), energy_score(logits[1])).auroc,
    }
    assert found["mahalanobis"] > 90 and found["energy"] > 90 and found["knn"] > 75, found


# ------------------------------------------------------------------------------------------------------------ metrics


def plain_metrics(inside, outside, openood=False):
    """Counting: pairs for AUROC, every threshold for the rest."""
    pairs = [(a > b) + 0.5 * (a == b) for a in inside for b in outside]

    def curve(pos, neg):
        """(recall, precision, false positive rate) at each threshold, from the strictest."""
        for t in sorted(set(pos) | set(neg), reverse=True):
            hit, false = sum(v >= t for v in pos), sum(v >= t for v in neg)
            yield hit / len(pos), hit / (hit + false), false / len(neg)

    def aupr(pos, neg):
        area, last, before = 0.0, 0.0, 1.0
        for recall, precision, _ in curve(pos, neg):
            area += (recall - last) * ((precision + before) / 2 if openood else precision)
            last, before = recall, precision
        return area

    def fpr(pos, neg):
        return next(false for recall, _, false in curve(pos, neg) if recall > 0.95 - 1e-12)

    turned = [-v for v in outside], [-v for v in inside]
    first = fpr(*turned) if openood else fpr(inside, outside)
    return tuple(100 * v for v in (sum(pairs) / len(pairs), aupr(inside, outside), aupr(*turned), first))


def test_worked_metrics():
    inside, outside = np.array([0.9, 0.8, 0.7, 0.6, 0.55]), np.array([0.65, 0.5, 0.3, 0.2])
    assert ood_metrics(inside, outside) == pytest.approx((90.0, 92.6667, 91.6667, 25.0), abs=1e-4)
    assert ood_metrics(inside, outside, "openood") == pytest.approx((90.0, 91.8333, 90.8333, 40.0), abs=1e-4)


@pytest.mark.parametrize("convention", ["in-positive", "openood"])
@pytest.mark.parametrize(("n", "m"), [(1, 1), (7, 3), (20, 40), (40, 21), (60, 100), (100, 60)])
@pytest.mark.parametrize("ties", [False, True])
def test_metrics_by_counting(convention, n, m, ties):
    rng = np.random.default_rng(n + m)
    inside, outside = rng.normal(1, 1, n), rng.normal(0, 1, m)
    if ties:
        inside, outside = inside.round(1), outside.round(1)
    expected = plain_metrics(inside.tolist(), outside.tolist(), convention == "openood")
    found = ood_metrics(inside, outside, convention)
    assert found == pytest.approx(expected, abs=1e-9)
    # only the order counts
    assert ood_metrics(np.exp(3 * inside), np.exp(3 * outside), convention) == pytest.approx(found, abs=1e-9)
    # in and out change places when the scores' sign is turned
    turned = ood_metrics(-outside, -inside, convention)
    assert turned[:3] == pytest.approx((found[0], found[2], found[1]), abs=1e-9)


def test_equal_infinite_and_half_precision_scores():
    same = ood_metrics(np.zeros(6), np.zeros(3))
    assert same == pytest.approx((50.0, 100 * 6 / 9, 100 * 3 / 9, 100.0))
    edge = ood_metrics(torch.tensor([math.inf, 1.0]), torch.tensor([-math.inf, 0.0]))
    assert edge == (100.0, 100.0, 100.0, 0.0)
    worst = ood_metrics(torch.tensor([0.0]), torch.tensor([1.0]))
    assert worst.auroc == 0.0 and worst.fpr95 == 100.0
    assert ood_metrics(torch.tensor([1.0]).bfloat16(), torch.tensor([0.0]).double()).auroc == 100.0


def test_the_95th_percent_is_counted_in_whole_rows():
    """Of 20 rows 19 suffice, of 19 all are needed; 0.95 * 20 in floating point must not ask for one more."""
    inside = np.arange(20.0)
    for n, outside, expected in (
        (20, 0.5, 0.0),
        (20, 1.0, 100.0),
        (19, 0.5, 100.0),
        (100, 4.5, 0.0),
        (100, 5.0, 100.0),
    ):
        inside = np.arange(float(n))
        assert ood_metrics(inside, np.array([outside])).fpr95 == expected, (n, outside)


def test_bad_input():
    z, y = np.eye(3), np.arange(3)
    for score in (msp_score, energy_score):
        with pytest.raises(ValueError, match="logits must be finite"):
            score(torch.tensor([[math.nan, 0.0]]))
        with pytest.raises(ValueError, match="logits must have a floating dtype"):
            score(y[:, None])
        with pytest.raises(ValueError, match="logits must have 2 dimension"):
            score(torch.zeros(3))
        with pytest.raises(ValueError, match="logits must not be empty"):
            score(torch.zeros(0, 3))
    with pytest.raises(ValueError, match="temperature must be a finite number above 0"):
        energy_score(LOGITS, 0.0)
    with pytest.raises(ValueError, match="y_train must have 3 labels"):
        mahalanobis_score(z, y[:2], z)
    with pytest.raises(ValueError, match="y_train must be 0 or above"):
        mahalanobis_score(z, y - 1, z)
    with pytest.raises(ValueError, match="z must have 3 columns, as z_train has, got 2"):
        mahalanobis_score(z, y, z[:, :2])
    with pytest.raises(ValueError, match="z must be finite"):
        knn_score(z, np.full((1, 3), math.nan), k=1)
    with pytest.raises(ValueError, match="k must be between 1 and the 3 training rows, got 50"):
        knn_score(z, z)
    with pytest.raises(ValueError, match="chunk must be at least 1"):
        knn_score(z, z, k=1, chunk=0)
    with pytest.raises(ValueError, match="score_out must not be NaN"):
        ood_metrics(np.zeros(2), np.array([math.nan]))
    with pytest.raises(ValueError, match="score_in must not be empty"):
        ood_metrics(np.zeros(0), np.zeros(2))
    with pytest.raises(ValueError, match="score_in must have a floating dtype"):
        ood_metrics(y, np.zeros(2))
    with pytest.raises(ValueError, match="convention must be"):
        ood_metrics(np.zeros(2), np.zeros(2), "survey")
