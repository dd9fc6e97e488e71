"""`reproduce`: cells that restart and die alone, shards, records, intervals and verdicts."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from gen_core.harness import cli, recipes, records, reproduce
from gen_core.harness.errors import UsageError
from toydomain.registry import DOMAIN


def record_of(out):
    return json.loads((out / "toy" / "auto" / "rows.json").read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A whole reproduce of the toy recipe, two cells at a time."""
    out = tmp_path_factory.mktemp("reproduce")
    lines = []
    record = reproduce.reproduce(DOMAIN, "auto", out=out, jobs=2, say=lines.append)
    return out, record, lines


def test_the_record_has_what_the_contract_names(finished):
    out, record, lines = finished
    assert record == record_of(out)
    wanted = "method recipe dataset metric unit higher_is_better values baselines claim_against paper verdict also"
    assert set(wanted.split()) | {"seconds", "hardware", "precision", "threads", "versions", "commit", "seeds"} <= set(
        record
    )
    assert (record["seeds"], len(record["values"]), record["also"]) == ([0, 1, 2, 3, 4], 5, {"width": [3.0] * 5})
    assert set(record["baselines"]) == {"raw", "untrained"}
    for entry in record["baselines"].values():
        assert entry["ci_method"] == "student-t"
        assert entry["gain_ci95"][0] <= entry["gain"] <= entry["gain_ci95"][1]
    assert lines[0].startswith("auto/rows: 15 cells (3 arms x 5 seeds), 15 to run here")
    assert "versions" in record
    assert record["threads"] == 1


def test_gain_is_the_paired_mean_difference(finished):
    _, record, _ = finished
    entry = record["baselines"]["untrained"]
    differences = [a - b for a, b in zip(record["values"], entry["values"], strict=True)]
    assert entry["gain"] == pytest.approx(sum(differences) / 5)


def test_curves_are_the_mean_of_the_seeds_with_its_interval_and_are_drawn(finished):
    out, record, _ = finished
    (name,) = record["curves"]
    assert (name, record["curves"][name]["kind"]) == ("separation over epochs", "mean")
    band = record["curves"][name]["arms"]["untrained"]
    assert band["x"] == [0.0, 1.0]
    assert band["middle"][0] == pytest.approx(3.0)  # of 1, 2, 3, 4, 5
    half = 2.776445 * (2.5 / 5) ** 0.5
    assert (band["low"][0], band["high"][0]) == pytest.approx((3 - half, 3 + half), abs=1e-5)
    assert set(record["curves"][name]["arms"]) == {"auto", "raw", "untrained"}
    assert (out / "toy" / "auto" / "rows-separation.png").stat().st_size > 5000


def test_one_seed_with_an_interval_over_the_test_units(tmp_path):
    record = reproduce.reproduce(DOMAIN, "auto/units", out=tmp_path, say=lambda _: None)
    entry = record["baselines"]["untrained"]
    assert entry["ci_method"] == "bootstrap over rows"
    assert entry["gain"] == pytest.approx(0, abs=1e-6)  # the samples are centred
    assert entry["gain_ci95"][0] < 0 < entry["gain_ci95"][1]
    assert (record["seeds"], record["verdict"]) == ([0], "preliminary")
    assert record["curves"]["separation over epochs"]["arms"]["auto"]["low"][0] == 1.0  # one seed has no interval
    cell = json.loads((tmp_path / "toy" / "auto" / "units.cells" / "auto-0.json").read_text())
    assert len(cell["samples"]["separation"]) == 256


def test_finished_cells_are_not_run_again_and_a_changed_config_is(finished):
    out, record, _ = finished
    lines = []
    again = reproduce.reproduce(DOMAIN, "auto", out=out, say=lines.append)
    assert "0 to run here" in lines[0]
    assert again["values"] == record["values"]
    changed = reproduce.reproduce(DOMAIN, "auto", out=out, seeds=1, overrides={"hidden": 2}, say=lines.append)
    assert changed["recipe"] == "rows+hidden=2"
    assert changed["also"] == {"width": [2.0]}
    assert changed["verdict"] == "preliminary"
    assert record_of(out) == again  # the record of the recipe itself is not touched


def test_a_cell_of_another_revision_is_not_reused(finished, monkeypatch, tmp_path):
    out = shutil.copytree(finished[0], tmp_path / "copy")
    job_lines = []
    monkeypatch.setattr(reproduce, "REVISION", reproduce.REVISION + 1)
    monkeypatch.setattr(reproduce, "_run_all", lambda ctx, jobs, *_: job_lines.extend(jobs) or {})
    with pytest.raises(UsageError, match="no cell of auto finished"):
        reproduce.reproduce(DOMAIN, "auto", out=out, seeds=1, say=lambda _: None)
    assert len(job_lines) == 3
    assert record_of(out) == finished[1]  # no record of nothing


def test_check_runs_one_seed_again(finished, capsys):
    out, _, _ = finished
    path = out / "toy" / "auto" / "rows.json"
    assert cli.main(DOMAIN, ["reproduce", "--check", str(path)]) == 0
    assert "same hardware, versions, threads and precision: 1e-6" in capsys.readouterr().out
    wrong = json.loads(path.read_text())
    wrong["values"][0] += 0.01
    other = out / "wrong.json"
    other.write_text(json.dumps(wrong))
    assert cli.main(DOMAIN, ["reproduce", "--check", str(other)]) == 1
    wrong["hardware"] = "another machine"
    other.write_text(json.dumps(wrong))
    assert cli.main(DOMAIN, ["reproduce", "--check", str(other)]) == 0
    assert "3 x the record's standard deviation" in capsys.readouterr().out


def test_precision_reaches_the_fit_and_is_recorded_and_checked(toy, finished, tmp_path):
    shutil.copytree(finished[0], tmp_path, dirs_exist_ok=True)  # cells of another precision are not taken for its own
    toy("reproduce", "auto", "--out", tmp_path, "--seeds", "1", "--precision", "bf16-mixed")
    record = record_of(tmp_path)
    assert record["precision"] == "bf16-mixed"
    assert record["values"][0] != finished[1]["values"][0]
    assert record["values"][0] == pytest.approx(finished[1]["values"][0], rel=0.05)
    path = str(tmp_path / "toy" / "auto" / "rows.json")
    assert toy("reproduce", "--check", path, "--precision", "bf16-mixed") == 0
    assert "threads and precision: 1e-6" in toy.log.read_text()
    toy("reproduce", "--check", path)
    assert "other hardware, versions, threads or precision" in toy.log.read_text()


@pytest.mark.parametrize(("shift", "agrees"), [(0.7, True), (0.8, False)])
def test_check_of_one_seed_goes_by_the_interval_over_the_test_units(tmp_path, capsys, shift, agrees):
    record = reproduce.reproduce(DOMAIN, "auto/units", out=tmp_path, say=lambda _: None)
    low, high = record["baselines"]["untrained"]["gain_ci95"]
    path = tmp_path / "moved.json"
    path.write_text(json.dumps(record | {"hardware": "other", "values": [record["values"][0] + shift * (high - low)]}))
    assert (cli.main(DOMAIN, ["reproduce", "--check", str(path)]) == 0) == agrees
    assert "3 x a quarter of the record's widest interval" in capsys.readouterr().out


def test_a_killed_cell_loses_only_itself_and_the_next_call_mends_it(toy, tmp_path):
    words = ("reproduce", "auto", "--out", tmp_path, "--jobs", "2", "--seeds", "2")
    toy(*words, TOY_KILL_CELL="Auto 1")
    record = record_of(tmp_path)
    assert record["seeds"] == [0]
    lost = [(item["arm"], item["seed"], item["reason"]) for item in record["failed"]]
    assert lost == [("auto", 1, "killed by SIGKILL"), ("untrained", 1, "killed by SIGKILL")]
    assert len(record["baselines"]["raw"]["values"]) == 1
    toy(*words, TOY_KILL_CELL="")
    mended = record_of(tmp_path)
    assert mended["seeds"] == [0, 1]
    assert "failed" not in mended
    assert "2 to run here" in toy.log.read_text()


def test_a_cell_that_was_killed_in_training_goes_on_from_its_checkpoint(toy, tmp_path):
    trace = tmp_path / "trace"
    words = ("reproduce", "auto", "--out", tmp_path, "--seeds", "1")
    toy(*words, TOY_KILL="step 6", TOY_TRACE=str(trace))
    toy(*words, TOY_KILL="", TOY_TRACE=str(trace))
    assert [int(line) for line in trace.read_text().split()] == [*range(1, 7), *range(5, 13)]


def test_two_shards_on_one_folder_make_the_record_of_one_run(finished, toy, tmp_path):
    from toydomain import child

    _, record, _ = finished
    arguments = [["reproduce", "auto", "--out", str(tmp_path), "--shard", f"{i}/2"] for i in (1, 2)]
    context = multiprocessing.get_context("forkserver")
    logs = [str(tmp_path / f"log{i}") for i in (1, 2)]
    both = [context.Process(target=child._body, args=(a, {}, log)) for a, log in zip(arguments, logs, strict=True)]
    for process in both:
        process.start()
    for process in both:
        process.join(120)
    assert record_of(tmp_path)["values"] == record["values"]
    done = [(tmp_path / f"log{i}").read_text().count(": done in") for i in (1, 2)]
    assert sorted(done) == [7, 8]


def test_more_seeds_than_the_recipe_names_go_on_with_the_next_numbers():
    _, recipe = recipes.load(DOMAIN, "auto/rows")
    assert reproduce._seeds(recipe, 7) == [0, 1, 2, 3, 4, 5, 6]
    assert reproduce._seeds(recipe, 2) == [0, 1]
    assert reproduce._seeds(recipe, None) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("text", ["0/2", "3/2", "a/b", "2", "1/2/3"])
def test_a_bad_shard_is_refused(text):
    with pytest.raises(UsageError, match="--shard"):
        reproduce._share(text)


def entry(low, count=5):
    return {"values": [0.0] * count, "gain_ci95": None if low is None else [low, 9.0]}


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, "claim-holds"),
        ({"claim_against": None}, "no-claim"),
        ({"baselines": {"b": entry(0.1, 4)}}, "preliminary"),
        ({"baselines": {"b": entry(-0.1, 4)}}, "preliminary"),
        ({"baselines": {"b": entry(0.0)}}, "falls-short"),
        ({"baselines": {"b": entry(None)}}, "falls-short"),
        ({"paper": {"value": 80.5, "std": None}}, "reproduced"),  # 1 % of the value
        ({"paper": {"value": 81.0, "std": None}}, "claim-holds"),
        ({"paper": {"value": 81.0, "std": 0.5}}, "reproduced"),  # twice the paper's spread
        ({"paper": {"value": 70.0, "std": 0.5}}, "reproduced"),  # better than the paper
        ({"paper": {"value": 70.0, "std": 0.5}, "higher_is_better": False}, "claim-holds"),
        ({"paper": {"value": 80.0, "std": 0.5}, "config": {"bound": "nwj"}}, "claim-holds"),
    ],
)
def test_verdicts(changes, verdict):
    record = {
        "claim_against": "b",
        "baselines": {"b": entry(0.1)},
        "values": [80.0] * 5,
        "paper": None,
        "config": {"bound": "paper"},
        "higher_is_better": True,
    }
    assert records.verdict(record | changes) == verdict


def test_reinforcement_learning_needs_forty_seeds():
    record = {"claim_against": "b", "baselines": {"b": entry(0.1, 39)}, "paper": None, "values": [1.0]}
    assert records.verdict(record, claim_seeds=40) == "preliminary"


def test_exit_status_is_one_for_falls_short_alone(monkeypatch, tmp_path, capsys):
    base = {"method": "auto", "recipe": "rows", "dataset": "rows", "metric": "m", "unit": "u", "values": [1.0]}
    base |= {"baselines": {}, "claim_against": None, "paper": None, "also": {}}
    for verdict, status in {
        "falls-short": 1,
        "claim-holds": 0,
        "reproduced": 0,
        "preliminary": 0,
        "no-claim": 0,
    }.items():
        monkeypatch.setattr(reproduce, "reproduce", lambda *a, verdict=verdict, **k: base | {"verdict": verdict})
        monkeypatch.setattr(reproduce, "context", lambda domains: None)
        assert cli.main(DOMAIN, ["reproduce", "auto", "--json", str(tmp_path / "r.json")]) == status
        assert json.loads((tmp_path / "r.json").read_text())["verdict"] == verdict
        assert f"verdict: {verdict}" in capsys.readouterr().out


def test_control_c_ends_all_cells_keeps_the_finished_and_exits_130(tmp_path):
    code = "import sys; sys.path.insert(0, sys.argv.pop(1)); from toydomain.registry import main; main()"
    words = [sys.executable, "-c", code, str(Path(__file__).parent), "reproduce", "auto", "--out", str(tmp_path)]
    words += ["--jobs", "2", "--epochs", "100000"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(words, text=True, start_new_session=True, **pipes)
    cells = tmp_path / "toy" / "auto" / "rows+epochs=100000.cells"
    deadline = time.monotonic() + 120
    while not list(cells.glob("auto-0-*.run/checkpoints/last.ckpt")) or not (cells / "raw-0.json").exists():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the command and all that it started
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Run the same command again to go on; finished cells are kept." in errors
    assert (cells / "raw-0.json").exists()
    deadline = time.monotonic() + 30
    while _alive(process.pid):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_control_c_in_the_moment_a_cell_starts_ends_that_cell_too():
    class Cell:
        sentinel, killed = 0, False

        def start(self):
            signal.raise_signal(signal.SIGINT)

        def kill(self):
            self.killed = True

        def join(self):
            pass

    cell = Cell()
    with pytest.raises(KeyboardInterrupt):
        reproduce._run_all(SimpleNamespace(Process=lambda **_: cell), [None], 1, print)
    assert cell.killed
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def _alive(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
