"""What CE-GZSL's comparator costs against the naive form, and its step under Lightning against a bare loop.

    python benchmarks/zsl.py               prints two tables; one thread, both sides alternate in one process

Naive: one vectorised call on the B x S concatenated pairs, repeat / concat, then the two layers. Time is forward and
backward; memory is the most that both passes hold above what stood before (peak resident memory, Linux).
"""

import argparse
import ctypes
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from gen_core.harness import recipes
from gen_core.harness.fitting import Callback
from gen_zsl import CEGZSL
from gen_zsl.data import load
from gen_zsl.networks import Comparator
from gen_zsl.registry import DOMAIN

SIZES = {  # batch, seen classes, de, A, hidden
    "reduced record": (128, 80, 256, 64, 128),
    "SUN's classes, narrow": (128, 645, 512, 102, 256),
    "AWA2 widths": (256, 40, 2048, 85, 2048),
}


def split(comparator: Comparator, h: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    return comparator(h, a)


def naive(comparator: Comparator, h: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    pairs = torch.cat([h.repeat_interleave(len(a), 0), a.repeat(len(h), 1)], 1)
    return comparator.last(F.leaky_relu(comparator.first(pairs), 0.2)).view(len(h), len(a))


def made(size: tuple[int, ...]) -> tuple[Comparator, torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    b, s, de, a, hidden = size
    return Comparator(de, a, hidden), torch.randn(b, de, requires_grad=True), torch.randn(s, a), torch.arange(b) % s


def step(form: Any, comparator: Comparator, h: torch.Tensor, a: torch.Tensor, y: torch.Tensor) -> None:
    F.cross_entropy(form(comparator, h, a) / 0.1, y).backward()


def milliseconds(form: Any, given: Any) -> float:
    start = time.perf_counter()
    step(form, *given)
    return 1000 * (time.perf_counter() - start)


def megabytes(form: Any, given: Any) -> float:
    """The most that the step holds beyond what stood before: peak resident memory, reset before it (Linux)."""
    step(form, *given)  # gradients stand from here on
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    step(form, *given)
    return (_status("VmHWM") - before) / 1024


def _status(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(key + ":"))


class Clock(Callback):
    """Milliseconds from the start of each step to its end."""

    def __init__(self) -> None:
        self.steps: list[float] = []

    def on_train_batch_start(self, *_: Any) -> None:
        self.start = time.perf_counter()

    def on_train_batch_end(self, *_: Any) -> None:
        self.steps.append(1000 * (time.perf_counter() - self.start))


def steps(rounds: int) -> tuple[list[float], list[float]]:
    """Milliseconds of an iteration, 5 critic steps and a generator step, of the record's networks on digits."""
    config = recipes.load(DOMAIN, "ce-gzsl/cifar100-reduced")[1].config
    data, bare, engine = load("digits"), list[float](), list[float]()
    for _ in range(rounds):
        model: Any = CEGZSL(CEGZSL.Config(**config))
        model.prepare(CEGZSL.measure(data))
        model.training_data = data
        model.on_fit_start()
        optimizers = model.configure_optimizers()[0]
        model.optimizers, model.log_dict = lambda found=optimizers: found, lambda *_: None

        def descend(optimizer: Any, loss: torch.Tensor) -> None:
            optimizer.zero_grad()
            loss.backward(inputs=[p for group in optimizer.param_groups for p in group["params"]])
            optimizer.step()

        model.descend = descend
        for _ in range(40):
            start = time.perf_counter()
            model.training_step((model.x, model.y), 0)
            bare.append(1000 * (time.perf_counter() - start))
        clock = Clock()
        short = CEGZSL.Config.model_validate(config | {"epochs": 4, "final_epochs": 1, "zsl_epochs": 1})
        CEGZSL(short).fit(data, accelerator="cpu", progress=False, callbacks=[clock])
        engine += clock.steps
    return bare, engine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"{'comparator':24} {'naive ms':>9} {'split ms':>9} {'ratio':>6} {'naive MB':>9} {'split MB':>9} {'ratio':>6}"
    )
    for name, size in SIZES.items():
        given = made(size)
        times: dict[Any, list[float]] = {naive: [], split: []}
        for _ in range(options.rounds + 1):
            for form, found in times.items():
                found.append(milliseconds(form, given))
        slow, fast = (statistics.median(found[1:]) for found in times.values())
        large, small = (statistics.median(megabytes(form, given) for _ in range(3)) for form in times)
        print(f"{name:24} {slow:9.1f} {fast:9.1f} {fast / slow:6.2f} {large:9.1f} {small:9.1f} {small / large:6.2f}")
    bare, engine = (statistics.median(found) for found in steps(2))
    print(f"\n{'iteration, reduced record':26} bare {bare:.1f} ms, engine {engine:.1f} ms, ratio {engine / bare:.2f}")


if __name__ == "__main__":
    main()
