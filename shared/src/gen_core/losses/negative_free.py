"""Losses of self-supervised learning without negative pairs.

Rows are samples, row i of one view belongs to row i of the other. Half precision is computed in float32, batch
statistics outside autocast.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from gen_core._checks import Reduction, alike, finite, floating, full_precision, not_negative, positive, reduced, unit


def byol(prediction: Tensor, target: Tensor, reduction: Reduction = "mean") -> Tensor:
    """BYOL, one direction (Grill et al. 2020, eq. 2): the squared distance of unit vectors, 2 - 2 cos(p_i, z_i).

    The paper's loss is the sum of both directions, `byol(p1, z2) + byol(p2, z1)`, not halved, with the target
    network's projections z. Equal to 2 + 2 `simsiam`.

    Args:
        prediction: (N, D) floating, the online network's predictions.
        target: (N, D), the target network's projections of the other view; detached here.
        reduction: `mean` or `sum` over the N rows, or `none`.

    Returns:
        A scalar in [0, 4] for `mean`, or (N,) for `none`. A zero row has cosine 0, with a finite gradient.

    Raises:
        ValueError: shapes or dtypes differ, an input is not floating or empty, an unknown reduction; or the loss is
            not finite because an input is not.

    Examples:
        >>> byol(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [3.0, 0.0]])).item()
        1.0
    """
    loss = reduced(2 - 2 * _cosines(prediction, target), reduction)
    return finite(loss, prediction=prediction, target=target)


def simsiam(prediction: Tensor, target: Tensor, reduction: Reduction = "mean") -> Tensor:
    """SimSiam, one direction (Chen and He 2021, eq. 1): -cos(p_i, z_i).

    The paper's loss is the mean of both directions (eq. 2 and 4), `(simsiam(p1, z2) + simsiam(p2, z1)) / 2`.

    Args:
        prediction: (N, D) floating, the predictor's outputs.
        target: (N, D), the projections of the other view; detached here.
        reduction: `mean` or `sum` over the N rows, or `none`.

    Returns:
        A scalar in [-1, 1] for `mean`, or (N,) for `none`. A zero row has cosine 0, with a finite gradient.

    Raises:
        ValueError: shapes or dtypes differ, an input is not floating or empty, an unknown reduction; or the loss is
            not finite because an input is not.

    Examples:
        >>> simsiam(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [3.0, 0.0]])).item()
        -0.5
    """
    loss = reduced(-_cosines(prediction, target), reduction)
    return finite(loss, prediction=prediction, target=target)


def barlow_twins(view_a: Tensor, view_b: Tensor, weight: float = 0.0051, eps: float = 1e-5) -> Tensor:
    """Barlow Twins (Zbontar et al. 2021, eq. 1): the cross-correlation of two views shall be the identity.

    sum_k (C_kk - 1)^2 + weight * sum_{k != l} C_kl^2, C_kl = mean_i a~_ik b~_il, where a~ = (a - mean) / sqrt(var +
    eps) for each column over the batch, var divided by N: batch norm without scale, as in the released code. Sums over
    the columns: the value grows with D. Some code multiplies it by 0.025 to 0.1. N is the batch at hand.

    Args:
        view_a: (N, D) floating, N >= 2.
        view_b: (N, D), row i is the other view of the sample in row i of `view_a`.
        weight: lambda >= 0 of the off-diagonal.
        eps: >= 0, beside the variance. A constant column is 0 after standardisation, also with eps 0.

    Returns:
        A scalar >= 0, no unit.

    Raises:
        ValueError: shapes or dtypes differ, N < 2, an input is not floating, weight or eps out of range; or the loss
            is not finite because an input is not.

    Examples:
        >>> z = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
        >>> f"{barlow_twins(z, z).item():.4f} {barlow_twins(z, z.flip(1)).item():.4f}"  # 2 (0 - 1)^2 + 2 * 0.0051
        '0.0000 2.0102'
    """
    a, b = alike("view_a", view_a, "view_b", view_b, least=2)
    for name, value in (("weight", weight), ("eps", eps)):
        not_negative(name, value)
    with full_precision(a):
        a, b = _standardised(a, eps), _standardised(b, eps)
        on = ((a * b).mean(0) - 1).square().sum()
        # The diagonal is set to 0 in place: a difference of two sums would round small off-diagonals away.
        off = (a.T @ b / len(a)).fill_diagonal_(0).square().sum()
        return finite(on + weight * off, view_a=view_a, view_b=view_b)


class VICRegTerms(NamedTuple):
    """The three terms of VICReg, scalars before their weights."""

    invariance: Tensor
    variance: Tensor
    covariance: Tensor


def vicreg_terms(view_a: Tensor, view_b: Tensor) -> VICRegTerms:
    """The terms of VICReg (Bardes et al. 2022, eq. 1 to 5), scaled as in the released code.

    - invariance: mean over rows and columns of (a - b)^2. Eq. 5 does not divide by D.
    - variance: mean_k max(0, 1 - sqrt(var_k + 1e-4)), averaged over the views. Eq. 6 sums the views.
    - covariance: sum_{k != l} cov_kl^2 / D, summed over the views.

    Variances and covariances are divided by N - 1.

    Args:
        view_a: (N, D) floating, N >= 2.
        view_b: (N, D), row i is the other view of the sample in row i of `view_a`.

    Returns:
        VICRegTerms(invariance, variance, covariance), scalars >= 0.

    Raises:
        ValueError: shapes or dtypes differ, N < 2, an input is not floating; or a term is not finite because an input
            is not.

    Examples:
        >>> z = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
        >>> [f"{term.item():.4f}" for term in vicreg_terms(z, z)]  # cov = 2 everywhere
        ['0.0000', '0.0000', '8.0000']
    """
    a, b = alike("view_a", view_a, "view_b", view_b, least=2)
    with full_precision(a):
        (variance_a, covariance_a), (variance_b, covariance_b) = _spread(a), _spread(b)
        terms = VICRegTerms((a - b).square().mean(), (variance_a + variance_b) / 2, covariance_a + covariance_b)
        return VICRegTerms(*(finite(term, view_a=view_a, view_b=view_b) for term in terms))


def vicreg(
    view_a: Tensor, view_b: Tensor, invariance: float = 25.0, variance: float = 25.0, covariance: float = 1.0
) -> Tensor:
    """VICReg (Bardes et al. 2022, eq. 6): the weighted sum of `vicreg_terms`, where the scale of each term is said.

    Args:
        view_a: (N, D) floating, N >= 2.
        view_b: (N, D), row i is the other view of the sample in row i of `view_a`.
        invariance: lambda >= 0.
        variance: mu >= 0.
        covariance: nu >= 0.

    Returns:
        A scalar >= 0.

    Raises:
        ValueError: shapes or dtypes differ, N < 2, an input is not floating, a weight out of range; or the loss is not
            finite because an input is not.

    Examples:
        >>> z = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
        >>> vicreg(z, z).item()
        8.0
    """
    for name, value in (("invariance", invariance), ("variance", variance), ("covariance", covariance)):
        not_negative(name, value)
    terms = vicreg_terms(view_a, view_b)
    return invariance * terms.invariance + variance * terms.variance + covariance * terms.covariance


def alignment(view_a: Tensor, view_b: Tensor, reduction: Reduction = "mean") -> Tensor:
    """Alignment of positive pairs (Wang and Isola 2020, section 4.1.1, alpha = 2): |a^_i - b^_i|^2, ^ = unit rows.

    The value of `byol`, with a gradient to both views.

    Args:
        view_a: (N, D) floating.
        view_b: (N, D), row i is the positive of row i of `view_a`.
        reduction: `mean` or `sum` over the N pairs, or `none`.

    Returns:
        A scalar in [0, 4] for `mean`, or (N,) for `none`. A zero row stays zero, with a finite gradient.

    Raises:
        ValueError: shapes or dtypes differ, an input is not floating or empty, an unknown reduction; or the loss is
            not finite because an input is not.

    Examples:
        >>> alignment(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 3.0]])).item()
        2.0
    """
    a, b = alike("view_a", view_a, "view_b", view_b)
    loss = reduced((unit(a) - unit(b)).square().sum(1), reduction)
    return finite(loss, view_a=view_a, view_b=view_b)


def uniformity(z: Tensor, t: float = 2.0) -> Tensor:
    """Uniformity on the sphere (Wang and Isola 2020, section 4.1.2): log mean_{i<j} exp(-t |z^_i - z^_j|^2).

    Unit rows, all pairs of the batch; memory N x N.

    Args:
        z: (N, D) floating, N >= 2.
        t: > 0.

    Returns:
        A scalar in [-4 t, 0], 0 where all rows point one way.

    Raises:
        ValueError: the input is not (N, D) floating with N >= 2, t out of range; or the loss is not finite because the
            input is not.

    Examples:
        >>> uniformity(torch.tensor([[1.0, 0.0], [0.0, 5.0]])).item()  # one pair at distance^2 2
        -4.0
    """
    x = floating("z", z, 2)
    if len(x) < 2:
        raise ValueError(f"z must have at least 2 rows, got {len(x)}: there is no pair")
    positive("t", t)
    with full_precision(x):
        x = unit(x)
        size = x.square().sum(1)  # 1, or 0 for a zero row
        # All ordered pairs: each i < j twice, which the mean does not see.
        pairs = (t * (2 * x @ x.T - size[:, None] - size)).fill_diagonal_(-math.inf)
        return finite(pairs.logsumexp((0, 1)) - math.log(len(x) * (len(x) - 1)), z=z)


def _cosines(prediction: Tensor, target: Tensor) -> Tensor:
    p, z = alike("prediction", prediction, "target", target)
    return (unit(p) * unit(z.detach())).sum(1)


def _standardised(x: Tensor, eps: float) -> Tensor:
    x = x - x.mean(0)
    variance = x.square().mean(0) + eps
    return x * torch.where(variance > 0, variance, 1.0).rsqrt()


def _spread(x: Tensor) -> tuple[Tensor, Tensor]:
    """The variance and the covariance term of one view."""
    x = x - x.mean(0)
    variance = x.square().sum(0) / (len(x) - 1)
    covariance = (x.T @ x / (len(x) - 1)).fill_diagonal_(0)
    return (1 - (variance + 1e-4).sqrt()).relu().mean(), covariance.square().sum() / x.shape[1]
