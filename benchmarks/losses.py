"""The contrastive losses and the bounds of gen-core against their peers: time and memory, forward and backward.

    pip install lightly pytorch-metric-learning     # without them only the dense forms stand beside ours
    python benchmarks/losses.py [--threads 2] [--device cuda] [--quick] [--json FILE]

All sides of a table alternate in one process, float32 (bfloat16 inputs with `--device cuda`), D = 128; time is the
median. Memory is the most that a step holds beyond its inputs and their gradients: peak resident memory, reset before
it (Linux), or torch's own count on a GPU. `dense` is the formula written with torch's own functions on the whole
matrix; for the bounds, `bare` is the formula without any check.
"""

import argparse
import ctypes
import importlib.util
import json
import math
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gen_core.estimators import dv, infonce, jsd, nwj, smile
from gen_core.losses import info_nce, nt_xent, sup_con

D, TAU = 128, 0.5
Step = Callable[[], Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--quick", action="store_true", help="up to 2,048 pairs")
    parser.add_argument("--json", type=Path, help="also write all figures there")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    cuda = options.device == "cuda"
    where = torch.cuda.get_device_name() if cuda else f"{options.threads} threads"
    print(f"torch {torch.__version__}, {where}, D = {D}, tau = {TAU}\n")
    sizes = [8192, 32768, 65536] if cuda else [64, 128, 256, 512, 2048, 8192]
    sizes = sizes[:1] if cuda and options.quick else [n for n in sizes if not options.quick or n <= 2048]
    found: dict[str, Any] = {"torch": torch.__version__, "where": where, "cpu": platform.processor() or "unknown"}
    found |= nt_xent_table(sizes, options.device)
    if cuda:
        found["clip"] = info_nce_table(sizes, options.device)
    else:
        found["sup_con"] = sup_con_table()
        found["bounds"] = bounds_table()
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(found, indent=2) + "\n")


# ---------------------------------------------------------------------------------------------------------- the tables


def nt_xent_table(sizes: list[int], device: str) -> dict[str, Any]:
    """Floor: n^2 D multiply-adds forward and 3 n^2 D backward by symmetry (n = 2 N), n^2 / 2 exponentials a pass."""
    side = 4096 if device == "cuda" else 2048
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    x = torch.randn(side, side, device=device)  # our products are in float32 also where the inputs are not
    plain = 2 * side**3 / seconds({"matmul": lambda: x @ x}, 9)["matmul"] / 1e9
    print(f"NT-Xent; a plain float32 matmul ({side}) reaches {plain:.0f} GFLOP/s")
    head(" pairs", ["ours", "dense", "lightly"], f"{'GFLOP/s':>9} {'share':>6}")
    rows: list[dict[str, Any]] = []
    for n in sizes:
        a, b = (torch.randn(n, D, device=device, dtype=dtype).requires_grad_() for _ in range(2))
        forms = {"ours": lambda a=a, b=b: nt_xent(a, b, TAU)}
        if fits(2 * n, device):
            forms["dense"] = lambda a=a, b=b: dense_nt_xent(a, b)
            if importlib.util.find_spec("lightly"):
                from lightly.loss import NTXentLoss

                peer = NTXentLoss(TAU)
                forms["lightly"] = lambda a=a, b=b, peer=peer: peer(a, b)
        found = row(f"{n:6d}", forms, [a, b], n, device)
        speed = 8 * (2 * n) ** 2 * D / 2 / found["ms"]["ours"] / 1e6
        rows.append({"pairs": n, **found, "gflops": speed})
        print(f" {speed:9.0f} {speed / plain:6.2f}")
    print()
    return {"matmul_gflops": plain, "nt_xent": rows}


def info_nce_table(sizes: list[int], device: str) -> list[dict[str, Any]]:
    """CLIP's symmetric loss: OpenCLIP computes both directions from one dense matrix."""
    print("CLIP's loss, both directions")
    head(" pairs", ["ours", "openclip"], "")
    rows: list[dict[str, Any]] = []
    for n in sizes:
        a, b = (torch.randn(n, D, device=device, dtype=torch.bfloat16).requires_grad_() for _ in range(2))
        forms = {"ours": lambda a=a, b=b: (info_nce(a, b, TAU) + info_nce(b, a, TAU)) / 2}
        if fits(n, device):
            forms["openclip"] = lambda a=a, b=b: open_clip(a, b)
        rows.append({"pairs": n, **row(f"{n:6d}", forms, [a, b], n, device)})
        print()
    print()
    return rows


def sup_con_table() -> dict[str, Any]:
    print("SupCon, 4,096 rows, 10 classes")
    head("  rows", ["ours", "dense", "pml"], "")
    z, y = torch.randn(4096, D, requires_grad=True), torch.arange(4096) % 10
    forms = {"ours": lambda: sup_con(z, y, 0.1), "dense": lambda: dense_sup_con(z, y, 0.1)}
    if importlib.util.find_spec("pytorch_metric_learning"):
        from pytorch_metric_learning.losses import SupConLoss

        loss = SupConLoss(0.1)
        forms["pml"] = lambda: loss(z, y)
    found = row("  4096", forms, [z], 2048, "cpu")
    print("\n")
    return {"rows": 4096, **found}


def bounds_table() -> dict[str, dict[str, float]]:
    f = torch.randn(64, 64, requires_grad=True)
    off = ~torch.eye(64, dtype=torch.bool)

    def others() -> Tensor:
        return f.masked_fill(~off, -math.inf)

    bare: dict[str, tuple[Callable[[Tensor], Tensor], Step]] = {
        "infonce": (infonce, lambda: (f.diagonal() - f.logsumexp(1)).mean() + math.log(64)),
        "dv": (dv, lambda: f.diagonal().mean() - (others().logsumexp((0, 1)) - math.log(64 * 63))),
        "nwj": (nwj, lambda: f.diagonal().mean() - (others() - 1).exp().sum() / (64 * 63)),
        "jsd": (jsd, lambda: -F.softplus(-f.diagonal()).mean() - F.softplus(others()).sum() / (64 * 63)),
        "smile": (
            smile,
            lambda: (
                f.diagonal().mean()
                - (f.clamp(-5, 5).masked_fill(~off, -math.inf).logsumexp((0, 1)) - math.log(64 * 63))
            ),
        ),
    }
    print("Bounds on a 64 x 64 score matrix, forward and backward, microseconds")
    print(f"{'bound':8} {'ours':>7} {'bare':>7} {'ratio':>6}")
    table: dict[str, dict[str, float]] = {}
    for name, (ours, formula) in bare.items():
        assert torch.allclose(ours(f), formula(), atol=1e-5)
        found = seconds({"ours": lambda ours=ours: ours(f).backward(), "bare": lambda g=formula: g().backward()}, 2000)
        table[name] = {side: 1e6 * value for side, value in found.items()}
        print(f"{name:8} {1e6 * found['ours']:7.0f} {1e6 * found['bare']:7.0f} {found['ours'] / found['bare']:6.2f}")
    return table


# ----------------------------------------------------------------------------------------------------- the other forms


def dense_nt_xent(a: Tensor, b: Tensor) -> Tensor:
    z = F.normalize(torch.cat([a, b]).float())
    s = (z @ z.T / TAU).fill_diagonal_(-math.inf)
    return F.cross_entropy(s, torch.arange(len(z), device=z.device).roll(len(a)))


def dense_sup_con(z: Tensor, y: Tensor, tau: float) -> Tensor:
    z = F.normalize(z)
    own = torch.eye(len(z), dtype=torch.bool)
    same = (y[:, None] == y) & ~own
    log_p = (z @ z.T / tau).masked_fill(own, -math.inf).log_softmax(1).masked_fill(own, 0.0)
    return -((log_p * same).sum(1) / same.sum(1)).mean()


def open_clip(a: Tensor, b: Tensor) -> Tensor:
    """The formula of OpenCLIP's ClipLoss on one process."""
    logits = F.normalize(a.float()) @ F.normalize(b.float()).T / TAU
    target = torch.arange(len(a), device=a.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


# ------------------------------------------------------------------------------------------------------- measurements


def head(first: str, names: list[str], last: str) -> None:
    times = " ".join(f"{name + ' ms':>11}" for name in names)
    memory = " ".join(f"{name + ' MB':>11}" for name in names)
    ratios = " ".join(f"{'/' + name:>14}" for name in names[1:])
    print(f"{first} {times} {memory}  ours: time, memory {ratios} {last}")


def row(first: str, forms: dict[str, Step], leaves: list[Tensor], n: int, device: str) -> dict[str, dict[str, float]]:
    def step(form: Step) -> None:
        for leaf in leaves:
            leaf.grad = None
        form().backward()

    steps = {name: lambda form=form: step(form) for name, form in forms.items()}
    values = {name: form().item() for name, form in forms.items()}
    assert max(values.values()) - min(values.values()) < 1e-4 * (1 if device == "cpu" else 10), values
    found = seconds(steps, 300 if n <= 256 else 41 if n <= 512 else 9 if n <= 2048 else 3)
    memory = {name: statistics.median(megabytes(one, leaves, device) for _ in range(3)) for name, one in steps.items()}
    times = " ".join(f"{1000 * value:11.2f}" for value in found.values())
    sizes = " ".join(f"{value:11.1f}" for value in memory.values())
    others = [name for name in forms if name != "ours"]
    ratios = " ".join(
        f"{found['ours'] / found[name]:6.3f} {memory['ours'] / max(memory[name], 0.1):7.3f}" for name in others
    )
    print(f"{first} {times} {sizes}  {'':18} {ratios}", end="")
    return {"ms": {name: 1000 * value for name, value in found.items()}, "mb": memory}


def seconds(steps: dict[str, Step], rounds: int) -> dict[str, float]:
    """The median time of each, in turns; each round begins with another, since who follows whom costs cache."""
    found: dict[str, list[float]] = {name: [] for name in steps}
    order = list(steps.items())
    for _ in range(rounds + 1):
        order.append(order.pop(0))
        for name, step in order:
            wait()
            start = time.perf_counter()
            step()
            wait()
            found[name].append(time.perf_counter() - start)
    return {name: statistics.median(times[1:]) for name, times in found.items()}


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def megabytes(step: Step, leaves: list[Tensor], device: str) -> float:
    """What a step holds at most beyond what stood before and the gradients of its inputs."""
    for leaf in leaves:
        leaf.grad = None
    gradients = sum(leaf.nbytes for leaf in leaves)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return (torch.cuda.max_memory_allocated() - before - gradients) / 2**20
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    step()
    return (status("VmHWM") - before) / 1024 - gradients / 2**20


def status(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(key + ":"))


def fits(rows: int, device: str) -> bool:
    """Four matrices of all pairs in two thirds of the memory."""
    have = torch.cuda.get_device_properties(0).total_memory if device == "cuda" else 1024 * total_kib()
    return 4 * 4 * rows**2 < have * 2 / 3


def total_kib() -> float:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("MemTotal:"))


if __name__ == "__main__":
    main()
