"""What `gen-rl` knows by name: dotted paths and one-line texts, no heavy import."""

from gen_core.harness.registry import Dataset, Domain

DOMAIN = Domain(
    name="rl",
    package="gen_rl",
    summary="Return-based contrastive representation learning for reinforcement learning",
    methods={"rcrl": "gen_rl.methods.rcrl:RCRL"},
    datasets={
        "cartpole": Dataset("CartPole-v1: 4 numbers, 2 actions, reward 1 a step, up to 500", embedded=True),
        "cartpole-noise": Dataset("CartPole-v1 with 32 dimensions of N(0, 1) noise in the observation", embedded=True),
        "catch": Dataset("Catch on a 10 x 7 board, 3 actions, one reward of 1 or -1 at the end", embedded=True),
        "pellets": Dataset("pellets on a 6 x 6 grid, 4 actions, 60 steps, reward 1 a pellet", embedded=True),
    },
    demo="rcrl/cartpole",
    protocol_default="training-return",
    engines=("gymnasium", "stable-baselines3", "ale-py", "dm-control", "mujoco"),
    claim_seeds=40,
    interval="iqm",
)


def main() -> None:
    """The command `gen-rl`."""
    from gen_core.harness.cli import run

    run(DOMAIN)
