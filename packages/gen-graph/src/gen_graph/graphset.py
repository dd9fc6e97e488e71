"""Several graphs held as one: what graph-level methods train on. A batch of graphs is one too."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch_geometric.data import Data

from gen_core.harness.errors import UsageError
from gen_core.harness.fitting import Rows, Shuffle
from gen_graph.networks import Sparse, ranges


class GraphSet:
    """Graphs 0..g - 1 as one disconnected graph whose nodes stand graph by graph.

    No dataclass, since Lightning would take one apart and convert its tensors anew at every step.

    Args:
        x: (n, f) floating, features of all nodes.
        edge_index: (2, e) int64, rows source and target, numbered over all nodes; sorted by target.
        ptr: (g + 1,) int64, graph k has the nodes ptr[k]..ptr[k + 1] - 1; every graph has at least one.
        y: (g,) classes as int64, -1 for a graph without one; or (g,) float targets; or None.
        edge_attr: (e, d) floating, in the order of the edges; or None.
        ids: the graphs' names; None: their numbers.
    """

    def __init__(
        self,
        x: Tensor,
        edge_index: Tensor,
        ptr: Tensor,
        y: Tensor | None = None,
        edge_attr: Tensor | None = None,
        ids: Sequence[str] | None = None,
    ) -> None:
        self.x, self.edge_index, self.ptr, self.y, self.edge_attr = x, edge_index, ptr, y, edge_attr
        self.ids = None if ids is None else tuple(ids)

    @classmethod
    def of(cls, graphs: "GraphSet | Sequence[Data]") -> "GraphSet":
        """A list of PyG graphs as a set; a set as it is. Edges are taken as they stand, in whatever direction."""
        if isinstance(graphs, GraphSet):
            return graphs
        if not len(graphs):
            raise UsageError("a list of graphs needs at least one")
        sizes: list[int] = []
        parts: dict[str, list[Tensor]] = {"x": [], "edge_index": [], "y": [], "edge_attr": []}
        for number, graph in enumerate(graphs):
            x, edge_index = graph.x, graph.edge_index
            if not isinstance(x, Tensor) or x.ndim != 2 or 0 in x.shape:
                raise UsageError(f"graph {number}: x must be features of shape (n, f), n and f at least 1")
            if not isinstance(edge_index, Tensor) or edge_index.ndim != 2 or edge_index.shape[0] != 2:
                raise UsageError(f"graph {number}: edge_index must have shape (2, e)")
            if edge_index.numel() and not 0 <= int(edge_index.min()) <= int(edge_index.max()) < len(x):
                raise UsageError(f"graph {number}: edge_index must lie in 0..{len(x) - 1}, the rows of its x")
            if x.shape[1] != parts["x"][0].shape[1] if parts["x"] else False:
                raise UsageError(f"graph {number}: {x.shape[1]} features; graph 0 has {parts['x'][0].shape[1]}")
            order = edge_index[1].argsort(stable=True)
            parts["x"].append(x.float())
            parts["edge_index"].append(edge_index[:, order].long() + sum(sizes))
            if isinstance(graph.edge_attr, Tensor):
                parts["edge_attr"].append(graph.edge_attr[order].float())
            if isinstance(graph.y, Tensor):
                parts["y"].append(graph.y.reshape(-1)[:1])
            sizes.append(len(x))
        for name in ("y", "edge_attr"):
            if len(parts[name]) not in (0, len(graphs)):
                raise UsageError(f"{len(parts[name])} of {len(graphs)} graphs have {name}; give it to all or to none")
        y, edge_attr = (torch.cat(parts[name]) if parts[name] else None for name in ("y", "edge_attr"))
        ptr = torch.tensor([0, *sizes]).cumsum(0)
        return cls(torch.cat(parts["x"]), torch.cat(parts["edge_index"], 1), ptr, y, edge_attr)

    def fields(self) -> dict[str, Any]:
        """What it holds, by the names of the arguments, without what is None."""
        names = ("x", "edge_index", "ptr", "y", "edge_attr", "ids")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def __len__(self) -> int:
        """Number of graphs."""
        return len(self.ptr) - 1

    @property
    def nodes(self) -> int:
        return len(self.x)

    @cached_property
    def sizes(self) -> Tensor:
        """(g,) nodes of each graph."""
        return self.ptr.diff()

    @cached_property
    def batch(self) -> Tensor:
        """(n,) the graph of each node, non-decreasing."""
        return torch.arange(len(self), device=self.ptr.device).repeat_interleave(self.sizes)

    @cached_property
    def degree(self) -> Tensor:
        """(n,) edges that end in each node."""
        return torch.bincount(self.edge_index[1], minlength=self.nodes)

    @cached_property
    def _edges(self) -> Tensor:
        # (g + 1,): graph k has the edges _edges[k].._edges[k + 1] - 1, since edges are sorted by target
        ends = torch.cat([self.degree.new_zeros(1), self.degree.cumsum(0)])
        return ends[self.ptr]

    @cached_property
    def adjacency(self) -> Sparse:
        """The sum over neighbours as a matrix, (n, n), entry [target, source] 1 an edge."""
        starts = torch.cat([self.degree.new_zeros(1), self.degree.cumsum(0)])
        ones = torch.ones(len(self.edge_index[0]), dtype=self.x.dtype, device=self.x.device)
        return Sparse(starts, self.edge_index[0], ones, self.nodes)

    def select(self, index: Tensor) -> Self:
        """The graphs `index`, in that order, as a set of its own."""
        index = index.to(self.ptr.device)
        rows, ptr = ranges(self.ptr, index)
        edges, ends = ranges(self._edges, index)
        shift = (ptr[:-1] - self.ptr[index]).repeat_interleave(ends.diff())
        chosen = type(self)(
            self.x[rows],
            self.edge_index[:, edges] + shift,
            ptr,
            None if self.y is None else self.y[index],
            None if self.edge_attr is None else self.edge_attr[edges],
            None if self.ids is None else [self.ids[k] for k in index.tolist()],
        )
        chosen.degree = self.degree[rows]
        return chosen

    def to(self, device: torch.device | str, **_: Any) -> Self:
        """The same graphs on `device`; itself when they are there."""
        if self.x.device == torch.device(device):
            return self
        y, edge_attr = (None if value is None else value.to(device) for value in (self.y, self.edge_attr))
        return type(self)(self.x.to(device), self.edge_index.to(device), self.ptr.to(device), y, edge_attr, self.ids)

    def sum(self, rows: Tensor) -> Tensor:
        """(n, d) one row a node -> (g, d), the sum over each graph's nodes."""
        return rows.new_zeros(len(self), rows.shape[1]).index_add(0, self.batch, rows)

    def mean(self, rows: Tensor) -> Tensor:
        """(n, d) one row a node -> (g, d), the mean over each graph's nodes."""
        return self.sum(rows) / self.sizes[:, None]


class _Choice(Rows):
    # A batch is one `select`, not a list of graphs to be joined.
    def __init__(self, graphs: GraphSet) -> None:
        super().__init__(torch.arange(len(graphs)))
        self.graphs = graphs

    def __getitems__(self, indices: list[int]) -> Any:
        return self.graphs.select(torch.tensor(indices))


def _whole(batch: Any) -> Any:
    return batch


def loader(graphs: GraphSet, batch_size: int, seed: int, drop_last: bool = False) -> DataLoader[Any]:
    """Batches of graphs, each a `GraphSet`, in the order that `seed` says."""
    order = Shuffle(len(graphs), seed)
    return DataLoader(_Choice(graphs), batch_size, sampler=order, drop_last=drop_last, collate_fn=_whole)
