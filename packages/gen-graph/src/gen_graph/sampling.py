"""Uniform neighbour sampling in plain torch: patches around nodes of a graph that is too large for one pass."""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.data import Data

from gen_core.harness.errors import UsageError
from gen_core.harness.fitting import Shuffle
from gen_graph.networks import Sparse, spmm


class Neighbours:
    """A graph as lists of neighbours (CSR): node v is entered from cols[starts[v]]..cols[starts[v + 1] - 1].

    Self-loops and duplicates are removed.

    Args:
        edge_index: (2, e) int64, rows source and target.
        nodes: n.
    """

    def __init__(self, edge_index: Tensor, nodes: int) -> None:
        source, target = edge_index
        place = torch.unique((target * nodes + source)[source != target])
        self.cols = place % nodes
        self.degree = torch.bincount(place // nodes, minlength=nodes)
        self.starts = torch.cat([self.degree.new_zeros(1), self.degree.cumsum(0)])

    def to(self, device: torch.device | str) -> "Neighbours":
        """Itself, moved."""
        self.cols, self.degree, self.starts = (t.to(device) for t in (self.cols, self.degree, self.starts))
        return self

    def draw(self, nodes: Tensor, count: int) -> Tensor:
        """`count` neighbours of each node, uniformly with replacement, (m,) -> (m, count); itself if it has none."""
        degree = self.degree[nodes, None]
        place = (torch.rand(len(nodes), count, device=nodes.device, dtype=torch.float64) * degree).long()
        if not len(self.cols):
            return nodes[:, None].expand(-1, count)
        found = self.cols[(self.starts[nodes, None] + place).clamp(max=len(self.cols) - 1)]
        return torch.where(degree > 0, found, nodes[:, None])

    def patches(self, centres: Tensor, fanouts: tuple[int, ...]) -> "Patches":
        """A tree around each centre: fanouts[0] neighbours, fanouts[1] neighbours of each of these, and so on."""
        levels = [centres]
        for count in fanouts:
            levels.append(self.draw(levels[-1], count).flatten())
        return Patches(levels, [self.degree[level] for level in levels[:-1]], fanouts)

    def whole(self, x: Tensor) -> "Whole":
        """The whole graph with all neighbours, for encoding without sampling. x: (n, f)."""
        return Whole(x, self)


class Patches:
    """Sampled trees, level by level: level l holds the (b * fanouts[0] * ... * fanouts[l - 1],) nodes at distance l.

    It gives an encoder, layer by layer, the pairs (own row, mean over the closed neighbourhood) of the nodes that the
    centres still depend on. The mean is (own + degree * mean of the sample) / (degree + 1): without bias whatever the
    fan-out is.
    """

    def __init__(self, levels: list[Tensor], degrees: list[Tensor], fanouts: tuple[int, ...]) -> None:
        self.levels, self.degrees, self.fanouts = levels, degrees, fanouts

    def shuffled(self) -> "Patches":
        """The same trees whose nodes have swapped features, within each patch: its rows in random order."""
        b = len(self.levels[0])
        rows = torch.cat([level.view(b, -1) for level in self.levels], 1)
        order = torch.rand(rows.shape, device=rows.device).argsort(1)
        parts = rows.gather(1, order).split([len(level) // b for level in self.levels], 1)
        return Patches([part.flatten() for part in parts], self.degrees, self.fanouts)

    def pair(self, x: Tensor, h: Tensor | None) -> tuple[Tensor, Tensor]:
        """Own rows and means of all levels but the last of `h`, (m, f) each; h None: of the features x."""
        if h is None:  # the widest level is averaged without being gathered
            depth = len(self.fanouts)
            own = x[torch.cat(self.levels[:depth])]
            means = [
                F.embedding_bag(self.levels[k + 1].view(-1, self.fanouts[k]), x, mode="mean") for k in range(depth)
            ]
        else:
            sizes = [len(level) for level in self.levels]
            ends = torch.tensor(sizes).cumsum(0).tolist()
            depth = ends.index(len(h))
            own = h[: ends[depth - 1]]
            parts = h[sizes[0] :].split(sizes[1 : depth + 1])
            means = [part.view(-1, k, h.shape[1]).mean(1) for part, k in zip(parts, self.fanouts, strict=False)]
        degree = torch.cat(self.degrees[:depth])[:, None].to(own.dtype)
        return own, (own + degree * torch.cat(means)) / (degree + 1)


def pyg_loader(graph: Neighbours, fanouts: tuple[int, ...], batch_size: int, seed: int) -> Any:
    """PyG's `NeighborLoader` over all nodes in the order that `seed` says; its batches are what `Loaded` takes."""
    from torch_geometric import typing
    from torch_geometric.loader import NeighborLoader

    if not typing.WITH_PYG_LIB:
        raise UsageError("sampler 'pyg': pyg-lib is not installed; allowed here: uniform")
    n = len(graph.degree)
    targets = torch.arange(n, device=graph.cols.device).repeat_interleave(graph.degree)
    data = Data(edge_index=torch.stack([graph.cols, targets]).cpu(), num_nodes=n)
    options: dict[str, Any] = {"replace": True, "disjoint": True, "sampler": Shuffle(n, seed)}
    return NeighborLoader(data, list(fanouts), batch_size=batch_size, **options)


class Loaded:
    """A batch of PyG's `NeighborLoader(..., disjoint=True)` in the place of `Patches`, whatever its fan-outs found.

    Args:
        batch: with n_id, batch (the patch of each node), edge_index, num_sampled_nodes (hop by hop).
        degree: (n,) of the whole graph's nodes.
    """

    def __init__(self, batch: Data, degree: Tensor) -> None:
        self.nodes, self.patch = _held(batch, "n_id"), _held(batch, "batch")
        self.children, self.parents = _held(batch, "edge_index")
        self.ends = torch.tensor(batch.num_sampled_nodes).cumsum(0).tolist()
        self.degree = degree[self.nodes]
        self.hop = 0  # of the outermost rows that `pair` is given next; a hop may be empty, so that lengths do not tell

    def shuffled(self) -> "Loaded":
        """The same trees whose nodes have swapped features, within each patch."""
        other = copy.copy(self)
        place = self.patch.argsort(stable=True)
        random = torch.rand(len(place), device=place.device, dtype=torch.float64)
        other.nodes = torch.empty_like(self.nodes)
        other.nodes[place] = self.nodes[(self.patch + random).argsort()]
        return other

    def pair(self, x: Tensor, h: Tensor | None) -> tuple[Tensor, Tensor]:
        """Own rows and means of all hops but the last of `h`, (m, f) each; h None: of the features x."""
        if h is None:
            h, self.hop = x[self.nodes], len(self.ends) - 1
        self.hop -= 1
        rows = self.ends[self.hop]
        kept = self.parents < rows
        parents, own = self.parents[kept], h[:rows]
        total = torch.zeros_like(own).index_add(0, parents, h[self.children[kept]])
        count = torch.bincount(parents, minlength=rows)[:, None].clamp(min=1)
        degree = self.degree[:rows, None].to(own.dtype)
        return own, (own + degree * total / count) / (degree + 1)


def _held(batch: Data, name: str) -> Tensor:
    value = batch.get(name, None)
    if not isinstance(value, Tensor):
        raise UsageError(f"a sampled batch needs {name}: NeighborLoader(..., disjoint=True)")
    return value


class Whole:
    """The whole graph in the place of `Patches`: every layer sees all nodes and all their neighbours."""

    def __init__(self, x: Tensor, graph: Neighbours) -> None:
        self.adjacency = Sparse(graph.starts, graph.cols, torch.ones(len(graph.cols)).to(x), len(graph.degree))
        self.degree = graph.degree[:, None].to(x.dtype)

    def pair(self, x: Tensor, h: Tensor | None) -> tuple[Tensor, Tensor]:
        """Own rows and means of all nodes, (n, f) each."""
        h = x if h is None else h
        return h, (h + spmm(self.adjacency, h)) / (self.degree + 1)
