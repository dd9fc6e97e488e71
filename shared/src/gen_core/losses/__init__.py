"""Losses as pure functions on tensors, in nats, to minimise. Each name is loaded when it is first used."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gen_core.losses.contrastive import info_nce, nt_xent
    from gen_core.losses.pairwise import binary_nce

__all__ = ["binary_nce", "info_nce", "nt_xent"]
_HOME = {"binary_nce": "pairwise", "info_nce": "contrastive", "nt_xent": "contrastive"}


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
