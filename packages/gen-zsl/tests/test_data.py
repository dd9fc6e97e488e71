"""Registered data and the user's xlsa17 folder: what is read, and every way in which it can be wrong."""

import dataclasses

import numpy as np
import pytest
import scipy.io
import torch

from gen_core.harness.errors import UsageError
from gen_zsl import data as zsl
from gen_zsl.data import ZeroShot, checksum, inner, load, write_xlsa17

PARTS = ("trainval", "test_seen", "test_unseen")


def write(folder, mat, semantics="att"):
    images, splits = mat
    folder.mkdir(exist_ok=True)
    scipy.io.savemat(folder / "res101.mat", images)
    scipy.io.savemat(folder / f"{semantics}_splits.mat", splits)
    return folder


# --- what is read


def test_an_xlsa17_folder(tmp_path, mat):
    images, splits = mat
    found = load(write(tmp_path, mat))
    assert found.features.dtype == torch.float32 and found.labels.dtype == torch.int64
    np.testing.assert_array_equal(found.features.numpy(), images["features"].T.astype(np.float32))
    assert found.labels.tolist() == (np.arange(60) % 6).tolist()
    np.testing.assert_array_equal(found.attributes.numpy(), splits["att"].T.astype(np.float32))
    assert found.classes == ("antelope", "grizzly+bear", "killer+whale", "beaver", "dalmatian", "ox")
    assert found.ids[:2] == ("i0", "i1")
    rows = torch.cat([getattr(found, part) for part in PARTS])
    assert sorted(rows.tolist()) == list(range(60))  # disjoint, and all of them
    assert (found.seen.tolist(), found.unseen.tolist()) == ([0, 1, 2, 3], [4, 5])
    assert zsl.spec(found) == {
        "features": 8, "attributes": 4, "seen": 4, "unseen": 2, "classes": list(found.classes)
    }  # fmt: skip


def test_validation_rows_are_clean_of_test_rows(tmp_path, mat):
    """The official files' train_loc and val_loc hold rows of test_seen_loc."""
    _, splits = mat
    assert np.isin(splits["train_loc"], splits["test_seen_loc"]).any()
    found = load(write(tmp_path, mat))
    assert not torch.isin(torch.cat([found.train, found.val]), found.test_seen).any()
    assert sorted(torch.cat([found.train, found.val]).tolist()) == found.trainval.tolist()
    assert (found.labels[found.train].unique().tolist(), found.labels[found.val].unique().tolist()) == ([0, 1, 2], [3])


def test_an_older_file_without_validation_classes_and_names(tmp_path, mat):
    images, splits = mat
    for key in ("train_loc", "val_loc", "allclasses_names"):
        del splits[key]
    del images["image_files"]
    found = load(write(tmp_path, mat))
    assert found.classes[0] == "class 1" and found.ids[0] == "1"
    assert sorted(torch.cat([found.train, found.val]).tolist()) == found.trainval.tolist()
    assert len(found.val) == 0  # every fifth seen class; there are four


def test_types_of_other_writers(tmp_path, mat):
    """uint8 features are cast before any arithmetic; labels may be double; indices uint16 up to their end."""
    images, splits = mat
    images["features"] = (images["features"] * 255).astype("uint8")
    images["labels"] = images["labels"].astype("float64").T
    splits["trainval_loc"] = splits["trainval_loc"].astype("float64").T
    found = load(write(tmp_path, mat), scale=True)
    part = found.features[found.trainval]
    assert part.min() == 0 and part.max() == 1
    plain = load(tmp_path)
    np.testing.assert_array_equal(plain.features.numpy(), images["features"].T)
    low, span = zsl.limits(plain.features[plain.trainval])
    torch.testing.assert_close(found.features, (plain.features - low) / span)


def test_semantics_are_chosen_by_name(tmp_path, mat):
    write(tmp_path, mat, "sent")
    assert load(tmp_path).attributes.shape == (6, 4)  # the only one there
    other = mat[1] | {"att": np.ones((2, 6))}
    scipy.io.savemat(tmp_path / "w2v_splits.mat", other)
    assert load(tmp_path, semantics="w2v").attributes.shape == (6, 2)
    assert load(tmp_path, semantics="sent").attributes.shape == (6, 4)
    with pytest.raises(UsageError, match=r"no att_splits.mat; --semantics may name .*: sent, w2v"):
        load(tmp_path)


def test_the_writer_round_trip(tmp_path, small):
    split = {name: getattr(small, name) for name in (*PARTS, "train", "val")}
    write_xlsa17(tmp_path / "own", small.features, small.labels, small.attributes, small.classes, split, small.ids)
    assert checksum(load(tmp_path / "own")) == checksum(small)
    assert (tmp_path / "own" / "att_splits.mat").exists()
    there = scipy.io.loadmat(tmp_path / "own" / "att_splits.mat")
    assert there["trainval_loc"].dtype == np.uint16 and there["trainval_loc"].min() == 1


def test_the_writer_refuses_what_the_loader_refuses(tmp_path, small):
    split = {name: getattr(small, name) for name in PARTS}
    given = (small.features, small.labels, small.attributes, small.classes)
    with pytest.raises(UsageError, match=r"class 1 .* is seen .* and unseen"):
        write_xlsa17(tmp_path / "own", *given, split | {"test_unseen": torch.tensor([11]), "test_seen": [10]})
    with pytest.raises(UsageError, match="trainvall"):
        write_xlsa17(tmp_path / "own", *given, split | {"trainvall": [1]})
    with pytest.raises(UsageError, match="features has shape"):
        write_xlsa17(tmp_path / "own", small.features[:-1], *given[1:], split)
    assert not (tmp_path / "own").exists()


# --- what is refused


def changed(mat, key, value):
    images, splits = mat
    (images if key in images else splits)[key] = value(images, splits) if callable(value) else value


def at(place, value, count):
    return np.where(np.arange(count) == place, value, 0)


WRONG = {
    "transposed": ("features", lambda x, s: x["features"].T, r"features has shape \(60, 8\) for 60 labels.*transposed"),
    "too few images": ("features", lambda x, s: x["features"][:, :59], r"\(8, 59\) for 60 labels; expected \(d, 60\)"),
    "text": ("features", np.array([["a"]]), "features has shape .* expected numbers"),
    "no images": ("features", np.zeros((8, 0)), "not empty"),
    "nan": ("features", lambda x, s: x["features"] + at(3, np.nan, 60), "features, row 1, column 4: nan"),
    "infinite": ("features", lambda x, s: x["features"] + at(3, 1e300, 60), "column 4: inf"),
    "labels from 0": ("labels", lambda x, s: x["labels"] - 1, r"labels, image 1: 0; expected 1\.\.6"),
    "label > C": ("labels", lambda x, s: x["labels"] + 1, r"labels, image 6: 7; expected 1\.\.6"),
    "half labels": ("labels", lambda x, s: x["labels"] + 0.5, r"labels, entry 1: 1\.5; expected a whole number"),
    "label matrix": ("labels", np.ones((60, 2)), r"labels has shape \(60, 2\)"),
    "0-based": ("trainval_loc", lambda x, s: s["trainval_loc"] - 1, r"trainval_loc: 0; expected 1\.\.60.*from 1"),
    "index > N": ("test_seen_loc", lambda x, s: s["test_seen_loc"] + 40, r"test_seen_loc: \d\d; expected 1\.\.60"),
    "test in trainval": ("test_seen_loc", lambda x, s: s["trainval_loc"][:3], "is in trainval_loc and in test_s"),
    "unseen in trainval": ("trainval_loc", lambda x, s: s["test_unseen_loc"], "trainval_loc and in test_unseen_loc"),
    "twice": ("trainval_loc", lambda x, s: s["trainval_loc"][[0, 0, 1]], "image 1 is listed 2"),
    "no unseen": ("test_unseen_loc", np.zeros((0, 1)), "test_unseen_loc is empty"),
    "no training": ("trainval_loc", np.zeros((0, 1)), "trainval_loc is empty"),
    "nan attribute": ("att", lambda x, s: s["att"] + at(2, np.nan, 6), "att, row 1, column 3: nan"),
    "no attributes": ("att", lambda x, s: s["att"] * (np.arange(6) != 5), r"class 6 \(ox\) has no attributes"),
    "absent column": ("att", lambda x, s: s["att"][:, :5], r"labels, image 6: 6; expected 1\.\.5, the columns of att"),
    "names": ("allclasses_names", lambda x, s: s["allclasses_names"][:5], "has 5 classes"),
    "val in train": ("val_loc", lambda x, s: s["train_loc"], "class 1 is in train_loc and in val_loc"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_content_is_named(tmp_path, mat, name):
    key, value, match = WRONG[name]
    changed(mat, key, value)
    folder = write(tmp_path, mat)
    file = "res101.mat" if key in mat[0] else "splits.mat"
    with pytest.raises(UsageError, match=match) as error:
        load(folder)
    assert file in str(error.value)


def test_seen_and_unseen_must_not_overlap(tmp_path, mat):
    images, splits = mat
    rows = splits["test_unseen_loc"].ravel()
    splits["test_unseen_loc"], splits["trainval_loc"] = rows[:-1], np.append(splits["trainval_loc"].ravel(), rows[-1])
    with pytest.raises(UsageError, match=r"class 6 \(ox\) is seen \(trainval_loc\) and unseen \(test_unseen_loc\)"):
        load(write(tmp_path, mat))
    rows = splits["trainval_loc"].ravel()[:-1]
    splits["trainval_loc"] = rows[(images["labels"].ravel()[rows - 1]) != 4]
    with pytest.raises(UsageError, match=r"class 4 \(beaver\) is in test_seen_loc and not in trainval_loc"):
        load(write(tmp_path, mat))


@pytest.mark.parametrize("key", ["features", "labels", "att", "trainval_loc", "test_seen_loc", "test_unseen_loc"])
def test_a_missing_key_is_named(tmp_path, mat, key):
    (mat[0] if key in mat[0] else mat[1]).pop(key)
    with pytest.raises(UsageError, match=f"no '{key}'; needed: .*; there: "):
        load(write(tmp_path, mat))


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.97])
@pytest.mark.parametrize("file", ["res101.mat", "att_splits.mat"])
def test_truncated(tmp_path, mat, file, share):
    path = write(tmp_path, mat) / file
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UsageError, match=f"{file}.*(truncated|no '|no MATLAB)"):
        load(tmp_path)


@pytest.mark.parametrize(
    "head", [b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(512), b"\x89HDF\r\n\x1a\n".ljust(512)]
)
def test_hdf5(tmp_path, mat, head):
    (write(tmp_path, mat) / "res101.mat").write_bytes(head)
    with pytest.raises(UsageError, match=r"res101.mat is a MATLAB v7\.3 \(HDF5\) file; expected v5: save it with -v7"):
        load(tmp_path)


def test_no_such_folder_or_file(tmp_path, mat):
    with pytest.raises(UsageError, match=r"does not exist: give an xlsa17 folder.*nearest: digits"):
        load("digitss")
    write(tmp_path, mat)
    with pytest.raises(UsageError, match="is a file"):
        load(tmp_path / "res101.mat")
    with pytest.raises(UsageError, match="'digits' has one description"):
        load("digits", semantics="att")
    (tmp_path / "res101.mat").rename(tmp_path / "vgg.mat")
    write(tmp_path, mat)
    with pytest.raises(UsageError, match=r"found res101.mat, vgg.mat"):
        load(tmp_path)


def test_a_registered_set_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("GEN_DATA", str(tmp_path))
    with pytest.raises(UsageError, match=r"'awa2' was not found; searched .*AWA2/res101.mat .*xlsa17 of Xian"):
        load("awa2")


# --- registered


def test_digits():
    found = load("digits")
    assert (found.features.shape, found.attributes.shape) == ((2400, 128), (100, 34))
    assert (len(found.seen), len(found.unseen), found.classes[7]) == (80, 20, "07")
    assert checksum(found) == checksum(load("digits"))
    assert len(found.attributes.unique(dim=0)) == 100
    train, test = (
        found.features[rows].view(-1, 64) for rows in (found.trainval, torch.cat([found.test_seen, found.test_unseen]))
    )
    shared = (train[:, None] == test[None, :200]).all(2).any(0)
    assert shared.float().mean() < 0.01  # no picture of a digit is on both sides
    for part in PARTS:
        assert len(getattr(found, part)) > 100


def test_inner_is_a_validation_problem_of_seen_classes_only(small):
    found = inner(small, seed=0)
    assert isinstance(found, ZeroShot)
    names = {found.classes[kind] for kind in found.unseen.tolist()}
    assert names == {small.classes[kind] for kind in small.labels[small.val].unique().tolist()}
    assert not set(found.classes) & {small.classes[kind] for kind in small.unseen.tolist()}
    place = {name: row for row, name in enumerate(small.ids)}
    rows = [place[name] for name in found.ids]
    assert set(rows) == set(torch.cat([small.train, small.val]).tolist()) and len(rows) == len(set(rows))
    assert torch.equal(found.features, small.features[rows])
    for new, old in zip(found.labels.tolist(), small.labels[rows].tolist(), strict=True):
        assert found.classes[new] == small.classes[old]
        assert torch.equal(found.attributes[new], small.attributes[old])
    assert len(found.test_seen) == len(found.seen)  # a tenth of 8 rows a class: one
    assert checksum(found) == checksum(inner(small, 0)) != checksum(inner(small, 1))


def test_inner_keeps_a_single_row_for_training(small):
    rows = small.train[small.labels[small.train] != small.labels[small.train[0]]]
    found = inner(dataclasses.replace(small, train=torch.cat([small.train[:1], rows])), 0)
    assert len(found.seen) == 10 and len(found.labels[found.test_seen].unique()) == 9


def test_cifar100(gen_data):
    found = load("cifar100-zsl")
    assert (found.features.shape, found.attributes.shape) == ((10_000, 1280), (100, 490))
    assert [len(getattr(found, part)) for part in (*PARTS, "train", "val")] == [5600, 2400, 2000, 4480, 1120]
    assert (len(found.seen), len(found.unseen)) == (80, 20)
    assert found.features.max() == 255
    assert {"willow_tree", "cloud", "raccoon"} < {found.classes[kind] for kind in found.unseen.tolist()}
    reduced = load("cifar100-zsl-reduced")
    assert (reduced.features.shape, reduced.attributes.shape) == ((10_000, 256), (100, 64))
    spread = found.features[found.trainval].var(0).sort(descending=True).values
    torch.testing.assert_close(reduced.features[found.trainval].var(0).sort(descending=True).values, spread[:256])
    centred = found.attributes - found.attributes.mean(0)
    torch.testing.assert_close(reduced.attributes.mean(0), torch.zeros(64), rtol=0, atol=1e-5)
    kept = reduced.attributes.square().sum() / (9 * centred.square().sum())
    assert 0.9 < kept < 1
    cosines = (reduced.attributes @ reduced.attributes.T) / 9 - centred @ centred.T
    assert cosines.abs().max() < 0.1


def test_cifar_awa(gen_data):
    found = load("cifar-awa")
    assert (found.features.shape, found.attributes.shape) == ((2000, 1280), (20, 85))
    assert {found.classes[kind] for kind in found.unseen.tolist()} == {
        "dolphin",
        "seal",
        "blue+whale",
        "raccoon",
        "mouse",
    }
    assert load("cifar-awa", semantics="o2v").attributes.shape == (20, 200)


def test_awa2s_official_split(gen_data, tmp_path):
    """With made features of the right number: 23,527 / 5,882 / 7,913 rows, 40 seen, 10 unseen classes."""
    official = gen_data / "xlsa17" / "data" / "AWA2" / "att_splits.mat"
    splits = scipy.io.loadmat(official)
    labels = np.empty(37_322, dtype="uint8")
    held = {key: splits[f"{key}_loc"].ravel() - 1 for key in (*PARTS, "train", "val")}
    labels[held["test_unseen"]] = 41 + np.arange(7913) % 10
    seen = np.ones(37_322, dtype=bool)
    seen[held["test_unseen"]] = False
    val = np.zeros(37_322, dtype=bool)
    val[held["val"]] = True
    labels[seen & ~val] = 1 + np.arange((seen & ~val).sum()) % 27
    labels[seen & val] = 28 + np.arange((seen & val).sum()) % 13
    images = {"features": np.random.default_rng(0).random((3, 37_322)), "labels": labels[:, None]}
    scipy.io.savemat(tmp_path / "res101.mat", images)
    scipy.io.savemat(tmp_path / "att_splits.mat", {key: value for key, value in splits.items() if key[0] != "_"})
    found = load(tmp_path)
    assert [len(getattr(found, part)) for part in PARTS] == [23_527, 5_882, 7_913]
    assert (len(found.seen), len(found.unseen)) == (40, 10)
    rows = torch.cat([getattr(found, part) for part in PARTS])
    assert torch.equal(rows.sort().values, torch.arange(37_322))
    assert (len(found.train), len(found.val)) == (20_218 - 4_031, 9_191 - 1_851)  # less the rows shared with test_seen
    assert found.classes[:3] == ("antelope", "grizzly+bear", "killer+whale")
    scipy.io.savemat(tmp_path / "res101.mat", images | {"features": images["features"][:, 1:]})
    with pytest.raises(UsageError, match=r"\(3, 37321\) for 37322 labels"):
        load(tmp_path)
