"""Raw features as the representation: what a probe reaches without any learning and without the edges."""

from typing import Any

from torch import Tensor
from torch_geometric.data import Data

from gen_core.harness.plain import Plain
from gen_graph import data as graphs
from gen_graph.networks import normalize_rows


class RawFeatures(Plain):
    """`RawFeatures().embed(data)`: every node's own features."""

    class Config(Plain.Config):
        """What is done to the features."""

        normalize_features: bool = True
        """Divide each node's features by the sum of their absolute values, as DGI does by default."""

    config: Any

    def embed(self, data: Data, batch_size: int = 0, **_: Any) -> Tensor:
        """float32 (n, f)."""
        x = graphs.check(data)[0].to_dense().float()
        return normalize_rows(x) if self.config.normalize_features else x
