"""Generative, contrastive and self-supervised learning of images.

Examples:
    >>> from gen_vision import SimCLR                                            # doctest: +SKIP
    >>> model = SimCLR(SimCLR.Config(epochs=20)).fit(data.load("digits"))        # doctest: +SKIP
"""

import importlib
from typing import Any

_NAMES = {
    "RawPixels": "gen_vision.methods.baselines.raw",
    "SimCLR": "gen_vision.methods.contrastive.simclr",
    "Supervised": "gen_vision.methods.baselines.supervised",
}

__all__ = ["RawPixels", "SimCLR", "Supervised"]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """Import a method when it is first asked for (PEP 562), so that `import gen_vision` stays light."""
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    raise AttributeError(f"module 'gen_vision' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_NAMES])
