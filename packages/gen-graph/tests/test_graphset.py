"""A set of graphs against PyG's own batches."""

import pytest
import torch
from torch_geometric.data import Batch, Data

from gen_core.harness.errors import UsageError
from gen_graph.data import check_set, checksum, ids, spec
from gen_graph.graphset import GraphSet, loader
from gen_graph.networks import product


@pytest.fixture
def many():
    """Six graphs: several sizes, one node alone, one without edges, one directed, one with a doubled edge."""
    generator = torch.Generator().manual_seed(0)
    edges = [
        [[0, 1, 1, 2], [1, 0, 2, 1]],
        [[], []],
        [[2, 0, 1], [0, 1, 2]],
        [[], []],
        [[3, 0, 0, 1, 3, 2], [0, 3, 1, 0, 2, 3]],
        [[0, 1, 0, 1], [1, 0, 1, 0]],
    ]
    sizes = [3, 1, 3, 4, 5, 2]
    return [
        Data(
            x=torch.rand(n, 2, generator=generator),
            edge_index=torch.tensor(e, dtype=torch.int64),
            edge_attr=torch.rand(len(e[0]), 3, generator=generator),
            y=torch.tensor([k % 3]),
        )
        for k, (n, e) in enumerate(zip(sizes, edges, strict=True))
    ]


def pairs(edge_index, edge_attr):
    return sorted([*edge.tolist(), *attr.tolist()] for edge, attr in zip(edge_index.T, edge_attr, strict=True))


@pytest.mark.parametrize("index", [range(6), [4, 1, 0], [1], [3, 3, 5], [5, 4, 3, 2, 1, 0]])
def test_of_and_select_are_pygs_batch(many, index):
    found = GraphSet.of(many).select(torch.tensor(list(index)))
    expected = Batch.from_data_list([many[k] for k in index])
    assert torch.equal(found.x, expected.x)
    assert torch.equal(found.batch, expected.batch)
    assert torch.equal(found.ptr, expected.ptr)
    assert torch.equal(found.y, expected.y)
    assert pairs(found.edge_index, found.edge_attr) == pairs(expected.edge_index, expected.edge_attr)
    assert bool((found.edge_index[1].diff() >= 0).all())
    assert torch.equal(found.degree, torch.bincount(expected.edge_index[1], minlength=len(expected.x)))


def test_sums_means_and_the_adjacency(many):
    found = GraphSet.of(many).select(torch.tensor([4, 1, 2]))
    rows = torch.rand(found.nodes, 3)
    parts = rows.split([5, 1, 3])
    torch.testing.assert_close(found.sum(rows), torch.stack([part.sum(0) for part in parts]))
    torch.testing.assert_close(found.mean(rows), torch.stack([part.mean(0) for part in parts]))
    dense = torch.zeros(9, 9)
    for source, target in found.edge_index.T.tolist():
        dense[target, source] += 1
    torch.testing.assert_close(product(found.adjacency, rows), dense @ rows)
    torch.testing.assert_close(product(found.adjacency.transpose, rows), dense.T @ rows)


def test_the_loader_is_the_seeds_and_sees_each_graph_once(many):
    graphs = GraphSet.of(many)
    graphs.ids = tuple("abcdef")
    seen = [[name for batch in loader(graphs, 4, seed) for name in batch.ids] for seed in (0, 0, 1)]
    assert seen[0] == seen[1] != seen[2]
    assert sorted(seen[0]) == sorted(seen[2]) == list("abcdef")
    assert [len(batch) for batch in loader(graphs, 4, 0, drop_last=True)] == [4]


def test_what_is_known_of_a_set(many):
    graphs = GraphSet.of(many)
    assert spec(many) == spec(graphs)
    sizes = {"graphs": 6, "nodes": 18, "edges": 17, "features": 2, "edge_features": 3, "classes": 3}
    assert spec(graphs) == sizes
    assert ids(graphs) == list("012345")
    assert GraphSet.of(graphs) is graphs
    before = checksum(graphs)
    graphs.x[0, 0] += 1
    assert checksum(graphs) != before
    graphs.y = torch.rand(6)
    assert spec(graphs)["classes"] == 0


def test_what_a_list_of_graphs_may_not_be(many):
    def refused(change, message):
        graphs = [graph.clone() for graph in many]
        change(graphs)
        with pytest.raises(UsageError, match=message):
            check_set(graphs)

    refused(lambda graphs: graphs.clear(), "at least one")
    refused(lambda graphs: setattr(graphs[2], "x", None), "graph 2: x must be features")
    refused(lambda graphs: setattr(graphs[2], "x", torch.rand(0, 2)), "graph 2: x must be features")
    refused(lambda graphs: setattr(graphs[2], "x", torch.rand(3, 5)), "graph 2: 5 features; graph 0 has 2")
    refused(lambda graphs: setattr(graphs[0], "edge_index", torch.tensor([[0], [3]])), r"graph 0: .* in 0\.\.2")
    refused(lambda graphs: setattr(graphs[0], "edge_index", torch.tensor([0, 3])), r"graph 0: .* shape \(2, e\)")
    refused(lambda graphs: setattr(graphs[3], "y", None), "5 of 6 graphs have y")
    refused(lambda graphs: graphs[1].x.fill_(float("nan")), "graph 1: x is not finite")
    with pytest.raises(UsageError, match="several graphs are needed"):
        check_set(many[0])
