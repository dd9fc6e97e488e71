"""Protocols, the fixed split of data without a test part, and the baselines."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gen_core.evaluation.probe import few_label_split
from gen_core.harness.errors import LabelsMissing, UsageError
from gen_core.harness.fitting import mix
from gen_vision import RawPixels, SimCLR, Supervised, data, protocols
from gen_vision.data import Images

CPU = {"accelerator": "cpu", "progress": False}


def blobs(count: int = 60, classes: int = 3, test: bool = True, shuffled: bool = False) -> Images:
    """Class c is bright in column 2 c; 30 further images are the test part."""
    train, count = count, count + 30 * test
    labels = torch.arange(count) % classes
    pixels = torch.randint(0, 60, (count, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    for row, label in enumerate(labels.tolist()):
        pixels[row, :, :, 2 * label] += 150
    if shuffled:
        labels = labels[torch.randperm(count, generator=torch.Generator().manual_seed(0))]
    whole = Images(pixels, labels, tuple("abc"[:classes]))
    return replace(whole.take(slice(train)), test=whole.take(slice(train, None)) if test else None)


def run(model: Any, images: Images, seed: int = 0) -> Any:
    return SimpleNamespace(model=model, data=images, seed=seed)


def test_raw_pixels_are_pixels_over_255(tmp_path: Path) -> None:
    images = blobs()
    z = RawPixels().fit(images, seed=1).embed(images)
    assert z.shape == (60, 64) and z.dtype == torch.float32
    assert torch.equal(z, images.images.reshape(60, 64).float() / 255)
    RawPixels().save(tmp_path)
    assert torch.equal(RawPixels.load(tmp_path).embed(images), z)


@pytest.mark.parametrize("test", [True, False])
def test_separable_classes_are_found_and_shuffled_ones_are_not(test: bool) -> None:
    images, shuffled = blobs(test=test), blobs(test=test, shuffled=True)
    for name in ("knn", "linear", "few_label"):
        protocol = getattr(protocols, name)
        for value in protocol(run(RawPixels(), images)).values():
            assert value > 95
        assert min(protocol(run(RawPixels(), shuffled)).values()) < 75


def test_metric_names() -> None:
    images = blobs()
    assert set(protocols.few_label(run(RawPixels(), images))) == {"accuracy", "knn"}
    assert set(protocols.knn(run(RawPixels(), images), k=5, temperature=0.07)) == {"knn"}
    assert set(protocols.linear(run(RawPixels(), images))) == {"accuracy"}


def test_split_of_data_without_a_test_part() -> None:
    images = blobs(test=False)
    train, test = data.split(images)
    assert (len(train), len(test)) == (48, 12)
    assert test.labels is not None and test.labels.bincount().tolist() == [4, 4, 4]
    rows = {tuple(row.flatten().tolist()) for row in images.images}
    parts = [{tuple(row.flatten().tolist()) for row in part.images} for part in (train, test)]
    assert parts[0] | parts[1] == rows and not parts[0] & parts[1]
    assert torch.equal(test.images, data.split(images)[1].images)


def test_unlabelled_and_tiny_data_are_refused() -> None:
    bare = Images(blobs().images)
    for name in ("knn", "linear", "few_label"):
        with pytest.raises(LabelsMissing, match="one subfolder a class"):
            getattr(protocols, name)(run(RawPixels(), bare))
    half = Images(blobs().images, blobs().labels, test=bare)
    with pytest.raises(LabelsMissing, match="test"):
        protocols.knn(run(RawPixels(), half))
    with pytest.raises(UsageError, match="5 images"):
        protocols.knn(run(RawPixels(), blobs(count=6, test=False)))
    with pytest.raises(UsageError, match=r"labels = 50.*at most 20"):
        protocols.few_label(run(RawPixels(), blobs()), labels=50)
    with pytest.raises(UsageError, match="does not predict"):
        protocols.accuracy(run(RawPixels(), blobs()))


def test_supervised_learns_and_sees_only_the_first_episodes_labels(tmp_path: Path) -> None:
    images = blobs()
    model = Supervised(Supervised.Config(labels=5, epochs=60, shift=0.0, rotation=0.0, scale=0.0))
    model.fit(images, seed=4, **CPU)
    assert protocols.accuracy(run(model, images))["accuracy"] > 90
    seen, labels = model.labelled(images)
    rows = few_label_split(images.labels, 5, mix(4))  # pyright: ignore
    assert torch.equal(seen, images.images[rows]) and labels.bincount().tolist() == [5, 5, 5]
    model.save(tmp_path)
    assert torch.equal(Supervised.load(tmp_path).predict(images), model.predict(images))


def test_few_label_uses_the_same_first_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    from gen_core.evaluation import probe

    seeds: list[int] = []
    real = probe.few_label_split
    monkeypatch.setattr(probe, "few_label_split", lambda y, k, seed: seeds.append(seed) or real(y, k, seed))
    protocols.few_label(run(RawPixels(), blobs(), seed=4), labels=5, episodes=3)
    assert len(seeds) == 3 and seeds[0] == mix(4)


def test_supervised_never_sees_the_test_split() -> None:
    images = blobs(test=False)
    seen, _ = Supervised().labelled(images)
    assert torch.equal(seen, data.split(images)[0].images)


def test_supervised_refuses() -> None:
    with pytest.raises(LabelsMissing, match="needs labels"):
        Supervised().fit(Images(blobs().images), **CPU)
    with pytest.raises(UsageError, match="labels = 21"):
        Supervised(Supervised.Config(labels=21)).fit(blobs(), **CPU)


def test_figures(tmp_path: Path) -> None:
    model = SimCLR(SimCLR.Config(epochs=1)).fit(blobs(), **CPU)
    protocols.figures(run(model, blobs()), tmp_path)
    assert (tmp_path / "embedding.png").stat().st_size > 1000
    protocols.figures(run(RawPixels(), Images(blobs().images)), tmp_path)  # without labels
