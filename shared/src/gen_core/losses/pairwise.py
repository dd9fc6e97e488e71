"""Losses on the scores of single pairs."""

from typing import Literal

from torch import Tensor

from gen_core._checks import finite, floating, softplus, within


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
        >>> import torch
        >>> pos, neg = torch.tensor([1.0, -0.5, 2.0]), torch.tensor([-1.0, 0.3, 0.0])
        >>> f"{binary_nce(pos, neg).item():.5f} {binary_nce(pos, neg, reduction='sum-of-means').item():.5f}"
        '0.54584 1.09168'
    """
    pos_terms, neg_terms = softplus(-floating("pos", pos, 1)), softplus(floating("neg", neg, 1))
    if reduction == "mean":
        loss = (pos_terms.sum() + neg_terms.sum()) / (pos_terms.numel() + neg_terms.numel())
    elif reduction == "sum-of-means":
        loss = pos_terms.mean() + neg_terms.mean()
    else:
        raise ValueError(f"reduction must be 'mean' or 'sum-of-means', got {reduction!r}")
    return finite(loss, pos=pos, neg=neg)


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
        >>> import torch
        >>> half = torch.full((3,), 0.5)
        >>> pair_mse(half, half).item()
        0.5
    """
    same, different = floating("pos", pos, 1), floating("neg", neg, 1)
    within("pos", same, 0.0, 1.0)
    within("neg", different, 0.0, 1.0)
    return finite(same.square().mean() + (different - 1).square().mean(), pos=pos, neg=neg)
