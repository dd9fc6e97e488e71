"""Feature nets: training, the cache, and the distances in their space."""

import importlib.util
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torchmetrics.image import fid

from gen_core.harness.errors import UsageError
from gen_vision import data, extractor
from gen_vision.data import Images
from gen_vision.extractor import Extractor, compare, features


def blobs(count: int = 40, shape: tuple[int, int, int] = (1, 8, 8), seed: int = 0) -> Images:
    """Class c is bright in column 2 c."""
    labels = torch.arange(count) % 3
    pixels = torch.randint(0, 60, (count, *shape), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    for row, label in enumerate(labels.tolist()):
        pixels[row, :, :, 2 * label] += 150
    return Images(pixels, labels)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache, and a training of three batches."""
    monkeypatch.setenv("GEN_CACHE", str(tmp_path))
    monkeypatch.setattr(extractor, "_MOST", 3)
    return tmp_path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Extractor, Images, Path]]:
    """The net of the digits as it is trained, its data, and its cache."""
    folder, digits = tmp_path_factory.mktemp("cache"), data.load("digits")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GEN_CACHE", str(folder))
        yield extractor.extractor(digits), digits, folder


def held(digits: Images) -> Tensor:
    assert digits.test is not None
    return digits.test.images


def test_digits_are_told_apart_grey_and_binarised(trained: tuple[Extractor, Images, Path]) -> None:
    net, digits, folder = trained
    assert digits.test is not None and digits.test.labels is not None
    assert net.name == "cnn64" and not net.training and not any(weight.requires_grad for weight in net.parameters())
    assert net.identity == f"cnn64@{net.version}, {net.accuracy:.1f} % accuracy" and len(net.version) == 8
    assert [path.name for path in folder.rglob("*.*")] == [f"cnn64-{net.version}.safetensors"]
    binary = data.unit(held(digits)).bernoulli(generator=torch.Generator().manual_seed(0))
    found = [(net.classifier(features(net, x)).argmax(1) == digits.test.labels) for x in (held(digits), binary)]
    grey, binarised = (100 * float(hits.double().mean()) for hits in found)
    assert grey == pytest.approx(net.accuracy) and grey >= 95
    assert binarised > 85


def test_the_second_call_reads(trained: tuple[Extractor, Images, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    net, digits, _ = trained
    monkeypatch.setattr(extractor, "_train", lambda *_: pytest.fail("trained again"))
    again = extractor.extractor(digits)
    assert again.identity == net.identity and not again.training
    assert not any(weight.requires_grad for weight in again.parameters())
    assert torch.equal(features(again, held(digits)), features(net, held(digits)))


@pytest.mark.parametrize("as_float", [False, True])
def test_distance_is_torchmetrics(trained: tuple[Extractor, Images, Path], as_float: bool) -> None:
    net, digits, _ = trained
    real, other = held(digits)[:200], held(digits)[200:].roll(1, 3)
    if as_float:
        real, other = data.unit(real), data.unit(other)
    metric = fid.FrechetInceptionDistance(feature=net, normalize=as_float)
    metric.update(real, real=True)
    metric.update(other, real=False)
    assert compare(real, other, net)["FD[cnn64]"] == pytest.approx(float(metric.compute()), rel=1e-3)


def test_scores_order_what_they_compare(trained: tuple[Extractor, Images, Path]) -> None:
    net, digits, _ = trained
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(444, generator=generator)
    a, b = held(digits)[order[:222]], held(digits)[order[222:]]
    noise = torch.rand(222, 1, 8, 8, generator=generator)
    same, half, far = compare(a, a, net), compare(a, b, net), compare(a, noise, net)
    assert set(same) == {"FD[cnn64]", "KID[cnn64]", "precision", "recall", "density", "coverage"}
    assert same["FD[cnn64]"] < 1e-6 and same["precision"] == same["recall"] == same["coverage"] == 1
    assert far["FD[cnn64]"] > 10 * half["FD[cnn64]"] and far["KID[cnn64]"] > half["KID[cnn64]"] + 1
    assert far["precision"] < 0.3 < 0.9 < half["precision"]


def test_features_do_not_depend_on_the_batch_or_dtype(trained: tuple[Extractor, Images, Path]) -> None:
    net, digits, _ = trained
    images = held(digits)[:50]
    whole = features(net, images)
    assert whole.shape == (50, 64) and not whole.requires_grad
    torch.testing.assert_close(features(net, images, batch_size=7), whole)
    torch.testing.assert_close(features(net, data.unit(images)), whole)


def test_without_labels_it_learns_rotations(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GEN_CACHE", str(tmp_path))
    monkeypatch.setattr(extractor, "_MOST", 60)
    digits = data.load("digits")
    net = extractor.extractor(Images(digits.images[:400], test=Images(held(digits))))
    assert net.name == "rotation64" and net.accuracy > 60  # by chance 25
    assert set(compare(held(digits)[:80], held(digits)[80:160], net)) >= {"FD[rotation64]", "KID[rotation64]"}


def test_quarter_turns() -> None:
    images = torch.arange(16 * 60, dtype=torch.int64).remainder(251).to(torch.uint8).reshape(16, 1, 6, 10)
    found, turns = extractor._task(Images(images), torch.arange(16))  # pyright: ignore[reportPrivateUsage]
    assert len(turns.unique()) > 1
    for image, square, turn in zip(images, found, turns.tolist(), strict=True):
        assert torch.equal(square, image[:, :, 2:8].rot90(turn, (1, 2)))


@pytest.mark.parametrize("labelled", [True, False])
def test_it_is_the_same_for_a_seed_and_draws_nothing(short: Path, labelled: bool) -> None:
    images = blobs() if labelled else Images(blobs().images)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = extractor.extractor(images)
    extractor.extractor(images)
    assert torch.equal(torch.get_rng_state(), before)
    (kept,) = short.rglob("*.safetensors")
    kept.unlink()
    torch.manual_seed(6)
    second = extractor.extractor(images)
    assert torch.equal(features(second, images.images), features(first, images.images))
    assert second.accuracy == first.accuracy
    assert not torch.equal(features(extractor.extractor(images, seed=1), images.images), features(first, images.images))


def test_versions_are_of_data_and_seed(short: Path) -> None:
    base = blobs()
    assert base.labels is not None
    other = [blobs(seed=1), Images(base.images, base.labels.flip(0)), Images(base.images)]
    versions = {extractor.extractor(each).version for each in [base, *other]}
    versions.add(extractor.extractor(base, seed=1).version)
    assert len(versions) == 5
    assert extractor.extractor(replace(base, test=blobs(seed=2))).version in versions  # the training images' own
    assert len(list(short.rglob("*"))) == 6  # the folder and five files


@pytest.mark.parametrize("damage", ["half", "empty", "pickle", "other"])
def test_a_damaged_file_is_replaced(short: Path, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    images = blobs()
    net = extractor.extractor(images)
    (kept,) = short.rglob("*.safetensors")
    whole = kept.read_bytes()
    if damage == "pickle":
        torch.save(net.state_dict(), kept)
    elif damage == "other":
        tensors: Any = {"accuracy": torch.zeros(()), "classifier.weight": torch.zeros(3, 5)}
        safetensors.torch.save_file(tensors, kept)  # pyright: ignore[reportUnknownMemberType]
    else:
        kept.write_bytes(whole[: len(whole) // 2 * (damage == "half")])
    capsys.readouterr()
    again = extractor.extractor(images)
    assert capsys.readouterr().out == f"training cnn64@{net.version} on 40 images 1 x 8 x 8, kept as {kept}\n"
    assert kept.read_bytes() == whole and list(kept.parent.iterdir()) == [kept]
    assert torch.equal(features(again, images.images), features(net, images.images))
    extractor.extractor(images)
    assert capsys.readouterr().out == ""


def test_a_caller_without_gradients(short: Path) -> None:
    with torch.inference_mode():
        net = extractor.extractor(blobs())
    assert not net.classifier.weight.is_inference()


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("shape", [(3, 8, 8), (3, 33, 20), (1, 28, 28), (3, 64, 64), (1, 150, 100)])
def test_any_size(shape: tuple[int, int, int]) -> None:
    images, sides = blobs(6, shape), list[int]()
    net = extractor.extractor(Images(images.images))
    net.layers[-3].register_forward_hook(lambda _module, _args, out: sides.append(min(out.shape[2:])))
    assert features(net, images.images).shape == (6, 64)
    assert sides == [sides[0]] and 2 < sides[0] <= 4


@pytest.mark.usefixtures("short")
def test_one_class_or_unlabelled_test_images() -> None:
    images = blobs()
    one = Images(images.images, torch.zeros(40, dtype=torch.int64), ("all",), test=blobs(6))
    assert extractor.extractor(one).name == "rotation64"
    half = replace(images, test=Images(images.images[:6]))
    assert extractor.extractor(half).name == "cnn64"


@pytest.mark.usefixtures("short")
def test_wrong_use_is_refused() -> None:
    images = blobs()
    net, x = extractor.extractor(images), images.images
    with pytest.raises(UsageError, match="at least 8 x 8 pixels, got 7 x 9"):
        extractor.extractor(blobs(4, (1, 7, 9)))
    for wrong in (x.expand(-1, 3, -1, -1), blobs(40, (1, 8, 9)).images):
        with pytest.raises(UsageError, match="cnn64 was trained on"):
            features(net, wrong)
        with pytest.raises(UsageError, match="as real is 40 x 1 x 8 x 8"):
            compare(x, wrong, net)
    for wrong in (x.float(), data.unit(x) - 0.5, x.long(), torch.full((2, 1, 8, 8), torch.nan)):
        with pytest.raises(UsageError, match=r"uint8 or floats in \[0, 1\]"):
            features(net, wrong)
    for wrong in (x[0], x[:0]):
        with pytest.raises(UsageError, match="non-empty"):
            features(net, wrong)
    with pytest.raises(UsageError, match="at least 20 real and generated images, got 19"):
        compare(x, x[:19], net)
    with pytest.raises(UsageError, match="at least 51 "):
        compare(x, x, net, k=50)


@pytest.mark.skipif(importlib.util.find_spec("torch_fidelity") is not None, reason="torch-fidelity is installed")
def test_fid_without_torch_fidelity_says_what_to_install() -> None:
    with pytest.raises(UsageError, match="pip install torch-fidelity"):
        extractor.inception()


class FakeInception(nn.Module):
    """The interface of torchmetrics' `NoTrainInceptionV3`."""

    def __init__(self, name: str, features_list: list[str], feature_extractor_weights_path: str | None = None) -> None:
        super().__init__()
        assert (name, features_list) == ("inception-v3-compat", ["2048"])
        if feature_extractor_weights_path is None:
            raise OSError("no network")
        torch.load(feature_extractor_weights_path, weights_only=True)
        self.use_antialias = True

    def forward(self, x: Tensor) -> Tensor:
        assert x.dtype == torch.uint8 and x.shape[1] == 3 and len(x) <= 64 and not self.use_antialias
        return x.float().mean(3).flatten(1)[:, ::4]


def test_fid_of_inception(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(fid, "NoTrainInceptionV3", FakeInception)
    monkeypatch.setenv("GEN_DATA", str(tmp_path))
    path = tmp_path / "inception" / "weights-inception-2015-12-05-6726825d.pth"
    with pytest.raises(UsageError, match=f"{path}.*download failed .no network"):
        extractor.inception()
    path.parent.mkdir()
    path.write_bytes(b"no weights")
    with pytest.raises(UsageError, match=f"{path}.*is damaged"):
        extractor.inception()
    torch.save({}, path)
    net = extractor.inception()
    a, b = blobs(100).images, blobs(100, seed=1).images
    scores = compare(a, b, net)
    assert set(scores) == {"FID", "KID", "precision", "recall", "density", "coverage"} and net.name == "inception"
    dim_a, dim_b = ((data.unit(x) - 0.001).clamp(min=0) for x in (a, b))
    assert compare(dim_a, dim_b, net) == scores  # rounded, not cut, to the same pixels
    assert compare(a.expand(-1, 3, -1, -1), b.expand(-1, 3, -1, -1), net) == scores
    with pytest.raises(UsageError, match="1 or 3 channels"):
        features(net, a.expand(-1, 2, -1, -1))
