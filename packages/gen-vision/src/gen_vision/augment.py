"""Random augmentations of image batches, float (b, c, h, w) in [0, 1] to the same; each image draws its own numbers.

Every random number comes from torch's global generator, so `torch.manual_seed` fixes the result.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Literal

import kornia.augmentation as K
import torch
from pydantic import Field, NonNegativeFloat
from torch import Tensor, nn

from gen_core.harness import config as configs

Share = Annotated[float, Field(ge=0, le=1)]


class AugmentConfig(configs.Config):
    """The augmentation's part of a method's hyper-parameters."""

    augment: Literal["auto", "crop-colour", "affine-noise"] = "auto"
    """Pipeline: crop-colour (SimCLR's, for photographs) or affine-noise (for digits and signs); auto takes crop-colour
    for images of three channels and affine-noise otherwise."""
    min_crop_area: Annotated[float, Field(gt=0, le=1)] = 0.08
    """Smallest area of the random crop as a share of the image (1 = no crop)."""
    flip: bool = True
    """Whether images are mirrored left to right with probability 1/2."""
    colour_strength: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Strength s of the colour jitter; the paper: 1 for ImageNet, 0.5 for CIFAR-10 (0 = none)."""
    grey: Share = 0.2
    """Probability that a colour image turns grey."""
    blur: Share = 0.0
    """Probability of a Gaussian blur; the paper: 0.5 for ImageNet, 0 for CIFAR-10."""
    rotation: Annotated[float, Field(ge=0, le=180)] = 15.0
    """affine-noise: largest rotation in degrees."""
    scale: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """affine-noise: largest relative change of size."""
    shift: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """affine-noise: largest shift as a share of the side."""
    noise: NonNegativeFloat = 0.1
    """affine-noise: standard deviation of the added noise, in units of the pixel range [0, 1]."""


def augmentation(config: AugmentConfig, spec: Mapping[str, int]) -> nn.Module:
    """The pipeline that the hyper-parameters name, for images of the sizes in `spec`."""
    kind = config.augment
    if kind == "auto":
        kind = "crop-colour" if spec["channels"] == 3 else "affine-noise"
    if kind == "affine-noise":
        return AffineNoise(rotation=config.rotation, scale=config.scale, shift=config.shift, noise=config.noise)
    return SimCLRAugment(
        spec["height"],
        spec["width"],
        min_crop_area=config.min_crop_area,
        flip=config.flip,
        colour_strength=config.colour_strength,
        grey=config.grey,
        blur=config.blur,
    )


class SimCLRAugment(nn.Module):
    """SimCLR's pipeline for colour images (Chen et al. 2020, Appendix A, and the official code).

    1. crop: area U(min_crop_area, 1), aspect 3/4 to 4/3, bicubic resize to the old size;
    2. horizontal flip with probability 1/2;
    3. with probability 0.8 colour jitter of strength s: factors of brightness, contrast and saturation from
       U(1 - .8 s, 1 + .8 s), a turn of hue from U(-.2 s, .2 s), in a random order, clamped after each;
    4. with probability `grey` the luma, in all three channels;
    5. with probability `blur` a Gaussian blur, sigma U(.1, 2), kernel of a tenth of the shorter side.

    Crop and blur are kornia's. Jitter is written here: kornia's draws one order a batch, where the paper's draws one an
    image, and took 2.6 times as long (512 images of 32 x 32 on one thread: 49 ms against 19 ms). Grey images pass
    through steps 3 and 4 as brightness and contrast alone.
    """

    def __init__(
        self,
        height: int,
        width: int,
        *,
        min_crop_area: float = 0.08,
        flip: bool = True,
        colour_strength: float = 0.5,
        grey: float = 0.2,
        blur: float = 0.0,
    ) -> None:
        super().__init__()
        self.min_crop_area, self.flip, self.colour_strength, self.grey = min_crop_area, flip, colour_strength, grey
        self.crop = K.RandomResizedCrop(
            (height, width), scale=(min_crop_area, 1.0), ratio=(3 / 4, 4 / 3), resample="bicubic", cropping_mode="slice"
        )
        kernel = max(3, min(height, width) // 10 | 1)  # odd
        self.blur = K.RandomGaussianBlur((kernel, kernel), (0.1, 2.0), p=blur) if blur > 0 else None

    def forward(self, images: Tensor) -> Tensor:
        if self.min_crop_area < 1:
            images = self.crop(images).clamp(0, 1)  # bicubic overshoots
        if self.flip:
            images = torch.where(_coin(images, 0.5), images.flip(-1), images)
        if self.colour_strength > 0:
            images = colour_jitter(images, self.colour_strength)
        if self.grey > 0 and images.shape[1] == 3:
            images = torch.where(_coin(images, self.grey), _luma(images), images)
        return self.blur(images) if self.blur is not None else images


class AffineNoise(nn.Module):
    """For digits and other signs, where colour says nothing and a crop or a flip changes the class.

    Rotation by U(-rotation, rotation) degrees, scale by U(1 - scale, 1 + scale), shift by up to `shift` of each side
    (empty margin is 0), then Gaussian noise of standard deviation `noise`, clamped to [0, 1]. With `flip` images are
    first mirrored left to right with probability 1/2.
    """

    def __init__(
        self,
        *,
        rotation: float = 15.0,
        scale: float = 0.2,
        shift: float = 0.1,
        noise: float = 0.1,
        flip: bool = False,
    ) -> None:
        super().__init__()
        self.noise, self.flip = noise, flip
        self.affine = K.RandomAffine(rotation, translate=(shift, shift), scale=(1 - scale, 1 + scale), p=1.0)
        self.moves = rotation > 0 or scale > 0 or shift > 0

    def forward(self, images: Tensor) -> Tensor:
        if self.flip:
            images = torch.where(_coin(images, 0.5), images.flip(-1), images)
        if self.moves:
            images = self.affine(images)
        return (images + self.noise * torch.randn_like(images) if self.noise > 0 else images).clamp(0, 1)


def colour_jitter(images: Tensor, strength: float, probability: float = 0.8) -> Tensor:
    """Brightness, contrast, saturation and hue (the last two where c = 3), each image in an own order; (b, c, h, w)."""
    operations: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (_brightness, _contrast)
    if images.shape[1] == 3:
        operations = (_brightness, _contrast, _saturation, _hue)
    count, kinds = len(images), len(operations)
    amount = torch.rand(count, kinds, device=images.device, dtype=images.dtype) * 2 - 1
    reach = amount.new_tensor([0.8 * strength, 0.8 * strength, 0.8 * strength, 0.2 * strength])[:kinds]
    amount = amount * reach
    order = torch.rand(count, kinds, device=images.device).argsort(dim=1)
    chosen = torch.rand(count, device=images.device) < probability
    out = images.clone()
    for turn in range(kinds):
        for kind, operation in enumerate(operations):
            rows = (chosen & (order[:, turn] == kind)).nonzero()[:, 0]
            out[rows] = operation(out[rows], amount[rows, kind, None, None, None]).clamp_(0, 1)
    return out


def _brightness(images: Tensor, amount: Tensor) -> Tensor:
    return images * (1 + amount)


def _contrast(images: Tensor, amount: Tensor) -> Tensor:
    mean = images.mean((2, 3), keepdim=True)  # a channel's own, as in tf.image.adjust_contrast
    return (images - mean) * (1 + amount) + mean


def _saturation(images: Tensor, amount: Tensor) -> Tensor:
    """HSV saturation times 1 + amount, at most 1; hue and value stay."""
    value = images.amax(1, keepdim=True)
    chroma = value - images.amin(1, keepdim=True)
    return value - (value - images) * torch.minimum(1 + amount, value / chroma.clamp_min(1e-8))


def _hue(images: Tensor, amount: Tensor) -> Tensor:
    """HSV hue turned by `amount` of the circle; saturation and value stay."""
    red, green, blue = images.unbind(1)
    value = images.amax(1)
    chroma = value - images.amin(1)
    safe = chroma.clamp_min(1e-8)
    hue = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    hue = hue + 6 * amount[:, 0]
    sextant = torch.stack([hue + 5, hue + 3, hue + 1], 1).remainder_(6)
    return value[:, None] - chroma[:, None] * torch.minimum(sextant, 4 - sextant).clamp_(0, 1)


def _luma(images: Tensor) -> Tensor:
    weights = images.new_tensor([0.299, 0.587, 0.114])[:, None, None]
    return (images * weights).sum(1, keepdim=True).expand_as(images)


def _coin(images: Tensor, probability: float) -> Tensor:
    return torch.rand(len(images), 1, 1, 1, device=images.device) < probability
