"""Which nodes and graphs are fitted on, chosen by and tested on: functions of data and seed, the same for all arms."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch_geometric.data import Data

from gen_core.harness.errors import LabelsMissing, UsageError
from gen_graph.graphset import GraphSet


@dataclass(frozen=True)
class Rule:
    """A random split that a data set comes with (`data.split_rule`): `train` nodes of each class, then the others."""

    train: int = 20
    """Training nodes a class."""
    val_per_class: int = 0
    """Validation nodes a class; 0: `val` nodes of any class."""
    val: int = 0
    test: int | None = None
    """Test nodes; None: the rest."""


def labels(data: Data) -> Tensor:
    """y, (n,) int64."""
    if not isinstance(data.y, Tensor):
        raise LabelsMissing("labels are needed: give y in the .npz, or labels=FILE.npy beside an edge list")
    return data.y


def nodes(data: Data, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Indices of the labelled nodes to fit, to choose and to test by; the middle one may be empty.

    The data's own masks where it has them; else its `split_rule`, drawn by the seed; else 10 % (at least one node) of
    each class to fit, 10 % to choose by, the rest to test, drawn by the seed. Nodes labelled -1 are in none.
    """
    y = labels(data)
    if "train_mask" in data and "test_mask" in data:
        names = ("train_mask", "val_mask", "test_mask")
        masks = [data[name] & (y >= 0) if name in data else torch.zeros_like(y, dtype=torch.bool) for name in names]
        train, val, test = (mask.nonzero()[:, 0] for mask in masks)
        return train, val, test
    rule: Rule | None = data.split_rule if "split_rule" in data else None
    generator = torch.Generator().manual_seed(seed)
    parts: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
    for kind in y[y >= 0].unique():
        rows = (y == kind).nonzero()[:, 0]
        rows = rows[torch.randperm(len(rows), generator=generator)]
        first = rule.train if rule else max(1, round(0.1 * len(rows)))
        second = first + (rule.val_per_class if rule else round(0.1 * len(rows)))
        for part, chosen in zip(parts, (rows[:first], rows[first:second], rows[second:]), strict=True):
            part.append(chosen)
    train, val, test = (torch.cat([y[:0], *part]) for part in parts)
    if rule and rule.test is not None:
        rest = test[torch.randperm(len(test), generator=generator)]
        val, test = rest[: rule.val], rest[rule.val : rule.val + rule.test]
    return train, val, test


def graphs(
    data: GraphSet, seed: int, labelled: int, validation: int | float, test: int | float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A semi-supervised split of a set of graphs, drawn by the seed: labelled, pool, validation and test graphs.

    Test graphs are drawn first, then validation graphs, then the labelled ones, all among graphs that have a label (a
    class from 0 on, a finite target); validation and test as numbers, or as shares (floats below 1) of these. The
    pool, what may be trained on without labels, is every graph that is in neither of the two: it holds the labelled.

    Raises:
        LabelsMissing: no y.
        UsageError: fewer graphs with a label than asked for.
    """
    if data.y is None:
        raise LabelsMissing("labels are needed: a class or a float target for each graph (y)")
    known = (data.y.isfinite() if data.y.is_floating_point() else data.y >= 0).cpu()
    rows = known.nonzero()[:, 0]
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))]
    tested, chosen = (round(part * len(rows)) if isinstance(part, float) else part for part in (test, validation))
    if min(tested, chosen) < 1 or tested + chosen + labelled > len(rows):
        raise UsageError(
            f"labelled = {labelled}, validation = {validation}, test = {test}: {labelled} + {chosen} + {tested} "
            f"graphs, but {len(rows)} have a label; each part needs at least 1"
        )
    pool = torch.ones(len(known), dtype=torch.bool)
    pool[rows[: tested + chosen]] = False
    end = tested + chosen
    return rows[end : end + labelled], pool.nonzero()[:, 0], rows[tested:end], rows[:tested]
