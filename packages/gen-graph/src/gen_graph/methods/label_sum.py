"""Counts of node labels as the representation of a graph: what a classifier reaches without edges or learning."""

from typing import Any

from torch import Tensor
from torch_geometric.data import Data

from gen_core.harness.plain import Plain
from gen_graph import data as graphs
from gen_graph.graphset import GraphSet


class NodeLabelSum(Plain):
    """`NodeLabelSum().embed(graphs)`: the sum over a graph's nodes of x; with constant features, their number."""

    def embed(self, data: GraphSet | list[Data], batch_size: int = 0, **_: Any) -> Tensor:
        """float32 (g, f)."""
        found = graphs.check_set(data)
        return found.sum(found.x.float())
