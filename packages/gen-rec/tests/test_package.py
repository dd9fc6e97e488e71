"""Imports, recipes, and the command line on the user's own file."""

import importlib.util
import json
import os
import random
import subprocess
import sys

import pytest

from gen_core.harness import cli, recipes
from gen_rec.registry import DOMAIN

FOREIGN = ("torchvision", "torch_geometric", "gymnasium", "stable_baselines3")
FAST = ["--device", "cpu", "--embedding", "8", "--hidden", "8", "--latent", "4", "--decoder", "8", "--logger", "csv"]


def test_light_imports():
    code = (
        "import sys, gen_rec, gen_rec.registry; assert 'ACVAE' in dir(gen_rec);"
        "print([m for m in ('torch', 'recbole', 'lightning', 'numpy', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_public_names():
    import gen_rec

    names = {"acvae": "ACVAE", "popularity": "Popularity", "transitions": "ItemTransitions", "ease": "EASE"}
    assert set(names) == set(DOMAIN.methods)
    for key, name in names.items():
        assert getattr(gen_rec, name) is DOMAIN.method(key)
    with pytest.raises(AttributeError, match="SVAE"):
        _ = gen_rec.SVAE


@pytest.mark.skipif(os.environ.get("GEN_ISOLATED") != "1", reason="only where this package and the core are alone")
@pytest.mark.parametrize("name", FOREIGN)
def test_other_domains_are_not_needed(name):
    assert importlib.util.find_spec(name) is None


def test_recipes_are_valid(capsys):
    assert cli.main(DOMAIN, ["list", "--check"]) == 0
    name, first = recipes.load(DOMAIN, "acvae")
    assert (name, DOMAIN.datasets[first.data].embedded, first.interval_over) == ("catalogue", True, "users")
    assert set(recipes.tables(DOMAIN, "acvae")) == {
        "catalogue", "ml-latest-epochs", "ml-latest", "ml-latest-official", "ml-100k", "bounds"
    }  # fmt: skip
    record = recipes.load(DOMAIN, "acvae/ml-latest")[1]
    assert (record.claim_against, len(record.seeds)) == ("no-contrast", 5)
    assert set(record.baselines) == {"no-contrast", "gaussian", "popularity", "transitions", "ease"}
    # The epochs are chosen on other seeds and never on the test part.
    choice = recipes.load(DOMAIN, "acvae/ml-latest-epochs")[1]
    assert (choice.data, choice.claim_against) == ("acvae-ml-latest-validation", None)
    assert not set(choice.seeds) & set(record.seeds)


@pytest.fixture
def own(tmp_path):
    """30 users who go through a ring of 12 items from somewhere on, rows in random order."""
    draw = random.Random(1)
    rows = []
    for user in range(30):
        start = draw.randrange(12)
        rows += [f"user{user},item{(start + step) % 12},{100 * user + step}" for step in range(4 + user % 6)]
    draw.shuffle(rows)
    path = tmp_path / "own.csv"
    path.write_text("user,item,timestamp\n" + "\n".join(rows))
    return path


def test_train_evaluate_and_recommend_on_an_own_file(own, tmp_path, capsys):
    out = str(tmp_path / "run")
    flags = ["--epochs", "6", "--learning-rate", "0.01", "--patience", "1"]
    assert cli.main(DOMAIN, ["train", "acvae", "--data", str(own), "--out", out, *FAST, *flags]) == 0
    assert f"gen-rec recommend {out} --user U" in capsys.readouterr().out
    for name in ("config.toml", "metrics.jsonl", "model.safetensors", "README.md", "figures/metrics.png"):
        assert (tmp_path / "run" / name).exists()
    metrics = json.loads((tmp_path / "run" / "summary.json").read_text())["metrics"]
    assert metrics["epochs"] in (4, 6)
    assert cli.main(DOMAIN, ["evaluate", out]) == 0
    assert f"recall@20: {metrics['recall@20']:.4f}" in capsys.readouterr().out
    assert cli.main(DOMAIN, ["train", "--resume", out]) == 0
    assert "finished already" in capsys.readouterr().out

    assert cli.main(DOMAIN, ["recommend", out, "--user", "user3", "-k", "12", "--json"]) == 0
    every = json.loads(capsys.readouterr().out)
    assert (every["user"], len(every["items"])) == ("user3", 12)
    assert cli.main(DOMAIN, ["recommend", out, "--user", "user3", "-k", "3", "--exclude-seen"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    seen = {row.split(",")[1] for row in own.read_text().splitlines() if row.startswith("user3,")}
    assert not seen & {line.split()[1] for line in lines}

    assert cli.main(DOMAIN, ["recommend", out, "--user", "user99"]) == 2
    assert "unknown user 'user99'; nearest: user" in capsys.readouterr().err
    assert cli.main(DOMAIN, ["recommend", out, "--user", "u001", "--data", "catalogue"]) == 2
    assert "not those this model was trained on" in capsys.readouterr().err


def test_a_baseline_from_the_command_line(tmp_path, capsys):
    out = str(tmp_path / "run")
    assert cli.main(DOMAIN, ["train", "transitions", "--data", "catalogue", "--out", out]) == 0
    assert cli.main(DOMAIN, ["recommend", out, "--user", "u000", "-k", "2"]) == 0
    assert "series" in capsys.readouterr().out


def test_wrong_use_of_the_command_line(own, tmp_path, capsys):
    bad = tmp_path / "bad.csv"
    bad.write_text(own.read_text() + "\nuser1,item1,yesterday")
    assert cli.main(DOMAIN, ["train", "acvae", "--data", str(bad), "--out", f"{tmp_path}/run"]) == 2
    assert "column timestamp, row" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert cli.main(DOMAIN, ["train", "acvae", "--bound", "infonce"]) == 2
    assert "infonce" in capsys.readouterr().err
    assert cli.main(DOMAIN, ["train", "acvae", "--data", "catalog"]) == 2
    assert "nearest: catalogue" in capsys.readouterr().err


def test_reproduce_pairs_users(tmp_path, capsys):
    """The demo's recipe, one epoch of a small network: arms, figures per user, intervals over users."""
    small = tmp_path / "small.toml"
    small.write_text("epochs = 1\nembedding = 8\nhidden = 8\nlatent = 4\ndecoder = 8\n")
    flags = ["--out", f"{tmp_path}/results", "--config", str(small), "--json", f"{tmp_path}/record.json"]
    assert cli.main(DOMAIN, ["reproduce", "acvae", *flags]) == 0
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["verdict"] == "preliminary"  # one seed
    assert set(record["baselines"]) == {"no-contrast", "popularity", "transitions", "ease"}
    for entry in record["baselines"].values():
        assert "over users" in entry["ci_method"]
        assert entry["gain_ci95"][0] <= entry["gain"] <= entry["gain_ci95"][1]
    assert set(record["also"]) == {f"{n}@{k}" for n in ("recall", "ndcg", "mrr") for k in (5, 10, 20)} - {"recall@20"}
