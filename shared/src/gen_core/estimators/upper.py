"""Upper bounds on mutual information from a conditional density q(y | x); nats, to *minimise*.

Scores are f[i, j] = log q(y_j | x_i), the layout of `gen_core.estimators.bounds`, joint pairs on the diagonal. They are
log densities, not free critics: that is why these bounds are not among `BOUNDS`, which are maximised, and `--bound`
refuses them.

They bound I(X; Y) from above only where q is good. With the true conditional they do; CLUB with a learnt q as long as
KL(p(x, y) || p(x) q(y | x)) <= KL(p(x) p(y) || p(x) q(y | x)). Representations that are being pushed apart leave q
behind, so refit it, some steps of `GaussianConditional.loss`, before each step that minimises:

    for _ in range(5):
        optimizer_q.zero_grad(); q.loss(x, y).backward(); optimizer_q.step()          # x, y are detached in it
    club(q.log_prob_matrix(x, y)).backward(); optimizer_of_the_encoders.step()        # q does not step here

The information bottleneck's bound, I(X; Z) <= E KL(q(z | x) || r(z)), is `losses.kl_standard_normal` for r = N(0, I).
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from gen_core._checks import finite, floating, full_precision
from gen_core.estimators.bounds import Pairs


def club(
    scores: Tensor | Pairs, positives: Tensor | None = None, *, negatives: Literal["all", "others"] = "all"
) -> Tensor:
    """CLUB, the contrastive log-ratio upper bound (Cheng et al. 2020): E_pos[log q(y|x)] - E_neg[log q(y|x)].

    The paper's negatives are *all* pairs, the positive ones among them, which makes the value (1 - 1/n) times that over
    the `others`, the unbiased one. With `Pairs` it is the paper's sampled form, one permuted partner a row:
    `club(Pairs(q.log_prob(x, y), q.log_prob(x, y[k])))`, O(n) in place of O(n^2). With the true conditional of d
    independent Gaussian pairs of correlation rho it is d rho^2 / (1 - rho^2), against I = -d/2 log(1 - rho^2).

    Args:
        scores: (n, m) log q(y_j | x_i), or Pairs.
        positives: (n,) integers, the column of each row's own y; None is the diagonal of a square matrix.
        negatives: `all` pairs or the `others`, without the positive ones; Pairs say it themselves.

    Returns:
        A scalar. Below 0 it says that q is not fitted.

    Raises:
        ValueError: shapes that do not fit, one column, NaN or infinite scores, positives with Pairs, unknown negatives.

    Examples:
        >>> f"{club(torch.eye(4)).item():.4f} {club(torch.eye(4), negatives='others').item():.4f}"
        '0.7500 1.0000'
    """
    if negatives not in ("all", "others"):
        raise ValueError(f"negatives must be 'all' or 'others', got {negatives!r}")
    if isinstance(scores, Pairs):
        if positives is not None or negatives != "all":
            raise ValueError("positives and negatives must be left out with Pairs, which say already what they are")
        pos, neg = floating("pos", scores.pos, 1), floating("neg", scores.neg, 1)
        return finite(pos.mean() - neg.mean(), pos=scores.pos, neg=scores.neg)
    f = floating("scores", scores, 2)
    column = _columns(f, positives)
    pos = f.gather(1, column)
    if negatives == "all":
        neg = f.mean()
    else:
        neg = f.scatter(1, column, 0.0).sum() / (f.numel() - len(f))
    return finite(pos.mean() - neg, scores=scores)


def l1out(scores: Tensor) -> Tensor:
    """The leave-one-out upper bound (Poole et al. 2019): mean_i [ f_ii - log mean_{j != i} e^{f_ji} ].

    The marginal of y_i is estimated by the conditionals given the *other* x's of its column. With the true conditional
    it is an upper bound that tends to I(X; Y) as n grows, much tighter than CLUB.

    Args:
        scores: (n, n) log q(y_j | x_i), n >= 2.

    Returns:
        A scalar.

    Raises:
        ValueError: not square, one row, NaN or infinite scores.

    Examples:
        >>> f"{l1out(torch.eye(4)).item():.4f}"
        '1.0000'
    """
    f = floating("scores", scores, 2)
    column = _columns(f, None)
    with full_precision(f):
        log_others = f.scatter(1, column, -math.inf).logsumexp(0) - math.log(len(f) - 1)
        return finite((f.diagonal() - log_others).mean(), scores=scores)


class GaussianConditional(nn.Module):
    """q(y | x) = N(mean(x), diag exp(log_variance(x))): two nets with one hidden layer, the q of CLUB.

    The log-variance goes through tanh, as in the paper's code, so that a variance stays in (1/e, e) and the likelihood
    finite. Bring y to a scale where the variance that x leaves can be in there: y of unit variance and correlation
    above 0.8 with x cannot, 2 y can.

    Args:
        in_x: columns of x.
        in_y: columns of y.
        hidden: width of the hidden layers.

    Raises:
        ValueError: a size below 1.

    Examples:
        >>> q = GaussianConditional(3, 2, hidden=8)
        >>> q.log_prob_matrix(torch.randn(5, 3), torch.randn(5, 2)).shape
        torch.Size([5, 5])
    """

    def __init__(self, in_x: int, in_y: int, hidden: int = 64) -> None:
        super().__init__()
        for name, size in (("in_x", in_x), ("in_y", in_y), ("hidden", hidden)):
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        self.mean = nn.Sequential(nn.Linear(in_x, hidden), nn.ReLU(), nn.Linear(hidden, in_y))
        self.log_variance = nn.Sequential(nn.Linear(in_x, hidden), nn.ReLU(), nn.Linear(hidden, in_y), nn.Tanh())

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The same as `log_prob`."""
        return self.log_prob(x, y)

    def log_prob(self, x: Tensor, y: Tensor) -> Tensor:
        """log q(y_i | x_i) of each pair, all constants included.

        Args:
            x: (n, in_x) floating.
            y: (n, in_y) floating.

        Returns:
            (n,) nats.

        Raises:
            ValueError: shapes that do not fit; NaN or infinite input.

        Examples:
            >>> GaussianConditional(3, 2)(torch.zeros(5, 3), torch.zeros(5, 2)).shape
            torch.Size([5])
        """
        mean, log_var, target = self._parts(x, y)
        if len(mean) != len(target):
            raise ValueError(f"y must have {len(mean)} rows, as x has, got shape {tuple(y.shape)}")
        with full_precision(mean):
            square = (target - mean).square() * (-log_var).exp()
            return finite(-0.5 * (square + log_var + math.log(2 * math.pi)).sum(1), x=x, y=y)

    def log_prob_matrix(self, x: Tensor, y: Tensor) -> Tensor:
        """log q(y_j | x_i) of all pairs, two matrix products in place of an (n m, in_y) tensor.

        Args:
            x: (n, in_x) floating.
            y: (m, in_y) floating.

        Returns:
            (n, m) nats, the scores of `club` and `l1out`.

        Raises:
            ValueError: shapes that do not fit; NaN or infinite input.

        Examples:
            >>> q, x, y = GaussianConditional(3, 2), torch.randn(4, 3), torch.randn(4, 2)
            >>> torch.allclose(q.log_prob_matrix(x, y).diagonal(), q.log_prob(x, y), atol=1e-5)
            True
        """
        mean, log_var, target = self._parts(x, y)
        with full_precision(mean):
            centre = target.detach().mean(0)  # the square is of a difference: less of it to cancel
            mean, target = mean - centre, target - centre
            precision = (-log_var).exp()
            of_x = (mean.square() * precision + log_var + math.log(2 * math.pi)).sum(1)
            squares = precision @ target.square().T - 2 * (mean * precision) @ target.T
            return finite(-0.5 * (squares + of_x[:, None]), x=x, y=y)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """The step of q, to minimise: -mean log q(y_i | x_i) on x and y *detached*, so that no encoder moves in it.

        Args:
            x: (n, in_x) floating.
            y: (n, in_y) floating.

        Returns:
            A scalar in nats.

        Raises:
            ValueError: as `log_prob`.

        Examples:
            >>> GaussianConditional(3, 2).loss(torch.randn(5, 3), torch.randn(5, 2)).ndim
            0
        """
        return -self.log_prob(x.detach(), y.detach()).mean()

    def _parts(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        given, target = floating("x", x, 2), floating("y", y, 2)
        mean: Tensor = floating("mean", self.mean(given))
        log_var: Tensor = floating("log_variance", self.log_variance(given))
        if target.shape[1] != mean.shape[1]:
            raise ValueError(f"y must have {mean.shape[1]} columns, got shape {tuple(y.shape)}")
        return mean, log_var, target


def _columns(f: Tensor, positives: Tensor | None) -> Tensor:
    """The column of each row's own y, (n, 1)."""
    n, m = f.shape
    if m < 2:
        raise ValueError(f"scores must have at least 2 columns, a row's own y and another, got shape {(n, m)}")
    if positives is None:
        if n != m:
            raise ValueError(f"scores must be square where the diagonal is positive, got shape {(n, m)}")
        return torch.arange(n, device=f.device)[:, None]
    if positives.dtype not in (torch.int32, torch.int64) or positives.shape != (n,):
        raise ValueError(
            f"positives must be integers of shape ({n},), a column a row, "
            f"got {positives.dtype} of shape {tuple(positives.shape)}"
        )
    low, high = int(positives.min()), int(positives.max())
    if low < 0 or high >= m:
        raise ValueError(f"positives must be columns of scores, in [0, {m - 1}], got {low} to {high}")
    return positives.to(f.device, torch.long)[:, None]
