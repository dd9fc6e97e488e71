"""Contrastive and self-supervised learning on graphs. Importing this package loads nothing heavy."""

from typing import TYPE_CHECKING

from gen_core.lazy import attach

if TYPE_CHECKING:
    from gen_graph.methods.dgi import DGI
    from gen_graph.methods.graphmix import GraphMix
    from gen_graph.methods.infograph import InfoGraph
    from gen_graph.methods.infograph_star import InfoGraphStar
    from gen_graph.methods.label_sum import NodeLabelSum
    from gen_graph.methods.raw import RawFeatures

__all__ = ["DGI", "GraphMix", "InfoGraph", "InfoGraphStar", "NodeLabelSum", "RawFeatures"]
__getattr__, __dir__ = attach(
    __name__,
    {
        "DGI": "methods.dgi",
        "GraphMix": "methods.graphmix",
        "InfoGraph": "methods.infograph",
        "InfoGraphStar": "methods.infograph_star",
        "NodeLabelSum": "methods.label_sum",
        "RawFeatures": "methods.raw",
    },
)
