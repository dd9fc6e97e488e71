"""IWAE: the VAE's networks trained on a tighter bound, the log of a mean over k importance weights.

Citation: Burda, Grosse and Salakhutdinov, "Importance Weighted Autoencoders", ICLR 2016, arXiv 1509.00519.

k samples z_i ~ q(z|x) give weights w_i = p(x, z_i) / q(z_i|x); what is maximised is E log (1/k) sum w_i (eq. 8), which
is the ELBO at k = 1 and never falls with k.

Deviations: Adam's epsilon is torch's 1e-8, not 1e-4, and the learning rate falls by a cosine or not at all, where the
paper trains 3,280 epochs in eight stages. The KL is measured at the samples, as the bound needs it.
"""

import torch
from pydantic import PositiveInt
from torch import Tensor

from gen_core.losses.variational import iwae_bound
from gen_vision.methods.vae.vae import VAE
from gen_vision.networks.latents import Group, Latents


class IWAE(VAE):
    """`IWAE(IWAE.Config(samples=50)).fit(images)`; samples = 1 is the VAE with the KL by one sample."""

    class Config(VAE.Config):
        """Hyper-parameters."""

        samples: PositiveInt = 5
        """k, importance samples of each image in each step."""

    @property
    def samples_per_step(self) -> int:
        return self.config.samples

    def terms(self, x: Tensor, found: Latents, done: float = 1.0) -> dict[str, Tensor]:
        """reconstruction and kl are means over the k samples, so that the ELBO is theirs; tightening is what k adds."""
        k = len(found.parameters) // len(x)
        target = x.repeat(k, *[1] * (x.ndim - 1))
        reconstruction = self.part("reconstruction", self.likelihood.nll, found.parameters, target)
        kl = torch.stack([self.part("kl", Group.log_ratio, group) for group in found.groups]).sum(0)
        log_weights = -(reconstruction + kl).view(k, len(x))
        return {
            "reconstruction": reconstruction.mean(),
            "kl": kl.mean(),
            "tightening": log_weights.mean() - iwae_bound(log_weights),
        }
