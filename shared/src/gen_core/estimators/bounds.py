"""Bounds on mutual information as formulas on the scores of positive and of negative pairs; nats, to maximise.

Scores are a matrix f[i, j] = T(x_i, y_j) with `positives`, or `Pairs` where no matrix exists. `positives` is

- None: the diagonal of a square matrix;
- a LongTensor (n,): the positive column of each row (`torch.arange(n)` with m > n: further columns are negatives);
- a BoolTensor (n, m);
- a `Match`: labels, in O(n + m) memory.

Two families. *Pooled* bounds (dv, nwj, tuba, jsd, smile, nce) take the mean over all positive pairs and the mean or
log-mean-exp over all negative pairs, separately. *Ranking* bounds (infonce, interpolated) set each positive against
itself and the K negatives of its row, the row's other positives left out; mean in a row, then over the rows that have a
positive. They need the matrix. `interpolated` reads columns as its rows, because its baseline belongs to y_j.

Half precision is computed in float32. Pairs that do not count are put at -inf, never at a big negative number. `nwj`
and `tuba` are -inf where e^f overflows: that is their value. Where a mask or Match names no positive pair the bound is
0, connected to the graph, so that a batch without a pair does not end a training. No negatives at all: ValueError.

With one score matrix (`positives=None`) they can be compiled (`torch.compile`) and put under `torch.func.vmap` and
`torch.func.grad`; masks and labels are read on the way, which those refuse.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from gen_core._checks import finite, floating, is_integer, positive, softplus


@dataclass(frozen=True, eq=False)
class Match:
    """Positive pairs said by labels: (i, j) is positive iff labels[i] == ref_labels[j], negative otherwise.

    Args:
        labels: (n,) integers, of the rows.
        ref_labels: (m,) integers, of the columns; None takes `labels`. A column labelled -1 is negative for all rows.
        skip: the pair j = i + skip is neither positive nor negative (0: a row's own column; rank * B over ranks).

    Raises:
        ValueError: labels are not one-dimensional integers.

    Examples:
        >>> ids = torch.tensor([0, 1, 0, 1])
        >>> pos, neg = Match(ids, skip=0).masks()
        >>> pos.int().tolist()
        [[0, 0, 1, 0], [0, 0, 0, 1], [1, 0, 0, 0], [0, 1, 0, 0]]
        >>> neg.sum(1).tolist()
        [2, 2, 2, 2]
    """

    labels: Tensor
    ref_labels: Tensor | None = None
    skip: int | None = None

    def __post_init__(self) -> None:
        for name in ("labels", "ref_labels"):
            value = getattr(self, name)
            if value is None and name == "ref_labels":
                continue
            if not isinstance(value, Tensor) or value.ndim != 1 or not is_integer(value):
                raise ValueError(f"{name} of Match must be a one-dimensional tensor of integers, got {_say(value)}")
        if self.skip is not None and (isinstance(self.skip, bool) or not isinstance(self.skip, int)):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(f"skip of Match must be an integer or None, got {self.skip!r}")

    def masks(self) -> tuple[Tensor, Tensor]:
        """The positive and the negative pairs as two BoolTensors (n, m)."""
        ref = self.labels if self.ref_labels is None else self.ref_labels.to(self.labels.device)
        pos = (self.labels[:, None] == ref) & (ref != -1)
        neg = ~pos
        if self.skip is not None:
            for mask in (pos, neg):
                mask.diagonal(self.skip).fill_(False)
        return pos, neg


@dataclass(frozen=True, eq=False)
class Pairs:
    """Scores of positive and of negative pairs where no score matrix exists (DGI: node and graph, corrupted node).

    Args:
        pos: (P,) floating.
        neg: (K,) floating.

    Examples:
        >>> f"{dv(Pairs(torch.tensor([1.0, 3.0]), torch.zeros(3))).item():.4f}"
        '2.0000'
    """

    pos: Tensor
    neg: Tensor


Positives = Tensor | Match | None
Bound = Callable[..., Tensor]


# ---------------------------------------------------------------------------------------------------- ranking bounds


def infonce(scores: Tensor | Pairs, positives: Positives = None) -> Tensor:
    """InfoNCE (van den Oord et al. 2018; Poole et al. 2019, eq. 10), a lower bound; at most log(1 + K).

    mean_i mean_p [ f_ip - log( e^{f_ip} + sum_neg e^{f_ij} ) + log(1 + K_i) ]: negatives are the other y's of row i.
    The cross-entropy that papers minimise is log(1 + K) minus this.

    Args:
        scores: (n, m); `Pairs` are refused, since a ranking needs the negatives of each positive.
        positives: see the module's head.

    Raises:
        ValueError: Pairs; a row that has a positive but no negative; bad scores.

    Examples:
        >>> f"{infonce(torch.zeros(4, 4)).item():.4f}"
        '0.0000'
    """
    f = _scores("infonce", scores)
    if positives is None:
        value = (f.diagonal() - f.logsumexp(1)).mean() + math.log(_square(f))
    else:
        rows = _rows("infonce", f, *_masks(f, positives))
        if rows is None:
            return _nothing(f)
        per_pair = torch.log1p(rows.k)[rows.row] - softplus(rows.log_neg[rows.row] - rows.f_pos)
        value = (per_pair / rows.p[rows.row]).sum() / rows.p.shape[0]
    return finite(value, scores=f)


def interpolated(
    scores: Tensor | Pairs, positives: Positives = None, alpha: float = 0.01, log_baseline: float | Tensor = 1.0
) -> Tensor:
    """The alpha-interpolated bound (Poole et al. 2019), NWJ at alpha 0, InfoNCE at 1; at most log((1 + K) / alpha).

    1 + E[f - b] - E_product[exp(f - b)], b(y) = log( alpha m(y) + (1 - alpha) q(y) ), m the mean of e^f over x's. The
    joint term's m holds the positive and its K negatives, the product term's m the K negatives alone, so that y is
    independent of all of them (the paper's released code leaves the positive out of both).

    m and q belong to y_j: the x's of *column* j compete, and at alpha = 1 this is `infonce(scores.T)`. Columns without
    a positive are skipped.

    Args:
        scores: (n, m); `Pairs` are refused.
        positives: see the module's head.
        alpha: in [0, 1].
        log_baseline: log q, one number or (m,); 1.0, i.e. q = e, makes alpha = 0 NWJ.

    Raises:
        ValueError: Pairs; a column that has a positive but no negative; bad scores, alpha or baseline.

    Examples:
        >>> f = torch.diag(torch.ones(4))
        >>> torch.allclose(interpolated(f, alpha=0.0), nwj(f)), torch.allclose(interpolated(f, alpha=1.0), infonce(f.T))
        (True, True)
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be in [0, 1], got {alpha}")
    f = _scores("interpolated", scores)
    pos, neg = _masks(f, positives)
    rows = _rows("interpolated", f.T, pos.T, neg.T)
    if rows is None:
        return _nothing(f)
    log_q = _baseline(log_baseline, f)
    if isinstance(log_q, Tensor):
        log_q = log_q.expand(f.shape[1])[pos.any(0)]
    log_alpha, log_rest = (math.log(w) if w > 0 else -math.inf for w in (alpha, 1 - alpha))
    rest = torch.as_tensor(log_rest + log_q, dtype=f.dtype, device=f.device).expand(rows.p.shape[0])

    def b(log_m: Tensor, rest: Tensor) -> Tensor:
        return torch.logaddexp(log_alpha + log_m, rest)

    row = rows.row
    joint = rows.f_pos - b(torch.logaddexp(rows.log_neg[row], rows.f_pos) - torch.log1p(rows.k)[row], rest[row])
    log_m = rows.log_neg - torch.log(rows.k)
    value = 1 + (joint / rows.p[row]).sum() / rows.p.shape[0] - (log_m - b(log_m, rest)).exp().mean()
    return finite(value, scores=f, log_baseline=log_baseline)


# ----------------------------------------------------------------------------------------------------- pooled bounds


def dv(scores: Tensor | Pairs, positives: Positives = None) -> Tensor:
    """Donsker-Varadhan: E_pos[f] - log E_neg[e^f]. On a batch its value is biased upwards (log of a batch mean).

    Args:
        scores: (n, m) or Pairs.
        positives: see the module's head.

    Examples:
        >>> f"{dv(2 * torch.eye(3)).item():.4f}"
        '2.0000'
    """
    return pooled(lambda pos, neg, count: pos.mean() - log_mean_exp(neg, count), scores, positives)


def nwj(scores: Tensor | Pairs, positives: Positives = None) -> Tensor:
    """Nguyen-Wainwright-Jordan, also MINE-f and f-GAN KL: E_pos[f] - E_neg[e^{f - 1}]. Not shift-invariant.

    Args:
        scores: (n, m) or Pairs.
        positives: see the module's head.

    Examples:
        >>> f"{nwj(torch.ones(3, 3)).item():.4f}"
        '0.0000'
    """
    return tuba(scores, positives, log_baseline=1.0)


def tuba(scores: Tensor | Pairs, positives: Positives = None, log_baseline: float | Tensor = 1.0) -> Tensor:
    """TUBA (Poole et al. 2019, eq. 7): 1 + E_pos[f - log a(y)] - E_neg[e^{f - log a(y)}]. Not shift-invariant.

    Args:
        scores: (n, m) or Pairs.
        positives: see the module's head.
        log_baseline: log a, one number, or (m,) for a matrix: it belongs to y_j, the columns. 1.0 is NWJ.

    Raises:
        ValueError: a baseline of another shape; bad scores or positives.

    Examples:
        >>> f"{tuba(torch.zeros(3, 3), log_baseline=torch.zeros(3)).item():.4f}"
        '0.0000'
    """

    def formula(pos: Tensor, neg: Tensor, count: int) -> Tensor:
        return 1 + pos.mean() - neg.exp().sum() / count

    return pooled(formula, scores, positives, log_baseline=log_baseline)


def jsd(scores: Tensor | Pairs, positives: Positives = None) -> Tensor:
    """The Jensen-Shannon bound of f-GAN and DIM, unshifted: -E_pos[sp(-f)] - E_neg[sp(f)], sp = softplus.

    It bounds 2 JSD - 2 log 2 and is *no* bound on mutual information; its best critic is the log-ratio. DIM and
    InfoGraph add 2 log 2.

    Args:
        scores: (n, m) or Pairs.
        positives: see the module's head.

    Examples:
        >>> f"{jsd(torch.zeros(3, 3)).item():.4f}"  # - 2 log 2
        '-1.3863'
    """
    return nce(scores, positives, nu=1.0)


def smile(scores: Tensor | Pairs, positives: Positives = None, clip: float = 5.0) -> Tensor:
    """SMILE (Song and Ermon 2020): E_pos[f] - log E_neg[e^{clip(f, -clip, clip)}], DV with its second term clipped.

    This is the value *and* its own gradient; the paper trains the critic on `jsd` and reads this one out.

    Args:
        scores: (n, m) or Pairs.
        positives: see the module's head.
        clip: the paper's tau, > 0; 5 is common, 1 has low variance. math.inf is DV.

    Examples:
        >>> f = 2 * torch.eye(3)
        >>> bool(smile(f) == dv(f))
        True
    """
    if not clip > 0:
        raise ValueError(f"clip must be above 0, got {clip}")
    return pooled(lambda pos, neg, count: pos.mean() - log_mean_exp(neg, count), scores, positives, clip=clip)


def nce(scores: Tensor | Pairs, positives: Positives = None, nu: float = 1.0) -> Tensor:
    """Binary NCE (Gutmann and Hyvarinen 2010): -(E_pos[sp(-u)] + nu E_neg[sp(u)]), u = f - log nu; f is the log-ratio.

    At nu = 1 it is `jsd`, and minus the discriminator's loss of DGI's kind (`losses.binary_nce`, sum of means).

    Args:
        scores: (n, m) or Pairs.
        positives: see the module's head.
        nu: noise samples per data sample, > 0.

    Examples:
        >>> f"{nce(Pairs(torch.zeros(2), torch.zeros(6)), nu=3).item():.4f}"
        '-2.2493'
    """
    positive("nu", nu)

    def formula(pos: Tensor, neg: Tensor, count: int) -> Tensor:
        return -(softplus(-pos).mean() + nu * softplus(neg).sum() / count)

    return pooled(formula, scores, positives, log_baseline=math.log(nu))


BOUNDS: dict[str, Bound] = {f.__name__: f for f in (infonce, dv, nwj, tuba, jsd, smile, interpolated, nce)}
"""The bounds by name, as `--bound NAME` takes them."""


def nats_to_bits(nats: Tensor) -> Tensor:
    """Nats in bits.

    Examples:
        >>> nats_to_bits(torch.tensor(2.0).log()).item()
        1.0
    """
    return nats / math.log(2)


# ------------------------------------------------------------------------------------------------------------ pieces


class _Rows(NamedTuple):
    f_pos: Tensor  # (P,) scores of the positive pairs, row by row
    log_neg: Tensor  # (r,) log-sum-exp over the negatives of each row that has a positive
    row: Tensor  # (P,) the row of each positive pair, counted among those r
    p: Tensor  # (r,) positives of a row
    k: Tensor  # (r,) negatives of a row


def _rows(bound: str, f: Tensor, pos: Tensor, neg: Tensor) -> _Rows | None:
    used = pos.any(1)
    if not bool(used.all()):  # a row of -inf alone would give NaN gradients
        f, pos, neg = f[used], pos[used], neg[used]
    if f.shape[0] == 0:
        return None
    k = neg.sum(1)
    if bool((k == 0).any()):
        where = "column (pass the transpose to rank over j)" if bound == "interpolated" else "row"
        raise ValueError(f"positives leave no negatives for a positive of its {where}: {bound} needs K >= 1")
    log_neg = f.masked_fill(~neg, -math.inf).logsumexp(1)
    return _Rows(f[pos], log_neg, pos.nonzero()[:, 0], pos.sum(1).to(f.dtype), k.to(f.dtype))


def _scores(bound: str, scores: Tensor | Pairs) -> Tensor:
    if isinstance(scores, Pairs):
        raise ValueError(
            f"scores must be a matrix for {bound}, which ranks each positive against its own negatives; "
            "Pairs have none: use dv, nwj, tuba, jsd, smile or nce"
        )
    return floating("scores", scores, 2)


def _square(f: Tensor) -> int:
    n, m = f.shape
    if n != m:
        raise ValueError(f"scores must be square when positives is None, got shape {(n, m)}; say positives=")
    if n == 1:
        raise ValueError("scores of shape (1, 1) have no negatives: a bound needs K >= 1")
    return n


def _nothing(f: Tensor) -> Tensor:
    """0 nats, connected to the graph."""
    return f.sum() * 0


def _masks(f: Tensor, positives: Positives) -> tuple[Tensor, Tensor]:
    """The positive and the negative pairs, each (n, m)."""
    n, m = f.shape
    if positives is None:
        pos = torch.eye(_square(f), dtype=torch.bool, device=f.device)
    elif isinstance(positives, Match):
        pos, neg = positives.masks()
        if pos.shape != f.shape:
            raise ValueError(f"positives match {tuple(pos.shape)} pairs, but scores have shape {(n, m)}")
        return _with_negatives(f, pos.to(f.device), neg.to(f.device))
    elif not isinstance(positives, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(f"positives must be None, a LongTensor, a BoolTensor or a Match, got {_say(positives)}")
    elif positives.dtype == torch.bool:
        if positives.shape != f.shape:
            raise ValueError(f"positives must have the shape of scores, {(n, m)}, got {tuple(positives.shape)}")
        pos = positives.to(f.device)
    elif is_integer(positives) and positives.shape == (n,):
        column = positives.to(f.device, torch.long)
        low, high = int(column.min()), int(column.max())
        if low < 0 or high >= m:
            raise ValueError(f"positives must be columns of scores, in [0, {m - 1}], got {low} to {high}")
        pos = torch.zeros(n, m, dtype=torch.bool, device=f.device).scatter_(1, column[:, None], True)
    else:
        raise ValueError(f"positives must be integers ({n},) or booleans {(n, m)}, got {_say(positives)}")
    return _with_negatives(f, pos, ~pos)


def _with_negatives(f: Tensor, pos: Tensor, neg: Tensor) -> tuple[Tensor, Tensor]:
    if not bool(neg.any()):
        raise ValueError(f"scores of shape {tuple(f.shape)} have no negatives: a bound needs K >= 1")
    return pos, neg


def pooled(
    formula: Callable[[Tensor, Tensor, int], Tensor],
    scores: Tensor | Pairs,
    positives: Positives,
    *,
    log_baseline: float | Tensor = 0.0,
    clip: float = math.inf,
) -> Tensor:
    """formula(pos, neg, count): the scores, less their baseline, of the positive pairs; those of the negative pairs,
    clipped, with -inf for the other entries of a matrix; the number of negatives."""
    if isinstance(scores, Pairs):
        if positives is not None:
            raise ValueError("positives must be None with Pairs, which say already what is positive")
        pos, neg = floating("pos", scores.pos, 1), floating("neg", scores.neg, 1)
        inputs = {"pos": pos, "neg": neg}
        pos, neg, count = _less(pos, log_baseline), _clipped(_less(neg, log_baseline), clip), neg.shape[0]
    else:
        f = floating("scores", scores, 2)
        inputs = {"scores": f}
        if positives is None:
            n, f = _square(f), _less(f, log_baseline)
            # All but the diagonal, without a mask: behind each of its entries stand n others.
            pos, neg, count = f.diagonal(), _clipped(f.flatten()[1:].view(n - 1, n + 1)[:, :n], clip), n * (n - 1)
        else:
            is_pos, is_neg = _masks(f, positives)
            f = _less(f, log_baseline)
            pos, neg, count = f[is_pos], _clipped(f, clip).masked_fill(~is_neg, -math.inf), int(is_neg.sum())
            if pos.shape[0] == 0:
                return _nothing(f)
    return finite(formula(pos, neg, count), **inputs, log_baseline=log_baseline)


def _clipped(f: Tensor, clip: float) -> Tensor:
    return f if clip == math.inf else f.clamp(-clip, clip)


def _less(f: Tensor, log_baseline: float | Tensor) -> Tensor:
    return f if not isinstance(log_baseline, Tensor) and log_baseline == 0 else f - _baseline(log_baseline, f)


def log_mean_exp(neg: Tensor, count: int) -> Tensor:
    return neg.logsumexp(tuple(range(neg.ndim))) - math.log(count)


def _baseline(log_baseline: float | Tensor, f: Tensor) -> float | Tensor:
    if not isinstance(log_baseline, Tensor):
        if not math.isfinite(log_baseline):
            raise ValueError(f"log_baseline must be finite, got {log_baseline}")
        return log_baseline
    columns = f.shape[1] if f.ndim == 2 else None
    if log_baseline.ndim > 1 or (log_baseline.ndim == 1 and log_baseline.shape[0] != columns):
        allowed = "one number" if columns is None else f"one number or of shape ({columns},), one a column"
        raise ValueError(f"log_baseline must be {allowed}, got shape {tuple(log_baseline.shape)}")
    return log_baseline.to(f)


def _say(value: object) -> str:
    return f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
