"""A linear autoencoder with noise.

Citation: nobody, "Nothing", nowhere.
"""

import os
from pathlib import Path

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import nn

from gen_core.harness.config import Config as Base
from gen_core.harness.fitting import loader
from gen_core.harness.method import Method
from toydomain import data


class Auto(Method):
    """A linear autoencoder with noise."""

    class Config(Base):
        hidden: PositiveInt = 3
        """width of the code, units"""
        epochs: PositiveInt = 4
        """passes over the data"""
        batch_size: PositiveInt = 64
        """rows a step"""
        learning_rate: PositiveFloat = 0.01
        """Adam's step"""

    encoder: nn.Module
    decoder: nn.Module
    measure = staticmethod(data.spec)
    inputs = staticmethod(lambda table: table.x)

    def build(self, spec):
        if self.lacks("encoder"):
            self.encoder = nn.Linear(spec["features"], self.config.hidden)
        self.decoder = nn.Linear(self.config.hidden, spec["features"])
        self.register_buffer("iteration", torch.zeros((), dtype=torch.int64))

    def batches(self, data, seed):
        return loader([data.x], self.config.batch_size, seed, drop_last=True)

    def training_step(self, batch, _):
        self.iteration += 1
        if trace := os.environ.get("TOY_TRACE"):  # counts the work over all processes, and dies where a test says
            with Path(trace).open("a") as file:
                file.write(f"{int(self.iteration)}\n")
        if os.environ.get("TOY_KILL") == f"step {int(self.iteration)}":
            os.kill(os.getpid(), 9)
        (x,) = batch
        loss = (self.decoder(self.encoder(x + 0.1 * torch.randn_like(x))) - x).square().mean()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), self.config.learning_rate)

    def forward(self, x):
        return self.encoder(x)
