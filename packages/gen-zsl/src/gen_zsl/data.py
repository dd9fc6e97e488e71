"""Features of images, classes with attributes, a split: registered data and the user's own xlsa17 folder.

The layout of xlsa17 (Xian et al., "Zero-Shot Learning: A Comprehensive Evaluation", 2018), MATLAB v5, is read as is:

- `<any name>.mat` (res101.mat there): `features` (d, n), a column an image; `labels` (n, 1), classes from 1;
  `image_files` (n, 1), optional;
- `<semantics>_splits.mat`: `att` (A, C), a column a class; `allclasses_names` (C, 1), optional; `trainval_loc`,
  `test_seen_loc`, `test_unseen_loc`, optional `train_loc`, `val_loc`: numbers of images, from 1.

Here everything counts from 0 and rows are samples. Seen are the classes of trainval; all other classes are unseen.

Validation: `train_loc` and `val_loc` of the official files hold rows of `test_seen_loc`. `train` and `val` here are
without them (their part inside trainval_loc), so that nothing is chosen on test images. Without the two in the file,
val is every fifth seen class.
"""

import dataclasses
import hashlib
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gen_core.harness.data import missing, root
from gen_core.harness.errors import UsageError, nearest
from gen_zsl.registry import DOMAIN

SPLITS = "_splits.mat"
LOCS = ("trainval_loc", "test_seen_loc", "test_unseen_loc")
FILES = {"cub": "sent"}
"""Semantics of the registered sets where they are not `att`."""


@dataclass(frozen=True, eq=False)
class ZeroShot:
    """One data set. Index tensors hold rows of `features`; `seen` and `unseen` hold classes."""

    features: Tensor
    """(n, d) float32"""
    labels: Tensor
    """(n,) int64 from 0: columns of `allclasses_names`, rows of `attributes`"""
    attributes: Tensor
    """(C, A) float32"""
    classes: tuple[str, ...]
    """C names"""
    trainval: Tensor
    """rows to train on, of seen classes"""
    test_seen: Tensor
    """rows to test on, of seen classes"""
    test_unseen: Tensor
    """rows to test on, of unseen classes"""
    train: Tensor
    """rows of trainval that play the seen classes in validation"""
    val: Tensor
    """rows of trainval that play the unseen classes in validation"""
    ids: tuple[str, ...]
    """n names of images"""

    @property
    def seen(self) -> Tensor:
        """The classes of trainval, ascending."""
        return self.labels[self.trainval].unique()

    @property
    def unseen(self) -> Tensor:
        """All classes that are described and not seen, ascending."""
        every = torch.arange(len(self.classes))
        return every[~torch.isin(every, self.seen)]


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
        found = read(*_files(path, semantics))
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


# --- files -----------------------------------------------------------------------------------------------------------


def write_xlsa17(
    folder: str | Path,
    features: NDArray[Any] | Tensor,
    labels: NDArray[Any] | Tensor,
    attributes: NDArray[Any] | Tensor,
    classes: Sequence[str],
    split: Mapping[str, NDArray[Any] | Tensor | Sequence[int]],
    ids: Sequence[str] | None = None,
    semantics: str = "att",
) -> None:
    """Write `features.mat` and `<semantics>_splits.mat`, which `load(folder)` and others' xlsa17 readers take.

    Args:
        folder: made where it is missing.
        features: (n, d) numbers, a row an image.
        labels: (n,) integers from 0.
        attributes: (C, A) numbers, a row a class.
        classes: C names.
        split: rows from 0 under `trainval`, `test_seen`, `test_unseen` and, if you have them, `train` and `val`.
        ids: n names of the images.
        semantics: name of this description of the classes.

    Raises:
        UsageError: what `load` would refuse, named as there.
    """
    import scipy.io

    if unknown := sorted(set(split) - {"trainval", "test_seen", "test_unseen", "train", "val"}):
        raise UsageError(nearest(unknown[0], ("trainval", "test_seen", "test_unseen", "train", "val"), "part of split"))
    where = Path(folder)
    x, y, a = (np.asarray(value) for value in (features, labels, attributes))
    names = [str(row) for row in range(len(x))] if ids is None else ids
    images: dict[str, Any] = {"features": x.T, "labels": y[:, None] + 1, "image_files": _cell(names)}
    wide = np.uint16 if len(x) < 2**16 else np.uint32
    parts = {f"{key}_loc": (np.asarray(rows, dtype=np.int64)[:, None] + 1) for key, rows in split.items()}
    described = {"att": a.T, "allclasses_names": _cell(classes), **parts}
    parse(images, described, where / "features.mat", where / f"{semantics}{SPLITS}")
    where.mkdir(parents=True, exist_ok=True)
    described |= {key: value.astype(wide) for key, value in parts.items()}
    scipy.io.savemat(where / "features.mat", images)
    scipy.io.savemat(where / f"{semantics}{SPLITS}", described)


def read(features: Path, splits: Path) -> ZeroShot:
    """The data set in a features file and a splits file."""
    keys = ("att", "allclasses_names", *LOCS, "train_loc", "val_loc")
    return parse(_loadmat(features, ("features", "labels", "image_files")), _loadmat(splits, keys), features, splits)


def parse(images: Mapping[str, Any], described: Mapping[str, Any], features: Path, splits: Path) -> ZeroShot:
    """The data set in the variables of the two files, checked; the paths are for the messages."""
    for path, content, needed in ((features, images, ("features", "labels")), (splits, described, ("att", *LOCS))):
        if lacking := [key for key in needed if key not in content]:
            raise UsageError(f"{path}: no {lacking[0]!r}; needed: {', '.join(needed)}; there: {', '.join(content)}")
    labels = _whole(images["labels"], f"{features}: labels")
    x = _matrix(images["features"], f"{features}: features")
    n = len(labels)
    if x.shape[1] != n:
        turned = f"; it looks transposed: write features.T, (d, {n})" if x.shape[0] == n else ""
        raise UsageError(f"{features}: features has shape {x.shape} for {n} labels; expected (d, {n}){turned}")
    attributes = _matrix(described["att"], f"{splits}: att")
    count = attributes.shape[1]
    outside = (labels < 1) | (labels > count)
    if outside.any():
        row = int(outside.argmax())
        raise UsageError(
            f"{features}: labels, image {row + 1}: {labels[row]}; expected 1..{count}, the columns of att in {splits}"
        )
    names = _texts(described["allclasses_names"]) if "allclasses_names" in described else None
    if names is not None and len(names) != count:
        raise UsageError(f"{splits}: allclasses_names has {len(names)} classes, att has {count} columns")
    names = names or tuple(f"class {number}" for number in range(1, count + 1))
    for column in np.flatnonzero((attributes == 0).all(0)).tolist():
        raise UsageError(f"{splits}: att: class {column + 1} ({names[column]}) has no attributes, its column is all 0")
    images_there = "image_files" in images and np.size(images["image_files"]) == n
    found = ZeroShot(
        features=torch.from_numpy(np.ascontiguousarray(x.T)),
        labels=torch.from_numpy(labels - 1),
        attributes=torch.from_numpy(np.ascontiguousarray(attributes.T)),
        classes=names,
        **{key.removesuffix("_loc"): _rows(described[key], n, f"{splits}: {key}", features) for key in LOCS},
        **_validation(described, labels - 1, n, splits, features),
        ids=_texts(images["image_files"]) if images_there else tuple(str(number) for number in range(1, n + 1)),
    )
    _check(found, splits)
    return found


def _validation(
    described: Mapping[str, Any], labels: NDArray[np.int64], n: int, splits: Path, features: Path
) -> dict[str, Tensor]:
    trainval = _rows(described["trainval_loc"], n, f"{splits}: trainval_loc", features)
    y = torch.from_numpy(labels)
    if "train_loc" in described and "val_loc" in described:
        parts = [_rows(described[key], n, f"{splits}: {key}", features) for key in ("train_loc", "val_loc")]
        both = np.intersect1d(*(labels[part] for part in parts))
        if len(both):
            raise UsageError(f"{splits}: class {both[0] + 1} is in train_loc and in val_loc; they share no class")
        train, val = (part[torch.isin(part, trainval)] for part in parts)
    else:
        kinds = y[trainval].unique()
        play = torch.isin(y[trainval], kinds[4::5])
        train, val = trainval[~play], trainval[play]
    return {"train": train, "val": val}


def _check(data: ZeroShot, splits: Path) -> None:
    """The parts share no row; seen and unseen share no class."""
    parts = {key: getattr(data, key.removesuffix("_loc")) for key in LOCS}
    for one, other in (LOCS[:2], LOCS[1:], LOCS[::2]):
        both = parts[one][torch.isin(parts[one], parts[other])]
        if len(both):
            raise UsageError(f"{splits}: image {int(both[0]) + 1} is in {one} and in {other}")
    seen = data.seen
    y = data.labels
    for row in data.test_unseen[torch.isin(y[data.test_unseen], seen)].tolist():
        name = data.classes[int(y[row])]
        raise UsageError(
            f"{splits}: class {int(y[row]) + 1} ({name}) is seen (trainval_loc) and unseen (test_unseen_loc)"
        )
    for row in data.test_seen[~torch.isin(y[data.test_seen], seen)].tolist():
        name = data.classes[int(y[row])]
        raise UsageError(f"{splits}: class {int(y[row]) + 1} ({name}) is in test_seen_loc and not in trainval_loc")


def _files(folder: Path, semantics: str | None) -> tuple[Path, Path]:
    """The features file and the splits file of a folder."""
    there = sorted(folder.glob("*.mat"))
    splits = [path for path in there if path.name.endswith(SPLITS)]
    features = [path for path in there if path not in splits]
    if len(features) != 1:
        names = ", ".join(path.name for path in features) or "none"
        raise UsageError(f"{folder}: one .mat with features and labels is needed beside *{SPLITS}; found {names}")
    kinds = [path.name.removesuffix(SPLITS) for path in splits]
    chosen = semantics or ("att" if "att" in kinds or len(kinds) != 1 else kinds[0])
    if chosen not in kinds:
        found = ", ".join(kinds) or "none"
        raise UsageError(f"{folder}: no {chosen}{SPLITS}; --semantics may name one of the {SPLITS} there: {found}")
    return features[0], folder / f"{chosen}{SPLITS}"


def _loadmat(path: Path, keys: Sequence[str]) -> dict[str, Any]:
    import scipy.io
    from scipy.io.matlab import MatReadError

    try:
        with path.open("rb") as file:
            head = file.read(128)
        if head.startswith(b"MATLAB 7.3") or head.startswith(b"\x89HDF"):
            how = "save it with -v7 in MATLAB, or with scipy.io.savemat"
            raise UsageError(f"{path} is a MATLAB v7.3 (HDF5) file; expected v5: {how}")
        content = scipy.io.loadmat(path, variable_names=list(keys))
    except (OSError, ValueError, TypeError, KeyError, IndexError, NotImplementedError, MemoryError) as error:
        if isinstance(error, UsageError):
            raise
        raise _damaged(path, error) from None
    except (EOFError, zlib.error, MatReadError) as error:
        raise _damaged(path, error) from None
    return {key: value for key, value in content.items() if not key.startswith("__")}


def _damaged(path: Path, error: Exception) -> UsageError:
    return UsageError(f"{path} is truncated or no MATLAB v5 file: {error or type(error).__name__}")


def _matrix(value: Any, where: str) -> NDArray[np.float32]:
    array = np.asarray(value)
    if array.ndim != 2 or 0 in array.shape or array.dtype.kind not in "fiub":
        raise UsageError(
            f"{where} has shape {array.shape}, {array.dtype}; expected numbers in two dimensions, not empty"
        )
    with np.errstate(over="ignore"):
        array = array.astype(np.float32)  # before any arithmetic: uint8 wraps
    if not (finite := np.isfinite(array)).all():
        row, column = (int(place) for place in np.argwhere(~finite)[0])
        raise UsageError(
            f"{where}, row {row + 1}, column {column + 1}: {array[row, column]}; expected finite float32 numbers"
        )
    return array


def _whole(value: Any, where: str) -> NDArray[np.int64]:
    """A vector of whole numbers, whatever its type in the file."""
    array = np.asarray(value)
    if array.ndim != 2 or 1 not in array.shape or array.dtype.kind not in "fiu":
        raise UsageError(f"{where} has shape {array.shape}, {array.dtype}; expected whole numbers of shape (n, 1)")
    flat = array.reshape(-1)
    whole = flat.astype(np.int64)
    if (whole != flat).any():
        row = int((whole != flat).argmax())
        raise UsageError(f"{where}, entry {row + 1}: {flat[row]}; expected a whole number")
    return whole


def _rows(value: Any, n: int, where: str, features: Path) -> Tensor:
    """Image numbers from 1 as rows from 0."""
    if np.size(value) == 0:
        raise UsageError(f"{where} is empty; expected the numbers of at least one image")
    numbers = _whole(value, where)
    outside = (numbers < 1) | (numbers > n)
    if outside.any():
        hint = "; images count from 1" if numbers.min() == 0 else ""
        raise UsageError(f"{where}: {numbers[outside][0]}; expected 1..{n}, the images of {features}{hint}")
    unique, counts = np.unique(numbers, return_counts=True)
    if counts.max() > 1:
        raise UsageError(f"{where}: image {unique[counts.argmax()]} is listed {counts.max()} times")
    return torch.from_numpy(numbers - 1)


def _texts(value: Any) -> tuple[str, ...]:
    """A cell array of strings."""
    found: list[str] = []
    for entry in np.asarray(value).reshape(-1):
        while isinstance(entry, np.ndarray):
            entry = entry.reshape(-1)[0] if entry.size else ""
        found.append(str(entry).strip())
    return tuple(found)


def _cell(texts: Sequence[str]) -> NDArray[np.object_]:
    cell = np.empty((len(texts), 1), dtype=object)
    cell[:, 0] = list(texts)
    return cell
