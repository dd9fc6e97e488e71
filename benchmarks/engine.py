"""What the engine costs: a method's step under Lightning, with its log and checkpoints, against a bare loop.

    python benchmarks/engine.py            prints a table; one thread, both sides alternate in one process

The bare loop does the same arithmetic: same batches, augmentation, loss, backward pass, optimiser, schedule. It writes
nothing.
"""

import argparse
import itertools
import statistics
import tempfile
import time
from types import SimpleNamespace
from typing import Any

import torch

from gen_core.harness.fitting import Callback, mix
from gen_graph import DGI
from gen_graph.data import load as load_graph
from gen_vision import SimCLR
from gen_vision.data import load as load_images


class Clock(Callback):
    """Start of every step, and the end of every epoch with its checkpoint."""

    def __init__(self) -> None:
        self.epochs: list[list[float]] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            self.epochs.append([])
        self.epochs[-1].append(time.perf_counter())

    def on_train_epoch_end(self, *_: Any) -> None:  # before the checkpoint, which is written after all other callbacks
        self.epochs[-1].append(time.perf_counter())


def engine(model: Any, data: Any) -> tuple[list[float], list[float]]:
    """Milliseconds of each step and of each epoch's end, the first epoch left out."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as out:
        model.fit(data, out=f"{out}/run", accelerator="cpu", progress=False, callbacks=[clock])
    steps = [1000 * (b - a) for times in clock.epochs[1:] for a, b in itertools.pairwise(times)]
    ends = [1000 * (b[0] - a[-1]) for a, b in itertools.pairwise(clock.epochs[1:])]
    return steps, ends


def bare(model: Any, data: Any) -> list[float]:
    """Milliseconds of each step without an engine, the first epoch left out."""
    model.prepare(type(model).measure(data))
    model.training_data, model.log = data, lambda *_, **__: None
    model._trainer = SimpleNamespace(world_size=1, should_stop=False, current_epoch=0)
    model.setup("fit")
    model.on_fit_start()
    made = model.configure_optimizers()
    optimizer = made["optimizer"] if isinstance(made, dict) else made
    schedule = made["lr_scheduler"]["scheduler"] if isinstance(made, dict) else None
    times = []
    for epoch in range(model.max_epochs):
        start = time.perf_counter()
        for batch in model.batches(data, mix(0, epoch)):
            loss = model.training_step(batch, 0)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if schedule:
                schedule.step()
            now = time.perf_counter()
            if epoch > 0:
                times.append(1000 * (now - start))
            start = now
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cora", action="store_true", help="also DGI on Cora at 512 dimensions (needs GEN_DATA)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cases: list[tuple[str, Any, Any]] = [
        ("SimCLR, digits, batch 256", lambda: SimCLR(SimCLR.Config(epochs=5)), load_images("digits")),
        ("DGI, csbm, 128-d", lambda: DGI(DGI.Config(hidden=128, epochs=200, patience=10_000)), load_graph("csbm")),
    ]
    if options.cora:
        cora = load_graph("cora")
        cases.append(("DGI, Cora, 512-d", lambda: DGI(DGI.Config(epochs=150, patience=10_000)), cora))
    print(f"{'median of a step':26} {'bare ms':>8} {'engine ms':>10} {'ratio':>6} {'more ms':>8} {'epoch end ms':>13}")
    for name, make, data in cases:
        ours: list[float] = []
        theirs: list[float] = []
        ends: list[float] = []
        for _ in range(options.rounds):
            theirs += bare(make(), data)
            steps, more = engine(make(), data)
            ours, ends = ours + steps, ends + more
        a, b = statistics.median(theirs), statistics.median(ours)
        print(f"{name:26} {a:8.2f} {b:10.2f} {b / a:6.2f} {b - a:8.2f} {statistics.median(ends):13.2f}")


if __name__ == "__main__":
    main()
