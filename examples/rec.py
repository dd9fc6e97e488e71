"""InfoNCE in a loop of your own: what comes next in a sequence, in plain PyTorch.

python examples/rec.py
"""

import torch
from torch import nn

from gen_core.evaluation.ranking import ranking_metrics, top_k
from gen_core.losses import info_nce


def walks(users: int = 400, items: int = 100, steps: int = 16) -> torch.Tensor:
    """(users, steps) items: each user goes through the items in strides that are the user's own, with some slips."""
    start, stride = torch.randint(items, (users, 1)), torch.randint(1, 5, (users, 1))
    slips = (torch.rand(users, steps) < 0.1).long()
    return (start + (stride + slips).cumsum(1)) % items


class Next(nn.Module):
    """A GRU whose state at each step is compared with the embeddings of all items."""

    def __init__(self, items: int, size: int = 48) -> None:
        super().__init__()
        self.item, self.gru = nn.Embedding(items, size), nn.GRU(size, size, batch_first=True)

    def forward(self, sequences: torch.Tensor) -> torch.Tensor:
        return self.gru(self.item(sequences))[0]


def main(epochs: int = 40) -> tuple[float, float]:
    """Recall of the last item among the first 5, in percent: by how often items occur, and by what was learnt."""
    torch.manual_seed(0)
    items = 100
    sequences = walks(items=items)
    history, target = sequences[:, :-1], sequences[:, -1:]
    model = Next(items)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(epochs):
        for rows in torch.randperm(len(sequences)).split(100):
            query = model(history[rows, :-1]).flatten(0, 1)
            key = model.item(history[rows, 1:]).flatten(0, 1)
            # Against a draw of the other steps' items, so that the loss stays small.
            chosen = torch.randperm(len(query))[:256]
            loss = info_nce(query[chosen], key[chosen], temperature=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def recall(scores: torch.Tensor) -> float:
        return 100 * ranking_metrics(top_k(scores, 5), list(target), [5])["recall@5"].mean().item()

    with torch.no_grad():
        last = nn.functional.normalize(model(history)[:, -1])
        learnt = recall(last @ nn.functional.normalize(model.item.weight).T)
    popular = recall(history.flatten().bincount(minlength=items).float().repeat(len(history), 1))
    print(f"recall@5 of the next item: popularity {popular:.1f} %, learnt {learnt:.1f} %")
    return popular, learnt


if __name__ == "__main__":
    main()
