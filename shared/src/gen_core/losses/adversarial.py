"""Adversarial losses and penalties, to minimise: the Wasserstein pair and the gradient penalty that goes with it."""

from collections.abc import Callable

import torch
from torch import Tensor

from gen_core.losses.pairwise import floating


def wasserstein_critic(real: Tensor, fake: Tensor) -> Tensor:
    """The critic's Wasserstein loss (Arjovsky et al. 2017, eq. 3): mean fake - mean real.

    Minus it estimates the distance where the critic is 1-Lipschitz; `gradient_penalty` sees to that. Some code
    maximises the reverse sign.

    Args:
        real: (N,) or (N, 1) floating, the critic's scores of real samples; half precision is computed in float32.
        fake: (M,) or (M, 1), those of generated samples, which the caller has detached from the generator.

    Returns:
        A scalar in the critic's own unit.

    Raises:
        ValueError: an input is not floating, is empty, NaN or infinite.

    Examples:
        >>> wasserstein_critic(torch.tensor([1.0, 3.0]), torch.tensor([0.5])).item()
        -1.5
    """
    return floating("fake", fake).mean() - floating("real", real).mean()


def wasserstein_generator(fake: Tensor) -> Tensor:
    """The generator's Wasserstein loss (Arjovsky et al. 2017, algorithm 1): -mean fake.

    Args:
        fake: (M,) or (M, 1) floating, the critic's scores of generated samples, with the gradient to the generator.

    Returns:
        A scalar in the critic's own unit.

    Raises:
        ValueError: the input is not floating, is empty, NaN or infinite.

    Examples:
        >>> wasserstein_generator(torch.tensor([0.5, 1.5])).item()
        -1.0
    """
    return -floating("fake", fake).mean()


def gradient_penalty(
    critic: Callable[..., Tensor],
    real: Tensor,
    fake: Tensor,
    *condition: Tensor,
    weight: float = 10.0,
    target: float = 1.0,
    mix: Tensor | None = None,
) -> Tensor:
    """The penalty of WGAN-GP (Gulrajani et al. 2017, eq. 3) on the slope of the critic between real and fake samples.

    weight * mean_i ( sqrt( |grad_x D(x^_i, c_i)|^2 + 1e-12 ) - target )^2, x^_i = u_i real_i + (1 - u_i) fake_i, u_i
    uniform in (0, 1), one a row. The norm is over all dimensions but the first and over x^ only; the condition is a
    constant. The term 1e-12 keeps the gradient finite where the slope is 0. `target=0` centres the penalty at 0.

    The result can be differentiated again (the gradient is built with its graph). Everything is computed in float32 or
    float64, under autocast too: the square of a slope overflows or vanishes in 16 bits.

    Args:
        critic: `critic(x, *condition)` -> scores, one a row. Rows must not see each other: no batch norm.
        real: (N, ...) floating.
        fake: the shape of `real`; both are taken as constants.
        condition: what the critic takes beside x, N rows each.
        weight: lambda >= 0.
        target: the slope asked for, >= 0.
        mix: (N,) the u_i; drawn from torch's global generator where None.

    Returns:
        A scalar.

    Raises:
        ValueError: shapes or dtypes do not fit; NaN or infinite input; a negative weight or target.

    Examples:
        >>> x, y = torch.zeros(2, 3), torch.ones(2, 3)
        >>> f"{gradient_penalty(lambda x: 2 * x[:, 0], x, y).item():.4f}"  # 10 (2 - 1)^2
        '10.0000'
    """
    x, y = floating("real", real.detach()), floating("fake", fake.detach())
    if x.ndim < 2 or x.shape != y.shape:
        raise ValueError(f"real and fake must have one shape (N, ...), got {tuple(real.shape)} and {tuple(fake.shape)}")
    for name, value in (("weight", weight), ("target", target)):
        if not 0 <= value < float("inf"):
            raise ValueError(f"{name} must be a finite number of at least 0, got {value}")
    u = torch.rand(len(x), dtype=x.dtype, device=x.device) if mix is None else mix.to(x)
    if u.shape != (len(x),):
        raise ValueError(f"mix must have shape ({len(x)},), one number a row, got {tuple(u.shape)}")
    u = u.view(-1, *[1] * (x.ndim - 1))
    given = [c.detach().to(x.dtype) if c.is_floating_point() else c for c in condition]
    with torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
        between = (u * x + (1 - u) * y).requires_grad_()
        scores = critic(between, *given)
        (slope,) = torch.autograd.grad(scores.sum(), between, create_graph=True)
        norm = (slope.flatten(1).square().sum(1) + 1e-12).sqrt()
        return weight * (norm - target).square().mean()
