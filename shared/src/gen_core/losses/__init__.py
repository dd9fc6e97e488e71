"""Losses as pure functions on tensors, to minimise. Each name is loaded when it is first used."""

from typing import TYPE_CHECKING

from gen_core.lazy import attach

if TYPE_CHECKING:
    from gen_core.losses.contrastive import info_nce, nt_xent, sup_con
    from gen_core.losses.pairwise import binary_nce, pair_mse
    from gen_core.losses.variational import kl_standard_normal

__all__ = ["binary_nce", "info_nce", "kl_standard_normal", "nt_xent", "pair_mse", "sup_con"]
_PAIRWISE = ("binary_nce", "pair_mse")
_HOMES = dict.fromkeys(__all__, "contrastive") | dict.fromkeys(_PAIRWISE, "pairwise")
__getattr__, __dir__ = attach(__name__, _HOMES | {"kl_standard_normal": "variational"})
