"""Disentanglement of representations whose generating factors are known: scores in [0, 1], not percent.

All take rows: `codes` (n, d) floating, the encoder's means, and `factors` (n, K) integers, the values that generated
each row. Rows may be a labelled data set, a full grid of factors, or renderings of random ones; published settings are
10,000 rows, and 5,000 for tests. The scores of groups that share a value (`factor_vae_score`, `beta_vae_score`) draw
them from the rows with replacement: the published protocol, where the factors of the rows are independent and uniform.

A constant factor is refused: there is nothing to disentangle. Discretiser, entropy and mutual information are our own,
so that only scores that scikit-learn fits (`beta_vae_score`, `sap_svm`, `dci`) can move with a library's version. How
much codes tell of the factors, informativeness, is `linear_probe` on each factor.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gen_core._checks import Array, is_integer
from gen_core.evaluation.cluster import features

_BINS = 20  # of a code's histogram, as in all published settings
_ACTIVE = 0.05  # the least deviation of a code that the FactorVAE score looks at
_TINY = 1e-11  # smoothing of an importance before its entropy


# ------------------------------------------------------------------------------------------------ mutual information


@torch.no_grad()
def information_table(codes: Array, factors: Array) -> Tensor:
    """Mutual information of each code with each factor, plug-in estimate from counts, in nats.

    A code is cut into 20 bins of equal width between its smallest and largest value. I(c; v) = sum n_cv/n log( n n_cv /
    (n_c n_v) ), which is too large by about (bins - 1)(values - 1) / 2n nats for independent ones.

    Args:
        codes: (n, d) floating.
        factors: (n, K) integers.

    Returns:
        (d, K) float64 on the CPU, at least 0.

    Raises:
        ValueError: shapes or dtypes that do not fit, NaN or infinite codes, a constant factor.

    Examples:
        >>> codes, factors = torch.tensor([[0.0, 1.0], [0.0, 0.0], [5.0, 1.0], [5.0, 0.0]]), torch.tensor([0, 0, 1, 1])
        >>> [round(value, 6) for value in information_table(codes, factors[:, None])[:, 0].tolist()]
        [0.693147, 0.0]
    """
    z, v = _rows(codes, factors)
    values, sizes = _numbered(v)
    n, d = z.shape
    table = torch.empty(d, len(sizes)).double()
    step = _tile(n)
    for first in range(0, d, step):
        bins = _discretised(z[:, first : first + step])
        code = torch.arange(bins.shape[1]) * _BINS + bins
        for j, size in enumerate(sizes):
            cells = (code * size + values[:, j, None]).flatten()
            joint = cells.bincount(minlength=bins.shape[1] * _BINS * size).view(-1, _BINS, size).double()
            # n n_cv = n_c n_v holds in whole numbers for independent counts, which gives exactly 0
            ratio = n * joint / (joint.sum(2, keepdim=True) * joint.sum(1, keepdim=True))
            table[first : first + step, j] = torch.where(joint > 0, joint * ratio.log(), 0.0).sum((1, 2)) / n
    return table.clamp(min=0)


def mig(codes: Array, factors: Array) -> float:
    """Mutual information gap (Chen et al. 2018, eq. 6): mean_k (I_k1 - I_k2) / H(v_k).

    I_k1 and I_k2 are the two largest entries of factor k in `information_table`. A second code for a factor lowers it.

    Args:
        codes: (n, d) floating, d >= 2.
        factors: (n, K) integers.

    Raises:
        ValueError: as in `information_table`; d = 1.

    Examples:
        >>> grid = torch.cartesian_prod(torch.arange(2), torch.arange(3))
        >>> round(mig(grid.double(), grid), 6)
        1.0
    """
    _, v = _rows(codes, factors, least_codes=2)
    values, sizes = _numbered(v)
    top = information_table(codes, factors).topk(2, dim=0).values
    entropy = torch.stack([_entropy(values[:, j].bincount(minlength=size)) for j, size in enumerate(sizes)])
    return float(((top[0] - top[1]) / entropy).mean())


class Disentanglement(NamedTuple):
    """Both scores, `per_code` (d,): how far each code keeps to one factor, and `kept`: the codes that were counted."""

    score: float
    completeness: float
    per_code: Tensor
    kept: Tensor


def med(codes: Array, factors: Array, top: int | None = None) -> Disentanglement:
    """Mutual information based entropy disentanglement (Cao et al. 2022), for any number of codes.

    `importance_scores` of R_ij = I(c_i; v_j) / sum_i' I(c_i'; v_j). The sum over codes adds up the bias of the plug-in
    information, so that hundreds of pure noise codes lower the score; Top-k MED (`top` = k) hardly moves.

    Args:
        codes: (n, d) floating.
        factors: (n, K) integers, K >= 2.
        top: as in `importance_scores`.

    Raises:
        ValueError: as in `information_table`; K = 1; top out of range.

    Examples:
        >>> grid = torch.cartesian_prod(torch.arange(2), torch.arange(3))
        >>> round(med(grid.double(), grid).score, 6)
        1.0
    """
    _rows(codes, factors, least_factors=2)
    table = information_table(codes, factors)
    return importance_scores(table / table.sum(0).clamp(min=torch.finfo(table.dtype).tiny), top)


def importance_scores(importance: Tensor, top: int | None = None) -> Disentanglement:
    """Disentanglement and completeness of the importances of codes for factors (Eastwood and Williams 2018).

    D_i = 1 - H_K(R_i. / sum_j R_ij), entropy to the base K: 1 where code i serves one factor, 0 where it serves all
    alike. C_j = 1 - H_d(R_.j / sum_i R_ij). Their means are weighted by the sums of their rows or columns of R (equally
    where R is 0 throughout); 1e-11 is added to R before an entropy.

    Args:
        importance: R (d, K) floating, at least 0, K >= 2.
        top: k keeps, by decreasing D_i, at most k codes for each factor; code i counts for factor arg max_j R_ij, and
            a factor may win fewer than k. The scores are those of the rows kept, not normalised anew. None keeps all.

    Raises:
        ValueError: no such matrix; top < 1.

    Examples:
        >>> scores = importance_scores(torch.tensor([[0.6, 0.0], [0.3, 0.2], [0.1, 0.8]]).double())
        >>> f"{scores.score:.6f} {scores.completeness:.6f} {[round(d, 4) for d in scores.per_code.tolist()]}"
        '0.530796 0.363584 [1.0, 0.029, 0.4967]'
    """
    r = features("importance", importance).cpu().double()
    if r.shape[1] < 2 or bool((r < 0).any()):
        raise ValueError(
            f"importance must be (d, K >= 2) and at least 0, got {tuple(r.shape)}, from {float(r.min()):.4g}"
        )
    if top is not None and top < 1:
        raise ValueError(f"top must be at least 1 or None, got {top}")
    per_code = _concentration(r)
    kept = torch.arange(len(r))
    if top is not None:
        order = per_code.argsort(descending=True, stable=True)
        winner = torch.nn.functional.one_hot(r.argmax(1)[order], r.shape[1])
        rank = (winner.cumsum(0) * winner).sum(1)  # 1 for the best code of its factor
        kept = order[rank <= top].sort().values
    rows = r[kept]
    score = _weighted(per_code[kept], rows.sum(1))
    return Disentanglement(score, _weighted(_concentration(rows.T), rows.sum(0)), per_code, kept)


# ------------------------------------------------------------------------------------- scores of groups and of pairs


class GroupScore(NamedTuple):
    """`score`, and the number of codes that are active: a deviation of 0.05 or more over the rows."""

    score: float
    active: int


@torch.no_grad()
def factor_vae_score(
    codes: Array, factors: Array, seed: int = 0, *, group: int = 64, votes: int = 10_000, test_votes: int = 5_000
) -> GroupScore:
    """FactorVAE score (Kim and Mnih 2018, section 4): which code varies least in groups that share one factor.

    A vote: a factor k, a row, `group` rows with the row's value of k; the code with the least variance, divided by its
    variance over all rows, votes for k. Each code stands for the factor that most of its training votes name; the score
    is the share of test votes that this classifier gets right. Codes with a deviation below 0.05 are left out; without
    any other the score is 0.

    Args:
        codes: (n, d) floating.
        factors: (n, K) integers, K >= 2, each value in at least 2 rows.
        seed: of the draws.
        group: rows of a group, >= 2.
        votes: training votes.
        test_votes: test votes.

    Raises:
        ValueError: as in `information_table`; K = 1; a value in one row alone; options out of range.

    Examples:
        >>> grid = torch.cartesian_prod(torch.arange(3), torch.arange(4))
        >>> factor_vae_score(grid.double(), grid, votes=500, test_votes=200)
        GroupScore(score=1.0, active=2)
    """
    if group < 2:
        raise ValueError(f"group must be at least 2, got {group}")
    _positive(votes=votes, test_votes=test_votes)
    z, v = _rows(codes, factors, least_factors=2)
    deviation = z.std(0)
    keep = deviation >= _ACTIVE
    z, active = z[:, keep] / deviation[keep], int(keep.sum())
    if active == 0:
        return GroupScore(0.0, 0)
    generator = torch.Generator().manual_seed(seed)
    factor = torch.randint(v.shape[1], (votes + test_votes,), generator=generator)
    anchor = torch.randint(len(v), factor.shape, generator=generator)
    rows = _peers(v, factor, anchor, group, generator)
    step = _tile(group * active)
    chosen = torch.cat([z[rows[i : i + step]].var(1).argmin(1) for i in range(0, len(rows), step)])
    table = (chosen * v.shape[1] + factor)[:votes].bincount(minlength=active * v.shape[1]).view(active, -1)
    right = table.argmax(1)[chosen[votes:]] == factor[votes:]
    return GroupScore(float(right.double().mean()), active)


def beta_vae_score(
    codes: Array, factors: Array, seed: int = 0, *, pairs: int = 64, votes: int = 10_000, test_votes: int = 5_000
) -> float:
    """Beta-VAE score (Higgins et al. 2017, section 3): is the shared factor told by the codes' mean differences?

    A vote: a factor k, `pairs` pairs of rows that agree in k; its features are mean |z - z'| of each code. The score is
    the accuracy on the test votes of logistic regression (scikit-learn, C = 1) on the training votes. About 1 / K for
    codes that know nothing; 1 can be had with all factors but one (Kim and Mnih 2018).

    Args:
        codes: (n, d) floating.
        factors: (n, K) integers, K >= 2.
        seed: of the draws.
        pairs: of a vote.
        votes: training votes.
        test_votes: test votes.

    Raises:
        ValueError: as in `information_table`; K = 1; options out of range.

    Examples:
        >>> grid = torch.cartesian_prod(torch.arange(3), torch.arange(4))
        >>> beta_vae_score(grid.double(), grid, votes=500, test_votes=200)
        1.0
    """
    from sklearn.linear_model import LogisticRegression  # pyright: ignore

    _positive(pairs=pairs, votes=votes, test_votes=test_votes)
    z, v = _rows(codes, factors, least_factors=2)
    generator = torch.Generator().manual_seed(seed)
    factor = torch.randint(v.shape[1], (votes + test_votes,), generator=generator)
    first = torch.randint(len(v), (votes + test_votes, pairs), generator=generator)
    second = _peers(v, factor.repeat_interleave(pairs), first.flatten(), 1, generator).view_as(first)
    step = _tile(pairs * z.shape[1])
    parts = [slice(i, i + step) for i in range(0, len(first), step)]
    means = torch.cat([(z[first[part]] - z[second[part]]).abs().mean(1) for part in parts])
    x, y = np.asarray(means, np.float64), np.asarray(factor, np.int64)
    model: Any = LogisticRegression(C=1.0, max_iter=1000)
    return float(model.fit(x[:votes], y[:votes]).score(x[votes:], y[votes:]))


# ------------------------------------------------------------------------------------------- scores of single codes


@torch.no_grad()
def sap(codes: Array, factors: Array) -> float:
    """Separated attribute predictability of ordered factors (Kumar et al. 2018): mean_k (R2_k1 - R2_k2).

    R2 of a code and a factor is their squared correlation, 0 where the code's variance is at most 1e-12; of each factor
    the two largest count.

    Args:
        codes: (n, d) floating, d >= 2.
        factors: (n, K) integers, whose order has a meaning.

    Raises:
        ValueError: as in `information_table`; d = 1.

    Examples:
        >>> grid = torch.cartesian_prod(torch.arange(2), torch.arange(3))
        >>> round(sap(grid.double(), grid), 6)
        1.0
    """
    z, v = _rows(codes, factors, least_codes=2)
    z, y = z - z.mean(0), v.double() - v.double().mean(0)
    variance = z.square().mean(0)
    shared = (z.T @ y / len(z)).square() / (variance.clamp(min=1e-300)[:, None] * y.square().mean(0))
    top = torch.where(variance[:, None] > 1e-12, shared, 0.0).topk(2, dim=0).values
    return float((top[0] - top[1]).mean())


def sap_svm(codes: Array, factors: Array, codes_test: Array, factors_test: Array, seed: int = 0) -> float:
    """SAP of unordered factors (Kumar et al. 2018): mean_k of the two best codes' difference in test accuracy.

    Each factor is predicted from each code alone by a linear support vector machine (scikit-learn, C = 0.01, balanced
    classes). For n = 10,000 each takes about 0.1 s.

    Args:
        codes: (n, d) floating, d >= 2.
        factors: (n, K) integers.
        codes_test: (m, d).
        factors_test: (m, K).
        seed: of the optimiser.

    Raises:
        ValueError: as in `information_table`; d = 1; test arrays that do not fit.

    Examples:
        >>> grid = torch.cartesian_prod(torch.arange(2), torch.arange(2))
        >>> codes = 20 * grid.double()  # a wide code: at C = 0.01 a narrow one is shrunk towards chance
        >>> sap_svm(codes, grid, codes, grid)
        0.5
    """
    from sklearn.svm import LinearSVC  # pyright: ignore

    z, v, z_new, v_new = _train_and_test(codes, factors, codes_test, factors_test)
    if z.shape[1] < 2:
        raise ValueError("codes must have at least 2 columns, got 1")
    gaps: list[float] = []
    for j in range(v.shape[1]):
        accuracy: list[float] = []
        for i in range(z.shape[1]):
            model: Any = LinearSVC(C=0.01, class_weight="balanced", dual="auto", random_state=seed)  # pyright: ignore
            accuracy.append(float(model.fit(z[:, i : i + 1], v[:, j]).score(z_new[:, i : i + 1], v_new[:, j])))
        accuracy.sort()
        gaps.append(accuracy[-1] - accuracy[-2])
    return sum(gaps) / len(gaps)


class DCI(NamedTuple):
    """Disentanglement, completeness and informativeness (mean test accuracy), and the importances R (d, K)."""

    disentanglement: float
    completeness: float
    informativeness: float
    importance: Tensor


def dci(codes: Array, factors: Array, codes_test: Array, factors_test: Array, seed: int = 0) -> DCI:
    """DCI (Eastwood and Williams 2018) with gradient-boosted trees (scikit-learn's defaults), one model a factor.

    R_ij is the importance of code i in the model of factor j; see `importance_scores` for what is made of it. A model
    grows 100 trees for each value of its factor: minutes for 10,000 rows and dozens of values.

    Args:
        codes: (n, d) floating.
        factors: (n, K) integers, K >= 2.
        codes_test: (m, d).
        factors_test: (m, K).
        seed: of the trees.

    Raises:
        ValueError: as in `information_table`; K = 1; test arrays that do not fit.

    Examples:
        >>> grid = torch.cartesian_prod(torch.arange(2), torch.arange(3))
        >>> scores = dci(grid.double(), grid, grid.double(), grid)
        >>> f"{scores.disentanglement:.2f} {scores.completeness:.2f} {scores.informativeness:.2f}"
        '1.00 1.00 1.00'
    """
    from sklearn.ensemble import GradientBoostingClassifier  # pyright: ignore

    z, v, z_new, v_new = _train_and_test(codes, factors, codes_test, factors_test, least_factors=2)
    importance = np.zeros((z.shape[1], v.shape[1]))
    accuracy: list[float] = []
    for j in range(v.shape[1]):
        model: Any = GradientBoostingClassifier(random_state=seed)
        model.fit(z, v[:, j])
        importance[:, j] = np.abs(model.feature_importances_)
        accuracy.append(float(model.score(z_new, v_new[:, j])))
    table = torch.as_tensor(importance)
    scores = importance_scores(table)
    return DCI(scores.score, scores.completeness, sum(accuracy) / len(accuracy), table)


# ----------------------------------------------------------------------------------------------------------- helpers


def _rows(codes: Array, factors: Array, least_codes: int = 1, least_factors: int = 1) -> tuple[Tensor, Tensor]:
    """Codes (n, d) in float64 and factors (n, K), both checked and on the CPU."""
    z, v = features("codes", codes).cpu().double(), _integers("factors", factors)
    if len(v) != len(z):
        raise ValueError(f"factors must have {len(z)} rows, as codes have, got {len(v)}")
    for name, x, least in (("codes", z, least_codes), ("factors", v, least_factors)):
        if x.shape[1] < least:
            raise ValueError(f"{name} must have at least {least} columns, got {x.shape[1]}")
    constant = (v == v[0]).all(0).nonzero()[:, 0]
    if len(constant):
        j = int(constant[0])
        raise ValueError(f"factors must vary, but factor {j} (from 0) is {int(v[0, j])} in all {len(v)} rows")
    return z, v


def _train_and_test(
    codes: Array, factors: Array, codes_test: Array, factors_test: Array, least_factors: int = 1
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
    z, v = _rows(codes, factors, least_factors=least_factors)
    z_new, v_new = features("codes_test", codes_test).cpu().double(), _integers("factors_test", factors_test)
    for name, x, like in (("codes_test", z_new, z), ("factors_test", v_new, v)):
        if x.shape[1] != like.shape[1]:
            raise ValueError(f"{name} must have {like.shape[1]} columns, as {name[:-5]} have, got {x.shape[1]}")
    if len(v_new) != len(z_new):
        raise ValueError(f"factors_test must have {len(z_new)} rows, as codes_test have, got {len(v_new)}")
    floats, integers = np.float64, np.int64
    return np.asarray(z, floats), np.asarray(v, integers), np.asarray(z_new, floats), np.asarray(v_new, integers)


def _integers(name: str, value: Array) -> Tensor:
    v = torch.as_tensor(value)
    if v.ndim != 2 or v.numel() == 0 or not is_integer(v):
        raise ValueError(f"{name} must be integers (n, K), not empty, got {v.dtype} of shape {tuple(v.shape)}")
    return v.cpu().long()


def _positive(**options: int) -> None:
    for name, value in options.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


def _numbered(factors: Tensor) -> tuple[Tensor, list[int]]:
    """The values of each factor as 0, 1, ... in their order, (n, K), and how many there are."""
    columns = [np.unique(np.asarray(column, np.int64), return_inverse=True) for column in factors.T]
    return torch.stack([torch.as_tensor(index) for _, index in columns], 1), [len(values) for values, _ in columns]


def _discretised(codes: Tensor) -> Tensor:
    """The bin, 0 to 19, of each entry (n, d): the last whose left edge is not above it, as numpy's histogram edges."""
    low = codes.amin(0)
    width = (codes.amax(0) - low) / _BINS
    edges = torch.arange(_BINS) * width[:, None] + low[:, None]
    return torch.searchsorted(edges, codes.T.contiguous(), right=True).T - 1


def _entropy(counts: Tensor) -> Tensor:
    """Plug-in entropy of the last dimension in nats; counts need not be whole numbers."""
    share = counts.double() / counts.sum(-1, keepdim=True)
    return -torch.xlogy(share, share).sum(-1)


def _concentration(importance: Tensor) -> Tensor:
    """1 - entropy of each row to the base of its length; 1 for a length of 1."""
    if importance.shape[1] == 1:
        return torch.ones(len(importance)).double()
    return (1 - _entropy(importance + _TINY) / math.log(importance.shape[1])).clamp(min=0)


def _weighted(values: Tensor, weight: Tensor) -> float:
    total = weight.sum()
    return float(values.mean() if total == 0 else (values * weight).sum() / total)


def _peers(factors: Tensor, factor: Tensor, rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """For each pair of a factor and a row, both (m,), `count` rows that share its value, drawn with replacement."""
    values, sizes = _numbered(factors)
    order = values.argsort(dim=0, stable=True)
    draws = torch.rand(len(rows), count, dtype=torch.float64, generator=generator)
    found = torch.empty(len(rows), count, dtype=torch.long)
    for j, size in enumerate(sizes):
        counts = values[:, j].bincount(minlength=size)
        if int(counts.min()) < 2:
            value = int(factors[order[counts.cumsum(0)[counts.argmin()] - 1, j], j])
            raise ValueError(f"factors must have each value in 2 rows or more, got {value} of factor {j} in one")
        mine = values[rows[factor == j], j, None]
        start = counts.cumsum(0) - counts
        found[factor == j] = order[start[mine] + (draws[factor == j] * counts[mine]).long(), j]
    return found


def _tile(entries: int) -> int:
    """How many votes or codes of `entries` numbers each are worked on together: 8 MiB of them."""
    return max(1, (1 << 20) // entries)
