"""The run folder and bad input: a clear error, exit status 2, nothing written, nothing lost."""

import dataclasses
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from gen_core.harness import cli
from gen_core.harness.errors import UsageError
from toydomain.auto import Auto
from toydomain.data import load
from toydomain.registry import DOMAIN

HERE = Path(__file__).parent
DRIVER = "import sys; sys.path.insert(0, sys.argv.pop(1)); from toydomain.registry import main; main()"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    assert cli.main(DOMAIN, ["train", "auto", "--out", str(out), "--device", "cpu"]) == 0
    return out


@pytest.fixture
def there(tmp_path, monkeypatch):
    """An empty working directory."""
    folder = tmp_path / "cwd"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def test_a_run_folder_is_complete(run):
    names = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    wanted = {"config.toml", "metrics.jsonl", "summary.json", "model.safetensors", "environment.json", "README.md"}
    assert wanted | {"checkpoints/last.ckpt", "figures/loss.png", "figures/embedding.png"} <= names
    assert any("events.out.tfevents" in name for name in names)
    assert not any("tmp" in name.rpartition("/")[2] for name in names)
    card = (run / "README.md").read_text()
    assert "Citation: nobody" in card
    assert "Auto.load(" in card
    assert (
        json.loads((run / "environment.json").read_text())["versions"]["torch"] == torch.__version__.partition("+")[0]
    )


def test_tensorboard_has_the_loss_of_each_step(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == list(range(12))


def test_the_model_comes_back_without_pickle(run, monkeypatch):
    monkeypatch.setattr(torch, "load", lambda *a, **k: pytest.fail("pickle"))
    rows = load("rows")
    model = Auto.load(run)
    with np.load(_embedded(run)) as saved:
        np.testing.assert_array_equal(saved["vectors"], model.embed(rows).numpy())
        assert saved["ids"].tolist() == [str(i) for i in range(256)]


def _embedded(run):
    out = run.parent / "z.npz"
    assert cli.main(DOMAIN, ["embed", str(run), "--out", str(out), "--device", "cpu"]) == 0
    return out


def test_evaluate_repeats_the_summary(run, capsys):
    capsys.readouterr()
    assert cli.main(DOMAIN, ["evaluate", str(run)]) == 0
    separation = json.loads((run / "summary.json").read_text())["metrics"]["separation"]
    assert f"separation: {separation:.4f}" in capsys.readouterr().out


def test_fit_in_python_without_a_folder_writes_nothing(there):
    model = Auto(Auto.Config(epochs=1)).fit(load("rows"), accelerator="cpu", progress=False)
    assert model.embed(load("rows")).shape == (256, 3)
    assert list(there.iterdir()) == []


def test_the_users_own_network_takes_the_place_of_ours(tmp_path):
    class Squeeze(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(8, 3)

        def forward(self, x):
            return self.net(x).tanh()

    model = Auto(Auto.Config(epochs=1), encoder=Squeeze()).fit(
        load("rows"), out=tmp_path / "r", accelerator="cpu", progress=False
    )
    z = model.embed(load("rows"))
    assert z.abs().max() <= 1
    with pytest.raises(UsageError, match="give it again"):
        Auto.load(tmp_path / "r")
    assert torch.equal(Auto.load(tmp_path / "r", encoder=Squeeze()).embed(load("rows")), z)
    with pytest.raises(UsageError, match="unknown part of Auto 'coder'; nearest: "):
        Auto(coder=Squeeze())


def test_a_method_without_training_makes_a_run_like_any_other(tmp_path, capsys):
    out = tmp_path / "run"
    assert cli.main(DOMAIN, ["train", "raw", "--data", "rows", "--out", str(out)]) == 0
    assert json.loads((out / "summary.json").read_text())["metrics"]["width"] == 8
    assert cli.main(DOMAIN, ["evaluate", str(out), "--device", "cpu"]) == 0
    assert torch.equal(DOMAIN.method("raw").load(out).embed(load("rows")), load("rows").x)
    with pytest.raises(UsageError, match=r"holds a toydomain\.raw:Raw, not a toydomain\.auto:Auto"):
        Auto.load(out)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    out = tmp_path_factory.mktemp("plain") / "run"
    assert cli.main(DOMAIN, ["train", "raw", "--data", "rows", "--out", str(out)]) == 0
    return out


def test_recommend_prints_a_ranking_or_json(plain, capsys):
    words = ["recommend", str(plain), "--user", "7", "-k", "2"]
    assert cli.main(DOMAIN, words) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()[-2:]] == [
        ["1", "item0", "7.0000"],
        ["2", "item1", "6.0000"],
    ]
    assert cli.main(DOMAIN, [*words, "--exclude-seen", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "user": "7",
        "items": [{"item": "item1", "score": 6.0}, {"item": "item2", "score": 5.0}],
    }
    assert cli.main(DOMAIN, [*words[:-1], "0"]) == 2
    assert "-k 0: must be at least 1" in capsys.readouterr().err


def test_predict_writes_all_rows_and_prints_the_first(plain, tmp_path, capsys):
    out = tmp_path / "predictions.csv"
    assert cli.main(DOMAIN, ["predict", str(plain), "--out", str(out)]) == 0
    assert "256 rows of id, class" in capsys.readouterr().out
    lines = out.read_text().splitlines()
    assert (len(lines), lines[0], lines[2]) == (257, "id,class", "1,even")
    assert cli.main(DOMAIN, ["predict", str(plain)]) == 0
    shown = capsys.readouterr()
    assert len(shown.out.splitlines()) == 21
    assert "256 rows in all" in shown.err
    assert cli.main(DOMAIN, ["predict", str(plain), "--out", "/dev/full"]) == 2


def test_a_verb_that_the_method_or_the_domain_lacks(run, capsys):
    assert cli.main(DOMAIN, ["recommend", str(run), "--user", "u"]) == 2
    assert "recommend: auto cannot; methods that can: raw" in capsys.readouterr().err
    without = dataclasses.replace(DOMAIN, verbs=())
    assert cli.main(without, ["embed", str(run)]) == 2
    assert "unknown verb 'embed'" in capsys.readouterr().err


def test_the_card_and_the_end_of_training_name_what_the_method_can(run, plain, capsys):
    assert "gen-toy embed" in (run / "README.md").read_text()
    assert "gen-toy recommend" not in (run / "README.md").read_text()
    for verb in ("embed", "recommend", "predict"):
        assert f"gen-toy {verb} {plain}" in (plain / "README.md").read_text()


def test_fit_never_overwrites_a_run(run):
    with pytest.raises(UsageError, match="holds a run already"):
        Auto().fit(load("rows"), out=run)


def test_same_seed_same_bits_other_seed_other_bits():
    rows = load("rows")
    a, b, c = (
        Auto(Auto.Config(epochs=2)).fit(rows, seed=s, accelerator="cpu", progress=False).embed(rows) for s in (3, 3, 4)
    )
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_data_without_labels_is_trained_and_not_evaluated(tmp_path, capsys):
    path = tmp_path / "own.csv"
    path.write_text("\n".join(",".join(str(v) for v in row) for row in np.eye(8).repeat(16, 0)))
    out = tmp_path / "run"
    assert cli.main(DOMAIN, ["train", "auto", "--data", str(path), "--out", str(out)]) == 0
    assert "not evaluated: " in capsys.readouterr().out
    assert json.loads((out / "summary.json").read_text())["metrics"] == {}
    assert cli.main(DOMAIN, ["evaluate", str(out)]) == 2
    assert "no labels" in capsys.readouterr().err
    path.write_text(path.read_text().replace("1.0", "2.0"))
    (out / "summary.json").unlink()
    assert cli.main(DOMAIN, ["train", "--resume", str(out)]) == 2
    assert "has changed since the run began" in capsys.readouterr().err


BAD = {
    "unknown verb": (["trian"], "nearest: train"),
    "unknown method": (["train", "autoo"], "unknown gen-toy method 'autoo'; nearest: auto"),
    "unknown recipe": (["train", "auto/row"], "unknown recipe of auto 'row'; nearest: rows"),
    "unknown recipe in reproduce": (["reproduce", "auto/row"], "nearest: rows"),
    "unknown data set": (["train", "auto", "--data", "rosw"], "unknown data set 'rosw'; nearest: rows"),
    "absent data set": (["train", "auto", "--data", "absent"], "data set 'absent' was not found; searched"),
    "prepare an unknown data set": (["data", "prepare", "rosw"], "nearest: rows"),
    "negative field": (["train", "auto", "--batch-size", "-4"], "batch_size = -4: Input should be greater than 0"),
    "zero field": (["train", "auto", "--epochs", "0"], "epochs = 0: Input should be greater than 0"),
    "field in reproduce": (["reproduce", "auto", "--epochs", "0"], "epochs = 0: Input should be greater than 0"),
    "unknown field": (["train", "auto", "--hiden", "3"], "--hidden"),
    "wrong type": (["train", "auto", "--hidden", "x"], "--hidden"),
    "no method": (["train"], "needs a method: auto, over, raw"),
    "cuda that is not there": (["train", "auto", "--device", "cuda"], "--device cuda"),
    "unknown device": (["train", "auto", "--device", "tpu"], "cuda"),
    "logger that is not installed": (["train", "auto", "--logger", "mlflow"], "--logger mlflow: that package is not"),
    "no devices": (["train", "auto", "--devices", "0"], "--devices 0: must be at least 1"),
    "no threads": (["train", "auto", "--threads", "0"], "--threads 0: must be at least 1"),
    "no seeds": (["reproduce", "auto", "--seeds", "0"], "--seeds 0: must be at least 1"),
    "no jobs": (["reproduce", "auto", "--jobs", "-1"], "--jobs -1: must be at least 1"),
    "bound of a method without one": (["train", "auto", "--bound", "nwj"], "--bound: auto has none to choose"),
    "resume with other settings": (["train", "auto", "--resume", ".", "--hidden", "2"], "remove hidden"),
    "a value that looks like a method": (["train", "--out", "raw", "auto/row"], "unknown recipe of auto 'row'"),
    "a method that only a value names": (["train", "--out", "auto", "atuo"], "nearest: auto"),
    "config that is not there": (["train", "auto", "--config", "none.toml"], "none.toml: not readable"),
    "resume what is not a run": (["train", "--resume", "."], "is not a run folder"),
    "embed what is not a run": (["embed", "."], "is not a run folder"),
    "check what is not a record": (["reproduce", "--check", "none.json"], "not a record of reproduce"),
}


@pytest.mark.parametrize("name", BAD)
def test_wrong_use_exits_2_names_it_and_writes_nothing(name, there, capsys):
    words, message = BAD[name]
    if "cuda" in words and torch.cuda.is_available():
        pytest.skip("this machine has one")
    assert cli.main(DOMAIN, words) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert "Traceback" not in errors
    assert list(there.iterdir()) == []


def test_keys_of_a_config_file_are_checked(there, capsys):
    Path("c.toml").write_text("hiden = 4\n")
    assert cli.main(DOMAIN, ["train", "auto", "--config", "c.toml"]) == 2
    assert "c.toml: unknown key 'hiden'; nearest: hidden" in capsys.readouterr().err


def test_a_config_file_lies_over_the_recipe_and_below_the_flags(there):
    Path("c.toml").write_text("hidden = 4\nbatch_size = 32\n")
    words = ["train", "auto", "--config", "c.toml", "--batch-size", "128", "--out", "r", "--device", "cpu"]
    assert cli.main(DOMAIN, words) == 0
    config = Auto.load("r").config
    assert (config.hidden, config.batch_size, config.epochs) == (4, 128, 3)


def test_a_run_folder_is_never_overwritten(run, there, capsys):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert cli.main(DOMAIN, ["train", "auto", "--out", str(run)]) == 2
    assert "exists and is not empty" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


@pytest.mark.parametrize(("given", "kept"), [(None, "1"), ("0", "0")])
def test_commands_ask_torch_for_huge_pages_unless_told_otherwise(monkeypatch, given, kept):
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", given or "")
    if given is None:
        monkeypatch.delenv("THP_MEM_ALLOC_ENABLE")
    monkeypatch.setattr(sys, "argv", ["gen-toy", "list"])
    with pytest.raises(SystemExit) as stop:
        cli.run(DOMAIN)
    assert stop.value.code == 0
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == kept


def test_a_method_may_have_a_protocol_of_its_own(there, capsys):
    assert DOMAIN.own_protocol("auto") == "separation"
    assert cli.main(DOMAIN, ["train", "raw", "--data", "rows", "--out", "r", "--device", "cpu"]) == 0
    summary = json.loads(Path("r/summary.json").read_text())
    assert (summary["protocol"]["name"], summary["metrics"]) == ("width", {"width": 8.0})
    capsys.readouterr()
    assert cli.main(DOMAIN, ["evaluate", "r", "--protocol", "separation"]) == 0
    assert "separation: " in capsys.readouterr().out


def test_a_run_refused_before_its_first_step_leaves_its_folder_free(there, capsys, monkeypatch):
    def refuse(*_):
        raise UsageError("the graphs have no edges")

    with monkeypatch.context() as patch:
        patch.setattr(Auto, "on_fit_start", refuse)
        assert cli.main(DOMAIN, ["train", "auto", "--out", "r", "--device", "cpu"]) == 2
    assert "the graphs have no edges" in capsys.readouterr().err
    assert not Path("r").exists()
    assert cli.main(DOMAIN, ["train", "auto", "--out", "r", "--device", "cpu", "--epochs", "1"]) == 0


def test_a_refused_resume_and_logged_rows_keep_their_folder(there, monkeypatch):
    """What this command has not made, and what a first epoch left that ended in an error."""

    def refuse(self, *given):
        if given[-1]:  # the second batch
            raise UsageError("no")

    with monkeypatch.context() as patch:
        patch.setattr(Auto, "on_train_batch_start", refuse)
        assert cli.main(DOMAIN, ["train", "auto", "--out", "r", "--device", "cpu"]) == 2
    rows = Path("r/metrics.jsonl")
    assert len(rows.read_text().splitlines()) == 1
    rows.unlink()
    Path("r/mine.txt").write_text("a note")
    with monkeypatch.context() as patch:
        patch.setattr(Auto, "on_train_batch_start", refuse)
        assert cli.main(DOMAIN, ["train", "--resume", "r"]) == 2
    assert Path("r/mine.txt").read_text() == "a note"
    assert Path("r/config.toml").exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda run: os.truncate(run / "model.safetensors", 40), "is damaged"),
        (lambda run: (run / "model.safetensors").unlink(), "training did not end"),
        (
            lambda run: (run / "config.toml").write_text((run / "config.toml").read_text().replace(":Auto", ":Other")),
            "holds a",
        ),
        (lambda run: (run / "config.toml").write_text("a = "), "not valid TOML"),
    ],
)
def test_a_damaged_or_foreign_run_is_named(run, tmp_path, damage, message, capsys):
    copy = shutil.copytree(run, tmp_path / "copy")
    damage(copy)
    assert cli.main(DOMAIN, ["evaluate", str(copy)]) == 2
    assert message in capsys.readouterr().err


def test_a_truncated_checkpoint_is_named(run, tmp_path, capsys):
    copy = shutil.copytree(run, tmp_path / "copy")
    for name in ("summary.json", "model.safetensors"):
        (copy / name).unlink()
    os.truncate(copy / "checkpoints" / "last.ckpt", 100)
    assert cli.main(DOMAIN, ["train", "--resume", str(copy)]) == 2
    assert "last.ckpt" in capsys.readouterr().err


def test_resume_by_the_wrong_method_or_domain(run, tmp_path, capsys):
    copy = shutil.copytree(run, tmp_path / "copy")
    assert cli.main(DOMAIN, ["train", "raw", "--resume", str(copy)]) == 2
    assert "is a run of auto, not of raw" in capsys.readouterr().err
    (copy / "config.toml").write_text((copy / "config.toml").read_text().replace('domain = "toy"', 'domain = "rl"'))
    assert cli.main(DOMAIN, ["evaluate", str(copy)]) == 2
    assert "is a run of gen-rl" in capsys.readouterr().err


def test_embed_to_a_full_disk(run, capsys):
    assert cli.main(DOMAIN, ["embed", str(run), "--out", "/dev/full", "--device", "cpu"]) == 2
    assert "/dev/full: cannot be written" in capsys.readouterr().err


def _start(words, prepare, cwd):
    """The command in a process with limits that the test's own process must not have."""
    command = [sys.executable, "-c", DRIVER, str(HERE), *words]
    env = os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "HOME": str(cwd)}
    return subprocess.run(command, capture_output=True, text=True, preexec_fn=prepare, cwd=cwd, env=env, check=False)


def test_a_read_only_folder(toy, tmp_path):
    """As another user, since root may write everywhere."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o555)
        uid = "65534" if os.getuid() == 0 else "0"
        assert toy("train", "auto", "--out", folder / "run", "--device", "cpu", TOY_UID=uid) == 2, toy.log.read_text()
        assert f"--out {folder / 'run'}: cannot be written" in toy.log.read_text()
        assert "Traceback" not in toy.log.read_text()
        assert list(folder.iterdir()) == []


@pytest.mark.parametrize(("limit", "epochs", "kept"), [(2_000, "2", False), (20_000, "300", True)])
def test_a_full_disk_keeps_the_last_checkpoint_and_says_how_to_go_on(tmp_path, limit, epochs, kept):
    """A limit on the size of files stands for the full disk, then it is lifted: the first is too small for any
    checkpoint, the second for the growing event file."""

    def small():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    done = _start(["train", "auto", "--out", "run", "--device", "cpu", "--epochs", epochs], small, tmp_path)
    assert done.returncode == 2, done.stderr
    assert "writing failed" in done.stderr
    assert "gen-toy train --resume run" in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").exists() == kept
    assert (tmp_path / "run" / "config.toml").exists()
    again = _start(["train", "--resume", "run"], None, tmp_path)
    assert again.returncode == 0, again.stderr
