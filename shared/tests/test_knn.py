"""kNN against a plain numpy version and cases that can be counted by hand."""

import math

import numpy as np
import pytest
import torch

from gen_core.evaluation import knn


def plain_knn(x, y, x_new, y_new, k, t):
    """One query at a time, whole similarity vectors, float64."""
    unit = [v / np.linalg.norm(v) for v in x]
    hits = 0
    for query, label in zip(x_new, y_new, strict=True):
        s = np.array([float(np.dot(query / np.linalg.norm(query), v)) for v in unit])
        votes: dict[int, float] = {}
        for i in np.argsort(-s)[:k]:
            votes[int(y[i])] = votes.get(int(y[i]), 0.0) + math.exp(s[i] / t)
        hits += max(sorted(votes), key=lambda c: votes[c]) == label
    return 100 * hits / len(y_new)


def blobs(n, seed, d=5, classes=4):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, n)
    return np.random.default_rng(9).normal(size=(classes, d))[y] + 0.9 * rng.normal(size=(n, d)), y


@pytest.mark.parametrize(("k", "t"), [(1, 0.1), (5, 0.1), (20, 0.1), (20, 0.5), (60, 1.0)])
@pytest.mark.parametrize("chunk", [1, 7, 1024])
def test_against_numpy(k, t, chunk):
    (x, y), (x_new, y_new) = blobs(150, 0), blobs(80, 1)
    expected = plain_knn(x, y, x_new, y_new, k, t)
    assert 40 < expected < 99
    assert knn(x, y, x_new, y_new, k=k, temperature=t, chunk=chunk) == pytest.approx(expected, abs=1e-9)
    tensors = [torch.as_tensor(v) for v in (x, y, x_new, y_new)]
    assert knn(*tensors, k=k, temperature=t, chunk=chunk) == pytest.approx(expected, abs=1e-9)


def test_close_neighbours_outvote_many_far_ones():
    angle = torch.tensor([0.0, 1.2, 1.2, 1.2])  # one at the query, three at cosine .362
    z, y, query = torch.stack([angle.cos(), angle.sin()], 1), torch.tensor([1, 0, 0, 0]), torch.tensor([[1.0, 0.0]])
    label = torch.tensor([1])
    assert knn(z, y, query, label, k=4, temperature=0.1) == 100.0  # e^10 against 3 e^3.6
    assert knn(z, y, query, label, k=4, temperature=10.0) == 0.0  # nearly one vote each
    assert knn(z, y, query, label, k=1, temperature=10.0) == 100.0


def test_length_does_not_matter_and_small_temperatures_do_not_overflow():
    (x, y), (x_new, y_new) = blobs(60, 2), blobs(30, 3)
    x, x_new = x.astype(np.float32), x_new.astype(np.float32)
    value = knn(x, y, x_new, y_new, k=9)
    assert knn(x * 7, y, x_new / 3, y_new, k=9) == value
    assert knn(x, y, x_new, y_new, k=9, temperature=1e-4) == knn(x, y, x_new, y_new, k=1)
    assert knn(torch.as_tensor(x).bfloat16(), y, torch.as_tensor(x_new).bfloat16(), y_new, k=9) > 40


def test_a_test_class_that_was_never_seen_counts_as_wrong():
    z = torch.eye(2)
    assert knn(z, torch.tensor([0, 1]), z, torch.tensor([0, 5]), k=1) == 50.0


def test_bad_input():
    (x, y), (x_new, y_new) = blobs(10, 0), blobs(5, 1)
    for k in (0, 11):
        with pytest.raises(ValueError, match="k must be between 1 and the 10 training rows"):
            knn(x, y, x_new, y_new, k=k)
    with pytest.raises(ValueError, match="temperature must be"):
        knn(x, y, x_new, y_new, k=1, temperature=0.0)
    with pytest.raises(ValueError, match="chunk must be"):
        knn(x, y, x_new, y_new, k=1, chunk=0)
    with pytest.raises(ValueError, match="z_test must have 5 columns"):
        knn(x, y, x_new[:, :3], y_new, k=1)
    with pytest.raises(ValueError, match="y_train must have 10 labels"):
        knn(x, y[:-1], x_new, y_new, k=1)
    with pytest.raises(ValueError, match="z_train must be finite"):
        knn(x * np.nan, y, x_new, y_new, k=1)
    with pytest.raises(ValueError, match="z_test must be floating"):
        knn(x, y, y_new[:, None], y_new, k=1)
    with pytest.raises(ValueError, match="y_test must be a vector of integers"):
        knn(x, y, x_new, y_new.astype(float), k=1)
    with pytest.raises(ValueError, match="y_train must be 0 or above"):
        knn(x, y - 9, x_new, y_new, k=1)
