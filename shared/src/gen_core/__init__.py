"""Contrastive losses, mutual-information bounds, evaluation protocols and the run harness of the `gen` packages.

Importing this package loads nothing heavy; its parts are imported when they are first used.

Examples:
    >>> import gen_core
    >>> gen_core.__version__
    '0.1.0'
"""

from importlib import import_module
from types import ModuleType

__version__ = "0.1.0"
__all__ = ["__version__", "estimators", "evaluation", "harness", "losses"]  # pyright: ignore[reportUnsupportedDunderAll]
_PARTS = frozenset(__all__) - {"__version__"}


def __getattr__(name: str) -> ModuleType:
    if name in _PARTS:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
