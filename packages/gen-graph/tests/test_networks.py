"""Sparse products, the GCN matrix and PReLU against PyG, dense torch and finite differences."""

import pytest
import torch
from torch_geometric.nn import GCNConv

from gen_graph.networks import GCN, Graph, Sparse, gcn_matrix, normalize_rows, prelu, spmm

WEIRD = {
    "undirected, node 4 isolated": [[0, 1, 1, 2], [1, 0, 2, 1]],
    "directed": [[0, 1, 2, 3], [1, 2, 3, 1]],
    "duplicates": [[0, 0, 1, 1], [1, 1, 0, 0]],
    "self-loops": [[0, 1, 2, 2], [0, 0, 2, 1]],
    "no edge": [[], []],
}


@pytest.mark.parametrize("edges", WEIRD.values(), ids=WEIRD)
def test_gcn_matrix_is_that_of_gcnconv(edges):
    edge_index = torch.tensor(edges, dtype=torch.int64)
    conv = GCNConv(5, 5, bias=False).double()
    with torch.no_grad():
        conv.lin.weight.copy_(torch.eye(5))
        expected = conv(torch.eye(5, dtype=torch.float64), edge_index)
    found = gcn_matrix(edge_index, 5, torch.float64)
    torch.testing.assert_close(found.to_dense(), expected)
    torch.testing.assert_close(found.transpose.to_dense(), expected.T)


def test_a_symmetric_matrix_is_stored_once():
    assert (both := gcn_matrix(torch.tensor([[0, 1], [1, 0]]), 3)).transpose is both
    assert (one := gcn_matrix(torch.tensor([[0], [1]]), 3)).transpose is not one


def test_worked_entries():
    # path 0 - 1 - 2: degrees with self-loops 2, 3, 2
    found = gcn_matrix(torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]]), 3, torch.float64).to_dense()
    a = 6**-0.5
    expected = torch.tensor([[1 / 2, a, 0], [a, 1 / 3, a], [0, a, 1 / 2]], dtype=torch.float64)
    torch.testing.assert_close(found, expected)


def test_spmm_and_its_gradient():
    generator = torch.Generator().manual_seed(0)
    left = torch.rand(6, 4, generator=generator, dtype=torch.float64)
    left = left * (left > 0.6)
    right = torch.rand(4, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(spmm(Sparse.of(left), right), left @ right)
    assert torch.autograd.gradcheck(lambda r: spmm(Sparse.of(left), r), right)


def test_prelu_and_its_gradients():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(7, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    slope = torch.tensor([0.25], dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(prelu(z, slope), torch.nn.functional.prelu(z, slope))
    assert torch.autograd.gradcheck(prelu, (z, slope))


def test_normalize_rows_of_counts_signed_and_zero_rows():
    x = torch.tensor([[1.0, 3.0], [2.0, -2.0], [0.0, 0.0]])
    assert normalize_rows(x).tolist() == [[0.25, 0.75], [0.5, -0.5], [0.0, 0.0]]


def test_sparse_and_dense_features_give_the_same_embedding():
    generator = torch.Generator().manual_seed(0)
    x = (torch.rand(20, 50, generator=generator) < 0.05).float()
    edges = torch.randint(20, (2, 40), generator=generator)
    sparse, dense = (Graph.of(x, edges, normalize=True, dense=flag) for flag in (False, True))
    assert isinstance(sparse.x, Sparse)
    assert isinstance(dense.x, torch.Tensor)
    encoder = GCN(50, 8)
    torch.testing.assert_close(encoder(sparse), encoder(dense))
    assert not isinstance(Graph.of(torch.ones(20, 50), edges, normalize=True).x, Sparse)


def test_isolated_nodes_have_finite_embeddings(small):
    graph = Graph.of(small.x, small.edge_index, normalize=True)
    assert bool(GCN(4, 3)(graph).isfinite().all())
    assert graph.propagation.to_dense()[4].tolist() == [0, 0, 0, 0, 1]
