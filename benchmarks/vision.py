"""A VAE's training step against pythae's with the same networks, and what NCP-VAE's sampling holds in memory.

python benchmarks/vision.py [--json FILE]      one thread; needs pythae for the first table

Both sides train 784-400-40 perceptrons on one batch of 100 binary images: forward, backward, Adam as either trainer
makes it, without the trainers. They take turns.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

HIDDEN, LATENT, BATCH = 400, 40, 100
SAMPLING = """
import resource, sys, time, torch
from gen_vision import NCPVAE, VAE
torch.set_num_threads(1)
sizes = {"channels": 1, "height": 28, "width": 28, "classes": 10}
vae = VAE(VAE.Config(hidden=(300, 300), latent=10)); vae.prepare(sizes)
model = NCPVAE(vae=vae); model.prepare(sizes); model.sample(10, proposals=500)
before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
found = model.sample(10_000, proposals=500)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(time.perf_counter() - start, (after - before) / 1024, found.numel() * 4 / 2**20)
"""


def ours() -> Callable[[], None]:
    from gen_vision import VAE

    model: Any = VAE(VAE.Config(hidden=(HIDDEN,), latent=LATENT, batch_size=BATCH))
    model.prepare({"channels": 1, "height": 28, "width": 28, "classes": 10})
    images = torch.rand(BATCH, 1, 28, 28).round()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=True)

    def step() -> None:
        x = model.likelihood.observe(images)
        terms = model.terms(x, model.infer(x))
        loss = torch.stack(list(terms.values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def pythae_vae() -> Any:
    """pythae's VAE with the networks of its own reproduction on binary MNIST."""
    from pythae.models import VAE, VAEConfig  # pyright: ignore
    from pythae.models.base.base_utils import ModelOutput  # pyright: ignore
    from pythae.models.nn import BaseDecoder, BaseEncoder  # pyright: ignore
    from torch import nn

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.latent_dim = LATENT
            self.layers = nn.Sequential(nn.Linear(784, HIDDEN), nn.ReLU())
            self.mean, self.log_variance = nn.Linear(HIDDEN, LATENT), nn.Linear(HIDDEN, LATENT)

        def forward(self, x: Any) -> Any:
            h = self.layers(x.reshape(-1, 784))
            return ModelOutput(embedding=self.mean(h), log_covariance=self.log_variance(h))

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(LATENT, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 784), nn.Sigmoid())

        def forward(self, z: Any) -> Any:
            return ModelOutput(reconstruction=self.layers(z).reshape(-1, 1, 28, 28))

    config = VAEConfig(input_dim=(1, 28, 28), latent_dim=LATENT, reconstruction_loss="bce")
    return VAE(config, Encoder(), Decoder())


def pythae() -> Callable[[], None]:
    from pythae.data.datasets import BaseDataset  # pyright: ignore

    model = pythae_vae()
    data = BaseDataset(torch.rand(BATCH, 1, 28, 28).round(), torch.zeros(BATCH))
    batch = {"data": data.data, "labels": data.labels}
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    def step() -> None:
        optimizer.zero_grad()
        model(batch).loss.backward()
        optimizer.step()

    return step


def milliseconds(steps: dict[str, Callable[[], None]], rounds: int, each: int = 20) -> dict[str, float]:
    """The median over rounds, in which the sides take turns."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 1):  # the first warms up
        for name, step in steps.items():
            start = time.perf_counter()
            for _ in range(each):
                step()
            if turn:
                times[name].append(1000 * (time.perf_counter() - start) / each)
    return {name: statistics.median(found) for name, found in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    found: dict[str, Any] = {"torch": torch.__version__, "batch": BATCH}
    steps = {"ours": ours()}
    if importlib.util.find_spec("pythae"):
        steps["pythae"] = pythae()
        found["pythae"] = importlib.metadata.version("pythae")
    found["step_ms"] = ms = milliseconds(steps, options.rounds)
    print("a step:", ", ".join(f"{name} {value:.2f} ms" for name, value in ms.items()))
    if "pythae" in ms:
        print(f"  ratio {ms['ours'] / ms['pythae']:.2f} (goal 0.67)")
    done = subprocess.run([sys.executable, "-c", SAMPLING], capture_output=True, text=True, check=True)
    seconds, extra, result = (float(word) for word in done.stdout.split())
    found["ncp_sampling"] = {"seconds": seconds, "extra_mib": extra, "result_mib": result}
    print(
        f"10,000 images at M = 500: {seconds:.1f} s, {extra:.0f} MiB more than before, the images {result:.0f} of them"
    )
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
