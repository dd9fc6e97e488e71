"""How runs of gen-rl are evaluated: by the returns of training itself, or by greedy play afterwards."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from gen_core.harness.errors import UsageError

__all__ = ["greedy", "training_return"]

POINTS = 30
"""Points of the learning curve, the same for every seed."""
WINDOW = 0.1
"""Share of the steps whose ended episodes make a point of it."""


def training_return(run: Any, part: float = 0.25) -> dict[str, float]:
    """Mean return of the training episodes that ended in the last `part` of the steps, exploration included.

    Where none did, it is that of the last episode. `episodes` counts those that were averaged; `aux_loss` is the mean
    over the same steps (0.5 = chance, for the paper's loss). The curve has the mean return of the episodes ended in the
    tenth of the steps up to each point.
    """
    steps, episodes = run.model.config.steps, run.model.episodes
    if not episodes:
        raise UsageError(f"no episode ended in {steps} steps, so there is no training return; raise steps")
    run.curves["return over environment steps"] = curve(steps, episodes)
    begin = (1 - part) * steps
    late = [row["return"] for row in episodes if row["step"] > begin] or [episodes[-1]["return"]]
    found = {"return": float(np.mean(late)), "episodes": float(len(late))}
    losses = [row["aux_loss"] for row in run.model.metrics if row["step"] > begin and "aux_loss" in row]
    return found | ({"aux_loss": float(np.mean(losses))} if losses else {})


def curve(steps: int, episodes: list[dict[str, float]]) -> list[tuple[float, float]]:
    """(step, mean return of the episodes ended in the tenth of the steps before), NaN where none did."""
    points: list[tuple[float, float]] = []
    for index in range(1, POINTS + 1):
        end = steps * index / POINTS
        near = [row["return"] for row in episodes if end - WINDOW * steps < row["step"] <= end]
        points.append((end, float(np.mean(near)) if near else math.nan))
    return points


def greedy(run: Any, episodes: int = 10) -> dict[str, float]:
    """Mean and standard deviation of the return of greedy play, no exploration, in environments of further seeds."""
    if episodes < 1:
        raise UsageError(f"episodes = {episodes}: must be at least 1")
    returns: list[float] = []
    env = run.data.make()
    for episode in range(episodes):
        observation, _ = env.reset(seed=10_000 * (run.seed + 1) + episode)
        total, ended = 0.0, False
        while not ended:
            observation, reward, terminated, truncated, _ = env.step(int(run.model.predict(observation)))
            total, ended = total + float(reward), terminated or truncated
        returns.append(total)
    env.close()
    return {"greedy_return": float(np.mean(returns)), "greedy_return_std": float(np.std(returns))}


def figures(run: Any, folder: Path) -> None:
    """`return.png`: the return of the training episodes over steps."""
    from gen_core.harness.report import curves

    points = [(int(row["step"]), row["return"]) for row in run.model.episodes]
    if points:
        curves({"return": points}, folder / "return.png", "return of the training episodes")
