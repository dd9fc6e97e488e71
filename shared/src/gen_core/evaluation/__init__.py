"""Evaluation protocols as pure functions; accuracies are in percent. Each name is loaded when it is first used."""

from typing import TYPE_CHECKING

from gen_core.lazy import attach

if TYPE_CHECKING:
    from gen_core.evaluation.cluster import knn
    from gen_core.evaluation.probe import few_label, few_label_split, linear_probe, softmax_probe
    from gen_core.evaluation.stats import Interval, iqm, paired_interval

__all__ = [
    "Interval",
    "few_label",
    "few_label_split",
    "iqm",
    "knn",
    "linear_probe",
    "paired_interval",
    "softmax_probe",
]
_STATS = ("Interval", "iqm", "paired_interval")
_HOMES = dict.fromkeys(__all__, "probe") | dict.fromkeys(_STATS, "stats") | {"knn": "cluster"}
__getattr__, __dir__ = attach(__name__, _HOMES)
