"""Which nodes are fitted on, chosen by and tested on."""

import pytest
import torch
from torch_geometric.data import Data

from gen_core.harness.errors import LabelsMissing
from gen_graph.splits import Rule, nodes


def test_masks_are_used_and_unlabelled_nodes_left_out():
    y = torch.tensor([0, 1, -1, 0, 1, -1])
    mask = torch.tensor([True, True, True, False, False, False])
    data = Data(x=torch.eye(6), y=y, train_mask=mask, test_mask=~mask)
    assert [part.tolist() for part in nodes(data, seed=0)] == [[0, 1], [], [3, 4]]
    data.val_mask, data.test_mask = torch.arange(6) == 3, torch.arange(6) > 3
    assert [part.tolist() for part in nodes(data, seed=0)] == [[0, 1], [3], [4]]


def disjoint(parts, y):
    rows = torch.cat(parts).tolist()
    assert len(set(rows)) == len(rows)
    assert bool((y[rows] >= 0).all())


def test_without_masks_a_seeded_split_by_class():
    y = torch.tensor([0] * 50 + [1] * 20 + [2] * 2 + [-1] * 5)
    data = Data(x=torch.eye(77), y=y)
    parts = nodes(data, seed=1)
    disjoint(parts, y)
    assert [torch.bincount(y[part], minlength=3).tolist() for part in parts] == [[5, 2, 1], [5, 2, 0], [40, 16, 1]]
    assert all(torch.equal(a, b) for a, b in zip(parts, nodes(data, seed=1), strict=True))
    assert not torch.equal(parts[0], nodes(data, seed=2)[0])


def test_rules_that_come_with_the_data():
    y = torch.arange(300) % 3
    y[-1] = -1
    data = Data(x=torch.eye(300), y=y)
    data.split_rule = Rule(train=20, val_per_class=30)
    parts = nodes(data, seed=0)
    disjoint(parts, y)
    assert [torch.bincount(y[part]).tolist() for part in parts] == [[20] * 3, [30] * 3, [50, 50, 49]]
    data.split_rule = Rule(train=5, val=50, test=100)
    parts = nodes(data, seed=0)
    disjoint(parts, y)
    assert [len(part) for part in parts] == [15, 50, 100]
    assert [not torch.equal(a, b) for a, b in zip(parts, nodes(data, seed=1), strict=True)] == [True] * 3


def test_labels_are_needed():
    with pytest.raises(LabelsMissing, match=r"labels are needed.*labels=FILE.npy"):
        nodes(Data(x=torch.eye(3)), seed=0)
