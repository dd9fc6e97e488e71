"""VAE: an encoder's Gaussian posterior and a decoder, trained together on a lower bound of log p(x).

Citation: Kingma and Welling, "Auto-Encoding Variational Bayes", ICLR 2014, arXiv 1312.6114; Rezende, Mohamed and
Wierstra, "Stochastic Backpropagation and Approximate Inference in Deep Generative Models", ICML 2014, arXiv 1401.4082.

An image x is encoded to q(z|x) = N(mu, sigma^2); z = mu + sigma e is decoded to p(x|z); what is minimised is the mean
over images of -log p(x|z) + KL(q(z|x) || N(0, I)), in nats, summed over pixels and latent dimensions.

Deviations: the KL is exact, as in the paper's appendix B. log sigma^2 is kept within -10 and 10. Defaults are those of
later practice on MNIST (ReLU, Adam, one sample a step), not the paper's Adagrad. Grey pixels are drawn as bits anew in
every step; the encoder sees the drawn bits in training and the grey values in `embed` and `reconstruct`.
"""

from collections.abc import Callable
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from gen_core.harness.errors import Diverged, UsageError
from gen_core.harness.fitting import loader
from gen_core.harness.method import Method, evaluating
from gen_vision import data
from gen_vision.networks.encoders import dry_run
from gen_vision.networks.latents import Group, Latents, gaussian, seeded
from gen_vision.networks.likelihoods import LikelihoodConfig, likelihood
from gen_vision.networks.vae import conv_decoder, conv_encoder, mlp_decoder, mlp_encoder
from gen_vision.pictures import beside, grid

Choose = Callable[[int, Tensor, Tensor, Tensor | None], Tensor]
"""(k, mean and log-variance of p(z_k | z_<k), context) -> z_k."""


class VAE(Method):
    """`VAE().fit(images).sample(64)`; own networks: `VAE(encoder=net, decoder=net)`.

    encoder: (b, c, h, w) -> (b, 2 d), means and log-variances; decoder: (b, d) -> (b, parameters, h, w), where the
    Bernoulli likelihood has one logit a channel and the mixture of M logistics 3 M or 10 M numbers a pixel.
    """

    class Config(LikelihoodConfig):
        """Hyper-parameters."""

        network: Literal["mlp", "conv"] = "mlp"
        """Perceptrons, or convolutions of stride 2 with batch norm."""
        hidden: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (400, 400)
        """Widths of the encoder's hidden layers (conv: its channels); the decoder mirrors them."""
        activation: Literal["relu", "tanh", "silu"] = "relu"
        """Between the layers."""
        latent: PositiveInt = 50
        """d, dimensions of z."""
        batch_size: PositiveInt = 128
        """Images a step; a smaller data set is one batch."""
        epochs: PositiveInt = 50
        """Passes over the images."""
        learning_rate: PositiveFloat = 1e-3
        """Adam's learning rate."""
        decay: Literal["none", "cosine"] = "none"
        """Learning rate over training: constant, or half a cosine down to 0."""

    measure = staticmethod(data.spec)
    inputs = staticmethod(data.pixels)
    encoder: nn.Module
    decoder: nn.Module

    def build(self, spec: Any) -> None:
        config, sides = self.config, (spec["height"], spec["width"])
        self.likelihood = likelihood(config, spec["channels"])
        make = {"mlp": (mlp_encoder, mlp_decoder), "conv": (conv_encoder, conv_decoder)}[config.network]
        shapes = (spec["channels"], *sides), (self.likelihood.parameters, *sides)
        if self.lacks("encoder"):
            self.encoder = make[0](shapes[0], config.hidden, config.latent, config.activation)
        if self.lacks("decoder"):
            self.decoder = make[1](shapes[1], config.hidden, config.latent, config.activation)
        tried = {"encoder": (shapes[0], (2 * config.latent,)), "decoder": ((config.latent,), shapes[1])}
        for name, (given, wanted) in tried.items():
            expect(name, getattr(self, name), given, wanted)

    def batches(self, data: data.Images, seed: int) -> Any:
        return loader([data.images], self.config.batch_size, seed, drop_last=True)

    def setup(self, stage: str) -> None:
        self.to(self.dtype)  # networks of the user's may come in another precision

    def training_step(self, batch: tuple[Tensor], _: int) -> Tensor:
        x = self.likelihood.observe(data.unit(batch[0], self.dtype))
        return self.total(self.terms(x, self.infer(x, self.samples_per_step), progress(self)))

    @property
    def samples_per_step(self) -> int:
        """Samples of q(z|x) that the objective needs."""
        return 1

    def infer(self, x: Tensor, samples: int = 1) -> Latents:
        """q(z|x) with samples of it, and the decoder's answer; x as the likelihood observes it, (b, c, h, w).

        With `samples` k the rows are k times those of x, one whole batch after the other.
        """
        mean, log_variance = (half.repeat(samples, 1) for half in self.posterior(x))
        z = gaussian(mean, log_variance)
        return Latents([Group(z, mean, log_variance)], self.decoder(z))

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of q(z|x), (b, d) each."""
        mean, log_variance = self.encoder(x).chunk(2, 1)
        return mean, log_variance.clamp(-10, 10)

    def generate(self, rows: int, choose: Choose) -> Tensor:
        """The generative path: what the decoder makes of the z that `choose` gives for each group, in turn."""
        zero = next(self.decoder.parameters()).new_zeros(rows, self.config.latent)
        return self.decoder(choose(0, zero, zero, None))

    def terms(self, x: Tensor, found: Latents, done: float = 1.0) -> dict[str, Tensor]:
        """The terms of the loss, nats, means over the batch; they add up to it, and -(reconstruction + kl) is the ELBO.

        `done` is the share of the training that is behind, for terms that are warmed up; 1 is the objective itself.
        """
        return {
            "reconstruction": self.part("reconstruction", self.likelihood.nll, found.parameters, x).mean(),
            "kl": torch.stack([self.part("kl", Group.kl, group) for group in found.groups]).sum(0).mean(),
        }

    def part(self, name: str, term: Callable[..., Tensor], *given: Any) -> Tensor:
        """`term(*given)`; an error with its name where it is not finite."""
        try:
            value = term(*given)
        except ValueError:
            flat = (t for one in given for t in (one if isinstance(one, tuple) else (one,)) if isinstance(t, Tensor))
            if all(tensor.isfinite().all() for tensor in flat):
                raise  # of another kind
            value = None
        if value is None or not value.isfinite().all():
            raise Diverged(f"{name} became NaN or infinite; try a learning_rate below {self.config.learning_rate}")
        return value

    def total(self, parts: dict[str, Tensor]) -> Tensor:
        """The sum of the parts, logged with each of them and the ELBO."""
        loss = torch.stack(list(parts.values())).sum()
        elbo = -(parts["reconstruction"] + parts["kl"])
        self.log_dict({"loss": loss, "elbo": elbo, **parts})
        return loss

    def configure_optimizers(self) -> Any:
        return optimizer(self, self.config.learning_rate, self.config.decay)

    def log_weights(self, x: Tensor, samples: int) -> Tensor:
        """log p(x, z) - log q(z|x) of `samples` draws, (samples, b), nats; x as the likelihood observes it."""
        found = self.infer(x, samples)
        nll = self.likelihood.nll(found.parameters, x.repeat(samples, *[1] * (x.ndim - 1)))
        ratio = torch.stack([group.log_ratio() for group in found.groups]).sum(0)
        return -(nll + ratio).view(samples, len(x))

    def forward(self, batch: Tensor) -> Tensor:
        """Posterior means: images (b, c, h, w), uint8 or float in [0, 1] -> (b, d)."""
        return self.posterior(self.expected(batch))[0]

    def expected(self, images: Tensor) -> Tensor:
        """Images, uint8 or in [0, 1], as the encoder sees them where nothing is random."""
        return self.likelihood.expected(data.unit(data.like(images, self.spec, sides=True), self.dtype).to(self.device))

    @torch.no_grad()
    def sample(
        self, n: int, *, seed: int = 0, temperature: float = 1.0, mean: bool = True, batch_size: int = 500
    ) -> Tensor:
        """New images, (n, c, h, w) in [0, 1], on the CPU; z from the prior.

        Args:
            temperature: factor on the prior's standard deviations.
            mean: E[x|z], as it is commonly shown; without it x is drawn too, which a comparison with data needs.
        """

        def choose(_: int, mean: Tensor, log_variance: Tensor, __: Tensor | None) -> Tensor:
            return gaussian(mean, log_variance, temperature)

        return generated(self, n, choose, seed, mean, batch_size)

    @torch.no_grad()
    def reconstruct(self, images: data.Images | Tensor, batch_size: int = 500) -> Tensor:
        """E[x|z] at the posterior's mean, (n, c, h, w) in [0, 1], on the CPU."""
        pixels = images.images if isinstance(images, data.Images) else images
        with evaluating(self):
            parts = (self.likelihood.mean(self.rebuild(self.expected(part))) for part in pixels.split(batch_size))
            return torch.cat([part.float().cpu() for part in parts])

    def rebuild(self, x: Tensor) -> Tensor:
        """The decoder's answer at the posterior's mean."""
        return self.decoder(self.posterior(x)[0])

    @torch.no_grad()
    def traverse(self, image: Tensor, dims: int = 10, steps: int = 9, reach: float = 2.5) -> Tensor:
        """One image, (c, h, w), decoded with one latent dimension at a time moved through [-reach, reach].

        It is those `dims` dimensions of the top group whose posterior is narrowest at the image; groups below follow at
        their prior's mean. (dims, steps, c, h, w) in [0, 1].
        """
        with evaluating(self):
            mean, log_variance = self.posterior(self.expected(image[None]))
            chosen = log_variance.flatten().argsort()[:dims]
            z = mean.flatten(1).repeat(len(chosen) * steps, 1)
            values = torch.linspace(-reach, reach, steps, device=z.device, dtype=z.dtype).repeat(len(chosen))
            z[torch.arange(len(z)), chosen.repeat_interleave(steps)] = values
            top = z.view(-1, *mean.shape[1:])
            parameters = self.generate(len(z), lambda k, mean, *_: mean if k else top)
            found = self.likelihood.mean(parameters).float().cpu()
        return found.view(len(chosen), steps, *found.shape[1:])

    @property
    def base(self) -> Self:
        """The VAE itself, of whatever stands on one."""
        return self

    def pictures(self, seen: data.Images | None = None) -> dict[str, Tensor]:
        """What is kept during training: samples, and images above their reconstructions; each (c, height, width)."""
        images = (seen or self.training_data).images[:32]
        shown = data.unit(images, torch.float32)
        return {"samples": grid(self.sample(64), 8), "reconstructions": beside(shown, self.reconstruct(images), 8)}


class OnVAE(Method):
    """What methods share that stand on a trained VAE, which does not learn: `vae`, its batches, its representation."""

    measure = staticmethod(data.spec)
    inputs = staticmethod(data.pixels)
    frozen = ("vae",)
    vae: Method

    @property
    def base(self) -> Any:
        """The VAE itself."""
        return self.vae.base

    def batches(self, data: data.Images, seed: int) -> Any:
        return loader([data.images], self.config.batch_size, seed, drop_last=True)

    def forward(self, batch: Tensor) -> Tensor:
        """Posterior means of the VAE: images (b, c, h, w), uint8 or float in [0, 1] -> (b, d)."""
        return self.base(batch)


def optimizer(model: Method, learning_rate: float, decay: str, weight_decay: float = 0.0) -> Any:
    """Adam with the schedule that `decay` names."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    adam = torch.optim.Adam(trained, learning_rate, weight_decay=weight_decay, fused=True)
    if decay == "none":
        return adam
    steps = int(model.trainer.estimated_stepping_batches)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, max(1, steps))
    return {"optimizer": adam, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def progress(model: Method) -> float:
    """Share of the training that is behind, from 0 to 1."""
    return model.trainer.fit_loop.epoch_loop.total_batch_idx / model.trainer.estimated_stepping_batches


def generated(model: Any, n: int, choose: Choose, seed: int, mean: bool, batch_size: int) -> Tensor:
    """n images of `model.base` on the CPU, whose latents `choose` gives; from `seed`, in evaluation mode."""
    if n < 1:
        raise UsageError(f"n = {n}: must be at least 1")
    base = model.base
    show = base.likelihood.mean if mean else base.likelihood.sample
    sizes = [min(batch_size, n - start) for start in range(0, n, batch_size)]
    with seeded(model, seed):
        return torch.cat([show(base.generate(rows, choose)).float().cpu() for rows in sizes])


@torch.no_grad()
def codes(base: Any, images: data.Images, seed: int, batch_size: int = 1000) -> Tensor:
    """One posterior sample an image of the first group, (n, ...), on the CPU."""
    with seeded(base, seed):
        parts = (data.unit(part, base.dtype).to(base.device) for part in images.images.split(batch_size))
        return torch.cat([gaussian(*base.posterior(base.likelihood.observe(part))).cpu() for part in parts])


@torch.no_grad()
def ready(model: Any, spec: Any) -> Latents:
    """The latents of two blank images under `model.vae`, refused where that is no trained VAE of such images."""
    if model.lacks("vae"):
        raise UsageError("vae: give a trained VAE; on the command line --given.vae RUN")
    vae = model.vae
    if not hasattr(type(vae), "base"):
        raise UsageError(f"vae: a {type(vae).__name__} is no VAE")
    if isinstance(vae, Method):
        if vae.spec is None:
            raise UsageError(f"vae: this {type(vae).__name__} is not trained; fit it first")
        names = ("channels", "height", "width")
        wanted, built = tuple(spec[name] for name in names), tuple(dict(vae.spec).get(name) for name in names)
        if built != wanted:
            raise UsageError(f"vae: was trained on images of (c, h, w) = {built}, the data has {wanted}")
    base: Any = vae.base
    with seeded(vae, 0):
        blank = torch.zeros(2, spec["channels"], spec["height"], spec["width"])
        return base.infer(base.likelihood.expected(blank))


def flat(model: Any, spec: Any) -> int:
    """Dimensions of the one flat group of `model.vae`; other VAEs are refused."""
    groups = ready(model, spec).groups
    shapes = [tuple(group.z.shape[1:]) for group in groups]
    if len(shapes) != 1 or len(shapes[0]) != 1:
        raise UsageError(f"vae: {type(model).__name__} takes one flat group of latents, this VAE has {shapes}")
    return shapes[0][0]


def expect(name: str, net: nn.Module, given: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    """Refuse a network that does not map (b, *given) to (b, *wanted); a dry run that leaves it as it was."""
    try:
        out = dry_run(net, *given)
    except (RuntimeError, ValueError, TypeError) as error:
        raise UsageError(f"{name}: does not take shape (b, {', '.join(map(str, given))}): {error}") from error
    found = f"shape {tuple(out.shape)}" if isinstance(out, Tensor) else f"a {type(out).__name__}"
    if found != f"shape {(2, *wanted)}":
        raise UsageError(f"{name}: must map (2, *{given}) to {(2, *wanted)}, gave {found}")
