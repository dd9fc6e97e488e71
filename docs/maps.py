"""Draw maps of embeddings, t-SNE: raw, untrained, trained. Needs GEN_DATA; some two minutes.

python docs/maps.py
"""

from pathlib import Path
from typing import Any

from gen_core.harness.report import embedding_map
from gen_graph import DGI, InfoGraph, NodeLabelSum, RawFeatures
from gen_graph.data import load

OUT = Path(__file__).parent / "figures" / "graph-maps"


def draw(data: Any, plain: Any, kind: Any, names: tuple[str, str, str], config: Any) -> None:
    """Three figures: of the plain method, of `kind` at its initial weights and after a fit, seed 0."""
    untrained = kind(config)
    untrained.prepare(kind.measure(data), 0)
    trained = kind(config).fit(data, seed=0, accelerator="cpu")
    for name, model in zip(names, (plain, untrained, trained), strict=True):
        embedding_map(model.embed(data).numpy(), data.y.numpy(), (), OUT / f"{name}.png")


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    draw(load("cora"), RawFeatures(), DGI, ("cora-raw", "cora-untrained", "cora-dgi"), DGI.Config())
    names = ("proteins-sum", "proteins-untrained", "proteins-infograph")
    draw(load("proteins"), NodeLabelSum(), InfoGraph, names, InfoGraph.Config())


if __name__ == "__main__":
    main()
