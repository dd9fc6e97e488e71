"""N-way K-shot classification of frozen representations: episodes, the prototype classifier, mean accuracy."""

from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gen_core._checks import Array, finite, floating, full_precision, integers
from gen_core.evaluation.cluster import features
from gen_core.evaluation.stats import paired_interval


def sample_episodes(labels: Array, ways: int, shots: int, queries: int, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Row indices of n episodes: `ways` classes without replacement, of each `shots` and `queries` rows, none twice.

    They depend on the labels and the options alone, so that encoders are compared on the same episodes, and the first m
    of n are those of n = m. The classes are to be novel: give the labels of held-out classes only.

    Args:
        labels: (rows,) integers; rows below 0 are left out.
        ways: classes of an episode.
        shots: labelled rows of a class.
        queries: rows of a class to be classified.
        n: number of episodes.
        seed: of the draw.

    Returns:
        support (n, ways, shots) and query (n, ways, queries), int64 on the CPU; an episode's class is its position.

    Raises:
        ValueError: labels are no vector of integers; an option below 1; fewer classes than `ways`; a class with fewer
            than shots + queries rows.

    Examples:
        >>> labels = torch.tensor([3, 3, 3, 8, 8, 8])
        >>> support, query = sample_episodes(labels, ways=2, shots=1, queries=2, n=4, seed=0)
        >>> support.shape, query.shape, bool((labels[support] == labels[query]).all())
        (torch.Size([4, 2, 1]), torch.Size([4, 2, 2]), True)
    """
    for name, value in (("ways", ways), ("shots", shots), ("queries", queries), ("n", n)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    y = integers("labels", labels).cpu()
    classes: list[Tensor] = []
    for c in np.unique(np.asarray(y[y >= 0], np.int64)).tolist():
        rows = (y == c).nonzero()[:, 0]
        if len(rows) < shots + queries:
            raise ValueError(
                f"labels must have shots + queries = {shots + queries} rows a class, got {len(rows)} of {c}"
            )
        classes.append(rows)
    if len(classes) < ways:
        raise ValueError(f"ways must be at most the {len(classes)} classes of labels, got {ways}")
    generator = torch.Generator().manual_seed(seed)
    picked = torch.empty(n, ways, shots + queries, dtype=torch.long)
    for episode in picked:
        for way, c in enumerate(torch.randperm(len(classes), generator=generator)[:ways]):
            rows = classes[int(c)]
            episode[way] = rows[torch.randperm(len(rows), generator=generator)[: shots + queries]]
    return picked[..., :shots], picked[..., shots:]


def prototype_scores(support: Tensor, query: Tensor, rounds: int = 0, scale: float = 10.0) -> Tensor:
    """Cosine of each query with each class's prototype, the normalised mean of its normalised support rows.

    `rounds` > 0 refines the prototypes on the queries, whose labels it does not see (transductive; soft k-means):
    c_k <- normalise( sum_support f + sum_q w_qk q ), w_q = softmax_k(scale cos(q, c_k)). The classes' sizes among the
    queries are not assumed to be equal.

    Args:
        support: (..., ways, shots, d) floating.
        query: (..., m, d).
        rounds: of refinement; 0 is inductive, each query for itself.
        scale: sharpness of the soft assignment, > 0.

    Returns:
        (..., m, ways) in [-1, 1]; the arg max is the prediction.

    Raises:
        ValueError: shapes that do not fit, no floating dtype, NaN or infinite features, options out of range.

    Examples:
        >>> support = torch.tensor([[[1.0, 0.0]], [[0.0, 2.0]]])  # two ways, one shot
        >>> prototype_scores(support, torch.tensor([[3.0, 4.0]])).tolist()
        [[0.6000000238418579, 0.800000011920929]]
    """
    f, q = floating("support", support), floating("query", query)
    if f.ndim < 3 or q.ndim != f.ndim - 1 or f.shape[:-3] != q.shape[:-2] or f.shape[-1] != q.shape[-1]:
        shapes = f"{tuple(q.shape)} and {tuple(f.shape)}"
        raise ValueError(f"query must be (..., m, d) and support (..., ways, shots, d), got {shapes}")
    if rounds < 0:
        raise ValueError(f"rounds must be at least 0, got {rounds}")
    if not 0 < scale < float("inf"):
        raise ValueError(f"scale must be a finite number above 0, got {scale}")
    with full_precision(f):
        unit = F.normalize(q.to(f.dtype), dim=-1)
        total = F.normalize(f, dim=-1).sum(-2)
        centre = F.normalize(total, dim=-1)
        for _ in range(rounds):
            weight = (scale * unit @ centre.mT).softmax(-1)
            centre = F.normalize(total + weight.mT @ unit, dim=-1)
        return finite(unit @ centre.mT, support=f, query=q)


class FewShotAccuracy(NamedTuple):
    """mean +- half_width, the 95 % interval over episodes (Student's t), in percent; nan from one episode.

    `episodes` holds each one's accuracy: for two encoders on the same episodes `paired_interval(a.episodes.numpy(),
    b.episodes.numpy())` is much narrower than both.
    """

    mean: float
    half_width: float
    episodes: Tensor


@torch.no_grad()
def few_shot_accuracy(
    z: Array,
    y: Array,
    ways: int = 5,
    shots: int = 1,
    queries: int = 15,
    episodes: int = 600,
    seed: int = 0,
    classifier: Literal["prototype", "transductive", "logistic"] = "prototype",
) -> FewShotAccuracy:
    """Accuracy in percent over N-way K-shot episodes of features at length 1; defaults are the usual protocol.

    - `prototype`: the class of the nearest prototype by cosine; with one shot, the nearest neighbour.
    - `transductive`: the same after 10 rounds of `prototype_scores` on the episode's queries.
    - `logistic`: multinomial logistic regression on the support (scikit-learn, C = 1), as in RFS (Tian et al. 2020).

    Args:
        z: (n, d) floating, of classes that the encoder was not trained on.
        y: (n,) integers; rows below 0 are left out.
        ways: classes of an episode.
        shots: labelled rows of a class.
        queries: rows of a class to be classified.
        episodes: number of episodes.
        seed: of the episodes.
        classifier: see above.

    Raises:
        ValueError: shapes or dtypes that do not fit; NaN or infinite features; options as in `sample_episodes`; another
            classifier.

    Examples:
        >>> z = torch.tensor([[0.0, 1.0], [0.0, 2.0], [1.0, 0.1], [3.0, 0.0]])
        >>> few_shot_accuracy(z, torch.tensor([0, 0, 1, 1]), ways=2, queries=1, episodes=10)[:2]
        (100.0, 0.0)
    """
    x, labels = features("z", z), integers("y", y)
    if len(labels) != len(x):
        raise ValueError(f"y must have {len(x)} labels, one a row of z, got {len(labels)}")
    if classifier not in ("prototype", "transductive", "logistic"):
        raise ValueError(f"classifier must be 'prototype', 'transductive' or 'logistic', got {classifier!r}")
    support, query = sample_episodes(labels, ways, shots, queries, episodes, seed)
    truth = torch.arange(ways).repeat_interleave(queries)
    shares: list[Tensor] = []
    for first in range(0, episodes, 16):  # a few episodes at a time: 600 copies of their rows need not fit
        at, ask = support[first : first + 16].to(x.device), query[first : first + 16].flatten(1).to(x.device)
        if classifier == "logistic":
            guess = torch.stack([_logistic(x[s], x[q]) for s, q in zip(at, ask, strict=True)])
        else:
            guess = prototype_scores(x[at], x[ask], rounds=10 if classifier == "transductive" else 0).argmax(-1)
        shares.append((guess.cpu() == truth).double().mean(1))
    accuracy = 100 * torch.cat(shares)
    gain, low, _, _ = paired_interval(np.asarray(accuracy, np.float64), 0.0, kind="student-t")
    return FewShotAccuracy(gain, gain - low, accuracy)


def _logistic(support: Tensor, query: Tensor) -> Tensor:
    from sklearn.linear_model import LogisticRegression  # pyright: ignore

    ways, shots, _ = support.shape
    f, q = (np.asarray(F.normalize(v, dim=1).cpu(), np.float64) for v in (support.flatten(0, 1), query))
    model: Any = LogisticRegression(C=1.0, max_iter=1000)
    return torch.as_tensor(model.fit(f, np.arange(ways).repeat(shots)).predict(q))
