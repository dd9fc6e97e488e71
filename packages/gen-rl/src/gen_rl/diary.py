"""What a training leaves while it runs: ended episodes, losses, checkpoints, a logger's files, a line on the screen."""

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stable_baselines3.common.callbacks import BaseCallback

from gen_core.harness.errors import UsageError, nearest
from gen_core.harness.runs import METRICS, append_row, read_rows, write_rows
from gen_core.harness.screen import Screen
from gen_rl import state

if TYPE_CHECKING:
    from gen_rl.methods.rcrl import RCRL

EPISODES = "episodes.jsonl"
LOGGERS = ("none", "tensorboard", "csv")
EVERY = 100
"""Steps to a line of metrics."""


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
            for name, rows in ((EPISODES, owner.episodes), (METRICS, owner.metrics)):
                rows += [row for row in read_rows(out / name) if row["step"] <= done]
                write_rows(out / name, rows)
        self.updates, self.sums, self.count = agent._n_updates, dict[str, float](), 0
        self.events: Any = None
        if out and logger == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter

            self.events = SummaryWriter(str(out / "tensorboard"), purge_step=done + 1 if done else None, flush_secs=10)
        self.screen = Screen(owner.config.steps, done) if progress else None

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            if "episode" in info:
                found = info["episode"]
                row = {"step": self.num_timesteps, "return": float(found["r"]), "length": int(found["l"])}
                self.owner.episodes.append(row)
                if self.out:
                    append_row(self.out / EPISODES, row)
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
        self._show(self.model.num_timesteps, last=True)

    def _note(self, step: int) -> None:
        """A line with the means since the last one."""
        if self.count:
            row: dict[str, float] = {"step": step, **{name: total / self.count for name, total in self.sums.items()}}
            row["epsilon"] = float(self.model.exploration_rate)  # pyright: ignore[reportAttributeAccessIssue]
            self.owner.metrics.append(row)
            if self.out:
                append_row(self.out / METRICS, row)
            if self.events:
                for name in row.keys() - {"step"}:
                    self.events.add_scalar(name, row[name], step)
            if self.out and self.kind == "csv":
                _write_csv(self.out / "csv" / "metrics.csv", self.owner.metrics)
        self.sums, self.count, self.noted = {}, 0, step
        self._show(step)

    def _show(self, step: int, last: bool = False) -> None:
        if self.screen:
            total, recent = self.owner.config.steps, [row["return"] for row in self.owner.episodes[-10:]]
            text = f"step {step}/{total}"
            text += f"  return {sum(recent) / len(recent):.1f}" if recent else ""
            text += f"  loss {self.owner.metrics[-1]['loss']:.4f}" if self.owner.metrics else ""
            self.screen.move(min(step, total))
            self.screen.show(text, last)

    def close(self) -> None:
        if self.events:
            self.events.close()
        if self.screen:
            self.screen.close()


def _write_csv(path: Path, rows: list[dict[str, float]]) -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(rows)
