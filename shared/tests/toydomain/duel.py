"""Two networks that alternate, each stepped by `descend`."""

import torch
from pydantic import PositiveInt
from torch import nn

from gen_core.harness.config import Config as Base
from gen_core.harness.fitting import loader
from gen_core.harness.method import Method


class Duel(Method):
    """Two linear maps against each other; what each step does to the other's gradient is kept."""

    class Config(Base):
        epochs: PositiveInt = 2
        """passes"""

    measure = staticmethod(lambda x: {"features": x.shape[1]})
    first: nn.Module
    second: nn.Module

    def build(self, spec):
        self.automatic_optimization = False
        self.first, self.second = (nn.Linear(spec["features"], 1) for _ in range(2))
        self.leaks = []

    def batches(self, data, seed):
        return loader([data], 4, seed)

    def training_step(self, batch, _):
        first, second = self.optimizers()
        loss = (self.first(batch[0]) - self.second(batch[0])).square().mean()
        self.descend(first, loss)
        self.leaks.append(self.second.weight.grad is not None)
        before = self.first.weight.grad.clone()
        loss = -(self.first(batch[0]) * self.second(batch[0])).mean()
        self.descend(second, loss)
        self.leaks.append(not torch.equal(before, self.first.weight.grad))
        self.second.zero_grad()

    def configure_optimizers(self):
        return [torch.optim.SGD(net.parameters(), 0.1) for net in (self.first, self.second)]


class Ranks(Duel):
    """Full batches: two ranks with half of the rows each must step as one with all of them."""

    def batches(self, data, seed):
        return loader([data], 8 // self.trainer.world_size, 0)
