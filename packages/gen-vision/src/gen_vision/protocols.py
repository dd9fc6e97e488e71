"""Evaluation protocols: `name(run, **options) -> {metric: value}`, accuracies in percent on the test images.

A run has `.model`, `.data` and `.seed`. Where the data has labels but no test part, `data.split` sets every fifth image
of each class aside; those were among the *unlabelled* images that a self-supervised method was trained on.
"""

from pathlib import Path
from typing import Any

from torch import Tensor

from gen_core.evaluation import cluster, probe
from gen_core.harness import report
from gen_core.harness.errors import UsageError
from gen_vision.data import Images, split

__all__ = ["accuracy", "few_label", "knn", "linear"]


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
