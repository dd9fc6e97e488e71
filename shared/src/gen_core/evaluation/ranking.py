"""Metrics of ranked lists against several targets a row: recall, NDCG, MRR. Shares in [0, 1], not percent."""

from collections.abc import Sequence

import torch
from torch import Tensor

from gen_core._checks import integers


def ranking_metrics(ranked: Tensor, targets: Sequence[Tensor], ks: Sequence[int]) -> dict[str, Tensor]:
    """Recall, NDCG and MRR of each row's list at each cut, "recall@5" and so on: (n,) float64 in [0, 1].

    recall@k = hits among the first k / targets; ndcg@k = sum over hits at ranks r <= k of 1 / log2(1 + r), over the
    same sum of the ideal list, whose first min(k, targets) ranks are hits; mrr@k = 1 / rank of the first hit within k,
    0 without one.

    Args:
        ranked: (n, K) integers, the best first, none twice in a row; a negative entry stands for no item.
        targets: for each of the n rows the integers that are right, at least one, none twice.
        ks: cuts, each in 1..K.

    Raises:
        ValueError: shapes do not fit; a row without targets; an entry twice in a row; a cut outside 1..K.

    Examples:
        >>> found = ranking_metrics(torch.tensor([[7, 3, 9, 1, 5]]), [torch.tensor([3, 5, 8])], ks=[5])
        >>> {name: round(value.item(), 4) for name, value in found.items()}
        {'recall@5': 0.6667, 'ndcg@5': 0.4776, 'mrr@5': 0.5}
    """
    if ranked.ndim != 2 or 0 in ranked.shape or ranked.is_floating_point():
        raise ValueError(f"ranked must be integers (n, K), got {ranked.dtype} of shape {tuple(ranked.shape)}")
    n, length = ranked.shape
    if len(targets) != n:
        raise ValueError(f"targets must have one entry a row of ranked, {n}, got {len(targets)}")
    if not ks or min(ks) < 1 or max(ks) > length:
        raise ValueError(f"ks must lie in 1..{length}, the columns of ranked, got {list(ks)}")
    counts = torch.tensor([len(row) for row in targets], device=ranked.device)
    if bool((counts == 0).any()):
        raise ValueError(f"row {int((counts == 0).nonzero()[0])} has no targets, so its recall is undefined")
    flat = integers("targets", torch.cat(list(targets))).to(ranked.device)
    # An item of a row as one number, so that one look-up serves all rows.
    size = int(max(ranked.max(), flat.max())) + 1
    rows = torch.arange(n, device=ranked.device)
    wanted = flat + size * rows.repeat_interleave(counts)
    listed = torch.where(ranked >= 0, ranked + size * rows[:, None], -1)
    for name, keys in (("ranked", listed[ranked >= 0]), ("targets", wanted)):
        ordered = keys.sort().values
        if bool((ordered[1:] == ordered[:-1]).any()):
            raise ValueError(f"{name} hold an item twice in one row")
    hit = torch.isin(listed, wanted)
    rank = torch.arange(1, length + 1, device=ranked.device, dtype=torch.float64)
    discount = (rank + 1).log2().reciprocal()
    gains, ideal = (hit * discount).cumsum(1), discount.cumsum(0)
    reciprocal = (hit / rank).cummax(1).values
    found: dict[str, Tensor] = {}
    for k in ks:
        found[f"recall@{k}"] = hit[:, :k].sum(1).double() / counts
        found[f"ndcg@{k}"] = gains[:, k - 1] / ideal[counts.clamp(max=k) - 1]
        found[f"mrr@{k}"] = reciprocal[:, k - 1]
    return found


def top_k(scores: Tensor, k: int) -> Tensor:
    """The columns of each row's k largest scores, the best first; equal scores: the lower column first.

    Args:
        scores: (n, m) floating, no NaN; -inf marks what may not be listed.
        k: at least 1; beyond m, and where a row has fewer scores above -inf, the list is filled up with -1.

    Returns:
        (n, k) int64.

    Examples:
        >>> top_k(torch.tensor([[0.0, 2.0, 2.0, -torch.inf]]), 4).tolist()
        [[1, 2, 0, -1]]
    """
    if scores.ndim != 2 or not scores.is_floating_point() or bool(scores.isnan().any()):
        raise ValueError(f"scores must be floating (n, m) without NaN, got {scores.dtype} of {tuple(scores.shape)}")
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    values, columns = scores.sort(dim=1, descending=True, stable=True)
    chosen = torch.where(values > -torch.inf, columns, -1)[:, :k]
    return torch.nn.functional.pad(chosen, (0, k - chosen.shape[1]), value=-1)
