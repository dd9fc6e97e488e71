"""Contrastive losses on embeddings: rows are samples, row i of one view belongs to row i of the other.

None of them holds the N x N matrix once it is large: see `gen_core._tiled`. All cast half precision to float32 and
leave autocast for the logits: log-sum-exp in 16 bits is too coarse. They can be differentiated twice and compiled; both
then hold the N x N matrix. `torch.func` transforms refuse them: put those around the bounds of `gen_core.estimators`.

With `gather=True` the candidates are the rows of all ranks of the process group; see `gen_core.distributed` for what is
exact. Without a group it changes nothing.
"""

import math
from typing import Any, Literal

import torch
from torch import Tensor

from gen_core._checks import Reduction, alike, finite, floating, full_precision, positive, reduced, softplus, unit
from gen_core._tiled import row_lse
from gen_core.distributed import gather as gather_rows
from gen_core.distributed import world
from gen_core.estimators.bounds import Match

SMALL = 256  # pairs up to which NT-Xent is one matrix


def info_nce(
    query: Tensor,
    key: Tensor,
    temperature: float | Tensor = 0.07,
    reduction: Reduction = "mean",
    *,
    normalize: bool = True,
    negatives: Tensor | None = None,
    gather: bool = False,
) -> Tensor:
    """InfoNCE, one direction: each query must find its own key among the N keys (van den Oord et al. 2018, eq. 4).

    l_i = -log( exp(s_ii / t) / sum_j exp(s_ij / t) ), s the cosine, or the inner product with `normalize=False`.
    Negatives are the other keys only; with `negatives` they are those K rows in place of the other keys (MoCo's queue,
    He et al. 2020, eq. 1). CLIP's loss is the mean of both directions.

    Args:
        query: (N, D) floating, N >= 2 (1 with `negatives`); these rows are the anchors.
        key: (N, D), the positive of query i in row i; gradient flows into it (detach it for MoCo).
        temperature: t > 0; a tensor with one element gets a gradient.
        reduction: `mean` or `sum` over the N anchors, or `none`.
        normalize: divide rows by their length (a zero row stays zero, with a finite gradient).
        negatives: (K, D) rows of a memory bank or queue, or None.
        gather: the keys of all ranks are candidates; not with `negatives`.

    Returns:
        Nats, a scalar or (N,) for `none`; of this rank's anchors.

    Raises:
        ValueError: shapes or dtypes differ, N < 2, integer, NaN or infinite input, bad temperature or reduction.

    Examples:
        >>> q = torch.eye(2)
        >>> f"{info_nce(q, q, temperature=1.0).item():.5f}"  # log(1 + 1/e)
        '0.31326'
        >>> f"{info_nce(q, q, 1.0, negatives=torch.tensor([[-1.0, 0.0]])).item():.5f}"
        '0.22009'
    """
    if negatives is not None and gather:
        raise ValueError("gather must be False with negatives, which stand in place of the other ranks' keys")
    least = 1 if negatives is not None or (gather and world()[1] > 1) else 2
    q, k = alike("query", query, "key", key, least)
    positive("temperature", temperature)
    with full_precision(q):
        q, k = _rows(q, normalize), _rows(k, normalize)
        if negatives is None:
            rank = world()[0] if gather else 0
            neg = row_lse(q, gather_rows(k) if gather else k, temperature, diagonals=(rank * q.shape[0],))
        else:
            bank = floating("negatives", negatives, 2).to(q.dtype)
            if bank.shape[1] != q.shape[1]:
                raise ValueError(f"negatives must have {q.shape[1]} columns, as query has, got {tuple(bank.shape)}")
            neg = row_lse(q, _rows(bank, normalize), temperature)
        loss = reduced(softplus(neg - _inner(q, k, temperature)), reduction)
    return finite(loss, query=query, key=key, negatives=negatives)


def nt_xent(
    view_a: Tensor,
    view_b: Tensor,
    temperature: float | Tensor = 0.5,
    reduction: Reduction = "mean",
    *,
    normalize: bool = True,
    gather: bool = False,
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
        gather: the views of all ranks are candidates.

    Returns:
        Nats, a scalar, or (2N,) for `none`: the anchors of `view_a`, then those of `view_b`; of this rank's anchors.

    Raises:
        ValueError: shapes or dtypes differ, N < 2, integer, NaN or infinite input, bad temperature or reduction.

    Examples:
        >>> z = torch.eye(2)
        >>> f"{nt_xent(z, z, temperature=0.5).item():.5f}"  # log(1 + 2 exp(-2))
        '0.23954'
    """
    several = gather and world()[1] > 1
    a, b = alike("view_a", view_a, "view_b", view_b, 1 if several else 2)
    positive("temperature", temperature)
    with full_precision(a):
        n = a.shape[0]
        few = n <= SMALL and not isinstance(temperature, Tensor) and not torch.compiler.is_compiling()
        if few and not several:
            losses: Tensor = _FewPairs.apply(a, b, temperature, normalize)  # pyright: ignore
        else:
            z = _rows(torch.cat([a, b]), normalize)
            if several:
                neg = row_lse(z, gather_rows(z), temperature, match=_samples(n, z.device))
                losses = softplus(neg - _inner(z, z.roll(n, 0), temperature))
            else:
                losses = _partner_losses(z, temperature)
        loss = reduced(losses, reduction)
    return finite(loss, view_a=view_a, view_b=view_b)


def sup_con(
    features: Tensor,
    labels: Tensor,
    temperature: float | Tensor = 0.1,
    empty: Literal["skip", "zero"] = "skip",
    reduction: Reduction = "mean",
    *,
    normalize: bool = True,
    gather: bool = False,
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
        gather: the rows and labels of all ranks are candidates; the mean of `skip` is over the anchors of all ranks
            that have a positive, so that the average of the ranks' losses is that of one process.

    Returns:
        Nats, a scalar or (N,) for `none`; of this rank's anchors.

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
    positive("temperature", temperature)
    rank, ranks = world() if gather else (0, 1)
    own = slice(rank * len(z), (rank + 1) * len(z))
    with full_precision(z):
        z = _rows(z, normalize)
        every, labels = (gather_rows(z), gather_rows(labels)) if gather else (z, labels)
        unique: Any = torch.unique  # pyright: ignore
        _, kind_of_all, size = unique(labels, return_inverse=True, return_counts=True)
        anchors = (size > 1)[kind_of_all].sum().clamp(min=1) / ranks
        kind = kind_of_all[own]
        others: Tensor = (size - 1)[kind]
        has = others > 0
        # The mean of the positives' logits from the class sums, O(N D), where a mask would be N x N.
        sums = torch.zeros(len(size), z.shape[1], dtype=z.dtype, device=z.device).index_add(0, kind_of_all, every)
        pos = _inner(z, (sums[kind] - z) / others.clamp(min=1)[:, None], temperature)
        lse = row_lse(z, every if ranks > 1 else None, temperature, diagonals=(own.start,))
        loss = torch.where(has, lse - pos, z.sum(1) * 0)  # a row alone in the world has a lse of -inf
        skip = reduction == "mean" and empty == "skip"
        loss = loss.sum() / anchors if skip else reduced(loss, reduction)
    return finite(loss, features=features)


def _rows(z: Tensor, normalize: bool) -> Tensor:
    return unit(z) if normalize else z


def _inner(x: Tensor, y: Tensor, temperature: float | Tensor) -> Tensor:
    return (x * y).sum(1) / temperature


def _partner_losses(z: Tensor, temperature: float | Tensor) -> Tensor:
    """NT-Xent of each of 2N rows, whose partner stands N rows further."""
    n = z.shape[0] // 2
    # softplus(neg - pos) = -log softmax of the positive, and exact where log(sum) - pos would cancel. Neither its own
    # column nor its partner's is a negative of a row.
    return softplus(row_lse(z, None, temperature, diagonals=(0, n, -n)) - _inner(z, z.roll(n, 0), temperature))


class _FewPairs(torch.autograd.Function):
    """NT-Xent of each anchor, from the views to their gradients: of few rows the number of operations is the cost."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, temperature: float, normalize: bool) -> Tensor:
        n, z = a.shape[0], torch.cat([a, b])
        length: Tensor | None = None
        if normalize:
            length = torch.linalg.vector_norm(z, dim=1, keepdim=True).clamp_min_(1e-8)  # pyright: ignore
            z.div_(length)  # pyright: ignore
        s = (z @ z.T).div_(temperature)
        own = s.view(2, n, 2, n).diagonal(0, 1, 3)  # (2, 2, n): each row with itself, and with its partner
        pos = own[0, 1].clone()
        own.fill_(-math.inf)
        top = s.amax(1, keepdim=True)
        s.sub_(top).exp_()  # kept: the backward pass needs no exponential
        sums = s.sum(1)
        gap = (sums.log() + top[:, 0]).view(2, n) - pos
        ctx.save_for_backward(a, b, z, length, s, sums, gap)
        ctx.given = temperature, normalize
        return softplus(gap).view(-1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        a, b, z, length, e, sums, gap = ctx.saved_tensors
        temperature, normalize = ctx.given
        if torch.is_grad_enabled():  # create_graph: the gradient itself must be differentiable
            again = _partner_losses(_rows(torch.cat([a, b]), normalize), temperature)
            sides = [v for v, needed in zip((a, b), ctx.needs_input_grad[:2], strict=True) if needed]
            found = iter(torch.autograd.grad(again, sides, grads[0], create_graph=True))
            return (*(next(found) if needed else None for needed in ctx.needs_input_grad[:2]), None, None)
        n, weight = a.shape[0], gap.sigmoid().view(-1).mul_(grads[0])
        with full_precision(z):
            p = e * (weight / sums)[:, None]
            p = p + p.T
            own, both = p.view(2, n, 2, n).diagonal(0, 1, 3), -(weight[:n] + weight[n:])
            own[0, 1], own[1, 0] = both, both
            dz = (p @ z).div_(temperature)
            if length is not None:
                # A row at the floor of the length is shorter than 1, and its length a constant.
                along = (dz * z).sum(1, keepdim=True) * (length > 1e-8)
                dz.addcmul_(along, z, value=-1).div_(length)
            return dz[:n], dz[n:], None, None


def _samples(n: int, device: torch.device) -> Match:
    """Rows of this rank against those of all: positive are the two views of one sample."""
    rank, ranks = world()
    number = torch.arange(ranks * n, device=device).view(ranks, 1, n).expand(-1, 2, -1)
    return Match(number[rank].flatten(), number.flatten())
