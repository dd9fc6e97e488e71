"""gen-zsl installs alone, imports nothing heavy, and says that it has no methods yet."""

import importlib.util
import os
import subprocess
import sys

import pytest

from gen_core.harness.cli import main
from gen_zsl.registry import DOMAIN

FOREIGN = ["torchvision", "torch_geometric", "gymnasium", "stable_baselines3", "recbole"]
HEAVY = ["torch", "lightning", "sklearn"]


@pytest.mark.skipif(os.environ.get("GEN_ISOLATED") != "1", reason="only true in the package's own environment")
@pytest.mark.parametrize("library", FOREIGN)
def test_foreign_library_is_absent(library):
    assert importlib.util.find_spec(library) is None


def test_import_is_light():
    code = "import sys, gen_zsl, gen_zsl.registry; print([m for m in " + repr(HEAVY) + " if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_list_says_that_there_is_nothing_yet(capsys):
    assert main(DOMAIN, ["list"]) == 0
    assert capsys.readouterr().out.count("none yet") == 2


@pytest.mark.parametrize("words", [["train", "anything"], ["reproduce", "anything"], ["train"]])
def test_a_method_that_is_not_there_is_wrong_use(words, capsys):
    assert main(DOMAIN, words) == 2
    assert "none" in capsys.readouterr().err


def test_dependencies_of_the_domain_import():
    for library in ["torch", "lightning", "sklearn"]:
        assert importlib.util.find_spec(library) is not None
