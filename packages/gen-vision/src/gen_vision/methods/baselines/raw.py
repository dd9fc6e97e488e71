"""Raw pixels as the representation: what a probe reaches without any learning."""

from typing import Any

from torch import Tensor

from gen_core.harness.plain import Plain
from gen_vision.data import Images, unit


class RawPixels(Plain):
    """`RawPixels().embed(images)`: every image as one row of values in [0, 1]."""

    def embed(self, data: Images, batch_size: int = 1024, **_: Any) -> Tensor:
        """float32 (n, c h w)."""
        return unit(data.images).flatten(1)
