"""Margin losses: a positive shall be nearer, or score higher, than a negative by a margin.

Means are over all anchors or pairs, also those that cost nothing: a mean over the others alone, the default of some
libraries, is another number.
"""

import math
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from gen_core._checks import Reduction, alike, finite, floating, not_negative, reduced, softplus, unit

Distance = Literal["euclidean", "squared", "cosine"]


def pair_distance(x: Tensor, y: Tensor, distance: Distance = "euclidean") -> Tensor:
    """Distances of the rows that belong together: |x_i - y_i|, its square, or 1 - cos(x_i, y_i).

    At equal rows, where |x - y| has no gradient, 0 is taken (a subgradient): no NaN, and no constant inside the root
    that would shift the values.

    Args:
        x: (N, D) floating; half precision is computed in float32.
        y: (N, D).
        distance: `euclidean`, `squared` or `cosine`; a zero row has cosine 0, with a finite gradient.

    Returns:
        (N,) distances.

    Raises:
        ValueError: shapes or dtypes differ, an input is not floating or empty, an unknown distance; or a distance is
            not finite because an input is not.

    Examples:
        >>> import torch
        >>> pair_distance(torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 4.0]])).tolist()
        [5.0]
    """
    return finite(_distance("x", x, "y", y, distance), x=x, y=y)


def triplet(
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    margin: float | None = 1.0,
    distance: Distance = "euclidean",
    reduction: Reduction = "mean",
) -> Tensor:
    """Triplet loss max(0, margin + d(a_i, p_i) - d(a_i, n_i)) (Schroff et al. 2015, section 3.1, on squared distances).

    `margin=None` is the soft margin of Hermans et al. (2017, section 2): log(1 + e^(d(a, p) - d(a, n))). The distances
    and their gradient at equal rows are those of `pair_distance`; torch's own loss adds 1e-6 to each difference.

    Args:
        anchor: (N, D) floating; half precision is computed in float32.
        positive: (N, D), row i belongs to the anchor of row i.
        negative: (N, D), row i does not.
        margin: >= 0, in the distance's unit, or None.
        distance: `euclidean`, `squared` or `cosine`.
        reduction: `mean` or `sum` over the N triplets, or `none`.

    Returns:
        A scalar >= 0, or (N,) for `none`.

    Raises:
        ValueError: shapes or dtypes differ, an input is not floating or empty, an option out of range; or the loss is
            not finite because an input is not.

    Examples:
        >>> import torch
        >>> a, p, n = (torch.tensor([[v, 0.0]]) for v in (0.0, 1.0, 1.5))
        >>> triplet(a, p, n).item()  # 1 + 1 - 1.5
        0.5
    """
    if margin is not None:
        not_negative("margin", margin)
    gap = _distance("anchor", anchor, "positive", positive, distance)
    gap = gap - _distance("anchor", anchor, "negative", negative, distance)
    loss = reduced(softplus(gap) if margin is None else (margin + gap).relu(), reduction)
    return finite(loss, anchor=anchor, positive=positive, negative=negative)


def contrastive_margin(pos: Tensor, neg: Tensor, margin: float = 1.0) -> Tensor:
    """Contrastive loss (Hadsell et al. 2006, eq. 4) on distances: 1/2 mean pos^2 + 1/2 mean max(0, margin - neg)^2.

    Some code drops the factors 1/2 or the squares. The means are separate; the paper sums over labelled pairs.

    Args:
        pos: (P,) distances >= 0 of pairs that belong together, as from `pair_distance`.
        neg: (K,) distances of pairs that do not; K may differ from P.
        margin: >= 0, in the distance's unit; pairs of `neg` beyond it cost nothing.

    Returns:
        A scalar >= 0.

    Raises:
        ValueError: an input is not (N,) floating or is empty, the margin out of range; or the loss is not finite
            because an input is not.

    Examples:
        >>> import torch
        >>> contrastive_margin(torch.tensor([1.0]), torch.tensor([0.0, 5.0])).item()  # (1 + (1 + 0) / 2) / 2
        0.75
    """
    not_negative("margin", margin)
    near, far = floating("pos", pos, 1), floating("neg", neg, 1)
    return finite((near.square().mean() + (margin - far).relu().square().mean()) / 2, pos=pos, neg=neg)


def ranking_hinge(
    scores: Tensor, margin: float = 0.5, *, hardest: bool = False, reduction: Reduction = "mean"
) -> Tensor:
    """Hinge loss on the ranks in each row: the diagonal shall beat the rest of its row by a margin.

    l_i = sum_{j != i} max(0, margin - s_ii + s_ij), the loss of DeViSE (Frome et al. 2013, eq. 1); with `hardest` the
    greatest of these terms in place of their sum, as in VSE++ (Faghri et al. 2018, eq. 6). Both directions of the
    latter are `ranking_hinge(s) + ranking_hinge(s.T)`.

    Args:
        scores: (N, N) floating, N >= 2, scores[i, j] of query i and candidate j, such as cosines; the positives stand
            on the diagonal. Half precision is computed in float32.
        margin: >= 0, in the score's unit.
        hardest: only the negative that costs most; where several tie, they share the gradient.
        reduction: `mean` or `sum` over the N rows, or `none`.

    Returns:
        A scalar >= 0, or (N,) for `none`.

    Raises:
        ValueError: the input is not (N, N) floating with N >= 2, an option out of range; or the loss is not finite
            because the input is not.

    Examples:
        >>> import torch
        >>> scores = torch.tensor([[1.0, 0.75, 1.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
        >>> ranking_hinge(scores, reduction="none").tolist()
        [0.75, 0.0, 0.0]
        >>> ranking_hinge(scores, hardest=True, reduction="none").tolist()
        [0.5, 0.0, 0.0]
    """
    not_negative("margin", margin)
    s = floating("scores", scores, 2)
    if s.shape[0] != s.shape[1] or len(s) < 2:
        raise ValueError(f"scores must be a square matrix of at least 2 rows, got shape {tuple(s.shape)}")
    # -inf on the diagonal: the positive is no negative of its own row, and its term is 0 after the hinge.
    cost = (margin - s.diagonal()[:, None] + s).fill_diagonal_(-math.inf).relu()
    return finite(reduced(cost.amax(1) if hardest else cost.sum(1), reduction), scores=scores)


def _distance(name_x: str, x: Tensor, name_y: str, y: Tensor, distance: Distance) -> Tensor:
    u, v = alike(name_x, x, name_y, y)
    if distance == "euclidean":
        return F.pairwise_distance(u, v, eps=0.0)
    if distance == "squared":
        return (u - v).square().sum(1)
    if distance == "cosine":
        return 1 - (unit(u) * unit(v)).sum(1)
    raise ValueError(f"distance must be 'euclidean', 'squared' or 'cosine', got {distance!r}")
