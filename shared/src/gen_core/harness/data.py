"""Where data lies: `$GEN_DATA` (may be read-only) for what the user has, the user's cache for what is derived."""

import hashlib
import os
from pathlib import Path

import platformdirs

from gen_core.harness.errors import UsageError


def root() -> Path:
    """`$GEN_DATA`, else the platform's user cache folder for `gen`."""
    value = os.environ.get("GEN_DATA")
    return Path(value).expanduser().absolute() if value else cache("data")


def cache(*parts: str) -> Path:
    """A path in the user's writable cache (`$GEN_CACHE` or the platform's); its parent folder exists afterwards."""
    base = os.environ.get("GEN_CACHE")
    path = (Path(base).expanduser().absolute() if base else Path(platformdirs.user_cache_dir("gen"))).joinpath(*parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def missing(dataset: str, searched: Path, how: str) -> UsageError:
    """The error to raise when a registered data set is not on this machine."""
    return UsageError(f"data set {dataset!r} was not found; searched {searched} (set GEN_DATA to change it). {how}")


def sha256(path: Path) -> str:
    """Hex digest of one file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(path: Path, expected: str) -> None:
    """Refuse a file whose sha256 differs from the pinned one: the field's raw pickles are read only after this."""
    if (found := sha256(path)) != expected:
        raise UsageError(f"{path}: sha256 is {found}, expected {expected}; the file is damaged or not the original")
