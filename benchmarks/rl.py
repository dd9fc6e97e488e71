"""What RCRL costs on CartPole with 32 dimensions of noise, at the settings of the recorded run.

    python benchmarks/rl.py            prints a table; one thread, both sides of a ratio alternate in one process

update: one call of `train` with one batch of 32, aux_coef 0.5 against aux_coef 0 on the same networks (goal <= 1.35).
collection: random play into the buffer, no updates, SegmentReplayBuffer against SB3's ReplayBuffer (goal <= 1.15).
learning: a whole step with its update.
Times are processor time of this thread, so that other work on the machine disturbs them less.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from stable_baselines3 import DQN
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.logger import configure

from gen_rl.data import load
from gen_rl.sb3 import RCRLDQN, StateActionPolicy

NEVER = 1_000_000
OPTIONS: dict[str, Any] = {
    "learning_rate": 1e-3,
    "buffer_size": 10_000,
    "gamma": 0.97,
    "train_freq": 1,
    "target_update_interval": 200,
    "seed": 0,
    "device": "cpu",
}


def agent(aux_coef: float, warm: int, **more: Any) -> RCRLDQN:
    """An agent whose buffer holds `warm` steps of random play."""
    env = load("cartpole-noise").vec(1, 0)
    options = OPTIONS | {"learning_starts": NEVER} | more
    made = RCRLDQN("MlpPolicy", env, aux_coef=aux_coef, threshold=10.0, double_q=True, **options)
    made.learn(warm)
    made.set_logger(configure(None, []))
    return made


def alternate(sides: Mapping[str, Callable[[], None]], rounds: int, each: int) -> dict[str, float]:
    """Median microseconds of each side; the sides take turns, `each` calls a turn; a tenth of the turns is warm-up."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, act in sides.items():
            start = time.thread_time()
            for _ in range(each):
                act()
            times[name].append(1e6 * (time.thread_time() - start) / each)
    return {name: statistics.median(found[rounds // 10 :]) for name, found in times.items()}


def collection(kind: type[ReplayBuffer]) -> Callable[[], None]:
    """200 steps of random play; SB3's own DQN around either buffer."""
    options = OPTIONS | {"learning_starts": NEVER}
    own = {"threshold": 10.0, "seed": 0} if kind is not ReplayBuffer else {}
    env = load("cartpole-noise").vec(1, 0)
    made = DQN(StateActionPolicy, env, replay_buffer_class=kind, replay_buffer_kwargs=own, **options)
    made.learn(200)
    return lambda: void(made.learn(200, reset_num_timesteps=False))


def learning(made: RCRLDQN) -> Callable[[], None]:
    """50 steps, each with its update."""
    return lambda: void(made.learn(50, reset_num_timesteps=False))


def void(_: Any) -> None:
    """Sides return nothing."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=80)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    host, ours = agent(0.0, 2000), agent(0.5, 2000)
    sides = {"host": lambda: host.train(1, 32), "rcrl": lambda: ours.train(1, 32)}
    update = alternate(sides, rounds, 20)
    bare, kept = collection(ReplayBuffer), collection(type(ours.replay_buffer))
    steps = {name: micro / 200 for name, micro in alternate({"plain": bare, "segments": kept}, rounds, 1).items()}
    learners = {name: agent(c, 200, learning_starts=100) for name, c in (("host", 0.0), ("rcrl", 0.5))}
    turns = {name: learning(made) for name, made in learners.items()}
    whole = {name: micro / 50 for name, micro in alternate(turns, rounds // 2, 1).items()}
    print(f"{'microseconds':22} {'without':>9} {'with':>9} {'ratio':>6} {'goal':>6}")
    print(f"{'update':22} {update['host']:9.0f} {update['rcrl']:9.0f} {update['rcrl'] / update['host']:6.2f}   1.35")
    ratio = steps["segments"] / steps["plain"]
    print(f"{'a step of collection':22} {steps['plain']:9.1f} {steps['segments']:9.1f} {ratio:6.2f}   1.15")
    print(f"{'a step of learning':22} {whole['host']:9.0f} {whole['rcrl']:9.0f} {whole['rcrl'] / whole['host']:6.2f}")
    print(f"environment steps a second: {1e6 / whole['rcrl']:.0f} learning, {1e6 / steps['segments']:.0f} collecting")


if __name__ == "__main__":
    main()
