"""One fit by Lightning: seeds, order, checkpoints, metrics, progress; a killed run goes on to the same bits.

Lightning restores neither random states nor the position in a shuffle, so both are derived: at the first batch of an
epoch everything is seeded from (seed, epoch, rank), and the order comes from a sampler without state.
"""

import itertools
import logging
import os
import random
import tempfile
import threading
import warnings
import zipfile
from collections.abc import Iterator, Sequence, Sized
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import lightning
import numpy as np
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, Checkpoint
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from gen_core.harness import report, weights
from gen_core.harness.errors import Diverged, UsageError, nearest
from gen_core.harness.runs import LAST, METRICS, WEIGHTS, append_row, read_rows, write_rows
from gen_core.harness.screen import Screen

if TYPE_CHECKING:
    from gen_core.harness.method import Method

LOGGERS: dict[str, Any] = {
    "tensorboard": TensorBoardLogger,
    "csv": CSVLogger,
    "mlflow": MLFlowLogger,
    "wandb": WandbLogger,
}


def mix(*numbers: int) -> int:
    """One well-spread 32-bit seed from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


class Shuffle(Sampler[int]):
    """A permutation of range(n) that depends on `seed` alone, however often it is asked."""

    def __init__(self, n: int, seed: int) -> None:
        self.n, self.seed = n, seed

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[int]:
        order: Any = torch.randperm(self.n, generator=torch.Generator().manual_seed(self.seed))
        return iter(order.tolist())


class Rows(Dataset[tuple[Tensor, ...]]):
    """Rows of tensors of equal length; a batch is one index operation a tensor, not n of them and a stack."""

    def __init__(self, *tensors: Tensor) -> None:
        self.tensors = tensors

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        return tuple(tensor[index] for tensor in self.tensors)

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, ...]:
        chosen = torch.tensor(indices)
        return tuple(tensor[chosen] for tensor in self.tensors)


def _whole(batch: Any) -> Any:
    return batch


def loader(tensors: Sequence[Tensor], batch_size: int, seed: int, drop_last: bool = False) -> DataLoader[Any]:
    """Batches of rows in the order that `seed` says; fewer rows than `batch_size` are one batch."""
    rows = Rows(*tensors)
    order = Shuffle(len(rows), seed)
    return DataLoader(rows, min(batch_size, len(rows)), sampler=order, drop_last=drop_last, collate_fn=_whole)


class Repeat(Sized):
    """The same batch `times` times: a virtual epoch of a full-batch method."""

    def __init__(self, batch: Any, times: int) -> None:
        self.batch, self.times = batch, times

    def __len__(self) -> int:
        return self.times

    def __iter__(self) -> Iterator[Any]:
        return itertools.repeat(self.batch, self.times)


class Seeds(Callback):
    """Seed at the first batch, not at the epoch's start: a resumed loader draws from the global state in between."""

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        _quiet()  # again, for spawned ranks

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            seed = mix(pl_module.fit_seed, trainer.current_epoch, trainer.global_rank)
            # Not seed_everything: it also sets PL_GLOBAL_SEED, by which Lightning shards the order of the next epoch,
            # and ranks with different values there would share some rows and leave others out.
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)  # pyright: ignore[reportUnknownMemberType]


class EpochEnd(Checkpoint):
    """One checkpoint, replaced at each epoch's end by a rename; the metrics past it are dropped on resume."""

    def __init__(self, out: Path) -> None:
        self.path, self.metrics = out / LAST, out / METRICS

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        done = trainer.fit_loop.epoch_loop._batches_that_stepped
        if trainer.is_global_zero and self.metrics.exists():
            write_rows(self.metrics, [row for row in read_rows(self.metrics) if row["step"] < done])

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        temporary = self.path.with_suffix(".tmp")
        trainer.save_checkpoint(temporary)
        if trainer.is_global_zero:
            temporary.replace(self.path)


class JsonLines(Logger):
    """`metrics.jsonl`: one object a step, with step, epoch and what the method logged."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    @property
    def name(self) -> str:
        return "jsonl"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        pass

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        append_row(self.path, {"step": step, **metrics})  # no open file, so that it pickles to spawned ranks


class Steps(Callback):
    """What a method logs in a training step, to all loggers; Lightning's own way takes some 0.4 ms a value."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        pl_module.logged = {}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        logged, pl_module.logged = pl_module.logged, None
        trainer.callback_metrics.update(logged)
        step, every = trainer.fit_loop.epoch_loop._batches_that_stepped, trainer.log_every_n_steps
        waiting = (batch_idx + 1) % trainer.accumulate_grad_batches and pl_module.automatic_optimization
        if logged and not waiting and every and (step + 1) % every == 0:
            row = {name: float(value) for name, value in logged.items()} | {"epoch": trainer.current_epoch}
            for logger in trainer.loggers:
                logger.log_metrics(row, step)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        for logger in trainer.loggers:
            logger.save()


class Bar(Callback):
    """Lightning's progress on our screen."""

    screen: Screen | None = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.is_global_zero:
            total = trainer.max_epochs * trainer.num_training_batches
            self.screen = Screen(total, trainer.fit_loop.epoch_loop._batches_that_stepped)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.screen:
            self.screen.move(self.screen.done + 1)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if self.screen:
            metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
            text = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  "
            text += "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
            self.screen.show(text, last=trainer.current_epoch + 1 == trainer.max_epochs or trainer.should_stop)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if self.screen:
            self.screen.close()
            self.screen = None


class Pictures(Callback):
    """What the model shows of itself, about ten times in a training: files in `figures/`, images in TensorBoard."""

    TIMES = 10

    def __init__(self, out: Path) -> None:
        self.folder = out / "figures"

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        done, total = trainer.current_epoch + 1, trainer.max_epochs
        if not trainer.is_global_zero or done * self.TIMES // total == (done - 1) * self.TIMES // total:
            return
        self.folder.mkdir(exist_ok=True)
        for name, picture in pl_module.pictures().items():
            report.picture(picture, self.folder / f"{name}-epoch-{done:0{len(str(total))}d}.png")
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    cast(Any, logger).experiment.add_image(name, picture, done)


def _loggers(out: Path, name: str) -> list[Logger]:
    if name == "none":
        return [JsonLines(out / METRICS)]
    if name not in LOGGERS:
        raise UsageError(nearest(name, LOGGERS, "logger"))
    if name == "mlflow":
        extra: Logger = MLFlowLogger(tracking_uri=f"file:{out.absolute() / 'mlflow'}", run_name=out.name)
    elif name == "wandb":
        extra = WandbLogger(save_dir=out, name=out.name)
    else:
        # Ctrl-C inside the event queue's `put` can leave its writer asleep until the next flush, 120 s by default.
        more: dict[str, Any] = {"flush_secs": 10} if name == "tensorboard" else {}
        extra = LOGGERS[name](save_dir=out, name="", version=name, **more)
    return [JsonLines(out / METRICS), extra]


def _strategy(accelerator: str, devices: Any) -> str:
    # Spawned ranks, because the launcher of plain "ddp" runs the command again and rank 1 meets its own run folder.
    many = devices not in (1, "1", "auto")
    return "ddp_spawn" if many and "LOCAL_RANK" not in os.environ else "auto"


def run(
    model: "Method",
    out: Path | None,
    *,
    resume: bool = False,
    accelerator: str = "auto",
    devices: Any = 1,
    logger: str = "tensorboard",
    progress: bool = True,
    callbacks: Sequence[Callback] = (),
    **trainer: Any,
) -> None:
    """Train `model` on `model.training_data`; with `out`, leave metrics, checkpoints, events and weights there."""
    checkpoint = None
    if out:
        if (out / WEIGHTS).exists() or (out / LAST).exists():
            if not resume:
                raise UsageError(f"{out} holds a run already; choose another folder, or go on with resume=True")
            if (out / WEIGHTS).exists():
                weights.restore(model, out)
                return
        (out / LAST).parent.mkdir(parents=True, exist_ok=True)
        checkpoint = out / LAST if (out / LAST).exists() else None
        if checkpoint and not zipfile.is_zipfile(checkpoint):
            raise UsageError(f"{checkpoint} is truncated or no checkpoint; remove it to start again from step 0")
    shown = [Pictures(out)] if out and logger != "none" and hasattr(model, "pictures") else []
    options: dict[str, Any] = {
        "accelerator": accelerator,
        "devices": devices,
        "strategy": _strategy(accelerator, devices),
        "max_epochs": model.max_epochs,
        "logger": _loggers(out, logger) if out else False,
        "log_every_n_steps": 1,
        "callbacks": [
            Seeds(),
            Steps(),
            *([Bar()] if progress else []),
            *([EpochEnd(out)] if out else []),
            *shown,
            *callbacks,
        ],
        "enable_checkpointing": out is not None,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "reload_dataloaders_every_n_epochs": 1,
        "default_root_dir": out or tempfile.gettempdir(),
    } | trainer
    with warnings.catch_warnings():
        _quiet()
        try:
            engine = lightning.Trainer(**options)
        except (MisconfigurationException, RuntimeError, ValueError) as error:
            raise UsageError(f"device {accelerator!r}, devices {devices!r}: {error}") from None
        previous, threading.excepthook = threading.excepthook, _no_echo
        try:
            engine.fit(model, ckpt_path=checkpoint, weights_only=True if checkpoint else None)
        except Diverged as error:
            raise Diverged(f"step {engine.fit_loop.epoch_loop.total_batch_idx}: {error}") from None
        except SystemExit:
            raise KeyboardInterrupt from None  # Lightning turns Ctrl-C into SystemExit(1)
        finally:
            threading.excepthook = previous
    if out:
        weights.save(model, out)


def _no_echo(error: threading.ExceptHookArgs) -> None:
    """The event writer's thread raises what it meets, such as a full disk, again in ours: one report is enough."""
    if not issubclass(error.exc_type, OSError):
        threading.__excepthook__(error)


def _quiet() -> None:
    """Hide Lightning's advice on loaders, loggers and hardware; errors and other warnings stay."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
