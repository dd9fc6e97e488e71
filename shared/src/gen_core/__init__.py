"""Contrastive losses, mutual-information bounds, evaluation protocols and the run harness of the `gen` packages.

Importing this package loads nothing heavy; its parts are imported when they are first used.

Examples:
    >>> import gen_core
    >>> gen_core.__version__
    '0.1.0'
"""

from gen_core.lazy import attach

__version__ = "0.1.0"
_PARTS = ("distributed", "estimators", "evaluation", "harness", "losses", "state", "testing")
__all__ = [*_PARTS]  # pyright: ignore[reportUnsupportedDunderAll]
__getattr__, __dir__ = attach(__name__, dict.fromkeys(_PARTS, ""))
