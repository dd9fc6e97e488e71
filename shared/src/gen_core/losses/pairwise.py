"""Losses on the scores of single pairs, and the input checks that the losses and bounds of the core share."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


def floating(name: str, value: Tensor, ndim: int | None = None) -> Tensor:
    """Return `value` as float32 or float64 after checking it; half precision becomes float32.

    Args:
        name: the argument's name, for the message.
        value: any floating tensor with at least one element.
        ndim: the number of dimensions asked for; None takes any.

    Raises:
        ValueError: not a tensor, not of a floating dtype, of another number of dimensions, empty, NaN or infinite.

    Examples:
        >>> floating("scores", torch.ones(2, dtype=torch.float16)).dtype
        torch.float32
    """
    if not isinstance(value, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    if not value.is_floating_point():
        raise ValueError(f"{name} must have a floating dtype, got {value.dtype}")
    if ndim is not None and value.ndim != ndim:
        raise ValueError(f"{name} must have {ndim} dimension(s), got shape {tuple(value.shape)}")
    if value.numel() == 0:
        raise ValueError(f"{name} must not be empty, got shape {tuple(value.shape)}")
    if not bool(torch.isfinite(value).all()):
        raise ValueError(f"{name} must be finite, got NaN or infinite entries")
    return value if value.dtype == torch.float64 else value.float()


def positive(name: str, value: float | Tensor) -> None:
    """Refuse what is not one finite number above 0 (a float or a tensor with one element).

    Examples:
        >>> positive("temperature", 0.5)
    """
    if isinstance(value, Tensor) and value.numel() != 1:
        raise ValueError(f"{name} must be one number, got shape {tuple(value.shape)}")
    number = value.item() if isinstance(value, Tensor) else value
    if not 0 < number < math.inf:
        raise ValueError(f"{name} must be a finite number above 0, got {number}")


def softplus(u: Tensor) -> Tensor:
    """log(1 + e^u), exact in float32 and float64 (torch's own default turns linear at 20, 2e-9 too low there).

    Examples:
        >>> f"{softplus(torch.tensor(0.0)).item():.6f}"
        '0.693147'
    """
    return F.softplus(u, threshold=40.0)


def binary_nce(pos: Tensor, neg: Tensor, reduction: Literal["mean", "sum-of-means"] = "mean") -> Tensor:
    """Binary cross-entropy of telling positive from negative logits (Gutmann and Hyvarinen 2010), in nats.

    With softplus sp: `mean` is (sum sp(-pos) + sum sp(neg)) / (N + M), eq. 1 of DGI (Velickovic et al. 2019) and its
    released code; `sum-of-means` is mean sp(-pos) + mean sp(neg), i.e. minus the bound `nce` at nu = 1, and the scale
    of the PyG and DGL layers. With N = M the second is twice the first.

    Args:
        pos: (N,) logits of the positive pairs; half precision is computed in float32.
        neg: (M,) logits of the negative pairs; M may differ from N.
        reduction: `mean` or `sum-of-means`.

    Returns:
        A scalar to minimise.

    Raises:
        ValueError: an input is not floating, is empty, NaN or infinite; or the reduction is unknown.

    Examples:
        >>> pos, neg = torch.tensor([1.0, -0.5, 2.0]), torch.tensor([-1.0, 0.3, 0.0])
        >>> f"{binary_nce(pos, neg).item():.5f} {binary_nce(pos, neg, reduction='sum-of-means').item():.5f}"
        '0.54584 1.09168'
    """
    pos_terms, neg_terms = softplus(-floating("pos", pos, 1)), softplus(floating("neg", neg, 1))
    if reduction == "mean":
        return (pos_terms.sum() + neg_terms.sum()) / (pos_terms.numel() + neg_terms.numel())
    if reduction == "sum-of-means":
        return pos_terms.mean() + neg_terms.mean()
    raise ValueError(f"reduction must be 'mean' or 'sum-of-means', got {reduction!r}")


def pair_mse(pos: Tensor, neg: Tensor) -> Tensor:
    """Squared error of a pair discriminator whose label says "different": mean pos^2 + mean (neg - 1)^2.

    The loss of RCRL (Liu et al. 2021), on probabilities w in [0, 1] that two state-action pairs differ in return: label
    0 for the pairs of one segment, 1 for the others. Chance, w = 1/2 everywhere, is 0.5; the population's optimum is
    w = P(label = 1 | pair).

    Args:
        pos: (P,) probabilities of pairs labelled 0 (the same).
        neg: (K,) probabilities of pairs labelled 1 (different).

    Returns:
        A scalar to minimise, no unit.

    Raises:
        ValueError: an input is not floating, is empty, NaN, infinite or outside [0, 1].

    Examples:
        >>> half = torch.full((3,), 0.5)
        >>> pair_mse(half, half).item()
        0.5
    """
    same, different = floating("pos", pos, 1), floating("neg", neg, 1)
    for name, value in (("pos", same), ("neg", different)):
        if bool(((value < 0) | (value > 1)).any()):
            raise ValueError(f"{name} must hold probabilities in [0, 1], got {value.min():.4g} to {value.max():.4g}")
    return same.square().mean() + (different - 1).square().mean()
