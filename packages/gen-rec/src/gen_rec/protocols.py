"""How recommenders are evaluated. A protocol sees a fitted run and returns numbers by name."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gen_core.harness.errors import UsageError
from gen_rec.recommender import per_user

__all__ = ["ranking"]
CUTS = (5, 10, 20)


def ranking(run: Any, ks: Sequence[int] = CUTS) -> dict[str, float]:
    """Recall, NDCG and MRR at each k, in percent, means over the users who have a test part.

    All items are ranked by their score after a user's train part; the items of that part and the padding are left out.
    Equal scores: the item with the lower number first. `run.samples` holds each user's recall at the largest k. A run
    that chose its length by `patience` adds `epochs`, the length it chose.
    """
    found = per_user(run.model, run.data, ks)
    if not found:
        raise UsageError("ranking needs a test part, and no user of the data has one")
    samples = f"recall@{max(ks)}"
    run.samples[samples] = (100 * found[samples]).tolist()
    metrics = {name: 100 * values.mean().item() for name, values in found.items()}
    if getattr(run.model.config, "patience", 0):
        metrics["epochs"] = float(run.model.best_epoch)
    return metrics


def figures(run: Any, folder: Path) -> None:
    """`metrics.png`: recall, NDCG and MRR at each cut."""
    from gen_core.harness.report import bars

    found = ranking(run)
    series = {kind: {f"@{k}": found[f"{kind}@{k}"] for k in CUTS} for kind in ("recall", "ndcg", "mrr")}
    bars(series, folder / "metrics.png", "%")
