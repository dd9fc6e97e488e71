"""Where data lies: `$GEN_DATA` (may be read-only) for what the user has, the user's cache for what is derived."""

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
