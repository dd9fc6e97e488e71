"""The user's own files as graphs: an edge list, an .npz, a folder of graphs in the layout of the TU collection.

Rules, the same for all: a graph is made undirected (each edge stands in both directions), duplicates and self-loops are
removed (encoders add their own), nodes without any edge are kept. Nothing in a file is unpickled. A wrong file raises
`UsageError` that names the file and the row, field or value.
"""

import csv
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch_geometric.data import Data

from gen_core.harness.errors import UsageError, nearest
from gen_graph.graphset import GraphSet

MASKS = ("train_mask", "val_mask", "test_mask")
ONE_HOT_LIMIT = 5000
"""Nodes up to which an edge list without features gets one-hot features."""
HEADERS = ({"source", "target"}, {"src", "dst"}, {"from", "to"})


def from_csv(path: Path, features: str | Path | None, labels: str | Path | None) -> Data:
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
    data = Data(x=x, edge_index=undirected(edges, nodes))
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
        raise unreadable(path, error) from None


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


def from_npz(path: Path) -> Data:
    arrays: dict[str, NDArray[Any]] = {}
    try:
        with np.load(path, allow_pickle=False) as archive:
            for name in archive.files:
                arrays[name] = archive[name]
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise unreadable(path, error) from None
    known = ("edge_index", "edges", "x", "y", *MASKS)
    if unknown := sorted(set(arrays) - set(known)):
        raise UsageError(f"{path}: {nearest(unknown[0], known, 'array')}")
    if "x" not in arrays or ("edge_index" in arrays) == ("edges" in arrays):
        raise UsageError(f"{path} holds {sorted(arrays)}; needed: x, and edge_index or edges")
    x = _features(arrays["x"], f"{path}: x")
    data = Data(x=x, edge_index=undirected(_edges(arrays, path, len(x)), len(x)))
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
        raise unreadable(path, error) from None
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


def undirected(edges: Tensor, nodes: int) -> Tensor:
    """Each edge in both directions, once, without self-loops, sorted. edges: (2, e)."""
    from torch_geometric.utils import remove_self_loops, to_undirected

    return to_undirected(remove_self_loops(edges)[0], num_nodes=nodes)


def unreadable(path: str | Path, error: Exception) -> UsageError:
    return UsageError(f"{path} is not readable: {error}")


# --- many graphs -----------------------------------------------------------------------------------------------------


def tu_folder(path: Path) -> Path | None:
    """The folder that holds `<name>_A.txt`: `path` itself or its `raw`; None where neither does."""
    return next((folder for folder in (path, path / "raw") if any(folder.glob("*_A.txt"))), None)


def from_tu(folder: Path, *, attributes: bool = True) -> GraphSet:
    """Graphs in the layout of the TU collection (Morris et al. 2020), all files text, ids from 1.

    `<name>_A.txt` (rows "i, j"), `<name>_graph_indicator.txt` (a graph's number a node), and where there are any
    `_graph_labels.txt` (classes, any integers, numbered in their order) or `_graph_attributes.txt` (the first column is
    a float target), `_node_labels.txt` and `_edge_labels.txt` (one column each, one-hot), `_node_attributes.txt` and
    `_edge_attributes.txt` (numbers). `attributes=False` leaves out the last three, node attributes as PyG does by
    default. Nodes without features get the constant 1. Edges become undirected; of a pair of nodes with several rows
    the features are averaged.
    """
    from torch_geometric.utils import remove_self_loops, to_undirected

    (edge_file,) = _one(folder, "A")
    name = edge_file.name.removesuffix("_A.txt")

    def read(part: str, kind: type, columns: int | None = None) -> NDArray[Any] | None:
        file = folder / f"{name}_{part}.txt"
        return _table(file, kind, columns) if file.exists() else None

    indicator = read("graph_indicator", np.int64, 1)
    if indicator is None:
        raise UsageError(f"{folder}: {name}_graph_indicator.txt is missing; it says which graph each node belongs to")
    owner = torch.from_numpy(indicator[:, 0])
    if not len(owner) or int(owner.min()) < 1:
        raise UsageError(f"{name}_graph_indicator.txt: graphs are numbered from 1, one row a node")
    sizes = torch.bincount(owner - 1)
    if not bool(sizes.all()):
        raise UsageError(f"{name}_graph_indicator.txt: graph {int((sizes == 0).nonzero()[0]) + 1} has no node")
    order = owner.argsort(stable=True)
    place, batch = order.argsort(), owner[order]

    found = read("A", np.int64, 2)
    edges = torch.from_numpy(found).T - 1 if found is not None else torch.zeros(2, 0, dtype=torch.int64)
    for row in ((edges < 0) | (edges >= len(owner))).any(0).nonzero()[:1, 0].tolist():
        raise UsageError(f"{edge_file}: row {row + 1}: {(edges[:, row] + 1).tolist()} is outside 1..{len(owner)}")
    for row in (owner[edges[0]] != owner[edges[1]]).nonzero()[:1, 0].tolist():
        i, j = edges[:, row].tolist()
        graphs = f"{int(owner[i])} and {int(owner[j])}"
        raise UsageError(f"{edge_file}: row {row + 1}: nodes {i + 1} and {j + 1} belong to different graphs, {graphs}")

    def features(what: str, count: int, labels_too: bool) -> Tensor | None:
        blocks: list[Tensor] = []
        if attributes and (values := read(f"{what}_attributes", np.float32)) is not None:
            blocks.append(torch.from_numpy(_rows_of(values, count, f"{name}_{what}_attributes.txt", f"{what}s")))
        if labels_too and (labels := read(f"{what}_labels", np.int64)) is not None:
            for column in torch.from_numpy(_rows_of(labels, count, f"{name}_{what}_labels.txt", f"{what}s")).T:
                blocks.append(torch.nn.functional.one_hot(column - column.min()).float())
        return torch.cat(blocks, 1) if blocks else None

    x = features("node", len(owner), labels_too=True)
    x = torch.ones(len(owner), 1) if x is None else x[order]
    edge_attr = features("edge", edges.shape[1], labels_too=attributes) if edges.numel() else None

    y: Tensor | None = None
    if (labels := read("graph_labels", np.int64, 1)) is not None:
        classes = _rows_of(labels, len(sizes), f"{name}_graph_labels.txt", "graphs")[:, 0]
        y = torch.from_numpy(classes).unique(return_inverse=True)[1]
    elif (values := read("graph_attributes", np.float32)) is not None:
        y = torch.from_numpy(_rows_of(values, len(sizes), f"{name}_graph_attributes.txt", "graphs"))[:, 0]
    ptr = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
    ids = [str(number) for number in batch.unique().tolist()]
    edges, edge_attr = remove_self_loops(place[edges], edge_attr)
    edges, edge_attr = to_undirected(edges, edge_attr, num_nodes=len(owner), reduce="mean")
    return GraphSet(x, edges.flip(0), ptr, y, edge_attr, ids)


def _one(folder: Path, part: str) -> list[Path]:
    found = sorted(folder.glob(f"*_{part}.txt"))
    if len(found) != 1:
        raise UsageError(f"{folder} holds {[file.name for file in found]}; expected one file *_{part}.txt")
    return found


def _table(file: Path, kind: type, columns: int | None) -> NDArray[Any]:
    """A text file of numbers separated by commas, (rows, columns)."""
    try:
        if not file.read_text(encoding="utf-8").strip():
            return np.empty((0, columns or 0), kind)
        table: NDArray[Any] = np.loadtxt(file, dtype=kind, delimiter=",", ndmin=2, comments=None, encoding="utf-8")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise unreadable(file, error) from None
    if columns and table.shape[1] != columns:
        raise UsageError(f"{file}: {table.shape[1]} columns; expected {columns}")
    if not np.isfinite(table).all():
        raise UsageError(f"{file}: row {int(np.argwhere(~np.isfinite(table))[0, 0]) + 1}: not a finite number")
    return table


def _rows_of(table: NDArray[Any], count: int, name: str, what: str) -> NDArray[Any]:
    if len(table) != count:
        raise UsageError(f"{name}: {len(table)} rows for {count} {what}")
    return table
