"""Generative, contrastive and self-supervised learning of images. Importing this package loads nothing heavy."""

from typing import TYPE_CHECKING

from gen_core.lazy import attach

if TYPE_CHECKING:
    from gen_vision.methods.baselines.gaussian_mixture_prior import GaussianMixturePrior
    from gen_vision.methods.baselines.raw import RawPixels
    from gen_vision.methods.baselines.supervised import Supervised
    from gen_vision.methods.baselines.two_stage_vae import TwoStageVAE
    from gen_vision.methods.contrastive.simclr import SimCLR
    from gen_vision.methods.vae.beta_vae import BetaVAE
    from gen_vision.methods.vae.cr_vae import CRVAE
    from gen_vision.methods.vae.hierarchical import HierarchicalVAE
    from gen_vision.methods.vae.iwae import IWAE
    from gen_vision.methods.vae.ncp_vae import NCPVAE, fit_prior
    from gen_vision.methods.vae.point_vae import PointVAE
    from gen_vision.methods.vae.vae import VAE

__all__ = [
    "CRVAE",
    "IWAE",
    "NCPVAE",
    "VAE",
    "BetaVAE",
    "GaussianMixturePrior",
    "HierarchicalVAE",
    "PointVAE",
    "RawPixels",
    "SimCLR",
    "Supervised",
    "TwoStageVAE",
    "fit_prior",
]
__getattr__, __dir__ = attach(
    __name__,
    {
        "CRVAE": "methods.vae.cr_vae",
        "GaussianMixturePrior": "methods.baselines.gaussian_mixture_prior",
        "NCPVAE": "methods.vae.ncp_vae",
        "TwoStageVAE": "methods.baselines.two_stage_vae",
        "fit_prior": "methods.vae.ncp_vae",
        "IWAE": "methods.vae.iwae",
        "VAE": "methods.vae.vae",
        "BetaVAE": "methods.vae.beta_vae",
        "HierarchicalVAE": "methods.vae.hierarchical",
        "PointVAE": "methods.vae.point_vae",
        "RawPixels": "methods.baselines.raw",
        "SimCLR": "methods.contrastive.simclr",
        "Supervised": "methods.baselines.supervised",
    },
)
