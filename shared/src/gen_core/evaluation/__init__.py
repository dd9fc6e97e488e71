"""Evaluation protocols as pure functions; accuracies are in percent. Each name is loaded when it is first used."""

from typing import TYPE_CHECKING

from gen_core.lazy import attach

if TYPE_CHECKING:
    from gen_core.evaluation.cluster import knn
    from gen_core.evaluation.gzsl import gzsl_accuracy, per_class_accuracy
    from gen_core.evaluation.probe import few_label, few_label_split, linear_probe, softmax_probe
    from gen_core.evaluation.ranking import ranking_metrics, top_k
    from gen_core.evaluation.stats import Interval, iqm, paired_interval

__all__ = [
    "Interval",
    "few_label",
    "few_label_split",
    "gzsl_accuracy",
    "iqm",
    "knn",
    "linear_probe",
    "paired_interval",
    "per_class_accuracy",
    "ranking_metrics",
    "softmax_probe",
    "top_k",
]
_HOMES = {
    "cluster": ("knn",),
    "gzsl": ("gzsl_accuracy", "per_class_accuracy"),
    "probe": ("few_label", "few_label_split", "linear_probe", "softmax_probe"),
    "ranking": ("ranking_metrics", "top_k"),
    "stats": ("Interval", "iqm", "paired_interval"),
}
__getattr__, __dir__ = attach(__name__, {name: home for home, names in _HOMES.items() for name in names})
