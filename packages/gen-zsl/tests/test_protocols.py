"""U, S, H and T1 of known predictions, the three selections, prediction, figures."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from gen_core.harness.errors import UsageError
from gen_zsl import CEGZSL, RidgePrototypes, protocols
from gen_zsl.protocols import figures, gzsl

CPU = {"accelerator": "cpu", "progress": False}
CONFIG = {
    "hidden": 16, "noise": 4, "embedding": 8, "projection": 5, "comparator": 7, "batch_size": 32, "epochs": 3,
    "learning_rate": 1e-3, "syn_num": 8, "final_epochs": 2, "zsl_epochs": 2, "final_batch": 32,
}  # fmt: skip


class Known:
    """Predicts what it is told for each row: a class for all, a class where only unseen ones are allowed."""

    def __init__(self, data, free, unseen):
        self.data, self.free, self.unseen = data, free, unseen

    def scores(self, features, unseen_only=False):
        rows = [int((self.data.features == row).all(1).nonzero()[0, 0]) for row in features]
        return torch.nn.functional.one_hot((self.unseen if unseen_only else self.free)[rows], 20).float()


def run_of(model, data, seed=0):
    return SimpleNamespace(model=model, data=data, seed=seed, curves={}, samples={})


def test_known_predictions(small):
    y = small.labels
    free, unseen = y.clone(), torch.full_like(y, 3)
    free[y % 2 == 1] = 0  # half of the seen classes and all unseen ones are called 0
    found = gzsl(run_of(Known(small, free, unseen), small))
    assert found == {"H": 0.0, "U": 0.0, "S": pytest.approx(100 * 10 / 15), "T1": pytest.approx(20.0)}
    free[small.test_unseen[: len(small.test_unseen) // 2]] = y[small.test_unseen[: len(small.test_unseen) // 2]]
    found = gzsl(run_of(Known(small, free, y), small))
    assert found["U"] == pytest.approx(50) and found["T1"] == 100
    assert found["H"] == pytest.approx(2 * 50 * (200 / 3) / (50 + 200 / 3))


def test_a_seen_class_without_a_test_row_is_named(small):
    rows = small.test_seen[small.labels[small.test_seen] != 2]
    with pytest.raises(UsageError, match="class 'kind 2' is seen in training and has no row in test_seen"):
        gzsl(run_of(Known(small, small.labels, small.labels), dataclasses.replace(small, test_seen=rows)))


@pytest.fixture(scope="module")
def trained(small):
    return CEGZSL(CEGZSL.Config(**CONFIG)).fit(small, **CPU)


def epochs(values):
    return [{"H": h, "U": h + 1, "S": h + 2, "T1": h + 3} for h in values]


def test_selections(small, trained, monkeypatch, tmp_path):
    """last: the model; val: the test figures of the epoch that is best on the validation problem; oracle: on test."""
    asked = []

    def curve(run, data):
        asked.append(data)
        return epochs([10.0, 50.0, 30.0]) if data is small else epochs([7.0, 6.0, 9.0])

    monkeypatch.setattr(protocols, "_curve", curve)
    run = run_of(trained, small)
    found = gzsl(run, ["last", "val", "oracle"])
    last = gzsl(run)
    assert {name: found[name] for name in last} == last and set(last) == {"H", "U", "S", "T1"}
    assert (found["epoch_val"], found["H_val"], found["U_val"], found["S_val"], found["T1_val"]) == (3, 30, 31, 32, 33)
    assert (found["epoch_oracle"], found["H_oracle"]) == (2, 50)
    assert len(asked) == 2 and len(asked[1].classes) == len(small.seen)
    assert run.curves["H on test"] == [(1, 10), (2, 50), (3, 30)]
    assert run.curves["H on validation classes"] == [(1, 7), (2, 6), (3, 9)]
    drawn = {}
    monkeypatch.setattr(protocols.report, "bars", lambda series, out, label: drawn.update(series))
    figures(run, tmp_path)
    assert list(drawn) == ["last", "chosen on validation classes", "chosen on the test set (oracle)"]
    assert drawn["chosen on validation classes"] == {"unseen (U)": 31, "seen (S)": 32, "harmonic mean (H)": 30}
    assert drawn["chosen on the test set (oracle)"]["harmonic mean (H)"] == 50
    assert drawn["last"]["seen (S)"] == last["S"]
    assert set(gzsl(run_of(trained, small), ["last", "oracle"])) == set(last) | {
        "H_oracle", "U_oracle", "S_oracle", "T1_oracle", "epoch_oracle"
    }  # fmt: skip


def test_the_figure(small, trained, tmp_path):
    figures(run_of(trained, small), tmp_path)
    assert (tmp_path / "gzsl.png").stat().st_size > 1000


@pytest.mark.parametrize("selections", [["best"], []])
def test_unknown_selections(small, trained, selections):
    with pytest.raises(UsageError, match=r"allowed: .*'last', 'val', 'oracle'"):
        gzsl(run_of(trained, small), selections)


def test_selections_need_epochs_networks_and_validation_classes(small, trained):
    with pytest.raises(UsageError, match=r"no epochs; allowed: \['last'\]"):
        gzsl(run_of(RidgePrototypes().fit(small), small), ["last", "val"])
    bare = dataclasses.replace(small, train=small.train[:0], val=small.val[:0])
    with pytest.raises(UsageError, match="no validation classes"):
        gzsl(run_of(trained, bare), ["val"])
    own = CEGZSL(CEGZSL.Config(**CONFIG), embedding=torch.nn.Linear(12, 8)).fit(small, **CPU)
    with pytest.raises(UsageError, match="embedding"):
        gzsl(run_of(own, small), ["oracle"])


def test_predict(small, trained, tmp_path):
    found = trained.predict(small)
    assert list(found) == ["id", "class", "score", "kind"]
    assert {len(column) for column in found.values()} == {len(small.labels)}
    p = trained.scores(small.features)
    torch.testing.assert_close(p.sum(1), torch.ones(len(p)))
    assert found["class"] == [small.classes[kind] for kind in p.argmax(1).tolist()]
    np.testing.assert_allclose(found["score"], p.max(1).values.numpy())
    seen = {small.classes[kind] for kind in small.seen.tolist()}
    assert all((kind == "seen") == (name in seen) for name, kind in zip(found["class"], found["kind"], strict=True))
    alone = trained.scores(small.features, unseen_only=True)
    assert not alone[:, small.seen].any() and set(alone.argmax(1).tolist()) <= set(small.unseen.tolist())
    trained.save(tmp_path)
    loaded = CEGZSL.load(tmp_path)  # no training set
    other = dataclasses.replace(small, classes=tuple("?" * 20), attributes=small.attributes * 0)
    assert loaded.predict(other)["class"] == found["class"]
    with pytest.raises(UsageError, match="features has 5 columns; this model was trained on 12"):
        loaded.scores(torch.ones(2, 5))


def test_classes_without_images_are_candidates_too(small):
    """A class that is described and has no row at all is unseen: the generator serves it, no accuracy counts it."""
    more = dataclasses.replace(
        small, classes=(*small.classes, "new"), attributes=torch.cat([small.attributes, small.attributes[:1] + 1])
    )
    model = CEGZSL(CEGZSL.Config(**CONFIG)).fit(more, **CPU)
    assert more.unseen.tolist()[-1] == 20
    assert model.scores(small.features).shape[1] == 21
    assert set(gzsl(run_of(model, more))) == {"H", "U", "S", "T1"}
