"""Scores of (generalised) zero-shot classification: classes count equally, whatever their size; percent."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from gen_core._checks import Array, integers


def per_class_accuracy(predicted: Array, labels: Array, classes: Iterable[int] | Array) -> float:
    """Mean over `classes` of the top-1 accuracy within each class, in percent (Xian et al. 2018, eq. 5).

    Args:
        predicted: (n,) integers, the class given to each row.
        labels: (n,) integers, its true class; rows of other classes are left out.
        classes: the classes to average over.

    Raises:
        ValueError: shapes or dtypes do not fit; no classes; a class that no row is labelled with, by its number.

    Examples:
        >>> guess, truth = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 0, 1])
        >>> f"{per_class_accuracy(guess, truth, [0, 1]):.4f}"  # 2/3 and 1
        '83.3333'
    """
    guess, truth = integers("predicted", predicted), integers("labels", labels)
    if guess.shape != truth.shape:
        raise ValueError(f"predicted must have {len(truth)} entries, one a label, got {len(guess)}")
    wanted = _classes("classes", classes)
    hits = (guess.to(truth.device) == truth).double()
    shares: list[float] = []
    for kind in wanted:
        rows = truth == kind
        if not bool(rows.any()):
            raise ValueError(f"labels hold no row of class {kind}, so it has no accuracy")
        shares.append(float(hits[rows].mean()))
    return 100 * sum(shares) / len(shares)


def gzsl_accuracy(
    predicted: Array, labels: Array, seen: Iterable[int] | Array, unseen: Iterable[int] | Array
) -> tuple[float, float, float]:
    """U, S and H of generalised zero-shot classification (Xian et al. 2018, eq. 7), in percent.

    U and S are the per-class accuracies over the unseen and over the seen classes, where every row was free to be given
    any class of both; H = 2 U S / (U + S), 0 where both are 0.

    Args:
        predicted: (n,) integers, the class given to each test row.
        labels: (n,) integers, its true class.
        seen: the classes of the training set.
        unseen: the others.

    Raises:
        ValueError: as in `per_class_accuracy`; a class that is seen and unseen.

    Examples:
        >>> u, s, h = gzsl_accuracy(torch.tensor([0, 0, 1, 2]), torch.tensor([0, 0, 1, 1]), seen=[0], unseen=[1])
        >>> f"{u:.0f} {s:.0f} {h:.4f}"
        '50 100 66.6667'
    """
    known, new = _classes("seen", seen), _classes("unseen", unseen)
    if both := sorted(set(known) & set(new)):
        raise ValueError(f"class {both[0]} is seen and unseen")
    u, s = per_class_accuracy(predicted, labels, new), per_class_accuracy(predicted, labels, known)
    return u, s, 2 * u * s / (u + s) if u + s > 0 else 0.0


def _classes(name: str, values: Iterable[int] | Array) -> list[int]:
    listed: Any = values if isinstance(values, Tensor) else torch.tensor([int(value) for value in values])
    found: list[int] = listed.tolist()
    if not found:
        raise ValueError(f"{name} must name at least one class")
    if len(set(found)) < len(found):
        raise ValueError(f"{name} names a class twice: {found}")
    return found
