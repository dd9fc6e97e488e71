"""What a training leaves while it runs: ended episodes, losses, checkpoints, a logger's files, a line on the screen."""

import csv
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from stable_baselines3.common.callbacks import BaseCallback

from gen_core.harness.errors import UsageError, nearest
from gen_core.harness.runs import METRICS
from gen_rl import state

if TYPE_CHECKING:
    from gen_rl.methods.rcrl import RCRL

EPISODES = "episodes.jsonl"
LOGGERS = ("none", "tensorboard", "csv")
EVERY = 100
"""Steps to a line of metrics."""
Rows = list[dict[str, float]]


def kept(path: Path, until: float = float("inf")) -> Rows:
    """The whole lines of a log up to that step."""
    lines = path.read_text().splitlines() if path.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("}")]
    return [row for row in rows if row["step"] <= until]


def write(path: Path, rows: Rows) -> None:
    """Write a log anew, whole or not at all."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
    temporary.replace(path)


def _append(path: Path, row: dict[str, float]) -> None:
    with path.open("a") as file:  # opened for each line: it survives a kill
        file.write(json.dumps(row) + "\n")


class Diary(BaseCallback):
    """Keeps `episodes` and `metrics` of a model, and with a folder the same on disk with checkpoints."""

    def __init__(self, owner: "RCRL", agent: Any, out: Path | None, logger: str, progress: bool) -> None:
        super().__init__()
        if logger not in LOGGERS:
            raise UsageError(nearest(logger, LOGGERS, "logger of gen-rl"))
        self.owner, self.out, self.kind = owner, out, logger
        self.saved = self.noted = done = agent.num_timesteps
        owner.episodes, owner.metrics = [], []
        if out:  # what a killed run wrote after its last checkpoint will come again
            owner.episodes, owner.metrics = (kept(out / name, done) for name in (EPISODES, METRICS))
            write(out / EPISODES, owner.episodes)
            write(out / METRICS, owner.metrics)
        self.updates, self.sums, self.count = agent._n_updates, dict[str, float](), 0
        self.events: Any = None
        if out and logger == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter

            self.events = SummaryWriter(str(out / "tensorboard"), purge_step=done + 1 if done else None, flush_secs=10)
        self.screen = _Screen(owner.config.steps, done) if progress else None

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            if "episode" in info:
                found = info["episode"]
                row = {"step": self.num_timesteps, "return": float(found["r"]), "length": int(found["l"])}
                self.owner.episodes.append(row)
                if self.out:
                    _append(self.out / EPISODES, row)
                if self.events:
                    self.events.add_scalar("return", row["return"], row["step"])
        return True

    def _on_rollout_start(self) -> None:
        """After an update and before the next step: the one place where everything is consistent."""
        if self.model._n_updates > self.updates:
            values, self.updates = self.logger.name_to_value, self.model._n_updates
            for name in ("loss", "td_loss", "aux_loss"):
                if f"train/{name}" in values:
                    self.sums[name] = self.sums.get(name, 0.0) + float(values[f"train/{name}"])
            self.count += 1
        step = self.model.num_timesteps
        if step // EVERY > self.noted // EVERY:
            self._note(step)
        if self.out and step - self.saved >= self.owner.config.save_every:
            self._note(step)  # so that no sum has to be saved
            state.save(self.model, self.out / "checkpoints")
            self.saved = step

    def _on_training_end(self) -> None:
        self._on_rollout_start()
        self._note(self.model.num_timesteps)
        if self.screen:
            self.screen.show(self.owner, self.model.num_timesteps, last=True)

    def _note(self, step: int) -> None:
        """A line with the means since the last one."""
        if self.count:
            row: dict[str, float] = {"step": step, **{name: total / self.count for name, total in self.sums.items()}}
            row["epsilon"] = float(self.model.exploration_rate)  # pyright: ignore[reportAttributeAccessIssue]
            self.owner.metrics.append(row)
            if self.out:
                _append(self.out / METRICS, row)
            if self.events:
                for name in row.keys() - {"step"}:
                    self.events.add_scalar(name, row[name], step)
            if self.out and self.kind == "csv":
                _write_csv(self.out / "csv" / "metrics.csv", self.owner.metrics)
        self.sums, self.count, self.noted = {}, 0, step
        if self.screen:
            self.screen.show(self.owner, step)

    def close(self) -> None:
        if self.events:
            self.events.close()
        if self.screen:
            self.screen.close()


def _write_csv(path: Path, rows: Rows) -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(rows)


class _Screen:
    """A progress bar on a terminal, at most one plain line in five seconds elsewhere; on stderr."""

    def __init__(self, total: int, done: int) -> None:
        self.total, self.progress, self.printed = total, None, 0.0
        console = Console(stderr=True)
        if console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self.progress = Progress(*columns, console=console)
            self.task = self.progress.add_task("training", total=total, completed=done)
            self.progress.start()

    def show(self, owner: "RCRL", step: int, last: bool = False) -> None:
        recent = [row["return"] for row in owner.episodes[-10:]]
        text = f"step {step}/{self.total}"
        text += f"  return {sum(recent) / len(recent):.1f}" if recent else ""
        text += f"  loss {owner.metrics[-1]['loss']:.4f}" if owner.metrics else ""
        if self.progress:
            self.progress.update(self.task, completed=min(step, self.total), description=text)
        elif last or time.monotonic() - self.printed >= 5:
            print(text, file=sys.stderr, flush=True)
            self.printed = time.monotonic()

    def close(self) -> None:
        if self.progress:
            self.progress.stop()
