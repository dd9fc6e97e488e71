"""The probes' needs, what they find on data that is known, and the figure."""

import pytest
import torch
from torch_geometric.data import Data

from gen_core.harness.errors import LabelsMissing, UsageError
from gen_graph import RawFeatures
from gen_graph.data import load
from gen_graph.graphset import GraphSet
from gen_graph.protocols import accuracy, figures, linear, probed, svm


@pytest.mark.parametrize("y", [[0, 0, 0, 0], [-1, -1, -1, -1]])
def test_two_classes_are_needed(y):
    with pytest.raises(UsageError, match="two classes"):
        probed(Data(x=torch.eye(4), y=torch.tensor(y)), seed=0)


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


class Own:
    """A method whose embeddings, or predictions, are given."""

    def __init__(self, z=None, guess=None):
        self.z, self.guess = z, guess

    def embed(self, data):
        return self.z

    def predict(self, data):
        return {"class": self.guess}


def test_accuracy_counts_test_nodes_alone(run_of):
    y = torch.tensor([0, 1, -1, 0, 1, 1])
    mask = torch.tensor([True, True, False, False, False, False])
    data = Data(x=torch.eye(6), y=y, train_mask=mask, test_mask=~mask)
    assert accuracy(run_of(Own(guess=[1, 0, 0, 0, 1, 0]), data)) == {"accuracy": pytest.approx(200 / 3)}


def some_graphs(y):
    n = len(y)
    return GraphSet(torch.ones(n, 1), torch.zeros(2, 0, dtype=torch.int64), torch.arange(n + 1), y)


def test_svm_leaves_out_graphs_without_a_class_and_has_the_same_folds_for_every_seed(run_of):
    y = torch.tensor([0, 1] * 20 + [-1] * 3)
    z = torch.randn(43, 3, generator=torch.Generator().manual_seed(0)) + 1.0 * y[:, None]
    found = svm(run_of(Own(z), some_graphs(y), seed=0))
    assert found == svm(run_of(Own(z), some_graphs(y), seed=5)) == linear(run_of(Own(z), some_graphs(y)))
    assert 70 < found["accuracy"] < 100
    z[40:] = float("nan")
    assert svm(run_of(Own(z), some_graphs(y))) == found


@pytest.mark.parametrize("y", [None, torch.rand(4)])
def test_svm_needs_classes(run_of, y):
    graphs = some_graphs(torch.arange(4))
    graphs.y = y
    with pytest.raises(LabelsMissing, match="class for each graph"):
        svm(run_of(Own(torch.rand(4, 2)), graphs))
