"""A fit that was killed with -9 goes on to the same bits; evaluation at the end of epochs leaves training as it is."""

import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from gen_zsl import CEGZSL, FCLSWGAN
from gen_zsl.protocols import Evaluate, gzsl

CPU = {"accelerator": "cpu", "progress": False, "logger": "none"}
CONFIG = {
    "hidden": 16, "noise": 4, "embedding": 8, "projection": 5, "comparator": 7, "batch_size": 32, "decay_every": 1,
    "learning_rate": 1e-3, "epochs": 4, "syn_num": 8, "final_epochs": 2, "zsl_epochs": 2, "final_batch": 32,
}  # fmt: skip


def model(cls=CEGZSL):
    return cls(cls.Config(**{name: value for name, value in CONFIG.items() if name in cls.Config.model_fields}))


CHILD = """
import os, signal, sys
import torch
torch.set_num_threads(int(sys.argv[1]))
sys.path.insert(0, sys.argv[2])
from conftest import clusters
from lightning.pytorch.callbacks import Callback
from test_resume import CPU, model
class Kill(Callback):
    def on_train_batch_end(self, trainer, *_):
        if trainer.current_epoch == 2 and trainer.fit_loop.epoch_loop.batch_idx == 1:
            os.kill(os.getpid(), signal.SIGKILL)
model().fit(clusters(), seed=3, out=sys.argv[3], callbacks=[Kill()], **CPU)
"""


def test_a_real_kill_in_the_middle_of_an_epoch(small, tmp_path):
    straight = model().fit(small, seed=3, out=tmp_path / "a", **CPU)
    words = [sys.executable, "-c", CHILD, str(torch.get_num_threads()), str(Path(__file__).parent), str(tmp_path / "b")]
    assert subprocess.run(words, check=False, capture_output=True).returncode == -signal.SIGKILL
    assert (tmp_path / "b" / "checkpoints" / "last.ckpt").exists()
    resumed = model().fit(small, seed=3, out=tmp_path / "b", resume=True, **CPU)
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()
    assert (tmp_path / "a" / "metrics.jsonl").read_text() == (tmp_path / "b" / "metrics.jsonl").read_text()
    assert torch.equal(straight.scores(small.features), resumed.scores(small.features))


class Stop(Callback):
    def on_fit_end(self, *_):
        raise RuntimeError("killed")


def test_a_kill_after_the_last_step_and_before_the_final_softmax(small, tmp_path):
    straight = model(FCLSWGAN).fit(small, seed=3, out=tmp_path / "a", **CPU)
    with pytest.raises(RuntimeError, match="killed"):
        model(FCLSWGAN).fit(small, seed=3, out=tmp_path / "b", callbacks=[Stop()], **CPU)
    resumed = model(FCLSWGAN).fit(small, seed=3, out=tmp_path / "b", resume=True, **CPU)
    assert torch.equal(straight.scores(small.features), resumed.scores(small.features))


@pytest.mark.parametrize("cls", [CEGZSL, FCLSWGAN])
def test_evaluating_each_epoch_does_not_change_the_training(small, cls):
    fitted = model(cls).fit(small, seed=3, **CPU)
    watched = model(cls).fit(small, seed=3, callbacks=[Evaluate(small)], **CPU)
    assert torch.equal(fitted.scores(small.features), watched.scores(small.features))
    run = SimpleNamespace(model=fitted, data=small, seed=3, curves={})
    found = gzsl(run, ["last", "val", "oracle"])
    for name in ("U", "S", "H"):
        assert [x for x, _ in run.curves[f"{name} on test"]] == [1, 2, 3, 4]
        assert run.curves[f"{name} on test"][-1][1] == found[name]


def test_another_seed_gives_other_weights(small):
    one, other = (model().fit(small, seed=seed, **CPU) for seed in (0, 1))
    assert not torch.equal(one.scores(small.features), other.scores(small.features))
