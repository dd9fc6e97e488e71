"""Contrastive and self-supervised learning on graphs. Importing this package loads nothing heavy."""

from typing import TYPE_CHECKING

from gen_core.lazy import attach

if TYPE_CHECKING:
    from gen_graph.methods.dgi import DGI
    from gen_graph.methods.raw import RawFeatures

__all__ = ["DGI", "RawFeatures"]
__getattr__, __dir__ = attach(__name__, {"DGI": "methods.dgi", "RawFeatures": "methods.raw"})
