"""f-CLSWGAN: a generator of features of unseen classes whose fakes a classifier of the seen classes must recognise.

Citation: Xian, Lorenz, Schiele and Akata, "Feature Generating Networks for Zero-Shot Learning", CVPR 2018, arXiv
1712.00981.

A conditional WGAN-GP learns features x of a class from its attributes a. A linear softmax is fitted to the real seen
features first and then frozen; the generator's loss is -mean D(x~) + w_cls NLL(y | x~). At the end a linear softmax on
the features themselves learns all classes.

Deviations: the final softmax's last epoch counts, where the released code reports its best one on the test set. One
iteration uses its last critic batch for the generator, and batches are drawn as in CE-GZSL, so that the two methods
differ by their objectives alone.
"""

# pyright: reportPossiblyUnboundVariable=false
# critic_steps is at least 1, so what the loop over it sets is set.

from typing import Any

import torch.nn.functional as F
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor

from gen_core.losses import wasserstein_generator
from gen_zsl.generative import FeatureGenerator, GeneratorConfig, adam, fit_softmax
from gen_zsl.networks import linear

PRETRAINING = 2
"""Stream of random numbers of the frozen softmax."""


class FCLSWGAN(FeatureGenerator):
    """`FCLSWGAN(FCLSWGAN.Config(epochs=15)).fit(data).predict(data)`."""

    class Config(GeneratorConfig):
        """Hyper-parameters."""

        w_cls: NonNegativeFloat = 0.01
        """Weight of the frozen softmax's NLL in the generator step."""
        softmax_epochs: PositiveInt = 50
        """Epochs of the frozen softmax on the real seen features, in batches of 100."""

    def build(self, spec: Any) -> None:
        super().build(spec)
        self.known = linear(spec["features"], spec["seen"]).requires_grad_(False)

    def on_fit_start(self) -> None:
        super().on_fit_start()
        with self.stream(PRETRAINING):
            fit_softmax(self.known, self.x, self.y, epochs=self.config.softmax_epochs, batch_size=100)

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        config = self.config
        of_critic, of_generator = self.optimizers()  # pyright: ignore
        for _ in range(config.critic_steps):
            x, a, y = self.draw(*batch)
            distance, penalty = self.wasserstein(x, a)
            self.descend(of_critic, distance + penalty)

        fake = self.fake(a)
        classes = F.cross_entropy(self.known(fake), y)
        loss = wasserstein_generator(self.critic(fake, a)) + config.w_cls * classes
        self.descend(of_generator, loss)
        self.log_dict({"loss": loss, "distance": distance.neg(), "class": classes})

    def configure_optimizers(self) -> Any:
        sides = self.critic.parameters(), self.generator.parameters()
        return [adam(side, self.config.learning_rate) for side in sides]

    @property
    def width(self) -> int:
        return len(self.low)

    def represent(self, x: Tensor) -> Tensor:
        """The features themselves."""
        return x
