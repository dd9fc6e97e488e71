"""What the decoder's numbers say about pixels: independent bits, or values on the grid of 256."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from gen_core.harness import config as configs
from gen_core.harness.errors import UsageError
from gen_core.losses.variational import (
    bernoulli_nll,
    discretized_logistic_mixture_nll,
    sample_discretized_logistic_mixture,
)


class LikelihoodConfig(configs.Config):
    """Fields of `Config` that choose the likelihood."""

    likelihood: Literal["auto", "bernoulli", "logistic-mixture"] = "auto"
    """p(x|z): independent bits, or a mixture of logistics on 256 values; auto: bits for grey, a mixture for colour."""
    binarize: bool = True
    """bernoulli: each grey pixel is drawn anew as a bit in every step; without, the grey values are the targets, and
    what is called nats is a cross-entropy and no likelihood."""
    components: Annotated[int, Field(ge=1, le=100)] = 10
    """logistic-mixture: components a pixel."""


class Bernoulli:
    """Bits. Observations are 0 or 1, or grey where they are not binarised; parameters (b, c, ...) are logits."""

    span = (0.0, 1.0)
    """Least and largest value that `observe` takes."""

    def __init__(self, channels: int, binarize: bool) -> None:
        self.channels = self.parameters = channels
        self.binarize = binarize

    def observe(self, images: Tensor) -> Tensor:
        """Images in [0, 1] as the likelihood sees them: with `binarize` a pixel is drawn, by torch's global state."""
        _inside(images)
        if not self.binarize or bool((images == images.round()).all()):  # bits draw themselves
            return images
        # torch.bernoulli takes twice as long
        return (torch.rand(images.shape, device=images.device) < images).to(images.dtype)

    def expected(self, images: Tensor) -> Tensor:
        """The mean of `observe`: what an encoder sees where nothing may be random."""
        _inside(images)
        return images

    def shown(self, x: Tensor) -> Tensor:
        """An observation as an image in [0, 1]."""
        return x

    def nll(self, parameters: Tensor, x: Tensor) -> Tensor:
        """Nats, (b,)."""
        return bernoulli_nll(parameters, x, reduction="none")

    def mean(self, parameters: Tensor) -> Tensor:
        """E[x|z], (b, c, ...) in [0, 1]."""
        return parameters.sigmoid()

    def sample(self, parameters: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """x ~ p(x|z), 0 or 1."""
        return torch.bernoulli(parameters.sigmoid(), generator=generator)


class LogisticMixture:
    """Values k / 255. Observations are in [-1, 1]; parameters (b, 3 M or 10 M, ...) for one or three channels."""

    span = (0.0, 1.0)

    def __init__(self, channels: int, components: int) -> None:
        self.channels: Literal[1, 3] = 3 if channels == 3 else 1
        self.parameters = components * (10 if channels == 3 else 3)

    def observe(self, images: Tensor) -> Tensor:
        """Images in [0, 1] on the likelihood's grid; values between two of it go to the nearer."""
        _inside(images)
        return (images * 255).round() / 127.5 - 1

    expected = observe

    def shown(self, x: Tensor) -> Tensor:
        """An observation as an image in [0, 1]."""
        return (x + 1) / 2

    def nll(self, parameters: Tensor, x: Tensor) -> Tensor:
        """Nats, (b,)."""
        return discretized_logistic_mixture_nll(parameters, x, reduction="none")

    def mean(self, parameters: Tensor) -> Tensor:
        """A draw of x for each z with fixed noise, (b, c, ...) in [0, 1]: a mixture's mean is no likely image."""
        return self.sample(parameters, torch.Generator(parameters.device).manual_seed(0))

    def sample(self, parameters: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """x ~ p(x|z), in [0, 1]."""
        return (sample_discretized_logistic_mixture(parameters, self.channels, generator=generator) + 1) / 2


Likelihood = Bernoulli | LogisticMixture


def likelihood(config: LikelihoodConfig, channels: int) -> Likelihood:
    """The likelihood that the hyper-parameters name, for images of so many channels."""
    kind = config.likelihood
    if kind == "auto":
        kind = "bernoulli" if channels == 1 else "logistic-mixture"
    if kind == "bernoulli":
        return Bernoulli(channels, config.binarize)
    if channels not in (1, 3):
        raise UsageError(f"likelihood = 'logistic-mixture': images have {channels} channels; it knows 1 and 3")
    return LogisticMixture(channels, config.components)


def _inside(images: Tensor) -> None:
    low, high = images.aminmax()
    if not (low >= 0 and high <= 1):  # also NaN
        raise UsageError(f"images: pixels must be uint8 or lie in [0, 1], got values from {low:.4g} to {high:.4g}")
