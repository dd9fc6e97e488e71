"""What gen-zsl announces."""

from gen_core.harness.registry import Domain

DOMAIN = Domain(
    name="zsl",
    package="gen_zsl",
    summary="Generative and contrastive zero-shot learning",
    engines=(),
)


def main() -> None:
    """Entry point of `gen-zsl`."""
    from gen_core.harness.cli import run

    run(DOMAIN)
