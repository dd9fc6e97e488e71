"""Episodes: exact counts, no row twice, uniform draws. Classifiers against plain loops, nearest neighbours, chance."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from gen_core.evaluation.few_shot import few_shot_accuracy, prototype_scores, sample_episodes
from gen_core.evaluation.stats import paired_interval


def blobs(n, seed, d=8, classes=12, noise=1.0):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % classes
    return np.random.default_rng(9).normal(size=(classes, d))[y] + noise * rng.normal(size=(n, d)), y


# ----------------------------------------------------------------------------------------------------------- episodes


def test_episodes_have_exact_counts_and_no_row_twice():
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat([0, 3, 4, 7, 9, -1], [9, 12, 8, 10, 8, 30]))
    support, query = sample_episodes(labels, ways=4, shots=3, queries=5, n=50, seed=1)
    assert support.shape == (50, 4, 3) and query.shape == (50, 4, 5)
    for s, q in zip(support, query, strict=True):
        assert len(set(s.flatten().tolist() + q.flatten().tolist())) == 4 * 8
        classes = labels[s].tolist()
        assert all(len(set(row)) == 1 for row in classes)  # one class a way,
        assert len({row[0] for row in classes}) == 4  # another in each way,
        assert -1 not in classes[0]
        assert (labels[q] == labels[s][:, :1]).all()  # and the queries of the same


def test_episodes_depend_on_the_seed_alone():
    _, y = blobs(240, 0)
    support, query = sample_episodes(y, 5, 1, 15, 30, 0)
    again = sample_episodes(torch.as_tensor(y), 5, 1, 15, 30, 0)
    assert torch.equal(support, again[0]) and torch.equal(query, again[1])
    few = sample_episodes(y, 5, 1, 15, 7, 0)
    assert torch.equal(support[:7], few[0]) and torch.equal(query[:7], few[1])
    assert not torch.equal(support, sample_episodes(y, 5, 1, 15, 30, 1)[0])
    state = torch.get_rng_state()
    sample_episodes(y, 5, 1, 15, 3, 0)
    assert torch.equal(state, torch.get_rng_state())


def test_episodes_draw_classes_and_rows_uniformly():
    y = np.repeat([0, 1, 2], [5, 10, 20])  # a class's size must not matter for its share
    support, query = sample_episodes(y, ways=2, shots=1, queries=1, n=3000, seed=0)
    share = np.bincount(y[support.flatten()], minlength=3) / 6000
    assert np.abs(share - 1 / 3).max() < 0.02  # 4 deviations
    for rows in (support, query):
        counts = np.bincount(rows.flatten(), minlength=35)
        for c in range(3):
            assert stats.chisquare(counts[y == c]).pvalue > 1e-3
    first = np.bincount(y[support[:, 0, 0]], minlength=3)  # neither must the way
    assert stats.chisquare(first).pvalue > 1e-3


# --------------------------------------------------------------------------------------------------------- prototypes


def plain_prototypes(support, query, rounds, scale=10.0):
    """One episode, vector by vector, float64."""

    def unit(v):
        return v / math.sqrt(sum(float(a) * float(a) for a in v))

    f, q = [[unit(v) for v in way] for way in support], [unit(v) for v in query]
    centres = [unit(sum(way)) for way in f]
    for _ in range(rounds):
        weights = []
        for v in q:
            raw = [math.exp(scale * float(np.dot(v, c))) for c in centres]
            weights.append([r / sum(raw) for r in raw])
        centres = [unit(sum(way) + sum(w[k] * v for w, v in zip(weights, q, strict=True))) for k, way in enumerate(f)]
    return [[float(np.dot(v, c)) for c in centres] for v in q]


@pytest.mark.parametrize("rounds", [0, 1, 7])
@pytest.mark.parametrize("shots", [1, 4])
def test_prototype_scores_against_plain_python(rounds, shots):
    rng = np.random.default_rng(rounds + shots)
    support, query = rng.normal(size=(3, shots, 6)), rng.normal(size=(11, 6))
    found = prototype_scores(torch.as_tensor(support), torch.as_tensor(query), rounds=rounds, scale=4.0)
    np.testing.assert_allclose(found, plain_prototypes(support, query, rounds, 4.0), atol=1e-12)
    stacked = prototype_scores(
        torch.as_tensor(np.stack([support, support[::-1].copy()])),
        torch.as_tensor(np.stack([query, query])),
        rounds,
        4.0,
    )
    torch.testing.assert_close(stacked[0], found)
    torch.testing.assert_close(stacked[1], found.flip(1))  # ways in another order
    longer = prototype_scores(5 * torch.as_tensor(support), torch.as_tensor(query) / 3, rounds, 4.0)
    torch.testing.assert_close(longer, found)


def test_prototype_scores_in_half_precision_and_of_zero_rows():
    support, query = torch.randn(3, 2, 6, generator=torch.Generator().manual_seed(0)), torch.zeros(2, 6)
    assert (prototype_scores(support.half(), query.half(), rounds=3) == 0).all()
    query = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    plain = prototype_scores(support, query, rounds=5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(prototype_scores(support, query, rounds=5), plain)
    sharp = prototype_scores(support, query, rounds=2, scale=1e9)  # hard k-means
    assert torch.isfinite(sharp).all()


# ----------------------------------------------------------------------------------------------------------- accuracy


def test_accuracy_is_counted_over_the_episodes():
    z, y = blobs(240, 0)
    support, query = sample_episodes(y, 4, 2, 3, 9, 5)
    shares = []
    for s, q in zip(support.numpy(), query.numpy(), strict=True):
        scores = plain_prototypes(z[s], z[q.reshape(-1)], 0)
        shares.append(np.mean([int(np.argmax(row)) == i // 3 for i, row in enumerate(scores)]))
    found = few_shot_accuracy(z, y, ways=4, shots=2, queries=3, episodes=9, seed=5)
    assert found.episodes.tolist() == pytest.approx([100 * share for share in shares])
    assert 40 < found.mean < 99
    low, high = stats.t.interval(0.95, 8, np.mean(shares), stats.sem(shares))
    assert (found.mean - found.half_width, found.mean + found.half_width) == pytest.approx((100 * low, 100 * high))


def test_one_shot_prototypes_are_nearest_neighbours_by_cosine():
    z, y = blobs(240, 1)
    support, query = sample_episodes(y, 5, 1, 15, 20, 0)
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    right = []
    for s, q in zip(support.numpy(), query.numpy(), strict=True):
        near = (unit[q.reshape(-1)] @ unit[s[:, 0]].T).argmax(1)
        right.append(100 * np.mean(near == np.arange(75) // 15))
    assert few_shot_accuracy(z, y, episodes=20).episodes.tolist() == pytest.approx(right)


def test_logistic_regression_solves_its_own_problem():
    """By another optimiser: minimise 1/2 |W|^2 + sum of cross-entropies over the support at length 1."""
    from scipy.optimize import minimize

    z, y = blobs(240, 2)
    support, query = sample_episodes(y, 3, 2, 10, 4, 0)
    right = []
    for s, q in zip(support.numpy(), query.numpy(), strict=True):
        f, new = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (z[s.reshape(-1)], z[q.reshape(-1)]))
        onehot = np.eye(3).repeat(2, 0)

        def objective(v, f=f, onehot=onehot):
            score = f @ v[:24].reshape(8, 3) + v[24:]
            return (np.log(np.exp(score).sum(1)) - (score * onehot).sum(1)).sum() + (v[:24] ** 2).sum() / 2

        v = minimize(objective, np.zeros(27), options={"gtol": 1e-7}).x
        right.append(100 * np.mean((new @ v[:24].reshape(8, 3) + v[24:]).argmax(1) == np.arange(30) // 10))
    found = few_shot_accuracy(z, y, 3, 2, 10, episodes=4, classifier="logistic")
    assert found.episodes.tolist() == pytest.approx(right)
    assert 40 < found.mean < 99


def test_more_shots_queries_and_structure_help():
    z, y = blobs(300, 3, noise=1.0)
    one = few_shot_accuracy(z, y, episodes=150, queries=10)
    five = few_shot_accuracy(z, y, episodes=150, queries=10, shots=5)
    assert one.mean + 5 < five.mean < 99
    seen = few_shot_accuracy(z, y, episodes=150, queries=10, classifier="transductive")
    gain = paired_interval(seen.episodes.numpy(), one.episodes.numpy())  # the same episodes
    assert gain.low > 0
    assert gain.high - gain.low < 2 * (one.half_width + seen.half_width)
    logistic = few_shot_accuracy(z, y, episodes=150, queries=10, shots=5, classifier="logistic")
    assert abs(logistic.mean - five.mean) < 3


@pytest.mark.parametrize("classifier", ["prototype", "transductive", "logistic"])
def test_noise_is_at_chance_and_labels_of_queries_are_not_seen(classifier):
    rng = np.random.default_rng(0)
    noise = few_shot_accuracy(rng.normal(size=(200, 6)), np.arange(200) % 10, episodes=60, classifier=classifier)
    assert abs(noise.mean - 20) < 3  # deviation 0.6
    # relabelling every row to a class of its own name changes nothing
    z, y = blobs(240, 4)
    plain = few_shot_accuracy(z, y, episodes=20, classifier=classifier)
    assert torch.equal(few_shot_accuracy(z, y * 3 + 1, episodes=20, classifier=classifier).episodes, plain.episodes)
    assert (
        few_shot_accuracy(torch.as_tensor(z), torch.as_tensor(y), episodes=20, classifier=classifier).mean == plain.mean
    )


def test_one_episode_has_no_interval():
    z, y = blobs(240, 0)
    found = few_shot_accuracy(z, y, episodes=1)
    assert math.isnan(found.half_width) and 0 <= found.mean <= 100
    assert few_shot_accuracy(torch.as_tensor(z).bfloat16(), y, episodes=20).mean > 40


def test_bad_input():
    z, y = blobs(60, 0)  # 12 classes of 5 rows
    for name in ("ways", "shots", "queries", "n"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            sample_episodes(y, **({"ways": 2, "shots": 1, "queries": 1, "n": 1} | {name: 0}), seed=0)
    with pytest.raises(ValueError, match="ways must be at most the 12 classes"):
        sample_episodes(y, 13, 1, 1, 1, 0)
    with pytest.raises(ValueError, match=r"labels must have shots \+ queries = 6 rows a class, got 5 of 0"):
        sample_episodes(y, 5, 1, 5, 1, 0)
    with pytest.raises(ValueError, match="labels must be a vector of integers"):
        sample_episodes(z, 5, 1, 1, 1, 0)
    with pytest.raises(ValueError, match="y must have 60 labels"):
        few_shot_accuracy(z, y[:-1])
    with pytest.raises(ValueError, match="z must be finite"):
        few_shot_accuracy(np.full((60, 2), np.nan), y, queries=2)
    with pytest.raises(ValueError, match="classifier must be"):
        few_shot_accuracy(z, y, classifier="svm")
    support, query = torch.randn(2, 1, 4), torch.randn(3, 4)
    for a, b in ((support[0], query), (support, query[:, :3]), (support, query[None]), (support[None], query)):
        with pytest.raises(ValueError, match="query must be"):
            prototype_scores(a, b)
    with pytest.raises(ValueError, match="rounds must be at least 0"):
        prototype_scores(support, query, rounds=-1)
    with pytest.raises(ValueError, match="scale must be a finite number above 0"):
        prototype_scores(support, query, scale=0.0)
    with pytest.raises(ValueError, match="query must be finite"):
        prototype_scores(support, query * math.nan)
