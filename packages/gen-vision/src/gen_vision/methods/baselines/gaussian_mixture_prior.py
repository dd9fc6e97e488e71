"""Samples of a trained VAE from a Gaussian mixture on its codes: what users take today in place of the prior.

Settings as in pythae's GaussianMixtureSampler: 10 components with full covariances on one posterior sample an image.
"""

from pathlib import Path
from typing import Any, Self

import torch
from pydantic import PositiveInt
from torch import Tensor

from gen_core.harness import config as configs
from gen_core.harness.errors import UsageError
from gen_vision import data
from gen_vision.methods.vae.vae import OnVAE, codes, flat, generated


class GaussianMixturePrior(OnVAE):
    """`GaussianMixturePrior(vae=trained).fit(images).sample(64)`; VAEs with one flat group of latents."""

    class Config(configs.Config):
        """Hyper-parameters."""

        components: PositiveInt = 10
        """Gaussians in the mixture."""

    weights: Tensor
    means: Tensor
    roots: Tensor

    def build(self, spec: Any) -> None:
        k, d = self.config.components, flat(self, spec)
        for name, shape in {"weights": (k,), "means": (k, d), "roots": (k, d, d)}.items():
            self.register_buffer(name, torch.zeros(shape))

    def fit(self, data: data.Images, *, seed: int = 0, out: str | Path | None = None, **_: Any) -> Self:
        from sklearn.mixture import GaussianMixture

        if len(data) < self.config.components:
            raise UsageError(f"components = {self.config.components}: must be at most the {len(data)} images")
        self.prepare(type(self).measure(data), seed)
        z = codes(self.base, data, seed)
        found: Any = GaussianMixture(self.config.components, max_iter=2000, random_state=seed).fit(z.double().numpy())
        self.weights.copy_(torch.from_numpy(found.weights_))
        self.means.copy_(torch.from_numpy(found.means_))
        self.roots.copy_(torch.linalg.cholesky(torch.from_numpy(found.covariances_)))
        if out:
            self.save(out)
        return self

    @torch.no_grad()
    def sample(self, n: int, *, seed: int = 0, mean: bool = True, batch_size: int = 500) -> Tensor:
        """New images, (n, c, h, w) in [0, 1], on the CPU."""

        def choose(_: int, like: Tensor, *__: Any) -> Tensor:
            component = torch.multinomial(self.weights, len(like), replacement=True)
            return self.means[component] + (self.roots[component] @ torch.randn_like(like)[:, :, None])[:, :, 0]

        return generated(self, n, choose, seed, mean, batch_size)
