"""What `gen-graph` knows by name: dotted paths and one-line texts, no heavy import."""

from gen_core.harness.registry import Dataset, Domain

_PLANETOID = (
    "Put the eight files ind.{low}.* of the repository kimiyoung/planetoid, folder data, there; with a network, "
    "torch_geometric.datasets.Planetoid(root=<GEN_DATA>/planetoid, name={name!r}) fetches them."
)


def _planetoid(name: str, summary: str) -> Dataset:
    return Dataset(summary, path=f"planetoid/{name}/raw", how=_PLANETOID.format(low=name.lower(), name=name))


_TU = (
    "Put the text files {name}_*.txt of the TU collection (graphlearning.io) there; with a network, "
    "torch_geometric.datasets.TUDataset(root=<GEN_DATA>/tu, name={name!r}) fetches them."
)
_NPZ = (
    "Put {file} of the repository shchur/gnn-benchmark, folder data/npz, there; with a network, "
    "torch_geometric.datasets.{loader} fetches it."
)


def _tu(name: str, summary: str) -> Dataset:
    return Dataset(summary, path=f"tu/{name}/raw", how=_TU.format(name=name))


def _npz(path: str, file: str, loader: str, summary: str) -> Dataset:
    return Dataset(summary, path=path, how=_NPZ.format(file=file, loader=loader))


def _coauthor(name: str, summary: str) -> Dataset:
    file, loader = f"ms_academic_{name[:3].lower()}.npz", f"Coauthor(root=<GEN_DATA>/coauthor, name={name!r})"
    return _npz(f"coauthor/{name}/raw", file, loader, summary)


DOMAIN = Domain(
    name="graph",
    package="gen_graph",
    summary="Contrastive and self-supervised learning on graphs, on torch-geometric",
    methods={
        "dgi": "gen_graph.methods.dgi:DGI",
        "graphmix": "gen_graph.methods.graphmix:GraphMix",
        "infograph": "gen_graph.methods.infograph:InfoGraph",
        "infograph-star": "gen_graph.methods.infograph_star:InfoGraphStar",
        "node-label-sum": "gen_graph.methods.label_sum:NodeLabelSum",
        "raw-features": "gen_graph.methods.raw:RawFeatures",
    },
    datasets={
        "csbm": Dataset("generated contextual block model: 800 nodes, 4 classes, bag-of-words features", embedded=True),
        "karate": Dataset("Zachary's karate club: 34 nodes, 4 communities, one-hot features", embedded=True),
        "cora": _planetoid("Cora", "Cora citations: 2,708 nodes, 1,433 words, 7 classes, public split"),
        "citeseer": _planetoid("CiteSeer", "CiteSeer citations: 3,327 nodes, 3,703 words, 6 classes, public split"),
        "pubmed": _planetoid("PubMed", "PubMed citations: 19,717 nodes, 500 words, 3 classes, public split"),
        "cora-random": _planetoid("Cora", "Cora with a random split of the public one's sizes, by the seed"),
        "citeseer-random": _planetoid("CiteSeer", "CiteSeer with a random split of those sizes, by the seed"),
        "coauthor-cs": _coauthor("CS", "co-authors in CS: 18,333 nodes, 6,805 words, 15 classes, split by the seed"),
        "coauthor-physics": _coauthor(
            "Physics", "co-authors in physics: 34,493 nodes, 8,415 words, 5 classes, split by the seed"
        ),
        "cora-full": _npz(
            "citation-full/cora/raw",
            "cora_full.npz",
            "CitationFull(root=<GEN_DATA>/citation-full, name='Cora')",
            "Cora with all fields: 19,793 nodes, 8,710 words, 70 classes, split by the seed",
        ),
        "reddit": Dataset(
            "Reddit posts: 232,965 nodes, 602 features, 41 classes, its own split",
            path="reddit/raw",
            how="Put reddit_data.npz and reddit_graph.npz of DGL's archive reddit.zip there; with a network, "
            "torch_geometric.datasets.Reddit(root=<GEN_DATA>/reddit) fetches them.",
        ),
        "motifs": Dataset("generated set of graphs in classes of planted motifs", embedded=True),
        "mutag": _tu("MUTAG", "188 nitro compounds, 7 atoms, mutagenic or not"),
        "ptc-mr": _tu("PTC_MR", "344 compounds, 18 atoms, carcinogenic for male rats or not"),
        "imdb-binary": _tu("IMDB-BINARY", "1,000 actors' ego networks without labels, 2 genres"),
        "imdb-multi": _tu("IMDB-MULTI", "1,500 actors' ego networks without labels, 3 genres"),
        "proteins": _tu("PROTEINS", "1,113 proteins as graphs of 3 kinds of structure, enzyme or not"),
        "nci1": _tu("NCI1", "4,110 compounds, 37 atoms, active against lung cancer cells or not"),
        "nci109": _tu("NCI109", "4,127 compounds, 38 atoms, active against ovarian cancer cells or not"),
        "esol": Dataset(
            "ESOL: 1,128 molecules with bonds, solubility in log10 mol/l; needs gen-graph[molecules]",
            path="moleculenet/esol/raw",
            how="Put delaney-processed.csv of deepchem/deepchem, folder datasets, there; with a network, "
            "torch_geometric.datasets.MoleculeNet(root=<GEN_DATA>/moleculenet, name='ESOL') fetches it.",
        ),
        "qm9": Dataset(
            "QM9: 130,831 molecules as complete graphs with distances, dipole moment; needs gen-graph[molecules]",
            path="qm9/raw",
            how="Put gdb9.sdf, gdb9.sdf.csv and uncharacterized.txt there; with a network, "
            "torch_geometric.datasets.QM9(root=<GEN_DATA>/qm9) fetches them.",
        ),
    },
    demo="dgi/csbm",
    verbs=("embed", "predict"),
    protocol_default="linear",
    protocol_of={"graphmix": "accuracy", "infograph-star": "held-out"},
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
