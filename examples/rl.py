"""RCRL in stable-baselines3's own terms: DQN with a contrastive auxiliary loss, on CartPole with noise of no use in it.

python examples/rl.py
"""

import gymnasium
import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

from gen_rl.environments import NoisyVector
from gen_rl.sb3 import RCRLDQN


def noisy_cartpole(seed: int) -> gymnasium.Env:
    env = Monitor(NoisyVector(gymnasium.make("CartPole-v1"), count=8))
    env.reset(seed=seed)
    return env


class Watch(BaseCallback):
    """SB3's callbacks see the auxiliary loss in its log."""

    def __init__(self) -> None:
        super().__init__()
        self.losses: list[float] = []

    def _on_step(self) -> bool:
        loss = self.logger.name_to_value.get("train/aux_loss")
        if loss is not None:
            self.losses.append(float(loss))
        return True


def main(steps: int = 2000) -> tuple[float, float]:
    """Mean return of ten greedy episodes: before and after training."""
    agent = RCRLDQN(
        "MlpPolicy",
        noisy_cartpole(0),
        threshold=10,  # a segment is ten steps here, since each gives a reward of 1
        aux_coef=0.5,  # 0 is the same network as plain DQN
        double_q=True,
        learning_rate=1e-3,
        buffer_size=10_000,
        gamma=0.97,
        train_freq=1,
        target_update_interval=200,
        exploration_fraction=0.3,
        seed=0,
        device="cpu",
    )
    before, _ = evaluate_policy(agent, noisy_cartpole(1), n_eval_episodes=10)
    watch = Watch()
    agent.learn(steps, callback=watch)
    after, _ = evaluate_policy(agent, noisy_cartpole(1), n_eval_episodes=10)
    first, last = np.mean(watch.losses[:200]), np.mean(watch.losses[-200:])
    print(f"return of greedy play: {before:.1f} before, {after:.1f} after {steps} steps")
    print(f"auxiliary loss: {first:.3f} at first, {last:.3f} at last (0.5 is chance)")
    return float(before), float(after)


if __name__ == "__main__":
    main()
