"""Losses as pure functions on tensors, to minimise. Each name is loaded when it is first used."""

from typing import TYPE_CHECKING

from gen_core.lazy import attach

if TYPE_CHECKING:
    from gen_core.losses.adversarial import gradient_penalty, wasserstein_critic, wasserstein_generator
    from gen_core.losses.contrastive import info_nce, nt_xent, sup_con
    from gen_core.losses.pairwise import binary_nce, pair_mse
    from gen_core.losses.variational import kl_standard_normal

__all__ = [
    "binary_nce",
    "gradient_penalty",
    "info_nce",
    "kl_standard_normal",
    "nt_xent",
    "pair_mse",
    "sup_con",
    "wasserstein_critic",
    "wasserstein_generator",
]
_HOMES = {
    "adversarial": ("gradient_penalty", "wasserstein_critic", "wasserstein_generator"),
    "contrastive": ("info_nce", "nt_xent", "sup_con"),
    "pairwise": ("binary_nce", "pair_mse"),
    "variational": ("kl_standard_normal",),
}
__getattr__, __dir__ = attach(__name__, {name: home for home, names in _HOMES.items() for name in names})
