"""Encoders and decoders of VAEs: images (b, c, h, w) to (b, 2 latent), (b, latent) to (b, parameters, h, w)."""

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "silu": nn.SiLU}


def mlp(sizes: Sequence[int], activation: str) -> nn.Sequential:
    """Linear layers of these sizes with activations between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), ACTIVATIONS[activation]()]
    return nn.Sequential(*layers[:-1])


def mlp_encoder(shape: tuple[int, int, int], hidden: Sequence[int], latent: int, activation: str) -> nn.Module:
    """A perceptron; shape: (c, h, w)."""
    return nn.Sequential(nn.Flatten(), *mlp([shape[0] * shape[1] * shape[2], *hidden, 2 * latent], activation))


def mlp_decoder(shape: tuple[int, int, int], hidden: Sequence[int], latent: int, activation: str) -> nn.Module:
    """The mirror of `mlp_encoder`; shape: (parameters, h, w)."""
    pixels = shape[0] * shape[1] * shape[2]
    return nn.Sequential(*mlp([latent, *reversed(hidden), pixels], activation), nn.Unflatten(1, shape))


def halved(sides: tuple[int, int], times: int) -> list[tuple[int, int]]:
    """The sides after 0, 1, ..., `times` halvings, rounded up."""
    found = [sides]
    for _ in range(times):
        found.append((-(-found[-1][0] // 2), -(-found[-1][1] // 2)))
    return found


class Resize(nn.Module):
    """Nearest-neighbour resize to fixed sides."""

    def __init__(self, sides: tuple[int, int]) -> None:
        super().__init__()
        self.sides = sides

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, self.sides)


def conv_encoder(shape: tuple[int, int, int], hidden: Sequence[int], latent: int, activation: str) -> nn.Module:
    """A 3 x 3 convolution of stride 2 with batch norm for each width, then a linear layer."""
    layers: list[nn.Module] = []
    channels, *sides = shape
    for width in hidden:
        conv = nn.Conv2d(channels, width, 3, 2, 1, bias=False)
        layers += [conv, nn.BatchNorm2d(width), ACTIVATIONS[activation]()]
        channels = width
    height, width = halved((sides[0], sides[1]), len(hidden))[-1]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * height * width, 2 * latent))


def conv_decoder(shape: tuple[int, int, int], hidden: Sequence[int], latent: int, activation: str) -> nn.Module:
    """The mirror of `conv_encoder`: a linear layer, then for each width resize to twice the sides and convolve."""
    parameters, height, width = shape
    sides = halved((height, width), len(hidden))
    first = (hidden[-1], *sides[-1])
    layers: list[nn.Module] = [nn.Linear(latent, first[0] * first[1] * first[2]), nn.Unflatten(1, first)]
    widths = [*reversed(hidden), hidden[0]]
    for before, after, side in zip(widths, widths[1:], reversed(sides[:-1]), strict=False):
        conv = nn.Conv2d(before, after, 3, 1, 1, bias=False)
        layers += [Resize(side), conv, nn.BatchNorm2d(after), ACTIVATIONS[activation]()]
    return nn.Sequential(*layers, nn.Conv2d(widths[-1], parameters, 3, 1, 1))


class SqueezeExcitation(nn.Module):
    """Channels scaled by a gate that sees their means (Hu et al. 2018)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(4, channels // 16)
        self.gate = nn.Sequential(nn.Linear(channels, inner), nn.ReLU(), nn.Linear(inner, channels), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x.mean((2, 3)))[:, :, None, None]


class EncoderCell(nn.Module):
    """NVAE's residual cell of the bottom-up path: twice batch norm, Swish and 3 x 3, then squeeze and excitation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += [nn.BatchNorm2d(channels), nn.SiLU(), nn.Conv2d(channels, channels, 3, 1, 1)]
        self.body = nn.Sequential(*layers, SqueezeExcitation(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * self.body(x)


class DecoderCell(nn.Module):
    """NVAE's residual cell of the top-down path: 1 x 1 to `expand` times the channels, depthwise 5 x 5, 1 x 1 back."""

    def __init__(self, channels: int, expand: int) -> None:
        super().__init__()
        inner = channels * expand
        self.body = nn.Sequential(
            nn.BatchNorm2d(channels),
            nn.Conv2d(channels, inner, 1, bias=False),
            nn.BatchNorm2d(inner),
            nn.SiLU(),
            nn.Conv2d(inner, inner, 5, 1, 2, groups=inner, bias=False),
            nn.BatchNorm2d(inner),
            nn.SiLU(),
            nn.Conv2d(inner, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
            SqueezeExcitation(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * self.body(x)


class GroupClassifier(nn.Module):
    """One logit a sample of a group, (b,), from z and context: a perceptron, or a residual net where z has positions.

    context: channels (of a flat group: dimensions) of the context; None where there is none.
    """

    def __init__(self, shape: Sequence[int], context: int | None, hidden: Sequence[int], channels: int) -> None:
        super().__init__()
        self.flat = len(shape) == 1
        if self.flat:
            self.net = mlp([shape[0] + (context or 0), *hidden, 1], "silu")
        else:
            first = nn.Conv2d(shape[0] + (context or 0), channels, 3, 1, 1)
            cells = [EncoderCell(channels) for _ in range(2)]
            self.net = nn.Sequential(first, *cells, nn.SiLU(), nn.Conv2d(channels, 1, 1))

    def forward(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        found = self.net(z if context is None else torch.cat([z, context], 1))
        return found[:, 0] if self.flat else found.sum((1, 2, 3))


def soft_clamp(x: Tensor) -> Tensor:
    """5 tanh(x / 5), NVAE's bound on means and log deviations."""
    return 5 * torch.tanh(x / 5)
