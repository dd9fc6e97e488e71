"""Contrastive losses on embeddings: rows are samples, row i of one view belongs to row i of the other.

All of them cast half precision to float32 and leave autocast for the logits: log-sum-exp in 16 bits is too coarse.
"""

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from gen_core.losses.pairwise import floating, positive, softplus

Reduction = Literal["mean", "sum", "none"]


def info_nce(
    query: Tensor,
    key: Tensor,
    temperature: float | Tensor = 0.07,
    reduction: Reduction = "mean",
    *,
    normalize: bool = True,
) -> Tensor:
    """InfoNCE, one direction: each query must find its own key among the N keys (van den Oord et al. 2018, eq. 4).

    l_i = -log( exp(s_ii / t) / sum_j exp(s_ij / t) ), s the cosine, or the inner product with `normalize=False`.
    Negatives are the other keys only. CLIP's loss is the mean of both directions.

    Args:
        query: (N, D) floating, N >= 2; these rows are the anchors.
        key: (N, D), the positive of query i in row i; gradient flows into it (detach it for MoCo).
        temperature: t > 0; a tensor with one element gets a gradient.
        reduction: `mean` or `sum` over the N anchors, or `none`.
        normalize: divide rows by their length (a zero row stays zero, with a finite gradient).

    Returns:
        Nats, a scalar or (N,) for `none`.

    Raises:
        ValueError: shapes or dtypes differ, N < 2, integer, NaN or infinite input, bad temperature or reduction.

    Examples:
        >>> q = torch.eye(2)
        >>> f"{info_nce(q, q, temperature=1.0).item():.5f}"  # log(1 + 1/e)
        '0.31326'
    """
    q, k = _views("query", query, "key", key)
    _check(temperature, reduction)
    with torch.autocast(q.device.type, enabled=False):
        q, k = _unit(q, k, normalize)
        pos, neg = _inner(q, k, temperature), _negatives(q, k, temperature).logsumexp(1)
        return _reduce(softplus(neg - pos), reduction)


def nt_xent(
    view_a: Tensor,
    view_b: Tensor,
    temperature: float | Tensor = 0.5,
    reduction: Reduction = "mean",
    *,
    normalize: bool = True,
) -> Tensor:
    """NT-Xent, SimCLR's loss (Chen et al. 2020, eq. 1): each of 2N views must find its partner among the 2N - 1 others.

    l(i, j) = -log( exp(s_ij / t) / sum_{k != i} exp(s_ik / t) ), s the cosine; the positive stands in the denominator.
    The mean is over the 2N anchors, as in the paper's algorithm box; the released TensorFlow code returns twice this.

    Args:
        view_a: (N, D) floating, N >= 2.
        view_b: (N, D), row i is the other view of the sample in row i of `view_a`.
        temperature: t > 0; a tensor with one element gets a gradient.
        reduction: `mean` or `sum` over the 2N anchors, or `none`.
        normalize: divide rows by their length (a zero row stays zero, with a finite gradient).

    Returns:
        Nats, a scalar, or (2N,) for `none`: the anchors of `view_a`, then those of `view_b`.

    Raises:
        ValueError: shapes or dtypes differ, N < 2, integer, NaN or infinite input, bad temperature or reduction.

    Examples:
        >>> z = torch.eye(2)
        >>> f"{nt_xent(z, z, temperature=0.5).item():.5f}"  # log(1 + 2 exp(-2))
        '0.23954'
    """
    a, b = _views("view_a", view_a, "view_b", view_b)
    _check(temperature, reduction)
    with torch.autocast(a.device.type, enabled=False):
        a, b = _unit(a, b, normalize)
        # Three N x N blocks in place of one 2N x 2N matrix: what is no negative is the diagonal of each block.
        ab = _negatives(a, b, temperature)
        neg_a = torch.logaddexp(_negatives(a, a, temperature).logsumexp(1), ab.logsumexp(1))
        neg_b = torch.logaddexp(_negatives(b, b, temperature).logsumexp(1), ab.logsumexp(0))
        # softplus(neg - pos) = -log softmax of the positive, and exact where log(sum) - pos would cancel.
        return _reduce(softplus(torch.cat([neg_a, neg_b]) - _inner(a, b, temperature).repeat(2)), reduction)


def sup_con(
    features: Tensor,
    labels: Tensor,
    temperature: float | Tensor = 0.1,
    empty: Literal["skip", "zero"] = "skip",
    reduction: Reduction = "mean",
    *,
    normalize: bool = True,
) -> Tensor:
    """SupCon (Khosla et al. 2020, eq. 2, L_out): each row must find all others of its class among the N - 1 others.

    l_i = -1/|P(i)| sum_{p in P(i)} log( exp(s_ip / t) / sum_{k != i} exp(s_ik / t) ), P(i) = {p != i : y_p = y_i}, s
    the cosine. The released code multiplies by t / 0.07; we do not. Two views of each image, labelled by the image,
    give `nt_xent`.

    Args:
        features: (N, D) floating, one row a view or sample.
        labels: (N,) integers; only their equality matters.
        temperature: t > 0; a tensor with one element gets a gradient.
        empty: anchors without another row of their class leave the mean (`skip`), or count in it as 0 (`zero`, as in
            the released code). Where no anchor has one the loss is 0, connected to the graph.
        reduction: `mean` or `sum` over the anchors, or `none`: (N,), 0 at anchors without a positive.
        normalize: divide rows by their length (a zero row stays zero, with a finite gradient).

    Returns:
        Nats, a scalar or (N,) for `none`.

    Raises:
        ValueError: shapes do not fit, labels are no integers, NaN or infinite input, bad temperature, empty or
            reduction.

    Examples:
        >>> z = torch.eye(2).repeat(2, 1)
        >>> f"{sup_con(z, torch.tensor([0, 1, 0, 1]), temperature=0.5).item():.5f}"  # log(1 + 2 exp(-2))
        '0.23954'
    """
    z = floating("features", features, 2)
    if labels.is_floating_point() or labels.shape != z.shape[:1]:
        raise ValueError(f"labels must be {len(z)} integers, one a row, got {labels.dtype} {tuple(labels.shape)}")
    if empty not in ("skip", "zero"):
        raise ValueError(f"empty must be 'skip' or 'zero', got {empty!r}")
    _check(temperature, reduction)
    with torch.autocast(z.device.type, enabled=False):
        z = F.normalize(z, eps=1e-8) if normalize else z
        unique: Any = torch.unique  # pyright: ignore
        _, kind, size = unique(labels, return_inverse=True, return_counts=True)
        others: Tensor = (size - 1)[kind]
        has = others > 0
        # The mean of the positives' logits from the class sums, O(N D), where a mask would be N x N.
        sums = torch.zeros(len(size), z.shape[1], dtype=z.dtype, device=z.device).index_add(0, kind, z)
        pos = _inner(z, (sums[kind] - z) / others.clamp(min=1)[:, None], temperature)
        loss = _negatives(z, z, temperature).logsumexp(1) - pos
        loss = torch.where(has, loss, z.sum(1) * 0)  # of a single row the logsumexp is -inf, and its gradient NaN
        if reduction == "mean" and empty == "skip":
            return loss.sum() / has.sum().clamp(min=1)
        return _reduce(loss, reduction)


def _views(name_a: str, a: Tensor, name_b: str, b: Tensor) -> tuple[Tensor, Tensor]:
    x, y = floating(name_a, a, 2), floating(name_b, b, 2)
    if x.shape != y.shape:
        raise ValueError(f"{name_b} must have the shape of {name_a}, {tuple(x.shape)}, got {tuple(y.shape)}")
    if x.dtype != y.dtype:
        raise ValueError(f"{name_b} must have the dtype of {name_a}, {x.dtype}, got {y.dtype}")
    if len(x) < 2:
        raise ValueError(f"{name_a} must have at least 2 rows, got 1: there are no negatives")
    return x, y


def _check(temperature: float | Tensor, reduction: str) -> None:
    positive("temperature", temperature)
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}")


def _unit(a: Tensor, b: Tensor, normalize: bool) -> tuple[Tensor, Tensor]:
    # eps bounds the gradient of a zero row; F.normalize's own 1e-12 would let it reach 1e12.
    return (F.normalize(a, eps=1e-8), F.normalize(b, eps=1e-8)) if normalize else (a, b)


def _inner(x: Tensor, y: Tensor, temperature: float | Tensor) -> Tensor:
    return (x * y).sum(1) / temperature


def _negatives(x: Tensor, y: Tensor, temperature: float | Tensor) -> Tensor:
    """(N, N) logits with -inf on the diagonal, written in place: the product does not need its own output."""
    return (x / temperature @ y.T).fill_diagonal_(-math.inf)


def _reduce(loss: Tensor, reduction: Reduction) -> Tensor:
    return loss if reduction == "none" else loss.mean() if reduction == "mean" else loss.sum()
