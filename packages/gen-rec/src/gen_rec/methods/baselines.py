"""Baselines without training: popularity, item transitions, EASE. Counting and one closed form; no seed.

Citation: EASE is Steck, "Embarrassingly Shallow Autoencoders for Sparse Data", WWW 2019, arXiv 1905.03375. The other
two are common practice.

Deviations: none. EASE's weights, items x items, are never formed: with X = the 0/1 matrix of users and items and
P = (X^T X + lambda)^-1 = (1 - V^T V) / lambda, where V = L^-1 X and L L^T = X X^T + lambda, scores need V and P's
diagonal alone.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from gen_core.harness.plain import Plain
from gen_rec import data as interactions
from gen_rec.data import Interactions
from gen_rec.recommender import Recommender, check


class Baseline(Recommender, Plain):
    """What the baselines share. Subclasses name their `tensors` and write `count`, which leaves them, and `score`."""

    facts = ("items",)
    items: int

    def fit(self, data: Interactions, *, seed: int = 0, out: str | Path | None = None, **_: Any) -> Self:
        self.items, self.fingerprint = len(data.items) - 1, interactions.fingerprint(data)
        self.count(data.train)
        return super().fit(data, out=out)

    def count(self, sequences: Sequence[Tensor]) -> None:
        """Learn from each user's train part."""
        raise NotImplementedError


class Popularity(Baseline):
    """`Popularity().fit(data)`: the number of users who have an item."""

    tensors = ("fingerprint", "counts")
    counts: Tensor

    def count(self, sequences: Sequence[Tensor]) -> None:
        self.counts = torch.cat(list(sequences)).bincount(minlength=self.items + 1).float()

    def score(self, sequences: Sequence[Tensor]) -> Tensor:
        check(sequences, self.items)
        return self.counts.repeat(len(sequences), 1)


class ItemTransitions(Baseline):
    """`ItemTransitions().fit(data)`: how often an item came shortly after one of the user's last ones.

    Equal counts are ordered by popularity.
    """

    class Config(Plain.Config):
        """Hyper-parameters."""

        window: PositiveInt = 5
        """Steps up to which a later item counts, with weight 1 / steps."""
        last: PositiveInt = 5
        """Items at a sequence's end that are looked up."""

    tensors = ("fingerprint", "tie", "offsets", "followers", "weights")
    tie: Tensor
    offsets: Tensor
    followers: Tensor
    weights: Tensor

    def count(self, sequences: Sequence[Tensor]) -> None:
        width = self.items + 1
        popularity = torch.cat(list(sequences)).bincount(minlength=width).double()
        self.tie = 1e-3 * popularity / popularity.max()  # below the differences of the sums of 1 / steps
        pairs, weights = [torch.zeros(0, dtype=torch.int64)], [torch.zeros(0, dtype=torch.float64)]
        for step in range(1, self.config.window + 1):
            for row in sequences:
                pairs.append(row[:-step] * width + row[step:])
                weights.append(torch.full((len(pairs[-1]),), 1 / step, dtype=torch.float64))
        keys, place = torch.cat(pairs).unique(return_inverse=True)  # sorted: row after row of the count matrix
        self.weights = torch.zeros(len(keys), dtype=torch.float64).index_add_(0, place, torch.cat(weights))
        self.followers = keys % width
        self.offsets = torch.searchsorted(keys, torch.arange(width + 1) * width)

    def score(self, sequences: Sequence[Tensor]) -> Tensor:
        check(sequences, self.items)
        scores = self.tie.repeat(len(sequences), 1)
        for user, row in enumerate(sequences):
            for item in row[-self.config.last :].tolist():
                found = slice(int(self.offsets[item]), int(self.offsets[item + 1]))
                scores[user, self.followers[found]] += self.weights[found]
        return scores


class EASE(Baseline):
    """`EASE().fit(data)`: the best linear map from a user's items to themselves that leaves each item itself out."""

    class Config(Plain.Config):
        """Hyper-parameters."""

        penalty: PositiveFloat = 200.0
        """lambda, the weight of the squared weights."""

    tensors = ("fingerprint", "v", "diagonal")
    v: Tensor
    diagonal: Tensor

    def count(self, sequences: Sequence[Tensor]) -> None:
        x, penalty = self.matrix(sequences, torch.float64), self.config.penalty
        if len(x) <= self.items:
            inside = x @ x.T
            inside.diagonal().add_(penalty)
            v = torch.linalg.solve_triangular(torch.linalg.cholesky(inside), x, upper=False)
        else:  # more users than items: V from the eigenvectors of X^T X
            values, vectors = torch.linalg.eigh(x.T @ x)
            values = values.clamp(min=0)
            v = (values / (values + penalty)).sqrt()[:, None] * vectors.T
        self.v, self.diagonal = v.float().contiguous(), ((1 - v.square().sum(0)) / penalty).float()

    def matrix(self, sequences: Sequence[Tensor], dtype: torch.dtype = torch.float32) -> Tensor:
        """X, (n, I + 1)."""
        x = torch.zeros(len(sequences), self.items + 1, dtype=dtype)
        for row, sequence in zip(x, sequences, strict=True):
            row[sequence] = 1
        return x

    def score(self, sequences: Sequence[Tensor]) -> Tensor:
        check(sequences, self.items)
        x = self.matrix(sequences)  # x B with B_ij = -P_ij / P_jj off the diagonal, 0 on it
        return x - (x - (x @ self.v.T) @ self.v) / (self.config.penalty * self.diagonal)
