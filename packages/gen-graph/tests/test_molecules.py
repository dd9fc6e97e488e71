"""ESOL and QM9 against rdkit's own answers, PyG's data classes, published sizes, and damaged files."""

import csv
import pickle
from pathlib import Path

import pytest
import torch
import torch_geometric.transforms as T
from rdkit import Chem
from rdkit.Chem import AllChem
from torch_geometric.datasets import QM9, MoleculeNet
from torch_geometric.utils import remove_self_loops
from torch_geometric.utils.smiles import e_map, x_map

from gen_core.harness.errors import UsageError
from gen_graph import molecules
from gen_graph.data import ids, load, spec

HEAD = "Compound ID,measured log solubility in mols per litre,smiles"


def write(folder, *rows, head=HEAD):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "delaney-processed.csv").write_text("\n".join([head, *rows]) + "\n")
    return folder


# --- ESOL


def test_esol_is_what_pyg_reads(gen_data, tmp_path):
    """Sizes as published (13.3 atoms, 27.4 directed bonds), and the same molecules as in PyG's own data set."""
    found = load("esol")
    assert spec(found) == {
        "graphs": 1128,
        "nodes": 14991,
        "edges": 30856,
        "features": 43,
        "edge_features": 12,
        "classes": 0,
    }
    assert (found.nodes / 1128, 30856 / 1128) == (pytest.approx(13.3, abs=0.05), pytest.approx(27.4, abs=0.05))
    assert ids(found)[:2] == ["Amigdalin", "Fenfuram"]
    assert bool((found.edge_index[1].diff() >= 0).all())
    (tmp_path / "esol").mkdir()
    (tmp_path / "esol" / "raw").symlink_to(gen_data / "moleculenet" / "esol" / "raw")
    theirs = MoleculeNet(tmp_path, "ESOL")
    assert torch.equal(found.y, torch.cat([graph.y for graph in theirs])[:, 0])
    assert found.sizes.tolist() == [graph.num_nodes for graph in theirs]
    codes = torch.cat([graph.x for graph in theirs])
    atoms = torch.tensor(molecules.ATOM["atomic_num"])
    assert torch.equal(atoms[found.x[:, : len(atoms)].argmax(1)], codes[:, 0])
    bonds = {(int(s), int(t), int(a[0])) for s, t, a in zip(*theirs[0].edge_index, theirs[0].edge_attr, strict=True)}
    first = found.select(torch.tensor([0]))
    kinds = torch.tensor([e_map["bond_type"].index(name) for name in molecules.BOND["bond_type"]])
    own = kinds[first.edge_attr[:, :4].argmax(1)]
    assert {(int(s), int(t), int(a)) for s, t, a in zip(*first.edge_index, own, strict=True)} == bonds


def test_features_by_hand(tmp_path):
    """Acetonitrile, ammonium and thiophene."""
    found = molecules.esol(write(tmp_path, "a,-1.5,CC#N", "b,2,[NH4+]", "c,0,c1ccsc1"))
    assert (found.sizes.tolist(), found.y.tolist(), found.ids) == ([3, 1, 5], [-1.5, 2.0, 0.0], ("a", "b", "c"))

    def row(atom, degree, charge, hydrogens, hybrid, aromatic=0, ring=0):
        blocks = []
        for place, size in (
            (molecules.ATOM["atomic_num"].index(atom), 13), (0, 4), (degree, 6), (charge + 1, 4), (hydrogens, 6),
            (0, 2), (hybrid, 4), (aromatic, 2), (ring, 2),
        ):  # fmt: skip
            blocks += [float(k == place) for k in range(size)]
        return blocks

    assert found.x[0].tolist() == row(6, 4, 0, 3, 2)  # CH3, sp3
    assert found.x[1].tolist() == row(6, 2, 0, 0, 0)  # C of the nitrile, sp
    assert found.x[2].tolist() == row(7, 1, 0, 0, 0)  # N
    assert found.x[3].tolist() == row(7, 4, 1, 4, 2)  # NH4+
    assert found.x[7].tolist() == row(16, 2, 0, 0, 1, 1, 1)  # S of thiophene
    single, triple = ([1.0, 0, 0, 0, 0], [0.0, 0, 1, 0, 0])
    none, no, yes = [1.0, 0, 0, 0, 0], [1.0, 0], [0.0, 1]
    edges = found.select(torch.tensor([0]))
    assert edges.edge_index.tolist() == [[1, 0, 2, 1], [0, 1, 1, 2]]
    assert edges.edge_attr.tolist() == [row + none + no for row in (single, single, triple, triple)]
    aromatic = found.select(torch.tensor([2])).edge_attr
    assert aromatic.tolist() == [[0.0, 0, 0, 1, 0, *none, *yes]] * 10


def test_what_has_no_place_goes_to_the_last_one(tmp_path):
    found = molecules.esol(write(tmp_path, "a,0,[Xe]", "b,0,[NH3][Cu]", "c,0,[O-][N+](=O)[CH2]", "d,0,[Ca+2]"))
    others = [13, 17, 23, 27, 33, 35, 39, 41, 43]  # ends of the blocks
    blocks = [found.x[:, end - size : end] for end, size in zip(others, (13, 4, 6, 4, 6, 2, 4, 2, 2), strict=True)]
    for block in blocks:
        assert torch.equal(block.sum(1), torch.ones(found.nodes))
    assert found.x[0, 12] == 1  # xenon
    assert found.x[2, 12] == 1  # copper
    radical = next(
        k for k, atom in enumerate(Chem.MolFromSmiles("[O-][N+](=O)[CH2]").GetAtoms()) if atom.GetNumRadicalElectrons()
    )
    assert found.x[3 + radical, 34] == 1
    assert found.x[-1, 26] == 1  # charge + 2


def test_vocabularies_are_pygs():
    assert list(molecules.ATOM) == list(x_map)
    assert list(molecules.BOND) == list(e_map)
    codes = torch.tensor([[x_map["atomic_num"].index(8), *([0] * 8)], [1, *([0] * 8)]])
    assert molecules.one_hot(codes, molecules.ATOM, x_map)[:, :13].argmax(1).tolist() == [3, 12]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["a,1,CC", "b,2,C1CC"], r"row 3: rdkit cannot read the SMILES 'C1CC'"),
        (["a,1,"], r"row 2: rdkit cannot read the SMILES ''"),
        (["a,one,CC"], r"row 2: measured log solubility.*'one' is not a finite number"),
        (["a,nan,CC"], r"row 2: .*'nan' is not a finite number"),
        (["a"], r"row 2: .*'' is not a finite number"),
        ([], r"columns none; needed: smiles"),
    ],
)
def test_bad_rows_are_named(tmp_path, rows, message):
    with pytest.raises(UsageError, match=message):
        molecules.esol(write(tmp_path, *rows))


def test_bad_files(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match=r"columns smiles,y; needed|columns smiles, y; needed"):
        molecules.esol(write(tmp_path, "CC,1", head="smiles,y"))
    (tmp_path / "delaney-processed.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match=r"delaney-processed\.csv is not readable"):
        molecules.esol(tmp_path)
    monkeypatch.setenv("GEN_DATA", str(tmp_path))
    with pytest.raises(UsageError, match=r"'esol' was not found; searched .*moleculenet/esol/raw.*deepchem"):
        load("esol")
    with pytest.raises(UsageError, match=r"'qm9' was not found; searched .*qm9/raw.*gdb9\.sdf"):
        load("qm9")


def test_without_rdkit_the_extra_is_named(tmp_path, monkeypatch):
    def absent(name):
        raise molecules.PackageNotFoundError(name)

    monkeypatch.setattr(molecules, "version", absent)
    for read in (molecules.esol, molecules.qm9):
        with pytest.raises(UsageError, match=r"pip install 'gen-graph\[molecules\]'"):
            read(write(tmp_path, "a,1,CC"))


# --- QM9


SMILES = ("C", "N", "C#N", "CC(=O)F", "c1ccoc1", "C=O", "[H][H]")
COLUMNS = ("mol_id", "A", "B", "C", *molecules.TARGETS[:16])


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """A small gdb9.sdf with what belongs to it; molecules 2 and 6 are listed as uncharacterized."""
    folder = tmp_path_factory.mktemp("qm9") / "raw"
    folder.mkdir()
    writer = Chem.SDWriter(str(folder / "gdb9.sdf"))
    writer.SetKekulize(False)
    for number, smiles in enumerate(SMILES, start=1):
        molecule = Chem.AddHs(Chem.MolFromSmiles(smiles))
        AllChem.EmbedMolecule(molecule, randomSeed=number)
        molecule.SetProp("_Name", f"gdb_{number}")
        writer.write(molecule)
    writer.close()
    with (folder / "gdb9.sdf.csv").open("w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(COLUMNS)
        rows.writerows([f"gdb_{k}", *(k + column / 100 for column in range(19))] for k in range(1, len(SMILES) + 1))
    lines = [*(["head"] * 9), "  2  N  x", "  6  C=O  x", "", ""]
    (folder / "uncharacterized.txt").write_text("\n".join(lines))
    return folder


class Complete:
    """All ordered pairs, bonds' types where there are bonds: a loop over pairs."""

    def __call__(self, data):
        bonds = {(int(s), int(t)): a for s, t, a in zip(*data.edge_index, data.edge_attr, strict=True)}
        n = data.num_nodes
        pairs = [(i, j) for j in range(n) for i in range(n)]
        data.edge_attr = torch.stack([bonds.get(pair, torch.zeros(4)).float() for pair in pairs])
        data.edge_index, data.edge_attr = remove_self_loops(torch.tensor(pairs).T, data.edge_attr)
        return data


@pytest.mark.parametrize("target", ["mu", "homo", "c"])
def test_qm9_is_what_pyg_reads(raw, tmp_path, target):
    (tmp_path / "raw").symlink_to(raw)  # PyG writes its processed file beside it
    theirs = QM9(tmp_path, transform=T.Compose([Complete(), T.Distance(norm=False, cat=True)]))
    found = molecules.qm9(raw, target)
    assert len(found) == len(theirs) == 5
    column = molecules.TARGETS.index(target)
    assert torch.equal(found.y, torch.cat([graph.y for graph in theirs])[:, column])
    assert found.ids == ("gdb_1", "gdb_3", "gdb_4", "gdb_5", "gdb_7")
    for number, graph in enumerate(theirs):
        own = found.select(torch.tensor([number]))
        torch.testing.assert_close(own.x, graph.x.float(), rtol=0, atol=0)
        assert torch.equal(own.edge_index, graph.edge_index)
        torch.testing.assert_close(own.edge_attr, graph.edge_attr, rtol=0, atol=1e-6)
        assert own.edge_attr.shape == (own.nodes * (own.nodes - 1), 5)
    assert found.edge_attr[:, :4].sum(0).min() > 0  # each type of bond is there


def test_units_of_homo(raw):
    """The file has hartree, y has eV: row k holds k + column / 100, HOMO is its seventh number."""
    assert molecules.qm9(raw, "homo").y[0].item() == pytest.approx(1.05 * 27.211386246)
    assert molecules.qm9(raw, "mu").y[0].item() == pytest.approx(1.03)


def test_the_cache_is_tensors_and_is_used(raw, monkeypatch, tmp_path):
    monkeypatch.setenv("GEN_CACHE", str(tmp_path))
    before = sorted(path.name for path in raw.iterdir())
    first = molecules.qm9(raw)
    assert sorted(path.name for path in raw.iterdir()) == before
    assert [path.suffix for path in tmp_path.rglob("*") if path.is_file()] == [".safetensors"]
    monkeypatch.setattr(molecules, "_process", lambda folder: pytest.fail("read again"))
    assert torch.equal(molecules.qm9(raw, "alpha").x, first.x)
    (kept,) = tmp_path.rglob("*.safetensors")
    kept.write_bytes(pickle.dumps(raw))
    with pytest.raises(UsageError, match="is not readable"):
        molecules.qm9(raw)


def test_changed_raw_files_are_read_again(raw, monkeypatch, tmp_path):
    monkeypatch.setenv("GEN_CACHE", str(tmp_path / "cache"))
    for path in raw.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    assert len(molecules.qm9(tmp_path)) == 5
    text = (tmp_path / "uncharacterized.txt").read_text()
    (tmp_path / "uncharacterized.txt").write_text(text.replace("  6  C=O  x", "  2  N  x"))
    assert len(molecules.qm9(tmp_path)) == 6


def test_qm9_by_its_registered_name(raw, monkeypatch, tmp_path):
    (tmp_path / "qm9").mkdir()
    (tmp_path / "qm9" / "raw").symlink_to(raw)
    monkeypatch.setenv("GEN_DATA", str(tmp_path))
    found = load("qm9")
    assert spec(found) | {"nodes": 0, "edges": 0} == {
        "graphs": 5, "nodes": 0, "edges": 0, "features": 11, "edge_features": 5, "classes": 0,
    }  # fmt: skip


def test_bad_qm9(raw, tmp_path):
    with pytest.raises(UsageError, match=r"unknown QM9 target 'HOMO'; nearest: homo|unknown QM9 target 'HOMO'.*homo"):
        molecules.qm9(raw, "HOMO")
    with pytest.raises(UsageError, match=r"gdb9\.sdf is not readable"):
        molecules.qm9(tmp_path)
    for path in raw.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "gdb9.sdf.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UsageError, match="not the raw files of QM9, or damaged"):
        molecules.qm9(tmp_path)
    (tmp_path / "gdb9.sdf.csv").write_bytes((raw / "gdb9.sdf.csv").read_bytes())
    (tmp_path / "gdb9.sdf").write_text("nonsense\n$$$$\n")
    with pytest.raises(UsageError, match="not the raw files of QM9, or damaged"):
        molecules.qm9(tmp_path)


def test_complete_on_ragged_molecules():
    ptr = torch.tensor([0, 1, 3, 6])
    pos = torch.tensor([[0.0, 0, 0], [0, 0, 0], [3, 4, 0], [0, 0, 0], [1, 0, 0], [0, 2, 0]])
    bonds = torch.tensor([[1, 2, 5, 3], [2, 1, 3, 5]])
    edge_index, edge_attr = molecules.complete(ptr, bonds, torch.tensor([[1.0], [1], [2], [2]]), pos)
    assert edge_index.T.tolist() == [[2, 1], [1, 2], [4, 3], [5, 3], [3, 4], [5, 4], [3, 5], [4, 5]]
    assert edge_attr[:, 0].tolist() == [1, 1, 0, 2, 0, 0, 2, 0]
    assert edge_attr[:, 1].tolist() == pytest.approx([5, 5, 1, 2, 1, 5**0.5, 2, 5**0.5])


def test_nothing_is_downloaded(raw, monkeypatch):
    for name in ("download_url", "extract_zip"):
        monkeypatch.setattr(f"torch_geometric.datasets.qm9.{name}", lambda *_: pytest.fail("a download"))
    assert molecules._process(raw)["x"].shape[1] == 11
    assert not list(Path(raw).parent.glob("processed"))
