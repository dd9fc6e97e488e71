"""What `gen-graph` knows by name: dotted paths and one-line texts, no heavy import."""

from gen_core.harness.registry import Dataset, Domain

_PLANETOID = (
    "Put the eight files ind.{low}.* of the repository kimiyoung/planetoid, folder data, there; with a network, "
    "torch_geometric.datasets.Planetoid(root=<GEN_DATA>/planetoid, name={name!r}) fetches them."
)


def _planetoid(name: str, summary: str) -> Dataset:
    return Dataset(summary, path=f"planetoid/{name}/raw", how=_PLANETOID.format(low=name.lower(), name=name))


DOMAIN = Domain(
    name="graph",
    package="gen_graph",
    summary="Contrastive and self-supervised learning on graphs, on torch-geometric",
    methods={
        "dgi": "gen_graph.methods.dgi:DGI",
        "raw-features": "gen_graph.methods.raw:RawFeatures",
    },
    datasets={
        "csbm": Dataset("generated contextual block model: 800 nodes, 4 classes, bag-of-words features", embedded=True),
        "karate": Dataset("Zachary's karate club: 34 nodes, 4 communities, one-hot features", embedded=True),
        "cora": _planetoid("Cora", "Cora citations: 2,708 nodes, 1,433 words, 7 classes, public split"),
        "citeseer": _planetoid("CiteSeer", "CiteSeer citations: 3,327 nodes, 3,703 words, 6 classes, public split"),
        "pubmed": _planetoid("PubMed", "PubMed citations: 19,717 nodes, 500 words, 3 classes, public split"),
    },
    demo="dgi/csbm",
    verbs=("embed",),
    protocol_default="linear",
    data_options={
        "features": "Features of your own edge list: .npy, (n, f); row i belongs to node i.",
        "labels": "Labels of your own edge list: .npy, (n,) integers from 0, -1 for none.",
    },
    engines=("torch-geometric",),
)


def main() -> None:
    """The command `gen-graph`."""
    from gen_core.harness.cli import run

    run(DOMAIN)
