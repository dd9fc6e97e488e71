"""What a generative run leaves and does: pictures during training, `sample`, `reconstruct`."""

import numpy as np
import pytest
import torch
from PIL import Image

from gen_core.harness import cli
from gen_vision import VAE, data, pictures
from gen_vision.registry import DOMAIN


def gen(*words):
    return cli.main(DOMAIN, [str(word) for word in words])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    run = tmp_path_factory.mktemp("verbs") / "run"
    assert gen("train", "vae", "--epochs", 5, "--hidden", 16, "--latent", 3, "--device", "cpu", "--out", run) == 0
    return run


def test_pictures_are_kept_during_training_and_at_the_end(folder):
    names = {path.name for path in (folder / "figures").glob("*.png")}
    assert {f"samples-epoch-{epoch}.png" for epoch in range(1, 6)} <= names  # ten at most, one an epoch at least
    assert {"samples.png", "reconstructions.png", "traversal.png", "embedding.png", "loss.png"} <= names
    first, last = (np.asarray(Image.open(folder / f"figures/samples-epoch-{k}.png").convert("L")) for k in (1, 5))
    assert (first != last).any()


def test_the_last_picture_is_the_trained_models(folder):
    model = VAE.load(folder)
    shown = pictures.grid(model.sample(64), 8)
    kept = torch.from_numpy(np.asarray(Image.open(folder / "figures" / "samples-epoch-5.png").convert("L")) / 255)
    assert (shown[0] - kept).abs().max() < 0.01


def test_pictures_are_in_tensorboard(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"), {"images": 0})  # 0: all of them
    events.Reload()
    assert set(events.Tags()["images"]) == {"samples", "reconstructions"}
    assert [event.step for event in events.Images("samples")] == [1, 2, 3, 4, 5]


def test_sample_writes_what_python_gives(folder, tmp_path):
    assert gen("sample", folder, "-n", 7, "--seed", 3, "--out", tmp_path / "s.npz") == 0
    assert np.array_equal(np.load(tmp_path / "s.npz")["samples"], VAE.load(folder).sample(7, seed=3).numpy())
    assert gen("sample", folder, "-n", 7, "--seed", 3, "--out", tmp_path / "s.png") == 0
    assert Image.open(tmp_path / "s.png").size == (3 * 66 + 2, 3 * 66 + 2)  # 8 x 8 pixels eight times as large


def test_sample_needs_no_data(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "load", lambda *_: pytest.fail("the data was read"))
    assert gen("sample", folder, "--out", tmp_path / "s.png") == 0


def test_reconstruct_shows_the_test_images_beside_the_models(folder, tmp_path):
    assert gen("reconstruct", folder, "-n", 5, "--out", tmp_path / "r.npz") == 0
    found = np.load(tmp_path / "r.npz")
    images = data.load("digits").test.images[:5]
    assert np.allclose(found["originals"], images / 255.0)
    assert np.array_equal(found["reconstructions"], VAE.load(folder).reconstruct(images).numpy())
    assert len(found["ids"]) == 5
    assert gen("reconstruct", folder, "--data", "digits", "--out", tmp_path / "r.png") == 0
    assert Image.open(tmp_path / "r.png").size == (8 * 66 + 2, 8 * 66 + 2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("sample", "-n", 0), "-n 0: must be at least 1"),
        (("sample", "--out", "s.txt"), "must end in .png, .jpg, .jpeg, .npz"),
        (("sample", "--out", "nowhere/s.png"), "cannot be written"),
        (("reconstruct", "-n", -1), "-n -1: must be at least 1"),
    ],
)
def test_wrong_use_is_refused_by_name(folder, capsys, words, message):
    assert gen(words[0], folder, *words[1:]) == 2
    assert message in capsys.readouterr().err


def test_a_method_without_images_says_which_have(tmp_path, capsys):
    run = tmp_path / "run"
    assert gen("train", "simclr", "--epochs", 1, "--device", "cpu", "--out", run) == 0
    assert gen("sample", run) == 2
    assert "simclr cannot; methods that can: vae," in capsys.readouterr().err
