"""Graphs: registered ones and the user's own; one graph as a `torch_geometric.data.Data`, many as a `GraphSet`.

In a `Data`: x float32 (n, f), dense or torch.sparse_csr; edge_index int64 (2, e); y int64 (n,) where there are labels,
-1 for a node without one; train_mask, val_mask, test_mask bool (n,) where there is a fixed split, `split_rule` where a
random one belongs to the data; ids: the nodes' own names where they have them. Rules for the user's own files stand in
`gen_graph.files`.
"""

import hashlib
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data

from gen_core.harness.data import missing, root
from gen_core.harness.errors import UsageError, nearest
from gen_graph import files
from gen_graph.graphset import GraphSet
from gen_graph.networks import csr
from gen_graph.registry import DOMAIN
from gen_graph.splits import Rule


def load(
    name_or_path: str | Path, features: str | Path | None = None, labels: str | Path | None = None
) -> Data | GraphSet:
    """A registered data set by name, or the user's own graph or graphs by path.

    `edges.csv`: two columns, source and target, with or without a header. With `features` (a .npy, (n, f) numbers) or
    `labels` (a .npy, (n,) integers) the ids are row numbers of these, from 0. Without both, ids are any texts, numbered
    in the order in which they appear. Without `features` each node gets a one-hot row.
    `graph.npz`: `edge_index` (2, e) or `edges` (e, 2), `x` (n, f), and where you have them `y` (n,), `train_mask`,
    `val_mask`, `test_mask` (n,).
    A folder in the layout of the TU collection (`gen_graph.files.from_tu`): many graphs, as a `GraphSet`.
    Nothing in a file is unpickled.

    Raises `UsageError` that names the file and the row, field or value.
    """
    name = str(name_or_path)
    if name in DOMAIN.datasets:
        if features is not None or labels is not None:
            raise UsageError(f"features and labels go with your own edge list; {name!r} is a registered data set")
        return _registered(name)
    path = Path(name_or_path).expanduser()
    try:
        there, folder = path.is_file(), path.is_dir()
    except OSError as error:
        raise files.unreadable(path, error) from None
    if path.suffix == ".csv" and there:
        return files.from_csv(path, features, labels)
    if (there or folder) and (features is not None or labels is not None):
        raise UsageError(f"{path}: features and labels go with an edge list (.csv); other kinds hold their own")
    if folder:
        if (inner := files.tu_folder(path)) is None:
            raise UsageError(
                f"{path} is a folder without a file *_A.txt; many graphs come in the layout of TU data sets"
            )
        return files.from_tu(inner)
    if not there:
        raise UsageError(
            f"{path} does not exist: give an edge list .csv, an .npz or a folder of graphs; "
            f"{nearest(name, DOMAIN.datasets, 'data set')}"
        )
    if path.suffix == ".npz":
        return files.from_npz(path)
    raise UsageError(f"{path}: unknown kind of file {path.suffix!r}; allowed: .csv (edge list), .npz (arrays)")


def _registered(name: str) -> Data | GraphSet:
    from gen_graph import generated

    if name in (embedded := {"csbm": csbm, "karate": karate, "motifs": generated.motifs}):
        return embedded[name]()
    entry = DOMAIN.datasets[name]
    folder = root() / entry.path
    kind = Path(entry.path).parts[0]
    if kind == "planetoid":
        return planetoid(name)
    if not folder.exists():
        raise missing(name, folder, entry.how)
    if kind == "tu":
        return files.from_tu(folder, attributes=False)
    if kind == "reddit":
        return reddit(folder)
    if name in ("esol", "qm9"):
        from gen_graph import molecules

        return molecules.esol(folder) if name == "esol" else molecules.qm9(folder)
    return bag_of_words(folder)


def check(data: Data) -> tuple[Tensor, Tensor]:
    """x and edge_index of a graph that methods can work on; otherwise `UsageError` says what is wrong.

    Edges are taken as they stand: a method that needs both directions is given both.
    """
    if not isinstance(data, Data):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UsageError(f"one graph is needed, a torch_geometric Data; got {_shape(data)}, which holds several")
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
    if (row := _not_finite(x)) is not None:
        raise UsageError(f"data.x, row {row}: not finite")
    return x, edge_index


def _not_finite(x: Tensor) -> int | None:
    # The first row with NaN or infinity. A finite sum says that there is none, without a copy of x.
    values = x.values() if x.layout == torch.sparse_csr else x
    if bool(values.sum().isfinite()) or bool(values.isfinite().all()):
        return None
    return int((~x.to_dense().isfinite()).any(dim=1).nonzero()[0])


def check_set(graphs: GraphSet | Sequence[Data]) -> GraphSet:
    """Several graphs that methods can work on; otherwise `UsageError` says what is wrong."""
    if isinstance(graphs, Data):
        raise UsageError("several graphs are needed: a GraphSet or a list of Data; got one Data")
    found = GraphSet.of(graphs)
    if (row := _not_finite(found.x)) is not None:
        raise UsageError(f"graph {int(found.batch[row])}: x is not finite")
    return found


def spec(data: Data | GraphSet | Sequence[Data]) -> dict[str, int]:
    """Sizes: graphs (of several), nodes, edges (each direction counts), features, edge_features (where there are any),
    classes (0 without labels or with float targets)."""
    if isinstance(data, Data):
        x, edge_index = check(data)
        found, y = {}, data.y
    else:
        graphs = check_set(data)
        x, edge_index, y = graphs.x, graphs.edge_index, graphs.y
        found = {"graphs": len(graphs)}
        if graphs.edge_attr is not None:
            found["edge_features"] = graphs.edge_attr.shape[1]
    classes = int(y.max()) + 1 if isinstance(y, Tensor) and not y.is_floating_point() else 0
    sizes = {"nodes": x.shape[0], "edges": edge_index.shape[1], "features": x.shape[1], "classes": classes}
    return found | sizes


def checksum(data: Data | GraphSet) -> str:
    """sha256 over names, types, shapes and bytes of all that `data` holds."""
    digest = hashlib.sha256()
    fields: dict[str, Any] = data.to_dict() if isinstance(data, Data) else data.fields()
    for name, value in sorted(fields.items()):
        if isinstance(value, Tensor) and value.layout != torch.strided:
            value = torch.cat([value.crow_indices(), value.col_indices(), value.values().view(torch.int32)])
        if isinstance(value, Tensor):
            array = value.detach().cpu().contiguous().numpy()
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(array.tobytes())
        else:
            digest.update(f"{name} {value!r}".encode())
    return digest.hexdigest()


def ids(data: Data | GraphSet) -> list[str]:
    """The names of the nodes, or of the graphs of a set; their numbers from 0 where they have none."""
    if isinstance(data, Data):
        return list(data.ids) if "ids" in data else [str(row) for row in range(check(data)[0].shape[0])]
    return list(data.ids) if data.ids else [str(row) for row in range(len(data))]


# --- registered ------------------------------------------------------------------------------------------------------


def csbm() -> Data:
    """A contextual stochastic block model (after Deshpande et al. 2018) whose features are words, made by a fixed seed.

    800 nodes in 4 equal classes. Edges are independent: a node has on average 6 neighbours of its own class
    (probability 0.03) and 3 of the others (0.005). Of 500 words a node holds each with probability 0.02, but the 50
    topic words of its class (drawn class by class, so that topics overlap) with 0.06: about 12 words, 3 of them a
    signal, which is too little for a classifier of single nodes; neighbours together hold enough.
    Split: 20 nodes a class train, 20 validate, the rest test.
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
    place = torch.arange(nodes) // classes  # y cycles through the classes
    masks = {"train_mask": place < 20, "val_mask": (place >= 20) & (place < 40), "test_mask": place >= 40}
    return Data(x=x, edge_index=files.undirected(edges, nodes), y=y, **masks)


def karate() -> Data:
    """PyG's `KarateClub`: 34 nodes, one-hot features, 4 communities, one training node each, the rest test."""
    from torch_geometric.datasets import KarateClub

    data = KarateClub()[0]
    assert isinstance(data, Data)
    data.test_mask = ~data.train_mask
    return data


def planetoid(name: str) -> Data:
    """Cora, CiteSeer or PubMed by PyG's own reader, with the public split or, `<name>-random`, one by the seed.

    The raw files are pickles: they are copied once, the copies' digests compared with the pinned ones, and only then
    are the copies read. PyG's processed files, pickles too, are neither read nor written.
    """
    from torch_geometric.io import read_planetoid_data

    entry = DOMAIN.datasets[name]
    folder = root() / entry.path
    name, _, split = name.partition("-")
    with tempfile.TemporaryDirectory() as copy:
        for part, pinned in PLANETOID[name].items():
            path = folder / f"ind.{name}.{part}"
            try:
                content = path.read_bytes()
            except FileNotFoundError:
                raise missing(name, path, entry.how) from None
            except OSError as error:
                raise files.unreadable(path, error) from None
            found = hashlib.sha256(content).hexdigest() if len(pinned) == 64 else _git_blob(content)
            if found != pinned:
                raise UsageError(f"{path}: digest {found}, expected {pinned}; the file is damaged or not the original")
            Path(copy, path.name).write_bytes(content)
        data = read_planetoid_data(copy, name)
    if split == "random":  # 20 nodes a class, 500 and 1,000: the sizes of the public split
        del data.train_mask, data.val_mask, data.test_mask
        data.split_rule = Rule(train=20, val=500, test=1000)
    return data


def bag_of_words(folder: Path) -> Data:
    """Coauthor CS and Physics, Cora-Full: the one .npz of `folder`, as Shchur et al. (2018) keep a graph.

    As in PyG's reader every positive count of a word is 1 and edges are undirected, but x stays sparse (CSR): dense, CS
    takes 499 MB and Physics 1.16 GB. Split by the seed, after Shchur et al.: 20 nodes a class train, 30 validate.
    """
    (path,) = sorted(folder.glob("*.npz")) or [None]
    if path is None:
        raise UsageError(f"{folder} holds no .npz")
    try:
        with np.load(path, allow_pickle=False) as archive:
            adj, attr = ({part: archive[f"{kind}_{part}"] for part in _CSR} for kind in ("adj", "attr"))
            y = torch.from_numpy(archive["labels"].astype(np.int64))
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise files.unreadable(path, error) from None
    counts = np.diff(adj["indptr"])
    rows = torch.from_numpy(np.repeat(np.arange(len(counts)), counts))
    edges = torch.stack([rows, torch.from_numpy(adj["indices"].astype(np.int64))])
    there = torch.from_numpy(attr["data"] > 0)  # zeros may be stored
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), there.cumsum(0)])[attr["indptr"].astype(np.int64)]
    cols = torch.from_numpy(attr["indices"].astype(np.int64))[there]
    x = csr(starts, cols, torch.ones(len(cols)), (int(attr["shape"][0]), int(attr["shape"][1])))
    data = Data(x=x, edge_index=files.undirected(edges, len(counts)), y=y)
    data.split_rule = Rule(train=20, val_per_class=30)
    return data


_CSR = ("data", "indices", "indptr", "shape")


def reddit(folder: Path) -> Data:
    """Reddit of Hamilton et al. (2017), as DGL's archive keeps it: reddit_data.npz, reddit_graph.npz. Own split."""
    try:
        with np.load(folder / "reddit_data.npz", allow_pickle=False) as archive:
            x, y, kinds = (torch.from_numpy(archive[name]) for name in ("feature", "label", "node_types"))
        with np.load(folder / "reddit_graph.npz", allow_pickle=False) as archive:
            edges = torch.stack([torch.from_numpy(archive[name].astype(np.int64)) for name in ("row", "col")])
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise files.unreadable(folder, error) from None
    masks = {f"{part}_mask": kinds == number for number, part in enumerate(("train", "val", "test"), 1)}
    return Data(x=x.float(), edge_index=files.undirected(edges, len(x)), y=y.long(), **masks)


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


def _shape(value: object) -> str:
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
