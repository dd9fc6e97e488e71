"""Clustering scores against brute force and counting; k-means against the best of all partitions."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch

from gen_core.evaluation.cluster import clustering_scores, features, kmeans_scores, nearest


def plain_accuracy(c, y):
    """Best over all injections of the smaller side of clusters and classes into the larger."""
    clusters, classes = sorted(set(c)), sorted(set(y))
    count = Counter(zip(c, y, strict=True))
    if len(clusters) <= len(classes):
        pairings = (zip(clusters, p, strict=True) for p in itertools.permutations(classes, len(clusters)))
    else:
        pairings = (zip(p, classes, strict=True) for p in itertools.permutations(clusters, len(classes)))
    return 100 * max(sum(count[pair] for pair in pairing) for pairing in pairings) / len(y)


def plain_nmi(c, y):
    n = len(y)

    def entropy(values):
        return -sum(k / n * math.log(k / n) for k in Counter(values).values())

    h_c, h_y = entropy(c), entropy(y)
    return 100 * (h_c + h_y - entropy(list(zip(c, y, strict=True)))) / ((h_c + h_y) / 2)


def plain_ari(c, y):
    """From the pairs of rows, one by one."""
    pairs = list(itertools.combinations(range(len(y)), 2))
    same_c, same_y = [c[i] == c[j] for i, j in pairs], [y[i] == y[j] for i, j in pairs]
    both = sum(a and b for a, b in zip(same_c, same_y, strict=True))
    chance = sum(same_c) * sum(same_y) / len(pairs)
    return 100 * (both - chance) / ((sum(same_c) + sum(same_y)) / 2 - chance)


@pytest.mark.parametrize(("clusters", "classes"), [(4, 4), (3, 5), (6, 3), (2, 2), (5, 1), (1, 4)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_against_brute_force(clusters, classes, seed):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, 30)
    c = np.where(rng.random(30) < 0.5, y % clusters, rng.integers(0, clusters, 30))  # related, not equal
    scores = clustering_scores(c, y)
    a, b = c.tolist(), y.tolist()
    assert scores.accuracy == pytest.approx(plain_accuracy(a, b), abs=1e-9)
    if clusters > 1 and classes > 1:
        assert scores.nmi == pytest.approx(plain_nmi(a, b), abs=1e-9)
        assert scores.ari == pytest.approx(plain_ari(a, b), abs=1e-9)
    else:
        assert scores.nmi == pytest.approx(0.0, abs=1e-9) and scores.ari == pytest.approx(0.0, abs=1e-9)


def test_names_of_clusters_and_the_order_of_rows_do_not_matter():
    rng = np.random.default_rng(3)
    y = rng.integers(0, 5, 200)
    c = np.where(rng.random(200) < 0.6, y, rng.integers(0, 5, 200))
    scores = clustering_scores(c, y)
    assert 50 < scores.accuracy < 90
    renamed, order = rng.permutation(5)[c] * 7 - 11, rng.permutation(200)
    assert clustering_scores(renamed, y) == pytest.approx(scores, abs=1e-9)
    assert clustering_scores(c[order], y[order]) == pytest.approx(scores, abs=1e-9)
    assert clustering_scores(torch.as_tensor(c), torch.as_tensor(y)) == scores
    perfect = clustering_scores(rng.permutation(5)[y], y)
    assert perfect == pytest.approx((100.0, 100.0, 100.0), abs=1e-9)


def test_surplus_clusters_are_wrong_and_left_over_classes_are_missed():
    y = np.repeat([0, 1], 4)
    assert clustering_scores(np.array([0, 0, 0, 1, 2, 2, 3, 3]), y).accuracy == 100 * 5 / 8
    assert clustering_scores(np.zeros(8, int), np.array([0, 0, 0, 1, 1, 2, 2, 2])).accuracy == 100 * 3 / 8


def test_nmi_has_the_arithmetic_mean():
    """One class split in two: I = log 2, H(c) = 3/2 log 2, so 2/2.5; the geometric mean would give 0.816."""
    assert clustering_scores(np.array([0, 0, 1, 2]), np.array([0, 0, 1, 1])).nmi == pytest.approx(80.0, abs=1e-9)


def test_random_assignments_have_an_ari_of_zero_in_the_mean():
    rng = np.random.default_rng(0)
    found = [clustering_scores(rng.integers(0, 4, 100), rng.integers(0, 4, 100)).ari for _ in range(200)]
    assert abs(np.mean(found)) < 0.4  # 0.09 measured, deviation of the mean 0.1
    assert min(found) < 0


def test_kmeans_finds_the_best_partition():
    """Seven points, three clusters: the least within-cluster sum of squares of all 3^7 assignments."""
    z = np.random.default_rng(5).normal(size=(7, 2)) * 3
    best, least = None, math.inf
    for c in itertools.product(range(3), repeat=7):
        if len(set(c)) < 3:
            continue
        a = np.array(c)
        cost = sum(((z[a == k] - z[a == k].mean(0)) ** 2).sum() for k in range(3))
        if cost < least:
            best, least = a, cost
    assert kmeans_scores(z, best) == pytest.approx((100.0, 100.0, 100.0), abs=1e-9)
    other = best.copy()
    other[0] = (other[0] + 1) % 3
    assert kmeans_scores(z, other).accuracy == pytest.approx(100 * 6 / 7)


def test_kmeans_scores_of_blobs():
    rng = np.random.default_rng(1)
    y = rng.integers(0, 4, 200)
    z = 10 * np.eye(4)[y] + rng.normal(size=(200, 4))
    assert kmeans_scores(z, y).accuracy == 100.0
    assert kmeans_scores(torch.as_tensor(z).bfloat16(), torch.as_tensor(y)).accuracy == 100.0
    noisy = 2 * np.eye(4)[y] + rng.normal(size=(200, 4))
    assert kmeans_scores(noisy, y, seed=1) == kmeans_scores(noisy, y, seed=1)
    assert kmeans_scores(9 * noisy, y).accuracy == kmeans_scores(noisy, y).accuracy
    two = kmeans_scores(z, y, clusters=2)
    assert two.accuracy <= 100 * np.sort(np.bincount(y))[-2:].sum() / 200
    assert kmeans_scores(z, y, clusters=8).accuracy < 95
    assert kmeans_scores(z, y, clusters=1)[1:] == pytest.approx((0.0, 0.0), abs=1e-9)


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_nearest_in_tiles(chunk):
    rng = np.random.default_rng(0)
    x, q = torch.as_tensor(rng.normal(size=(40, 3))), torch.as_tensor(rng.normal(size=(10, 3)))
    seen = []
    for rows, best, index in nearest(x, q, 4, chunk):
        for i, b, j in zip(range(rows.start, 10), best, index, strict=False):
            product = [float(q[i] @ v) for v in x]
            assert j.tolist() == sorted(range(40), key=lambda r: -product[r])[:4]
            assert b.tolist() == pytest.approx([product[r] for r in j], abs=1e-12)
            seen.append(i)
    assert seen == list(range(10))


def test_bad_input():
    y = np.array([0, 1, 1])
    with pytest.raises(ValueError, match="labels must be 2, one an assignment"):
        clustering_scores(y[:2], y)
    with pytest.raises(ValueError, match="and not 0, got 0"):
        clustering_scores(y[:0], y[:0])
    with pytest.raises(ValueError, match="assignment must be a vector of integers"):
        clustering_scores(np.ones((3, 2)), y)
    with pytest.raises(ValueError, match="labels must be 0 or above, got -1"):
        clustering_scores(y, y - 1)
    z = np.eye(3)
    for clusters in (0, 4):
        with pytest.raises(ValueError, match="clusters must be between 1 and the 3 rows"):
            kmeans_scores(z, y, clusters=clusters)
    with pytest.raises(ValueError, match="y must have 3 labels"):
        kmeans_scores(z, y[:2])
    with pytest.raises(ValueError, match="z must be finite"):
        kmeans_scores(np.full((3, 3), np.inf), y)
    with pytest.raises(ValueError, match="z must be floating"):
        features("z", y[:, None])
