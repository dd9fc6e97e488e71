import os
import signal

from gen_core.harness.errors import LabelsMissing

__all__ = ["separation", "width"]


def width(run):
    """How many columns an embedding has."""
    return {"width": float(run.model.embed(run.data).shape[1])}


def separation(run, scale=1.0):
    """Distance of the two class means in units of the pooled spread, times `scale`."""
    if os.environ.get("TOY_KILL") == "evaluation":
        os.kill(os.getpid(), signal.SIGKILL)
    if os.environ.get("TOY_KILL_CELL") == f"{type(run.model).__name__} {run.seed}":
        os.kill(os.getpid(), signal.SIGKILL)
    if run.data.labels is None:
        raise LabelsMissing("the data has no labels; protocol separation needs them")
    z, y = run.model.embed(run.data), run.data.labels
    gap = (z[y == 1].mean(0) - z[y == 0].mean(0)).norm()
    means = z.mean(1)  # of no meaning but to be paired
    run.samples["separation"] = (means - means.mean()).tolist()
    run.curves["separation over epochs"] = [(0.0, 1.0 + run.seed), (1.0, float(gap))]
    return {"separation": float(scale * gap / z.std()), "width": float(z.shape[1])}


def figures(run, folder):
    from gen_core.harness.report import embedding_map

    embedding_map(run.model.embed(run.data), run.data.labels, (), folder / "embedding.png")
