"""`gen bounds`: the matrix of methods and bounds, without a verdict, and what it does where data are missing."""

import dataclasses
import json

import pytest

from gen_core.harness import cli, registry, reproduce
from gen_core.harness.errors import UsageError
from toydomain.registry import DOMAIN


@pytest.fixture
def two_domains(monkeypatch):
    """The toy domain, and one whose data are not here."""
    other = dataclasses.replace(DOMAIN, name="other")
    real = reproduce.reproduce

    def run(domain, target, **options):
        if domain.name == "other":
            raise UsageError("absent: not found; It cannot be had.")
        return real(domain, target, **options)

    monkeypatch.setattr(registry, "domains", lambda: {"other": other, "toy": DOMAIN})
    monkeypatch.setattr(reproduce, "reproduce", run)


@pytest.mark.usefixtures("two_domains")
def test_the_matrix_has_a_row_a_method_and_says_what_is_left_out(tmp_path, capsys):
    file = tmp_path / "matrix.json"
    assert cli.main(None, ["bounds", "--out", str(tmp_path / "runs"), "--json", str(file), "--jobs", "1"]) == 0
    printed = capsys.readouterr().out
    matrix = json.loads(file.read_text())
    (row,) = matrix["rows"]
    assert (row["domain"], row["method"], row["metric"], row["seeds"]) == ("toy", "auto", "separation", [0, 1])
    assert set(row["values"]) == {"paper", "dv"}
    assert all(len(values) == 2 for values in row["values"].values())
    assert row["values"]["paper"] != row["values"]["dv"]
    record = json.loads((tmp_path / "runs" / "toy" / "auto" / "bounds.json").read_text())
    assert record["values"] == row["values"]["paper"]
    assert record["baselines"]["dv"]["values"] == row["values"]["dv"]
    assert record["verdict"] == "no-claim"
    assert matrix["heading"].startswith("no verdict")
    assert "no verdict" in printed
    assert matrix["left_out"] == {"other: auto": "absent: not found; It cannot be had."}
    assert "other: auto is left out: absent" in printed


def test_without_a_method_it_is_wrong_use(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(registry, "domains", dict)
    assert cli.main(None, ["bounds", "--out", str(tmp_path)]) == 2
    assert "install gen-vision or gen-graph" in capsys.readouterr().err
    monkeypatch.setattr(registry, "domains", lambda: {"toy": DOMAIN})
    assert cli.main(None, ["bounds", "--jobs", "0"]) == 2
    assert "--jobs 0: must be at least 1" in capsys.readouterr().err
