"""Registered graphs and the user's own: rules, and every way in which a file can be wrong."""

import os
import pickle
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
import torch
from torch_geometric.data import Data
from torch_geometric.io import read_npz
from torch_geometric.utils import contains_isolated_nodes, contains_self_loops, is_undirected

from gen_core.harness.errors import UsageError
from gen_graph.data import bag_of_words, check, checksum, ids, load, reddit, spec
from gen_graph.splits import nodes

# --- registered


def test_csbm_is_always_the_same_and_as_described():
    data = load("csbm")
    assert spec(data) == {"nodes": 800, "edges": 7178, "features": 500, "classes": 4}
    assert checksum(data) == checksum(load("csbm"))
    assert is_undirected(data.edge_index)
    assert not contains_self_loops(data.edge_index)
    for part, size in (("train_mask", 20), ("val_mask", 20), ("test_mask", 160)):
        assert torch.bincount(data.y[data[part]]).tolist() == [size] * 4
    assert bool((data.train_mask.int() + data.val_mask.int() + data.test_mask.int() == 1).all())
    same = data.y[data.edge_index[0]] == data.y[data.edge_index[1]]
    assert 5.5 < int(same.sum()) / 800 < 6.5
    assert 2.5 < int((~same).sum()) / 800 < 3.5


def test_karate():
    data = load("karate")
    assert spec(data) == {"nodes": 34, "edges": 156, "features": 34, "classes": 4}
    assert (int(data.train_mask.sum()), int(data.test_mask.sum())) == (4, 30)


@pytest.mark.parametrize(
    ("name", "sizes", "nonzero", "isolated"),
    [
        ("cora", {"nodes": 2708, "edges": 10556, "features": 1433, "classes": 7}, 49216, False),
        ("citeseer", {"nodes": 3327, "edges": 9104, "features": 3703, "classes": 6}, 105165, True),
    ],
)
def test_planetoid(gen_data, name, sizes, nonzero, isolated):
    data = load(name)
    assert spec(data) == sizes
    assert int(data.x.count_nonzero()) == nonzero
    assert contains_isolated_nodes(data.edge_index, len(data.x)) == isolated
    parts = [int(data[mask].sum()) for mask in ("train_mask", "val_mask", "test_mask")]
    assert parts == [20 * sizes["classes"], 500, 1000]


@pytest.mark.parametrize("name", ["cora", "citeseer"])
def test_planetoid_random_is_the_same_graph_with_other_nodes_each_seed(gen_data, name):
    data, public = load(f"{name}-random"), load(name)
    assert torch.equal(data.x, public.x)
    assert torch.equal(data.edge_index, public.edge_index)
    parts = nodes(data, 0)
    assert [len(part) for part in parts] == [20 * int(data.y.max() + 1), 500, 1000]
    assert len(torch.cat(parts).unique()) == sum(len(part) for part in parts)
    assert not torch.equal(parts[0], nodes(data, 1)[0])
    assert checksum(data) != checksum(public)


@pytest.mark.parametrize(
    ("name", "sizes", "nonzero"),
    [
        ("coauthor-cs", {"nodes": 18333, "edges": 163788, "features": 6805, "classes": 15}, 1_090_000),
        ("coauthor-physics", {"nodes": 34493, "edges": 495924, "features": 8415, "classes": 5}, 1_140_000),
    ],
)
def test_coauthor_stays_sparse(gen_data, name, sizes, nonzero):
    data = load(name)
    assert spec(data) == sizes
    assert data.x.layout == torch.sparse_csr
    assert len(data.x.values()) == pytest.approx(nonzero, rel=0.01)
    assert is_undirected(data.edge_index)
    train, val, test = nodes(data, 0)
    assert (len(train), len(val)) == (20 * sizes["classes"], 30 * sizes["classes"])
    assert len(test) == sizes["nodes"] - 50 * sizes["classes"]


def bag(x, adj, y):
    parts = {}
    for kind, dense in (("adj", adj), ("attr", x)):
        matrix = scipy.sparse.csr_matrix(dense)
        parts |= {f"{kind}_{part}": getattr(matrix, part) for part in ("data", "indices", "indptr", "shape")}
    return {**parts, "labels": y}


def test_bag_of_words_is_pygs_reading_of_the_file(files, tmp_path):
    """Counts become 1, a stored 0 is none, edges are undirected, self-loops go."""
    generator = np.random.default_rng(0)
    x = generator.poisson(0.4, (6, 5)).astype(np.float32)
    adj = (generator.random((6, 6)) < 0.3).astype(np.float32) + np.eye(6, dtype=np.float32)
    arrays = bag(x, adj, np.arange(6) % 2)
    first = np.flatnonzero(arrays["attr_data"])[0]
    arrays["attr_data"][first] = 0
    found = bag_of_words(files("a.npz", arrays).parent)
    expected = read_npz(str(tmp_path / "a.npz"), to_undirected=True)
    assert torch.equal(found.x.to_dense(), expected.x)
    assert edges_of(found) == edges_of(expected)
    assert torch.equal(found.y, expected.y)
    assert len(found.x.values()) == int(expected.x.sum())
    assert checksum(found) == checksum(bag_of_words(tmp_path))
    found.x.values()[0] += 1
    assert checksum(found) != checksum(bag_of_words(tmp_path))


def test_bag_of_words_that_is_none(files, tmp_path):
    with pytest.raises(UsageError, match=r"holds no \.npz"):
        bag_of_words(tmp_path)
    files("a.npz", {"labels": np.zeros(3)})
    with pytest.raises(UsageError, match=r"a\.npz is not readable"):
        bag_of_words(tmp_path)


def test_reddit_as_its_archive_keeps_it(files, tmp_path):
    kinds = np.array([1, 2, 3, 1])
    files("reddit_data.npz", {"feature": np.eye(4), "label": np.arange(4), "node_types": kinds})
    files("reddit_graph.npz", {"row": np.array([0, 1, 2]), "col": np.array([1, 0, 2]), "data": np.ones(3)})
    data = reddit(tmp_path)
    assert edges_of(data) == [(0, 1), (1, 0)]
    assert [part.tolist() for part in nodes(data, 0)] == [[0, 3], [1], [2]]
    (tmp_path / "reddit_graph.npz").unlink()
    with pytest.raises(UsageError, match=r"not readable.*reddit_graph"):
        reddit(tmp_path)


@pytest.mark.parametrize("name", ["cora-full", "reddit", "mutag", "coauthor-cs"])
def test_missing_data_says_where_and_how(tmp_path, monkeypatch, name):
    monkeypatch.setenv("GEN_DATA", str(tmp_path))
    with pytest.raises(UsageError, match=rf"{name}.*was not found; searched {tmp_path}.*torch_geometric.datasets"):
        load(name)


def test_planetoid_missing_says_where_and_how(tmp_path, monkeypatch):
    monkeypatch.setenv("GEN_DATA", str(tmp_path))
    with pytest.raises(UsageError, match=r"'pubmed'.*PubMed/raw.*ind\.pubmed"):
        load("pubmed")


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_planetoid_reads_no_pickle_that_is_not_the_original(tmp_path, monkeypatch):
    raw, mark = tmp_path / "planetoid" / "Cora" / "raw", tmp_path / "executed"
    raw.mkdir(parents=True)
    for part in ("x", "tx", "allx", "y", "ty", "ally", "graph", "test.index"):
        (raw / f"ind.cora.{part}").write_bytes(pickle.dumps(Evil(mark)))
    monkeypatch.setenv("GEN_DATA", str(tmp_path))
    with pytest.raises(UsageError, match=r"ind\.cora\.x: digest .* expected 23cfa55d"):
        load("cora")
    assert not mark.exists()


def test_planetoid_one_changed_byte_is_refused(gen_data, tmp_path, monkeypatch):
    raw = tmp_path / "planetoid" / "Cora" / "raw"
    shutil.copytree(gen_data / "planetoid" / "Cora" / "raw", raw)
    content = bytearray((raw / "ind.cora.graph").read_bytes())
    content[-2] ^= 1
    (raw / "ind.cora.graph").chmod(0o644)
    (raw / "ind.cora.graph").write_bytes(content)
    monkeypatch.setenv("GEN_DATA", str(tmp_path))
    with pytest.raises(UsageError, match=r"ind\.cora\.graph: digest"):
        load("cora")


# --- the user's own


@pytest.fixture
def files(tmp_path):
    """A folder where `write(name, content)` puts text, bytes, an array or a dict of arrays."""

    def write(name, content):
        path = tmp_path / name
        if isinstance(content, str | bytes):
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        elif isinstance(content, dict):
            np.savez(path, **content)
        else:
            np.save(path, content)
        return path

    return write


def edges_of(data):
    return sorted(zip(*data.edge_index.tolist(), strict=True))


def test_edge_list_with_features_and_labels(files):
    # directed, a duplicate, the reverse of an edge, a self-loop; node 3 has no edge
    edges = files("e.csv", "source,target\n0,1\n0,1\n1,0\n\n1 , 2\n2,2\n")
    x = np.arange(8, dtype=np.float64).reshape(4, 2)
    data = load(edges, features=files("x.npy", x), labels=files("y.npy", np.array([0, 1, 1, -1])))
    assert edges_of(data) == [(0, 1), (1, 0), (1, 2), (2, 1)]
    assert spec(data) == {"nodes": 4, "edges": 4, "features": 2, "classes": 2}
    assert (data.x.dtype, data.y.tolist()) == (torch.float32, [0, 1, 1, -1])
    assert ids(data) == ["0", "1", "2", "3"]


def test_edge_list_of_names(files):
    data = load(files("e.csv", "bob,eve\nann,bob\n"))
    assert ids(data) == ["bob", "eve", "ann"]
    assert edges_of(data) == [(0, 1), (0, 2), (1, 0), (2, 0)]
    assert torch.equal(data.x, torch.eye(3))


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("10,20\n20,30\n", ["10", "20", "30"]),
        ("a,b\n10,20\n", ["10", "20"]),  # texts above numbers
        ("Source,Target\nx,y\n", ["x", "y"]),  # known column names
        ("\ufefffrom,to\nx,y\n", ["x", "y"]),  # with a byte order mark
        ("x,y\n1,y\n", ["x", "y", "1"]),  # no header
    ],
)
def test_header_is_optional(files, text, names):
    assert ids(load(files("e.csv", text))) == names


def test_npz_both_layouts(files):
    x, edges = np.ones((3, 2), np.float32), np.array([[0, 1], [1, 2], [2, 2]])
    masks = {"train_mask": np.array([True, False, False]), "test_mask": np.array([False, True, True])}
    one = load(files("a.npz", {"x": x, "edges": edges, "y": np.array([0, 1, 1]), **masks}))
    two = load(files("b.npz", {"x": x, "edge_index": edges.T, "y": np.array([0, 1, 1]), **masks}))
    assert edges_of(one) == [(0, 1), (1, 0), (1, 2), (2, 1)]
    assert checksum(one) == checksum(two)
    assert one.train_mask.tolist() == [True, False, False]
    assert checksum(one) != checksum(load(files("c.npz", {"x": x, "edges": edges})))


X, E = np.ones((3, 2)), np.array([[0, 1], [1, 2]])
NAN = np.array([[1.0, 2.0], [1.0, 2.0], [3.0, np.nan]])
BAD_NPZ = {
    "truncated": (lambda whole: whole[: len(whole) // 2], "g.npz is not readable"),
    "empty": (b"", "g.npz is not readable"),
    "a pickle": (pickle.dumps({"x": 1}), "g.npz is not readable"),
    "objects": ({"x": X, "edge_index": np.array([[0, None], [1, 2]])}, "not readable.*allow_pickle"),
    "no x": ({"edge_index": E}, "needed: x"),
    "no edges": ({"x": X}, "needed: x, and edge_index or edges"),
    "two kinds of edges": ({"x": X, "edge_index": E, "edges": E}, "edge_index or edges"),
    "misspelt": ({"x": X, "edge_index": E, "trainmask": X}, "unknown array 'trainmask'; nearest: train_mask"),
    "no nodes": ({"x": np.ones((0, 2)), "edge_index": E}, r"x has shape \(0, 2\)"),
    "x of one axis": ({"x": np.ones(3), "edge_index": E}, r"x has shape \(3,\)"),
    "x of texts": ({"x": np.array([["a"]]), "edge_index": E}, "expected numbers"),
    "NaN": ({"x": NAN, "edge_index": E}, "x, row 2, column 1: nan"),
    "beyond float32": ({"x": X * 1e60, "edge_index": E}, "x, row 0, column 0: inf"),
    "edges of three": (
        {"x": X, "edge_index": np.ones((3, 2), int)},
        r"edge_index has shape \(3, 2\).*expected \(2, e\)",
    ),
    "float edges": ({"x": X, "edges": E * 1.0}, r"edges has shape \(2, 2\), float64; expected \(e, 2\), integers"),
    "edge too high": ({"x": X, "edge_index": E + 1}, r"edge_index, edge 1: node 3 is outside 0\.\.2"),
    "negative edge": ({"x": X, "edges": E - 1}, r"edges, edge 0: node -1 is outside 0\.\.2"),
    "too few labels": ({"x": X, "edge_index": E, "y": np.array([0, 1])}, "y has 2 labels for 3 rows of x"),
    "float labels": ({"x": X, "edge_index": E, "y": np.ones(3)}, "y has shape .* expected integers"),
    "label -2": ({"x": X, "edge_index": E, "y": np.array([0, -2, 1])}, "y, row 1: -2"),
    "half a split": ({"x": X, "edge_index": E, "train_mask": np.ones(3, bool)}, "train_mask and test_mask go together"),
    "integer mask": (
        {"x": X, "edge_index": E, "val_mask": np.ones(3, int)},
        r"val_mask has shape .* expected \(3,\), bool",
    ),
    "overlap": (
        {"x": X, "edge_index": E, "train_mask": np.ones(3, bool), "test_mask": np.ones(3, bool)},
        "node 0 is in train_mask and in test_mask",
    ),
}


@pytest.mark.parametrize(("content", "message"), BAD_NPZ.values(), ids=BAD_NPZ)
def test_bad_npz(files, content, message):
    if callable(content):
        content = content(files("whole.npz", {"x": np.ones((50, 20)), "edge_index": E}).read_bytes())
    path = files("g.npz", content)
    with pytest.raises(UsageError, match=message) as caught:
        load(path)
    assert str(path) in str(caught.value)


BAD_CSV = {
    "empty": ("", {}, "e.csv is empty"),
    "blank lines": ("\n\n", {}, "e.csv is empty"),
    "header alone": ("source,target\n", {}, "header and no edge"),
    "cut off": ("0,1\n1,2\n2", {}, "e.csv: row 3: '2'; expected two columns"),
    "no target": ("0,1\n1,\n", {}, "e.csv: row 2: '1,'; expected two columns"),
    "weights": ("0,1,0.5\n", {}, "row 1: '0,1,0.5'; expected two columns"),
    "semicolons": ("0;1\n", {}, "row 1: '0;1'; expected two columns"),
    "not text": (b"\xff\xfe0,1", {}, "e.csv is not readable"),
    "a name, with features": ("0,1\n1,ann\n", {"features": X}, "row 2: target 'ann' is not an integer"),
    "half a header": ("source,1\n1,2\n", {"features": X}, "row 1: source 'source' is not an integer"),
    "a fraction": ("0,1\n1.5,2\n", {"labels": np.zeros(3, int)}, "row 2: source '1.5' is not an integer"),
    "too high": ("source,target\n0,1\n1,3\n", {"features": X}, r"row 3: target 3 is outside 0\.\.2"),
    "negative": ("0,1\n-1,2\n", {"features": X}, r"row 2: source -1 is outside 0\.\.2"),
    "label count": ("0,1\n", {"features": X, "labels": np.zeros(4, int)}, "labels.npy: 4 labels for 3 rows"),
    "NaN": ("0,1\n", {"features": NAN}, "features.npy, row 2, column 1: nan"),
    "features of one axis": ("0,1\n", {"features": np.ones(3)}, r"features.npy has shape \(3,\)"),
    "no rows of features": ("0,1\n", {"features": np.ones((0, 3))}, r"features.npy has shape \(0, 3\)"),
    "labels of two axes": ("0,1\n", {"labels": np.zeros((3, 1), int)}, r"labels.npy has shape \(3, 1\)"),
    "features cut off": ("0,1\n", {"features": b"\x93NUMPY\x01\x00"}, "features.npy is not readable"),
    "features of objects": ("0,1\n", {"features": np.array([[None]])}, "features.npy is not readable"),
}


@pytest.mark.parametrize(("text", "more", "message"), BAD_CSV.values(), ids=BAD_CSV)
def test_bad_edge_list(files, text, more, message):
    path = files("e.csv", text)
    paths = {name: files(f"{name}.npy", content) for name, content in more.items()}
    with pytest.raises(UsageError, match=message):
        load(path, **paths)


def test_a_large_edge_list_needs_features(files):
    text = "\n".join(f"a{i},b{i}" for i in range(2501))
    with pytest.raises(UsageError, match="5002 nodes without features"):
        load(files("e.csv", text))


def test_wrong_names_and_paths(files, tmp_path):
    with pytest.raises(UsageError, match=r"coral does not exist.*nearest: cora"):
        load("coral")
    with pytest.raises(UsageError, match=r"is a folder without a file \*_A.txt"):
        load(tmp_path)
    with pytest.raises(UsageError, match=r"unknown kind of file '.gml'"):
        load(files("g.gml", "graph []"))
    with pytest.raises(UsageError, match=r"missing.npy is not readable"):
        load(files("e.csv", "0,1\n"), features=tmp_path / "missing.npy")
    with pytest.raises(UsageError, match="'csbm' is a registered data set"):
        load("csbm", features=files("x.npy", X))
    with pytest.raises(UsageError, match="other kinds hold their own"):
        load(files("g.npz", {"x": X, "edge_index": E}), labels=files("y.npy", np.zeros(3, int)))


def test_unreadable_file():
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        path = Path(folder, "e.csv")
        path.write_text("0,1\n")
        path.chmod(0)
        if os.geteuid() != 0:
            with pytest.raises(UsageError, match=r"not readable.*denied"):
                load(path)
            return
        child = os.fork()  # root may read anything: another user must try
        if child == 0:
            os.setuid(65534)
            try:
                load(path)
            except UsageError as error:
                os._exit(0 if "not readable" in str(error) and "denied" in str(error) else 2)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# --- a Data object made in Python


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.ones(0, 4)}, "n and f at least 1"),
        ({"x": torch.ones(5)}, "shape \\(n, f\\)"),
        ({"x": None}, "got None"),
        ({"x": torch.full((5, 4), torch.nan)}, "row 0: not finite"),
        ({"edge_index": torch.tensor([[0, 5], [1, 1]])}, r"holds 0\.\.5; allowed: 0\.\.4"),
        ({"edge_index": torch.tensor([[0, -1], [1, 1]])}, r"holds -1\.\.1"),
        ({"edge_index": torch.tensor([0, 1])}, "shape \\(2, e\\)"),
        ({"edge_index": torch.tensor([[0.0], [1.0]])}, "int64"),
    ],
)
def test_check(small, change, message):
    assert check(small) == (small.x, small.edge_index)
    with pytest.raises(ValueError, match=message):
        spec(Data(**{"x": small.x, "edge_index": small.edge_index} | change))
