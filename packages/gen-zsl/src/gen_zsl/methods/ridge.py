"""Ridge prototypes: kernel ridge regression from a class's attributes to the mean of its features; nearest prototype.

Citation: the linear family of semantic embeddings, after Romera-Paredes and Torr, "An Embarrassingly Simple Approach to
Zero-Shot Learning", ICML 2015, and the prototype view of Changpinyo, Chao and Sha, ICCV 2017, arXiv 1605.08151.

With K = A A^T over the seen classes' attributes, of length 1, and M the means of their features less their own mean m,
the prototype of any class c is k(c, seen) (K + lambda I)^-1 M; an image x goes to the class whose prototype has the
largest cosine with x - m.

Deviations: it is a baseline, no paper's method: the prototypes of seen classes are regressed too. lambda is the one of
`strengths` with the best accuracy on the validation classes (`data.val`, regressed from `data.train`).
"""

from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat
from torch import Tensor

from gen_core.evaluation.gzsl import per_class_accuracy
from gen_core.harness.errors import UsageError
from gen_core.harness.plain import Plain
from gen_zsl.data import ZeroShot
from gen_zsl.generative import table


class RidgePrototypes(Plain):
    """`RidgePrototypes().fit(data).predict(data)`; closed form, no seed."""

    class Config(Plain.Config):
        """Hyper-parameters."""

        strengths: tuple[PositiveFloat, ...] = Field((0.1, 0.3, 1.0), min_length=1)
        """Values of lambda to choose from on the validation classes."""

    tensors = ("prototypes", "mean", "seen", "unseen")
    facts = ("classes",)
    prototypes: Tensor
    mean: Tensor
    seen: Tensor
    unseen: Tensor
    classes: list[str]

    def fit(self, data: ZeroShot, *, seed: int = 0, out: str | Path | None = None, **_: Any) -> Self:
        kinds = data.labels[data.val].unique()

        def on_val(strength: float) -> float:
            found = _cosines(data.features[data.val], *_prototypes(data, data.train, strength))
            return per_class_accuracy(kinds[found[:, kinds].argmax(1)], data.labels[data.val], kinds)

        self.strength = max(self.config.strengths, key=on_val)
        self.prototypes, self.mean = _prototypes(data, data.trainval, self.strength)
        self.seen, self.unseen, self.classes = data.seen, data.unseen, list(data.classes)
        return super().fit(data, out=out)

    def scores(self, features: Tensor, unseen_only: bool = False) -> Tensor:
        """Cosine with each class's prototype, (n, C); -inf for seen classes where `unseen_only`."""
        if features.shape[1] != len(self.mean):
            raise UsageError(f"features has {features.shape[1]} columns; this model was trained on {len(self.mean)}")
        found = _cosines(features, self.prototypes, self.mean)
        return found.index_fill_(1, self.seen, -torch.inf) if unseen_only else found

    def predict(self, data: ZeroShot) -> dict[str, Any]:
        """Columns id, class, score (the cosine) and kind ("seen" or "unseen" in training), a row an image."""
        return table(data, self.scores(data.features), self.classes, self.seen.tolist())


def _prototypes(data: ZeroShot, rows: Tensor, strength: float) -> tuple[Tensor, Tensor]:
    """(C, d) from the class means of these rows, and the mean of these, (d,)."""
    kinds, place, counts = data.labels[rows].unique(return_inverse=True, return_counts=True)
    sums = torch.zeros(len(kinds), data.features.shape[1], dtype=torch.float64)
    means = sums.index_add_(0, place, data.features[rows].double()) / counts[:, None]
    attributes = F.normalize(data.attributes.double())
    kernel = attributes @ attributes[kinds].T
    inside = kernel[kinds] + strength * torch.eye(len(kinds), dtype=torch.float64)
    middle = means.mean(0)
    return (kernel @ torch.linalg.solve(inside, means - middle)).float(), middle.float()


def _cosines(features: Tensor, prototypes: Tensor, mean: Tensor) -> Tensor:
    return F.normalize(features - mean) @ F.normalize(prototypes).T
