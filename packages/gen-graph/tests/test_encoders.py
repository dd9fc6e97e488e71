"""GIN and FF against PyG's layers and plain forms with the same weights."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch_geometric.data import Batch, Data
from torch_geometric.nn import GINConv, global_add_pool

from gen_graph.encoders import FF, GIN
from gen_graph.graphset import GraphSet


@pytest.fixture
def ragged():
    """Four graphs: 5 nodes with one-way edges, 1 node, 3 nodes without edges, 4 nodes with a self-loop."""
    generator = torch.Generator().manual_seed(0)
    edges = ([[0, 1, 2, 3, 4], [1, 2, 0, 0, 0]], [[], []], [[], []], [[0, 1, 2, 3, 3], [1, 0, 3, 2, 3]])
    sizes = (5, 1, 3, 4)
    return [
        Data(x=torch.randn(n, 3, generator=generator), edge_index=torch.tensor(e, dtype=torch.long).view(2, -1))
        for n, e in zip(sizes, edges, strict=True)
    ]


class Peer(nn.Module):
    """InfoGraph's encoder from PyG's parts, around the weights of ours."""

    def __init__(self, gin):
        super().__init__()
        self.convs = nn.ModuleList(GINConv(layer, eps=0.0, train_eps=False) for layer in gin.layers)
        self.norms = gin.norms

    def forward(self, x, edge_index, batch):
        found = []
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = norm(F.relu(conv(x, edge_index)))
            found.append(x)
        return torch.cat([global_add_pool(h, batch) for h in found], 1), torch.cat(found, 1)


@pytest.mark.parametrize("training", [True, False])
def test_gin_is_pygs(ragged, training):
    torch.manual_seed(0)
    gin = GIN(3, 4, 3).double()
    peer = Peer(gin)  # first, because GINConv draws the weights it is given anew
    for norm in gin.norms:  # not the identity in evaluation mode
        nn.init.uniform_(norm.weight, 0.5, 2.0)
        nn.init.normal_(norm.bias)
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2.0)
    graphs, batch = GraphSet.of(ragged), Batch.from_data_list(ragged)
    graphs.x = graphs.x.double()
    gin.train(training)
    ours = gin(graphs)
    grads = torch.autograd.grad((ours[0] ** 2).sum() + ours[1].sin().sum(), list(gin.parameters()))
    theirs = peer(batch.x.double(), batch.edge_index, batch.batch)
    expected = torch.autograd.grad((theirs[0] ** 2).sum() + theirs[1].sin().sum(), list(gin.parameters()))
    assert ours[0].shape == (4, 12)
    assert ours[1].shape == (13, 12)
    for a, b in zip((*ours, *grads), (*theirs, *expected), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)
    assert max(g.abs().max() for g in grads) > 1


def test_gin_starts_xavier_with_zero_biases():
    torch.manual_seed(0)
    gin = GIN(40, 30, 3)
    assert gin.width == 90
    for k, layer in enumerate(gin.layers):
        for linear, fan in ((layer[0], (40 if k == 0 else 30) + 30), (layer[2], 60)):
            bound = (6 / fan) ** 0.5
            assert 0.97 * bound < linear.weight.abs().max() <= bound
            assert not linear.bias.any()


def test_ff_is_three_layers_and_a_shortcut():
    torch.manual_seed(0)
    net = FF(6, 4).double()
    for parameter in net.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(7, 6).double()
    names = dict(net.named_parameters())
    h = x
    for k in (0, 2, 4):
        h = (h @ names[f"block.{k}.weight"].T + names[f"block.{k}.bias"]).clamp(min=0)
    expected = h + x @ names["shortcut.weight"].T + names["shortcut.bias"]
    torch.testing.assert_close(net(x), expected, rtol=0, atol=1e-12)
    assert len(names) == 8


def test_ff_starts_xavier_with_zero_biases():
    torch.manual_seed(0)
    net = FF(50, 20)
    for linear, fan in ((net.block[0], 70), (net.block[2], 40), (net.block[4], 40), (net.shortcut, 70)):
        assert 0.97 * (6 / fan) ** 0.5 < linear.weight.abs().max() <= (6 / fan) ** 0.5
        assert not linear.bias.any()
