"""Molecules as graphs: ESOL with atoms and bonds one-hot, QM9 as complete graphs with distances. Needs rdkit.

Both are read by PyG's own parsers (`from_smiles`, `QM9.process`); nothing is downloaded and nothing is unpickled.
"""

import csv
import hashlib
import math
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.data import Data

from gen_core.harness import weights
from gen_core.harness.data import cache
from gen_core.harness.errors import UsageError, nearest
from gen_graph.files import unreadable
from gen_graph.graphset import GraphSet

ATOM: Mapping[str, Sequence[Any]] = {
    "atomic_num": (5, 6, 7, 8, 9, 14, 15, 16, 17, 34, 35, 53),  # B C N O F Si P S Cl Se Br I
    "chirality": ("CHI_UNSPECIFIED", "CHI_TETRAHEDRAL_CW", "CHI_TETRAHEDRAL_CCW"),
    "degree": (0, 1, 2, 3, 4),
    "formal_charge": (-1, 0, 1),
    "num_hs": (0, 1, 2, 3, 4),
    "num_radical_electrons": (0,),
    "hybridization": ("SP", "SP2", "SP3"),
    "is_aromatic": (False,),
    "is_in_ring": (False,),
}
"""Columns of `from_smiles` and the values that have a place of their own; a further place of each column is for any
other value."""
BOND: Mapping[str, Sequence[Any]] = {
    "bond_type": ("SINGLE", "DOUBLE", "TRIPLE", "AROMATIC"),
    "stereo": ("STEREONONE", "STEREOANY", "STEREOZ", "STEREOE"),
    "is_conjugated": (False,),
}
TARGETS = (
    "mu", "alpha", "homo", "lumo", "gap", "r2", "zpve", "u0", "u", "h", "g", "cv",
    "u0_atom", "u_atom", "h_atom", "g_atom", "a", "b", "c",
)  # fmt: skip
"""QM9's targets in the order of PyG's columns, in its units (energies in eV, mu in Debye, alpha in bohr^3)."""


def esol(folder: Path) -> GraphSet:
    """ESOL (Delaney 2004): `delaney-processed.csv` of MoleculeNet; y is log10 of the solubility in mol/l.

    1,128 molecules without hydrogens: x (n, 43) and edge_attr (e, 12) by `ATOM` and `BOND`, each bond both ways. ids
    are the compounds' names.

    Raises:
        UsageError: rdkit or the file is not there; a row whose SMILES or target cannot be read.
    """
    needs_rdkit()
    from torch_geometric.utils import from_smiles
    from torch_geometric.utils.smiles import e_map, x_map

    path = folder / "delaney-processed.csv"
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise unreadable(path, error) from None
    columns = ("smiles", "measured log solubility in mols per litre", "Compound ID")
    if not rows or any(name not in rows[0] for name in columns):
        raise UsageError(f"{path}: columns {', '.join(rows[0]) if rows else 'none'}; needed: {', '.join(columns)}")
    graphs: list[Data] = []
    for number, row in enumerate(rows, start=2):
        smiles, target = ((row[name] or "").strip() for name in columns[:2])
        y = _number(target)
        if y is None:
            raise UsageError(f"{path}: row {number}: {columns[1]} {target!r} is not a finite number")
        graph = from_smiles(smiles)
        if not graph.num_nodes:  # what PyG makes of a text that is no molecule
            raise UsageError(f"{path}: row {number}: rdkit cannot read the SMILES {smiles!r}")
        graph.y = torch.tensor([y])
        graphs.append(graph)
    found = GraphSet.of(graphs)
    assert found.edge_attr is not None
    x, edge_attr = one_hot(found.x.long(), ATOM, x_map), one_hot(found.edge_attr.long(), BOND, e_map)
    return GraphSet(x, found.edge_index, found.ptr, found.y, edge_attr, [row["Compound ID"] for row in rows])


def one_hot(codes: Tensor, vocabulary: Mapping[str, Sequence[Any]], maps: Mapping[str, Sequence[Any]]) -> Tensor:
    """Columns of category codes (n, columns), positions in `maps`, each as one-hot of its vocabulary and of the rest.

    Returns float32 (n, sum of the vocabularies' lengths + columns).
    """
    blocks: list[Tensor] = []
    for column, (name, values) in zip(codes.T, vocabulary.items(), strict=True):
        place = torch.full((len(maps[name]),), len(values))
        place[[maps[name].index(value) for value in values]] = torch.arange(len(values))
        blocks.append(F.one_hot(place[column], len(values) + 1).float())
    return torch.cat(blocks, dim=1)


def qm9(folder: Path, target: str = "mu") -> GraphSet:
    """QM9 (Ramakrishnan et al. 2014) as InfoGraph* uses it: complete graphs with distances, one target.

    `folder` holds gdb9.sdf, gdb9.sdf.csv and uncharacterized.txt. PyG's own `process` reads them: x (n, 11), its atom
    features; y in its units, not standardised. Edges join all atoms of a molecule, hydrogens too; edge_attr (e, 5) is
    the bond's type, one-hot (single, double, triple, aromatic; zeros where there is no bond), and the distance in
    angstrom. 130,831 molecules, 40 million edges, 1.5 GB. The first call takes minutes; what it has read is kept
    in the user's cache, as tensors, under the files' digest.

    Args:
        folder: where the raw files are.
        target: one of `TARGETS`.

    Raises:
        UsageError: an unknown target; rdkit or a file is not there, or a file cannot be read.
    """
    if target not in TARGETS:
        raise UsageError(nearest(target, TARGETS, "QM9 target"))
    needs_rdkit()
    paths = [folder / name for name in ("gdb9.sdf", "gdb9.sdf.csv", "uncharacterized.txt")]
    digest = hashlib.sha256(" ".join(version(name) for name in ("torch_geometric", "rdkit")).encode())
    for path in paths:
        try:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise unreadable(path, error) from None
    kept = cache("qm9", f"{digest.hexdigest()[:32]}.safetensors")
    if not kept.exists():
        weights.write(kept, _process(folder))
    try:
        read: dict[str, Tensor] = safetensors.torch.load_file(kept)  # pyright: ignore[reportUnknownMemberType]
    except (OSError, safetensors.SafetensorError) as error:
        raise unreadable(kept, error) from None
    edge_index, edge_attr = complete(read["ptr"], read["bonds"], read["bond_type"], read["pos"])
    ids = [f"gdb_{number + 1}" for number in read["idx"].tolist()]
    return GraphSet(read["x"], edge_index, read["ptr"], read["y"][:, TARGETS.index(target)].clone(), edge_attr, ids)


def complete(ptr: Tensor, bonds: Tensor, bond_type: Tensor, pos: Tensor) -> tuple[Tensor, Tensor]:
    """All ordered pairs of atoms of each molecule, sorted by target, with bond type and distance.

    Args:
        ptr: (g + 1,), molecule k has the atoms ptr[k]..ptr[k + 1] - 1.
        bonds: (2, b), source and target of each bond, both ways.
        bond_type: (b, t), rows of the bonds.
        pos: (n, 3), positions.

    Returns:
        edge_index (2, e), edge_attr (e, t + 1).
    """
    sizes = ptr.diff()
    others = (sizes - 1).repeat_interleave(sizes)  # (n,) edges that end in each atom
    first = ptr[:-1].repeat_interleave(sizes)  # (n,) the first atom of its molecule
    starts = others.cumsum(0) - others
    target = torch.arange(len(pos)).repeat_interleave(others)
    source = first[target] + torch.arange(len(target)) - starts[target]
    source += source >= target  # an atom is no neighbour of itself
    edge_attr = torch.zeros(len(target), bond_type.shape[1] + 1)
    s, t = bonds
    edge_attr[starts[t] + (s - first[t]) - (s > t).long(), :-1] = bond_type
    edge_attr[:, -1] = (pos[target] - pos[source]).norm(dim=1)
    return torch.stack([source, target]), edge_attr


def _process(folder: Path) -> dict[str, Tensor]:
    """The raw files through PyG's parser, without its download and its processed file, which is a pickle."""
    from torch_geometric.datasets import QM9

    class Parser(QM9):
        def __init__(self) -> None:  # PyG's would download, process, pickle and unpickle
            self.root, self.log, self.pre_filter, self.pre_transform = str(folder), False, None, None
            self.found: list[Any] = []

        @property
        def raw_dir(self) -> str:
            return str(folder)

        def save(self, data_list: list[Any], path: str) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
            self.found = data_list

    parser = Parser()
    try:
        parser.process()
    except (OSError, ValueError, IndexError, KeyError, AttributeError) as error:  # PyG's parser checks nothing
        raise UsageError(f"{folder}: not the raw files of QM9, or damaged: {error!r}") from None
    if not (graphs := parser.found):
        raise UsageError(f"{folder}: gdb9.sdf holds no molecule")
    ptr = torch.tensor([0, *(len(graph.x) for graph in graphs)]).cumsum(0)
    return {
        "x": torch.cat([graph.x for graph in graphs]),
        "pos": torch.cat([graph.pos for graph in graphs]),
        "ptr": ptr,
        "bonds": torch.cat([graph.edge_index + start for graph, start in zip(graphs, ptr.tolist(), strict=False)], 1),
        "bond_type": torch.cat([graph.edge_attr for graph in graphs]).float(),
        "y": torch.cat([graph.y for graph in graphs]),
        "idx": torch.tensor([graph.idx for graph in graphs]),
    }


def needs_rdkit() -> None:
    """`UsageError` that names the extra where rdkit is not installed."""
    try:
        version("rdkit")
    except PackageNotFoundError:
        raise UsageError(
            "molecules are read by rdkit, which is not installed: pip install 'gen-graph[molecules]'"
        ) from None


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
