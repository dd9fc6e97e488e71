"""Encoders of whole graphs and the small networks on top of them."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gen_graph.graphset import GraphSet
from gen_graph.networks import spmm


class GIN(nn.Module):
    """Graph isomorphism network (Xu et al. 2019) as InfoGraph uses it: sum pooling of every layer, concatenated.

    Layer: MLP(h_i + sum over neighbours of h_j) with MLP = Linear-ReLU-Linear, then ReLU, then batch norm. epsilon is
    fixed at 0. All weights Xavier-uniform, all biases 0.
    """

    def __init__(self, features: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(features if k == 0 else hidden, hidden), nn.ReLU(), nn.Linear(hidden, hidden))
            for k in range(layers)
        )
        self.norms = nn.ModuleList(nn.BatchNorm1d(hidden) for _ in range(layers))
        self.width = layers * hidden
        self.apply(xavier)

    def forward(self, graphs: GraphSet) -> tuple[Tensor, Tensor]:
        """Phi (g, layers * hidden) of the graphs and phi (n, layers * hidden) of their nodes."""
        h, found = graphs.x, []
        for layer, norm in zip(self.layers, self.norms, strict=True):
            h = norm(F.relu(layer(h + spmm(graphs.adjacency, h))))
            found.append(h)
        phi = torch.cat(found, dim=1)
        return graphs.sum(phi), phi


class FF(nn.Module):
    """InfoGraph's projection: three times Linear-ReLU beside a linear shortcut. (n, width) -> (n, out)."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Linear(width, out), nn.ReLU(), nn.Linear(out, out), nn.ReLU(), nn.Linear(out, out), nn.ReLU()
        )
        self.shortcut = nn.Linear(width, out)
        self.apply(xavier)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x) + self.shortcut(x)


def xavier(module: nn.Module) -> None:
    """Weights of a linear layer Xavier-uniform, its bias 0; for `nn.Module.apply`."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
