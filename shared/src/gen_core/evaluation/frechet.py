"""Distances between two sets of features, and shares that tell fidelity from diversity.

Features come in, numbers go out. Beside every number name the net that made the features (FID is Inception's alone;
values of different nets do not compare) and the sizes of both sets, on which a Frechet distance depends. It is to be
read against its floor, `frechet_floor`. Everything is computed in float64.
"""

import math
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gen_core._checks import Array, floating
from gen_core.evaluation.cluster import features

_TILE = 1 << 22  # entries of a tile of distances or kernel values: 32 MiB


@torch.no_grad()
def frechet_distance(mean_a: Array, cov_a: Array, mean_b: Array, cov_b: Array) -> float:
    """Squared 2-Wasserstein distance of two Gaussians (Dowson and Landau 1982; Heusel et al. 2017, eq. 6).

    |mu_a - mu_b|^2 + tr( A + B - 2 (A B)^(1/2) ). The last trace is the sum of the singular values of A^(1/2) B^(1/2),
    which keep their digits where A or B is singular.

    Args:
        mean_a: (d,) floating.
        cov_a: (d, d), symmetric and positive semi-definite.
        mean_b: (d,).
        cov_b: (d, d).

    Returns:
        At least 0; the features' unit squared.

    Raises:
        ValueError: shapes that do not fit, NaN or infinite entries, a covariance that is none.

    Examples:
        >>> eye = torch.eye(2)
        >>> round(frechet_distance(torch.zeros(2), eye, torch.tensor([3.0, 4.0]), eye), 6)
        25.0
    """
    (mu_a, a), (mu_b, b) = _gaussian("a", mean_a, cov_a), _gaussian("b", mean_b, cov_b)
    if len(mu_a) != len(mu_b):
        raise ValueError(f"mean_b must have {len(mu_a)} entries, as mean_a has, got {len(mu_b)}")
    linalg: Any = torch.linalg  # has no types
    cross = float(linalg.svdvals(_root("a", a).T @ _root("b", b.to(a.device))).sum())
    shift = (mu_a - mu_b.to(mu_a.device)).square().sum()
    return max(0.0, float(shift) + float(a.trace()) + float(b.trace()) - 2 * cross)


@torch.no_grad()
def frechet_features(features_a: Array, features_b: Array) -> float:
    """`frechet_distance` of the means and covariances (n - 1 in the denominator) of two sets of features.

    Its value is too large by a term that falls with the sizes: compare sets of the same size only.

    Args:
        features_a: (n, d) floating, n >= 2; with n <= d the covariance is singular, which warns.
        features_b: (m, d).

    Raises:
        ValueError: shapes or dtypes that do not fit, fewer than 2 rows, NaN or infinite features.

    Examples:
        >>> a = torch.tensor([[0.0], [2.0]])
        >>> round(frechet_features(a, a + 3), 6)
        9.0
    """
    a, b = _two("features_a", features_a, "features_b", features_b)
    for name, x in (("features_a", a), ("features_b", b)):
        if len(x) <= x.shape[1]:
            warnings.warn(  # level 3: the caller of no_grad's wrapper
                f"{name} has {len(x)} rows of {x.shape[1]} features: its covariance is singular", stacklevel=3
            )
    return frechet_distance(*_moments(a), *_moments(b))


def frechet_floor(features_real: Array, rows: int | None = None, seed: int = 0) -> float:
    """`frechet_features` of two disjoint random parts of one real set: the value that a perfect generator would get.

    Args:
        features_real: (n, d) floating.
        rows: of each part; None takes n // 2. For a comparison of m generated rows with m real ones give m.
        seed: of the split.

    Raises:
        ValueError: as in `frechet_features`; rows outside 2..n // 2.

    Examples:
        >>> real = torch.arange(8.0)[:, None]
        >>> 0 < frechet_floor(real) < 10
        True
    """
    x = features("features_real", features_real)
    size = len(x) // 2 if rows is None else rows
    if not 2 <= size <= len(x) // 2:
        raise ValueError(f"rows must be between 2 and half of the {len(x)} rows of features_real, got {size}")
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed)).to(x.device)
    return frechet_features(x[order[:size]], x[order[size : 2 * size]])


class KernelDistance(NamedTuple):
    """Mean over blocks and its standard error (nan from one block)."""

    value: float
    error: float


@torch.no_grad()
def kid(features_a: Array, features_b: Array, blocks: int = 10, seed: int = 0) -> KernelDistance:
    """Kernel distance: unbiased MMD^2 with the kernel (x . y / d + 1)^3 (Binkowski et al. 2018).

    Both sets are shuffled and cut into `blocks` disjoint parts. The value is the mean of the parts' estimates; these
    are independent, so that their spread gives its standard error. Unlike a Frechet distance it has no bias at small n;
    it may be below 0.

    Args:
        features_a: (n, d) floating, at least two rows a block.
        features_b: (m, d).
        blocks: number of parts; more cost less time and more variance.
        seed: of the shuffle.

    Raises:
        ValueError: shapes or dtypes that do not fit, NaN or infinite features, blocks out of range.

    Examples:
        >>> a, b = torch.tensor([[1.0], [-1.0]]), torch.tensor([[2.0], [2.0]])
        >>> kid(a, b, blocks=1).value  # 0 + 125 - 2 (27 - 1) / 2
        99.0
    """
    a, b = _two("features_a", features_a, "features_b", features_b)
    most = min(len(a), len(b)) // 2
    if not 1 <= blocks <= most:
        raise ValueError(f"blocks must be between 1 and {most}, which leaves two rows a block, got {blocks}")
    generator = torch.Generator().manual_seed(seed)
    order_a, order_b = (torch.randperm(len(x), generator=generator).to(x.device) for x in (a, b))
    values: list[float] = []
    for at, to in zip(order_a.tensor_split(blocks), order_b.tensor_split(blocks), strict=True):
        x, y = a[at], b[to]
        within = _kernel_mean(x, x, same=True) + _kernel_mean(y, y, same=True)
        values.append(within - 2 * _kernel_mean(x, y))
    found = torch.tensor(values, dtype=torch.float64)
    error = float(found.std()) / math.sqrt(blocks) if blocks > 1 else math.nan
    return KernelDistance(float(found.mean()), error)


class ManifoldScores(NamedTuple):
    """Fidelity (precision, density) and diversity (recall, coverage); shares in [0, 1], density may exceed 1."""

    precision: float
    recall: float
    density: float
    coverage: float


@torch.no_grad()
def manifold_scores(features_real: Array, features_generated: Array, k: int = 5) -> ManifoldScores:
    """Precision and recall (Kynkaanniemi et al. 2019, eq. 1-2), density and coverage (Naeem et al. 2020).

    Each row carries a closed ball whose radius is the Euclidean distance to its k-th nearest neighbour within its set.

    - precision: share of generated rows that lie in a ball of a real row; recall the same with the sets swapped.
    - density: balls of real rows that a generated row lies in, in the mean, over k.
    - coverage: share of real rows whose ball holds a generated row.

    Works in tiles of rows x all rows of the other set.

    Args:
        features_real: (n, d) floating.
        features_generated: (m, d).
        k: between 1 and the rows of the smaller set - 1; Kynkaanniemi et al. take 3, Naeem et al. 5.

    Raises:
        ValueError: shapes or dtypes that do not fit, NaN or infinite features, k out of range.

    Examples:
        >>> real, generated = torch.tensor([[0.0], [1.0], [2.0], [9.0]]), torch.tensor([[0.4], [0.6], [30.0]])
        >>> [round(score, 4) for score in manifold_scores(real, generated, k=1)]
        [0.6667, 0.75, 1.3333, 0.5]
    """
    real, fake = _two("features_real", features_real, "features_generated", features_generated)
    most = min(len(real), len(fake)) - 1
    if not 1 <= k <= most:
        raise ValueError(f"k must be between 1 and {most}, the rows of the smaller set - 1, got {k}")
    centre = real.mean(0)  # changes no distance, and keeps digits where all features are large
    real, fake = real - centre, fake - centre
    radius_real, radius_fake = _radii(real, k), _radii(fake, k)
    balls = radius_fake.new_zeros(len(fake))
    recalled, covered = 0, 0
    for rows in _tiles(len(real), len(fake)):
        distance = _squared(real[rows], fake)
        inside = distance <= radius_real[rows, None]
        balls += inside.sum(0)
        covered += int(inside.any(1).sum())
        recalled += int((distance <= radius_fake).any(1).sum())
    precision, density = float((balls > 0).double().mean()), float(balls.mean()) / k
    return ManifoldScores(precision, recalled / len(real), density, covered / len(real))


def _two(name_a: str, a: Array, name_b: str, b: Array) -> tuple[Tensor, Tensor]:
    x, y = _double(features(name_a, a)), _double(features(name_b, b))
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"{name_b} must have {x.shape[1]} columns, as {name_a} has, got {y.shape[1]}")
    for name, rows in ((name_a, len(x)), (name_b, len(y))):
        if rows < 2:
            raise ValueError(f"{name} must have at least 2 rows, got {rows}")
    return x, y.to(x.device)


def _double(x: Tensor) -> Tensor:
    return (x.cpu() if x.device.type == "mps" else x).double()  # that device has no float64


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    mean = x.mean(0)
    centred = x - mean
    return mean, centred.T @ centred / (len(x) - 1)


def _gaussian(side: str, mean: Array, cov: Array) -> tuple[Tensor, Tensor]:
    """The mean (d,) and the covariance (d, d) in float64, checked up to its definiteness."""
    matrix = _double(features(f"cov_{side}", cov))
    vector = floating(f"mean_{side}", torch.as_tensor(mean), 1)
    vector = _double(features(f"mean_{side}", vector[None])[0])
    if matrix.shape != (len(vector), len(vector)):
        raise ValueError(f"cov_{side} must be {len(vector)} x {len(vector)}, as its mean, got {tuple(matrix.shape)}")
    if not torch.allclose(matrix, matrix.T, rtol=1e-4, atol=1e-6 * float(matrix.abs().max())):
        raise ValueError(f"cov_{side} must be symmetric")
    return vector, matrix


def _root(side: str, cov: Tensor) -> Tensor:
    """R with R R^T = cov."""
    linalg: Any = torch.linalg  # has no types
    spread, axes = linalg.eigh(cov)
    if spread[0] < -1e-5 * spread[-1].abs():  # what float32 statistics leave below 0 is a hundred times less
        raise ValueError(f"cov_{side} must be positive semi-definite, got an eigenvalue of {float(spread[0]):.4g}")
    return axes * spread.clamp(min=0).sqrt()


def _tiles(rows: int, columns: int) -> Iterator[slice]:
    step = max(1, _TILE // columns)
    return (slice(start, start + step) for start in range(0, rows, step))


def _squared(x: Tensor, y: Tensor) -> Tensor:
    """Squared distances (n, m)."""
    return (x.square().sum(1, keepdim=True) + y.square().sum(1) - 2 * x @ y.T).clamp_(min=0)


def _radii(x: Tensor, k: int) -> Tensor:
    """Squared distance of each row to its k-th nearest neighbour: the (k + 1)-th smallest, since it finds itself."""
    found = [_squared(x[rows], x).kthvalue(k + 1, dim=1).values for rows in _tiles(len(x), len(x))]
    return torch.cat(found)


def _kernel(product: Tensor, d: int) -> Tensor:
    return (product / d + 1) ** 3


def _kernel_mean(x: Tensor, y: Tensor, *, same: bool = False) -> float:
    """Mean of k over all pairs of rows; of one set with itself (`same`), over the pairs of different rows."""
    d, total = x.shape[1], 0.0
    for rows in _tiles(len(x), len(y)):
        total += float(_kernel(x[rows] @ y.T, d).sum())
    if same:
        return (total - float(_kernel(x.square().sum(1), d).sum())) / (len(x) * (len(x) - 1))
    return total / (len(x) * len(y))
