"""docs/adding-a-method.md, done as it says in a copy of gen-vision: its file, registry line, recipe and test work."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    text = (ROOT / "docs" / "adding-a-method.md").read_text()
    blocks = re.findall(r"```(\w+)\n(.*?)```", text, flags=re.DOTALL)
    (_, method), (_, recipe), (_, test) = blocks
    folder = tmp_path_factory.mktemp("copy")
    package = folder / "gen_vision"
    shutil.copytree(ROOT / "packages" / "gen-vision" / "src" / "gen_vision", package)
    (package / "methods" / "autoencoders").mkdir()
    (package / "methods" / "autoencoders" / "__init__.py").touch()
    (package / "methods" / "autoencoders" / "dae.py").write_text(method)
    (package / "recipes" / "dae.toml").write_text(recipe)
    (folder / "test_dae.py").write_text(test)
    line = re.search(r'"dae": "[^"]+"', text)[0]
    registry = package / "registry.py"
    registry.write_text(registry.read_text().replace("    methods={\n", f"    methods={{\n        {line},\n"))
    return folder


def call(copy, *words):
    code = "import runpy, sys; sys.path.insert(0, ''); sys.argv = sys.argv[1:];"
    code += "runpy.run_module(sys.argv[0], run_name='__main__')"
    start = "from gen_vision.registry import main\nif __name__ == '__main__': main()\n"
    (copy / "gen_vision_command.py").write_text(start)
    return subprocess.run([sys.executable, "-c", code, *words], cwd=copy, capture_output=True, text=True, check=False)


def test_its_recipe_is_valid_and_its_test_passes(copy):
    done = call(copy, "gen_vision_command", "list", "--check")
    assert done.returncode == 0, done.stdout + done.stderr
    done = call(copy, "pytest", "-q", "-p", "no:cacheprovider", "test_dae.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout


def test_it_is_trained_and_reproduced_like_any_other(copy):
    words = ["reproduce", "dae", "--seeds", "1", "--epochs", "2", "--out", "out"]
    done = call(copy, "gen_vision_command", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads((copy / "out" / "vision" / "dae" / "digits+epochs=2.json").read_text())
    assert (record["verdict"], set(record["baselines"])) == ("preliminary", {"raw", "untrained"})
    done = call(copy, "gen_vision_command", "train", "dae", "--epochs", "1", "--out", "run")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Vincent et al." in (copy / "run" / "README.md").read_text()
