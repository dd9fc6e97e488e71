from gen_core.harness.registry import Dataset, Domain

DOMAIN = Domain(
    verbs=("embed", "recommend", "predict"),
    name="toy",
    package="toydomain",
    summary="Rows of numbers, for tests of the harness",
    methods={"auto": "toydomain.auto:Auto", "over": "toydomain.over:Over", "raw": "toydomain.raw:Raw"},
    datasets={
        "rows": Dataset("256 generated rows of 8 numbers in two classes", embedded=True),
        "absent": Dataset("never there", path="absent", how="It cannot be had."),
    },
    demo="auto/rows",
    protocol_default="separation",
    protocol_of={"raw": "width"},
)


def main() -> None:
    from gen_core.harness.cli import run

    run(DOMAIN)
