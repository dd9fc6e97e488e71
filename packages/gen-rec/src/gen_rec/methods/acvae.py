"""ACVAE: a variational autoencoder of item sequences with an implicit posterior and latents that tell users apart.

Citation: Xie, Liu, Zhang, Lu, Wang and Ding, "Adversarial and Contrastive Variational Autoencoder for Sequential
Recommendation", WWW 2021, arXiv 2103.10693.

At each step t of a user's items x, with embeddings e, an encoder with noise inside gives a latent z_t that depends on
x_1..x_t, and a decoder gives a softmax over all items, of which x_{t+1} is right. Three terms, each a sum over a user's
steps and a mean over the users of the batch:

- reconstruction: the cross-entropy of the next item;
- divergence: alpha times the mean over latent dimensions of T(e_t, z_t). The adversary T tells z from draws of the
  prior N(0, I), so that at its optimum it is log q(z | x) / p(z), and its mean the Kullback-Leibler divergence;
- contrast: beta times softplus(-C(e, z)) + softplus(C(e, z~)), where z~ are the latents of the next user in the batch:
  the Jensen-Shannon bound on the information that latents hold on their own sequence. Encoder and C both lower it.

One iteration: one backward pass of the sum; AdamW moves the whole network, then SGD moves the latent encoder once more,
and C; then SGD moves T by its own logistic loss on the same (e, z), detached, and new draws of the prior.

Deviations: the objective and sizes are those of the released code. A negative counts where both users have a step, and
the negatives' mean has the weight of the positives', where that code also uses the padding of the shorter user; a batch
of one user has no contrast. Logarithms are taken of logits, without + 1e-9. Scores draw their noise from the run's seed
and the sequence, so they repeat; that code draws anew at each evaluation, and reports its best epoch on the test set,
where `patience` uses a held-out part of each train sequence. e in T and C is the embedding before dropout.
"""

import zlib
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from gen_core.estimators import BOUNDS, Pairs, jsd, nce
from gen_core.harness import config as configs
from gen_core.harness.errors import UsageError
from gen_core.harness.fitting import loader, mix
from gen_core.harness.method import Method
from gen_core.losses import kl_standard_normal
from gen_rec import data as interactions
from gen_rec.data import Interactions
from gen_rec.networks import (
    GRU,
    Adversary,
    ConvolutionalEncoder,
    Discriminator,
    Together,
    linear_cross_entropy,
)
from gen_rec.recommender import ROWS, Recommender, check, per_user

EVERY = 4
"""Epochs between two evaluations of `patience`."""


class ACVAE(Recommender, Method):
    """`ACVAE(ACVAE.Config(epochs=20)).fit(data).recommend(data, user)`; own network: `ACVAE(sequence=net)`.

    `net(e: (B, L, embedding)) -> (B, L, hidden)` takes the place of the GRU; step t may depend on e_1..e_t alone.
    """

    class Config(configs.Config):
        """Hyper-parameters."""

        embedding: PositiveInt = 128
        """Dimensions of an item's embedding."""
        hidden: PositiveInt = 100
        """Dimensions of the GRU's state and of the latent encoder's layers."""
        latent: PositiveInt = 64
        """Dimensions of z."""
        decoder: PositiveInt = 128
        """Units of the decoder's hidden layer."""
        convolution: PositiveInt = 5
        """Steps that the causal convolution sees, the present one included."""
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5
        """Share of units dropped: of the embeddings into the GRU, and before the latents."""
        posterior: Literal["implicit", "gaussian"] = "implicit"
        """Noise inside the encoder and the adversary's divergence; or, as in SVAE, a Gaussian with the exact one, no
        noise inside and no adversary. Either has the weight alpha / latent a nat in each dimension; a Gaussian's
        scores are those of its mean."""
        alpha: NonNegativeFloat = 0.05
        """Weight of the divergence, which is a mean over the latent dimensions."""
        contrast: NonNegativeFloat = 0.1
        """beta, the weight of the contrast; 0 removes it, and C with it."""
        bound: Literal["paper", "dv", "nwj", "tuba", "jsd", "smile", "nce"] = "paper"
        """Contrast: the paper's Jensen-Shannon form, or another bound of mutual information on C's scores."""
        max_length: PositiveInt = 200
        """Steps of a user that are used, the last ones."""
        batch_size: PositiveInt = 64
        """Users a step."""
        epochs: PositiveInt = 350
        """The most passes over the users."""
        patience: NonNegativeInt = 0
        """Evaluations without a better recall@20, one every 4 epochs, after which training stops; the best one's
        weights are kept. They use the last tenth of each train part (1 item at least), which is then not trained on.
        0: train on everything for all epochs."""
        learning_rate: PositiveFloat = 1e-3
        """AdamW's, of the whole network."""
        weight_decay: NonNegativeFloat = 1e-2
        """AdamW's."""
        contrast_learning_rate: PositiveFloat = 3e-4
        """SGD's, of the latent encoder and C."""
        adversary_optimizer: Literal["sgd", "adam"] = "sgd"
        """T's; with the paper's SGD it hardly moves in few epochs."""
        adversary_learning_rate: PositiveFloat = 5e-4
        """T's."""
        sgd_weight_decay: NonNegativeFloat = 0.1
        """Of both SGD optimisers; Adam has none."""
        n_eval_samples: PositiveInt = 1
        """Draws of the noise whose logits are averaged into a score."""

    automatic_optimization = False  # three optimisers
    measure = staticmethod(interactions.spec)
    sequence: nn.Module
    noise_seed: Tensor
    best_epoch: Tensor

    def build(self, spec: Any) -> None:
        config, items = self.config, spec["items"]
        implicit = config.posterior == "implicit"
        self.embedding = nn.Embedding(items + 1, config.embedding)
        self.dropout = nn.Dropout(config.dropout)
        if self.lacks("sequence"):
            self.sequence = GRU(config.embedding, config.hidden)
        self.decoder = nn.Sequential(nn.Linear(config.latent, config.decoder), nn.Tanh())
        self.output = nn.Linear(config.decoder, items + 1)
        for layer in (self.decoder[0], self.output):
            nn.init.xavier_normal_(layer.weight)  # pyright: ignore
        outputs = config.latent * (1 if implicit else 2)
        self.encoder = ConvolutionalEncoder(config.hidden, outputs, config.convolution, config.dropout, implicit)
        # What an ablation lacks is made last, so that all arms of a seed start from the same network.
        if implicit:
            self.adversary = Adversary(config.embedding, config.latent)
        if config.contrast:
            self.discriminator = Discriminator(config.embedding, config.latent)
        self.register_buffer("noise_seed", torch.tensor(0))
        self.register_buffer("fingerprint", torch.tensor(0))
        self.register_buffer("best_epoch", torch.tensor(0))

    def batches(self, data: Interactions, seed: int) -> Any:
        source = interactions.hold_out(data) if self.config.patience else data
        sequences = [row for row in source.train if len(row) > 1]  # a single item has no next one
        if not sequences:
            raise UsageError("no user has two items to train on")
        return loader(interactions.pad(sequences, self.config.max_length + 1), self.config.batch_size, seed)

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        losses = self.losses(*batch)
        if not losses:
            return
        adversary = losses.pop("adversary", None)
        network, encoder_and_c, *rest = self.optimizers()  # pyright: ignore
        loss = torch.stack(list(losses.values())).sum()
        self.descend(Together(network, encoder_and_c), loss)
        logs = {"loss": loss, **losses}
        if adversary is not None:
            self.descend(rest[0], adversary)
            logs["adversary"] = adversary
        self.log_dict({name: value.detach() for name, value in logs.items()})

    def losses(self, items: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        """The weighted terms, which the network and C lower together, and `adversary`, which T lowers alone.

        items (B, L), padded on the right, lengths (B,). Rows of fewer than two items are left out; no row, no losses.
        """
        items, lengths = items[lengths > 1], lengths[lengths > 1]
        if not len(items):
            return {}
        users, steps = len(items), int(lengths.max()) - 1
        mask = torch.arange(steps, device=items.device) < (lengths - 1)[:, None]
        target = items[:, 1 : steps + 1][mask]
        e = self.embedding(items[:, :steps])
        posterior = self.encode(e, mask)
        z = self.sample(posterior)
        reconstruction = linear_cross_entropy(self.decoder(z), self.output.weight, self.output.bias, target)
        name = "contrast" if self.config.bound == "paper" else f"objective/{self.config.bound}"
        losses = {
            "reconstruction": reconstruction / users,
            "divergence": self.config.alpha * self.divergence(e[mask], z, posterior) / users,
            name: self.config.contrast * self.contrast(e, z, mask) / users,
        }
        if self.config.posterior == "implicit":
            losses["adversary"] = self.adversary_loss(e[mask].detach(), z.detach()) / users
        return losses

    def encode(self, e: Tensor, mask: Tensor, eps: Tensor | None = None) -> Tensor:
        """Embeddings (B, L, E) -> what the encoder says of the P steps in the mask, (P, Z or 2 Z)."""
        h = self.sequence(self.dropout(e))[mask]
        position = torch.arange(e.shape[1], device=e.device).expand(mask.shape)[mask]
        return self.encoder(h, position, eps)

    def sample(self, posterior: Tensor) -> Tensor:
        """z, (P, Z)."""
        if self.config.posterior == "implicit":
            return posterior
        mean, log_variance = posterior.chunk(2, dim=1)
        return mean + torch.randn_like(mean) * (0.5 * log_variance).exp()

    def divergence(self, e: Tensor, z: Tensor, posterior: Tensor) -> Tensor:
        """Sum over the steps of the mean over the dimensions of log q(z | x) / p(z): by T, or exact for a Gaussian."""
        if self.config.posterior == "implicit":
            return self.adversary(e, z).mean(1).sum()
        return kl_standard_normal(*posterior.chunk(2, dim=1), reduction="sum") / self.config.latent

    def adversary_loss(self, e: Tensor, z: Tensor) -> Tensor:
        """T's logistic loss of z against the prior: sum over the steps, mean over the dimensions."""
        real, prior = self.adversary(e, z), self.adversary(e, torch.randn_like(z))
        return -len(z) * nce(Pairs(real.flatten(), prior.flatten()))

    def contrast(self, e: Tensor, z: Tensor, mask: Tensor) -> Tensor:
        """Minus the bound on C's scores of own latents (pos) and the next user's (neg), times the number of steps."""
        both = mask & mask.roll(-1, 0)
        if not self.config.contrast or len(mask) < 2:
            return z.new_zeros(())
        own = z.new_zeros(*mask.shape, z.shape[1]).masked_scatter(mask[..., None], z)
        scores = self.discriminator(torch.cat([e, e]), torch.cat([own, own.roll(-1, 0)]), torch.cat([mask, both]))
        bound = jsd if self.config.bound == "paper" else BOUNDS[self.config.bound]
        return -len(z) * bound(Pairs(scores[: len(z)], scores[len(z) :]))

    def configure_optimizers(self) -> Any:
        config = self.config
        outside = ("adversary.", "discriminator.")
        network = [p for name, p in self.named_parameters() if not name.startswith(outside)]
        second = [*self.encoder.parameters(), *(self.discriminator.parameters() if config.contrast else ())]
        optimizers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(network, config.learning_rate, weight_decay=config.weight_decay),
            torch.optim.SGD(second, config.contrast_learning_rate, weight_decay=config.sgd_weight_decay),
        ]
        if config.posterior == "implicit":
            own, rate = self.adversary.parameters(), config.adversary_learning_rate
            if config.adversary_optimizer == "adam":
                optimizers.append(torch.optim.Adam(own, rate))
            else:
                optimizers.append(torch.optim.SGD(own, rate, weight_decay=config.sgd_weight_decay))
        return optimizers

    @torch.no_grad()
    def score(self, sequences: Sequence[Tensor]) -> Tensor:
        """Logits of the item after each sequence, (n, I + 1), on the CPU; deterministic."""
        check(sequences, self.embedding.num_embeddings - 1)
        training = self.training
        self.eval()
        found = [self._score(sequences[start : start + ROWS]) for start in range(0, len(sequences), ROWS)]
        self.train(training)
        return torch.cat(found)

    def _score(self, sequences: Sequence[Tensor]) -> Tensor:
        items, lengths = (t.to(self.device) for t in interactions.pad(sequences, self.config.max_length))
        if int(lengths.min()) == 0:
            raise UsageError(f"sequence {int(lengths.argmin())} is empty; a score needs at least one item")
        mask = torch.arange(items.shape[1], device=self.device) < lengths[:, None]
        e, last = self.embedding(items), lengths.cumsum(0) - 1
        draws = self.config.n_eval_samples if self.config.posterior == "implicit" else 1
        logits = torch.zeros(())
        for draw in range(draws):
            z = self.encode(e, mask, self.eval_noise(sequences, draw))[last, : self.config.latent]
            logits = logits + self.output(self.decoder(z)).cpu() / draws
        return logits

    def eval_noise(self, sequences: Sequence[Tensor], draw: int) -> Tensor | None:
        """eps (2, P, hidden), which depends on the run's seed and on each sequence, not on the others beside it."""
        if self.config.posterior != "implicit":
            return None
        parts: list[Tensor] = []
        for sequence in sequences:
            cut = sequence[-self.config.max_length :]
            seed = mix(int(self.noise_seed), zlib.crc32(cut.cpu().numpy().tobytes()), draw)
            generator = torch.Generator().manual_seed(seed)
            parts.append(torch.randn(2, len(cut), self.config.hidden, generator=generator))
        return torch.cat(parts, dim=1).to(self.device, self.output.weight.dtype)

    # What follows holds a fit together: its length chosen by a held-out part, and state that survives a kill.

    def setup(self, stage: str) -> None:
        self.best_epoch.zero_()
        self.waited, self.highest = 0, -1.0
        self.best: dict[str, Tensor] = {}

    def on_fit_start(self) -> None:
        self.noise_seed.fill_(self.fit_seed)
        self.fingerprint.copy_(interactions.fingerprint(self.training_data))

    def on_train_start(self) -> None:  # resumed after the last evaluation and before the end of the run
        self.trainer.should_stop |= 0 < self.config.patience <= self.waited

    def on_train_epoch_end(self) -> None:
        epoch = self.current_epoch + 1
        if not self.config.patience or (epoch % EVERY and epoch < self.config.epochs):
            return
        recall = self.recall_on(interactions.hold_out(self.training_data))
        self.log("validation_recall_20", recall)
        if recall > self.highest:
            self.highest, self.waited = recall, 0
            self.best_epoch.fill_(epoch)
            self.best = {name: value.clone() for name, value in self.state_dict().items()}
        else:
            self.waited += 1
        self.trainer.should_stop |= self.waited >= self.config.patience

    def recall_on(self, data: Interactions) -> float:
        """Mean recall@20 of the users with a test part, in percent."""
        found = per_user(self, data, [20])
        if not found:
            raise UsageError("patience needs users with at least two items to train on; no user has")
        return 100 * found["recall@20"].mean().item()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["early_stopping"] = [self.waited, self.highest, self.best]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.waited, self.highest, self.best = checkpoint["early_stopping"]

    def on_fit_end(self) -> None:
        if self.best:
            self.load_state_dict(self.best)
            self.best = {}
