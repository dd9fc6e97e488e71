"""What gen-rec announces."""

from gen_core.harness.registry import Domain

DOMAIN = Domain(
    name="rec",
    package="gen_rec",
    summary="Adversarial and contrastive models of sequential recommendation",
    engines=("recbole", "pandas"),
)


def main() -> None:
    """Entry point of `gen-rec`."""
    from gen_core.harness.cli import run

    run(DOMAIN)
