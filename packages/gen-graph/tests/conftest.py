"""Small graphs and helpers that several test files use."""

from types import SimpleNamespace

import pytest
import torch
from torch_geometric.data import Data


@pytest.fixture
def small():
    """5 nodes, 4 features, node 4 isolated; each edge in both directions."""
    generator = torch.Generator().manual_seed(1)
    edges = torch.tensor([[0, 1, 1, 2, 2, 3, 0, 3], [1, 0, 2, 1, 3, 2, 3, 0]])
    return Data(x=torch.rand(5, 4, generator=generator), edge_index=edges)


@pytest.fixture(scope="session")
def blocks():
    """60 nodes in two communities with weak words: enough for a loss that falls and then stalls."""
    generator = torch.Generator().manual_seed(2)
    y = torch.arange(60) % 2
    chance = torch.where(y[:, None] == y[None], 0.2, 0.02)
    edges = (torch.rand(60, 60, generator=generator) < chance).triu(1).nonzero().T
    x = (torch.rand(60, 40, generator=generator) < 0.05 + 0.1 * (torch.arange(40) % 2 == y[:, None])).float()
    return Data(x=x, edge_index=torch.cat([edges, edges.flip(0)], dim=1), y=y)


@pytest.fixture
def run_of():
    return lambda model, data, seed=0: SimpleNamespace(model=model, data=data, seed=seed)
