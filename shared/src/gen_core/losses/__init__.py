"""Losses as pure functions on tensors, in nats, to minimise. Each name is loaded when it is first used."""

from typing import TYPE_CHECKING

from gen_core.lazy import attach

if TYPE_CHECKING:
    from gen_core.losses.contrastive import info_nce, nt_xent
    from gen_core.losses.pairwise import binary_nce

__all__ = ["binary_nce", "info_nce", "nt_xent"]
__getattr__, __dir__ = attach(__name__, {"binary_nce": "pairwise", "info_nce": "contrastive", "nt_xent": "contrastive"})
