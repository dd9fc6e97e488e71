"""Evaluation protocols as pure functions; accuracies are in percent. Each name is loaded when it is first used."""

from importlib import import_module
from typing import TYPE_CHECKING

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
_HOME = {
    "Interval": "stats",
    "few_label": "probe",
    "few_label_split": "probe",
    "iqm": "stats",
    "knn": "cluster",
    "linear_probe": "probe",
    "paired_interval": "stats",
    "softmax_probe": "probe",
}


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
