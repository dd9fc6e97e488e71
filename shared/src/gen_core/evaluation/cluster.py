"""Neighbours and clusters of representations: weighted kNN, and how well an assignment or k-means finds the classes."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gen_core._checks import Array, integers


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
    x, y = features("z_train", z_train), integers("y_train", y_train, lowest=0)
    x_new, y_new = features("z_test", z_test).to(x), integers("y_test", y_test, lowest=0)
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
    for rows, best, index in nearest(x, x_new, k, chunk):
        # a common factor of a row changes no winner: subtracting its best keeps exp from overflowing at a small t
        weight = ((best - best[:, :1]) / temperature).exp()
        votes = weight.new_zeros(len(weight), classes).scatter_add_(1, y[index], weight)
        hits += int((votes.argmax(1) == y_new[rows]).sum())
    return 100 * hits / len(y_new)


class ClusteringScores(NamedTuple):
    """Agreement of clusters with classes, in percent. The mean ARI of random assignments is 0; it can be below."""

    accuracy: float
    nmi: float
    ari: float


def clustering_scores(assignment: Array, labels: Array) -> ClusteringScores:
    """Accuracy, NMI and ARI of a clustering against the classes, in percent.

    - accuracy: max over one-to-one maps m of clusters to classes of the share of rows with m(c_i) = y_i (Hungarian
      method). A class has at most one cluster: with more clusters than classes the rows of the surplus ones are wrong,
      with fewer the rows of the classes left over.
    - NMI = I(c; y) / ((H(c) + H(y)) / 2): the arithmetic mean, scikit-learn's default since 0.22. The geometric mean of
      older papers, I / sqrt(H(c) H(y)), is never smaller.
    - ARI: adjusted Rand index (Hubert and Arabie 1985).

    Args:
        assignment: (n,) integers, the cluster of each row; only their equality matters.
        labels: (n,) integers >= 0, its class.

    Raises:
        ValueError: no vectors of integers, of different lengths, empty, or a label below 0.

    Examples:
        >>> found = clustering_scores(torch.tensor([7, 7, 7, 3]), torch.tensor([0, 0, 1, 1]))
        >>> [round(value, 2) for value in found]
        [75.0, 34.37, 0.0]
    """
    from scipy.optimize import linear_sum_assignment  # pyright: ignore
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score  # pyright: ignore

    cluster, y = integers("assignment", assignment), integers("labels", labels, lowest=0)
    if len(cluster) != len(y) or len(y) == 0:
        raise ValueError(f"labels must be {len(cluster)}, one an assignment, and not 0, got {len(y)}")
    (clusters, c), (classes, t) = (np.unique(np.asarray(v.cpu(), np.int64), return_inverse=True) for v in (cluster, y))
    counts = np.zeros((len(clusters), len(classes)), dtype=np.int64)
    np.add.at(counts, (c, t), 1)
    match: Any = linear_sum_assignment(counts, maximize=True)  # pyright: ignore
    nmi: Any = normalized_mutual_info_score(t, c, average_method="arithmetic")
    ari: Any = adjusted_rand_score(t, c)
    return ClusteringScores(100 * float(counts[match].sum()) / len(t), 100 * float(nmi), 100 * float(ari))


def kmeans_scores(z: Array, y: Array, clusters: int | None = None, seed: int = 0) -> ClusteringScores:
    """`clustering_scores` of k-means (scikit-learn, best of 10 k-means++ starts) on the features as they are.

    Args:
        z: (n, d) floating; normalise or standardise before, where the protocol says so.
        y: (n,) integers >= 0, used for the scores alone.
        clusters: None takes the number of classes in `y`.
        seed: of the starts.

    Raises:
        ValueError: shapes or dtypes that do not fit; NaN or infinite features; clusters outside 1..n.

    Examples:
        >>> z = torch.tensor([[0.0], [0.1], [5.0], [5.1]])
        >>> kmeans_scores(z, torch.tensor([1, 1, 0, 0])).accuracy
        100.0
    """
    from sklearn.cluster import KMeans  # pyright: ignore

    x, labels = features("z", z), integers("y", y, lowest=0)
    if len(labels) != len(x):
        raise ValueError(f"y must have {len(x)} labels, one a row of z, got {len(labels)}")
    k = len(np.unique(np.asarray(labels.cpu(), np.int64))) if clusters is None else clusters
    if not 1 <= k <= len(x):
        raise ValueError(f"clusters must be between 1 and the {len(x)} rows of z, got {k}")
    model: Any = KMeans(k, n_init=10, random_state=seed)  # pyright: ignore[reportArgumentType]
    return clustering_scores(model.fit_predict(np.asarray(x.cpu())), labels)


def nearest(x: Tensor, queries: Tensor, k: int, chunk: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Tiles of `queries`: which rows, their k largest inner products with rows of `x`, and those rows' indices.

    Products and indices are (rows, k), the best first. At most chunk x 8 chunk products exist at a time.

    Examples:
        >>> [(best.tolist(), index.tolist()) for _, best, index in nearest(torch.eye(2), torch.eye(2)[:1], 1, 8)]
        [([[1.0]], [[0]])]
    """
    for start in range(0, len(queries), chunk):
        rows = slice(start, start + chunk)
        tile = queries[rows]
        best, index = tile.new_empty(len(tile), 0), torch.empty(len(tile), 0, dtype=torch.long, device=tile.device)
        for first in range(0, len(x), 8 * chunk):
            product = tile @ x[first : first + 8 * chunk].T
            near, at = product.topk(min(k, product.shape[1]), dim=1)
            best, index = torch.cat([best, near], 1), torch.cat([index, first + at], 1)
            best, at = best.topk(min(k, best.shape[1]), dim=1)
            index = index.gather(1, at)
        yield rows, best, index


def features(name: str, value: Array) -> Tensor:
    """Return features as float32 or float64 (n, d) after checking them; half precision becomes float32.

    Raises:
        ValueError: not floating of shape (n, d), empty, NaN or infinite.

    Examples:
        >>> features("z", torch.zeros(2, 3, dtype=torch.float16)).dtype
        torch.float32
    """
    z = torch.as_tensor(value).detach()
    if z.ndim != 2 or not z.is_floating_point() or z.numel() == 0:
        raise ValueError(f"{name} must be floating of shape (n, d), not empty, got {z.dtype} of shape {tuple(z.shape)}")
    if not bool(torch.isfinite(z).all()):
        raise ValueError(f"{name} must be finite, got NaN or infinite entries")
    return z if z.dtype == torch.float64 else z.float()
