"""Backbones against PyG's layers, plain algebra and each other: GNN and twin have one set of weights."""

import resource
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch_geometric.nn import GATConv, GCNConv, GraphUNet
from torch_geometric.utils import remove_self_loops

import gen_graph.backbones
from gen_core.harness.errors import UsageError
from gen_graph.backbones import GAT, GCN2, Scope, UNet, drop, squared, take
from gen_graph.networks import Graph, Sparse, gcn_matrix, normalize_rows, spmm

NODES, FEATURES, CLASSES = 30, 40, 3
KINDS = ["undirected", "directed", "no edge"]


def edges_of(kind):
    generator = torch.Generator().manual_seed(4)
    found = (torch.rand(NODES, NODES, generator=generator) < 0.08).triu(1)
    found[-3:] = found[:, -3:] = False  # three isolated nodes
    edges = found.nonzero().T
    if kind == "directed":  # and against the order of the numbers, with a self-loop
        return torch.cat([edges.flip(0), torch.tensor([[2], [2]])], 1)
    return torch.cat([edges, edges.flip(0)], 1) if kind == "undirected" else edges[:, :0]


def features():
    generator = torch.Generator().manual_seed(5)
    x = torch.rand(NODES, FEATURES, generator=generator, dtype=torch.float64)
    x = x * (torch.rand(NODES, FEATURES, generator=generator) < 0.06)
    x[7] = 0
    return x


def scope_of(kind, dense=False):
    return Scope.of(Graph.of(features(), edges_of(kind), normalize=True, dense=dense), 2)


def network(name, dropout=0.0):
    torch.manual_seed(6)
    if name == "gcn":
        net = GCN2(FEATURES, 5, CLASSES, dropout)
    elif name == "gat":
        net = GAT(FEATURES, 16, CLASSES, dropout)
    else:
        net = UNet(FEATURES, 6, CLASSES, dropout, NODES)
    for parameter in net.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, std=0.3)  # biases start at 0 and would hide a lost one
    return net.double()


# --- products


def test_rows_of_a_sparse_matrix():
    x = features()
    sparse = Sparse.of(x)
    weight = torch.randn(FEATURES, 4, dtype=torch.float64, requires_grad=True)
    rows = torch.tensor([9, 7, 0, 9])  # 7 has no entry
    assert torch.equal(take(sparse, rows).to_dense(), x[rows])
    assert torch.autograd.gradcheck(lambda w: spmm(take(sparse, rows), w), weight)
    assert take(sparse, rows[:0]).shape == (0, FEATURES)


@pytest.mark.parametrize("p", [0.5, 0.6, 0.92])
def test_dropped_entries_follow_the_law_of_dropout(p):
    """Mean 1 and variance p / (1 - p) of the factor on each stored entry; neighbours independent; zeros stay zeros."""
    torch.manual_seed(0)
    x = features()
    sparse = Sparse.of(x)
    draws = torch.stack([drop(sparse, p).values / sparse.values for _ in range(4000)])
    kept = draws != 0
    assert torch.allclose(draws[kept], torch.tensor(1 / (1 - p), dtype=torch.float64), rtol=2e-4)
    count = draws.numel()
    spread = (p / (1 - p)) ** 0.5
    assert abs(draws.mean() - 1) < 4 * spread / count**0.5
    assert abs(draws.var() / spread**2 - 1) < 0.03
    each = 5 * spread / 4000**0.5
    assert (draws.mean(0) - 1).abs().max() < each
    deviations = draws - 1
    for apart in (1, 2, 3, 4):  # four entries share a draw of 64 bits
        assert abs((deviations[:, apart:] * deviations[:, :-apart]).mean()) < 4 * spread**2 / count**0.5
    assert abs((deviations[1:] * deviations[:-1]).mean()) < 4 * spread**2 / count**0.5
    assert bool((drop(sparse, p).to_dense()[x == 0] == 0).all())


def test_the_gradient_sees_the_same_mask():
    sparse = Sparse.of(features())
    dropped = drop(sparse, 0.5)
    weight = torch.randn(FEATURES, 4, dtype=torch.float64, requires_grad=True)
    out = torch.randn(NODES, 4, dtype=torch.float64)
    (found,) = torch.autograd.grad((spmm(dropped, weight) * out).sum(), weight)
    torch.testing.assert_close(found, dropped.to_dense().T @ out)
    assert dropped.turned is sparse.turned  # the sorting was done once


def test_features_of_either_kind_give_the_same():
    net = network("gcn")
    assert isinstance(scope_of("undirected").x, Sparse)
    assert not isinstance(scope_of("undirected", dense=True).x, Sparse)
    torch.testing.assert_close(net(scope_of("undirected")), net(scope_of("undirected", dense=True)))
    net = network("gcn", 0.5)
    dropped = scope_of("undirected", dense=True).drop(0.5, True)
    assert not torch.equal(dropped, scope_of("undirected", dense=True).x)
    assert scope_of("undirected").drop(0.5, False).values.equal(scope_of("undirected").x.values)
    assert torch.equal(dropped[dropped != 0], 2 * scope_of("undirected", dense=True).x[dropped != 0])


# --- against PyG


@pytest.mark.parametrize("kind", KINDS)
def test_gcn_is_two_gcnconvs(kind):
    net, graph = network("gcn"), scope_of(kind)
    first, last = (GCNConv(*weight.shape, bias=False).double() for weight in (net.first, net.last))
    first.lin.weight = nn.Parameter(net.first.detach().T.clone())
    last.lin.weight = nn.Parameter(net.last.detach().T.clone())
    h = F.relu(first(normalize_rows(features()), edges_of(kind)))
    expected = last(h, edges_of(kind))
    found = net(graph)
    torch.testing.assert_close(net.hidden(graph), h, rtol=0, atol=1e-12)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    out = torch.randn_like(found)
    ours = torch.autograd.grad((found * out).sum(), list(net.parameters()))
    theirs = torch.autograd.grad((expected * out).sum(), [first.lin.weight, last.lin.weight])
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b.T, rtol=0, atol=1e-12)
        assert b.abs().max() > 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_gat_is_two_gatconvs(kind):
    net, graph = network("gat"), scope_of(kind)
    first, last = GATConv(FEATURES, 2, 8).double(), GATConv(16, CLASSES, 8, concat=False).double()
    first.load_state_dict(net.first.state_dict())
    last.load_state_dict(net.last.state_dict())
    h = F.elu(first(normalize_rows(features()), edges_of(kind)))
    expected = last(h, edges_of(kind))
    found = net(graph)
    torch.testing.assert_close(net.hidden(graph), h, rtol=0, atol=1e-12)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    out = torch.randn_like(found)
    ours = torch.autograd.grad((found * out).sum(), list(net.parameters()))
    theirs = torch.autograd.grad((expected * out).sum(), [*first.parameters(), *last.parameters()])
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_unet_is_pygs(kind):
    net, graph = network("unet").eval(), scope_of(kind)
    reference = GraphUNet(FEATURES, 6, CLASSES, 3, [0.9999, 0.5]).double()
    reference.load_state_dict(net.net.state_dict())
    expected = reference(normalize_rows(features()), remove_self_loops(edges_of(kind))[0])
    found = net(graph)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    out = torch.randn_like(found)
    ours = torch.autograd.grad((found * out).sum(), list(net.parameters()))
    theirs = torch.autograd.grad((expected * out).sum(), list(reference.parameters()))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_unet_pools_to_2000_nodes_then_halves():
    ratios = [pool.ratio for pool in UNet(FEATURES, 6, CLASSES, 0.0, 8000).net.pools]
    assert ratios == [0.25, 0.5, 0.5]
    sizes, net = [], network("unet").eval()
    for pool in net.net.pools:
        pool.select.register_forward_hook(lambda _, x, made: sizes.append((len(x[0]), len(made.node_index))))
    net(scope_of("undirected"))
    assert sizes == [(30, 30), (30, 15), (15, 8)]


@pytest.mark.parametrize("kind", ["undirected", "directed"])
def test_unet_drops_edges_once_a_pass(kind, monkeypatch):
    net, graph, seen = network("unet").train(), scope_of(kind), []
    real = gen_graph.backbones.dropout_edge

    def spy(*args, **kwargs):
        seen.append(real(*args, **kwargs)[0])
        return seen[-1], None

    monkeypatch.setattr(gen_graph.backbones, "dropout_edge", spy)
    for _ in range(200):
        net.hidden = lambda scope, aggregate: scope.edge_index
        net.head = lambda h, scope, aggregate: (h, scope.edge_index)
        graph.rows = None
        first, last = net(graph)
        assert first is last is seen[-1]
    assert len(seen) == 200
    whole = {tuple(edge) for edge in graph.edge_index.T.tolist()}
    for kept in seen[:20]:
        pairs = {tuple(edge) for edge in kept.T.tolist()}
        assert pairs <= whole
        assert kind == "directed" or {(b, a) for a, b in pairs} == pairs
    share = sum(kept.shape[1] for kept in seen) / (200 * graph.edge_index.shape[1])
    assert abs(share - 0.8) < 0.02
    net.eval()
    net(graph)
    assert len(seen) == 200


# --- the twin


def twin_by_hand(name, net, x):
    """The twin in plain algebra."""
    if name == "gcn":
        return F.relu(x @ net.first) @ net.last
    if name == "gat":
        h = F.elu(x @ net.first.lin.weight.T + net.first.bias)
        heads = (h @ net.last.lin.weight.T).view(len(x), 8, CLASSES)
        return sum(heads[:, k] for k in range(8)) / 8 + net.last.bias
    weights = [*net.net.down_convs, *net.net.up_convs]
    w, b = [conv.lin.weight.T for conv in weights], [conv.bias for conv in weights]
    down0 = F.relu(x @ w[0] + b[0])
    down1 = F.relu(down0 @ w[1] + b[1])
    down2 = F.relu(down1 @ w[2] + b[2])
    down3 = F.relu(down2 @ w[3] + b[3])
    up0 = F.relu((down2 + down3) @ w[4] + b[4])
    up1 = F.relu((down1 + up0) @ w[5] + b[5])
    return (down0 + up1) @ w[6] + b[6]


@pytest.mark.parametrize("name", ["gcn", "gat", "unet"])
def test_the_twin_sees_each_node_alone(name):
    net, graph = network(name), scope_of("undirected")
    expected = twin_by_hand(name, net, normalize_rows(features()))
    torch.testing.assert_close(net(graph, aggregate=False), expected, rtol=0, atol=1e-12)
    rows = torch.tensor([9, 7, 29, 0])
    torch.testing.assert_close(net(graph.at(rows, 0), aggregate=False), expected[rows], rtol=0, atol=1e-12)
    assert (net(graph) - expected).abs().max() > 1e-3  # the graph matters


class Keep(nn.Module):
    """A pooling that keeps every node as it is."""

    def select(self, x, batch):
        return SimpleNamespace(node_index=torch.arange(len(x)), weight=torch.ones(len(x), dtype=x.dtype))


@pytest.mark.parametrize("name", ["gcn", "gat", "unet"])
def test_without_edges_twin_and_gnn_are_one(name):
    """A^ is then the identity (for the U-Net also without its pooling, which the twin leaves out)."""
    net, graph = network(name), scope_of("no edge")
    assert torch.equal(gcn_matrix(edges_of("no edge"), 4).to_dense(), torch.eye(4))
    if name == "unet":
        net.eval()
        net.net.pools = nn.ModuleList(Keep() for _ in range(3))
    difference = net(graph) - net(graph, aggregate=False)
    assert difference.abs().max() < 1e-12
    assert net(graph).abs().max() > 1e-3


COUNTS = {
    "gcn": FEATURES * 5 + 5 * CLASSES,
    "gat": FEATURES * 16 + 3 * 16 + 16 * 8 * CLASSES + 2 * 8 * CLASSES + CLASSES,
    "unet": FEATURES * 6 + 6 + 3 * (6 * 6 + 6) + 3 * 6 + 2 * (6 * 6 + 6) + 6 * CLASSES + CLASSES,
}


@pytest.mark.parametrize("name", ["gcn", "gat", "unet"])
def test_one_set_of_weights(name):
    net, graph = network(name).eval(), scope_of("undirected")
    state = net.state_dict()
    assert sum(value.numel() for value in state.values()) == COUNTS[name]
    assert len({value.data_ptr() for value in state.values()}) == len(state)
    used = {}
    for aggregate in (True, False):
        out = net(graph, aggregate)
        grads = torch.autograd.grad(out.square().sum(), list(net.parameters()), allow_unused=True)
        pairs = zip(net.parameters(), grads, strict=True)
        used[aggregate] = {p.data_ptr() for p, g in pairs if g is not None and bool((g != 0).any())}
    assert used[False] <= used[True]
    only_graph = [key for key, value in state.items() if value.data_ptr() in used[True] - used[False]]
    expected = {"gcn": "", "gat": "att", "unet": "pools"}[name]
    assert all(expected in key for key in only_graph)
    assert bool(only_graph) == (name != "gcn")  # attention and pooling scores; all that is linear is shared


def test_gcn_starts_uniform_by_columns():
    torch.manual_seed(0)
    net = GCN2(400, 16, 7, 0.5)
    for weight, columns in ((net.first, 16), (net.last, 7)):
        bound = columns**-0.5
        assert 0.95 * bound < weight.abs().max().item() <= bound
        assert abs(weight.var().item() / (bound**2 / 3) - 1) < 0.3
    assert len(list(net.parameters())) == 2  # no bias


def test_gat_heads_divide_the_width():
    with pytest.raises(UsageError, match="hidden = 12: must be a multiple of 8"):
        GAT(4, 12, 3, 0.5)


def test_gat_drops_features_hidden_and_attention():
    net, graph = network("gat", 0.6).train(), scope_of("undirected")
    torch.manual_seed(0)
    h = net.hidden(graph)
    assert not torch.equal(h, net.hidden(graph))
    net.dropout = 0.0  # that of features and hidden rows; attention keeps its own
    assert not torch.equal(net.hidden(graph), net.hidden(graph))
    assert torch.equal(net.hidden(graph, aggregate=False), net.hidden(graph, aggregate=False))
    net.dropout = 0.6
    assert not torch.equal(net.head(h, graph, aggregate=False), net.head(h, graph, aggregate=False))
    net.eval()
    assert torch.equal(net(graph), net(graph))


# --- parts of a graph


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["gcn", "gat", "unet"])
def test_a_part_gives_the_outputs_of_the_whole(name, kind):
    net, graph = network(name).eval(), scope_of(kind)
    rows = torch.tensor([3, 0, 29, 7, 11])
    part = graph.at(rows, net.hops)
    assert net(part).shape == (5, CLASSES)
    torch.testing.assert_close(net(part), net(graph)[rows], rtol=0, atol=1e-12)
    weights = list(net.parameters())
    out = torch.randn(5, CLASSES, dtype=torch.float64)
    found, expected = (torch.autograd.grad((z * out).sum(), weights) for z in (net(part), net(graph)[rows]))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    assert max(b.abs().max() for b in expected) > 1e-3


def test_a_part_is_no_greater_than_it_must_be():
    edges = torch.tensor([[0, 1, 2, 3], [1, 2, 3, 4]])  # a directed path: node 4 depends on 3 and 2
    scope = Scope.of(Graph.of(torch.eye(6), edges, normalize=True)).at(torch.tensor([4]), 2)
    assert scope.x.shape == (3, 6)
    assert [hop.matrix.shape for hop in scope.hops] == [(2, 3), (1, 2)]
    assert [hop.own.tolist() for hop in scope.hops] == [[1, 2], [1]]


def test_the_same_device_is_the_same_object():
    graph = scope_of("undirected")
    assert graph.to("cpu") is graph
    moved = graph.to("meta")
    assert moved.x.values.device.type == moved.hops[1].matrix.cols.device.type == "meta"
    assert moved.hops[0] is moved.hops[1]
    assert len(moved.hops) == 2


def test_squares_of_a_keep_no_memory():
    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20

    if not Path("/proc/self/statm").exists():
        pytest.skip("the memory of a process is read as Linux tells it")
    edges = torch.randint(3000, (2, 12_000), generator=torch.Generator().manual_seed(0))
    graph = Graph.of(torch.eye(3000), torch.cat([edges, edges.flip(0)], 1), normalize=False)
    a, kept = Scope.of(graph).adjacency, torch.arange(2000)
    for _ in range(20):
        squared(a, kept)
    before = resident()
    for _ in range(150):
        squared(a, kept)
    assert resident() - before < 30  # torch's own product: above 100
