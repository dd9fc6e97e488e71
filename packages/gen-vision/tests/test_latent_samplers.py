"""Samplers beside NCP-VAE against the laws they claim, and the protocol that compares all of them."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from gen_core.evaluation import frechet_features
from gen_core.harness.errors import UsageError
from gen_vision import (
    NCPVAE,
    VAE,
    BetaVAE,
    GaussianMixturePrior,
    HierarchicalVAE,
    SimCLR,
    TwoStageVAE,
    data,
    extractor,
    protocols,
)
from gen_vision.data import Images
from gen_vision.methods.vae.vae import codes

CPU: Any = {"accelerator": "cpu", "progress": False}
FLAT: Any = {"hidden": (16,), "latent": 3, "epochs": 1, "batch_size": 16}
CLASSIFIER = NCPVAE.Config(hidden=(64, 64), epochs=30, learning_rate=3e-3, proposals=50)
SAMPLERS: dict[str, Any] = {
    "gaussian-mixture-prior": lambda **given: GaussianMixturePrior(GaussianMixturePrior.Config(components=2), **given),
    "two-stage-vae": lambda **given: TwoStageVAE(TwoStageVAE.Config(hidden=16, epochs=1, batch_size=16), **given),
}


def bits(images: Tensor) -> Tensor:
    """As the Bernoulli likelihood draws them, from the same random state."""
    return (torch.rand(images.shape) < images).to(images.dtype)


def some(count: int = 32, side: int = 8) -> Images:
    generator = torch.Generator().manual_seed(2)
    return Images(torch.randint(0, 256, (count, 1, side, side), generator=generator, dtype=torch.uint8))


@pytest.fixture(scope="module")
def holed() -> tuple[BetaVAE, Images]:
    """A VAE of the digits whose codes leave most of its prior empty."""
    digits = data.load("digits")
    config = BetaVAE.Config(beta=0.1, hidden=(32,), latent=4, epochs=10, learning_rate=1e-2)
    return BetaVAE(config).fit(digits, seed=1, **CPU), digits


def latents(model: Any, n: int, **options: Any) -> Tensor:
    """The z whose images `model.sample` shows."""
    seen: list[Tensor] = []
    hook = model.base.decoder.register_forward_pre_hook(lambda _, given: seen.append(given[0].clone()))
    model.sample(n, **options)
    hook.remove()
    return torch.cat(seen)


def held_out(base: BetaVAE, digits: Images) -> Tensor:
    """A posterior sample of each test image, drawn here."""
    assert digits.test is not None
    with torch.no_grad():
        torch.manual_seed(0)
        mean, log_variance = base.posterior(bits(digits.test.images / 255))
        return mean + (0.5 * log_variance).exp() * torch.randn_like(mean)


def frechet(a: Tensor, b: Tensor) -> float:
    """By eigenvalues of the product of the covariances, in float64."""
    (mu_a, cov_a), (mu_b, cov_b) = ((x.mean(0), np.cov(x.T)) for x in (a.double().numpy(), b.double().numpy()))
    cross = np.sqrt(np.linalg.eigvals(cov_a @ cov_b).astype(complex)).real.sum()
    return float(((mu_a - mu_b) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * cross)


# ----------------------------------------------------------------------------------------------------- Gaussian mixture


def test_mixture_draws_by_sklearns_law(holed: tuple[BetaVAE, Images]) -> None:
    base, digits = holed
    model = GaussianMixturePrior(GaussianMixturePrior.Config(components=4), vae=base).fit(digits, seed=3)
    z = codes(base, digits, 3).double().numpy()
    law: Any = GaussianMixture(4, max_iter=2000, random_state=3).fit(z)
    n = 20_000
    drawn = latents(model, n, seed=5, batch_size=n).double().numpy()
    mean = law.weights_ @ law.means_
    second = np.einsum("k,kij->ij", law.weights_, law.covariances_ + np.einsum("ki,kj->kij", law.means_, law.means_))
    covariance = second - np.outer(mean, mean)
    assert (np.abs(drawn.mean(0) - mean) < 4 * np.sqrt(np.diag(covariance) / n)).all()
    spread = np.einsum("ni,nj->nij", drawn - mean, drawn - mean)
    assert (np.abs(spread.mean(0) - covariance) < 4 * spread.std(0) / math.sqrt(n)).all()
    own, theirs = law.score_samples(drawn), law.score_samples(law.sample(n)[0])  # log-density: its law, not two moments
    assert abs(own.mean() - theirs.mean()) < 4 * math.sqrt((own.var() + theirs.var()) / n)
    shares = np.bincount(law.predict(drawn), minlength=4) / n
    wanted = np.bincount(law.predict(law.sample(n)[0]), minlength=4) / n
    assert (np.abs(shares - wanted) < 4 * np.sqrt(2 * wanted / n)).all()


def test_mixture_is_nearer_to_held_out_codes_than_the_prior(holed: tuple[BetaVAE, Images]) -> None:
    base, digits = holed
    wanted = held_out(base, digits)
    model = GaussianMixturePrior(vae=base).fit(digits)
    mixed, prior = (frechet(latents(one, len(wanted), seed=1), wanted) for one in (model, base))
    assert mixed < 0.5 * prior, (mixed, prior)


def test_codes_are_samples_and_no_means(holed: tuple[BetaVAE, Images]) -> None:
    base, digits = holed
    with torch.no_grad():
        mean, log_variance = base.posterior(bits(digits.images / 255))
    off = codes(base, digits, 3) - mean
    assert off.square().mean().item() > 0.8 * log_variance.exp().mean().item()


# ------------------------------------------------------------------------------------------------------ a second VAE


def test_second_vae_minimises_its_bound_on_codes() -> None:
    """One step by hand: which numbers are drawn, and the terms by torch.distributions in float64."""
    images = some(24)
    base = VAE(VAE.Config(**FLAT)).fit(images, **CPU)
    model: Any = SAMPLERS["two-stage-vae"](vae=base)
    model.prepare(data.spec(images))
    logged: dict[str, Tensor] = {}
    model.log_dict = logged.update
    with torch.no_grad():
        model.log_variance.fill_(-0.7)
    torch.manual_seed(4)
    loss = model.training_step((images.images,), 0)
    loss.backward()

    torch.manual_seed(4)
    with torch.no_grad():
        mean, log_variance = base.posterior(bits(images.images / 255))
        z = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        u_mean, u_log_variance = model.encoder(z).chunk(2, 1)
        u = u_mean + (0.5 * u_log_variance).exp() * torch.randn_like(u_mean)
        shown = model.decoder(u).double()
    posterior = Normal(u_mean.double(), (0.5 * u_log_variance.double()).exp())
    kl = kl_divergence(posterior, Normal(torch.zeros_like(shown), 1.0)).sum(1).mean().item()
    nll = -Normal(shown, math.exp(-0.35)).log_prob(z.double()).sum(1).mean().item()
    assert loss.item() == pytest.approx(kl + nll, rel=1e-5)
    assert logged["kl"].item() == pytest.approx(kl, rel=1e-5)
    assert logged["reconstruction"].item() == pytest.approx(nll, rel=1e-5)
    errors = ((z.double() - shown).square() * math.exp(0.7)).sum(1).mean().item()
    assert model.log_variance.grad.item() == pytest.approx((3 - errors) / 2, rel=1e-4)  # the variance is learnt
    assert not any(weight.requires_grad for weight in base.parameters())


def test_second_vae_is_nearer_to_held_out_codes_than_the_prior(holed: tuple[BetaVAE, Images]) -> None:
    base, digits = holed
    wanted = held_out(base, digits)
    model = TwoStageVAE(TwoStageVAE.Config(hidden=64, epochs=50), vae=base).fit(digits, seed=1, **CPU)
    second, prior = (frechet(latents(one, len(wanted), seed=1), wanted) for one in (model, base))
    assert second < 0.5 * prior, (second, prior)
    assert model.log_variance.exp().item() < 0.7 * wanted.var(0).mean().item()


def test_samples_of_the_second_vae_have_its_noise() -> None:
    images = some(24)
    base = VAE(VAE.Config(**FLAT)).fit(images, **CPU)
    model: Any = SAMPLERS["two-stage-vae"](vae=base)
    model.prepare(data.spec(images))
    with torch.no_grad():
        for weight in model.decoder.parameters():
            weight.zero_()
        model.decoder[-1].bias.fill_(1.5)
        model.log_variance.fill_(2 * math.log(0.2))
    z = latents(model, 5000, batch_size=2000)
    assert z.mean().item() == pytest.approx(1.5, abs=4 * 0.2 / math.sqrt(15_000))
    assert z.std().item() == pytest.approx(0.2, abs=4 * 0.2 / math.sqrt(30_000))


# -------------------------------------------------------------------------------------------------------------- either


@pytest.mark.parametrize("kind", SAMPLERS)
def test_the_base_stands_still(kind: str) -> None:
    images = some(24)
    base = VAE(VAE.Config(network="conv", **FLAT)).fit(images, **CPU)
    before = {name: value.clone() for name, value in base.state_dict().items()}
    assert any("running_mean" in name for name in before)
    base.train()
    model = SAMPLERS[kind](vae=base).fit(images, **CPU)
    model.sample(3)
    assert not base.training
    assert all(torch.equal(base.state_dict()[name], value) for name, value in before.items())
    assert torch.equal(model.embed(images), base.embed(images))


@pytest.mark.parametrize("kind", SAMPLERS)
def test_a_saved_sampler_is_loaded_with_its_base(kind: str, tmp_path: Path) -> None:
    images = some(24)
    model = SAMPLERS[kind](vae=VAE(VAE.Config(**FLAT)).fit(images, **CPU)).fit(images, seed=3, out=tmp_path, **CPU)
    again = type(model).load(tmp_path)
    assert type(again.base) is VAE and again.config == model.config
    assert torch.equal(again.sample(6, seed=2, mean=False), model.sample(6, seed=2, mean=False))
    assert not torch.equal(again.sample(6, seed=2), again.base.sample(6, seed=2))
    assert not torch.equal(again.sample(6, seed=2), again.sample(6, seed=3))
    assert torch.equal(again.embed(images), model.embed(images))


@pytest.mark.parametrize("kind", SAMPLERS)
def test_unfit_bases_are_named(kind: str) -> None:
    images, make = some(24), SAMPLERS[kind]
    with pytest.raises(UsageError, match="vae: give a trained VAE"):
        make().fit(images, **CPU)
    with pytest.raises(UsageError, match="vae: this VAE is not trained"):
        make(vae=VAE(VAE.Config(**FLAT))).fit(images, **CPU)
    with pytest.raises(UsageError, match="vae: a SimCLR is no VAE"):
        make(vae=SimCLR(SimCLR.Config())).fit(images, **CPU)
    other = VAE(VAE.Config(**FLAT)).fit(some(24, 9), **CPU)
    with pytest.raises(UsageError, match=r"vae: .*\(1, 9, 9\).*\(1, 8, 8\)"):
        make(vae=other).fit(images, **CPU)


@pytest.mark.parametrize("groups", [(1,), (1, 1)])
@pytest.mark.parametrize("kind", SAMPLERS)
def test_hierarchical_bases_are_refused_by_name(kind: str, groups: tuple[int, ...]) -> None:
    images = some(24)
    config = HierarchicalVAE.Config(groups=groups, stem=1, latent=2, channels=4, epochs=1)
    with pytest.raises(UsageError, match="vae"):
        SAMPLERS[kind](vae=HierarchicalVAE(config).fit(images, **CPU)).fit(images, **CPU)


def test_fewer_images_than_components_are_named() -> None:
    images = some(8)
    base = VAE(VAE.Config(**FLAT)).fit(images, **CPU)
    with pytest.raises(UsageError, match="components"):
        GaussianMixturePrior(GaussianMixturePrior.Config(components=10), vae=base).fit(images)


def test_every_field_is_documented_and_bounded() -> None:
    for method, field in ((GaussianMixturePrior, "components"), (TwoStageVAE, "hidden"), (TwoStageVAE, "epochs")):
        assert [name for name, each in method.Config.model_fields.items() if not each.description] == []
        with pytest.raises(ValueError, match=field):
            method.Config(**{field: 0})


# ------------------------------------------------------------------------------------------------ protocol `generation`


class Net(nn.Module):
    """Brightness of rows and of columns; fixed, in place of a net that is trained for a minute."""

    name, identity = "stub", "stub@0, 12.5 % accuracy"

    def forward(self, images: Tensor) -> Tensor:
        x = data.unit(images)[:, 0]
        return torch.cat([x.mean(1), F.avg_pool1d(x.mean(2), 2)], 1)


def evaluated(model: Any, digits: Images, monkeypatch: pytest.MonkeyPatch, **options: Any) -> tuple[Any, dict]:
    monkeypatch.setattr(extractor, "extractor", lambda _: Net())
    run = SimpleNamespace(model=model, data=digits, seed=6, facts={}, curves={})
    return run, protocols.generation(run, samples=300, **options)


def test_generation_compares_samples_floor_and_proposals(
    holed: tuple[BetaVAE, Images], monkeypatch: pytest.MonkeyPatch
) -> None:
    base, digits = holed
    assert digits.test is not None
    model = NCPVAE(CLASSIFIER, vae=base).fit(digits, seed=1, **CPU)
    run, metrics = evaluated(model, digits, monkeypatch, proposals=(1, 50))
    plain_run, plain = evaluated(base, digits, monkeypatch)

    torch.manual_seed(6)
    real = bits(digits.test.images / 255)[:300]
    net = Net()
    drawn = {m: model.sample(300, seed=6, mean=False, proposals=m) for m in (1, 50)}
    drawn[0] = base.sample(300, seed=6, mean=False)
    assert all(set(images.unique().tolist()) == {0.0, 1.0} for images in drawn.values())
    own = {m: frechet(net(images), net(real)) for m, images in drawn.items()}
    for m in (1, 50):
        assert metrics[f"FD[stub]@{m}"] == pytest.approx(own[m], rel=1e-4)
    assert metrics["FD[stub]"] == metrics["FD[stub]@50"]  # the Config's own
    assert metrics["FD[stub]@1"] == plain["FD[stub]"] == pytest.approx(own[0], rel=1e-4)

    with torch.no_grad():
        torch.manual_seed(6)
        x = bits(digits.images[torch.randperm(len(digits))[:300]] / 255)
        mean, log_variance = base.posterior(x)
        shown = torch.bernoulli(base.decoder(mean + (0.5 * log_variance).exp() * torch.randn_like(mean)).sigmoid())
    floor = frechet(net(shown), net(real))
    assert metrics["floor"] == plain["floor"] == pytest.approx(floor, rel=1e-4)
    assert metrics["floor"] < 0.5 * metrics["FD[stub]@1"] and metrics["FD[stub]@50"] < 0.5 * metrics["FD[stub]@1"]

    assert run.facts == plain_run.facts == {"extractor": "stub@0, 12.5 % accuracy"}
    curve = [(1.0, metrics["FD[stub]@1"]), (50.0, metrics["FD[stub]@50"])]
    assert run.curves == {"FD[stub] over proposals": curve} and plain_run.curves == {}
    assert {"KID[stub]", "precision", "recall", "density", "coverage"} <= plain.keys()
    assert not any("nce" in name or "log_z" in name for name in plain)


def test_generation_reports_the_classifiers(holed: tuple[BetaVAE, Images], monkeypatch: pytest.MonkeyPatch) -> None:
    base, digits = holed
    assert digits.test is not None
    model = NCPVAE(CLASSIFIER, vae=base).fit(digits, seed=1, **CPU)
    _, metrics = evaluated(model, digits, monkeypatch)
    with torch.no_grad():
        codes_of_test = torch.cat([held_out(base, digits)] * 5)
        logits = [model.classifiers[0](z).double() for z in (codes_of_test, torch.randn(20_000, 4))]
    nce = (torch.log1p((-logits[0]).exp()).mean() + torch.log1p(logits[1].exp()).mean()).item()
    accuracy = 50 * ((logits[0] > 0).double().mean() + (logits[1] <= 0).double().mean()).item()
    assert metrics["nce_1"] == pytest.approx(nce, abs=0.08) and nce < 1.25
    assert metrics["accuracy_1"] == pytest.approx(accuracy, abs=4) and accuracy > 60
    z = logits[1].exp()
    error = (z.std() / z.mean() / math.sqrt(9984)).item()
    assert metrics["log_z_error_1"] == pytest.approx(2 * error, rel=0.5)
    assert metrics["log_z_1"] == pytest.approx(z.mean().log().item(), abs=4 * error + 4 * error / math.sqrt(2))


def test_generation_weighs_each_group_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    images = Images(some(60).images, test=some(50))
    config = HierarchicalVAE.Config(groups=(1, 1), stem=1, latent=2, channels=4, epochs=1, batch_size=16)
    base = HierarchicalVAE(config).fit(images, **CPU)
    fields: Any = {"channels": 4, "epochs": 1, "batch_size": 16, "proposals": 8}
    model = NCPVAE(NCPVAE.Config(**fields), vae=base).fit(images, **CPU)
    run, metrics = evaluated(model, images, monkeypatch, each_group=True)
    torch.manual_seed(6)
    real = Net()(bits(some(50).images / 255))
    for group in (0, 1):
        drawn = model.sample(300, seed=6, mean=False, groups={group})
        assert metrics[f"FD[stub]@group-{group + 1}"] == pytest.approx(frechet(Net()(drawn), real), rel=1e-4)
        assert {f"nce_{group + 1}", f"accuracy_{group + 1}", f"log_z_{group + 1}"} <= metrics.keys()
    assert len({metrics[name] for name in ("FD[stub]", "FD[stub]@group-1", "FD[stub]@group-2")}) == 3
    assert run.curves == {}


def test_generation_needs_a_method_that_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="protocol generation: the method makes no images"):
        evaluated(SimCLR(), some(), monkeypatch)


def test_frechet_of_this_file_is_the_cores() -> None:
    a, b = torch.randn(60, 5), 0.5 * torch.randn(70, 5) + 1
    assert frechet(a, b) == pytest.approx(frechet_features(a, b), rel=1e-6)
