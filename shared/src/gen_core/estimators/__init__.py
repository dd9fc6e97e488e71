"""Mutual-information bounds on scores, and critics that give scores. Each name is loaded when it is first used."""

from typing import TYPE_CHECKING

from gen_core.lazy import attach

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
_CRITICS = ("Bilinear", "Separable", "bilinear", "separable")
__getattr__, __dir__ = attach(__name__, dict.fromkeys(__all__, "bounds") | dict.fromkeys(_CRITICS, "critics"))
