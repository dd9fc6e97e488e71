"""A run killed with -9 at any moment goes on to the same bits, and repeats no more than since its last checkpoint."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

STEPS_AN_EPOCH = 4


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """An uninterrupted run."""
    from toydomain import child

    folder = tmp_path_factory.mktemp("straight")
    assert child.run(["train", "auto", "--out", str(folder / "run")], folder / "log") == 0
    return folder / "run"


def metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("moment", "repeated"),
    [("step 6", 2), ("step 1", 1), ("save 2", STEPS_AN_EPOCH), ("save 1", STEPS_AN_EPOCH), ("evaluation", 0)],
)
def test_kill_and_resume_give_the_same_bits(toy, tmp_path, straight, moment, repeated):
    run, trace = tmp_path / "run", tmp_path / "trace"
    assert toy("train", "auto", "--out", run, TOY_KILL=moment, TOY_TRACE=str(trace)) == -signal.SIGKILL
    assert not (run / "summary.json").exists()
    assert toy("train", "--resume", run, TOY_KILL="", TOY_TRACE=str(trace)) == 0, toy.log.read_text()
    assert (run / "model.safetensors").read_bytes() == (straight / "model.safetensors").read_bytes()
    assert [row["step"] for row in metrics(run)] == list(range(3 * STEPS_AN_EPOCH))
    assert metrics(run) == metrics(straight)
    done = [int(line) for line in trace.read_text().split()]
    assert sorted(set(done)) == list(range(1, 3 * STEPS_AN_EPOCH + 1))
    assert len(done) - len(set(done)) <= repeated  # a silent restart from zero repeats more
    first = json.loads((run / "summary.json").read_text())["metrics"]
    assert first == json.loads((straight / "summary.json").read_text())["metrics"]


def test_resume_without_a_checkpoint_says_that_it_starts_at_zero(toy, tmp_path):
    run = tmp_path / "run"
    assert toy("train", "auto", "--out", run, TOY_KILL="step 2") == -signal.SIGKILL
    assert toy("train", "--resume", run, TOY_KILL="") == 0
    assert "no checkpoint yet, so from step 0" in toy.log.read_text()


def test_resume_of_a_finished_run_does_nothing(toy, straight):
    before = (straight / "model.safetensors").stat().st_mtime_ns
    assert toy("train", "--resume", straight) == 0
    assert "finished already" in toy.log.read_text()
    assert (straight / "model.safetensors").stat().st_mtime_ns == before


def test_control_c_keeps_the_checkpoint_says_how_to_go_on_and_exits_130(tmp_path):
    run = tmp_path / "run"
    code = "import sys; sys.path.insert(0, sys.argv.pop(1)); from toydomain.registry import main; main()"
    words = [
        sys.executable,
        "-c",
        code,
        str(Path(__file__).parent),
        "train",
        "auto",
        "--out",
        str(run),
        "--epochs",
        "100000",
    ]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (run / "checkpoints" / "last.ckpt").exists():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"gen-toy train --resume {run}" in errors
    assert "Traceback" not in errors
    assert (run / "checkpoints" / "last.ckpt").exists()
