"""NCP-VAE: the brief's exact checks in one and two groups, samplers, frozen bases, wrong use, folders, learning."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, MixtureSameFamily, Normal

from gen_core.evaluation import frechet_features
from gen_core.harness.errors import UsageError
from gen_vision import CRVAE, IWAE, NCPVAE, VAE, BetaVAE, HierarchicalVAE, SimCLR, data, fit_prior
from gen_vision.data import Images
from gen_vision.methods.vae import ncp_vae
from gen_vision.methods.vae.ncp_vae import FunctionVAE
from gen_vision.networks.latents import Group, Latents

CPU: Any = {"accelerator": "cpu", "progress": False}
FLAT: Any = {"hidden": (16,), "latent": 3, "epochs": 1, "batch_size": 16}
DEEP: Any = {"groups": (1, 1), "stem": 1, "latent": 2, "channels": 4, "epochs": 1, "batch_size": 16}
LOG_2 = math.log(2)


def bits(images: Tensor) -> Tensor:
    """As the Bernoulli likelihood draws them, from the same random state."""
    return (torch.rand(images.shape) < images).to(images.dtype)


def some(count: int = 32, side: int = 8) -> Images:
    generator = torch.Generator().manual_seed(2)
    return Images(torch.randint(0, 256, (count, 1, side, side), generator=generator, dtype=torch.uint8))


def dots(count: int = 64) -> Images:
    """Images of one pixel, for bases that do not look at them."""
    return Images(torch.zeros(count, 1, 1, 1, dtype=torch.uint8))


def config(**fields: Any) -> NCPVAE.Config:
    return NCPVAE.Config(**({"hidden": (16,), "channels": 4, "epochs": 1, "batch_size": 16} | fields))


def prepared(vae: nn.Module, *classifiers: nn.Module, images: Images | None = None, **fields: Any) -> NCPVAE:
    given: Any = {"classifiers": nn.ModuleList(classifiers)} if classifiers else {}
    model = NCPVAE(config(**fields), vae=vae, **given)
    model.prepare(data.spec(images or dots()))
    return model


class Ratio(nn.Module):
    """The exact classifier of q against p, given the context."""

    def __init__(self, q: Callable[[Any], Distribution], p: Callable[[Any], Distribution]) -> None:
        super().__init__()
        self.q, self.p = q, p

    def forward(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        return (self.q(context).log_prob(z) - self.p(context).log_prob(z)).sum(1)


def modes(_: Any = None) -> Distribution:
    """The brief's q of one dimension."""
    mean = torch.tensor([-1.5, 1.5])
    return MixtureSameFamily(Categorical(torch.tensor([0.5, 0.5])), Normal(mean, 0.3))


def standard(_: Any = None) -> Distribution:
    return Normal(torch.zeros(()), torch.ones(()))


def line(prior: Any = None, decode: Any = lambda z: z) -> FunctionVAE:
    return FunctionVAE(lambda x: modes().sample(torch.Size((len(x), 1))), decode, prior)


class Shown:
    def observe(self, images: Tensor) -> Tensor:
        return images

    expected = mean = sample = observe


class Linear(nn.Module):
    """q(z1) = N(.8, .5^2), p(z1) = N(0, 1); q(z2|z1) = N(.7 z1, .6^2), p(z2|z1) = N(.3 z1, 1); images are z."""

    likelihood = Shown()

    @property
    def base(self) -> nn.Module:
        return self

    def infer(self, x: Tensor, samples: int = 1) -> Latents:
        one = torch.ones(len(x), 1)
        z1 = 0.8 + 0.5 * torch.randn_like(one)
        z2 = 0.7 * z1 + 0.6 * torch.randn_like(one)
        first = Group(z1, 0.8 * one, 2 * math.log(0.5) * one)
        second = Group(z2, 0.7 * z1, 2 * math.log(0.6) * one, 0.3 * z1, 0 * one, z1)
        return Latents([first, second], z2)

    def generate(self, rows: int, choose: Any) -> Tensor:
        zero = torch.zeros(rows, 1)
        z1 = choose(0, zero, zero, None)
        return torch.cat([z1, choose(1, 0.3 * z1, zero, z1)], 1)


FIRST = Ratio(lambda _: Normal(0.8, 0.5), standard)
SECOND = Ratio(lambda c: Normal(0.7 * c, 0.6), lambda c: Normal(0.3 * c, 1.0))


def near(values: Tensor, mean: float, variance: float, errors: float = 3.0) -> bool:
    """Whether mean and variance of the sample are those of a Gaussian, within so many standard errors."""
    n = len(values)
    off = abs(values.mean().item() - mean) / math.sqrt(variance / n)
    return off < errors and abs(values.var().item() / variance - 1) / math.sqrt(2 / n) < errors


# ---------------------------------------------------------------------------------------------- one group, exactly


def q_and_p(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    bump = [np.exp(-0.5 * ((z - m) / 0.3) ** 2) / (0.3 * math.sqrt(2 * math.pi)) for m in (-1.5, 1.5)]
    return (bump[0] + bump[1]) / 2, np.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)


def test_ratio_of_one_dimension_is_the_briefs() -> None:
    model = prepared(line(), Ratio(modes, standard))
    at = torch.tensor([0.0, 0.5, 1.5, 2.5])[:, None]
    exact = torch.tensor([-11.29603, -4.91973, 1.63583, -1.91973])
    torch.testing.assert_close(model.log_ratio(0, at, None), exact, rtol=0, atol=1e-5)
    q, p = q_and_p(at[:, 0].double().numpy())
    torch.testing.assert_close(torch.from_numpy(np.log(q / p)), exact.double(), rtol=0, atol=1e-5)


def test_exact_classifier_reaches_the_minimum_of_the_loss_and_z_is_1() -> None:
    z = np.linspace(-9, 9, 200_001)
    q, p = q_and_p(z)
    minimum = float(((q * np.log1p(p / q) + p * np.log1p(q / p)) * (z[1] - z[0])).sum())
    assert minimum == pytest.approx(0.771823, abs=1e-6)
    assert LOG_2 - minimum / 2 == pytest.approx(0.307236, abs=1e-6)  # the Jensen-Shannon divergence
    model = prepared(line(), Ratio(modes, standard))
    torch.manual_seed(0)
    (loss,) = model.losses(model.base.infer(torch.zeros(200_000, 1, 1, 1)))
    assert loss.item() == pytest.approx(minimum, abs=0.005)
    ((value, error),) = model.log_partition(100_000)
    assert abs(value.item()) < 3 * error.item() < 0.05


def test_a_trained_classifier_finds_the_ratio() -> None:
    fields = {"hidden": (32, 32), "epochs": 80, "batch_size": 2048, "learning_rate": 5e-3}
    model = fit_prior(
        lambda x: modes().sample(torch.Size((len(x), 1))), lambda z: z, dots(8192), config=config(**fields), **CPU
    )
    at = torch.linspace(1, 2, 101, dtype=torch.float64)
    q, p = q_and_p(at.numpy())
    with torch.no_grad():
        torch.manual_seed(1)
        (loss,) = model.losses(model.base.infer(torch.zeros(100_000, 1, 1, 1)))
        logits = model.log_ratio(0, at[:, None].float(), None).double()
    assert 0.765 < loss.item() <= 0.79
    assert (logits - torch.from_numpy(np.log(q / p))).abs().max() < 0.3
    z = model.sample(2000, proposals=500)[:, 0]
    assert z.abs().mean().item() == pytest.approx(1.5, abs=0.05)


def test_resampling_goes_from_the_prior_to_the_posterior() -> None:
    model, n = prepared(line(), Ratio(modes, standard)), 4000
    found = {m: model.sample(n, seed=1, proposals=m, batch_size=n)[:, 0].double() for m in (1, 10, 1000)}
    torch.manual_seed(1)
    assert torch.equal(found[1], torch.randn(n, 1)[:, 0].double())  # the base prior's own draws
    means = {m: z.abs().mean().item() for m, z in found.items()}
    rng = np.random.default_rng(0)
    proposals = rng.standard_normal((40_000, 10))
    q, p = q_and_p(proposals)
    chosen = (np.cumsum(q / p, 1) / (q / p).sum(1, keepdims=True) < rng.random((40_000, 1))).sum(1)
    ten = float(np.abs(proposals[np.arange(40_000), chosen]).mean())
    assert means[1] == pytest.approx(math.sqrt(2 / math.pi), abs=3 * 0.61 / math.sqrt(n))
    assert ten == pytest.approx(1.44, abs=0.01) and means[10] == pytest.approx(ten, abs=3 * 0.45 / math.sqrt(n))
    assert means[1000] == pytest.approx(1.5, abs=3 * 0.3 / math.sqrt(n))


def test_langevin_reaches_the_gaussian() -> None:
    step, variance = 0.02, 0.25
    exact = Ratio(lambda _: Normal(1.0, 0.5), standard)
    model = prepared(line(), exact, sampler="langevin", langevin_steps=300, langevin_step=step)
    z = model.sample(4000, batch_size=4000)[:, 0]
    assert near(z, 1.0, variance / (1 - step / (4 * variance)))  # of the unadjusted chain
    assert near(model.sample(4000, sampler="sir", proposals=500, batch_size=4000)[:, 0], 1.0, variance, 3.5)


def test_langevin_needs_a_density_of_the_prior() -> None:
    model = prepared(line(prior=lambda n: torch.randn(n, 1)), Ratio(modes, standard))
    with pytest.raises(UsageError, match="sampler = 'langevin'"):
        model.sample(2, sampler="langevin")


# ----------------------------------------------------------------------------------------------------------- two groups


def test_ratios_of_two_groups_are_the_briefs() -> None:
    model = prepared(Linear(), FIRST, SECOND)
    z1, z2 = torch.tensor([[0.6]]), torch.tensor([[-0.2]])
    assert model.log_ratio(0, z1, None).item() == pytest.approx(0.793147, abs=1e-6)
    assert model.log_ratio(1, z2, z1).item() == pytest.approx(0.049137, abs=1e-6)


@pytest.mark.parametrize("sampler", ["sir", "langevin"])
def test_sampler_of_two_groups_reproduces_the_posterior(sampler: Any) -> None:
    n, step = 6000, 0.02
    model = prepared(Linear(), FIRST, SECOND, langevin_steps=300, langevin_step=step)
    z1, z2 = model.sample(n, sampler=sampler, proposals=500, batch_size=n).double().unbind(1)
    grown = [1.0, 1.0] if sampler == "sir" else [1 / (1 - step / (4 * v)) for v in (0.25, 0.36)]
    assert near(z1, 0.8, 0.25 * grown[0])
    assert z2.mean().item() == pytest.approx(0.56, abs=3 * math.sqrt(0.49 * 0.25 + 0.36) / math.sqrt(n))
    assert near(z2 - 0.7 * z1, 0.0, 0.36 * grown[1])  # each z2 under the context of the z1 that was chosen
    assert torch.cov(torch.stack([z1, z2 - 0.7 * z1]))[0, 1].abs() < 3 * 0.3 / math.sqrt(n)


@pytest.mark.parametrize("sampler", ["sir", "langevin"])
def test_deviation_of_the_prior_is_walked_in(sampler: Any) -> None:
    class Wide(Linear):
        def generate(self, rows: int, choose: Any) -> Tensor:
            z1 = torch.randn(rows, 1)
            return torch.cat([z1, choose(1, 0.3 * z1, torch.full_like(z1, 2 * math.log(2)), z1)], 1)

    n, step = 6000, 0.02
    exact = Ratio(lambda c: Normal(0.7 * c, 0.6), lambda c: Normal(0.3 * c, 2.0))
    model = prepared(Wide(), FIRST, exact, langevin_steps=300, langevin_step=step)
    z1, z2 = model.sample(n, sampler=sampler, proposals=500, batch_size=n).unbind(1)
    grown = 1.0 if sampler == "sir" else 1 / (1 - step / 0.36)  # of the noise, whose variance is 0.36 / 2^2
    assert near(z2 - 0.7 * z1, 0.0, 0.36 * grown)


def test_only_the_named_groups_are_reweighted() -> None:
    n, model = 6000, prepared(Linear(), FIRST, SECOND)
    z1, z2 = model.sample(n, proposals=300, groups={0}, batch_size=n).unbind(1)
    assert near(z1, 0.8, 0.25) and near(z2 - 0.3 * z1, 0.0, 1.0)
    z1, z2 = model.sample(n, proposals=300, groups={1}, batch_size=n).unbind(1)
    assert near(z1, 0.0, 1.0) and near(z2 - 0.7 * z1, 0.0, 0.36, 3.5)
    z1, z2 = model.sample(n, proposals=300, groups=set(), batch_size=n).unbind(1)
    assert near(z1, 0.0, 1.0) and near(z2 - 0.3 * z1, 0.0, 1.0)


@pytest.mark.parametrize("options", [{"sampler": "mala"}, {"groups": {2}}])
def test_samplers_and_groups_that_are_not_there_are_refused(options: Any) -> None:
    with pytest.raises(UsageError):
        prepared(Linear(), FIRST, SECOND).sample(2, **options)


class Watched(nn.Module):
    """Linear in z and context; keeps what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Tensor, Tensor | None]] = []

    def forward(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        self.seen.append((z, context))
        return (1.3 * z + 0.2)[:, 0] + (0 if context is None else 0.9 * context[:, 0])


def test_loss_is_softplus_of_both_under_one_context() -> None:
    watched = Watched(), Watched()
    model = prepared(Linear(), *watched)
    for one in watched:
        one.seen.clear()
    torch.manual_seed(3)
    found = model.base.infer(torch.zeros(50, 1, 1, 1))
    losses = model.losses(found)
    for k, one in enumerate(watched):
        ((both, context),) = one.seen
        positive, negative = both.double()[:50, 0], both.double()[50:, 0]
        assert torch.equal(positive.float(), found.groups[k].z[:, 0])
        shift = torch.zeros(50, dtype=torch.float64)
        if k:
            assert context is not None and torch.equal(context[:50], context[50:])
            assert torch.equal(context[:50], found.groups[0].z)
            shift = 0.9 * context[:50, 0].double()
        softplus = [torch.log1p((s * (1.3 * z + 0.2 + shift)).exp()) for s, z in ((-1, positive), (1, negative))]
        assert losses[k].item() == pytest.approx((softplus[0] + softplus[1]).mean().item(), rel=1e-6)
        noise = negative - (0.3 * found.groups[0].z[:, 0].double() if k else 0)  # N(0, 1) under p(z_k | z_<k)
        assert abs(noise.mean().item()) < 3 / math.sqrt(50) and 0.5 < noise.var().item() < 1.7
        assert not torch.equal(negative, positive)


def test_confident_answers_have_finite_losses() -> None:
    class Sure(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return 1e4 * z[:, 0]

    model = prepared(line(), Sure())
    found = Latents([Group(torch.full((4, 1), -2.0), torch.zeros(4, 1), torch.zeros(4, 1))], torch.zeros(4, 1))
    torch.manual_seed(0)
    noise = torch.randn(4, 1).double().clamp(min=0).mean().item()
    torch.manual_seed(0)
    assert model.losses(found).item() == pytest.approx(2e4 + 1e4 * noise, rel=1e-4)


def test_positives_are_samples_and_no_means() -> None:
    watched = Watched()
    base = FunctionVAE(lambda x: (x.flatten(1) + 5, x.flatten(1) + 2 * math.log(0.5)), lambda z: z, None)
    model = prepared(base, watched, epochs=2)
    watched.seen.clear()
    model.log_dict = lambda *_: None  # pyright: ignore
    model.training_step((dots(4000).images,), 0)
    ((both, _),) = watched.seen
    assert near(both[:4000, 0], 5.0, 0.25) and near(both[4000:, 0], 0.0, 1.0)


def test_log_partition_of_exact_ratios_is_0_and_its_error_shrinks() -> None:
    model = prepared(Linear(), FIRST, SECOND)
    few, many = model.log_partition(2000, seed=1), model.log_partition(200_000, seed=2)
    for value, error in (*few, *many):
        assert abs(value.item()) < 3 * error.item()
    first, second = (one[1].item() / other[1].item() for one, other in zip(few, many, strict=True))
    assert 4 < first < 8 and 4 < second < 8  # sqrt(3125 / 100) = 5.6: each of 64 contexts has at least 100


def test_standard_error_is_of_the_size_of_the_spread_over_seeds() -> None:
    model = prepared(Linear(), FIRST, SECOND)
    found = [model.log_partition(2000, seed=seed) for seed in range(60)]
    for k, least in ((0, 0.75), (1, 0.5)):  # of lower groups see the next test
        spread = torch.stack([one[k].value for one in found]).std().item()
        assert least < spread / torch.stack([one[k].standard_error for one in found]).mean().item() < 1.3


def test_standard_error_of_lower_groups_is_the_spread_over_seeds() -> None:
    model = prepared(Linear(), FIRST, SECOND)
    found = [model.log_partition(6400, seed=seed)[1] for seed in range(120)]
    spread = torch.stack([one.value for one in found]).std().item()
    assert 0.85 < spread / torch.stack([one.standard_error for one in found]).mean().item() < 1.2


def test_an_over_confident_classifier_is_warned_of() -> None:
    class Sure(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return 1000 * z[:, 0]

    with pytest.warns(UserWarning, match="effective sample size of 200 proposals"):
        prepared(line(), Sure()).sample(3, proposals=200)


# --------------------------------------------------------------------------------------------------------------- memory


@pytest.fixture(scope="module")
def deep() -> tuple[NCPVAE, HierarchicalVAE, Images]:
    """Classifiers with positions over a hierarchy, both trained for a moment."""
    images = some(48)
    base = HierarchicalVAE(HierarchicalVAE.Config(**DEEP)).fit(images, **CPU)
    return NCPVAE(config(epochs=2), vae=base).fit(images, **CPU), base, images


@pytest.mark.parametrize("rows", [1, 7, 64, 1 << 16])
def test_ratios_do_not_depend_on_the_rows_at_a_time(
    rows: int, deep: tuple[NCPVAE, HierarchicalVAE, Images], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, base, images = deep
    model.eval()
    monkeypatch.setattr(ncp_vae, "ROWS", rows)
    torch.manual_seed(0)
    with torch.no_grad():
        group = base.infer(bits(images.images[:6] / 255)).groups[1]
        assert group.context is not None
        z = group.z[:, None] + torch.randn(6, 5, *group.z.shape[1:])
        each = [
            [model.classifiers[1](z[b, m][None], group.context[b][None]).item() for m in range(5)] for b in range(6)
        ]
        torch.testing.assert_close(model.ratio_of(1, z, group.context), torch.tensor(each), rtol=0, atol=1e-4)
    assert torch.tensor(each).std() > 1e-3


def test_law_does_not_depend_on_the_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    n, model = 4000, prepared(Linear(), FIRST, SECOND)
    monkeypatch.setattr(ncp_vae, "ROWS", 3000)
    z1, z2 = model.sample(n, proposals=200, batch_size=n).unbind(1)
    assert len(z1) == n and near(z1, 0.8, 0.25) and near(z2 - 0.7 * z1, 0.0, 0.36)


def test_large_proposals_are_fewer_at_a_time() -> None:
    assert ncp_vae.at_a_time(torch.empty(10)) == 1 << 16
    assert ncp_vae.at_a_time(torch.empty(16, 16, 16)) == 1 << 12
    assert ncp_vae.at_a_time(torch.empty(64, 1024, 1024)) == 1


def test_no_more_rows_at_a_time_than_said(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(), Watched()
    model = prepared(Linear(), *watched)
    for one in watched:
        one.seen.clear()
    monkeypatch.setattr(ncp_vae, "ROWS", 60)
    drawn, propose = list[int](), NCPVAE.propose
    monkeypatch.setattr(NCPVAE, "propose", lambda *given: drawn.append(len(given[3])) or propose(*given))
    model.sample(25, proposals=20)
    model.sample(2, proposals=100)
    for one in watched:
        sizes = [len(z) for z, _ in one.seen]
        assert max(sizes) <= 60 and sum(sizes) == 25 * 20 + 2 * 100
    assert max(drawn[:-4]) == 60 and drawn[-4:] == [100] * 4  # the proposals of one row are drawn together
    context = watched[1].seen[0][1]
    assert context is not None and torch.equal(context, context[::20].repeat_interleave(20, 0))  # one a row of 20


# ------------------------------------------------------------------------------------------------------------- the base


def test_one_proposal_is_the_bases_own_sample(deep: tuple[NCPVAE, HierarchicalVAE, Images]) -> None:
    model, base, _ = deep
    for mean in (True, False):
        own = base.sample(7, seed=4, mean=mean, batch_size=3)
        assert torch.equal(model.sample(7, seed=4, proposals=1, mean=mean, batch_size=3), own)
    assert not torch.equal(model.sample(7, seed=4, proposals=5), base.sample(7, seed=4))
    z1, z2 = prepared(Linear(), FIRST, SECOND).sample(8000, proposals=1, batch_size=8000).unbind(1)
    assert near(z1, 0.0, 1.0) and near(z2 - 0.3 * z1, 0.0, 1.0)


def test_the_base_stands_still() -> None:
    images = some(48)
    base = HierarchicalVAE(HierarchicalVAE.Config(**DEEP)).fit(images, **CPU)
    before = {name: value.clone() for name, value in base.state_dict().items()}
    assert sum("running_mean" in name for name in before) > 5
    base.train()
    modes: list[bool] = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: object) -> None:
            modes.extend(module.training for module in pl_module.vae.modules())
            modes.extend(not module.training for module in pl_module.classifiers.modules())
            assert all(weight.grad is None for weight in pl_module.vae.parameters())

    model = NCPVAE(config(epochs=2), vae=base)
    model.prepare(data.spec(images))
    untrained = {name: value.clone() for name, value in model.classifiers.state_dict().items()}
    model.fit(images, callbacks=[Watch()], **CPU)
    model.sample(3)
    model.embed(images)
    assert modes and not any(modes)
    assert all(torch.equal(base.state_dict()[name], value) for name, value in before.items())
    moved = {name: not torch.equal(model.classifiers.state_dict()[name], value) for name, value in untrained.items()}
    assert all(moved.values()), moved


def test_batch_norm_of_the_classifier_sees_both_kinds_together(deep: tuple[NCPVAE, HierarchicalVAE, Images]) -> None:
    model, base, images = deep
    sizes: list[int] = []
    hooks = [net.register_forward_hook(lambda *args: sizes.append(len(args[2]))) for net in model.classifiers]
    model.losses(base.infer(bits(images.images[:5] / 255)))
    for hook in hooks:
        hook.remove()
    assert sizes == [10, 10]


def test_embeddings_and_reconstructions_are_the_bases(deep: tuple[NCPVAE, HierarchicalVAE, Images]) -> None:
    model, base, images = deep
    assert torch.equal(model.embed(images), base.embed(images))
    assert torch.equal(model.reconstruct(images), base.reconstruct(images))


# ------------------------------------------------------------------------------------------------------------ wrong use


def trained(**fields: Any) -> VAE:
    return VAE(VAE.Config(**FLAT | fields)).fit(some(), **CPU)


class Cube(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return z[:, :1, None]


@pytest.mark.parametrize(
    ("classifiers", "message"),
    [
        ([nn.Linear(3, 1), nn.Linear(3, 1)], "classifiers: the VAE has 1 groups of latents, got 2"),
        ([Cube()], r"classifiers\[0\].*\(2, 3\).*one logit a row.*\(2, 1, 1\)"),
        ([nn.Linear(3, 4)], r"classifiers\[0\].*one logit a row"),
        ([nn.Linear(5, 1)], r"classifiers\[0\], of z of shape \(2, 3\)"),
    ],
)
def test_unfit_classifiers_are_named(classifiers: list[nn.Module], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        NCPVAE(config(), vae=trained(), classifiers=nn.ModuleList(classifiers)).fit(some(), **CPU)


def test_a_column_of_logits_is_taken() -> None:
    net = nn.Linear(3, 1)
    model = NCPVAE(config(), vae=trained(), classifiers=nn.ModuleList([net])).fit(some(), **CPU)
    z = torch.randn(4, 3)
    assert torch.equal(model.log_ratio(0, z, None), net(z)[:, 0])


def test_a_classifier_that_takes_no_context_is_named(deep: tuple[NCPVAE, HierarchicalVAE, Images]) -> None:
    nets = nn.ModuleList([nn.Sequential(nn.Flatten(), nn.LazyLinear(1)) for _ in range(2)])
    with pytest.raises(UsageError, match=r"classifiers\[1\]"):
        NCPVAE(config(), vae=deep[1], classifiers=nets).prepare(data.spec(some()))


def test_classifier_of_a_flat_lower_group_sees_the_context() -> None:
    model = prepared(Linear())
    z = torch.ones(2, 1)
    with torch.no_grad():
        assert not torch.equal(model.log_ratio(1, z, -z), model.log_ratio(1, z, z))


def test_a_first_group_with_a_prior_of_its_own_is_sampled_from_it() -> None:
    class Moved(Linear):
        def infer(self, x: Tensor, samples: int = 1) -> Latents:
            first, second = super().infer(x).groups
            return Latents([first._replace(prior_mean=2 + 0 * first.z, prior_log_variance=0 * first.z), second], x)

        def generate(self, rows: int, choose: Any) -> Tensor:
            zero = torch.zeros(rows, 1)
            return choose(0, 2 + zero, zero, None)

    assert near(prepared(Moved(), FIRST, SECOND).sample(2000, proposals=1)[:, 0], 2.0, 1.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: {}, "vae: give a trained VAE"),
        (lambda: {"vae": VAE(VAE.Config(**FLAT))}, "vae: this VAE is not trained"),
        (lambda: {"vae": CRVAE(vae=VAE(VAE.Config(**FLAT)))}, "vae: this CRVAE is not trained"),
        (lambda: {"vae": SimCLR(SimCLR.Config(epochs=1, batch_size=16)).fit(some(), **CPU)}, "vae: a SimCLR is no VAE"),
        (lambda: {"vae": nn.Linear(2, 2)}, "vae: a Linear is no VAE"),
        (lambda: {"vae": VAE(VAE.Config(**FLAT)).fit(some(side=9), **CPU)}, r"vae: .*\(1, 9, 9\).*\(1, 8, 8\)"),
    ],
)
def test_unfit_bases_are_named(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        NCPVAE(config(), **make()).fit(some(), **CPU)


def test_an_untrained_cr_vae_is_called_untrained() -> None:
    with pytest.raises(UsageError, match="not trained"):
        NCPVAE(config(), vae=CRVAE()).fit(some(), **CPU)


def test_numbers_out_of_range_are_named() -> None:
    model = prepared(line(), Ratio(modes, standard))
    with pytest.raises(UsageError, match="proposals = 0: must be at least 1"):
        model.sample(2, proposals=0)
    with pytest.raises(UsageError, match="n = 0"):
        model.sample(0)
    wrong = {"proposals": 0, "hidden": (), "epochs": 0, "langevin_step": 0, "sampler": "mala", "weight_decay": -1}
    for field, value in wrong.items():
        with pytest.raises(ValueError, match=field):
            NCPVAE.Config(**{field: value})  # pyright: ignore
    assert [name for name, field in NCPVAE.Config.model_fields.items() if not field.description] == []


# -------------------------------------------------------------------------------------------------------------- folders


def test_a_saved_model_is_loaded_with_all_its_bases(tmp_path: Path) -> None:
    images = some()
    base = CRVAE(CRVAE.Config(consistency=0.3), vae=IWAE(IWAE.Config(samples=2, **FLAT))).fit(images, **CPU)
    model = NCPVAE(config(proposals=20), vae=base).fit(images, seed=3, out=tmp_path, **CPU)
    again = NCPVAE.load(tmp_path)
    assert type(again.vae) is CRVAE and again.vae.config.consistency == 0.3
    assert type(again.base) is IWAE and again.base.config == base.base.config
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(again.state_dict()[name], value) for name, value in model.state_dict().items())
    assert torch.equal(again.embed(images), model.embed(images))
    assert torch.equal(again.sample(6, mean=False), model.sample(6, mean=False))
    assert not torch.equal(again.sample(6), again.sample(6, proposals=1))
    assert not any(weight.requires_grad for weight in again.vae.parameters())


def test_own_classifiers_are_given_again(tmp_path: Path) -> None:
    def own() -> nn.ModuleList:
        return nn.ModuleList([nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))])

    images, nets = some(), own()
    before = nets[0][0].weight.clone()
    model = NCPVAE(config(), vae=trained(), classifiers=nets).fit(images, out=tmp_path, **CPU)
    assert model.classifiers is nets and not torch.equal(nets[0][0].weight, before)
    with pytest.raises(UsageError, match="classifiers"):
        NCPVAE.load(tmp_path)
    again = NCPVAE.load(tmp_path, classifiers=own())
    assert torch.equal(again.sample(6, proposals=9), model.sample(6, proposals=9))


@pytest.mark.parametrize("kind", ["flat", "deep"])
def test_a_stopped_run_goes_on_to_the_same_weights(kind: str, tmp_path: Path) -> None:
    images = some()
    base = trained() if kind == "flat" else HierarchicalVAE(HierarchicalVAE.Config(**DEEP)).fit(images, **CPU)
    base.save(tmp_path / "base")

    def model() -> NCPVAE:
        return NCPVAE(config(epochs=3), vae=type(base).load(tmp_path / "base"))

    class Stop(Callback):
        def on_train_batch_start(self, trainer: Any, *_: object) -> None:
            if trainer.global_step == 3:  # in the middle of the second epoch
                raise RuntimeError("stop")

    straight = model().fit(images, seed=5, **CPU)
    with pytest.raises(RuntimeError, match="stop"):
        model().fit(images, seed=5, out=tmp_path / "run", callbacks=[Stop()], **CPU)
    resumed = model().fit(images, seed=5, out=tmp_path / "run", resume=True, **CPU)
    for name, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


# ------------------------------------------------------------------------------------------------------------- learning


def test_prior_of_functions_with_a_prior_of_their_own() -> None:
    """encode gives mean and log-variance, N(1, .4^2 + .3^2) over images; the prior is uniform."""
    images = Images(torch.arange(256, dtype=torch.uint8).view(-1, 1, 1, 1).repeat(8, 1, 1, 1))

    def encode(x: Tensor) -> tuple[Tensor, Tensor]:
        share = x.flatten(1) * (255 / 256) + 1 / 512
        mean = 1 + 0.4 * math.sqrt(2) * torch.erfinv(2 * share - 1)
        return mean, torch.full_like(mean, 2 * math.log(0.3))

    fields = {"hidden": (32, 32), "epochs": 60, "batch_size": 1024, "learning_rate": 5e-3, "proposals": 200}
    model = fit_prior(
        encode, lambda z: z, images, prior=lambda n: 6 * torch.rand(n, 1) - 3, config=config(**fields), **CPU
    )
    z = model.sample(4000, batch_size=4000)[:, 0]
    assert z.mean().item() == pytest.approx(1, abs=0.06) and z.std().item() == pytest.approx(0.5, abs=0.06)
    base = model.sample(4000, proposals=1, batch_size=4000)[:, 0]
    assert base.abs().max() <= 3 and base.var().item() == pytest.approx(3, abs=0.15)
    ((value, error),) = model.log_partition()
    assert abs(value.item()) < 0.15 and error.item() < 0.05


def test_a_ring_is_found() -> None:
    def ring(x: Tensor) -> Tensor:
        angle = 2 * math.pi * torch.rand(len(x))
        return 2 * torch.stack([angle.cos(), angle.sin()], 1) + 0.1 * torch.randn(len(x), 2)

    fields = {"hidden": (64, 64), "epochs": 60, "batch_size": 512, "learning_rate": 5e-3}
    model = fit_prior(ring, lambda z: z, dots(2048), config=config(**fields), **CPU)
    shares = {m: ((model.sample(2000, proposals=m).norm(dim=1) - 2).abs() < 0.3).double().mean() for m in (1, 100)}
    inside = math.exp(-(1.7**2) / 2) - math.exp(-(2.3**2) / 2)
    assert shares[1].item() == pytest.approx(inside, abs=3 * math.sqrt(inside * (1 - inside) / 2000))
    assert shares[100] > 0.8, shares
    still = model.sample(2000, proposals=100)
    assert still.mean(0).abs().max() < 0.2  # no side of it is left out
    assert still.sign().add(1).mv(torch.tensor([0.5, 1.0])).long().bincount().min() > 400


def test_samples_of_digits_come_nearer_to_held_out_codes() -> None:
    digits = data.load("digits")
    assert digits.test is not None
    fields: Any = {"hidden": (32,), "latent": 4, "epochs": 10, "learning_rate": 1e-2}
    base = BetaVAE(BetaVAE.Config(beta=0.1, **fields)).fit(digits, seed=1, **CPU)
    own = config(hidden=(64, 64), epochs=30, batch_size=256, learning_rate=3e-3)
    model = NCPVAE(own, vae=base).fit(digits, seed=1, **CPU)
    with torch.no_grad():
        torch.manual_seed(0)
        mean, log_variance = base.posterior(bits(digits.test.images / 255))
        codes = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
    seen: list[Tensor] = []
    base.decoder.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    distance = {}
    for m in (1, 10, 100):
        seen.clear()
        model.sample(len(codes), proposals=m, seed=2)
        distance[m] = frechet_features(torch.cat(seen), codes)
    assert distance[100] <= 0.7 * distance[1] and distance[100] < distance[10] < distance[1], distance
    with torch.no_grad():
        (loss,) = model.losses(base.infer(bits(digits.test.images / 255)))
    assert loss.item() < 2 * LOG_2 - 0.1  # of images that it has not seen
