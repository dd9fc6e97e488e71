"""Groups of Gaussian latent variables: a sample, the posterior it came from, the prior it is charged under."""

import contextlib
import math
from collections.abc import Generator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gen_core.harness.method import evaluating
from gen_core.losses.variational import kl_diagonal, kl_standard_normal


class Group(NamedTuple):
    """Group k of a batch; all tensors (b, ...) of one shape but the context."""

    z: Tensor
    """A sample of q(z_k | x, z_<k)."""
    mean: Tensor
    """Of q(z_k | x, z_<k)."""
    log_variance: Tensor
    prior_mean: Tensor | None = None
    """Of p(z_k | z_<k); None is N(0, I)."""
    prior_log_variance: Tensor | None = None
    context: Tensor | None = None
    """What the top-down path knows of z_<k, (b, ...); None in the first group."""

    def kl(self) -> Tensor:
        """KL(q || p) given z_<k, nats, (b,)."""
        mean, log_variance = self.mean.flatten(1), self.log_variance.flatten(1)
        if self.prior_mean is None or self.prior_log_variance is None:
            return kl_standard_normal(mean, log_variance, reduction="none")
        prior = self.prior_mean.flatten(1), self.prior_log_variance.flatten(1)
        return kl_diagonal(mean, log_variance, *prior, reduction="none")

    def log_ratio(self) -> Tensor:
        """log q(z) - log p(z) at the sample, nats, (b,)."""
        prior = log_normal(self.z, self.prior_mean, self.prior_log_variance)
        return log_normal(self.z, self.mean, self.log_variance) - prior


class Latents(NamedTuple):
    """All groups of a batch, top first, and what the decoder makes of their samples."""

    groups: list[Group]
    parameters: Tensor
    """Of the likelihood, (b, parameters, h, w)."""


def gaussian(mean: Tensor, log_variance: Tensor, temperature: float = 1.0) -> Tensor:
    """A sample of N(mean, temperature^2 exp(log_variance)), with its gradient."""
    return torch.addcmul(mean, torch.randn_like(mean), (0.5 * log_variance).exp(), value=temperature)


def log_normal(z: Tensor, mean: Tensor | None, log_variance: Tensor | None) -> Tensor:
    """log N(z; mean, exp(log_variance)), None for N(0, I); (b, ...) -> (b,)."""
    if mean is None or log_variance is None:
        terms = z.square()
    else:
        terms = (z - mean).square() * (-log_variance).exp() + log_variance
    return -0.5 * (terms + math.log(2 * math.pi)).flatten(1).sum(1)


def inconsistency(groups: list[Group], changed: slice, original: slice) -> Tensor:
    """sum_k KL( q(z_k | x', z'_<k) || q(z_k | x, z_<k) ) of these rows, each on its own samples; nats, (b,)."""
    total = 0.0
    for group in groups:
        sides = [t[rows].flatten(1) for rows in (changed, original) for t in (group.mean, group.log_variance)]
        total = total + kl_diagonal(*sides, reduction="none")
    assert isinstance(total, Tensor)
    return total


@contextlib.contextmanager
def seeded(model: nn.Module, seed: int) -> Generator[None]:
    """Evaluation mode and torch's global random state at `seed`; both are put back."""
    devices = [p.device for p in model.parameters() if p.device.type == "cuda"][:1]
    with evaluating(model), torch.random.fork_rng(devices=devices):  # pyright: ignore[reportUnknownMemberType]
        torch.manual_seed(seed)  # pyright: ignore[reportUnknownMemberType]
        yield
