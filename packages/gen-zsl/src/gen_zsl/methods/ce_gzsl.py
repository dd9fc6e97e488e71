"""CE-GZSL: a generator of features of unseen classes, trained together with the embedding in which they are classified.

Citation: Han, Fu, Chen and Yang, "Contrastive Embedding for Generalized Zero-Shot Learning", CVPR 2021, arXiv
2103.16173.

A conditional WGAN-GP learns features x of a class from its attributes a. An embedding h = E(x) is shaped by two
contrasts: instances of a class attract each other and repel others in z = H(h) (L_ins, supervised contrast), and h must
find its own among all seen classes by a learnt score F(h, a) (L_cls). The generator's fakes must do well in both.

One iteration: five critic steps, each on a new batch of real rows, move D by the Wasserstein loss with penalty and E,
H, F by L_ins + L_cls; then a generator step on the last batch moves G by
-mean D(x~) + w_ins L_ins([z~; z]) + w_cls L_cls(h~), where z of the real rows is a constant. At the end a linear
softmax on E(x) learns all classes.

Deviations: this is the released code's form; the paper writes L_ins with one positive and K negatives, and one
objective for both steps. The released code zeroes the gradients of F once an epoch, so that they add up; here every
step has its own. Anchors without a positive leave L_ins; there is no NaN where none has one. The softmax is fitted
once, after the last epoch, and its last epoch counts; the released code reports its best epoch on the test set. Its
batch is a field of its own, not syn_num. A weight of 0 takes that term out of both steps.
"""

# pyright: reportPossiblyUnboundVariable=false
# critic_steps is at least 1, so what the loop over it sets is set.

from itertools import chain
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from gen_core.estimators import BOUNDS, Match, Separable
from gen_core.losses import sup_con, wasserstein_generator
from gen_zsl.generative import FeatureGenerator, GeneratorWithDecay, adam
from gen_zsl.networks import Comparator, Projection, linear


class CEGZSL(FeatureGenerator):
    """`CEGZSL(CEGZSL.Config(epochs=15)).fit(data).predict(data)`; own networks: `CEGZSL(embedding=net)`.

    The defaults are the paper's for AWA2.
    """

    class Config(GeneratorWithDecay):
        """Hyper-parameters."""

        embedding: PositiveInt = 2048
        """Dimensions of h = E(x); with your own embedding: of its output."""
        projection: PositiveInt = 512
        """Dimensions of z = H(h), where L_ins acts."""
        comparator: PositiveInt = 2048
        """Width of the hidden layer of F."""
        w_ins: NonNegativeFloat = 1e-3
        """Weight of L_ins in the generator step (1 in the critic step); 0 removes it from both."""
        w_cls: NonNegativeFloat = 1e-3
        """Weight of L_cls in the generator step (1 in the critic step); 0 removes it from both."""
        tau_ins: PositiveFloat = 0.1
        """Temperature of L_ins, which divides cosines."""
        tau_cls: PositiveFloat = 0.1
        """Temperature of L_cls, which divides the scores of F."""
        bound: Literal["paper", "infonce", "dv", "nwj", "tuba", "jsd", "smile", "interpolated", "nce"] = "paper"
        """L_ins: supervised contrast, or minus another bound on z z^T / tau_ins with learnt scale and offset."""

    embedding: nn.Module
    projection: nn.Module
    comparator: nn.Module

    def build(self, spec: Any) -> None:
        super().build(spec)
        config, a = self.config, spec["attributes"]
        if self.lacks("embedding"):
            self.embedding = nn.Sequential(linear(spec["features"], config.embedding), nn.ReLU())
        if self.lacks("projection"):
            self.projection = Projection(config.embedding, config.projection)
        if self.lacks("comparator"):
            self.comparator = Comparator(config.embedding, a, config.comparator)
        if config.bound != "paper":
            self.pairs = Separable(config.tau_ins)

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        config = self.config
        of_critic, of_generator = self.optimizers()  # pyright: ignore
        for _ in range(config.critic_steps):
            x, a, y = self.draw(*batch)
            distance, penalty = self.wasserstein(x, a)
            h = self.embedding(x)
            instance, classes = self.instance(h, y), self.classes(h, y)
            self.descend(of_critic, distance + penalty + instance + classes)

        fake = self.fake(a)
        h_fake = self.embedding(fake)
        with torch.no_grad():
            h_real = self.embedding(x)
        adversarial = wasserstein_generator(self.critic(fake, a))
        instance_fake = self.instance(torch.cat([h_fake, h_real]), torch.cat([y, y]))
        loss = adversarial + config.w_ins * instance_fake + config.w_cls * self.classes(h_fake, y)
        self.descend(of_generator, loss)
        self.log_dict({"loss": loss, "distance": distance.neg(), "instance": instance, "class": classes})

    def instance(self, h: Tensor, y: Tensor) -> Tensor:
        """L_ins of embeddings (n, de) with classes (n,): supervised contrast, or minus another bound; in nats."""
        if self.config.w_ins == 0:
            return h.new_zeros(())
        z = self.projection(h)
        if self.config.bound == "paper":
            return sup_con(z, y, self.config.tau_ins, normalize=False)
        match = Match(y, skip=0)
        if not all(bool(mask.any()) for mask in match.masks()):  # no pair of a class, or one class: nothing to contrast
            return z.sum() * 0
        return -BOUNDS[self.config.bound](self.pairs(z, z), match)

    def classes(self, h: Tensor, y: Tensor) -> Tensor:
        """L_cls of embeddings (n, de) with seen classes (n,): cross-entropy of the scores of all seen; in nats."""
        if self.config.w_cls == 0:
            return h.new_zeros(())
        return F.cross_entropy(self.comparator(h, self.seen_attributes) / self.config.tau_cls, y)

    def configure_optimizers(self) -> Any:
        config = self.config
        parts = [self.critic, self.embedding, self.projection, self.comparator]
        parts += [self.pairs] if config.bound != "paper" else []
        sides = chain.from_iterable(part.parameters() for part in parts), self.generator.parameters()
        optimizers = [adam(side, config.learning_rate) for side in sides]
        return optimizers, [torch.optim.lr_scheduler.StepLR(o, config.decay_every, config.decay) for o in optimizers]

    def on_train_epoch_end(self) -> None:
        for schedule in self.lr_schedulers():  # pyright: ignore
            schedule.step()

    @property
    def width(self) -> int:
        return self.config.embedding

    def represent(self, x: Tensor) -> Tensor:
        """h = E(x)."""
        return self.embedding(x)
