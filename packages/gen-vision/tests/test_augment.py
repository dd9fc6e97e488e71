"""Augmentations: exactness of the colour operations against colorsys, and invariants of the pipelines."""

import colorsys

import pytest
import torch

from gen_vision import augment
from gen_vision.augment import AffineNoise, AugmentConfig, SimCLRAugment, augmentation, colour_jitter


def images(count: int = 64, channels: int = 3, side: int = 16) -> torch.Tensor:
    return torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(3))


def pipelines() -> list[tuple[torch.nn.Module, torch.Tensor]]:
    return [
        (SimCLRAugment(16, 16, colour_strength=1.0, blur=0.5), images()),
        (SimCLRAugment(16, 16, colour_strength=1.0, blur=0.5), images(channels=1)),
        (AffineNoise(), images(channels=1)),
        (AffineNoise(noise=0.5), images()),
    ]


@pytest.mark.parametrize("index", range(4))
def test_shape_range_determinism_and_difference(index: int) -> None:
    pipeline, batch = pipelines()[index]
    before = batch.clone()
    torch.manual_seed(5)
    first = pipeline(batch)
    second = pipeline(batch)
    torch.manual_seed(5)
    again = pipeline(batch)
    assert first.shape == batch.shape and first.dtype == batch.dtype
    assert first.min() >= 0 and first.max() <= 1 and torch.isfinite(first).all()
    assert torch.equal(first, again) and not torch.equal(first, second)
    assert torch.equal(batch, before)  # the input is not written to


@pytest.mark.parametrize("index", range(4))
def test_each_image_draws_its_own_numbers(index: int) -> None:
    pipeline, batch = pipelines()[index]
    torch.manual_seed(0)
    out = pipeline(batch[:1].expand(32, -1, -1, -1))
    assert len({tuple(row.flatten().tolist()) for row in out}) > 16


def test_nothing_happens_at_zero_strength() -> None:
    batch = images()
    idle = SimCLRAugment(16, 16, min_crop_area=1.0, flip=False, colour_strength=0.0, grey=0.0)
    assert torch.equal(idle(batch), batch)
    assert torch.equal(AffineNoise(rotation=0, scale=0, shift=0, noise=0)(batch), batch)


def test_a_crop_of_a_constant_image_is_constant() -> None:
    crop = SimCLRAugment(16, 16, colour_strength=0.0, grey=0.0)
    constant = torch.full((256, 3, 16, 16), 0.7)
    torch.testing.assert_close(crop(constant), constant)


def test_crop_takes_a_part_and_flip_mirrors() -> None:
    ramp = torch.linspace(0, 1, 16).expand(512, 1, 16, 16)
    torch.manual_seed(0)
    out = SimCLRAugment(16, 16, min_crop_area=0.08, flip=False, colour_strength=0.0)(ramp)
    spans = out[:, 0, 0, -1] - out[:, 0, 0, 0]
    # area U(.08, 1), log-aspect within log(3/4)..log(4/3): a relative width from about .25 to 1
    assert 0.1 < spans.min() < 0.35 and spans.max() > 0.9
    mirrored = SimCLRAugment(16, 16, min_crop_area=1.0, flip=True, colour_strength=0.0)(ramp)
    share = (mirrored[:, 0, 0, 0] == 1).double().mean()
    assert 0.4 < share < 0.6


def test_hue_and_saturation_are_those_of_hsv() -> None:
    batch = images(20, side=2)
    amount = torch.linspace(-0.5, 0.5, 20)[:, None, None, None]
    turned, faded = augment._hue(batch, amount), augment._saturation(batch, amount)
    for row in range(20):
        change = amount[row].item()
        for i in range(2):
            for j in range(2):
                h, s, v = colorsys.rgb_to_hsv(*batch[row, :, i, j].tolist())
                wanted = torch.tensor(colorsys.hsv_to_rgb((h + change) % 1, s, v))
                torch.testing.assert_close(turned[row, :, i, j], wanted, atol=2e-5, rtol=0)
                wanted = torch.tensor(colorsys.hsv_to_rgb(h, min(1.0, s * (1 + change)), v))
                torch.testing.assert_close(faded[row, :, i, j], wanted, atol=2e-5, rtol=0)


def test_contrast_and_brightness_worked() -> None:
    batch = torch.tensor([0.2, 0.6]).reshape(1, 1, 1, 2)
    half = torch.full((1, 1, 1, 1), 0.5)
    torch.testing.assert_close(augment._brightness(batch, half).flatten(), torch.tensor([0.3, 0.9]))
    torch.testing.assert_close(augment._contrast(batch, half).flatten(), torch.tensor([0.1, 0.7]))  # mean .4


def test_jitter_leaves_a_fifth_alone_and_its_amounts_reach_the_papers_ends() -> None:
    grey = torch.full((4000, 1, 2, 2), 0.25)  # a constant image has no contrast: brightness alone acts
    torch.manual_seed(0)
    factor = colour_jitter(grey, strength=0.5)[:, 0, 0, 0] / 0.25
    same = (factor == 1).double().mean()
    assert 0.17 < same < 0.23
    assert factor.min() >= 0.6 - 1e-5 and factor.max() <= 1.4 + 1e-5
    assert factor.min() < 0.61 and factor.max() > 1.39


def test_jitter_orders_differ_between_images() -> None:
    # brightness then contrast commute except through the clamp: a bright two-valued image tells the orders apart
    batch = torch.tensor([0.3, 0.9]).reshape(1, 1, 1, 2).expand(2000, -1, -1, -1)
    torch.manual_seed(1)
    out = colour_jitter(batch, 1.0, probability=1.0).reshape(-1, 2)
    torch.manual_seed(1)
    amount = torch.rand(2000, 2) * 1.6 - 0.8
    up = (batch[:, :, 0, :] * (1 + amount[:, :1, None])).clamp(0, 1)
    mean = up.mean(-1, keepdim=True)
    brightness_first = ((up - mean) * (1 + amount[:, 1:, None]) + mean).clamp(0, 1).reshape(-1, 2)
    share = torch.isclose(out, brightness_first, atol=1e-6).all(1).double().mean()
    assert 0.5 < share < 0.95  # half of the images, and those in which no clamp acted


def test_grey_images_have_three_equal_channels() -> None:
    torch.manual_seed(0)
    out = SimCLRAugment(16, 16, colour_strength=0.0, min_crop_area=1.0, flip=False, grey=0.5)(images(400))
    equal = ((out[:, 0] == out[:, 1]) & (out[:, 1] == out[:, 2])).flatten(1).all(1)
    assert 0.4 < equal.double().mean() < 0.6


def test_the_choice_follows_the_channels() -> None:
    colour, grey = {"channels": 3, "height": 8, "width": 8}, {"channels": 1, "height": 8, "width": 8}
    assert isinstance(augmentation(AugmentConfig(), colour), SimCLRAugment)
    assert isinstance(augmentation(AugmentConfig(), grey), AffineNoise)
    assert isinstance(augmentation(AugmentConfig(augment="affine-noise"), colour), AffineNoise)
    pipeline = augmentation(AugmentConfig(augment="crop-colour", min_crop_area=0.3, blur=0.5), grey)
    assert isinstance(pipeline, SimCLRAugment) and pipeline.min_crop_area == 0.3 and pipeline.blur is not None


def test_pipelines_hold_no_state() -> None:
    for pipeline, _ in pipelines():
        assert not pipeline.state_dict()
