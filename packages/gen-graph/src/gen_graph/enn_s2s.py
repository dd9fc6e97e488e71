"""enn-s2s: the message passing network of Gilmer et al. (2017) for graphs with edge features, as in InfoGraph*."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.nn import Set2Set

from gen_graph.encoders import xavier
from gen_graph.graphset import GraphSet

FEW = 32
"""Kinds of edges up to which nodes are multiplied by each kind's matrix; with more, each edge's source by its own."""


class EnnS2S(nn.Module):
    """Edge-conditioned messages, a gated unit as update, Set2Set as readout.

    h_i = ReLU(Linear(x_i)); then `steps` times m_i = ReLU(mean over neighbours j of h_j W(e_ji) + bias) and
    h_i = GRU(m_i, h_i), with one W, bias and GRU for all steps. W(e), (hidden, hidden), comes from an edge network,
    Linear-ReLU-Linear of inner width 128, that runs once: the steps see the same edges. A node without edges has mean
    0. Linear layers start Xavier-uniform with bias 0, the GRU and Set2Set's LSTM as in PyTorch.
    """

    def __init__(self, features: int, edge_features: int, hidden: int, steps: int) -> None:
        super().__init__()
        self.steps, self.hidden, self.width = steps, hidden, 2 * hidden
        self.first = nn.Linear(features, hidden)
        self.edges = nn.Sequential(nn.Linear(edge_features, 128), nn.ReLU(), nn.Linear(128, hidden * hidden))
        self.bias = nn.Parameter(torch.zeros(hidden))
        self.update = nn.GRU(hidden, hidden)
        self.readout = Set2Set(hidden, processing_steps=3)
        self.apply(xavier)

    def forward(self, graphs: GraphSet) -> tuple[Tensor, Tensor]:
        """(g, 2 * hidden) of the graphs and (n, hidden) of their nodes."""
        assert graphs.edge_attr is not None
        kinds, kind = graphs.edge_attr.unique(dim=0, return_inverse=True)  # bonds without lengths are of few kinds
        matrices = self.edges(kinds).view(-1, self.hidden, self.hidden)
        h = F.relu(self.first(graphs.x))
        state = h[None]
        for _ in range(self.steps):
            message = F.relu(self.mean(h, graphs, matrices, kind) + self.bias)
            state = self.update(message[None], state)[1]
            h = state[0]
        return self.readout(h, graphs.batch, dim_size=len(graphs)), h

    def mean(self, h: Tensor, graphs: GraphSet, matrices: Tensor, kind: Tensor) -> Tensor:
        """(n, hidden): the mean over the edges into each node of h_source @ matrices[kind]; 0 where there are none."""
        source, target = graphs.edge_index
        if len(matrices) <= FEW:
            rows = torch.einsum("ni,kio->nko", h, matrices).flatten(0, 1).index_select(0, source * len(matrices) + kind)
        else:
            rows = torch.bmm(h.index_select(0, source)[:, None], matrices.index_select(0, kind))[:, 0]
        return torch.zeros_like(h).index_add(0, target, rows.to(h.dtype)) / graphs.degree.clamp(min=1)[:, None]
