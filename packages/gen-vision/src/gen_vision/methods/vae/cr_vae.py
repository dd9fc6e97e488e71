"""CR-VAE: an image and a harmless transformation of it must be encoded alike.

Citation: Sinha and Dieng, "Consistency Regularization for Variational Auto-Encoders", NeurIPS 2021, arXiv 2105.14859.

With x' ~ t(x'|x) what is maximised is L(x) + L(x') - lambda KL(q(z|x') || q(z|x)), L the bound of any base: VAE,
beta-VAE, IWAE, a hierarchical VAE (the KL summed over its groups). Both arguments of the KL get a gradient; the second
bound reconstructs x' itself. lambda = 0 is the base on images and their transformations: "VAE+Aug", the fair baseline.

Deviations: none known in the objective; the official code does not run and is not followed where it contradicts the
paper (it takes exp(log sigma^2) for sigma and a mean over pixels beside a KL summed over the batch). In a hierarchy
each side of the KL is conditioned on its own samples z_<k; the paper's choice could not be read. lambda multiplies nats
summed over latent dimensions; its default is ours. Both images of a pair go through the networks in one batch, so that
batch norm sees them together. Length, batch and learning rate of the training are the base's own. Of point clouds the
base is a PointVAE and the transformation `CloudAugment`: a turn about the vertical axis, a factor and jitter.
"""

from typing import Annotated, Any

import torch
from pydantic import Field, NonNegativeFloat
from torch import Tensor, nn

from gen_core.harness import config as configs
from gen_core.harness.errors import UsageError
from gen_core.harness.fitting import loader
from gen_core.harness.method import Method
from gen_vision import data
from gen_vision.augment import AffineNoise
from gen_vision.clouds import CloudAugment, Clouds
from gen_vision.methods.vae.point_vae import PointVAE
from gen_vision.methods.vae.vae import VAE, optimizer, progress
from gen_vision.networks.latents import inconsistency


class CRVAE(Method):
    """`CRVAE(vae=IWAE()).fit(images)`; own transformation: `CRVAE(transform=module)`, images in [0, 1] to the same.

    `CRVAE(vae=PointVAE()).fit(clouds)`: the four fields of the transformation are of images; for clouds give
    `transform`.
    """

    class Config(configs.Config):
        """Hyper-parameters beside the base's."""

        consistency: NonNegativeFloat = 0.1
        """lambda, weight of the KL between the two posteriors; 0 is the base with augmented images."""
        rotation: Annotated[float, Field(ge=0, le=180)] = 15.0
        """Largest rotation in degrees."""
        shift: Annotated[float, Field(ge=0, lt=1)] = 0.05
        """Largest shift as a share of the side."""
        scale: Annotated[float, Field(ge=0, lt=1)] = 0.1
        """Largest relative change of size."""
        flip: bool = False
        """Whether images are also mirrored left to right with probability 1/2; not for digits."""

    measure = staticmethod(data.spec)
    inputs = staticmethod(data.pixels)
    vae: Method
    transform: nn.Module

    def build(self, spec: Any) -> None:
        config, of_clouds = self.config, "points" in spec
        if self.lacks("vae"):
            self.vae = PointVAE() if of_clouds else VAE()
        if not hasattr(self.vae, "terms"):
            raise UsageError(
                f"vae: a {type(self.vae).__name__} is no VAE; give a VAE, BetaVAE, IWAE or HierarchicalVAE"
            )
        self.vae.prepare(spec, torch.initial_seed())  # the seed of this build: the base starts as it would alone
        if self.lacks("transform") and of_clouds:
            fields = {name: type(config).model_fields[name].default for name in ("rotation", "shift", "scale", "flip")}
            if own := [name for name, default in fields.items() if getattr(config, name) != default]:
                raise UsageError(f"{', '.join(own)}: of images; for point clouds give another `transform`")
            self.transform = CloudAugment()
        elif self.lacks("transform"):
            affine = AffineNoise(
                rotation=config.rotation, scale=config.scale, shift=config.shift, noise=0, flip=config.flip
            )
            self.transform = affine

    @property
    def base(self) -> Any:
        """The VAE itself."""
        return self.vae

    @property
    def max_epochs(self) -> int:
        return self.base.max_epochs

    def batches(self, data: data.Images | Clouds, seed: int) -> Any:
        return loader([type(self).inputs(data)], self.base.config.batch_size, seed, drop_last=True)

    def training_step(self, batch: tuple[Tensor], _: int) -> Tensor:
        images = data.unit(batch[0], self.dtype)
        return self.objective(images, self.changed(images), progress(self))

    def objective(self, images: Tensor, changed: Tensor, done: float = 1.0) -> Tensor:
        """-L(x) - L(x') + lambda KL(q(z|x') || q(z|x)), nats, means over pairs; images in [0, 1], or clouds."""
        n, config = len(images), self.config
        x = self.base.likelihood.observe(torch.cat([images, changed]))
        found = self.base.infer(x, self.base.samples_per_step)
        terms = {name: 2 * term for name, term in self.base.terms(x, found, done).items()}  # of 2n images, a sum a pair
        elbo = -(terms["reconstruction"] + terms["kl"]) / 2
        apart = inconsistency(found.groups, slice(n, 2 * n), slice(n)).mean()
        if config.consistency:
            terms["consistency"] = config.consistency * apart
        loss = torch.stack(list(terms.values())).sum()
        self.log_dict({"loss": loss, "elbo": elbo, "inconsistency": apart, **terms})
        return loss

    def changed(self, images: Tensor) -> Tensor:
        """x' ~ t(x'|x)."""
        found: Tensor = self.transform(images)
        if found.shape != images.shape:
            raise UsageError(f"transform: must keep the shape {tuple(images.shape)}, gave {tuple(found.shape)}")
        low, high = found.aminmax()
        least, most = self.base.likelihood.span
        if not (low >= least and high <= most):  # also NaN
            raise UsageError(f"transform: must stay in [{least:g}, {most:g}], gave values from {low:.4g} to {high:.4g}")
        return found

    def configure_optimizers(self) -> Any:
        return optimizer(self, self.base.config.learning_rate, self.base.config.decay)

    def forward(self, batch: Tensor) -> Tensor:
        """Posterior means: images (b, c, h, w), uint8 or float in [0, 1], or clouds (b, p, 3) -> (b, d)."""
        return self.base(batch)

    def sample(self, n: int, **options: Any) -> Tensor:
        """As the base."""
        return self.base.sample(n, **options)

    def reconstruct(self, images: data.Images | Clouds | Tensor, batch_size: int = 500) -> Tensor:
        """As the base."""
        return self.base.reconstruct(images, batch_size)

    def pictures(self) -> dict[str, Tensor]:
        """What is kept during training."""
        return self.base.pictures(self.training_data)
