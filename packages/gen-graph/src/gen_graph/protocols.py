"""How graph methods are evaluated. A protocol sees a fitted run and returns numbers by name."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Data

from gen_core.harness.errors import LabelsMissing, UsageError
from gen_graph import splits
from gen_graph.graphset import GraphSet

__all__ = ["accuracy", "held_out", "linear", "svm"]


def linear(run: Any, runs: int = 50) -> dict[str, float]:
    """DGI's probe on frozen embeddings: `runs` logistic regressions (Adam 0.01, 100 full-batch steps, Xavier start).

    They are fitted and tested on the nodes that `splits.nodes` says (the data's masks; else by the run's seed).
    Returns mean and standard deviation over the starts, in percent. A set of graphs goes to `svm`.
    """
    from gen_core.evaluation.probe import softmax_probe

    if not isinstance(run.data, Data):
        return svm(run)
    train, test = probed(run.data, run.seed)
    z, y = run.model.embed(run.data), splits.labels(run.data)
    found = softmax_probe(z[train], y[train], z[test], y[test], runs=runs, seed=run.seed)
    return {"accuracy": float(found.mean()), "accuracy_std": float(found.std(correction=0))}


def probed(data: Data, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of the nodes to fit and to test a probe on; two classes and a test node at least."""
    train, _, test = splits.nodes(data, seed)
    kinds = len(splits.labels(data)[train].unique())
    if kinds < 2 or not len(test):
        raise UsageError(
            f"the linear probe needs two classes to fit and a node to test; got {kinds} classes on "
            f"{len(train)} training nodes, {len(test)} test nodes"
        )
    return train, test


def svm(run: Any, folds: int = 10) -> dict[str, float]:
    """Linear SVM on the frozen embeddings of all graphs: mean accuracy over stratified folds, in percent.

    The folds are the same for every run; C is chosen inside each fold's training part. `accuracy_std` is the standard
    deviation over the folds.
    """
    from gen_core.evaluation.probe import svm_folds

    graphs = GraphSet.of(run.data)
    if graphs.y is None or graphs.y.is_floating_point():
        raise LabelsMissing("the SVM needs a class for each graph: give <name>_graph_labels.txt")
    rows = (graphs.y >= 0).nonzero()[:, 0]
    found = svm_folds(run.model.embed(graphs)[rows], graphs.y[rows], folds=folds)
    return {"accuracy": float(found.mean()), "accuracy_std": float(found.std(correction=0))}


def accuracy(run: Any) -> dict[str, float]:
    """The share of test nodes whose class the method itself predicts, in percent; which nodes: `splits.nodes`."""
    test = splits.nodes(run.data, run.seed)[2]
    guess = torch.as_tensor(run.model.predict(run.data)["class"])
    return {"accuracy": 100 * float((guess[test] == run.data.y[test]).double().mean())}


def held_out(run: Any) -> dict[str, float]:
    """A method's own prediction for the graphs that its `split` by the run's seed keeps for testing.

    Classes: accuracy in percent. Float targets: mean absolute and root mean squared error, in their units.
    """
    graphs = GraphSet.of(run.data)
    graphs = graphs.select(run.model.split(graphs, run.seed)[-1])
    found, y = run.model.predict(graphs), graphs.y
    assert y is not None  # or there is no split
    if "class" in found:
        return {"accuracy": 100 * float((torch.as_tensor(found["class"]) == y).double().mean())}
    error = torch.as_tensor(found["value"]) - y
    return {"mae": float(error.abs().mean()), "rmse": float(error.square().mean().sqrt())}


def figures(run: Any, folder: Path) -> None:
    """`embedding.png`: t-SNE of the embeddings, coloured by class where there are labels."""
    from gen_core.harness.report import embedding_map

    y = run.data.y
    z = run.model.embed(run.data)
    classes = None if y is None or y.is_floating_point() else y.numpy()
    embedding_map(z.numpy(), classes, (), folder / "embedding.png")
