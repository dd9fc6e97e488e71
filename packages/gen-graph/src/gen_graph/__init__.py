"""Contrastive and self-supervised learning on graphs. Importing this package loads nothing heavy."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gen_graph.methods.dgi import DGI
    from gen_graph.methods.raw import RawFeatures

_NAMES = {
    "DGI": "gen_graph.methods.dgi",
    "RawFeatures": "gen_graph.methods.raw",
}

__all__ = ["DGI", "RawFeatures"]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_NAMES})
