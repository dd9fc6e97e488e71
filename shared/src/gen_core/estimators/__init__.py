"""Bounds of mutual information, density ratios, critics that give scores. Each name is loaded when it is first used."""

from typing import TYPE_CHECKING

from gen_core.lazy import attach

if TYPE_CHECKING:
    from gen_core.estimators.bounds import (
        BOUNDS,
        Match,
        Pairs,
        dv,
        infonce,
        interpolated,
        jsd,
        nats_to_bits,
        nce,
        nwj,
        smile,
        tuba,
    )
    from gen_core.estimators.critics import (
        Bilinear,
        Concat,
        Separable,
        bilinear,
        separable,
    )
    from gen_core.estimators.density_ratio import (
        DensityRatio,
        effective_sample_size,
        langevin,
        log_partition,
        permute_dims,
        permute_nearest,
        permute_within,
        sir,
    )
    from gen_core.estimators.mutual_information import (
        MINE,
        Estimate,
        MutualInformation,
    )
    from gen_core.estimators.upper import (
        GaussianConditional,
        club,
        l1out,
    )

__all__ = [
    "BOUNDS",
    "MINE",
    "Bilinear",
    "Concat",
    "DensityRatio",
    "Estimate",
    "GaussianConditional",
    "Match",
    "MutualInformation",
    "Pairs",
    "Separable",
    "bilinear",
    "club",
    "dv",
    "effective_sample_size",
    "infonce",
    "interpolated",
    "jsd",
    "l1out",
    "langevin",
    "log_partition",
    "nats_to_bits",
    "nce",
    "nwj",
    "permute_dims",
    "permute_nearest",
    "permute_within",
    "separable",
    "sir",
    "smile",
    "tuba",
]
_HOMES = {
    "bounds": [
        "BOUNDS",
        "Match",
        "Pairs",
        "dv",
        "infonce",
        "interpolated",
        "jsd",
        "nats_to_bits",
        "nce",
        "nwj",
        "smile",
        "tuba",
    ],
    "critics": ["Bilinear", "Concat", "Separable", "bilinear", "separable"],
    "density_ratio": [
        "DensityRatio",
        "effective_sample_size",
        "langevin",
        "log_partition",
        "permute_dims",
        "permute_nearest",
        "permute_within",
        "sir",
    ],
    "mutual_information": ["Estimate", "MINE", "MutualInformation"],
    "upper": ["GaussianConditional", "club", "l1out"],
}
__getattr__, __dir__ = attach(__name__, {name: home for home, names in _HOMES.items() for name in names})
