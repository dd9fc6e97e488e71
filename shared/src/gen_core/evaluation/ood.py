"""Out-of-distribution scores of logits and of representations, and the metrics that read them.

Every score is higher for what looks more in-distribution. Statistics come from training rows alone; half precision is
computed in float32.
"""

import warnings
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gen_core._checks import Array, finite, floating, full_precision, integers, positive
from gen_core.evaluation.cluster import features, nearest


@torch.no_grad()
def msp_score(logits: Array) -> Tensor:
    """Maximum softmax probability: max_c softmax(l)_c (Hendrycks and Gimpel 2017).

    Args:
        logits: (m, classes) floating; -inf masks a class.

    Returns:
        (m,) in (0, 1].

    Raises:
        ValueError: logits are not floating of two dimensions, are empty or hold NaN or +inf.

    Examples:
        >>> [round(score, 4) for score in msp_score(torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.4, 0.3]])).tolist()]
        [0.8438, 0.3672]
    """
    x = floating("logits", torch.as_tensor(logits), 2)
    with full_precision(x):
        return finite(x.softmax(1).amax(1), logits=x)


@torch.no_grad()
def energy_score(logits: Array, temperature: float = 1.0) -> Tensor:
    """Minus the free energy of the logits, T log sum_c exp(l_c / T) (Liu et al. 2020, eq. 4).

    Args:
        logits: (m, classes) floating; -inf masks a class.
        temperature: T > 0.

    Returns:
        (m,) in the logits' unit.

    Raises:
        ValueError: logits as in `msp_score`; temperature out of range.

    Examples:
        >>> [round(score, 4) for score in energy_score(torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.4, 0.3]])).tolist()]
        [2.1698, 1.5019]
    """
    positive("temperature", temperature)
    x = floating("logits", torch.as_tensor(logits), 2)
    with full_precision(x):
        return finite(temperature * (x / temperature).logsumexp(1), logits=x)


@torch.no_grad()
def mahalanobis_score(z_train: Array, y_train: Array, z: Array) -> Tensor:
    """Minus the squared Mahalanobis distance to the nearest class mean (Lee et al. 2018, eq. 2), in float64.

    -min_c (z - mu_c)^T S^-1 (z - mu_c), S = 1/n sum_i (z_i - mu_{y_i}) (z_i - mu_{y_i})^T, one covariance of all
    classes. Where S is singular (n too small, constant features) its pseudo-inverse takes its place, with a warning:
    what lies outside the span of the training rows is then not seen.

    Args:
        z_train: (n, d) floating.
        y_train: (n,) integers >= 0.
        z: (m, d), the rows to score.

    Returns:
        (m,) float64 on the CPU, at most 0.

    Raises:
        ValueError: shapes or dtypes that do not fit; NaN or infinite features; no class with two different rows.

    Examples:
        >>> z = torch.tensor([[2.0, 0.0], [-2.0, 0.0], [0.0, 2.0], [0.0, -2.0]])  # S = 2 I
        >>> score = mahalanobis_score(z, torch.zeros(4, dtype=torch.long), torch.tensor([[3.0, 1.0]]))
        >>> f"{score.item():.4f}"
        '-5.0000'
    """
    x, new = _pair(z_train, z)
    y = integers("y_train", y_train, lowest=0).cpu()
    if len(y) != len(x):
        raise ValueError(f"y_train must have {len(x)} labels, one a row, got {len(y)}")
    x, new = x.cpu().double(), new.cpu().double()
    centre = x.mean(0)  # changes no distance, and keeps digits where all features are large
    x, new = x - centre, new - centre
    present = np.unique(np.asarray(y, np.int64), return_inverse=True)
    kind, classes = torch.as_tensor(present[1]), len(present[0])
    means = torch.zeros(classes, x.shape[1]).double().index_add_(0, kind, x) / kind.bincount()[:, None]
    within = x - means[kind]
    linalg: Any = torch.linalg  # has no types
    spread, axes = linalg.eigh(within.T @ within / len(x))
    keep = spread > spread[-1] * x.shape[1] * torch.finfo(spread.dtype).eps
    if not bool(keep.any()):
        raise ValueError("z_train must vary within a class, got all rows equal to their class mean")
    if not bool(keep.all()):
        warnings.warn(  # level 3: the caller of no_grad's wrapper
            f"z_train varies within its classes in {int(keep.sum())} of {len(keep)} dimensions only: the covariance is "
            "singular, its pseudo-inverse is used",
            stacklevel=3,
        )
    whiten = axes[:, keep] / spread[keep].sqrt()
    return -torch.cdist(new @ whiten, means @ whiten).square().amin(1)


@torch.no_grad()
def knn_score(z_train: Array, z: Array, k: int = 50, chunk: int = 1024) -> Tensor:
    """Minus the distance to the k-th nearest training row, all rows at length 1 (Sun et al. 2022); needs no labels.

    Works in tiles: at most chunk x 8 chunk similarities at a time.

    Args:
        z_train: (n, d) floating.
        z: (m, d), the rows to score; a training row counts itself as its first neighbour.
        k: between 1 and n; the paper's 50 for CIFAR-10, less for small sets.
        chunk: rows in a tile.

    Returns:
        (m,) in [-2, 0].

    Raises:
        ValueError: shapes or dtypes that do not fit; NaN or infinite features; k or chunk out of range.

    Examples:
        >>> knn_score(torch.tensor([[5.0, 0.0], [0.0, 1.0]]), torch.tensor([[2.0, 0.0], [-1.0, 0.0]]), k=1).tolist()
        [-0.0, -1.4142135381698608]
    """
    x, new = _pair(z_train, z)
    if not 1 <= k <= len(x):
        raise ValueError(f"k must be between 1 and the {len(x)} training rows, got {k}")
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    x, new = F.normalize(x), F.normalize(new)
    # the distance from the rows themselves: sqrt(2 - 2 cosine) would lose half the digits of a near neighbour
    far = torch.cat([index[:, -1] for _, _, index in nearest(x, new, k, chunk)])
    return -(new - x[far]).square().sum(1).sqrt()


class OODMetrics(NamedTuple):
    """How well a score tells in- from out-of-distribution, in percent; `fpr95` is better when lower."""

    auroc: float
    aupr_in: float
    aupr_out: float
    fpr95: float


def ood_metrics(
    score_in: Array, score_out: Array, convention: Literal["in-positive", "openood"] = "in-positive"
) -> OODMetrics:
    """AUROC, both AUPRs and FPR95 of scores that are higher for in-distribution rows, in percent.

    - `in-positive`: fpr95 is the share of out-rows accepted at the highest threshold that accepts 95 % of the in-rows;
      AUPR is the average precision.
    - `openood`, as OpenOOD's code: fpr95 is the share of in-rows flagged at the strictest threshold that flags 95 % of
      the out-rows; AUPR is the area by trapezoids.

    In both `aupr_in` takes the in-rows as positives, `aupr_out` the out-rows with the scores' sign turned. In AUROC
    equal scores count half. Only the order of the scores matters; they may be infinite.

    Args:
        score_in: (n,) floating.
        score_out: (m,).
        convention: see above.

    Raises:
        ValueError: no floating vectors, empty, NaN, or another convention.

    Examples:
        >>> found = ood_metrics(torch.tensor([0.9, 0.8, 0.7, 0.6, 0.55]), torch.tensor([0.65, 0.5, 0.3, 0.2]))
        >>> [round(value, 4) for value in found]
        [90.0, 92.6667, 91.6667, 25.0]
    """
    import sklearn.metrics  # pyright: ignore

    if convention not in ("in-positive", "openood"):
        raise ValueError(f"convention must be 'in-positive' or 'openood', got {convention!r}")
    inside, outside = _scores("score_in", score_in), _scores("score_out", score_out)
    # ranks instead of values: exact, and infinities are welcome
    rank = np.unique(np.asarray(torch.cat([inside, outside]), np.float64), return_inverse=True)[1]
    is_in = np.arange(len(rank)) < len(inside)

    sk: Any = sklearn.metrics

    def aupr(positive: Any, score: Any) -> float:
        if convention == "in-positive":
            return 100 * float(sk.average_precision_score(positive, score))
        precision, recall, _ = sk.precision_recall_curve(positive, score)
        return 100 * float(sk.auc(recall, precision))

    if convention == "in-positive":
        false = rank[~is_in] >= _threshold(rank[is_in])
    else:
        false = -rank[is_in] >= _threshold(-rank[~is_in])
    auroc = 100 * float(sk.roc_auc_score(is_in, rank))
    return OODMetrics(auroc, aupr(is_in, rank), aupr(~is_in, -rank), 100 * float(false.mean()))


def _threshold(positives: Any) -> Any:
    """The highest threshold that at least 95 % of the positives reach."""
    need = (19 * len(positives) + 19) // 20  # ceil(0.95 n) in integers: 0.95 * n may lie just above one
    return np.sort(positives)[len(positives) - need]


def _pair(z_train: Array, z: Array) -> tuple[Tensor, Tensor]:
    x, new = features("z_train", z_train), features("z", z)
    if x.shape[1] != new.shape[1]:
        raise ValueError(f"z must have {x.shape[1]} columns, as z_train has, got {new.shape[1]}")
    return x, new.to(x)


def _scores(name: str, value: Array) -> Tensor:
    score = floating(name, torch.as_tensor(value), 1).detach().cpu().double()
    if bool(score.isnan().any()):
        raise ValueError(f"{name} must not be NaN")
    return score
