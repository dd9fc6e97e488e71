"""CR-VAE: the brief's numbers, its loss over every base against plain float64, lambda = 0, wrong use, learning."""

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from PIL import Image
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from gen_core.harness import cli, recipes
from gen_core.harness.errors import UsageError
from gen_core.harness.fitting import mix
from gen_vision import CRVAE, IWAE, VAE, BetaVAE, HierarchicalVAE, SimCLR, data, protocols
from gen_vision.augment import AffineNoise
from gen_vision.data import Images
from gen_vision.networks.latents import Group, inconsistency
from gen_vision.registry import DOMAIN

CPU: Any = {"accelerator": "cpu", "progress": False}
FLAT: Any = {"hidden": (16,), "latent": 3, "epochs": 1, "batch_size": 16}
DEEP: Any = {"stem": 1, "latent": 2, "channels": 4, "epochs": 1, "batch_size": 16}
BASES: dict[str, Callable[[], Any]] = {
    "vae": lambda: VAE(VAE.Config(**FLAT)),
    "beta-vae": lambda: BetaVAE(BetaVAE.Config(beta=4, **FLAT)),
    "iwae": lambda: IWAE(IWAE.Config(samples=5, **FLAT)),
    "hierarchical-vae": lambda: HierarchicalVAE(HierarchicalVAE.Config(groups=(1, 1), **DEEP)),
}


def bits(images: Tensor) -> Tensor:
    """As the Bernoulli likelihood draws them, from the same random state."""
    return (torch.rand(images.shape) < images).to(images.dtype)


def some(count: int = 32, seed: int = 2) -> Images:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return Images(pixels, torch.arange(count) % 2)


def pair(n: int) -> tuple[Tensor, Tensor]:
    first, second = (data.unit(some(n, seed).images, torch.float64) for seed in (3, 4))
    return first, second


def built(base: Any, transform: nn.Module | None = None, **fields: Any) -> Any:
    """In float64, what it logs kept in `logged`; weights moved, so that no head is at 0."""
    model: Any = CRVAE(CRVAE.Config(**fields), vae=base, **({"transform": transform} if transform else {}))
    model.prepare(data.spec(some()), 1)
    model.logged = {}
    model.log_dict = model.logged.update
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        for weight in model.parameters():
            weight += 0.1 * torch.randn_like(weight)
    return model.double()


def side(group: Group, rows: Any) -> Normal:
    return Normal(group.mean[rows].flatten(1), (0.5 * group.log_variance[rows]).exp().flatten(1))


def prior(group: Group, rows: Any) -> Normal:
    if group.prior_mean is None or group.prior_log_variance is None:
        return Normal(torch.zeros_like(group.mean[rows].flatten(1)), 1.0)
    return Normal(group.prior_mean[rows].flatten(1), (0.5 * group.prior_log_variance[rows]).exp().flatten(1))


def negative_bound(kind: str, found: Any, x: Tensor, rows: Tensor) -> Tensor:
    """Of the images x, whose samples are these rows, one whole batch after the other."""
    k = len(rows) // len(x)
    wanted = x.repeat(k, 1, 1, 1)
    nll = F.binary_cross_entropy_with_logits(found.parameters[rows], wanted, reduction="none").flatten(1).sum(1)
    if kind == "iwae":
        logs = [side(g, rows).log_prob(g.z[rows]) - prior(g, rows).log_prob(g.z[rows]) for g in found.groups]
        log_weights = -nll - torch.stack(logs).sum((0, 2))
        return -(log_weights.view(k, len(x)).exp().mean(0).log()).mean()
    kl = torch.stack([kl_divergence(side(g, rows), prior(g, rows)).sum(1) for g in found.groups]).sum(0)
    return (nll + (4 if kind == "beta-vae" else 1) * kl).mean()


def apart(groups: list[Group], n: int) -> Tensor:
    """Mean KL(q(z|x') || q(z|x)) of n pairs, whose first n rows are x."""
    both = [kl_divergence(side(g, slice(n, 2 * n)), side(g, slice(n))).sum(1) for g in groups]
    return torch.stack(both).sum(0).mean()


# --------------------------------------------------------------------------------------------- the KL of two posteriors


def worked() -> list[Tensor]:
    """mu, log-variance, mu', log-variance' of the brief."""
    n = torch.arange(12, dtype=torch.float64).view(4, 3)
    mu, log_variance = (0.71 * n).sin(), 0.6 * (0.29 * n + 2).sin()
    return [mu, log_variance, mu + 0.3 * (0.43 * n + 1).sin(), 0.6 * (0.51 * n + 0.3).sin()]


def of(mu: Tensor, log_variance: Tensor, mu_changed: Tensor, log_variance_changed: Tensor) -> Tensor:
    mean, log_variances = torch.cat([mu, mu_changed]), torch.cat([log_variance, log_variance_changed])
    return inconsistency([Group(mean, mean, log_variances)], slice(4, 8), slice(4)).mean()


def test_worked_number_is_the_transformed_images_posterior_against_the_originals() -> None:
    mu, log_variance, mu_changed, log_variance_changed = worked()
    assert of(mu, log_variance, mu_changed, log_variance_changed).item() == pytest.approx(0.156304767, abs=1e-6)
    swapped = of(mu_changed, log_variance_changed, mu, log_variance).item()
    assert swapped == pytest.approx(0.141011312, abs=1e-6)  # the wrong direction
    official = of(mu, 2 * log_variance, mu_changed, 2 * log_variance_changed).item()
    assert official == pytest.approx(0.404947726, abs=1e-6)  # the official code's exp(log sigma^2) for sigma


def test_both_posteriors_get_gradient() -> None:
    given = [tensor.requires_grad_() for tensor in worked()]
    mu, log_variance, mu_changed, log_variance_changed = torch.autograd.grad(of(*given), given)
    slope = (given[2] - given[0]).detach() / given[1].detach().exp() / 4
    torch.testing.assert_close(mu_changed, slope, rtol=1e-9, atol=0)
    assert mu.ne(0).all() and torch.equal(mu, -mu_changed)
    ratio = (given[3] - given[1]).detach().exp()
    torch.testing.assert_close(log_variance_changed, (ratio - 1) / 8, rtol=1e-9, atol=0)
    assert log_variance.ne(0).all()


def test_one_group_of_a_hierarchy_is_the_flat_formula() -> None:
    model = built(HierarchicalVAE(HierarchicalVAE.Config(groups=(1,), **DEEP)))
    x = bits(torch.cat(pair(4)))
    mean, log_variance = (t.flatten(1) for t in model.base.posterior(x))
    found = model.base.infer(x)
    assert len(found.groups) == 1
    ratio, shift = log_variance[4:] - log_variance[:4], (mean[4:] - mean[:4]).square() / log_variance[:4].exp()
    flat = 0.5 * (ratio.exp() - ratio + shift - 1).sum(1)
    torch.testing.assert_close(inconsistency(found.groups, slice(4, 8), slice(4)), flat, rtol=1e-9, atol=1e-12)
    assert flat.min() > 0.01


# ----------------------------------------------------------------------------------------------------------- the loss


@pytest.mark.parametrize("kind", BASES)
def test_loss_is_both_bounds_and_lambda_times_the_kl(kind: str) -> None:
    n, model = 6, built(BASES[kind](), consistency=0.7)
    images, changed = pair(n)
    weights = [weight for name, weight in model.named_parameters() if "merge.0" not in name]  # see the next test
    torch.manual_seed(5)
    loss = model.objective(images, changed)
    slopes = torch.autograd.grad(loss, weights)

    torch.manual_seed(5)
    x = bits(torch.cat([images, changed]))
    k = 5 if kind == "iwae" else 1
    found = model.base.infer(x, k)
    assert len(found.groups) == (2 if kind == "hierarchical-vae" else 1)
    row = torch.arange(k)[:, None] * 2 * n + torch.arange(n)
    bounds = [negative_bound(kind, found, x[half : half + n], (row + half).flatten()) for half in (0, n)]
    wanted = bounds[0] + bounds[1] + 0.7 * apart(found.groups, n)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-9)
    assert model.logged["inconsistency"].item() == pytest.approx(apart(found.groups, n).item(), rel=1e-9)
    assert apart(found.groups, n).item() > 0.01
    for slope, other in zip(slopes, torch.autograd.grad(wanted, weights), strict=True):
        torch.testing.assert_close(slope, other, rtol=1e-6, atol=1e-9)


def test_every_weight_of_a_hierarchy_gets_gradient() -> None:
    model = built(BASES["hierarchical-vae"]())
    model.objective(*pair(6)).backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []


@pytest.mark.parametrize("kind", BASES)
def test_identity_and_shared_noise_cost_twice_the_base(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    n, model = 8, built(BASES[kind](), nn.Identity(), consistency=3.0)
    images = (pair(n)[0] > 0.5).double()  # bits are not drawn again

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def twice(like: Tensor) -> Tensor:
        half = noise(len(like) // (2 * n), n, *like.shape[1:])
        return torch.cat([half, half], 1).flatten(0, 1)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "randn_like", twice)
        loss = model.objective(images, model.changed(images))
    with monkeypatch.context() as patch:
        patch.setattr(torch, "randn_like", lambda like: noise(*like.shape))
        parts = model.base.terms(images, model.base.infer(images, model.base.samples_per_step))
    assert model.logged["inconsistency"].item() == 0
    assert loss.item() == pytest.approx(2 * sum(part.item() for part in parts.values()), rel=1e-12)


def test_warm_up_of_the_base_goes_on() -> None:
    model = built(BASES["hierarchical-vae"](), consistency=0.5)
    images, changed = pair(6)
    torch.manual_seed(5)
    loss = model.objective(images, changed, 0.15)
    torch.manual_seed(5)
    x = bits(torch.cat([images, changed]))
    found = model.base.infer(x)
    nll = F.binary_cross_entropy_with_logits(found.parameters, x, reduction="none").flatten(1).sum(1).mean()
    kl = torch.stack([kl_divergence(side(g, slice(None)), prior(g, slice(None))).sum(1).mean() for g in found.groups])
    share = (kl + 0.01) / kl.new_tensor([1.0, 4.0])  # NVAE's balance: sizes 4^scale over the groups of a scale
    balanced = (kl * share / share.mean()).sum()
    wanted = 2 * (nll + 0.15 / 0.3 * balanced) + 0.5 * apart(found.groups, 6)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-9)


def test_lambda_0_is_the_base_on_images_and_changed_images_bit_for_bit() -> None:
    images, seed = some(32), 7
    model = CRVAE(CRVAE.Config(consistency=0), vae=BASES["vae"]()).fit(images, seed=seed, **CPU)

    base = BASES["vae"]()
    base.prepare(data.spec(images), seed)
    adam = torch.optim.Adam(base.parameters(), 1e-3, fused=True)
    change = AffineNoise(rotation=15, shift=0.05, scale=0.1, noise=0)  # the official code's "simple"
    order = torch.randperm(32, generator=torch.Generator().manual_seed(mix(seed, 0)))
    torch.manual_seed(mix(seed, 0, 0))
    for rows in order.split(16):
        shown = images.images[rows].float() / 255
        x = bits(torch.cat([shown, change(shown)]))
        loss = 2 * torch.stack(list(base.terms(x, base.infer(x)).values())).sum()
        adam.zero_grad()
        loss.backward()
        adam.step()
    fresh = BASES["vae"]()
    fresh.prepare(data.spec(images), seed)
    for name, value in base.state_dict().items():
        assert torch.equal(model.base.state_dict()[name], value), name
        assert not torch.equal(fresh.state_dict()[name], value), name


@pytest.mark.parametrize(("name", "weight"), [("digits", 0.1), ("mnist", 1.0), ("mnist-short", 0.1)])
def test_recipe_arm_at_lambda_0_is_vae_aug(name: str, weight: float) -> None:
    arms = recipes.arms(DOMAIN, recipes.load(DOMAIN, f"cr-vae/{name}")[1])
    own, aug, plain = arms["cr-vae"], arms["vae-aug"], arms["vae"]
    assert (aug.method, aug.train) == ("cr-vae", True)
    configs = [CRVAE.Config(**arm.config).model_dump() for arm in (own, aug)]
    assert configs[0].pop("consistency") == weight and configs[1].pop("consistency") == 0
    assert configs[0] == configs[1] and own.given == aug.given and not own.given["vae"].train
    assert VAE.Config(**plain.config).model_dump(mode="json") == own.given["vae"].config


@pytest.mark.parametrize("kind", BASES)
def test_base_starts_as_it_would_alone(kind: str) -> None:
    alone, other = BASES[kind](), BASES[kind]()
    alone.prepare(data.spec(some()), 5)
    other.prepare(data.spec(some()), 6)
    model = CRVAE(vae=BASES[kind]())
    model.prepare(data.spec(some()), 5)
    got = model.base.state_dict()
    assert all(torch.equal(got[name], value) for name, value in alone.state_dict().items())
    assert any(not torch.equal(got[name], value) for name, value in other.state_dict().items())


def test_length_batch_and_rate_are_the_bases_own() -> None:
    base = VAE(VAE.Config(hidden=(4,), latent=2, epochs=3, batch_size=7, learning_rate=0.02))
    model: Any = CRVAE(vae=base)
    rates: list[float] = []
    model.on_train_batch_start = lambda *_: rates.append(model.trainer.optimizers[0].param_groups[0]["lr"])
    model.fit(some(15), **CPU)
    assert rates == [0.02] * 3 * 2


# ---------------------------------------------------------------------------------------------------- transformation


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, images: Tensor) -> Tensor:
        return self.function(images)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x[..., 1:], r"transform: must keep the shape \(16, 1, 8, 8\), gave \(16, 1, 8, 7\)"),
        (lambda x: x[1:], "transform: must keep the shape"),
        (lambda x: 1.2 * x, r"transform: must stay in \[0, 1\], gave values from 0 to 1.2"),
        (lambda x: x - 0.5, r"transform: must stay in \[0, 1\], gave values from -0.5"),
        (lambda x: x / 0 * 0, r"transform: must stay in \[0, 1\], gave values from nan"),
    ],
)
def test_unfit_transformation_is_named(function: Callable[[Tensor], Tensor], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        CRVAE(vae=BASES["vae"](), transform=Function(function)).fit(some(), **CPU)


def test_own_transformation_is_what_the_second_bound_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    bits = Images((some().images > 127).to(torch.uint8) * 255)
    seen: list[Tensor] = []
    plain = VAE.infer
    monkeypatch.setattr(VAE, "infer", lambda self, x, samples=1: seen.append(x) or plain(self, x, samples))
    CRVAE(vae=BASES["vae"](), transform=Function(lambda x: 1 - x)).fit(bits, **CPU)
    assert len(seen) == 2
    assert all(torch.equal(x[16:], 1 - x[:16]) for x in seen)


def test_transformation_draws_for_each_image_and_step() -> None:
    model = built(BASES["vae"]())
    image = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    image[0, 0, 1:4, 2:5] = 1
    torch.manual_seed(0)
    first, second = (model.changed(image.expand(5, -1, -1, -1)) for _ in range(2))
    together = torch.cat([first, second]).flatten(1)
    assert (torch.pdist(together) > 1e-3).all()
    assert (together.sum(1) / 9 - 1).abs().max() < 0.35  # sides by 0.9 to 1.1, and no pixel of 3 x 3 leaves 8 x 8


# --------------------------------------------------------------------------------------------------- bases and folders


@pytest.mark.parametrize("other", [SimCLR, lambda: nn.Linear(2, 2), CRVAE])
def test_what_is_no_vae_is_refused_by_name(other: Callable[[], nn.Module]) -> None:
    part = other()
    with pytest.raises(UsageError, match=f"vae: a {type(part).__name__} is no VAE"):
        CRVAE(vae=part).fit(some(), **CPU)


@pytest.mark.parametrize("kind", [*BASES, None])
def test_a_saved_model_is_loaded_with_its_base(kind: str | None, tmp_path: Path) -> None:
    images = some()
    given = {"vae": BASES[kind]()} if kind else {"vae": VAE(VAE.Config(hidden=(8,), latent=2, epochs=1))}
    model = CRVAE(CRVAE.Config(consistency=0.3), **given).fit(images, seed=2, out=tmp_path, **CPU)
    again = CRVAE.load(tmp_path)
    assert type(again.base) is type(model.base) and again.base.config == model.base.config
    assert again.config.consistency == 0.3
    assert torch.equal(again.embed(images), model.embed(images))
    assert torch.equal(again.reconstruct(images), model.reconstruct(images))
    assert torch.equal(again.sample(5, seed=3, mean=False), model.sample(5, seed=3, mean=False))
    assert not torch.equal(again.sample(5, seed=3, mean=False), model.sample(5, seed=4, mean=False))
    fresh = CRVAE(vae=BASES[kind]() if kind else VAE(given["vae"].config))
    fresh.prepare(data.spec(images), 2)
    assert not torch.equal(fresh.embed(images), model.embed(images))  # it had learnt


def test_own_transformation_is_given_again(tmp_path: Path) -> None:
    images = some()
    model = CRVAE(vae=BASES["vae"](), transform=nn.Identity()).fit(images, out=tmp_path, **CPU)
    with pytest.raises(UsageError, match="transform"):
        CRVAE.load(tmp_path)
    assert torch.equal(CRVAE.load(tmp_path, transform=nn.Identity()).embed(images), model.embed(images))


def test_a_stopped_run_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    def model() -> Any:
        return CRVAE(vae=IWAE(IWAE.Config(samples=2, **FLAT | {"epochs": 3})))

    class Stop(Callback):
        def on_train_batch_start(self, trainer: Any, *_: object) -> None:
            if trainer.global_step == 3:  # in the middle of the second epoch
                raise RuntimeError("stop")

    straight = model().fit(some(), seed=5, **CPU)
    with pytest.raises(RuntimeError, match="stop"):
        model().fit(some(), seed=5, out=tmp_path, callbacks=[Stop()], **CPU)
    resumed = model().fit(some(), seed=5, out=tmp_path, resume=True, **CPU)
    for name, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def folder(path: Path) -> Path:
    for row, image in enumerate(some(10).images):
        (path / "ab"[row % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0].numpy()).save(path / "ab"[row % 2] / f"{row}.png")
    return path


def test_another_base_is_named_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of own images the method, built there; of digits a run, which goes on to learn."""
    monkeypatch.setattr(protocols, "figures", lambda *_: None)  # a map of the digits takes seconds
    base = IWAE(IWAE.Config(samples=3, hidden=(8,), latent=2, epochs=1))
    base.prepare(data.spec(data.load("digits")), 0)
    base.save(tmp_path / "base")
    device = ["--device", "cpu", "--logger", "csv"]
    own, digits = tmp_path / "own", tmp_path / "digits"
    words = ["train", "cr-vae", "--data", str(folder(tmp_path / "images")), "--given.vae", "iwae", "--out", str(own)]
    assert cli.main(DOMAIN, [*words, *device]) == 0
    words = ["train", "cr-vae", "--data", "digits", "--given.vae", str(tmp_path / "base"), "--out", str(digits)]
    assert cli.main(DOMAIN, [*words, "--consistency", "0.5", *device]) == 0
    first, second = CRVAE.load(own), CRVAE.load(digits)
    assert type(first.base) is IWAE and first.base.config == IWAE.Config()
    assert type(second.base) is IWAE and second.base.config == base.config and second.config.consistency == 0.5
    moved = [not torch.equal(second.base.state_dict()[name], value) for name, value in base.state_dict().items()]
    assert all(moved)
    steps = [len((out / "metrics.jsonl").read_text().splitlines()) for out in (own, digits)]
    assert steps == [IWAE.Config().epochs, 1352 // 128]


def test_command_line_refuses_a_base_that_is_no_vae(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "cr-vae", "--data", "digits", "--given.vae", "simclr", "--out", str(tmp_path / "run")]
    assert cli.main(DOMAIN, words) == 2
    assert "vae: a SimCLR is no VAE" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_every_field_is_documented_and_bounded() -> None:
    assert [name for name, field in CRVAE.Config.model_fields.items() if not field.description] == []
    for field, value in {"consistency": -0.1, "rotation": 181, "shift": 1, "scale": 1, "epochs": 3}.items():
        with pytest.raises(ValueError, match=field):
            CRVAE.Config(**{field: value})  # pyright: ignore


# ------------------------------------------------------------------------------------------------------------ learning


def turned(images: Tensor) -> Tensor:
    """Rotated by up to 15 degrees, shifted by up to 5 % and scaled by 0.9 to 1.1, written out here."""
    draws = 2 * torch.rand(4, len(images), generator=torch.Generator().manual_seed(0)) - 1
    angle, size = draws[0] * math.radians(15), 1 + 0.1 * draws[1]
    rows = [angle.cos() / size, -angle.sin() / size, 0.1 * draws[2], angle.sin() / size, angle.cos() / size]
    matrix = torch.stack([*rows, 0.1 * draws[3]], 1).view(-1, 2, 3)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False).clamp(0, 1)


def test_consistency_brings_the_posteriors_of_digits_together() -> None:
    digits = data.load("digits")
    assert digits.test is not None and digits.test.labels is not None and digits.labels is not None
    shown = data.unit(digits.test.images)
    torch.manual_seed(0)
    x = bits(torch.cat([shown, turned(shown)]))
    found, reported, turns = [], [], list[list[float]]()
    for weight in (0.0, 1.0):
        base = VAE(VAE.Config(hidden=(64,), latent=8, epochs=12))
        model = CRVAE(CRVAE.Config(consistency=weight), vae=base).fit(digits, seed=3, **CPU)
        with torch.no_grad():
            mean, log_variance = model.base.posterior(x)
        found.append(apart([Group(mean, mean, log_variance)], len(shown)).item())
        run = SimpleNamespace(model=model, data=digits, seed=0, curves={})
        metrics = protocols.consistency(run)
        (points,) = run.curves.values()
        assert [degrees for degrees, _ in points] == [0, 5, 10, 15, 20, 30, 45]
        turns.append([nats for _, nats in points])
        reported.append(metrics["inconsistency"])
        z, z_test = model.embed(digits).double(), model.embed(digits.test).double()
        nearest = digits.labels[torch.cdist(z_test, z).argmin(1)]
        hits = 100 * (nearest == digits.test.labels).double().mean().item()
        assert metrics["accuracy"] == pytest.approx(hits, abs=0.25)  # one tie in 445 may go either way
    assert found[1] <= 0.5 * found[0], found
    for nats in turns:  # farther turned, farther apart
        assert nats[0] < 0.8 * nats[3] < 0.8 * nats[6], nats
    assert all(with_it < without for without, with_it in zip(*turns, strict=True))
    assert reported == pytest.approx(found, rel=0.2)
