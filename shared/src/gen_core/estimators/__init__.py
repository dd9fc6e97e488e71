"""Mutual-information bounds on scores, and critics that give scores. Each name is loaded when it is first used."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gen_core.estimators.bounds import (
        BOUNDS,
        Match,
        Pairs,
        dv,
        infonce,
        interpolated,
        jsd,
        nats_to_bits,
        nce,
        nwj,
        smile,
        tuba,
    )
    from gen_core.estimators.critics import Bilinear, Separable, bilinear, separable

__all__ = [
    "BOUNDS",
    "Bilinear",
    "Match",
    "Pairs",
    "Separable",
    "bilinear",
    "dv",
    "infonce",
    "interpolated",
    "jsd",
    "nats_to_bits",
    "nce",
    "nwj",
    "separable",
    "smile",
    "tuba",
]
_CRITICS = frozenset({"Bilinear", "Separable", "bilinear", "separable"})


def __getattr__(name: str) -> object:
    if name in __all__:
        return getattr(import_module(f"{__name__}.{'critics' if name in _CRITICS else 'bounds'}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
