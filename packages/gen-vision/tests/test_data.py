"""gen_vision.data: registered sets, own folders, wrong use."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gen_core.harness.errors import UsageError
from gen_vision import data
from gen_vision.data import Images


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    shape = (height, width) if channels == 1 else (height, width, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_digits() -> None:
    digits = data.load("digits")
    assert digits.test is not None and digits.labels is not None and digits.test.labels is not None
    assert (len(digits), len(digits.test)) == (1352, 445)
    assert data.spec(digits) == {"channels": 1, "height": 8, "width": 8, "classes": 10}
    assert digits.images.max() == 255 and digits.images.min() == 0  # 0..16 became 0..255
    counts = digits.labels.bincount(), digits.test.labels.bincount()
    assert ((counts[0] + counts[1]) // 4 == counts[1]).all()  # every fourth of each class
    assert data.checksum(digits) == data.checksum(data.load("digits"))
    assert data.ids(digits)[:2] == ["0", "1"]


def test_checksum_sees_pixels_labels_shape_and_test_part() -> None:
    images, labels = torch.arange(16, dtype=torch.uint8).reshape(4, 1, 2, 2), torch.tensor([0, 1, 0, 1])
    base = Images(images, labels)
    other = [
        Images(images.flip(0), labels),
        Images(images, labels.flip(0)),
        Images(images.reshape(4, 1, 1, 4), labels),
        Images(images, labels, test=base),
        Images(images),
    ]
    assert len({data.checksum(each) for each in [base, *other]}) == 6


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"images": torch.zeros(2, 1, 4, 4)}, "uint8"),
        ({"images": torch.zeros(2, 4, 4, dtype=torch.uint8)}, r"\(n, c, h, w\)"),
        ({"images": torch.zeros(0, 1, 4, 4, dtype=torch.uint8)}, "non-empty"),
        ({"labels": torch.tensor([0])}, r"int64 \(2,\)"),
        ({"labels": torch.tensor([0.0, 1.0])}, "int64"),
        ({"labels": torch.tensor([-1, 1])}, "from 0 on, got -1"),
        ({"labels": torch.tensor([0, 5]), "classes": ("a", "b")}, "number of classes 2, got 5"),
        ({"ids": ("a",)}, "one name for each of 2"),
        ({"test": Images(torch.zeros(1, 3, 4, 4, dtype=torch.uint8))}, "test images"),
    ],
)
def test_images_refuse_what_does_not_fit(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Images(**({"images": torch.zeros(2, 1, 4, 4, dtype=torch.uint8)} | fields))


def test_flat_folder_of_one_size_is_kept(tmp_path: Path) -> None:
    first, second = noise(20, 30, seed=1), noise(20, 30, seed=2)
    save(tmp_path / "b.png", second)
    save(tmp_path / "a.png", first)
    (tmp_path / ".DS_Store").write_bytes(b"x")
    (tmp_path / "notes.txt").write_text("not an image")
    found = data.load(tmp_path)
    assert found.ids == ("a.png", "b.png") and found.labels is None and found.classes == ()
    assert torch.equal(found.images, torch.from_numpy(np.stack([first, second])).permute(0, 3, 1, 2))


def test_class_folders_of_mixed_sizes_and_colours(tmp_path: Path) -> None:
    save(tmp_path / "cat" / "1.png", noise(40, 60))
    save(tmp_path / "cat" / "deep" / "2.jpg", noise(16, 16, 1))
    save(tmp_path / "dog" / "3.webp", noise(30, 20))
    (tmp_path / "empty").mkdir()
    found = data.load(tmp_path)
    assert found.classes == ("cat", "dog") and found.labels is not None
    assert found.labels.tolist() == [0, 0, 1]
    assert found.ids == ("cat/1.png", "cat/deep/2.jpg", "dog/3.webp")
    assert found.images.shape == (3, 3, 20, 20)  # the median of the shorter sides 40, 16, 20
    assert data.load(tmp_path, size=12).images.shape == (3, 3, 12, 12)
    assert data.spec(found)["classes"] == 2


def test_common_size_stays_between_8_and_224(tmp_path: Path) -> None:
    save(tmp_path / "large" / "1.png", noise(300, 400, 1))
    assert data.load(tmp_path / "large").images.shape == (1, 1, 224, 224)
    save(tmp_path / "small" / "1.png", noise(3, 5, 1))
    save(tmp_path / "small" / "2.png", noise(4, 5, 1))
    assert data.load(tmp_path / "small").images.shape == (2, 1, 8, 8)


def test_resize_keeps_the_aspect_and_cuts_the_centre(tmp_path: Path) -> None:
    wide = np.zeros((32, 96), dtype=np.uint8)
    wide[:, 32:64] = 200  # the central square alone is bright
    save(tmp_path / "1.png", wide)
    assert (data.load(tmp_path, size=32).images == 200).all()


def test_grey_folder_has_one_channel_and_16_bits_are_scaled(tmp_path: Path) -> None:
    Image.fromarray(np.full((9, 9), 65535, dtype=np.uint16)).save(tmp_path / "a.png")
    save(tmp_path / "b.png", np.full((9, 9), 7, dtype=np.uint8))
    found = data.load(tmp_path)
    assert found.images.shape == (2, 1, 9, 9)
    assert found.images[:, 0, 0, 0].tolist() == [255, 7]


def test_orientation_tag_and_alpha(tmp_path: Path) -> None:
    picture = Image.fromarray(noise(10, 20))
    tag = Image.Exif()
    tag[0x0112] = 6  # shown turned by 90 degrees
    picture.save(tmp_path / "a.png", exif=tag)
    Image.fromarray(noise(20, 10, 4)).save(tmp_path / "b.png")
    assert data.load(tmp_path).images.shape == (2, 3, 20, 10)


def test_train_and_test_parts(tmp_path: Path) -> None:
    for part, label in (("train", "a"), ("train", "b"), ("train", "c"), ("test", "c"), ("test", "b")):
        save(tmp_path / part / label / "1.png", noise(8, 8))
    found = data.load(tmp_path)
    assert found.test is not None and found.test.labels is not None
    assert found.test.classes == ("a", "b", "c") and found.test.labels.tolist() == [1, 2]
    assert found.test.ids == ("test/b/1.png", "test/c/1.png")
    save(tmp_path / "test" / "zebra" / "1.png", noise(8, 8))
    with pytest.raises(UsageError, match="zebra"):
        data.load(tmp_path)


def test_wrong_paths(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'digitz'.*nearest: digits"):
        data.load("digitz")
    with pytest.raises(UsageError, match="no such folder"):
        data.load(tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"holds no image; suffixes read: .*\.png"):
        data.load(tmp_path)
    (tmp_path / "file.png").write_bytes(b"x")
    with pytest.raises(UsageError, match="is a file"):
        data.load(tmp_path / "file.png")
    with pytest.raises(UsageError, match="size"):
        data.load("digits", size=4)


@pytest.mark.parametrize("kind", ["text", "cut", "empty"])
def test_a_corrupt_image_is_named(tmp_path: Path, kind: str) -> None:
    save(tmp_path / "a.png", noise(64, 64))
    whole = (tmp_path / "a.png").read_bytes()
    broken = {"text": b"hello", "cut": whole[: len(whole) // 2], "empty": b""}[kind]
    (tmp_path / "broken.png").write_bytes(broken)
    with pytest.raises(UsageError, match=r"broken\.png: not a readable image"):
        data.load(tmp_path)


def test_a_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "bomb.png", noise(64, 64, 1))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # an error from twice that on
    with pytest.raises(UsageError, match=r"bomb\.png.*decompression bomb"):
        data.load(tmp_path)


def test_images_beside_class_folders_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "1.png", noise(8, 8))
    save(tmp_path / "cat" / "1.png", noise(8, 8))
    with pytest.raises(UsageError, match=r"directly \(1\.png.*subfolders \(cat\)"):
        data.load(tmp_path)


def test_an_unreadable_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "cat" / "1.png", noise(8, 8))
    real = os.scandir

    def scandir(path: object = ".") -> object:
        if os.fspath(path).endswith("cat"):  # pyright: ignore
            raise PermissionError(13, "Permission denied", os.fspath(path))  # pyright: ignore
        return real(path)  # pyright: ignore

    monkeypatch.setattr(os, "scandir", scandir)  # permissions do not bind root
    with pytest.raises(UsageError, match="cat: the folder cannot be read"):
        data.load(tmp_path)


@pytest.mark.parametrize("name", ["mnist", "mnist-10k", "cifar10", "cifar10-4k"])
def test_a_missing_set_says_where_and_how(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEN_DATA", str(tmp_path))
    with pytest.raises(UsageError, match=f"'{name}' was not found; searched {tmp_path}.*torchvision"):
        data.load(name)


def test_cifar10_is_not_unpickled_unless_its_md5_agrees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEN_DATA", str(tmp_path))
    folder = tmp_path / "cifar10" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    trap = b"cos\nmkdir\n(S'" + str(tmp_path / "trap").encode() + b"'\ntR."  # a pickle that makes a folder
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"]:
        (folder / name).write_bytes(trap)
    with pytest.raises(UsageError, match="md5"):
        data.load("cifar10")
    assert not (tmp_path / "trap").exists()


def test_mnist_damaged_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEN_DATA", str(tmp_path))
    folder = tmp_path / "mnist" / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for part in ("train", "t10k"):
        for name in (f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"):
            (folder / name).write_bytes(b"\0\0\x08\x01\0\0\0\x05")
    with pytest.raises(UsageError, match="damaged IDX"):
        data.load("mnist")


def test_real_sets(gen_data: Path) -> None:
    cifar, mnist = data.load("cifar10-4k"), data.load("mnist-10k")
    assert cifar.test is not None and cifar.labels is not None and mnist.test is not None
    assert (len(cifar), len(cifar.test), len(mnist), len(mnist.test)) == (4000, 2000, 10000, 10000)
    assert cifar.classes[int(cifar.labels[0])] == "frog"
    whole = data.load("cifar10").images.double() / 255
    assert torch.allclose(whole.mean((0, 2, 3)), torch.tensor([0.4914, 0.4822, 0.4465]).double(), atol=5e-5)
