"""PointVAE: a variational FoldingNet. A point cloud is encoded as a set; a plane sheet is folded into its surface.

Citation: Yang, Feng, Shen and Tian, "FoldingNet: Point Cloud Auto-encoder via Deep Grid Deformation", CVPR 2018, arXiv
1712.07262; as the base of Sinha and Dieng, "Consistency Regularization for Variational Auto-Encoders", NeurIPS 2021,
arXiv 2105.14859.

Encoder: each point with the covariance of its k nearest points goes through a perceptron; two graph layers take the
maximum over these neighbours; the maximum over all points gives mu and log sigma^2. Decoder: a fixed grid of the plane,
each place with z beside it, goes through a perceptron to space, and the outcome with z through a second one. What is
minimised is weight * p * Chamfer + KL(q(z|x) || N(0, I)), a mean over clouds of p points.

The first term is an energy and no likelihood: sums called nats or elbo are so in name only, and there is no p(x|z) to
sample from and no importance-weighted likelihood.

Deviations: FoldingNet is deterministic; its code becomes mu and log sigma^2, as in CR-VAE. Its Chamfer distance takes
roots and the larger direction; here both directions of squares are added. Networks are half of the paper's width and
narrower, the sheet has about as many points as the cloud, defaults are ours. Own clouds, in whatever unit, are scaled
to a radius of 1 when they are loaded.
"""

import math
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from gen_core.harness import config as configs
from gen_core.harness.errors import UsageError
from gen_core.harness.fitting import loader
from gen_core.losses.geometry import chamfer
from gen_vision import data
from gen_vision.clouds import Clouds, plotted, spread
from gen_vision.methods.vae.vae import VAE, expect
from gen_vision.networks.vae import mlp
from gen_vision.pictures import beside, grid

_NEEDED = "data: point-vae needs point clouds, such as shapes-3d or an .npz file"


def points_of(data: Any) -> Tensor:
    """The clouds' tensor, (n, p, 3); images are refused."""
    if not isinstance(data, Clouds):
        raise UsageError(f"{_NEEDED}, got {type(data).__name__}")
    return data.points


def spec_of(found: Any) -> dict[str, int]:
    """The clouds' sizes; images are refused."""
    points_of(found)
    return data.spec(found)


class PointVAE(VAE):
    """`PointVAE().fit(clouds).sample(16)`; own networks: `PointVAE(encoder=net, decoder=net)`.

    encoder: (b, p, 3) -> (b, 2 d), means and log-variances; decoder: (b, d) -> (b, m, 3), m = round(sqrt(p))^2.
    """

    class Config(configs.Config):  # pyright: ignore[reportIncompatibleVariableOverride]
        """Hyper-parameters."""

        neighbours: Annotated[int, Field(ge=2)] = 16
        """k, the nearest points that each point sees, itself among them; a smaller cloud is seen whole."""
        hidden: PositiveInt = 32
        """Width of perceptron and first graph layer (paper: 64); the second has 4 times as many, the folds twice."""
        latent: PositiveInt = 16
        """d, dimensions of z; the paper's code has 512."""
        weight: PositiveFloat = 50.0
        """Of the Chamfer distance times the number of points beside the KL: the larger, the sharper."""
        batch_size: PositiveInt = 8
        """Clouds a step; a smaller data set is one batch."""
        epochs: PositiveInt = 20
        """Passes over the clouds."""
        learning_rate: PositiveFloat = 5e-3
        """Adam's learning rate."""
        decay: Literal["none", "cosine"] = "cosine"
        """Learning rate over training: constant, or half a cosine down to 0."""

    measure = staticmethod(spec_of)
    inputs = staticmethod(points_of)
    likelihood: "ChamferEnergy"  # pyright: ignore[reportIncompatibleVariableOverride]

    def build(self, spec: Any) -> None:
        config = self.config
        if "points" not in spec:
            raise UsageError(f"{_NEEDED}, got images")
        self.likelihood = ChamferEnergy(config.weight)
        side = max(2, round(math.sqrt(spec["points"])))
        if self.lacks("encoder"):
            self.encoder = SetEncoder(config.neighbours, config.hidden, config.latent)
        if self.lacks("decoder"):
            self.decoder = Folding(side, 2 * config.hidden, config.latent)
        expect("encoder", self.encoder, (spec["points"], 3), (2 * config.latent,))
        expect("decoder", self.decoder, (config.latent,), (side * side, 3))

    def batches(self, data: Any, seed: int) -> Any:
        return loader([points_of(data)], self.config.batch_size, seed, drop_last=True)

    def log_weights(self, x: Tensor, samples: int) -> Tensor:
        """Refused: there is no log p(x|z)."""
        raise UsageError("point-vae: the Chamfer distance is an energy and no likelihood; there is no log p(x, z)")

    def expected(self, images: Tensor) -> Tensor:
        """Clouds as the encoder sees them, in this model's dtype and on its device."""
        if images.ndim != 3 or images.shape[2] != 3 or not images.is_floating_point():
            raise UsageError(f"{_NEEDED}, got {images.dtype} {tuple(images.shape)}")
        return self.likelihood.expected(data.unit(images, self.dtype).to(self.device))

    def forward(self, batch: Tensor) -> Tensor:
        """Posterior means: clouds (b, p, 3) -> (b, d)."""
        return super().forward(batch)

    def reconstruct(self, images: Any, batch_size: int = 500) -> Tensor:
        """The folded sheet at the posterior's mean: clouds, or points (n, p, 3) -> (n, m, 3) on the CPU."""
        return super().reconstruct(images if isinstance(images, Tensor) else points_of(images), batch_size)

    def pictures(self, seen: Any = None) -> dict[str, Tensor]:
        """What is kept during training: four samples, and four clouds above their reconstructions."""
        few = spread(points_of(seen or self.training_data))
        made = {"samples": grid(plotted(self.sample(4)), 4)}
        return made | {"reconstructions": beside(plotted(few), plotted(self.reconstruct(few)), 4)}


class ChamferEnergy:
    """What stands in the place of a likelihood. Observations are clouds (b, p, 3), parameters clouds (b, m, 3)."""

    span = (-math.inf, math.inf)

    def __init__(self, weight: float) -> None:
        self.weight = weight

    def observe(self, clouds: Tensor) -> Tensor:
        """The clouds themselves."""
        return clouds

    expected = shown = observe

    def nll(self, parameters: Tensor, x: Tensor) -> Tensor:
        """weight * p * Chamfer distance, (b,): an energy, nats in name only."""
        return self.weight * x.shape[1] * chamfer(parameters, x, "none")

    def mean(self, parameters: Tensor) -> Tensor:
        """The decoder's cloud."""
        return parameters

    def sample(self, parameters: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Refused: there is no p(x|z)."""
        raise UsageError("mean = False: the Chamfer distance is an energy and no likelihood; there is no p(x|z)")


# ---------------------------------------------------------------------------------------------------------- networks


def nearest(points: Tensor, k: int) -> Tensor:
    """Indices of the k nearest points of the same cloud, the point itself among them; (b, p, 3) -> (b, p, k)."""
    with torch.no_grad():
        return torch.cdist(points, points).topk(min(k, points.shape[1]), largest=False, sorted=False).indices


def covariances(points: Tensor, index: Tensor) -> Tensor:
    """Covariance matrices of the neighbours of each point, divided by k; (b, p, 3), (b, p, k) -> (b, p, 9)."""
    rows = torch.arange(len(points), device=points.device)[:, None, None]
    around = points[rows, index]
    around = around - around.mean(2, keepdim=True)
    return (around.mT @ around).flatten(2) / index.shape[2]


def pooled(features: Tensor, index: Tensor) -> Tensor:
    """The maximum over neighbours; (b, p, c), (b, p, k) -> (b, p, c)."""
    b, p, c = features.shape
    rows = index + p * torch.arange(b, device=index.device)[:, None, None]
    # Neighbours laid out as (b, p, k, c) would be most of the memory, and of the time on a CPU.
    return F.embedding_bag(rows.view(b * p, -1), features.reshape(b * p, c), mode="max").view(b, p, c)


class SetEncoder(nn.Module):
    """FoldingNet's graph-based encoder, (b, p, 3) -> (b, 2 latent); the order of the points does not matter."""

    def __init__(self, neighbours: int, width: int, latent: int) -> None:
        super().__init__()
        self.neighbours = neighbours
        self.points = mlp([12, width, width], "relu")
        self.graph = nn.ModuleList([nn.Linear(width, width), nn.Linear(width, 4 * width)])
        self.head = mlp([4 * width, 4 * width, 2 * latent], "relu")

    def forward(self, points: Tensor) -> Tensor:
        index = nearest(points, self.neighbours)
        h = self.points(torch.cat([points, covariances(points, index)], 2)).relu()
        for layer in self.graph:
            h = layer(pooled(h, index)).relu()
        return self.head(h.max(1).values)


class Fold(nn.Module):
    """A perceptron of a code (b, latent) and places (1 or b, m, c) side by side -> (b, m, 3)."""

    def __init__(self, places: int, width: int, latent: int) -> None:
        super().__init__()
        self.code = nn.Linear(latent, width)  # the first layer's share of z, computed once a cloud
        self.place = nn.Linear(places, width, bias=False)
        self.rest = mlp([width, width, 3], "relu")

    def forward(self, code: Tensor, places: Tensor) -> Tensor:
        return self.rest((self.code(code)[:, None] + self.place(places)).relu())


class Folding(nn.Module):
    """FoldingNet's decoder: a square grid of side x side points within -1 and 1, folded twice; (b, d) -> (b, m, 3)."""

    grid: Tensor

    def __init__(self, side: int, width: int, latent: int) -> None:
        super().__init__()
        line = torch.linspace(-1, 1, side)
        self.register_buffer("grid", torch.cartesian_prod(line, line), persistent=False)
        self.first, self.second = Fold(2, width, latent), Fold(3, width, latent)

    def forward(self, z: Tensor) -> Tensor:
        return self.second(z, self.first(z, self.grid[None]))
