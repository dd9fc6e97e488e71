"""An encoder trained from scratch on the labels alone: what a few labels give without the unlabelled images.

The same encoders and augmentations as the contrastive methods, a linear classifier on top, cross entropy, Adam with a
cosine decay. With `labels` above 0 it sees that many labelled images a class, the same that the first episode of the
protocol `few-label` gives to its probe at the same seed. A baseline of ours, without a paper.
"""

from typing import Annotated, Any

import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional

from gen_core.evaluation.probe import few_label_split
from gen_core.harness.errors import LabelsMissing, UsageError
from gen_core.harness.fitting import loader, mix
from gen_core.harness.method import Method
from gen_vision import data
from gen_vision.augment import AugmentConfig, augmentation
from gen_vision.data import split
from gen_vision.networks.encoders import EncoderName, encoder, width_of
from gen_vision.optim import warmup_cosine


class Supervised(Method):
    """`Supervised(Supervised.Config(labels=10)).fit(images).predict(images.test)`."""

    class Config(AugmentConfig):
        """Hyper-parameters."""

        encoder: EncoderName = "conv"
        """Encoder, as SimCLR's."""
        labels: NonNegativeInt = 0
        """Labelled images a class that are used (0 = all)."""
        batch_size: Annotated[int, Field(ge=2)] = 256
        """Images a batch; a smaller set is one batch."""
        epochs: PositiveInt = 100
        """Passes over the labelled images."""
        learning_rate: PositiveFloat = 2e-3
        """Adam's peak learning rate, which falls to 0 along half a cosine."""

    measure = staticmethod(data.spec)
    inputs = staticmethod(data.pixels)
    encoder: nn.Module
    augment: nn.Module

    def build(self, spec: Any) -> None:
        sizes = spec["channels"], spec["height"], spec["width"]
        if spec["classes"] < 2:
            raise LabelsMissing(f"data: supervised needs labels of at least 2 classes, got {spec['classes']}")
        if self.lacks("encoder"):
            self.encoder = encoder(self.config.encoder, *sizes)
        if self.lacks("augment"):
            self.augment = augmentation(self.config, spec)
        self.classifier = nn.Linear(width_of(self.encoder, *sizes), spec["classes"])

    def labelled(self, data: data.Images) -> tuple[Tensor, Tensor]:
        """The images and labels that training may see: of data without a test part, those that no protocol tests on."""
        train, _ = split(data)
        assert train.labels is not None
        if self.config.labels == 0:
            return train.images, train.labels
        try:
            rows = few_label_split(train.labels, self.config.labels, mix(self.fit_seed))
        except ValueError as error:
            raise UsageError(f"labels = {self.config.labels}: {error}") from error
        return train.images[rows], train.labels[rows]

    def batches(self, data: data.Images, seed: int) -> Any:
        images, labels = self.labelled(data)
        return loader([images, labels], min(self.config.batch_size, len(images)), seed, drop_last=True)

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        images, labels = batch
        logits = self.classifier(self.encoder(self.augment(data.unit(images, self.dtype))))
        loss = functional.cross_entropy(logits, labels)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), self.config.learning_rate)
        total = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warmup_cosine(step, 0, total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def forward(self, batch: Tensor) -> Tensor:
        """The encoder's output, (b, c, h, w) -> (b, d)."""
        return self.encoder(data.unit(data.like(batch, self.spec), self.dtype))

    @torch.no_grad()
    def predict(self, data: data.Images, batch_size: int = 1024) -> Tensor:
        """Class indices, int64 (n,)."""
        return self.classifier(self.embed(data, batch_size).to(self.device)).argmax(1).cpu()
