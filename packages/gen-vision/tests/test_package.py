"""Imports, recipes, and the command line on the user's own folder."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gen_core.harness import cli, recipes
from gen_vision.registry import DOMAIN

FOREIGN = ("torch_geometric", "gymnasium", "stable_baselines3", "recbole")


def test_light_imports() -> None:
    code = (
        "import sys, gen_vision, gen_vision.registry; assert 'SimCLR' in dir(gen_vision);"
        "print([m for m in ('torch', 'torchvision', 'lightning', 'kornia', 'numpy', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_public_names() -> None:
    import gen_vision

    assert gen_vision.SimCLR is DOMAIN.method("simclr")
    assert gen_vision.RawPixels is DOMAIN.method("raw-pixels")
    assert gen_vision.Supervised is DOMAIN.method("supervised")
    with pytest.raises(AttributeError, match="SimCRL"):
        _ = gen_vision.SimCRL


@pytest.mark.skipif(os.environ.get("GEN_ISOLATED") != "1", reason="only where this package and the core are alone")
@pytest.mark.parametrize("name", FOREIGN)
def test_other_domains_are_not_needed(name: str) -> None:
    with pytest.raises(ModuleNotFoundError):
        __import__(name)


def test_recipes() -> None:
    assert recipes.check(DOMAIN) == []
    name, first = recipes.load(DOMAIN, "simclr")
    assert (name, DOMAIN.datasets[first.data].embedded, first.claim_against) == ("digits", True, "raw")
    names = set(recipes.tables(DOMAIN, "simclr")) - {"bounds"}
    found = {name: recipes.load(DOMAIN, f"simclr/{name}")[1] for name in names}
    assert {name for name, recipe in found.items() if recipe.scale == "cpu"} == {
        "digits", "mnist", "cifar10", "cifar10-no-colour",
    }  # fmt: skip
    assert all(len(recipe.seeds) >= 5 and recipe.claim_against in recipe.baselines for recipe in found.values())
    for recipe in found.values():  # the supervised baseline stands alone: its augmentation is written twice
        for arm in recipes.arms(DOMAIN, recipe).values():
            if arm.method == "supervised":
                for field in ("rotation", "scale", "shift", "noise", "encoder"):
                    assert arm.config.get(field) == recipe.config.get(field)
                assert arm.config["labels"] == recipe.protocol.options["labels"]


def folder(path: Path, labels: bool, count: int = 12) -> Path:
    generator = np.random.default_rng(0)
    for row in range(count):
        kind = path / f"kind{row % 2}" if labels else path
        kind.mkdir(parents=True, exist_ok=True)
        side = 16 + 4 * (row % 3)
        pixels = generator.integers(0, 120, (side, 20, 3), dtype=np.uint8)
        pixels[..., row % 2] += 120
        Image.fromarray(pixels).save(kind / f"{row}.png")
    return path


def test_train_evaluate_and_embed_an_own_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, out = folder(tmp_path / "images", labels=True), tmp_path / "run"
    words = ["train", "simclr", "--data", str(images), "--out", str(out), "--epochs", "2", "--device", "cpu"]
    assert cli.main(DOMAIN, words) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert set(summary["metrics"]) == {"knn"}
    assert (out / "figures" / "embedding.png").exists() and (out / "figures" / "loss.png").exists()
    assert cli.main(DOMAIN, ["evaluate", str(out), "--protocol", "few-label"]) == 0
    assert "accuracy" in capsys.readouterr().out
    other = folder(tmp_path / "other", labels=False, count=5)
    assert cli.main(DOMAIN, ["embed", str(out), "--data", str(other), "--out", str(tmp_path / "z.npz")]) == 0
    with np.load(tmp_path / "z.npz") as found:
        assert found["vectors"].shape == (5, 128) and sorted(found["ids"]) == [f"{row}.png" for row in range(5)]


def test_an_unlabelled_folder_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, out = folder(tmp_path / "images", labels=False), tmp_path / "run"
    words = ["train", "simclr", "--data", str(images), "--out", str(out), "--epochs", "1", "--device", "cpu"]
    assert cli.main(DOMAIN, words) == 0
    assert "not evaluated" in capsys.readouterr().out
    assert cli.main(DOMAIN, ["evaluate", str(out)]) == 2
    assert "one subfolder a class" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "simclr", "--data", "digitz"], "nearest: digits"),
        (["train", "simclr", "--temperature", "-1"], "temperature"),
        (["train", "simclr", "--batch-size", "1"], "batch_size"),
        (["train", "supervised", "--data", "{flat}"], "needs labels"),
        (["train", "simclr", "--data", "{empty}"], "holds no image"),
        (["train", "simclr/imagenet"], "known: bounds, cifar10"),
    ],
)
def test_wrong_use(words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    places = {"{flat}": str(folder(tmp_path / "flat", labels=False)), "{empty}": str(tmp_path / "empty")}
    words = [places.get(word, word) for word in words]
    assert cli.main(DOMAIN, [*words, "--out", str(tmp_path / "run")]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and "Traceback" not in captured.err
