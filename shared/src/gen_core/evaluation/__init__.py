"""Evaluation protocols as pure functions; accuracies are in percent. Each name is loaded when it is first used."""

from typing import TYPE_CHECKING

from gen_core.lazy import attach

if TYPE_CHECKING:
    from gen_core.evaluation.cluster import (
        ClusteringScores,
        clustering_scores,
        kmeans_scores,
        knn,
    )
    from gen_core.evaluation.disentangle import (
        DCI,
        Disentanglement,
        GroupScore,
        beta_vae_score,
        dci,
        factor_vae_score,
        importance_scores,
        information_table,
        med,
        mig,
        sap,
        sap_svm,
    )
    from gen_core.evaluation.few_shot import (
        FewShotAccuracy,
        few_shot_accuracy,
        prototype_scores,
        sample_episodes,
    )
    from gen_core.evaluation.frechet import (
        KernelDistance,
        ManifoldScores,
        frechet_distance,
        frechet_features,
        frechet_floor,
        kid,
        manifold_scores,
    )
    from gen_core.evaluation.gzsl import (
        gzsl_accuracy,
        per_class_accuracy,
    )
    from gen_core.evaluation.latent import active_units, latent_information
    from gen_core.evaluation.ood import (
        OODMetrics,
        energy_score,
        knn_score,
        mahalanobis_score,
        msp_score,
        ood_metrics,
    )
    from gen_core.evaluation.probe import (
        few_label,
        few_label_split,
        linear_probe,
        softmax_probe,
        svm_folds,
    )
    from gen_core.evaluation.ranking import (
        ranking_metrics,
        top_k,
    )
    from gen_core.evaluation.stats import (
        Interval,
        iqm,
        paired_interval,
    )

__all__ = [
    "DCI",
    "ClusteringScores",
    "Disentanglement",
    "FewShotAccuracy",
    "GroupScore",
    "Interval",
    "KernelDistance",
    "ManifoldScores",
    "OODMetrics",
    "active_units",
    "beta_vae_score",
    "clustering_scores",
    "dci",
    "energy_score",
    "factor_vae_score",
    "few_label",
    "few_label_split",
    "few_shot_accuracy",
    "frechet_distance",
    "frechet_features",
    "frechet_floor",
    "gzsl_accuracy",
    "importance_scores",
    "information_table",
    "iqm",
    "kid",
    "kmeans_scores",
    "knn",
    "knn_score",
    "latent_information",
    "linear_probe",
    "mahalanobis_score",
    "manifold_scores",
    "med",
    "mig",
    "msp_score",
    "ood_metrics",
    "paired_interval",
    "per_class_accuracy",
    "prototype_scores",
    "ranking_metrics",
    "sample_episodes",
    "sap",
    "sap_svm",
    "softmax_probe",
    "svm_folds",
    "top_k",
]
_HOMES = {
    "cluster": [
        "ClusteringScores",
        "clustering_scores",
        "kmeans_scores",
        "knn",
    ],
    "disentangle": [
        "DCI",
        "Disentanglement",
        "GroupScore",
        "beta_vae_score",
        "dci",
        "factor_vae_score",
        "importance_scores",
        "information_table",
        "med",
        "mig",
        "sap",
        "sap_svm",
    ],
    "few_shot": [
        "FewShotAccuracy",
        "few_shot_accuracy",
        "prototype_scores",
        "sample_episodes",
    ],
    "frechet": [
        "KernelDistance",
        "ManifoldScores",
        "frechet_distance",
        "frechet_floor",
        "frechet_features",
        "kid",
        "manifold_scores",
    ],
    "gzsl": [
        "gzsl_accuracy",
        "per_class_accuracy",
    ],
    "latent": [
        "active_units",
        "latent_information",
    ],
    "ood": [
        "OODMetrics",
        "energy_score",
        "knn_score",
        "mahalanobis_score",
        "msp_score",
        "ood_metrics",
    ],
    "probe": [
        "few_label",
        "few_label_split",
        "linear_probe",
        "softmax_probe",
        "svm_folds",
    ],
    "ranking": [
        "ranking_metrics",
        "top_k",
    ],
    "stats": [
        "Interval",
        "iqm",
        "paired_interval",
    ],
}
__getattr__, __dir__ = attach(__name__, {name: home for home, names in _HOMES.items() for name in names})
