"""What `gen-rec` knows by name: dotted paths and one-line texts, no heavy import."""

from gen_core.harness.registry import Dataset, Domain

_LATEST = (
    "Put ml-latest.txt of the repository ACVAE/ACVAE-PyTorch, folder datasets, there: <GEN_DATA>/acvae-ml-latest/"
    "ml-latest.txt."
)
_ML100K = (
    "It ships inside the package recbole, which needs Python 3.11: ray, which it asks for, has no wheels beyond; "
    "elsewhere put RecBole's ml-100k.inter at <GEN_DATA>/ml-100k/ml-100k.inter."
)

DOMAIN = Domain(
    name="rec",
    package="gen_rec",
    summary="Adversarial and contrastive models of sequential recommendation",
    methods={
        "acvae": "gen_rec.methods.acvae:ACVAE",
        "popularity": "gen_rec.methods.baselines:Popularity",
        "transitions": "gen_rec.methods.baselines:ItemTransitions",
        "ease": "gen_rec.methods.baselines:EASE",
    },
    datasets={
        "catalogue": Dataset("generated: 600 users who follow a few of 20 series, 300 items", embedded=True),
        "acvae-ml-latest": Dataset(
            "the ACVAE authors' MovieLens: 604 users, 7,363 items, 45,560 interactions in time order",
            path="acvae-ml-latest/ml-latest.txt",
            how=_LATEST,
        ),
        "acvae-ml-latest-validation": Dataset(
            "the train part of acvae-ml-latest, the last tenth of each user's as its test part: to choose epochs on",
            path="acvae-ml-latest/ml-latest.txt",
            how=_LATEST,
        ),
        "ml-100k": Dataset(
            "MovieLens 100k: 943 users, 1,682 items, 100,000 interactions",
            path="ml-100k/ml-100k.inter",
            how=_ML100K,
            shipped="recbole/dataset_example/ml-100k/ml-100k.inter",
        ),
    },
    demo="acvae/catalogue",
    protocol_default="ranking",
    verbs=("recommend",),
    engines=("recbole", "pandas"),
)


def main() -> None:
    """The command `gen-rec`."""
    from gen_core.harness.cli import run

    run(DOMAIN)
