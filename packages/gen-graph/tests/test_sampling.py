"""Sampled neighbourhoods against exact ones."""

import pytest
import torch
from torch_geometric.data import Data

from gen_core.harness.errors import UsageError
from gen_graph.networks import MeanSkip
from gen_graph.sampling import Loaded, Neighbours, pyg_loader


@pytest.fixture
def graph():
    """8 nodes, node 7 isolated, node 0 of degree 4; a self-loop and a doubled edge that do not count."""
    pairs = [(0, 1), (0, 2), (0, 3), (0, 4), (1, 2), (3, 4), (4, 5), (5, 6)]
    edges = torch.tensor([*pairs, *((b, a) for a, b in pairs), (2, 2), (0, 1)]).T
    return Neighbours(edges, 8)


def around(graph, v):
    return graph.cols[graph.starts[v] : graph.starts[v + 1]].tolist()


def test_neighbours(graph):
    assert around(graph, 0) == [1, 2, 3, 4]
    assert around(graph, 2) == [0, 1]
    assert around(graph, 7) == []
    assert graph.degree.tolist() == [4, 2, 2, 2, 3, 2, 1, 0]


def test_draws_are_uniform_neighbours(graph):
    torch.manual_seed(0)
    drawn = graph.draw(torch.arange(8), 4000)
    for v in range(8):
        counts = torch.bincount(drawn[v], minlength=8)
        allowed = around(graph, v) or [v]
        assert counts[allowed].sum() == 4000
        assert (counts[allowed] / 4000 - 1 / len(allowed)).abs().max() < 0.04


def test_a_graph_without_edges():
    graph = Neighbours(torch.zeros(2, 0, dtype=torch.int64), 3)
    assert graph.draw(torch.arange(3), 2).tolist() == [[0, 0], [1, 1], [2, 2]]


def test_patches_hold_the_levels_of_the_paper(graph):
    patches = graph.patches(torch.tensor([0, 7, 5]), (10, 10, 25))
    assert sum(len(level) for level in patches.levels) == 3 * 2611
    for level, (parents, children) in enumerate(zip(patches.levels, patches.levels[1:], strict=False)):
        for parent, row in zip(parents.tolist(), children.view(len(parents), -1).tolist(), strict=True):
            assert set(row) <= set(around(graph, parent) or [parent])
        assert torch.equal(patches.degrees[level], graph.degree[parents])


def exact(x, graph):
    dense = torch.zeros(len(x), len(x), dtype=x.dtype)
    for v in range(len(x)):
        dense[v, around(graph, v)] = 1
    return (x + dense @ x) / (1 + dense.sum(1, keepdim=True))


def test_pairs_of_a_patch_by_hand(graph):
    """Both forms, of features and of a layer's rows, against a loop over the tree."""
    torch.manual_seed(1)
    x = torch.rand(8, 3, dtype=torch.float64)
    patches = graph.patches(torch.tensor([0, 4]), (3, 2))
    rows = torch.cat(patches.levels)
    own, mean = patches.pair(x, None)
    again = patches.pair(x, x[rows])
    torch.testing.assert_close((own, mean), again)
    starts = [2, 2 + 6]  # where the children of level 0 and of level 1 begin
    for place in range(8):
        level = 0 if place < 2 else 1
        k = (3, 2)[level]
        first = starts[level] + (place - (0, 2)[level]) * k
        children = x[rows[first : first + k]].mean(0)
        degree = graph.degree[rows[place]]
        torch.testing.assert_close(own[place], x[rows[place]])
        torch.testing.assert_close(mean[place], (x[rows[place]] + degree * children) / (degree + 1))
    last = patches.pair(x, own)
    assert [len(part) for part in last] == [2, 2]
    torch.testing.assert_close(last[1][0], (own[0] + 4 * own[2:5].mean(0)) / 5)


def test_the_sampled_mean_has_no_bias(graph):
    torch.manual_seed(2)
    x = torch.rand(8, 2, dtype=torch.float64)
    centres = torch.arange(8).repeat(3000)
    mean = graph.patches(centres, (2,)).pair(x, None)[1].view(3000, 8, 2).mean(0)
    torch.testing.assert_close(mean, exact(x, graph), rtol=0, atol=0.02)
    torch.testing.assert_close(graph.whole(x).pair(x, None)[1], exact(x, graph))


def test_shuffling_stays_within_each_patch(graph):
    torch.manual_seed(3)
    patches = graph.patches(torch.tensor([0, 5, 7]), (4, 3))
    other = patches.shuffled()

    def patch(p, b):
        return torch.cat([level.view(3, -1)[b] for level in p.levels])

    for b in range(3):
        assert sorted(patch(patches, b).tolist()) == sorted(patch(other, b).tolist())
    assert not torch.equal(patch(patches, 0), patch(other, 0))
    assert other.degrees is patches.degrees
    centres = torch.stack([patches.shuffled().levels[0] for _ in range(50)])
    assert len(centres[:, 0].unique()) > 2  # the centre's own features leave too


def loaded():
    """Two trees as PyG's loader gives them, hop by hop: 0 <- {1, 2}, 4 <- {3}, 1 <- {2}, 3 <- {4, 0}."""
    return Data(
        n_id=torch.tensor([0, 4, 1, 2, 3, 2, 4, 0]),
        batch=torch.tensor([0, 1, 0, 0, 1, 0, 1, 1]),
        edge_index=torch.tensor([[2, 3, 4, 5, 6, 7], [0, 0, 1, 2, 4, 4]]),
        num_sampled_nodes=[2, 3, 3],
    )


def test_batches_of_pygs_loader(graph):
    x = torch.rand(8, 3)
    tree = Loaded(loaded(), graph.degree)
    own, mean = tree.pair(x, None)
    assert torch.equal(own, x[[0, 4, 1, 2, 3]])
    torch.testing.assert_close(mean[0], (x[0] + 4 * (x[1] + x[2]) / 2) / 5)
    torch.testing.assert_close(mean[1], (x[4] + 3 * x[3]) / 4)
    torch.testing.assert_close(mean[4], (x[3] + 2 * (x[4] + x[0]) / 2) / 3)
    torch.testing.assert_close(mean[3], x[2] / 3)  # nothing was sampled there
    assert MeanSkip(3, 4, 2)(x, tree).shape == (2, 4)
    torch.manual_seed(0)
    other = tree.shuffled()
    for patch in (0, 1):
        rows = tree.patch == patch
        assert sorted(other.nodes[rows].tolist()) == sorted(tree.nodes[rows].tolist())
    assert torch.equal(tree.nodes, loaded().n_id)
    with pytest.raises(UsageError, match="disjoint=True"):
        Loaded(Data(n_id=torch.arange(3)), graph.degree)


@pytest.mark.parametrize("sampled", [[2, 1, 0], [2, 0, 0]])
def test_a_hop_of_pygs_loader_may_be_empty(graph, sampled):
    count = sum(sampled)
    edges = torch.tensor([[2], [1]])[:, : sampled[1]]
    batch = Data(n_id=torch.tensor([7, 6, 5])[:count], batch=torch.tensor([0, 1, 1])[:count], edge_index=edges)
    batch.num_sampled_nodes = sampled
    tree, x = Loaded(batch, graph.degree), torch.rand(8, 3)
    own, mean = tree.pair(x, None)
    assert torch.equal(own, x[[7, 6, 5]][:count])
    again, _ = tree.pair(x, own)
    assert torch.equal(again, x[[7, 6]])
    torch.testing.assert_close(mean[0], x[7])


def test_pygs_loader_where_its_library_is_missing(graph, monkeypatch):
    from torch_geometric import typing

    monkeypatch.setattr(typing, "WITH_PYG_LIB", False)
    with pytest.raises(UsageError, match="pyg-lib is not installed"):
        pyg_loader(graph, (2, 2), 4, 0)
