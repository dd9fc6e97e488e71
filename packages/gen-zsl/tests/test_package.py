"""Imports, recipes, and the command line on the user's own folder."""

import csv
import importlib.util
import json
import os
import subprocess
import sys

import pytest

from gen_core.harness import cli, recipes
from gen_zsl.data import write_xlsa17
from gen_zsl.registry import DOMAIN

FOREIGN = ("torchvision", "torch_geometric", "gymnasium", "stable_baselines3", "recbole")
TINY = {
    "hidden": 16, "noise": 4, "embedding": 8, "projection": 5, "comparator": 7, "batch-size": 64, "epochs": 2,
    "syn-num": 8, "final-epochs": 2, "zsl-epochs": 2, "final-batch": 32,
}  # fmt: skip
FLAGS = [word for name, value in TINY.items() for word in (f"--{name}", str(value))]


@pytest.fixture
def folder(tmp_path, small):
    split = {name: getattr(small, name) for name in ("trainval", "test_seen", "test_unseen", "train", "val")}
    write_xlsa17(tmp_path / "own", small.features, small.labels, small.attributes, small.classes, split, small.ids)
    return tmp_path / "own"


def test_light_imports():
    code = (
        "import sys, gen_zsl, gen_zsl.registry; assert 'CEGZSL' in dir(gen_zsl);"
        "print([m for m in ('torch', 'lightning', 'numpy', 'scipy', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_public_names():
    import gen_zsl

    assert gen_zsl.CEGZSL is DOMAIN.method("ce-gzsl")
    assert gen_zsl.FCLSWGAN is DOMAIN.method("f-clswgan")
    assert gen_zsl.RidgePrototypes is DOMAIN.method("ridge")
    with pytest.raises(AttributeError, match="ZSL"):
        _ = gen_zsl.ZSL


@pytest.mark.skipif(os.environ.get("GEN_ISOLATED") != "1", reason="only where this package and the core are alone")
@pytest.mark.parametrize("name", FOREIGN)
def test_other_domains_are_not_needed(name):
    assert importlib.util.find_spec(name) is None


def test_recipes_are_valid(capsys):
    assert cli.main(DOMAIN, ["list", "--check"]) == 0
    assert "every recipe is valid" in capsys.readouterr().out
    name, first = recipes.load(DOMAIN, "ce-gzsl")
    assert (name, first.data, first.claim_against) == ("digits", "digits", None)
    assert DOMAIN.datasets[first.data].embedded and DOMAIN.demo == "ce-gzsl/digits"
    record = recipes.load(DOMAIN, "ce-gzsl/cifar100-reduced")[1]
    arms = recipes.arms(DOMAIN, record)
    assert (record.metric, record.claim_against, len(record.seeds)) == ("H", "f-clswgan", 5)
    assert set(arms) == {"ce-gzsl", "f-clswgan", "no-ins", "no-cls", "ridge"}
    ours, theirs = arms["ce-gzsl"].config, arms["f-clswgan"].config
    assert theirs == {key: value for key, value in ours.items() if key in theirs}  # one setting for both
    assert (arms["no-ins"].config["w_ins"], arms["no-cls"].config["w_cls"]) == (0, 0)


def test_train_evaluate_and_predict_own_folder(folder, tmp_path, capsys):
    out = str(tmp_path / "run")
    words = ["train", "ce-gzsl", "--data", str(folder), "--out", out, "--device", "cpu", *FLAGS]
    assert cli.main(DOMAIN, words) == 0
    for name in (
        "config.toml",
        "metrics.jsonl",
        "model.safetensors",
        "README.md",
        "figures/gzsl.png",
        "figures/loss.png",
    ):
        assert (tmp_path / "run" / name).exists()
    metrics = json.loads((tmp_path / "run" / "summary.json").read_text())["metrics"]
    assert set(metrics) == {"U", "S", "H", "T1"}
    assert f"gen-zsl predict {out}" in capsys.readouterr().out
    assert cli.main(DOMAIN, ["evaluate", out]) == 0
    assert f"T1: {metrics['T1']:.4f}" in capsys.readouterr().out
    file = tmp_path / "found.csv"
    assert cli.main(DOMAIN, ["predict", out, "--data", str(folder), "--out", str(file)]) == 0
    with file.open() as opened:
        rows = list(csv.DictReader(opened))
    assert len(rows) == 240 and list(rows[0]) == ["id", "class", "score", "kind"]
    assert rows[3]["id"] == "row 3" and rows[3]["class"].startswith("kind ") and rows[3]["kind"] in ("seen", "unseen")
    assert cli.main(DOMAIN, ["train", "--resume", out]) == 0
    assert "finished already" in capsys.readouterr().out
    assert cli.main(DOMAIN, ["predict", out]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "id,class,score,kind"


@pytest.mark.parametrize("method", ["f-clswgan", "ridge"])
def test_the_baselines_train_and_predict(method, folder, tmp_path):
    out = str(tmp_path / "run")
    short = (
        ["--epochs", "1", "--hidden", "8", "--syn-num", "4", "--softmax-epochs", "1"] if method == "f-clswgan" else []
    )
    words = ["train", method, "--data", str(folder), "--out", out, "--device", "cpu", *short]
    assert cli.main(DOMAIN, words) == 0
    assert cli.main(DOMAIN, ["predict", out, "--out", str(tmp_path / "p.csv")]) == 0
    assert cli.main(DOMAIN, ["evaluate", out]) == 0


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["train", "ce-gzsll"], "nearest: ce-gzsl"),
        (["train", "ce-gzsl", "--data", "cifar100"], "nearest: cifar100-zsl"),
        (["train", "ce-gzsl", "--epochs", "0"], "epochs"),
        (["train", "ce-gzsl", "--tau-ins", "-1"], "tau"),
        (["train", "ce-gzsl", "--bound", "club"], "bound"),
        (["train", "f-clswgan", "--data", "digits", "--bound", "nwj"], "methods that have: ce-gzsl"),
        (["train", "ce-gzsl", "--semantics", "att"], "one description"),
        (["reproduce", "ridge"], "baseline"),
        (["evaluate", "nowhere"], "not a run folder"),
        (["predict", "nowhere"], "not a run folder"),
    ],
)
def test_wrong_use(words, match, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(DOMAIN, words) == 2
    assert match in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_broken_folder_ends_with_2_and_leaves_no_run(folder, tmp_path, capsys):
    (folder / "features.mat").write_bytes((folder / "features.mat").read_bytes()[:500])
    assert cli.main(DOMAIN, ["train", "ce-gzsl", "--data", str(folder), "--out", str(tmp_path / "run"), *FLAGS]) == 2
    assert "features.mat is truncated" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_reproduce(tmp_path, monkeypatch):
    """The whole path in small: arms, cells, record, no claim."""
    table = recipes.tables(DOMAIN, "ce-gzsl")["digits"]
    table["baselines"]["f-clswgan"]["config"] |= {"epochs": 1, "softmax_epochs": 1}
    monkeypatch.setattr(recipes, "tables", lambda domain, method: {"digits": table})
    words = ["reproduce", "ce-gzsl/digits", "--seeds", "1", "--out", str(tmp_path), *FLAGS]
    assert cli.main(DOMAIN, [*words, "--json", str(tmp_path / "record.json")]) == 0
    record = json.loads((tmp_path / "record.json").read_text())
    assert set(record["baselines"]) == {"f-clswgan", "ridge"} and record["verdict"] == "no-claim"
    assert {"U", "S", "T1"} <= set(record["also"])
    assert record["metric"] == "H" and len(record["values"]) == 1
