"""VAE, beta-VAE, IWAE, hierarchical VAE: terms, bounds, likelihoods, samples, own networks, learning, wrong use."""

import itertools
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from PIL import Image
from torch import Tensor, nn
from torch.distributions import Bernoulli as Bits
from torch.distributions import Normal, kl_divergence

from gen_core.harness import cli, report
from gen_core.harness.errors import Diverged, UsageError
from gen_vision import IWAE, VAE, BetaVAE, HierarchicalVAE, data, pictures, protocols
from gen_vision.data import Images
from gen_vision.methods.vae.vae import expect
from gen_vision.networks.latents import Group, gaussian, inconsistency, seeded
from gen_vision.networks.likelihoods import Bernoulli, LikelihoodConfig, LogisticMixture, likelihood
from gen_vision.networks.vae import conv_decoder, conv_encoder
from gen_vision.registry import DOMAIN

CPU = {"accelerator": "cpu", "progress": False}


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some(count: int = 48, channels: int = 1, height: int = 8, width: int = 8) -> Images:
    shape = (count, channels, height, width)
    return Images(torch.randint(0, 256, shape, generator=gen(2), dtype=torch.uint8), torch.arange(count) % 2)


def bits(*shape: int, seed: int = 4) -> Tensor:
    return torch.randint(0, 2, shape, generator=gen(seed)).double()


FLAT = {"hidden": (16,), "latent": 3}
DEEP = {"groups": (1, 2), "stem": 2, "channels": 4, "latent": 2, "expand": 1}


def made(method: Any, **fields: Any) -> Any:
    """An untrained model's configuration of few numbers, one epoch long."""
    small = DEEP if method is HierarchicalVAE else FLAT
    return method(method.Config(**({"epochs": 1, "batch_size": 16} | small | fields)))


def built(model: Any, images: Images | None = None, spread: float = 1.0, seed: int = 0) -> Any:
    """The model for these images in float64 and evaluation mode, its weights random by `spread` times their start."""
    model.prepare(data.spec(some(4) if images is None else images), seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += (spread - 1) * parameter
    return model.double().eval()


def normal(mean: Tensor, log_variance: Tensor) -> Normal:
    return Normal(mean, (log_variance / 2).exp())


def mean_of_logs(weights: Tensor) -> Tensor:
    """Mean over images of log mean_k exp(w_kb), by hand and without a shift: for moderate weights."""
    return weights.exp().mean(0).log().mean()


# --- latents

SHAPES = [(5, 3), (4, 2, 3, 2)]


def group(shape: tuple[int, ...], prior: bool, seed: int = 0) -> Group:
    generator = gen(seed)
    mean, log_variance, p_mean, p_log_variance, z = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(5)
    )
    return Group(z, mean, log_variance, *((p_mean, p_log_variance) if prior else ()))


def laws(one: Group) -> tuple[Normal, Normal]:
    """q and p of a group."""
    standard = Normal(torch.zeros_like(one.mean), torch.ones_like(one.mean))
    if one.prior_mean is None or one.prior_log_variance is None:
        return normal(one.mean, one.log_variance), standard
    return normal(one.mean, one.log_variance), normal(one.prior_mean, one.prior_log_variance)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("prior", [False, True])
def test_kl_and_ratio_of_a_group_are_torchs(shape: tuple[int, ...], prior: bool) -> None:
    one = group(shape, prior)
    q, p = laws(one)
    torch.testing.assert_close(one.kl(), kl_divergence(q, p).flatten(1).sum(1))
    torch.testing.assert_close(one.log_ratio(), (q.log_prob(one.z) - p.log_prob(one.z)).flatten(1).sum(1))


@pytest.mark.parametrize("shape", SHAPES)
def test_inconsistency_is_the_kl_of_the_changed_rows_to_the_original_ones(shape: tuple[int, ...]) -> None:
    groups = [group((6, *shape[1:]), prior=k > 0, seed=k) for k in range(2)]
    wanted = torch.zeros(2, dtype=torch.float64)
    for one in groups:
        changed, original = (normal(one.mean[rows], one.log_variance[rows]) for rows in (slice(4, 6), slice(1, 3)))
        wanted += kl_divergence(changed, original).flatten(1).sum(1)
    torch.testing.assert_close(inconsistency(groups, slice(4, 6), slice(1, 3)), wanted)
    assert not torch.allclose(inconsistency(groups, slice(1, 3), slice(4, 6)), wanted)
    assert torch.equal(inconsistency(groups, slice(1, 3), slice(1, 3)), torch.zeros(2).double())


def test_temperature_multiplies_the_deviation() -> None:
    mean, log_variance = torch.randn(2, 4, 3, generator=gen()).double()
    log_variance.requires_grad_()
    for temperature in (0.0, 0.5, 1.0, 2.0):
        torch.manual_seed(1)
        z = gaussian(mean, log_variance, temperature)
        torch.manual_seed(1)
        noise = temperature * torch.randn(4, 3, dtype=torch.float64)
        torch.testing.assert_close(z, mean + noise * (log_variance / 2).exp())
        (gradient,) = torch.autograd.grad(z.sum(), log_variance)
        torch.testing.assert_close(gradient, (noise * (log_variance / 2).exp() / 2).detach())
    many = gaussian(torch.full((200_000,), 3.0), torch.full((200_000,), math.log(4.0)), 0.5)
    assert many.mean().item() == pytest.approx(3, abs=0.02) and many.std().item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_seeded_puts_mode_and_random_state_back(training: bool, fails: bool) -> None:
    net = nn.Sequential(nn.Dropout(0.5), nn.Linear(2, 2)).train(training)
    torch.manual_seed(8)
    wanted = torch.rand(3)
    torch.manual_seed(8)
    try:
        with seeded(net, 5):
            assert not net.training and not net[0].training
            inside = torch.rand(3)
            if fails:
                raise RuntimeError("stop")
    except RuntimeError:
        assert fails
    assert net.training is training and net[0].training is training
    assert torch.equal(torch.rand(3), wanted)
    assert torch.equal(inside, torch.rand(3, generator=gen(5)))


# --- likelihoods


def test_bernoulli_draws_bits_with_the_grey_value_as_mean() -> None:
    grey = torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0]).view(1, 1, 5, 1)
    torch.manual_seed(3)
    drawn = Bernoulli(1, True).observe(grey.expand(20_000, 1, 5, 1))
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    error = (drawn.mean(0) - grey[0]).abs().flatten()
    assert error[0] == 0 and error[4] == 0 and error.max() < 4 * 0.5 / math.sqrt(20_000)
    assert not torch.equal(drawn[:100], Bernoulli(1, True).observe(grey.expand(100, 1, 5, 1)))  # anew in every step
    assert torch.equal(Bernoulli(1, False).observe(grey), grey)


def test_bernoulli_reads_and_shows_logits() -> None:
    logits, x = torch.randn(4, 2, 3, 3, generator=gen()).double(), bits(4, 2, 3, 3)
    law = Bernoulli(2, True)
    assert law.parameters == 2
    torch.testing.assert_close(law.nll(logits, x), -Bits(logits=logits).log_prob(x).flatten(1).sum(1))
    torch.testing.assert_close(law.mean(logits), Bits(logits=logits).mean)
    drawn = law.sample(logits[:1].expand(20_000, -1, -1, -1), gen(1))
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    assert (drawn.mean(0) - 1 / (1 + (-logits[0]).exp())).abs().max() < 4.5 * 0.5 / math.sqrt(20_000)


def test_logistic_mixture_observes_the_grid_and_gives_uint8_back() -> None:
    law = LogisticMixture(3, 5)
    every = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    for dtype in (torch.float32, torch.float64):
        seen = law.observe(data.unit(every, dtype))
        wanted = torch.tensor([k / 127.5 - 1 for k in range(256)], dtype=dtype).view(1, 1, 16, 16)
        torch.testing.assert_close(seen, wanted, rtol=0, atol=1e-6)
        assert seen.min() == -1 and seen.max() == 1
        assert torch.equal((law.shown(seen) * 255).round().to(torch.uint8), every)
    between = torch.tensor([7.4, 7.6, 254.9]) / 255
    assert ((law.observe(between) + 1) * 127.5).tolist() == pytest.approx([7, 8, 255], abs=1e-4)


def test_logistic_mixture_shows_a_draw_with_noise_of_its_own() -> None:
    law, parameters = LogisticMixture(3, 2), torch.randn(2, 20, 4, 4, generator=gen()).double()
    torch.manual_seed(1)
    first = law.mean(parameters)
    torch.manual_seed(2)
    assert torch.equal(first, law.mean(parameters)) and not torch.equal(first, law.sample(parameters))
    levels = law.sample(parameters) * 255
    assert (levels - levels.round()).abs().max() < 1e-9 and levels.min() >= 0 and levels.max() <= 255
    assert len(levels.round().unique()) > 20


@pytest.mark.parametrize("law", [Bernoulli(1, True), Bernoulli(1, False), LogisticMixture(1, 2)])
@pytest.mark.parametrize("value", [-0.01, 1.01, 255.0, math.nan, math.inf])
def test_pixels_outside_the_unit_interval_are_refused(law: Any, value: float) -> None:
    images = torch.full((2, 1, 3, 3), 0.5)
    images[1, 0, 2, 1] = value
    with pytest.raises(UsageError, match=rf"images: pixels must be uint8 or lie in \[0, 1\].*{value:.4g}"):
        law.observe(images)


def test_the_likelihood_follows_the_channels_and_five_are_refused() -> None:
    def chosen(channels: int, **fields: Any) -> Any:
        return likelihood(LikelihoodConfig(**fields), channels)

    assert isinstance(chosen(1), Bernoulli) and isinstance(chosen(3), LogisticMixture)
    assert isinstance(chosen(1, likelihood="logistic-mixture"), LogisticMixture)
    assert chosen(3, likelihood="bernoulli").parameters == 3
    assert chosen(1, likelihood="logistic-mixture", components=4).parameters == 12
    assert chosen(3, components=4).parameters == 40
    for kind in ("auto", "logistic-mixture"):
        with pytest.raises(UsageError, match=r"likelihood = 'logistic-mixture': images have 5 channels; it knows 1"):
            chosen(5, likelihood=kind)
    with pytest.raises(UsageError, match="5 channels"):
        made(VAE, likelihood="logistic-mixture").fit(some(channels=5), **CPU)


# --- terms


def linear(latent: int = 3, side: int = 4, seed: int = 0) -> tuple[nn.Module, nn.Module]:
    """Encoder and decoder of one matrix each, float64, with weights that are not small."""
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(side * side, 2 * latent))
    decoder = nn.Sequential(nn.Linear(latent, side * side), nn.Unflatten(1, (1, side, side)))
    with torch.no_grad():
        for parameter in (*encoder.parameters(), *decoder.parameters()):
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=gen(seed + parameter.numel())))
    return encoder.double(), decoder.double()


def forward(model: Any, x: Tensor, noise: Tensor) -> tuple[Normal, Tensor, Tensor]:
    """q(z|x), z and the logits of `linear` networks, written out."""
    (w, b), (v, c) = ((net.weight.detach(), net.bias.detach()) for net in (model.encoder[1], model.decoder[0]))
    out = x.flatten(1) @ w.T + b
    d = w.shape[0] // 2
    q = Normal(out[:, :d], (out[:, d:] / 2).exp())
    z = q.mean + q.stddev * noise
    return q, z, z @ v.T + c


def test_terms_of_the_vae_are_torchs_at_the_same_sample() -> None:
    encoder, decoder = linear()
    model, x = VAE(VAE.Config(latent=3), encoder=encoder, decoder=decoder), bits(6, 1, 4, 4)
    model.prepare(data.spec(some(4, 1, 4, 4)))
    torch.manual_seed(11)
    parts = model.terms(x, model.infer(x))
    torch.manual_seed(11)
    q, _, logits = forward(model, x, torch.randn(6, 3, dtype=torch.float64))
    assert set(parts) == {"reconstruction", "kl"}
    wanted = -Bits(logits=logits).log_prob(x.flatten(1)).sum(1).mean()
    torch.testing.assert_close(parts["reconstruction"], wanted)
    torch.testing.assert_close(parts["kl"], kl_divergence(q, Normal(0.0, 1.0)).sum(1).mean())


def test_terms_of_grey_targets_and_of_a_mixture() -> None:
    model = built(made(VAE, binarize=False))
    grey = torch.rand(5, 1, 8, 8, generator=gen(), dtype=torch.float64)
    found = model.infer(model.likelihood.observe(grey))
    p = found.parameters.sigmoid()
    wanted = -(grey * p.log() + (1 - grey) * (1 - p).log()).sum((1, 2, 3)).mean()
    torch.testing.assert_close(model.terms(grey, found)["reconstruction"], wanted)

    model = built(made(VAE, components=1), some(4, channels=3), spread=2)
    x = model.likelihood.observe(data.unit(some(4, channels=3).images, torch.float64))
    found = model.infer(x)
    mean, scale = found.parameters[:, 1:4], found.parameters[:, 4:7].clamp(min=-7).exp()
    a, b, c = found.parameters[:, 7:10].tanh().unbind(1)
    mean = torch.stack([mean[:, 0], mean[:, 1] + a * x[:, 0], mean[:, 2] + b * x[:, 0] + c * x[:, 1]], 1)
    high, low = (((x + side / 255 - mean) / scale).sigmoid() for side in (1, -1))
    high, low = torch.where(x > 0.9999, 1.0, high), torch.where(x < -0.9999, 0.0, low)
    wanted = -(high - low).log().sum((1, 2, 3)).mean()
    torch.testing.assert_close(model.terms(x, found)["reconstruction"], wanted)


def test_log_variances_stay_within_ten() -> None:
    encoder, decoder = linear()
    with torch.no_grad():
        encoder[1].weight.zero_()
        encoder[1].bias.copy_(torch.tensor([1.0, 0.0, 0.0, 50.0, -50.0, 3.0]))
    model, x = VAE(VAE.Config(latent=3), encoder=encoder, decoder=decoder), bits(6, 1, 4, 4)
    model.prepare(data.spec(some(4, 1, 4, 4)))
    q = Normal(torch.tensor([1.0, 0.0, 0.0]), torch.tensor([math.exp(5), math.exp(-5), math.exp(1.5)]))
    wanted = kl_divergence(q, Normal(0.0, 1.0)).sum().item()
    assert model.terms(x, model.infer(x))["kl"].item() == pytest.approx(wanted, rel=1e-6)


def rows(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


LOGGED = {
    "vae": (VAE, {}, {"reconstruction", "kl"}),
    "beta": (BetaVAE, {"beta": 4.0}, {"reconstruction", "kl", "pressure"}),
    "iwae": (IWAE, {"samples": 5}, {"reconstruction", "kl", "tightening"}),
    "deep": (HierarchicalVAE, {"balance": False, "warm_up": 0.5}, {"reconstruction", "kl", "warm_up"}),
    "balanced": (HierarchicalVAE, {"warm_up": 0.5}, {"reconstruction", "kl", "warm_up"}),
    "no warm-up": (HierarchicalVAE, {"warm_up": 0.0}, {"reconstruction", "kl"}),
}


@pytest.mark.parametrize("kind", LOGGED)
def test_logged_parts_add_up_to_the_loss(kind: str, tmp_path: Path) -> None:
    method, fields, names = LOGGED[kind]
    made(method, epochs=4, **fields).fit(some(), out=tmp_path / "run", logger="none", **CPU)
    found = rows(tmp_path / "run")
    assert len(found) == 12
    for step, row in enumerate(found):
        parts = set(row) - {"step", "epoch", "loss", "elbo"}
        assert parts == names
        if fields.get("warm_up") == 0.5 and step >= 6:
            assert row["warm_up"] == 0
        assert row["loss"] == pytest.approx(sum(row[name] for name in parts), abs=1e-4)
        assert row["elbo"] == pytest.approx(-row["reconstruction"] - row["kl"], abs=1e-4)
        if kind == "beta":
            assert row["loss"] == pytest.approx(row["reconstruction"] + 4 * row["kl"], abs=1e-4)
        if kind == "iwae":
            assert -60 < row["tightening"] < 0 and row["loss"] < -row["elbo"]
        if kind == "deep":
            weight = min(1, max(1e-4, step / 12 / 0.5))
            assert row["loss"] == pytest.approx(row["reconstruction"] + weight * row["kl"], abs=1e-4)


def test_balanced_warm_up_written_out() -> None:
    model, x = built(made(HierarchicalVAE, warm_up=0.4), spread=2), bits(5, 1, 8, 8)
    found = model.infer(x)
    kls = torch.stack([kl_divergence(*laws(one)).flatten(1).sum(1) for one in found.groups], 1)
    sizes = torch.tensor([1.0, 2.0, 2.0], dtype=torch.float64)  # one group of scale 0; two of scale 1, 4 / 2 each
    share = (kls.mean(0) + 0.01) / sizes
    balanced = (kls * share / share.mean()).sum(1).mean()
    reconstruction = -Bits(logits=found.parameters).log_prob(x).sum((1, 2, 3)).mean()
    assert abs(balanced - kls.sum(1).mean()) > 0.01
    for done, weight in ((0.0, 1e-4), (0.1, 0.25), (0.3, 0.75)):
        parts = model.terms(x, found, done)
        torch.testing.assert_close(parts["kl"], kls.sum(1).mean())
        torch.testing.assert_close(sum(parts.values()), reconstruction + weight * balanced)
    for done in (0.4, 1.0):
        torch.testing.assert_close(sum(model.terms(x, found, done).values()), reconstruction + kls.sum(1).mean())


def test_beta_vae_at_one_is_the_vae_and_at_four_is_not() -> None:
    plain, one, four = (
        made(method, epochs=2, **fields).fit(some(), seed=3, **CPU)
        for method, fields in ((VAE, {}), (BetaVAE, {"beta": 1.0}), (BetaVAE, {"beta": 4.0}))
    )
    for name, value in plain.state_dict().items():
        assert torch.equal(value, one.state_dict()[name]), name
    assert not torch.equal(plain.embed(some()), four.embed(some()))


# --- bounds


def log_weights_by_hand(model: Any, x: Tensor, noise: Tensor) -> Tensor:
    """log p(x|z) + log p(z) - log q(z|x) of `linear` networks, (k, b); noise: (k b, d)."""
    k = len(noise) // len(x)
    many = torch.cat([x] * k)
    q, z, logits = forward(model, many, noise)
    nats = Bits(logits=logits).log_prob(many.flatten(1)).sum(1)
    return (nats + Normal(0.0, 1.0).log_prob(z).sum(1) - q.log_prob(z).sum(1)).reshape(k, len(x))


@pytest.mark.parametrize("k", [1, 5])
def test_iwae_is_the_log_of_a_mean_of_weights(k: int) -> None:
    encoder, decoder = linear()
    model, x = IWAE(IWAE.Config(latent=3, samples=k), encoder=encoder, decoder=decoder), bits(6, 1, 4, 4)
    model.prepare(data.spec(some(4, 1, 4, 4)))
    torch.manual_seed(11)
    parts = model.terms(x, model.infer(x, model.samples_per_step))
    torch.manual_seed(11)
    weights = log_weights_by_hand(model, x, torch.randn(6 * k, 3, dtype=torch.float64))
    torch.testing.assert_close(sum(parts.values()), -mean_of_logs(weights))
    torch.testing.assert_close(-(parts["reconstruction"] + parts["kl"]), weights.mean())
    assert parts["tightening"].item() == pytest.approx(0, abs=1e-12) if k == 1 else parts["tightening"] < -0.05
    torch.manual_seed(11)
    torch.testing.assert_close(model.log_weights(x, k), weights)


def test_iwae_of_one_sample_is_the_elbo_and_of_five_lies_above_it() -> None:
    encoder, decoder = linear()
    model, x = IWAE(IWAE.Config(latent=3), encoder=encoder, decoder=decoder), bits(6, 1, 4, 4)
    model.prepare(data.spec(some(4, 1, 4, 4)))
    torch.manual_seed(0)
    many = x.repeat(2000, 1, 1, 1)
    with torch.no_grad():
        bound = {k: -float(sum(model.terms(many, model.infer(many, k)).values())) for k in (1, 5)}
    q, _, _ = forward(model, x, torch.zeros(6, 3).double())
    noise = torch.randn(200_000, 3, generator=gen(1), dtype=torch.float64)
    nats = torch.zeros(6, dtype=torch.float64)
    for i in range(6):
        logits = (q.mean[i] + q.stddev[i] * noise) @ decoder[0].weight.T + decoder[0].bias
        nats[i] = Bits(logits=logits).log_prob(x[i].flatten()).sum(1).mean()
    elbo = (nats - kl_divergence(q, Normal(0.0, 1.0)).sum(1)).mean().item()
    assert bound[1] == pytest.approx(elbo, abs=0.15)  # 4 standard errors
    assert bound[5] > elbo + 1


def test_iwae_has_the_gradient_of_the_log_of_the_mean() -> None:
    encoder, decoder = linear()
    model, x = IWAE(IWAE.Config(latent=3, samples=4), encoder=encoder, decoder=decoder), bits(6, 1, 4, 4)
    model.prepare(data.spec(some(4, 1, 4, 4)))
    weights = list(model.parameters())
    torch.manual_seed(7)
    found = torch.autograd.grad(sum(model.terms(x, model.infer(x, 4)).values()), weights)

    torch.manual_seed(7)
    noise, many = torch.randn(24, 3, dtype=torch.float64), torch.cat([x] * 4).flatten(1)
    out = many @ encoder[1].weight.T + encoder[1].bias
    q = Normal(out[:, :3], (out[:, 3:] / 2).exp())
    z = q.mean + q.stddev * noise
    logits = z @ decoder[0].weight.T + decoder[0].bias
    ratio = Normal(0.0, 1.0).log_prob(z) - q.log_prob(z)
    log_w = (Bits(logits=logits).log_prob(many).sum(1) + ratio.sum(1)).view(4, 6)
    share = log_w.detach().exp() / log_w.detach().exp().sum(0)  # eq. 13: normalised weights times grad log w
    wanted = torch.autograd.grad(-(share * log_w).sum(0).mean(), weights, retain_graph=True)
    by_definition = torch.autograd.grad(-mean_of_logs(log_w), weights, retain_graph=True)
    of_the_elbo = torch.autograd.grad(-log_w.mean(), weights)
    for one, paper, defined, other in zip(found, wanted, by_definition, of_the_elbo, strict=True):
        torch.testing.assert_close(one, paper)
        torch.testing.assert_close(one, defined)
        assert (one - other).abs().max() > 1e-3


EVERY = torch.tensor(list(itertools.product([0, 255], repeat=4)), dtype=torch.uint8).view(16, 1, 2, 2)


def run(model: Any, images: Images, seed: int = 0) -> Any:
    return SimpleNamespace(model=model, data=images, seed=seed)


def test_importance_weighted_nll_is_minus_log_p() -> None:
    """One latent dimension and four pixels: log p(x), and the exact ELBO, by quadrature over z."""
    encoder, decoder = linear(latent=1, side=2, seed=3)
    with torch.no_grad():
        decoder[0].weight.mul_(3)
    model, images = VAE(VAE.Config(latent=1), encoder=encoder, decoder=decoder), Images(EVERY.repeat(20, 1, 1, 1))
    model.prepare(data.spec(images))
    model.double()
    x = EVERY.flatten(1).double() / 255
    z = torch.linspace(-12, 12, 24_001, dtype=torch.float64)[:, None]
    nats = Bits(logits=z @ decoder[0].weight.T + decoder[0].bias).log_prob(x[:, None]).sum(2).detach()  # (16, grid)
    joint = nats + Normal(0.0, 1.0).log_prob(z)[:, 0]
    p = torch.trapezoid(joint.exp(), z[:, 0])
    assert p.sum().item() == pytest.approx(1, abs=1e-9)  # of all 16 images
    q, _, _ = forward(model, x, torch.zeros(16, 1).double())
    density = q.log_prob(z.T).exp()
    elbo = torch.trapezoid(density * nats, z[:, 0]) - kl_divergence(q, Normal(0.0, 1.0)).sum(1)
    gap = (p.log() - elbo).mean().item()
    assert 0.1 < gap < 2

    found = protocols.likelihood(run(model, images), samples=5000)
    assert found["nll"] == pytest.approx(-p.log().mean().item(), abs=0.02)
    assert found["elbo"] == pytest.approx(elbo.mean().item(), abs=0.2) and found["elbo"] < -found["nll"]
    assert found["elbo"] == pytest.approx(-found["reconstruction"] - found["kl"])
    assert found["kl"] == pytest.approx(kl_divergence(q, Normal(0.0, 1.0)).sum(1).mean().item(), rel=1e-6)
    assert found["bits_per_dim"] == pytest.approx(found["nll"] / 4 / math.log(2))
    assert found["active_units"] == (np.var(q.mean[:, 0].detach().numpy(), ddof=1) > 0.01)

    parts = protocols.likelihood(run(model, images), samples=5000, rows=1300)  # fewer than the samples of one image
    assert parts["nll"] == pytest.approx(found["nll"], abs=0.02) and parts["nll"] != found["nll"]
    one = protocols.likelihood(run(model, images), samples=1)
    assert one["nll"] > found["nll"] + gap / 2
    some_of_them = protocols.likelihood(run(model, images), samples=5000, images=5)
    assert some_of_them["nll"] == pytest.approx(-p.log()[:5].mean().item(), abs=0.02)
    with pytest.raises(UsageError, match="samples = 0: must be at least 1"):
        protocols.likelihood(run(model, images), samples=0)


def test_importance_weights_of_two_groups_give_log_p() -> None:
    """Two groups of one number each on 2 x 2 pixels: log p(x) by quadrature over both."""
    images = Images(EVERY)
    model = made(HierarchicalVAE, groups=(2,), stem=2, channels=4, latent=1, expand=1)
    built(model, images, spread=2, seed=9)
    u = torch.linspace(-7, 7, 181, dtype=torch.float64)
    first, second = torch.cartesian_prod(u, u).T  # z_2 in units of its prior's deviation
    seen: list[Tensor] = []

    def choose(k: int, mean: Tensor, log_variance: Tensor, _: Tensor | None) -> Tensor:
        seen.extend((mean.flatten(), log_variance.flatten()))
        return (mean.flatten() + (log_variance.flatten() / 2).exp() * (first if k == 0 else second)).view(-1, 1, 1, 1)

    with torch.no_grad():
        logits = model.generate(len(first), choose).flatten(1)
        assert seen[0].abs().max() == seen[1].abs().max() == 0  # the top group's prior is N(0, I)
        assert seen[2].std() > 0.3 and seen[3].std() > 0.3  # the second group's depends on the first
        x = EVERY.flatten(1).double() / 255
        log_prior = Normal(0.0, 1.0).log_prob(first) + Normal(0.0, 1.0).log_prob(second)
        joint = Bits(logits=logits).log_prob(x[:, None]).sum(2) + log_prior
        log_p = (joint.exp().sum(1) * (u[1] - u[0]) ** 2).log()
        assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-6)
        assert log_p.std() > 0.3
        torch.manual_seed(0)
        weights = model.log_weights(x.view(16, 1, 2, 2), 10_000)
    estimate = weights.exp().mean(0).log()
    assert (estimate - log_p).abs().max() < 0.06 and (estimate - log_p).mean().abs() < 0.02
    assert (weights.mean(0) < log_p - 0.1).all()  # the ELBO


# --- networks

KINDS = [(1, 28, 28), (3, 32, 32), (1, 8, 8), (1, 9, 7)]


@pytest.mark.parametrize("shape", KINDS)
def test_convolutions_see_and_paint_every_pixel(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    encoder = conv_encoder(shape, (6, 8), 5, "silu").double().eval()
    decoder = conv_decoder((4, *shape[1:]), (6, 8), 5, "silu").double().eval()
    x = torch.randn(2, *shape, generator=gen(), dtype=torch.float64, requires_grad=True)
    out = encoder(x)
    assert out.shape == (2, 10)
    (gradient,) = torch.autograd.grad(out[0].sum(), x)
    assert (gradient[0] != 0).all() and (gradient[1] == 0).all()
    z = torch.randn(20, 5, generator=gen(), dtype=torch.float64)
    images = decoder(z)
    assert images.shape == (20, 4, *shape[1:])
    assert (images.var(0) > 0).all()
    sides = {module.sides for module in decoder.modules() if hasattr(module, "sides")}
    half = (math.ceil(shape[1] / 2), math.ceil(shape[2] / 2))
    assert sides == {half, shape[1:]}  # up by two again, to the image itself


@pytest.mark.parametrize("shape", KINDS)
def test_hierarchies_of_any_sides(shape: tuple[int, int, int]) -> None:
    """Groups where they should be; the ratio and KL of each are torch's, and every pixel is seen and painted."""
    channels, height, width = shape
    images = some(4, channels, height, width)
    model = built(made(HierarchicalVAE, groups=(1, 2), stem=4, channels=4, latent=2, components=2), images, spread=1.5)
    x = model.likelihood.observe(data.unit(images.images, torch.float64)).requires_grad_()
    torch.manual_seed(3)
    found = model.infer(x, 2)
    fine = math.ceil(math.ceil(height / 2) / 2), math.ceil(math.ceil(width / 2) / 2)
    coarse = math.ceil(fine[0] / 2), math.ceil(fine[1] / 2)
    assert [tuple(one.z.shape) for one in found.groups] == [(8, 2, *coarse), (8, 2, *fine), (8, 2, *fine)]
    assert tuple(found.parameters.shape) == (8, 20 if channels == 3 else 1, height, width)
    (gradient,) = torch.autograd.grad(found.parameters[0].sum(), x)
    assert (gradient[0] != 0).all() and (gradient[1:] == 0).all()
    assert (found.parameters.var(0) > 0).all()
    assert found.groups[0].prior_mean is None and found.groups[0].context is None
    ratio = torch.zeros(8, dtype=torch.float64)
    for one in found.groups:
        q, p = laws(one)
        torch.testing.assert_close(one.kl(), kl_divergence(q, p).flatten(1).sum(1))
        ratio += (q.log_prob(one.z) - p.log_prob(one.z)).flatten(1).sum(1)
    torch.manual_seed(3)
    weights = model.log_weights(x, 2)
    nll = model.likelihood.nll(found.parameters, torch.cat([x, x]))
    torch.testing.assert_close(weights, -(nll + ratio).view(2, 4))
    codes = model(images.images)
    assert codes.shape == (4, 2 * (coarse[0] * coarse[1] + 2 * fine[0] * fine[1]))
    first = model.posterior(model.expected(images.images))[0].flatten(1)
    torch.testing.assert_close(codes[:, : first.shape[1]], first)


def test_a_group_is_a_step_from_its_prior_and_hears_those_above() -> None:
    model = built(made(HierarchicalVAE), spread=2)
    x = bits(3, 1, 8, 8)
    for net, one in zip(model.prior, model.infer(x).groups[1:], strict=True):
        mean, log_deviation = net(one.context).chunk(2, 1)
        torch.testing.assert_close(one.prior_mean, 5 * torch.tanh(mean / 5))
        torch.testing.assert_close(one.prior_log_variance, 10 * torch.tanh(log_deviation / 5))
    for net in model.residual:
        nn.init.zeros_(net[1].weight)
        nn.init.zeros_(net[1].bias)
    for one in model.infer(x).groups:  # without a residual the posterior is the prior, but for the soft clamp
        prior = torch.zeros_like(one.mean) if one.prior_mean is None else one.prior_mean
        spread = torch.zeros_like(one.mean) if one.prior_log_variance is None else one.prior_log_variance / 2
        torch.testing.assert_close(one.mean, 5 * torch.tanh(prior / 5))
        torch.testing.assert_close(one.log_variance / 2, 5 * torch.tanh(spread / 5))


class Encoder(nn.Module):
    def __init__(self, outputs: int = 6, pixels: int = 64) -> None:
        super().__init__()
        self.layer = nn.Linear(pixels, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(1))


class Decoder(nn.Module):
    def __init__(self, latent: int = 3, shape: tuple[int, ...] = (1, 8, 8)) -> None:
        super().__init__()
        self.layer, self.shape = nn.Linear(latent, math.prod(shape)), shape

    def forward(self, z: Tensor) -> Tensor:
        return self.layer(z).view(len(z), *self.shape)


@pytest.mark.parametrize("method", [VAE, BetaVAE, IWAE])
def test_own_networks_train_and_are_given_again(method: Any, tmp_path: Path) -> None:
    encoder, decoder = Encoder(), Decoder()
    before = encoder.layer.weight.clone(), decoder.layer.weight.clone()
    model = method(method.Config(**FLAT, epochs=2, batch_size=16), encoder=encoder, decoder=decoder)
    model.fit(some(), **CPU)
    assert model.encoder is encoder and model.decoder is decoder
    assert not torch.equal(encoder.layer.weight, before[0]) and not torch.equal(decoder.layer.weight, before[1])
    model.save(tmp_path)
    again = method.load(tmp_path, encoder=Encoder(), decoder=Decoder())
    assert torch.equal(again.embed(some()), model.embed(some()))
    assert torch.equal(again.sample(5, seed=1), model.sample(5, seed=1))
    with pytest.raises(UsageError, match="encoder"):
        method.load(tmp_path, decoder=Decoder())


@pytest.mark.parametrize("method", [VAE, HierarchicalVAE])
def test_a_saved_model_is_the_same_model(method: Any, tmp_path: Path) -> None:
    model = made(method).fit(some(), out=tmp_path / "run", logger="none", **CPU)
    again = method.load(tmp_path / "run")
    assert again.config == model.config
    assert torch.equal(again.embed(some()), model.embed(some()))
    assert torch.equal(again.sample(5, seed=1, mean=False), model.sample(5, seed=1, mean=False))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"encoder": Encoder(5)}, r"encoder: must map \(2, \*\(1, 8, 8\)\) to \(2, 6\), gave shape \(2, 5\)"),
        ({"encoder": Encoder(pixels=49)}, r"encoder: does not take shape \(b, 1, 8, 8\)"),
        ({"decoder": Decoder(shape=(1, 8, 7))}, r"decoder: must map .* to \(2, 1, 8, 8\), gave shape \(2, 1, 8, 7\)"),
        ({"decoder": Decoder(shape=(64,))}, r"decoder: must map .*gave shape \(2, 64\)"),
        ({"decoder": Decoder(latent=4)}, r"decoder: does not take shape \(b, 3\)"),
    ],
)
def test_a_network_that_does_not_fit_is_named(given: dict[str, nn.Module], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        VAE(VAE.Config(**FLAT), **given).fit(some(), **CPU)  # pyright: ignore


class Pair(Encoder):
    """As many write it: means and log-variances apart."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x).chunk(2, 1)


@pytest.mark.parametrize("encoder", [Pair(), nn.Sequential(nn.BatchNorm1d(64), nn.Flatten(), nn.Linear(64, 6))])
def test_a_network_that_fails_otherwise_is_named_too(encoder: nn.Module) -> None:
    with pytest.raises(UsageError, match="encoder"):
        VAE(VAE.Config(**FLAT), encoder=encoder).fit(some(), **CPU)


def test_a_network_of_another_dtype_trains_or_is_named() -> None:
    encoder, said = Encoder().double(), ""
    before = encoder.layer.weight.clone()
    try:
        VAE(VAE.Config(**FLAT), encoder=encoder, decoder=Decoder()).fit(some(), **CPU)
    except UsageError as error:
        said = str(error)
    assert said.startswith("encoder") or not torch.equal(encoder.layer.weight.to(before), before)


def test_trying_a_network_leaves_it_as_it_was() -> None:
    encoder = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Dropout(0.5).eval(), nn.Linear(64, 6))
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    expect("encoder", encoder, (1, 8, 8), (6,))
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert encoder[1].training and not encoder[2].training


# --- divergence


@pytest.mark.parametrize("method", [VAE, IWAE, HierarchicalVAE])
def test_a_fit_that_diverges_names_step_and_part(method: Any, tmp_path: Path) -> None:
    model = made(method, epochs=40, learning_rate=1e12)
    with pytest.raises(Diverged, match=r"^step \d+: (reconstruction|kl) became NaN.*below 1000000000000.0") as caught:
        model.fit(some(), out=tmp_path / "run", logger="none", **CPU)
    assert f"step {len(rows(tmp_path / 'run'))}:" in str(caught.value)  # all before it were logged


@pytest.mark.parametrize(("part", "size"), [("kl", 1e25), ("reconstruction", math.inf), ("reconstruction", math.nan)])
def test_the_part_is_the_one_that_is_not_finite(part: str, size: float) -> None:
    """Means of 1e25 square to infinity, while their logits and cross-entropy are still finite."""
    model = VAE(VAE.Config(**FLAT), encoder=Encoder(), decoder=Decoder())
    model.prepare(data.spec(some()))
    with torch.no_grad():
        model.encoder.layer.bias[0] = size
    with pytest.raises(Diverged, match=f"^step 0: {part} became"):
        model.fit(some(), **CPU)


def test_the_command_line_says_so_with_status_two(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "vae", "--data", "digits", "--learning-rate", "1e12", "--epochs", "3", "--hidden", "16"]
    assert cli.main(DOMAIN, [*words, "--device", "cpu", "--out", str(tmp_path / "run")]) == 2
    errors = capsys.readouterr().err
    assert "error: step " in errors and (": reconstruction became" in errors or ": kl became" in errors)
    assert "learning_rate" in errors and "Traceback" not in errors


# --- what a trained model does


@pytest.fixture(scope="module")
def digits() -> Images:
    return data.load("digits")


LEARNT = {"hidden": (128,), "latent": 10, "batch_size": 64, "epochs": 15, "learning_rate": 5e-3}


@pytest.fixture(scope="module")
def trained(digits: Images) -> VAE:
    return VAE(VAE.Config(**LEARNT)).fit(digits, seed=1, **CPU)


@pytest.fixture(scope="module")
def deep(digits: Images) -> HierarchicalVAE:
    config = HierarchicalVAE.Config(
        groups=(1, 1), channels=20, latent=4, expand=1, warm_up=0.1, batch_size=64, epochs=8, learning_rate=1e-2
    )
    return HierarchicalVAE(config).fit(digits, seed=1, **CPU)


@pytest.fixture(scope="module")
def best_bits(digits: Images) -> float:
    """Nats of a test image, its bits drawn, under independent pixels with the means of the training images."""
    p = ((digits.images.double() / 255).sum(0) + 0.5) / (len(digits) + 1)  # some pixels are black in all of them
    assert digits.test is not None
    grey = digits.test.images.double() / 255
    return -(grey * p.log() + (1 - grey) * (1 - p).log()).sum((1, 2, 3)).mean().item()


def test_the_vae_learns_digits(trained: VAE, digits: Images, best_bits: float) -> None:
    found = protocols.likelihood(run(trained, digits), samples=50)
    assert found["nll"] < best_bits - 3 and -found["elbo"] < best_bits - 2, (found, best_bits)
    assert -found["elbo"] > found["nll"] and found["active_units"] >= 6
    assert 1 < found["mutual_information"] < math.log(445)

    iwae = IWAE(IWAE.Config(**LEARNT, samples=5)).fit(digits, seed=1, **CPU)
    assert protocols.likelihood(run(iwae, digits), samples=50)["nll"] < found["nll"] + 0.3


def test_the_hierarchy_learns_digits(deep: HierarchicalVAE, digits: Images, best_bits: float) -> None:
    found = protocols.likelihood(run(deep, digits), samples=20, images=200)
    assert found["nll"] < best_bits - 1, (found, best_bits)
    assert "mutual_information" not in found


@pytest.mark.parametrize("kind", ["trained", "deep"])
def test_samples_come_from_their_seed_alone(kind: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(kind)
    torch.manual_seed(1)
    state, training = torch.get_rng_state(), model.training
    first = model.sample(6, seed=4)
    assert torch.equal(torch.get_rng_state(), state) and model.training is training
    torch.manual_seed(2)
    assert torch.equal(model.sample(6, seed=4), first)
    assert (model.sample(6, seed=5) - first).abs().mean() > 0.01
    assert first.shape == (6, 1, 8, 8) and 0 <= first.min() < first.max() <= 1
    assert first.std(0).mean() > 0.05  # no two alike
    drawn = model.sample(6, seed=4, mean=False)
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    with pytest.raises(UsageError, match="n = 0: must be at least 1"):
        model.sample(0)


def test_samples_are_decoded_draws_of_the_prior(trained: VAE) -> None:
    decoder = trained.decoder
    with torch.no_grad():
        middle = decoder(torch.zeros(1, 10)).sigmoid()
        cold = trained.sample(4, temperature=0)
        torch.testing.assert_close(cold, middle.expand(4, -1, -1, -1))
        half = decoder(0.5 * torch.randn(4, 10, generator=gen(9))).sigmoid()
    torch.testing.assert_close(trained.sample(4, seed=9, temperature=0.5), half)
    assert len(trained.sample(7, batch_size=3)) == 7
    assert (trained.sample(7, batch_size=3)[:3] - trained.sample(7, batch_size=3)[3:6]).abs().max() > 0.1


def test_samples_of_digits_have_the_means_of_digits(trained: VAE, digits: Images) -> None:
    grey = (digits.images.double() / 255).mean(0)
    for mean in (True, False):
        drawn = trained.sample(4000, mean=mean).double().mean(0)
        assert (drawn - grey).abs().mean() < 0.06


@pytest.mark.parametrize("kind", ["trained", "deep"])
def test_reconstructions_are_of_their_images(kind: str, request: pytest.FixtureRequest, digits: Images) -> None:
    model, images = request.getfixturevalue(kind), digits.take(slice(300))
    torch.manual_seed(1)
    found = model.reconstruct(images)
    torch.manual_seed(2)
    assert torch.equal(model.reconstruct(images.images), found)
    torch.testing.assert_close(model.reconstruct(images.images.float() / 255, batch_size=7), found)
    grey = images.images.float() / 255
    own = (found - grey).square().sum((1, 2, 3))
    other = (found - grey.roll(1, 0)).square().sum((1, 2, 3))
    assert (own < other).float().mean() > 0.9 and own.mean() < 0.7 * other.mean()


def test_embed_is_the_encoders_mean_on_grey_pixels(trained: VAE, digits: Images) -> None:
    trained.eval()
    with torch.no_grad():
        wanted = trained.encoder(digits.images.float() / 255)[:, :10]
    torch.testing.assert_close(trained.embed(digits), wanted)
    assert torch.equal(trained.embed(digits), trained.embed(digits))


@pytest.mark.parametrize("use", ["embed", "reconstruct"])
@pytest.mark.parametrize("kind", ["trained", "deep"])
def test_images_of_another_kind_are_refused(kind: str, use: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(kind)
    with pytest.raises(UsageError, match="images are 9 x 7, the model was trained on 8 x 8"):
        getattr(model, use)(some(height=9, width=7))
    with pytest.raises(UsageError, match="3 channels, the model was trained on 1"):
        getattr(model, use)(some(channels=3))


@pytest.mark.parametrize("value", [1.5, -0.5, 255.0, math.nan])
def test_floats_that_are_no_pixels_are_refused(trained: VAE, value: float) -> None:
    images = torch.full((2, 1, 8, 8), 0.5)
    images[0, 0, 1, 1] = value
    for use in (trained, trained.reconstruct):
        with pytest.raises(UsageError, match="pixels must be uint8 or lie in"):
            use(images)


@pytest.mark.parametrize("use", ["reconstruct", "traverse"])
def test_a_refusal_leaves_the_mode_as_it_was(use: str) -> None:
    model = made(VAE)
    model.prepare(data.spec(some()))
    model.train()
    images = some(channels=3).images
    with pytest.raises(UsageError, match="3 channels"):
        getattr(model, use)(images if use == "reconstruct" else images[0])
    assert model.training


@pytest.mark.parametrize("kind", ["trained", "hierarchy"])
def test_a_traverse_passes_through_the_reconstruction(kind: str, trained: VAE, digits: Images) -> None:
    """With the posterior's mean as the end of the sweep, that end is the reconstruction; the rest by single steps."""
    model, image = trained, digits.images[5]
    if kind == "hierarchy":  # of one group: below it the traverse follows the prior, the reconstruction the posterior
        model = made(HierarchicalVAE, groups=(1,), latent=1, stem=4)
        model.prepare(data.spec(digits))
        model.eval()
        for parameter in model.parameters():
            parameter.data *= 1.7
    with torch.no_grad():
        mean, log_variance = (part.flatten() for part in model.posterior(image[None].float() / 255))
    narrow = sorted(range(len(mean)), key=lambda k: float(log_variance[k]))[:3]
    again = model.reconstruct(image[None])[0]
    for row, k in enumerate(narrow):
        found = model.traverse(image, dims=3, steps=5, reach=abs(float(mean[k])))
        assert found.shape == (3, 5, 1, 8, 8)
        torch.testing.assert_close(found[row, 4 if mean[k] > 0 else 0], again, atol=1e-6, rtol=1e-4)
    found = model.traverse(image, dims=3, steps=5, reach=2.0)
    for (row, k), (column, value) in itertools.product(enumerate(narrow), enumerate([-2.0, -1.0, 0.0, 1.0, 2.0])):
        z = mean.clone()
        z[k] = value
        shaped = z.view(1, *model.posterior(image[None].float() / 255)[0].shape[1:])
        with torch.no_grad():
            wanted = model.generate(1, lambda *_, top=shaped: top).sigmoid()[0]
        torch.testing.assert_close(found[row, column], wanted, atol=1e-6, rtol=1e-4)
    assert (found[:, 0] - found[:, 4]).abs().amax((1, 2, 3)).min() > 1e-3  # each of the three does something
    assert len(model.traverse(image, dims=1000)) == len(mean)


def test_a_traverse_of_a_hierarchy_keeps_the_lower_groups_at_their_prior(deep: HierarchicalVAE, digits: Images) -> None:
    image = digits.images[5]
    deep.eval()
    with torch.no_grad():
        mean, log_variance = deep.posterior(image[None].float() / 255)
        k = int(log_variance.flatten().argmin())
        mean.view(-1)[k] = 1.5
        state = deep.start
        for level, (cells, add) in enumerate(zip(deep.down, deep.add, strict=True)):
            state = cells(state)
            z = mean if level == 0 else 5 * torch.tanh(deep.prior[level - 1](state)[:, :4] / 5)
            state = add(torch.cat([state, z], 1))
        wanted = deep.out(state).sigmoid()[0]
    found = deep.traverse(image, dims=1, steps=2, reach=1.5)
    torch.testing.assert_close(found[0, 1], wanted, atol=1e-6, rtol=1e-4)
    assert torch.equal(found, deep.traverse(image, dims=1, steps=2, reach=1.5))


def test_pictures_of_a_model(trained: VAE, digits: Images) -> None:
    found = trained.pictures(digits)
    assert set(found) == {"samples", "reconstructions"}
    torch.testing.assert_close(found["samples"], pictures.grid(trained.sample(64), 8))
    first = found["reconstructions"][:, 2:66, 2:66]  # the images stand above their reconstructions, eight times as big
    assert torch.equal(first[:, ::8, ::8], digits.images[0].float() / 255)
    torch.testing.assert_close(found["reconstructions"][:, 68:132:8, 2:66:8], trained.reconstruct(digits.images[:1])[0])


# --- resume


@pytest.mark.parametrize("method", [VAE, HierarchicalVAE])
def test_a_stopped_run_goes_on_to_the_same_weights(method: Any, tmp_path: Path) -> None:
    fields = {"epochs": 4, "decay": "cosine"}
    straight = made(method, **fields).fit(some(), seed=5, out=tmp_path / "straight", logger="none", **CPU)

    class Stop(Callback):
        def on_train_batch_start(self, trainer: Any, *_: object) -> None:  # pyright: ignore
            if trainer.global_step == 7:  # in the middle of the third epoch, and after the warm-up
                raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        made(method, **fields).fit(some(), seed=5, out=tmp_path / "run", logger="none", callbacks=[Stop()], **CPU)
    resumed = made(method, **fields).fit(some(), seed=5, out=tmp_path / "run", logger="none", resume=True, **CPU)
    for name, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert rows(tmp_path / "run") == rows(tmp_path / "straight")
    assert len(rows(tmp_path / "run")) == 12


# --- data


def test_mnist_binary(gen_data: Path) -> None:
    grey, found = data.load("mnist"), data.load("mnist-binary")
    assert found.test is not None and grey.test is not None
    assert (len(found), len(found.test)) == (50_000, 10_000)
    for one, other in ((found, grey.take(slice(50_000))), (found.test, grey.test)):
        assert one.labels is not None and other.labels is not None and torch.equal(one.labels, other.labels)
        assert ((one.images == 0) | (one.images == 255)).all()
        means = [images.float().mean((0, 1)) / 255 for images in (one.images, other.images)]
        assert (means[0] - means[1]).abs().max() < 5 * 0.5 / math.sqrt(len(one))
    drawn, values = found.test.images, grey.test.images
    assert (drawn[values == 0] == 0).all() and (drawn[values == 255] == 255).all()
    middle = (values > 115) & (values < 140)
    share = (drawn[middle] == 255).double().mean() - (values[middle].double() / 255).mean()
    assert share.abs() < 5 * 0.5 / math.sqrt(int(middle.sum()))
    again = data.load("mnist-binary")
    assert again.test is not None and torch.equal(again.images, found.images)
    assert torch.equal(again.test.images, found.test.images)


# --- pictures


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_has_every_pixel_in_its_place(channels: int) -> None:
    images = torch.rand(5, channels, 2, 3, generator=gen())
    found = pictures.grid(images, 3)
    factor, margin = 32, 2  # the shorter side, 2, becomes 64
    assert found.shape == (channels, 2 * (64 + margin) + margin, 3 * (96 + margin) + margin)
    wanted = torch.ones_like(found)
    for n, y, x in itertools.product(range(5), range(64), range(96)):
        row, column = divmod(n, 3)
        at = margin + row * (64 + margin) + y, margin + column * (96 + margin) + x
        wanted[:, at[0], at[1]] = images[n, :, y // factor, x // factor]
    assert torch.equal(found, wanted)  # lines and the missing sixth place are white
    assert pictures.grid(torch.zeros(1, 1, 64, 70), 1).shape == (1, 68, 74)  # large enough as it is


def test_beside_puts_each_row_above_its_partner() -> None:
    first, second = (level * torch.ones(3, 1, 64, 64) for level in (0.0, 0.5))
    first, second = (images + 0.1 * torch.arange(3).view(3, 1, 1, 1) for images in (first, second))
    found = pictures.beside(first, second, 2)
    assert found.shape == (1, 4 * 66 + 2, 2 * 66 + 2)
    levels = found[0, 34::66, 34::66]
    wanted = torch.tensor([[0.0, 0.1], [0.5, 0.6], [0.2, 1.0], [0.7, 1.0]])  # missing places are white
    torch.testing.assert_close(levels, wanted)
    assert pictures.beside(first[:1], second[:1], 8).shape == (1, 2 * 66 + 2, 66 + 2)


def test_save_writes_a_png(tmp_path: Path) -> None:
    colour = torch.zeros(3, 2, 3)
    colour[0, 0, 0], colour[1, 0, 2], colour[2, 1, 1] = 1.0, 0.5, 0.25
    report.picture(colour, tmp_path / "colour.png")
    with Image.open(tmp_path / "colour.png") as image:
        assert image.format == "PNG" and image.size == (3, 2) and image.mode == "RGB"
        assert image.getpixel((0, 0)) == (255, 0, 0) and image.getpixel((2, 0)) == (0, 128, 0)
        assert image.getpixel((1, 1)) == (0, 0, 64) and image.getpixel((0, 1)) == (0, 0, 0)
    report.picture(torch.tensor([[[-1.0, 0.2], [0.999, 7.0]]]), tmp_path / "grey.png")
    with Image.open(tmp_path / "grey.png") as image:
        assert image.mode == "L" and np.asarray(image).tolist() == [[0, 51], [255, 255]]
    report.picture(torch.tensor([0.2, 0.4]).view(2, 1, 1).expand(2, 3, 4), tmp_path / "two.png")  # the first channel
    with Image.open(tmp_path / "two.png") as image:
        assert image.mode == "L" and image.size == (4, 3) and image.getpixel((3, 2)) == 51


# --- configuration


@pytest.mark.parametrize(
    ("method", "field", "value"),
    [
        (VAE, "latent", 0),
        (VAE, "hidden", ()),
        (VAE, "network", "resnet"),
        (VAE, "learning_rate", 0),
        (VAE, "components", 101),
        (BetaVAE, "beta", -1),
        (IWAE, "samples", 0),
        (HierarchicalVAE, "groups", (1, 0)),
        (HierarchicalVAE, "stem", 3),
        (HierarchicalVAE, "warm_up", 1.5),
        (HierarchicalVAE, "hidden", (4,)),
    ],
)
def test_config_refuses(method: Any, field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        method.Config(**{field: value})


@pytest.mark.parametrize("method", [VAE, BetaVAE, IWAE, HierarchicalVAE])
def test_every_field_is_documented(method: Any) -> None:
    assert [name for name, field in method.Config.model_fields.items() if not field.description] == []
