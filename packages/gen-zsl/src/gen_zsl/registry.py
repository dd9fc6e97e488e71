"""What `gen-zsl` knows by name: dotted paths and one-line texts, no heavy import."""

from gen_core.harness.registry import Dataset, Domain

_XLSA17 = (
    "From the public archive xlsa17 of Xian et al., folder data/{name}: put its res101.mat (ResNet-101 features) and "
    "{semantics}_splits.mat into <GEN_DATA>/xlsa17/data/{name}."
)
_CIFAR = (
    "Put the folder {name} (efflite0.mat, att_splits.mat) there; it was made for this project, there is no download."
)


def _xlsa17(name: str, semantics: str, summary: str) -> Dataset:
    how = _XLSA17.format(name=name, semantics=semantics)
    return Dataset(summary, path=f"xlsa17/data/{name}/res101.mat", how=how)


def _cifar(name: str, summary: str) -> Dataset:
    return Dataset(summary, path=f"{name}/efflite0.mat", how=_CIFAR.format(name=name))


DOMAIN = Domain(
    name="zsl",
    package="gen_zsl",
    summary="Generative and contrastive zero-shot learning",
    methods={
        "ce-gzsl": "gen_zsl.methods.ce_gzsl:CEGZSL",
        "f-clswgan": "gen_zsl.methods.f_clswgan:FCLSWGAN",
        "ridge": "gen_zsl.methods.ridge:RidgePrototypes",
    },
    datasets={
        "digits": Dataset(
            "two-digit numbers of scikit-learn's digits, attributes of strokes, 80 seen, 20 unseen", embedded=True
        ),
        "cifar100-zsl": _cifar("cifar100_zsl", "CIFAR-100, EfficientNet features (1,280), 80 seen, 20 unseen classes"),
        "cifar100-zsl-reduced": _cifar("cifar100_zsl", "the same: 256 features of largest variance, attributes PCA-64"),
        "cifar-awa": _cifar("cifar_awa", "20 AwA2 classes found in CIFAR-100, AwA2's 85 attributes, 15 seen, 5 unseen"),
        "awa1": _xlsa17("AWA1", "att", "AWA1: 30,475 images, ResNet-101 features, 85 attributes, 40 seen, 10 unseen"),
        "awa2": _xlsa17("AWA2", "att", "AWA2: 37,322 images, ResNet-101 features, 85 attributes, 40 seen, 10 unseen"),
        "cub": _xlsa17("CUB", "sent", "CUB: 11,788 images, ResNet-101 features, 1,024-d texts, 150 seen, 50 unseen"),
        "flo": _xlsa17("FLO", "att", "FLO: 8,189 images, ResNet-101 features, 1,024-d texts, 82 seen, 20 unseen"),
        "sun": _xlsa17("SUN", "att", "SUN: 14,340 images, ResNet-101 features, 102 attributes, 645 seen, 72 unseen"),
    },
    demo="ce-gzsl/digits",
    protocol_default="gzsl",
    data_options={
        "semantics": "Of your own folder: reads SEMANTICS_splits.mat (default: att, or the only one there).",
    },
    verbs=("embed", "predict"),
)


def main() -> None:
    """The command `gen-zsl`."""
    from gen_core.harness.cli import run

    run(DOMAIN)
