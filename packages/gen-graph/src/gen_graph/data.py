"""Graphs: registered ones and the user's own, always as one `torch_geometric.data.Data`.

x: float32 (n, f); edge_index: int64 (2, e); y: int64 (n,) where there are labels, -1 for a node without one;
train_mask, val_mask, test_mask: bool (n,) where there is a fixed split; ids: the nodes' own names where they have them.

Rules for the user's own edges: the graph is made undirected (each edge stands in both directions), duplicates and
self-loops are removed (the GCN adds its own), nodes without any edge are kept.
"""

import csv
import hashlib
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch_geometric.data import Data

from gen_core.harness.data import missing, root
from gen_core.harness.errors import UsageError, nearest
from gen_graph.registry import DOMAIN

MASKS = ("train_mask", "val_mask", "test_mask")
ONE_HOT_LIMIT = 5000
"""Nodes up to which an edge list without features gets one-hot features."""
HEADERS = ({"source", "target"}, {"src", "dst"}, {"from", "to"})


def load(name_or_path: str | Path, features: str | Path | None = None, labels: str | Path | None = None) -> Data:
    """A registered data set by name, or the user's own graph by path.

    `edges.csv`: two columns, source and target, with or without a header. With `features` (a .npy, (n, f) numbers) or
    `labels` (a .npy, (n,) integers) the ids are row numbers of these, from 0. Without both, ids are any texts, numbered
    in the order in which they appear. Without `features` each node gets a one-hot row.
    `graph.npz`: `edge_index` (2, e) or `edges` (e, 2), `x` (n, f), and where you have them `y` (n,), `train_mask`,
    `val_mask`, `test_mask` (n,). Nothing in a file is unpickled.

    Raises `UsageError` that names the file and the row, field or value.
    """
    name = str(name_or_path)
    if name in DOMAIN.datasets:
        if features is not None or labels is not None:
            raise UsageError(f"features and labels go with your own edge list; {name!r} is a registered data set")
        return {"csbm": csbm, "karate": karate}.get(name, lambda: planetoid(name))()
    path = Path(name_or_path).expanduser()
    try:
        there = path.is_file()
    except OSError as error:
        raise _unreadable(path, error) from None
    if not there:
        found = "is a folder" if path.is_dir() else "does not exist"
        raise UsageError(
            f"{path} {found}: give an edge list .csv or an .npz; {nearest(name, DOMAIN.datasets, 'data set')}"
        )
    if path.suffix == ".npz":
        if features is not None or labels is not None:
            raise UsageError(f"{path}: features and labels go with an edge list; an .npz holds its own x and y")
        return _from_npz(path)
    if path.suffix == ".csv":
        return _from_csv(path, features, labels)
    raise UsageError(f"{path}: unknown kind of file {path.suffix!r}; allowed: .csv (edge list), .npz (arrays)")


def check(data: Data) -> tuple[Tensor, Tensor]:
    """x and edge_index of a graph that methods can work on; otherwise `UsageError` says what is wrong."""
    x, edge_index = data.x, data.edge_index
    if not isinstance(x, Tensor) or x.ndim != 2 or 0 in x.shape:
        raise UsageError(f"data.x must be features of shape (n, f), n and f at least 1; got {_shape(x)}")
    if not isinstance(edge_index, Tensor) or edge_index.ndim != 2 or edge_index.shape[0] != 2:
        raise UsageError(f"data.edge_index must have shape (2, e); got {_shape(edge_index)}")
    if edge_index.dtype != torch.int64:
        raise UsageError(f"data.edge_index must be int64; got {edge_index.dtype}")
    low, high = (int(end) for end in edge_index.aminmax()) if edge_index.numel() else (0, 0)
    if low < 0 or high >= len(x):
        raise UsageError(f"data.edge_index holds {low}..{high}; allowed: 0..{len(x) - 1}, the rows of data.x")
    if not bool(x.isfinite().all()):
        row = int((~x.isfinite()).any(dim=1).nonzero()[0])
        raise UsageError(f"data.x, row {row}: not finite")
    return x, edge_index


def spec(data: Data) -> dict[str, int]:
    """Sizes: nodes, edges (each direction counts), features, classes (0 without labels)."""
    x, edge_index = check(data)
    classes = int(data.y.max()) + 1 if isinstance(data.y, Tensor) else 0
    return {
        "nodes": x.shape[0],
        "edges": edge_index.shape[1],
        "features": x.shape[1],
        "classes": classes,
    }


def checksum(data: Data) -> str:
    """sha256 over names, types, shapes and bytes of all that `data` holds."""
    digest = hashlib.sha256()
    for name, value in sorted(data.to_dict().items()):
        if isinstance(value, Tensor):
            array = value.detach().cpu().contiguous().numpy()
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(array.tobytes())
        else:
            digest.update(f"{name} {value!r}".encode())
    return digest.hexdigest()


def ids(data: Data) -> list[str]:
    """The nodes' names; their row numbers where they have none."""
    return list(data.ids) if "ids" in data else [str(row) for row in range(len(check(data)[0]))]


# --- registered ------------------------------------------------------------------------------------------------------


def csbm() -> Data:
    """A contextual stochastic block model (after Deshpande et al. 2018) whose features are words, made by a fixed seed.

    800 nodes in 4 equal classes. Edges are independent: a node has on average 6 neighbours of its own class
    (probability 0.03) and 3 of the others (0.005). Of 500 words a node holds each with probability 0.02, but the 50
    topic words of its class (drawn class by class, so that topics overlap) with 0.06: about 12 words, 3 of them a
    signal, which is too little for a classifier of single nodes; neighbours together hold enough.
    Split: 20 nodes a class train, the rest test.
    """
    nodes, classes, words, topic = 800, 4, 500, 50
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(nodes) % classes
    own, other = 6 / (nodes / classes), 3 / (nodes - nodes / classes)
    chance = torch.where(y[:, None] == y[None, :], own, other)
    edges = (torch.rand(nodes, nodes, generator=generator) < chance).triu(1).nonzero().T
    rate = torch.full((classes, words), 0.02)
    for row in rate:
        row[torch.randperm(words, generator=generator)[:topic]] = 0.06
    x = (torch.rand(nodes, words, generator=generator) < rate[y]).float()
    train = torch.arange(nodes) < 20 * classes  # y cycles through the classes
    return Data(x=x, edge_index=_undirected(edges, nodes), y=y, train_mask=train, test_mask=~train)


def karate() -> Data:
    """PyG's `KarateClub`: 34 nodes, one-hot features, 4 communities, one training node each, the rest test."""
    from torch_geometric.datasets import KarateClub

    data = KarateClub()[0]
    assert isinstance(data, Data)
    data.test_mask = ~data.train_mask
    return data


def planetoid(name: str) -> Data:
    """Cora, CiteSeer or PubMed with the public split, by PyG's own reader.

    The raw files are pickles: they are copied once, the copies' digests compared with the pinned ones, and only then
    are the copies read. PyG's processed files, pickles too, are neither read nor written.
    """
    from torch_geometric.io import read_planetoid_data

    entry = DOMAIN.datasets[name]
    folder = root() / entry.path
    with tempfile.TemporaryDirectory() as copy:
        for part, pinned in PLANETOID[name].items():
            path = folder / f"ind.{name}.{part}"
            try:
                content = path.read_bytes()
            except FileNotFoundError:
                raise missing(name, path, entry.how) from None
            except OSError as error:
                raise _unreadable(path, error) from None
            found = hashlib.sha256(content).hexdigest() if len(pinned) == 64 else _git_blob(content)
            if found != pinned:
                raise UsageError(f"{path}: digest {found}, expected {pinned}; the file is damaged or not the original")
            Path(copy, path.name).write_bytes(content)
        return read_planetoid_data(copy, name)


def _git_blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


# sha256 of the files of kimiyoung/planetoid, folder data, commit af6abf468a772cc055bec88c52e4d6f51b7c37e3. Of
# ind.pubmed.allx only the git blob id at that commit was at hand (40 digits).
PLANETOID = {
    "cora": {
        "x": "23cfa55d91c6f624233f5eb7b6e3f141f1bd2b2ae39608a63cf5d084bb27baab",
        "tx": "b9afbaa4a400df991f6f02ef677e1e44da55ffc04801fd02f9e673987829226a",
        "allx": "9419ba2f26f5c35243db64aba110e0f35a04851609e0dc5433450676ca6b8543",
        "y": "94465c14eb53e04ca262198dcbb2521ee8af60fb3f3d546cd6ca24a511b0e7d1",
        "ty": "41f5ac76596a1699cc33f53084a2419e92961c42bb75f36fc38e616d348532ad",
        "ally": "2b998f5cc7fedc86e7f97ca2498f47a1ffc1462c29e2d578b23bf3f62b6e7d71",
        "graph": "58f13302f39dde8852dad6fe6d15b89b077b6d7f837626bce671ef80344b383d",
        "test.index": "297ce89af2b51a6a194181c7dbe1796c6a1cf9cd9349a88383b1b1e227867875",
    },
    "citeseer": {
        "x": "d20de19150741e555de0ed037195630fc194114ebc7fd72ced62810148aa22f6",
        "tx": "539a8906a2da97628d212f2fdd668c109a8b3f0d36574b59e5d3fd5b5303da21",
        "allx": "2ac30345d95c9ec933a817ee0bdd6a5f077f8c184a20e696910192d534414668",
        "y": "8ba87e515d8e3ee3cf52f6d2c5b86aa73f11ecad825a808455209ec26cd54924",
        "ty": "55e5bd1ba1e733a04598753ad1a8d57957f4b8f89e74519f41f4f4938767e4ce",
        "ally": "f704b2d986dde6c2669934de1f3ae5696a6cf9455c0f6b2646a2d135ea0a1c95",
        "graph": "d79a4ef9d3e7169aee8946145f6b7306e35bc79bffad26346cfb94e10e9912a7",
        "test.index": "2af990671580b6b2df5d158d1038f8292e30c9cd821b5453f399659b25b723d4",
    },
    "pubmed": {
        "x": "fbe9cb5c47200d1b7769a26e579be3b7130b556831f9d850e77c4c74f2599b33",
        "tx": "4eb5f5d0f30f26497eb0ac6ac9719d09c67e284f1ed0385c93f3ef27a671da3d",
        "allx": "3b86bccf08111c37c632a9dd8ab63db25ea76361",
        "y": "e6c807633307a07ed659249006536a147c7999c797f11a2560752990181b41b3",
        "ty": "ee2e0d4819d9fbcc403689c3bf2e49face401b605932f093bc58ab6461130fdd",
        "ally": "0c37bbe3b5014ec365e9d393cf4791925e5ed94fb194305d74f064a8d7b50f0e",
        "graph": "5b89f0036ca22909471f1e6558eb42fa06e0c730a577bde5b058b40638f81dc9",
        "test.index": "b101d421688bbaecbd82e8a18f1e282378d6830f3a37666f28ebc47f844341b5",
    },
}


# --- the user's own --------------------------------------------------------------------------------------------------


def _from_csv(path: Path, features: str | Path | None, labels: str | Path | None) -> Data:
    x = None if features is None else _features(_read_npy(features), str(features))
    y = None if labels is None else _labels(_read_npy(labels), str(labels))
    if x is not None and y is not None and len(y) != len(x):
        raise UsageError(f"{labels}: {len(y)} labels for {len(x)} rows of features in {features}")
    rows = list(_rows(path))
    if not rows:
        raise UsageError(f"{path} is empty: an edge list needs at least one row 'source,target'")
    numbered = x is not None or y is not None
    pairs = [pair for _, pair in rows]
    if _is_header(pairs, numbered):
        rows, pairs = rows[1:], pairs[1:]
    if not rows:
        raise UsageError(f"{path} holds a header and no edge")
    names: tuple[str, ...] | None = None
    if numbered:
        nodes = len(x) if x is not None else len(y) if y is not None else 0
        edges = _numbers(path, rows, nodes)
    else:
        order = {name: place for place, name in enumerate(dict.fromkeys(name for pair in pairs for name in pair))}
        names, nodes = tuple(order), len(order)
        edges = torch.tensor([[order[a] for a, _ in pairs], [order[b] for _, b in pairs]])
    if x is None:
        if nodes > ONE_HOT_LIMIT:
            raise UsageError(
                f"{path}: {nodes} nodes without features; one-hot ones go up to {ONE_HOT_LIMIT}: give features=FILE.npy"
            )
        x = torch.eye(nodes)
    data = Data(x=x, edge_index=_undirected(edges, nodes))
    if y is not None:
        data.y = y
    if names is not None:
        data.ids = names
    return data


def _rows(path: Path) -> Iterator[tuple[int, tuple[str, str]]]:
    # (line number from 1, the two texts); blank lines are skipped
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            for row in reader:
                fields = [field.strip() for field in row]
                if not any(fields):
                    continue
                if len(fields) != 2 or not all(fields):
                    raise UsageError(
                        f"{path}: row {reader.line_num}: {','.join(row)!r}; expected two columns, source,target"
                    )
                yield reader.line_num, (fields[0], fields[1])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _unreadable(path, error) from None


def _is_header(pairs: list[tuple[str, str]], numbered: bool) -> bool:
    # A first row of known column names; or of two texts where (all) other ids are numbers.
    first = pairs[0]
    if {text.lower() for text in first} in HEADERS:
        return True
    texts = not any(_is_integer(text) for text in first)
    return texts and (numbered or (len(pairs) > 1 and all(_is_integer(t) for pair in pairs[1:] for t in pair)))


def _is_integer(text: str) -> bool:
    return text.removeprefix("-").isdecimal()


def _numbers(path: Path, rows: list[tuple[int, tuple[str, str]]], nodes: int) -> Tensor:
    for line, pair in rows:
        for column, text in zip(("source", "target"), pair, strict=True):
            if not _is_integer(text):
                raise UsageError(
                    f"{path}: row {line}: {column} {text!r} is not an integer; ids are rows of features and labels"
                )
            if not 0 <= int(text) < nodes:
                raise UsageError(f"{path}: row {line}: {column} {text} is outside 0..{nodes - 1}")
    return torch.tensor([[int(pair[0]) for _, pair in rows], [int(pair[1]) for _, pair in rows]])


def _from_npz(path: Path) -> Data:
    arrays: dict[str, NDArray[Any]] = {}
    try:
        with np.load(path, allow_pickle=False) as archive:
            for name in archive.files:
                arrays[name] = archive[name]
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise _unreadable(path, error) from None
    known = ("edge_index", "edges", "x", "y", *MASKS)
    if unknown := sorted(set(arrays) - set(known)):
        raise UsageError(f"{path}: {nearest(unknown[0], known, 'array')}")
    if "x" not in arrays or ("edge_index" in arrays) == ("edges" in arrays):
        raise UsageError(f"{path} holds {sorted(arrays)}; needed: x, and edge_index or edges")
    x = _features(arrays["x"], f"{path}: x")
    data = Data(x=x, edge_index=_undirected(_edges(arrays, path, len(x)), len(x)))
    if "y" in arrays:
        data.y = y = _labels(arrays["y"], f"{path}: y")
        if len(y) != len(x):
            raise UsageError(f"{path}: y has {len(y)} labels for {len(x)} rows of x")
    for name in MASKS:
        if name in arrays:
            mask = arrays[name]
            if mask.dtype != np.bool_ or mask.shape != (len(x),):
                raise UsageError(f"{path}: {name} has shape {mask.shape}, {mask.dtype}; expected ({len(x)},), bool")
            data[name] = torch.from_numpy(mask)
    if ("train_mask" in data) != ("test_mask" in data):
        raise UsageError(f"{path}: train_mask and test_mask go together; give both or neither")
    if "train_mask" in data and bool((data.train_mask & data.test_mask).any()):
        node = int((data.train_mask & data.test_mask).nonzero()[0])
        raise UsageError(f"{path}: node {node} is in train_mask and in test_mask")
    return data


def _edges(arrays: dict[str, NDArray[Any]], path: Path, nodes: int) -> Tensor:
    name = "edge_index" if "edge_index" in arrays else "edges"
    array = arrays[name] if name == "edge_index" else arrays[name].T
    expected = "(2, e)" if name == "edge_index" else "(e, 2)"
    if array.ndim != 2 or array.shape[0] != 2 or array.dtype.kind not in "iu":
        raise UsageError(f"{path}: {name} has shape {arrays[name].shape}, {array.dtype}; expected {expected}, integers")
    outside = ((array < 0) | (array >= nodes)).nonzero()
    if len(outside[0]):
        row, edge = int(outside[0][0]), int(outside[1][0])
        raise UsageError(
            f"{path}: {name}, edge {edge}: node {array[row, edge]} is outside 0..{nodes - 1}, the rows of x"
        )
    return torch.from_numpy(array.astype(np.int64))


def _read_npy(path: str | Path) -> NDArray[Any]:
    try:
        array: Any = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise _unreadable(path, error) from None
    if not isinstance(array, np.ndarray):
        array.close()
        raise UsageError(f"{path} is an archive; expected one array (.npy)")
    return array


def _features(array: NDArray[Any], where: str) -> Tensor:
    if array.ndim != 2 or 0 in array.shape or array.dtype.kind not in "fiub":
        raise UsageError(
            f"{where} has shape {array.shape}, {array.dtype}; expected numbers of shape (n, f), n and f at least 1"
        )
    with np.errstate(over="ignore"):
        array = array.astype(np.float32)
    if not (finite := np.isfinite(array)).all():
        row, column = (int(place) for place in np.argwhere(~finite)[0])
        raise UsageError(f"{where}, row {row}, column {column}: {array[row, column]}; expected finite float32 numbers")
    return torch.from_numpy(array)


def _labels(array: NDArray[Any], where: str) -> Tensor:
    if array.ndim != 1 or not len(array) or array.dtype.kind not in "iu":
        raise UsageError(
            f"{where} has shape {array.shape}, {array.dtype}; expected integers of shape (n,), n at least 1"
        )
    if array.min() < -1:
        raise UsageError(f"{where}, row {int(array.argmin())}: {array.min()}; expected classes from 0, or -1 for none")
    return torch.from_numpy(array.astype(np.int64))


def _undirected(edges: Tensor, nodes: int) -> Tensor:
    """Each edge in both directions, once, without self-loops, sorted. edges: (2, e)."""
    from torch_geometric.utils import remove_self_loops, to_undirected

    return to_undirected(remove_self_loops(edges)[0], num_nodes=nodes)


def _unreadable(path: str | Path, error: Exception) -> UsageError:
    return UsageError(f"{path} is not readable: {error}")


def _shape(value: object) -> str:
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
