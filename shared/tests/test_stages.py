"""Stages: a method whose part is another method takes a trained one, trains it first, or learns with it."""

import json

import pytest
import torch

from gen_core.harness import cli, recipes, reproduce, runs, stages
from gen_core.harness.errors import UsageError
from gen_core.harness.recipes import Stage
from toydomain.auto import Auto
from toydomain.data import load
from toydomain.over import Over
from toydomain.registry import DOMAIN

QUIET = {"progress": False, "logger": "none", "accelerator": "cpu"}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOY_TRACE", str(tmp_path / "trace"))
    return tmp_path


def steps(folder):
    """Training steps of the base, over all processes."""
    path = folder / "trace"
    return len(path.read_text().split()) if path.exists() else 0


def gen(*words):
    return cli.main(DOMAIN, [str(word) for word in words])


def equal(first, second):
    one, other = first.state_dict(), second.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_stage_is_resolved_to_its_whole_config():
    stage = stages.resolve(DOMAIN, Stage(method="auto/rows", config={"hidden": 2}))
    assert stage.method == "auto"
    assert stage.config == Auto.Config(epochs=3, hidden=2).model_dump()  # 3: the recipe's
    with pytest.raises(UsageError, match="nearest: auto"):
        stages.resolve(DOMAIN, Stage(method="autoo"))
    with pytest.raises(UsageError, match="hiden"):
        stages.resolve(DOMAIN, Stage(method="auto", config={"hiden": 2}))


def test_check_names_a_part_that_is_none(monkeypatch):
    tables = recipes.tables
    bad = {"bad": tables(DOMAIN, "over")["together"] | {"given": {"bas": "auto"}}}
    monkeypatch.setattr(recipes, "tables", lambda domain, method: bad if method == "over" else tables(domain, method))
    (problem,) = recipes.check(DOMAIN)
    assert problem == "over/bad: arm over: unknown part in given 'bas'; nearest: base; known: base"


def test_train_trains_the_stage_first_and_the_run_loads_whole(here):
    assert gen("train", "over", "--out", "run", "--logger", "csv") == 0
    assert runs.read_header(here / "run")["stages"]["base"]["config"]["epochs"] == 3
    base, whole = Auto.load(here / "run" / "given" / "base"), Over.load(here / "run")
    assert equal(whole.base, base)  # it does not learn in the second stage
    fresh = Auto(base.config)
    fresh.prepare(base.spec)
    assert not equal(fresh, base)
    assert gen("evaluate", "run") == 0
    assert gen("embed", "run", "--out", "z.npz") == 0


def test_a_finished_run_is_taken_as_it_is(here):
    assert gen("train", "auto", "--out", "base", "--hidden", "5") == 0
    before = steps(here)
    assert gen("train", "over", "--given.base", "base", "--out", "run") == 0
    assert steps(here) == before
    assert equal(Over.load(here / "run").base, Auto.load(here / "base"))
    assert runs.read_header(here / "run")["stages"] == {
        "base": {"run": str(here / "base"), "method": "", "config": {}, "train": True, "given": {}}
    }


def test_a_method_named_on_the_command_line_is_trained_where_the_recipes_is(here):
    assert gen("train", "over/rows", "--given.base", "auto", "--out", "first") == 0
    assert steps(here) == 4 * 4  # auto's own 4 epochs of 4 steps, where the recipe has 3
    assert gen("train", "over/together", "--given.base", "auto/rows", "--out", "second") == 0
    assert steps(here) == 4 * 4  # only built there: none of its own steps


def test_fields_of_the_stage_are_flags(here, capsys):
    assert gen("train", "over", "--given.base.hidden", "5", "--given.base.epochs", "1", "--out", "run") == 0
    assert steps(here) == 4
    stage = runs.read_header(here / "run")["stages"]["base"]
    assert (stage["config"]["hidden"], stage["config"]["epochs"], stage["train"]) == (5, 1, True)
    assert Over.load(here / "run").base.encoder.out_features == 5
    assert gen("train", "over", "--given.base.hidden", "-1") == 2
    assert "--given.base: hidden = -1: Input should be greater than 0" in capsys.readouterr().err
    assert gen("train", "over", "--help") == 0
    assert "--given.base.learning-rate" in capsys.readouterr().out


def test_a_killed_second_stage_keeps_the_first(here, monkeypatch):
    monkeypatch.setattr(Over, "training_step", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert gen("train", "over", "--out", "run") == 130
    monkeypatch.undo()
    monkeypatch.chdir(here)
    monkeypatch.setenv("TOY_TRACE", str(here / "trace"))
    before = steps(here)
    assert gen("train", "--resume", "run") == 0
    assert steps(here) == before == 3 * 4
    straight = Over(base=Auto.load(here / "run" / "given" / "base")).fit(load("rows"), **QUIET)
    assert equal(straight, Over.load(here / "run"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--given.base", "nowhere"), "neither a run folder nor a method"),
        (("--given.base", "raww"), "nearest: raw"),
    ],
)
def test_wrong_stages_are_refused_by_name(here, capsys, words, message):
    assert gen("train", "over", *words) == 2
    assert message in capsys.readouterr().err
    assert not (here / "runs").exists()


def test_a_run_of_another_package_is_no_stage(here, capsys):
    folder = here / "foreign"
    folder.mkdir()
    (folder / "config.toml").write_text('class = "os:system"\n')
    assert gen("train", "over", "--given.base", folder) == 2
    assert "os:system, which gen-toy does not know" in capsys.readouterr().err


def test_a_run_folder_does_not_say_what_is_imported(here):
    Over(base=Auto().fit(load("rows"), **QUIET)).fit(load("rows"), out=here / "run", **QUIET)
    text = (here / "run" / "config.toml").read_text()
    (here / "run" / "config.toml").write_text(text.replace("toydomain.auto:Auto", "antigravity:Auto"))
    with pytest.raises(UsageError, match="antigravity:Auto, which is none of toydomain; give it"):
        Over.load(here / "run")
    base = Auto()
    base.prepare({"features": 8})
    assert isinstance(Over.load(here / "run", base=base).base, Auto)  # given again


def test_reproduce_trains_a_stage_once_a_seed_for_all_arms(here):
    cells, ctx = here / "out/toy/over/rows.cells", reproduce.context([DOMAIN])

    def run(shard=None):
        return reproduce.reproduce(DOMAIN, "over", out=here / "out", shard=shard, ctx=ctx)

    assert run("1/2") is None
    assert {cell.stem for cell in cells.glob("*.json")} == {"over-0", "short-0", "raw-0", "other-0"}  # parted by seed
    record = run("2/2")
    assert len(record["values"]) == 2
    assert set(record["baselines"]) == {"short", "raw", "other"}
    # Two bases of 3 epochs of 4 steps at each of 2 seeds: the recipe's, and the arm's with another width.
    logs = sorted(cells.glob("given-base-*.run/metrics.jsonl"))
    assert [len(runs.read_rows(log)) for log in logs] == [12] * 4
    trained = [log.stat().st_mtime_ns for log in logs]
    keys = {cell.stem: json.loads(cell.read_text())["key"] for cell in cells.glob("*.json")}
    assert keys["over-0"] != keys["other-0"]  # they differ in nothing but the stage
    assert keys["over-0"] == keys["over-1"]
    assert run()["values"] == record["values"]
    (cells / "over-0.json").unlink()
    assert run()["values"] == record["values"]  # a lost cell finds its stage trained
    assert [log.stat().st_mtime_ns for log in logs] == trained
    assert reproduce.check(DOMAIN, here / "out/toy/over/rows.json")


def test_a_base_that_learns_along_changes(here):
    base = Auto(Auto.Config(hidden=4))
    model = Over(Over.Config(learning=True), base=base).fit(load("rows"), **QUIET)
    fresh = Auto(Auto.Config(hidden=4))
    fresh.prepare({"features": 8})
    assert not torch.equal(model.base.encoder.weight, fresh.encoder.weight)
    with pytest.raises(UsageError, match="needs base"):
        Over().fit(load("rows"), **QUIET)
