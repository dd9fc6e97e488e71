"""Evaluation protocols: `name(run, **options) -> {metric: value}`, accuracies in percent on the test images.

A run has `.model`, `.data` and `.seed`. Where the data has labels but no test part, `data.split` sets every fifth image
of each class aside; those were among the *unlabelled* images that a self-supervised method was trained on.
"""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gen_core.evaluation import cluster, latent, probe
from gen_core.harness import report
from gen_core.harness.errors import UsageError
from gen_core.losses.variational import bits_per_dim
from gen_vision.data import Images, split, unit
from gen_vision.networks.latents import seeded

__all__ = ["accuracy", "few_label", "knn", "likelihood", "linear"]


def knn(run: Any, k: int = 20, temperature: float = 0.1) -> dict[str, float]:
    """Weighted k-nearest-neighbour accuracy (Wu et al. 2018); k is lowered to the number of training images."""
    z, y, z_test, y_test = _embedded(run)
    return {"knn": cluster.knn(z, y, z_test, y_test, k=min(k, len(z)), temperature=temperature)}


def few_label(run: Any, labels: int = 2, episodes: int = 10, l2: float = 1.0) -> dict[str, float]:
    """Logistic regression on `labels` images a class, mean over `episodes` draws; beside it `knn` on all labels."""
    z, y, z_test, y_test = _embedded(run)
    try:
        accuracy = probe.few_label(z, y, z_test, y_test, labels, run.seed, episodes, l2=l2)
    except ValueError as error:
        raise UsageError(f"protocol few-label, labels = {labels}, episodes = {episodes}: {error}") from error
    return {"accuracy": accuracy, "knn": cluster.knn(z, y, z_test, y_test, k=min(20, len(z)))}


def linear(run: Any, l2: float = 1.0) -> dict[str, float]:
    """Logistic regression on all training labels."""
    z, y, z_test, y_test = _embedded(run)
    return {"accuracy": probe.linear_probe(z, y, z_test, y_test, l2=l2, seed=run.seed)}


def accuracy(run: Any) -> dict[str, float]:
    """Share of test images that a classifier (`predict`) gets right."""
    if not hasattr(run.model, "predict"):
        raise UsageError("protocol accuracy: the method does not predict classes; allowed here: few-label, knn, linear")
    _, test = split(run.data)
    assert test.labels is not None
    return {"accuracy": 100 * float((run.model.predict(test) == test.labels).double().mean())}


@torch.no_grad()
def likelihood(run: Any, samples: int = 200, images: int | None = None, rows: int = 20_000) -> dict[str, float]:
    """What a VAE says of the test images: nats an image and bits a dimension, and what its code holds.

    nll: importance-weighted -log p(x) from `samples` draws an image (an upper bound, tight as they grow); elbo,
    reconstruction and kl from the draws that the objective itself takes; active_units, and mutual_information, I(x; z)
    of a single group (at most the log of the number of images).

    Args:
        images: how many of the test images; None takes all.
        rows: images times samples decoded at a time.
    """
    model = _vae(run, "likelihood")
    shown = (run.data.test or run.data).images[:images]
    if samples < 1:
        raise UsageError(f"protocol likelihood, samples = {samples}: must be at least 1")
    sums: dict[str, float] = {}
    codes: list[tuple[Tensor, ...]] = []
    with seeded(model, run.seed):
        for part in shown.split(max(1, rows // samples)):
            x = model.likelihood.observe(unit(part, model.dtype).to(model.device))
            weights = [model.log_weights(x, min(samples - k, rows)) for k in range(0, samples, rows)]
            log_p = torch.cat(weights).double().logsumexp(0) - math.log(samples)
            found = model.infer(x, model.samples_per_step)
            parts = {"nll": -log_p.mean()} | model.terms(x, found)
            for name in ("nll", "reconstruction", "kl"):
                sums[name] = sums.get(name, 0.0) + float(parts[name]) * len(x)
            codes.append(tuple(t[: len(x)].flatten(1).cpu() for t in found.groups[0][:3]) + (model(part).cpu(),))
    metrics = {name: value / len(shown) for name, value in sums.items()}
    z, mean, log_variance, means = (torch.cat(column) for column in zip(*codes, strict=True))
    nll = torch.tensor(metrics["nll"], dtype=torch.float64)
    metrics |= {
        "elbo": -metrics["reconstruction"] - metrics["kl"],
        "bits_per_dim": float(bits_per_dim(nll, shown[0].numel())),
        "active_units": float(latent.active_units(means)),
    }
    if means.shape == mean.shape:  # one group: the aggregate posterior of several has no closed form
        metrics["mutual_information"] = latent.latent_information(z, mean, log_variance)
    return metrics


def _vae(run: Any, protocol: str) -> Any:
    if not hasattr(run.model, "log_weights"):
        raise UsageError(f"protocol {protocol}: the method is no VAE with a likelihood")
    return run.model


def figures(run: Any, folder: Path) -> None:
    """Embedding map of the test images, or of all where there is no test part."""
    shown: Images = run.data.test or run.data
    report.embedding_map(run.model.embed(shown), shown.labels, shown.classes, folder / "embedding.png")


def _embedded(run: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if not hasattr(run.model, "embed"):
        raise UsageError("protocol: the method has no representation to evaluate")
    train, test = split(run.data)
    assert train.labels is not None and test.labels is not None
    return run.model.embed(train), train.labels, run.model.embed(test), test.labels
