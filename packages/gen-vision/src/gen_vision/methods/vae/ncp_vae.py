"""NCP-VAE: a trained VAE's prior, re-weighted by a classifier that tells its codes from the prior's.

Citation: Aneja, Schwing, Kautz and Vahdat, "A Contrastive Learning Approach for Training Variational Autoencoder
Priors", NeurIPS 2021, arXiv 2010.02917.

Prior samples land where no image was encoded and the decoder never learnt. The VAE is frozen; for each group of latents
a classifier D_k tells z_k ~ q(z_k | x, z_<k) from z_k ~ p(z_k | z_<k), both under the context of the same posterior
sample z_<k. Its logit l_k estimates the log-ratio of the aggregate posterior to the prior, so that r_k = exp(l_k) turns
the prior into p_NCP(z) = prod_k r_k p(z_k | z_<k) / Z_k. Samples come from the top down, group by group: M proposals of
the prior, one of which is drawn with weight r_k (SIR), or Langevin steps in the prior's noise.

Deviations: none known; classifier, length and M are ours where the paper's could not be read. Positives are fresh
samples of z, never means. A batch norm of the classifier sees positives and negatives in one batch.
"""

from collections.abc import Callable
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from gen_core.estimators import DensityRatio, Pairs, langevin, log_partition, nce, sir
from gen_core.estimators.density_ratio import LogPartition
from gen_core.harness import config as configs
from gen_core.harness.errors import UsageError
from gen_vision import data
from gen_vision.methods.vae.vae import Choose, OnVAE, generated, optimizer, ready
from gen_vision.networks.latents import Group, Latents, gaussian, seeded
from gen_vision.networks.vae import GroupClassifier

ROWS, NUMBERS = 1 << 16, 1 << 24
"""Proposals that a classifier sees at a time, and the most numbers in them: some hundred MB a layer."""


def at_a_time(row: Tensor) -> int:
    """How many proposals like `row` are drawn and classified at a time."""
    return max(1, min(ROWS, NUMBERS // row.numel()))


class NCPVAE(OnVAE):
    """`NCPVAE(vae=trained).fit(images).sample(64)`; own classifiers: `classifiers=ModuleList`, one a group.

    A classifier maps (z_k, context) to (b,) logits; of the first group the context is None.
    """

    class Config(configs.Config):
        """Hyper-parameters."""

        hidden: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (256, 256)
        """Widths of the classifier of a flat group."""
        channels: PositiveInt = 64
        """Width of the residual classifier of a group with positions."""
        epochs: PositiveInt = 30
        """Passes over the images."""
        batch_size: PositiveInt = 256
        """Images a step; a smaller data set is one batch."""
        learning_rate: PositiveFloat = 1e-3
        """Adam's learning rate."""
        decay: Literal["none", "cosine"] = "cosine"
        """Learning rate over training: constant, or half a cosine down to 0."""
        weight_decay: NonNegativeFloat = 0.0
        """Adam's weight decay, against over-confident classifiers."""
        sampler: Literal["sir", "langevin"] = "sir"
        """Sampling-importance-resampling, or Langevin dynamics."""
        proposals: PositiveInt = 500
        """M, prior samples that each sample is chosen from; 1 is the base prior."""
        langevin_steps: PositiveInt = 100
        """Steps of the dynamics in each group."""
        langevin_step: PositiveFloat = 0.01
        """Their size s in the prior's noise, whose variance is 1."""

    classifiers: nn.ModuleList

    def build(self, spec: Any) -> None:
        config = self.config
        groups = ready(self, spec).groups
        if self.lacks("classifiers"):
            shapes = [(g.z.shape[1:], None if g.context is None else g.context.shape[1]) for g in groups]
            self.classifiers = nn.ModuleList(GroupClassifier(*s, config.hidden, config.channels) for s in shapes)
        if len(self.classifiers) != len(groups):
            raise UsageError(f"classifiers: the VAE has {len(groups)} groups of latents, got {len(self.classifiers)}")
        self.ratios = [
            DensityRatio(net) for net in self.classifiers
        ]  # no modules of their own: `classifiers` holds them
        with torch.no_grad(), seeded(self.classifiers, 0):
            for k, group in enumerate(groups):
                try:
                    self.log_ratio(k, group.z, group.context)
                except (RuntimeError, ValueError, TypeError) as error:
                    where = f"classifiers[{k}], of z of shape {tuple(group.z.shape)}"
                    raise UsageError(f"{where}: must give one logit a row, (b,): {error}") from None

    def training_step(self, batch: tuple[Tensor], _: int) -> Tensor:
        with torch.no_grad():
            found = self.base.infer(self.base.likelihood.observe(data.unit(batch[0], self.dtype)))
        losses = self.losses(found)
        self.log_dict({"loss": losses.sum(), **{f"nce_{k + 1}": loss for k, loss in enumerate(losses)}})
        return losses.sum()

    def losses(self, found: Latents) -> Tensor:
        """L_k of each group, nats, (groups,): E_q softplus(-l_k) + E_p softplus(l_k), 2 log 2 at chance."""
        return torch.stack([-nce(Pairs(*self.logits(k, found))) for k in range(len(found.groups))])

    def logits(self, k: int, found: Latents) -> tuple[Tensor, Tensor]:
        """l_k of the posterior's sample and of a fresh sample of the prior, same context; (b,) each."""
        group = found.groups[k]
        both = torch.cat([group.z, self.propose(group.prior_mean, group.prior_log_variance, group.z)])
        context = None if group.context is None else group.context.repeat(2, *[1] * (group.context.ndim - 1))
        positive, negative = self.log_ratio(k, both, context).chunk(2)
        return positive, negative

    def log_ratio(self, k: int, z: Tensor, context: Tensor | None) -> Tensor:
        """log r_k(z_k, z_<k), nats, (b,)."""
        return self.ratios[k](z) if context is None else self.ratios[k](z, context)

    def propose(self, mean: Tensor | None, log_variance: Tensor | None, like: Tensor) -> Tensor:
        """z_k ~ p(z_k | z_<k); None is N(0, I), or what a VAE of functions calls its prior."""
        if mean is None or log_variance is None:
            own = getattr(self.base, "prior_samples", None)
            return torch.randn_like(like) if own is None else own(len(like))
        return gaussian(mean, log_variance)

    def configure_optimizers(self) -> Any:
        config = self.config
        return optimizer(self, config.learning_rate, config.decay, config.weight_decay)

    @torch.no_grad()
    def sample(
        self,
        n: int,
        *,
        seed: int = 0,
        proposals: int | None = None,
        sampler: Literal["sir", "langevin"] | None = None,
        groups: set[int] | None = None,
        mean: bool = True,
        batch_size: int = 500,
    ) -> Tensor:
        """New images from the re-weighted prior, (n, c, h, w) in [0, 1], on the CPU.

        Args:
            proposals: M of SIR; None is the Config's, 1 the base prior.
            sampler: None is the Config's.
            groups: re-weight only these, counted from 0 at the top; None is all.
            mean: E[x|z]; without it x is drawn too.

        Warns:
            UserWarning: by `sir`, where few of the M proposals carry all weight.
        """
        m, kind = self.config.proposals if proposals is None else proposals, sampler or self.config.sampler
        if kind not in ("sir", "langevin"):
            raise UsageError(f"sampler = {kind!r}: must be 'sir' or 'langevin'")
        if unknown := sorted((groups or set()) - set(range(len(self.classifiers)))):
            raise UsageError(f"groups = {unknown}: the VAE has groups 0 to {len(self.classifiers) - 1}")
        if m < 1:
            raise UsageError(f"proposals = {m}: must be at least 1")

        def choose(k: int, at: Tensor, log_variance: Tensor, context: Tensor | None) -> Tensor:
            if groups is not None and k not in groups:
                return self.proposed(k, at, log_variance, 1)[:, 0]
            return (self.resampled if kind == "sir" else self.moved)(k, at, log_variance, context, m)

        return generated(self, n, choose, seed, mean, batch_size)

    def proposed(self, k: int, mean: Tensor, log_variance: Tensor, m: int) -> Tensor:
        """M samples of p(z_k | z_<k) a row, (b, M, ...)."""
        given = [t[:, None].expand(-1, m, *t.shape[1:]).flatten(0, 1) for t in (mean, log_variance)]
        own = k == 0 and hasattr(self.base, "prior_samples")
        found = self.propose(None if own else given[0], None if own else given[1], given[0])
        return found.view(len(mean), m, *mean.shape[1:])

    def resampled(self, k: int, mean: Tensor, log_variance: Tensor, context: Tensor | None, m: int) -> Tensor:
        """One of M proposals a row, drawn with weight r_k; M = 1 is the prior."""
        if m == 1:
            return self.proposed(k, mean, log_variance, 1)[:, 0]
        step = max(1, at_a_time(mean[0]) // m)  # rows, so that memory does not grow with their number
        found: list[Tensor] = []
        for start in range(0, len(mean), step):
            rows = slice(start, start + step)
            z = self.proposed(k, mean[rows], log_variance[rows], m)
            found.append(sir(z, self.ratio_of(k, z, None if context is None else context[rows])).samples)
        return torch.cat(found)

    def ratio_of(self, k: int, z: Tensor, context: Tensor | None) -> Tensor:
        """log r_k of (b, M, ...) proposals, (b, M)."""
        m, parts = z.shape[1], list[Tensor]()
        for part in torch.arange(z.shape[0] * m, device=z.device).split(at_a_time(z[0, 0])):
            flat = z.flatten(0, 1)[part]
            parts.append(self.log_ratio(k, flat, None if context is None else context[part // m]))
        return torch.cat(parts).view(z.shape[:2])

    def moved(self, k: int, mean: Tensor, log_variance: Tensor, context: Tensor | None, _: int) -> Tensor:
        """Langevin dynamics in the noise e of z = mean + sigma e, from the prior."""
        if getattr(self.base, "prior_samples", None) is not None:
            raise UsageError(
                "sampler = 'langevin': needs the density of the prior, which is given as a function; use sir"
            )
        deviation = (0.5 * log_variance).exp()

        def log_density(e: Tensor) -> Tensor:
            return self.log_ratio(k, mean + deviation * e, context) - 0.5 * e.square().flatten(1).sum(1)

        config = self.config
        with torch.enable_grad():
            e = langevin(
                torch.randn_like(mean), log_density, steps=config.langevin_steps, step_size=config.langevin_step
            )
        return mean + deviation * e

    @torch.no_grad()
    def log_partition(self, samples: int = 10_000, contexts: int = 64, seed: int = 0) -> list[LogPartition]:
        """log Z_k of each group with its standard error, nats; of lower groups the mean over contexts z_<k.

        The log of a mean is too low, by about half the squared error: a bound on log p(x) that subtracts it is too high
        by as much.

        Args:
            samples: of the prior, in all; each context has its part of them, at least 100.
            contexts: drawn from the re-weighted prior, at least 2.
        """
        if contexts < 2:
            raise UsageError(f"contexts = {contexts}: must be at least 2, for an error")
        found: list[LogPartition] = []

        def choose(k: int, mean: Tensor, log_variance: Tensor, context: Tensor | None) -> Tensor:
            m = max(100, samples // contexts)
            z = self.proposed(k, mean, log_variance, m)
            log_r = self.ratio_of(k, z, context)
            value, error = log_partition(log_r if k else log_r.flatten())
            if k:  # the spread over contexts, in which the error of each is contained
                value, error = value.mean(), (value.var() / contexts).sqrt()
            found.append(LogPartition(value, error))
            return sir(z, log_r).samples

        with seeded(self, seed):
            self.base.generate(contexts, choose)
        return found

    def reconstruct(self, images: data.Images | Tensor, batch_size: int = 500) -> Tensor:
        """As the base."""
        return self.base.reconstruct(images, batch_size)


class FunctionVAE(nn.Module):
    """A VAE made of functions, see `fit_prior`."""

    def __init__(
        self, encode: Callable[[Tensor], Any], decode: Callable[[Tensor], Tensor], prior: Callable[[int], Tensor] | None
    ) -> None:
        super().__init__()
        self.encode, self.decode, self.prior_samples = encode, decode, prior
        self.likelihood, self.dtype, self.device = _Shown(), torch.float32, torch.device("cpu")

    @property
    def base(self) -> "FunctionVAE":
        return self

    def infer(self, x: Tensor) -> Latents:
        found = self.encode(x)
        mean, log_variance = (found, None) if isinstance(found, Tensor) else found
        z = mean if log_variance is None else gaussian(mean, log_variance)
        self.like = z[:1]
        return Latents([Group(z, mean, torch.zeros_like(mean) if log_variance is None else log_variance)], z)

    def forward(self, batch: Tensor) -> Tensor:
        return self.infer(data.unit(batch)).groups[0].mean

    def reconstruct(self, images: data.Images | Tensor, batch_size: int = 500) -> Tensor:
        pixels = images.images if isinstance(images, data.Images) else images
        return torch.cat([self.decode(self(part)) for part in pixels.split(batch_size)])

    def generate(self, rows: int, choose: Choose) -> Tensor:
        zero = self.like.new_zeros(rows, *self.like.shape[1:])
        return self.decode(choose(0, zero, zero, None))


class _Shown:
    """The likelihood of a VAE of functions, whose decoder gives images."""

    def observe(self, images: Tensor) -> Tensor:
        return images

    expected = mean = sample = shown = observe


def fit_prior(
    encode: Callable[[Tensor], Any],
    decode: Callable[[Tensor], Tensor],
    images: data.Images,
    *,
    prior: Callable[[int], Tensor] | None = None,
    config: NCPVAE.Config | None = None,
    seed: int = 0,
    **fit: Any,
) -> NCPVAE:
    """The re-weighted prior of any trained VAE, given as functions: `fit_prior(enc, dec, images).sample(64)`.

    Args:
        encode: (b, c, h, w) in [0, 1] -> mean and log-variance of q(z|x), (b, d) each; or a sample of it alone.
        decode: (b, d) -> (b, c, h, w) in [0, 1].
        images: what the VAE was trained on.
        prior: n -> (n, d); None is N(0, I).
        fit: to `NCPVAE.fit`.
    """
    return NCPVAE(config, vae=FunctionVAE(encode, decode, prior)).fit(images, seed=seed, **fit)
