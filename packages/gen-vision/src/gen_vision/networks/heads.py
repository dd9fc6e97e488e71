"""Heads on top of a representation."""

from torch import nn


def projection(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """SimCLR's two-layer head g: z = W2 relu(W1 h) (Chen et al. 2020, section 2.1); (b, inputs) -> (b, outputs)."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, outputs))
