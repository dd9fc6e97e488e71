"""Networks for node classification whose every layer also works without the graph: the fully connected twin.

One set of parameters serves both. A backbone is `hidden` (the first layer with its activation) and `head` (the rest),
each with `aggregate=True` (the GNN) or `False` (the twin, which sees each node by itself).
"""

import math
from functools import cached_property
from typing import Any, ClassVar, NamedTuple, Self, cast

import torch
import torch.nn.functional as F
from scipy.sparse import csr_array
from torch import Tensor, nn
from torch_geometric.nn import GATConv, GCNConv, GraphUNet, Linear, TopKPooling
from torch_geometric.utils import coalesce, dropout_edge, is_undirected

from gen_core.harness.errors import UsageError
from gen_graph.networks import Graph, Sparse, ranges, spmm, starts_of


class Hop:
    """One aggregation: A^ from the nodes before to those after it, and where the latter stand among the former."""

    def __init__(self, matrix: Sparse, own: Tensor) -> None:
        self.matrix, self.own = matrix, own

    @cached_property
    def edges(self) -> Tensor:
        """(2, e) source and target of each entry, self-loops included, sorted by target."""
        return torch.stack([self.matrix.cols.long(), self.matrix.rows])


class Scope:
    """A graph, or the part of it that the outputs at some nodes depend on.

    x: (n, f), features of the nodes in scope, rows of sum 1; hops: the aggregations from these to the outputs; rows:
    where the outputs that are asked for stand, None for all; edge_index: (2, e), the graph's own edges.
    """

    def __init__(
        self, x: Sparse | Tensor, hops: tuple[Hop, ...], edge_index: Tensor, rows: Tensor | None = None
    ) -> None:
        self.x, self.hops, self.edge_index, self.rows = x, hops, edge_index, rows

    @classmethod
    def of(cls, graph: Graph, hops: int = 1) -> Self:
        """The whole graph, for `hops` aggregations one after the other."""
        hop = Hop(graph.propagation, torch.arange(graph.nodes, device=graph.edge_index.device))
        return cls(graph.x, (hop,) * hops, graph.edge_index)

    @cached_property
    def adjacency(self) -> Sparse:
        """A, entry [target, source] the number of edges between them, without self-loops."""
        dtype = (self.x.values if isinstance(self.x, Sparse) else self.x).dtype
        edges = self.edge_index[:, self.edge_index[0] != self.edge_index[1]]
        ones = torch.ones(edges.shape[1], dtype=dtype, device=edges.device)
        edges, counts = coalesce(edges, ones, self.x.shape[0], sort_by_row=False)
        return Sparse(starts_of(edges[1], self.x.shape[0]), edges[0], counts, self.x.shape[0])

    @cached_property
    def undirected(self) -> bool:
        return is_undirected(self.edge_index, num_nodes=self.x.shape[0])

    def at(self, rows: Tensor, hops: int | None) -> "Scope":
        """What `rows` (different nodes of a whole graph) depend on through `hops` aggregations; None: on everything."""
        if hops is None:
            return Scope(self.x, self.hops, self.edge_index, rows)
        matrix = self.hops[0].matrix
        place = rows.new_zeros(matrix.width, dtype=torch.int32)
        found: list[Hop] = []
        for _ in range(hops):
            part = take(matrix, rows)
            seen = torch.zeros_like(place, dtype=torch.bool)
            seen[part.cols.long()] = True
            before = seen.nonzero()[:, 0]
            place[before] = torch.arange(len(before), dtype=torch.int32, device=rows.device)
            local = Sparse(part.starts, place[part.cols.long()], part.values, len(before))
            found.insert(0, Hop(local, place[rows].long()))
            rows = before
        x = take(self.x, rows) if isinstance(self.x, Sparse) else self.x[rows]
        return Scope(x, tuple(found), self.edge_index[:, :0])

    def with_edges(self, edge_index: Tensor) -> "Scope":
        return Scope(self.x, self.hops, edge_index, self.rows)

    def drop(self, p: float, training: bool) -> Sparse | Tensor:
        """The features, with dropout in training."""
        if not training or p == 0:
            return self.x
        return drop(self.x, p) if isinstance(self.x, Sparse) else F.dropout(self.x, p)

    def to(self, device: torch.device | str, **_: Any) -> "Scope":
        """The same on `device`; itself when it is there."""
        if self.edge_index.device == torch.device(device):
            return self
        moved = {id(hop): Hop(hop.matrix.to(device), hop.own.to(device)) for hop in self.hops}
        rows = None if self.rows is None else self.rows.to(device)
        return Scope(self.x.to(device), tuple(moved[id(hop)] for hop in self.hops), self.edge_index.to(device), rows)


def take(x: Sparse, rows: Tensor) -> Sparse:
    """The rows `rows`, in that order."""
    members, starts = ranges(x.starts.long(), rows)
    return Sparse(starts, x.cols[members], x.values[members], x.width)


def drop(x: Sparse, p: float) -> Sparse:
    """Dropout of the stored entries: as of the dense matrix, whose zeros stay zeros. p in steps of 2^-16."""
    kept = round((1 - p) * 65536)
    count, device = len(x.values), x.values.device
    # 16 random bits an entry; bernoulli_ takes ten times as long, which would be most of a pass.
    bits = torch.empty((count + 3) // 4, dtype=torch.int64, device=device).random_(-(2**63), None)
    mask = bits.view(torch.int16)[:count] < kept - 32768
    return x.with_values(x.values * (65536 / max(kept, 1)) * mask)


class Settings(NamedTuple):
    """Published hyper-parameters of a backbone."""

    hidden: int
    dropout: float
    learning_rate: float
    weight_decay: float


class Backbone(nn.Module):
    """Base of backbones. Your own: write `hidden` and `head`; the twin is whatever they do with `aggregate=False`.

    `graph.x` is then dense, (n, f), and `graph.edge_index` (2, e) holds the graph's edges as they stand. With
    `aggregate=False` there are no edges and x may hold any selection of nodes: each row must depend on itself alone.
    """

    hops: ClassVar[int | None] = None
    """Aggregations that an output depends on, where layer k reads `graph.hops[k]` alone; None: the whole graph."""
    sparse: ClassVar[bool] = False
    """Whether `graph.x` may be `Sparse`."""
    published: ClassVar[Settings] = Settings(16, 0.5, 0.01, 5e-4)

    def hidden(self, graph: Scope, aggregate: bool = True) -> Tensor:
        """(n, width), the first layer with its activation; Manifold Mixup mixes its rows."""
        raise NotImplementedError

    def head(self, h: Tensor, graph: Scope, aggregate: bool = True) -> Tensor:
        """(n, width) -> logits (n, classes)."""
        raise NotImplementedError

    def forward(self, graph: Scope, aggregate: bool = True) -> Tensor:
        """Logits, (n, classes), or of the nodes that are asked for."""
        found = self.head(self.hidden(graph, aggregate), graph, aggregate)
        return found if graph.rows is None else found[graph.rows]


class GCN2(Backbone):
    """A^ relu(A^ drop(X) W1) W2 of Kipf and Welling (2017) as GraphMix has it: no bias, uniform(+-1/sqrt(columns))."""

    hops, sparse = 2, True

    def __init__(self, features: int, hidden: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.first = nn.Parameter(_uniform(features, hidden))
        self.last = nn.Parameter(_uniform(hidden, classes))

    def hidden(self, graph: Scope, aggregate: bool = True) -> Tensor:
        z = spmm(graph.drop(self.dropout, self.training), self.first)
        return F.relu(spmm(graph.hops[0].matrix, z) if aggregate else z)

    def head(self, h: Tensor, graph: Scope, aggregate: bool = True) -> Tensor:
        z = h @ self.last
        return spmm(graph.hops[-1].matrix, z) if aggregate else z


def _uniform(rows: int, cols: int) -> Tensor:
    bound = 1 / math.sqrt(cols)
    return torch.empty(rows, cols).uniform_(-bound, bound)


class GAT(Backbone):
    """Graph attention of Velickovic et al. (2018): 8 heads, ELU, dropout of inputs and attention in both layers.

    Heads are concatenated in layer 1 and averaged in layer 2 (that paper has 8 there for PubMed, 1 for Cora and
    CiteSeer). The twin has no attention: W and bias alone. PyG's `GATConv` holds the parameters and attends; repeated
    edges count once.
    """

    hops, sparse = 2, True
    published = Settings(64, 0.6, 0.005, 5e-4)
    heads: ClassVar[int] = 8

    def __init__(self, features: int, hidden: int, classes: int, dropout: float) -> None:
        super().__init__()
        if hidden % self.heads:
            raise UsageError(f"hidden = {hidden}: must be a multiple of {self.heads}, the heads of GAT")
        self.dropout = dropout
        self.first = GATConv(features, hidden // self.heads, self.heads, dropout=dropout)
        self.last = GATConv(hidden, classes, self.heads, concat=False, dropout=dropout)

    def hidden(self, graph: Scope, aggregate: bool = True) -> Tensor:
        z = spmm(graph.drop(self.dropout, self.training), _linear(self.first).weight.T)
        return F.elu(attend(self.first, z, graph.hops[0] if aggregate else None))

    def head(self, h: Tensor, graph: Scope, aggregate: bool = True) -> Tensor:
        z = _linear(self.last)(F.dropout(h, self.dropout, self.training))
        return attend(self.last, z, graph.hops[-1] if aggregate else None)


def _linear(conv: GATConv) -> Linear:
    assert conv.lin is not None  # it is where sources and targets share their weights
    return conv.lin


def attend(conv: GATConv, z: Tensor, hop: Hop | None) -> Tensor:
    """What a `GATConv` makes of projected inputs z: (n, heads * width); without a hop, each node attends to itself."""
    z = z.view(-1, conv.heads, conv.out_channels)
    if hop is not None:
        size, target, edges = (len(z), len(hop.own)), z[hop.own], hop.edges
        scores = (z * conv.att_src).sum(-1), (target * conv.att_dst).sum(-1)
        # PyG's own attention and sum.
        alpha = conv.edge_updater(edges, alpha=scores, edge_attr=None, size=size)
        z = conv.propagate(edges, x=(z, target), alpha=alpha, size=size)
    return (z.flatten(1) if conv.concat else z.mean(1)) + conv.bias


class UNet(Backbone):
    """Graph U-Net of Gao and Ji (2019) as in PyG's example: depth 3, 2,000 nodes after the first pooling, then halves.

    Features and edges (0.2) are dropped in training. The twin applies the weights and skips without A and pooling.
    PyG's `GraphUNet` holds the parameters and selects; squares of A are made for the selected nodes alone.
    """

    sparse = True
    published = Settings(32, 0.92, 0.01, 1e-3)
    depth: ClassVar[int] = 3

    def __init__(self, features: int, hidden: int, classes: int, dropout: float, nodes: int) -> None:
        super().__init__()
        self.dropout = dropout
        # From 1 on PyG takes a ratio as a number of nodes; .9999 of up to 2,000 nodes is all of them.
        self.net = GraphUNet(features, hidden, classes, self.depth, [min(2000 / nodes, 0.9999), 0.5])

    def forward(self, graph: Scope, aggregate: bool = True) -> Tensor:
        if aggregate and self.training:  # one draw for the whole pass
            kept, _ = dropout_edge(graph.edge_index, p=0.2, force_undirected=graph.undirected)
            graph = graph.with_edges(kept)
        return super().forward(graph, aggregate)

    def hidden(self, graph: Scope, aggregate: bool = True) -> Tensor:
        conv = cast(GCNConv, self.net.down_convs[0])
        z = spmm(graph.drop(self.dropout, self.training), conv.lin.weight.T)
        return F.relu((spmm(improved(graph.adjacency), z) if aggregate else z) + conv.bias)

    def head(self, h: Tensor, graph: Scope, aggregate: bool = True) -> Tensor:
        a = graph.adjacency
        mixes = [improved(a) if aggregate else None]  # A^ of each level
        x, skips, places = h, list[Tensor](), list[Tensor]()
        for pool, conv in zip(cast("list[TopKPooling]", self.net.pools), list(self.net.down_convs)[1:], strict=True):
            skips.append(x)
            if aggregate:
                chosen = pool.select(x, torch.zeros(len(x), dtype=torch.int64, device=x.device))
                assert chosen.weight is not None
                a = squared(a, chosen.node_index)
                x = x[chosen.node_index] * chosen.weight[:, None]
                places.append(chosen.node_index)
                mixes.append(improved(a))
            x = F.relu(_convolve(conv, x, mixes[-1]))
        for conv in self.net.up_convs:
            if aggregate:
                x = torch.zeros_like(skips[-1]).index_add(0, places.pop(), x.to(skips[-1].dtype))
                mixes.pop()
            x = _convolve(conv, skips.pop() + x, mixes[-1])
            x = F.relu(x) if skips else x
        return x


def _convolve(conv: nn.Module, x: Tensor, mix: Sparse | None) -> Tensor:
    conv = cast(GCNConv, conv)
    z = conv.lin(x)
    return (z if mix is None else spmm(mix, z)) + conv.bias


def improved(a: Sparse) -> Sparse:
    """A^ with self-loops of weight 2 (PyG's `improved`) of a weighted graph without any; degrees by target."""
    degree = a.values.new_full((a.width,), 2.0).index_add_(0, a.rows, a.values)
    scale = degree.rsqrt()
    values = a.values * scale[a.rows] * scale[a.cols.long()]
    return _looped(Sparse(a.starts, a.cols, values, a.width), torch.arange(a.width, device=degree.device), 2 / degree)


def squared(a: Sparse, kept: Tensor) -> Sparse:
    """(A + I)^2 between the nodes `kept`, numbered in that order, without its diagonal."""
    everyone = torch.arange(a.width, device=kept.device)
    ones = a.values.new_ones(a.width)
    left, right = _looped(take(a, kept), kept, ones[kept]), _looped(a, everyone, ones)
    place = torch.full((a.width,), -1, dtype=torch.int32, device=kept.device)
    place[kept] = torch.arange(len(kept), dtype=torch.int32, device=kept.device)
    cols = place[right.cols.long()]
    right = _only(Sparse(right.starts, cols, right.values, len(kept)), cols >= 0)
    # scipy's product: torch's keeps part of its result for ever, gigabytes in a training of thousands of steps.
    square: Any = _scipy(left) @ _scipy(right)
    starts, cols, values = (
        torch.from_numpy(part).to(kept.device) for part in (square.indptr, square.indices, square.data)
    )
    square = Sparse(starts, cols, values, len(kept))
    return _only(square, square.rows != square.cols)


def _scipy(a: Sparse) -> Any:
    return csr_array((a.values.cpu().numpy(), a.cols.cpu().numpy(), a.starts.cpu().numpy()), a.shape)


def _looped(a: Sparse, cols: Tensor, values: Tensor) -> Sparse:
    # one more entry in each row, at its end
    shift = torch.arange(len(a.starts), device=cols.device)
    spread, ends = torch.arange(len(a.cols), device=cols.device) + a.rows, a.starts[1:] + shift[:-1]

    def merged(old: Tensor, new: Tensor) -> Tensor:
        both = old.new_empty(len(old) + len(new))
        both[spread], both[ends] = old, new
        return both

    return Sparse(a.starts + shift, merged(a.cols, cols.int()), merged(a.values, values), a.width)


def _only(a: Sparse, mask: Tensor) -> Sparse:
    # the entries where the mask is true
    before = torch.cat([mask.new_zeros(1, dtype=torch.int32), mask.cumsum(0, dtype=torch.int32)])
    return Sparse(before[a.starts.long()], a.cols[mask], a.values[mask], a.width)
