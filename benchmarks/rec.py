"""ACVAE's epoch against RecBole's SASRec on ml-100k, and the chunked cross-entropy against the plain one.

python benchmarks/rec.py [--batches 4]      one thread; needs recbole (Python 3.11) for the first table

RecBole trains on every prefix of a sequence, ACVAE here on the sequences themselves; both see the same interactions, up
to 50 items of history for SASRec (RecBole's default) and 200 for ACVAE. Of SASRec's epoch the first batches are timed,
after one to warm up, and scaled to all of them.
"""

import argparse
import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

CE = """
import resource, sys, time, torch
import torch.nn.functional as F
from gen_rec.networks import linear_cross_entropy
torch.set_num_threads(1); torch.manual_seed(0)
h, w, b = (torch.randn(*s, requires_grad=True) for s in (({rows}, 128), ({items}, 128), ({items},)))
target = torch.randint(0, {items}, ({rows},))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
times = []
for _ in range(3):
    start = time.perf_counter()
    if sys.argv[1] == "plain":
        loss = F.cross_entropy(F.linear(h, w, b), target, reduction="sum")
    else:
        loss = linear_cross_entropy(h, w, b, target)
    loss.backward()
    times.append(time.perf_counter() - start)
print(min(times), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def cross_entropy(rows: int = 3600, items: int = 7364) -> None:
    """One batch of acvae-ml-latest, forward and backward, each form in a process of its own."""
    print(f"softmax cross-entropy over {items:,} items, {rows:,} steps, forward and backward")
    for form in ("plain", "chunked"):
        code = CE.format(rows=rows, items=items)
        done = subprocess.run([sys.executable, "-c", code, form], capture_output=True, text=True, check=True)
        seconds, megabytes = (float(word) for word in done.stdout.split())
        print(f"  {form:8} {1000 * seconds:7.0f} ms   {megabytes:7.0f} MiB above the inputs")


def acvae_epoch() -> float:
    """Seconds of one epoch of the official sizes on ml-100k, the second of two."""
    import lightning

    from gen_rec import ACVAE
    from gen_rec.data import load

    times: list[float] = []

    class Clock(lightning.Callback):
        def on_train_epoch_start(self, *_: object) -> None:
            self.start = time.perf_counter()

        def on_train_epoch_end(self, *_: object) -> None:
            times.append(time.perf_counter() - self.start)

    data = load("ml-100k")
    ACVAE(ACVAE.Config(epochs=2)).fit(data, accelerator="cpu", progress=False, logger="none", callbacks=[Clock()])
    return times[-1]


def sasrec_epoch(batches: int) -> float:
    """Seconds of one epoch of RecBole's SASRec with its defaults, scaled from some of its batches."""
    from gen_rec import recbole

    settings = {"MAX_ITEM_LIST_LENGTH": 50, "epochs": 1}
    _, trainer, (train, _, _) = recbole.prepare("SASRec", "ml-100k", settings)
    trainer.model.train()
    times: list[float] = []
    for batch, interaction in enumerate(train):
        start = time.perf_counter()
        trainer.optimizer.zero_grad()
        trainer.model.calculate_loss(interaction).backward()
        trainer.optimizer.step()
        times.append(time.perf_counter() - start)
        if batch == batches:
            break
    step = statistics.median(times[1:])
    print(f"  SASRec: {len(train)} batches of {train.batch_size:,} prefixes, {step:.2f} s each (median of {batches})")
    return step * len(train)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--batches", type=int, default=3, help="batches of SASRec to time")
    batches = options.parse_args().batches
    torch.set_num_threads(1)
    cross_entropy()
    print("one epoch on ml-100k, one thread")
    if importlib.util.find_spec("recbole") is None:
        print("  not timed: recbole is not installed (it needs Python 3.11)")
        return
    with tempfile.TemporaryDirectory() as folder:
        here = Path.cwd()
        os.chdir(folder)  # RecBole writes its event files there
        theirs = sasrec_epoch(batches)
        os.chdir(here)
    ours = acvae_epoch()
    print(f"  ACVAE {ours:.1f} s, SASRec {theirs:.1f} s: ratio {ours / theirs:.3f} (goal 0.2)")


if __name__ == "__main__":
    main()
