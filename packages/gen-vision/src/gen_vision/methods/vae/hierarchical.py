"""Hierarchical VAE: groups of latents from coarse to fine, each under a prior that sees the groups above it.

Citation: Vahdat and Kautz, "NVAE: A Deep Hierarchical Variational Autoencoder", NeurIPS 2020, arXiv 2007.03898; the
inference by a shared top-down path is that of Sonderby et al., "Ladder Variational Autoencoders", NeurIPS 2016.

p(z) = p(z_1) prod_k p(z_k | z_<k). A bottom-up path reads the image; the top-down path carries a state that every
group adds to. Group k has the prior N(mu, sigma^2) read off the state and the residual posterior N(mu + dmu, (sigma
dsigma)^2), with dmu and dsigma from state and image. The loss is -log p(x|z) + c sum_k KL_k: c grows from 1e-4 to 1
over the first part of training, and while it is below 1 the groups are balanced, so that none falls silent.

Deviations: small. One width for all scales, no spectral regularisation, no flows, no weight normalisation, Adam for
Adamax; standard deviations lie between e^-5 and e^5 by NVAE's soft clamp, without the 0.01 that its code adds.
"""

import math
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from gen_core.losses.variational import kl_balance
from gen_vision.methods.vae.vae import VAE, Choose
from gen_vision.networks.latents import Group, Latents, gaussian
from gen_vision.networks.likelihoods import LikelihoodConfig, likelihood
from gen_vision.networks.vae import DecoderCell, EncoderCell, Resize, halved, soft_clamp


class HierarchicalVAE(VAE):
    """`HierarchicalVAE(HierarchicalVAE.Config(groups=(2, 2))).fit(images).sample(64)`."""

    class Config(LikelihoodConfig):  # pyright: ignore[reportIncompatibleVariableOverride]
        """Hyper-parameters."""

        groups: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (1, 1)
        """Groups at each scale, coarsest first; each scale has half the sides of the next."""
        stem: Literal[1, 2, 4] = 2
        """Sides of the image over those of the finest scale."""
        latent: PositiveInt = 8
        """Channels of each group; NVAE: 20."""
        channels: PositiveInt = 32
        """Width of both paths; NVAE: 32 on MNIST, 128 on CIFAR-10."""
        cells: PositiveInt = 1
        """Residual cells before each group in either path; NVAE: 2."""
        expand: PositiveInt = 3
        """Inner width of the top-down cells, times `channels`; NVAE: 6."""
        warm_up: Annotated[float, Field(ge=0, le=1)] = 0.3
        """Share of the steps in which the weight of the KL grows linearly to 1."""
        balance: bool = True
        """Whether the groups' KLs are balanced during it."""
        batch_size: PositiveInt = 128
        """Images a step; a smaller data set is one batch."""
        epochs: PositiveInt = 50
        """Passes over the images."""
        learning_rate: PositiveFloat = 1e-3
        """Adam's learning rate."""
        decay: Literal["none", "cosine"] = "cosine"
        """Learning rate over training: constant, or half a cosine down to 0."""

    def build(self, spec: Any) -> None:
        config = self.config
        width, steps = config.channels, int(math.log2(config.stem))
        self.likelihood = likelihood(config, spec["channels"])
        sides = halved((spec["height"], spec["width"]), steps + len(config.groups) - 1)
        scales = [scale for scale, count in enumerate(config.groups) for _ in range(count)]  # of each group, top first
        stem: list[nn.Module] = [nn.Conv2d(spec["channels"], width, 3, 1, 1)]
        for _ in range(steps):
            stem += [nn.SiLU(), nn.Conv2d(width, width, 3, 2, 1)]
        self.stem = nn.Sequential(*stem)
        self.up, self.down = nn.ModuleList(), nn.ModuleList()  # both in the order of the groups, top first
        for k, scale in enumerate(scales):
            bottom, top = k + 1 == len(scales), k == 0
            from_finer = [] if bottom or scales[k + 1] == scale else [nn.SiLU(), nn.Conv2d(width, width, 3, 2, 1)]
            to_finer = [] if top or scales[k - 1] == scale else [Resize(sides[len(sides) - 1 - scale])]
            self.up.append(nn.Sequential(*from_finer, *(EncoderCell(width) for _ in range(config.cells))))
            cells = [] if top else [DecoderCell(width, config.expand) for _ in range(config.cells)]
            self.down.append(nn.Sequential(*to_finer, *cells))
        self.start = nn.Parameter(torch.zeros(1, width, *sides[-1]))
        self.prior = nn.ModuleList(nn.Sequential(nn.ELU(), nn.Conv2d(width, 2 * config.latent, 1)) for _ in scales[1:])
        self.merge = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in scales[1:])
        self.residual = nn.ModuleList(
            nn.Sequential(nn.ELU(), nn.Conv2d(width, 2 * config.latent, 3, 1, 1)) for _ in scales
        )
        self.add = nn.ModuleList(nn.Conv2d(width + config.latent, width, 1) for _ in scales)
        out: list[nn.Module] = [DecoderCell(width, config.expand)]
        for side in reversed(sides[:steps]):
            out += [Resize(side), nn.Conv2d(width, width, 3, 1, 1), nn.SiLU()]
        self.out = nn.Sequential(*out, nn.ELU(), nn.Conv2d(width, self.likelihood.parameters, 3, 1, 1))
        self.sizes = [4**scale / config.groups[scale] for scale in scales]  # NVAE's, for the balance

    def features(self, x: Tensor) -> list[Tensor]:
        """The bottom-up path, top first: one (b, channels, h_k, w_k) a group."""
        h, found = self.stem(x), list[Tensor]()
        for cells in reversed(self.up):
            h = cells(h)
            found.append(h)
        return found[::-1]

    def generate(self, rows: int, choose: Choose) -> Tensor:
        state = self.start.expand(rows, -1, -1, -1)
        for k, (cells, add) in enumerate(zip(self.down, self.add, strict=True)):
            state = cells(state)
            if k == 0:
                zero = state.new_zeros(rows, self.config.latent, *state.shape[2:])
                z = choose(0, zero, zero, None)
            else:
                mean, log_deviation = self.prior[k - 1](state).chunk(2, 1)
                z = choose(k, soft_clamp(mean), 2 * soft_clamp(log_deviation), state)
            state = add(torch.cat([state, z], 1))
        return self.out(state)

    def infer(self, x: Tensor, samples: int = 1) -> Latents:
        return self.walk(x, gaussian, samples)

    def walk(self, x: Tensor, take: Any, samples: int = 1) -> Latents:
        """The top-down path with z_k = `take`(mean, log-variance) of the posterior."""
        features = [h.repeat(samples, 1, 1, 1) for h in self.features(x)]
        groups: list[Group] = []

        def choose(k: int, mean: Tensor, log_variance: Tensor, context: Tensor | None) -> Tensor:
            q_mean, q_log_variance = self.posterior_of(k, features[k], mean, log_variance, context)
            z = take(q_mean, q_log_variance)
            prior = (None, None) if k == 0 else (mean, log_variance)
            groups.append(Group(z, q_mean, q_log_variance, *prior, context))
            return z

        return Latents(groups, self.generate(len(features[0]), choose))

    def posterior_of(
        self, k: int, feature: Tensor, mean: Tensor, log_variance: Tensor, context: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of q(z_k | x, z_<k), a step from those of the prior."""
        seen = feature if context is None else feature + self.merge[k - 1](context)
        change, log_change = self.residual[k](seen).chunk(2, 1)
        return soft_clamp(mean + change), 2 * soft_clamp(log_variance / 2 + log_change)

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the top group."""
        feature = self.features(x)[0]
        zero = feature.new_zeros(len(x), self.config.latent, *feature.shape[2:])
        return self.posterior_of(0, feature, zero, zero, None)

    def terms(self, x: Tensor, found: Latents, done: float = 1.0) -> dict[str, Tensor]:
        parts = super().terms(x, found, done)
        weight = min(1.0, max(1e-4, done / self.config.warm_up)) if self.config.warm_up else 1.0
        if self.training and self.config.warm_up and weight == 1:
            parts["warm_up"] = torch.zeros_like(parts["kl"])  # what was logged of it last is over
        elif weight < 1:
            kl = parts["kl"]
            if self.config.balance:
                kl = kl_balance(torch.stack([group.kl() for group in found.groups], 1), self.sizes)
            parts["warm_up"] = weight * kl - parts["kl"]
        return parts

    def forward(self, batch: Tensor) -> Tensor:
        """Posterior means of all groups, one after the other: images (b, c, h, w) -> (b, d)."""
        found = self.walk(self.expected(batch), lambda mean, _: mean)
        return torch.cat([group.mean.flatten(1) for group in found.groups], 1)

    def rebuild(self, x: Tensor) -> Tensor:
        return self.walk(x, lambda mean, _: mean).parameters
