"""Ranks of a gloo group against one process on the joined batch: loss and parameter gradients, through DDP."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gen_core.distributed import gather, world

SCRIPT = Path(__file__).with_name("ranks.py")


def script():
    spec = importlib.util.spec_from_file_location("ranks", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def alone():
    ranks = script()
    return ranks.measured(ranks.Net(), *ranks.data())


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_equal_one_process_on_the_joined_batch(tmp_path, ranks, alone):
    pytest.importorskip("safetensors")
    from safetensors.torch import load_file

    done = subprocess.run([sys.executable, SCRIPT, str(ranks), tmp_path], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = [load_file(tmp_path / f"{i}.safetensors") for i in range(ranks)]
    for name, expected in alone.items():
        each = torch.stack([f[name] for f in found])
        # the loss is the mean over the ranks; the gradients are averaged already, and the same everywhere
        torch.testing.assert_close(each[:, 0].mean(), expected[0], rtol=0, atol=1e-12)
        torch.testing.assert_close(each[:, 1:], expected[1:].expand(ranks, -1), rtol=0, atol=1e-12)
        assert expected[1:].abs().max() > 1e-3
    for i in range(ranks):
        message = (tmp_path / f"unequal-{i}.txt").read_text()
        n = 24 // ranks
        assert "rows must have one shape on all ranks" in message and f"({n + 1}, 2)" in message


def test_outside_of_a_group_nothing_changes():
    rows = torch.randn(3, 2, requires_grad=True)
    assert world() == (0, 1)
    assert gather(rows) is rows
