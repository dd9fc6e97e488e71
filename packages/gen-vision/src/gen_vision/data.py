"""Images in memory: registered sets and the user's own folders, as uint8 tensors. Point clouds: see `clouds`.

    load("digits" | "mnist" | "mnist-10k" | "mnist-binary" | "cifar10" | "cifar10-4k" | a folder) -> Images
    load("shapes-3d" | an .npz file) -> Clouds

A folder of one's own may be flat (no labels) or hold one subfolder a class (labels); either form may stand below
`train/` and `test/`. Images that all have one size of at most 224 on the shorter side are kept as they are. Otherwise
each is resized so that its shorter side is the common size, and cut to the central square; the common size is the
median shorter side of the (training) images, no less than 8 and no more than 224, unless `size` is given. If every
image is grey the set has one channel, else three. Transparency is dropped, of an animation the first frame is read.
"""

import hashlib
import os
import statistics
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from gen_core.harness.data import missing, root
from gen_core.harness.errors import LabelsMissing, UsageError, nearest
from gen_vision import clouds
from gen_vision.clouds import Clouds, Sizes, check_rows
from gen_vision.registry import DOMAIN

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
SMALLEST, LARGEST = 8, 224
_GREY = frozenset({"1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N", "F"})
_TRANSPOSED = frozenset({5, 6, 7, 8})  # EXIF orientations that swap width and height


@dataclass(frozen=True, eq=False)
class Images:
    """A set of images with, where they are known, labels, class names, names of the rows and a test part."""

    images: Tensor
    """uint8, (n, channels, height, width)."""
    labels: Tensor | None = None
    """int64, (n,), class indices."""
    classes: tuple[str, ...] = ()
    """Class names by index."""
    ids: tuple[str, ...] | None = None
    """One name a row: file paths relative to the folder."""
    test: "Images | None" = None

    def __post_init__(self) -> None:
        shape = tuple(self.images.shape)
        if self.images.dtype != torch.uint8 or len(shape) != 4 or 0 in shape:
            raise ValueError(f"images must be a non-empty uint8 (n, c, h, w), got {self.images.dtype} {shape}")
        check_rows("images", len(self), self.labels, self.classes, self.ids)
        if self.test is not None and self.test.images.shape[1:] != self.images.shape[1:]:
            raise ValueError(f"test images must have the shape {shape[1:]}, got {tuple(self.test.images.shape[1:])}")

    def __len__(self) -> int:
        return self.images.shape[0]

    def take(self, rows: Tensor | slice) -> "Images":
        """The images of these rows, without a test part."""
        index = torch.arange(len(self))[rows]
        names = None if self.ids is None else tuple(self.ids[row] for row in index.tolist())
        return Images(self.images[rows], None if self.labels is None else self.labels[rows], self.classes, names)


Data = TypeVar("Data", Images, Clouds)


def load(name_or_path: str | os.PathLike[str], *, size: int | None = None) -> Images | Clouds:
    """A registered set, the images of a folder, or the clouds of an .npz file: `Images` or `Clouds`.

    Args:
        size: pixels of the shorter side that a folder's images are resized to; by default the rule of the module.

    Raises:
        UsageError: no registered name, folder or .npz file; not found; no image, an unreadable image, folder or file.
    """
    name = os.fspath(name_or_path)
    if name in DOMAIN.datasets:
        if size is not None:
            raise UsageError(f"size = {size!r}: registered data sets keep their size; size serves image folders only")
        return _REGISTERED[name]()
    path = Path(name).expanduser()
    if path.is_file() and path.suffix.lower() == ".npz":
        if size is not None:
            raise UsageError(f"size = {size!r}: serves image folders only")
        return clouds.from_npz(path)
    if path.is_file():
        raise UsageError(f"data = {name!r}: is a file; expected a registered name, a folder of images or an .npz file")
    if not path.is_dir():
        raise UsageError(f"data = {name!r}: no such folder, and {nearest(name, DOMAIN.datasets, 'data set')}")
    return from_folder(path, size)


def spec(data: Images | Clouds) -> dict[str, int]:
    """The sizes a method is built from: channels, height, width, or points; classes (0 without labels)."""
    known = len(data.classes) or (0 if data.labels is None else int(data.labels.max()) + 1)
    if isinstance(data, Clouds):
        return Sizes(points=data.points.shape[1], classes=known)
    _, channels, height, width = data.images.shape
    return {"channels": channels, "height": height, "width": width, "classes": known}


def checksum(data: Images | Clouds) -> str:
    """sha256 (hex) over shapes, pixels or points, and labels of the data and of its test part."""
    digest = hashlib.sha256()
    part: Images | Clouds | None = data
    while part is not None:
        rows = pixels(part)
        digest.update(struct.pack(f"<{rows.ndim}q", *rows.shape))
        digest.update(rows.contiguous().numpy().data)
        if part.labels is not None:
            digest.update(part.labels.contiguous().numpy().data)
        digest.update(b"test" if part.test is not None else b"end")
        part = part.test
    return digest.hexdigest()


def ids(data: Images | Clouds) -> list[str]:
    """One name a row: relative file paths, or the row's number."""
    return list(data.ids) if data.ids is not None else [str(row) for row in range(len(data))]


def pixels(data: Images | Clouds) -> Tensor:
    """The images' tensor, uint8 (n, c, h, w), or the clouds' points, float32 (n, p, 3)."""
    return data.points if isinstance(data, Clouds) else data.images


def unit(images: Tensor, dtype: Any = torch.float32) -> Tensor:
    """Pixels in [0, 1]: uint8 is divided by 255, floating images and points pass; both in `dtype`."""
    return images.to(dtype) / 255 if images.dtype == torch.uint8 else images.to(dtype)


def like(images: Tensor, sizes: Mapping[str, Any] | None, sides: bool = False) -> Tensor:
    """The images, refused where their channels (and their sides, if asked) are not those that a model was built for."""
    if images.ndim != 4:
        raise UsageError(f"data: the model is of images (n, c, h, w), got shape {tuple(images.shape)}")
    if sizes and images.shape[1] != sizes["channels"]:
        raise UsageError(f"data: images have {images.shape[1]} channels, the model was trained on {sizes['channels']}")
    if sizes and sides and tuple(images.shape[2:]) != (sizes["height"], sizes["width"]):
        trained = f"{sizes['height']} x {sizes['width']}"
        raise UsageError(f"data: images are {images.shape[2]} x {images.shape[3]}, the model was trained on {trained}")
    return images


def split(data: Data) -> tuple[Data, Data]:
    """Training and test images (or clouds), both labelled.

    Without a test part every fifth row of each class is held out, in one order that is drawn with seed 0.
    """
    if data.labels is None:
        raise LabelsMissing(
            "data: the evaluation needs labels; an image folder has them as one subfolder a class, "
            "an .npz file of point clouds as its array `labels`"
        )
    if data.test is not None:
        if data.test.labels is None:
            raise LabelsMissing("data: the evaluation needs labels of the test images, class subfolders below test/")
        return data, data.test
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
    held = torch.zeros(len(data), dtype=torch.bool)
    for label in data.labels.unique():
        held[order[data.labels[order] == label][4::5]] = True
    if not held.any():
        what = "clouds" if isinstance(data, Clouds) else "images"
        raise UsageError(f"data: no class has the 5 {what} that a test split needs; add {what}, or a test part")
    return data.take(~held), data.take(held)


# ------------------------------------------------------------------------------------------------ registered sets


def _digits() -> Images:
    """scikit-learn's digits, values 0..16 scaled to 0..255; every fourth image of each class is a test image."""
    from sklearn.datasets import load_digits

    values, target = load_digits(return_X_y=True)
    pixels = torch.from_numpy(np.rint(values * (255 / 16)).astype(np.uint8)).reshape(-1, 1, 8, 8)
    labels = torch.from_numpy(np.asarray(target, dtype=np.int64))
    held = torch.zeros(len(labels), dtype=torch.bool)
    for label in range(10):
        held[(labels == label).nonzero()[3::4, 0]] = True
    everything = Images(pixels, labels, tuple(str(digit) for digit in range(10)))
    return replace(everything.take(~held), test=everything.take(held))


def _mnist(train: int | None = None, name: str = "mnist") -> Images:
    from torchvision import datasets

    folder = root() / "mnist"
    parts: list[Images] = []
    for is_train in (True, False):
        try:
            found = datasets.MNIST(folder, train=is_train, download=False)
        except (RuntimeError, OSError) as error:
            raise missing(name, folder / "MNIST" / "raw", DOMAIN.datasets[name].how) from error
        except (AssertionError, ValueError) as error:
            raise UsageError(f"{folder / 'MNIST' / 'raw'}: a damaged IDX file ({error})") from error
        parts.append(Images(found.data[:, None], found.targets.long(), tuple(str(digit) for digit in range(10))))
    return _first(parts[0], parts[1], train, None)


def _binary(grey: Images) -> Images:
    """Each pixel drawn once, 0 or 255, with its grey value as probability; seed 0."""
    generator = torch.Generator().manual_seed(0)

    def drawn(images: Tensor) -> Tensor:
        return torch.bernoulli(images / 255, generator=generator).to(torch.uint8) * 255

    assert grey.test is not None
    test = replace(grey.test, images=drawn(grey.test.images))
    return replace(grey, images=drawn(grey.images), test=test)


def _cifar10(train: int | None = None, test: int | None = None, name: str = "cifar10") -> Images:
    """torchvision unpickles these files only after their pinned md5 (`CIFAR10._check_integrity`) agreed."""
    from torchvision import datasets

    folder = root() / "cifar10"
    parts: list[Images] = []
    for is_train in (True, False):
        try:
            found = datasets.CIFAR10(folder, train=is_train, download=False)
        except (RuntimeError, OSError) as error:
            where = folder / datasets.CIFAR10.base_folder
            if (where / "batches.meta").exists():
                raise UsageError(f"{where}: a file is missing or its md5 differs from the original's") from error
            raise missing(name, where, DOMAIN.datasets[name].how) from error
        pixels = torch.from_numpy(found.data).permute(0, 3, 1, 2).contiguous()
        parts.append(Images(pixels, torch.tensor(found.targets), tuple(found.classes)))
    return _first(parts[0], parts[1], train, test)


def _first(train_set: Images, test_set: Images, train: int | None, test: int | None) -> Images:
    return replace(train_set.take(slice(train)), test=test_set.take(slice(test)))


_REGISTERED = {
    "digits": _digits,
    "mnist": _mnist,
    "mnist-10k": lambda: _mnist(10_000, "mnist-10k"),
    "mnist-binary": lambda: _binary(_mnist(50_000, "mnist-binary")),
    "cifar10": _cifar10,
    "cifar10-4k": lambda: _cifar10(4_000, 2_000, "cifar10-4k"),
    "shapes-3d": clouds.shapes,
}


# ---------------------------------------------------------------------------------------------------- own folders


@dataclass(frozen=True)
class _Listing:
    files: tuple[Path, ...]
    labels: tuple[int, ...] | None
    classes: tuple[str, ...]


def from_folder(folder: Path, size: int | None = None) -> Images:
    """The images below `folder`, which may have `train/` and `test/` parts; see the module for sizes and channels."""
    if size is not None and size < 1:
        raise UsageError(f"size = {size!r}: must be at least 1 pixel")
    has_parts = (folder / "train").is_dir()
    train = _list(folder / "train" if has_parts else folder)
    test = _list(folder / "test") if has_parts and (folder / "test").is_dir() else None
    if test is not None and train.labels is not None and test.labels is not None:
        if unknown := sorted(set(test.classes) - set(train.classes)):
            raise UsageError(f"{folder / 'test'}: classes {', '.join(unknown)} are not in {folder / 'train'}")
        index = [train.classes.index(name) for name in test.classes]
        test = _Listing(test.files, tuple(index[label] for label in test.labels), train.classes)
    elif test is not None and (train.labels is None) != (test.labels is None):
        raise UsageError(f"{folder}: train and test must both hold one subfolder a class, or neither")

    headers = [_header(file) for file in train.files]
    rest = [] if test is None else [_header(file) for file in test.files]
    one_size = len({shape for shape, _ in headers + rest}) == 1 and min(headers[0][0]) <= LARGEST
    if size is None and not one_size:
        middle = statistics.median_low(min(shape) for shape, _ in headers)
        size = min(max(middle, SMALLEST), LARGEST)
    mode = "L" if all(grey for _, grey in headers + rest) else "RGB"
    held = None if test is None else _read(test, folder, size, mode)
    return replace(_read(train, folder, size, mode), test=held)


def _list(folder: Path) -> _Listing:
    try:
        entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
        flat = [entry for entry in entries if entry.is_file() and entry.suffix.lower() in SUFFIXES]
        below = {entry.name: _walk(entry) for entry in entries if entry.is_dir()}
    except OSError as error:
        raise UsageError(f"{error.filename or folder}: the folder cannot be read ({error.strerror})") from error
    below = {name: files for name, files in below.items() if files}
    if flat and below:
        raise UsageError(
            f"{folder}: holds images both directly ({flat[0].name}, ...) and in subfolders ({', '.join(below)}); "
            "put all of them in one folder (no labels) or in one subfolder a class"
        )
    if not flat and not below:
        raise UsageError(f"{folder}: holds no image; suffixes read: {', '.join(sorted(SUFFIXES))}")
    if flat:
        return _Listing(tuple(flat), None, ())
    files = tuple(file for found in below.values() for file in found)
    labels = tuple(label for label, found in enumerate(below.values()) for _ in found)
    return _Listing(files, labels, tuple(below))


def _walk(folder: Path) -> list[Path]:
    def refuse(error: OSError) -> None:
        raise error

    found: list[Path] = []
    for base, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(base, name) for name in sorted(files) if _is_image(name)]
    return found


def _is_image(name: str) -> bool:
    return not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES


def _header(file: Path) -> tuple[tuple[int, int], bool]:
    """((width, height) as it is displayed, whether it is grey), without decoding the pixels."""
    try:
        with Image.open(file) as image:
            width, height = image.size
            turned = image.getexif().get(0x0112) in _TRANSPOSED
            return (height, width) if turned else (width, height), image.mode in _GREY
    except _UNREADABLE as error:
        raise _unreadable(file, error) from error


def _read(listing: _Listing, folder: Path, size: int | None, mode: str) -> Images:
    pixels = torch.from_numpy(np.stack([_pixels(file, size, mode) for file in listing.files]))
    return Images(
        pixels[:, None] if mode == "L" else pixels.permute(0, 3, 1, 2).contiguous(),
        None if listing.labels is None else torch.tensor(listing.labels),
        listing.classes,
        tuple(file.relative_to(folder).as_posix() for file in listing.files),
    )


def _pixels(file: Path, size: int | None, mode: str) -> np.ndarray:
    """uint8 (h, w) or (h, w, 3)."""
    try:
        with Image.open(file) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode.startswith("I"):  # 16 bits a pixel: `convert` would clip at 255
                image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
            image = image.convert(mode)
            if size is not None:
                width, height = image.size
                scale = size / min(width, height)
                image = image.resize((max(size, round(width * scale)), max(size, round(height * scale))))
                left, top = (image.width - size) // 2, (image.height - size) // 2
                image = image.crop((left, top, left + size, top + size))
            return np.array(image, dtype=np.uint8)
    except _UNREADABLE as error:
        raise _unreadable(file, error) from error


# Pillow raises SyntaxError for some broken PNG headers and DecompressionBombError for images of 179 million pixels.
_UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)


def _unreadable(file: Path, error: Exception) -> UsageError:
    return UsageError(f"{file}: not a readable image ({error})")
