"""Encoders: images (b, c, h, w) to representations (b, d)."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from gen_core.harness.method import evaluating

EncoderName = Literal["conv", "resnet18-cifar", "resnet50-cifar", "resnet18", "resnet50"]


def encoder(name: EncoderName, channels: int, height: int, width: int) -> nn.Module:
    """A new encoder for images of that size.

    `conv` is three 3 x 3 convolutions (d = 128). `resnet18-cifar` (d = 512) and `resnet50-cifar` (d = 2048) have a
    first convolution of 3 x 3, stride 1, and no max-pooling, for images of about 32 pixels (Chen et al. 2020, Appendix
    B.9); `resnet18` and `resnet50` keep the ImageNet stem. In all of them the last batch norm's scale of a residual
    block starts at 0, as in the official code.
    """
    if name == "conv":
        return conv_encoder(channels, min(height, width))
    return _resnet(name, channels)


def conv_encoder(channels: int, side: int, widths: tuple[int, ...] = (32, 64, 128)) -> nn.Sequential:
    """3 x 3 convolutions with batch norm and ReLU, then the mean over positions; d = widths[-1].

    Each halves the side while it is above 4 pixels: three times for 32, once for 8.
    """
    layers: list[nn.Module] = []
    for width in widths:
        stride = 2 if side > 4 else 1
        layers += [nn.Conv2d(channels, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        channels, side = width, -(-side // stride)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def _resnet(name: str, channels: int) -> nn.Module:
    from torchvision import models

    depth, _, stem = name.partition("-")
    net = {"resnet18": models.resnet18, "resnet50": models.resnet50}[depth](zero_init_residual=True)
    net.fc = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
    if stem == "cifar":
        net.conv1 = nn.Conv2d(channels, 64, 3, 1, 1, bias=False)
        net.maxpool = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
    elif channels != 3:
        net.conv1 = nn.Conv2d(channels, 64, 7, 2, 3, bias=False)
    nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
    return net


@torch.no_grad()
def dry_run(net: nn.Module, *shape: int) -> Any:
    """What the net makes of two blank inputs of that shape, in its own precision; it stays as it was."""
    like = next(net.parameters(), torch.zeros(()))
    with evaluating(net):
        return net(torch.zeros(2, *shape, dtype=like.dtype, device=like.device))


def width_of(net: nn.Module, channels: int, height: int, width: int) -> int:
    """d of an encoder (b, c, h, w) -> (b, d), measured by a dry run in eval mode that leaves it as it was.

    Raises:
        ValueError: the network refuses images of this size, or gives something else than a (b, d) matrix.
    """
    try:
        out: Tensor = dry_run(net, channels, height, width)
    except RuntimeError as error:
        raise ValueError(f"encoder: does not take images of shape ({channels}, {height}, {width}): {error}") from error
    if out.ndim != 2 or out.shape[0] != 2:
        raise ValueError(f"encoder: must map (b, c, h, w) to (b, d), gave shape {tuple(out.shape)} for b = 2")
    return out.shape[1]
