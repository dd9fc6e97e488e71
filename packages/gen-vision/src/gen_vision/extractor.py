"""Feature nets in whose space generated images are compared with real ones.

    net = extractor(images)
    compare(images.test.images, generated, net) -> {"FD[cnn64]": ..., "KID[cnn64]": ..., "precision": ..., ...}

`extractor` trains a small net on the data's own images and keeps it in the user's cache; a Frechet distance in its
space is written `FD[cnn64]` and belongs with the net's `identity`. `inception` is the net of the FID.
"""

import hashlib
import math
import os
import pickle
from dataclasses import replace

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional

from gen_core.evaluation.frechet import frechet_features, kid, manifold_scores
from gen_core.harness import weights
from gen_core.harness.data import cache, root
from gen_core.harness.errors import UsageError
from gen_vision.data import SMALLEST, Images, checksum, spec, unit
from gen_vision.networks.encoders import conv_encoder

REVISION = 1
"""Part of every version: raise it when training here or `conv_encoder` changes, and kept nets are trained anew."""

_WIDTH, _LARGEST = 64, 64
_TRAINING = _PASSES, _FEWEST, _MOST, _BATCH, _RATE = 20, 200, 1400, 128, 1e-2  # the most: three passes over MNIST
_INCEPTION = "weights-inception-2015-12-05-6726825d.pth"


class Extractor(nn.Module):
    """A small convolutional net, images (b, c, h, w) to features (b, 64): what its classifier sees.

    3 x 3 convolutions with batch norm and ReLU that halve the image to at most 4 pixels, then the mean over positions.
    Images whose shorter side is above 64 pixels are averaged down to 64: finer detail it does not see.
    """

    num_features = _WIDTH
    """torchmetrics' `FrechetInceptionDistance(feature=net)` reads it."""
    version = ""
    """8 hex digits over the training data, net, settings and seed."""
    accuracy = math.nan
    """Percent of the data's test images (of the training images where there is no test part) it classified rightly."""

    def __init__(self, name: str, channels: int, height: int, width: int, classes: int) -> None:
        super().__init__()
        self.name, self.shape = name, (channels, height, width)
        side = min(height, width, _LARGEST)
        halvings = math.ceil(math.log2(side / 4))
        self.layers = conv_encoder(channels, side, (32,) + (_WIDTH,) * max(2, halvings - 1))
        self.classifier = nn.Linear(_WIDTH, classes)

    @property
    def identity(self) -> str:
        """To stand beside every number, as `cnn64@1a2b3c4d, 98.9 % accuracy`."""
        return f"{self.name}@{self.version}, {self.accuracy:.1f} % accuracy"

    def forward(self, images: Tensor) -> Tensor:
        """Features (b, 64) of images, uint8 or float in [0, 1], of the training images' shape."""
        if tuple(images.shape[1:]) != self.shape:
            raise UsageError(f"images: {self.name} was trained on (b, c, h, w) = (b, *{self.shape}), got {_of(images)}")
        return self._trunk(images)

    def logits(self, images: Tensor) -> Tensor:
        """Of the classes, or of the four rotations; (b, classes)."""
        return self.classifier(self._trunk(images))

    def _trunk(self, images: Tensor) -> Tensor:
        x = unit(images, self.classifier.weight.dtype)
        height, width = x.shape[2:]
        if (side := min(height, width)) > _LARGEST:
            size = height * _LARGEST // side, width * _LARGEST // side
            x = functional.interpolate(x, size, mode="area")
        return self.layers(x)


class Inception(nn.Module):
    """InceptionV3 as the FID uses it (Heusel et al. 2017), images (b, 1 or 3, h, w) to features (b, 2048).

    The net upsamples to 299 x 299 as the original TensorFlow code does; grey images are repeated to three channels,
    floats in [0, 1] rounded to uint8.
    """

    name = identity = "inception"

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[1] not in (1, 3):
            raise UsageError(f"images: inception takes 1 or 3 channels, got {_of(images)}")
        x = images if images.dtype == torch.uint8 else (images * 255).round().to(torch.uint8)
        return torch.cat([self.net(part) for part in x.expand(-1, 3, -1, -1).split(64)])  # 64: 0.4 GB a layer


def extractor(data: Images, *, seed: int = 0) -> Extractor:
    """The feature net of these images: trained at the first call, read from the user's cache afterwards.

    With labels of two classes or more it is trained to classify the training images, and named `cnn64`; without, to
    tell by which quarter turn an image was rotated (Gidaris et al. 2018; of oblong images the central square), and
    named `rotation64`. Half of each batch of grey images is binarised, each pixel drawn with its brightness as the
    probability, so that binary images can be compared too. Adam on 20 passes, but 200 to 1,400 batches of 128.

    Trained on the CPU, the same for a seed on one machine with one number of threads. Prints a line when it trains.

    Args:
        data: at least 8 x 8 pixels; what a test part holds changes `accuracy` alone, as of the first call.
        seed: of the weights, batches and binarised pixels.

    Returns:
        In eval mode, without gradients, on the CPU.

    Raises:
        UsageError: images below 8 x 8.
    """
    channels, height, width, classes = spec(data).values()
    if min(height, width) < SMALLEST:
        raise UsageError(f"data: an extractor needs images of at least 8 x 8 pixels, got {height} x {width}")
    if data.labels is None or classes < 2:
        data, classes = Images(data.images, test=data.test and Images(data.test.images)), 4
    name = "rotation64" if data.labels is None else "cnn64"
    sizes = channels, height, width, classes
    settings = checksum(replace(data, test=None)), name, *sizes, _LARGEST, *_TRAINING, int(seed), REVISION
    version = hashlib.sha256(repr(settings).encode()).hexdigest()[:8]
    kept = cache("extractors", f"{name}-{version}.safetensors")
    try:
        with torch.device("meta"):  # draws no random numbers
            net = Extractor(name, *sizes)
        found: dict[str, Tensor] = safetensors.torch.load_file(kept)  # pyright: ignore[reportUnknownMemberType]
        accuracy = float(found.pop("accuracy"))
        net.load_state_dict(found, assign=True)
    except (OSError, safetensors.SafetensorError, KeyError, RuntimeError):  # not there, or damaged
        print(f"training {name}@{version} on {len(data):,} images {_of(data.images[0])}, kept as {kept}", flush=True)
        with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed every device
            net = _train(Extractor(name, *sizes), data)
            accuracy = _accuracy(net, data)
        own = kept.with_name(f"{kept.name}.{os.getpid()}")  # two processes may train the same net at a time
        weights.write(own, net.state_dict() | {"accuracy": torch.tensor(accuracy, dtype=torch.float64)})
        own.replace(kept)
    net.version, net.accuracy = version, accuracy
    return net.eval().requires_grad_(False)


def inception() -> Inception:
    """InceptionV3 with the weights of the original FID, of torch-fidelity through torchmetrics.

    The weights are read from `$GEN_DATA/inception`, else from torch's hub folder, into which torch-fidelity downloads
    them (90 MB).

    Raises:
        UsageError: torch-fidelity or the weights are not there.
    """
    from torchmetrics.image import fid

    path = root() / "inception" / _INCEPTION
    try:
        net = fid.NoTrainInceptionV3("inception-v3-compat", ["2048"], str(path) if path.exists() else None)
    except ModuleNotFoundError as error:
        raise UsageError("the FID needs torch-fidelity: pip install torch-fidelity") from error
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        raise UsageError(
            f"the FID needs {path}, the file of that name of torch-fidelity's release v0.2.0; "
            f"{'it is damaged' if path.exists() else 'its download failed'} ({error})"
        ) from error
    net.use_antialias = False  # TensorFlow's resize, which the published values come from
    return Inception(net.requires_grad_(False))


@torch.no_grad()
def features(net: nn.Module, images: Tensor, batch_size: int = 1024) -> Tensor:
    """Features (n, d) on the CPU of images (n, c, h, w), uint8 or float in [0, 1].

    Args:
        net: an `Extractor` or an `Inception`, on any device.
        batch_size: images at a time; fewer where they are large.

    Raises:
        UsageError: no images, another dtype, values outside [0, 1], a shape that the net refuses.
    """
    if images.ndim != 4 or 0 in images.shape:
        raise UsageError(f"images: must be a non-empty (n, c, h, w), got {_of(images)}")
    low, high = float(images.min()), float(images.max())
    if images.dtype != torch.uint8 and not (images.is_floating_point() and low >= 0 and high <= 1):
        raise UsageError(f"images: must be uint8 or floats in [0, 1], got {images.dtype} from {low:g} to {high:g}")
    device = next(net.parameters(), torch.zeros(())).device
    step = max(1, min(batch_size, (1 << 22) // (images.shape[2] * images.shape[3])))
    return torch.cat([net(part.to(device)).cpu() for part in images.split(step)])


def compare(real: Tensor, generated: Tensor, net: Extractor | Inception, k: int = 5) -> dict[str, float]:
    """How far generated images are from real ones, in the space of `net`.

    `FD[name]` (`FID` of Inception) depends on the numbers of images, see `frechet_features`; `KID[name]` (`KID`) does
    not; `precision`, `recall`, `density` and `coverage` are `manifold_scores` with k neighbours.

    Args:
        real: (n, c, h, w), uint8 or float in [0, 1], n >= 20.
        generated: (m, c, h, w), m >= 20.

    Raises:
        UsageError: shapes that differ or that the net refuses, too few images, values outside [0, 1].
    """
    if real.shape[1:] != generated.shape[1:]:
        raise UsageError(f"generated: must be (m, c, h, w) as real is {_of(real)}, got {_of(generated)}")
    least = max(20, k + 1)  # 20: two rows in each of KID's ten blocks
    if (fewer := min(len(real), len(generated))) < least:
        raise UsageError(f"compare needs at least {least} real and generated images, got {fewer}")
    a, b = features(net, real), features(net, generated)
    frechet, kernel = ("FID", "KID") if net.name == "inception" else (f"FD[{net.name}]", f"KID[{net.name}]")
    scores = manifold_scores(a, b, k)._asdict()
    return {frechet: frechet_features(a, b), kernel: kid(a, b).value, **scores}


def _train(net: Extractor, data: Images) -> Extractor:
    """Fit to the training images; draws from torch's global generator."""
    size = min(_BATCH, len(data))
    steps = min(max(_FEWEST, _PASSES * len(data) // size), _MOST)
    optimizer = torch.optim.Adam(net.parameters(), _RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=steps)
    order = torch.cat([torch.randperm(len(data)) for _ in range(math.ceil(steps * size / len(data)))])
    net.train()
    for rows in order[: steps * size].split(size):
        images, labels = _task(data, rows)
        images = unit(images)
        if images.shape[1] == 1:
            images[::2] = images[::2].bernoulli()
        loss = functional.cross_entropy(net.logits(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return net.eval()


def _task(data: Images, rows: Tensor) -> tuple[Tensor, Tensor]:
    """The images of these rows and their classes, or without labels the images turned and their quarter turns."""
    images = data.images[rows]
    if data.labels is not None:
        return images, data.labels[rows]
    side = min(images.shape[2:])
    top, left = ((size - side) // 2 for size in images.shape[2:])
    images = images[:, :, top : top + side, left : left + side]
    turns = torch.randint(4, (len(images),))
    return torch.stack([images.rot90(turn, (2, 3)) for turn in range(4)])[turns, torch.arange(len(images))], turns


@torch.no_grad()
def _accuracy(net: Extractor, data: Images) -> float:
    """Percent of the test images; of the training images where those are not there, or have no labels."""
    part = data if data.test is None or (data.labels is not None and data.test.labels is None) else data.test
    hits = 0
    for rows in torch.arange(len(part)).split(256):
        images, answers = _task(part, rows)
        hits += int((net.logits(images).argmax(1) == answers).sum())
    return 100 * hits / len(part)


def _of(images: Tensor) -> str:
    return " x ".join(str(size) for size in images.shape)
