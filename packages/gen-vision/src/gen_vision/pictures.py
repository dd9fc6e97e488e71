"""Images in rows and columns, as one picture."""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from gen_core.harness import report

MARGIN = 2
SMALLEST = 64
"""Images below this side are enlarged by a whole factor, so that a picture of digits can be seen."""


def grid(images: Tensor, columns: int) -> Tensor:
    """(n, c, h, w) in [0, 1] -> (c, height, width), row by row with white lines between; missing places are white."""
    factor = max(1, -(-SMALLEST // min(images.shape[2:])))
    images = images.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    rows = -(-len(images) // columns)
    blank = images.new_ones(rows * columns - len(images), *images.shape[1:])
    padded = F.pad(torch.cat([images, blank]), (MARGIN, 0, MARGIN, 0), value=1.0)
    _, channels, height, width = padded.shape
    tiles = padded.view(rows, columns, channels, height, width).permute(2, 0, 3, 1, 4)
    return F.pad(tiles.reshape(channels, rows * height, columns * width), (0, MARGIN, 0, MARGIN), value=1.0)


def beside(first: Tensor, second: Tensor, columns: int) -> Tensor:
    """Rows of `first`, each above the same row of `second`; both (n, c, h, w) in [0, 1] -> (c, height, width)."""
    parts = zip(first.split(columns), second.split(columns), strict=True)
    columns = min(columns, len(first))
    pad = [torch.cat([part, part.new_ones(columns - len(part), *part.shape[1:])]) for pair in parts for part in pair]
    return grid(torch.cat(pad), columns)


def samples(images: Tensor, path: Path) -> None:
    """Images (n, c, h, w) in [0, 1] in about as many rows as columns -> a file."""
    images = _flat(images)
    report.picture(grid(images, math.ceil(math.sqrt(len(images)))), path)


def reconstructions(originals: Tensor, made: Tensor, path: Path) -> None:
    """Rows of originals, each above what was made of it -> a file."""
    report.picture(beside(_flat(originals), _flat(made), min(8, len(made))), path)


def _flat(images: Tensor) -> Tensor:
    """Images as they are; of point clouds (n, p, 3) the first 16 as plots."""
    if images.ndim == 4:
        return images
    from gen_vision.clouds import plotted

    return plotted(images[:16])
