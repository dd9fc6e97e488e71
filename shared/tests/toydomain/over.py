"""A linear map of another method's code: a second stage, or one that learns with it.

Citation: nobody, "Nothing above nothing", nowhere.
"""

import torch
from pydantic import PositiveInt
from torch import nn

from gen_core.harness.config import Config as Base
from gen_core.harness.errors import UsageError
from gen_core.harness.fitting import loader
from gen_core.harness.method import Method
from toydomain import data


class Over(Method):
    """A linear map of another method's code."""

    class Config(Base):
        epochs: PositiveInt = 2
        """passes over the data"""
        learning: bool = False
        """whether the base learns too"""

    base: Method
    measure = staticmethod(data.spec)
    inputs = staticmethod(lambda table: table.x)

    def build(self, spec):
        if self.lacks("base"):
            raise UsageError("over needs base=...: a trained auto")
        self.base.prepare(spec, torch.initial_seed())
        self.top = nn.Linear(self.base.config.hidden, 2)

    def batches(self, data, seed):
        return loader([data.x, data.labels], 64, seed)

    def training_step(self, batch, _):
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters() if self.config.learning else self.top.parameters(), 0.01)

    def forward(self, x):
        return self.top(self.base(x))
