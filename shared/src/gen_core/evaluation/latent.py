"""What a VAE's code carries: latent dimensions in use, and nats about the image."""

import math

import torch
from torch import Tensor

from gen_core._checks import Array
from gen_core.evaluation.cluster import features

_TILE = 1 << 22  # entries of a tile of densities: 32 MiB


@torch.no_grad()
def active_units(means: Array, threshold: float = 0.01) -> int:
    """Latent dimensions whose posterior mean varies over the data by more than `threshold` (Burda et al. 2016).

    Args:
        means: (n, d) floating, E[z|x] of n data points, n >= 2.
        threshold: on the variance (n - 1 in the denominator).

    Raises:
        ValueError: not a floating matrix, fewer than 2 rows, NaN or infinite entries.

    Examples:
        >>> active_units(torch.tensor([[0.0, 1.0], [2.0, 1.0]]))
        1
    """
    x = features("means", means)
    if len(x) < 2:
        raise ValueError(f"means must have at least 2 rows, got {len(x)}")
    return int((x.double().var(0) > threshold).sum())


@torch.no_grad()
def latent_information(z: Array, mean: Array, log_variance: Array) -> float:
    """I(x; z) in nats under q(z|x) = N(mean, exp(log_variance)) and the uniform law of n data points.

    mean_i [ log q(z_i|x_i) - log (1/n) sum_j q(z_i|x_j) ] (Hoffman and Johnson 2016, the first part of the KL). It is
    at most log n, and too low where the truth comes near that. The (n, n) densities are made in tiles, in float64.

    Args:
        z: (n, d) floating, z_i a sample of q(z|x_i).
        mean: (n, d).
        log_variance: (n, d), log sigma^2.

    Raises:
        ValueError: shapes differ, NaN or infinite entries.

    Examples:
        >>> mean = torch.tensor([[-9.0], [9.0]])  # two codes that never meet
        >>> round(latent_information(mean, mean, torch.zeros(2, 1)), 4)  # log 2
        0.6931
    """
    given = {"z": z, "mean": mean, "log_variance": log_variance}
    at, mu, log_var = (features(name, value).double() for name, value in given.items())
    if not at.shape == mu.shape == log_var.shape:
        raise ValueError(
            f"z, mean and log_variance must have one shape, got {[tuple(x.shape) for x in (at, mu, log_var)]}"
        )
    centre = mu.mean(0)  # changes no density, and keeps digits in the products below
    at, mu = at - centre, mu - centre
    precision = (-log_var).exp()
    own = -0.5 * ((at - mu).square() * precision + log_var).sum(1)
    constant = (mu.square() * precision + log_var).sum(1)
    total, n = at.new_zeros(()), len(at)
    step = max(1, _TILE // n)
    for start in range(0, n, step):
        rows: Tensor = at[start : start + step]
        densities = -0.5 * (rows.square() @ precision.T - 2 * rows @ (mu * precision).T + constant)
        total += (own[start : start + step] - densities.logsumexp(1)).sum()
    return float(total / n) + math.log(n)
