"""SimCLR: its step against plain float64, learning, own networks, other bounds, resume of the schedule, wrong use."""

import json
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn

from gen_core.harness.errors import UsageError
from gen_vision import RawPixels, SimCLR, data, protocols
from gen_vision.data import Images
from gen_vision.optim import LARS

CPU = {"accelerator": "cpu", "progress": False}


def some(count: int = 40, channels: int = 1, side: int = 8) -> Images:
    generator = torch.Generator().manual_seed(2)
    pixels = torch.randint(0, 256, (count, channels, side, side), generator=generator, dtype=torch.uint8)
    return Images(pixels, torch.arange(count) % 2)


def config(**fields: object) -> SimCLR.Config:
    return SimCLR.Config(**({"epochs": 1, "batch_size": 16} | fields))  # pyright: ignore


class Flat(nn.Module):
    """Encoder without batch norm, so that every view is on its own."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.layer = nn.Linear(inputs, outputs)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layer(images.flatten(1))


def test_step_is_nt_xent_of_both_views() -> None:
    images = some(5)
    model = SimCLR(config(temperature=0.3), encoder=Flat(64, 6), augment=nn.Dropout(0.3))
    model.prepare(data.spec(images))
    model.log = lambda *_: None  # pyright: ignore
    torch.manual_seed(7)
    loss = model.training_step((images.images,), 0)

    torch.manual_seed(7)
    views = [model.augment(images.images.float() / 255) for _ in range(2)]
    z = torch.cat([model.head(model.encoder(view)) for view in views]).detach().double()
    z = z / z.norm(dim=1, keepdim=True)
    total = 0.0
    for i in range(10):
        scores = {k: math.exp(float(z[i] @ z[k]) / 0.3) for k in range(10) if k != i}
        total -= math.log(scores[(i + 5) % 10] / sum(scores.values()))
    assert loss.item() == pytest.approx(total / 10, abs=1e-5)


def test_one_batch_norm_statistic_over_both_views() -> None:
    images = some(8)
    model = SimCLR(config(rotation=0, scale=0, shift=0, noise=0.2))
    model.prepare(data.spec(images))
    model.log = lambda *_: None  # pyright: ignore
    sizes: list[int] = []
    model.encoder.register_forward_hook(lambda *args: sizes.append(len(args[2])))
    model.train()
    model.training_step((images.images,), 0)
    assert sizes == [16]


def test_digits_are_learnt() -> None:
    digits = data.load("digits")
    fields = {"batch_size": 128, "epochs": 12, "noise": 0.2, "shift": 0.05, "scale": 0.3}
    model, untrained = SimCLR(config(**fields)), SimCLR(config(**fields))
    model.fit(digits, seed=100, **CPU)
    untrained.prepare(data.spec(digits), 100)
    got = {
        name: protocols.few_label(SimpleNamespace(model=each, data=digits, seed=100), labels=2)["accuracy"]
        for name, each in (("simclr", model), ("untrained", untrained), ("raw", RawPixels()))
    }
    assert got["simclr"] > got["raw"] + 5 and got["simclr"] > got["untrained"] + 12, got


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path: Path) -> None:
    images = some()
    runs = [SimCLR(config(epochs=2)).fit(images, seed=seed, **CPU) for seed in (3, 3, 4)]
    z = [run.embed(images) for run in runs]
    assert torch.equal(z[0], z[1]) and not torch.allclose(z[0], z[2])
    runs[0].save(tmp_path)
    assert torch.equal(SimCLR.load(tmp_path).embed(images), z[0])


def test_embed_takes_uint8_and_float_alike() -> None:
    images = some()
    model = SimCLR(config()).fit(images, **CPU)
    model.eval()
    with torch.no_grad():
        assert torch.equal(model(images.images), model(images.images.float() / 255))
    assert model.embed(images).shape == (40, 128)


def test_own_networks(tmp_path: Path) -> None:
    images = some(channels=3)
    net, head = Flat(3 * 64, 10), nn.Linear(10, 4)
    before = net.layer.weight.clone(), head.weight.clone()
    model = SimCLR(config(), encoder=net, head=head).fit(images, **CPU)
    assert model.encoder is net and model.embed(images).shape == (40, 10)
    assert not torch.equal(net.layer.weight, before[0]) and not torch.equal(head.weight, before[1])
    model.save(tmp_path)
    again = SimCLR.load(tmp_path, encoder=Flat(3 * 64, 10), head=nn.Linear(10, 4))
    assert torch.equal(again.embed(images), model.embed(images))
    with pytest.raises(UsageError, match="encoder"):
        SimCLR.load(tmp_path)
    assert SimCLR(config(), encoder=Flat(192, 10)).fit(images, **CPU).head[0].in_features == 10  # measured


@pytest.mark.parametrize("bound", ["infonce", "dv", "nwj", "tuba", "jsd", "smile", "interpolated", "nce"])
def test_other_bounds(bound: str) -> None:
    images = some()
    model = SimCLR(config(bound=bound))
    model.prepare(data.spec(images))
    start = model.critic.log_scale.item()
    assert start == pytest.approx(math.log(2))  # scale 1 / .5
    model.fit(images, **CPU)
    assert abs(model.critic.log_scale.item() - start) > 1e-4 and torch.isfinite(model.embed(images)).all()


def test_infonce_is_the_papers_loss_shifted() -> None:
    model = SimCLR(config(bound="infonce", temperature=0.4))
    model.prepare(data.spec(some()))
    a, b = torch.randn(6, 5), torch.randn(6, 5)
    paper = SimCLR(config(temperature=0.4)).objective(a, b)
    assert model.objective(a, b).item() == pytest.approx(paper.item() - math.log(11), abs=1e-5)  # 2N - 1 = 11


@pytest.mark.parametrize("bound", ["paper", "dv", "infonce"])
def test_the_views_of_all_devices_are_candidates(monkeypatch: pytest.MonkeyPatch, bound: str) -> None:
    """Two pretended ranks: their losses average to that of one process on the joined batch."""
    model = SimCLR(config(bound=bound))
    model.prepare(data.spec(some()))
    a, b = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0))
    alone = model.objective(a, b)
    losses = []
    for rank in (0, 1):
        own = slice(3 * rank, 3 * rank + 3)

        def gathered(rows: torch.Tensor, rank: int = rank) -> torch.Tensor:
            if len(rows) == 3:  # one view of this rank: those of all
                return a if torch.equal(rows, a[3 * rank : 3 * rank + 3]) else b
            views = [torch.cat([a[3 * r : 3 * r + 3], b[3 * r : 3 * r + 3]]) for r in (0, 1)]
            other = views[1 - rank] / views[1 - rank].norm(dim=1, keepdim=True)  # as the loss has its own
            return torch.cat([rows, other] if rank == 0 else [other, rows])

        monkeypatch.setattr("gen_core.losses.contrastive.world", lambda rank=rank: (rank, 2))
        monkeypatch.setattr("gen_core.losses.contrastive.gather_rows", gathered)
        monkeypatch.setattr("gen_vision.methods.contrastive.simclr.gather", gathered)
        losses.append(model.objective(a[own], b[own]))
    torch.testing.assert_close(torch.stack(losses).mean(), alone, rtol=0, atol=1e-6)


def test_lars_schedule_and_exclusions() -> None:
    model = SimCLR(
        config(optimizer="lars", learning_rate=0.3, scaling="linear", warmup_epochs=2, epochs=4, weight_decay=1e-4)
    )
    rates: list[float] = []

    class Watch(Callback):
        def on_train_batch_start(self, trainer, *_: object) -> None:  # pyright: ignore
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    model.fit(some(40), callbacks=[Watch()], **CPU)
    peak, warmup, total = 0.3 * 16 / 256, 5, 11  # round(2 * 40 / 16), floor(40 * 4 / 16) + 1
    assert len(rates) == 8  # 4 epochs of 2 whole batches: the last 8 images are dropped
    wanted = [step / warmup for step in range(5)]
    wanted += [0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) for step in range(5, 8)]
    assert rates == pytest.approx([peak * factor for factor in wanted], abs=1e-9)


def test_root_scaling_and_weight_decay_groups() -> None:
    model = SimCLR(config(optimizer="lars", learning_rate=0.1, scaling="sqrt", weight_decay=0.01, batch_size=25))
    images = some(50)
    model.prepare(data.spec(images))
    model.training_data, model._trainer = images, SimpleNamespace(world_size=1)  # pyright: ignore
    optimizer = model.configure_optimizers()["optimizer"]
    assert isinstance(optimizer, LARS)
    matrices, vectors = optimizer.param_groups
    assert matrices["initial_lr"] == pytest.approx(0.5) and matrices["weight_decay"] == 0.01 and matrices["adapt"]
    assert vectors["weight_decay"] == 0 and not vectors["adapt"]
    assert all(weight.ndim > 1 for weight in matrices["params"])
    assert all(weight.ndim == 1 for weight in vectors["params"])


def test_a_small_set_is_one_batch_and_one_image_is_refused() -> None:
    assert SimCLR(config(batch_size=256)).fit(some(6), **CPU).embed(some(6)).shape == (6, 128)
    with pytest.raises(UsageError, match="at least 2 images"):
        SimCLR(config()).fit(some(1), **CPU)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", 0),
        ("temperature", math.nan),
        ("batch_size", 1),
        ("epochs", 0),
        ("learning_rate", -1e-3),
        ("min_crop_area", 0),
        ("colour_strength", 1.5),
        ("grey", 1.1),
        ("encoder", "resnet19"),
        ("bound", "club"),
        ("optimizer", "sgd"),
        ("epoch", 3),
    ],
)
def test_config_refuses(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        SimCLR.Config(**{field: value})  # pyright: ignore


def test_unfit_images_are_named() -> None:
    model = SimCLR(config()).fit(some(), **CPU)
    with pytest.raises(UsageError, match=r"3 channels.*trained on 1"):
        model.embed(some(channels=3))


def test_every_field_is_documented() -> None:
    assert [name for name, field in SimCLR.Config.model_fields.items() if not field.description] == []


def test_cifar_10(gen_data: Path) -> None:
    """The recipe `cifar10` at half its length."""
    images = data.load("cifar10-4k")
    model = SimCLR(SimCLR.Config(epochs=5, batch_size=128, min_crop_area=0.2))
    model.prepare(data.spec(images), 100)
    before = protocols.knn(SimpleNamespace(model=model, data=images, seed=100))["knn"]
    model.fit(images, seed=100, **CPU)
    after = protocols.knn(SimpleNamespace(model=model, data=images, seed=100))["knn"]
    assert before <= 33 and after >= before + 3, (before, after)


TWO_RANKS = """
import sys
from pathlib import Path

import torch
from lightning.pytorch.callbacks import Callback

from gen_vision import SimCLR, data


class Keep(Callback):
    def on_train_end(self, trainer, pl_module):
        torch.save(dict(pl_module.named_parameters()), Path(sys.argv[1]) / f"rank{trainer.global_rank}.pt")


if __name__ == "__main__":
    model = SimCLR(SimCLR.Config(epochs=1, batch_size=64))
    model.fit(data.load("digits"), out=f"{sys.argv[1]}/run", accelerator="cpu", devices=2, callbacks=[Keep()])
"""


def test_two_cpu_ranks_end_with_equal_weights_in_one_run_folder(tmp_path: Path) -> None:
    script = tmp_path / "two.py"
    script.write_text(TWO_RANKS)
    done = subprocess.run([sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert {path.name for path in tmp_path.iterdir()} == {"two.py", "rank0.pt", "rank1.pt", "run"}
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1352 // 2 // 64))  # each rank has half of the images
    loaded = SimCLR.load(tmp_path / "run")
    assert all(torch.equal(value, first[name]) for name, value in loaded.named_parameters())


def test_a_stopped_run_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    images, fields = some(), {"epochs": 4, "optimizer": "lars", "warmup_epochs": 1.0}
    straight = SimCLR(config(**fields)).fit(images, seed=5, **CPU)

    class Stop(Callback):
        def on_train_batch_start(self, trainer, *_: object) -> None:  # pyright: ignore
            if trainer.global_step == 5:  # in the middle of the third epoch
                raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        SimCLR(config(**fields)).fit(images, seed=5, out=tmp_path, callbacks=[Stop()], **CPU)
    resumed = SimCLR(config(**fields)).fit(images, seed=5, out=tmp_path, resume=True, **CPU)
    for name, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
