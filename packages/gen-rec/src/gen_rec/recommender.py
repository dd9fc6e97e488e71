"""What every recommender here does with its scores: lists for a user of some data, without what must not be listed."""

import difflib
from collections.abc import Sequence

import torch
from torch import Tensor

from gen_core.evaluation import ranking_metrics, top_k
from gen_core.harness.errors import UsageError
from gen_rec import data as interactions
from gen_rec.data import Interactions

ROWS = 256
"""Users that are scored at a time."""


class Recommender:
    """Methods with `score(sequences)` -> (n, I + 1), and `fingerprint`, the catalogue that they were trained on."""

    fingerprint: Tensor

    def score(self, sequences: Sequence[Tensor]) -> Tensor:
        """Scores of the item that comes after each sequence, (n, I + 1) on the CPU; column 0 is padding."""
        raise NotImplementedError

    def rank(self, sequences: Sequence[Tensor], k: int, exclude_seen: bool = True) -> tuple[Tensor, Tensor]:
        """The k items to come next, the best first, and their scores, both (n, k); -1 where there are no more items."""
        ranked: list[Tensor] = []
        values: list[Tensor] = []
        for start in range(0, len(sequences), ROWS):
            part = sequences[start : start + ROWS]
            scores = self.score(part)
            scores[:, 0] = -torch.inf
            if exclude_seen:
                user = torch.arange(len(part)).repeat_interleave(torch.tensor([len(row) for row in part]))
                scores[user, torch.cat(list(part))] = -torch.inf
            ranked.append(top_k(scores, k))
            values.append(scores.gather(1, ranked[-1].clamp(min=0)))
        return torch.cat(ranked), torch.cat(values)

    def recommend(
        self, data: Interactions, user: str, k: int = 10, exclude_seen: bool = False
    ) -> list[tuple[str, float]]:
        """The items ranked first after all that `user` has in `data`, train and test part, with their scores.

        Raises:
            UsageError: an unknown user; data whose items are not those that the model was trained on.
        """
        if user not in data.users:
            near = ", ".join(difflib.get_close_matches(user, data.users, n=3, cutoff=0.0))
            raise UsageError(f"unknown user {user!r}; nearest: {near}; the data has {len(data.users)} users")
        if int(self.fingerprint) != int(interactions.fingerprint(data)):
            raise UsageError(f"data of {len(data.items) - 1} items that are not those this model was trained on")
        row = data.users.index(user)
        ranked, values = self.rank([torch.cat([data.train[row], data.test[row]])], k, exclude_seen)
        pairs = zip(ranked[0].tolist(), values[0].tolist(), strict=True)
        return [(data.items[item], value) for item, value in pairs if item > 0]


def per_user(model: Recommender, data: Interactions, ks: Sequence[int]) -> dict[str, Tensor]:
    """Recall, NDCG and MRR at each k, (n,) shares of the n users who have a test part; empty where none has."""
    pairs = [(train, test) for train, test in zip(data.train, data.test, strict=True) if len(test)]
    if not pairs:
        return {}
    ranked, _ = model.rank([train for train, _ in pairs], max(ks))
    return ranking_metrics(ranked, [test for _, test in pairs], ks)


def check(sequences: Sequence[Tensor], items: int) -> None:
    """Refuse sequences that hold anything but items 1..I."""
    for row, sequence in enumerate(sequences):
        outside = (sequence < 1) | (sequence > items)
        if bool(outside.any()):
            raise UsageError(f"sequence {row}: item {int(sequence[outside][0])}; allowed: 1..{items}")
