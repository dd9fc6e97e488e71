"""Imports, recipes, and the command line on the user's own files."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from gen_core.harness import cli, recipes
from gen_graph.registry import DOMAIN

FOREIGN = ("torchvision", "gymnasium", "stable_baselines3", "recbole")


def test_light_imports():
    code = (
        "import sys, gen_graph, gen_graph.registry; assert 'DGI' in dir(gen_graph);"
        "print([m for m in ('torch', 'torch_geometric', 'lightning', 'numpy', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_public_names():
    import gen_graph

    assert gen_graph.DGI is DOMAIN.method("dgi")
    assert gen_graph.RawFeatures is DOMAIN.method("raw-features")
    with pytest.raises(AttributeError, match="InfoMax"):
        _ = gen_graph.InfoMax


@pytest.mark.skipif(os.environ.get("GEN_ISOLATED") != "1", reason="only where this package and the core are alone")
@pytest.mark.parametrize("name", FOREIGN)
def test_other_domains_are_not_needed(name):
    with pytest.raises(ModuleNotFoundError):
        __import__(name)


def test_recipes_are_valid():
    assert recipes.check(DOMAIN) == []
    name, first = recipes.load(DOMAIN, "dgi")
    assert (name, DOMAIN.datasets[first.data].embedded) == ("csbm", True)
    for name in set(recipes.tables(DOMAIN, "dgi")) - {"bounds"}:
        recipe = recipes.load(DOMAIN, f"dgi/{name}")[1]
        plain = "label-sum" if name in ("mutag", "proteins") else "raw"
        assert set(recipe.baselines) == {plain, "untrained"}
        assert recipe.claim_against == (None if name == "karate" else "untrained")


def test_train_evaluate_and_embed_own_files(tmp_path, capsys):
    generator = np.random.default_rng(0)
    y = np.arange(40) % 2
    edges = [(i, j) for i in range(40) for j in range(i) if generator.random() < (0.3 if y[i] == y[j] else 0.02)]
    (tmp_path / "e.csv").write_text("source,target\n" + "\n".join(f"{i},{j}" for i, j in edges))
    np.save(tmp_path / "x.npy", generator.random((40, 5)))
    np.save(tmp_path / "y.npy", y)
    data = ["--data", f"{tmp_path}/e.csv", "--features", f"{tmp_path}/x.npy", "--labels", f"{tmp_path}/y.npy"]
    out = str(tmp_path / "run")
    flags = ["--out", out, "--hidden", "8", "--epochs", "60", "--device", "cpu"]
    assert cli.main(DOMAIN, ["train", "dgi", *data, *flags]) == 0
    for name in ("config.toml", "metrics.jsonl", "model.safetensors", "README.md", "figures/embedding.png"):
        assert (tmp_path / "run" / name).exists()
    metrics = json.loads((tmp_path / "run" / "summary.json").read_text())["metrics"]
    capsys.readouterr()
    assert cli.main(DOMAIN, ["evaluate", out]) == 0
    assert f"accuracy: {metrics['accuracy']:.4f}" in capsys.readouterr().out
    z = tmp_path / "z.npz"
    np.savez(tmp_path / "g.npz", x=np.load(tmp_path / "x.npy"), edges=np.array(edges))
    assert cli.main(DOMAIN, ["embed", out, "--data", f"{tmp_path}/g.npz", "--out", str(z)]) == 0
    assert np.load(z)["vectors"].shape == (40, 8)


def test_wrong_use_of_the_command_line(tmp_path, capsys):
    (tmp_path / "e.csv").write_text("0,1\n1,7\n")
    np.save(tmp_path / "x.npy", np.ones((3, 2)))
    data = ["--data", f"{tmp_path}/e.csv", "--features", f"{tmp_path}/x.npy"]
    assert cli.main(DOMAIN, ["train", "dgi", *data, "--out", f"{tmp_path}/run"]) == 2
    assert "row 2: target 7 is outside 0..2" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert cli.main(DOMAIN, ["train", "dgi", "--data", "coral"]) == 2
    assert "nearest: cora" in capsys.readouterr().err
