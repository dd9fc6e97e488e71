"""Probes: simple classifiers on frozen representations. Features are (n, d) floating, labels (n,) integers >= 0.

Features and labels may be tensors or arrays. Accuracies are in percent.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from gen_core._checks import Array, integers


def linear_probe(
    x_train: Array, y_train: Array, x_test: Array, y_test: Array, *, l2: float = 1.0, seed: int = 0
) -> float:
    """Test accuracy of multinomial logistic regression (scikit-learn, lbfgs) on standardised features.

    Mean and deviation come from the training rows alone.

    Args:
        x_train: (n, d).
        y_train: (n,), at least two classes.
        x_test: (m, d).
        y_test: (m,).
        l2: strength of the penalty l2/2 |W|^2 beside the *sum* of the losses in nats, > 0 (scikit-learn's 1 / C).
        seed: scikit-learn's random_state; lbfgs itself is deterministic.

    Raises:
        ValueError: shapes, dtypes or l2 that do not fit; NaN or infinite features; one class only.

    Examples:
        >>> x, y = torch.tensor([[-2.0], [-1.0], [1.0], [2.0]]), torch.tensor([0, 0, 1, 1])
        >>> linear_probe(x, y, x, y)
        100.0
    """
    from sklearn.linear_model import LogisticRegression  # pyright: ignore
    from sklearn.pipeline import make_pipeline  # pyright: ignore
    from sklearn.preprocessing import StandardScaler  # pyright: ignore

    if not 0 < l2 < float("inf"):
        raise ValueError(f"l2 must be a finite number above 0, got {l2}")
    train, test = _set("train", x_train, y_train), _set("test", x_test, y_test)
    _same_width(train, test)
    if bool((train[1] == train[1][0]).all()):
        raise ValueError(f"y_train must hold at least 2 classes, got only class {int(train[1][0])}")
    (x, y), (x_new, y_new) = ((z.cpu().double().numpy(), labels.cpu().numpy()) for z, labels in (train, test))
    model: Any = make_pipeline(StandardScaler(), LogisticRegression(C=1 / l2, max_iter=2000, random_state=seed))
    guess: NDArray[Any] = model.fit(x, y).predict(x_new)
    return 100 * float((guess == y_new).mean())


def softmax_probe(
    x_train: Array,
    y_train: Array,
    x_test: Array,
    y_test: Array,
    *,
    runs: int = 50,
    steps: int = 100,
    lr: float = 0.01,
    weight_decay: float = 0.0,
    seed: int = 0,
) -> Tensor:
    """The probe of DGI's released code: softmax regression by Adam, full batch, from `runs` Xavier-uniform starts.

    All runs are one batched problem (Adam acts on each weight alone, so they do not meet). Features are taken as they
    are. Computed on the device of `x_train`.

    Args:
        x_train: (n, d).
        y_train: (n,).
        x_test: (m, d).
        y_test: (m,).
        runs: number of starts.
        steps: Adam steps.
        lr: Adam's learning rate.
        weight_decay: Adam's L2 coefficient.
        seed: of the starts; run r is the r-th draw.

    Returns:
        (runs,) test accuracies in percent, float64.

    Raises:
        ValueError: shapes or dtypes that do not fit; NaN or infinite features; runs, steps or lr out of range.

    Examples:
        >>> x, y = torch.tensor([[-2.0], [-1.0], [1.0], [2.0]]), torch.tensor([0, 0, 1, 1])
        >>> softmax_probe(x, y, x, y, runs=3, steps=300).tolist()
        [100.0, 100.0, 100.0]
    """
    for name, value in (("runs", runs), ("steps", steps), ("lr", lr)):
        if not value > 0:
            raise ValueError(f"{name} must be above 0, got {value}")
    train, test = _set("train", x_train, y_train), _set("test", x_test, y_test)
    _same_width(train, test)
    (x, y), x_new, y_new = train, test[0].to(train[0]), test[1].to(train[1].device)
    classes = int(torch.maximum(y.max(), y_new.max())) + 1
    weight, bias = _softmax_weights(x, y, classes, runs, steps, lr, weight_decay, seed)
    with torch.no_grad():
        hits = torch.zeros(runs, dtype=torch.float64)
        for start in range(0, len(x_new), 4096):
            guess = _logits(x_new[start : start + 4096], weight, bias).argmax(2)
            hits += (guess == y_new[start : start + 4096]).sum(1).cpu()
    return 100 * hits / len(y_new)


def few_label_split(labels: Array, per_class: int, seed: int) -> Tensor:
    """Indices of `per_class` random rows of each class, sorted by class; rows labelled below 0 count as unlabelled.

    Args:
        labels: (n,) integers.
        per_class: rows of each class, >= 1.
        seed: of the draw.

    Returns:
        (classes * per_class,) int64 on the CPU.

    Raises:
        ValueError: labels that are no vector of integers, per_class < 1, or a class with fewer rows.

    Examples:
        >>> labels = torch.tensor([1, 0, 1, 0, 1])
        >>> labels[few_label_split(labels, per_class=2, seed=0)].tolist()
        [0, 0, 1, 1]
    """
    if per_class < 1:
        raise ValueError(f"per_class must be at least 1, got {per_class}")
    y = integers("labels", labels).cpu()
    generator = torch.Generator().manual_seed(seed)
    chosen: list[Tensor] = []
    for c in range(int(y.max()) + 1 if len(y) else 0):
        rows = (y == c).nonzero()[:, 0]
        if 0 < len(rows) < per_class:
            raise ValueError(f"per_class must be at most {len(rows)}, the rows of class {c}, got {per_class}")
        chosen.append(rows[torch.randperm(len(rows), generator=generator)[:per_class]])
    if not chosen:
        raise ValueError("labels must hold at least one class, got none at 0 or above")
    return torch.cat(chosen)


def few_label(
    z_train: Array,
    y_train: Array,
    z_test: Array,
    y_test: Array,
    per_class: int,
    seed: int,
    episodes: int = 10,
    *,
    l2: float = 1.0,
) -> float:
    """Mean test accuracy of `linear_probe` over `episodes` draws of `per_class` labelled training rows of each class.

    Args:
        z_train: (n, d).
        y_train: (n,); rows below 0 are unlabelled.
        z_test: (m, d).
        y_test: (m,).
        per_class: labelled rows of each class.
        seed: of the episodes' draws.
        episodes: number of draws, >= 1.
        l2: as in `linear_probe`.

    Examples:
        >>> z, y = torch.tensor([[-2.0], [-1.0], [1.0], [2.0]]), torch.tensor([0, 0, 1, 1])
        >>> few_label(z, y, z, y, per_class=1, seed=0)
        100.0
    """
    if episodes < 1:
        raise ValueError(f"episodes must be at least 1, got {episodes}")
    z, y = torch.as_tensor(z_train), integers("y_train", y_train)
    if len(z) != len(y):
        raise ValueError(f"y_train must have one label a row of z_train, {len(z)}, got {len(y)}")
    accuracies: list[float] = []
    for draw in np.random.SeedSequence(seed).generate_state(episodes).tolist():
        rows = few_label_split(y, per_class, draw)
        accuracies.append(linear_probe(z[rows.to(z.device)], y[rows.to(y.device)], z_test, y_test, l2=l2, seed=seed))
    return float(np.mean(accuracies))


def svm_folds(
    z: Array,
    y: Array,
    *,
    folds: int = 10,
    grid: Sequence[float] = (1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3),
    inner: int = 5,
    seed: int = 0,
) -> Tensor:
    """Accuracy of a linear SVM in stratified k-fold cross-validation, C chosen inside the training part of each fold.

    The protocol of graph-level representation learning (InfoGraph's released code, which does not standardise). C is
    the one of best mean accuracy in a stratified `inner`-fold cross-validation of the training part, the smallest of
    equals; features are standardised by the rows that an SVM is fitted on, in the inner cross-validation too.

    The SVM is that of scikit-learn's LinearSVC: 1/2 |w|^2 + C sum of squared hinges, the intercept part of w, one class
    against the rest. Pooled embeddings are nearly collinear and C goes up to 1000, where LinearSVC stops short after
    seconds; Newton's method on the active rows ends at the exact minimum after a few steps, with nothing random in it.

    Args:
        z: (n, d).
        y: (n,), at least two classes; numbers without rows are no classes.
        folds: number of folds k, >= 2.
        grid: candidates of C, above 0; the smaller, the stronger the penalty.
        inner: folds of the inner cross-validation, >= 2.
        seed: of the shuffles; the folds of one y are the same for every z.

    Returns:
        (k,) test accuracies in percent, float64, in the order of the folds.

    Raises:
        ValueError: shapes or dtypes that do not fit; NaN or infinite features; one class only; a class with too few
            rows to be in each fold and, in the training parts, in each inner fold; folds, inner or grid out of range.

    Examples:
        >>> z, y = torch.tensor([[-2.0], [-1.0], [1.0], [2.0]]).repeat(3, 1), torch.tensor([0, 0, 1, 1]).repeat(3)
        >>> svm_folds(z, y, folds=3, inner=2).tolist()
        [100.0, 100.0, 100.0]
    """
    from sklearn.model_selection import StratifiedKFold  # pyright: ignore

    candidates = sorted(float(c) for c in grid)
    if not candidates or not 0 < candidates[0] <= candidates[-1] < float("inf"):
        raise ValueError(f"grid must hold finite numbers above 0, got {list(grid)}")
    x, target = (part.cpu() for part in _labelled("z", z, "y", y))
    _enough(target, folds, inner)

    def split(labels: Tensor, k: int) -> Iterator[tuple[Tensor, Tensor]]:
        cut: Any = StratifiedKFold(k, shuffle=True, random_state=seed)
        for train, test in cut.split(labels, labels):
            yield torch.as_tensor(train), torch.as_tensor(test)

    found: list[float] = []
    for train, test in split(target, folds):
        x_in, y_in = x[train], target[train]
        scores = [_svm_accuracies(x_in[a], y_in[a], x_in[b], y_in[b], candidates) for a, b in split(y_in, inner)]
        best = candidates[int(np.mean(scores, axis=0).argmax())]  # argmax: the first, hence the smallest, of equals
        found += _svm_accuracies(x_in, y_in, x[test], target[test], [best])
    return torch.tensor(found, dtype=torch.float64)


def _enough(y: Tensor, folds: int, inner: int) -> None:
    """Refuse labels that leave a fold, or an inner fold of a training part, without a row of some class."""
    for name, value in (("folds", folds), ("inner", inner)):
        if value < 2:
            raise ValueError(f"{name} must be at least 2, got {value}")
    if bool((y == y[0]).all()):
        raise ValueError(f"y must hold at least 2 classes, got only class {int(y[0])}")
    for c, rows in enumerate(int(count) for count in torch.bincount(y)):
        if rows and (rows < folds or rows - -(-rows // folds) < inner):  # a fold takes at most ceil(rows / folds)
            raise ValueError(
                f"y: class {c} has {rows} rows; with folds={folds} and inner={inner} each class needs {folds} rows, "
                f"and {inner} in each training part: take fewer folds, or leave that class out"
            )


def _svm_accuracies(x: Tensor, y: Tensor, x_new: Tensor, y_new: Tensor, grid: Sequence[float]) -> list[float]:
    """Test accuracies in percent of the linear SVMs with the C's of an ascending `grid`."""
    from sklearn.preprocessing import StandardScaler  # pyright: ignore

    scaler: Any = StandardScaler().fit(x.double().numpy())  # pyright: ignore
    x, x_new = (torch.as_tensor(scaler.transform(part.double().numpy())) for part in (x, x_new))  # pyright: ignore
    x, x_new = (torch.cat([part, part.new_ones(len(part), 1)], 1) for part in (x, x_new))
    classes = torch.bincount(y).nonzero()[:, 0]
    ups = classes[1:] if len(classes) == 2 else classes
    weights, found = [x.new_zeros(x.shape[1]) for _ in ups], list[float]()
    for c in grid:  # from the solutions of the last C
        weights = [_squared_hinge(x, (y == up) * 2.0 - 1, c, w) for up, w in zip(ups, weights, strict=True)]
        scores = x_new @ torch.stack(weights, 1)
        guess = classes[(scores[:, 0] > 0).long() if len(classes) == 2 else scores.argmax(1)]
        found.append(100 * float((guess == y_new).double().mean()))
    return found


def _squared_hinge(x: Tensor, sign: Tensor, c: float, w: Tensor) -> Tensor:
    """The minimum of 1/2 |w|^2 + c sum_i max(0, 1 - sign_i x_i . w)^2 by Newton's method from `w`; float64.

    The objective is quadratic while the active rows (margin below 1) stay the same: where its minimum for the current
    ones has the same active rows, it is the minimum of all (Mangasarian 2002; Keerthi and DeCoste 2005).
    """
    linalg: Any = torch.linalg  # has no types
    eye, sign, score = torch.eye(len(w), dtype=x.dtype), sign.to(x), x @ w
    active = sign * score < 1
    for _ in range(100):
        rows = x[active]
        hessian = torch.addmm(eye, rows.T, rows, alpha=2 * c)
        goal = torch.cholesky_solve((2 * c * rows.T @ sign[active])[:, None], linalg.cholesky(hessian))[:, 0]
        step, change = goal - w, x @ goal - score
        if bool(((sign * (score + change) < 1) == active).all()) or step.abs().max() <= 1e-8 * goal.abs().max():
            return goal
        low, high, t = 0.0, 1.0, 1.0
        for _ in range(30):  # the whole step, or where the objective stops falling along it
            short = (sign * (score + t * change) - 1).clamp(max=0)
            rises = float((w + t * step) @ step + 2 * c * (short * sign) @ change) > 0
            if t == 1 and not rises:
                break
            low, high = (low, t) if rises else (t, high)
            t = (low + high) / 2
        w, score = w + t * step, score + t * change
        active = sign * score < 1
    raise RuntimeError(f"the SVM with C = {c:g} has not converged in 100 Newton steps")


def _softmax_weights(
    x: Tensor, y: Tensor, classes: int, runs: int, steps: int, lr: float, weight_decay: float, seed: int
) -> tuple[Tensor, Tensor]:
    """Weights (runs, d, classes) and biases (runs, classes) after training."""
    bound = (6 / (x.shape[1] + classes)) ** 0.5
    start = torch.rand(runs, x.shape[1], classes, generator=torch.Generator().manual_seed(seed)) * 2 * bound - bound
    with torch.enable_grad():
        weight = start.to(x).requires_grad_()
        bias = x.new_zeros(runs, classes).requires_grad_()
        optimizer = torch.optim.Adam([weight, bias], lr=lr, weight_decay=weight_decay)
        target = y.repeat(runs)
        for _ in range(steps):
            # a sum over runs of means over rows: each run's gradient is that of its own mean
            loss = F.cross_entropy(_logits(x, weight, bias).flatten(0, 1), target, reduction="sum") / len(y)
            weight.grad, bias.grad = torch.autograd.grad(loss, (weight, bias))
            optimizer.step()  # pyright: ignore[reportUnknownMemberType]
    return weight.detach(), bias.detach()


def _logits(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(n, d), (runs, d, c), (runs, c) -> (runs, n, c)."""
    return torch.baddbmm(bias[:, None], x.expand(len(weight), -1, -1), weight)


def _set(part: str, x: Array, y: Array) -> tuple[Tensor, Tensor]:
    return _labelled(f"x_{part}", x, f"y_{part}", y)


def _labelled(name_x: str, x: Array, name_y: str, y: Array) -> tuple[Tensor, Tensor]:
    z, labels = torch.as_tensor(x).detach(), integers(name_y, y, lowest=0)
    if z.ndim != 2 or not z.is_floating_point():
        raise ValueError(f"{name_x} must be floating of shape (n, d), got {z.dtype} of shape {tuple(z.shape)}")
    if len(z) != len(labels) or len(z) == 0:
        raise ValueError(f"{name_y} must have one label a row of {name_x}, {len(z)} and not 0, got {len(labels)}")
    if not bool(torch.isfinite(z).all()):
        raise ValueError(f"{name_x} must be finite, got NaN or infinite entries")
    return (z if z.dtype == torch.float64 else z.float()), labels.to(z.device)


def _same_width(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> None:
    if train[0].shape[1] != test[0].shape[1]:
        raise ValueError(f"x_test must have {train[0].shape[1]} columns, as x_train has, got {test[0].shape[1]}")
