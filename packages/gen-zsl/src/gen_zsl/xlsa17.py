"""The layout of xlsa17 (Xian et al., "Zero-Shot Learning: A Comprehensive Evaluation", 2018), MATLAB v5, read as is.

- `<any name>.mat` (res101.mat there): `features` (d, n), a column an image; `labels` (n, 1), classes from 1;
  `image_files` (n, 1), optional;
- `<semantics>_splits.mat`: `att` (A, C), a column a class; `allclasses_names` (C, 1), optional; `trainval_loc`,
  `test_seen_loc`, `test_unseen_loc`, optional `train_loc`, `val_loc`: numbers of images, from 1.

Here everything counts from 0 and rows are samples. Seen are the classes of trainval; all other classes are unseen.

Validation: `train_loc` and `val_loc` of the official files hold rows of `test_seen_loc`. `train` and `val` here are
without them (their part inside trainval_loc), so that nothing is chosen on test images. Without the two in the file,
val is every fifth seen class.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gen_core.harness.errors import UsageError, nearest

SPLITS = "_splits.mat"
LOCS = ("trainval_loc", "test_seen_loc", "test_unseen_loc")


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


def files(folder: Path, semantics: str | None) -> tuple[Path, Path]:
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
