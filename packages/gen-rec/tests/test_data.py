"""The split rule, the registered data sets, and every way in which an own file can be wrong."""

import builtins
import importlib.util
from dataclasses import replace

import pytest
import torch

from gen_core.harness.errors import UsageError
from gen_rec.data import checksum, hold_out, load, pad, spec, split


def names(data, part):
    return {user: [data.items[i] for i in row] for user, row in zip(data.users, getattr(data, part), strict=True)}


def csv(tmp_path, text):
    path = tmp_path / "interactions.csv"
    path.write_text(text)
    return path


def test_split_rule():
    sequences = [list(range(1, 4)), list(range(1, 12)), list(range(1, 301))]
    data = split(["a", "b", "c"], ["", *map(str, range(1, 301))], sequences)
    assert [len(row) for row in data.train] == [2, 9, 161]
    assert [len(row) for row in data.test] == [1, 2, 40]
    assert data.train[2][0] == 100  # the last 201
    assert torch.cat([data.train[2], data.test[2]]).tolist() == list(range(100, 301))
    assert spec(data) == {"items": 300}


def test_hold_out_is_of_the_train_part_alone():
    data = split(["a", "b"], ["", *map(str, range(1, 31))], [list(range(1, 4)), list(range(1, 31))])
    inner = hold_out(data)
    assert [len(row) for row in inner.train] == [1, 22]
    assert [row.tolist() for row in inner.test] == [[2], [23, 24]]
    again = hold_out(inner)  # a single item stays in the train part
    assert (again.train[0].tolist(), again.test[0].tolist()) == ([1], [])


def test_checksum_sees_all():
    items = ["", "x", "y", "z"]
    data = split(["a"], items, [[1, 2, 3]])
    others = [split(["b"], items, [[1, 2, 3]]), split(["a"], items, [[1, 3, 2]]), replace(data, items=("", *"xzy"))]
    assert len({checksum(d) for d in (data, hold_out(data), *others)}) == 5
    assert checksum(data) == checksum(split(["a"], items, [[1, 2, 3]]))


def test_items_and_offsets_are_checked():
    data = split(["a", "b"], ["", "x", "y", "z"], [[1, 2, 3], [3, 2, 1]])
    with pytest.raises(UsageError, match=r"train_items, place 1: item 4; allowed: 1\.\.3"):
        replace(data, train_items=torch.tensor([1, 4, 3, 2]))
    with pytest.raises(UsageError, match="test_items, place 0: item 0"):
        replace(data, test_items=torch.tensor([0, 1]))
    for offsets in ([0, 4], [0, 2, 3], [0, 5, 4], [1, 2, 4]):
        with pytest.raises(UsageError, match="train_offsets must rise from 0 to 4 in 2 steps"):
            replace(data, train_offsets=torch.tensor(offsets))


def test_padding():
    items, lengths = pad([torch.tensor([1, 2, 3, 4]), torch.tensor([5])], 3)
    assert items.tolist() == [[2, 3, 4], [5, 0, 0]]
    assert lengths.tolist() == [3, 1]


# --- registered


def test_catalogue():
    data = load("catalogue")
    assert (len(data.users), spec(data)) == (600, {"items": 300})
    for train, test in zip(data.train, data.test, strict=True):
        whole = torch.cat([train, test])
        assert len(whole.unique()) == len(whole)
        assert 1 <= int(whole.min()) <= int(whole.max()) <= 300
    # The signal as stated: mostly four series a user, and the next episodes of each after the last.
    shares, follows, again = [], 0, 0
    for row in data.train:
        series = (row - 1) // 15
        shares.append(float(series.bincount().sort(descending=True).values[:4].sum() / len(row)))
        last: dict[int, int] = {}
        for item in (row - 1).tolist():
            if (before := last.get(item // 15)) is not None:
                again += 1
                follows += (item - before) % 15 in (1, 2)
            last[item // 15] = item
    assert sum(shares) / 600 > 0.9
    assert follows / again > 0.8
    assert checksum(data) == checksum(load("catalogue"))


def test_ml_latest(gen_data):
    data = load("acvae-ml-latest")
    assert (len(data.users), spec(data)) == (604, {"items": 7363})
    assert len(data.train_items) + len(data.test_items) == 45_560
    inner = load("acvae-ml-latest-validation")
    for train, kept, held in zip(data.train, inner.train, inner.test, strict=True):
        assert torch.equal(torch.cat([kept, held]), train)
        assert len(held) == max(1, int(0.1 * len(train)))


def test_a_changed_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("GEN_DATA", str(tmp_path))
    with pytest.raises(UsageError, match=r"was not found; searched .*ml-latest.txt"):
        load("acvae-ml-latest")
    (tmp_path / "acvae-ml-latest").mkdir()
    (tmp_path / "acvae-ml-latest" / "ml-latest.txt").write_text("1 2\n")
    with pytest.raises(UsageError, match="damaged or not the original"):
        load("acvae-ml-latest")


def test_ml_100k():
    if importlib.util.find_spec("recbole") is None:
        pytest.skip("recbole is not installed")
    data = load("ml-100k")
    assert (len(data.users), spec(data)) == (943, {"items": 1682})


def test_ml_100k_without_recbole(tmp_path, monkeypatch):
    monkeypatch.setenv("GEN_DATA", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"ships inside the package recbole, which needs Python 3\.11"):
        load("ml-100k")


# --- the user's own


def test_columns_in_any_order_and_times_unsorted(tmp_path, capsys):
    text = "rating,timestamp,item,user\n5,30,c,u1\n5,10,a,u1\n5,20,b,u1\n1,1,b,u2\n1,1,a,u2\n1,1,c,u2\n1,0,d,u2\n"
    data = load(csv(tmp_path, text))
    assert data.users == ("u1", "u2")
    assert data.items == ("", "a", "b", "c", "d")
    assert names(data, "train") == {"u1": ["a", "b"], "u2": ["d", "b", "a"]}  # equal times keep the file's order
    assert names(data, "test") == {"u1": ["c"], "u2": ["c"]}
    assert capsys.readouterr().err == ""


def test_without_timestamps_the_file_is_the_order(tmp_path):
    data = load(csv(tmp_path, "user,item\nu,z\nv,a\nu,y\nv,b\nu,x\nv,c\n"))
    assert names(data, "train") == {"u": ["z", "y"], "v": ["a", "b"]}


def test_large_timestamps_are_not_rounded(tmp_path):
    base = 1_700_000_000_000_000_000
    rows = "".join(f"{user},{item},{base + t}\n" for user in "uv" for item, t in (("c", 3), ("b", 2), ("a", 1)))
    assert names(load(csv(tmp_path, "user,item,timestamp\n" + rows)), "train")["u"] == ["a", "b"]


def test_repetitions_and_short_users_are_said(tmp_path, capsys):
    text = "user,item,timestamp\n" + "u,a,1\nu,b,2\nu,a,3\nu,c,4\nv,a,1\nv,b,2\nv,c,3\nw,a,1\nw,b,2\nw,a,3\n\n"
    data = load(csv(tmp_path, text))
    assert data.users == ("u", "v")
    assert names(data, "train")["u"] == ["a", "b"]
    err = capsys.readouterr().err
    assert "2 repeated (user, item) rows dropped, the first of each kept" in err
    assert "1 users with fewer than 3 items left out" in err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"is empty: expected a header with the columns user, item, timestamp"),
        ("user,item,timestamp\n", "holds a header and no interaction"),
        ("user,product\nu,a\n", r"column item is missing; found: user, product; allowed: user, item, timestamp"),
        ("user,user,item\nu,u,a\n", "column user stands twice"),
        ("user,item,timestamp\nu,a,1\nu,b,soon\n", r"column timestamp, row 3: 'soon'; expected a finite number"),
        ("user,item,timestamp\nu,a,1\n\nu,b,nan\n", r"column timestamp, row 4: 'nan'"),
        ("user,item,timestamp\nu,a,inf\n", r"column timestamp, row 2: 'inf'"),
        ("user,item,timestamp\nu,a,\n", r"column timestamp, row 2: ''"),
        ("user,item\nu,a\n,b\n", r"column user, row 3: '' is empty"),
        ("user,item\nu,a,1\n", "row 2: 3 columns; the header has 2"),
        ("user,item\nu,a\nu,b\nu,c\n", r"one user only \('u'\); allowed: at least 2"),
        ("user,item\nu,a\nv,a\nw,a\n", "one item only; allowed: at least 2 users with 3 items each"),
        ("user,item\nu,a\nu,b\nv,a\nv,b\n", "no user has 3 different items"),
        ('user,item\n"u,a\n', "is not readable"),
    ],
)
def test_bad_files(tmp_path, text, message):
    with pytest.raises(UsageError, match=message):
        load(csv(tmp_path, text))


def test_bad_paths(tmp_path):
    with pytest.raises(UsageError, match=r"does not exist.*nearest: catalogue"):
        load("catalog")
    with pytest.raises(UsageError, match="is a folder"):
        load(tmp_path)
    (tmp_path / "x.tsv").write_text("user\titem\n")
    with pytest.raises(UsageError, match=r"is no \.csv"):
        load(tmp_path / "x.tsv")
    (tmp_path / "b.csv").write_bytes(b"\xff\xfeuser")
    with pytest.raises(UsageError, match="is not readable"):
        load(tmp_path / "b.csv")


def test_blocked_import_of_recbole_hurts_nothing(monkeypatch):
    real = builtins.__import__

    def blocked(name, *args, **kwargs):
        if name.partition(".")[0] == "recbole":
            raise ModuleNotFoundError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", blocked)
    assert len(load("catalogue").users) == 600
