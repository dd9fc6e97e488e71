"""gen-core alone: no domain's library in its environment, nothing heavy at import, losses without the harness."""

import importlib.util
import os
import subprocess
import sys

import pytest

FOREIGN = ["torchvision", "torch_geometric", "gymnasium", "stable_baselines3", "recbole", "kornia"]


@pytest.mark.skipif(os.environ.get("GEN_ISOLATED") != "1", reason="only true in the package's own environment")
@pytest.mark.parametrize("library", FOREIGN)
def test_foreign_library_is_absent(library):
    assert importlib.util.find_spec(library) is None


@pytest.mark.parametrize(
    "module", ["gen_core", "gen_core.harness", "gen_core.harness.registry", "gen_core.harness.cli"]
)
def test_import_is_light(module):
    code = f"import sys, {module}; print([m for m in ('torch', 'lightning', 'sklearn', 'scipy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_losses_and_bounds_need_nothing_of_the_harness():
    harness = (
        "pydantic",
        "tyro",
        "tomlkit",
        "rich",
        "matplotlib",
        "jinja2",
        "safetensors",
        "platformdirs",
        "lightning",
    )
    code = (
        "import sys; sys.modules.update({name: None for name in sys.argv[1:]});"
        "import gen_core.losses.contrastive, gen_core.estimators.bounds, gen_core.estimators.critics;"
        "import gen_core.evaluation.probe, gen_core.evaluation.cluster, gen_core.evaluation.stats; print('fine')"
    )
    done = subprocess.run([sys.executable, "-c", code, *harness], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "fine", done.stderr
