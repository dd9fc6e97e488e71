"""Density ratios by a classifier, the shuffles that make its negatives, and sampling from ratio times base density.

One convention: log r(x) = log p(x) / q(x) is a logit, p the positive class; nats.

| model | positives, from p | negatives, from q | what is read out |
|---|---|---|---|
| total correlation (FactorVAE) | z | `permute_dims(z)` of a second batch | TC = mean log r(z) |
| mutual information, Wyner's I(X, Y; Z) | (x, y) | (x, y'), y' shuffled over the batch | MI = mean log r(x, y) |
| conditional MI given z | (x, y, z) | (x, y', z), `permute_within`, `permute_nearest` | CMI = mean log r(x, y, z) |
| noise contrastive prior | z of the posterior | z of the base prior | `sir`, `langevin`, `log_partition` |

KL(p || q) = E_p[log r] is the mean of `log_ratio` over samples of p, KL(q || p) = -E_q[log r] that over samples of q,
negated. Both are read from the logit, never from log( D / (1 - D) ), which is infinite where the sigmoid saturates. An
estimate below 0 is legal while the classifier is young: do not clamp it. Samples it was trained on read too high.

Shuffling y over the *whole* batch gives marginal independence. It never gives the conditional mutual information: a
ratio of (x, y, z) against (x, y', z) with such a y' reads I(Y; X, Z), and one of (x, y) against (x, y') reads I(X; Y).
"""

import math
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gen_core._checks import finite, floating, full_precision, integers, positive
from gen_core.estimators.bounds import Pairs, nce

Inputs = Tensor | tuple[Tensor, ...]


class DensityRatio(nn.Module):
    """A classifier of samples of p against samples of q, read as log p/q (Gutmann and Hyvarinen 2010).

    The logit u of a classifier whose classes have the prior pi_p : pi_q estimates log p/q + log(pi_p/pi_q). With
    nu = pi_q / pi_p, noise samples a data sample, log r = u + log nu. That is the whole class-balance correction:
    `loss` takes the mean over the positives and the mean over the negatives, so that their numbers do not matter and
    nu = 1 is right for every net trained by it. Another nu weights the negatives' mean; or it corrects a net that was
    trained elsewhere by cross entropy over N positives and M negatives as they came: nu = M / N.

    Args:
        net: called with the inputs of `log_ratio`; returns one row a sample: (n,) or (n, 1) logits, or (n, 2), read as
            l_0 - l_1, class 0 being p.
        nu: pi_q / pi_p, > 0.

    Raises:
        ValueError: nu is not a finite number above 0.

    Examples:
        >>> ratio = DensityRatio(nn.Identity())  # a net whose input is its logit
        >>> f"{ratio.loss(torch.zeros(3), torch.zeros(5)).item():.4f}"  # chance, 2 log 2
        '1.3863'
        >>> DensityRatio(nn.Identity())(torch.tensor([[1.5, 0.5]])).tolist()
        [1.0]
    """

    def __init__(self, net: nn.Module, nu: float = 1.0) -> None:
        super().__init__()
        positive("nu", nu)
        self.net = net
        self.nu = float(nu)

    def log_ratio(self, *inputs: Tensor) -> Tensor:
        """log p/q of each sample; its mean over samples of p is KL(p || q).

        Gradients reach the inputs and the net. A step that trains what made the samples gives its optimiser those
        parameters alone (or freezes the net): the classifier must not move in it.

        Args:
            inputs: what the net takes, n rows each: `log_ratio(z)`, or `log_ratio(x, y)` for a joint ratio.

        Returns:
            (n,) nats, float32 or float64.

        Raises:
            ValueError: the net's output has another shape, is not floating, or not finite.

        Examples:
            >>> DensityRatio(nn.Bilinear(2, 3, 1)).log_ratio(torch.ones(4, 2), torch.ones(4, 3)).shape
            torch.Size([4])
        """
        if not inputs:
            raise ValueError("inputs must hold at least one tensor, got none")
        logits: Tensor = self.net(*inputs)
        u, n = floating("logits", logits), len(inputs[0])
        if u.ndim == 2 and u.shape[1] <= 2:
            u = u[:, 0] if u.shape[1] == 1 else u[:, 0] - u[:, 1]
        if u.shape != (n,):
            raise ValueError(
                f"logits must have shape ({n},), ({n}, 1) or ({n}, 2) for {n} samples, got {tuple(logits.shape)} "
                "from the net; flatten further dimensions of the samples before the call"
            )
        return finite(u + math.log(self.nu), logits=logits)

    def loss(self, pos: Inputs, neg: Inputs) -> Tensor:
        """Binary NCE, to minimise: mean softplus(-u(pos)) + nu mean softplus(u(neg)) = -`nce` (balanced means).

        At nu = 1 its minimum is 2 log 2 - 2 JSD(p, q). FactorVAE's 0.5 (CE + CE) is half of it, and the variational
        Jensen-Shannon value is 2 log 2 - loss. Nothing is detached here: the classifier's own step passes detached
        samples, and `loss(neg, pos)` is the two-sided adversarial loss of what made them, chance again at 2 log 2.

        Args:
            pos: samples of p, one tensor or a tuple of what the net takes.
            neg: samples of q; their number may differ.

        Returns:
            A scalar in nats.

        Raises:
            ValueError: as `log_ratio`.

        Examples:
            >>> f"{DensityRatio(nn.Identity(), nu=3).loss(torch.zeros(2), torch.zeros(6)).item():.4f}"  # 4 log 2
            '2.7726'
        """
        f = [self.log_ratio(*x) if isinstance(x, tuple) else self.log_ratio(x) for x in (pos, neg)]
        return -nce(Pairs(*f), nu=self.nu)

    def forward(self, *inputs: Tensor) -> Tensor:
        """The same as `log_ratio`."""
        return self.log_ratio(*inputs)


# ------------------------------------------------------------------------------------------------- shuffles: negatives


def permute_dims(z: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Samples of prod_j q(z_j): each column of the batch in an order of its own (Kim and Mnih 2018, algorithm 1).

    The rows of a column move, never the columns of a row. FactorVAE permutes a *second* batch, so that positives and
    negatives are independent.

    Args:
        z: (B, d) floating, B >= 2.
        generator: of the draws; None is torch's global one.

    Returns:
        (B, d), the dtype of z, with its gradient.

    Raises:
        ValueError: not floating of two dimensions, or one row: its permutation is itself.

    Examples:
        >>> z = torch.arange(6.0).view(3, 2)
        >>> permute_dims(z, torch.Generator().manual_seed(0)).sort(0).values.equal(z)
        True
    """
    floating("z", z, 2)
    if len(z) < 2:
        raise ValueError(f"z must have at least 2 rows, of which a permutation differs, got shape {tuple(z.shape)}")
    keys = torch.rand(z.shape, generator=generator, device=_draws_on(generator, z))
    return z.gather(0, keys.argsort(0).to(z.device))


class Within(NamedTuple):
    """Rows and their partners of the same group: the pair (x[rows], y[partner]) given z[rows]."""

    rows: Tensor  # (K,) the rows that have a partner, ascending
    partner: Tensor  # (K,) another row of the same group each; over a group a permutation without fixed point
    skipped: int  # rows without a partner: alone in their group, or of a negative label


def permute_within(groups: Tensor, generator: torch.Generator | None = None) -> Within:
    """Another row of the same group for each row: negatives for I(X; Y | Z) with a discrete Z (CCMI's ratio).

    The members of a group are put in a random order, and each takes the next one: a uniformly random cycle. Every row
    is taken once, so that p(y | z) is that of the batch, and none is its own partner, which would put joint samples
    among the negatives. A group of one says nothing about dependence: it is skipped and counted.

    `ratio.loss((x[w.rows], y[w.rows], z[w.rows]), (x[w.rows], y[w.partner], z[w.rows]))` with w the result.

    Args:
        groups: (n,) integers, the values of z; below 0: unknown, skipped.
        generator: of the draws; None is torch's global one.

    Returns:
        (rows, partner, skipped) with int64 indices on the device of groups; rows are empty where all are skipped.

    Raises:
        ValueError: groups are no vector of integers, or are empty.

    Examples:
        >>> rows, partner, skipped = permute_within(torch.tensor([7, 5, 7, 5, 9]))
        >>> rows.tolist(), partner.tolist(), skipped
        ([0, 1, 2, 3], [2, 3, 0, 1], 1)
    """
    labels = integers("groups", groups)
    n = len(labels)
    if n == 0:
        raise ValueError("groups must not be empty")
    shuffle = torch.randperm(n, generator=generator, device=_draws_on(generator, labels)).to(labels.device)
    order = shuffle[labels[shuffle].argsort(stable=True)]  # by group, at random within
    by_group = labels[order]
    first, end = torch.searchsorted(by_group, by_group), torch.searchsorted(by_group, by_group, right=True)
    here = torch.arange(n, device=labels.device)
    partner = torch.empty_like(order)
    partner[order] = order[torch.where(here + 1 < end, here + 1, first)]  # the last member takes the first
    rows = ((partner != here) & (labels >= 0)).nonzero()[:, 0]
    return Within(rows, partner[rows], n - len(rows))


def permute_nearest(z: Tensor, k: int = 5, generator: torch.Generator | None = None) -> Tensor:
    """One of the k nearest other rows of z for each row: negatives for I(X; Y | Z) with a continuous Z.

    y[partner] has about the law p(y | z) and, given z, nothing to do with x (Mukherjee et al. 2019, CCMI, with the
    nearest neighbour of Sen et al. 2017; k of them in Molavipour et al. 2021). The bias vanishes as neighbours come
    near: few columns, many rows. Distances are Euclidean: put the columns of z on one scale. The n^2 distances are made
    in blocks of rows.

    Args:
        z: (n, d) floating, n >= 2.
        k: from 1 to n - 1; small k stays near, larger k repeats single partners less.
        generator: of the draws; None is torch's global one.

    Returns:
        (n,) int64 rows, never the row itself; a row may be taken more than once.

    Raises:
        ValueError: z is not floating of two dimensions, NaN or infinite; k out of range.

    Examples:
        >>> permute_nearest(torch.tensor([[0.0], [0.1], [5.0], [5.2]]), k=1).tolist()
        [1, 0, 3, 2]
    """
    points = floating("z", z.detach(), 2)
    n = len(points)
    if not 1 <= k < n:
        raise ValueError(f"k must be from 1 to {n - 1}, the number of other rows of z, got {k}")
    block = max(1, 2**22 // n)
    near: list[Tensor] = []
    for start in range(0, n, block):
        # not by |a|^2 + |b|^2 - 2ab, which rounds the nearest ones away
        rows = points[start : start + block]
        distance = torch.cdist(rows, points, compute_mode="donot_use_mm_for_euclid_dist")
        finite(distance.sum(), z=z)
        distance.diagonal(start).fill_(math.inf)  # the row itself
        near.append(distance.topk(k, largest=False).indices)
    chosen = torch.randint(k, (n, 1), generator=generator, device=_draws_on(generator, z)).to(z.device)
    return torch.cat(near).gather(1, chosen)[:, 0]


# --------------------------------------------------------------------------------------- sampling from r(z) p0(z) / Z


def effective_sample_size(log_weights: Tensor) -> Tensor:
    """Kish's effective sample size of importance weights, 1 / sum w^2 with sum w = 1: from 1 to M.

    For weights r = p/q of samples of q, ESS / M -> 1 / E_q[r^2].

    Args:
        log_weights: (..., M) unnormalised, nats.

    Returns:
        (...).

    Raises:
        ValueError: not floating, empty, or a row with NaN, +inf or -inf alone.

    Examples:
        >>> f"{effective_sample_size(torch.tensor([0.0, 0.0, -50.0])).item():.4f}"
        '2.0000'
    """
    log_w = _row("log_weights", log_weights)
    with full_precision(log_w):
        return finite(1 / log_w.softmax(-1).square().sum(-1), log_weights=log_weights)


class LogPartition(NamedTuple):
    """log Z and the standard error of its Monte Carlo estimate, nats."""

    value: Tensor
    standard_error: Tensor


def log_partition(log_ratio: Tensor) -> LogPartition:
    """log Z = log E_q[r] from the log-ratios of M samples of q: their log-mean-exp, with a standard error.

    Z normalises r(z) q(z), the noise contrastive prior (Aneja et al. 2021); it is 1 where r is the true ratio. The log
    of a mean is biased low, by standard_error^2 / 2 to first order, and a bound on log p(x) that subtracts it is too
    high by as much: report M. The standard error sd(r) / (mean(r) sqrt(M)) is the delta method's; it sees nothing of a
    tail that no sample met, so distrust it where `effective_sample_size` is small.

    Args:
        log_ratio: (..., M) of samples of q, M >= 2; the leading dimensions are the contexts of a conditional ratio.

    Returns:
        (value, standard_error), each (...); value with its gradient.

    Raises:
        ValueError: not floating, one sample, NaN or infinite.

    Examples:
        >>> value, error = log_partition(torch.tensor([1.0, 3.0]).log())
        >>> f"{value.item():.4f} {error.item():.4f}"
        '0.6931 0.5000'
    """
    log_r = _row("log_ratio", log_ratio)
    m = log_r.shape[-1]
    if m < 2:
        raise ValueError(f"log_ratio must hold at least 2 samples in its last dimension, got {tuple(log_ratio.shape)}")
    with full_precision(log_r):
        value = finite(log_r.logsumexp(-1) - math.log(m), log_ratio=log_ratio)
        squares = log_r.detach().softmax(-1).square().sum(-1)  # var(r) / mean(r)^2 = (M sum w^2 - 1) M / (M - 1)
        return LogPartition(value, ((m * squares - 1).clamp(min=0) / (m - 1)).sqrt())


class Resampled(NamedTuple):
    """What `sir` drew."""

    samples: Tensor  # (B, ...) or (B, n, ...)
    chosen: Tensor  # (B,) or (B, n) the proposals that were drawn
    ess: Tensor  # (B,) effective sample size of a row's M weights


def sir(
    proposals: Tensor, log_ratio: Tensor, n: int | None = None, generator: torch.Generator | None = None
) -> Resampled:
    """Sampling-importance-resampling (Rubin 1987): draws from r(z) q(z) / Z by weighting M proposals of q a row.

    A proposal is drawn with weight softmax_m(log r), with replacement. M = 1 is q itself; the law tends to r q / Z as M
    grows. Ancestral sampling of a hierarchical prior calls it group by group with n = None. Memory is the caller's:
    give fewer rows at a time.

    Args:
        proposals: (B, M, ...) samples of q, any dtype.
        log_ratio: (B, M) floating, `ratio.log_ratio(proposals.flatten(0, 1)).view(B, M)`; -inf is never drawn.
        n: draws a row; None is one, without a dimension of its own. Draws of one row repeat proposals: for n
            independent samples take n rows.
        generator: of the draws; None is torch's global one.

    Returns:
        (samples, chosen, ess).

    Raises:
        ValueError: shapes that do not fit, n < 1, NaN or infinite ratios.

    Warns:
        UserWarning: M >= 4 and the mean of `ess` over the rows is below max(2, M / 1000): few proposals carry all
            weight, because the classifier is over-confident or M too small.

    Examples:
        >>> z, log_r = torch.tensor([[-1.0, 1.0, 3.0]]), torch.tensor([[0.0, -100.0, -100.0]])
        >>> sir(z, log_r, n=2).samples.tolist()
        [[-1.0, -1.0]]
    """
    log_w = floating("log_ratio", log_ratio.detach(), 2)
    rows, m = log_w.shape
    if proposals.shape[:2] != log_w.shape:
        raise ValueError(
            f"proposals must have shape ({rows}, {m}, ...), one log_ratio each, got {tuple(proposals.shape)}"
        )
    if n is not None and n < 1:
        raise ValueError(f"n must be at least 1 or None, got {n}")
    weights = log_w.softmax(1)
    ess = 1 / weights.square().sum(1)
    mean = ess.mean().item()
    if not math.isfinite(mean):  # multinomial would kill the CUDA context
        raise ValueError("log_ratio must be finite, got NaN or infinite entries")
    if m >= 4 and mean < max(2.0, m / 1000):
        warnings.warn(
            f"sir: the effective sample size of {m} proposals is {mean:.2f} in the mean over rows; "
            "draw more proposals or train a less confident classifier",
            stacklevel=2,
        )
    weights = weights.to(_draws_on(generator, weights))
    chosen = torch.multinomial(weights, n or 1, replacement=True, generator=generator).to(proposals.device)
    samples = proposals[torch.arange(rows, device=proposals.device)[:, None], chosen]
    return Resampled(samples, chosen, ess) if n is not None else Resampled(samples[:, 0], chosen[:, 0], ess)


def langevin(
    z: Tensor,
    log_density: Callable[[Tensor], Tensor],
    *,
    steps: int,
    step_size: float,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Unadjusted Langevin dynamics: z <- z + s/2 grad log p(z) + sqrt(s) n, n ~ N(0, I), `steps` times.

    No step is rejected, so that the law it tends to is off by O(s): for a Gaussian of variance v it has the variance
    v / (1 - s / (4 v)), and it diverges for s >= 4 v. For a noise contrastive prior walk in the base prior's noise,
    z = mu + sigma e: `log_density = lambda e: ratio.log_ratio(mu + sigma * e) - e.square().sum(1) / 2`.

    Args:
        z: (B, ...) floating, the start; not changed.
        log_density: (B, ...) -> (B,) nats up to a constant, differentiable; rows must not see each other (batch norm in
            evaluation mode). Its parameters get no gradient.
        steps: >= 1.
        step_size: s > 0, the square of the noise's standard deviation.
        generator: of the noise; None is torch's global one.

    Returns:
        (B, ...) detached, float32 or float64.

    Raises:
        ValueError: bad arguments; a density of another shape or without gradient; a value that is not finite, with the
            step where it first appeared.

    Examples:
        >>> z = langevin(torch.zeros(1000), lambda z: -z.square() / 2, steps=100, step_size=0.1)
        >>> 0.8 < z.var().item() < 1.25
        True
    """
    x = floating("z", z.detach())
    positive("step_size", step_size)
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if x.ndim == 0:
        raise ValueError("z must have at least 1 dimension, got a scalar")
    bad = torch.zeros((), dtype=torch.long, device=x.device)  # kept there, so that a GPU is not waited for at each step
    with torch.enable_grad(), full_precision(x):
        for step in range(1, steps + 1):
            x = x.detach().requires_grad_()
            log_p = log_density(x)
            if log_p.shape != (len(x),):
                raise ValueError(f"log_density must return shape ({len(x)},), one a row, got {tuple(log_p.shape)}")
            if not log_p.requires_grad:
                raise ValueError("log_density must be differentiable in z, got a value without a gradient")
            (slope,) = torch.autograd.grad(log_p.sum(), x)
            noise = torch.randn(x.shape, dtype=x.dtype, generator=generator, device=_draws_on(generator, x))
            x = x.detach() + step_size / 2 * slope + math.sqrt(step_size) * noise.to(x.device)
            bad = torch.where((bad == 0) & ~x.isfinite().all(), step, bad)
    first = int(bad)
    if first:
        finite(x, z=z)
        raise ValueError(
            f"log_density and step_size {step_size} gave NaN or infinite z at step {first} of {steps}; "
            "try a smaller step_size"
        )
    return x


# ------------------------------------------------------------------------------------------------------------ pieces


def _draws_on(generator: torch.Generator | None, like: Tensor) -> torch.device:
    return like.device if generator is None else generator.device


def _row(name: str, value: Tensor) -> Tensor:
    x = floating(name, value)
    if x.ndim == 0:
        raise ValueError(f"{name} must have at least 1 dimension, got a scalar")
    return x
