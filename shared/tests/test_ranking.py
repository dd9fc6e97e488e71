"""Ranking metrics against a worked example, a derivation without vectors, RecBole's own classes, and bad input."""

import math

import numpy as np
import pytest
import torch

from gen_core.evaluation.ranking import ranking_metrics, top_k


def plain(ranked, targets, k):
    """Recall, NDCG, MRR of one list, from their definitions."""
    hits = [rank for rank, item in enumerate(ranked[:k], start=1) if item in targets]
    ideal = sum(1 / math.log2(1 + rank) for rank in range(1, min(k, len(targets)) + 1))
    return (
        len(hits) / len(targets),
        sum(1 / math.log2(1 + rank) for rank in hits) / ideal,
        1 / hits[0] if hits else 0.0,
    )


def lists(n=40, items=30, length=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ranked = torch.rand(n, items, generator=generator).argsort(1)[:, :length]
    sizes = torch.randint(1, 20, (n,), generator=generator).tolist()
    targets = [torch.randperm(items, generator=generator)[:size] for size in sizes]
    return ranked, targets


def test_worked_example():
    found = ranking_metrics(torch.tensor([[7, 3, 9, 1, 5]]), [torch.tensor([3, 5, 8])], [5])
    assert [round(found[f"{name}@5"].item(), 4) for name in ("recall", "ndcg", "mrr")] == [0.6667, 0.4776, 0.5]


def test_equals_the_definitions():
    ranked, targets = lists()
    ks = (1, 5, 12)
    found = ranking_metrics(ranked, targets, ks)
    assert set(found) == {f"{name}@{k}" for name in ("recall", "ndcg", "mrr") for k in ks}
    for k in ks:
        for row in range(len(ranked)):
            expected = plain(ranked[row].tolist(), set(targets[row].tolist()), k)
            got = [found[f"{name}@{k}"][row].item() for name in ("recall", "ndcg", "mrr")]
            assert got == pytest.approx(expected, abs=1e-12)


def test_equals_recbole(monkeypatch):
    pytest.importorskip("recbole")
    monkeypatch.setattr(np, "float", float, raising=False)  # as RecBole's Config does
    from recbole.evaluator import metrics as theirs

    ranked, targets = lists()
    hit = np.array(
        [[item in row.tolist() for item in line] for line, row in zip(ranked.tolist(), targets, strict=True)]
    )
    counts = np.array([len(row) for row in targets])
    ks = (1, 5, 12)
    found = ranking_metrics(ranked, targets, ks)
    for name, kind in (("recall", theirs.Recall), ("ndcg", theirs.NDCG), ("mrr", theirs.MRR)):
        metric = object.__new__(kind)  # its constructor wants a whole configuration
        table = metric.metric_info(hit) if name == "mrr" else metric.metric_info(hit, counts)
        for k in ks:
            np.testing.assert_allclose(found[f"{name}@{k}"].numpy(), table[:, k - 1], rtol=0, atol=1e-9)


def test_no_item_is_never_a_hit():
    ranked = torch.tensor([[4, -1, -1], [-1, -1, 2]])
    found = ranking_metrics(ranked, [torch.tensor([4, 2]), torch.tensor([2])], [1, 3])
    assert found["recall@3"].tolist() == [0.5, 1.0]
    assert found["mrr@3"].tolist() == pytest.approx([1.0, 1 / 3])
    assert found["recall@1"].tolist() == [0.5, 0.0]


def test_one_list_says_nothing_of_another():
    ranked = torch.tensor([[1, 2], [3, 4]])
    assert ranking_metrics(ranked, [torch.tensor([3]), torch.tensor([1])], [2])["recall@2"].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("ranked", "targets", "ks", "message"),
    [
        (torch.tensor([1, 2]), [torch.tensor([1])], [1], r"integers \(n, K\)"),
        (torch.tensor([[1.0]]), [torch.tensor([1])], [1], "float32"),
        (torch.tensor([[1]]), [], [1], "one entry a row of ranked, 1, got 0"),
        (torch.tensor([[1]]), [torch.tensor([1])], [2], r"1\.\.1"),
        (torch.tensor([[1]]), [torch.tensor([1])], [], r"1\.\.1"),
        (
            torch.tensor([[1], [2]]),
            [torch.tensor([1]), torch.tensor([], dtype=torch.int64)],
            [1],
            "row 1 has no targets",
        ),
        (torch.tensor([[1, 1]]), [torch.tensor([1])], [1], "ranked hold an item twice"),
        (torch.tensor([[1, 2]]), [torch.tensor([3, 3])], [1], "targets hold an item twice"),
    ],
)
def test_bad_input(ranked, targets, ks, message):
    with pytest.raises(ValueError, match=message):
        ranking_metrics(ranked, targets, ks)


def test_top_k_orders_ties_by_column():
    scores = torch.tensor([[1.0, 3.0, 3.0, 2.0, 3.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    assert top_k(scores, 4).tolist() == [[1, 2, 4, 3], [0, 1, 2, 3]]


def test_top_k_fills_up():
    scores = torch.tensor([[-torch.inf, 1.0, -torch.inf]])
    assert top_k(scores, 2).tolist() == [[1, -1]]
    assert top_k(scores, 5).tolist() == [[1, -1, -1, -1, -1]]


def test_top_k_refuses():
    with pytest.raises(ValueError, match="NaN"):
        top_k(torch.tensor([[torch.nan]]), 1)
    with pytest.raises(ValueError, match="k must be"):
        top_k(torch.zeros(1, 1), 0)
