"""Generative and contrastive zero-shot learning. Importing this package loads nothing heavy."""

from typing import TYPE_CHECKING

from gen_core.lazy import attach

if TYPE_CHECKING:
    from gen_zsl.methods.ce_gzsl import CEGZSL
    from gen_zsl.methods.f_clswgan import FCLSWGAN
    from gen_zsl.methods.ridge import RidgePrototypes

__all__ = ["CEGZSL", "FCLSWGAN", "RidgePrototypes"]
_HOMES = {"CEGZSL": "ce_gzsl", "FCLSWGAN": "f_clswgan", "RidgePrototypes": "ridge"}
__getattr__, __dir__ = attach(__name__, {name: f"methods.{home}" for name, home in _HOMES.items()})
