"""Folders of graphs: the TU collection against PyG's reader, the user's own with every odd graph, and wrong files."""

import json

import numpy as np
import pytest
import torch
from torch_geometric.io import read_tu_data

from gen_core.harness import cli
from gen_core.harness.errors import UsageError
from gen_graph.data import ids, load, spec
from gen_graph.registry import DOMAIN

SIZES = {
    "mutag": ("MUTAG", 188, 3371, 7442, 7, 2),
    "ptc-mr": ("PTC_MR", 344, 4915, 10108, 18, 2),
    "imdb-binary": ("IMDB-BINARY", 1000, 19773, 193062, 1, 2),
    "proteins": ("PROTEINS", 1113, 43471, 162088, 3, 2),
}


@pytest.mark.parametrize("name", SIZES)
def test_registered_sets_are_pygs(gen_data, name):
    folder, *sizes = SIZES[name]
    graphs = load(name)
    assert list(spec(graphs).values()) == sizes
    expected, slices, _ = read_tu_data(f"{gen_data}/tu/{folder}/raw", folder)
    if expected.x is None:
        assert torch.equal(graphs.x, torch.ones(sizes[1], 1))
    else:
        assert torch.equal(graphs.x, expected.x[:, expected.x.shape[1] - sizes[3] :])  # labels stand after attributes
    assert torch.equal(graphs.y, expected.y)
    assert torch.equal(graphs.ptr, slices["x"] if "x" in slices else torch.as_tensor(graphs.ptr))
    shift = graphs.ptr[:-1].repeat_interleave(slices["edge_index"].diff())  # PyG numbers the nodes graph by graph
    assert torch.equal(graphs.edge_index.flip(0), expected.edge_index + shift)


# Five graphs: an edge both ways; one node; no edge; a directed triangle with a loop and a duplicate; two components.
OWN = {
    "A": "1, 2\n2, 1\n6,7\n7,8\n8,6\n6,6\n6,7\n9,10\n11,12\n",
    "graph_indicator": "1\n1\n2\n3\n3\n4\n4\n4\n5\n5\n5\n5\n",
    "graph_labels": "-1\n1\n-1\n1\n1\n",
}


@pytest.fixture
def folder(tmp_path):
    def write(**parts):
        for part, text in (OWN | parts).items():
            if text is not None:
                (tmp_path / f"own_{part}.txt").write_text(text)
        return tmp_path

    return write


def test_features_of_edges(folder):
    """Labels one-hot after attributes, the same both ways, the mean of repeated rows; a loop's are dropped."""
    graphs = load(folder(edge_labels="5\n5\n6\n5\n6\n5\n5\n6\n6\n", edge_attributes="1\n2\n3\n4\n5\n6\n7\n8\n9\n"))
    found = {(s, t): row for s, t, row in zip(*graphs.edge_index.tolist(), graphs.edge_attr.tolist(), strict=True)}
    expected = {
        (0, 1): [1.5, 1, 0], (5, 6): [5, 0.5, 0.5], (6, 7): [4, 1, 0], (7, 5): [5, 0, 1], (8, 9): [8, 0, 1],
        (10, 11): [9, 0, 1],
    }  # fmt: skip
    assert found == expected | {(t, s): row for (s, t), row in expected.items()}
    assert bool((graphs.edge_index[1].diff() >= 0).all())
    assert spec(graphs)["edge_features"] == 3
    with pytest.raises(UsageError, match=r"own_edge_labels.txt: 2 rows for 9 edges"):
        load(folder(edge_labels="1\n1\n"))


def test_edge_labels_of_mutag_are_pygs(gen_data, tmp_path):
    for file in (gen_data / "tu" / "MUTAG" / "raw").glob("*.txt"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    graphs, (expected, slices, _) = load(tmp_path), read_tu_data(f"{gen_data}/tu/MUTAG/raw", "MUTAG")
    shift = graphs.ptr[:-1].repeat_interleave(slices["edge_index"].diff())
    assert torch.equal(graphs.edge_index.flip(0), expected.edge_index + shift)
    assert torch.equal(graphs.edge_attr, expected.edge_attr)
    assert load("mutag").edge_attr is None


def test_own_graphs(folder):
    graphs = load(folder())
    assert spec(graphs) == {"graphs": 5, "nodes": 12, "edges": 12, "features": 1, "classes": 2}
    assert graphs.sizes.tolist() == [2, 1, 2, 3, 4]
    assert graphs.y.tolist() == [0, 1, 0, 1, 1]
    assert ids(graphs) == list("12345")
    edges = sorted(zip(*graphs.edge_index.tolist(), strict=True))
    triangle = [(a, b) for a in (5, 6, 7) for b in (5, 6, 7) if a != b]
    assert edges == [(0, 1), (1, 0), *triangle, (8, 9), (9, 8), (10, 11), (11, 10)]
    assert torch.equal(graphs.x, torch.ones(12, 1))


def test_nodes_may_stand_in_any_order(folder):
    graphs = load(
        folder(A="1,3\n2,4\n", graph_indicator="2\n1\n2\n1\n", graph_labels="7\n9\n", node_labels="5\n6\n7\n8\n")
    )
    assert graphs.sizes.tolist() == [2, 2]
    assert graphs.x.argmax(1).tolist() == [1, 3, 0, 2]
    assert sorted(zip(*graphs.edge_index.tolist(), strict=True)) == [(0, 1), (1, 0), (2, 3), (3, 2)]
    assert graphs.y.tolist() == [0, 1]


def test_features_and_float_targets(folder):
    attributes = "\n".join(f"{k}.5, {-k}" for k in range(12))
    labels = "\n".join(str(3 + k % 2) for k in range(12))
    targets = "0.5\n1\n2\n-1e1\n3\n"
    graphs = load(folder(graph_labels=None, graph_attributes=targets, node_attributes=attributes, node_labels=labels))
    assert graphs.x[3].tolist() == [3.5, -3, 0, 1]
    assert graphs.y.tolist() == [0.5, 1, 2, -10, 3]
    assert spec(graphs)["classes"] == 0


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"A": "1,2\n2,13\n"}, r"own_A.txt: row 2: \[2, 13\] is outside 1\.\.12"),
        ({"A": "1,2\n0,1\n"}, r"row 2: \[0, 1\] is outside"),
        ({"A": "1,2\n2,3\n"}, "row 2: nodes 2 and 3 belong to different graphs, 1 and 2"),
        ({"A": "1,2\n2,x\n"}, "own_A.txt is not readable.*row 1"),
        ({"A": "1\n2\n"}, "own_A.txt: 1 columns; expected 2"),
        ({"graph_indicator": None}, "own_graph_indicator.txt is missing"),
        ({"graph_indicator": ""}, "numbered from 1"),
        ({"graph_indicator": "0\n1\n"}, "numbered from 1"),
        ({"A": "", "graph_indicator": "1\n3\n", "graph_labels": "1\n1\n1\n"}, "graph 2 has no node"),
        ({"graph_labels": "1\n2\n"}, "own_graph_labels.txt: 2 rows for 5 graphs"),
        ({"node_labels": "1\n2\n"}, "own_node_labels.txt: 2 rows for 12 nodes"),
        ({"node_attributes": "1\n" * 11 + "nan\n"}, "own_node_attributes.txt: row 12: not a finite number"),
    ],
)
def test_wrong_folders(folder, parts, message):
    path = folder(**parts)
    if parts.get("graph_indicator", "") is None:
        assert not (path / "own_graph_indicator.txt").exists()
    with pytest.raises(UsageError, match=message):
        load(path)


def test_folders_of_no_or_two_sets(folder, tmp_path):
    path = folder()
    (path / "other_A.txt").write_text("1,2\n")
    with pytest.raises(UsageError, match="expected one file"):
        load(path)
    with pytest.raises(UsageError, match="go with an edge list"):
        load(path, features="x.npy")


def test_a_set_without_any_edge(folder):
    graphs = load(folder(A=""))
    assert (spec(graphs)["edges"], graphs.nodes) == (0, 12)


def test_train_and_embed_a_folder(folder, tmp_path_factory, capsys):
    """From a folder of text files to vectors by graph, with the set's own default evaluation."""
    rng, rows, owner, y = np.random.default_rng(0), [], [], []
    for k in range(40):
        first, n = len(owner) + 1, int(rng.integers(4, 9))
        owner += [k + 1] * n
        rows += (
            [(first + i, first + (i + 1) % n) for i in range(n)] if k % 2 else [(first, first + i) for i in range(1, n)]
        )
        y.append(k % 2)
    path = folder(
        A="".join(f"{a}, {b}\n" for a, b in rows),
        graph_indicator="".join(f"{k}\n" for k in owner),
        graph_labels="".join(f"{label}\n" for label in y),
    )
    out = tmp_path_factory.mktemp("run") / "dgi"
    flags = ["--out", str(out), "--hidden", "8", "--epochs", "5", "--device", "cpu", "--normalize-features", "False"]
    assert cli.main(DOMAIN, ["train", "dgi", "--data", str(path), *flags]) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert set(summary["metrics"]) == {"accuracy", "accuracy_std"}
    assert cli.main(DOMAIN, ["embed", str(out), "--out", str(out / "z.npz")]) == 0
    found = np.load(out / "z.npz")
    assert found["vectors"].shape == (40, 8)
    assert found["ids"].tolist() == [str(k) for k in range(1, 41)]
