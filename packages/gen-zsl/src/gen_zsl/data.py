"""Features of images, classes with attributes, a split: registered data and the user's own xlsa17 folder.

What a folder holds and how it is checked stands in `gen_zsl.xlsa17`.
"""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gen_core.harness.data import missing, root
from gen_core.harness.errors import UsageError, nearest
from gen_zsl.registry import DOMAIN
from gen_zsl.xlsa17 import SPLITS, ZeroShot, files, read, write_xlsa17

__all__ = ["ZeroShot", "checksum", "digits", "ids", "inner", "limits", "load", "reduced", "spec", "write_xlsa17"]

FILES = {"cub": "sent"}
"""Semantics of the registered sets where they are not `att`."""


def load(name_or_path: str | Path, semantics: str | None = None, scale: bool = False) -> ZeroShot:
    """A registered data set by name, or the user's own xlsa17 folder by path.

    `semantics`: reads SEMANTICS_splits.mat of the folder; by default `att`, or the only one. `scale` maps each feature
    to [0, 1] by its range over trainval (test rows may leave it); the methods here do that by themselves.

    Raises `UsageError` that names the file, the key, the value and what is allowed.
    """
    name = str(name_or_path)
    if name == "digits":
        if semantics is not None:
            raise UsageError(f"semantics {semantics!r}: 'digits' has one description of its classes only")
        found = digits()
    elif name in DOMAIN.datasets:
        entry = DOMAIN.datasets[name]
        features = root() / entry.path
        splits = features.with_name((semantics or FILES.get(name, "att")) + SPLITS)
        for path in (features, splits):
            if not path.is_file():
                raise missing(name, path, entry.how)
        found = read(features, splits)
        found = reduced(found) if name == "cifar100-zsl-reduced" else found
    else:
        path = Path(name_or_path).expanduser()
        if not path.is_dir():
            what = "is a file" if path.exists() else "does not exist"
            allowed = (
                f"give an xlsa17 folder (features .mat and *{SPLITS}); {nearest(name, DOMAIN.datasets, 'data set')}"
            )
            raise UsageError(f"{path} {what}: {allowed}")
        found = read(*files(path, semantics))
    if scale:
        low, span = limits(found.features[found.trainval])
        found = dataclasses.replace(found, features=(found.features - low) / span)
    return found


def limits(features: Tensor) -> tuple[Tensor, Tensor]:
    """Least value and range of each column; a constant column has range 1."""
    low, high = features.min(0).values, features.max(0).values
    return low, torch.where(high > low, high - low, torch.ones_like(low))


def spec(data: ZeroShot) -> dict[str, Any]:
    """Sizes, and the classes' names, which a trained model keeps."""
    return {
        "features": data.features.shape[1],
        "attributes": data.attributes.shape[1],
        "seen": len(data.seen),
        "unseen": len(data.unseen),
        "classes": list(data.classes),
    }


def checksum(data: ZeroShot) -> str:
    """sha256 over all that `data` holds."""
    digest = hashlib.sha256()
    for field in dataclasses.fields(data):
        value = getattr(data, field.name)
        if isinstance(value, Tensor):
            digest.update(f"{field.name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.contiguous().numpy().tobytes())
        else:
            digest.update(f"{field.name} {value!r}".encode())
    return digest.hexdigest()


def ids(data: ZeroShot) -> list[str]:
    """The images' names."""
    return list(data.ids)


def inner(data: ZeroShot, seed: int) -> ZeroShot:
    """The validation problem: train's classes are seen, val's unseen, a tenth of train's rows is its test of the seen.

    Only seen classes and trainval rows of `data` are in it, numbered anew. The tenth is drawn class by class from
    `seed`, at least one row; a class with a single row keeps it for training.
    """
    generator = torch.Generator().manual_seed(seed)
    fit: list[Tensor] = []
    held: list[Tensor] = []
    for kind in data.labels[data.train].unique():
        rows = data.train[data.labels[data.train] == kind]
        rows = rows[torch.randperm(len(rows), generator=generator)]
        cut = min(max(1, round(0.1 * len(rows))), len(rows) - 1)
        held.append(rows[:cut])
        fit.append(rows[cut:])
    parts = (torch.cat(fit), torch.cat(held), data.val)
    rows = torch.cat(parts)
    kinds, labels = data.labels[rows].unique(return_inverse=True)
    trainval, test_seen, test_unseen = torch.arange(len(rows)).split([len(part) for part in parts])
    return ZeroShot(
        features=data.features[rows],
        labels=labels,
        attributes=data.attributes[kinds],
        classes=tuple(data.classes[kind] for kind in kinds.tolist()),
        trainval=trainval,
        test_seen=test_seen,
        test_unseen=test_unseen,
        train=trainval[:0],
        val=trainval[:0],
        ids=tuple(data.ids[row] for row in rows.tolist()),
    )


# --- registered ------------------------------------------------------------------------------------------------------

SEGMENTS = {
    "zero": "abcdef", "one": "bc", "two": "abdeg", "three": "abcdg", "four": "bcfg",
    "five": "acdfg", "six": "acdefg", "seven": "abc", "eight": "abcdefg", "nine": "abcdfg",
}  # fmt: skip
STROKES = {
    "closed loop above": "eight nine",
    "closed loop below": "six eight",
    "one large loop": "zero",
    "open to the left above": "two three seven",
    "open to the left below": "three five nine",
    "open to the right above": "five six",
    "open to the right below": "two",
    "a long vertical stroke": "one four seven nine",
    "a long horizontal bar": "two four five seven",
    "a slanting stroke": "two four seven",
}


def digits(images: int = 24) -> ZeroShot:
    """Two-digit numbers 00 to 99, two of scikit-learn's digits side by side; made for demonstrations, by a fixed seed.

    `images` pictures a number of 2 x 64 pixels in [0, 1]; a third of them, of digits that are in no training picture,
    are for tests. Attributes, 0 or 1, of either digit: the seven segments of a display and ten properties of its
    strokes, 34 in all. The 20 numbers whose digits t u have (t + 3 u) mod 5 = 0 are unseen; remainder 1 is val.
    """
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    pixels, digit = torch.from_numpy(bunch.data).float() / 16, torch.from_numpy(bunch.target)
    segments = [[float(letter in letters) for letter in "abcdefg"] for letters in SEGMENTS.values()]
    strokes = [[float(name in owners.split()) for owners in STROKES.values()] for name in SEGMENTS]
    single = torch.cat([torch.tensor(segments), torch.tensor(strokes)], 1)
    number = torch.arange(100)
    labels = number.repeat_interleave(images)
    test = torch.arange(len(labels)) % images >= images - images // 3
    generator = torch.Generator().manual_seed(0)
    features = torch.empty(len(labels), 2, 64)
    for side, shown in enumerate((labels // 10, labels % 10)):
        for kind in range(10):
            rows = (digit == kind).nonzero()[:, 0]
            for part, pool in ((~test, rows[: -len(rows) // 3]), (test, rows[-len(rows) // 3 :])):
                places = ((shown == kind) & part).nonzero()[:, 0]
                chosen = torch.randint(len(pool), (len(places),), generator=generator)
                features[places, side] = pixels[pool[chosen]]
    remainder = ((number // 10 + 3 * (number % 10)) % 5)[labels]
    unseen, val = remainder == 0, remainder == 1
    return ZeroShot(
        features=features.flatten(1),
        labels=labels,
        attributes=torch.cat([single.repeat_interleave(10, 0), single.repeat(10, 1)], 1),
        classes=tuple(f"{value:02}" for value in range(100)),
        trainval=(~unseen & ~test).nonzero()[:, 0],
        test_seen=(~unseen & test).nonzero()[:, 0],
        test_unseen=(unseen & test).nonzero()[:, 0],
        train=(~unseen & ~test & ~val).nonzero()[:, 0],
        val=(~unseen & ~test & val).nonzero()[:, 0],
        ids=tuple(f"{value:02}-{row % images}" for row, value in enumerate(labels.tolist())),
    )


def reduced(data: ZeroShot, features: int = 256, components: int = 64, factor: float = 3.0) -> ZeroShot:
    """A smaller problem: the features of largest variance over trainval; attributes centred, PCA, times `factor`.

    Attributes of all classes enter the PCA: they are known before any image of an unseen class is.
    """
    kept = data.features[data.trainval].var(0).topk(features).indices.sort().values
    centred = data.attributes.double() - data.attributes.double().mean(0)
    left, values, right = torch.linalg.svd(centred, full_matrices=False)
    largest = right.abs().argmax(1, keepdim=True)  # the signs of singular vectors are free: fix them
    scores = left * values * right.gather(1, largest).sign()[:, 0]
    return dataclasses.replace(
        data, features=data.features[:, kept], attributes=(factor * scores[:, :components]).float()
    )
