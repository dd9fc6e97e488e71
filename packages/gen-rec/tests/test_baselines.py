"""The baselines against direct forms of their definitions and the reference figures on real data; the protocol."""

from dataclasses import replace

import pytest
import torch

from gen_core.harness.errors import UsageError
from gen_core.harness.runs import Run
from gen_rec import EASE, ItemTransitions, Popularity
from gen_rec.data import Interactions, load, split
from gen_rec.protocols import figures, ranking

ITEMS = 9


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    rows = [(torch.randperm(ITEMS, generator=generator)[: 3 + u % 6] + 1).tolist() for u in range(7)]
    return split([f"u{u}" for u in range(7)], ["", *(f"i{i}" for i in range(1, ITEMS + 1))], rows)


def test_popularity_counts_users(data):
    scores = Popularity().fit(data).score(data.train)
    counts = torch.tensor([sum(int(i in row.tolist()) for row in data.train) for i in range(ITEMS + 1)])
    assert torch.equal(scores, counts.float().repeat(7, 1))


def test_transitions_are_the_double_loop(data):
    config = ItemTransitions.Config(window=3, last=2)
    matrix = torch.zeros(ITEMS + 1, ITEMS + 1, dtype=torch.float64)
    for row in data.train:
        for i, first in enumerate(row.tolist()):
            for step, then in enumerate(row[i + 1 : i + 4].tolist(), start=1):
                matrix[first, then] += 1 / step
    expected = torch.stack([matrix[row[-2:]].sum(0) for row in data.train])
    found = ItemTransitions(config).fit(data).score(data.train)
    tie = found - expected  # popularity, too small to overturn a count
    counts = torch.cat(data.train).bincount(minlength=ITEMS + 1).double()
    torch.testing.assert_close(tie, (1e-3 * counts / counts.max()).repeat(7, 1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("users", [7, 40])  # fewer and more than items
def test_ease_is_the_closed_form(users):
    generator = torch.Generator().manual_seed(1)
    rows = [(torch.randperm(ITEMS, generator=generator)[: 3 + u % 6] + 1).tolist() for u in range(users)]
    data = split([str(u) for u in range(users)], ["", *map(str, range(1, ITEMS + 1))], rows)
    x = torch.zeros(users, ITEMS + 1, dtype=torch.float64)
    for u, row in enumerate(data.train):
        x[u, row] = 1
    p = torch.linalg.inv(x.T @ x + 3.0 * torch.eye(ITEMS + 1, dtype=torch.float64))
    b = -p / p.diagonal()
    b.fill_diagonal_(0)
    found = EASE(EASE.Config(penalty=3.0)).fit(data).score(data.train)
    torch.testing.assert_close(found.double(), x @ b, rtol=1e-4, atol=1e-5)


REFERENCE = {
    Popularity: ((2.85, 5.75, 11.40), (4.45, 5.58, 12.29), (7.04, 6.20, 13.00)),
    ItemTransitions: ((4.59, 8.07, 15.48), (7.95, 8.74, 17.26), (12.14, 9.83, 18.15)),
    EASE: ((4.32, 7.91, 14.49), (7.84, 8.63, 16.22), (13.46, 10.33, 17.26)),
}
"""recall, NDCG and MRR at 5, 10 and 20 on acvae-ml-latest, computed once by other code."""


@pytest.mark.parametrize("kind", REFERENCE)
def test_reference_figures(gen_data, kind):
    data = load("acvae-ml-latest")
    found = ranking(Run(kind().fit(data), data, 0))
    for k, values in zip((5, 10, 20), REFERENCE[kind], strict=True):
        assert [round(found[f"{name}@{k}"], 2) for name in ("recall", "ndcg", "mrr")] == list(values)


@pytest.mark.parametrize("kind", REFERENCE)
def test_save_load_and_recommend(data, tmp_path, kind):
    model = kind().fit(data, out=tmp_path / "run")
    loaded = kind.load(tmp_path / "run")
    assert torch.equal(loaded.score(data.train), model.score(data.train))
    items = loaded.recommend(data, "u3", 4)
    assert items == model.recommend(data, "u3", 4)
    assert [value for _, value in items] == sorted((value for _, value in items), reverse=True)
    own = {data.items[i] for i in torch.cat([data.train[3], data.test[3]]).tolist()}
    unseen = model.recommend(data, "u3", 100, exclude_seen=True)
    assert {item for item, _ in unseen} == set(data.items) - own - {""}
    assert len(model.recommend(data, "u3", 100)) == ITEMS
    with pytest.raises(UsageError, match=r"unknown user 'u33'; nearest: u3, .*; the data has 7 users"):
        model.recommend(data, "u33")
    other = replace(data, items=("", *"abcdefghi"))
    with pytest.raises(UsageError, match="9 items that are not those this model was trained on"):
        model.recommend(other, "u3")
    with pytest.raises(UsageError, match=r"item 10; allowed: 1\.\.9"):
        model.score([torch.tensor([10])])
    (tmp_path / "run" / "model.safetensors").write_bytes(b"x")
    with pytest.raises(UsageError, match="missing or damaged"):
        kind.load(tmp_path / "run")


class Fixed:
    """Ranks by given scores."""

    class config:
        patience = 0

    def __init__(self, scores):
        from gen_rec.recommender import Recommender

        self.model = Recommender()
        self.model.score = lambda sequences: scores[: len(sequences)].clone()
        self.rank = self.model.rank


def test_the_protocol_masks_history_and_padding():
    train, test = torch.tensor([1, 2, 1]), torch.tensor([3, 4])
    offsets = lambda *n: torch.tensor([0, *n]).cumsum(0)  # noqa: E731
    data = Interactions(("a", "b"), ("", *"vwxyz"), train, offsets(2, 1), test, offsets(2, 0))
    scores = torch.tensor([[9.0, 8, 7, 1, 3, 2], [0, 0, 0, 0, 0, 0]])
    run = Run(Fixed(scores), data, 0)
    found = ranking(run, ks=(1, 2, 3, 6))
    # Of user a's items 3, 4, 5 the order is 4, 5, 3; user b has no test part and does not count.
    assert found["recall@1"] == found["recall@2"] == 50
    assert found["recall@3"] == found["recall@6"] == 100
    assert found["mrr@1"] == 100
    assert run.samples == {"recall@6": [100.0]}
    assert "epochs" not in found
    with pytest.raises(UsageError, match="no user of the data has one"):
        ranking(Run(Fixed(scores), Interactions(("a",), data.items, train, offsets(3), test[:0], offsets(0)), 0))


def test_figures(data, tmp_path):
    figures(Run(Popularity().fit(data), data, 0), tmp_path)
    assert (tmp_path / "metrics.png").stat().st_size > 5000
