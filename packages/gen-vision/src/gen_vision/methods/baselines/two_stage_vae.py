"""Two-stage VAE: a second VAE on the codes of a first, whose aggregate posterior is nearer to its own prior.

Citation: Dai and Wipf, "Diagnosing and Enhancing VAE Models", ICLR 2019, arXiv 1903.05789.

The second VAE has as many latent dimensions as the first and a Gaussian likelihood with a learnt variance. Sizes are
those of pythae's TwoStageVAESampler, two hidden layers of 1,024. A baseline: the first stage is whatever it is given.

Deviation: the learnt variance starts at e^-2. At 1, about the variance of the codes themselves, the second VAE's KL
stayed near 0 nats on MNIST, and its samples were no nearer to the data than the base prior's.
"""

from typing import Any

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from gen_core.harness import config as configs
from gen_core.losses.variational import gaussian_nll, kl_standard_normal
from gen_vision import data
from gen_vision.methods.vae.vae import OnVAE, flat, generated, optimizer
from gen_vision.networks.latents import gaussian
from gen_vision.networks.vae import mlp


class TwoStageVAE(OnVAE):
    """`TwoStageVAE(vae=trained).fit(images).sample(64)`; VAEs with one flat group of latents."""

    class Config(configs.Config):
        """Hyper-parameters."""

        hidden: PositiveInt = 1024
        """Width of the two hidden layers of either network."""
        epochs: PositiveInt = 30
        """Passes over the images."""
        batch_size: PositiveInt = 256
        """Images a step; a smaller data set is one batch."""
        learning_rate: PositiveFloat = 1e-3
        """Adam's learning rate, with cosine decay."""

    def build(self, spec: Any) -> None:
        d, h = flat(self, spec), self.config.hidden
        self.encoder, self.decoder = mlp([d, h, h, 2 * d], "relu"), mlp([d, h, h, d], "relu")
        self.log_variance = nn.Parameter(torch.full((1,), -2.0))

    def training_step(self, batch: tuple[Tensor], _: int) -> Tensor:
        with torch.no_grad():
            z = gaussian(*self.base.posterior(self.base.likelihood.observe(data.unit(batch[0], self.dtype))))
        mean, log_variance = self.encoder(z).chunk(2, 1)
        kl = kl_standard_normal(mean, log_variance)
        reconstruction = gaussian_nll(self.decoder(gaussian(mean, log_variance)), z, self.log_variance)
        self.log_dict({"loss": kl + reconstruction, "kl": kl, "reconstruction": reconstruction})
        return kl + reconstruction

    def configure_optimizers(self) -> Any:
        return optimizer(self, self.config.learning_rate, "cosine")

    @torch.no_grad()
    def sample(self, n: int, *, seed: int = 0, mean: bool = True, batch_size: int = 500) -> Tensor:
        """New images, (n, c, h, w) in [0, 1], on the CPU."""

        def choose(_: int, like: Tensor, *__: Any) -> Tensor:
            z = self.decoder(torch.randn_like(like))
            return gaussian(z, self.log_variance.expand_as(z))

        return generated(self, n, choose, seed, mean, batch_size)
