"""How zero-shot methods are evaluated. A protocol sees a fitted run and returns numbers by name, in percent."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback

from gen_core.evaluation import gzsl_accuracy, per_class_accuracy
from gen_core.harness import report
from gen_core.harness.errors import UsageError
from gen_zsl.data import ZeroShot, inner
from gen_zsl.generative import FeatureGenerator

__all__ = ["gzsl"]

SELECTIONS = ("last", "val", "oracle")


def gzsl(run: Any, selections: Sequence[str] = ("last",)) -> dict[str, float]:
    """U, S, H (all classes possible) and T1 (test rows of unseen classes, only these possible), per class, in percent.

    `last`: the model as trained; keys U, S, H, T1.
    `val`: the epoch with the best H on the validation problem (`data.inner`: train's classes seen, val's unseen), on
    which the method is trained anew; then the test figures of that epoch of the training on trainval; keys U_val, ...
    and epoch_val. Nothing is chosen on test rows.
    `oracle`: the epoch with the best H *on the test rows*, as published numbers of this field are chosen; keys
    U_oracle, ... and epoch_oracle. It is no honest estimate.

    The epochs of the training on trainval come from doing it again with the same seed: it gives the same weights.
    """
    if unknown := sorted(set(selections) - set(SELECTIONS)) or not selections:
        raise UsageError(f"protocol gzsl, selections {list(selections)}: {unknown or 'empty'}; allowed: {SELECTIONS}")
    lacking = run.data.seen[~torch.isin(run.data.seen, run.data.labels[run.data.test_seen])].tolist()
    if lacking:
        name = run.data.classes[lacking[0]]
        raise UsageError(f"data: class {name!r} is seen in training and has no row in test_seen, so S is not defined")
    found = _test(run.model, run.data)
    if set(selections) == {"last"}:
        return found
    if not isinstance(run.model, FeatureGenerator):
        raise UsageError(f"protocol gzsl, selections {list(selections)}: the method has no epochs; allowed: ['last']")
    if run.model.given:
        raise UsageError(
            f"protocol gzsl: 'val' and 'oracle' train anew, with {run.model.given} of your own they cannot"
        )
    epochs = _curve(run, run.data)
    picks = {"oracle": _best(epochs)} if "oracle" in selections else {}
    if "val" in selections:
        if not len(run.data.val) or not len(run.data.train):
            raise UsageError("protocol gzsl, selection 'val': the data has no validation classes (train and val)")
        validation = _curve(run, inner(run.data, run.seed))
        picks["val"] = _best(validation)
        run.curves["H on validation classes"] = _points(validation, "H")
    for name in ("U", "S", "H"):
        run.curves[f"{name} on test"] = _points(epochs, name)
    for name, epoch in picks.items():
        found |= {f"{key}_{name}": value for key, value in epochs[epoch].items()} | {f"epoch_{name}": epoch + 1.0}
    return found


def figures(run: Any, folder: Path) -> None:
    """`gzsl.png`: bars of U, S and H by selection; one that was chosen on test rows says so."""
    series = {"last": _test(run.model, run.data)}
    curves = {name: [y for _, y in run.curves.get(f"{name} on test", [])] for name in ("U", "S", "H")}
    if curves["H"]:
        validation = [y for _, y in run.curves.get("H on validation classes", [])]
        picks = {"chosen on validation classes": validation, "chosen on the test set (oracle)": curves["H"]}
        for name, line in picks.items():
            if line:
                series[name] = {key: values[line.index(max(line))] for key, values in curves.items()}
    for values in series.values():
        values.pop("T1", None)
    named = {"U": "unseen (U)", "S": "seen (S)", "H": "harmonic mean (H)"}
    bars = {name: {named[key]: values[key] for key in named} for name, values in series.items()}
    report.bars(bars, folder / "gzsl.png", "per-class accuracy, %")


def _test(model: Any, data: ZeroShot) -> dict[str, float]:
    """H, U, S and T1 over the classes of the test rows."""
    rows = torch.cat([data.test_seen, data.test_unseen])
    seen, unseen = data.labels[data.test_seen].unique(), data.labels[data.test_unseen].unique()
    predicted = model.scores(data.features[rows]).argmax(1)
    u, s, h = gzsl_accuracy(predicted, data.labels[rows], seen, unseen)
    alone = model.scores(data.features[data.test_unseen], unseen_only=True).argmax(1)
    t1 = per_class_accuracy(alone, data.labels[data.test_unseen], unseen)
    return {"H": h, "U": u, "S": s, "T1": t1}


class Evaluate(Callback):
    """The test figures at the end of every epoch, taken without touching the training's random state."""

    def __init__(self, data: ZeroShot) -> None:
        self.data, self.epochs = data, list[dict[str, float]]()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        pl_module.fit_final()
        self.epochs.append(_test(pl_module, self.data))


def _curve(run: Any, data: ZeroShot) -> list[dict[str, float]]:
    """Train the run's method anew on `data`; figures of each epoch."""
    model, evaluate = run.model, Evaluate(data)
    fresh = type(model)(model.config)
    device = {"cuda": "gpu"}.get(model.device.type, model.device.type)
    fresh.fit(data, seed=run.seed, accelerator=device, progress=False, callbacks=[evaluate])
    return evaluate.epochs


def _best(epochs: list[dict[str, float]]) -> int:
    values = [epoch["H"] for epoch in epochs]
    return values.index(max(values))


def _points(epochs: list[dict[str, float]], name: str) -> list[tuple[float, float]]:
    return [(float(number), epoch[name]) for number, epoch in enumerate(epochs, start=1)]
