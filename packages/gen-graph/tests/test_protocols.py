"""The linear probe's splits, its needs, and the figure."""

import pytest
import torch
from torch_geometric.data import Data

from gen_core.harness.errors import LabelsMissing, UsageError
from gen_graph import RawFeatures
from gen_graph.data import load
from gen_graph.protocols import figures, linear, split


def test_masks_are_used_and_unlabelled_nodes_left_out():
    y = torch.tensor([0, 1, -1, 0, 1, -1])
    mask = torch.tensor([True, True, True, False, False, False])
    data = Data(x=torch.eye(6), y=y, train_mask=mask, test_mask=~mask)
    train, test = split(data, seed=0)
    assert (train.tolist(), test.tolist()) == ([0, 1], [3, 4])


def test_without_masks_a_seeded_split_by_class():
    y = torch.tensor([0] * 50 + [1] * 20 + [2] * 2 + [-1] * 5)
    data = Data(x=torch.eye(77), y=y)
    train, test = split(data, seed=1)
    assert torch.bincount(y[train]).tolist() == [5, 2, 1]
    assert torch.bincount(y[test]).tolist() == [45, 18, 1]
    assert not set(train.tolist()) & set(test.tolist())
    assert all(torch.equal(a, b) for a, b in zip((train, test), split(data, seed=1), strict=True))
    assert not torch.equal(train, split(data, seed=2)[0])


def test_labels_are_needed():
    with pytest.raises(LabelsMissing, match=r"needs labels.*labels=FILE.npy"):
        split(Data(x=torch.eye(3)), seed=0)


@pytest.mark.parametrize("y", [[0, 0, 0, 0], [-1, -1, -1, -1]])
def test_two_classes_are_needed(y):
    with pytest.raises(UsageError, match="two classes"):
        split(Data(x=torch.eye(4), y=torch.tensor(y)), seed=0)


def test_linear_on_separable_features(run_of):
    y = torch.arange(40) % 2
    data = Data(x=torch.stack([y, 1 - y], dim=1).float(), edge_index=torch.zeros(2, 0, dtype=torch.int64), y=y)
    assert linear(run_of(RawFeatures(), data), runs=3) == {"accuracy": 100.0, "accuracy_std": 0.0}


def test_raw_features_on_cora(gen_data, run_of):
    """[47.9 +- 0.4 is the value known for this probe.]"""
    found = linear(run_of(RawFeatures(), load("cora")), runs=10)
    assert 46.5 < found["accuracy"] < 49


@pytest.mark.parametrize("labelled", [True, False])
def test_figures(run_of, tmp_path, labelled):
    data = load("karate")
    if not labelled:
        del data.y
    figures(run_of(RawFeatures(), data), tmp_path)
    assert (tmp_path / "embedding.png").stat().st_size > 1000
