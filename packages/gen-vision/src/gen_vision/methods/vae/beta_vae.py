"""beta-VAE: a VAE whose KL weighs beta times, for codes whose dimensions stand for one factor each.

Citation: Higgins, Matthey, Pal, Burgess, Glorot, Botvinick, Mohamed and Lerchner, "beta-VAE: Learning Basic Visual
Concepts with a Constrained Variational Framework", ICLR 2017.

Deviations: none in the objective; networks and data are those of our VAE. beta is the paper's unnormalised one: it
multiplies nats summed over the latent dimensions, beside a reconstruction summed over pixels.
"""

from pydantic import NonNegativeFloat
from torch import Tensor

from gen_vision.methods.vae.vae import VAE
from gen_vision.networks.latents import Latents


class BetaVAE(VAE):
    """`BetaVAE(BetaVAE.Config(beta=4)).fit(images)`; beta = 1 is the VAE."""

    class Config(VAE.Config):
        """Hyper-parameters."""

        beta: NonNegativeFloat = 4.0
        """Weight of the KL; 1 is the ELBO."""

    def terms(self, x: Tensor, found: Latents, done: float = 1.0) -> dict[str, Tensor]:
        parts = super().terms(x, found, done)
        return parts | {"pressure": (self.config.beta - 1) * parts["kl"]}
