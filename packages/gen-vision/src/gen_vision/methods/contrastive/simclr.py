"""SimCLR: two random augmentations of an image must find each other among all views of the batch.

Citation: Chen, Kornblith, Norouzi and Hinton, "A Simple Framework for Contrastive Learning of Visual Representations",
ICML 2020, arXiv 2002.05709.

Each of N images is augmented twice; encoder f and head g map the 2N views to z; every view must pick its partner among
the other 2N - 1 by cosine similarity over a temperature. The head is thrown away afterwards: the representation is
h = f(x).

Deviations: the loss is the paper's mean over 2N anchors, where the official scalar is twice that (only the balance with
weight decay changes under LARS). The defaults are for small images on a CPU: a three-layer encoder and Adam; the recipe
`cifar10-paper` holds the paper's ResNet-50, LARS and batch. Brightness is a factor, as in the official code's default;
the paper's first version added it. The head has the paper's two layers, not the official code's later three. A data
set smaller than the batch is one batch. On several devices `batch_size` is that of each and the views of all are
negatives, with exact gradients; batch norm is each device's own unless `fit(..., sync_batchnorm=True)`.
"""

from typing import Annotated, Any, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from gen_core.distributed import gather
from gen_core.estimators import BOUNDS, Match, Separable
from gen_core.harness.errors import UsageError
from gen_core.harness.fitting import loader
from gen_core.harness.method import Method
from gen_core.losses import nt_xent
from gen_vision import data
from gen_vision.augment import AugmentConfig, augmentation
from gen_vision.networks.encoders import EncoderName, encoder, width_of
from gen_vision.networks.heads import projection
from gen_vision.optim import LARS, lars_groups, warmup_cosine


class SimCLR(Method):
    """`SimCLR(SimCLR.Config(epochs=20)).fit(images).embed(images)`; own networks: `SimCLR(encoder=net, head=g)`."""

    class Config(AugmentConfig):
        """Hyper-parameters."""

        encoder: EncoderName = "conv"
        """Encoder f: three convolutions (128-d), or a ResNet with the CIFAR or the ImageNet stem."""
        hidden: PositiveInt = 128
        """Width of the head's hidden layer; the paper: that of the representation."""
        projection: PositiveInt = 64
        """Dimensions of z = g(h), where the loss acts; the paper: 128."""
        temperature: PositiveFloat = 0.5
        """tau, which divides the cosine similarities."""
        batch_size: Annotated[int, Field(ge=2)] = 256
        """Images a batch N, giving 2N views; a smaller data set is one batch."""
        epochs: PositiveInt = 100
        """Passes over the images."""
        optimizer: Literal["adam", "lars"] = "adam"
        """Adam, or the paper's LARS with momentum 0.9."""
        learning_rate: PositiveFloat = 2e-3
        """Peak learning rate, before `scaling`."""
        scaling: Literal["none", "linear", "sqrt"] = "none"
        """Peak rate: learning_rate, times N / 256 (linear), or times the root of N (sqrt); the paper: linear, 0.3."""
        warmup_epochs: NonNegativeFloat = 0.0
        """Epochs of linear warm-up before the cosine decay to 0; the paper: 10."""
        weight_decay: NonNegativeFloat = 0.0
        """Weight decay, not on biases and norm layers; the paper: 1e-6."""
        bound: Literal["paper", "infonce", "dv", "nwj", "tuba", "jsd", "smile", "interpolated", "nce"] = "paper"
        """Objective on the scores: NT-Xent, or another bound of mutual information with learnt scale and offset."""

    revision = 2  # 2: the loss of few pairs in one function, other roundings
    measure = staticmethod(data.spec)
    inputs = staticmethod(data.pixels)
    encoder: nn.Module
    head: nn.Module
    augment: nn.Module

    def build(self, spec: Any) -> None:
        sizes = spec["channels"], spec["height"], spec["width"]
        if self.lacks("encoder"):
            self.encoder = encoder(self.config.encoder, *sizes)
        if self.lacks("head"):
            self.head = projection(width_of(self.encoder, *sizes), self.config.hidden, self.config.projection)
        if self.lacks("augment"):
            self.augment = augmentation(self.config, spec)
        if self.config.bound != "paper":
            self.critic = Separable(self.config.temperature)

    def batches(self, data: data.Images, seed: int) -> Any:
        return loader([data.images], self.batch_size(data), seed, drop_last=True)

    def training_step(self, batch: tuple[Tensor], _: int) -> Tensor:
        images = data.unit(batch[0], self.dtype)
        views = torch.cat([self.augment(images), self.augment(images)])  # partner of i is i + N
        z = self.head(self.encoder(views))  # one batch-norm statistic over both views
        first, second = z.chunk(2)
        loss = self.objective(first, second)
        self.log("loss", loss)
        if self.config.bound != "paper":
            self.log(f"objective/{self.config.bound}", -loss)
        return loss

    def objective(self, first: Tensor, second: Tensor) -> Tensor:
        """NT-Xent, or minus another bound on the (2N, 2N) scores without their diagonal; in nats."""
        if self.config.bound == "paper":
            return nt_xent(first, second, self.config.temperature, gather=True)
        first, second = gather(first), gather(second)  # some bounds have one logarithm over all pairs
        ids = torch.arange(len(first), device=first.device).repeat(2)
        z = torch.cat([first, second])
        return -BOUNDS[self.config.bound](self.critic(z, z), Match(ids, skip=0))

    def configure_optimizers(self) -> Any:
        config, n = self.config, len(self.training_data)
        batch = self.batch_size(self.training_data) * self.trainer.world_size
        rate = config.learning_rate * {"none": 1, "linear": batch / 256, "sqrt": batch**0.5}[config.scaling]
        groups = lars_groups(self, config.weight_decay)
        optimizer = LARS(groups, rate) if config.optimizer == "lars" else torch.optim.Adam(groups, rate)
        warmup, total = round(config.warmup_epochs * n / batch), n * config.epochs // batch + 1
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warmup_cosine(step, warmup, total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def forward(self, batch: Tensor) -> Tensor:
        """h = f(x): images (b, c, h, w), uint8 or float in [0, 1] -> (b, d)."""
        return self.encoder(data.unit(data.like(batch, self.spec), self.dtype))

    def batch_size(self, data: data.Images) -> int:
        """The batch that is used: all images where there are fewer than `batch_size`."""
        if len(data) < 2:
            raise UsageError("data: SimCLR needs at least 2 images, so that a view has a negative; got 1")
        return min(self.config.batch_size, len(data))
