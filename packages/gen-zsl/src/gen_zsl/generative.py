"""What generative methods share: the scaled training part, synthesis, the final softmax, prediction.

Such a method trains a generator of features of a class from its attributes. At the end a linear softmax is fitted to
the real features of the seen and the synthetic ones of the unseen classes, in the method's own space `represent(x)`; a
second one, to the synthetic ones alone, serves conventional zero-shot learning, where seen classes are out.
"""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from gen_core.harness import config as configs
from gen_core.harness.errors import UsageError
from gen_core.harness.fitting import Repeat, mix
from gen_core.harness.method import Method
from gen_core.losses import gradient_penalty, wasserstein_critic
from gen_zsl import data as zsl
from gen_zsl.data import ZeroShot
from gen_zsl.networks import Critic, Generator, linear

FINAL = 1
"""Stream of random numbers of the final softmax, beside those of the training epochs."""


class GeneratorConfig(configs.Config):
    """Hyper-parameters of the generator, its critic and the final softmax."""

    hidden: PositiveInt = 4096
    """Width of the hidden layer of generator and critic."""
    noise: PositiveInt | None = None
    """Dimensions of the generator's noise; None: as many as attributes."""
    batch_size: PositiveInt = 4096
    """Training rows a batch B; a smaller training part is one batch."""
    critic_steps: PositiveInt = 5
    """Critic steps, each on a batch of its own, before a generator step."""
    penalty: NonNegativeFloat = 10.0
    """Weight lambda of the gradient penalty."""
    learning_rate: PositiveFloat = 1e-4
    """Adam's learning rate, betas (0.5, 0.999), of both sides."""
    epochs: PositiveInt = 130
    """Epochs; one is ceil(N / B) generator steps."""
    syn_num: PositiveInt = 2400
    """Synthetic features an unseen class in the final training set."""
    final_epochs: PositiveInt = 25
    """Epochs of the final softmax over all classes."""
    zsl_epochs: PositiveInt = 100
    """Epochs of the final softmax over the unseen classes."""
    final_batch: PositiveInt = 2400
    """Rows a batch of the final softmax."""
    final_rate: PositiveFloat = 1e-3
    """Adam's learning rate of the final softmax, betas (0.5, 0.999)."""


class GeneratorWithDecay(GeneratorConfig):
    """The same with a schedule."""

    decay: Annotated[float, Field(gt=0, le=1)] = 0.99
    """Factor on both learning rates every `decay_every` epochs."""
    decay_every: PositiveInt = 10
    """Epochs between decays."""


class FeatureGenerator(Method):
    """Base of methods with generator and critic; they write `training_step`, `configure_optimizers`, `represent`."""

    measure = staticmethod(zsl.spec)
    inputs = staticmethod(lambda data: data.features)
    generator: nn.Module
    critic: nn.Module
    low: Tensor
    span: Tensor
    attributes: Tensor
    seen: Tensor
    unseen: Tensor

    def build(self, spec: Any) -> None:
        d, a, c = spec["features"], spec["attributes"], len(spec["classes"])
        self.automatic_optimization = False
        self.noise = self.config.noise or a
        if self.lacks("generator"):
            self.generator = Generator(self.noise, a, self.config.hidden, d)
        if self.lacks("critic"):
            self.critic = Critic(d, a, self.config.hidden)
        # What prediction needs is saved with the weights.
        self.register_buffer("low", torch.zeros(d))
        self.register_buffer("span", torch.ones(d))
        self.register_buffer("attributes", torch.zeros(c, a))
        self.register_buffer("seen", torch.zeros(spec["seen"], dtype=torch.long))
        self.register_buffer("unseen", torch.zeros(spec["unseen"], dtype=torch.long))
        self.final = linear(self.width, c).requires_grad_(False)
        self.final_unseen = linear(self.width, spec["unseen"]).requires_grad_(False)

    @property
    def width(self) -> int:
        """Dimensions of `represent`, which the final softmax sees."""
        raise NotImplementedError

    def represent(self, x: Tensor) -> Tensor:
        """Scaled features (n, d) -> what the final softmax sees, (n, width)."""
        raise NotImplementedError

    def forward(self, batch: Tensor) -> Tensor:
        """Raw features (n, d) -> (n, width)."""
        return self.represent(self.scaled(batch))

    # --- the training part

    def on_fit_start(self) -> None:
        data: ZeroShot = self.training_data
        rows = data.features[data.trainval]
        low, span = zsl.limits(rows)
        for name, value in {"low": low, "span": span, "attributes": data.attributes}.items():
            getattr(self, name).copy_(value)
        self.seen.copy_(data.seen)
        self.unseen.copy_(data.unseen)
        place = torch.full((len(data.classes),), -1).index_copy_(0, data.seen, torch.arange(len(data.seen)))
        self.x = self.scaled(rows.to(self.device))
        self.y = place[data.labels[data.trainval]].to(self.device)  # 0..S-1; classes count 0..C-1
        self.seen_attributes = self.attributes[self.seen]

    def batches(self, data: ZeroShot, seed: int) -> Any:
        steps = -(-len(self.x) // (self.config.batch_size * self.trainer.world_size))
        return Repeat((self.x, self.y), steps)

    def draw(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """B rows without replacement, of all rows anew each time: features, their classes' attributes, seen index."""
        rows = torch.randperm(len(x))[: self.config.batch_size].to(x.device)
        return x[rows], self.seen_attributes[y[rows]], y[rows]

    def fake(self, attributes: Tensor) -> Tensor:
        """x~ = G(noise, a) with fresh noise."""
        noise = torch.randn(len(attributes), self.noise, dtype=attributes.dtype, device=attributes.device)
        return self.generator(noise, attributes)

    def wasserstein(self, x: Tensor, attributes: Tensor) -> tuple[Tensor, Tensor]:
        """The critic's two terms on real rows and fresh fakes of their classes: Wasserstein loss, gradient penalty."""
        with torch.no_grad():
            fake = self.fake(attributes)
        distance = wasserstein_critic(self.critic(x, attributes), self.critic(fake, attributes))
        return distance, gradient_penalty(self.critic, x, fake, attributes, weight=self.config.penalty)

    @contextlib.contextmanager
    def stream(self, number: int) -> Iterator[None]:
        """Random numbers of their own inside; the training's random state stays as it was."""
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(mix(self.fit_seed, number))
            yield

    def scaled(self, x: Tensor) -> Tensor:
        """Raw features, each mapped by its range over the training part."""
        return (x.to(self.low) - self.low) / self.span

    # --- the end: what predicts

    def on_fit_end(self) -> None:
        self.to(self.x.device)  # by now Lightning has moved the networks to the CPU
        self.fit_final()
        del self.x, self.y, self.seen_attributes

    @torch.no_grad()
    def fit_final(self) -> None:
        """Fit both final softmaxes to the networks as they are; the training's random state stays as it was."""
        config = self.config
        training = self.training
        self.eval()
        with self.stream(FINAL):
            kinds = self.unseen.repeat_interleave(config.syn_num)
            synthetic = torch.cat([self.represent(self.fake(self.attributes[part])) for part in kinds.split(4096)])
            real = torch.cat([self.represent(part) for part in self.x.split(4096)])
            x, y = torch.cat([real, synthetic]), torch.cat([self.seen[self.y], kinds])
            place = torch.arange(len(self.unseen), device=self.device).repeat_interleave(config.syn_num)
            options = {"batch_size": config.final_batch, "learning_rate": config.final_rate}
            fit_softmax(self.final, x, y, epochs=config.final_epochs, **options)
            fit_softmax(self.final_unseen, synthetic, place, epochs=config.zsl_epochs, **options)
        self.train(training)

    @torch.no_grad()
    def scores(self, features: Tensor, unseen_only: bool = False) -> Tensor:
        """Probability of each class, (n, C) on the CPU; `unseen_only`: where seen classes are known to be out."""
        if features.shape[1] != len(self.low):
            raise UsageError(f"features has {features.shape[1]} columns; this model was trained on {len(self.low)}")
        training = self.training
        self.eval()
        parts: list[Tensor] = []
        for rows in features.split(4096):
            h = self(rows.to(self.device))
            if unseen_only:
                found = h.new_zeros(len(h), len(self.attributes))
                found[:, self.unseen] = self.final_unseen(h).softmax(1)
            else:
                found = self.final(h).softmax(1)
            parts.append(found.float().cpu())
        self.train(training)
        return torch.cat(parts)

    def predict(self, data: ZeroShot) -> dict[str, Any]:
        """Columns id, class, score (its probability) and kind ("seen" or "unseen" in training), a row an image."""
        return table(data, self.scores(data.features), (self.spec or {})["classes"], self.seen.tolist())


def table(data: ZeroShot, scores: Tensor, classes: list[str], seen: list[int]) -> dict[str, Any]:
    """The columns of `predict`: the class of the highest score."""
    best = scores.max(1)
    kinds = best.indices.tolist()
    known = set(seen)
    return {
        "id": list(data.ids),
        "class": [classes[kind] for kind in kinds],
        "score": best.values.numpy(),
        "kind": ["seen" if kind in known else "unseen" for kind in kinds],
    }


def adam(parameters: Iterable[nn.Parameter], learning_rate: float) -> torch.optim.Adam:
    """The released codes' optimiser; fused, because these networks are small."""
    return torch.optim.Adam(parameters, learning_rate, betas=(0.5, 0.999), fused=True)


def fit_softmax(
    layer: nn.Linear, x: Tensor, y: Tensor, *, epochs: int, batch_size: int, learning_rate: float = 1e-3
) -> None:
    """Multinomial logistic regression into `layer`, from a new start: Adam, betas (0.5, 0.999), shuffled batches."""
    fresh = linear(layer.in_features, layer.out_features).to(layer.weight)
    optimizer = adam(fresh.parameters(), learning_rate)
    with torch.enable_grad():
        for _ in range(epochs):
            for rows in torch.randperm(len(x)).to(x.device).split(batch_size):
                optimizer.zero_grad()
                F.cross_entropy(fresh(x[rows]), y[rows]).backward()
                optimizer.step()
    layer.load_state_dict(fresh.state_dict())
