"""Adversarial and contrastive models of sequential recommendation. Importing this package loads nothing heavy."""

from typing import TYPE_CHECKING

from gen_core.lazy import attach

if TYPE_CHECKING:
    from gen_rec.methods.acvae import ACVAE
    from gen_rec.methods.baselines import EASE, ItemTransitions, Popularity

__all__ = ["ACVAE", "EASE", "ItemTransitions", "Popularity"]
_BASELINES = ("EASE", "ItemTransitions", "Popularity")
__getattr__, __dir__ = attach(__name__, {"ACVAE": "methods.acvae"} | dict.fromkeys(_BASELINES, "methods.baselines"))
