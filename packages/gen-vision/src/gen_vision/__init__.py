"""Generative, contrastive and self-supervised learning of images. Importing this package loads nothing heavy."""

from typing import TYPE_CHECKING

from gen_core.lazy import attach

if TYPE_CHECKING:
    from gen_vision.methods.baselines.raw import RawPixels
    from gen_vision.methods.baselines.supervised import Supervised
    from gen_vision.methods.contrastive.simclr import SimCLR

__all__ = ["RawPixels", "SimCLR", "Supervised"]
__getattr__, __dir__ = attach(
    __name__,
    {
        "RawPixels": "methods.baselines.raw",
        "SimCLR": "methods.contrastive.simclr",
        "Supervised": "methods.baselines.supervised",
    },
)
