"""How graph methods are evaluated. A protocol sees a fitted run and returns numbers by name."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Data

from gen_core.evaluation.probe import softmax_probe
from gen_core.harness.errors import LabelsMissing, UsageError

__all__ = ["linear"]


def linear(run: Any, runs: int = 50) -> dict[str, float]:
    """DGI's probe on frozen embeddings: `runs` logistic regressions (Adam 0.01, 100 full-batch steps, Xavier start).

    They are fitted on `train_mask` and tested on `test_mask`; data with labels and without masks is split by the run's
    seed, class by class, into 10 % for fitting (at least one node a class) and 90 % for testing. Nodes labelled -1 are
    left out. Returns mean and standard deviation over the starts, in percent.
    """
    train, test = split(run.data, run.seed)
    z, y = run.model.embed(run.data), run.data.y
    found = softmax_probe(z[train], y[train], z[test], y[test], runs=runs, seed=run.seed)
    return {"accuracy": float(found.mean()), "accuracy_std": float(found.std(correction=0))}


def split(data: Data, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of the nodes to fit and to test a probe on; the data's own masks where it has them."""
    y = data.y
    if not isinstance(y, Tensor):
        raise LabelsMissing("the linear probe needs labels: give y in the .npz, or labels=FILE.npy beside an edge list")
    if "train_mask" in data and "test_mask" in data:
        train, test = ((data[name] & (y >= 0)).nonzero()[:, 0] for name in ("train_mask", "test_mask"))
    else:
        generator = torch.Generator().manual_seed(seed)
        parts: list[tuple[Tensor, Tensor]] = []
        for kind in y[y >= 0].unique():
            rows = (y == kind).nonzero()[:, 0]
            rows = rows[torch.randperm(len(rows), generator=generator)]
            cut = max(1, round(0.1 * len(rows)))
            parts.append((rows[:cut], rows[cut:]))
        train, test = (torch.cat([y[:0], *(part[side] for part in parts)]) for side in (0, 1))
    if len(y[train].unique()) < 2 or not len(test):
        raise UsageError(
            f"the linear probe needs two classes to fit and a node to test; got {len(y[train].unique())} classes on "
            f"{len(train)} training nodes, {len(test)} test nodes"
        )
    return train, test


def figures(run: Any, folder: Path) -> None:
    """`embedding.png`: t-SNE of the embeddings, coloured by class where there are labels."""
    from gen_core.harness.report import embedding_map

    y = run.data.y
    z = run.model.embed(run.data)
    embedding_map(z.numpy(), None if y is None else y.numpy(), (), folder / "embedding.png")
