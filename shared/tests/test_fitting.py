"""What a method logs: each step's row in `metrics.jsonl`, in any logger and in Lightning's callbacks."""

import json

import pytest
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping

from gen_core.harness.errors import Diverged
from toydomain import data
from toydomain.auto import Auto

STEPS = 4  # an epoch


class Noted(Auto):
    """Keeps what it logged, in order, and logs once an epoch beside the steps."""

    def prepare(self, spec, seed=0):
        super().prepare(spec, seed)
        self.noted = []

    def training_step(self, batch, index):
        loss = super().training_step(batch, index)
        self.noted.append(loss.item())
        self.log_dict({"twice": 2 * loss, "number": 3})
        return loss

    def on_train_epoch_end(self):
        self.log("at_the_end", torch.tensor(float(self.current_epoch)))


def rows(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def table():
    return data.load("rows")


def test_every_step_leaves_its_own_values(tmp_path):
    model = Noted(Noted.Config(epochs=2)).fit(table(), out=tmp_path / "run", logger="csv", progress=False)
    steps = [row for row in rows(tmp_path / "run") if "loss" in row]
    assert [row["step"] for row in steps] == list(range(2 * STEPS))
    assert [row["epoch"] for row in steps] == [0] * STEPS + [1] * STEPS
    assert [row["loss"] for row in steps] == model.noted
    assert all(row["twice"] == pytest.approx(2 * row["loss"]) and row["number"] == 3 for row in steps)
    ends = [row["at_the_end"] for row in rows(tmp_path / "run") if "at_the_end" in row]
    assert ends == [0, 1]
    (file,) = (tmp_path / "run").rglob("metrics.csv")
    head, *lines = file.read_text().splitlines()
    column = head.split(",").index("loss")
    assert [float(line.split(",")[column]) for line in lines if line.split(",")[column]] == model.noted


def test_fewer_rows_where_fewer_are_asked_for(tmp_path):
    for name, options, wanted in (
        ("third", {"log_every_n_steps": 3}, [2, 5]),
        ("none", {"log_every_n_steps": 0}, None),
        ("pairs", {"accumulate_grad_batches": 2}, [0, 1, 2, 3]),
    ):
        Auto(Auto.Config(epochs=2)).fit(table(), out=tmp_path / name, logger="none", progress=False, **options)
        run = tmp_path / name
        assert ([row["step"] for row in rows(run)] if (run / "metrics.jsonl").exists() else None) == wanted, name


def test_lightning_callbacks_see_what_is_logged():
    seen = []

    class Look(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            seen.append(float(trainer.callback_metrics["loss"]))

    stop = EarlyStopping("loss", patience=1, min_delta=1e9, check_on_train_epoch_end=True)
    model = Noted(Noted.Config(epochs=9)).fit(table(), progress=False, callbacks=[Look(), stop])
    assert len(model.noted) == 2 * STEPS  # the second epoch is not better by 1e9
    assert seen == model.noted


def test_what_cannot_be_logged_is_refused_in_the_step_that_logs_it():
    class Rows(Auto):
        def training_step(self, batch, index):
            self.log("rows", torch.zeros(2))
            return super().training_step(batch, index)

    with pytest.raises((RuntimeError, ValueError), match=r"rows|scalar"):
        Rows().fit(table(), progress=False)

    class Broken(Auto):
        def training_step(self, batch, index):
            if self.trainer.global_step == 5:
                raise Diverged("loss became NaN")
            return super().training_step(batch, index)

    with pytest.raises(Diverged, match="step 5: loss became NaN"):
        Broken().fit(table(), progress=False)
