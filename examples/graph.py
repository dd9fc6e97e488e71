"""A mutual-information bound in a loop of your own: nodes against their graph's summary, in plain PyTorch.

python examples/graph.py
"""

import torch
from torch import nn

from gen_core.estimators import BOUNDS, Bilinear, Pairs
from gen_core.evaluation.probe import linear_probe


def block_model(nodes: int = 300, classes: int = 3, words: int = 60) -> tuple[torch.Tensor, ...]:
    """Features with a weak trace of the class, the normalised adjacency, and the classes."""
    y = torch.arange(nodes) % classes
    chance = torch.where(y[:, None] == y, 0.05, 0.01)
    upper = (torch.rand(nodes, nodes) < chance).triu(1).float()
    adjacency = upper + upper.T + torch.eye(nodes)
    scale = adjacency.sum(1).rsqrt()
    x = torch.randn(nodes, words)
    x[:, :classes] += nn.functional.one_hot(y, classes)
    return x, scale[:, None] * adjacency * scale, y


def main(bound: str = "jsd", steps: int = 150) -> tuple[float, float]:
    """Probe accuracy in percent: of the features, and of what was learnt from no label, with any bound of gen_core."""
    torch.manual_seed(0)
    x, propagation, y = block_model()
    theta = nn.Linear(x.shape[1], 32)
    critic = Bilinear(32, 32)
    optimizer = torch.optim.Adam([*theta.parameters(), *critic.parameters()], 1e-2)

    def encode(features: torch.Tensor) -> torch.Tensor:
        return nn.functional.leaky_relu(propagation @ theta(features), 0.25)

    for _ in range(steps):
        real, fake = encode(x), encode(x[torch.randperm(len(x))])
        summary = real.mean(0).sigmoid()
        loss = -BOUNDS[bound](Pairs(critic(real, summary), critic(fake, summary)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    with torch.no_grad():
        z = encode(x)
    train, test = slice(0, 30), slice(30, None)
    raw = linear_probe(x[train], y[train], x[test], y[test])
    learnt = linear_probe(z[train], y[train], z[test], y[test])
    print(f"probe accuracy, 10 labels a class, bound {bound}: features {raw:.1f} %, learnt {learnt:.1f} %")
    return raw, learnt


if __name__ == "__main__":
    main()
