"""Distances between two samples (sliced Wasserstein, MMD, Chamfer) and the coding rate of features (MCR^2).

Samples are (N, D) and (M, D), one point a row, and may differ in number; Chamfer takes batches of them. Matrix products
leave autocast: the order of projections, or a determinant, in 16 bits is too coarse.
"""

import math
from itertools import combinations_with_replacement
from typing import Any, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from gen_core._checks import Reduction, finite, floating, full_precision, positive, reduced

# ----------------------------------------------------------------------------------------------------- Wasserstein


def wasserstein_1d(x: Tensor, y: Tensor, p: float = 2.0) -> Tensor:
    """W_p^p between the columns of x and those of y: int_0^1 | F^-1(t) - G^-1(t) |^p dt, F, G the empirical laws.

    With as many rows on both sides it is the mean of |sorted x - sorted y|^p; with unequal numbers the integral of the
    piecewise constant quantile functions, exactly, no row left out. This is the piece for slices of one's own: of a
    network g, `wasserstein_1d(g(x), g(y)).mean()`.

    The p-th root is not taken (its gradient at 0 is infinite).

    Args:
        x: (N, L) floating, L one-dimensional samples.
        y: (M, L).
        p: >= 1.

    Returns:
        (L,), in the p-th power of the columns' unit.

    Raises:
        ValueError: shapes or dtypes differ, p < 1, NaN or infinite input.

    Examples:
        >>> wasserstein_1d(torch.tensor([[0.0], [1.0], [4.0]]), torch.tensor([[1.0], [0.0], [2.0]])).tolist()  # 4 / 3
        [1.3333333730697632]
        >>> wasserstein_1d(torch.tensor([[0.0], [1.0]]), torch.tensor([[0.5]]), p=1).tolist()
        [0.5]
    """
    a, b = _samples(x, y)
    _order(p)
    return finite(_quantile_cost(a, b, p), x=x, y=y)


def sliced_wasserstein(
    x: Tensor,
    y: Tensor,
    directions: Tensor | None = None,
    *,
    n_directions: int = 50,
    generator: torch.Generator | None = None,
    p: float = 2.0,
) -> Tensor:
    """Sliced W_p^p: the mean over unit directions of W_p^p of the projections (Rabin et al. 2011; Bonneel et al. 2015).

    Of N(0, I) against N(mu, I), p = 2, it is |mu|^2 / D. The p-th root is the caller's, after the mean.

    Args:
        x: (N, D) floating.
        y: (M, D).
        directions: (L, D); rows are scaled to unit length. Drawn uniformly on the sphere where None.
        n_directions: how many are drawn.
        generator: of the draws, on the device of `x`.
        p: >= 1.

    Returns:
        A scalar, in the p-th power of the data's unit.

    Raises:
        ValueError: shapes or dtypes do not fit, no direction or one of length 0, p < 1, NaN or infinite input.

    Examples:
        >>> x = torch.tensor([[0.0, 0.0], [1.0, 2.0]])
        >>> sliced_wasserstein(x, x + torch.tensor([3.0, 0.0]), torch.eye(2)).item()  # (9 + 0) / 2
        4.5
    """
    a, b = _samples(x, y)
    _order(p)
    theta = _unit_rows(a, directions, n_directions, a.shape[1], generator)
    with full_precision(a):
        return finite(_quantile_cost(a @ theta.T, b @ theta.T, p).mean(), x=x, y=y, directions=directions)


class MaxSliced(NamedTuple):
    """The largest W_p^p over directions (a scalar) and the unit direction (D,) that has it, without gradient."""

    distance: Tensor
    direction: Tensor


def max_sliced_wasserstein(
    x: Tensor,
    y: Tensor,
    directions: Tensor | None = None,
    *,
    n_directions: int = 10,
    steps: int = 50,
    generator: torch.Generator | None = None,
    p: float = 2.0,
) -> MaxSliced:
    """Max-sliced W_p^p: the largest W_p^p of the projections on a unit direction (Deshpande et al. 2019).

    Gradient ascent on the sphere from each of the given or drawn directions at once, on detached samples; the best
    direction met is kept. The distance has its gradient to x and y with that direction held fixed. A lower bound of the
    maximum: the ascent is local. Of N(0, I) against N(mu, I), p = 2, the maximum is |mu|^2.

    Args:
        x: (N, D) floating.
        y: (M, D).
        directions: (L, D) starts; rows are scaled to unit length. The last call's direction is a good one. With
            `steps=0` it is the grid that is searched. Drawn uniformly on the sphere where None.
        n_directions: how many are drawn.
        steps: of the ascent; each turns the direction by an angle that falls from 0.5 to 0.005 radian.
        generator: of the draws, on the device of `x`.
        p: >= 1.

    Returns:
        The distance, in the p-th power of the data's unit, and the direction.

    Raises:
        ValueError: shapes or dtypes do not fit, no direction or one of length 0, p < 1, steps < 0, NaN or infinite
            input.

    Examples:
        >>> x = torch.tensor([[0.0, 0.0], [1.0, 2.0]])
        >>> found = max_sliced_wasserstein(x, x + torch.tensor([3.0, 0.0]), torch.tensor([[1.0, 1.0]]))
        >>> f"{found.distance.item():.3f} {found.direction[0].item():.3f}"
        '9.000 1.000'
    """
    a, b = _samples(x, y)
    _order(p)
    if steps < 0:
        raise ValueError(f"steps must be at least 0, got {steps}")
    theta = _unit_rows(a, directions, n_directions, a.shape[1], generator)
    with full_precision(a):
        with torch.inference_mode(False), torch.enable_grad():
            fixed_a, fixed_b, theta = (v.detach().clone() for v in (a, b, theta))
            best, where = theta.new_full((len(theta),), -math.inf), theta
            for step in range(steps + 1):
                theta.requires_grad_()
                cost = _quantile_cost(fixed_a @ theta.T, fixed_b @ theta.T, p)
                better = cost > best
                best = torch.where(better, cost, best).detach()
                where = torch.where(better[:, None], theta, where).detach()
                if step < steps:
                    (slope,) = torch.autograd.grad(cost.sum(), theta)
                    tangent = slope - (slope * theta).sum(1, keepdim=True) * theta
                    turn = math.tan(0.5 * 0.01 ** (step / steps))
                    theta = F.normalize(theta + turn * F.normalize(tangent)).detach()
        direction = where[best.argmax()]
        cost = _quantile_cost((a @ direction)[:, None], (b @ direction)[:, None], p)[0]
        return MaxSliced(finite(cost, x=x, y=y, directions=directions), direction)


def generalized_sliced_wasserstein(
    x: Tensor,
    y: Tensor,
    directions: Tensor | None = None,
    *,
    kind: Literal["circular", "polynomial"] = "polynomial",
    radius: float = 1.0,
    degree: int = 3,
    n_directions: int = 50,
    generator: torch.Generator | None = None,
    p: float = 2.0,
) -> Tensor:
    """Sliced W_p^p along curves (Kolouri et al. 2019): the mean over theta of W_p^p of g(x) and g(y).

    `circular`: g(x) = | x - radius theta |. `polynomial`: g(x) = sum_a theta_a x^a, a the exponents of the monomials of
    one odd degree in the order of `itertools.combinations_with_replacement` (x^3, x^2 y, x y^2, y^3); of degree 1 it is
    `sliced_wasserstein`. Other g: `wasserstein_1d`.

    Args:
        x: (N, D) floating.
        y: (M, D).
        directions: (L, D) for circular, (L, C(D + degree - 1, degree)) for polynomial; rows are scaled to unit length.
            Drawn uniformly on the sphere where None.
        kind: the defining function g.
        radius: r > 0 of the circles' centres, in the data's unit (circular).
        degree: odd, so that the distance is 0 for equal laws only; the number of monomials grows as D^degree
            (polynomial).
        n_directions: how many are drawn.
        generator: of the draws, on the device of `x`.
        p: >= 1.

    Returns:
        A scalar, in the p-th power of the unit of g.

    Raises:
        ValueError: shapes or dtypes do not fit, no direction or one of length 0, an unknown kind, radius, degree or p
            out of range, NaN or infinite input.

    Examples:
        >>> x = torch.tensor([[1.0, 0.0], [2.0, 0.0]])
        >>> y = torch.tensor([[0.0, 1.0], [0.0, 2.0]])
        >>> generalized_sliced_wasserstein(x, y, torch.eye(4)[:1], p=1).item()  # x^3: (1 + 8) / 2
        4.5
    """
    a, b = _samples(x, y)
    _order(p)
    with full_precision(a):
        if kind == "circular":
            positive("radius", radius)
            centres = radius * _unit_rows(a, directions, n_directions, a.shape[1], generator)
            exact = "donot_use_mm_for_euclid_dist"  # the root of |x|^2 + |c|^2 - 2 x.c has no gradient near a centre
            slices_a, slices_b = (torch.cdist(v, centres, compute_mode=exact) for v in (a, b))
        elif kind == "polynomial":
            if degree < 1 or degree % 2 == 0:
                raise ValueError(f"degree must be odd and above 0, got {degree}")
            powers = list(combinations_with_replacement(range(a.shape[1]), degree))
            theta = _unit_rows(a, directions, n_directions, len(powers), generator)
            index = torch.tensor(powers, device=a.device)
            slices_a, slices_b = a[:, index].prod(2) @ theta.T, b[:, index].prod(2) @ theta.T
        else:
            raise ValueError(f"kind must be 'circular' or 'polynomial', got {kind!r}")
        return finite(_quantile_cost(slices_a, slices_b, p).mean(), x=x, y=y, directions=directions)


# ------------------------------------------------------------------------------------------------------------- MMD


def mmd(
    x: Tensor,
    y: Tensor,
    kernel: Literal["gaussian", "imq"] = "gaussian",
    bandwidth: float | Tensor | None = None,
    *,
    unbiased: bool = True,
) -> Tensor:
    """The squared maximum mean discrepancy (Gretton et al. 2012, lemma 6): E k(x, x') + E k(y, y') - 2 E k(x, y).

    `gaussian`: k = exp( -|x - y|^2 / (2 s^2) ); `imq`: k = C / (C + |x - y|^2), C = 2 s^2. Of N(0, I) against N(mu, I)
    the Gaussian gives 2 (s^2 / (s^2 + 2))^(D/2) (1 - exp( -|mu|^2 / (2 (s^2 + 2)) )). Memory O((N + M)^2), whatever D.

    Args:
        x: (N, D) floating.
        y: (M, D).
        kernel: `gaussian`, or `imq`, whose tails still pull points that are many s away.
        bandwidth: s > 0 in the data's unit; None for the median of the distances between all N + M points, a constant
            for the gradient. It then moves with the data: fix it for values that are to be compared.
        unbiased: the U-statistic, i = j left out: 0 on average for equal laws, so that it can be negative. False for
            the V-statistic, >= 0.

    Returns:
        A scalar, no unit.

    Raises:
        ValueError: shapes or dtypes do not fit, one row with `unbiased`, an unknown kernel, a bandwidth that is not
            above 0 (the median of a sample that is mostly one point), NaN or infinite input.

    Examples:
        >>> x = torch.tensor([[0.0], [1.0]])
        >>> f"{mmd(x, x + 1, bandwidth=1.0, unbiased=False).item():.4f}"
        '0.4323'
    """
    a, b = _samples(x, y)
    n, m = len(a), len(b)
    if unbiased and min(n, m) < 2:
        raise ValueError(f"x and y must have at least 2 rows each for the unbiased form, got {n} and {m}")
    if kernel not in ("gaussian", "imq"):
        raise ValueError(f"kernel must be 'gaussian' or 'imq', got {kernel!r}")
    with full_precision(a):
        # |x|^2 + |y|^2 - 2 x.y loses what is near to what is long: of centred float64 points nothing that matters.
        wide = a.dtype if a.device.type == "mps" else torch.float64
        centre = torch.cat([a, b]).detach().to(wide).mean(0)
        u, v = a.to(wide) - centre, b.to(wide) - centre
        squares = [_squared_distances(u, u), _squared_distances(v, v), _squared_distances(u, v)]
        if bandwidth is None:
            bandwidth = _median_distance(*squares)
            finite(bandwidth, x=x, y=y)
        positive("bandwidth", bandwidth)
        halves = [(d / (2 * bandwidth**2)).to(a.dtype) for d in squares]
        k_x, k_y, k_xy = ((-h).exp() if kernel == "gaussian" else 1 / (1 + h) for h in halves)
        if unbiased:
            same_x, same_y = (k_x.sum() - k_x.trace()) / (n * (n - 1)), (k_y.sum() - k_y.trace()) / (m * (m - 1))
        else:
            same_x, same_y = k_x.mean(), k_y.mean()
        return finite(same_x + same_y - 2 * k_xy.mean(), x=x, y=y)


# --------------------------------------------------------------------------------------------------------- Chamfer

TILE = 2**22
"""Distances that `chamfer` holds at a time, 16 MiB in float32."""


def chamfer(a: Tensor, b: Tensor, reduction: Reduction = "mean") -> Tensor:
    """The symmetric Chamfer distance of point clouds (Fan et al. 2017), squared and with the mean over points.

    (1/P) sum_i min_j |a_i - b_j|^2 + (1/Q) sum_j min_i |a_i - b_j|^2. Papers differ: Fan et al. sum over the points
    where this takes means; FoldingNet takes roots and the larger of the two directions; others halve the sum.

    Nearest points are searched without gradient and without |a|^2 + |b|^2 - 2 a.b, and the differences to them are then
    taken anew: a point that is in both clouds costs exactly 0, its gradient is 0. No more than 2^22 distances are held
    at a time.

    Args:
        a: (N, P, D) floating, N clouds of P points.
        b: (N, Q, D); cloud n is compared with cloud n of `a`.
        reduction: over the N clouds; `none` gives (N,).

    Returns:
        In the square of the points' unit.

    Raises:
        ValueError: shapes or dtypes do not fit, NaN or infinite input, an unknown reduction.

    Examples:
        >>> a, b = torch.tensor([[[0.0], [4.0]]]), torch.tensor([[[0.0], [1.0], [2.0]]])
        >>> f"{chamfer(a, b).item():.4f}"  # (0 + 4) / 2 + (0 + 1 + 4) / 3
        '3.6667'
    """
    x, y = floating("a", a, 3), floating("b", b, 3)
    if x.shape[0] != y.shape[0] or x.shape[2] != y.shape[2]:
        raise ValueError(f"b must have shape ({x.shape[0]}, Q, {x.shape[2]}), as a has, got {tuple(b.shape)}")
    if x.dtype != y.dtype:
        raise ValueError(f"b must have the dtype of a, {x.dtype}, got {y.dtype}")
    to_y, to_x = _nearest(x.detach(), y.detach())
    there = (x - _points(y, to_y)).square().sum(2).mean(1)
    back = (y - _points(x, to_x)).square().sum(2).mean(1)
    return finite(reduced(there + back, reduction), a=a, b=b)


# ----------------------------------------------------------------------------------------------------- coding rate


def coding_rate(features: Tensor, eps_squared: float = 0.5) -> Tensor:
    """The rate at which rows can be coded up to a squared error eps^2 (Ma et al. 2007; Yu et al. 2020).

    R(Z) = 1/2 log det( I + D / (m eps^2) Z^T Z ), by Cholesky of the smaller of D x D and m x m.

    Args:
        features: (m, D) floating, normally rows of unit length; they are taken as they are.
        eps_squared: eps^2 > 0, the square. The public code of MCR^2 and of CTRL calls this number `eps`.

    Returns:
        Nats, a scalar.

    Raises:
        ValueError: no floating matrix, NaN or infinite input, eps_squared not above 0.

    Examples:
        >>> f"{coding_rate(torch.eye(4).repeat(3, 1)).item():.4f}"  # 2 log 3
        '2.1972'
    """
    z = floating("features", features, 2)
    positive("eps_squared", eps_squared)
    return finite(_coding_rate(z, eps_squared), features=features)


class RateReduction(NamedTuple):
    """delta = whole - classes, in nats."""

    delta: Tensor
    whole: Tensor
    classes: Tensor


def rate_reduction(features: Tensor, labels: Tensor, eps_squared: float = 0.5) -> RateReduction:
    """MCR^2's rate reduction, to *maximise* (Yu et al. 2020): what coding each class by itself saves.

    R = 1/2 log det( I + D / (m eps^2) Z^T Z ), R_c = sum_j (m_j / m) 1/2 log det( I + D / (m_j eps^2) Z_j^T Z_j ),
    delta = R - R_c >= 0; it is 0 iff the classes have equal second moments. m_j is the class's own number of rows. A
    class of one row counts as any other; one without a row does not occur.

    CTRL's distance of two sets of equal size (Dai et al. 2022) is the delta of both with labels 0 and 1.

    The convention of eps: 0.5 is eps^2, as in the papers' experiments, whose code names it `eps` but divides by it
    once. A text's eps = 0.5 is `eps_squared=0.25`.

    Args:
        features: (m, D) floating, rows of unit length (normalise them first: the rate grows with their length).
        labels: (m,) integers; only their equality matters.
        eps_squared: eps^2 > 0.

    Returns:
        (delta, whole, classes) = (R - R_c, R, R_c), nats, scalars.

    Raises:
        ValueError: shapes do not fit, labels are no integers, NaN or infinite input, eps_squared not above 0.

    Examples:
        >>> z = torch.eye(4).repeat(3, 1)  # four classes on four axes
        >>> f"{rate_reduction(z, torch.arange(4).repeat(3)).delta.item():.4f}"  # log 3
        '1.0986'
    """
    z = floating("features", features, 2)
    if labels.is_floating_point() or labels.shape != z.shape[:1]:
        raise ValueError(f"labels must be {len(z)} integers, one a row, got {labels.dtype} {tuple(labels.shape)}")
    positive("eps_squared", eps_squared)
    whole = _coding_rate(z, eps_squared)
    classes = torch.zeros_like(whole)
    unique: Any = torch.unique  # pyright: ignore
    for label in unique(labels):
        rows = z[labels == label]
        classes = classes + len(rows) / len(z) * _coding_rate(rows, eps_squared)
    return RateReduction(finite(whole - classes, features=features), whole, classes)


# --------------------------------------------------------------------------------------------------------- helpers


def _samples(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    a, b = floating("x", x, 2), floating("y", y, 2)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"y must have {a.shape[1]} columns, as x has, got shape {tuple(y.shape)}")
    if a.dtype != b.dtype:
        raise ValueError(f"y must have the dtype of x, {a.dtype}, got {b.dtype}")
    return a, b


def _order(p: float) -> None:
    if not 1 <= p < math.inf:
        raise ValueError(f"p must be a finite number of at least 1, got {p}")


def _unit_rows(
    like: Tensor, directions: Tensor | None, n_directions: int, dim: int, generator: torch.Generator | None
) -> Tensor:
    """The given directions, or drawn ones, as (L, dim) rows of unit length."""
    if directions is None:
        if n_directions < 1:
            raise ValueError(f"n_directions must be at least 1, got {n_directions}")
        theta = torch.randn(n_directions, dim, generator=generator, dtype=like.dtype, device=like.device)
    else:
        theta = floating("directions", directions, 2).to(like)
        if theta.shape[1] != dim:
            raise ValueError(f"directions must have {dim} columns here, got shape {tuple(directions.shape)}")
        if bool((theta == 0).all(1).any()):
            raise ValueError("directions must have no row of length 0")
    return F.normalize(theta, eps=0.0)


def _quantile_cost(x: Tensor, y: Tensor, p: float) -> Tensor:
    """W_p^p of each column."""
    x, y = x.sort(0).values, y.sort(0).values
    n, m = len(x), len(y)
    if n == m:
        return _power(x - y, p).mean(0)
    # In units of 1 / (n m) row i of x holds for m units and row j of y for n: whole numbers, every cut is exact.
    starts = torch.cat([torch.arange(n, device=x.device) * m, torch.arange(m, device=x.device) * n]).sort().values
    width = starts.diff(append=starts.new_tensor([n * m])).to(x.dtype) / (n * m)
    return (width[:, None] * _power(x[starts // m] - y[starts // n], p)).sum(0)


def _power(gap: Tensor, p: float) -> Tensor:
    return gap.square() if p == 2 else gap.abs() if p == 1 else gap.abs().pow(p)


def _squared_distances(x: Tensor, y: Tensor) -> Tensor:
    return (x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T).clamp(min=0)


def _nearest(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Of each point of x the nearest of y and the reverse, (N, P) and (N, Q) indices; the first of equals."""
    n, p, q = len(x), x.shape[1], y.shape[1]
    rows = min(p, max(1, TILE // q))
    clouds = max(1, TILE // (rows * q))
    to_y, to_x = x.new_empty((n, p), dtype=torch.long), x.new_zeros((n, q), dtype=torch.long)
    with full_precision(x), torch.no_grad():
        for at in (slice(start, start + clouds) for start in range(0, n, clouds)):
            least = x.new_full((len(x[at]), q), math.inf)
            for start in range(0, p, rows):
                part = slice(start, start + rows)
                tile = torch.cdist(x[at, part], y[at], compute_mode="donot_use_mm_for_euclid_dist")
                to_y[at, part] = tile.min(2).indices
                found = tile.min(1)
                nearer = found.values < least
                least = torch.where(nearer, found.values, least)
                to_x[at] = torch.where(nearer, found.indices + start, to_x[at])
    return to_y, to_x


def _points(clouds: Tensor, index: Tensor) -> Tensor:
    """(N, P, D), (N, Q) -> (N, Q, D)."""
    return clouds.gather(1, index[..., None].expand(-1, -1, clouds.shape[2]))


def _median_distance(within_x: Tensor, within_y: Tensor, across: Tensor) -> Tensor:
    """The median distance of all pairs i < j of the pooled sample (the lower middle one of an even number)."""
    with torch.no_grad():
        pairs = [d[torch.ones_like(d, dtype=torch.bool).triu(1)] for d in (within_x, within_y)]
        return torch.cat([*pairs, across.flatten()]).median().sqrt()


def _coding_rate(z: Tensor, eps_squared: float) -> Tensor:
    m, d = z.shape
    with full_precision(z):
        gram = z.T @ z if d <= m else z @ z.T
        eye = torch.eye(len(gram), dtype=z.dtype, device=z.device)
        # Eigenvalues of at least 1: it cannot fail but for input that is not finite, which `finite` then names.
        factor = cast(Tensor, torch.linalg.cholesky_ex(eye + d / (m * eps_squared) * gram).L)  # pyright: ignore
        return factor.diagonal().log().sum()
