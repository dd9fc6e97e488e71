"""Encoders: sizes, stems, and the dry run that measures a given one."""

import pytest
import torch
from torch import nn

from gen_vision.networks.encoders import conv_encoder, encoder, width_of


@pytest.mark.parametrize(("channels", "side", "last"), [(1, 8, 4), (1, 28, 4), (3, 32, 4), (3, 64, 8), (3, 5, 3)])
def test_conv(channels: int, side: int, last: int) -> None:
    net = conv_encoder(channels, side)
    images = torch.rand(2, channels, side, side)
    assert net[:-2](images).shape == (2, 128, last, last)
    assert net(images).shape == (2, 128)


@pytest.mark.parametrize(
    ("name", "width", "before_pool"),
    [("resnet18-cifar", 512, 4), ("resnet50-cifar", 2048, 4), ("resnet18", 512, 1), ("resnet50", 2048, 1)],
)
def test_resnets(name: str, width: int, before_pool: int) -> None:
    net = encoder(name, 1, 32, 32).eval()  # pyright: ignore
    seen: list[torch.Size] = []
    net.layer4.register_forward_hook(lambda *args: seen.append(args[2].shape))
    assert net(torch.rand(1, 1, 32, 32)).shape == (1, width)
    assert seen[0][-1] == before_pool
    last = net.layer1[0].bn3 if "50" in name else net.layer1[0].bn2
    assert (last.weight == 0).all() and (net.bn1.weight == 1).all()


def test_width_is_measured_without_a_trace() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten())
    net[2].eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    torch.manual_seed(0)
    assert width_of(net, 3, 6, 5) == 4 * 4 * 3
    assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(0)))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert net.training and net[1].training and not net[2].training


def test_width_refuses() -> None:
    with pytest.raises(ValueError, match=r"encoder: does not take images of shape \(1, 8, 8\)"):
        width_of(nn.Conv2d(3, 4, 3), 1, 8, 8)
    with pytest.raises(ValueError, match=r"encoder: must map .* gave shape \(2, 4, 6, 6\)"):
        width_of(nn.Conv2d(3, 4, 3), 3, 8, 8)
