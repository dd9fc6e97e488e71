"""Critics: functions T(x, y) that give the scores a bound reads. Half precision is computed in float32."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gen_core._checks import full_precision, positive, unit


def separable(x: Tensor, y: Tensor, temperature: float | Tensor = 1.0, *, normalize: bool = False) -> Tensor:
    """Inner products of all pairs, T(x_i, y_j) = x_i . y_j / temperature.

    Args:
        x: (n, d).
        y: (m, d).
        temperature: > 0.
        normalize: cosines in place of inner products.

    Returns:
        (n, m) scores.

    Raises:
        ValueError: shapes do not fit, or the temperature is not a finite number above 0.

    Examples:
        >>> separable(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0], [0.0, 1.0]])).tolist()
        [[11.0, 2.0]]
    """
    x, y = _features("x", x, (2,)), _features("y", y, (2,))
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"y must have {x.shape[1]} columns, as x has, got shape {tuple(y.shape)}")
    positive("temperature", temperature)
    with full_precision(x):
        if normalize:
            x, y = unit(x), unit(y)
        return x / temperature @ y.T


def bilinear(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Bilinear scores T(x_i, y_j) = x_i^T W y_j [+ b] of all pairs (CPC, DGI, CURL).

    W goes to the side with fewer rows, so that with one summary y (DGI) this is X @ (W y): n d flops, and y is never
    repeated for each x.

    Args:
        x: (n, d).
        y: (m, e), or (e,) for one summary.
        weight: (d, e).
        bias: one number, or None.

    Returns:
        (n, m) scores, or (n,) where y is (e,).

    Raises:
        ValueError: shapes do not fit.

    Examples:
        >>> bilinear(torch.eye(2), torch.tensor([1.0, 2.0]), torch.tensor([[1.0, 1.0], [0.0, 3.0]])).tolist()
        [3.0, 6.0]
    """
    x, y, w = _features("x", x, (2,)), _features("y", y, (1, 2)), _features("weight", weight, (2,))
    if (x.shape[1], y.shape[-1]) != tuple(w.shape):
        raise ValueError(f"weight must have shape {(x.shape[1], y.shape[-1])}, got {tuple(w.shape)}")
    with full_precision(x):
        if y.ndim == 1:
            scores = x @ (w @ y)
        elif len(y) <= len(x):
            scores = x @ (y @ w.T).T
        else:
            scores = (x @ w) @ y.T
        return scores if bias is None else scores + bias.to(scores.dtype)


class Separable(nn.Module):
    """`separable` with a learnable scale and, for bounds that are not shift-invariant, a learnable bias.

    Args:
        temperature: at the start; the scale 1 / temperature is learnt as exp(log_scale).
        normalize: cosines in place of inner products.

    Examples:
        >>> Separable(temperature=0.5)(torch.eye(2), torch.eye(2)).tolist()
        [[2.0, 0.0], [0.0, 2.0]]
    """

    def __init__(self, temperature: float = 1.0, *, normalize: bool = True) -> None:
        super().__init__()
        positive("temperature", temperature)
        self.normalize = normalize
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)))
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """(n, d), (m, d) -> (n, m) scores."""
        return separable(x, y, normalize=self.normalize) * self.log_scale.exp() + self.bias


class Bilinear(nn.Module):
    """`bilinear` with its weight (Xavier-uniform) and, as in DGI's released code, a bias that starts at 0.

    Args:
        in_x: d, columns of x.
        in_y: e, columns of y.
        bias: learn b.

    Examples:
        >>> Bilinear(4, 3)(torch.ones(5, 4), torch.ones(3)).shape
        torch.Size([5])
    """

    def __init__(self, in_x: int, in_y: int, *, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(in_x, in_y)))
        self.bias = nn.Parameter(torch.zeros(())) if bias else None

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """(n, d), (m, e) or (e,) -> (n, m) or (n,) scores."""
        return bilinear(x, y, self.weight, self.bias)


def _features(name: str, value: Tensor, ndims: tuple[int, ...]) -> Tensor:
    # No check for NaN here: the bound that reads the scores makes it.
    if not value.is_floating_point():
        raise ValueError(f"{name} must have a floating dtype, got {value.dtype}")
    if value.ndim not in ndims:
        raise ValueError(f"{name} must have {' or '.join(map(str, ndims))} dimensions, got shape {tuple(value.shape)}")
    return value if value.dtype == torch.float64 else value.float()


class Concat(nn.Module):
    """A perceptron on [x; y] for all pairs, T(x_i, y_j) = MLP([x_i; y_j]); rectified linear units between its layers.

    The first layer is linear, W [x; y] + b = W_x x + b + W_y y: two products with n and m rows and their broadcast sum,
    so that the (n * m, d + e) input is never built. From the second layer on, all n * m pairs go through.

    Args:
        in_x: d, columns of x.
        in_y: e, columns of y.
        hidden: widths of the hidden layers, at least one.

    Raises:
        ValueError: no hidden layer.

    Examples:
        >>> Concat(4, 3)(torch.ones(5, 4), torch.ones(2, 3)).shape
        torch.Size([5, 2])
    """

    def __init__(self, in_x: int, in_y: int, hidden: Sequence[int] = (64, 64)) -> None:
        super().__init__()
        if not hidden:
            raise ValueError(f"hidden must name at least one layer, got {hidden!r}")
        self.in_x, self.in_y = in_x, in_y
        self.first = nn.Linear(in_x + in_y, hidden[0])
        layers: list[nn.Module] = []
        for width, after in pairwise((*hidden, 1)):
            layers += [nn.ReLU(), nn.Linear(width, after)]
        self.rest = nn.Sequential(*layers)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """(n, d), (m, e) -> (n, m) scores."""
        x, y = _features("x", x, (2,)), _features("y", y, (2,))
        for name, value, width in (("x", x, self.in_x), ("y", y, self.in_y)):
            if value.shape[1] != width:
                raise ValueError(f"{name} must have {width} columns, got shape {tuple(value.shape)}")
        weight = self.first.weight
        with full_precision(x):
            pairs = F.linear(x, weight[:, : self.in_x], self.first.bias)[:, None] + F.linear(y, weight[:, self.in_x :])
            return self.rest(pairs).squeeze(-1)
