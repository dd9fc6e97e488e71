"""What gen-rl announces."""

from gen_core.harness.registry import Domain

DOMAIN = Domain(
    name="rl",
    package="gen_rl",
    summary="Return-based contrastive representation learning for reinforcement learning",
    engines=("gymnasium", "stable-baselines3", "ale-py", "dm-control", "mujoco"),
    claim_seeds=40,
    interval="iqm",
)


def main() -> None:
    """Entry point of `gen-rl`."""
    from gen_core.harness.cli import run

    run(DOMAIN)
