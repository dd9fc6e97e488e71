"""Neighbours of representations. (Clustering scores join this file with the methods that need them.)"""

import torch
import torch.nn.functional as F
from torch import Tensor

from gen_core.evaluation.probe import Array, integers


@torch.no_grad()
def knn(
    z_train: Array,
    y_train: Array,
    z_test: Array,
    y_test: Array,
    k: int = 20,
    temperature: float = 0.1,
    chunk: int = 1024,
) -> float:
    """Test accuracy in percent of weighted k nearest neighbours (Wu et al. 2018).

    Neighbours are the k rows of largest cosine s; each votes for its class with weight exp(s / t). Works in tiles: at
    most chunk x 8 chunk similarities at a time. Of classes with equal votes the lowest wins.

    Args:
        z_train: (n, d) floating.
        y_train: (n,) integers >= 0.
        z_test: (m, d).
        y_test: (m,).
        k: neighbours, between 1 and n.
        temperature: t > 0.
        chunk: test rows in a tile.

    Raises:
        ValueError: shapes or dtypes that do not fit; NaN or infinite features; k, temperature or chunk out of range.

    Examples:
        >>> z, y = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]), torch.tensor([0, 0, 1])
        >>> knn(z, y, torch.tensor([[2.0, 0.1], [0.1, 3.0]]), torch.tensor([0, 0]), k=1)
        50.0
    """
    x, y = _features("z_train", z_train), integers("y_train", y_train, lowest=0)
    x_new, y_new = _features("z_test", z_test).to(x), integers("y_test", y_test, lowest=0)
    if x.shape[1] != x_new.shape[1]:
        raise ValueError(f"z_test must have {x.shape[1]} columns, as z_train has, got {x_new.shape[1]}")
    for name, labels, rows in (("y_train", y, len(x)), ("y_test", y_new, len(x_new))):
        if len(labels) != rows:
            raise ValueError(f"{name} must have {rows} labels, one a row, got {len(labels)}")
    if not 1 <= k <= len(x):
        raise ValueError(f"k must be between 1 and the {len(x)} training rows, got {k}")
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature must be a finite number above 0, got {temperature}")
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")

    x, x_new, y, y_new = F.normalize(x), F.normalize(x_new), y.to(x.device), y_new.to(x.device)
    classes, hits = int(y.max()) + 1, 0
    for start in range(0, len(x_new), chunk):
        queries, labels = x_new[start : start + chunk], y_new[start : start + chunk]
        best = queries.new_empty(len(queries), 0)
        vote = y.new_empty(len(queries), 0)
        for first in range(0, len(x), 8 * chunk):
            similarity = queries @ x[first : first + 8 * chunk].T
            near, index = similarity.topk(min(k, similarity.shape[1]), dim=1)
            best, vote = torch.cat([best, near], 1), torch.cat([vote, y[first + index]], 1)
            best, index = best.topk(min(k, best.shape[1]), dim=1)
            vote = vote.gather(1, index)
        # a common factor of a row changes no winner: subtracting its best keeps exp from overflowing at a small t
        weight = ((best - best[:, :1]) / temperature).exp()
        votes = queries.new_zeros(len(queries), classes).scatter_add_(1, vote, weight)
        hits += int((votes.argmax(1) == labels).sum())
    return 100 * hits / len(y_new)


def _features(name: str, value: Array) -> Tensor:
    z = torch.as_tensor(value)
    if z.ndim != 2 or not z.is_floating_point() or z.numel() == 0:
        raise ValueError(f"{name} must be floating of shape (n, d), not empty, got {z.dtype} of shape {tuple(z.shape)}")
    if not bool(torch.isfinite(z).all()):
        raise ValueError(f"{name} must be finite, got NaN or infinite entries")
    return z if z.dtype == torch.float64 else z.float()
