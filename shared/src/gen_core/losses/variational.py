"""Terms of variational objectives, in nats, to minimise."""

from typing import Literal

from torch import Tensor

from gen_core.losses.pairwise import floating


def kl_standard_normal(
    mean: Tensor, log_variance: Tensor, reduction: Literal["mean", "sum", "none"] = "mean"
) -> Tensor:
    """KL( N(mean, exp(log_variance)) || N(0, I) ) of diagonal Gaussians (Kingma and Welling 2014, appendix B).

    KL_i = 1/2 sum_k ( mean_ik^2 + exp(log_variance_ik) - 1 - log_variance_ik ).

    Args:
        mean: (..., D) floating.
        log_variance: the shape of `mean`; log sigma^2, not log sigma.
        reduction: `mean` or `sum` over the leading dimensions, or `none`; the D latent dimensions are always summed.

    Returns:
        Nats, a scalar or (...) for `none`.

    Raises:
        ValueError: shapes differ, NaN or infinite input, unknown reduction.

    Examples:
        >>> import torch
        >>> kl_standard_normal(torch.ones(2, 3), torch.zeros(2, 3)).item()
        1.5
    """
    mu, log_var = floating("mean", mean), floating("log_variance", log_variance)
    if mu.shape != log_var.shape or mu.ndim == 0:
        raise ValueError(f"log_variance must have the shape of mean, {tuple(mu.shape)}, got {tuple(log_var.shape)}")
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}")
    kl = 0.5 * (mu.square() + log_var.expm1() - log_var).sum(-1)
    return kl if reduction == "none" else kl.mean() if reduction == "mean" else kl.sum()
