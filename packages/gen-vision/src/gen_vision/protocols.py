"""Evaluation protocols: `name(run, **options) -> {metric: value}`, accuracies in percent on the test images.

A run has `.model`, `.data` and `.seed`. Where the data has labels but no test part, `data.split` sets every fifth image
of each class aside; those were among the *unlabelled* images that a self-supervised method was trained on.
"""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gen_core.estimators import Pairs, nce
from gen_core.evaluation import cluster, frechet_features, latent, probe
from gen_core.harness import report
from gen_core.harness.errors import UsageError
from gen_core.losses.geometry import chamfer
from gen_core.losses.variational import bits_per_dim
from gen_vision import pictures
from gen_vision.augment import AffineNoise
from gen_vision.clouds import CloudAugment, Clouds, spread
from gen_vision.data import Images, split, unit
from gen_vision.networks.latents import inconsistency, seeded

__all__ = ["accuracy", "clouds", "consistency", "few_label", "generation", "knn", "likelihood", "linear"]

TURNS = (0.0, 5.0, 10.0, 15.0, 20.0, 30.0, 45.0)
"""Degrees of rotation at which `consistency` measures its curve."""


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
    if samples < 1:
        raise UsageError(f"protocol likelihood, samples = {samples}: must be at least 1")
    if images is not None and images < 2:
        raise UsageError(f"protocol likelihood, images = {images}: must be at least 2")
    shown = (run.data.test or run.data).images[:images]
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


@torch.no_grad()
def consistency(
    run: Any, rotation: float = 15.0, shift: float = 0.05, scale: float = 0.1, images: int | None = None
) -> dict[str, float]:
    """Whether images and their affine transformations are encoded alike, and what the code is worth.

    accuracy: 1-nearest-neighbour on posterior means (Euclidean), in percent; inconsistency: mean KL(q(z|x') || q(z|x))
    of the test images, nats; elbo of the test images; active_units; accuracy_100: logistic regression on 100 labels,
    mean over 5 draws. A curve: the same KL over the largest rotation, nothing else changed, of 1,000 test images.

    Args:
        rotation: largest, in degrees; shift and scale as shares: those of the transformation, the same for all arms.
        images: how many of the test images; None takes all.
    """
    from sklearn.neighbors import KNeighborsClassifier  # pyright: ignore

    model = _vae(run, "consistency")
    train, test = split(run.data)
    assert train.labels is not None and test.labels is not None
    test = test.take(slice(images))
    z, z_test = run.model.embed(train), run.model.embed(test)
    neighbour = KNeighborsClassifier(1).fit(z.numpy(), train.labels.numpy())  # pyright: ignore

    def apart(images: Tensor, change: AffineNoise) -> float:
        total = 0.0
        for part in images.split(500):
            shown, n = unit(part, model.dtype).to(model.device), len(part)
            groups = model.infer(model.likelihood.observe(torch.cat([shown, change(shown)]))).groups
            total += float(inconsistency(groups, slice(n, 2 * n), slice(n)).sum())
        return total / len(images)

    elbo, few = 0.0, test.images[:1000]
    with seeded(model, run.seed):
        measured = apart(test.images, AffineNoise(rotation=rotation, shift=shift, scale=scale, noise=0))
        run.curves["inconsistency over largest rotation, degrees"] = [
            (degrees, apart(few, AffineNoise(rotation=degrees, shift=0, scale=0, noise=0))) for degrees in TURNS
        ]
        for part in test.images.split(500):
            x = model.likelihood.observe(unit(part, model.dtype).to(model.device))
            terms = model.terms(x, model.infer(x, model.samples_per_step))
            elbo -= len(part) * float(terms["reconstruction"] + terms["kl"])
    labels = torch.as_tensor(test.labels)
    return {
        "accuracy": 100 * float(neighbour.score(z_test.numpy(), labels.numpy())),  # pyright: ignore
        "inconsistency": measured,
        "elbo": elbo / len(test),
        "active_units": float(latent.active_units(z_test)),
        "accuracy_100": probe.few_label(z, train.labels, z_test, labels, 100 // (int(labels.max()) + 1), run.seed, 5),
    }


@torch.no_grad()
def clouds(run: Any) -> dict[str, float]:
    """What a VAE of point clouds has learnt, on the test clouds.

    accuracy: linear SVM on posterior means, trained on the training clouds (the protocol on ModelNet40 of FoldingNet
    and CR-VAE), in percent; inconsistency: mean KL(q(z|x') || q(z|x)) under `CloudAugment`, nats; chamfer: of the
    reconstructions at posterior means, `gen_core.losses.chamfer`, in the square of the clouds' radius.
    """
    from sklearn.pipeline import make_pipeline  # pyright: ignore
    from sklearn.preprocessing import StandardScaler  # pyright: ignore
    from sklearn.svm import LinearSVC  # pyright: ignore

    if not isinstance(run.data, Clouds):
        raise UsageError("protocol clouds: the data are images; allowed for VAEs of images: consistency, likelihood")
    model = _vae(run, "clouds")
    train, test = split(run.data)
    assert train.labels is not None and test.labels is not None
    z, z_test = run.model.embed(train).double().numpy(), run.model.embed(test).double().numpy()
    primal: Any = {"dual": False}  # deterministic; its stubs know strings only
    svm: Any = make_pipeline(StandardScaler(), LinearSVC(**primal))
    svm.fit(z, train.labels.numpy())
    change, apart = CloudAugment(), 0.0
    with seeded(model, run.seed):
        for part in test.points.split(500):
            x = part.to(model.device, model.dtype)
            found, n = model.infer(model.likelihood.observe(torch.cat([x, change(x)]))), len(part)
            apart += float(inconsistency(found.groups, slice(n, 2 * n), slice(n)).sum())
    return {
        "accuracy": 100 * float(svm.score(z_test, test.labels.numpy())),
        "inconsistency": apart / len(test),
        "chamfer": float(chamfer(run.model.reconstruct(test).float(), test.points)),
    }


@torch.no_grad()
def generation(
    run: Any, samples: int = 5000, proposals: tuple[int, ...] = (), each_group: bool = False, k: int = 5
) -> dict[str, float]:
    """Samples of the model against the test images (of a Bernoulli likelihood both binarised), in the space of a net.

    FD[net] (Frechet distance), KID[net], precision, recall, density, coverage; `floor`: the same distance of as many
    decoded posterior samples of training images, which no better prior can go below by much. `accuracy` and `log_z` of
    NCP-VAE's classifiers: share of right answers on test images, and the log-partition with twice its error.

    Args:
        samples: generated images, at most as many test images beside them.
        proposals: NCP-VAE: FD at these M too, as `FD[net]@M`.
        each_group: NCP-VAE of a hierarchy: FD with each group re-weighted alone, as `FD[net]@group-1`.
        k: neighbours of precision, recall, density and coverage.
    """
    from gen_vision import extractor

    if not hasattr(run.model, "sample"):
        raise UsageError("protocol generation: the method makes no images")
    base, test = _vae(run, "generation"), run.data.test or run.data
    net = extractor.extractor(run.data)
    run.facts["extractor"] = net.identity
    with seeded(base, run.seed):
        real = base.likelihood.observe(unit(test.images, base.dtype))
        real = base.likelihood.shown(real)[:samples]

    def drawn(**options: Any) -> Tensor:
        return run.model.sample(samples, seed=run.seed, mean=False, **options)

    metrics = extractor.compare(real, drawn(), net, k)
    name = next(iter(metrics))

    known = extractor.features(net, real)

    def distance(images: Tensor) -> float:
        return frechet_features(known, extractor.features(net, images))

    with seeded(base, run.seed):
        shown = run.data.take(torch.randperm(len(run.data))[:samples]).images.split(500)
        found = (base.infer(base.likelihood.observe(unit(part, base.dtype).to(base.device))) for part in shown)
        metrics["floor"] = distance(torch.cat([base.likelihood.sample(one.parameters).cpu() for one in found]))
    for m in proposals:
        metrics[f"{name}@{m}"] = distance(drawn(proposals=m))
    if proposals:
        run.curves[f"{name} over proposals"] = [(float(m), metrics[f"{name}@{m}"]) for m in proposals]
    if hasattr(run.model, "log_partition"):
        metrics |= _classifiers(run, base, test)
        count = len(run.model.classifiers) if each_group else 0
        metrics |= {f"{name}@group-{g + 1}": distance(drawn(groups={g})) for g in range(count)}
    return metrics


def _classifiers(run: Any, base: Any, test: Images) -> dict[str, float]:
    """Of each group of an NCP-VAE: loss and accuracy on test images, log Z and twice its standard error."""
    losses, right, n = torch.zeros(()), torch.zeros(()), 0
    with seeded(run.model, run.seed):
        for part in test.images.split(500):
            found = base.infer(base.likelihood.observe(unit(part, base.dtype).to(base.device)))
            pairs = [run.model.logits(group, found) for group in range(len(found.groups))]
            right = right + torch.stack([((p > 0).sum() + (q <= 0).sum()).cpu() / 2 for p, q in pairs])
            losses = losses + len(part) * torch.stack([-nce(Pairs(*pair)) for pair in pairs]).cpu()
            n += len(part)
    metrics: dict[str, float] = {}
    for group, partition in enumerate(run.model.log_partition(seed=run.seed)):
        metrics |= {
            f"nce_{group + 1}": float(losses[group]) / n,
            f"accuracy_{group + 1}": 100 * float(right[group]) / n,
            f"log_z_{group + 1}": float(partition.value),
            f"log_z_error_{group + 1}": 2 * float(partition.standard_error),
        }
    return metrics


def _vae(run: Any, protocol: str) -> Any:
    if not hasattr(run.model, "base"):
        raise UsageError(f"protocol {protocol}: the method is no VAE with a likelihood")
    if protocol != "clouds" and isinstance(run.data, Clouds):
        raise UsageError(f"protocol {protocol}: is of images; for point clouds: clouds, few-label, knn, linear")
    return run.model.base


def figures(run: Any, folder: Path) -> None:
    """Embedding map of the test images (clouds), or of all where there is no test part; what a VAE makes of some."""
    shown: Images | Clouds = run.data.test or run.data
    report.embedding_map(run.model.embed(shown), shown.labels, shown.classes, folder / "embedding.png")
    if isinstance(shown, Clouds):
        if hasattr(run.model, "reconstruct"):
            few = spread(shown.points)
            pictures.reconstructions(few, run.model.reconstruct(few), folder / "reconstructions.png")
        return
    if hasattr(run.model, "sample"):
        pictures.samples(run.model.sample(64), folder / "samples.png")
    if hasattr(run.model, "reconstruct"):
        few = shown.images[:32]
        pictures.reconstructions(unit(few), run.model.reconstruct(few), folder / "reconstructions.png")
        swept = run.model.base.traverse(unit(shown.images[0]))
        report.picture(pictures.grid(swept.flatten(0, 1), swept.shape[1]), folder / "traversal.png")


def _embedded(run: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if not hasattr(run.model, "embed"):
        raise UsageError("protocol: the method has no representation to evaluate")
    train, test = split(run.data)
    assert train.labels is not None and test.labels is not None
    return run.model.embed(train), train.labels, run.model.embed(test), test.labels
